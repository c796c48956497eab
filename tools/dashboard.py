"""Makes Grafana's dashboard, deploy/monitoring/dashboard.json, from the panels below: `python -m tools.dashboard`.

A dashboard's JSON can't be reviewed; a list of panels, each with its question and its query, can. Every panel says what
is good, and leads to the runbook where an alert watches the same thing. It never holds a data source's name or an
address: the data source is a variable, and where the runbook lies is taken from the alerts.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

import yaml
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

MONITORING: Final = Path(__file__).resolve().parents[1] / "deploy" / "monitoring"

# What each query is narrowed down to by the variables at the top.
SERVICE: Final = 'namespace=~"$namespace"'
HERE: Final = f'{SERVICE}, instance=~"$instance"'
SITE: Final = f'{HERE}, site=~"$site"'
JOB: Final = f'job="vm-sync", {HERE}'

SECONDS: Final = "s"
SHARE: Final = "percentunit"
COUNT: Final = "short"
PER_SECOND: Final = "cps"
BYTES: Final = "bytes"

DATASOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One question and its answer.

    `queries` are pairs of a PromQL expression and what to call its series. `warn` and `bad` colour a value from there
    on; where less is worse, `bad` is below `warn`. `alert` names the alert that watches the same thing.
    """

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    unit: str = COUNT
    warn: float | None = None
    bad: float | None = None
    alert: str | None = None
    stacked: bool = False


class Stat(Panel):
    """A number, six to a line."""


class Graph(Panel):
    """A curve, two to a line."""


def quantiles(metric: str, by: str, where: str, *ranks: float) -> tuple[tuple[str, str], ...]:
    """Return the queries for some quantiles of a histogram, apart by a label, or all together for the label ''."""
    together = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    rate = f"sum by ({together}) (rate({metric}_bucket{{{where}}}[$__rate_interval]))"
    return tuple((f"histogram_quantile({rank}, {rate})", f"{legend}p{rank * 100:g}") for rank in ranks)


def ratio(part: str, whole: str) -> str:
    """Return the query for a part's share."""
    return f"{part} / {whole}"


