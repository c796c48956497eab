"""A Kafka consumer that keeps reading past unreadable records and after temporary refusals of the brokers.

aiokafka decodes header names while records are handed out, and decompresses batches then, too. A name that isn't
UTF-8, or an unknown codec, makes `getmany` raise: for ever, for all partitions, while records of the others that were
handed out in the same call are never seen (measured). Here each partition is asked on its own; one that raises is
read again, record by record, up to the bad one. Its batch is then taken apart (`salvage`): the bad record is handed on
as an `UnreadableRecord`, its neighbours as they are.

A broker that refuses something for a moment (a right was missing) leaves errors behind in aiokafka: one for each
partition, and tasks that end with an exception and are started again only by the group's next rebalance, if ever.
With `refused`, such errors are reported instead of raised, never cost another partition's records, and are forgotten
after `RETRY`; then whatever ended with them is started again.

It never decides a record's fate, and never skips a record silently.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import FetchError, FetchResult
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import TopicPartitionState
from aiokafka.errors import ConsumerStoppedError, KafkaError, KafkaTimeoutError, OffsetOutOfRangeError
from aiokafka.protocol.offset import OffsetResetStrategy
from aiokafka.record.default_records import _DefaultRecordPy as DefaultRecord
from typing_extensions import override

from service.clock import Clock
from service.kafka.clients import end
from service.kafka.leader_offsets import Offsets, ask_leaders, silence
from service.kafka.salvage import UnreadableRecord, salvaged
from service.kafka.topic_descriptions import cleanup_policy, partitions_of, topic_id

log = logging.getLogger(__name__)

SALVAGE_AT_ONCE = 500
"""Records handed out in one go of a batch that was taken apart, where the caller sets no limit."""

LOOK_MS = 1_000
"""How long a single record is waited for. It comes at once, but for one that was compacted away."""

LOOK_WAIT_MS = 20
"""How long a broker may keep a look at a topic waiting for records that don't come. A broker answers one connection's
requests one after another, so each question behind such a fetch takes as long: with Kafka's 500 ms a partition took
1.5 s more to open (measured)."""

RETRY = timedelta(seconds=1)
"""How long after a refusal it is tried again. A broker refuses at once, and a client that asked at once would spin."""

Records = dict[TopicPartition, list[ConsumerRecord]]

Refused: TypeAlias = Callable[[TopicPartition | None, Exception], None]
"""Takes what a broker refuses: of a partition, or of the group (None). Called once for each answer."""


class SteadyConsumer(AIOKafkaConsumer):  # type: ignore[misc] # aiokafka is untyped
    """A consumer that skips over unreadable records, and restarts the tasks that a refusal of Kafka has ended.

    `seeks` counts the seeks of each partition, and `fetched_under` says under which count the last `getmany` began to
    fetch it: records of one count follow each other without a gap, those of another don't. `handed_out` is the offset
    after the last record returned, or where the last seek went; the position may lie beyond it, where no records are.
    `follows` is its value before the last records were returned: a partition that has admitted fewer has missed some.
    `read` is called with the number of the records returned. `patience` is how long `getmany` waits at least, for a
    caller who asks in a loop and can't say so: FastStream sleeps for as long as it waits.

    `out_of_range` names the partitions whose position the broker refused since their last seek, with that position:
    the topic begins after it or ends before it. Such a partition is paused, since only its owner can know why.
    """

    def __init__(
        self,
        *topics: str,
        clock: Clock,
        read: Callable[[int], None] = lambda _: None,
        refused: Refused | None = None,
        patience: timedelta = timedelta(),
        **options: Any,  # noqa: ANN401 - aiokafka's own, passed on
    ) -> None:
        super().__init__(*topics, **options | {"auto_offset_reset": "none"})  # it never moves a position by itself
        self._clock = clock
        self._read = read
        self._refused = refused
        self._patience = patience.total_seconds()
        self.seeks: Counter[TopicPartition] = Counter()
        self.fetched_under: dict[TopicPartition, int] = {}
        self.handed_out: dict[TopicPartition, int] = {}
        self.out_of_range: dict[TopicPartition, int] = {}
        self.follows: dict[TopicPartition, int] = {}
        self.asked_at = clock.monotonic()
        """When `getmany` was last called; shows whether the reading loop makes progress."""
        self._bad: dict[TopicPartition, int] = {}
        self._reported: dict[TopicPartition | None, tuple[Exception, float]] = {}
        """The present error of a partition, or of the group (None), and when it was reported."""

    @property
    def client(self) -> AIOKafkaClient:
        """The client for requests to the brokers."""
        return self._client

    def dead(self) -> str | None:
        """Return the name of an aiokafka task that has failed, without which no records are read."""
        tasks = {
            "fetching": self._fetcher._fetch_task,
            "coordination": self._coordinator._coordination_task,
            "metadata": self._client._sync_task,
        }
        return next((name for name, task in tasks.items() if task is not None and task.done()), None)

    def reached(self, place: TopicPartition) -> int | None:
        """Return the offset of the next record that will be read; None where none was chosen, or it isn't assigned.

        aiokafka's `position` waits for one, which may be for ever.
        """
        state = self._state(place)
        return int(state.position) if state is not None and state.has_valid_position else None

    def high_watermark(self, place: TopicPartition) -> int | None:
        """Return the partition's high watermark as the last fetch had it; None: there was none since the assignment.

        A read_committed reader reads up to the last stable offset, which lies below it while a transaction is open.
        """
        state = self._state(place)
        return None if state is None or state.highwater is None else int(state.highwater)

    @property
    def rebalancing(self) -> bool:
        """Whether the group is between two assignments, or not joined."""
        return bool(self._subscription.reassignment_in_progress)

    @override
    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Seek; records fetched before are distinguished from later ones."""
        self.seeks[partition] += 1
        self._bad.pop(partition, None)
        self.out_of_range.pop(partition, None)
        self.handed_out[partition] = offset
        super().seek(partition, offset)

    def park(self, *partitions: TopicPartition) -> None:
        """Pause partitions that were just assigned, and give them a position that is never read from.

        A partition without a position makes aiokafka ask the group for one, and `position` wait for it: for ever,
        where the group knows none and nothing resets it.
        """
        self.pause(*partitions)
        for place in partitions:
            self.seek(place, 0)

    def refresh(self) -> None:
        """Request a refresh of the topics' metadata."""
        self._client.force_metadata_update()

    def may_see(self, topic: str) -> bool:
        """Whether the brokers have not denied to describe a topic, when they were last asked."""
        return topic not in self._client.cluster.unauthorized_topics

    async def partitions_of(self, topic: str) -> set[int]:
        """Return the partitions that a topic has now; see `topic_descriptions.partitions_of`."""
        return await partitions_of(self._client, topic)

    async def topic_id(self, topic: str) -> str | None:
        """Return Kafka's id of a topic; see `topic_descriptions.topic_id`."""
        return await topic_id(self._client, topic)

    async def cleanup_policy(self, topic: str) -> str | None:
        """Return what Kafka does with a topic's old messages; see `topic_descriptions.cleanup_policy`."""
        return await cleanup_policy(self._client, topic)

    @override
    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the first offset of each partition.

        The topics' leaders are asked for beforehand: aiokafka asks for those that it doesn't know and then pauses for
        `retry_backoff_ms`, 100 ms for each topic of a partition that is opened.

        Raises:
            KafkaError: Kafka can't be asked.
        """
        partitions = list(partitions)
        for topic in {place.topic for place in partitions}:
            await self._client.add_topic(topic)
        try:
            return await super().beginning_offsets(partitions)  # type: ignore[no-any-return]
        except KafkaTimeoutError as error:
            raise self._silent_leaders(partitions) from error

    @override
    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return where each partition ends for a reader with this consumer's isolation level.

        Raises:
            KafkaError: Kafka can't be asked.
        """
        partitions = list(partitions)
        try:
            return await super().end_offsets(partitions)  # type: ignore[no-any-return]
        except KafkaTimeoutError as error:
            raise self._silent_leaders(partitions) from error

    def _silent_leaders(self, partitions: Iterable[TopicPartition]) -> KafkaTimeoutError:
        """Return an error that names the leaders which did not answer; aiokafka's own says only how long it waited."""
        said = "; ".join(
            f"{place.topic}-{place.partition}: {silence(place, client=self._client)}" for place in partitions
        )
        return KafkaTimeoutError(said)

    async def first_offsets(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """Return where partitions begin, as far as their leaders say it."""
        return await self._ask_leaders(partitions, OffsetResetStrategy.EARLIEST)

    async def end_of_committed(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """Return where partitions end for a read_committed reader, as far as their leaders say it."""
        return await self._ask_leaders(partitions, OffsetResetStrategy.LATEST)

    async def _ask_leaders(self, partitions: Iterable[TopicPartition], which: int) -> Offsets:
        level = self._fetcher._isolation_level
        return await ask_leaders(partitions, which, isolation_level=level, client=self._client)

    @override
    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> Records:
        """Return records of any assigned partition; waits up to `timeout_ms`, or `patience`, until there are some.

        `max_records` are all records together, as in Kafka's own clients: with so many of each partition, 48 partitions
        would hold the event loop for a second. The partitions take turns, and the event loop turns before each answer,
        also where all records lie there already.

        Raises:
            KafkaError: a broker refuses something, no record was there to return, and no `refused` was given.
        """
        until = self._clock.monotonic() + max(timeout_ms / 1000, self._patience)
        while True:
            self.asked_at = self._clock.monotonic()
            if self._closed:
                raise ConsumerStoppedError
            await asyncio.sleep(0)
            with self._subscription.fetch_context():  # aiokafka leaves the group when nobody reads for long
                got = await self._collect(partitions, max_records)
            left = until - self._clock.monotonic()
            if got or left <= 0:
                return got
            await self._wait(left)

    async def _wait(self, limit: float) -> None:
        """Wait until something may have come."""
        if self.rebalancing or self._fetcher._records:
            # What was fetched is of partitions that are paused, refused or being revoked: the waiter would end at once.
            await asyncio.sleep(min(limit, 0.02))
            return
        waiter = self._fetcher._create_fetch_waiter()
        await asyncio.wait([waiter], timeout=limit)
        if not waiter.done():
            waiter.cancel()
        elif self._refused is None:
            waiter.result()  # authorization errors come this way
        else:
            waiter.exception()  # lies with the group, too, and is taken from there

    async def _collect(self, partitions: tuple[TopicPartition, ...], max_records: int | None) -> Records:
        errors = self._errors(partitions)
        got: Records = {}
        left = max_records
        for place in list(self._fetcher._records):
            if left is not None and left <= 0:
                break
            if (partitions and place not in partitions) or self._error_of(place) is not None or self.rebalancing:
                continue
            under = self.seeks[place]
            records = await self._ask(place, left)
            if place in self._fetcher._records:
                self._fetcher._records.move_to_end(place)
            if records:
                got[place] = records
                left = None if left is None else left - len(records)
                self._read(len(records))
                self.fetched_under[place] = under
                self.follows[place] = self.handed_out.get(place, records[0].offset)
                self.handed_out[place] = records[-1].offset + 1
        if self._refused is not None:
            self._report(errors, self._refused)
        elif errors and not got:
            for about in errors:
                self._forget(about)
            raise next(iter(errors.values()))
        return got

    @override
    async def stop(self) -> None:
        """Leave the group and close all connections, in bounded time."""
        await end(self, stop=super().stop)

    # ------------------------------------------------------------ refusals

    def _errors(self, partitions: tuple[TopicPartition, ...]) -> dict[TopicPartition | None, Exception]:
        """Return what was refused of the partitions (all, where none is named) and, under None, of the group.

        But for positions out of range, which are put down where their partitions' owner looks.
        """
        found: dict[TopicPartition | None, Exception] = {}
        for about in (None, *(partitions or list(self._fetcher._records))):
            error = self._error_of(about)
            if about is not None and isinstance(error, OffsetOutOfRangeError):
                self._forget(about)
                if (position := self.reached(about)) is not None:
                    self.out_of_range[about] = position
                    self.pause(about)
            elif error is not None:
                found[about] = error
        return found

    def _error_of(self, about: TopicPartition | None) -> Exception | None:
        if about is None:
            coordinator = self._coordinator
            return coordinator._pending_exception if isinstance(coordinator, GroupCoordinator) else None
        entry = self._fetcher._records.get(about)
        return entry._error if isinstance(entry, FetchError) else None

    def _report(self, errors: Mapping[TopicPartition | None, Exception], refused: Refused) -> None:
        """Report new errors, and forget those that were reported `RETRY` ago, so that it is tried again."""
        now = self._clock.monotonic()
        for about in self._reported.keys() - errors.keys():
            del self._reported[about]
        for about, error in errors.items():
            reported, at = self._reported.get(about, (None, now))
            if error is not reported:
                self._reported[about] = error, now
                refused(about, error)
            elif now - at >= RETRY.total_seconds():
                del self._reported[about]
                self._forget(about)

    def _forget(self, about: TopicPartition | None) -> None:
        """Remove an error from aiokafka, and restart the tasks that it has ended."""
        if about is not None:
            self._fetcher._records.pop(about, None)
            self._fetcher._notify(self._fetcher._wait_consume_future)
            return
        coordinator = self._coordinator
        # Before the error is forgotten: coordination goes on then, and would only find the tasks' old errors again.
        if _failed(coordinator._heartbeat_task):
            log.info("aiokafka's heartbeat to the consumer group has failed; restarting it")
            coordinator._heartbeat_task = None
            coordinator._start_heartbeat_task()
        subscription = self._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        if _failed(coordinator._commit_refresh_task) and assignment is not None and assignment.active:
            log.info("aiokafka's refresh of the group's committed offsets has failed; restarting it")
            coordinator.start_commit_offsets_refresh_task(assignment)
        with suppress(Exception):  # it has been reported; a coordination that has ended is found by `dead`
            coordinator.check_errors()

    # ------------------------------------------------------------ one partition

    def _state(self, place: TopicPartition) -> TopicPartitionState | None:
        subscription = self._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        return assignment.state_value(place) if assignment is not None else None

    async def _ask(self, place: TopicPartition, max_records: int | None) -> list[ConsumerRecord]:
        position = self.reached(place)
        if position is None:
            self._forget(place)  # taken away meanwhile
            return []
        bad = self._bad.get(place)
        if bad is not None and position > bad:
            del self._bad[place]
            bad = None
        try:
            got = await self._fetcher.fetched_records([place], max_records=max_records if bad is None else 1)
        except Exception as error:  # noqa: BLE001 - whatever aiokafka makes of bytes that may be anything
            return await self._pass_bad_record(place, position, error, at_most=max_records or SALVAGE_AT_ONCE)
        return list(got.get(place, ()))

    async def _pass_bad_record(
        self, place: TopicPartition, position: int, error: Exception, *, at_most: int
    ) -> list[ConsumerRecord]:
        """Read again up to the bad record, one by one; once it comes first, take its batch apart."""
        result = self._fetcher._records.get(place)
        # Past control records and aborted batches, which `position` doesn't know of when the first record is bad.
        offset = max(position, result._partition_records.next_fetch_offset) if result is not None else position
        if self._bad.get(place) != offset:
            # Records before it were lost on the way: read them again, one by one.
            self._bad[place] = offset
            super().seek(place, position)
            return []
        under = self.seeks[place]
        try:
            records = await salvaged(place, offset, error, client=self._client, now=self._clock.now())
        except KafkaError as trouble:
            log.info(
                "Fetching the unreadable batch at offset %d of partition %d of %s failed; it is fetched again: %r",
                offset,
                place.partition,
                place.topic,
                trouble,
            )
            records = []
        if self.seeks[place] != under or place not in self.assignment():
            return []
        records = records[:at_most]
        super().seek(place, records[-1].offset + 1 if records else position)
        if records:
            self._bad.pop(place, None)
        for record in records:
            if isinstance(record, UnreadableRecord):
                log.warning(
                    "The record at offset %d of partition %d of %s is unreadable: %s",
                    record.offset,
                    place.partition,
                    place.topic,
                    record.unreadable,
                )
        return records


def _failed(task: "asyncio.Task[None] | None") -> bool:
    return task is not None and task.done() and not task.cancelled() and task.exception() is not None


@asynccontextmanager
async def probe_consumer(*, connection: Mapping[str, Any], clock: Clock) -> AsyncIterator[SteadyConsumer]:
    """Have a consumer of no group for a moment, to look at a topic with; nothing is assigned to it.

    Its connection is its own, so that no question waits behind the fetches of the group's consumer: see
    `LOOK_WAIT_MS`.

    Raises:
        KafkaError: Kafka can't be reached.
    """
    consumer = SteadyConsumer(
        **connection,
        clock=clock,
        enable_auto_commit=False,
        isolation_level="read_committed",
        fetch_max_wait_ms=LOOK_WAIT_MS,
    )
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def timestamp_of(place: TopicPartition, offset: int, *, consumer: SteadyConsumer) -> int | None:
    """Return the timestamp (ms) of one record; None where there is none, or none that can be read.

    The place is assigned to the consumer, which asks about nothing else from then on.

    Raises:
        KafkaError: Kafka can't be asked.
    """
    consumer.assign([place])
    consumer.seek(place, offset)
    got = await consumer.getmany(place, timeout_ms=LOOK_MS, max_records=1)  # none: gone with its retention meanwhile
    for record in got.get(place, ()):
        if record.offset == offset and not isinstance(record, UnreadableRecord):
            return int(record.timestamp) if record.timestamp is not None else None
    return None


def leave_bare(consumer: AIOKafkaConsumer) -> None:
    """Have the records that a consumer has fetched handed out as aiokafka's parser reads them: offset, key and value.

    For a caller who needs nothing else of hundreds of thousands: making a `ConsumerRecord` of each takes as long as all
    else about reading it. Records that are fetched later come as usual.
    """
    for fetched in consumer._fetcher._records.values():
        if isinstance(fetched, FetchResult) and fetched.has_more():
            fetched._partition_records._consumer_record = _as_it_is


def _as_it_is(_: TopicPartition, record: DefaultRecord) -> DefaultRecord:
    return record
