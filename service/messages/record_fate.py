"""The fates of records read from the requests topic: a metric's label."""

from enum import StrEnum


class Fate(StrEnum):
    """The fate of an offset of the requests topic: a metric's label. All but REREAD add up to the offsets passed."""

    ADMITTED = "admitted"
    """A request, accepted."""
    DUPLICATE = "duplicate"
    """A request whose identity was known."""
    DEAD_LETTERED = "dead_lettered"
    """An invalid message."""
    CANCEL = "cancel"
    """Asked for the end of a request."""
    LOST = "lost"
    """Deleted from the topic before it could be read."""
    NO_RECORD = "no_record"
    """The offset holds no record: a transaction's mark, what an aborted one wrote, or compacted away."""
    REREAD = "reread"
    """Read but not admitted, or the commit was lost: the record is read again."""


NEVER_READ = frozenset({Fate.LOST, Fate.NO_RECORD})
"""Fates of offsets that Kafka handed no record out for."""
