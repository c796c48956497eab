"""Supervises one assigned partition: opens its journal, reopens it whenever it is lost, and closes it when revoked.

    assigned --journal opened--> open, read from its cursor --revoked----> closed
                  |    ^                    |
                  |    |                    | journal lost, or position no longer valid: closed
                  |    +--the group confirms the membership--------------pause that doubles
                  |
                  +--journal and requests topic don't belong together--> refused, checked again each half minute

It never fences the owner of a journal that doesn't belong to the requests topic, and never reopens a partition that the
group may have assigned to another member.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from service.event_loop import settle
from service.intake.group_commits import Committed, note_of
from service.intake.start_position import Looked, Start, StartPositions
from service.intake.timings import IntakeTimings
from service.kafka.journal_api import Batch, JournalLost, JournalMismatch, Opened
from service.partition.balance import Balance, BalanceMeter
from service.partition.dependencies import Dependencies
from service.partition.partition import Memory, Partition
from service.sync import Ended

log = logging.getLogger(__name__)

DELETED: Final = (
    "compaction never moves it, so the topic's cleanup.policy was not compact for a while, and its retention or "
    "kafka-delete-records has deleted records"
)
"""What it means that the first offset of a journal has moved."""

NAMED: Final = 20
"""How many syncs a log line names."""

ASK_GROUP_AGAIN: Final = 1.0
"""Seconds until the membership is checked again, unless the partition is assigned before."""


class SupervisorMeter(BalanceMeter, Protocol):
    """The metrics of the supervisor."""

    def restored(self, seconds: float) -> None: ...  # noqa: D102 - the names say it
    def reopened(self) -> None: ...  # noqa: D102
    def rewritten(self) -> None: ...  # noqa: D102
    def journal_records_deleted(self) -> None: ...  # noqa: D102


class GroupMember(Protocol):
    """The supervisor's interface to this process as a member of the consumer group."""

    async def committed(self, place: TopicPartition) -> Committed | None:
        """Ask the group how far it has read; None: it never has.

        Raises:
            KafkaError: the group could not be asked.
        """

    async def commit(self, place: TopicPartition, committed: Committed) -> None:
        """Commit an offset, which the group takes from members only; waits for the end of a rebalance.

        Raises:
            KafkaError: this process is no member any more, or the group could not be asked.
        """

    def read_from(self, place: TopicPartition, offset: int) -> int | None:
        """Read on from there, and drop what was fetched before; return the seek's number.

        None: the partition is not assigned here, or the process stops.
        """


