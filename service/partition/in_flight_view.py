"""A view of the requests in flight in all partitions of a process, for the operations server and the metrics.

While a caller iterates, the event loop may run other tasks, so partitions and syncs may end before they are yielded.
"""

import asyncio
import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from service.partition.in_flight import TrackedSync, public_state
from service.partition.partition import Partition
from service.partition.waiting import WaitsFor
from service.sync import ApiError, Ended, Lingering, Running, Submitting, Waiting

LOOKED_AT_ONCE: Final = 1_000
"""Syncs looked at between two turns of the event loop, less than a millisecond."""


@dataclass(frozen=True, slots=True)
class InFlightView:
    """A sync in flight, as `/syncs` shows it: the view reads the sync when it is asked."""

    tracked: TrackedSync
    owner: Partition

    @property
    def partition(self) -> int:
        """See `ops.syncs_page.InFlight`, here and below."""
        return self.owner.number

    @property
    def identity(self) -> str:  # noqa: D102
        return self.tracked.request.identity

    @property
    def replication_id(self) -> str:  # noqa: D102
        return self.tracked.request.replication_id

    @property
    def operation_id(self) -> str:  # noqa: D102
        return self.tracked.request.operation_id

    @property
    def site(self) -> str | None:  # noqa: D102
        return self.tracked.request.site

    @property
    def state(self) -> str:  # noqa: D102
        return public_state(self.tracked.state) or "ended"

    @property
    def attempts(self) -> int:  # noqa: D102
        return self._at.attempts

    @property
    def _at(self) -> Waiting | Submitting | Running | Ended:
        """The state of the sync; of a lingering sync, the state behind its outcome."""
        state = self.tracked.state
        return state.of if isinstance(state, Lingering) else state

    @property
    def _running(self) -> Running | None:
        return at if isinstance(at := self._at, Running) else None

    @property
    def task_id(self) -> str | None:  # noqa: D102
        return self._running.task_id if self._running else None

    @property
    def progress(self) -> int | None:  # noqa: D102
        return self.tracked.progress

    @property
    def accepted_at(self) -> datetime:  # noqa: D102
        return self.tracked.request.accepted_at

    @property
    def submitted_at(self) -> datetime | None:  # noqa: D102
        return self._running.submitted_at if self._running else None

    @property
    def deadline(self) -> datetime:  # noqa: D102
        return self.tracked.request.deadline

    @property
    def error(self) -> ApiError | None:  # noqa: D102
        return at.trouble if isinstance(at := self._at, Waiting | Submitting) else None

    @property
    def http_status(self) -> int | None:  # noqa: D102
        return at.http_status if isinstance(at := self._at, Waiting | Submitting) else None

    @property
    def waits_for(self) -> WaitsFor | None:  # noqa: D102
        return self.owner.waits_for(self.tracked)

    @property
    def held(self) -> bool:  # noqa: D102
        return self.tracked.held


def in_flight_views(partitions: Iterable[Partition]) -> Iterator[InFlightView]:
    """Yield a view of each sync in flight."""
    for partition in partitions:
        for tracked in partition.tracked_syncs():
            yield InFlightView(tracked, partition)


async def oldest_syncs(partitions: Iterable[Partition], *, most: int) -> list[InFlightView]:
    """Return the oldest requests without an outcome, in the order of acceptance. The event loop turns meanwhile."""
    found: list[InFlightView] = []
    looked_at = 0
    for partition in tuple(partitions):
        of_partition = 0
        for tracked in partition.tracked_syncs():
            looked_at += 1
            if looked_at % LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if isinstance(tracked.state, Lingering | Ended):
                continue
            found.append(InFlightView(tracked, partition))
            of_partition += 1
            if of_partition == most:
                break  # they come in the order of acceptance
    found = [view for view in found if not isinstance(view.tracked.state, Lingering | Ended)]
    return heapq.nsmallest(most, found, key=lambda view: view.accepted_at)


def oldest_accepted(partitions: Iterable[Partition]) -> Mapping[str | None, datetime]:
    """Return by site when the oldest request without an outcome was accepted."""
    oldest: dict[str | None, datetime] = {}
    for partition in partitions:
        left = set(partition.sites)
        for tracked in partition.tracked_syncs():
            if not left:
                break  # they come in the order of acceptance, and there may be 50,000
            request = tracked.request
            if request.site not in left or isinstance(tracked.state, Lingering):
                continue  # the request has its outcome
            left.discard(request.site)
            if request.site not in oldest or request.accepted_at < oldest[request.site]:
                oldest[request.site] = request.accepted_at
    return oldest
