"""docs/vcda-answers.md tells people what tests/system/test_answers.py proves."""

from tests.support.answers import TABLES
from tools import vcda_answers


def test_the_page_says_what_the_table_says() -> None:
    assert vcda_answers.PAGE.read_text() == vcda_answers.page(), "run: python -m tools.vcda_answers"


def test_a_row_can_be_told_from_every_other_of_its_table() -> None:
    for rows in TABLES.values():
        assert len({row.answer for row in rows}) == len(rows)
