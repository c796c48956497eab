"""The journal's interface for a partition: batches, the restored content, and errors."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeAlias

from service.kafka.journal_codec import Cursor
from service.kafka.journal_replay import EndedSyncs
from service.messages.kafka_record import Event
from service.sync import InFlight, Sync


class JournalLost(Exception):
    """The journal can't be written, or the result of a write is unknown: the partition has to be reopened."""


class StopReason(StrEnum):
    """Why a partition is stopped: a metric's label."""

    JOURNAL_EMPTY = "journal-empty"
    JOURNAL_TRUNCATED = "journal-truncated"
    JOURNAL_TOO_NARROW = "journal-too-narrow"
    JOURNAL_NOT_COMPACTED = "journal-not-compacted"
    JOURNAL_UNREADABLE = "journal-unreadable"
    OTHER_TOPIC = "other-topic"
    OTHER_GROUP = "other-group"
    CURSOR_BEYOND_END = "cursor-beyond-end"
    REQUESTS_REPLACED = "requests-replaced"


class JournalMismatch(Exception):
    """The journal and the requests topic don't belong together; the text says what to do. The partition is stopped."""

    def __init__(self, advice: str, *, reason: StopReason) -> None:
        super().__init__(advice)
        self.reason = reason


@dataclass(slots=True)
class Batch:
    """Changes that are committed together. A change to None is a tombstone: the identity is forgotten."""

    changes: dict[str, Sync | None] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    cursor: Cursor | None = None


Entry: TypeAlias = tuple[int, str, int | None]
"""An offset, the identity there, and until when it is remembered (epoch milliseconds); None: it is in flight, or has
its tombstone already."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened journal and its content. `opened_at` (monotonic) is after the previous owner was fenced."""

    journal: "Journal"
    opened_at: float
    cursor: Cursor | None
    in_flight: Sequence[InFlight]
    ended: EndedSyncs
    begin: int = 0
    """The offset of its owner's first record. Below what an earlier owner has reached, it isn't the same journal."""
    journal_start: int | None = None
    """The first offset that Kafka has of the journal, above which nothing was deleted while it was read. None: not
    known."""


class Journal(Protocol):
    """The interface that an open partition uses."""

    end: int
    """The offset after the last record that is known to be committed."""

    async def commit(self, batch: Batch) -> None:
        """Commit the batch. After `JournalLost` its result is unknown, and nothing may rely on it."""

    def entries(self) -> AsyncIterator[Entry]:
        """Read all records of the journal, in the order of writing; a later entry replaces an earlier one.

        Raises:
            JournalLost: it can't be read just now; the journal itself may be well.
        """

    async def close(self) -> None:
        """Stop the producer. The next owner's start aborts an open transaction."""
