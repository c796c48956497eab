"""The output of the demo: a live view at a terminal, plain lines elsewhere, and a table at the end."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.sandbox.demo.seen import Outcome, Seen
from service.sandbox.vcda.world import Config

LOCAL_SITE = Config().local_site
"""The simulated VCDA's name of the local site."""

ROWS = 12
"""Syncs in flight that are shown; more than that flicker past."""

WIDE = 100
"""Columns from which there is room for replications and bars."""

FRAME = 8
"""Lines of the view that are neither syncs nor outcomes."""

LATEST = 6
"""Outcomes that are shown."""

PLAIN_EVERY = 5.0
"""Seconds between two lines of counts where there is no terminal."""

STYLES = {"waiting": "dim", "submitting": "yellow", "in_doubt": "red", "running": "cyan"}


def say(text: str) -> None:
    """Print a line."""
    print(text, flush=True)


class View:
    """The live view of requests in flight and latest outcomes, drawn by `draw` while its context is open."""

    def __init__(self, seen: Seen, *, log: Path) -> None:
        self._seen, self._log = seen, log
        self._console = Console()
        self._live = self._new_live() if sys.stdout.isatty() else None
        self._size = self._console.size
        self._lines = 0
        self._next = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.draw()
        if self._live is not None:
            self._live.stop()

    def draw(self) -> None:
        """Show the present."""
        if self._live is not None:
            if self._console.size != self._size:
                self._resized(self._live)
            self._live.update(picture(self._seen, self._console.size, log=self._log), refresh=True)
            return
        for outcome in self._seen.outcomes[self._lines :]:
            say(_line(outcome))
        self._lines = len(self._seen.outcomes)
        if time.monotonic() >= self._next:
            say(self._counts())
            self._next = time.monotonic() + PLAIN_EVERY

    def _counts(self) -> str:
        seen = self._seen
        states = Counter(sync["state"] for sync in seen.in_flight)
        words = Counter(outcome.word for outcome in seen.outcomes)
        parts = [
            f"{seen.now():5.1f} s",
            f"sent: {len(seen.sent)} of {seen.total}",
            "in flight: " + (", ".join(f"{state} {count}" for state, count in sorted(states.items())) or "none"),
            "ended: " + (", ".join(f"{word} {count}" for word, count in sorted(words.items())) or "none"),
            f"dead letters: {seen.dead_letters}",
            f"lag {seen.lags[0]:.1f} s",
        ]
        return " | ".join(parts)

    def _new_live(self) -> Live:
        return Live(console=self._console, auto_refresh=False, transient=True)

    def _resized(self, live: Live) -> None:
        """Begin on a clear screen: the terminal has wrapped the lines that were drawn for another width."""
        self._size = self._console.size
        live.stop()
        self._console.clear()
        self._live = self._new_live()
        self._live.start()


def picture(seen: Seen, size: ConsoleDimensions, *, log: Path) -> Group:
    """Draw the present for a terminal of that size: in a narrow one without replications and bars."""
    wide = size.width >= WIDE
    flying = Table(box=box.SIMPLE_HEAD, expand=True)
    for column in ("operationID", *(["replicationId"] if wide else []), "site", "state", "progress", "age"):
        flying.add_column(column, no_wrap=True)
    order = sorted(seen.in_flight, key=lambda sync: (-(sync["progress"] or 0), sync["requestId"]))
    rows = max(1, min(ROWS, size.height - LATEST - FRAME))
    now = datetime.now(UTC)
    for sync in order[:rows]:
        percent = "" if sync["progress"] is None else f"{sync['progress']} %"
        bar = ProgressBar(total=100, completed=sync["progress"] or 0, width=30)
        state = Text(sync["state"], style=STYLES.get(sync["state"], ""))
        age = f"{(now - datetime.fromisoformat(sync['acceptedAt'])).total_seconds():.0f}s"
        replication = [sync["replicationId"]] if wide else []
        flying.add_row(sync["operationID"], *replication, _shown(sync["site"]), state, bar if wide else percent, age)
    if len(order) > rows:
        flying.add_row(Text(f"and {len(order) - rows} more", style="dim"))
    latest = [
        _one_line(_line(outcome, wide=wide), "red" if "reason" in outcome.data else "green")
        for outcome in seen.outcomes[-LATEST:]
    ]
    return Group(_one_line(_head(seen), "bold"), flying, *latest, _one_line(f"the service logs to {log}", "dim"))


def _one_line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _head(seen: Seen) -> str:
    """Say in 80 columns how far it is."""
    failed = sum("reason" in outcome.data for outcome in seen.outcomes)
    parts = [
        f"{seen.now():.1f} s",
        f"sent {len(seen.sent)} of {seen.total}",
        f"in flight {len(seen.in_flight)}",
        f"completed {len(seen.outcomes) - failed}",
        f"failed {failed}",
        f"dead letters {seen.dead_letters}",
    ]
    return " | ".join(parts)


def _line(outcome: Outcome, *, wide: bool = True) -> str:
    data = outcome.data
    error = f" ({data['error']['code']})" if data.get("error") else ""
    replication = f"{data['replicationId']}  " if wide else ""
    return f"{outcome.at:5.1f} s  {data['operationID']}  {replication}{outcome.word}{error}"


def _shown(site: str | None) -> str:
    return "local" if site is None or site == LOCAL_SITE else site


def summary(seen: Seen, counters: Mapping[str, Any], broken: Sequence[str]) -> None:
    """Print how it went."""
    table = Table(box=box.SIMPLE, show_header=False, title="Result", title_justify="left")
    for name, fact in _facts(seen, counters):
        table.add_row(name, fact)
    console = Console()
    console.print(table)
    if broken:
        for sentence in broken:
            console.print(Text(f"Guarantee broken: {sentence}.", style="bold red"))
    else:
        console.print(Text("Every request has exactly one outcome, and had exactly one task.", style="bold green"))


def _facts(seen: Seen, counters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "requests", str(len(seen.sent))
    for word, count in sorted(Counter(outcome.word for outcome in seen.outcomes).items()):
        yield word, str(count)
    yield "dead letters", str(seen.dead_letters)
    if seen.outcomes:
        yield "first outcome", f"{seen.outcomes[0].at:.1f} s after the start"
        yield "last outcome", f"{seen.outcomes[-1].at:.1f} s after the start"
        yield "lag from task end to outcome", f"{seen.lags[0]:.2f} s median, {seen.lags[1]:.2f} s 95th percentile"
    yield "tasks at VCDA", str(counters["tasks"])
    yield (
        "most running at once",
        ", ".join(f"{count} at {_shown(site)}" for site, count in sorted(counters["mostRunning"].items())),
    )
    calls = counters["calls"]
    yield "calls to VCDA", ", ".join(f"{count} {name}" for name, count in sorted(calls.items()))
