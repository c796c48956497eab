"""Operators' pauses of sites, as the control topic has them: which are in effect, and what the log says of them.

They end by the wall clock, which may be set meanwhile. While one is in effect no slot to POST is handed out at its
site; polls go on.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from service.clock import Clock
from service.messages.site_pause import SitePause, public_name

log = logging.getLogger(__name__)

LOOK_AT_CLOCK = timedelta(seconds=30)
"""How often it is looked whether pauses are over: the wall clock may have been set."""


class OperatorPauses:
    """The pauses of all sites. `changed` is called when one has begun or ended."""

    def __init__(
        self, *, clock: Clock, canonical_site: Callable[[str | None], str | None], changed: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._canonical_site = canonical_site
        self._changed = changed
        self._pauses: Mapping[str, SitePause] = {}
        self._logged: dict[str, SitePause] = {}
        """Those in effect, as the log has it."""
        self._timer: asyncio.TimerHandle | None = None

    def replace(self, pauses: Mapping[str, SitePause]) -> None:
        """Take all pauses that operators have ordered, by the sites' public names, instead of those before."""
        self._pauses = dict(pauses)
        self._look()

    def of(self, site: str | None) -> SitePause | None:
        """Return the pause of a site that is in effect; the longest, of a site with two names."""
        if not self._pauses:
            return None
        now, names = self._clock.now(), {public_name(site), public_name(self._canonical_site(site))}
        found = [
            pause
            for pause in self._pauses.values()
            if pause.lasts(now) and (pause.site in names or public_name(self._canonical_site(pause.site)) in names)
        ]
        return max(found, key=lambda pause: pause.until, default=None)

    def current(self) -> list[SitePause]:
        """Return the pauses that are in effect."""
        now = self._clock.now()
        return [pause for pause in self._pauses.values() if pause.lasts(now)]

    def close(self) -> None:
        """Leave no timer behind."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Log what has begun and ended, let go on what waits, and look again when the next pause ends."""
        before, now = self._logged, self._clock.now()
        self._logged = {pause.site: pause for pause in self.current()}
        self._plan_look(now)  # before all else: an error must not keep a pause's end from being seen
        for site, pause in self._logged.items():
            if before.get(site) != pause:
                text = "Site pause in effect: %s; no POST is sent to the site, polls go on"
                log.warning(text, pause, extra={"site": site})
        for site, pause in before.items():
            if site not in self._logged:
                # Resumed by an operator, or replaced by an invalid record.
                how = (
                    "has no pause in the control topic any more" if pause.lasts(now) else "has reached its pause's end"
                )
                log.warning("Site pause over: site %s %s; POSTs are sent again", site, how, extra={"site": site})
        self._changed()

    def _plan_look(self, now: datetime) -> None:
        self.close()
        if self._logged:
            left = min((pause.until - now).total_seconds() for pause in self._logged.values())
            seconds = min(left, LOOK_AT_CLOCK.total_seconds())
            self._timer = asyncio.get_running_loop().call_later(max(seconds, 0.001), self._look)
