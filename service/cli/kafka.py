"""Access to Kafka for commands: connect, describe, read up to the current end; each bounded in time.

The log of Kafka's client is not shown; `diagnosis` turns it into a sentence that names the setting to change.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from aiokafka.structs import RecordMetadata

from service.cli.output import NoAnswer, say
from service.kafka.clients import end
from service.kafka.connection import KafkaConnection
from service.kafka.denials import Account, MissingRight, Operation, Resource
from service.kafka.diagnosis import diagnosis, overheard
from service.kafka.topic_descriptions import Described, describe
from service.kafka.topics import TopicNames
from service.settings import KafkaSettings, kafka_security, load_for_kafka

SILENCE: Final = 15.0
"""Seconds without any progress after which Kafka counts as away: a broker's restart passes within it, a person's
patience doesn't end before."""

REQUEST_MS: Final = 10_000
"""For one request to a broker; shorter than `SILENCE`, so that the client itself says first what is wrong."""

NOTE_AFTER: Final = 2.0
"""Seconds between two progress messages."""

RECORDS_AT_ONCE: Final = 2_000


@dataclass(frozen=True, slots=True)
class KafkaContext:
    """The Kafka connection and the names of the topics, from the settings."""

    settings: KafkaSettings
    connection: KafkaConnection

    @property
    def names(self) -> TopicNames:
        """The topics' names, as `service.kafka.topics` wants them."""
        topics = self.settings.topics
        return TopicNames(
            requests=topics.requests,
            completed=topics.completed,
            failed=topics.failed,
            dead_letter=topics.dead_letter,
            journal=topics.journal,
            progress=topics.progress,
        )

    @property
    def account(self) -> Account:
        """Whom Kafka sees in this command, and which settings name what it asks for."""
        return self.names.account(self.connection.security, group=self.settings.kafka.group_id)

    def diagnosis(self, raised: BaseException, overheard: Sequence[BaseException]) -> str:
        """Say in one sentence why Kafka can't be used."""
        if isinstance(raised, NotReadable):
            return str(self.denied(str(raised.args[0]), Operation.READ))
        return diagnosis(raised, overheard, kafka=self.settings.kafka, account=self.account)

    def denied(self, topic: str, operation: Operation) -> NoAnswer:
        """Return the answer where a right on a topic is missing."""
        return NoAnswer(f"{self.account.denial(MissingRight(operation, Resource.TOPIC, topic))}.")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of any Kafka client."""
        return self.connection.arguments() | {"request_timeout_ms": REQUEST_MS}


def settings() -> KafkaContext:
    """Read the settings. Raises `SettingsError`."""
    found = load_for_kafka()
    connection = KafkaConnection(bootstrap_servers=tuple(found.kafka.servers), security=kafka_security(found))
    return KafkaContext(found, connection)


@asynccontextmanager
async def explained(place: KafkaContext) -> AsyncIterator[None]:
    """Turn what Kafka's client raises within into a sentence, and keep its own log to itself."""
    log = logging.getLogger("aiokafka")
    log.propagate = False
    asyncio.get_running_loop().set_exception_handler(_report)
    with overheard() as errors:
        try:
            yield
        except (KafkaError, TimeoutError, OSError) as error:
            raise NoAnswer(place.diagnosis(error, errors)) from None
        finally:
            log.propagate = True


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Print what asyncio reports, but for futures of a failed client that nothing awaits: why is said elsewhere."""
    if not type(context.get("exception")).__module__.startswith("aiokafka."):
        loop.default_exception_handler(context)


async def described(place: KafkaContext, *topics: str) -> Described:
    """Return what the brokers say of topics."""
    admin = AIOKafkaAdminClient(**place.arguments)
    try:
        async with asyncio.timeout(SILENCE):
            await admin.start()
            return await describe(admin, topics)
    finally:
        await end(admin)


async def places(place: KafkaContext, *topics: str, operation: Operation = Operation.READ) -> list[TopicPartition]:
    """Return the partitions of topics, for an `operation`. Raises `NoAnswer` for one that is missing or hidden."""
    seen = await described(place, *topics)
    for topic in topics:
        if topic in seen.hidden:
            raise place.denied(topic, operation)
        if topic not in seen.topics:
            msg = (
                f"There is no topic {topic} on Kafka at {place.settings.kafka.bootstrap_servers}: run `vm-sync topics "
                "check`, and check VM_SYNC_KAFKA__BOOTSTRAP_SERVERS."
            )
            raise NoAnswer(msg)
    there = {topic: seen.topics[topic].partitions for topic in topics}
    return [TopicPartition(topic, number) for topic, count in there.items() for number in range(count)]


@asynccontextmanager
async def reader(place: KafkaContext, wanted: Iterable[TopicPartition]) -> AsyncIterator[AIOKafkaConsumer]:
    """Open a consumer outside of any group that sees committed records only. The caller sets its position."""
    consumer = AIOKafkaConsumer(
        **place.arguments,
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 * 1024 * 1024,
    )
    consumer.assign(list(wanted))
    try:
        async with asyncio.timeout(SILENCE):
            await consumer.start()
        yield consumer
    finally:
        await end(consumer)


async def publish(
    place: KafkaContext, message: Mapping[str, object], *, key: str, partition: int | None = None
) -> RecordMetadata:
    """Put a message on the requests topic, and return where it is. Without a `partition` the key decides."""
    producer = AIOKafkaProducer(**place.arguments, acks="all", enable_idempotence=True)
    try:
        async with asyncio.timeout(SILENCE):
            await producer.start()
            return await producer.send_and_wait(
                place.names.requests,
                json.dumps(message).encode(),
                key=key.encode(),
                partition=partition,
                headers=[("content-type", b"application/json")],
            )
    finally:
        await end(producer)


class NotReadable(TopicAuthorizationFailedError):  # type: ignore[misc] # aiokafka is untyped
    """The right to read a topic is missing; Kafka's client raises its error for a missing right to write, too."""


