"""One partition's life: from an opened journal until it is closed or the journal is lost, and what it admits meanwhile.

A partition admits requests, hands their syncs to the driver, and is handed over to its next owner. Every decision is
committed to the journal before it takes effect:

    records --admit--> the driver's syncs --> outcomes
                |                               |
                +-- one group commit after another: changes, outcomes, dead letters, and the cursor

A partition never reads from the requests topic, never reopens its journal (its supervisor does), and never reads the
time.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from service import sync
from service.event_loop import error_of, to_its_end
from service.kafka.journal_api import Batch, JournalLost, Opened
from service.kafka.journal_codec import WITHDRAWN, Cursor
from service.kafka.journal_replay import EndedSyncs
from service.messages.dead_letters import write_dead_letter
from service.messages.kafka_record import Record
from service.messages.record_fate import Fate
from service.messages.requests import InvalidRequest, SyncCancelRequested, SyncRequested, read_request
from service.messages.wait_cause import WaitCause
from service.partition.balance import Balance, Taken
from service.partition.deduplication import Deduplication
from service.partition.dependencies import Dependencies
from service.partition.driver import Driver
from service.partition.in_flight import InFlight, TrackedSync
from service.partition.journal_writer import JournalWriter
from service.partition.waiting import WaitsFor, waits_for

log = logging.getLogger(__name__)

CANCEL_AGAIN = timedelta(seconds=1)
"""How long a task may take to end before it is cancelled again, but for a commit, whose fate is to be known."""

CLOSING = timedelta(seconds=30)
"""How long a partition waits for its tasks before it closes its journal: a commit ends within its transaction's
limit, 12 s, and 10 s more for a request that hangs. Whoever has the partition next here waits for it."""


DUPLICATES = 1_000
"""How many identities are remembered whose duplicates were logged: of older ones it may be said once more."""

REWRITTEN_AT_ONCE = 500
"""Syncs that are written to the journal again between two turns of the event loop, a millisecond."""

SAY_KEY_AGAIN = timedelta(minutes=1)
"""How often it is said of a partition that its requests have other keys than they should."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The state of a closed partition, in case its journal has lost it."""

    batch: Batch
    """All that was in flight, all that had not been committed, and the cursor."""
    ended: EndedSyncs
    end: int
    """The offset that the journal had reached."""


