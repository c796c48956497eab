"""The polling policy: pure, so each case is a number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.vcda.poll_policy import REMEMBERED, Estimate, History, Pace, TypicalDuration, coalesced_due, next_interval


def interval(*, elapsed: float, left: float | None, error: float = 0.0) -> float:
    return next_interval(Estimate(elapsed=elapsed, left=left, error=error), shortest=1.0, longest=60.0)


@pytest.mark.parametrize(
    ("elapsed", "left", "error", "expected"),
    [
        pytest.param(0.0, None, 0.0, 1.0, id="just begun: the shortest"),
        pytest.param(80.0, None, 0.0, 10.0, id="nothing known: an eighth of the time elapsed"),
        pytest.param(4800.0, None, 0.0, 60.0, id="nothing known for long: the longest"),
        pytest.param(160.0, 20.0, 5.0, 15.0, id="when the end may come at the earliest"),
        pytest.param(160.0, 100.0, 5.0, 20.0, id="far off, but not believed for longer than an eighth"),
        pytest.param(3.0, 100.0, 5.0, 8.0, id="soon after the begin a few seconds are believed"),
        pytest.param(160.0, 3.0, 20.0, 2.0, id="any moment: ten times per uncertainty"),
        pytest.param(160.0, -3.0, 20.0, 2.0, id="overdue: the same"),
        pytest.param(20.0, 1.5, 0.25, 1.75, id="almost certain: just after it"),
        pytest.param(20.0, 0.25, 0.25, 1.0, id="almost certain and near: not before the shortest"),
    ],
)
def test_the_interval_follows_from_what_is_expected(
    elapsed: float, left: float | None, error: float, expected: float
) -> None:
    assert interval(elapsed=elapsed, left=left, error=error) == expected


READING = st.tuples(st.floats(0.01, 1000), st.one_of(st.none(), st.integers(-5, 120)), st.booleans())


@given(st.lists(READING, max_size=30), st.booleans())
def test_whatever_a_task_shows_the_interval_stays_within_its_bounds(
    readings: list[tuple[float, int | None, bool]], known: bool
) -> None:
    pace, elapsed = Pace(), 0.0
    for gap, progress, queued in readings:
        elapsed += gap
        pace = pace.read(progress, queued=queued, elapsed=elapsed)
        outlook = pace.outlook(elapsed, usual=TypicalDuration().learn(90.0, weight=1.0) if known else None)
        assert 1.0 <= next_interval(outlook, shortest=1.0, longest=60.0) <= 60.0


def test_steady_progress_tells_the_end() -> None:
    pace = Pace()
    for elapsed in (10.0, 20.0, 30.0, 40.0):
        pace = pace.read(int(elapsed), queued=False, elapsed=elapsed)
    left = pace.outlook(40.0, usual=None).left
    assert left is not None
    assert abs(left - 60.0) < 1.0


def test_the_pace_counts_from_the_end_of_the_queue() -> None:
    pace = Pace().read(0, queued=True, elapsed=1000.0).read(50, queued=False, elapsed=1010.0)
    left = pace.outlook(1010.0, usual=None).left
    assert left is not None
    assert 9.0 < left < 10.0


def test_progress_that_falls_back_starts_from_there() -> None:
    pace = Pace().read(80, queued=False, elapsed=10.0).read(5, queued=False, elapsed=20.0)
    assert pace == Pace(progress=5, reached=20.0, seen=20.0)


def test_a_standstill_makes_the_end_less_certain_but_not_nearer() -> None:
    pace = Pace()
    for elapsed in range(1, 41):
        pace = pace.read(elapsed, queued=False, elapsed=float(elapsed))
    moving = pace.outlook(40.0, usual=None)
    stuck = pace.read(40, queued=False, elapsed=100.0).outlook(100.0, usual=None)
    assert moving.left is not None
    assert stuck.left is not None
    assert moving.left - 1.0 <= stuck.left <= moving.left
    assert stuck.error > moving.error + 50.0


def test_a_standstill_is_not_taken_for_the_pace_once_it_is_over() -> None:
    pace = Pace()
    for elapsed in range(1, 41):
        pace = pace.read(elapsed, queued=False, elapsed=float(elapsed))
    left = pace.read(41, queued=False, elapsed=100.0).outlook(100.0, usual=None).left
    assert left is not None
    assert left < 2 * 59.0


def test_without_progress_the_end_is_expected_where_it_usually_is() -> None:
    usual = TypicalDuration(known=10, mean=math.log(100.0), spread=0.0)
    outlook = Pace().outlook(30.0, usual=usual)
    assert outlook.left == pytest.approx(70.0)
    assert Pace().outlook(101.0, usual=usual).left is None


def test_time_in_the_queue_is_not_counted_as_work() -> None:
    usual = TypicalDuration(known=10, mean=math.log(100.0), spread=0.0)
    queued = Pace().read(0, queued=True, elapsed=500.0)
    assert queued.outlook(500.0, usual=usual).left == pytest.approx(100.0)


def test_progress_counts_more_than_what_is_usual() -> None:
    usual = TypicalDuration(known=10, mean=math.log(100.0), spread=0.0)
    pace = Pace().read(50, queued=False, elapsed=10.0)
    assert pace.outlook(10.0, usual=usual) == pace.outlook(10.0, usual=None)


def test_a_replications_own_history_counts_more_than_its_sites() -> None:
    history = History()
    for number in range(20):
        history.learn(1000.0, site="far", replication_id=f"C4-{number}")
    for _ in range(3):
        history.learn(10.0, site="far", replication_id="C4-own")
    own = history.usual(site="far", replication_id="C4-own")
    of_site = history.usual(site="far", replication_id="C4-new")
    assert own is not None
    assert of_site is not None
    assert math.exp(own.mean) == pytest.approx(10.0)
    assert math.exp(of_site.mean) > 300.0
    assert history.usual(site="near", replication_id="C4-new") is None


def test_a_few_durations_that_happen_to_be_alike_do_not_pass_for_certainty() -> None:
    usual = TypicalDuration()
    for _ in range(3):
        usual = usual.learn(100.0, weight=0.3)
    assert usual.shortest < 65.0
    assert usual.longest > 130.0


def test_only_the_latest_replications_are_remembered() -> None:
    history = History()
    for _ in range(3):
        history.learn(10.0, site=None, replication_id="C4-old")
        history.learn(10.0, site=None, replication_id="C4-kept")
    for number in range(REMEMBERED - 1):
        history.learn(10.0, site=None, replication_id=f"C4-{number}")
    kept = History.usual(history, site="none", replication_id="C4-kept")
    assert kept is not None
    assert history.usual(site="none", replication_id="C4-old") is None


@given(st.floats(0, 1e7), st.floats(1, 60))
def test_turns_meet_a_sixteenth_of_the_interval_later_at_most(due: float, wanted: float) -> None:
    assert -1e-9 <= coalesced_due(due, wanted) - due <= wanted / 16 + 1e-6  # a float is no exact moment


def test_turns_due_at_about_the_same_time_meet() -> None:
    assert {coalesced_due(100.0 + n / 100, 20.0) for n in range(1, 100)} == {101.0}
