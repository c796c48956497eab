"""The state of each site in this process, as `/syncs` shows it: operators' pauses, and what else holds POSTs back."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from service.messages.site_pause import LOCAL, SitePause, public_name
from service.moments import rfc3339
from service.vcda.lanes import Lanes, Obstacle

MOST: Final = 200
"""Sites that are shown, paused ones first: more than any deployment has, as a request may name any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """One site. `name` is its public one; `obstacle` is what holds back the next POST."""

    name: str
    pause: SitePause | None
    obstacle: Obstacle | None
    without_credentials: bool


def site_views(lanes: Lanes, configured: Iterable[str]) -> list[SiteView]:
    """Return the local site, the configured ones, those that are paused, and those with requests in flight."""
    pauses = {pause.site: pause for pause in lanes.operator_pauses()}
    known = {public_name(lane.site): lane for lane in lanes if not lane.idle}
    names = sorted({LOCAL, *configured, *pauses, *known}, key=lambda name: (name not in pauses, name != LOCAL, name))
    return [
        SiteView(
            name=name,
            pause=lanes.operator_pause(None if name == LOCAL else name),
            obstacle=known[name].obstacle() if name in known else None,
            without_credentials=name in known and known[name].without_credentials,
        )
        for name in names[:MOST]
    ]


def sites_json(sites: Iterable[SiteView], *, now: datetime) -> list[dict[str, object]]:
    """Return the sites as JSON; as everywhere in JSON, the local site is null."""
    return [
        {
            "site": None if site.name == LOCAL else site.name,
            "pause": None if site.pause is None else site.pause.facts(),
            "obstacle": _obstacle(site.obstacle, now=now),
            "withoutCredentials": site.without_credentials,
        }
        for site in sites
    ]


def _obstacle(obstacle: Obstacle | None, *, now: datetime) -> dict[str, object] | None:
    if obstacle is None:
        return None
    until = None if obstacle.seconds is None else now + timedelta(seconds=obstacle.seconds)
    return {"cause": obstacle.cause, "until": rfc3339(until), "detail": obstacle.detail}
