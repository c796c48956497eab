"""The journal of one partition: a partition of a compacted Kafka topic, written by one transactional producer.

The journal holds a record for each sync, keyed by the request's identity, and the cursor: the next offset to read from
the requests topic. A `Batch` changes any number of records and publishes their events in one transaction. Opening
fences the previous owner; from then on its commits are refused.

It never decides anything about a sync, never repeats a commit with an unknown result, and does not distinguish
failures: Kafka's errors don't show whether there is a new owner, so every failure is `JournalLost`, and the partition
is reopened from the journal.

`journal_codec` has the format of the records.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import (
    IllegalOperation,
    InvalidTxnState,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    RecordListTooLargeError,
    UnknownTopicOrPartitionError,
)
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from service.clock import Clock
from service.event_loop import Slices, to_its_end
from service.kafka.clients import end
from service.kafka.consumer import LOOK_WAIT_MS, leave_bare
from service.kafka.denials import LASTS_AT_JOURNALS, Denials, MissingRight, Operation, explain
from service.kafka.diagnosis import overheard
from service.kafka.journal_api import Batch, Entry, JournalLost, JournalMismatch, Opened, StopReason
from service.kafka.journal_codec import CURSOR_KEY, OPENED_KEY, encode, encode_cursor, is_sync, replayed
from service.kafka.journal_replay import Replay
from service.kafka.topic_descriptions import topic_id
from service.messages.kafka_record import Event, Header
from service.moments import milliseconds
from service.sync import InFlight

log = logging.getLogger(__name__)

TRANSACTION_TIMEOUT = timedelta(seconds=12)
"""An open transaction holds all read_committed readers of its topics back, so it must be short; but a broker's
restart (5 s measured) should pass within it. It also bounds each step of a commit here: aiokafka never expires
the batches of a transaction by itself."""

REQUEST_TIMEOUT = timedelta(seconds=10)
"""A killed broker leaves requests hanging for this long; aiokafka's 40 s kept a partition idle for 18 s (measured)."""

START_LIMIT = timedelta(seconds=30)
"""How long a producer may take to start, and to fence its predecessor. aiokafka tries without end, also at addresses
that no broker has any more."""

RETRY_BACKOFF = timedelta(milliseconds=20)
"""aiokafka waits this long when the broker still finishes the previous transaction, which is the usual case under
load: its default of 100 ms would be most of a commit."""

BATCH_BYTES = 512 * 1024
"""Kafka's default limit of a produce batch is 1 MiB; half of it leaves room for a record that comes last."""

READ_PATIENCE = 2 * TRANSACTION_TIMEOUT
"""How long a journal may show nothing more while its end isn't reached: a transaction left open there ends sooner."""

LOOKS = 50
"""In how many steps that patience runs out."""

READ_AT_ONCE = 500
"""Records read, or decoded, between two turns of the event loop while a journal is opened, some milliseconds. One
journal's in each turn: eight partitions that are opened together held the loop for 20 to 30 ms."""

PACKED_AT_ONCE = 250
"""Records of a commit that are encoded and packed between two turns of the event loop, some 3 ms."""

FEW_RECORDS = 25
"""Of so few, a commit is packed at once: most commits have fewer."""

FETCH_BYTES = 2 * 1024 * 1024
"""Read of a journal at once. All partitions of a process are opened together: with 8 MiB, eight of them left 80 MB more
behind, and were no sooner open (measured)."""

SIZE_TRIED_AGAIN = timedelta(minutes=10)
"""How long a size that was refused is not sent again. A refusal costs a reopening of the partition."""

TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
"""A broker's words for a batch that is larger than its topic's max.message.bytes, or than a segment."""

TROUBLE = (KafkaError, IllegalOperation, OSError, TimeoutError, AssertionError)
"""What a Kafka that fails raises. aiokafka asserts its states: a fenced producer's is not what the next call wants."""


def transactional_id(topic: str, partition: int) -> str:
    """Return the transactional id of a partition's producer; a right has to be granted for it."""
    return f"{topic}-{partition}"


def too_narrow(topic: str, partition: int) -> JournalMismatch:
    """Return the mismatch of a journal that has no partition of this number."""
    msg = (
        f"the requests topic has a partition {partition}, but the journal {topic} has not: drain the service, add "
        "partitions to the journal, then to the requests topic; in this order, since added partitions move keys"
    )
    return JournalMismatch(msg, reason=StopReason.JOURNAL_TOO_NARROW)


