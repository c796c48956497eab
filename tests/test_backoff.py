"""Pauses that double."""

from datetime import timedelta

import pytest

from service.backoff import Backoff

BACKOFF = Backoff(first=timedelta(seconds=1), longest=timedelta(seconds=10))


def test_pauses_double_up_to_the_longest() -> None:
    assert [BACKOFF.pause(repeats) for repeats in range(6)] == [1, 2, 4, 8, 10, 10]


def test_a_pause_is_at_its_longest_however_often_it_has_failed() -> None:
    assert BACKOFF.pause(1_000_000) == 10


def test_a_first_pause_above_the_longest_is_the_longest() -> None:
    assert Backoff(first=timedelta(minutes=1), longest=timedelta(seconds=10)).pause(0) == 10


def test_without_jitter_chance_changes_nothing() -> None:
    assert BACKOFF.pause(1, chance=0.0) == BACKOFF.pause(1, chance=1.0) == 2


@pytest.mark.parametrize(("chance", "pause"), [(0.0, 2.0), (0.5, 3.0), (1.0, 4.0)])
def test_jitter_is_the_part_of_a_pause_that_is_left_to_chance(chance: float, pause: float) -> None:
    backoff = Backoff(first=timedelta(seconds=1), longest=timedelta(seconds=10), jitter=0.5)
    assert backoff.pause(2, chance=chance) == pause
