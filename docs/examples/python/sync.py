"""Ask for a sync of one VM replication and wait for its outcome: python sync.py REPLICATION_ID.

Cancel a request that was sent before: python sync.py REPLICATION_ID OPERATION_ID.
"""

import asyncio
import json
import os
import sys
import uuid

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

BROKERS = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")


async def sync(replication_id: str) -> dict:
    """Return the outcome; a `reason` in it says that the request failed."""
    operation_id = str(uuid.uuid4())
    request = {"operationID": operation_id, "replicationId": replication_id}
    consumer = AIOKafkaConsumer(
        "vm-sync.completed",
        "vm-sync.failed",
        bootstrap_servers=BROKERS,
        isolation_level="read_committed",  # without it, outcomes would be seen that never came to be
    )
    producer = AIOKafkaProducer(bootstrap_servers=BROKERS, enable_idempotence=True)
    async with consumer, producer:
        await consumer.seek_to_end()  # before the request is sent, so that its outcome can't be missed
        # The key keeps the requests for one replication in order.
        await producer.send_and_wait("vm-sync.requests", json.dumps(request).encode(), key=replication_id.encode())
        async for record in consumer:
            outcome = json.loads(record.value)
            if outcome["operationID"] == operation_id:
                return outcome
    raise AssertionError


async def cancel(replication_id: str, operation_id: str) -> None:
    """Cancel a request. It has its outcome if it still waits; one that VCDA has accepted goes on."""
    message = {"cancel": {"replicationId": replication_id, "operationID": operation_id}, "by": "sync.py"}
    async with AIOKafkaProducer(bootstrap_servers=BROKERS, enable_idempotence=True) as producer:
        # The same key as the request's, so that the cancel is behind it in the same partition.
        await producer.send_and_wait("vm-sync.requests", json.dumps(message).encode(), key=replication_id.encode())


if __name__ == "__main__":
    match sys.argv[1:]:
        case [replication]:
            outcome = asyncio.run(sync(replication))
            print(json.dumps(outcome))
            sys.exit("reason" in outcome)
        case [replication, operation]:
            asyncio.run(cancel(replication, operation))
        case _:
            print(__doc__, file=sys.stderr)
            sys.exit(2)
