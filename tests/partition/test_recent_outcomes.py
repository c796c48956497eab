"""The last failures of a process: a bounded number, the latest first; `test_outcome_log` has what is noted."""

from datetime import UTC, datetime

from service.partition.recent_outcomes import KEPT, Failure, RecentOutcomes
from service.sync import Reason


def failure(number: int) -> Failure:
    return Failure(
        at=datetime(2026, 1, 1, tzinfo=UTC),
        operation_id=f"op-{number}",
        replication_id="C4-1",
        site=None,
        reason=Reason.REJECTED,
        error="no",
    )


def test_outcomes_are_counted_and_some_failures_are_kept() -> None:
    outcomes = RecentOutcomes()
    outcomes.note_completed()
    for number in range(1_000):
        outcomes.note_failure(failure(number))

    assert (outcomes.completed, outcomes.failed) == (1, 1_000)
    assert [kept.operation_id for kept in outcomes] == [f"op-{number}" for number in range(999, 999 - KEPT, -1)]


def test_a_failure_that_comes_while_they_are_shown_disturbs_nothing() -> None:
    outcomes = RecentOutcomes()
    outcomes.note_failure(failure(1))
    shown = iter(outcomes)
    outcomes.note_failure(failure(2))

    assert [kept.operation_id for kept in shown] == ["op-1"]
