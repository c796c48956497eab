"""Reads the headers `Date` and `Retry-After`, and estimates VCDA's clock. Pure; an invalid text is None."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final

from service.sync import EPOCH

RETRY_AFTER_LIMIT: Final = timedelta(hours=1)
"""The longest Retry-After that is obeyed: a proxy may ask for a day although the outage is short."""

DATE_RESOLUTION: Final = timedelta(seconds=1)
"""`Date` has whole seconds, cut and not rounded."""

DRIFT: Final = 1e-4
"""How fast two clocks may part: ten times what an undisciplined quartz does."""


YEARS: Final = range(1970, 9000)
"""What is taken for a date: none at the edge of what a datetime can hold, which the smallest sum would pass."""


@lru_cache(maxsize=8)  # within one second all answers carry the same text, and parsing is most of the cost
def http_date(text: str) -> datetime | None:
    """Read an HTTP date; None if it isn't one."""
    try:
        read = parsedate_to_datetime(text)
        moment = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if moment.year in YEARS else None


def retry_after(text: str | None, *, date: str | None, now: datetime) -> timedelta | None:
    """Read `Retry-After`: seconds, or a moment by the sender's clock, and therefore counted from the answer's `Date`.

    At least zero, at most `RETRY_AFTER_LIMIT`; None if it is missing or can't be understood.
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        until = http_date(text)
        if until is None:
            return None
        wait = until - ((http_date(date) if date else None) or now)
    else:
        if math.isnan(seconds):
            return None
        wait = timedelta(seconds=min(max(seconds, 0.0), RETRY_AFTER_LIMIT.total_seconds()))
    return min(max(wait, timedelta()), RETRY_AFTER_LIMIT)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Bounds of another clock minus the monotonic one, in seconds, known `at` a monotonic moment."""

    low: float
    high: float
    at: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def narrowed(self, later: "_Bounds") -> "_Bounds | None":
        """Return what both allow; None: they contradict each other."""
        slack = (later.at - self.at) * DRIFT
        low, high = max(later.low, self.low - slack), min(later.high, self.high + slack)
        return _Bounds(low, high, later.at) if low <= high else None


class OtherClock:
    """Estimates another machine's wall clock from the `Date` headers of its answers, relative to the monotonic clock.

    Relative to the monotonic clock, since this machine's wall clock may be set at any moment.

    One `Date` is imprecise: it is truncated to the second, at some moment between sending and receiving. But it
    bounds the difference from both sides, and the bounds of many answers, taken together, close in on it to about the
    shortest round trip. A mean of the headers would be half a second off for ever, and would follow slow answers.

    An answer that contradicts the others is believed when the next one agrees with it. Until then the earlier of both
    clocks is assumed: a look-up that begins too early costs a page, one that begins too late a second task.
    """

    def __init__(self) -> None:
        self._bounds: _Bounds | None = None
        self._doubted: _Bounds | None = None

    def heard(self, date: datetime, *, sent: float, received: float, resolution: timedelta = DATE_RESOLUTION) -> None:
        """Take in one answer; `sent` and `received` are monotonic moments around it. `date` is cut to `resolution`."""
        there = (date - EPOCH).total_seconds()
        new = _Bounds(there - received, there + resolution.total_seconds() - sent, received)
        if self._bounds is None or (narrowed := self._bounds.narrowed(new)) is not None:
            self._bounds, self._doubted = new if self._bounds is None else narrowed, None
        elif self._doubted is not None and (narrowed := self._doubted.narrowed(new)) is not None:
            self._bounds, self._doubted = narrowed, None
        else:
            self._doubted = new

    def at(self, monotonic: float) -> datetime | None:
        """Return the other clock's time at a monotonic moment; None before the first answer."""
        if self._bounds is None:
            return None
        difference = self._bounds.middle if self._doubted is None else min(self._bounds.middle, self._doubted.middle)
        return EPOCH + timedelta(seconds=difference + monotonic)
