"""Sums up many outcomes in bounded memory: counts and durations by outcome, reason and site, and the latest ones. Pure.

A million outcomes need no more of it than a thousand: durations are counted in buckets whose bounds grow by 2 %, so a
percentile is within 1 % of the true one; sites are named by who sends requests, so their number has a limit, too.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from service.cli.outcome_events import OutcomeEvent

GROWTH: Final = 1.02

SHORTEST: Final = 0.001
"""Seconds; what is shorter, or negative since clocks differ, counts as this."""

LONGEST: Final = 100 * 86_400.0
"""Seconds; deadlines are a week at most."""

MOST_GROUPS: Final = 500
"""Combinations of outcome, reason and site that are counted by themselves."""

OTHER_SITES: Final = "other sites"

_LOG: Final = math.log(GROWTH)


@dataclass(slots=True)
class Durations:
    """How many durations there are in each bucket; 1,200 buckets at most."""

    count: int = 0
    _buckets: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.count += 1
        seconds = min(max(seconds, SHORTEST), LONGEST)
        self._buckets[math.ceil(math.log(seconds / SHORTEST) / _LOG)] += 1

    def percentile(self, percent: float) -> float | None:
        """Return the duration, in seconds, that so many percent are not longer than; None: there are no durations."""
        if not self.count:
            return None
        left = max(1, math.ceil(self.count * percent / 100))
        bucket = 0
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                break
        return SHORTEST * GROWTH ** (bucket - 0.5) if bucket else SHORTEST


class Group(NamedTuple):
    """What outcomes have in common. `reason` is empty for completed, `site` for the local site."""

    outcome: str
    reason: str
    site: str


@dataclass(slots=True)
class Sum:
    """The outcomes of a group: from the request to the end, and from VCDA's acceptance to the end."""

    total: Durations = field(default_factory=Durations)
    at_vcda: Durations = field(default_factory=Durations)

    def add(self, event: OutcomeEvent) -> None:
        """Count an outcome."""
        self.total.add((event.ended_at - event.requested_at).total_seconds())
        if event.submitted_at is not None:
            self.at_vcda.add((event.ended_at - event.submitted_at).total_seconds())


@dataclass(frozen=True, slots=True, order=True)
class Published:
    """An outcome, and when it was published: epoch milliseconds, and its place for those of the same moment."""

    at_ms: int
    partition: int
    offset: int
    event: OutcomeEvent = field(compare=False)
    """Two topics may have outcomes of the same moment in the same place."""


class Summary:
    """All outcomes that were added, and the `latest` so many of them."""

    def __init__(self, *, latest: int) -> None:
        self._most = latest
        self._latest: list[Published] = []
        self._groups: dict[Group, Sum] = {}
        self.count = 0

    def add(self, found: Published) -> None:
        """Count an outcome."""
        self.count += 1
        event = found.event
        group = Group(event.outcome, event.reason or "", event.site or "")
        if group not in self._groups and len(self._groups) >= MOST_GROUPS:
            group = group._replace(site=OTHER_SITES)
        self._groups.setdefault(group, Sum()).add(event)
        if len(self._latest) < self._most:
            heapq.heappush(self._latest, found)
        elif self._most:
            heapq.heappushpop(self._latest, found)

    def latest(self) -> list[OutcomeEvent]:
        """Return the latest ones, in the order of time."""
        return [found.event for found in sorted(self._latest)]

    def groups(self) -> Iterator[tuple[Group, Sum]]:
        """Yield the groups: completed before failed, then the largest first."""
        order = sorted(self._groups.items(), key=lambda one: (one[0].outcome, -one[1].total.count, one[0]))
        yield from order

    def json(self) -> list[dict[str, Any]]:
        """Return the groups as JSON; durations are in seconds."""
        return [
            {
                "outcome": group.outcome,
                "reason": group.reason or None,
                "site": group.site or None,
                "count": found.total.count,
                "seconds": _percentiles(found.total),
                "secondsAtVcda": _percentiles(found.at_vcda),
            }
            for group, found in self.groups()
        ]


PERCENTILES: Final = (50, 90, 99)


def _percentiles(durations: Durations) -> dict[str, float | None]:
    return {f"p{percent}": _rounded(durations.percentile(percent)) for percent in PERCENTILES}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.3g}")
