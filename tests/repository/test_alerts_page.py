"""docs/alerts.md has each alert, as `make alerts` saw it; that they fire is tested by tests/system."""

import re

from tests.support.expressions import alerts
from tests.support.process_harness import PASSWORD
from tools.alerts_page import HEAD, PAGE


def test_the_page_has_a_row_for_each_alert_in_the_order_of_the_rules() -> None:
    assert re.findall(r"^\| \[(\w+)\]", PAGE.read_text(), flags=re.MULTILINE) == list(alerts()), "run: make alerts"


def test_each_of_them_fired() -> None:
    fired = re.findall(r"^\| \[\w+\]\([^)]*\) \| [^|]+ \| (\w+)", PAGE.read_text(), flags=re.MULTILINE)

    assert len(fired) == len(alerts())
    assert all(seconds.isdecimal() for seconds in fired)


def test_the_page_says_how_it_was_made() -> None:
    assert PAGE.read_text().startswith(HEAD)


def test_the_page_shows_no_secret_and_no_folder_of_a_machine() -> None:
    assert not re.search(rf"/(?:tmp|work|home|root)/|{PASSWORD}", PAGE.read_text())
