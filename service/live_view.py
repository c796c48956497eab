"""A live view at a terminal: syncs in flight and the latest outcomes, for the demo and for `vm-sync top`.

Each line of it is one line at any width. In a narrow terminal replications and bars are left out, in a low one syncs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from rich import box
from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

ROWS: Final = 12
"""Syncs in flight that are shown; more than that flicker past."""

WIDE: Final = 100
"""Columns from which there is room for replications and bars."""

LATEST: Final = 6
"""Outcomes that are shown."""

FRAME: Final = 8
"""Lines of the view that are neither syncs nor outcomes, nor those of `Picture.summary`."""

CUT: Final = ("operationID", "replicationId", "site")
"""Columns whose texts are cut where they don't fit."""

STYLES: Final = {"waiting": "dim", "submitting": "yellow", "in_doubt": "red", "running": "cyan", "lingering": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlightRow:
    """A sync in flight, as it is shown. `progress` is in percent; None: it is not known."""

    operation_id: str
    replication_id: str
    site: str
    state: str
    progress: int | None
    age: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeLine:
    """An outcome, as it is shown. `replication_id` is left out in a narrow terminal."""

    at: str
    operation_id: str
    replication_id: str
    said: str
    failed: bool

    def text(self, *, wide: bool) -> str:
        """Return the line."""
        replication = f"{self.replication_id}  " if wide else ""
        return f"{self.at}  {self.operation_id}  {replication}{self.said}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All that is shown at a moment. `in_flight` may have fewer rows than there are syncs: `total` counts them."""

    head: str
    summary: Sequence[str] = ()
    in_flight: Sequence[InFlightRow]
    total: int
    latest: Sequence[OutcomeLine]
    """In the order of time; the last ones are shown."""
    foot: str


class LiveView:
    """The view at a terminal, while its context is open. A resized terminal is cleared first."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = self._new_live()
        self._size = self._console.size

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._console.size.width

    @property
    def resized(self) -> bool:
        """Whether the terminal has another size than when it was drawn."""
        return self._console.size != self._size

    def draw(self, picture: Picture) -> None:
        """Show it in place of the one before."""
        if self.resized:
            self._resized()
        self._live.update(drawn(picture, self._console.size), refresh=True)

    def _new_live(self) -> Live:
        return Live(console=self._console, auto_refresh=False, transient=True)

    def _resized(self) -> None:
        """Begin on a clear screen: the terminal has wrapped the lines that were drawn for another width."""
        self._size = self._console.size
        self._live.stop()
        self._console.clear()
        self._live = self._new_live()
        self._live.start()


def rows_of(size: ConsoleDimensions, *, summary: int = 0) -> int:
    """Return how many syncs fit, beside so many lines of summary."""
    return max(1, min(ROWS, size.height - LATEST - FRAME - summary))


def drawn(picture: Picture, size: ConsoleDimensions) -> Group:
    """Draw it for a terminal of that size."""
    wide = size.width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, expand=True)
    for column in ("operationID", *(["replicationId"] if wide else []), "site", "state", "progress", "age"):
        table.add_column(column, no_wrap=column not in CUT)  # the others keep their width
    rows = picture.in_flight[: rows_of(size, summary=len(picture.summary))]
    for row in rows:
        percent = "" if row.progress is None else f"{row.progress} %"
        bar = ProgressBar(total=100, completed=row.progress or 0, width=30)
        state = Text(row.state, style=STYLES.get(row.state, ""))
        replication = [_one_line(row.replication_id, "")] if wide else []
        site = _one_line(row.site, "")
        name = _one_line(row.operation_id, "")
        table.add_row(name, *replication, site, state, bar if wide else percent, row.age)
    if picture.total > len(rows):
        table.add_row(Text(f"and {picture.total - len(rows)} more", style="dim", no_wrap=True))
    return Group(
        _one_line(picture.head, "bold"),
        *[_one_line(line, "") for line in picture.summary],
        table,
        *[_one_line(line.text(wide=wide), "red" if line.failed else "green") for line in picture.latest[-LATEST:]],
        _one_line(picture.foot, "dim"),
    )


def _one_line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