def mean(metric: str, where: str, legend: str) -> tuple[tuple[str, str], ...]:
    """Return the query for a histogram's mean."""
    total, number = (
        f"sum by (instance) (rate({metric}_{part}{{{where}}}[$__rate_interval]))" for part in ("sum", "count")
    )
    return ((ratio(total, number), legend),)


ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "Is it doing its job?",
        (
            Stat(
                title="In flight",
                about="Requests accepted whose sync is not over. They stand in the journal: a restart loses none.",
                queries=((f"sum(vm_sync_in_flight{{{SITE}}})", ""),),
                warn=25_000,
                bad=50_000,
                alert="VmSyncSiteFillsCapacity",
            ),
            Stat(
                title="Oldest request",
                about="Time since the acceptance of the oldest request in flight. The default deadline is 6 h.",
                queries=((f"max(vm_sync_oldest_in_flight_seconds{{{SITE}}})", ""),),
                unit=SECONDS,
                warn=10_800,
                bad=16_200,
                alert="VmSyncRequestNearDeadline",
            ),
            Stat(
                title="Failed in the last hour",
                about="Share of the outcomes that are failures, whatever the reason.",
                queries=(
                    (
                        ratio(
                            f'sum(increase(vm_sync_outcomes_total{{{SITE}, outcome="failed"}}[1h]))',
                            f"sum(increase(vm_sync_outcomes_total{{{SITE}}}[1h]))",
                        ),
                        "",
                    ),
                ),
                unit=SHARE,
                warn=0.05,
                bad=0.2,
                alert="VmSyncSiteFailing",
            ),
            Stat(
                title="Told within 10 s",
                about="Share of the outcomes within 10 s of their task's end, in the time shown. We promise 99 %.",
                queries=(
                    (
                        ratio(
                            f'sum(increase(vm_sync_detection_lag_seconds_bucket{{{SITE}, le="10.0"}}[$__range]))',
                            f"sum(increase(vm_sync_detection_lag_seconds_count{{{SITE}}}[$__range]))",
                        ),
                        "",
                    ),
                ),
                unit=SHARE,
                warn=0.999,
                bad=0.99,
                alert="VmSyncOutcomesLateFast",
            ),
            Stat(
                title="Partitions without owner",
                about="Partitions open in no instance. Some, for seconds, during a hand-over.",
                queries=(
                    (
                        f"max(vm_sync_partitions{{{SERVICE}}}) - sum(vm_sync_partitions_owned{{{SERVICE}}})",
                        "",
                    ),
                ),
                warn=1,
                bad=1,
                alert="VmSyncPartitionWithoutOwner",
            ),
            Stat(
                title="Requests lost",
                about="Requests deleted from the topic before they could be read, in the time shown.",
                queries=((f"sum(increase(vm_sync_requests_lost_total{{{HERE}}}[$__range]))", ""),),
                warn=1,
                bad=1,
                alert="VmSyncRequestsLost",
            ),
            Graph(
                title="Messages read",
                about="By result: accepted, duplicate, or invalid.",
                queries=(
                    (f"sum by (result) (rate(vm_sync_requests_total{{{HERE}}}[$__rate_interval]))", "{{result}}"),
                ),
                unit=PER_SECOND,
                alert="VmSyncConsumerStalled",
            ),
            Graph(
                title="Outcomes",
                about="Completed, and failed by reason.",
                queries=(
                    (
                        f"sum by (outcome, reason) (rate(vm_sync_outcomes_total{{{SITE}}}[$__rate_interval]))",
                        "{{outcome}} {{reason}}",
                    ),
                ),
                unit=PER_SECOND,
                alert="VmSyncNothingEnds",
            ),
            Graph(
                title="Time from a task's end to its outcome",
                about="What polling adds. Promised: 99 % within 10 s.",
                queries=quantiles("vm_sync_detection_lag_seconds", "", SITE, 0.5, 0.95, 0.99),
                unit=SECONDS,
                warn=10,
                bad=10,
                alert="VmSyncOutcomesLateSlow",
            ),
            Graph(
                title="Time from acceptance to outcome",
                about="Most of it is the sync at VCDA, and waiting for a slot.",
                queries=quantiles("vm_sync_duration_seconds", "outcome", SITE, 0.5, 0.95),
                unit=SECONDS,
                bad=21_600,
                alert="VmSyncRequestNearDeadline",
            ),
        ),
    ),
    (
        "Per site",
        (
            Graph(
                title="In flight, by site",
                about="A site whose number only grows doesn't answer, or is overloaded.",
                queries=((f"sum by (site) (vm_sync_in_flight{{{SITE}}})", "{{site}}"),),
                alert="VmSyncSiteFillsCapacity",
                stacked=True,
            ),
            Graph(
                title="In flight, by state",
                about="Waiting for a slot; submitting; in doubt, until a look-up is conclusive; running.",
                queries=((f"sum by (state) (vm_sync_in_flight{{{SITE}}})", "{{state}}"),),
                stacked=True,
            ),
            Graph(
                title="Waiting, by cause",
                about="What requests wait for before their POST; no_credentials: also syncs that are not polled.",
                queries=((f"sum by (site, cause) (vm_sync_waiting{{{SITE}}}) > 0", "{{site}}: {{cause}}"),),
                stacked=True,
            ),
            Graph(
                title="Oldest request, by site",
                about="It should fall whenever the oldest ends. The default deadline is 6 h.",
                queries=((f"max by (site) (vm_sync_oldest_in_flight_seconds{{{SITE}}})", "{{site}}"),),
                unit=SECONDS,
                warn=10_800,
                bad=16_200,
                alert="VmSyncRequestNearDeadline",
            ),
            Graph(
                title="Replications held, by site",
                about="Their tasks are still unfinished at VCDA, more than 24 h after the deadline of their requests.",
                queries=((f"sum by (site) (vm_sync_replications_held{{{SITE}}})", "{{site}}"),),
                warn=1,
                alert="VmSyncReplicationHeld",
            ),
            Graph(
                title="Failures in the last hour, by site",
                about="Share of each site's outcomes.",
                queries=(
                    (
                        ratio(
                            f'sum by (site) (increase(vm_sync_outcomes_total{{{SITE}, outcome="failed"}}[1h]))',
                            f"sum by (site) (increase(vm_sync_outcomes_total{{{SITE}}}[1h]))",
                        ),
                        "{{site}}",
                    ),
                ),
                unit=SHARE,
                bad=0.2,
                alert="VmSyncSiteFailing",
            ),
            Graph(
                title="Held back",
                about="Share of the time in which Retry-After or the circuit breaker holds a site's requests back.",
                queries=(
                    (f"max by (site) (avg_over_time(vm_sync_api_paused{{{SITE}}}[$__rate_interval]))", "{{site}}"),
                ),
                unit=SHARE,
                bad=0.8,
                alert="VmSyncSitePaused",
            ),
            Graph(
                title="Most overdue poll",
                about="Delay of the most overdue poll. Long while a site is paused.",
                queries=((f"max by (site) (vm_sync_poll_overdue_seconds{{{SITE}}})", "{{site}}"),),
                unit=SECONDS,
                warn=60,
                bad=120,
                alert="VmSyncPollsOverdue",
            ),
        ),
    ),
    (
        "VCDA's API",
        (
            Graph(
                title="Calls, by operation and answer",
                about="A few 401 of polls and submits are normal: the session had expired.",
                queries=(
                    (
                        f"sum by (operation, status) (rate(vm_sync_api_requests_total{{{HERE}}}[$__rate_interval]))",
                        "{{operation}} {{status}}",
                    ),
                ),
                unit=PER_SECOND,
                alert="VmSyncSitePaused",
            ),
            Graph(
                title="Time of a call",
                about="95th percentile. A call is given up after VCDA__REQUEST_TIMEOUT, 30 s by default.",
                queries=quantiles("vm_sync_api_request_duration_seconds", "operation", HERE, 0.95),
                unit=SECONDS,
                bad=30,
            ),
            Graph(
                title="Sessions",
                about="1 while the instance has a session at VCDA.",
                queries=((f"vm_sync_session_open{{{HERE}}}", "{{instance}}"),),
                alert="VmSyncNotLoggedIn",
            ),
            Graph(
                title="Calls without credentials",
                about="Calls a second that are not made, as VCDA__SITES has no credentials for the site.",
                queries=(
                    (
                        f"sum by (site) (rate(vm_sync_calls_without_credentials_total{{{SITE}}}[$__rate_interval]))",
                        "{{site}}",
                    ),
                ),
                warn=1,
                alert="VmSyncCredentialsMissing",
            ),
            Graph(
                title="Logins",
                about="One for each instance and day. Refused ones are about credentials.",
                queries=(
                    (
                        f"sum by (result) (increase(vm_sync_session_logins_total{{{HERE}}}[$__rate_interval]))",
                        "{{result}}",
                    ),
                ),
                alert="VmSyncLoginFailing",
            ),
            Graph(
                title="Tasks asked after in one call",
                about="Mean; 100 at most. More is better: fewer calls for the same number of tasks.",
                queries=(
                    (
                        ratio(
                            f"sum by (site) (rate(vm_sync_poll_batch_size_sum{{{SITE}}}[$__rate_interval]))",
                            f"sum by (site) (rate(vm_sync_poll_batch_size_count{{{SITE}}}[$__rate_interval]))",
                        ),
                        "{{site}}",
                    ),
                ),
            ),
            Graph(
                title="Adopted tasks, repeated POSTs, unknown states",
                about="Adopted: a look-up found the task. Repeated: no task was found. Unknown: the log has the state.",
                queries=(
                    (f"sum(increase(vm_sync_tasks_adopted_total{{{HERE}}}[$__rate_interval]))", "adopted"),
                    (f"sum(increase(vm_sync_posts_repeated_total{{{HERE}}}[$__rate_interval]))", "repeated"),
                    (f"sum(increase(vm_sync_unknown_task_states_total{{{HERE}}}[$__rate_interval]))", "unknown state"),
                ),
                alert="VmSyncUnknownTaskState",
            ),
        ),
    ),
    (
        "Kafka and journal",
        (
            Graph(
                title="Partitions, by owner",
                about="Open in each instance. Together they are all of them, but for hand-overs.",
                queries=(
                    (f"vm_sync_partitions_owned{{{HERE}}}", "{{instance}}"),
                    (f"max(vm_sync_partitions{{{SERVICE}}})", "all"),
                ),
                alert="VmSyncPartitionWithoutOwner",
            ),
            Graph(
                title="Stopped and reopened partitions",
                about="Stopped: waits for an operator. Reopened: recovered by itself.",
                queries=(
                    (f"sum by (reason) (vm_sync_partitions_stopped{{{HERE}}})", "stopped: {{reason}}"),
                    (f"sum(increase(vm_sync_partitions_reopened_total{{{HERE}}}[$__rate_interval]))", "reopened"),
                    (f"sum(increase(vm_sync_journals_rewritten_total{{{HERE}}}[$__rate_interval]))", "rewritten"),
                ),
                alert="VmSyncPartitionStopped",
            ),
            Graph(
                title="Kafka reached",
                about="1 while Kafka answers.",
                queries=((f"vm_sync_kafka_connected{{{HERE}}}", "{{instance}}"),),
                alert="VmSyncKafkaDisconnected",
            ),
            Graph(
                title="Reading at a standstill",
                about="How long unread records of a partition have not been read although the partition is not full.",
                queries=((f"vm_sync_reading_stalled_seconds{{{HERE}}}", "{{instance}}"),),
                unit=SECONDS,
                bad=60,
                alert="VmSyncReadingStalled",
            ),
            Graph(
                title="Time of a transaction",
                about="3 to 25 ms are good. Each step of a request waits for one.",
                queries=quantiles("vm_sync_journal_commit_seconds", "", HERE, 0.5, 0.99),
                unit=SECONDS,
                bad=1,
                alert="VmSyncCommitsSlow",
            ),
            Graph(
                title="Records in a transaction",
                about="Mean. Under load many changes share one.",
                queries=mean("vm_sync_journal_commit_records", HERE, "{{instance}}"),
            ),
            Graph(
                title="Time to open a partition",
                about="Mean. It is how long a hand-over keeps a partition idle.",
                queries=mean("vm_sync_journal_restore_seconds", HERE, "{{instance}}"),
                unit=SECONDS,
                bad=10,
                alert="VmSyncRestoreSlow",
            ),
            Graph(
                title="Dead letters, and requests without key",
                about="Invalid messages by reason; and requests without a key, whose order Kafka does not keep.",
                queries=(
                    (
                        f"sum by (reason) (increase(vm_sync_dead_letters_total{{{HERE}}}[$__rate_interval]))",
                        "{{reason}}",
                    ),
                    (f"sum(increase(vm_sync_requests_without_key_total{{{HERE}}}[$__rate_interval]))", "without key"),
                    (f"sum(increase(vm_sync_requests_with_other_key_total{{{HERE}}}[$__rate_interval]))", "other key"),
                ),
                alert="VmSyncDeadLetters",
            ),
            Graph(
                title="Records read, by fate",
                about="Offsets of the requests topic by the record's fate. Unaccounted: read and skipped.",
                queries=(
                    (f"sum by (fate) (increase(vm_sync_records_total{{{HERE}}}[$__rate_interval]))", "{{fate}}"),
                    (f"sum(vm_sync_records_unaccounted{{{HERE}}})", "unaccounted"),
                ),
                alert="VmSyncRecordsSkipped",
            ),
            Graph(
                title="Remembered identities",
                about="Ended requests kept in memory to recognise duplicates, for SYNC__DEDUPLICATE_FOR.",
                queries=((f"sum by (instance) (vm_sync_identities_remembered{{{HERE}}})", "{{instance}}"),),
            ),
        ),
    ),
    (
        "Process",
        (
            Graph(
                title="Event loop's lag",
                about="99th percentile. Half a second is a quarter of what a POST has to begin in.",
                queries=quantiles("vm_sync_event_loop_lag_seconds", "instance", HERE, 0.99),
                unit=SECONDS,
                warn=0.1,
                bad=0.5,
                alert="VmSyncEventLoopLagging",
            ),
            Graph(
                title="Log lines dropped",
                about="Log lines dropped, since their reader was too slow.",
                queries=((f"increase(vm_sync_log_lines_dropped_total{{{HERE}}}[$__rate_interval])", "{{instance}}"),),
                warn=1,
                alert="VmSyncLogLinesDropped",
            ),
            Graph(
                title="CPU",
                about="Cores in use. One is all that a process can use.",
                queries=((f"rate(process_cpu_seconds_total{{{JOB}}}[$__rate_interval])", "{{instance}}"),),
                warn=0.8,
                bad=0.95,
            ),
            Graph(
                title="Memory",
                about="Resident. It grows with what is in flight and with the remembered identities.",
                queries=((f"process_resident_memory_bytes{{{JOB}}}", "{{instance}}"),),
                unit=BYTES,
            ),
            Graph(
                title="Settings in use",
                about="Instances by the hash of their settings. Two hashes for a long time: instances differ.",
                queries=((f"count by (hash) (vm_sync_config_hash{{{HERE}}})", "{{hash}}"),),
                alert="VmSyncSettingsDiffer",
                stacked=True,
            ),
            Graph(
                title="Instances and versions",
                about="Two versions for a long time mean a stuck upgrade.",
                queries=(
                    (f"count by (version, python) (vm_sync_build_info{{{HERE}}})", "{{version}}, Python {{python}}"),
                ),
                alert="VmSyncInstanceDown",
                stacked=True,
            ),
        ),
    ),
)


