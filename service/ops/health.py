"""Decides whether the process is alive and ready, and the reasons if not; measures how late the event loop is."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Final

from service.clock import Clock

log = logging.getLogger(__name__)

CLOCK_STEP: Final = timedelta(seconds=30)
"""A step of the wall clock that is logged: no deadline or pause is meant to the second, and NTP sets a second often."""

LAG_INTERVAL: Final = timedelta(milliseconds=500)
"""Between two looks at the event loop: often enough to see a hiccup of a second, too seldom to cost anything."""


LATE: Final = 1.0
"""Seconds by which the event loop is late that explain why POSTs are held back: half of their submit window."""


# ---------------------------------------------------------------- alive, and ready


class Health:
    """The state of the process for the probes. Pure: moments are passed in, from the monotonic clock.

    Alive: each watched loop has made progress within its limit, no essential task has failed, and unread records are
    being read. An unreachable Kafka or VCDA, or a right that Kafka refuses, is no reason to restart.

    Ready: the consumer group has been joined and the first assigned partitions are restored; a rebalance does not
    change that. Not ready while Kafka has been unreachable for long or refuses a right, the requests topic is missing,
    a partition is stopped, or has not been open or readable for long, POSTs have been held back for long, or the
    service drains.

    Degraded: VCDA or one of its sites can't be used; other work goes on, and a restart or another pod would not help.

    Reasons are sentences for operators, without secrets.
    """

    def __init__(self, *, away_for_long: timedelta) -> None:
        self._away_for_long = away_for_long.total_seconds()
        self._limits: dict[str, float] = {}
        self._turned: dict[str, float] = {}
        self._dead: dict[str, str] = {}
        self._stopped: dict[int, str] = {}
        self._missing: str | None = None
        self._stalled: tuple[str, ...] = ()
        self._refused: tuple[str, ...] = ()
        self._unopened: tuple[str, ...] = ()
        self._unreadable: tuple[str, ...] = ()
        self._degraded: dict[str, tuple[str, ...]] = {}
        self._away_since: float | None = None
        self._held_since: float | None = None
        self._late = 0.0
        self._joined = self._restored = self._draining = False

    def watch(self, loop: str, *, limit: timedelta, now: float) -> None:
        """Expect progress of a loop at least every `limit` from now on."""
        self._limits[loop] = limit.total_seconds()
        self._turned[loop] = now

    def beat(self, loop: str, now: float) -> None:
        """A watched loop has made progress."""
        self._turned[loop] = now

    def degraded(self, look: str, reasons: Iterable[str]) -> None:
        """Something doesn't work that is no reason to be unready, or nothing. Replaces what that look said before."""
        self._degraded[look] = tuple(reasons)

    def what_is_degraded(self) -> list[str]:
        """Return what doesn't work, although the service may be ready."""
        return [reason for reasons in self._degraded.values() for reason in reasons]

    def died(self, task: str, reason: str) -> None:
        """An essential task has failed, and is not restarted."""
        self._dead[task] = reason

    def joined(self) -> None:
        """The consumer group has been joined."""
        self._joined = True

    def restored(self) -> None:
        """All partitions that are owned have been restored."""
        self._restored = True

    def away(self, now: float) -> None:
        """Kafka doesn't answer; of repeated calls the first one counts."""
        if self._away_since is None:
            self._away_since = now

    def back(self) -> None:
        """Kafka answers."""
        self._away_since = None

    def posts_held(self, since: float | None) -> None:
        """POSTs are held back as Kafka's commits take too long, since that moment; None: none is."""
        self._held_since = since
        if since is None:
            self._late = 0.0

    def late(self, seconds: float) -> None:
        """The event loop was late by so much: while POSTs are held back, commits seem to take that much longer."""
        if self._held_since is not None:
            self._late = max(self._late, seconds)

    def stopped(self, partition: int, reason: str) -> None:
        """A partition is stopped until an operator acts."""
        self._stopped[partition] = reason

    def working(self, partition: int) -> None:
        """A partition is no longer stopped, or no longer assigned."""
        self._stopped.pop(partition, None)

    def missing(self, topic: str | None) -> None:
        """The topic without which nothing is read does not exist; None: it does."""
        self._missing = topic

    def stalled(self, reasons: Iterable[str]) -> None:
        """Records are not read, for these reasons; none: reading continues. Replaces the previous reasons."""
        self._stalled = tuple(reasons)

    def refused(self, reasons: Iterable[str]) -> None:
        """The rights that Kafka refuses, as sentences. Replaces the previous ones."""
        self._refused = tuple(reasons)

    def unopened(self, reasons: Iterable[str]) -> None:
        """Partitions have been unopened for long, for these reasons. Replaces the previous reasons."""
        self._unopened = tuple(reasons)

    def unreadable(self, reasons: Iterable[str]) -> None:
        """Partitions can't be read for long, for these reasons at Kafka. Replaces the previous reasons."""
        self._unreadable = tuple(reasons)

    def draining(self) -> None:
        """The process drains."""
        self._draining = True

    def not_alive(self, now: float) -> list[str]:
        """Return the reasons for a restart; empty when alive."""
        stalled = [
            f"{loop} has made no progress for {now - self._turned[loop]:.0f} s; its limit is {limit:.0f} s"
            for loop, limit in self._limits.items()
            if now - self._turned[loop] > limit
        ]
        return [*stalled, *self._stalled] + [f"{task} has failed: {reason}" for task, reason in self._dead.items()]

    def not_ready(self, now: float) -> list[str]:
        """Return why the service isn't ready; empty when it is."""
        reasons = []
        if self._draining:
            reasons.append("the service is draining")
        if not self._joined:
            reasons.append("the consumer group has not been joined yet")
        elif not self._restored:
            reasons.append("the partitions are being restored")
        if self._away_since is not None and now - self._away_since > self._away_for_long:
            reasons.append(f"Kafka has been unreachable for {now - self._away_since:.0f} s")
        if self._missing is not None:
            reasons.append(f"the topic {self._missing} does not exist")
        reasons += self._refused
        reasons += self._unopened
        reasons += self._unreadable
        if self._held_since is not None and now - self._held_since > self._away_for_long:
            held = f"that a POST has been held back for {now - self._held_since:.0f} s"
            reasons.append(
                f"this process gets too little CPU time: its event loop is up to {self._late:.1f} s late, so {held}"
                if self._late >= LATE
                else f"Kafka is too slow: its commits take so long {held}"
            )
        reasons += [f"partition {partition} is stopped: {why}" for partition, why in sorted(self._stopped.items())]
        return reasons


async def probe_loop(clock: Clock, *, lag: Callable[[float], None], interval: timedelta = LAG_INTERVAL) -> None:
    """Report periodically how late the event loop wakes a sleeping task, in seconds. Never returns.

    A wall clock that was set meanwhile is logged: deadlines and site pauses then seem to end early, or late.
    """
    seconds = interval.total_seconds()
    wall, asleep = clock.now(), clock.monotonic()
    while True:
        await asyncio.sleep(seconds)
        wall_before, asleep_before, wall, asleep = wall, asleep, clock.now(), clock.monotonic()
        lag(max(asleep - asleep_before - seconds, 0.0))
        step = (wall - wall_before).total_seconds() - (asleep - asleep_before)
        if abs(step) >= CLOCK_STEP.total_seconds():
            log.warning(
                "The clock of this machine was set %s by %.0f s%s; deadlines, site pauses and the time for which "
                "ended requests are remembered follow it: check NTP",
                "forward" if step > 0 else "back",
                abs(step),
                ", or the machine was suspended for as long" if step > 0 else "",
            )
