"""Makes Grafana's dashboard, deploy/monitoring/dashboard.json, from the panels below: `python -m tools.dashboard`.

A dashboard's JSON can't be reviewed; a list of panels, each with its question and its query, can. The first row answers
within seconds whether the service works, what is stuck, and why; the others are folded. Every panel says what is good,
and leads to the runbook where an alert watches the same thing; its thresholds are those of the alert, so it sums what
the alert sums. It never holds a data source's name: that is a variable, and so is the runbook's address (`--runbook`).
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeAlias

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
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
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

MONITORING: Final = Path(__file__).resolve().parents[1] / "deploy" / "monitoring"

# What each query is narrowed down to by the variables at the top.
SERVICE: Final = 'namespace=~"$namespace"'
HERE: Final = f'{SERVICE}, instance=~"$instance"'
SITE: Final = f'{HERE}, site=~"$site"'
JOB: Final = f'job="vm-sync", {HERE}'

ALERTS: Final = 'alertname=~"VmSync.+", alertstate="firing", namespace=~"$namespace|"'
"""An alert on what is missing has no namespace."""

RUNBOOK: Final = "https://git.example.com/vm-sync/blob/main/docs/runbook.md"
"""Where the runbook is, unless `--runbook` says otherwise: of the form alone, as each project has its own address."""

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
    on; where less is worse, `bad` is below `warn`, and `least` is the lowest value that is good. `words` are shown in
    place of numbers, `nothing` where there is no series. `alert` names the alert that watches the same thing.
    """

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    unit: str = COUNT
    warn: float | None = None
    bad: float | None = None
    least: float | None = None
    alert: str | None = None
    stacked: bool = False
    words: tuple[str, ...] = ()
    nothing: str | None = None


class Stat(Panel):
    """A number, eight to a line."""


