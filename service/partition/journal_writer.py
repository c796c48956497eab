"""Group commit: a partition's changes are gathered, committed to the journal together, and only then acted on.

While one batch is committed, the next one is gathered. Actions that must wait for their batch, such as a POST for its
intent, are called after its commit, in the order in which they were added. A successful commit proves that this process
owned the partition at the moment before its sending; the submit window is counted from that moment.

Changes may arrive faster than Kafka commits them. So a large batch is split: each commit is small enough to end within
its transaction's time limit. And with more than `BEHIND` bytes uncommitted the partition pauses reading, so memory is
bounded.

The actions after a commit may be many. They are called in slices, and all of them before the next commit begins. Until
an action is called its sync stays as it is, so nothing is half done: a sync's step is in memory from the moment when it
was put, and in the journal since the commit.

It never inspects a change, and never repeats a commit: the first failure ends the writer.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Protocol

from service.clock import Clock
from service.event_loop import Slices, settle
from service.kafka.journal_api import Batch, Journal, JournalLost
from service.kafka.journal_codec import Cursor
from service.messages.kafka_record import Event, record_size
from service.sync import Sync

GATHER = timedelta(milliseconds=10)
"""How long changes that nobody waits for gather before they are committed; a commit costs 3-25 ms (measured)."""

CUT = 1024 * 1024
"""Bytes that one commit has about: at a mere 100 kB/s they are sent within the limit of a transaction, 12 s; and at
12 MB/s, seen on a slow broker, within 0.1 s."""

BEHIND = 2 * CUT
"""Bytes that may wait for their commits before the partition is behind. A read adds up to 1 MiB (aiokafka's fetch of a
partition, uncompressed), so twelve partitions hold some 40 MiB: without this bound it was 1.9 GiB (measured)."""

CHANGE_BYTES = 512
"""About what a change costs, in the journal and in memory; what it holds isn't looked at."""

TOMBSTONE_BYTES = 64
"""The same for a tombstone, of which a sweep writes thousands at once."""

ACTIONS_AT_ONCE = 50
"""Actions after a commit that are called between two turns of the event loop, some 4 ms: an outcome is counted, and
logged in one sentence."""

FEW_ACTIONS = 10
"""So few are called at once: a turn of the event loop would cost more than they take."""


class JournalWriterMeter(Protocol):
    """The metrics of the journal writer."""

    def commit(self, seconds: float, records: int) -> None: ...  # noqa: D102 - the name says it


@dataclass(slots=True)
class _Gathering(Batch):
    """The batch that is being gathered, and the actions after its commit."""

    after: list[Callable[[], None]] = field(default_factory=list)
    size: int = 0
    """Bytes, about."""

    @property
    def empty(self) -> bool:
        """Whether nothing would be written, so that nothing waits for it either."""
        return not (self.changes or self.events or self.cursor or self.after)


