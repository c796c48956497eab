"""How moments are written on a command line: so long ago, in two spellings, or a date."""

from datetime import UTC, datetime, timedelta

import pytest

from service.cli.moments import read_moment
from service.cli.output import Exit, NoAnswer

NOW = datetime(2026, 8, 17, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("1d12h", NOW - timedelta(hours=36)),
        ("90S", NOW - timedelta(seconds=90)),
        ("PT2H", NOW - timedelta(hours=2)),
        ("p1dt30m", NOW - timedelta(days=1, minutes=30)),
        ("2026-08-16", datetime(2026, 8, 16, tzinfo=UTC)),
        ("2026-08-16T10:30", datetime(2026, 8, 16, 10, 30, tzinfo=UTC)),
        ("2026-08-16T10:30:00Z", datetime(2026, 8, 16, 10, 30, tzinfo=UTC)),
        ("2026-08-16T10:30:00+02:00", datetime(2026, 8, 16, 8, 30, tzinfo=UTC)),
    ],
)
def test_a_moment_is_so_long_ago_or_a_date(text: str, moment: datetime) -> None:
    assert read_moment("--since", text, now=NOW) == moment


@pytest.mark.parametrize("text", ["", "2", "h", "P", "PT", "yesterday", "2026-13-01", "99999999999999d", "\x1b[2J"])
def test_anything_else_is_refused_in_a_sentence_that_names_the_option(text: str) -> None:
    with pytest.raises(NoAnswer, match=r"^--since needs 2h, PT2H or a date") as refused:
        read_moment("--since", text, now=NOW)

    assert refused.value.code is Exit.USAGE
    assert "\x1b" not in str(refused.value)