def built(panel: Panel, *, number: int, runbooks: dict[str, str]) -> timeseries.Panel | stat.Panel:
    """Return the panel as Grafana's builder has it."""
    made: timeseries.Panel | stat.Panel
    if isinstance(panel, Stat):
        made = (
            stat.Panel()
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            .color_mode(BigValueColorMode.VALUE)
            .graph_mode(BigValueGraphMode.AREA)
            .height(4)
            .span(4)
        )
    else:
        made = (
            timeseries.Panel()
            .legend(
                common.VizLegendOptions()
                .show_legend(show_legend=True)
                .display_mode(LegendDisplayMode.LIST)
                .placement(LegendPlacement.BOTTOM)
            )
            .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
            .fill_opacity(30 if panel.stacked else 8)
            .stacking(common.StackingConfig().mode(StackingMode.NORMAL if panel.stacked else StackingMode.NONE))
            .axis_soft_min(0)
            .height(7)
            .span(12)
        )
        if panel.bad is not None:
            made.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    made.id(number).title(panel.title).description(panel.about).unit(panel.unit).datasource(DATASOURCE)
    made.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps(panel)))
    if panel.alert:
        made.links(
            [
                dashboard.DashboardLink(f"Runbook: {panel.alert}")
                .url(runbooks[panel.alert])
                .target_blank(target_blank=True)
            ]
        )
    for ref, (expression, legend) in zip("ABCDEFGH", panel.queries, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref)
        made.with_target(query.instant() if isinstance(panel, Stat) else query.range())
    return made


