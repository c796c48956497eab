"""Sums of outcomes: percentiles within a bound of the true ones, counts that add up, and memory that has a limit."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cli import outcome_summary
from service.cli.outcome_events import OutcomeEvent
from service.cli.outcome_summary import LONGEST, OTHER_SITES, SHORTEST, Durations, Published, Summary

NOON = datetime(2026, 8, 17, 12, tzinfo=UTC)


def event(number: int = 0, *, seconds: float = 60, **fields: Any) -> OutcomeEvent:
    return OutcomeEvent(
        request_id=f"op:C4-{number}:op",
        operation_id="op",
        replication_id=f"C4-{number}",
        requested_at=NOON,
        ended_at=NOON + timedelta(seconds=seconds),
        **fields,
    )


def summary(*events: OutcomeEvent, latest: int = 3) -> Summary:
    found = Summary(latest=latest)
    for number, one in enumerate(events):
        found.add(Published(number, 0, number, one))
    return found


@given(st.lists(st.floats(0.01, 7 * 86_400), min_size=1), st.integers(1, 100))
def test_a_percentile_is_within_one_percent_of_the_true_one(seconds: list[float], percent: int) -> None:
    durations = Durations()
    for one in seconds:
        durations.add(one)

    true = sorted(seconds)[math.ceil(len(seconds) * percent / 100) - 1]
    found = durations.percentile(percent)
    assert found is not None
    assert found == pytest.approx(true, rel=0.0101)


def test_durations_of_any_length_are_counted_and_take_a_bounded_number_of_buckets() -> None:
    durations = Durations()
    for seconds in (-3600, 0, 1e12, *[1.003**number for number in range(-3000, 6000)]):
        durations.add(seconds)

    assert durations.count == 9003
    assert len(durations._buckets) < 1200
    assert durations.percentile(0) == SHORTEST
    assert durations.percentile(100) == pytest.approx(LONGEST, rel=0.0101)
    assert Durations().percentile(50) is None


def test_outcomes_are_counted_by_outcome_reason_and_site_the_most_frequent_first() -> None:
    found = summary(
        event(reason="rejected"),
        event(reason="task-failed", site="site2"),
        event(reason="task-failed", site="site2"),
        event(),
        event(seconds=120, submitted_at=NOON + timedelta(seconds=100)),
    )

    assert [(one["outcome"], one["reason"], one["site"], one["count"]) for one in found.json()] == [
        ("completed", None, None, 2),
        ("failed", "task-failed", "site2", 2),
        ("failed", "rejected", None, 1),
    ]
    assert found.json()[0]["seconds"] == {"p50": pytest.approx(60, rel=0.02), "p90": pytest.approx(120, rel=0.02)} | {
        "p99": pytest.approx(120, rel=0.02)
    }
    assert found.json()[0]["secondsAtVcda"]["p50"] == pytest.approx(20, rel=0.02)
    assert found.json()[1]["secondsAtVcda"]["p50"] is None


@given(st.permutations(range(8)), st.integers(0, 10))
def test_the_latest_are_kept_in_the_order_of_time_whatever_order_they_come_in(order: list[int], most: int) -> None:
    found = Summary(latest=most)
    for number in order:
        found.add(Published(number, 0, number, event(number)))

    expected = [f"C4-{number}" for number in range(8)][8 - min(most, 8) :]
    assert [one.replication_id for one in found.latest()] == expected


def test_outcomes_of_the_same_moment_have_an_order() -> None:
    found = Summary(latest=5)
    for partition in (2, 0, 1):
        found.add(Published(7, partition, 3, event(partition)))

    assert [one.replication_id for one in found.latest()] == ["C4-0", "C4-1", "C4-2"]


def test_two_topics_may_have_outcomes_of_the_same_moment_in_the_same_place() -> None:
    found = Summary(latest=2)
    for number in range(4):
        found.add(Published(7, 0, 3, event(number)))

    assert found.count == 4
    assert len(found.latest()) == 2


def test_sites_beyond_a_limit_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_summary, "MOST_GROUPS", 2)

    found = summary(*[event(site=f"site{number % 5}") for number in range(10)])

    assert {one["site"]: one["count"] for one in found.json()} == {"site0": 2, "site1": 2, OTHER_SITES: 6}
