"""Makes docs/alerts.md: each alert provoked for real, how long that took, and what the commands of its page printed.

`python -m tools.alerts_page` plays the scenes of `tests/support/alert_scenes.py`: some minutes. `--only SCENE ...`
plays some of them, and replaces their alerts' rows. What was seen is printed, too.
"""

import argparse
import asyncio
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.support.alert_scenes import HURRY, SCENES, Finding, Ran, faults, play, stage
from tests.support.expressions import alerts
from tests.support.prometheus import LONGEST_FOR

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "alerts.md"

HEAD: Final = f"""\
# Alerts, provoked

Made by `python -m tools.alerts_page`, which provokes each alert of [the rules](../deploy/monitoring/rules.yaml) with
processes of the service, a real Kafka, simulated VCDAs and a Prometheus, and runs the commands of the alert's page in
the [runbook](runbook.md) while it fires and after it. Not to be edited by hand.

The expressions are those of the rules; their windows, offsets and `for` are divided by {HURRY} (and no `for` is longer
than {LONGEST_FOR} s), thresholds are not. Seconds are those of the shortened rules: from the cause to the alert, and
from the end of the cause until the queries under "Over when" returned nothing. Commands are shown without `kubectl -n
vm-sync`; those that need a Kubernetes cluster, or Kafka's own tools, are not run. Of each output one line is shown: of
the checks the first failure and the last line, of tables the first row, of log lines the first message.
"""

COLUMNS: Final = ("alert", "provoked by", "fired after", "over after", "the page's commands, and what they printed")

ROW: Final = re.compile(r"^(?=\| \[(\w+)\])(.*\n)", flags=re.MULTILINE)

SHOWN: Final = 150
"""Characters of an output."""


def page(findings: Iterable[Finding], *, before: str = "") -> str:
    """Return the whole page; rows of alerts that were not provoked are those of the page as it was."""
    rows = dict(ROW.findall(before)) | {finding.alert: _row(finding) for finding in findings}
    table = "".join(rows[alert] for alert in alerts() if alert in rows)
    return f"{HEAD}\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n{table}"


def _row(finding: Finding) -> str:
    fired = "not" if finding.fired_after is None else f"{finding.fired_after:.0f} s"
    over = "" if finding.over_after is None else f"{finding.over_after:.0f} s"
    said = "<br>".join(f"{_code(_short(ran.command))}: {_code(gist(ran))}" for ran in finding.ran)
    link = f"[{finding.alert}](runbook.md#{finding.alert.lower()})"
    return f"| {link} | {finding.how} | {fired} | {over} | {said} |\n"


def _short(command: str) -> str:
    """Return a command without what all of them begin with."""
    command = re.sub(r"^kubectl -n vm-sync exec (-it )?\S+ -- ", "", command)
    return re.sub(r"^kubectl -n vm-sync logs .*? \| ", "logs | ", command)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def gist(ran: Ran) -> str:
    """Return the part of an output that says most."""
    lines = [line.strip() for line in ran.output.splitlines() if line.strip()]
    if not lines:
        return "(nothing)"
    if ran.command.endswith(("vm-sync check", "topics check")):
        wrong = [line for line in lines if line.startswith("failure")]
        lines = [*wrong[:1], lines[-1]]
        return "; ".join(map(_cut, lines))
    if re.search(r"dead-letters (redrive|discard)", ran.command):
        chosen = lines[-1]
    else:
        is_table = re.search(r"vm-sync (dead-letters list|list|sites)", ran.command)
        chosen = lines[1] if is_table and len(lines) > 1 else lines[0]
    return _cut(re.sub(r'^\{"time".*?"message": "', "", chosen))


def _cut(line: str) -> str:
    """Return the line's beginning, of whole words, for a cell of a table."""
    beginning = line if len(line) <= SHOWN else f"{line[:SHOWN].rsplit(' ', 1)[0]} ..."
    return beginning.replace("`", "'")


async def provoke(*names: str) -> tuple[list[Finding], list[str]]:
    """Play these scenes, or all; say what happens meanwhile. Return what was seen, and what is wrong."""
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("prometheus is not installed: apt-get install prometheus")
    began = time.monotonic()
    scenes = [scene for scene in SCENES if not names or scene.__name__ in names]
    with tempfile.TemporaryDirectory(prefix="vm-sync-alerts-") as folder:

        def say(text: str) -> None:
            sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {text}\n")
            sys.stdout.flush()

        async with stage(program, folder=Path(folder), say=say) as there:
            await play(there, *scenes)
            found = list(there.findings.values())
            wrong = [f"{finding.alert}: {fault}" for finding in found for fault in faults(finding)]
            return found, [*wrong, *there.broken.values()]


def story(finding: Finding) -> str:
    """Return all that was seen of an alert."""
    lines = [f"{finding.alert}: {finding.fired_after}, over {finding.over_after}, {finding.not_over}"]
    lines += [f"  {rows:4d}  {query}" for query, rows in finding.asked.items()]
    lines += [f"  [{ran.code}] {ran.command}\n        {gist(ran)}" for ran in finding.ran]
    return "\n".join(lines)


def main() -> None:
    """Write the page, or the rows of some alerts; exit with 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tools.alerts_page", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], choices=[scene.__name__ for scene in SCENES])
    only = parser.parse_args().only
    found, wrong = asyncio.run(provoke(*only))
    sys.stdout.write("\n\n".join(["", *map(story, found), *wrong]) + "\n")
    sound = [finding for finding in found if not faults(finding)]
    PAGE.write_text(page(sound, before=PAGE.read_text() if PAGE.exists() else ""), encoding="utf-8")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
