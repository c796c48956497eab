"""The journal as a partition sees it: what is written together, what was read, and how it can fail."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeAlias

from service.kafka.journal_codec import Cursor
from service.kafka.journal_replay import EndedSyncs
from service.messages.kafka_record import Event
from service.sync import InFlight, Sync


class JournalLost(Exception):
    """The journal can't be written any more, or it isn't known what was: drop the memory and reopen the partition."""


class StopReason(StrEnum):
    """Why a partition refuses to work: a metric's label."""

    JOURNAL_EMPTY = "journal-empty"
    JOURNAL_TOO_NARROW = "journal-too-narrow"
    JOURNAL_UNREADABLE = "journal-unreadable"
    OTHER_TOPIC = "other-topic"
    OTHER_GROUP = "other-group"
    CURSOR_BEYOND_END = "cursor-beyond-end"
    REQUESTS_REPLACED = "requests-replaced"


class JournalMismatch(Exception):
    """The journal and the requests topic don't belong together; the text says what to do. Opening again won't help."""

    def __init__(self, advice: str, *, reason: StopReason) -> None:
        super().__init__(advice)
        self.reason = reason


@dataclass(slots=True)
class Batch:
    """What shall become true together. A change to None is a tombstone: the identity is forgotten."""

    changes: dict[str, Sync | None] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    cursor: Cursor | None = None


Entry: TypeAlias = tuple[str, int | None]
"""An identity, and until when it is remembered (epoch milliseconds); None: it is in flight."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A journal, and what it held. `opened_at` (monotonic) is after the moment from which no predecessor can write."""

    journal: "Journal"
    opened_at: float
    cursor: Cursor | None
    in_flight: Sequence[InFlight]
    ended: EndedSyncs
    begin: int = 0
    """The offset of its owner's first record. Below what an earlier owner has reached, it isn't the same journal."""


class Journal(Protocol):
    """What a partition at work needs of it."""

    end: int
    """The offset after the last record that is known to stand."""

    async def commit(self, batch: Batch) -> None:
        """Make it true, or raise `JournalLost`; then nothing is known and nothing may be done on its strength."""

    def entries(self) -> AsyncIterator[Entry]:
        """Read everything that stands in the journal, in the order of writing; a later entry replaces an earlier.

        Raises:
            JournalLost: it can't be read just now; the journal itself may be well.
        """

    async def close(self) -> None:
        """Let go of the producer. What was not committed is aborted by the next owner."""
