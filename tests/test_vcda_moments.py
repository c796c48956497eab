"""Dates, pauses and clocks that differ."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.vcda.moments import RETRY_AFTER_LIMIT, Offset, http_date, retry_after

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


@pytest.mark.parametrize("text", [None, "", "soon", "nan", "Wed, 99 Foo 2030 00:00:00 GMT"])
def test_a_retry_after_that_makes_no_sense_is_none(text: str | None) -> None:
    assert retry_after(text, date=None, now=NOW) is None


@given(st.text(), st.none() | st.text())
def test_no_text_makes_the_reading_of_moments_fail(text: str, date: str | None) -> None:
    http_date(text)
    wait = retry_after(text, date=date, now=NOW)

    assert wait is None or timedelta() <= wait <= RETRY_AFTER_LIMIT


@given(
    st.floats(-3600, 3600),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 0.2), st.floats(0, 1)), min_size=60, max_size=60),
)
def test_the_offset_closes_in_on_the_truth_although_dates_are_whole_seconds(
    truth: float, answers: list[tuple[float, float, float]]
) -> None:
    offset = Offset()
    sent = NOW
    for pause, trip, share in answers:
        sent += timedelta(seconds=pause)
        received = sent + timedelta(seconds=trip)
        there = sent + timedelta(seconds=trip * share + truth)
        offset.heard(there.replace(microsecond=0), sent=sent, received=received)

        value = offset.value()
        assert value is not None
        assert abs(value.total_seconds() - truth) <= 0.7  # half a second, and half of the longest trip

    # Never outside of what all of them allow:
    assert offset._low - 0.01 <= truth <= offset._high + 0.01


def test_the_offset_is_sharper_than_a_second_once_dates_were_seen_to_turn() -> None:
    offset = Offset()
    for n in range(100):
        sent = NOW + timedelta(seconds=n * 0.17)
        there = sent + timedelta(seconds=12.345)
        offset.heard(there.replace(microsecond=0), sent=sent, received=sent + timedelta(milliseconds=10))

    value = offset.value()
    assert value is not None
    assert abs(value.total_seconds() - 12.345) < 0.05


def test_a_clock_that_was_set_is_believed_at_once() -> None:
    offset = Offset()
    offset.heard(NOW, sent=NOW, received=NOW)
    hour = timedelta(hours=1)
    offset.heard(NOW + hour, sent=NOW, received=NOW)

    assert offset.value() == hour + timedelta(seconds=0.5)


def test_without_an_answer_there_is_no_offset() -> None:
    assert Offset().value() is None
