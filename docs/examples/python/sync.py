"""Ask for a sync of one VM replication and wait for its outcome: python sync.py REPLICATION_ID."""

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


if __name__ == "__main__":
    told = asyncio.run(sync(sys.argv[1]))
    print(json.dumps(told))
    sys.exit("reason" in told)