class PartitionSupervisor:
    """Keeps one assigned partition open. `start` and `let_go` are called once each."""

    def __init__(
        self,
        place: TopicPartition,
        *,
        member: GroupMember,
        positions: StartPositions,
        open_journal: Callable[[int], Awaitable[Opened]],
        dependencies: Dependencies,
        timings: IntakeTimings,
        metrics: SupervisorMeter,
    ) -> None:
        self.place = place
        self.partition: Partition | None = None
        self.reading: int | None = None
        """The seek under which records are admitted; None: none are."""
        self.mismatched: JournalMismatch | None = None
        """Why the partition refuses to work, while it does."""
        self.trouble = "opening is still under way"
        """Why it is not open, while it isn't."""
        self.losses = 0
        """How often it was lost since it was last open for long enough to count."""
        self.open_since: float | None = None
        """Since when (monotonic) it is open, while it is."""
        self.closed_since = dependencies.clock.monotonic()
        """Since when (monotonic) it is not open, while it isn't."""
        self.cursor: int | None = None
        """The last cursor that was committed to the group or opened with; committing it checks the membership. None
        while the journal has none: an offset of the group without one in the journal means that a journal was lost."""
        self.journal = ""
        """The journal's name and topic id when the partition was opened."""
        self.note = ""
        """Where the journal ended when `cursor` was set; committed with it."""
        self.topic_id: str | None = None
        """Of the requests topic when the partition was opened; None: the brokers have no topic ids."""
        self._member = member
        self._positions = positions
        self._open_journal = open_journal
        self._dependencies = dependencies
        self._clock = dependencies.clock
        self._timings = timings
        self._metrics = metrics
        self._balance = Balance(metrics)
        self._memory: Memory | None = None
        """What was known here when the journal was lost, until it is open again."""
        self._said_start: int | None = None
        """The first offset of the journal that was reported last, so that it is once if the opening fails then."""
        self._revoked = False
        """The group is handing out the partitions again. Where this one is opened meanwhile, it starts quiescing."""
        self._returned = asyncio.Event()
        self._gone = False
        """`let_go` was called. The task was cancelled, too, but a producer that is being stopped ignores that (read in
        the source, and seen): such a supervisor would live on, and its partition's next one would wait for it for
        ever."""

    # ------------------------------------------------------------ called by the group

    def start(self, *, after: "asyncio.Task[None] | None" = None) -> "asyncio.Task[None]":
        """Begin, once the partition's earlier supervisor has ended; return the task, which ends by `let_go` alone."""
        self._task = asyncio.create_task(self._run(after), name=f"the supervisor of partition {self.place.partition}")
        self._task.add_done_callback(lambda _: self._balance.give_up())
        return self._task

    def let_go(self) -> "asyncio.Task[None]":
        """Close: the partition is assigned elsewhere, or the process stops. Returns the task, which ends soon."""
        self._gone = True
        self._task.cancel()
        return self._task

    def revoke(self) -> Partition | None:
        """Admit nothing more until the partition is assigned again; return it, if it is open, to be quiesced."""
        self.reading = None
        self._revoked = True
        return self.partition

    def assign_again(self) -> None:
        """Go on: the group has given the partition back."""
        self._revoked = False
        self._returned.set()
        if self.partition is not None:
            self._read_on(self.partition)

    def distrust(self, reason: str) -> None:
        """Close a partition whose position is no longer valid in the topic: reopening it checks both."""
        self.reading = None
        if self.partition is not None:
            self.partition.fail(reason)

    def unopened_for(self, now: float) -> float:
        """Return for how many seconds the partition has not been open; 0 where it is, or refuses to work."""
        return now - self.closed_since if self.partition is None and self.mismatched is None else 0.0

    def reopens_again_and_again(self, now: float) -> bool:
        """Whether the partition was lost several times in a row, and has not stayed open since."""
        settled = self.open_since is not None and now - self.open_since > self._timings.settled.total_seconds()
        return self.losses >= self._timings.lost_often and self.mismatched is None and not settled

    # ------------------------------------------------------------ the task

    async def _run(self, after: "asyncio.Task[None] | None") -> None:
        """Open the partition, and reopen it whenever its journal is lost, until `let_go`."""
        await _ended(after)
        repeats = 0
        while True:
            self._check()
            try:
                lasted = await self._keep_open()
            except JournalMismatch as error:
                await self._refuse(error)
                continue
            if lasted > self._timings.proven.total_seconds():
                repeats = self.losses = 0
            self.losses += lasted > 0
            await asyncio.sleep(self._timings.reopen.pause(repeats, chance=self._dependencies.random.random()))
            repeats += 1
            await self._until_confirmed()

    def _check(self) -> None:
        """End the task whose cancellation may have been swallowed meanwhile."""
        if self._gone:
            raise asyncio.CancelledError

    async def _keep_open(self) -> float:
        """Open the partition, and close it when it is lost; return for how many seconds it was open.

        Raises:
            JournalMismatch: it must not be opened from here.
        """
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        partition: Partition | None = None
        number = self.place.partition
        try:
            partition = await self._open(lost)
            opened_at = self.open_since = self._clock.monotonic()
            self.trouble = await lost
            log.warning("Partition %d is closed and will be reopened: %s", number, self.trouble)
            self._metrics.reopened()
            return self._clock.monotonic() - opened_at
        except JournalLost as error:
            again, self.trouble = _same(str(error), self.trouble), str(error)
            level = logging.DEBUG if again else logging.WARNING  # while the cause is the same, once is enough
            log.log(level, "Opening partition %d failed; trying again: %s", number, error)
            return 0.0
        finally:
            self.reading = None
            self.open_since = None
            if self.partition is not None:
                self.partition, self.closed_since = None, self._clock.monotonic()
            if partition is not None:
                await partition.close()
                self._memory = partition.memory()

    async def _refuse(self, error: JournalMismatch) -> None:
        """Log why the partition is stopped, and wait until the next check, which only a member of the group makes."""
        if self.mismatched is None or str(self.mismatched) != str(error):
            log.error("Partition %d is stopped: %s", self.place.partition, error)
        self.mismatched = error
        await asyncio.sleep(self._timings.mismatch_recheck.total_seconds())
        await self._until_confirmed()

    async def _until_confirmed(self) -> None:
        """Wait until the group confirms that this process is still a member.

        A member that was removed would otherwise fence its successor: its own transactions can still commit (measured).
        """
        number, logged = self.place.partition, ""
        while True:
            self._check()
            self._returned.clear()
            try:
                committed = None if self.cursor is None else Committed(self.cursor, self.note)
                if committed is None:
                    committed = await self._member.committed(self.place)
                if committed is not None:  # without it no process has ever read here: there is no owner to fence
                    await self._member.commit(self.place, committed)
            except KafkaError as error:
                again, logged = _same(repr(error), logged), repr(error)
                level = logging.DEBUG if again else logging.INFO  # as where opening fails
                log.log(level, "Partition %d waits for the consumer group to accept a commit: %r", number, error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(ASK_GROUP_AGAIN):
                        await self._returned.wait()
            else:
                return

    # ------------------------------------------------------------ opening

    async def _open(self, lost: "asyncio.Future[str]") -> Partition:
        """Open the partition and read from its cursor; `lost` is set when its journal is lost, to the reason."""
        began = self._clock.monotonic()
        committed = partial(self._member.committed, self.place)
        looked = await self._positions.look(self.place, committed=committed, remembered=self._memory is not None)
        self.journal = looked.start.journal
        self._check()
        opened = await self._open_journal(self.place.partition)
        try:
            self._check()
            self._compare_start(opened)
            if (memory := self._memory) is not None:
                opened = await self._write_back(opened, memory)
                self._check()
            start = await self._start(looked, opened)
            partition = self._make(opened, start, lost)
        except BaseException:
            await opened.journal.close()
            raise
        try:
            await partition.start()
            self.cursor = start.offset
            self._check()
        except BaseException:
            await partition.close()
            raise
        self.partition, self.mismatched, self._memory = partition, None, None
        self._metrics.restored(self._clock.monotonic() - began)
        log.info(
            "Partition %d is open: %d requests in flight, reading from offset %d",
            self.place.partition,
            len(partition),
            start.offset,
        )
        self._read_on(partition)
        return partition

    async def _start(self, looked: Looked, opened: Opened) -> Start:
        """Return where reading begins; checked again where the cursor has moved since the journal was looked at."""
        start = looked.start
        if opened.cursor != looked.cursor or (opened.cursor is None and self._memory is not None):
            committed = partial(self._member.committed, self.place)
            start = await self._positions.of(self.place, opened.cursor, committed=committed)
            self._check()
        if start.lost:
            log.error(
                "Up to %d requests of partition %d were deleted from the topic before they were read: the retention of "
                "%s (retention.ms, retention.bytes) is shorter than the time that the service was down, or that the "
                "partition was full (VM_SYNC_SYNC__MAX_IN_FLIGHT)",
                start.lost,
                self.place.partition,
                self.place.topic,
            )
        return start

    def _compare_start(self, opened: Opened) -> None:
        """Report records of the journal that were deleted while no process had the partition open.

        The first commit of the partition stores the new first offset, so that it is reported once. Where none is stored
        yet, nothing is known of the time before: a journal that doesn't begin at 0 may have lost records long ago.
        """
        start = opened.journal_start
        if opened.cursor is None or not start or start == self._said_start:
            return
        before, self._said_start = opened.cursor.journal_start, start
        number = self.place.partition
        if before is None:
            log.warning(
                "The journal of partition %d begins at offset %d, not at 0, and it is not known since when: records "
                "may have been deleted, before this release first opened it or later. From now on it is compared",
                number,
                start,
            )
        elif start > before:
            log.error(
                "Records of the journal of partition %d were deleted before it was opened: the journal began at offset "
                "%d, and begins at offset %d now; %s. Requests in flight whose records are gone get no outcome, and "
                "ended ones run again if they are sent again: have requests of that time without an outcome sent "
                "again, once VCDA works on none of their replications. Check that the topic is compacted: vm-sync "
                "topics check",
                number,
                before,
                start,
                DELETED,
            )
            self._metrics.journal_records_deleted()

    def _make(self, opened: Opened, start: Start, lost: "asyncio.Future[str]") -> Partition:
        self.cursor, self.topic_id = None if opened.cursor is None else start.offset, start.topic_id
        self.journal, self.note = start.journal, note_of(start.journal, opened.journal.end)
        return Partition(
            self.place.partition,
            opened=opened,
            dependencies=self._dependencies,
            balance=self._balance,
            start_at=start.offset,
            on_lost=partial(settle, lost),
            topic_id=start.topic_id,
        )

    def _read_on(self, partition: Partition) -> None:
        """Read from the partition's own cursor, unless it was revoked or the process stops: then no POST begins."""
        seek = None if self._revoked else self._member.read_from(self.place, partition.cursor)
        if seek is None:
            partition.begin_to_quiesce()
            return
        self.reading = seek
        partition.resume()

    async def _write_back(self, opened: Opened, memory: Memory) -> Opened:
        """Rewrite a journal from memory after it was deleted and created again, or truncated at its end.

        No other process can have worked on the partition meanwhile: the group confirms that it stayed assigned to this
        process, and any process stops a partition with an empty journal.
        """
        batch = memory.batch
        if batch.cursor is None:
            return opened
        # The usual case is that it goes on where it was lost. Without a cursor it was made anew, however far marks of
        # openings that failed have taken its end.
        if opened.cursor is not None and (opened.begin >= memory.end or opened.cursor.offset > batch.cursor.offset):
            return opened
        changes = {state.request.identity: None for state in opened.in_flight} | batch.changes
        in_flight = [state for state in changes.values() if state is not None and not isinstance(state, Ended)]
        log.error(
            "The journal of partition %d was deleted and created again, or truncated at its end: it begins at offset "
            "%d, but offset %d had been reached. It is being rewritten from memory, with %d syncs in flight (%s). "
            "Duplicates of requests that have ended are recognised only until this process ends; after that, a "
            "repeated request runs again. Check that the topic is compacted: vm-sync topics check",
            self.place.partition,
            opened.begin,
            memory.end,
            len(in_flight),
            ", ".join(state.request.identity for state in in_flight[:NAMED]) + ", ..." * (len(in_flight) > NAMED),
        )
        await opened.journal.commit(Batch(changes, batch.events, batch.cursor))
        # The commit succeeded and its events are published: that must not be repeated if the opening fails from here
        # on.
        self._memory = replace(memory, batch=replace(batch, events=[]), end=opened.journal.end)
        self._metrics.rewritten()
        # At once: by what the group was told before, the partition's next owner would take this journal for cut short.
        self.cursor, self.note = batch.cursor.offset, note_of(self.journal, opened.journal.end)
        await self._until_confirmed()
        return replace(opened, cursor=batch.cursor, in_flight=in_flight, ended=memory.ended)


def _same(one: str, other: str) -> bool:
    """Whether two causes differ in numbers at most, such as offsets and durations."""
    return re.sub(r"\d+", "", one) == re.sub(r"\d+", "", other)


async def _ended(earlier: "asyncio.Task[None] | None") -> None:
    """Wait until the partition's earlier supervisor has ended: opening and closing one partition are serialised."""
    if earlier is None:
        return
    try:
        await asyncio.wait([earlier])
    except asyncio.CancelledError:
        await asyncio.wait([earlier])  # the next supervisor waits only for this one
        raise
