"""The causes for which requests wait: of one request as a sentence, of all as numbers.

The numbers come from counters of partitions and lanes, never from a look at each request: there may be 50,000.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from service.clock import Clock
from service.messages.wait_cause import WaitCause
from service.partition.in_flight import InFlight, TrackedSync, public_state
from service.sync import Ended, Submitting, Waiting
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


def waits_for(
    tracked: TrackedSync, *, in_flight: InFlight, lane: Lane, clock: Clock, handing_over: int | None
) -> WaitsFor | None:
    """Return what a request waits for before its POST, or why its task is not looked for or polled; None: neither.

    `handing_over` is the number of the partition while it quiesces.
    """
    if not isinstance(tracked.state, Waiting):
        return _unasked_for(tracked, lane=lane, clock=clock)
    eldest = in_flight.eldest(tracked.request.replication_id)
    if eldest is not None and eldest is not tracked:
        elder = eldest.request.operation_id
        detail = f"request {elder} of the same replication is {public_state(eldest.state)}"
        return WaitsFor(WaitCause.ELDER, detail, behind=elder)
    if (postponed := tracked.postponed) is not None:
        what = (
            "VCDA said that the replication is busy (409)"
            if postponed.cause is WaitCause.BUSY
            else "VCDA shows no task for its earlier POSTs, so the next POST waits"
        )
        return WaitsFor(postponed.cause, what, until=_moment_of(postponed.until, clock))
    if handing_over is not None:
        return WaitsFor(WaitCause.OTHER, f"partition {handing_over} is being handed over to another instance")
    obstacle = lane.obstacle()
    if obstacle is None:
        return WaitsFor(WaitCause.OTHER, "it is submitted next")
    return WaitsFor(obstacle.cause, obstacle.detail, until=_in(obstacle.seconds, clock))


def _unasked_for(tracked: TrackedSync, *, lane: Lane, clock: Clock) -> WaitsFor | None:
    """Return why VCDA is not asked for a sync's task, or does not say, or what a refused repeated POST waits for."""
    if lane.without_credentials:
        detail = "this process has no credentials for its site (VM_SYNC_VCDA__SITES), so VCDA is not asked for it"
        return WaitsFor(WaitCause.NO_CREDENTIALS, detail)
    if isinstance(tracked.state, Ended) or (isinstance(tracked.state, Submitting) and not tracked.state.in_doubt):
        return None
    doubt = tracked.doubt
    what = "its task is not polled" if doubt is None else "its POST is in doubt, and no look-up is made"
    if (obstacle := lane.obstacle_of_calls()) is not None:
        return WaitsFor(obstacle.cause, f"{what}: {obstacle.detail}", until=_in(obstacle.seconds, clock))
    if doubt is None:
        return None
    if lane.look_ups.rest_until > clock.monotonic():
        detail = f"{what}: each look-up at its site fails, and asks for a pause (Retry-After)"
        return WaitsFor(WaitCause.SITE_PAUSED, detail, until=_moment_of(lane.look_ups.rest_until, clock))
    if lane.look_ups.failing:
        detail = f"its POST is in doubt, and look-ups at its site fail ({lane.look_ups.trouble})"
        return WaitsFor(WaitCause.OTHER, detail)
    if doubt.refusal is not None:
        detail = "VCDA refused its repeated POST: look-ups have to show that there is no task of an earlier POST"
        conclusive_in = (doubt.conclusive_from or 0.0) - clock.monotonic()
        return WaitsFor(WaitCause.OTHER, detail, until=_in(conclusive_in, clock) if conclusive_in > 0.0 else None)
    return None


def _in(seconds: float | None, clock: Clock) -> datetime | None:
    return None if seconds is None else clock.now() + timedelta(seconds=seconds)


def _moment_of(monotonic: float, clock: Clock) -> datetime:
    return clock.now() + timedelta(seconds=monotonic - clock.monotonic())


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
