"""Access to Kafka for commands: connect, describe, read up to the current end; each bounded in time.

The log of Kafka's client is not shown; `diagnosis` turns it into a sentence that names the setting to change.
"""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from aiokafka.structs import RecordMetadata

from service.cli.output import NoAnswer, moment, say
from service.kafka.clients import end
from service.kafka.connection import KafkaConnection
from service.kafka.denials import Account, MissingRight, Operation, Resource
from service.kafka.diagnosis import diagnosis, overheard
from service.kafka.topic_descriptions import Described, describe
from service.kafka.topics import TopicNames
from service.messages.kafka_record import Record
from service.moments import milliseconds
from service.settings import KafkaSettings, kafka_security, load_for_kafka

SILENCE: Final = 15.0
"""Seconds without any progress after which Kafka counts as away: a broker's restart passes within it, a person's
patience doesn't end before."""

REQUEST_MS: Final = 10_000
"""For one request to a broker; shorter than `SILENCE`, so that the client itself says first what is wrong."""

AGAIN: Final = 0.2
"""Seconds until brokers are asked again that have failed."""

NOTE_AFTER: Final = 2.0
"""Seconds between two progress messages."""

FETCH_WAIT_MS: Final = 100
"""How long a broker may keep a fetch waiting for records that don't come. A question behind it takes as long: with
Kafka's 500 ms a command took half a second more (measured). Commands that wait for outcomes ask ten times a second."""

RECORDS_AT_ONCE: Final = 2_000

PERIOD_FETCH_BYTES: Final = 256 * 1024
"""For long histories: 24 partitions of it are 6 MB."""

DISORDER_MS: Final = 60 * 60 * 1_000
"""By how much the timestamps of a partition may be out of order: several producers' clocks, and what was in flight."""

_EPOCH: Final = datetime.fromtimestamp(0, UTC)

HEADERS: Final = [("content-type", b"application/json")]
"""The headers of what the commands publish: JSON."""


@dataclass(frozen=True, slots=True)
class KafkaContext:
    """The Kafka connection and the names of the topics, from the settings."""

    settings: KafkaSettings
    connection: KafkaConnection

    @property
    def names(self) -> TopicNames:
        """The topics' names, as `service.kafka.topics` wants them."""
        return TopicNames(**self.settings.topics.model_dump())

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
    """Return what the brokers say of topics; those that fail are asked again until `SILENCE` is over."""
    admin = AIOKafkaAdminClient(**place.arguments)
    try:
        async with asyncio.timeout(SILENCE):
            await admin.start()
            while True:
                try:
                    return await describe(admin, topics)
                except (KafkaError, TimeoutError) as error:
                    if isinstance(error, KafkaError) and not error.retriable:
                        raise
                await asyncio.sleep(AGAIN)
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
async def reader(
    place: KafkaContext, wanted: Iterable[TopicPartition], *, fetch_bytes: int = 8 * 1024 * 1024
) -> AsyncIterator[AIOKafkaConsumer]:
    """Open a consumer outside of any group that sees committed records only. The caller sets its position.

    It holds up to `fetch_bytes` of each partition that nobody has asked for yet.
    """
    consumer = AIOKafkaConsumer(
        **place.arguments,
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=fetch_bytes,
        fetch_max_wait_ms=FETCH_WAIT_MS,
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
    return await put(
        place, place.names.requests, key=key.encode(), value=json.dumps(message).encode(), partition=partition
    )


async def put(
    place: KafkaContext, topic: str, *, key: bytes, value: bytes | None, partition: int | None = None
) -> RecordMetadata:
    """Write one record, of JSON or without a value, and return where it is."""
    async with writer(place) as producer, asyncio.timeout(SILENCE):
        return await producer.send_and_wait(
            topic, value, key=key, partition=partition, headers=[] if value is None else HEADERS
        )


@asynccontextmanager
async def writer(place: KafkaContext) -> AsyncIterator[AIOKafkaProducer]:
    """Open a producer that keeps the order of what it sends, and repeats nothing."""
    producer = AIOKafkaProducer(**place.arguments, acks="all", enable_idempotence=True)
    try:
        async with asyncio.timeout(SILENCE):
            await producer.start()
        yield producer
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
    note_after: float = NOTE_AFTER,
) -> AsyncGenerator[ConsumerRecord, None]:
    """Read partitions to the end that they have now, from their beginning or from the offsets in `start`.

    `what` names the partitions in the progress message, which is shown every `note_after` seconds.
    """
    wanted = list(wanted)
    async with reader(place, wanted) as consumer:
        async with asyncio.timeout(SILENCE):
            ends = await consumer.end_offsets(wanted)
            for where, begin in (await consumer.beginning_offsets(wanted)).items():
                offset = min(max(begin, (start or {}).get(where, begin)), ends[where])
                consumer.seek(where, offset)
        async with aclosing(read_on(consumer, wanted, what=what, note_after=note_after)) as records:
            async for record in records:
                yield record


