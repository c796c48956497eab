"""Look-ups for POSTs in doubt at one site: whether they fail although the site answers other calls.

All partitions of the process share this state; `partition.reconciler` makes the look-ups. While their trouble is their
own, the site's other calls don't wait for it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from service.clock import Clock
from service.sync import Trouble

log = logging.getLogger(__name__)

OWN_AFTER = 3
"""So many look-ups that fail in a row, whichever they are, are a trouble of look-ups, not the site's. The second is
already, where the site has answered another call since the first."""


class LookUps:
    """The look-ups at one site; None: the local site."""

    def __init__(self, site: str | None, *, clock: Clock) -> None:
        self.failed = 0
        """How many failed in a row; those that fail together count once."""
        self.rest_until = 0.0
        """No look-up begins before this moment: the end of the site's pause is left to other calls."""
        self.trouble = ""
        """The last trouble, while they fail."""
        self._site = site
        self._clock = clock
        self._failed_at = 0.0
        """When the last of these failed (monotonic): look-ups begun before don't add to it."""
        self._good_answers = 0
        """How many good answers the site had given when the first of them failed."""
        self._failing_since: float | None = None
        """Since when (monotonic) their trouble counts as their own; the log has it."""
        self._searches = 0

    @property
    def failing_for(self) -> float:
        """For how many seconds look-ups have failed although other calls succeed; 0: they don't."""
        return 0.0 if self._failing_since is None else self._clock.monotonic() - self._failing_since

    @property
    def failing(self) -> bool:
        """Whether look-ups fail although other calls succeed."""
        return self._failing_since is not None

    def complaint(self) -> str | None:
        """Say that look-ups fail although other calls succeed; None: they don't."""
        if not self.failing:
            return None
        return (
            f"POSTs to site {self._site or 'local'} stay in doubt: look-ups have failed for {self.failing_for:.0f} s "
            f"although other calls succeed ({self.trouble})"
        )

    @contextmanager
    def searching(self) -> Iterator[None]:
        """A partition has POSTs in doubt here. Once none has any, no look-up fails any more."""
        self._searches += 1
        try:
            yield
        finally:
            self._searches -= 1
            if self.failing and not self._searches:
                self._failing_since = None
                log.warning("Site %s: no POST is in doubt here any more, so no look-up fails", self._site or "local")

    def record_result(self, trouble: Trouble | None, *, began: float, good_answers: int) -> bool:
        """Learn from a look-up's result; None: a success. Return whether its trouble is that of look-ups.

        `began` is when it began, and `good_answers` how many the site has given to any calls so far. Look-ups that fail
        together, of several partitions, count once: otherwise a site that answers nothing would be taken for one that
        answers all but look-ups.
        """
        if trouble is None:
            self.failed = 0
            if self.failing:
                seconds = self.failing_for
                self._failing_since = None
                name = self._site or "local"
                log.warning("Site %s: look-ups for POSTs in doubt succeed again, after %.0f s", name, seconds)
            return False
        if self.failed == 0:
            self._good_answers = good_answers
        if began >= self._failed_at:
            self.failed += 1
            self._failed_at = self._clock.monotonic()
        own = self.failed >= OWN_AFTER or good_answers > self._good_answers
        self.trouble = f"{trouble.label}: {trouble.detail}"
        if own and not self.failing:
            self._failing_since = self._clock.monotonic()
            log.warning(
                "Site %s: look-ups for POSTs in doubt fail (%s); the POSTs stay in doubt until one succeeds, other "
                "calls to the site do not wait for them",
                self._site or "local",
                self.trouble,
                extra={"site": self._site},
            )
        return own
