"""Every metric of the service: one table, and one class whose methods are named after what happened.

Callers report events in terms of their own module; only this module decides names, labels and buckets. No label
contains an id: the label `site` is `local`, the name of a known site, or `other`, regardless of the message.

Two things keep it cheap, as each request passes here about ten times: the children of labelled metrics are looked up
once, at the start, which also makes their series exist at 0; and what can be counted without a lock, or only matters
when somebody looks (the metrics marked `at_scrape`), is read when Prometheus asks.

It never logs, never raises for an unknown label value, and uses only the registry that is passed in.
"""

import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple, Self, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from typing_extensions import override

from service.clock import Clock
from service.messages.record_fate import NEVER_READ, Fate
from service.messages.wait_cause import WaitCause
from service.sync import Completed, Outcome, Reason

LOCAL: Final = "local"
OTHER: Final = "other"

MOST_SITES: Final = 200
"""Sites with a label of their own: each has some 150 series, and what answers to a login may name any number of sites.
Those of the settings have one however many they are."""

RESULTS: Final = {Fate.ADMITTED: "accepted", Fate.DUPLICATE: "duplicate", Fate.DEAD_LETTERED: "dead_lettered"}
"""The fates of records that are a request's result, too."""
OVERDUE: Final = "vm_sync_poll_overdue_seconds"
LOOK_UPS_FAILING: Final = "vm_sync_look_ups_failing_seconds"
STATES: Final = ("waiting", "submitting", "in_doubt", "running", "lingering")
OUTCOMES: Final = ("completed", "failed")
OPERATIONS: Final = ("login", "extend", "submit", "poll", "find")
STATUSES: Final = ("2xx", "401", "403", "404", "409", "429", "4xx", "5xx", "timeout", "error")
LOGINS: Final = ("ok", "refused", "error")

