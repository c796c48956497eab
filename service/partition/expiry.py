"""Ends requests whose deadlines have passed: writes their outcomes, in each replication those of older requests first.

A sync that VCDA may still work on lingers: it has its outcome, and holds its replication until VCDA shows that its task
has ended. After `sync.LINGER_LIMIT` it no longer counts at its site, and the log says that its replication is held.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from service import sync
from service.partition.deadlines import Deadlines
from service.partition.dependencies import Dependencies
from service.partition.in_flight import InFlight, TrackedSync
from service.partition.journal_writer import JournalWriter
from service.sync import Ended, Lingering, Running, Step, Submitting

log = logging.getLogger(__name__)

EXPIRED_AT_ONCE = 50
"""Expired requests whose outcomes are written between two turns of the event loop, some 4 ms: 75 us each (measured)."""

EXPIRED_BEHIND = 2
"""The same of those that waited behind a sync that has ended; the rest is next. One poll may end 100 such syncs."""

LINGERING = 10
"""More syncs of one replication than can linger: those before the first request whose outcome is to be written."""

CHECKED_AT_ONCE = 500
"""Syncs that are due and need no outcome, or have ended, between two turns of the event loop."""


class Expiry:
    """Deadlines of a partition's syncs. `become` applies a step; `queue_next` asks for a replication's next slot."""

    def __init__(
        self,
        *,
        in_flight: InFlight,
        journal_writer: JournalWriter,
        dependencies: Dependencies,
        become: Callable[[TrackedSync, Step], None],
        queue_next: Callable[[str], None],
    ) -> None:
        self._in_flight = in_flight
        self._journal_writer = journal_writer
        self._dependencies = dependencies
        self._become = become
        self._queue_next = queue_next
        self._slices = dependencies.slices
        self._expired = 0
        """How many expired requests were given their outcomes so far."""
        self._more_expired = asyncio.Event()
        """Set where a replication has more of them than were written at once."""
        self._deadlines: Deadlines[TrackedSync] = Deadlines(wanted=in_flight.holds)

    def remind(self, tracked: TrackedSync) -> None:
        """Schedule the next check of a sync: at its deadline, or at the end of its lingering."""
        lingers = isinstance(tracked.state, Lingering)
        self._deadlines.add(tracked.request.deadline + (sync.LINGER_LIMIT if lingers else timedelta()), tracked)

    def forget(self, tracked: TrackedSync) -> None:
        """A sync has ended, or its partition is closed: it holds its replication no longer."""
        if tracked.held:
            tracked.held = False
            self._dependencies.metrics.replication_held(tracked.request.site, held=False)

    async def run(self) -> None:
        """Check syncs that are due, in slices: tens of thousands may expire within a second.

        A slice counts the outcomes that it writes, since one check may write those of many requests of a replication.
        """
        while True:
            now = self._dependencies.clock.now()
            checked, enough = 0, 0
            for tracked in self._deadlines.due(now):
                while self._journal_writer.behind:  # noqa: ASYNC110 - Kafka is slow, and takes these outcomes later
                    await asyncio.sleep(self._dependencies.tick.total_seconds())
                if checked == 0 or checked == self._slices.size(CHECKED_AT_ONCE) or self._expired >= enough:
                    await self._slices.turn()
                    checked, enough = 0, self._expired + self._slices.size(EXPIRED_AT_ONCE)
                checked += 1
                if tracked is not None and self._in_flight.holds(tracked) and not self._journal_writer.stopped:
                    self._check(tracked, now)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._dependencies.tick.total_seconds()):
                    await self._more_expired.wait()
            self._more_expired.clear()

    def _check(self, tracked: TrackedSync, now: datetime) -> None:
        lingers = isinstance(tracked.state, Lingering)
        replication_id = tracked.request.replication_id
        if self.write_outcomes(replication_id, most=self._slices.size(EXPIRED_AT_ONCE)):
            self._queue_next(replication_id)
        if lingers and isinstance(tracked.state, Lingering):
            self._release_lingering(tracked, tracked.state, now)

    def _release_lingering(self, tracked: TrackedSync, state: Lingering, now: datetime) -> None:
        """Release the slot of a sync that lingers past the limit; its task may continue at VCDA."""
        if sync.occupies(state, now=now):
            return
        tracked.vacate(self._dependencies.lanes.lane(tracked.request.site))
        self._deadlines.add(max(sync.let_go_at(state), now + self._dependencies.tick), tracked)
        if not tracked.held:
            tracked.held = True
            self._dependencies.metrics.replication_held(tracked.request.site, held=True)
            log.warning(
                "Replication %s is still held: a day after the deadline of request %s VCDA still shows task %s as "
                "unfinished",
                tracked.request.replication_id,
                tracked.request.identity,
                state.of.task_id if isinstance(state.of, Running) else None,
                extra=tracked.ids,
            )

    def write_outcomes(self, replication_id: str, *, most: int = EXPIRED_BEHIND) -> bool:
        """Write the outcomes of expired requests, the oldest first, and none before those of earlier requests.

        At most so many at a time, so that the event loop can run other tasks. Returns False if there may be more: then
        `run` goes on with them, and then asks for the replication's next slot.
        """
        now = self._dependencies.clock.now()
        policy = self._dependencies.policy
        eldest = self._in_flight.eldest(replication_id)
        if eldest is None or (eldest.request.deadline > now and not isinstance(eldest.state, Lingering)):
            return True  # the usual case, whatever waits behind it
        elder: str | None = None
        written = 0
        for tracked in self._in_flight.of(replication_id, most=most + LINGERING):
            if written == most:
                self._deadlines.add(eldest.request.deadline, tracked)
                self._more_expired.set()
                return False
            if isinstance(tracked.state, Ended):
                continue
            if isinstance(tracked.state, Submitting) and not tracked.state.in_doubt and not tracked.left:
                break  # its POST has not begun and now won't: the answer will say so, and it comes back here
            elder = elder or tracked.behind
            behind = None if elder is None else f"The request waited behind {elder} of the same replication."
            lane = self._dependencies.lanes.lane(tracked.request.site)
            if behind is None and (pause := lane.operator_pause()) is not None:
                behind = f"The deadline passed while {pause}."
            step = sync.expired(tracked.state, now=now, policy=policy, behind=behind)
            if step.state is not tracked.state:
                written += 1
                self._expired += 1
                self._become(tracked, step)
            if not isinstance(step.state, Lingering | Ended):
                break
            elder = tracked.request.operation_id
        return True