class Table(Panel):
    """The series that there are now, each a row of its labels, three to a line."""


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
        "Does it work, what is stuck, and why?",
        (
            Stat(
                title="Kafka",
                about="Whether every instance reaches Kafka.",
                queries=((f"min(vm_sync_kafka_connected{{{HERE}}})", ""),),
                least=1,
                words=("away", "reached"),
                nothing="no instance",
                alert="VmSyncKafkaDisconnected",
            ),
            Stat(
                title="Partitions open",
                about="Share of the partitions that are open in an instance. Less for seconds during a hand-over.",
                queries=(
                    (
                        ratio(
                            f"sum(vm_sync_partitions_owned{{{SERVICE}}})", f"max(vm_sync_partitions{{{SERVICE}}}) > 0"
                        ),
                        "",
                    ),
                ),
                unit=SHARE,
                least=1,
                nothing="none",
                alert="VmSyncPartitionWithoutOwner",
            ),
            Stat(
                title="Partitions stopped",
                about="Partitions that wait for an operator. The log and /readyz have the reason.",
                queries=((f"sum(vm_sync_partitions_stopped{{{HERE}}})", ""),),
                bad=1,
                alert="VmSyncPartitionStopped",
            ),
            Stat(
                title="Without session",
                about="Instances that have no session at VCDA.",
                queries=((f"sum(1 - vm_sync_session_open{{{HERE}}})", ""),),
                bad=1,
                alert="VmSyncNotLoggedIn",
            ),
            Stat(
                title="Logins refused",
                about="Refused logins, and extensions to a remote site, in the last 15 minutes.",
                queries=(
                    (
                        (
                            f'sum(increase(vm_sync_session_logins_total{{{HERE}, result="refused"}}[15m])) + '
                            f'sum(increase(vm_sync_api_requests_total{{{HERE}, operation="extend", '
                            f'status=~"401|403|4xx"}}[15m]))'
                        ),
                        "",
                    ),
                ),
                warn=1,
                bad=3,
                alert="VmSyncLoginFailing",
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
                title="Dead letters, 1 h",
                about="Invalid messages of the last hour. None is harmless: each is a request without an outcome.",
                queries=((f"sum(increase(vm_sync_dead_letters_total{{{HERE}}}[1h]))", ""),),
                warn=1,
                alert="VmSyncDeadLetters",
            ),
            Stat(
                title="In flight",
                about="Requests accepted whose sync is not over. They are in the journal: a restart loses none.",
                queries=((f"sum(vm_sync_in_flight{{{SITE}}})", ""),),
                alert="VmSyncNothingEnds",
            ),
            Table(
                title="Firing alerts",
                about="Each has an entry in the runbook.",
                queries=((f"sum by (alertname, severity, site, reason, instance) (ALERTS{{{ALERTS}}})", "alerts"),),
                nothing="none",
            ),
            Table(
                title="Paused sites, and why",
                about="Sites to which calls are paused, with VCDA's answers of the last 5 minutes but successes.",
                queries=(
                    (
                        (
                            f"(sum by (site, operation, status) "
                            f'(increase(vm_sync_api_requests_total{{{SITE}, status!="2xx"}}[5m])) > 0) '
                            f"and on (site) (max by (site) (vm_sync_api_paused{{{SITE}}}) > 0) "
                            f"or on (site) max by (site) (vm_sync_api_paused{{{SITE}}}) > 0 "
                            f"or label_replace(max by (site) (vm_sync_site_paused_by_operator{{{SITE}}}) > 0, "
                            f'"status", "by an operator", "", "")'
                        ),
                        "calls",
                    ),
                ),
                nothing="none",
                alert="VmSyncSitePaused",
            ),
            Table(
                title="Waiting, by cause",
                about="What requests wait for before their POST; no_credentials: also syncs that are not polled.",
                queries=((f"sum by (site, cause) (vm_sync_waiting{{{SITE}}}) > 0", "requests"),),
                nothing="none",
                alert="VmSyncRequestNearDeadline",
            ),
        ),
    ),
    (
        "Requests and outcomes",
        (
            Stat(
                title="Failed in the last hour",
                about="Share of the outcomes that are failures, without those that somebody cancelled.",
                queries=(
                    (
                        ratio(
                            f"sum(increase(vm_sync_outcomes_total"
                            f'{{{SITE}, outcome="failed", reason!="cancelled"}}[1h]))',
                            f'sum(increase(vm_sync_outcomes_total{{{SITE}, reason!="cancelled"}}[1h]))',
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
                title="Within 10 s",
                about="Share of the outcomes within 10 s of their task's end, in the time shown. The objective: 99 %.",
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
                title="Largest site of an instance",
                about="Requests of one site without an outcome, in one instance. It takes 50,000 for all sites.",
                queries=((f'max(sum by (instance, site) (vm_sync_in_flight{{{SITE}, state!="lingering"}}))', ""),),
                warn=25_000,
                bad=50_000,
                alert="VmSyncSiteFillsCapacity",
            ),
            Stat(
                title="Requests lost",
                about="Requests deleted from the topic before they could be read, in the time shown.",
                queries=((f"sum(increase(vm_sync_requests_lost_total{{{HERE}}}[$__range]))", ""),),
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
                about="What polling adds. The objective: 99 % within 10 s.",
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
                title="Waiting, by site and cause",
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
                about="Share of each site's outcomes, without those that somebody cancelled.",
                queries=(
                    (
                        ratio(
                            f"sum by (site) (increase(vm_sync_outcomes_total"
                            f'{{{SITE}, outcome="failed", reason!="cancelled"}}[1h]))',
                            f'sum by (site) (increase(vm_sync_outcomes_total{{{SITE}, reason!="cancelled"}}[1h]))',
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
                title="Paused by an operator",
                about="1 while an operator's pause holds back POSTs to the site.",
                queries=((f"max by (site) (vm_sync_site_paused_by_operator{{{SITE}}})", "{{site}}"),),
                warn=1,
                alert="VmSyncSitePausedByOperator",
            ),
            Graph(
                title="Site pauses unknown",
                about="How long the control topic has not been readable, and its invalid records.",
                queries=(
                    (f"vm_sync_control_unreadable_seconds{{{HERE}}}", "{{instance}}"),
                    (f"vm_sync_control_invalid_records{{{HERE}}}", "{{instance}}: invalid records"),
                ),
                warn=1,
                bad=600,
                alert="VmSyncSitePausesUnknown",
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
            Graph(
                title="Look-ups that fail",
                about="How long look-ups for POSTs in doubt have failed although other calls succeed.",
                queries=((f"max by (site) (vm_sync_look_ups_failing_seconds{{{SITE}}})", "{{site}}"),),
                unit=SECONDS,
                warn=1,
                bad=900,
                alert="VmSyncLookUpsFailing",
            ),
        ),
    ),
    (
        "VCDA's API",
        (
            Graph(
                title="Calls, by site and answer",
                about="All calls, by the site that they are for. A login is for the local site.",
                queries=(
                    (
                        f"sum by (site, status) (rate(vm_sync_api_requests_total{{{SITE}}}[$__rate_interval]))",
                        "{{site}} {{status}}",
                    ),
                ),
                unit=PER_SECOND,
                alert="VmSyncSitePaused",
            ),
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
                about="Calls that are not made, as VCDA__SITES has no credentials for the site.",
                queries=(
                    (
                        (
                            f"sum by (site) "
                            f"(increase(vm_sync_calls_without_credentials_total{{{SITE}}}[$__rate_interval]))"
                        ),
                        "{{site}}",
                    ),
                ),
                warn=1,
                alert="VmSyncCredentialsMissing",
            ),
            Graph(
                title="Logins, by instance",
                about="One for each instance and day. Refused ones are about credentials; an error is no answer.",
                queries=(
                    (
                        (
                            f"sum by (instance, result) "
                            f"(increase(vm_sync_session_logins_total{{{HERE}}}[$__rate_interval])) > 0"
                        ),
                        "{{instance}} {{result}}",
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
                    (
                        f"sum(increase(vm_sync_journals_with_deleted_records_total{{{HERE}}}[$__rate_interval]))",
                        "journal records deleted",
                    ),
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
                title="OAuth token not renewed",
                about="How long an instance has got no new token for Kafka, or Kafka has refused it; 0 without OAuth.",
                queries=((f"vm_sync_kafka_token_failing_seconds{{{HERE}}}", "{{instance}}"),),
                unit=SECONDS,
                bad=60,
                alert="VmSyncKafkaTokenFailing",
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
                title="Held back by a sender's transaction",
                about="How long a transaction that is open on the requests topic has held back all behind it.",
                queries=((f"vm_sync_open_transaction_seconds{{{HERE}}}", "{{instance}}"),),
                unit=SECONDS,
                bad=90,
                alert="VmSyncTransactionOpen",
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
                title="Invalid certificate files",
                about="Sets of changed certificate files that are invalid; the previous certificates are used.",
                queries=((f"vm_sync_certificates_invalid{{{HERE}}}", "{{instance}}"),),
                warn=1,
                alert="VmSyncCertificatesInvalid",
            ),
            Graph(
                title="Certificates expire in",
                about="Time until the certificates that were read from a file expire, by setting.",
                queries=(
                    (
                        f"min by (setting) (vm_sync_certificate_expires_timestamp_seconds{{{HERE}}}) - time()",
                        "{{setting}}",
                    ),
                ),
                unit=SECONDS,
                least=14 * 86400,
                alert="VmSyncCertificateExpires",
            ),
            Graph(
                title="File descriptors in use",
                about="Share of the files and connections that the process may have open.",
                queries=((f"process_open_fds{{{JOB}}} / process_max_fds{{{JOB}}}", "{{instance}}"),),
                unit=SHARE,
                warn=0.8,
                alert="VmSyncOpenFilesNearLimit",
            ),
            Graph(
                title="Log lines dropped",
                about="Log lines dropped, since their reader was too slow.",
                queries=((f"increase(vm_sync_log_lines_dropped_total{{{HERE}}}[$__rate_interval])", "{{instance}}"),),
                warn=1,
                alert="VmSyncLogLinesDropped",
            ),
            Graph(
                title="Progress events dropped",
                about="Events for the progress topic that could not be published; outcomes are not affected.",
                queries=((f"increase(vm_sync_progress_dropped_total{{{HERE}}}[$__rate_interval])", "{{instance}}"),),
                warn=1,
                alert="VmSyncProgressDropped",
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


Built: TypeAlias = timeseries.Panel | stat.Panel | table.Panel


def shaped(panel: Panel) -> Built:
    """Return an empty panel of the right kind and size."""
    if isinstance(panel, Stat):
        number = (
            stat.Panel()
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            .color_mode(BigValueColorMode.VALUE)
            .graph_mode(BigValueGraphMode.NONE if panel.words else BigValueGraphMode.AREA)
            .height(4)
            .span(3)
        )
        return number.decimals(0 if panel.unit == COUNT else 1) if panel.unit in {COUNT, SHARE} else number
    if isinstance(panel, Table):
        return table.Panel().height(7).span(8).with_transformation(columns(panel))
    curve = (
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
        curve.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    return curve


def built(panel: Panel, *, number: int) -> Built:
    """Return the panel as Grafana's builder has it."""
    made = shaped(panel)
    made.id(number).title(panel.title).description(panel.about).unit(panel.unit).datasource(DATASOURCE)
    made.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps(panel)))
    if panel.words:
        made.mappings([ValueMap({str(n): ValueMappingResult(text=word) for n, word in enumerate(panel.words)})])
    if panel.nothing is not None:
        made.no_value(panel.nothing)
    if panel.alert:
        made.links([link(f"Runbook: {panel.alert}", panel.alert.lower())])
    elif isinstance(panel, Table):
        made.links([link("Runbook, by symptom", "by-symptom")])
    for ref, (expression, legend) in zip("ABCDEFGH", panel.queries, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref)
        if isinstance(panel, Table):
            made.with_target(query.instant().format(PromQueryFormat.TABLE))
        else:
            made.with_target(query.instant() if isinstance(panel, Stat) else query.range())
    return made


def columns(panel: Panel) -> DataTransformerConfig:
    """Return what leaves a table's labels, and its numbers under a heading of their own."""
    ((_, heading),) = panel.queries
    return DataTransformerConfig(
        id_val="organize", options={"excludeByName": {"Time": True}, "renameByName": {"Value": heading}}
    )


def link(title: str, anchor: str) -> dashboard.DashboardLink:
    """Return a link to a section of the runbook."""
    return dashboard.DashboardLink(title).url(f"${{runbook}}#{anchor}").target_blank(target_blank=True)


def steps(panel: Panel) -> list[Threshold]:
    """Return the colours of values: green to red, or red to green where less is worse."""
    warn, bad = panel.warn, panel.bad
    if panel.least is not None:
        return [Threshold(value=None, color="red"), Threshold(value=panel.least, color="green")]
    if warn is not None and bad is not None and bad < warn:
        return [
            Threshold(value=None, color="red"),
            Threshold(value=bad, color="orange"),
            Threshold(value=warn, color="green"),
        ]
    coloured = [(warn, "orange")] if warn != bad else []
    return [
        Threshold(value=None, color="green"),
        *(Threshold(value=value, color=color) for value, color in [*coloured, (bad, "red")] if value is not None),
    ]


def annotations() -> list[Mapping[str, Any]]:
    """Return what is marked in all graphs: what explains a change without being one of its numbers."""
    marked = (
        ("Restarts", "purple", f"time() - process_start_time_seconds{{{JOB}}} < 60", "{{instance}} started"),
        (
            "Rebalances",
            "blue",
            f"changes(vm_sync_partitions_owned{{{HERE}}}[1m]) > 0",
            "{{instance}} opened or gave up partitions",
        ),
        (
            "Deployments",
            "green",
            (
                f"count by (version) (vm_sync_build_info{{{SERVICE}}}) "
                f"unless count by (version) (vm_sync_build_info{{{SERVICE}}} offset 5m)"
            ),
            "version {{version}}",
        ),
    )
    return [
        {
            "name": name,
            "enable": True,
            "iconColor": colour,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "expr": expression,
            "titleFormat": name,
            "textFormat": text,
            "step": "60s",
        }
        for name, colour, expression, text in marked
    ]


def variables(runbook: str) -> Iterable[Any]:
    """Return what can be chosen at the top: where the numbers come from, and which of them."""
    yield dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    yield dashboard.ConstantVariable("runbook").label("Address of the runbook").value(runbook)
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


def render(*, runbook: str = RUNBOOK) -> str:
    """Return the dashboard's JSON; `runbook` is the absolute address of the runbook's page."""
    board = (
        dashboard.Dashboard("vm-sync")
        .uid("vm-sync")
        .description("Syncs of VM replications: whether they end, how soon outcomes are published, and what is stuck.")
        .tags(["vm-sync"])
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
    )
    for variable in variables(runbook):
        board.with_variable(variable)
    number = count(1)
    for place, (title, panels) in enumerate(ROWS):
        row = dashboard.Row(title).id(next(number))
        if place == 0:
            board.with_row(row)
            for panel in panels:
                board.with_panel(built(panel, number=next(number)))
        else:
            for panel in panels:  # they belong to the row: it is folded
                row.with_panel(built(panel, number=next(number)))
            board.with_row(row)
    made = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    # The builder's annotations lack what Prometheus' have: the texts.
    made["annotations"] = {"list": annotations()}
    return json.dumps(made, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write the dashboard beside the rules."""
    parser = argparse.ArgumentParser(prog="python -m tools.dashboard", description=__doc__)
    parser.add_argument("--runbook", default=RUNBOOK, help="the absolute address of your copy of docs/runbook.md")
    (MONITORING / "dashboard.json").write_text(render(runbook=parser.parse_args().runbook))


if __name__ == "__main__":
    main()
