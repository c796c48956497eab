"""What operators see of the metrics: names, labels, series at the start, and numbers that follow what happened."""

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from typing_extensions import override

from service.clock import Clock
from service.messages.record_fate import Fate
from service.messages.wait_cause import WaitCause
from service.observability.metrics import METRICS, MOST_SITES, IntakeSeen, Metrics
from service.sync import Completed, Failed, Reason, Request

NOW = datetime(2026, 1, 1, tzinfo=UTC)

CONTRACT = """
vm_sync_requests_total counter result
vm_sync_requests_without_key_total counter
vm_sync_requests_with_other_key_total counter
vm_sync_requests_lost_total counter
vm_sync_records_total counter fate
vm_sync_records_unaccounted gauge
vm_sync_dead_letters_total counter reason
vm_sync_outcomes_total counter outcome reason site
vm_sync_in_flight gauge state site
vm_sync_waiting gauge site cause
vm_sync_replications_held gauge site
vm_sync_oldest_in_flight_seconds gauge site
vm_sync_duration_seconds histogram outcome site
vm_sync_detection_lag_seconds histogram site
vm_sync_poll_overdue_seconds gauge site
vm_sync_look_ups_failing_seconds gauge site
vm_sync_poll_batch_size histogram site
vm_sync_api_requests_total counter operation status site
vm_sync_api_request_duration_seconds histogram operation
vm_sync_api_paused gauge site
vm_sync_site_paused_by_operator gauge site
vm_sync_control_unreadable_seconds gauge
vm_sync_control_invalid_records gauge
vm_sync_calls_without_credentials_total counter site
vm_sync_tasks_adopted_total counter
vm_sync_posts_repeated_total counter site
vm_sync_unknown_task_states_total counter
vm_sync_session_open gauge
vm_sync_session_logins_total counter result
vm_sync_journal_commit_seconds histogram
vm_sync_journal_commit_records histogram
vm_sync_journal_restore_seconds histogram
vm_sync_identities_remembered gauge
vm_sync_partitions gauge
vm_sync_partitions_owned gauge
vm_sync_partitions_stopped gauge reason
vm_sync_partitions_reopened_total counter
vm_sync_journals_rewritten_total counter
vm_sync_journals_with_deleted_records_total counter
vm_sync_kafka_connected gauge
vm_sync_kafka_token_failing_seconds gauge
vm_sync_reading_stalled_seconds gauge
vm_sync_open_transaction_seconds gauge
vm_sync_event_loop_lag_seconds histogram
vm_sync_log_lines_dropped_total counter
vm_sync_progress_dropped_total counter
vm_sync_certificates_invalid gauge
vm_sync_certificate_expires_timestamp_seconds gauge setting
vm_sync_config_hash gauge hash
vm_sync_build_info gauge version python
"""

REQUEST = Request(
    identity="op:C4-1:a",
    operation_id="a",
    replication_id="C4-1",
    site=None,
    offset=0,
    requested_at=NOW,
    accepted_at=NOW,
    deadline=NOW + timedelta(hours=6),
)
COMPLETED = Completed(request=REQUEST, task_id="t", submitted_at=None, ended_at=NOW, attempts=1)
FAILED = Failed(request=REQUEST, reason=Reason.REJECTED, ended_at=NOW, attempts=1)


class StoppedClock(Clock):
    @override
    def now(self) -> datetime:
        return NOW


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(
        registry,
        clock=StoppedClock(),
        version="1.2.3",
        sites=("berlin",),
        dead_reasons=("not-json",),
        stop_reasons=("cursor-beyond-end",),
    )


