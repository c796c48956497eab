"""A queue of moments (wall time) at which syncs have to be checked, the earliest first. Pure.

Most syncs end hours before their deadlines. Entries of ended syncs are removed from time to time, so that memory holds
little more than the syncs in flight.
"""

import heapq
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Generic, TypeVar

T = TypeVar("T")

FEW = 1_000
"""Fewer entries that are no longer needed are not worth removing."""


class Deadlines(Generic[T]):
    """Syncs to be checked later; `wanted` decides whether an entry is still needed."""

    def __init__(self, *, wanted: Callable[[T], bool]) -> None:
        self._wanted = wanted
        self._heap: list[tuple[datetime, int, T]] = []
        self._serial = 0
        self._clear_at = FEW

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, moment: datetime, thing: T) -> None:
        """Add a sync, to be checked at a moment."""
        self._serial += 1
        heapq.heappush(self._heap, (moment, self._serial, thing))
        if len(self._heap) > self._clear_at:
            self._heap = [entry for entry in self._heap if self._wanted(entry[2])]
            heapq.heapify(self._heap)
            self._clear_at = 2 * len(self._heap) + FEW

    def due(self, now: datetime) -> Iterator[T | None]:
        """Take out what is due; None in place of what is no longer wanted, so that the caller can count its work."""
        while self._heap and self._heap[0][0] <= now:
            _, _, thing = heapq.heappop(self._heap)
            yield thing if self._wanted(thing) else None
