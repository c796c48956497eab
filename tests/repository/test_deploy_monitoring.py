"""What wakes people is right: each alert fires and stays silent when it should, names what exists, and has its page."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import settings
from service.messages.requests import DeadLetterReason
from service.messages.wait_cause import WaitCause
from service.observability import metrics
from service.sync import Reason
from tests.conftest import missing
from tests.support.expressions import (
    MONITORING,
    ROOT,
    RUNBOOK,
    Expression,
    alerts,
    all_expressions,
    board,
    panels,
    rules,
    sections,
)
from tools import dashboard, prometheusrule

TABLE = {metric.name: metric for metric in metrics.METRICS}

ELSEWHERE = {
    "up": {"job"},
    "process_cpu_seconds_total": {"job"},
    "process_max_fds": {"job"},
    "process_open_fds": {"job"},
    "process_resident_memory_bytes": {"job"},
    "process_start_time_seconds": {"job"},
    "kafka_consumergroup_lag": {"consumergroup", "topic", "partition"},
    "kafka_consumergroup_current_offset": {"consumergroup", "topic", "partition"},
}
"""Metrics that are not the service's own: Prometheus', the client library's, a Kafka exporter's; with their labels."""

SCRAPED = {"namespace", "instance"}
"""Labels that each target has, in Kubernetes by the PodMonitor, under compose by prometheus.yaml."""

WORDS: dict[str, set[str]] = {
    "result": {*metrics.RESULTS.values(), *metrics.LOGINS},
    "outcome": set(metrics.OUTCOMES),
    "state": set(metrics.STATES),
    "cause": set(WaitCause),
    "operation": set(metrics.OPERATIONS),
    "status": set(metrics.STATUSES),
    "job": {"vm-sync"},
    "topic": {settings.Topics().requests},
    "consumergroup": {settings.Kafka().group_id},
}
"""The values that a label can have, where they are words of ours."""

THRESHOLDS: dict[str, tuple[str, tuple[str, float]]] = {
    "Oldest request": ("VmSyncRequestNearDeadline", ("16200", 16_200)),
    "Largest site of an instance": ("VmSyncSiteFillsCapacity", ("25000", 25_000)),
    "Failed in the last hour": ("VmSyncSiteFailing", ("0.2", 0.2)),
    "Failures in the last hour, by site": ("VmSyncSiteFailing", ("0.2", 0.2)),
    "Logins refused": ("VmSyncLoginFailing", ("2", 3)),
    "Held back": ("VmSyncSitePaused", ("0.8", 0.8)),
    "Most overdue poll": ("VmSyncPollsOverdue", ("120", 120)),
    "Reading at a standstill": ("VmSyncReadingStalled", ("60", 60)),
    "Held back by a sender's transaction": ("VmSyncTransactionOpen", ("90", 90)),
    "Time of a transaction": ("VmSyncCommitsSlow", ("1", 1)),
    "Event loop's lag": ("VmSyncEventLoopLagging", ("0.5", 0.5)),
}
"""Panels with the alert that watches the same number: its limit as the rules have it, and as the panel colours it."""

TEST_GROUPS = yaml.safe_load((MONITORING / "rules_test.yaml").read_text())["tests"]


def promtool(*arguments: str) -> str:
    if (program := shutil.which("promtool")) is None:
        missing("promtool is not installed: apt-get install prometheus")
    environment = {**os.environ, "GOGC": "400"}  # a third of its time else goes into collecting garbage
    run = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


# ---------------------------------------------------------------- rules


def test_prometheus_accepts_the_rules_and_the_configuration_that_loads_them() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(MONITORING / "rules.yaml"))
    promtool("check", "config", str(MONITORING / "prometheus.yaml"))


def test_every_alert_fires_and_stays_silent_as_its_tests_say() -> None:
    promtool("test", "rules", str(MONITORING / "rules_test.yaml"))


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_has_a_test_that_it_fires_and_one_that_it_stays_silent(alert: str) -> None:
    fires = {bool(test["exp_alerts"]) for group in TEST_GROUPS for test in _tests(group) if test["alertname"] == alert}

    assert fires == {True, False}


def _tests(group: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    return group["alert_rule_test"]


def test_the_tests_of_the_rules_are_named_as_sentences_each_its_own() -> None:
    names = [group["name"] for group in TEST_GROUPS]

    assert len(set(names)) == len(names)
    assert all(len(name.split()) >= 4 for name in names)


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_says_how_bad_it_is_for_how_long_it_waits_what_it_means_and_where_to_read_on(alert: str) -> None:
    rule = alerts()[alert]

    assert alert.startswith("VmSync")
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"].endswith(f"docs/runbook.md#{alert.lower()}")


def test_recorded_series_are_all_used_and_all_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = set(re.findall(r"\bnamespace:\w+:\w+", " ".join(e.promql for e in all_expressions())))

    assert named == recorded


def test_the_operators_object_holds_the_same_rules() -> None:
    text = (MONITORING / "rules.yaml").read_text()
    made = (MONITORING / "prometheusrule.yaml").read_text()

    assert made == prometheusrule.prometheusrule(text), "run: python -m tools.prometheusrule"
    assert yaml.safe_load(made)["spec"] == yaml.safe_load(text)


# ---------------------------------------------------------------- what expressions name


def expressions() -> list[Expression]:
    return all_expressions()


@pytest.mark.parametrize("expression", expressions(), ids=lambda e: e.where)
def test_an_expression_names_metrics_that_exist_with_labels_and_words_that_they_have(expression: Expression) -> None:
    for name, labels in selectors(expression.promql):
        assert name in ELSEWHERE or family(name) in TABLE, f"there is no {name}"
        assert {label for label, _ in labels} <= labels_of(name), f"{name} has no such label"
        for label, value in labels:
            if label in WORDS and value != ".*":
                assert set(value.split("|")) <= WORDS[label], f"{label} is never {value}"


def test_every_word_that_looks_like_a_metric_of_ours_is_one() -> None:
    for expression in expressions():
        for name in re.findall(r"(?<![\w:])vm_sync_\w+", expression.promql):
            assert family(name) in TABLE, f"{expression.where}: there is no {name}"


def selectors(promql: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the metrics of an expression, each with the labels and values that it is narrowed down by."""
    pattern = r"(?<![\w:])((?:vm_sync|process|kafka)_\w+|up\b)(?:\{([^}]*)\})?"
    for name, inside in re.findall(
        pattern, re.sub(r'"[^"]*"', lambda m: m[0].replace("{", "(").replace("}", ")"), promql)
    ):
        yield name, re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', inside)