def page(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


def test_the_table_is_the_contracts_list() -> None:
    wanted = [line.split() for line in CONTRACT.split("\n") if line]

    assert [[row.name, row.kind, *row.labels] for row in METRICS] == wanted


def test_each_row_of_the_table_is_on_the_page_with_its_type_and_its_help(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    families = {family.name: family for family in text_string_to_metric_families(page(registry))}

    for row in METRICS:
        family = families[row.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (row.kind, row.help)


def test_the_series_of_words_known_in_advance_exist_at_0(registry: CollectorRegistry, metrics: Metrics) -> None:
    expected = [
        ("vm_sync_requests_total", {"result": "duplicate"}),
        ("vm_sync_dead_letters_total", {"reason": "not-json"}),
        ("vm_sync_outcomes_total", {"outcome": "completed", "reason": "", "site": "berlin"}),
        ("vm_sync_outcomes_total", {"outcome": "failed", "reason": "task-lost", "site": "other"}),
        ("vm_sync_in_flight", {"state": "in_doubt", "site": "local"}),
        ("vm_sync_oldest_in_flight_seconds", {"site": "berlin"}),
        ("vm_sync_duration_seconds_count", {"outcome": "failed", "site": "berlin"}),
        ("vm_sync_poll_overdue_seconds", {"site": "local"}),
        ("vm_sync_look_ups_failing_seconds", {"site": "berlin"}),
        ("vm_sync_api_requests_total", {"operation": "submit", "status": "429", "site": "berlin"}),
        ("vm_sync_api_requests_total", {"operation": "extend", "status": "403", "site": "berlin"}),
        ("vm_sync_api_paused", {"site": "berlin"}),
        ("vm_sync_partitions_stopped", {"reason": "cursor-beyond-end"}),
        ("vm_sync_kafka_connected", {}),
        ("vm_sync_kafka_token_failing_seconds", {}),
        ("vm_sync_reading_stalled_seconds", {}),
        ("vm_sync_open_transaction_seconds", {}),
    ]

    assert [registry.get_sample_value(name, labels) for name, labels in expected] == [0.0] * len(expected)


def test_the_build_is_told_by_labels(registry: CollectorRegistry, metrics: Metrics) -> None:
    assert 'vm_sync_build_info{python="3.' in page(registry)
    assert 'version="1.2.3"} 1.0' in page(registry)


def test_process_and_garbage_collector_are_beside_them_and_creation_times_are_not(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    text = page(registry)

    assert "process_resident_memory_bytes" in text
    assert "python_gc_collections_total" in text
    assert "_created" not in text


def test_a_completed_outcome_counts_without_reason_with_its_duration_and_lag(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    metrics.outcome(COMPLETED, site="berlin", duration=90.0, lag=0.4)

    labels = {"outcome": "completed", "site": "berlin"}
    assert registry.get_sample_value("vm_sync_outcomes_total", labels | {"reason": ""}) == 1.0
    assert registry.get_sample_value("vm_sync_duration_seconds_sum", labels) == 90.0
    assert registry.get_sample_value("vm_sync_detection_lag_seconds_sum", {"site": "berlin"}) == 0.4


def test_an_outcome_without_a_task_has_no_lag(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.outcome(FAILED, site=None, duration=1.0, lag=None)

    labels = {"outcome": "failed", "reason": "rejected", "site": "local"}
    assert registry.get_sample_value("vm_sync_outcomes_total", labels) == 1.0
    assert registry.get_sample_value("vm_sync_detection_lag_seconds_count", {"site": "local"}) == 0.0


def test_a_lag_that_clocks_make_negative_counts_as_none_at_all(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.outcome(COMPLETED, site=None, duration=-2.0, lag=-0.2)

    assert registry.get_sample_value("vm_sync_detection_lag_seconds_sum", {"site": "local"}) == 0.0
    assert registry.get_sample_value("vm_sync_duration_seconds_sum", {"outcome": "completed", "site": "local"}) == 0.0


def test_a_site_that_nobody_configured_is_other_and_its_name_is_nowhere(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    metrics.outcome(COMPLETED, site="made-up", duration=1.0, lag=1.0)
    metrics.moved("made-up", None, "waiting")
    metrics.paused("made-up", True)
    metrics.set_overdue(lambda: {"made-up": 3.0, "also-made-up": 2.0})
    metrics.set_look_ups_failing(lambda: {"made-up": 5.0, None: 7.0, "also-made-up": 4.0})

    assert "made-up" not in page(registry)
    assert registry.get_sample_value("vm_sync_in_flight", {"state": "waiting", "site": "other"}) == 1.0
    assert registry.get_sample_value("vm_sync_poll_overdue_seconds", {"site": "other"}) == 3.0
    assert registry.get_sample_value("vm_sync_look_ups_failing_seconds", {"site": "other"}) == 5.0
    assert registry.get_sample_value("vm_sync_look_ups_failing_seconds", {"site": "local"}) == 7.0


def test_what_waits_is_shown_by_cause_and_the_rest_as_other(registry: CollectorRegistry, metrics: Metrics) -> None:
    def waiting(cause: str, site: str = "local") -> float | None:
        return registry.get_sample_value("vm_sync_waiting", {"cause": cause, "site": site})

    assert {waiting(cause) for cause in WaitCause} == {0.0}
    for _ in range(5):
        metrics.moved(None, None, "waiting")
    metrics.moved("made-up", None, "waiting")
    metrics.set_waiting(
        lambda: {
            (None, WaitCause.ELDER): 2,
            (None, WaitCause.LIMIT): 1,
            (None, WaitCause.NO_CREDENTIALS): 7,
            ("made-up", WaitCause.BUSY): 1,
        }
    )

    assert [waiting(cause) for cause in ("elder", "limit", "other", "no_credentials")] == [2, 1, 2, 7]
    assert [waiting(cause, "other") for cause in ("busy", "other")] == [1, 0]


def test_a_site_that_the_login_authenticates_gets_its_own_series(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.site_authenticated("paris")

    assert registry.get_sample_value("vm_sync_api_paused", {"site": "paris"}) == 0.0
    metrics.paused("paris", True)
    metrics.site_authenticated("paris")
    assert registry.get_sample_value("vm_sync_api_paused", {"site": "paris"}) == 1.0


def test_a_login_that_names_any_number_of_sites_gives_few_of_them_series(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    for number in range(MOST_SITES + 10):
        metrics.site_authenticated(f"site{number:03}")

    assert registry.get_sample_value("vm_sync_api_paused", {"site": f"site{MOST_SITES // 2:03}"}) == 0.0
    assert registry.get_sample_value("vm_sync_api_paused", {"site": f"site{MOST_SITES:03}"}) is None
    metrics.paused(f"site{MOST_SITES:03}", True)
    assert registry.get_sample_value("vm_sync_api_paused", {"site": "other"}) == 1.0


def test_a_sync_is_in_one_state_at_a_time(registry: CollectorRegistry, metrics: Metrics) -> None:
    def running() -> list[float | None]:
        return [
            registry.get_sample_value("vm_sync_in_flight", {"state": state, "site": "local"})
            for state in ("waiting", "submitting", "in_doubt", "running")
        ]

    metrics.moved(None, None, "waiting")
    assert running() == [1, 0, 0, 0]
    metrics.moved(None, "waiting", "submitting")
    assert running() == [0, 1, 0, 0]
    metrics.moved(None, "submitting", "running")
    assert running() == [0, 0, 0, 1]
    assert metrics.in_flight() == {("running", None): 1}
    metrics.moved(None, "running", None)
    assert running() == [0, 0, 0, 0]
    assert metrics.in_flight() == {}


def test_a_site_that_gets_its_own_label_takes_what_is_in_flight_and_its_pause_along(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    def values(name: str, **labels: str) -> list[float | None]:
        return [registry.get_sample_value(name, {"site": site, **labels}) for site in ("paris", "other")]

    for site in ("paris", "rome"):
        metrics.moved(site, None, "waiting")
        metrics.replication_held(site, held=True)
    metrics.paused("paris", True)
    assert values("vm_sync_in_flight", state="waiting") == [None, 2]
    metrics.site_authenticated("paris")
    assert values("vm_sync_in_flight", state="waiting") == [1, 1]
    assert values("vm_sync_replications_held") == [1, 1]
    assert values("vm_sync_api_paused") == [1, 0]
    metrics.moved("paris", "waiting", "running")
    metrics.replication_held("paris", held=False)
    metrics.paused("paris", False)
    assert values("vm_sync_in_flight", state="waiting") == [0, 1]
    assert values("vm_sync_in_flight", state="running") == [1, 0]
    assert values("vm_sync_replications_held") == [0, 1]
    assert values("vm_sync_api_paused") == [0, 0]


def test_the_other_sites_are_shown_as_paused_while_one_of_them_is(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    shown = []
    for site, paused in [("rome", True), ("oslo", True), ("rome", False), ("oslo", False)]:
        metrics.paused(site, paused)
        shown.append(registry.get_sample_value("vm_sync_api_paused", {"site": "other"}))
    assert shown == [1, 1, 1, 0]


def test_the_oldest_request_is_asked_for_once_per_scrape_and_not_before(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    asked = 0

    def oldest() -> dict[str | None, datetime]:
        nonlocal asked
        asked += 1
        return {None: NOW - timedelta(seconds=90), "berlin": NOW + timedelta(seconds=5)}

    metrics.set_oldest(oldest)
    assert asked == 0
    text = page(registry)

    assert asked == 1
    assert 'vm_sync_oldest_in_flight_seconds{site="local"} 90.0' in text
    assert 'vm_sync_oldest_in_flight_seconds{site="berlin"} 0.0' in text


def test_a_dead_letter_counts_as_a_result_and_by_its_reason(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.records(Fate.DEAD_LETTERED, 1)
    metrics.dead_lettered("not-json", 1)

    assert registry.get_sample_value("vm_sync_requests_total", {"result": "dead_lettered"}) == 1.0
    assert registry.get_sample_value("vm_sync_dead_letters_total", {"reason": "not-json"}) == 1.0


def test_a_word_never_heard_before_is_counted_all_the_same(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.api_request("submit", "3xx", 0.1, site=None)
    metrics.login("locked-out")
    metrics.set_intake(lambda: IntakeSeen(stopped=["unheard-of", "unheard-of"]))

    call = {"operation": "submit", "status": "3xx", "site": "local"}
    assert registry.get_sample_value("vm_sync_api_requests_total", call) == 1.0
    assert registry.get_sample_value("vm_sync_session_logins_total", {"result": "locked-out"}) == 1.0
    assert registry.get_sample_value("vm_sync_partitions_stopped", {"reason": "unheard-of"}) == 2.0


def test_every_other_event_moves_its_own_metric(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.records(Fate.ADMITTED, 1)
    metrics.without_key(1)
    metrics.other_key(2)
    metrics.records(Fate.LOST, 3)
    metrics.poll_batch(None, 100)
    metrics.without_credentials(None)
    metrics.session_open(True)
    metrics.set_certificates_invalid(lambda: 2)
    metrics.set_certificates_expire(lambda: {"VM_SYNC_VCDA__CA_FILE": NOW})
    metrics.adopted()
    metrics.post_repeated(None)
    metrics.unknown_task_state()
    metrics.commit(0.02, 40)
    metrics.restored(0.3)
    metrics.identities(5)
    metrics.identities(-2)
    metrics.set_intake(
        lambda: IntakeSeen(partitions=12, owned=6, kafka_answers=True, unread_for=61.5, held_back_for=91.5)
    )
    metrics.reopened()
    metrics.rewritten()
    metrics.journal_records_deleted()
    metrics.progress_dropped(4)
    metrics.set_token_failing(lambda: timedelta(seconds=7.5))
    metrics.loop_lag(0.004)

    expected: dict[str, tuple[dict[str, str], float]] = {
        "vm_sync_requests_total": ({"result": "accepted"}, 1),
        "vm_sync_requests_without_key_total": ({}, 1),
        "vm_sync_requests_with_other_key_total": ({}, 2),
        "vm_sync_requests_lost_total": ({}, 3),
        "vm_sync_poll_batch_size_sum": ({"site": "local"}, 100),
        "vm_sync_calls_without_credentials_total": ({"site": "local"}, 1),
        "vm_sync_session_open": ({}, 1),
        "vm_sync_certificates_invalid": ({}, 2),
        "vm_sync_certificate_expires_timestamp_seconds": ({"setting": "VM_SYNC_VCDA__CA_FILE"}, NOW.timestamp()),
        "vm_sync_tasks_adopted_total": ({}, 1),
        "vm_sync_posts_repeated_total": ({"site": "local"}, 1),
        "vm_sync_unknown_task_states_total": ({}, 1),
        "vm_sync_journal_commit_seconds_sum": ({}, 0.02),
        "vm_sync_journal_commit_records_sum": ({}, 40),
        "vm_sync_journal_restore_seconds_sum": ({}, 0.3),
        "vm_sync_identities_remembered": ({}, 3),
        "vm_sync_partitions": ({}, 12),
        "vm_sync_partitions_owned": ({}, 6),
        "vm_sync_partitions_reopened_total": ({}, 1),
        "vm_sync_journals_rewritten_total": ({}, 1),
        "vm_sync_journals_with_deleted_records_total": ({}, 1),
        "vm_sync_kafka_connected": ({}, 1),
        "vm_sync_progress_dropped_total": ({}, 4),
        "vm_sync_kafka_token_failing_seconds": ({}, 7.5),
        "vm_sync_reading_stalled_seconds": ({}, 61.5),
        "vm_sync_open_transaction_seconds": ({}, 91.5),
        "vm_sync_event_loop_lag_seconds_sum": ({}, 0.004),
    }
    assert {name: registry.get_sample_value(name, labels) for name, (labels, _) in expected.items()} == {
        name: value for name, (_, value) in expected.items()
    }


def test_a_record_that_was_read_is_accounted_for_once_it_is_held_or_has_a_fate(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    def unaccounted() -> float | None:
        return registry.get_sample_value("vm_sync_records_unaccounted")

    metrics.records_read(10)
    assert unaccounted() == 10
    metrics.records_held(6)
    metrics.records(Fate.REREAD, 3)
    assert unaccounted() == 1
    metrics.records_held(-6)
    metrics.records(Fate.ADMITTED, 5)
    metrics.records(Fate.DUPLICATE, 1)
    assert unaccounted() == 1
    metrics.records(Fate.NO_RECORD, 2)
    metrics.records(Fate.LOST, 2)
    assert unaccounted() == 1, "nobody has read those"
    assert {fate: registry.get_sample_value("vm_sync_records_total", {"fate": fate}) for fate in Fate} == {
        "admitted": 5,
        "duplicate": 1,
        "dead_lettered": 0,
        "cancel": 0,
        "lost": 2,
        "no_record": 2,
        "reread": 3,
    }


def test_two_of_them_do_not_share_a_registry(registry: CollectorRegistry, metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Metrics(registry, clock=StoppedClock(), version="1")
