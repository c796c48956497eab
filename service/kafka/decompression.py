"""Bounds how large a batch of records may become when Kafka's client decompresses it.

Some bytes can stand for a great many: zstd writes 50 MB of zeros as 1.5 kB (measured). A batch that a broker takes, of
1 MiB, may so have 30 GiB. The process that read it would be killed for its memory, and after it each one that gets the
partition. Here such a batch is an error like any other batch that can't be read: `consumer` hands out its records as
unreadable ones.

Snappy is left as it is: it makes at most some twenty bytes of one.
"""

import importlib
import zlib
from collections.abc import Callable
from mmap import mmap
from typing import Any, Final, TypeAlias

from aiokafka.codec import cramjam

LARGEST: Final = 32 * 1024 * 1024
"""Bytes of a batch, decompressed. Producers make batches of up to 1 MiB by default, before they compress them; and each
partition of a process may have one in memory, three times for a moment."""

Decode: TypeAlias = Callable[[Any], bytes]

READERS: Final = (
    "aiokafka.record.default_records",
    "aiokafka.record.legacy_records",
    "aiokafka.record._crecords.default_records",
    "aiokafka.record._crecords.legacy_records",
)
"""The modules that decompress batches, in Python and in C; each has taken aiokafka's functions under its own names."""


class TooLargeDecompressed(Exception):
    """A batch has more bytes than `LARGEST`."""


def gunzip(payload: Any) -> bytes:  # noqa: ANN401 - any buffer
    """Decompress gzip, of which there may be several parts, one behind the other."""
    parts: list[bytes] = []
    room = LARGEST
    while payload:
        inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: with gzip's head and checksum
        parts.append(inflate.decompress(payload, room + 1))
        room -= len(parts[-1])
        if room < 0:
            raise TooLargeDecompressed
        if not inflate.eof:
            msg = "the compressed batch ends too early"
            raise EOFError(msg)
        payload = inflate.unused_data
    return b"".join(parts)


def _within(codec: Any) -> Decode:  # noqa: ANN401 - a module of cramjam
    """Return a function that decompresses into so much memory and no more; what isn't used of it costs nothing."""

    def decode(payload: Any) -> bytes:  # noqa: ANN401 - any buffer
        with mmap(-1, LARGEST) as room:
            try:
                return room[: codec.decompress_into(payload, room)]
            except cramjam.DecompressionError as error:
                if "whole buffer" in str(error):
                    raise TooLargeDecompressed from error
                raise

    return decode


def bound() -> None:
    """Let all Kafka clients of this process decompress within the bound."""
    bounded: dict[str, Decode] = {"gzip_decode": gunzip}
    if cramjam is not None:  # else aiokafka itself says which codec it lacks
        bounded |= {"lz4_decode": _within(cramjam.lz4), "zstd_decode": _within(cramjam.zstd)}
    for name in READERS:
        reader = importlib.import_module(name)
        for function, decode in bounded.items():
            if hasattr(reader, function):
                setattr(reader, function, decode)
