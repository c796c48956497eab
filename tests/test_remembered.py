"""What is remembered of requests that have ended, and for how long."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from service.remembered import Remembered, YoungTasks

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_an_identity_is_held_until_it_expires() -> None:
    remembered = Remembered()
    remembered.add("op:C4-1:sync-1", NOON)
    assert remembered.holds("op:C4-1:sync-1", NOON - SECOND)
    assert not remembered.holds("op:C4-1:sync-1", NOON)


def test_an_identity_that_never_ended_is_not_held() -> None:
    remembered = Remembered()
    remembered.add("op:C4-1:sync-1", NOON)
    assert not remembered.holds("op:C4-1:sync-2", NOON - SECOND)


def test_an_identity_that_ended_again_is_held_until_the_later_expiry_and_counts_once() -> None:
    remembered = Remembered()
    remembered.add("op:C4-1:sync-1", NOON)
    remembered.add("op:C4-1:sync-1", NOON + SECOND)
    assert remembered.holds("op:C4-1:sync-1", NOON)
    assert len(remembered) == 1


def test_expired_identities_are_forgotten_and_counted() -> None:
    remembered = Remembered()
    for n in range(5):
        remembered.add(f"op:C4-1:sync-{n}", NOON + n * SECOND)
    assert remembered.forget_expired(NOON + 2 * SECOND) == 3
    assert len(remembered) == 2
    assert remembered.holds("op:C4-1:sync-3", NOON + 2 * SECOND)


@given(st.sets(st.text(max_size=300), min_size=2))
def test_identities_are_told_apart_whatever_they_are(identities: set[str]) -> None:
    one, *others = identities
    remembered = Remembered()
    for other in others:
        remembered.add(other, NOON)
    assert not remembered.holds(one, NOON - SECOND)
    assert all(remembered.holds(other, NOON - SECOND) for other in others)


def test_a_replications_tasks_are_told_from_a_moment_on() -> None:
    young = YoungTasks(horizon=timedelta(hours=1))
    young.add("C4-1", "task-1", NOON, site=None)
    young.add("C4-1", "task-2", NOON + SECOND, site=None)
    young.add("C4-2", "task-3", NOON + SECOND, site=None)
    assert list(young.since("C4-1", NOON)) == ["task-1", "task-2"]
    assert list(young.since("C4-1", NOON + SECOND)) == ["task-2"]
    assert list(young.since("C4-3", NOON)) == []


def test_tasks_older_than_the_horizon_are_let_go() -> None:
    young = YoungTasks(horizon=timedelta(hours=1))
    young.add("C4-1", "task-1", NOON, site=None)
    young.add("C4-2", "task-2", NOON + timedelta(hours=1), site=None)
    assert list(young.since("C4-1", NOON)) == ["task-1"]
    young.add("C4-2", "task-3", NOON + timedelta(hours=1) + SECOND, site=None)
    assert list(young.since("C4-1", NOON)) == []
    assert list(young.since("C4-2", NOON)) == ["task-2", "task-3"]


def test_a_site_whose_clock_is_ahead_makes_no_other_sites_tasks_old() -> None:
    young = YoungTasks(horizon=timedelta(hours=1))
    young.add("C4-1", "task-1", NOON, site=None)
    young.add("C4-2", "task-2", NOON + timedelta(hours=5), site="west")
    assert list(young.since("C4-1", NOON)) == ["task-1"]
