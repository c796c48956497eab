"""Counts the fate of each record read from the requests topic, once, when the fate is committed.

A partition admits records in memory first; the admission is final only once a commit has moved the journal's cursor
past them. So the fates of admitted records are held back until then, and counted with the commit:

    read --admitted--> held --the commit succeeded------------------------> counted: admitted, duplicate ...
      |                  +----the journal was lost, its cursor is past----> counted: the commit had succeeded
      |                  +----the journal was lost, its cursor is before--> reread
      +--the partition isn't open, or was read under an earlier seek------> reread

Records that were read, but are neither held nor have a fate, were skipped silently: `vm_sync_records_unaccounted`,
which is above 0 only after a bug. Pure: it knows no journal, and never decides a record's fate.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Protocol

from service.messages.record_fate import NEVER_READ, Fate


@dataclass(slots=True)
class Taken:
    """The fates of offsets that the cursor passes together; `until` is the offset after the last of them."""

    until: int
    fates: Counter[Fate] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    """Dead letters, by reason."""
    without_key: int = 0
    other_key: int = 0
    """Requests whose key is not their replicationId."""

    @property
    def records(self) -> int:
        """The number of records read."""
        return sum(count for fate, count in self.fates.items() if fate not in NEVER_READ)


class BalanceMeter(Protocol):
    """The metrics of the balance."""

    def records(self, fate: Fate, count: int) -> None: ...  # noqa: D102 - the names say it
    def records_held(self, delta: int) -> None: ...  # noqa: D102
    def dead_lettered(self, reason: str, count: int) -> None: ...  # noqa: D102
    def without_key(self, count: int) -> None: ...  # noqa: D102
    def other_key(self, count: int) -> None: ...  # noqa: D102


class Balance:
    """One partition's records on their way to a fate, for as long as this process keeps the partition."""

    def __init__(self, meter: BalanceMeter) -> None:
        self._meter = meter
        self._held: deque[Taken] = deque()

    def hold(self, taken: Taken) -> None:
        """Add fates of admitted records that aren't committed yet, in the order of the topic."""
        self._held.append(taken)
        self._meter.records_held(taken.records)

    def reached(self, cursor: int) -> None:
        """The journal's cursor has reached an offset: count the fates below it."""
        while self._held and self._held[0].until <= cursor:
            taken = self._release()
            for fate, count in taken.fates.items():
                self._meter.records(fate, count)
            for reason, count in taken.dead.items():
                self._meter.dead_lettered(reason, count)
            if taken.without_key:
                self._meter.without_key(taken.without_key)
            if taken.other_key:
                self._meter.other_key(taken.other_key)

    def reopened(self, cursor: int) -> None:
        """The partition is reopened at a cursor: records above it were not committed, and are read again."""
        self.reached(cursor)
        self.give_up()

    def reread(self, count: int) -> None:
        """Count records that were not admitted, and will be read again."""
        self._meter.records(Fate.REREAD, count)

    def give_up(self) -> None:
        """Drop the held fates: the partition's next owner counts them if they were not committed."""
        while self._held:
            self.reread(self._release().records)

    def _release(self) -> Taken:
        taken = self._held.popleft()
        self._meter.records_held(-taken.records)
        return taken
