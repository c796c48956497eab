"""Makes docs/dashboard.svg: the dashboard's first row, drawn from real Prometheus data. Takes a minute or two.

`python -m tools.dashboard_picture` runs two instances of the service, a Kafka and a simulated VCDA whose second site is
away, lets a Prometheus scrape them until alerts fire, and asks it each panel's query. What is drawn follows the
dashboard's JSON: panels' places, units, words, thresholds. It is no Grafana: curves are not drawn.
"""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, Final

from service.sandbox.vcda.world import Durations, Plan
from tests.support.alert_scenes import Stage, replication, stage
from tests.support.expressions import board, plain
from tests.support.process_harness import PASSWORD
from tests.support.prometheus import Series

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "dashboard.svg"

CELL, LINE, GAP, HEAD = 50, 36, 6, 40
"""Pixels: a grid's cell, its line, between panels, above all."""

COLORS: Final = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "text": "#ccccdc", "dim": "#8e8e99"}

SEVERITIES: Final = {"critical": "red", "warning": "orange"}

COLUMNS: Final = ("alertname", "severity", "site", "cause", "operation", "status", "reason", "instance")
"""The order of a table's labels."""

MINUTE, HOUR = 60, 3600

Answers = Mapping[str, Sequence[Series]]
"""By the panel's title."""


def first_row(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the panels of the open row."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def svg(dashboard: Mapping[str, Any], answers: Answers) -> str:
    """Draw the first row."""
    panels = first_row(dashboard)
    title = dashboard["panels"][0]["title"]
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = 24 * CELL + GAP, HEAD + (bottom - 1) * LINE + GAP
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
            ' font-family="Inter, Helvetica, Arial, sans-serif">'
        ),
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#111217"/>',
        _text(2 * GAP, 26, title, size=16, weight=600),
    ]
    for panel in panels:
        parts += _drawn(panel, answers[panel["title"]])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(panel: Mapping[str, Any], rows: Sequence[Series]) -> list[str]:
    place = panel["gridPos"]
    x, y = place["x"] * CELL + GAP, HEAD + (place["y"] - 1) * LINE
    width, height = place["w"] * CELL - GAP, place["h"] * LINE - GAP
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="#181b1f" stroke="#2c3235"/>',
        _text(x + 10, y + 20, panel["title"], size=13, weight=600),
    ]
    if panel["type"] == "stat":
        text, color = shown(panel, rows)
        parts.append(_text(x + width / 2, y + height / 2 + 22, text, size=30, color=color, anchor="middle"))
        return parts
    if not rows:
        nothing = panel["fieldConfig"]["defaults"].get("noValue", "")
        parts.append(_text(x + width / 2, y + height / 2 + 10, nothing, size=18, color="dim", anchor="middle"))
        return parts
    return parts + _table(panel, rows, x=x, y=y + 44, width=width, lines=(height - 44) // 20)


def shown(panel: Mapping[str, Any], rows: Sequence[Series]) -> tuple[str, str]:
    """Return what a number's panel shows, and its colour."""
    defaults = panel["fieldConfig"]["defaults"]
    if not rows:
        return defaults.get("noValue", "No data"), "dim"
    value = rows[-1].value
    steps = [step for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]]
    for mapping in defaults.get("mappings") or ():
        if (word := mapping["options"].get(f"{value:g}")) is not None:
            return word["text"], steps[-1]["color"]
    return in_unit(value, defaults["unit"]), steps[-1]["color"]


def in_unit(value: float, unit: str) -> str:
    """Return a number with its unit, as the dashboard shows it."""
    if unit == "percentunit":
        return f"{value:.1%}".replace("%", " %")
    if unit == "s":
        if value >= HOUR:
            return f"{value / HOUR:.1f} h"
        return f"{value / MINUTE:.1f} min" if value >= MINUTE else f"{value:.1f} s"
    return f"{value:,.0f}"


def _table(
    panel: Mapping[str, Any], rows: Sequence[Series], *, x: float, y: float, width: float, lines: int
) -> list[str]:
    labels = [name for name in COLUMNS if any(row.labels.get(name) for row in rows)]
    heading = panel["transformations"][0]["options"]["renameByName"]["Value"]
    cells = [[*labels, heading]]
    cells += [[*(row.labels.get(name, "") for name in labels), f"{row.value:.0f}"] for row in rows]
    widths = [max(len(line[number]) for line in cells) for number in range(len(cells[0]))]
    scale = (width - 20) / sum(each + 2 for each in widths)
    parts = []
    for row, line in enumerate(cells[:lines]):
        at = x + 10.0
        for text, each in zip(line, widths, strict=True):
            color = "dim" if row == 0 else SEVERITIES.get(text, "text")
            parts.append(_text(at, y + 20 * row, text, size=min(12, scale * 1.75), color=color))
            at += (each + 2) * scale
    if len(cells) > lines:
        parts[-1] = _text(x + 10, y + 20 * (lines - 1), f"and {len(cells) - lines + 1} more", size=12, color="dim")
    return parts


def _text(
    x: float, y: float, text: str, *, size: float, color: str = "text", weight: int = 400, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:.3g}" font-weight="{weight}" fill="{COLORS[color]}"'
        f' text-anchor="{anchor}">{escape(text)}</text>'
    )


# ---------------------------------------------------------------- a real run


async def _bad_day(there: Stage) -> Answers:
    """Have a site away, dead letters and a request for a site without credentials; ask once alerts fire."""
    remote = {"NAME": "site2", "USER": "administrator@System", "PASSWORD": PASSWORD}
    settings = {f"VCDA__SITES__0__{name}": value for name, value in remote.items()}
    async with there.deployment("vm-sync", partitions=12, plan=Plan(duration=Durations.of("uniform:1:300"))) as here:
        for _ in range(2):
            await here.start(settings)
        await here.requests("nightly", 60)
        await here.requests("weekly", 12, site="site2")
        await here.until(lambda: here.vcda.world.counts.calls["submit"] >= 72, what="all are submitted")  # noqa: PLR2004
        here.vcda.fault(site="site2", answer="status", status=503)
        await here.requests("late", 25, site="site2")
        await here.requests("lost", 1, site="site-x")
        await here.ledger.ask("again", replication("vm-sync-nightly-0"))
        for partition in range(3):
            await here.ledger.send_raw(partition=partition, value=b"no JSON")
        for alert in ("VmSyncDeadLetters", "VmSyncCredentialsMissing", "VmSyncSitePaused"):
            firing = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
            if not await there.prometheus.until(firing, seconds=240):
                sys.exit(f"{alert} did not fire")
        return {
            panel["title"]: [
                _anonymous(row)
                for target in panel["targets"]
                for row in await there.prometheus.rows(plain(target["expr"]))
            ]
            for panel in first_row(board())
        }


def _anonymous(row: Series) -> Series:
    """Return it without the address that a process happened to have."""
    return replace(
        row, labels={name: text for name, text in row.labels.items() if name not in {"instance", "__name__"}}
    )


async def _drawn_from_a_run(program: str) -> str:
    with tempfile.TemporaryDirectory(prefix="vm-sync-dashboard-") as folder:
        async with stage(program, folder=Path(folder)) as there:
            return svg(board(), await _bad_day(there))


def main() -> None:
    """Write into the repository."""
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("prometheus is not installed: apt-get install prometheus")
    PAGE.write_text(asyncio.run(_drawn_from_a_run(program)), encoding="utf-8")


if __name__ == "__main__":
    main()
