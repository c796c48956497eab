"""`vm-sync check` against set-ups that are broken in one way each, and the page that lists what it says of them."""

import asyncio
import re
from collections.abc import Iterator

import pytest

from service.sandbox.kafka import KafkaError
from tests.conftest import missing
from tests.support.broken_setups import SETUPS, Answer, Setup
from tools import check_page

pytestmark = pytest.mark.kafka

ALL = {setup.situation: setup for setups in SETUPS.values() for setup in setups}


@pytest.fixture(scope="module")
def found() -> Iterator[check_page.Found]:
    try:
        yield asyncio.run(check_page.answers())
    except KafkaError as error:
        missing(str(error))


@pytest.fixture(scope="module")
def answers(found: check_page.Found) -> dict[str, Answer]:
    return {setup.situation: answer for rows in found.values() for setup, answer, _ in rows}


def test_the_page_is_what_the_command_says(found: check_page.Found) -> None:
    assert check_page.PAGE.read_text(encoding="utf-8") == check_page.page(found), "run: python -m tools.check_page"


def test_there_are_enough_broken_set_ups_and_each_has_a_name_of_its_own() -> None:
    assert sum(map(len, SETUPS.values())) == len(ALL) >= 25


@pytest.mark.parametrize("setup", ALL.values(), ids=lambda setup: setup.situation)
def test_the_right_check_names_what_to_change(setup: Setup, answers: dict[str, Answer]) -> None:
    answer = answers[setup.situation]

    named = [line for line in answer.wrong if line["check"] == setup.check and re.search(setup.says, line["text"])]

    assert [line["result"] for line in named] == [setup.result]
    assert answer.code == setup.code
    assert set(re.findall(r"VM_SYNC_\w+", setup.says)) <= set(named[0]["settings"])


@pytest.mark.parametrize("setup", ALL.values(), ids=lambda setup: setup.situation)
def test_nothing_else_is_found_wrong(setup: Setup, answers: dict[str, Answer]) -> None:
    wrong = {line["check"] for line in answers[setup.situation].wrong if not line["text"].startswith("Fewer than 3")}

    assert wrong == {setup.check}


def test_what_rests_on_something_that_failed_is_skipped_and_says_why(answers: dict[str, Answer]) -> None:
    lines = answers["VCDA's password is wrong"].lines

    skipped = {line["check"]: line["text"] for line in lines if line["result"] == "skipped"}

    assert {"clock", "tasks", "order", "task ids", "paging", "filters", "users on tasks", "caches"} == skipped.keys()
    assert set(skipped.values()) == {"Skipped because the check of VCDA's login failed."}