BRIEF: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds of a call or a commit: a good commit takes 3-25 ms, a call is given up after 30 s by default."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table of metrics, for Prometheus and the documentation."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, for histograms; +Inf is added by the client."""
    at_scrape: bool = False
    """Its values are read when somebody asks for them."""


METRICS: Final = (
    Metric("vm_sync_requests_total", "counter", "Messages read from the requests topic, by result.", ("result",)),
    Metric("vm_sync_requests_without_key_total", "counter", "Requests without a key; they have no order."),
    Metric(
        "vm_sync_requests_with_other_key_total",
        "counter",
        "Requests whose key is not their replicationId; they may run at once with others of their replication.",
    ),
    Metric("vm_sync_requests_lost_total", "counter", "Requests deleted from the topic before they were read."),
    Metric(
        "vm_sync_records_total",
        "counter",
        "Offsets of the requests topic, by the record's fate; all but `reread` add up to the offsets passed.",
        ("fate",),
    ),
    Metric(
        "vm_sync_records_unaccounted",
        "gauge",
        "Records read that have no fate and wait for no commit; a value that stays above 0 means a skipped record.",
        at_scrape=True,
    ),
    Metric(
        "vm_sync_dead_letters_total",
        "counter",
        "Invalid messages, written to the dead-letter topic, by reason.",
        ("reason",),
    ),
    Metric(
        "vm_sync_outcomes_total",
        "counter",
        "Outcomes committed; `reason` is empty for completed.",
        ("outcome", "reason", "site"),
    ),
    Metric(
        "vm_sync_in_flight",
        "gauge",
        "Requests in flight in this process, by state. `submitting` includes requests whose intent is being "
        "committed: up to twice MAX_CONCURRENT_SUBMITS.",
        ("state", "site"),
        at_scrape=True,
    ),
    Metric(
        "vm_sync_waiting",
        "gauge",
        "Waiting requests, by what they wait for; `no_credentials` also counts syncs that are not polled for want of "
        "credentials.",
        ("site", "cause"),
        at_scrape=True,
    ),
    Metric(
        "vm_sync_replications_held",
        "gauge",
        "Replications held by a request that timed out more than 24 h ago and whose task VCDA still shows as "
        "unfinished.",
        ("site",),
        at_scrape=True,
    ),
    Metric(
        "vm_sync_oldest_in_flight_seconds",
        "gauge",
        "Time since the acceptance of the oldest request without an outcome; 0 when there is none.",
        ("site",),
        at_scrape=True,
    ),
    Metric(
        "vm_sync_duration_seconds",
        "histogram",
        "Time from a request's acceptance to the commit of its outcome.",
        ("outcome", "site"),
        # A sync takes minutes to hours; the default deadline, 6 h, is a bound so that it can be told apart.
        buckets=(5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 28800, 43200, 86400),
    ),
    Metric(
        "vm_sync_detection_lag_seconds",
        "histogram",
        "Time from a task's end to the commit of its outcome, corrected by the difference between the clocks.",
        ("site",),
        # From a commit's own time to POLL_MAX, 60 s by default: what lies beyond is late by definition.
        buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60),
    ),
    Metric(
        OVERDUE,
        "gauge",
        "Delay of the most overdue poll; 0 when no poll is overdue.",
        ("site",),
        at_scrape=True,
    ),
    Metric(
        LOOK_UPS_FAILING,
        "gauge",
        "How long look-ups for POSTs in doubt have failed although other calls to the site succeed; 0: they don't.",
        ("site",),
        at_scrape=True,
    ),
    Metric(
        "vm_sync_poll_batch_size",
        "histogram",
        "Tasks polled in one call; at most 100.",
        ("site",),
        buckets=(1, 2, 5, 10, 20, 35, 50, 75, 100),
    ),
    Metric(
        "vm_sync_api_requests_total",
        "counter",
        "Calls to VCDA's API, by the answer's status; of an extension, `site` is the remote site.",
        ("operation", "status", "site"),
    ),
    Metric(
        "vm_sync_api_request_duration_seconds",
        "histogram",
        "Duration of a complete call to VCDA's API.",
        ("operation",),
        buckets=BRIEF,
    ),
    Metric(
        "vm_sync_api_paused",
        "gauge",
        "1 while Retry-After or the circuit breaker holds back calls to the site, else 0.",
        ("site",),
    ),
    Metric(
        "vm_sync_site_paused_by_operator",
        "gauge",
        "1 while an operator's pause holds back POSTs to the site, else 0.",
        ("site",),
        at_scrape=True,
    ),
    Metric(
        "vm_sync_control_unreadable_seconds",
        "gauge",
        "How long the control topic has not been readable, so that changes of site pauses are not seen; 0 while it is "
        "read.",
        at_scrape=True,
    ),
    Metric(
        "vm_sync_control_invalid_records",
        "gauge",
        "Invalid records of the control topic that are the latest of their site.",
        at_scrape=True,
    ),
    Metric(
        "vm_sync_calls_without_credentials_total",
        "counter",
        "Calls not made, as VM_SYNC_VCDA__SITES has no credentials for the site.",
        ("site",),
    ),
    Metric("vm_sync_tasks_adopted_total", "counter", "Tasks that a look-up found for a POST in doubt."),
    Metric(
        "vm_sync_posts_repeated_total",
        "counter",
        "POSTs repeated after look-ups found no task of a POST in doubt.",
        ("site",),
    ),
    Metric(
        "vm_sync_unknown_task_states_total",
        "counter",
        "Polls that returned an unknown task state; treated as running unless the task shows an end.",
    ),
    Metric("vm_sync_session_open", "gauge", "1 while this instance has a session at VCDA."),
    Metric("vm_sync_session_logins_total", "counter", "Logins at VCDA, by result.", ("result",)),
    Metric(
        "vm_sync_journal_commit_seconds",
        "histogram",
        "Duration of one transaction, including its sends.",
        buckets=BRIEF,
    ),
    Metric(
        "vm_sync_journal_commit_records",
        "histogram",
        "Records in one transaction.",
        buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
    ),
    Metric(
        "vm_sync_journal_restore_seconds",
        "histogram",
        "Duration of opening a partition and restoring its syncs.",
        # 50,000 records are read in 0.2 s; what lasts for minutes is Kafka being away.
        buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
    ),
    Metric("vm_sync_identities_remembered", "gauge", "Ended requests remembered to recognise duplicates."),
    Metric("vm_sync_partitions", "gauge", "Partitions of the requests topic.", at_scrape=True),
    Metric("vm_sync_partitions_owned", "gauge", "Partitions that are open in this process.", at_scrape=True),
    Metric("vm_sync_partitions_stopped", "gauge", "Stopped partitions, by reason.", ("reason",), at_scrape=True),
    Metric("vm_sync_partitions_reopened_total", "counter", "Partitions reopened after a failure of their journal."),
    Metric(
        "vm_sync_journals_rewritten_total",
        "counter",
        "Journals rewritten from memory after they, or some of their records, were deleted while in use.",
    ),
    Metric(
        "vm_sync_journals_with_deleted_records_total",
        "counter",
        "Journals of which records had been deleted when they were opened; requests in flight may have no outcome.",
    ),
    Metric(
        "vm_sync_kafka_connected",
        "gauge",
        "1 while Kafka answers, else 0; 0 until the consumer group has been joined.",
        at_scrape=True,
    ),
    Metric(
        "vm_sync_kafka_token_failing_seconds",
        "gauge",
        "How long the OAuth token for Kafka could not be renewed, or Kafka has refused it; else, and without OAuth, 0.",
        at_scrape=True,
    ),
    Metric(
        "vm_sync_reading_stalled_seconds",
        "gauge",
        "How long unread records of a partition have not been read although the partition is not full, or its leader "
        "has not answered, or Kafka has denied reading; 0 while reading goes on.",
        at_scrape=True,
    ),
    Metric(
        "vm_sync_open_transaction_seconds",
        "gauge",
        "How long a sender's open transaction on the requests topic has held back all later requests of its partition: "
        "the longest one; 0: none.",
        at_scrape=True,
    ),
    Metric(
        "vm_sync_event_loop_lag_seconds",
        "histogram",
        "Delay with which the event loop runs a due timer.",
        buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    ),
    Metric(
        "vm_sync_log_lines_dropped_total",
        "counter",
        "Log lines dropped because their reader was too slow, or standard error could not be written.",
        at_scrape=True,
    ),
    Metric(
        "vm_sync_progress_dropped_total",
        "counter",
        "Progress events dropped because publishing them failed, or Kafka was too slow.",
    ),
    Metric(
        "vm_sync_certificates_invalid",
        "gauge",
        "Sets of certificate files (of Kafka, the OAuth token server, VCDA) that have changed and are invalid; the "
        "previous certificates are used.",
        at_scrape=True,
    ),
    Metric(
        "vm_sync_certificate_expires_timestamp_seconds",
        "gauge",
        "When the certificates in use from a file expire, as Unix time: the own certificate or, if earlier, one of its "
        "issuers in the file; of several authorities the last one.",
        ("setting",),
        at_scrape=True,
    ),
    Metric(
        "vm_sync_config_hash",
        "gauge",
        "Always 1; `hash` is that of the settings that must be equal on all instances, without secrets.",
        ("hash",),
    ),
    Metric("vm_sync_build_info", "gauge", "Always 1; the labels identify the build.", ("version", "python")),
)


Child: TypeAlias = tuple[str, ...]
M = TypeVar("M", bound=MetricWrapperBase)


class SitePausesSeen(NamedTuple):
    """What is known of the operators' pauses at a scrape."""

    sites: Iterable[str]
    """The public names of the sites that are paused."""
    unreadable_for: float
    """Seconds since which the control topic can't be read; 0: it can."""
    invalid: int
    """Invalid records there."""


