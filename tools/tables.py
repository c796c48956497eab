"""Writes the tables of settings, of metrics and of figures from what they describe: `python -m tools.tables`.

`docs/settings.md` and `docs/metrics.md` are made whole; of README.md and of the runbook only what stands between
`<!-- made: NAME -->` and `<!-- /made -->`: the README's figures from what `make bench` measured, the runbook's list of
alerts from the rules. A test compares all four with what would be written.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from benchmarks.page import number
from benchmarks.results import Results
from service import settings
from service.kafka.journal_api import StopReason
from service.messages.requests import DeadLetterReason
from service.messages.wait_cause import WaitCause
from service.observability.metrics import LOGINS, METRICS, OPERATIONS, OUTCOMES, RESULTS, STATES, STATUSES, Metric
from service.settings.model import BETWEEN, PREFIX, Settings
from service.sync import Reason
from tests.support.expressions import alerts

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RUNBOOK = ROOT / "docs" / "runbook.md"
SETTINGS = ROOT / "docs" / "settings.md"
METRICS_PAGE = ROOT / "docs" / "metrics.md"
MEASURED = ROOT / "docs" / "performance" / "raw.json"

FIRST_SETTINGS: Final = (
    "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS",
    "VM_SYNC_VCDA__URL",
    "VM_SYNC_VCDA__CREDENTIALS__USER",
    "VM_SYNC_VCDA__CREDENTIALS__PASSWORD",
    "VM_SYNC_VCDA__SITES",
    "VM_SYNC_SYNC__DEADLINE",
    "VM_SYNC_SYNC__MAX_RUNNING",
    "VM_SYNC_LOG__FORMAT",
)
"""Those that somebody who starts the service for the first time looks for."""

FIRST_METRICS: Final = (
    "vm_sync_outcomes_total",
    "vm_sync_in_flight",
    "vm_sync_oldest_in_flight_seconds",
    "vm_sync_detection_lag_seconds",
    "vm_sync_api_requests_total",
    "vm_sync_partitions_stopped",
)
"""Those that say whether the service does its work."""

COMPARED: Final = {
    "service": "vm-sync",
    "obvious": "an obvious FastStream service",
    "listing": "a list-all poller, in memory",
}
"""The service, and the same job done in other ways."""

FIRST_FIGURES: Final = (
    ("S1", "posts_per_second", "tasks of 100 ms: POSTs per second"),
    ("S1", "cpu_ms", "CPU time of one, from request to outcome, ms"),
    ("S1", "calls", "calls of VCDA for one"),
    ("S1", "overlapping", "syncs that overlapped another of their replication"),
    ("S2", "lag_p50_s", "tasks of 20 s: from an end to its outcome, median, s"),
)
"""Those that say what the others save, and what that costs."""

SETTINGS_HEAD: Final = """\
# Settings

Made by `python -m tools.tables` from `service/settings/model.py`; `vm-sync settings` prints the same, with the current
values and their sources.

A setting is an environment variable, or a file of that name without its prefix in `VM_SYNC_SECRETS_DIR`, case ignored:
`VM_SYNC_VCDA__CREDENTIALS__PASSWORD` may be the file `vcda__credentials__password`. The variable wins. Durations are
ISO 8601: `PT30S`, `PT5M`, `PT6H`, a hundred years at most. A misspelt name, an invalid value or a missing setting stops
the start with exit code 2, and one line for each. Variables and files are read in the same way: as UTF-8, without a
byte order mark and without newlines at the end; blanks are kept.

Files of certificates are read again when they change, for new connections. Certificates are verified alike on each
Python: an authority's certificate may lack the extensions that Python 3.13 demands by default, and the file of
authorities may contain an intermediate authority or the server's own certificate. VCDA's credentials are read at each
login, all other settings at the start. Variables that libraries read by themselves are ignored if they could do harm:
`PROMETHEUS_MULTIPROC_DIR`, `SSLKEYLOGFILE`, `WEB_CONCURRENCY`, `HTTPS_PROXY` ...
"""

METRICS_HEAD: Final = """\
# Metrics

Made by `python -m tools.tables` from `service/observability/metrics.py`; served at `/metrics`, as Prometheus text or
OpenMetrics. No label ever holds an id. `site` is `local`, a configured or authenticated site's name, or `other`.

