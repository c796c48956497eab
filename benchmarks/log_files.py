"""What a topic takes on the brokers' disks, and how many records that are, read from the log files themselves."""

import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HEADER: Final = struct.Struct(">q i i b I h i q q q h i i")
"""A batch's header in the format since Kafka 0.11, magic 2. The length counts from behind itself."""

_BEFORE_LENGTH: Final = 12
_CONTROL: Final = 0x20
"""The attribute of a batch that is a transaction's marker."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """One topic. `segments` without those that Kafka has yet to delete; `records` without transaction markers."""

    bytes: int
    segments: int
    records: int
    written: int
    """Offsets that were given out so far: all records ever written, and the markers."""


def on_disk(folders: Iterable[Path], topic: str) -> OnDisk:
    """Look at all partitions of a topic in brokers' data folders, while the brokers write."""
    size = segments = records = written = 0
    for folder in folders:
        for partition in folder.glob(f"{topic}-*"):
            end = 0
            for path in partition.glob("*.log"):
                with suppress(FileNotFoundError):  # compacted since
                    content = path.read_bytes()
                    size, segments = size + len(content), segments + 1
                    for count, last in _batches(content):
                        records, end = records + count, max(end, last + 1)
            written += end
    return OnDisk(size, segments, records, written)


def _batches(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the number of records of each whole batch, and its last offset."""
    at = 0
    while at + _HEADER.size <= len(content):
        base, length, _, _, _, attributes, last, _, _, _, _, _, count = _HEADER.unpack_from(content, at)
        at += _BEFORE_LENGTH + length
        if length <= 0 or at > len(content):
            return
        yield (0 if attributes & _CONTROL else count), base + last
