"""Moments are RFC 3339 in UTC, durations whole milliseconds, and ages one unit."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from service.moments import age, milliseconds, rfc3339


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 3, 1, 22, tzinfo=UTC), "2026-03-01T22:00:00.000Z"),
        (datetime(2026, 3, 1, 22, 0, 0, 123_999, tzinfo=UTC), "2026-03-01T22:00:00.123Z"),
        (datetime(2026, 3, 2, 0, 30, tzinfo=timezone(timedelta(hours=2))), "2026-03-01T22:30:00.000Z"),
        (None, None),
    ],
)
def test_a_moment_is_written_in_utc_with_milliseconds(moment: datetime | None, text: str | None) -> None:
    assert rfc3339(moment) == text


def test_what_is_less_than_a_millisecond_is_left_out() -> None:
    assert [milliseconds(timedelta(seconds=n)) for n in (0.0019, 1.5, 12)] == [1, 1500, 12_000]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7_199, "119m"), (7_200, "2h"), (172_800, "2d"), (1e6, "11d")],
)
def test_ages_have_one_unit(seconds: float, said: str) -> None:
    assert age(timedelta(seconds=seconds)) == said