class Refusals:
    """Remembers batches that brokers refused for their size, so that they aren't sent again. One for all journals.

    The limit may be unreadable for the service, and may change at any time. So it is learnt from a refusal, which costs
    a reopening of the partition, and forgotten after `SIZE_TRIED_AGAIN`: the topic may accept more by then.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._room: dict[str, tuple[int, float]] = {}
        """By topic, the largest size that was not refused, and until when (monotonic) that counts."""
        self._said: set[tuple[str, int]] = set()

    def room(self, topic: str) -> int:
        """Return the largest size of a batch that has not been refused."""
        room, until = self._room.get(topic, (BATCH_BYTES, math.inf))
        return room if self._clock.monotonic() < until else BATCH_BYTES

    def fits(self, event: Event) -> bool:
        """Whether no event of this size has been refused lately."""
        room = self.room(event.topic)
        return room == BATCH_BYTES or _size((event.key, event.value, list(event.headers), None)) <= room

    def refused(self, topic: str, *, size: int, records: int) -> None:
        """Learn that a batch was too large. Of a batch of several records, half the size is tried next."""
        room = size - 1 if records == 1 else size // 2
        self._room[topic] = room, self._clock.monotonic() + SIZE_TRIED_AGAIN.total_seconds()
        if (topic, room) in self._said:
            return
        self._said.add((topic, room))
        log.error(
            "Kafka refuses a batch of %d bytes for topic %s as too large: raise the topic's max.message.bytes. Larger "
            "events are shortened, and sent as they are again after %.0f minutes; an event that can't be shortened "
            "stops its partition",
            size,
            topic,
            SIZE_TRIED_AGAIN / timedelta(minutes=1),
        )


class KafkaJournal:
    """The journal of one partition on a real Kafka."""

    def __init__(
        self,
        *,
        topic: str,
        partition: int,
        connection: Mapping[str, Any],
        refusals: Refusals,
        denials: Denials | None = None,
        slices: Slices | None = None,
    ) -> None:
        self._slices = slices or Slices()
        self._place = TopicPartition(topic, partition)
        self._connection = connection
        self._refusals = refusals
        self._denials = denials
        self.end = 0
        self._start: int | None = None
        """The first offset of the journal, when it was read last."""
        self._failed = False
        self._refused_at: str | None = None
        """The topic for which a broker refused a batch of the last transaction; None: it refused none."""
        self._producer = AIOKafkaProducer(
            **connection,
            transactional_id=transactional_id(topic, partition),
            transaction_timeout_ms=milliseconds(TRANSACTION_TIMEOUT),
            request_timeout_ms=milliseconds(REQUEST_TIMEOUT),
            retry_backoff_ms=milliseconds(RETRY_BACKOFF),
            max_batch_size=BATCH_BYTES,
            acks="all",
        )

    @classmethod
    async def open(
        cls,
        *,
        topic: str,
        partition: int,
        connection: Mapping[str, Any],
        clock: Clock,
        refusals: Refusals,
        denials: Denials | None = None,
        slices: Slices | None = None,
    ) -> Opened:
        """Fence the predecessor, then read the journal up to a record that is written after that.

        Raises:
            JournalLost: Kafka could not be reached, or another process opened the journal meanwhile.
            JournalMismatch: it holds what no version known here has written.
        """
        journal = cls(
            topic=topic,
            partition=partition,
            connection=connection,
            refusals=refusals,
            denials=denials,
            slices=slices,
        )
        try:
            # Before the start: a client that follows no topic asks for all topics of the cluster while it looks for the
            # coordinator of its transactions.
            journal._producer.client.add_topic(topic)
            await journal._start_producer()
            opened_at = clock.monotonic()
            async with asyncio.timeout(REQUEST_TIMEOUT.total_seconds()):
                partitions = await journal._partitions(topic)
            if partition not in partitions:
                raise too_narrow(topic, partition)
            await journal._mark()
            replay = Replay(now=clock.now())
            async for records in journal._records():
                for record in records:
                    replay.take(record.key, record.value)
            cursor = replay.cursor()
            in_flight = await journal._in_flight(replay)
            await journal._slices.turn()
            ended = replay.ended()
        except BaseException as error:
            journal._failed = isinstance(error, TROUBLE)
            await journal.close()
            if isinstance(error, ValueError):
                msg = (
                    f"a record in the journal {topic}-{partition} can't be decoded ({error!r}): "
                    "run the version that wrote it, or set VM_SYNC_TOPICS__JOURNAL to the service's own topic"
                )
                raise JournalMismatch(msg, reason=StopReason.JOURNAL_UNREADABLE) from error
            if isinstance(error, TROUBLE):
                msg = f"opening the journal {topic}-{partition} failed: {journal._why(error)}"
                raise JournalLost(msg) from error
            raise
        journal._allowed({topic, f"{topic}-{partition}"})
        return Opened(
            journal=journal,
            opened_at=opened_at,
            cursor=cursor,
            in_flight=in_flight,
            ended=ended,
            begin=journal.end - 1,
            journal_start=journal._start,
        )

    async def _start_producer(self) -> None:
        """Start the producer. Why no server could be reached at all, aiokafka says in its log alone."""
        with overheard() as errors:
            try:
                async with asyncio.timeout(START_LIMIT.total_seconds()):
                    await self._producer.start()
            except KafkaConnectionError as error:
                if not errors:
                    raise
                msg = f"no bootstrap server can be reached, {explain(errors[-1])}"
                raise KafkaConnectionError(msg) from error

    async def commit(self, batch: Batch) -> None:
        """Write the batch in one transaction.

        It is encoded and packed before the transaction begins, a part between two turns of the event loop: readers of
        committed records wait for an open transaction, and nothing of the batch is anywhere but in memory until then.

        All sends are awaited before the commit: otherwise aiokafka commits a transaction although the broker refused a
        batch (measured). The commit is never cancelled, since its result would be unknown.
        """
        try:
            await to_its_end(self._transact(batch), expected=TROUBLE)
        except TROUBLE as error:
            self._failed = True
            msg = f"a commit to journal {self._place.topic}-{self._place.partition} failed: {self._why(error)}"
            raise JournalLost(msg) from error

    def _why(self, error: BaseException) -> str:
        """Say what failed, and report it where a right is missing.

        Where the time ran out, that is why aiokafka has tried again meanwhile, which it reports to nobody.
        """
        if isinstance(error, TimeoutError) and (trouble := self._producer.client.last_trouble):
            return f"timed out; the last error was: {trouble}"
        right = MissingRight.of(
            error,
            operation=Operation.WRITE,
            topics=[self._place.topic],
            transactional_id=transactional_id(*self._place),
        )
        if right is None:
            elsewhere = self._refused_at not in {None, self._place.topic}
            return f"{explain(error)} (topic {self._refused_at})" if elsewhere else explain(error)
        if self._denials is not None:
            self._denials.note(right, lasts=LASTS_AT_JOURNALS)
        return f"Kafka denies {right}"

    async def _partitions(self, topic: str) -> set[int]:
        """Return the partitions of a topic.

        aiokafka takes a topic for unknown when Kafka doesn't answer; asked by its name, Kafka says what is the matter.
        """
        try:
            return set(await self._producer.partitions_for(topic))
        except UnknownTopicOrPartitionError:
            await topic_id(self._producer.client, topic)
            raise

    def _allowed(self, names: Iterable[str]) -> None:
        if self._denials is not None:
            self._denials.allowed(*names)

    async def _mark(self) -> None:
        """Write a mark: the journal has to be read up to this record.

        The end offset of the broker isn't enough: after a broker's restart, the end for read_committed readers may for
        a moment be before a record whose commit was acknowledged (seen with a single broker).
        """
        await self._write([(self._place, [(OPENED_KEY, b"{}", [], None)])])

    async def _transact(self, batch: Batch) -> None:
        self._producer.client.last_trouble, self._refused_at = "", None
        if len(batch.changes) + len(batch.events) > self._slices.size(FEW_RECORDS):
            await self._slices.turn()
        records = await self._laid_out(batch)
        await self._write(records)
        self._allowed({place.topic for place, _ in records})

    async def _laid_out(self, batch: Batch) -> list[tuple[TopicPartition, Iterable["_Record"]]]:
        """Return the records of a batch, each with its topic and partition."""
        async with asyncio.timeout(TRANSACTION_TIMEOUT.total_seconds()):
            counts = {topic: len(await self._partitions(topic)) for topic in {event.topic for event in batch.events}}
        events: dict[TopicPartition, deque[_Record]] = {}
        size = self._slices.size(PACKED_AT_ONCE)
        for number, event in enumerate(map(self._fitting, batch.events), 1):
            place = TopicPartition(event.topic, _partition(event.key, counts[event.topic]))
            events.setdefault(place, deque()).append((event.key, event.value, list(event.headers), event.timestamp_ms))
            if number % size == 0:
                await self._slices.turn()
        return [
            (self._place, _journal_records(batch)),
            *((place, _one_by_one(some)) for place, some in events.items()),
        ]

    def _fitting(self, event: Event) -> Event:
        """Return an event in its longest form that no broker has refused for its size, or else in its shortest."""
        while event.shorter is not None and not self._refusals.fits(event):
            event = event.shorter
        return event

    async def _write(self, records: Iterable[tuple[TopicPartition, Iterable["_Record"]]]) -> None:
        """Write the records in one transaction."""
        packed = [
            (place, part)
            for place, some in records
            async for part in self._packed(some, room=self._refusals.room(place.topic))
        ]
        async with asyncio.timeout(TRANSACTION_TIMEOUT.total_seconds()):
            await self._producer.begin_transaction()
            try:
                await self._send(packed)
            except Exception:
                await self._abort()
                raise
            await self._producer.commit_transaction()

    async def _send(self, packed: Iterable[tuple[TopicPartition, BatchBuilder]]) -> None:
        """Send, and wait until the brokers have acknowledged all records."""
        sent: list[_Sent] = []
        refused: IllegalOperation | None = None
        try:
            await self._hand_over(packed, sent)
        except IllegalOperation as error:  # the transaction failed meanwhile; what was sent before says why
            refused = error
        finally:
            results = await asyncio.gather(*(arrived for *_, arrived in sent), return_exceptions=True)
            for (topic, part, _), result in zip(sent, results, strict=True):
                if isinstance(result, TOO_LARGE):
                    self._refusals.refused(topic, size=part.size(), records=part.record_count())
        failures: list[tuple[str, BaseException]] = []
        for (topic, part, _), result in zip(sent, results, strict=True):
            if isinstance(result, BaseException):
                failures.append((topic, result))
            elif topic == self._place.topic:
                self._advance(result.offset, part.record_count())
        if failures:
            # Where one topic is denied, Kafka takes none into the transaction; aiokafka sends the batches all the same,
            # so those of the other topics fail, too, for not being in it.
            self._refused_at, cause = min(failures, key=lambda failure: isinstance(failure[1], InvalidTxnState))
            raise cause
        if refused is not None:
            raise refused

    async def _hand_over(self, packed: Iterable[tuple[TopicPartition, BatchBuilder]], sent: "list[_Sent]") -> None:
        """Hand the batches to Kafka's client, which lets one wait for an earlier one, and add them to `sent`.

        Once the time is over nothing of it is waited for any more: the client never gives up a transaction's batches.
        """
        try:
            for place, part in packed:
                arrived = await self._producer.send_batch(part, place.topic, partition=place.partition)
                sent.append((place.topic, part, arrived))
        except asyncio.CancelledError:
            for *_, arrived in sent:
                arrived.cancel()
            raise

    def _advance(self, offset: int, count: int) -> None:
        """Note that so many records of ours were appended at this offset."""
        if offset < self.end:
            msg = (
                f"the journal {self._place.topic}-{self._place.partition} was deleted and created again, or truncated "
                f"at its end: a record was appended at offset {offset}, but {self.end} had been reached"
            )
            raise JournalLost(msg)
        self.end = offset + count

    async def _packed(self, records: Iterable["_Record"], *, room: int) -> AsyncIterator[BatchBuilder]:
        """Pack records into batches; thousands of single sends would cost 40 us each (measured), an append costs 2.

        The first record of a batch is always taken, however long it is.
        """
        part, size = self._producer.create_batch(), self._slices.size(PACKED_AT_ONCE)
        for number, record in enumerate(records, 1):
            if number % size == 0:
                await self._slices.turn()
            key, value, headers, timestamp_ms = record
            full = room < BATCH_BYTES and part.record_count() and part.size() + _size(record) > room
            if full or part.append(key=key, value=value, timestamp=timestamp_ms, headers=headers) is None:
                yield part
                part = self._producer.create_batch()
                part.append(key=key, value=value, timestamp=timestamp_ms, headers=headers)
        if part.record_count():
            yield part

    async def _abort(self) -> None:
        try:
            await self._producer.abort_transaction()
        except Exception as error:  # noqa: BLE001 - the transaction is lost either way, and the cause is on its way up
            log.debug("Aborting the transaction failed as well: %r", error)

    async def entries(self) -> AsyncIterator[Entry]:
        """Read the journal from its beginning; see `Journal.entries`."""
        try:
            async for records in self._records():
                for record in records:
                    if is_sync(record.key):
                        expires_at = None if record.value is None else replayed(record.value).expires_at
                        yield record.offset, record.key.decode(), expires_at
        except TROUBLE as error:
            msg = f"reading the journal {self._place.topic}-{self._place.partition} failed: {self._why(error)}"
            raise JournalLost(msg) from error

    async def _records(self) -> AsyncIterator[Sequence[ConsumerRecord]]:
        """Read all records up to this process's mark, and let the event loop run other tasks meanwhile.

        Most have an offset, a key and a value only; see `leave_bare`.

        Raises:
            KafkaTimeoutError: nothing comes for longer than a transaction may stand open.
            OffsetOutOfRangeError: records were deleted meanwhile, so not all of them may have been read.
        """
        consumer = AIOKafkaConsumer(
            **self._connection,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            request_timeout_ms=milliseconds(REQUEST_TIMEOUT),
            max_partition_fetch_bytes=FETCH_BYTES,
            # At the end of the journal, a question for its first offset waits behind the fetch for what comes next.
            fetch_max_wait_ms=LOOK_WAIT_MS,
        )
        consumer.assign([self._place])
        try:
            await consumer.start()
            self._start = await self._first_offset(consumer)
            at, silent = 0, 0
            while at < self.end:
                leave_bare(consumer)
                got = await consumer.getmany(
                    timeout_ms=milliseconds(READ_PATIENCE) // LOOKS, max_records=self._slices.size(READ_AT_ONCE)
                )
                for records in got.values():
                    yield records
                    at = records[-1].offset + 1
                silent = 0 if got else silent + 1
                if silent >= LOOKS:
                    msg = (
                        f"reading {self._place.topic}-{self._place.partition} stalled at offset {at}, before its end "
                        f"at {self.end}"
                    )
                    raise KafkaTimeoutError(msg)
                await self._slices.turn()
            if (start := await self._first_offset(consumer)) != self._start:
                msg = (
                    f"records of {self._place.topic}-{self._place.partition} were deleted while it was read: its first "
                    f"offset was {self._start}, now it is {start}"
                )
                raise OffsetOutOfRangeError(msg)
        finally:
            await end(consumer)

    async def _first_offset(self, consumer: AIOKafkaConsumer) -> int:
        return int((await consumer.beginning_offsets([self._place]))[self._place])

    async def _in_flight(self, replay: Replay) -> list[InFlight]:
        """Decode the syncs, and let the event loop run other tasks meanwhile."""
        syncs, size = [], self._slices.size(READ_AT_ONCE)
        for number, state in enumerate(replay.in_flight(), 1):
            syncs.append(state)
            if number % size == 0:
                await self._slices.turn()
        return syncs

    async def close(self) -> None:
        """Stop the producer: in an orderly way, unless it has failed, since it would wait for brokers that are away."""
        within = timedelta() if self._failed else REQUEST_TIMEOUT
        await to_its_end(end(self._producer, within=within))


# ---------------------------------------------------------------- records

_Record: TypeAlias = tuple[bytes | None, bytes | None, list[Header], int | None]

_Sent: TypeAlias = "tuple[str, BatchBuilder, asyncio.Future[Any]]"
"""A batch on its way: its topic, and what gets the brokers' acknowledgement."""


def _journal_records(batch: Batch) -> Iterable[_Record]:
    for identity, state in batch.changes.items():
        yield identity.encode(), None if state is None else encode(state), [], None
    if batch.cursor is not None:
        yield CURSOR_KEY, encode_cursor(batch.cursor), [], None


def _one_by_one(records: "deque[_Record]") -> Iterable[_Record]:
    """Yield records, and let go of each: freeing 100,000 at once would hold the event loop."""
    while records:
        yield records.popleft()


def _size(record: _Record) -> int:
    """Return the bytes that a batch with this record alone has at most."""
    key, value, headers, _ = record
    return int(DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers))


def _partition(key: bytes | None, count: int) -> int:
    """Choose an outcome's partition as Java and aiokafka do; the contract promises it."""
    if key is None:
        return 0
    return int((murmur2(key) & 0x7FFFFFFF) % count)
