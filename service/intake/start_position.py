"""Checks that a partition's journal and the requests topic belong together, and decides where reading begins.

The check is made before the journal is opened, since opening fences its owner: a second deployment with the wrong
journal must not stop the first one. It is repeated once the journal is open, if the cursor has moved meanwhile.

    journal compacted? as long as when its end was last committed to the group?
    journal's last cursor --> other topic? other group at work? --> beyond the topic's end? another topic of that name?
    no cursor             --> has the group ever read here?

It never writes, and never fences an owner.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, KafkaTimeoutError, for_code
from aiokafka.protocol.offset import OffsetResetStrategy

from service.clock import Clock
from service.intake.group_commits import Committed, noted_end
from service.intake.timings import DEFAULT_TIMINGS, IntakeTimings
from service.kafka.clients import end
from service.kafka.consumer import SteadyConsumer, probe_consumer, timestamp_of
from service.kafka.denials import LASTS_AT_JOURNALS, Denials, MissingRight, Operation, explain
from service.kafka.journal import too_narrow
from service.kafka.journal_api import JournalLost, JournalMismatch, StopReason
from service.kafka.journal_codec import CURSOR_KEY, Cursor, decode_cursor
from service.kafka.leader_offsets import ask_leaders
from service.kafka.topics import not_compacted

log = logging.getLogger(__name__)

TAIL: Final = 500
"""Offsets that are read first, at the journal's end, to find its last cursor: nearly every commit has one. Each
further part is eight times as long."""

TAIL_LIMIT: Final = timedelta(seconds=30)
"""How long reading such a part may make no progress."""

READ_UNCOMMITTED: Final = 0
"""The isolation level of readers that open transactions don't hold back, as Kafka's protocol numbers it."""

RESTING = frozenset({"Empty", "Dead"})
"""States of a group that has no members."""

STABLE = "Stable"
"""The state of a group whose members have their partitions; in all others they are being handed out."""

AskGroup = Callable[[], Awaitable[Committed | None]]
"""Asks the group how far it has read; None: it never has."""


@dataclass(frozen=True, slots=True)
class Start:
    """The offset where reading begins, the topic's id, and the number of offsets before it that were deleted unread."""

    offset: int
    topic_id: str | None = None
    lost: int = 0
    journal: str = ""
    """The journal's name and topic id."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The journal's last cursor before the journal was opened, and the start position by it."""

    cursor: Cursor | None
    start: Start


class StartPositions(Protocol):
    """The interface that a partition's supervisor uses."""

    async def look(self, place: TopicPartition, *, committed: AskGroup, remembered: bool) -> Looked:
        """Check the journal without fencing its owner. An empty one is no trouble if what it held is `remembered`.

        Raises:
            JournalMismatch: it must not be opened from here.
            JournalLost: Kafka could not be asked.
        """

    async def of(self, place: TopicPartition, cursor: Cursor | None, *, committed: AskGroup) -> Start:
        """Check the cursor of an opened journal.

        Raises:
            JournalMismatch: journal and requests don't belong together.
            JournalLost: Kafka could not be asked.
        """