class JournalWriter:
    """Group commit. `here` returns the cursor that confirms the ownership: an empty commit would confirm nothing."""

    def __init__(
        self,
        journal: Journal,
        *,
        here: Callable[[], Cursor],
        clock: Clock,
        metrics: JournalWriterMeter,
        slices: Slices,
    ) -> None:
        self._slices = slices
        self._journal = journal
        self._here = here
        self._clock = clock
        self._metrics = metrics
        self._gathering = _Gathering()
        self._committing: _Gathering | None = None
        """What is being committed, or was when the journal was lost."""
        self._cut: deque[_Gathering] = deque()
        """What was cut off and waits for its turn, the oldest first."""
        self._waiting = 0
        self._cutting: asyncio.Handle | None = None
        self._dirty = asyncio.Event()
        self._urgent = asyncio.Event()
        self._over: asyncio.Future[None] | None = None
        self.stopped = False
        """Nothing that is gathered here is committed any more."""
        self.confirmed_at = -math.inf
        """The moment (monotonic) before the sending of the last successful commit; none before the first."""
        self._confirmed_at_wall = clock.now()
        self.took = 0.0
        """How long that commit took, in seconds."""
        self.cursor: Cursor | None = None
        """The last cursor that was added. It is committed no later than anything added after it."""
        self.committed: Cursor | None = None
        """The last cursor that a commit of this process contained."""

    @property
    def unconfirmed_for(self) -> float:
        """The seconds since the sending of the last successful commit, by the clock that shows more of them.

        The monotonic clock stands still while the machine is suspended or hibernates; the wall clock is right again
        before this process goes on. A wall clock that was merely set forward costs another commit.
        """
        by_wall = (self._clock.now() - self._confirmed_at_wall).total_seconds()
        return max(self._clock.monotonic() - self.confirmed_at, by_wall)

    def put(self, identity: str, state: Sync | None) -> None:
        """Add a change to the next batch; None: a tombstone."""
        self._gathering.changes[identity] = state
        self._grow(TOMBSTONE_BYTES if state is None else CHANGE_BYTES)

    def publish(self, event: Event) -> None:
        """Add an event to the next batch."""
        self._gathering.events.append(event)
        self._grow(record_size(event))

    def advance_cursor(self) -> None:
        """Add the cursor to the next batch."""
        self._gathering.cursor = self.cursor = self._here()
        self._dirty.set()

    def after_commit(self, do: Callable[[], None]) -> None:
        """Call an action after the commit of the next batch, which contains everything added before."""
        self._gathering.after.append(do)

    def flush_soon(self) -> None:
        """Commit the next batch without waiting for more changes."""
        self._dirty.set()
        self._urgent.set()

    # ------------------------------------------------------------ how much

    @property
    def full(self) -> bool:
        """Whether the gathered changes are large enough for a commit of their own."""
        return self._gathering.size >= CUT

    @property
    def behind(self) -> bool:
        """Whether too much is uncommitted, so that reading has to pause."""
        return self._waiting >= BEHIND

    def cut(self) -> None:
        """Make the gathered changes a commit of their own. It also happens by itself between two steps of the loop.

        Changes that must be committed together must have been added before: a sync's change and its outcome, a record
        and the cursor.
        """
        if self._cutting is not None:
            self._cutting.cancel()
            self._cutting = None
        self._cut.append(self._gathering)
        self._gathering = _Gathering()
        self.flush_soon()

    def _grow(self, size: int) -> None:
        self._gathering.size += size
        self._waiting += size
        self._dirty.set()
        if self.full and self._cutting is None:
            self._cutting = asyncio.get_running_loop().call_soon(self.cut)

    def _take(self) -> _Gathering:
        """Take what is to be committed next."""
        if self._cut:
            return self._cut.popleft()  # more is waiting, so that nothing is cleared
        if self._cutting is not None:
            self._cutting.cancel()
            self._cutting = None
        batch, self._gathering = self._gathering, _Gathering()
        self._dirty.clear()
        self._urgent.clear()
        return batch

    # ------------------------------------------------------------ commits

    async def commit(self) -> None:
        """Commit what has gathered, or the oldest part of it.

        Raises:
            JournalLost: the result of the commit is unknown.
        """
        batch = self._committing = self._take()
        began, began_at_wall = self._clock.monotonic(), self._clock.now()
        if batch.empty:
            # Kafka's client commits a transaction without records by itself, also for a producer that was fenced
            # (read in the source): it proves nothing. It comes where all that gathered was cut off.
            self._committing = None
            return
        await self._journal.commit(batch)
        self._committing = None
        self.confirmed_at, self._confirmed_at_wall = began, began_at_wall
        self._waiting -= batch.size
        self.committed = batch.cursor or self.committed
        self.took = self._clock.monotonic() - began
        self._metrics.commit(self.took, len(batch.changes) + len(batch.events))
        await self._act(deque(batch.after))

    async def _act(self, actions: deque[Callable[[], None]]) -> None:
        """Call the actions of a batch that is committed. All are called, also where the waiting is cancelled."""
        many, size = len(actions) > self._slices.size(FEW_ACTIONS), self._slices.size(ACTIONS_AT_ONCE)
        try:
            while actions:
                if many:
                    await self._slices.turn()
                for _ in range(min(len(actions), size)):
                    actions.popleft()()
        except asyncio.CancelledError:
            while actions:
                actions.popleft()()
            raise

    def unsaved(self) -> Batch:
        """Return all changes that are not known to be committed, as one batch."""
        parts = [*([self._committing] if self._committing is not None else []), *self._cut, self._gathering]
        unsaved = Batch(cursor=self._here())
        for part in parts:
            unsaved.changes |= part.changes
            unsaved.events += part.events
        return unsaved

    async def run(self) -> None:
        """Commit batch after batch, until one fails.

        Raises:
            JournalLost: see `commit`.
        """
        self._over = asyncio.get_running_loop().create_future()
        try:
            while not self.stopped:
                await self._dirty.wait()
                with suppress(TimeoutError):
                    async with asyncio.timeout(GATHER.total_seconds()):
                        await self._urgent.wait()
                if not self.stopped:
                    await self.commit()
        finally:
            self._over.set_result(None)

    def stop(self) -> None:
        """Start no further commit: the gathered changes can't be trusted. `run` ends with the commit under way."""
        self.stopped = True
        self.flush_soon()

    async def confirm_ownership(self) -> None:
        """Confirm the ownership: return after a commit that begins from now on has succeeded.

        Raises:
            JournalLost: it doesn't.
        """
        if self._over is None or self.stopped:
            msg = "the partition is closed"
            raise JournalLost(msg)
        stood: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.after_commit(partial(settle, stood, None))
        self.advance_cursor()
        self.flush_soon()
        await asyncio.wait([stood, self._over], return_when=asyncio.FIRST_COMPLETED)
        if not stood.done():
            msg = "the journal was lost before a commit confirmed the ownership"
            raise JournalLost(msg)
