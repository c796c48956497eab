"""`vm-sync check` against set-ups that are broken in one way each, and the page that lists what it says of them."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.checks import Result, Status
from service.cli.check import Lines, exit_code, summary
from service.cli.output import Exit
from service.kafka import rights
from service.sandbox.kafka import KafkaError
from tests.conftest import missing
from tests.support.broken_setups import LOGIN, NAMES, SETUPS, WRONG, Answer, Setup, grounds
from tests.support.brokers import PASSWORD, Operation, Resource
from tests.support.token_server import SECRET
from tools import check_page

LOGGED_IN = Setup(situation="all is well", kafka="LOGIN", settings=LOGIN, check="", says="")

ALL = {setup.situation: setup for setups in SETUPS.values() for setup in setups}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the command said: of the broken set-ups, and of one where the user has no right too many."""

    broken: check_page.Found
    exact: Answer


async def _seen(folder: Path) -> Seen:
    async with grounds(folder) as place:
        broken = await check_page.answers(place)
        async with place.rights.only(*_needed()):
            exact = await place.answer(LOGGED_IN)
        return Seen(broken, exact)


def _needed() -> Iterator[tuple[Resource, str, tuple[Operation, ...]]]:
    """The rights that the service needs; a test of the overlay for Strimzi holds that it grants the same."""
    for name, needed in rights.of_topics(NAMES).items():
        yield Resource.TOPIC, name, (*(Operation[right.name] for right in needed), Operation.DESCRIBE_CONFIGS)
    yield Resource.GROUP, "vm-sync", (Operation.READ,)
    yield Resource.TRANSACTIONAL_ID, f"{NAMES.journal}-*", (Operation.WRITE,)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    try:
        yield asyncio.run(_seen(tmp_path_factory.mktemp("check")))
    except KafkaError as error:
        missing(str(error))


@pytest.fixture(scope="module")
def found(seen: Seen) -> check_page.Found:
    return seen.broken


@pytest.fixture(scope="module")
def answers(found: check_page.Found) -> dict[str, Answer]:
    return {setup.situation: answer for rows in found.values() for setup, answer, _ in rows}


@pytest.mark.kafka
def test_the_page_is_what_the_command_says(found: check_page.Found) -> None:
    assert check_page.PAGE.read_text(encoding="utf-8") == check_page.page(found), "run: python -m tools.check_page"


def test_there_are_enough_broken_set_ups_and_each_has_a_name_of_its_own() -> None:
    assert sum(map(len, SETUPS.values())) == len(ALL) >= 25


@pytest.mark.kafka
@pytest.mark.parametrize("setup", ALL.values(), ids=lambda setup: setup.situation)
def test_the_right_check_names_what_to_change(setup: Setup, answers: dict[str, Answer]) -> None:
    answer = answers[setup.situation]

    named = [line for line in answer.wrong if line["check"] == setup.check and re.search(setup.says, line["text"])]

    assert [line["result"] for line in named] == [setup.result]
    assert answer.code == setup.code
    assert set(re.findall(r"VM_SYNC_\w+", setup.says)) <= set(named[0]["settings"])


@pytest.mark.kafka
@pytest.mark.parametrize("setup", ALL.values(), ids=lambda setup: setup.situation)
def test_nothing_else_is_found_wrong(setup: Setup, answers: dict[str, Answer]) -> None:
    wrong = {line["check"] for line in answers[setup.situation].wrong if not line["text"].startswith("Fewer than 3")}

    assert wrong == {setup.check, *setup.also}


@pytest.mark.kafka
def test_what_rests_on_something_that_failed_is_skipped_and_says_why(answers: dict[str, Answer]) -> None:
    lines = answers["VCDA's password is wrong"].lines

    skipped = {line["check"]: line["text"] for line in lines if line["result"] == "skipped"}

    assert {"clock", "tasks", "order", "task ids", "paging", "filters", "users on tasks", "caches"} == skipped.keys()
    assert set(skipped.values()) == {"Skipped because the check of VCDA's login failed."}


@pytest.mark.kafka
def test_the_rights_that_the_service_needs_are_enough(seen: Seen) -> None:
    assert seen.exact.code == Exit.DONE
    assert {line["check"] for line in seen.exact.wrong} == {"topics"}  # a single broker
    assert "Not compared" in next(line["text"] for line in seen.exact.lines if line["check"] == "clock")


@pytest.mark.kafka
def test_no_secret_is_ever_said(answers: dict[str, Answer]) -> None:
    said = "".join(line["text"] for answer in answers.values() for line in answer.lines)

    assert not [secret for secret in (PASSWORD, WRONG, SECRET, "password.") if secret in said]


# ---------------------------------------------------------------- how it is said


def result(status: Status, *, check: str = "login", group: str = "Kafka", answered: bool = True) -> Result:
    return Result(group=group, check=check, status=status, text="So it is.", answered=answered)


@pytest.mark.parametrize(
    ("results", "code", "words"),
    [
        ([result(Status.OK)], Exit.DONE, "The service will work: all checks are ok."),
        ([result(Status.WARNING)] * 2, Exit.DONE, "The service will work: 2 warnings."),
        (
            [result(Status.FAILURE, answered=False), result(Status.SKIPPED)],
            Exit.NO_ANSWER,
            "The service can't work at present: 1 failure, 1 skipped check.",
        ),
        (
            [result(Status.FAILURE, answered=False), result(Status.FAILURE), result(Status.WARNING)],
            Exit.NO,
            "The service won't work like this: 2 failures, 1 warning.",
        ),
    ],
    ids=["ok", "warnings", "nobody answers", "no"],
)
def test_a_definite_no_counts_more_than_an_answer_that_is_missing(
    results: list[Result], code: Exit, words: str
) -> None:
    assert exit_code(results) is code
    assert summary(results) == words


def test_what_fails_at_vcda_counts_unless_it_may() -> None:
    wrong = [result(Status.OK), result(Status.FAILURE, group="VCDA"), result(Status.FAILURE, group="site site2")]

    assert exit_code(wrong) is Exit.NO
    assert exit_code(wrong, vcda_may_fail=True) is Exit.DONE
    assert exit_code([*wrong, result(Status.FAILURE)], vcda_may_fail=True) is Exit.NO


def test_what_does_not_answer_counts_unless_it_may() -> None:
    silent = [result(Status.OK), result(Status.FAILURE, answered=False)]

    assert exit_code(silent) is Exit.NO_ANSWER
    assert exit_code(silent, unreachable_may_fail=True) is Exit.DONE
    assert exit_code([*silent, result(Status.FAILURE)], unreachable_may_fail=True) is Exit.NO


def test_lines_stand_under_the_headings_of_what_they_are_about(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for one in (result(Status.OK), result(Status.FAILURE, check="topics"), result(Status.WARNING, group="VCDA")):
        lines.print(one)

    assert capsys.readouterr().out.splitlines() == [
        "Kafka",
        "  ok       login             So it is.",
        "  failure  topics            So it is.",
        "",
        "VCDA",
        "  warning  login             So it is.",
    ]
