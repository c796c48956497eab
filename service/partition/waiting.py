"""The causes for which requests wait: of one request as a sentence, of all as numbers.

The numbers come from counters of partitions and lanes, never from a look at each request: there may be 50,000.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from service.messages.wait_cause import WaitCause
from service.vcda.lanes import Lane


@dataclass(frozen=True, slots=True)
class WaitsFor:
    """The cause for which one request waits, or for which VCDA is not asked for its task."""

    cause: WaitCause
    detail: str
    """A clause for people."""
    until: datetime | None = None
    """When it is tried again at the earliest, where that is known."""
    behind: str | None = None
    """The operationID of the older request of its replication."""


class WaitingPartition(Protocol):
    """A partition's interface for these numbers."""

    def waiting(self) -> Iterator[tuple[str | None, WaitCause, int]]:
        """Yield how many requests wait for something else than their site: by the request's site and cause."""


def waiting_by_cause(
    partitions: Iterable[WaitingPartition], lanes: Iterable[Lane]
) -> Mapping[tuple[str | None, WaitCause], int]:
    """Return how many requests wait, by site and cause, as far as it is known which."""
    counts: Counter[tuple[str | None, WaitCause]] = Counter()
    for partition in partitions:
        for site, cause, count in partition.waiting():
            counts[site, cause] += count
    for lane in lanes:
        if lane.without_credentials and lane.occupied:
            counts[lane.site, WaitCause.NO_CREDENTIALS] += lane.occupied
        if lane.queued:
            obstacle = lane.obstacle()
            counts[lane.site, WaitCause.OTHER if obstacle is None else obstacle.cause] += lane.queued
    return counts
