"""Python's garbage collector, run by the service at moments and in sizes that don't hold the event loop.

Nearly all objects are freed without it, by their reference counts: a request leaves no cycle behind. Cycles are left
by Kafka's clients, of which opening a partition needs two, and by partitions that are lost. So little is to be found,
and the service looks for it in its own way:

    young   what was made since the last look, ten times a second. Python itself looks when 10,000 more objects were
            made than freed. That says nothing of how many are young: a sync's next state replaces the one before, and
            where 50,000 syncs each take a step, 180,000 young objects were looked through at once, in 100 ms.
    full    everything. It takes 0.2 s with 50,000 syncs in flight, so Python never does it by itself, and the service
            does when few are in flight. Only where much may be kept by partitions that are gone, or after two hours,
            it doesn't wait for that: memory is bounded in any case.
"""

import asyncio
import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sized
from datetime import timedelta
from typing import Final, TypeAlias
from weakref import ref

from service.clock import Clock

log = logging.getLogger(__name__)

THRESHOLDS: Final = 10_000, 0, 1_000_000_000
"""Thresholds of Python's own collections. With its 700, 10, 10 a fifth of the CPU time went into them (0.90 ms a
request instead of 0.73). 0: every second one also looks through what is left of the one before, and of no older ones.
The last is never reached."""

YOUNG_EVERY: Final = timedelta(milliseconds=100)
"""Between two looks at the young objects. A loop that is busy makes some 10,000 that stay, in this time."""

FEW: Final = 1_000
"""Syncs in flight with which a full collection takes some 10 ms."""

SETTLED: Final = timedelta(seconds=10)
"""How long no partition may have come or gone before a full collection: a rebalance has other work to do."""

HOURLY: Final = timedelta(hours=1)
"""A full collection is wanted after so long, though nothing is known to have left a cycle; after twice as long, it is
made however many syncs are in flight."""

MANY_KEPT: Final = 5_000
"""So many syncs of closed partitions may stay in memory, and a quarter of those in flight, until a full collection is
made however many are in flight: 10 MB. A partition that was handed over in an orderly way leaves none."""

LONG: Final = 0.02
"""Seconds of a full collection from which it is logged for operators."""


_Seen: TypeAlias = "tuple[ref[Sized], int]"
"""A partition, and how many syncs it had in flight."""


def configure() -> None:
    """Leave to the service what Python's collector does too seldom or too long; call once, when all is imported."""
    gc.freeze()  # what was imported stays, and need not be looked through again
    gc.set_threshold(*THRESHOLDS)


class GarbageCollector:
    """Looks for garbage. `partitions` are those of now, each with its syncs in flight."""

    def __init__(self, clock: Clock, *, partitions: Callable[[], Iterable[Sized]]) -> None:
        self._clock = clock
        self._partitions = partitions
        self._known: dict[int, _Seen] = {}
        """The partitions at the last look, by `id`."""
        self._closed: deque[tuple[float, _Seen]] = deque()
        """Partitions that were closed, until the moment when they have to be gone from memory."""
        self._kept = 0
        """Syncs of closed partitions that were not gone then, since the last full collection."""
        self._wanted_at = self._overdue_at = 0.0
        self._put_off()

    async def run(self) -> None:
        """Look for garbage, periodically. Never returns."""
        while True:
            await asyncio.sleep(YOUNG_EVERY.total_seconds())
            self.look()

    def look(self) -> None:
        """Collect the young objects; or all of them, if that is due."""
        if self._full_is_due():
            self._full()
        else:
            gc.collect(1)

    def _full_is_due(self) -> bool:
        now, known = self._clock.monotonic(), self._known
        self._known = {id(partition): (ref(partition), len(partition)) for partition in self._partitions()}
        if self._known.keys() != known.keys():
            self._wanted_at = now + SETTLED.total_seconds()
            self._closed += [(self._wanted_at, seen) for key, seen in known.items() if key not in self._known]
        while self._closed and self._closed[0][0] <= now:
            _, (partition, count) = self._closed.popleft()
            self._kept += count if partition() is not None else 0
        in_flight = sum(count for _, count in self._known.values())
        if self._kept > MANY_KEPT + in_flight // 4 or now >= self._overdue_at:
            return True
        return now >= self._wanted_at and in_flight <= FEW

    def _full(self) -> None:
        began = self._clock.monotonic()
        found = gc.collect()
        took = self._clock.monotonic() - began
        log.log(
            logging.INFO if took > LONG else logging.DEBUG,
            "Full garbage collection: %d objects freed in %.0f ms",
            found,
            took * 1000,
        )
        self._kept = 0
        self._put_off()

    def _put_off(self) -> None:
        now = self._clock.monotonic()
        self._wanted_at = now + HOURLY.total_seconds()
        self._overdue_at = now + 2 * HOURLY.total_seconds()
