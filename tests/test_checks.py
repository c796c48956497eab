"""Checks: their order, their bounds, and what is skipped; on virtual time."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from service.checks import Check, Result, Status, Verdict, clocks, failure, ok, results, unless_another_works, warning
from tests.support.virtual_time import virtual

SECOND = timedelta(seconds=1)


def check(name: str, *verdicts: Verdict, takes: float = 0.0, needs: tuple[Check, ...] = ()) -> Check:
    async def run() -> Sequence[Verdict]:
        await asyncio.sleep(takes)
        return verdicts

    return Check(group="Kafka", name=name, run=run, limit=5 * SECOND, overdue="look there", needs=needs)


async def made(*checks: Check, within: timedelta = 60 * SECOND) -> list[tuple[str, Status, str]]:
    return [(result.check, result.status, result.text) async for result in results(checks, within=within)]


@virtual
async def test_each_verdict_is_a_line_in_the_order_of_the_checks() -> None:
    found = await made(check("first", ok("Fine."), warning("Hm.")), check("second", failure("No.")))

    assert found == [
        ("first", Status.OK, "Fine."),
        ("first", Status.WARNING, "Hm."),
        ("second", Status.FAILURE, "No."),
    ]


@virtual
async def test_what_needs_a_failed_check_is_skipped_down_to_the_last_and_the_first_cause_is_named() -> None:
    name = check("name", failure("No."))
    connection = check("connection", ok("?"), needs=(name,))

    found = await made(name, connection, check("login", ok("?"), needs=(connection,)), check("else", ok("Fine.")))

    assert [status for _, status, _ in found] == [Status.FAILURE, Status.SKIPPED, Status.SKIPPED, Status.OK]
    assert {text for _, status, text in found if status is Status.SKIPPED} == {
        "Skipped because the check of Kafka's name failed."
    }


@virtual
async def test_a_warning_skips_nothing() -> None:
    base = check("base", warning("Hm."))

    assert (await made(base, check("next", ok("Fine."), needs=(base,))))[-1] == ("next", Status.OK, "Fine.")


@virtual
async def test_a_check_that_takes_too_long_is_a_failure_that_says_what_to_look_at() -> None:
    began = asyncio.get_running_loop().time()

    found = await made(check("slow", ok("?"), takes=3600.0))

    assert found == [("slow", Status.FAILURE, "No answer within 5 s: look there.")]
    assert asyncio.get_running_loop().time() - began == 5.0


@virtual
async def test_all_of_them_together_are_bounded_too() -> None:
    slow = [check(f"slow {number}", ok("?"), takes=3600.0) for number in range(3)]
    began = asyncio.get_running_loop().time()

    found = await made(*slow, within=7 * SECOND)

    assert [text for _, _, text in found] == [
        "No answer within 5 s: look there.",
        "No answer within 2 s: look there.",
        "Skipped because the checks took longer than 7 s together.",
    ]
    assert asyncio.get_running_loop().time() - began == 7.0


@virtual
async def test_a_time_out_of_a_checks_own_is_no_answer_of_the_check() -> None:
    async def run() -> Sequence[Verdict]:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await made(Check(group="Kafka", name="broken", run=run, limit=SECOND, overdue="look there"))


def test_an_alternative_that_works_makes_the_failures_of_the_others_warnings() -> None:
    assert unless_another_works([failure("a"), ok("b")]) == [warning("a"), ok("b")]
    assert unless_another_works([failure("a"), failure("b")]) == [failure("a"), failure("b")]


@pytest.mark.parametrize(
    ("seconds", "status", "words"),
    [(9, Status.OK, "less than 10 s"), (90, Status.WARNING, "90 s ahead"), (-3600, Status.WARNING, "3,600 s behind")],
)
def test_clocks_that_are_apart_are_a_warning(seconds: int, status: Status, words: str) -> None:
    found = clocks("Kafka's", timedelta(seconds=seconds))

    assert found.status is status
    assert words in found.text


def test_the_settings_to_change_are_those_that_the_text_names_once_each() -> None:
    text = "Check VM_SYNC_VCDA__SITES__0__NAME, VM_SYNC_VCDA__URL, and VM_SYNC_VCDA__URL."

    def named(status: Status) -> tuple[str, ...]:
        return Result(group="VCDA", check="login", status=status, text=text).settings

    assert named(Status.FAILURE) == ("VM_SYNC_VCDA__SITES__0__NAME", "VM_SYNC_VCDA__URL")
    assert named(Status.OK) == ()
