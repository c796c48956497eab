"""The outcomes that this process has written: how many, and the last failures. For people; programs read the topics."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from service.sync import Reason

KEPT: Final = 20
"""Failures kept: what fits on a page. All are in the log, on the topic of failures and in the journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request that failed, and why."""

    at: datetime
    """When its outcome was committed."""
    operation_id: str
    replication_id: str
    site: str | None
    reason: Reason
    error: str
    """A sentence, as in the log."""


class RecentOutcomes:
    """The counts since the start of the process, and the last failures. Iterating yields them, the latest first."""

    def __init__(self) -> None:
        self.completed = 0
        self.failed = 0
        self._failures: deque[Failure] = deque(maxlen=KEPT)

    def note_completed(self) -> None:
        """Count a completed request."""
        self.completed += 1

    def note_failure(self, failure: Failure) -> None:
        """Count a failed request, and keep why it failed."""
        self.failed += 1
        self._failures.appendleft(failure)

    def __iter__(self) -> Iterator[Failure]:
        return iter(tuple(self._failures))