async def records_of(
    consumer: AIOKafkaConsumer, *, timeout_ms: int = 1_000, max_records: int | None = None
) -> Mapping[TopicPartition, Sequence[ConsumerRecord]]:
    """Return the next records of any partition. Raises `NotReadable`."""
    try:
        return await consumer.getmany(timeout_ms=timeout_ms, max_records=max_records)  # type: ignore[no-any-return]
    except TopicAuthorizationFailedError as error:
        raise NotReadable(*error.args) from None


async def read(
    place: KafkaContext,
    wanted: Iterable[TopicPartition],
    *,
    what: str,
    start: Mapping[TopicPartition, int] | None = None,
) -> AsyncGenerator[ConsumerRecord, None]:
    """Read partitions to the end that they have now, from their beginning or from the offsets in `start`.

    `what` names the partitions in the progress message.
    """
    wanted = list(wanted)
    async with reader(place, wanted) as consumer:
        async with asyncio.timeout(SILENCE):
            ends = await consumer.end_offsets(wanted)
            for where, begin in (await consumer.beginning_offsets(wanted)).items():
                offset = min(max(begin, (start or {}).get(where, begin)), ends[where])
                consumer.seek(where, offset)
        async with aclosing(read_on(consumer, wanted, what=what)) as records:
            async for record in records:
                yield record


async def read_on(
    consumer: AIOKafkaConsumer,
    wanted: Sequence[TopicPartition],
    *,
    what: str,
    silence: float = SILENCE,
    note_after: float = NOTE_AFTER,
    at_once: int = RECORDS_AT_ONCE,
) -> AsyncGenerator[ConsumerRecord, None]:
    """Read partitions from where the consumer stands to the end that they have now. `what` is as in `read`.

    Raises:
        TimeoutError: Kafka has been silent for `silence` seconds.
    """
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(SILENCE):
        ends = await consumer.end_offsets(wanted)
        left = total = sum([max(0, ends[where] - await consumer.position(where)) for where in wanted])
    note = clock() + note_after
    while left:
        records: list[ConsumerRecord] = []
        before = left
        async with asyncio.timeout(silence):
            # Control records move the position without being handed over, so an empty answer may be progress.
            while left == before:
                got = await records_of(consumer, timeout_ms=200, max_records=at_once)
                records += [record for some in got.values() for record in some]
                left = sum([max(0, ends[where] - await consumer.position(where)) for where in wanted])
        for record in records:
            yield record
        if left and clock() > note:
            say(f"Reading {what}: {100 * (total - left) // total} % of {total} records ...")
            note = clock() + note_after
