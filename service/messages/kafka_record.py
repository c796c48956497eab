"""A record read from Kafka, and an event to be written to it: bytes, untouched."""

from dataclasses import dataclass
from typing import Final, TypeAlias

MAX_REQUEST_BYTES: Final = 64 * 1024
"""Bytes of key, value and headers together, after decompression. A request is a few hundred bytes; a larger record is a
sender's mistake, and still has to fit into the dead-letter topic."""

Header: TypeAlias = tuple[str, bytes | None]
"""Kafka lets a header's value be null; such a header counts as absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record as it was read from the requests topic.

    `unreadable` is the reason, as a sentence, why Kafka's client could not read the record; key and value are None
    then.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    unreadable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A record to be written. Without a timestamp the producer gives it one.

    `shorter` is what to write in its place where the broker refuses it for its size.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    timestamp_ms: int | None = None
    shorter: "Event | None" = None


def record_size(record: Record | Event) -> int:
    """Return the bytes of key, value and headers together."""
    size = len(record.value or b"") + len(record.key or b"")
    for name, value in record.headers:
        size += len(name) if name.isascii() else len(name.encode("utf-8", "replace"))
        size += len(value or b"")
    return size
