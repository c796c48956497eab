"""What is remembered of requests that have ended, and for how long."""

import tracemalloc
from datetime import timedelta
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.kafka import dedup_index
from service.kafka.dedup_index import DedupIndex, YoungTasks

SECOND = 1_000
HOUR = 3_600 * SECOND
NOON = 1_893_499_200_000
"""Moments are epoch milliseconds."""


def test_an_identity_is_held_until_it_expires() -> None:
    remembered = DedupIndex()
    remembered.add(b"op:C4-1:sync-1", NOON)
    assert remembered.holds(b"op:C4-1:sync-1", NOON - SECOND)
    assert not remembered.holds(b"op:C4-1:sync-1", NOON)


def test_an_identity_that_never_ended_is_not_held() -> None:
    remembered = DedupIndex()
    remembered.add(b"op:C4-1:sync-1", NOON)
    assert not remembered.holds(b"op:C4-1:sync-2", NOON - SECOND)


def test_an_identity_that_ended_again_is_held_until_the_later_expiry_and_counts_once() -> None:
    remembered = DedupIndex()
    remembered.add(b"op:C4-1:sync-1", NOON)
    remembered.add(b"op:C4-1:sync-1", NOON + SECOND)
    assert remembered.holds(b"op:C4-1:sync-1", NOON)
    assert len(remembered) == 1


def test_an_identity_that_is_discarded_is_not_held() -> None:
    remembered = DedupIndex()
    remembered.add(b"op:C4-1:sync-1", NOON)
    remembered.discard(b"op:C4-1:sync-1")
    remembered.discard(b"op:C4-1:sync-2")
    assert not remembered.holds(b"op:C4-1:sync-1", NOON - SECOND)
    assert len(remembered) == 0


def test_expired_identities_are_forgotten_and_counted() -> None:
    remembered = DedupIndex()
    for n in range(5):
        remembered.add(b"op:C4-1:sync-%d" % n, NOON + n * SECOND)
    assert remembered.forget_expired(NOON + 2 * SECOND, most=2) == 2
    assert remembered.forget_expired(NOON + 2 * SECOND, most=2) == 1
    assert remembered.forget_expired(NOON + 2 * SECOND, most=2) == 0
    assert len(remembered) == 2
    assert remembered.holds(b"op:C4-1:sync-3", NOON + 2 * SECOND)


def test_an_identity_that_a_clock_ahead_has_added_keeps_no_other_in_memory() -> None:
    remembered = DedupIndex()
    remembered.add(b"op:C4-1:ahead", NOON + 500 * HOUR)
    for n in range(3):
        remembered.add(b"op:C4-1:sync-%d" % n, NOON + n * SECOND)
    assert remembered.forget_expired(NOON + SECOND, most=10) == 2
    assert remembered.forget_expired(NOON + 2 * SECOND, most=10) == 1
    assert len(remembered) == 1
    assert remembered.holds(b"op:C4-1:ahead", NOON + 499 * HOUR)
    assert remembered.forget_expired(NOON + 500 * HOUR, most=10) == 1


def test_those_that_expire_together_share_one_moment_in_memory() -> None:
    def memory(*, apart: int) -> int:
        tracemalloc.start()
        remembered = DedupIndex()
        for n in range(1_000):
            remembered.add(b"op:C4-1:sync-%d" % n, NOON + n * apart)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(remembered) == 1_000
        return used

    assert memory(apart=1) - memory(apart=0) >= 32 * 990


@given(st.sets(st.text(max_size=300), min_size=2))
def test_identities_are_told_apart_whatever_they_are(identities: set[str]) -> None:
    one, *others = identities
    remembered = DedupIndex()
    for other in others:
        remembered.add(other.encode(), NOON)
    assert not remembered.holds(one.encode(), NOON - SECOND)
    assert all(remembered.holds(other.encode(), NOON - SECOND) for other in others)


def test_a_replications_tasks_are_told_from_a_moment_on() -> None:
    young = YoungTasks(horizon=timedelta(hours=1), few=0)
    young.add("C4-1", "task-1", NOON, written_at=NOON)
    young.add("C4-1", "task-2", NOON + SECOND, written_at=NOON)
    young.add("C4-2", "task-3", NOON + SECOND, written_at=NOON)
    assert list(young.since("C4-1", NOON)) == ["task-1", "task-2"]
    assert list(young.since("C4-1", NOON + SECOND)) == ["task-2"]
    assert list(young.since("C4-3", NOON)) == []


