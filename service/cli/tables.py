"""Tables for people: one line a row at any width, as kubectl prints them, and ages instead of dates.

Where the output goes to a file or a pipe nothing is cut, since a `grep` may look for it. At a terminal that is too
narrow, columns give way: first texts are cut, then whole columns are left out, the least useful first; `--wide` shows
all.
"""

import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

GAP: Final = "  "

CUT: Final = "…"

NARROW: Final = 12
"""Characters that a text is cut down to at least; below that, its column is left out."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `rank`: how early it is left out, 0: never. `text`: it may be cut."""

    name: str
    rank: int = 0
    text: bool = False


def show_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, wide: bool = False) -> None:
    """Print rows; `wide`: all of them, whatever the terminal's width."""
    width = None if wide or not sys.stdout.isatty() else shutil.get_terminal_size().columns
    for line in table(columns, list(rows), width=width):
        print(line)


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, width: int | None) -> list[str]:
    """Return the lines of a table, at most `width` wide; None: nothing is cut."""
    cells = [[column.name for column in columns], *[[_one_line(cell) for cell in row] for row in rows]]
    widths = [max(_length(row[number]) for row in cells) for number in range(len(columns))]
    shown = _fitting(columns, widths, width)
    return [GAP.join([_padded(row[number], size) for number, size in shown]).rstrip() for row in cells]


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int | None) -> list[tuple[int, int]]:
    """Return which columns are shown, and how wide."""
    shown = dict(enumerate(widths))
    if width is None:
        return list(shown.items())

    def excess() -> int:
        return sum(shown.values()) + len(GAP) * (len(shown) - 1) - width

    givers = sorted([number for number in shown if columns[number].rank], key=lambda number: -columns[number].rank)
    for number in givers:
        if excess() > 0 and columns[number].text:
            shown[number] = max(min(NARROW, shown[number]), shown[number] - excess())
    for number in givers:
        if excess() > 0:
            del shown[number]
    for number in sorted(shown, key=lambda number: -shown[number]):
        if excess() > 0:
            shown[number] = max(len(CUT), shown[number] - excess())
    spare = -excess()
    for number, size in tuple(shown.items()):  # what whole columns have left behind
        more = min(max(spare, 0), widths[number] - size)
        shown[number] = size + more
        spare -= more
    return list(shown.items())


def _padded(cell: str, size: int) -> str:
    length = _length(cell)
    if length <= size:
        return cell + " " * (size - length)
    from rich.cells import set_cell_size

    return set_cell_size(cell, size - len(CUT)) + CUT


def _length(cell: str) -> int:
    if cell.isascii():
        return len(cell)
    from rich.cells import cell_len

    return cell_len(cell)


def _one_line(cell: str) -> str:
    return cell if cell.isprintable() else "".join([char if char.isprintable() else " " for char in cell])
