"""One partition's life: from an opened journal until it is closed or the journal is lost.

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
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from service.event_loop import error_of, to_its_end
from service.kafka.journal_api import Batch, JournalLost, Opened
from service.kafka.journal_codec import WITHDRAWN, Cursor
from service.kafka.journal_replay import EndedSyncs
from service.messages.kafka_record import Record
from service.messages.record_fate import Fate
from service.messages.wait_cause import WaitCause
from service.partition.admission import Admission
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
limit, 12 s, and 10 s more for a request that hangs. The partition's next supervisor in this process waits for it."""

REWRITTEN_AT_ONCE = 500
"""Syncs that are written to the journal again between two turns of the event loop, a millisecond."""


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
        self.journal_start = opened.journal_start
        """The first offset of the journal, as the next commit stores it; None: not known."""
        self._topic_id = topic_id
        self._journal = opened.journal
        self._dependencies = dependencies
        self._balance = balance
        self._opened_with = start_at if opened.cursor is None else opened.cursor.offset
        self._on_lost = on_lost
        self._in_flight = InFlight()
        self._journal_writer = JournalWriter(
            opened.journal,
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
        self._admission = Admission(
            number,
            cursor=start_at,
            stamp=opened.cursor.stamp if opened.cursor and opened.cursor.offset == start_at else None,
            in_flight=self._in_flight,
            journal_writer=self._journal_writer,
            deduplication=self._deduplication,
            driver=self._driver,
            balance=balance,
            dependencies=dependencies,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._committing: asyncio.Task[None] | None = None
        self._rewriting: asyncio.Task[None] | None = None
        self._closed = False
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
            self._admission.hold(Taken(self.cursor, fates=Counter({Fate.LOST: lost})))
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
        self._admission.stamp = WITHDRAWN
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
    def without_outcome(self) -> int:
        """How many requests in flight have no outcome yet."""
        return self._in_flight.without_outcome

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
    def journal_end(self) -> int:
        """The offset after the last record that the journal is known to hold."""
        return self._journal.end

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

    @property
    def cursor(self) -> int:
        """The offset of the next record to admit."""
        return self._admission.cursor

    def admit(self, records: Sequence[Record]) -> None:
        """Admit records in the order of the topic; see `Admission.admit`."""
        self._admission.admit(records)

    # ------------------------------------------------------------ the cursor, the tasks, the end

    def _here(self) -> Cursor:
        return Cursor(
            self._dependencies.requests,
            self._admission.cursor,
            self._admission.stamp,
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
