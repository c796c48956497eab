"""Makes a PNG smaller by giving it a palette: a page has few colours, and many shades at the edges of letters."""

import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

MAGIC: Final = b"\x89PNG\r\n\x1a\n"

COLOURS: Final = 64
"""As many as the eye needs here."""

ALIKE: Final = 3 * 12**2
"""The square of the distance of two colours that look the same."""

PIXEL: Final = 3
"""Bytes: red, green, blue."""

Colour: TypeAlias = bytes


def with_palette(png: bytes) -> bytes:
    """Return a PNG of the same size with few colours; it has to be RGB with 8 bits each."""
    chunks = list(_chunks(png))
    width, height, *form = struct.unpack(">IIBBBBB", chunks[0][1])
    if form != [8, 2, 0, 0, 0]:
        msg = f"not an RGB picture with 8 bits each: {form}"
        raise ValueError(msg)
    rows = _rows(zlib.decompress(b"".join([data for kind, data in chunks if kind == b"IDAT"])), PIXEL * width)
    pixels = [[row[at : at + PIXEL] for at in range(0, PIXEL * width, PIXEL)] for row in rows]
    counts = Counter(colour for row in pixels for colour in row)
    palette = _palette(colour for colour, _ in counts.most_common())
    nearest = {colour: _nearest(colour, palette) for colour in counts}
    packed = zlib.compress(b"".join([b"\0" + bytes([nearest[colour] for colour in row]) for row in pixels]), 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return MAGIC + b"".join(
        _chunk(kind, data)
        for kind, data in ((b"IHDR", head), (b"PLTE", b"".join(palette)), (b"IDAT", packed), (b"IEND", b""))
    )


def _palette(colours: Iterable[Colour]) -> list[Colour]:
    """Choose the first of the colours that look different from those before."""
    palette: list[Colour] = []
    for colour in colours:
        if all(_distance(colour, chosen) > ALIKE for chosen in palette):
            palette.append(colour)
            if len(palette) == COLOURS:
                break
    return palette


def _nearest(colour: Colour, palette: list[Colour]) -> int:
    return min(range(len(palette)), key=lambda at: _distance(colour, palette[at]))


def _distance(one: Colour, other: Colour) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(MAGIC)
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        yield kind, png[at + 8 : at + 8 + size]
        at += size + 12


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _rows(raw: bytes, length: int) -> Iterator[bytes]:
    """Undo the filters of the rows, each of so many bytes; see the PNG specification, 9.2."""
    above = bytes(length)
    for at in range(0, len(raw), length + 1):
        row = bytearray(raw[at + 1 : at + 1 + length])
        match raw[at]:
            case 1:
                for i in range(PIXEL, length):
                    row[i] = (row[i] + row[i - PIXEL]) & 255
            case 2:
                for i in range(length):
                    row[i] = (row[i] + above[i]) & 255
            case 3:
                for i in range(length):
                    row[i] = (row[i] + ((row[i - PIXEL] if i >= PIXEL else 0) + above[i]) // 2) & 255
            case 4:
                for i in range(length):
                    left, corner = (row[i - PIXEL], above[i - PIXEL]) if i >= PIXEL else (0, 0)
                    row[i] = (row[i] + _paeth(left, above[i], corner)) & 255
            case _:
                pass
        above = bytes(row)
        yield above


def _paeth(left: int, above: int, corner: int) -> int:
    guess = left + above - corner
    return min((left, above, corner), key=lambda value: abs(guess - value))