class Partition:
    """One partition. `on_lost` is called once, with a sentence, when the work here can't go on."""

    def __init__(
        self,
        number: int,
        *,
        opened: Opened,
        dependencies: Dependencies,
        balance: Balance,
        start_at: int,
        on_lost: Callable[[str], None],
        topic_id: str | None = None,
    ) -> None:
        self.number = number
        self.cursor = start_at
        self.journal_start = opened.journal_start
        """The first offset of the journal, as the next commit stores it; None: not known."""
        self._stamp = opened.cursor.stamp if opened.cursor and opened.cursor.offset == start_at else None
        self._topic_id = topic_id
        self._journal = opened.journal
        self._dependencies = dependencies
        self._balance = balance
        self._opened_with = start_at if opened.cursor is None else opened.cursor.offset
        self._on_lost = on_lost
        self._in_flight = InFlight()
        self._journal_writer = JournalWriter(
            opened.journal,
            opened_at=opened.opened_at,
            here=self._here,
            clock=dependencies.clock,
            metrics=dependencies.metrics,
            slices=dependencies.slices,
        )
        self._deduplication = Deduplication(
            opened.ended,
            journal=opened.journal,
            journal_writer=self._journal_writer,
            clock=dependencies.clock,
            metrics=dependencies.metrics,
            slices=dependencies.slices,
            in_flight=self._in_flight.__contains__,
            deduplicate_for=dependencies.policy.deduplicate_for,
        )
        self._driver = Driver(
            number,
            in_flight=self._in_flight,
            journal_writer=self._journal_writer,
            deduplication=self._deduplication,
            dependencies=dependencies,
            spawn=self._spawn,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._committing: asyncio.Task[None] | None = None
        self._rewriting: asyncio.Task[None] | None = None
        self._closed = False
        self._duplicates: dict[str, None] = {}
        """Identities whose duplicates were logged, the latest last."""
        self._other_keys = 0
        self._say_key_at = -math.inf
        self._bygone = opened.ended
        self._opened_at = opened.opened_at
        self._left_behind = opened.in_flight
        if opened.cursor is not None:
            dependencies.api.learn(opened.cursor.spellings)

    # ------------------------------------------------------------ opening and closing

    async def start(self) -> None:
        """Prove the ownership with a commit, then begin to work.

        Raises:
            JournalLost: another process opened the journal, or Kafka is unreachable.
        """
        left_behind, self._left_behind = self._left_behind, ()
        await self._deduplication.bury_expired()
        await self._driver.restore(left_behind, opened_at=self._opened_at)
        self._balance.reopened(self._opened_with)
        if (lost := self.cursor - self._opened_with) > 0:
            self._hold(Taken(self.cursor, fates=Counter({Fate.LOST: lost})))
        self._journal_writer.advance_cursor()
        await self._journal_writer.commit()
        self._committing = self._spawn(self._journal_writer.run())
        self._driver.start()
        _ = self._spawn(self._deduplication.sweep(self._dependencies.random))

    def begin_to_quiesce(self) -> None:
        """Start no POST until `resume`."""
        self._driver.quiescing = True

    async def quiesce(self, limit: float) -> bool:
        """Start no POST, and wait until POSTs in flight are answered and committed, for at most `limit` seconds.

        For speed only: an unanswered POST is in doubt for the next owner, never lost. Polls and outcomes continue.
        """
        self.begin_to_quiesce()
        try:
            async with asyncio.timeout(limit):
                while not self._closed and (
                    submitting := [tracked for tracked in self._in_flight if tracked.submitting]
                ):
                    posting = [tracked.posting for tracked in submitting if tracked.posting]
                    if posting:
                        await asyncio.wait(posting)
                    else:
                        # Their intents are being committed; after the commit the POSTs are not sent.
                        await self._journal_writer.confirm_ownership()
                await self._journal_writer.confirm_ownership()
        except (TimeoutError, JournalLost):
            return False
        return True

    def resume(self) -> None:
        """The partition was assigned to this process again: start POSTs again."""
        self._driver.resume()

    async def close(self) -> None:
        """Forget the syncs here; they are never cancelled there. A commit on its way is waited for, within bounds.

        No sync takes another step from here on. What the process shares with this partition is given back in slices,
        since there may be 50,000 syncs, and the producer is closed then; both also where this is cancelled.
        """
        self._stop()
        await to_its_end(self._give_back())

    async def _give_back(self) -> None:
        try:
            await self._driver.release()
            self._bygone = self._deduplication.ended()
            self._deduplication.forget()
        finally:
            await self._close_journal()

    async def _close_journal(self) -> None:
        """End the partition's tasks, then close the journal."""
        pending = set(self._tasks)
        for _ in range(CLOSING // CANCEL_AGAIN):
            for task in pending - {self._committing}:
                task.cancel()  # repeatedly: aiokafka ignores cancellations in some places
            if not pending:
                break
            _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN.total_seconds())
        if pending:
            log.warning(
                "Partition %d: %d background tasks did not end when cancelled; no longer waiting for them",
                self.number,
                len(pending),
            )
            for task in pending:
                task.cancel()
        await self._journal.close()

    def memory(self) -> Memory:
        """Return what is known here, once it is closed."""
        batch = self._journal_writer.unsaved()
        batch.changes |= {tracked.request.identity: tracked.state for tracked in self._in_flight}
        return Memory(batch, self._bygone, self._journal.end)

    async def disown_cursor(self) -> None:
        """Commit a cursor that matches no topic, since the requests topic was replaced.

        Records of the new topic may have been taken up already, so that the cursor would pass for one of it.

        Raises:
            JournalLost: the result of the commit is unknown.
        """
        self._stamp = WITHDRAWN
        await self._journal_writer.confirm_ownership()

    def rewrite_journal(self, start: int) -> None:
        """Begin to write all in flight to the journal again, since its records below its first offset `start` are gone.

        The cursor follows behind, with the new first offset: if the process ends before, the next one reports the loss.
        """
        self._rewriting = self._spawn(self._rewrite_journal(start))

    async def _rewrite_journal(self, start: int) -> None:
        size = self._dependencies.slices.size(REWRITTEN_AT_ONCE)
        for number, tracked in enumerate(self._in_flight, 1):
            if self._closed:
                return
            if self._in_flight.holds(tracked):  # it may have ended meanwhile
                self._journal_writer.put(tracked.request.identity, tracked.state)
            if number % size == 0:
                await self._dependencies.slices.turn()
        self.journal_start = start
        self._journal_writer.advance_cursor()

    # ------------------------------------------------------------ for health and metrics

    @property
    def closed(self) -> bool:
        """Whether no sync takes another step here."""
        return self._closed

    @property
    def rewriting(self) -> bool:
        """Whether everything in flight is being written to the journal again."""
        return self._rewriting is not None and not self._rewriting.done()

    def __len__(self) -> int:
        return len(self._in_flight)

    @property
    def quiescing(self) -> bool:
        """Whether no POST begins here: records that are read now wait for the next owner."""
        return self._driver.quiescing

    @property
    def committed_cursor(self) -> int:
        """The cursor that the journal is known to hold. `cursor` may be ahead of it, with what was admitted since."""
        committed = self._journal_writer.committed
        return self._opened_with if committed is None else committed.offset

    @property
    def behind(self) -> bool:
        """Whether so much waits for its commit that nothing more is to be read."""
        return self._journal_writer.behind

    @property
    def held_since(self) -> float | None:
        """Since when (monotonic) POSTs are held back as Kafka's commits take too long; None: none is."""
        return self._driver.held_since

    def tracked_syncs(self) -> Iterator[TrackedSync]:
        """Yield what is in flight here, in the order of acceptance."""
        yield from self._in_flight

    @property
    def sites(self) -> frozenset[str | None]:
        """The sites that something in flight here is of."""
        return frozenset(self._in_flight.sites)

    def waits_for(self, tracked: TrackedSync) -> WaitsFor | None:
        """Return what a request waits for before its POST, or why its sync is not polled; None: neither."""
        return waits_for(
            tracked,
            in_flight=self._in_flight,
            lane=self._dependencies.lanes.lane(tracked.request.site),
            clock=self._dependencies.clock,
            handing_over=self.number if self.quiescing else None,
        )

    def waiting(self) -> Iterator[tuple[str | None, WaitCause, int]]:
        """Yield how many requests wait here for something else than their site: by the request's site and cause."""
        for site, count in self._in_flight.behind.items():
            yield site, WaitCause.ELDER, count
        for (site, cause), count in self._driver.postponements.counts.items():
            yield site, cause, count

    # ------------------------------------------------------------ admission

    def admit(self, records: Sequence[Record]) -> None:
        """Admit records in the order of the topic; records below the cursor were admitted before.

        An exception is a bug: nothing of the records is committed then, and the partition must not continue.
        """
        now = self._dependencies.clock.now()
        taken, held = Taken(self.cursor), 0
        try:
            for number, record in enumerate(records, 1):
                self._take(record, now, taken)
                if self._journal_writer.full or number == len(records):
                    self._hold(taken)
                    self._journal_writer.advance_cursor()
                    taken, held = Taken(self.cursor), number
                if self._journal_writer.full:
                    self._journal_writer.cut()
        except BaseException:
            self._balance.reread(len(records) - held)
            raise

    def _take(self, record: Record, now: datetime, taken: Taken) -> None:
        if record.offset < self.cursor:
            taken.fates[Fate.REREAD] += 1
            return
        if record.offset > self.cursor:
            taken.fates[Fate.NO_RECORD] += record.offset - self.cursor
        self.cursor = taken.until = record.offset + 1
        self._stamp = record.timestamp_ms if record.unreadable is None else None
        asked = read_request(record)
        if isinstance(asked, InvalidRequest):
            taken.fates[Fate.DEAD_LETTERED] += 1
            taken.dead[asked.reason] += 1
            self._journal_writer.publish(write_dead_letter(record, asked, topic=self._dependencies.dead_letters))
            log.warning(
                "Invalid message at offset %d of partition %d was written to the dead-letter topic: %s",
                record.offset,
                self.number,
                asked.detail,
            )
            return
        if isinstance(asked, SyncCancelRequested):
            taken.fates[Fate.CANCEL] += 1
            self._driver.cancel(asked, offset=record.offset)
            return
        if not asked.has_key:
            taken.without_key += 1
        if asked.other_key:
            taken.other_key += 1
            self._warn_of_key(asked, record)
        if asked.identity in self._in_flight or self._deduplication.holds(asked.identity):
            taken.fates[Fate.DUPLICATE] += 1
            self._log_duplicate(asked, record)
        else:
            taken.fates[Fate.ADMITTED] += 1
            self._admit(asked, record, now)

    def _warn_of_key(self, asked: SyncRequested, record: Record) -> None:
        """Say that the sender sets another key; once a minute, since a sender does so with all its requests."""
        self._other_keys += 1
        now = self._dependencies.clock.monotonic()
        if now < self._say_key_at:
            return
        self._say_key_at = now + SAY_KEY_AGAIN.total_seconds()
        log.warning(
            "The key of request %s at offset %d of partition %d is not its replicationId (%d such requests since the "
            "last line): requests of one replication may be in different partitions, and run at once; the sender has "
            "to use the replicationId as key",
            asked.identity,
            record.offset,
            self.number,
            self._other_keys,
            extra={"operation_id": asked.operation_id, "replication_id": asked.replication_id, "site": asked.site},
        )
        self._other_keys = 0

    def _log_duplicate(self, asked: SyncRequested, record: Record) -> None:
        """Say once of an identity that it came again, however often it comes."""
        if asked.identity in self._duplicates:
            return
        self._duplicates[asked.identity] = None
        if len(self._duplicates) > DUPLICATES:
            del self._duplicates[next(iter(self._duplicates))]
        log.info(
            "Duplicate of request %s at offset %d of partition %d was dropped: the request %s",
            asked.identity,
            record.offset,
            self.number,
            "is in flight" if asked.identity in self._in_flight else "ended within VM_SYNC_SYNC__DEDUPLICATE_FOR",
            extra={"operation_id": asked.operation_id, "replication_id": asked.replication_id, "site": asked.site},
        )

    def _hold(self, taken: Taken) -> None:
        """Count a record's fate after the next commit, which contains the cursor."""
        self._balance.hold(taken)
        self._journal_writer.after_commit(partial(self._balance.reached, taken.until))

    def _admit(self, asked: SyncRequested, record: Record, now: datetime) -> None:
        request = sync.Request(
            identity=asked.identity,
            operation_id=asked.operation_id,
            replication_id=asked.replication_id,
            site=asked.site,
            offset=record.offset,
            requested_at=_written_at(record, default=now),
            accepted_at=now,
            deadline=now + (asked.deadline or self._dependencies.deadline),
            traceparent=asked.traceparent,
            tracestate=asked.tracestate,
        )
        self._dependencies.tracing.accepted(request)
        self._driver.accept(request)

    # ------------------------------------------------------------ the cursor, the tasks, the end

    def _here(self) -> Cursor:
        return Cursor(
            self._dependencies.requests,
            self.cursor,
            self._stamp,
            topic_id=self._topic_id,
            group=self._dependencies.group,
            journal_start=self.journal_start,
            spellings=self._dependencies.api.spellings(),
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended_task)
        return task

    def _stop(self) -> None:
        """Apply no further change, and start no commit."""
        self._closed = True
        self._driver.stop()
        self._journal_writer.stop()

    def fail(self, reason: str) -> None:
        """Stop the partition's work: its memory can't be trusted any more."""
        if not self._closed:
            self._stop()
            self._on_lost(reason)

    def _ended_task(self, task: "asyncio.Task[None]") -> None:
        """A failed task ends the partition's work: its memory can't be trusted any more.

        Failures after the partition is closed are looked at too: a lost journal is expected then, a bug never is.
        """
        self._tasks.discard(task)
        if (error := error_of(task)) is None:
            return
        if isinstance(error, JournalLost):
            self.fail(str(error))
        else:
            log.error("Internal error in partition %d", self.number, exc_info=error)
            self.fail(f"internal error: {type(error).__name__}")


def _written_at(record: Record, *, default: datetime) -> datetime:
    """The record's timestamp. A producer may have set it to anything: -1 (none), a year that Python doesn't know."""
    if record.timestamp_ms < 0:
        return default
    try:
        return sync.EPOCH + timedelta(milliseconds=record.timestamp_ms)  # exact, unlike `fromtimestamp`
    except OverflowError:
        return default