async def read_on(
    consumer: AIOKafkaConsumer,
    wanted: Sequence[TopicPartition],
    *,
    what: str,
    ends: Mapping[TopicPartition, int] | None = None,
    silence: float = SILENCE,
    note_after: float = NOTE_AFTER,
    at_once: int = RECORDS_AT_ONCE,
) -> AsyncGenerator[ConsumerRecord, None]:
    """Read partitions from where the consumer stands to the end that they have now, or to `ends`.

    `what` is as in `read`.

    Raises:
        TimeoutError: Kafka has been silent for `silence` seconds.
    """
    async with asyncio.timeout(SILENCE):
        ends = ends or await consumer.end_offsets(wanted)
        left = total = sum([max(0, ends[where] - await consumer.position(where)) for where in wanted])
    with _progress(what, total, note_after=note_after) as show:
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
                if record.offset < ends[TopicPartition(record.topic, record.partition)]:
                    yield record
            show(total - left)


def record_of(read: ConsumerRecord) -> Record:
    """Return a record as `messages` reads it."""
    return Record(
        topic=read.topic,
        partition=read.partition,
        offset=read.offset,
        timestamp_ms=read.timestamp,
        key=read.key,
        value=read.value,
        headers=tuple(read.headers),
    )


def written_at(timestamp_ms: int) -> datetime:
    """Return a record's timestamp as a moment."""
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC)


@contextmanager
def _progress(what: str, total: int, *, note_after: float) -> Iterator[Callable[[int], None]]:
    """Yield what shows how much was read, once it takes a while: by a bar at a terminal, else by lines."""
    clock = asyncio.get_running_loop().time
    note = clock() + note_after
    with ExitStack() as stack:
        bar: Callable[[int], None] | None = None

        def show(read: int) -> None:
            nonlocal bar, note
            if bar is None and clock() > note and read < total and sys.stderr.isatty():
                bar = stack.enter_context(_bar(f"Reading {what}", total))
            if bar is not None:
                bar(read)
            elif clock() > note and read < total:
                say(f"Reading {what}: {100 * read // total} % of {total} records ...")
                note = clock() + note_after

        yield show


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda read: bars.update(task, completed=read)


async def read_period(
    place: KafkaContext, wanted: Iterable[TopicPartition], *, since: datetime, until: datetime | None, what: str
) -> AsyncGenerator[ConsumerRecord, None]:
    """Read what was written to partitions in a period, by the records' timestamps; `until` is exclusive.

    Where retention has deleted some of the period already, a message says so.
    """
    wanted = list(wanted)
    first, last = max(0, milliseconds(since - _EPOCH)), None if until is None else max(0, milliseconds(until - _EPOCH))
    async with reader(place, wanted, fetch_bytes=PERIOD_FETCH_BYTES) as consumer:
        async with asyncio.timeout(SILENCE):
            ends = await consumer.end_offsets(wanted)
            begins = await consumer.beginning_offsets(wanted)
            starts = await consumer.offsets_for_times(dict.fromkeys(wanted, first))
            if last is not None:
                after = await consumer.offsets_for_times(dict.fromkeys(wanted, last + DISORDER_MS))
                ends |= {where: min(ends[where], stop.offset) for where, stop in after.items() if stop is not None}
            for where, start in starts.items():
                consumer.seek(where, ends[where] if start is None else min(start.offset, ends[where]))
        deleted = [
            start.timestamp
            for where, start in starts.items()
            if start is not None and 0 < begins[where] == start.offset
        ]
        if deleted:
            oldest = moment(written_at(max(deleted)))
            say(f"Kafka has deleted the beginning of the period ({what}): it is complete from {oldest} on.")
        async with aclosing(read_on(consumer, wanted, what=what, ends=ends)) as records:
            async for record in records:
                if record.timestamp >= first and (last is None or record.timestamp < last):
                    yield record
