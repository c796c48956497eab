"""Estimates the clock that stamps the tasks of each site. Pure.

A look-up asks for tasks that began at some moment or later, by the clock of the appliance that runs them. The `Date` of
an answer is not always of that clock: a remote site's tasks run on another appliance, and a proxy in front of VCDA
writes a `Date` of its own. A remote site whose clock is minutes slow would seem to have no task, and the POST would be
repeated. So the start of the task in the answer to a POST is taken as a reading of the site's clock: VCDA creates the
task between the sending of the POST and the answer.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from service.vcda.http_dates import DATE_RESOLUTION, YEARS, OtherClock

MILLISECOND: Final = timedelta(milliseconds=1)
"""VCDA writes moments in milliseconds; one in whole seconds may have been cut to them."""


@dataclass(frozen=True, slots=True)
class SiteClock:
    """What is known of a site's clock: the site's time minus this machine's wall time."""

    offset: timedelta
    """The best estimate; of two estimates for the local site the slower clock, so that no look-up begins too late."""
    latest: timedelta
    """The fastest clock that the site may have, so that no look-up ends too early."""
    certain: bool
    """False: only the `Date` of another appliance is known, so the site's clock may be any."""


class SiteClocks:
    """The clocks of all sites. A site is None for the local one, and never its name."""

    def __init__(self) -> None:
        self._clocks: dict[str | None, OtherClock] = {}

    def heard(self, site: str | None, started_at: datetime, *, sent: float, received: float) -> None:
        """Take in the start of the task in a POST's answer; `sent` and `received` are monotonic moments around it."""
        if started_at.year in YEARS:
            resolution = MILLISECOND if started_at.microsecond else DATE_RESOLUTION
            clock = self._clocks.setdefault(site, OtherClock())
            clock.heard(started_at, sent=sent, received=received, resolution=resolution)

    def of(self, site: str | None, *, dated: timedelta | None, now: datetime, monotonic: float) -> SiteClock | None:
        """Return what is known of a site's clock; None: nothing.

        `dated` is what the `Date`s of VCDA's answers say of VCDA's clock, minus this machine's; `now` and `monotonic`
        are the present moment.
        """
        clock = self._clocks.get(site)
        there = None if clock is None else clock.at(monotonic)
        stamped = None if there is None else there - now
        known = [offset for offset in (dated, stamped) if offset is not None]
        if not known:
            return None
        # The local site's `Date` comes with each answer, and shows at once that the clock was set; a remote site's
        # clock has nothing to do with it.
        offset = min(known) if site is None or stamped is None else stamped
        return SiteClock(offset, max(known), certain=site is None or stamped is not None)
