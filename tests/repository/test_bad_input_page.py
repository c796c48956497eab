"""docs/bad-input.md tells people what tests/messages/test_requests.py and tests/system/test_hostile.py prove."""

from tests.support.bad_requests import BAD_REQUESTS
from tools import bad_input


def test_the_page_is_made_of_the_table() -> None:
    assert bad_input.PAGE.read_text(encoding="utf-8") == bad_input.page(), "run: python -m tools.bad_input"


def test_each_row_is_a_line_of_three_fences() -> None:
    rows = [line for line in bad_input.page().splitlines() if line.startswith("| ") and "| detail |" not in line]

    assert len(rows) == len(BAD_REQUESTS)
    assert {row.count("|") for row in rows} == {3}
