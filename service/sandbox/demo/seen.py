"""Collects the requests and outcomes of a demo, and checks the guarantees. Moments are seconds since its start."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request."""

    operation_id: str
    replication_id: str
    site: str | None

    @property
    def identity(self) -> str:
        """As outcomes name it."""
        return f"op:{self.replication_id}:{self.operation_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a request. `lag`: seconds from the end of its task to the outcome."""

    at: float
    lag: float
    data: Mapping[str, Any]

    @property
    def word(self) -> str:
        """The outcome as text."""
        return f"failed: {self.data['reason']}" if "reason" in self.data else "completed"


@dataclass(slots=True)
class Seen:
    """The requests and outcomes so far."""

    total: int
    began: float = field(default_factory=time.monotonic)
    sent: dict[str, Sent] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    """How many outcomes each identity has."""
    dead_letters: int = 0
    in_flight: Sequence[Mapping[str, Any]] = ()

    def now(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self.began

    def hear(self, outcome: Outcome) -> None:
        """Take note of an outcome."""
        self.outcomes.append(outcome)
        self.told[outcome.data["requestId"]] += 1

    @property
    def complete(self) -> bool:
        """Whether all that was to be asked has been, and answered."""
        return len(self.sent) == self.total and self.told.keys() >= self.sent.keys() and self.dead_letters > 0

    @property
    def lags(self) -> tuple[float, float]:
        """Median and 95th percentile."""
        lags = [outcome.lag for outcome in self.outcomes]
        if len(lags) < 2:  # noqa: PLR2004 - of a single one there are no quantiles
            return (lags or [0.0])[0], (lags or [0.0])[0]
        cuts = quantiles(lags, n=20)
        return cuts[9], cuts[18]


def broken_promises(seen: Seen, counters: Mapping[str, Any], *, exit_code: int | None) -> Iterator[str]:
    """Compare with what VCDA saw. `exit_code` is the service's, None while it is meant to run."""
    if len(seen.sent) < seen.total:
        yield f"only {len(seen.sent)} of {seen.total} requests were sent"
    if without := [sent.operation_id for identity, sent in seen.sent.items() if not seen.told[identity]]:
        yield f"{len(without)} requests have no outcome, {without[0]} for instance"
    if several := [identity for identity, count in seen.told.items() if count > 1]:
        yield f"{len(several)} requests have more than one outcome, {several[0]} for instance"
    if strange := seen.told.keys() - seen.sent.keys():
        yield f"there is an outcome for {min(strange)}, which was never requested"
    if seen.dead_letters != 1:
        yield f"there are {seen.dead_letters} dead letters instead of 1"
    if counters["repeated"]:
        yield f"VCDA got more than one POST for {counters['repeated']}"
    if counters["overlapping"]:
        yield f"{counters['overlapping']} syncs began while another sync of the same replication was running"
    if exit_code not in {None, 0}:
        yield f"the service ended with exit code {exit_code}"
