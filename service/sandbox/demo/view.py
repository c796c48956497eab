"""The output of the demo: a live view at a terminal, plain lines elsewhere, and a table at the end."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.live_view import LATEST, ROWS, InFlightRow, LiveView, OutcomeLine, Picture
from service.sandbox.demo.seen import Outcome, Seen
from service.sandbox.vcda.world import Config

LOCAL_SITE = Config().local_site
"""The simulated VCDA's name of the local site."""

PLAIN_EVERY = 5.0
"""Seconds between two lines of counts where there is no terminal."""


def say(text: str) -> None:
    """Print a line."""
    print(text, flush=True)


class View:
    """The live view of requests in flight and latest outcomes, drawn by `draw` while its context is open."""

    def __init__(self, seen: Seen, *, log: Path) -> None:
        self._seen, self._log = seen, log
        self._live = LiveView() if sys.stdout.isatty() else None
        self._open = ExitStack()
        self._lines = 0
        self._next = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._open.enter_context(self._live)
        return self

    def __exit__(self, *_: object) -> None:
        self.draw()
        self._open.close()

    def draw(self) -> None:
        """Show the present."""
        if self._live is not None:
            self._live.draw(picture(self._seen, log=self._log))
            return
        for outcome in self._seen.outcomes[self._lines :]:
            say(_line(outcome).text(wide=True))
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


def picture(seen: Seen, *, log: Path) -> Picture:
    """Return what is shown at present: the syncs that are furthest first."""
    order = sorted(seen.in_flight, key=lambda sync: (-(sync["progress"] or 0), sync["requestId"]))
    now = datetime.now(UTC)
    return Picture(
        head=_head(seen),
        in_flight=[
            InFlightRow(
                operation_id=sync["operationID"],
                replication_id=sync["replicationId"],
                site=_shown(sync["site"]),
                state=sync["state"],
                progress=sync["progress"],
                age=f"{(now - datetime.fromisoformat(sync['acceptedAt'])).total_seconds():.0f}s",
            )
            for sync in order[:ROWS]
        ],
        total=len(order),
        latest=[_line(outcome) for outcome in seen.outcomes[-LATEST:]],
        foot=f"the service logs to {log}",
    )


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


def _line(outcome: Outcome) -> OutcomeLine:
    data = outcome.data
    error = f" ({data['error']['code']})" if data.get("error") else ""
    return OutcomeLine(
        at=f"{outcome.at:5.1f} s",
        operation_id=data["operationID"],
        replication_id=data["replicationId"],
        said=f"{outcome.word}{error}",
        failed="reason" in data,
    )


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