class IntakeSeen(NamedTuple):
    """What is known of Kafka and of the partitions at a scrape."""

    partitions: int = 0
    """Of the requests topic."""
    owned: int = 0
    """Open partitions."""
    stopped: Sequence[str] = ()
    """For each stopped partition, the reason."""
    kafka_answers: bool = False
    unread_for: float = 0.0
    """Seconds since which unread records of a partition have not been read, though it is not full, or are denied."""
    held_back_for: float = 0.0
    """Seconds since which a sender's open transaction has held back a partition of the requests topic."""


class Metrics:
    """Counts events. A `site` is a request's: None is the local site.

    `sites` are the configured sites; `dead_reasons` and `stop_reasons` the possible reasons, so that their series exist
    from the start. `clock` is for ages, which are computed at scrape.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        clock: Clock,
        version: str,
        config_hash: str = "",
        sites: Iterable[str] = (),
        dead_reasons: Iterable[str] = (),
        stop_reasons: Iterable[str] = (),
    ) -> None:
        _register_process(registry)

        self._clock = clock
        self._site_labels: dict[str | None, str] = {None: LOCAL} | {site: site for site in sites}
        self._unaccounted = 0
        # By the requests' own sites, as one may get a label of its own while some of its requests are in flight.
        self._in_flight: defaultdict[tuple[str, str | None], int] = defaultdict(int)
        self._replications_held: defaultdict[str | None, int] = defaultdict(int)
        self._paused_sites: set[str | None] = set()
        self._waiting: Callable[[], Mapping[tuple[str | None, WaitCause], int]] = dict
        self._oldest: Callable[[], Mapping[str | None, datetime]] = dict
        self._longest: dict[str, Callable[[], Mapping[str | None, float]]] = {OVERDUE: dict, LOOK_UPS_FAILING: dict}
        self._site_pauses: Callable[[], SitePausesSeen] = lambda: SitePausesSeen((), 0.0, 0)
        self._log_lines_dropped: Callable[[], int] = int
        self._token_failing: Callable[[], timedelta] = timedelta
        self._intake: Callable[[], IntakeSeen] = IntakeSeen
        self._certificates_invalid: Callable[[], int] = int
        self._certificates_expire: Callable[[], Mapping[str, datetime]] = dict
        self._stop_reasons = tuple(stop_reasons)

        counters = {
            m.name: _Children(Counter(m.name, m.help, m.labels, registry=registry))
            for m in METRICS
            if m.kind == "counter" and not m.at_scrape
        }
        gauges = {
            m.name: _Children(Gauge(m.name, m.help, m.labels, registry=registry))
            for m in METRICS
            if m.kind == "gauge" and not m.at_scrape
        }
        histograms = {
            m.name: _Children(Histogram(m.name, m.help, m.labels, buckets=m.buckets, registry=registry))
            for m in METRICS
            if m.kind == "histogram"
        }

        self._dead_letters = counters["vm_sync_dead_letters_total"].having((r,) for r in dead_reasons)
        self._records = counters["vm_sync_records_total"].having((fate,) for fate in Fate)
        self._requests = counters["vm_sync_requests_total"].having((r,) for r in RESULTS.values())
        self._without_key = counters["vm_sync_requests_without_key_total"][()]
        self._other_key = counters["vm_sync_requests_with_other_key_total"][()]
        self._lost = counters["vm_sync_requests_lost_total"][()]
        self._outcomes = counters["vm_sync_outcomes_total"]
        self._duration = histograms["vm_sync_duration_seconds"]
        self._lag = histograms["vm_sync_detection_lag_seconds"]
        self._batch = histograms["vm_sync_poll_batch_size"]
        self._api_requests = counters["vm_sync_api_requests_total"]
        self._api_seconds = histograms["vm_sync_api_request_duration_seconds"].having((o,) for o in OPERATIONS)
        self._paused = gauges["vm_sync_api_paused"]
        self._without_credentials = counters["vm_sync_calls_without_credentials_total"]
        self._adopted = counters["vm_sync_tasks_adopted_total"][()]
        self._posts_repeated = counters["vm_sync_posts_repeated_total"]
        self._unknown_states = counters["vm_sync_unknown_task_states_total"][()]
        self._session_open = gauges["vm_sync_session_open"][()]
        self._logins = counters["vm_sync_session_logins_total"].having((r,) for r in LOGINS)
        self._commit_seconds = histograms["vm_sync_journal_commit_seconds"][()]
        self._commit_records = histograms["vm_sync_journal_commit_records"][()]
        self._restore = histograms["vm_sync_journal_restore_seconds"][()]
        self._identities = gauges["vm_sync_identities_remembered"][()]
        self._reopened = counters["vm_sync_partitions_reopened_total"][()]
        self._rewritten = counters["vm_sync_journals_rewritten_total"][()]
        self._records_deleted = counters["vm_sync_journals_with_deleted_records_total"][()]
        self._progress_dropped = counters["vm_sync_progress_dropped_total"][()]
        self._loop_lag = histograms["vm_sync_event_loop_lag_seconds"][()]
        _describe_process(gauges, config_hash=config_hash, version=version)
        self._begin_series(registry)

    def _begin_series(self, registry: CollectorRegistry) -> None:
        """Have the series of each known site from the start on, and those that are read at a scrape."""
        for label in (*self._site_labels.values(), OTHER):
            self._series_of(label)
        registry.register(_AtScrape(self))

    # ------------------------------------------------------------ requests and outcomes

    def records_read(self, count: int) -> None:
        """Count records that Kafka's client handed out; each must have a fate, or be held."""
        self._unaccounted += count

    def records_held(self, delta: int) -> None:
        """Add to the number of records that wait for their commit; negative once their fate is certain."""
        self._unaccounted -= delta

    def records(self, fate: Fate, count: int) -> None:
        """Count offsets whose fate is certain."""
        self._records[fate,].inc(count)
        if fate in RESULTS:
            self._requests[RESULTS[fate],].inc(count)
        if fate is Fate.LOST:
            self._lost.inc(count)
        if fate not in NEVER_READ:
            self._unaccounted -= count

    def dead_lettered(self, reason: str, count: int) -> None:
        """Count invalid messages."""
        self._dead_letters[reason,].inc(count)

    def without_key(self, count: int) -> None:
        """Count requests without a key."""
        self._without_key.inc(count)

    def other_key(self, count: int) -> None:
        """Count requests whose key is not their replicationId."""
        self._other_key.inc(count)

    def outcome(self, outcome: Outcome, *, site: str | None, duration: float, lag: float | None) -> None:
        """Count a committed outcome.

        `duration` in seconds since acceptance; `lag` in seconds since the task's end, None where no task ended. Two
        machines' clocks are in both, so a negative one counts as none at all.
        """
        label = self._site_labels.get(site, OTHER)
        if isinstance(outcome, Completed):
            word, reason = "completed", ""
        else:
            word, reason = "failed", outcome.reason.value
        self._outcomes[word, reason, label].inc()
        self._duration[word, label].observe(max(duration, 0.0))
        if lag is not None:
            self._lag[label,].observe(max(lag, 0.0))

    def moved(self, site: str | None, before: str | None, after: str | None) -> None:
        """Count a sync out of one state and into another; None is before its acceptance, or after its end."""
        if before is not None:
            _add(self._in_flight, (before, site), -1)
        if after is not None:
            _add(self._in_flight, (after, site), 1)

    def in_flight(self) -> Mapping[tuple[str, str | None], int]:
        """Return how many requests are in flight now, by state and the requests' own site, without those at 0."""
        return dict(self._in_flight)

    def replication_held(self, site: str | None, *, held: bool) -> None:
        """Count a replication that is held by a sync LINGER_LIMIT past its deadline, or one that no longer is."""
        _add(self._replications_held, site, 1 if held else -1)

    def set_waiting(self, ask: Callable[[], Mapping[tuple[str | None, WaitCause], int]]) -> None:
        """Name who knows, at scrape, how many requests wait, by site and cause. The rest of them counts as `other`."""
        self._waiting = ask

    def set_oldest(self, ask: Callable[[], Mapping[str | None, datetime]]) -> None:
        """Set the function that returns, at scrape, when the oldest request in flight of each site was accepted."""
        self._oldest = ask

    # ------------------------------------------------------------ VCDA

    def site_authenticated(self, site: str) -> None:
        """Give a site its own label from now on, as long as there are fewer than `MOST_SITES`: the login named it."""
        if site not in self._site_labels and len(self._site_labels) < MOST_SITES:
            self._site_labels[site] = site
            self._series_of(site)
            for label in (site, OTHER):
                self._show_paused(label)

    def api_request(self, operation: str, status: str, seconds: float, *, site: str | None) -> None:
        """Count a call; `status` is a class such as 2xx, a code such as 429, or a word such as timeout."""
        self._api_requests[operation, status, self._site_labels.get(site, OTHER)].inc()
        self._api_seconds[operation,].observe(seconds)

    def login(self, result: str) -> None:
        """Count a login."""
        self._logins[result,].inc()

    def session_open(self, value: bool) -> None:  # noqa: FBT001 - reads as the gauge it sets
        """Set whether there is a session at VCDA."""
        self._session_open.set(value)

    def paused(self, site: str | None, value: bool) -> None:  # noqa: FBT001 - reads as the gauge it sets
        """Set whether calls to a site are paused."""
        if value:
            self._paused_sites.add(site)
        else:
            self._paused_sites.discard(site)
        self._show_paused(self._site_labels.get(site, OTHER))

    def set_site_pauses(self, ask: Callable[[], SitePausesSeen]) -> None:
        """Set the function that returns, at scrape, what is known of the operators' pauses."""
        self._site_pauses = ask

    def without_credentials(self, site: str | None) -> None:
        """Count a call that was not made, since there are no credentials for the site."""
        self._without_credentials[self._site_labels.get(site, OTHER),].inc()

    def _show_paused(self, label: str) -> None:
        """Set a label's gauge: several sites may share it, and it is 1 while one of them is paused."""
        paused = any(self._site_labels.get(site, OTHER) == label for site in self._paused_sites)
        self._paused[label,].set(paused)

    def poll_batch(self, site: str | None, size: int) -> None:
        """Count the tasks of one poll."""
        self._batch[self._site_labels.get(site, OTHER),].observe(size)

    def set_overdue(self, ask: Callable[[], Mapping[str | None, float]]) -> None:
        """Set the function that returns, at scrape, how many seconds late each site's most overdue poll is."""
        self._longest[OVERDUE] = ask

    def set_look_ups_failing(self, ask: Callable[[], Mapping[str | None, float]]) -> None:
        """Set the function that returns, at scrape, for how many seconds each site's look-ups have failed alone."""
        self._longest[LOOK_UPS_FAILING] = ask

    def adopted(self) -> None:
        """Count an adopted task."""
        self._adopted.inc()

    def post_repeated(self, site: str | None) -> None:
        """Count a repeated POST."""
        self._posts_repeated[self._site_labels.get(site, OTHER),].inc()

    def unknown_task_state(self) -> None:
        """Count a task state that isn't in the API's documentation; the caller logs the state."""
        self._unknown_states.inc()

    # ------------------------------------------------------------ journal, partitions, process

    def commit(self, seconds: float, records: int) -> None:
        """Count a committed transaction."""
        self._commit_seconds.observe(seconds)
        self._commit_records.observe(records)

    def restored(self, seconds: float) -> None:
        """Count a partition opened and its journal read."""
        self._restore.observe(seconds)

    def identities(self, delta: int) -> None:
        """Add to the number of ended requests that are remembered; negative when forgotten."""
        self._identities.inc(delta)

    def set_intake(self, ask: Callable[[], IntakeSeen]) -> None:
        """Set the function that returns, at scrape, what is known of Kafka and of the partitions."""
        self._intake = ask

    def rewritten(self) -> None:
        """Count a journal that was rewritten from memory."""
        self._rewritten.inc()

    def journal_records_deleted(self) -> None:
        """Count a journal of which records had been deleted when it was opened."""
        self._records_deleted.inc()

    def reopened(self) -> None:
        """Count a partition that is reopened after a failure."""
        self._reopened.inc()

    def progress_dropped(self, count: int) -> None:
        """Count progress events that were dropped."""
        self._progress_dropped.inc(count)

    def loop_lag(self, seconds: float) -> None:
        """Count how late the event loop woke the probe."""
        self._loop_lag.observe(seconds)

    def set_log_lines_dropped(self, ask: Callable[[], int]) -> None:
        """Set the function that returns, at scrape, how many log lines were dropped since the start."""
        self._log_lines_dropped = ask

    def set_certificates_invalid(self, ask: Callable[[], int]) -> None:
        """Set the function that returns, at scrape, how many sets of certificate files have changed and are invalid."""
        self._certificates_invalid = ask

    def set_certificates_expire(self, ask: Callable[[], Mapping[str, datetime]]) -> None:
        """`ask` returns, by setting, when the certificates in use from files expire."""
        self._certificates_expire = ask

    def set_token_failing(self, ask: Callable[[], timedelta]) -> None:
        """Set the function that returns, at scrape, how long the OAuth token for Kafka has failed."""
        self._token_failing = ask

    # ------------------------------------------------------------ at scrape

    def read(self) -> Mapping[str, Mapping[Child, float]]:
        """Return the values of the metrics that are read at scrape, by name and labels."""
        now = self._clock.now()
        labels = (*self._site_labels.values(), OTHER)
        zero: dict[Child, float] = {(label,): 0.0 for label in labels}
        oldest, held = dict(zero), dict(zero)
        in_flight: dict[Child, float] = {(state, label): 0.0 for state in STATES for label in labels}
        for (state, site), count in self._in_flight.items():
            in_flight[state, self._site_labels.get(site, OTHER)] += count
        waiting = self._read_waiting(labels, in_flight)
        for site, count in self._replications_held.items():
            held[self._site_labels.get(site, OTHER),] += count
        for site, accepted_at in self._oldest().items():
            label = (self._site_labels.get(site, OTHER),)
            oldest[label] = max(oldest[label], (now - accepted_at) / timedelta(seconds=1))
        longest = {name: dict(zero) for name in self._longest}
        for name, ask in self._longest.items():
            for site, seconds in ask().items():
                label = (self._site_labels.get(site, OTHER),)
                longest[name][label] = max(longest[name][label], seconds)
        paused, pauses = dict(zero), self._site_pauses()
        for name in pauses.sites:
            paused[self._site_labels.get(None if name == LOCAL else name, OTHER),] = 1.0
        intake = self._intake()
        stopped: dict[Child, float] = {(reason,): 0.0 for reason in (*self._stop_reasons, *intake.stopped)}
        for reason in intake.stopped:
            stopped[reason,] += 1
        return {
            "vm_sync_records_unaccounted": {(): float(self._unaccounted)},
            "vm_sync_in_flight": in_flight,
            "vm_sync_waiting": waiting,
            "vm_sync_replications_held": held,
            "vm_sync_oldest_in_flight_seconds": oldest,
            **longest,
            "vm_sync_site_paused_by_operator": paused,
            "vm_sync_control_unreadable_seconds": {(): pauses.unreadable_for},
            "vm_sync_control_invalid_records": {(): float(pauses.invalid)},
            "vm_sync_log_lines_dropped_total": {(): self._log_lines_dropped()},
            "vm_sync_partitions": {(): float(intake.partitions)},
            "vm_sync_partitions_owned": {(): float(intake.owned)},
            "vm_sync_partitions_stopped": stopped,
            "vm_sync_kafka_connected": {(): float(intake.kafka_answers)},
            "vm_sync_kafka_token_failing_seconds": {(): self._token_failing().total_seconds()},
            "vm_sync_reading_stalled_seconds": {(): intake.unread_for},
            "vm_sync_open_transaction_seconds": {(): intake.held_back_for},
            "vm_sync_certificates_invalid": {(): float(self._certificates_invalid())},
            "vm_sync_certificate_expires_timestamp_seconds": {
                (setting,): moment.timestamp() for setting, moment in self._certificates_expire().items()
            },
        }

    def _read_waiting(self, labels: Iterable[str], in_flight: Mapping[Child, float]) -> dict[Child, float]:
        waiting: dict[Child, float] = {(label, cause): 0.0 for label in labels for cause in WaitCause}
        for (site, cause), count in self._waiting().items():
            waiting[self._site_labels.get(site, OTHER), cause] += count
        for label in labels:
            known = sum(
                [waiting[label, cause] for cause in WaitCause if cause is not WaitCause.NO_CREDENTIALS],
            )
            waiting[label, WaitCause.OTHER] += max(0.0, in_flight["waiting", label] - known)
        return waiting

    def _series_of(self, label: str) -> None:
        """Make all series of a site exist."""
        self._outcomes.having([("completed", "", label), *(("failed", reason.value, label) for reason in Reason)])
        self._duration.having((word, label) for word in OUTCOMES)
        self._api_requests.having((o, s, label) for o in OPERATIONS for s in STATUSES)
        for metric in (self._lag, self._batch, self._paused, self._posts_repeated, self._without_credentials):
            metric.having([(label,)])