class KafkaStartPositions:
    """Checks journal and requests topic on a real Kafka, and returns the offset where reading begins."""

    def __init__(
        self,
        *,
        connection: Mapping[str, Any],
        requests: str,
        journal: str,
        group_id: str,
        clock: Clock,
        timings: IntakeTimings = DEFAULT_TIMINGS,
        tail: int = TAIL,
        denials: Denials | None = None,
    ) -> None:
        self._connection = connection
        self._requests = requests
        self._journal = journal
        self._group_id = group_id
        self._clock = clock
        self._leader_settles = timings.leader_settles
        self._tail = tail
        self._denials = denials
        self._ends: dict[int, int] = {}
        """Of journals that another group has written to, when they were looked at last."""

    async def look(self, place: TopicPartition, *, committed: AskGroup, remembered: bool) -> Looked:
        """Check the journal without fencing its owner; see `StartPositions`."""
        try:
            async with probe_consumer(connection=self._connection, clock=self._clock) as consumer:
                await self._check_compacted(consumer)
                cursor, end = await self._last_cursor(place.partition, consumer)
                self._check_topic(cursor)
                await self._check_group(place, cursor, end)
                if cursor is None and remembered:
                    committed = _never
                journal = await self._identity(consumer)
                if cursor is not None and not remembered:
                    await self._check_journal_end(place, journal, consumer, committed)
                return Looked(cursor, await self._start(place, cursor, journal, consumer, committed))
        except KafkaError as error:
            raise JournalLost(self._why(error)) from error

    async def of(self, place: TopicPartition, cursor: Cursor | None, *, committed: AskGroup) -> Start:
        """Check the cursor of an opened journal; see `StartPositions`."""
        try:
            async with probe_consumer(connection=self._connection, clock=self._clock) as consumer:
                self._check_topic(cursor)
                return await self._start(place, cursor, await self._identity(consumer), consumer, committed)
        except KafkaError as error:
            raise JournalLost(self._why(error)) from error

    def _why(self, error: KafkaError) -> str:
        """Say what failed, and report it where a right is missing."""
        right = MissingRight.of(error, operation=Operation.READ, group=self._group_id)
        if right is None:
            return explain(error)
        if self._denials is not None:
            self._denials.note(right, lasts=LASTS_AT_JOURNALS)
        return f"Kafka denies {right}"

    # ------------------------------------------------------------ the journal, from outside

    async def _last_cursor(self, partition: int, consumer: SteadyConsumer) -> tuple[Cursor | None, int]:
        """Return the last cursor in the journal, and the journal's end; reads backwards from the end."""
        place = TopicPartition(self._journal, partition)
        partitions = await consumer.partitions_of(self._journal)
        if not partitions:
            await consumer.topic_id(self._journal)  # raises where we may not see it
            msg = f"the topic {self._journal} does not exist"
            raise JournalLost(msg)
        if partition not in partitions:
            raise too_narrow(self._journal, partition)
        begin = (await consumer.beginning_offsets([place]))[place]
        until = end = (await consumer.end_offsets([place]))[place]
        size = self._tail
        consumer.assign([place])
        while until > begin:
            since = max(begin, until - size)
            if (value := await self._cursor_between(place, since, until, consumer)) is not None:
                try:
                    return decode_cursor(value), end
                except ValueError as error:
                    msg = f"the cursor in {self._journal}-{partition} can't be decoded ({error!r})"
                    raise JournalMismatch(msg, reason=StopReason.JOURNAL_UNREADABLE) from error
            until, size = since, 8 * size
        return None, end

    async def _cursor_between(
        self, place: TopicPartition, since: int, until: int, consumer: SteadyConsumer
    ) -> bytes | None:
        """Return the value of the last cursor at those offsets.

        Raises:
            KafkaTimeoutError: they could not be read in time.
        """
        found: bytes | None = None
        consumer.seek(place, since)
        deadline = self._clock.monotonic() + TAIL_LIMIT.total_seconds()
        while await consumer.position(place) < until and place not in consumer.out_of_range:
            if self._clock.monotonic() > deadline:
                msg = f"{place.topic}-{place.partition} could not be read up to offset {until} in time"
                raise KafkaTimeoutError(msg)
            records = (await consumer.getmany(place, timeout_ms=1_000)).get(place, ())
            if records:  # however many there are, it gets on
                deadline = self._clock.monotonic() + TAIL_LIMIT.total_seconds()
            for record in records:
                if record.key == CURSOR_KEY and record.offset < until:
                    found = record.value
        return found

    # ------------------------------------------------------------ checks

    async def _check_compacted(self, consumer: SteadyConsumer) -> None:
        """Check that Kafka keeps what the journal holds: brokers that create missing topics don't compact them."""
        if text := not_compacted(self._journal, await consumer.cleanup_policy(self._journal)):
            msg = f"the {text}"
            raise JournalMismatch(msg, reason=StopReason.JOURNAL_NOT_COMPACTED)

    def _check_topic(self, cursor: Cursor | None) -> None:
        if cursor is not None and cursor.topic != self._requests:
            msg = (
                f"the journal belongs to the requests topic {cursor.topic}, not to {self._requests}: configure a "
                "journal of its own for each requests topic (VM_SYNC_TOPICS__JOURNAL)"
            )
            raise JournalMismatch(msg, reason=StopReason.OTHER_TOPIC)

    async def _check_group(self, place: TopicPartition, cursor: Cursor | None, end: int) -> None:
        """A journal is worked on by one group. That of another one may be taken over once that group is away."""
        if cursor is None or cursor.group in {None, self._group_id}:
            return
        alive = await self._holds(cursor.group, place)
        if alive is None:  # its silence has to do: idle as it may be, it says nothing then
            alive = self._ends.get(place.partition) != end
        self._ends[place.partition] = end
        if alive:
            msg = (
                f"the consumer group {cursor.group} uses the same journal ({self._journal}): stop the processes of "
                f"{cursor.group}, then {self._group_id} takes the partition over by itself; or give each group its own "
                "topics (VM_SYNC_TOPICS__REQUESTS, VM_SYNC_TOPICS__JOURNAL)"
            )
            raise JournalMismatch(msg, reason=StopReason.OTHER_GROUP)
        log.warning(
            "Taking over partition %d from the consumer group %s: no member of that group has the partition assigned "
            "any more",
            place.partition,
            cursor.group,
        )

    async def _holds(self, group: str, place: TopicPartition) -> bool | None:
        """Whether a member of that group has the partition, or may get it; None: the right to know is missing."""
        admin = AIOKafkaAdminClient(**self._connection)
        try:
            await admin.start()
            (response,) = await admin.describe_consumer_groups([group])
        finally:
            await end(admin)
        ((code, _, state, _, _, members, *_),) = response.groups
        if code == GroupAuthorizationFailedError.errno:
            return None
        if code:
            raise for_code(code)
        if state in RESTING or not members:
            return False
        if state != STABLE:
            return True
        held = [ConsumerProtocolMemberAssignment.decode(member[4]) for member in members if member[4]]
        return any(place in assignment.partitions() for assignment in held)

    async def _check_journal_end(
        self, place: TopicPartition, journal: str, consumer: SteadyConsumer, committed: AskGroup
    ) -> None:
        """Check that the journal has lost no records at its end since the group was last told where it ends."""
        found = await committed()
        reached = None if found is None else noted_end(found.note, journal)
        journal_place = TopicPartition(self._journal, place.partition)
        until = self._clock.monotonic() + self._leader_settles.total_seconds()
        while reached is not None and reached > (end := await end_of_all(journal_place, consumer)):
            if self._clock.monotonic() >= until:
                msg = (
                    f"the journal {self._journal}-{place.partition} ends at offset {end}, but {reached} had been "
                    "reached: Kafka has lost records at its end (an unclean leader election, or a single replica). "
                    "The requests, tasks and outcomes in them are unknown now. If brokers that have these records can "
                    "be restored, the partition goes on by itself. Otherwise wait until VCDA works on none of the "
                    "replications, then stop the service and delete the group's offsets (kafka-consumer-groups "
                    "--delete-offsets): the partition goes on with what the journal holds, and requests whose end it "
                    "doesn't know run again"
                )
                raise JournalMismatch(msg, reason=StopReason.JOURNAL_TRUNCATED)
            await asyncio.sleep(1.0)

    async def _identity(self, consumer: SteadyConsumer) -> str:
        """Return the journal's name and topic id: one that is deleted and created again is another journal."""
        return f"{self._journal} {await consumer.topic_id(self._journal)}"

    async def _start(
        self, place: TopicPartition, cursor: Cursor | None, journal: str, consumer: SteadyConsumer, committed: AskGroup
    ) -> Start:
        identity = await consumer.topic_id(self._requests)
        begin = int((await consumer.beginning_offsets([place]))[place])
        if cursor is None:
            await self._check_unread(committed)
            return Start(begin, identity, journal=journal)
        await self._check_end(place, cursor, identity, consumer)
        await self._check_same(place, cursor, identity, begin, consumer)
        return Start(max(cursor.offset, begin), identity, max(0, begin - cursor.offset), journal)

    async def _check_unread(self, committed: AskGroup) -> None:
        """Check a journal without a cursor: the group must never have had the partition.

        Offset 0 counts, too: a process that has it was given another journal, and the group may give it the partition
        again.
        """
        if (found := await committed()) is not None:
            msg = (
                f"the consumer group {self._group_id} has committed offset {found.offset}, but the journal "
                f"{self._journal} is empty. If the service has worked with another journal, or this one was deleted, "
                "requests may be in flight that only the former journal shows: set VM_SYNC_TOPICS__JOURNAL to it, or "
                "restore it. If an operator has set the group's offsets before the service first read this partition, "
                "nothing is in flight: stop the service and delete the group's offsets (kafka-consumer-groups "
                "--delete-offsets); then the partition is read from its beginning. The same is the way out if the "
                "former journal is lost: requests that are still on the topic then run again"
            )
            raise JournalMismatch(msg, reason=StopReason.JOURNAL_EMPTY)

    async def _check_end(
        self, place: TopicPartition, cursor: Cursor, identity: str | None, consumer: SteadyConsumer
    ) -> None:
        """Check that the cursor is not beyond the topic's end."""
        until = self._clock.monotonic() + self._leader_settles.total_seconds()
        while cursor.offset > (end := (await consumer.end_offsets([place]))[place]):
            if _differ(cursor.topic_id, identity):
                raise self._replaced(cursor)
            if self._clock.monotonic() >= until:
                msg = (
                    f"the journal's cursor is at offset {cursor.offset}, but {self._requests} ends at {end}: the "
                    f"topic was deleted and created again, or truncated at its end. {self._way_out()}"
                )
                raise JournalMismatch(msg, reason=StopReason.CURSOR_BEYOND_END)
            await asyncio.sleep(1.0)

    async def _check_same(
        self, place: TopicPartition, cursor: Cursor, identity: str | None, begin: int, consumer: SteadyConsumer
    ) -> None:
        """The topic is the one that was read: the same id, or at least the same record before the cursor."""
        stamp = None
        if cursor.stamp is not None and cursor.offset > begin:
            stamp = await timestamp_of(place, cursor.offset - 1, consumer=consumer)
            if stamp not in {None, cursor.stamp}:
                raise self._replaced(cursor)
        if cursor.offset and _differ(cursor.topic_id, identity):
            if stamp is None:
                raise self._replaced(cursor)
            log.warning(
                "Topic %s has a different topic id than when it was last read, but the same record at offset %d of "
                "partition %d; treated as a copy of that topic",
                self._requests,
                cursor.offset - 1,
                place.partition,
            )

    def _replaced(self, cursor: Cursor) -> JournalMismatch:
        msg = (
            f"the journal's cursor is at offset {cursor.offset} of another topic {self._requests}: this topic was "
            "deleted and created again, or has lost records; the requests below that offset were never read. "
            f"{self._way_out()}"
        )
        return JournalMismatch(msg, reason=StopReason.REQUESTS_REPLACED)

    def _way_out(self) -> str:
        return (
            "To read the topic from its beginning, stop the service and start it with a new journal "
            "(VM_SYNC_TOPICS__JOURNAL) and a new group (VM_SYNC_KAFKA__GROUP_ID); requests that `vm-sync list` shows "
            "in flight now will then get no outcome"
        )


async def _never() -> Committed | None:
    return None


async def end_of_all(place: TopicPartition, consumer: SteadyConsumer) -> int:
    """Return where a partition ends, open transactions included.

    Raises:
        KafkaTimeoutError: its leader doesn't say.
    """
    ends = await ask_leaders(
        [place], OffsetResetStrategy.LATEST, isolation_level=READ_UNCOMMITTED, client=consumer.client
    )
    if place in ends.known:
        return ends.known[place]
    msg = f"{place.topic}-{place.partition}: {ends.unknown.get(place, 'denied')}"
    raise KafkaTimeoutError(msg)


def _differ(one: str | None, other: str | None) -> bool:
    """Whether both topic ids are known, and are of two topics."""
    return one is not None and other is not None and one != other