def test_tasks_older_than_the_horizon_are_let_go() -> None:
    young = YoungTasks(horizon=timedelta(hours=1), few=0)
    young.add("C4-1", "task-1", NOON, written_at=NOON)
    young.add("C4-2", "task-2", NOON, written_at=NOON + HOUR)
    assert list(young.since("C4-1", NOON)) == ["task-1"]
    young.add("C4-2", "task-3", NOON, written_at=NOON + HOUR + SECOND)
    assert list(young.since("C4-1", NOON)) == []
    assert list(young.since("C4-2", NOON)) == ["task-2", "task-3"]


def test_a_task_that_says_it_began_in_the_future_makes_no_other_old() -> None:
    young = YoungTasks(horizon=timedelta(hours=1), few=0)
    young.add("C4-1", "task-1", NOON, written_at=NOON)
    young.add("C4-2", "task-2", NOON + 50 * HOUR, written_at=NOON + SECOND)
    assert list(young.since("C4-1", NOON)) == ["task-1"]


def add_each_second(young: YoungTasks, since: int, count: int) -> int:
    """Add so many tasks from a moment on, and return when the next one would be."""
    for n in range(count):
        young.add("C4-1", "", NOON, written_at=since + n * SECOND)
    return since + count * SECOND


def how_many(young: YoungTasks) -> int:
    return len(list(young.since("C4-1", NOON)))


def test_a_few_are_kept_however_old_they_seem() -> None:
    young = YoungTasks(horizon=timedelta(hours=1), few=4)
    for n in range(4):
        young.add("C4-1", f"task-{n}", NOON, written_at=NOON + n * 50 * HOUR)
    assert how_many(young) == 4


@pytest.mark.parametrize("wrong", [-500 * HOUR, 500 * HOUR])
@pytest.mark.parametrize("times", [1, 9])
def test_a_clock_that_is_wrong_for_a_few_tasks_makes_no_other_old_and_keeps_none_for_longer(
    wrong: int, times: int
) -> None:
    young = YoungTasks(horizon=timedelta(hours=1), few=20)
    then = add_each_second(young, NOON, 100)
    add_each_second(young, then + wrong, times)
    then = add_each_second(young, then + times * SECOND, 100)
    assert how_many(young) == 200 + times

    add_each_second(young, then, 10_000)
    assert 3_600 <= how_many(young) <= 3_600 + 2 * 20


def test_after_a_clock_that_was_ahead_for_long_was_set_back_tasks_are_kept_for_an_hour_and_not_without_end() -> None:
    young = YoungTasks(horizon=timedelta(hours=1), few=20)
    then = add_each_second(young, NOON + 500 * HOUR, 1_000) - 500 * HOUR
    then = add_each_second(young, then, 3_500)
    assert how_many(young) == 4_500

    then = add_each_second(young, then, 10_000)
    assert 3_600 <= how_many(young) <= 3_600 + 2 * 20
    add_each_second(young, then - 100 * HOUR, 10_000)
    assert 3_600 <= how_many(young) <= 3_600 + 2 * 20, "a second time"


def test_old_tasks_are_not_looked_for_with_each_task_that_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Mock(wraps=dedup_index._written)
    monkeypatch.setattr(dedup_index, "_written", look)
    young = YoungTasks(horizon=timedelta(hours=1), few=1_000)
    add_each_second(young, NOON, 10_000)
    assert how_many(young) < 3_600 + 1_000 + 250
    assert look.call_count < 10_000 / 5


@pytest.mark.parametrize("asked_before", [True, False])
def test_of_a_replications_tasks_only_the_old_ones_are_let_go(asked_before: bool) -> None:
    young = YoungTasks(horizon=timedelta(hours=1), few=0)
    if asked_before:
        assert list(young.since("C4-1", NOON)) == []
    young.add("C4-1", "task-1", NOON, written_at=NOON)
    young.add("C4-1", "task-2", NOON, written_at=NOON + 2 * SECOND)
    young.add("C4-1", "task-3", NOON, written_at=NOON + HOUR + SECOND)
    assert list(young.since("C4-1", NOON)) == ["task-2", "task-3"]


@pytest.mark.parametrize("task_id", ["", "task-\ud83d", "Aufgabe-ß", "C4-1"])
def test_a_young_task_is_found_by_its_replication_in_any_case_and_keeps_its_id(task_id: str) -> None:
    young = YoungTasks()
    young.add("C4-ß", task_id, NOON, written_at=NOON)
    young.add("C4-", "another", NOON, written_at=NOON)
    assert list(young.since("c4-SS", NOON)) == [task_id]