def _describe_process(gauges: "Mapping[str, _Children[Gauge]]", *, config_hash: str, version: str) -> None:
    """Set the gauges whose labels tell what runs here."""
    gauges["vm_sync_config_hash"][config_hash,].set(1)
    gauges["vm_sync_build_info"][version, platform.python_version()].set(1)


def _register_process(registry: CollectorRegistry) -> None:
    # `_created` series would double the page, and nothing here asks for them. The client has one switch for all.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)


Key = TypeVar("Key")


def _add(counts: defaultdict[Key, int], key: Key, number: int) -> None:
    """Count, and keep nothing of what is at 0: a message may name any site."""
    counts[key] += number
    if not counts[key]:
        del counts[key]


class _AtScrape(Collector):
    """Asks for the values of the metrics marked `at_scrape`, once per scrape for them all."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @override
    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        values = self._metrics.read()
        for metric in METRICS:
            if metric.at_scrape:
                family = _family(metric)
                for labels, value in values[metric.name].items():
                    family.add_metric(labels, value)
                yield family

    def describe(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Return the names alone, so that registering asks for no value yet."""
        return (_family(metric) for metric in METRICS if metric.at_scrape)


def _family(metric: Metric) -> GaugeMetricFamily | CounterMetricFamily:
    family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return family(metric.name, metric.help, labels=metric.labels)


# The client's `labels()` takes a lock and builds strings at each call; a dict that fills itself answers in 50 ns.


class _Children(dict[Child, M]):
    """The children of one metric, by label values."""

    def __init__(self, parent: M) -> None:
        super().__init__()
        self._parent = parent

    def __missing__(self, labels: Child) -> M:
        child = self[labels] = self._parent.labels(*labels) if labels else self._parent
        return child

    def having(self, children: Iterable[Child]) -> Self:
        """Make these children exist, at 0."""
        for labels in children:
            self.__missing__(labels)
        return self
