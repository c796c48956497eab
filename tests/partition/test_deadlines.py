"""Moments of wall time, the earliest first, and no more of them than are wanted."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from service.partition.deadlines import FEW, Deadlines

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def at(seconds: int) -> datetime:
    return NOON + timedelta(seconds=seconds)


@given(st.lists(st.integers(0, 20)), st.integers(0, 20))
def test_what_is_due_comes_once_and_the_earliest_first(moments: list[int], now: int) -> None:
    deadlines: Deadlines[int] = Deadlines(wanted=lambda _: True)
    for moment in moments:
        deadlines.add(at(moment), moment)
    assert list(deadlines.due(at(now))) == sorted(moment for moment in moments if moment <= now)
    assert list(deadlines.due(at(now))) == []
    assert list(deadlines.due(at(20))) == sorted(moment for moment in moments if moment > now)


def test_what_is_no_longer_wanted_comes_as_none_so_that_it_counts_as_work() -> None:
    wanted = {1, 3}
    deadlines: Deadlines[int] = Deadlines(wanted=wanted.__contains__)
    for moment in (1, 2, 3):
        deadlines.add(at(moment), moment)
    assert list(deadlines.due(at(5))) == [1, None, 3]


def test_what_is_added_while_the_due_are_gone_through_comes_too() -> None:
    deadlines: Deadlines[int] = Deadlines(wanted=lambda _: True)
    deadlines.add(at(1), 1)
    seen = []
    for thing in deadlines.due(at(5)):
        seen.append(thing)
        if thing is not None and thing < 3:
            deadlines.add(at(thing + 1), thing + 1)
    assert seen == [1, 2, 3]


def test_what_is_no_longer_wanted_is_cleared_away_before_its_time() -> None:
    wanted: set[int] = set()
    deadlines: Deadlines[int] = Deadlines(wanted=wanted.__contains__)
    for n in range(10 * FEW):
        deadlines.add(at(1_000_000), n)
        wanted.add(n)
        wanted.discard(n - 10)
    assert len(deadlines) <= FEW + 20
    due = [thing for thing in deadlines.due(at(1_000_000)) if thing is not None]
    assert due == sorted(wanted)
