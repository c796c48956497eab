"""Every PromQL expression of the repository, with where it stands: rules, dashboard, runbook, autoscaling.

One list for whoever wants to know whether they are valid, name metrics that exist, or yield something.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
RUNBOOK = ROOT / "docs" / "runbook.md"
SCALED_OBJECT = ROOT / "deploy" / "kubernetes" / "overlays" / "keda" / "scaledobject.yaml"

GRAFANA_VARIABLES = {"$__rate_interval": "5m", "$__range": "6h"}
"""What Grafana puts in for its own variables; any other one is a label's value, and becomes `.*`."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A PromQL expression, ready to be evaluated, and a place to point at when it is wrong."""

    where: str
    promql: str


def all_expressions() -> list[Expression]:
    """Collect them all."""
    return [*_of_rules(), *_of_dashboard(), *_of_runbook(), *_of_autoscaling()]


@cache
def rules() -> list[dict[str, Any]]:
    """Return all rules, recording and alerting, in their order."""
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """Return the alerting rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def _of_rules() -> Iterator[Expression]:
    for rule in rules():
        yield Expression(f"rules.yaml: {rule.get('alert') or rule['record']}", rule["expr"])


def board() -> dict[str, Any]:
    """Return the dashboard."""
    read: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return read


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels, those in folded rows too; rows left out."""
    of_rows = [inner for panel in board()["panels"] for inner in panel.get("panels") or ()]
    return [panel for panel in [*board()["panels"], *of_rows] if panel["type"] != "row"]


def _of_dashboard() -> Iterator[Expression]:
    for panel in panels():
        for target in panel["targets"]:
            yield Expression(f"dashboard.json: {panel['title']}", plain(target["expr"]))
    for annotation in board()["annotations"]["list"]:
        yield Expression(f"dashboard.json: {annotation['name']}", plain(annotation["expr"]))


def plain(promql: str) -> str:
    """Return a query of the dashboard as Prometheus takes it, with all that can be chosen chosen."""
    for name, value in GRAFANA_VARIABLES.items():
        promql = promql.replace(name, value)
    return re.sub(r"\$\w+", ".*", promql)


def sections() -> Mapping[str, str]:
    """Return the text of each section of the runbook by its heading, alerts' pages and others."""
    parts = re.split(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _of_runbook() -> Iterator[Expression]:
    for heading, text in sections().items():
        for block in re.findall(r"^```promql\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            # One query a line: what a person copies at three in the morning.
            yield from (Expression(f"runbook.md: {heading}", line) for line in block.splitlines() if line.strip())


def _of_autoscaling() -> Iterator[Expression]:
    for trigger in yaml.safe_load(SCALED_OBJECT.read_text())["spec"]["triggers"]:
        yield Expression(f"scaledobject.yaml: {trigger['name']}", trigger["metadata"]["query"])
