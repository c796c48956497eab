"""Ask for a sync of one VM replication and wait for its outcome: python sync.py REPLICATION_ID.

Cancel a request that was sent before: python sync.py REPLICATION_ID OPERATION_ID.
"""

import asyncio
import json
import os
import sys
import uuid

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

BROKERS = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
LIMIT = float(os.environ.get("WAIT_SECONDS", "25200"))  # an hour more than the service's default deadline


async def sync(replication_id: str) -> dict:
    """Return the outcome; a `reason` in it says that the request failed. A TimeoutError: there is none within LIMIT."""
    operation_id = str(uuid.uuid4())
    request = {"operationID": operation_id, "replicationId": replication_id}
    consumer = AIOKafkaConsumer(
        "vm-sync.completed",
        "vm-sync.failed",
        bootstrap_servers=BROKERS,
        isolation_level="read_committed",  # without it, outcomes would be seen that never came to be
    )
    producer = AIOKafkaProducer(bootstrap_servers=BROKERS, enable_idempotence=True)
    try:
        await consumer.start()
        await producer.start()
        await consumer.seek_to_end()  # before the request is sent, so that its outcome can't be missed
        # The key keeps the requests for one replication in order.
        await producer.send_and_wait("vm-sync.requests", json.dumps(request).encode(), key=replication_id.encode())
        async with asyncio.timeout(LIMIT):
            async for record in consumer:
                outcome = json.loads(record.value)
                if outcome["operationID"] == operation_id:
                    return outcome
    finally:
        await consumer.stop()
        await producer.stop()
    raise AssertionError


async def cancel(replication_id: str, operation_id: str) -> None:
    """Cancel a request. It has its outcome if it still waits; one that VCDA has accepted goes on."""
    message = {"cancel": {"replicationId": replication_id, "operationID": operation_id}, "by": "sync.py"}
    producer = AIOKafkaProducer(bootstrap_servers=BROKERS, enable_idempotence=True)
    try:
        await producer.start()
        # The same key as the request's, so that the cancel is behind it in the same partition.
        await producer.send_and_wait("vm-sync.requests", json.dumps(message).encode(), key=replication_id.encode())
    finally:
        await producer.stop()


def main() -> int:
    """Return 0 for completed, 1 for failed, 2 for a wrong call, 3 if nothing is known."""
    try:
        match sys.argv[1:]:
            case [replication]:
                outcome = asyncio.run(sync(replication))
                print(json.dumps(outcome))
                return 1 if "reason" in outcome else 0
            case [replication, operation]:
                asyncio.run(cancel(replication, operation))
                return 0
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except KafkaError as error:
        print(f"Kafka at {BROKERS} can't be used: {error}", file=sys.stderr)
    except TimeoutError:
        # An invalid request has no outcome: it becomes a dead letter, which the service's operators see.
        print(f"No outcome within {LIMIT:g} s; the request may still be in flight.", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main())
