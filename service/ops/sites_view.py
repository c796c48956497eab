"""What holds back each site in this process: operators' pauses, missing credentials, the circuit breaker, and limits.

One description of it, for the page at `/` and for `/syncs`. The event loop turns while many lanes are looked at.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from service.clock import Clock
from service.messages.site_pause import LOCAL, SitePause, public_name
from service.messages.wait_cause import WaitCause, without_credentials
from service.moments import rfc3339
from service.vcda.lanes import Lane, Lanes

MOST: Final = 200
"""Sites that `/syncs` shows, paused ones first: more than any deployment has, as a request may name any."""

LANES_AT_ONCE: Final = 500
"""Lanes looked at between two turns of the event loop, a few milliseconds."""


class Hold(StrEnum):
    """What holds back a site, in words for people."""

    OPERATOR = "paused by an operator"
    CREDENTIALS = "no credentials"
    BREAKER = "circuit breaker open"
    PAUSE = "paused"
    LIMIT = "at its limit"


HOLDS: Final = {
    WaitCause.CIRCUIT_OPEN: Hold.BREAKER,
    WaitCause.SITE_PAUSED: Hold.PAUSE,
    WaitCause.LIMIT: Hold.LIMIT,
}


@dataclass(frozen=True, slots=True)
class Hindrance:
    """What holds back calls to a site, or its POSTs. `detail` is a sentence."""

    hold: Hold
    cause: WaitCause
    detail: str
    until: datetime | None = None
    """When it ends at the earliest, where that is known."""

    @property
    def is_fault(self) -> bool:
        """Whether it is neither an operator's will nor usual."""
        return self.hold not in {Hold.OPERATOR, Hold.LIMIT}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """One site. `name` is its public one."""

    name: str
    pause: SitePause | None
    hindrances: tuple[Hindrance, ...] = ()

    @property
    def obstacle(self) -> Hindrance | None:
        """What holds back the next POST, but for missing credentials: these hold back nothing, they end requests."""
        return next((one for one in self.hindrances if one.hold is not Hold.CREDENTIALS), None)

    @property
    def without_credentials(self) -> bool:
        """Whether this process has no credentials for the site."""
        return any(one.hold is Hold.CREDENTIALS for one in self.hindrances)


async def hindrances(lanes: Lanes, clock: Clock) -> dict[str | None, tuple[Hindrance, ...]]:
    """Return what holds back each site, of those that something does; None is the local site."""
    found: dict[str | None, tuple[Hindrance, ...]] = {}
    for number, lane in enumerate(lanes, 1):
        if some := tuple(_of_lane(lane, clock)):
            found[lane.site] = some
        if number % LANES_AT_ONCE == 0:
            await asyncio.sleep(0)
    for pause in lanes.operator_pauses.current():  # of sites without a lane, too
        found.setdefault(None if pause.site == LOCAL else pause.site, (_ordered(pause),))
    return found


def _of_lane(lane: Lane, clock: Clock) -> Iterator[Hindrance]:
    if (pause := lane.operator_pause()) is not None:
        yield _ordered(pause)
    if lane.lacks_credentials:
        yield Hindrance(Hold.CREDENTIALS, WaitCause.NO_CREDENTIALS, without_credentials(public_name(lane.site)))
    obstacle = lane.open_breaker() or lane.obstacle()
    hold = None if obstacle is None else HOLDS.get(obstacle.cause)
    if obstacle is None or hold is None or (hold is Hold.LIMIT and not lane.queued) or (hold is Hold.PAUSE and pause):
        return
    until = None if obstacle.seconds is None else clock.now() + timedelta(seconds=obstacle.seconds)
    yield Hindrance(hold, obstacle.cause, obstacle.detail, until)


def _ordered(pause: SitePause) -> Hindrance:
    return Hindrance(Hold.OPERATOR, WaitCause.SITE_PAUSED, str(pause), pause.until)


async def site_views(lanes: Lanes, configured: Iterable[str], clock: Clock) -> list[SiteView]:
    """Return the local site, the configured ones, those that are paused, and those with requests in flight."""
    held = await hindrances(lanes, clock)
    used = set[str]()
    for number, lane in enumerate(lanes, 1):
        if not lane.idle:
            used.add(public_name(lane.site))
        if number % LANES_AT_ONCE == 0:
            await asyncio.sleep(0)
    pauses = {pause.site for pause in lanes.operator_pauses.current()}
    names = {LOCAL, *configured, *pauses, *map(public_name, held), *used}
    ordered = sorted(names, key=lambda name: (name not in pauses, name != LOCAL, name))
    return [_view(lanes, None if name == LOCAL else name, held) for name in ordered[:MOST]]


def _view(lanes: Lanes, site: str | None, held: Mapping[str | None, tuple[Hindrance, ...]]) -> SiteView:
    return SiteView(name=public_name(site), pause=lanes.operator_pauses.of(site), hindrances=held.get(site, ()))


def sites_json(sites: Iterable[SiteView]) -> list[dict[str, object]]:
    """Return the sites as JSON; as everywhere in JSON, the local site is null."""
    return [
        {
            "site": None if site.name == LOCAL else site.name,
            "pause": None if site.pause is None else {**site.pause.facts(), "recorded": site.pause.recorded},
            "obstacle": _obstacle(site.obstacle),
            "withoutCredentials": site.without_credentials,
        }
        for site in sites
    ]


def _obstacle(obstacle: Hindrance | None) -> dict[str, object] | None:
    if obstacle is None:
        return None
    return {"cause": obstacle.cause, "until": rfc3339(obstacle.until), "detail": obstacle.detail}
