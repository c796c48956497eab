"""The only module that reads the time. All others get a `Clock` or a moment as an argument.

Two kinds of time, never mixed:

- *wall* time, an aware `datetime` in UTC: for published times and for times that survive a restart (deadlines, expiry).
  Two machines' wall clocks are never compared where safety depends on it.
- *monotonic* time, a float in seconds that means nothing outside this process: for windows, waits and intervals.
"""

import time
from datetime import UTC, datetime, timedelta


class Clock:
    """This machine's clocks; `skew` moves the wall clock alone, for tests of processes whose clocks differ."""

    def __init__(self, *, skew: timedelta = timedelta()) -> None:
        self._skew = skew

    def now(self) -> datetime:
        """Return the wall time."""
        return datetime.now(UTC) + self._skew

    def monotonic(self) -> float:
        """Return seconds on the clock of the event loop's timers, so that virtual time can replace both at once."""
        return time.monotonic()
