"""Pauses that double between attempts. Pure: the caller waits, counts failures, and passes the random number."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

DOUBLINGS: Final = 32
"""The most that are computed: any first pause is longer than any longest one by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The first pause, then twice as long after each further failure, up to the longest."""

    first: timedelta
    longest: timedelta
    jitter: float = 0.0
    """The random part of a pause: 0 is no jitter, 1 full jitter."""

    def pause(self, repeats: int, *, chance: float = 1.0) -> float:
        """Return the seconds to wait after a failure that `repeats` failures have preceded.

        `chance` is a draw from 0 to 1: with jitter, it shortens the pause.
        """
        doubled = self.first.total_seconds() * 2.0 ** min(repeats, DOUBLINGS)
        whole = min(doubled, self.longest.total_seconds())
        return whole * (1.0 - self.jitter + self.jitter * chance)
