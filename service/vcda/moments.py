"""What HTTP says about time: the `Date` of an answer, and `Retry-After`. Pure, and total: odd text is None."""

import math
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final

RETRY_AFTER_LIMIT: Final = timedelta(hours=1)
"""The longest obedience: a proxy's "come back tomorrow" must not outlive the outage that it was meant for."""

DATE_RESOLUTION: Final = timedelta(seconds=1)
"""`Date` has whole seconds, cut and not rounded."""

DRIFT: Final = 1e-4
"""How fast two clocks may part: ten times what an undisciplined quartz does."""


@lru_cache(maxsize=8)  # within one second all answers carry the same text, and parsing is most of the cost
def http_date(text: str) -> datetime | None:
    """Read an HTTP date; None if it isn't one."""
    try:
        moment = parsedate_to_datetime(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def retry_after(text: str | None, *, date: str | None, now: datetime) -> timedelta | None:
    """Read `Retry-After`: seconds, or a moment on the clock of whoever wrote it, so counted from that answer's `Date`.

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


class Offset:
    """Another machine's clock minus ours, from the `Date` headers of its answers.

    One `Date` says little: it was cut to the second, at some moment between our sending and its arrival. But it
    bounds the difference from both sides, and the bounds of many answers, taken together, close in on it to about the
    shortest round trip. A mean of the headers would be half a second off for ever, and would follow slow answers.
    """

    def __init__(self) -> None:
        self._low = self._high = 0.0
        self._heard_at: datetime | None = None

    def heard(self, date: datetime, *, sent: datetime, received: datetime) -> None:
        """Take in one answer; `sent` and `received` are moments of our wall clock around it."""
        low = (date - received).total_seconds()
        high = (date + DATE_RESOLUTION - sent).total_seconds()
        if self._heard_at is not None:
            slack = abs((received - self._heard_at).total_seconds()) * DRIFT
            narrowed = max(low, self._low - slack), min(high, self._high + slack)
            # Bounds that contradict each other: one of the clocks was set. Begin anew with what is known now.
            if narrowed[0] <= narrowed[1]:
                low, high = narrowed
        self._low, self._high, self._heard_at = low, high, received

    def value(self) -> timedelta | None:
        """Return the middle of what is possible; None before the first answer."""
        return None if self._heard_at is None else timedelta(seconds=(self._low + self._high) / 2)
