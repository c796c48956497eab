"""Dates, pauses and clocks that differ."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.vcda.http_dates import RETRY_AFTER_LIMIT, OtherClock, http_date, retry_after

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def http(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("1.5", 1.5),
        ("-5", 0),
        ("86400", 3600),
        ("9" * 400, 3600),
        ("inf", 3600),
        (http(NOW + timedelta(seconds=30)), 30),
        (http(NOW - timedelta(days=1)), 0),
        (http(NOW + timedelta(days=1)), 3600),
    ],
)
def test_retry_after_is_seconds_or_a_moment_within_bounds(text: str, seconds: float) -> None:
    assert retry_after(text, date=None, now=NOW) == timedelta(seconds=seconds)


def test_a_moment_to_retry_at_is_on_the_clock_of_the_answer() -> None:
    ahead = NOW + timedelta(minutes=10)

    assert retry_after(http(ahead + timedelta(seconds=5)), date=http(ahead), now=NOW) == timedelta(seconds=5)


@pytest.mark.parametrize("year", ["9999", "9000", "1969"])
def test_a_year_at_the_edge_of_time_is_no_date(year: str) -> None:
    """The smallest sum with it would pass what a datetime can hold."""
    assert http_date(f"Fri, 31 Dec {year} 23:59:59 GMT") is None


@pytest.mark.parametrize("text", [None, "", "soon", "nan", "Wed, 99 Foo 2030 00:00:00 GMT"])
def test_a_retry_after_that_makes_no_sense_is_none(text: str | None) -> None:
    assert retry_after(text, date=None, now=NOW) is None


@given(st.text(), st.none() | st.text())
def test_no_text_makes_the_reading_of_moments_fail(text: str, date: str | None) -> None:
    http_date(text)
    wait = retry_after(text, date=date, now=NOW)

    assert wait is None or timedelta() <= wait <= RETRY_AFTER_LIMIT


def difference(clock: OtherClock, monotonic: float) -> float:
    """Seconds by which the other clock is ahead of one that showed NOW at the monotonic moment 0."""
    there = clock.at(monotonic)
    assert there is not None
    return (there - NOW).total_seconds() - monotonic


def whole(seconds: float) -> datetime:
    """A `Date`: cut to the second."""
    return (NOW + timedelta(seconds=seconds)).replace(microsecond=0)


@given(
    st.floats(-3600, 3600),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 0.2), st.floats(0, 1)), min_size=60, max_size=60),
)
def test_the_difference_closes_in_on_the_truth_although_dates_are_whole_seconds(
    truth: float, answers: list[tuple[float, float, float]]
) -> None:
    clock = OtherClock()
    sent = 0.0
    for pause, trip, share in answers:
        sent += pause
        received = sent + trip
        clock.heard(whole(sent + trip * share + truth), sent=sent, received=received)

        assert abs(difference(clock, received) - truth) <= 0.7  # half a second, and half of the longest trip


def test_the_difference_is_sharper_than_a_second_once_dates_were_seen_to_turn() -> None:
    clock = OtherClock()
    for n in range(100):
        sent = n * 0.17
        clock.heard(whole(sent + 12.345), sent=sent, received=sent + 0.01)

    assert abs(difference(clock, 17.0) - 12.345) < 0.05


def test_a_clock_that_was_set_is_believed_when_a_second_answer_agrees() -> None:
    clock = OtherClock()
    clock.heard(NOW, sent=0.0, received=0.0)
    clock.heard(whole(3600.0), sent=0.0, received=0.0)
    assert difference(clock, 0.0) == 0.5, "the earlier one is assumed: a look-up that begins too early finds more"
    clock.heard(whole(3601.0), sent=1.0, received=1.0)
    assert abs(difference(clock, 1.0) - 3600.5) < 0.001


def test_a_clock_that_was_set_back_is_reckoned_with_at_once() -> None:
    clock = OtherClock()
    clock.heard(NOW, sent=0.0, received=0.0)
    clock.heard(whole(-3600.0), sent=0.0, received=0.0)
    assert difference(clock, 0.0) == -3599.5


def test_one_odd_date_among_many_moves_nothing_for_long() -> None:
    clock = OtherClock()
    clock.heard(NOW, sent=0.0, received=0.0)
    clock.heard(datetime(2999, 1, 1, tzinfo=UTC), sent=0.0, received=0.0)
    clock.heard(whole(1.0), sent=1.0, received=1.0)
    clock.heard(datetime(2998, 1, 1, tzinfo=UTC), sent=0.0, received=0.0)
    clock.heard(datetime(2999, 1, 1, tzinfo=UTC), sent=0.0, received=0.0)
    assert abs(difference(clock, 1.0)) <= 1.0, "two that contradict each other are no two that agree"


def test_without_an_answer_nothing_is_known_of_the_other_clock() -> None:
    assert OtherClock().at(0.0) is None
