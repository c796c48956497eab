"""Requests whose next POST is postponed for a reason of their own: the other requests of their site don't wait.

Either their replication is busy (409), or their earlier POSTs led to no visible task. The pauses of a request grow.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import timedelta
from random import Random

from service.backoff import Backoff
from service.clock import Clock
from service.messages.wait_cause import WaitCause
from service.partition.in_flight import Postponement, TrackedSync
from service.sync import Waiting

BUSY_BACKOFF = Backoff(first=timedelta(seconds=15), longest=timedelta(minutes=7), jitter=0.5)
"""Pauses before the POST to a busy replication (409) is repeated. A sync that another user started takes minutes at
least."""

REPEAT_BACKOFF = Backoff(first=timedelta(seconds=45), longest=timedelta(minutes=15), jitter=0.5)
"""How long a request waits before its second POST after a doubt, and at most before the later ones: its first such POST
goes at once. If the POSTs of a request repeatedly lead to no visible task, VCDA may create tasks later than look-ups
expect: each further POST may start another sync."""


class Postponements:
    """The postponed requests of a partition. `spawn` runs a pause as a task; `over` takes a request after its pause."""

    def __init__(
        self,
        *,
        clock: Clock,
        random: Random,
        spawn: Callable[[Coroutine[None, None, None]], object],
        over: Callable[[TrackedSync], None],
    ) -> None:
        self.counts: Counter[tuple[str | None, WaitCause]] = Counter()
        """How many requests of a site are postponed, by cause. Only what is above 0."""
        self._clock = clock
        self._random = random
        self._spawn = spawn
        self._over = over

    def busy(self, tracked: TrackedSync) -> None:
        """Postpone the next POST to a busy replication, longer each time."""
        self._postpone(tracked, BUSY_BACKOFF, tracked.busy, cause=WaitCause.BUSY)
        tracked.busy += 1

    def repeat(self, tracked: TrackedSync, waiting: Waiting) -> None:
        """Postpone the next POST of a request whose POSTs lead to no visible task, longer each time."""
        self._postpone(tracked, REPEAT_BACKOFF, waiting.repeats - 2, cause=WaitCause.OTHER)

    def end(self, tracked: TrackedSync) -> None:
        """Forget the postponement of a request, if it has one: it is over, or the request has ended."""
        if tracked.postponed is None:
            return
        counted = tracked.request.site, tracked.postponed.cause
        tracked.postponed = None
        self.counts[counted] -= 1
        if not self.counts[counted]:
            del self.counts[counted]

    def _postpone(self, tracked: TrackedSync, backoff: Backoff, repeats: int, *, cause: WaitCause) -> None:
        pause = backoff.pause(repeats, chance=self._random.random())
        tracked.postponed = Postponement(cause, self._clock.monotonic() + pause)
        self.counts[tracked.request.site, cause] += 1
        self._spawn(self._wait(tracked, pause))

    async def _wait(self, tracked: TrackedSync, pause: float) -> None:
        await asyncio.sleep(pause)
        self.end(tracked)
        self._over(tracked)
