"""The state of this process, as the page at `/` shows it: read in one go, bounded, from what is counted anyway.

Only the oldest requests are looked at one by one, some of them between two turns of the event loop.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol

from service.clock import Clock
from service.messages.wait_cause import WaitCause
from service.ops.health import Health
from service.ops.sites_view import LANES_AT_ONCE, Hindrance, Hold, hindrances
from service.ops.syncs_page import InFlight
from service.partition.in_flight_view import oldest_syncs
from service.partition.partition import Partition
from service.partition.recent_outcomes import Failure, RecentOutcomes
from service.partition.waiting import waiting_by_cause
from service.vcda.client import SessionStatus
from service.vcda.lanes import Lanes

OLDEST: Final = 10
"""Requests that are shown."""

SITES: Final = 50
"""Sites that are shown: more than any deployment has. A message may name any site."""


# ---------------------------------------------------------------- what is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What does not change while the process runs."""

    name: str
    version: str
    settings_hash: str
    started_at: datetime
    kafka: str
    vcda: str
    requests: str
    """The requests topic."""
    group: str
    sites: frozenset[str] = frozenset()
    """The sites that there are credentials for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitions:
    """The partitions of the requests topic that are assigned here. A cause is a sentence."""

    total: int
    """Of the topic; 0: unknown."""
    joined: bool = False
    """The consumer group has made an assignment."""
    open: tuple[int, ...] = ()
    opening: Mapping[int, str] = field(default_factory=dict)
    stopped: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One site, with what is in flight there by state, and what waits by cause."""

    name: str | None
    """None: the local site."""
    session: bool
    """Whether the session at VCDA is good for it."""
    hindrances: tuple[Hindrance, ...] = ()
    states: Mapping[str, int] = field(default_factory=dict)
    waiting: Mapping[WaitCause, int] = field(default_factory=dict)

    @property
    def is_held(self) -> bool:
        """Whether it is held back by more than its limit."""
        return any(one.hold is not Hold.LIMIT for one in self.hindrances)

    @property
    def in_flight(self) -> int:
        """How many requests are in flight there."""
        return sum(self.states.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything that is shown."""

    at: datetime
    instance: Instance
    not_alive: tuple[str, ...] = ()
    not_ready: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    partitions: Partitions
    session_age: timedelta | None = None
    """None: there is no session at VCDA."""
    sites: tuple[Site, ...] = ()
    """Those that something holds back come first, then those with the most requests in flight."""
    further_sites: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    """How many requests are in flight, by state."""
    waiting: Mapping[WaitCause, int] = field(default_factory=dict)
    """How many wait, by cause."""
    oldest: tuple[InFlight, ...] = ()
    completed: int = 0
    failed: int = 0
    failures: tuple[Failure, ...] = ()
    """The last failures, the latest first."""


# ---------------------------------------------------------------- reading it


class Intake(Protocol):
    """The member of the consumer group."""

    partition_count: int
    joined: bool

    def partitions(self) -> Iterator[Partition]:
        """Yield the open partitions."""

    def opening(self) -> Mapping[int, str]:
        """Return the partitions that are not open yet, and why."""

    def mismatched(self) -> Mapping[int, str]:
        """Return the stopped partitions, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the state is read from, once the process has it."""

    lanes: Lanes
    session: Callable[[], SessionStatus]
    recent_outcomes: RecentOutcomes
    intake: Intake | None
    """None: it has not started yet."""


async def read(
    instance: Instance,
    parts: Parts | None,
    *,
    health: Health,
    clock: Clock,
    in_flight: Callable[[], Mapping[tuple[str, str | None], int]],
) -> Overview:
    """Read the state. `in_flight` returns how many requests are in flight, by state and site."""
    intake = parts.intake if parts else None
    oldest = await oldest_syncs(intake.partitions(), most=OLDEST) if intake else []
    held = await hindrances(parts.lanes, clock) if parts else {}
    queued = await _queued(parts.lanes) if parts else {}
    # From here on in one go, so that the numbers fit together.
    opened = tuple(intake.partitions()) if intake else ()
    session = parts.session() if parts else SessionStatus(age=None, sites=frozenset())
    outcomes = parts.recent_outcomes if parts else RecentOutcomes()
    states: dict[str | None, Counter[str]] = defaultdict(Counter)
    waiting: dict[str | None, Counter[WaitCause]] = defaultdict(Counter)
    for (state, site), count in in_flight().items():
        states[site][state] += count
    for counts in (waiting_by_cause(opened, ()), queued):
        for (site, cause), count in counts.items():
            waiting[site][cause] += count
    for site, counted in states.items():
        _name_the_rest(waiting[site], waiting=counted["waiting"])
    sites = [
        Site(
            name=name,
            session=session.age is not None and (name is None or name in session.sites),
            hindrances=held.get(name, ()),
            states=states.get(name, {}),
            waiting=waiting.get(name, {}),
        )
        for name in {None, *instance.sites, *held, *states}
    ]
    sites.sort(key=lambda site: (not site.is_held, -site.in_flight, site.name or ""))
    now = clock.monotonic()
    return Overview(
        at=clock.now(),
        instance=instance,
        not_alive=tuple(health.not_alive(now)),
        not_ready=tuple(health.not_ready(now)),
        degraded=tuple(health.what_is_degraded()),
        partitions=_partitions(intake, opened),
        session_age=session.age,
        sites=tuple(sites[:SITES]),
        further_sites=max(0, len(sites) - SITES),
        states=sum(states.values(), Counter()),
        waiting=sum(waiting.values(), Counter()),
        oldest=tuple(oldest),
        completed=outcomes.completed,
        failed=outcomes.failed,
        failures=tuple(outcomes),
    )


def _partitions(intake: Intake | None, opened: Iterable[Partition]) -> Partitions:
    if intake is None:
        return Partitions(total=0)
    return Partitions(
        total=intake.partition_count,
        joined=intake.joined,
        open=tuple(sorted(partition.number for partition in opened)),
        opening=dict(sorted(intake.opening().items())),
        stopped=dict(sorted(intake.mismatched().items())),
    )


async def _queued(lanes: Lanes) -> Mapping[tuple[str | None, WaitCause], int]:
    """Return how many wait for what of their site. The event loop turns meanwhile."""
    queued: Counter[tuple[str | None, WaitCause]] = Counter()
    for number, lane in enumerate(lanes, 1):
        queued.update(waiting_by_cause((), [lane]))
        if number % LANES_AT_ONCE == 0:
            await asyncio.sleep(0)
    return queued


def _name_the_rest(causes: Counter[WaitCause], *, waiting: int) -> None:
    """Count as `other` what waits for a cause that is counted nowhere, as `vm_sync_waiting` does."""
    known = sum([count for cause, count in causes.items() if cause is not WaitCause.NO_CREDENTIALS])
    if waiting > known:
        causes[WaitCause.OTHER] += waiting - known
