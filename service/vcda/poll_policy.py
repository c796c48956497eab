"""Decides when a task is polled next. Pure: no clock, no loop, no I/O; all times are seconds.

VCDA does not notify clients of a task's end, so the polling interval decides the lag and the load on VCDA.
`next_interval` computes it from the expected end of the task, which is estimated from the reported progress (`Pace`),
or, without progress, from the durations of earlier syncs of this replication and this site (`History`).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

DOUBT = 0.3
"""How far off the time left may be, as a part of it, when it is told from progress: rates vary along the way."""

LOOKS = 10
"""How often to ask while the end may come at any moment, per uncertainty: the lag is a twentieth of it on average."""

SURE = 0.5
"""An end known this well, in shortest intervals, is awaited instead of approached: one answer just after it."""

CREDULITY = 8
"""However far the end seems, ask again after this many shortest intervals, or such a part of the time elapsed. So a
task that ends out of the blue is noticed when an eighth of its duration has passed again, or a few seconds."""

MEMORY = 0.7
"""What an older reading weighs when a newer one comes: the pace is that of the last few."""

STANDSTILL = 2
"""A percent that takes this many times as long as those before it was a standstill, not the pace."""


class Estimate(NamedTuple):  # like `Pace` made with each answer; a frozen dataclass takes twice as long to make
    """The expected time left of a task, in seconds, with its error; `left` is None if unknown."""

    elapsed: float
    left: float | None
    error: float


def next_interval(outlook: Estimate, *, shortest: float, longest: float) -> float:
    """Decide in how many seconds to ask again.

    Far from the end: when it may come at the earliest. Where it may come at any moment: LOOKS times per uncertainty.
    Where it is known almost to the moment: just after it. Where nothing is known: after an eighth of the time elapsed.
    """
    credible = max(CREDULITY * shortest, outlook.elapsed / CREDULITY)
    if outlook.left is None:
        wish = outlook.elapsed / CREDULITY
    elif outlook.error <= SURE * shortest:
        wish = outlook.left + outlook.error
    else:
        wish = max(outlook.left - outlook.error, outlook.error / LOOKS)
    return max(shortest, min(wish, credible, longest))


class Pace(NamedTuple):
    """The pace of a task's progress. Moments are seconds since its start; in the sums, older readings weigh less."""

    progress: int = 0
    reached: float = 0.0
    """When it is thought to have reached this percent."""
    seen: float = 0.0
    gained: float = 0.0
    over: float = 0.0

    def read(self, progress: int | None, *, queued: bool, elapsed: float) -> "Pace":
        """Learn from an answer. While it is queued, or if its progress falls back, it starts from there."""
        now = min(max(progress or 0, 0), 100)
        if queued or now < self.progress:
            return Pace(progress=now, reached=elapsed, seen=elapsed)
        gained = now - self.progress
        if gained == 0:
            return Pace(now, self.reached, elapsed, self.gained, self.over)
        # It passed `gained` marks since the last answer, the last of them half a mark's time ago on average.
        reached = elapsed - (elapsed - self.seen) / (2 * gained)
        took = reached - self.reached
        if self.gained:
            took = min(took, STANDSTILL * gained * self.over / self.gained)
        return Pace(now, reached, elapsed, MEMORY * self.gained + gained, MEMORY * self.over + took)

    def outlook(self, elapsed: float, *, usual: "TypicalDuration | None") -> Estimate:
        """Estimate the end from the pace, or from typical durations. A standstill makes it less certain."""
        if self.gained == 0.0:
            return self._unknown(elapsed, usual)
        percent = self.over / self.gained
        still = elapsed - self.reached
        left = (100 - self.progress) * percent
        error = left * (DOUBT + 0.5 / self.gained) + percent / 2 + max(0.0, still - STANDSTILL * percent)
        return Estimate(elapsed=elapsed, left=left - min(still, percent), error=error)

    def _unknown(self, elapsed: float, usual: "TypicalDuration | None") -> Estimate:
        """Estimate the end without progress: a typical duration after its start, or after its last QUEUED."""
        if usual is None or elapsed > self.reached + usual.longest:
            return Estimate(elapsed=elapsed, left=None, error=0.0)
        middle = self.reached + (usual.shortest + usual.longest) / 2
        return Estimate(elapsed=elapsed, left=middle - elapsed, error=(usual.longest - usual.shortest) / 2)


# ---------------------------------------------------------------- what is usual

REMEMBERED = 10_000
"""Replications whose durations are remembered, the latest ones: a few megabytes."""

ENOUGH = {"replication": 3, "site": 20}
"""How many durations make something usual. A site's differ more than one replication's."""

LEARNING = {"replication": 0.3, "site": 0.05}
"""What the newest duration weighs, once there are enough of them to be told apart from chance."""


@dataclass(frozen=True, slots=True)
class TypicalDuration:
    """The typical duration of syncs: mean and mean deviation of the durations' logarithms."""

    known: int = 0
    mean: float = 0.0
    spread: float = 0.5
    """Starts wide, so that three durations that happen to be alike don't pass for certainty."""

    def learn(self, duration: float, *, weight: float) -> "TypicalDuration":
        """Take in one more duration, in seconds."""
        new = math.log(max(duration, 0.1))
        if not self.known:
            return TypicalDuration(1, new)
        weight = max(weight, 1 / (self.known + 1))
        off = new - self.mean
        return TypicalDuration(
            self.known + 1, self.mean + weight * off, self.spread + weight * (abs(off) - self.spread)
        )

    @property
    def shortest(self) -> float:
        """Hardly any takes less: one in a thousand lies four times the average distance below the mean."""
        return math.exp(self.mean - 4 * self.spread)

    @property
    def longest(self) -> float:
        """Few take more: one in twenty lies twice the average distance above the mean."""
        return math.exp(self.mean + 2 * self.spread)


class History:
    """The typical durations of each site and of each recent replication."""

    def __init__(self) -> None:
        self._replications: dict[str, TypicalDuration] = {}
        self._sites: dict[str | None, TypicalDuration] = {}

    def learn(self, duration: float, *, site: str | None, replication_id: str) -> None:
        """Remember how long a sync took."""
        self._sites[site] = self._sites.get(site, TypicalDuration()).learn(duration, weight=LEARNING["site"])
        own = self._replications.pop(replication_id, TypicalDuration())  # put in again, so that the first is the oldest
        self._replications[replication_id] = own.learn(duration, weight=LEARNING["replication"])
        if len(self._replications) > REMEMBERED:
            del self._replications[next(iter(self._replications))]

    def usual(self, *, site: str | None, replication_id: str) -> TypicalDuration | None:
        """Return the typical duration for this replication, or else for its site; None if too little is known."""
        own = self._replications.get(replication_id)
        if own and own.known >= ENOUGH["replication"]:
            return own
        of_site = self._sites.get(site)
        return of_site if of_site and of_site.known >= ENOUGH["site"] else None


def coalesced_due(due: float, interval: float) -> float:
    """Put a turn off by a sixteenth of its interval at most, to a moment where many meet and share a call."""
    step = 2.0 ** (math.frexp(interval)[1] - 5)
    return math.ceil(due / step) * step


def coalescing_window(shortest: float) -> float:
    """Return how long before its turn a task comes along with one that is due; `coalesced_due` put it off as long."""
    return shortest / 16