def steps(panel: Panel) -> list[Threshold]:
    """Return the colours of values: green to red, or red to green where less is worse."""
    if panel.bad is None:
        return [Threshold(value=None, color="green")]
    if panel.warn is None or panel.warn == panel.bad:
        return [Threshold(value=None, color="green"), Threshold(value=panel.bad, color="red")]
    if panel.bad < panel.warn:
        return [
            Threshold(value=None, color="red"),
            Threshold(value=panel.bad, color="orange"),
            Threshold(value=panel.warn, color="green"),
        ]
    return [
        Threshold(value=None, color="green"),
        Threshold(value=panel.warn, color="orange"),
        Threshold(value=panel.bad, color="red"),
    ]


def variables() -> Iterable[dashboard.QueryVariable | dashboard.DatasourceVariable]:
    """Return what can be chosen at the top: where the numbers come from, and which of them."""
    yield dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    for name, label, query in (
        ("namespace", "Namespace", "label_values(vm_sync_build_info, namespace)"),
        ("instance", "Instance", 'label_values(vm_sync_build_info{namespace=~"$namespace"}, instance)'),
        ("site", "Site", 'label_values(vm_sync_in_flight{namespace=~"$namespace"}, site)'),
    ):
        yield (
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(DATASOURCE)
            .query({"query": query, "refId": name})
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(multi=True)
            .include_all(include_all=True)
            # Everything, also what has no such label: outside Kubernetes there may be no namespace.
            .all_value(".*")
            .current(VariableOption(selected=True, text="All", value="$__all"))
        )


def runbook_urls(rules: str) -> dict[str, str]:
    """Return each alert's runbook."""
    return {
        rule["alert"]: rule["annotations"]["runbook_url"]
        for group in yaml.safe_load(rules)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }


def render(rules: str) -> str:
    """Return the dashboard's JSON; `rules` is the text of rules.yaml."""
    runbooks = runbook_urls(rules)
    board = (
        dashboard.Dashboard("vm-sync")
        .uid("vm-sync")
        .description("Syncs of VM replications: whether they end, how soon that is told, and what stands in the way.")
        .tags(["vm-sync"])
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
    )
    for variable in variables():
        board.with_variable(variable)
    number = count(1)
    for title, panels in ROWS:
        board.with_row(dashboard.Row(title).id(next(number)))
        for panel in panels:
            board.with_panel(built(panel, number=next(number), runbooks=runbooks))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write the dashboard beside the rules."""
    (MONITORING / "dashboard.json").write_text(render((MONITORING / "rules.yaml").read_text()))


if __name__ == "__main__":
    main()