The process also exports Python's metrics (`process_*`, `python_gc_*`). What to alert on is in
[deploy/monitoring/rules.yaml](../deploy/monitoring/rules.yaml), what to do then in the [runbook](runbook.md).
"""


WORDS: Final = (
    ("vm_sync_requests_total", "result", RESULTS.values()),
    ("vm_sync_dead_letters_total", "reason", DeadLetterReason),
    ("vm_sync_outcomes_total, vm_sync_duration_seconds", "outcome", OUTCOMES),
    ("vm_sync_outcomes_total", "reason", Reason),
    ("vm_sync_in_flight", "state", STATES),
    ("vm_sync_waiting", "cause", WaitCause),
    ("vm_sync_api_requests_total, vm_sync_api_request_duration_seconds", "operation", OPERATIONS),
    ("vm_sync_api_requests_total", "status", STATUSES),
    ("vm_sync_session_logins_total", "result", LOGINS),
    ("vm_sync_partitions_stopped", "reason", StopReason),
)
"""The values of the labels. A status that means something by itself is given by its number."""


def settings_page() -> str:
    """Return docs/settings.md."""
    parts = [SETTINGS_HEAD]
    for name, rows in groupby(settings.describe(), key=lambda row: _part(row.name)):
        parts.append(f"\n## {_title(name)}\n\n")
        cells = [(f"`{row.name}`", row.type, _code(row.default), row.meaning, row.why) for row in rows]
        parts.append(_table(("setting", "type", "default", "meaning", "why this default"), cells))
    return "".join(parts)


def metrics_page() -> str:
    """Return docs/metrics.md."""
    cells = [(f"`{m.name}`", m.kind, _labels(m), m.help) for m in METRICS]
    words = [(f"`{label}`", _codes(names.split(", ")), _codes(found)) for names, label, found in WORDS]
    return (
        f"{METRICS_HEAD}\n{_table(('metric', 'type', 'labels', 'meaning'), cells)}"
        f"\n## What the labels can be\n\n{_table(('label', 'of', 'words'), words)}"
    )


def readme(text: str) -> str:
    """Return the README's text with its generated parts updated."""
    rows = {row.name: row for row in settings.describe()}
    known = {m.name: m for m in METRICS}
    measured = Results.read(MEASURED)
    made = {
        "figures": _table(
            ("", *COMPARED.values()),
            [
                (what, *(_middle(measured, scenario, subject, figure) for subject in COMPARED))
                for scenario, figure, what in FIRST_FIGURES
            ],
        ),
        "settings": _table(
            ("setting", "default", "meaning"),
            [(f"`{name}`", _code(rows[name].default), rows[name].meaning) for name in FIRST_SETTINGS],
        ),
        "metrics": _table(
            ("metric", "labels", "meaning"),
            [(f"`{name}`", _labels(known[name]), known[name].help) for name in FIRST_METRICS],
        ),
    }
    for name, table in made.items():
        text = _with(text, name, table)
    return text


def runbook(text: str) -> str:
    """Return the runbook's text with its list of alerts updated."""
    cells = [
        (f"[{alert}](#{alert.lower()})", rule["labels"]["severity"], rule["annotations"]["summary"])
        for alert, rule in alerts().items()
    ]
    return _with(text, "alerts", _table(("alert", "severity", "what it says"), cells))


def _with(text: str, name: str, table: str) -> str:
    """Return a page's text with one generated part replaced."""
    begin, end = f"<!-- made: {name} -->", "<!-- /made -->"
    before, found, rest = text.partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        msg = f"the page has no part between {begin} and {end}"
        raise ValueError(msg)
    return f"{before}{begin}\n\n{table}\n{end}{after}"


def _middle(measured: Results, scenario: str, subject: str, figure: str) -> str:
    middle = measured.middle(scenario, subject, figure)
    return "not measured" if middle is None else number(middle)


def _part(name: str) -> str:
    first, between, _ = name.removeprefix(PREFIX).partition(BETWEEN)
    return first.lower() if between else ""


def _title(part: str) -> str:
    """Return a group's heading: what its model says of itself."""
    if not part:
        return "Folder of settings files"
    model = Settings.model_fields[part].annotation
    sentence = (getattr(model, "__doc__", None) or part).strip().splitlines()[0]
    return sentence.removesuffix(".")


def _labels(metric: Metric) -> str:
    return _codes(metric.labels)


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _code(default: str) -> str:
    return f"`{default}`" if default not in {"", "required"} else default


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def main() -> None:
    """Write into the repository."""
    SETTINGS.write_text(settings_page(), encoding="utf-8")
    METRICS_PAGE.write_text(metrics_page(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    RUNBOOK.write_text(runbook(RUNBOOK.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
