"""The picture of the dashboard's first row shows the dashboard as it is, drawn by thresholds, words and units."""

import re
from typing import Any

import pytest

from tests.support.expressions import board
from tests.support.prometheus import Series
from tools.dashboard_picture import PAGE, first_row, in_unit, shown, svg


def panel(title: str) -> dict[str, Any]:
    return next(panel for panel in first_row(board()) if panel["title"] == title)


def test_the_picture_in_the_documentation_has_each_panel_of_the_first_row() -> None:
    drawn = re.findall(r'font-weight="600"[^>]*>([^<]+)<', PAGE.read_text())

    assert drawn == [board()["panels"][0]["title"], *(panel["title"] for panel in first_row(board()))], (
        "run: python -m tools.dashboard_picture"
    )


def test_the_picture_shows_no_address_of_a_machine() -> None:
    assert not re.search(r"127\.0\.0\.1|localhost", PAGE.read_text())


@pytest.mark.parametrize(
    ("title", "value", "text", "color"),
    [
        ("Kafka", 1, "reached", "green"),
        ("Kafka", 0, "away", "red"),
        ("Partitions open", 1, "100.0 %", "green"),
        ("Partitions open", 0.75, "75.0 %", "red"),
        ("Partitions stopped", 0, "0", "green"),
        ("Partitions stopped", 1, "1", "red"),
        ("Logins refused", 1.2, "1", "orange"),
        ("Logins refused", 3.1, "3", "red"),
        ("Oldest request", 90, "1.5 min", "green"),
        ("Oldest request", 11_000, "3.1 h", "orange"),
        ("Oldest request", 18_000, "5.0 h", "red"),
        ("Dead letters, 1 h", 3.01, "3", "orange"),
    ],
)
def test_a_number_has_its_unit_and_the_colour_of_the_highest_step_that_it_reaches(
    title: str, value: float, text: str, color: str
) -> None:
    assert shown(panel(title), [Series({}, value)]) == (text, color)


def test_a_panel_without_a_value_says_what_that_means() -> None:
    assert shown(panel("Kafka"), []) == ("no instance", "dim")


def test_numbers_are_grouped() -> None:
    assert in_unit(25_200, "short") == "25,200"


def test_a_table_has_its_labels_in_columns_and_says_how_many_rows_are_missing() -> None:
    answers: dict[str, list[Series]] = {one["title"]: [] for one in first_row(board())}
    many = [Series({"alertname": f"VmSync{n}", "severity": "critical"}, 1.0) for n in range(40)]

    drawn = svg(board(), answers | {"Firing alerts": many})

    assert re.findall(r">(alertname|severity|alerts|VmSync0|critical)<", drawn)[:5] == [
        "alertname",
        "severity",
        "alerts",
        "VmSync0",
        "critical",
    ]
    assert re.search(r">and \d+ more<", drawn)