def family(name: str) -> str:
    """Return the metric that a series belongs to: a histogram's is written with another ending."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return base if base in TABLE and TABLE[base].kind == "histogram" else name


def labels_of(name: str) -> set[str]:
    if name in ELSEWHERE:
        return ELSEWHERE[name] | SCRAPED
    return {*TABLE[family(name)].labels, *SCRAPED} | ({"le"} if name.endswith("_bucket") else set())


def test_every_expression_is_one_that_prometheus_can_evaluate(tmp_path: Path) -> None:
    recorded = [{"record": f"tested:{n}", "expr": e.promql} for n, e in enumerate(expressions())]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))

    assert f"{len(recorded)} rules found" in promtool("check", "rules", str(tmp_path / "all.yaml"))


def test_the_promises_ten_seconds_are_a_bucket_of_the_histogram_spelled_as_it_is_exposed() -> None:
    bounds = {str(float(bound)) for bound in TABLE["vm_sync_detection_lag_seconds"].buckets}
    used = {le for e in expressions() for le in re.findall(r'detection_lag\w+\{[^}]*le="([^"]+)"', e.promql)}

    assert used == {"10.0"}
    assert used <= bounds


def test_numbers_that_follow_from_a_setting_follow_its_default() -> None:
    sync = settings.Sync()

    assert _limit("VmSyncRequestNearDeadline") == 0.75 * sync.deadline.total_seconds()
    assert _limit("VmSyncNothingEnds", "vm_sync_oldest_in_flight_seconds") == 0.5 * sync.deadline.total_seconds()
    assert _limit("VmSyncSiteFillsCapacity") == sync.max_in_flight / 2
    assert _limit("VmSyncPollsOverdue") == 2 * sync.poll_max.total_seconds()


def _limit(alert: str, metric: str = "") -> float:
    (number,) = re.findall(rf"{metric}\S*\)? > (\d+)$", alerts()[alert]["expr"], flags=re.MULTILINE)[:1]
    return float(number)


# ---------------------------------------------------------------- runbook


DOCUMENTS = (RUNBOOK, ROOT / "deploy" / "README.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_somewhere(document: Path) -> None:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_settings_and_commands_that_people_are_told_of_exist(document: Path) -> None:
    text = document.read_text()
    known = {row.name for row in settings.describe()}
    sections = {name.removeprefix("VM_SYNC_") for name in known}

    of_a_site = {f"VM_SYNC_VCDA__SITES__0__{field}" for field in ("NAME", "USER")}
    assert set(re.findall(r"\bVM_SYNC_\w+__\w+", text)) <= known | of_a_site | {"VM_SYNC_VCDA__SITES"}
    assert set(re.findall(r"(?<!VM_SYNC_)\b(?:SYNC|KAFKA|VCDA|OPS|TOPICS)__\w+", text)) <= sections
    for command in re.findall(r"\bvm-sync ((?:topics|dead-letters)(?: \w+)?)", text):
        assert re.match(r"topics (check|create)|dead-letters (list|show|redrive|discard)", command)


def test_the_runbook_explains_each_reason_for_which_a_request_fails() -> None:
    explained = set(re.findall(r"`([\w-]+)`", sections()["VmSyncSiteFailing"]))

    assert {reason.value for reason in Reason} <= explained


def test_the_reasons_in_the_rules_tests_are_ones_that_exist() -> None:
    text = (MONITORING / "rules_test.yaml").read_text()
    dead = set(re.findall(r'dead_letters_total\{[^}]*reason="([\w-]+)"', text))

    assert dead <= {reason.value for reason in DeadLetterReason}


# ---------------------------------------------------------------- dashboard


def test_the_dashboard_is_the_one_that_its_program_makes() -> None:
    made = dashboard.render()

    assert made == (MONITORING / "dashboard.json").read_text(), "run: python -m tools.dashboard"


def test_every_metric_of_the_service_is_on_the_dashboard() -> None:
    shown = {family(name) for e in expressions() if "dashboard" in e.where for name, _ in selectors(e.promql)}

    assert set(TABLE) <= shown


def test_every_panel_has_a_description_a_unit_and_colours() -> None:
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
        assert panel["datasource"]["uid"] == "${datasource}"


def test_links_are_absolute_by_one_variable_and_lead_to_pages_that_exist() -> None:
    (runbook,) = (variable for variable in board()["templating"]["list"] if variable["name"] == "runbook")
    anchors = {heading.lower().replace(" ", "-") for heading in sections()}

    assert runbook["query"].startswith("https://")
    for panel in panels():
        for link in panel.get("links", []):
            address, _, anchor = link["url"].partition("#")
            assert (address, anchor in anchors) == ("${runbook}", True), link["url"]


def test_the_address_of_the_runbook_is_chosen_when_the_dashboard_is_made() -> None:
    made = dashboard.render(runbook="https://docs.example.com/runbook/")

    assert made.replace("https://docs.example.com/runbook/", dashboard.RUNBOOK) == dashboard.render()


def test_the_first_row_is_open_and_the_others_are_folded() -> None:
    first, *others = (panel for panel in board()["panels"] if panel["type"] == "row")

    assert not first.get("collapsed")
    assert others
    assert all(row["collapsed"] and row["panels"] for row in others)
    assert [panel["title"] for panel in board()["panels"] if panel["type"] != "row"] == [
        panel.title for panel in dashboard.ROWS[0][1]
    ]


def test_the_first_row_says_whether_it_works_what_is_stuck_and_why() -> None:
    asked = " ".join(expression for panel in dashboard.ROWS[0][1] for expression, _ in panel.queries)

    for metric in (
        "ALERTS",
        "vm_sync_kafka_connected",
        "vm_sync_partitions_owned",
        "vm_sync_partitions_stopped",
        "vm_sync_api_paused",
        "vm_sync_waiting",
        "vm_sync_session_open",
        "vm_sync_session_logins_total",
        "vm_sync_oldest_in_flight_seconds",
        "vm_sync_dead_letters_total",
    ):
        assert metric in asked


@pytest.mark.parametrize("panel", [p for p in panels() if p["title"] in THRESHOLDS], ids=lambda p: p["title"])
def test_a_threshold_is_the_alerts_for_what_the_panel_shows(panel: dict[str, Any]) -> None:
    alert, limit = THRESHOLDS[panel["title"]]
    steps = {step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]}

    assert re.search(rf"[<>]=? {limit[0]}$", alerts()[alert]["expr"], flags=re.MULTILINE)
    assert limit[1] in steps
    assert f"{alert.lower()}" in panel["links"][0]["url"]


def test_restarts_rebalances_and_deployments_are_marked() -> None:
    marked = {mark["name"]: mark["expr"] for mark in board()["annotations"]["list"]}

    assert list(marked) == ["Restarts", "Rebalances", "Deployments"]


def test_panels_have_numbers_and_places_of_their_own() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]

    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels()}) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels())


def test_what_can_be_chosen_is_what_the_queries_are_narrowed_down_by() -> None:
    text = (MONITORING / "dashboard.json").read_text()
    variables = set(re.findall(r"\$\{?([a-z]+)\b", text))

    assert variables == {"datasource", "runbook", "namespace", "instance", "site"}
    assert variables == {variable["name"] for variable in board()["templating"]["list"]}
