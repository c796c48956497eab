"""Requests put on the topic, and outcomes read from it as another team would: committed ones only.

Moments are seconds since 1970. They are comparable, since all processes are on one machine and share its clock.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import murmur2

from benchmarks.stage import Topics


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked."""

    operation_id: str
    replication_id: str

    @property
    def value(self) -> bytes:
        """The message."""
        return json.dumps({"operationID": self.operation_id, "replicationId": self.replication_id}).encode()


def partition_of(replication_id: str, partitions: int) -> int:
    """Choose as any Kafka client does for a record with this key."""
    return int((murmur2(replication_id.encode()) & 0x7FFFFFFF) % partitions)


@asynccontextmanager
async def producing(bootstrap: str) -> AsyncIterator[AIOKafkaProducer]:
    """Open a producer."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", max_batch_size=512 * 1024)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def write(
    producer: AIOKafkaProducer, topic: str, records: Iterable[tuple[int, bytes, bytes | None]], *, partitions: int
) -> None:
    """Write (partition, key, value) in whole batches: a few microseconds each."""
    batches = [producer.create_batch() for _ in range(partitions)]
    for number, key, value in records:
        if batches[number].append(key=key, value=value, timestamp=None) is None:
            await _send(producer, batches[number], topic, number)
            batches[number] = producer.create_batch()
            batches[number].append(key=key, value=value, timestamp=None)
    for number, batch in enumerate(batches):
        if batch.record_count():
            await _send(producer, batch, topic, number)


async def _send(producer: AIOKafkaProducer, batch: object, topic: str, number: int) -> None:
    await (await producer.send_batch(batch, topic, partition=number))


async def burst(bootstrap: str, topics: Topics, requests: Sequence[Request]) -> None:
    """Put all requests on the topic at once."""
    records = (
        (partition_of(request.replication_id, topics.partitions), request.replication_id.encode(), request.value)
        for request in requests
    )
    async with producing(bootstrap) as producer:
        await write(producer, topics.requests, records, partitions=topics.partitions)


async def trickle(
    bootstrap: str, topic: str, requests: Iterable[Request], *, rate: float, appended: dict[str, float]
) -> None:
    """Put requests on the topic one by one, `rate` a second at random moments, and note when Kafka appended each."""
    dice = Random(20_26)
    sending: set[asyncio.Task[None]] = set()
    async with producing(bootstrap) as producer:

        async def send(request: Request) -> None:
            record = await producer.send_and_wait(topic, request.value, key=request.replication_id.encode())
            appended[request.operation_id] = record.timestamp / 1000

        due = time.monotonic()
        try:
            for request in requests:
                due += dice.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                task = asyncio.create_task(send(request))
                sending.add(task)
                task.add_done_callback(sending.discard)
        finally:
            await asyncio.gather(*sending)


class Outcomes:
    """Reads outcomes as they come. An async context; what has come is read into values when asked for.

    With `take`, nothing is kept: it is called with the moment and the message of each outcome.
    """

    def __init__(self, bootstrap: str, topics: Topics, *, take: Callable[[float, bytes], None] | None = None) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            fetch_max_wait_ms=100,
        )
        self._topics = topics
        self._came: list[tuple[float, bytes]] = []
        self._take = take or self._keep
        self._count = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        topics = self._topics
        self._consumer.assign(
            [TopicPartition(name, number) for name in topics.outcomes for number in range(topics.partitions)]
        )
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._consumer.stop()

    async def _read(self) -> None:
        while True:
            for records in (await self._consumer.getmany(timeout_ms=200)).values():
                now = time.time()
                for record in records:
                    self._take(now, record.value)
                self._count += len(records)

    def _keep(self, now: float, value: bytes) -> None:
        self._came.append((now, value))

    def __len__(self) -> int:
        return self._count

    async def wait(self, count: int, *, within: float, checking: Callable[[], None] = lambda: None) -> None:
        """Wait for so many outcomes, or for so long. What `checking` raises, every now and then, ends it."""
        give_up = time.monotonic() + within
        while self._count < count and time.monotonic() < give_up:
            checking()
            if self._task is not None and self._task.done():
                self._task.result()
            await asyncio.sleep(0.02)

    def by_operation(self) -> dict[str, float]:
        """Return when the first outcome of each request came."""
        first: dict[str, float] = {}
        for came, value in self._came:
            first.setdefault(json.loads(value)["operationID"], came)
        return first
