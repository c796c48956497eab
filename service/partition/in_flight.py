"""What is in flight in a partition: by identity, and for each replication in the order of acceptance.

The eldest of a replication is the one that may run; nobody overtakes. Pure: what runs when is decided elsewhere.
"""

from collections import deque
from collections.abc import Iterator
from datetime import datetime
from itertools import islice

from service.partition.tracked_sync import TrackedSync

LONG = 16
"""From so many requests of one replication on their queue is a deque."""


class InFlight:
    """See the module. Iterating yields everything, in the order of acceptance."""

    def __init__(self) -> None:
        self._tracked_syncs: dict[str, TrackedSync] = {}
        self._queues: dict[str, list[TrackedSync] | deque[TrackedSync]] = {}
        """By replication, whatever its letter case: VCDA may show tasks in another one.

        Nearly all are of one: a list of one takes 88 bytes, a deque 760 (measured). A long one is a deque, since a list
        moves all of its entries when the first goes: seconds for tens of thousands."""

    def __len__(self) -> int:
        return len(self._tracked_syncs)

    def __iter__(self) -> Iterator[TrackedSync]:
        return iter(tuple(self._tracked_syncs.values()))

    def __contains__(self, identity: object) -> bool:
        return identity in self._tracked_syncs

    def holds(self, tracked: TrackedSync) -> bool:
        """Whether this very work is still in flight; its identity may have come again."""
        return self._tracked_syncs.get(tracked.request.identity) is tracked

    def replications(self) -> tuple[str, ...]:
        """Return the replications that have something in flight."""
        return tuple(self._queues)

    def of(self, replication_id: str, *, most: int) -> tuple[TrackedSync, ...]:
        """Return a replication's first works, the eldest first."""
        return tuple(islice(self._queues.get(replication_id.casefold(), ()), most))

    def eldest(self, replication_id: str) -> TrackedSync | None:
        """Return the replication's first, the only one that may run."""
        queue = self._queues.get(replication_id.casefold())
        return queue[0] if queue else None

    def add(self, tracked: TrackedSync) -> None:
        """Put it behind its elders."""
        self._tracked_syncs[tracked.request.identity] = tracked
        key = tracked.request.replication_id.casefold()
        queue = self._queues.setdefault(key, [])
        if len(queue) == LONG:
            queue = self._queues[key] = deque(queue)
        queue.append(tracked)

    def remove(self, tracked: TrackedSync, *, now: datetime) -> None:
        """Let go of what has ended. Whoever it was in the way of until after their deadline remembers it."""
        request = tracked.request
        del self._tracked_syncs[request.identity]
        key = request.replication_id.casefold()
        queue = self._queues[key]
        queue.remove(tracked)
        if not queue:
            del self._queues[key]
        elif queue[0].request.deadline <= now:
            queue[0].behind = request.operation_id
