"""Make pictures of commands from real runs: `python -m tools.command_pictures`, a minute.

It sends 300 requests to a service with a simulated VCDA by `vm-sync request --from`, looks at them by `top`, `list`,
`show` and `outcomes`, each at a terminal of its own, and writes `docs/<command>.svg`.
"""

import json
import os
import re
import tempfile
import threading
import time
from contextlib import chdir
from pathlib import Path
from typing import Final

from service.sandbox.vcda.world import Durations, Plan
from tools.demo_picture import ERASED, at_a_terminal, svg
from tools.migration_page import REPLICATIONS
from tools.page_of_commands import PATIENCE, run
from tools.planned_deployment import REMOTE, Deployment, deployment

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"

PLAN: Final = Plan(queued=Durations.of("uniform:0.1:1"), duration=Durations.of("lognormal:20:0.3"), failing=0.02)

NAMES: Final = ("request-many", "top", "list", "show", "outcomes")

COUNT: Final = 300

WIDTH: Final = 120


def pictures() -> dict[str, str]:
    """Run the commands, and return what is drawn, by the picture's name."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder), deployment(PLAN, partitions=4) as place:
        rows = [f"{name},{REMOTE if number % 4 == 1 else ''}" for number, name in enumerate(REPLICATIONS[:COUNT])]
        Path("replications.csv").write_text("\n".join(["replicationId,site", *rows, ""]), encoding="utf-8")
        for name in REPLICATIONS[:3]:
            place.vcda.world.plan(replication=name, times=1, failing=1.0)
        place.vcda.world.plan(replication=REPLICATIONS[3], duration=Durations.of(90))
        sending = ("request", "--from", "replications.csv", "--wait", "--failed-to", "failed.jsonl")
        written: list[str] = []
        many = threading.Thread(target=lambda: written.append(_at(place, *sending, failing=True)), daemon=True)
        many.start()
        _until_running(place, 100)
        found = {
            "top": _last(_at(place, "top", "--interval", "1", quits=8), full="and "),
            "list": _at(place, "list", "--state", "running", "--limit", "12"),
            "show": _at(place, "show", _operation(place)),
        }
        many.join(PATIENCE)
        found["request-many"] = _sending(written[0])
        found["outcomes"] = _at(place, "outcomes", "--since", "1h", "--limit", "8")
    commands = {
        "request-many": " ".join(sending),
        "top": "top",
        "list": "list --state running --limit 12",
        "show": f"show {_named(found['show'])}",
        "outcomes": "outcomes --since 1h --limit 8",
    }
    return {name: f"\x1b[1m$ vm-sync {commands[name]}\x1b[0m\n{found[name].rstrip()}" for name in NAMES}


def _at(place: Deployment, *arguments: str, failing: bool = False, quits: float | None = None) -> str:
    written = at_a_terminal(
        *arguments, columns=WIDTH, environment={**os.environ, **place.env}, failing=failing, quits=quits
    )
    return written.replace("\r\n", "\n")


def _until_running(place: Deployment, count: int) -> None:
    give_up = time.monotonic() + PATIENCE
    while json.loads(run(("top", "--once", "--json"), place.env)[1])["states"]["running"] < count:
        if time.monotonic() > give_up:
            msg = f"there are no {count} running requests within {PATIENCE} s"
            raise TimeoutError(msg)
        time.sleep(0.5)


def _last(written: str, *, full: str) -> str:
    """Return the last view that holds a text."""
    views = [view for view in ERASED.split(written) if full in view and "q ends" in view]
    if not views:
        msg = f"no view has {full!r}:\n{written[-2000:]}"
        raise RuntimeError(msg)
    return views[-1]


def _sending(written: str) -> str:
    """Return a moment with both bars, and the end."""
    *moments, end = ERASED.split(written)
    full = [moment for moment in moments if "sent" in moment and re.search(r"[1-9]\d* completed", moment)]
    if not full:
        msg = f"the bars were never seen:\n{written[-2000:]}"
        raise RuntimeError(msg)
    return f"{full[len(full) // 2].strip()}\n\n{end.strip()}"


def _operation(place: Deployment) -> str:
    """Return the operationID of the request that takes longest."""
    _, output = run(("show", REPLICATIONS[3], "--json"), place.env)
    return str(json.loads(output)[0]["operationID"])


def _named(shown: str) -> str:
    found = re.search(r"operationID\S*\s+(\S+)", re.sub(r"\x1b\[[0-9;]*m", "", shown))
    return found[1] if found else ""


def path(name: str) -> Path:
    """Return where a picture is."""
    return DOCS / f"{name}.svg"


def main() -> None:
    """Write into the repository."""
    for name, text in pictures().items():
        path(name).write_text(svg(text, title=f"vm-sync {name}", columns=WIDTH), encoding="utf-8")


if __name__ == "__main__":
    main()
