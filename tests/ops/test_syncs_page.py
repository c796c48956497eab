"""`/syncs`: pages, filters, and one sentence for a bad parameter."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from service.ops import syncs_page
from service.ops.syncs_page import SYNCS_AT_ONCE, Query, read_query
from tests.support.shown_syncs import Shown, ids
from tests.support.virtual_time import run_virtual, virtual


def query(**given: str) -> Query:
    read = read_query(given)
    assert isinstance(read, Query)
    return read


def page(syncs: Iterable[Shown], query: Query) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_virtual(syncs_page.page(syncs, query, clean=str, more={})))
    return found


def test_a_sync_is_shown_with_its_progress() -> None:
    assert page([Shown("op:C4-1:a")], query())["syncs"] == [
        {
            "requestId": "op:C4-1:a",
            "operationID": "op",
            "replicationId": "C4-1",
            "site": None,
            "state": "running",
            "partition": 3,
            "attempts": 1,
            "taskId": "task",
            "progress": 40,
            "acceptedAt": "2026-01-01T00:00:00.000Z",
            "submittedAt": None,
            "deadline": "2026-01-01T06:00:00.000Z",
            "held": False,
            "error": {"code": "Busy", "msg": "A sync is running.", "httpStatus": 409},
            "waitsFor": {
                "cause": "elder",
                "site": None,
                "until": "2026-01-01T00:00:00.000Z",
                "behind": "op-0",
                "detail": "request op-0 is running",
            },
        }
    ]


def test_pages_follow_one_another_in_order_without_gap_or_overlap() -> None:
    syncs = [Shown(f"op:C4-1:{number:02}") for number in (4, 1, 3, 0, 2)]

    first = page(syncs, query(limit="2"))
    second = page(syncs, query(limit="2", after=str(first["next"])))
    third = page(syncs, query(limit="2", after=str(second["next"])))

    assert [ids(first), ids(second), ids(third)] == [
        ["op:C4-1:00", "op:C4-1:01"],
        ["op:C4-1:02", "op:C4-1:03"],
        ["op:C4-1:04"],
    ]
    assert third["next"] is None


@virtual
async def test_the_event_loop_turns_while_many_syncs_are_looked_through() -> None:
    looked, longest, done = 0, 0, False

    def syncs() -> Iterator[Shown]:
        nonlocal looked
        for number in range(20_000):
            looked += 1
            yield Shown(f"op:C4-1:{(number * 7919) % 20_000:05}")

    async def turn() -> None:
        nonlocal looked, longest
        while not done:
            longest, looked = max(longest, looked), 0
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    shown = json.loads(await syncs_page.page(syncs(), query(limit="3", after="op:C4-1:00041"), clean=str, more={}))
    done = True
    await turning

    assert longest == SYNCS_AT_ONCE
    assert ids(shown) == ["op:C4-1:00042", "op:C4-1:00043", "op:C4-1:00044"]
    assert shown["next"] == "op:C4-1:00044"


@virtual
async def test_the_event_loop_turns_while_the_rows_of_a_page_are_made() -> None:
    made, longest, done = 0, 0, False

    def make(_: object) -> None:
        nonlocal made
        made += 1

    async def turn() -> None:
        nonlocal made, longest
        while not done:
            longest, made = max(longest, made), 0
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    syncs = [Shown(f"op:C4-1:{number:05}") for number in range(500)]
    rows, following = await syncs_page.rows(syncs, query(limit="400"), make, at_once=50)
    done = True
    await turning

    assert longest == 50
    assert (len(rows), following) == (400, "op:C4-1:00399")


@virtual
async def test_a_sync_that_ends_while_the_page_is_made_is_not_shown() -> None:
    first = Shown("a")

    def syncs() -> Iterator[Shown]:
        yield first
        first.state = "ended"
        yield Shown("b")

    assert ids(json.loads(await syncs_page.page(syncs(), query(), clean=str, more={}))) == ["b"]


def test_a_page_that_just_suffices_is_the_last() -> None:
    assert page([Shown("a"), Shown("b")], query(limit="2"))["next"] is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"state": "waiting"}, ["b"]),
        ({"site": "berlin"}, ["c"]),
        ({"replicationId": "C4-2"}, ["d"]),
        ({"state": "waiting", "site": "berlin"}, []),
        ({}, ["a", "b", "c", "d"]),
        ({"state": "", "site": "", "replicationId": "", "after": "", "limit": ""}, ["a", "b", "c", "d"]),
    ],
)
def test_syncs_are_chosen_by_state_site_and_replication(given: dict[str, str], expected: list[str]) -> None:
    syncs = [Shown("a"), Shown("b", state="waiting"), Shown("c", site="berlin"), Shown("d", replication_id="C4-2")]

    assert ids(page(syncs, query(**given))) == expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"limit": "0"}, "limit is a number from 1 to 1000."),
        ({"limit": "1001"}, "limit is a number from 1 to 1000."),
        ({"limit": "-1"}, "limit is a number from 1 to 1000."),
        ({"limit": "ten"}, "limit is a number from 1 to 1000."),
        ({"limit": "9" * 5000}, "limit is a number from 1 to 1000."),
        ({"limit": "²"}, "limit is a number from 1 to 1000."),
        ({"state": "Running"}, "state is one of waiting, submitting, in_doubt, running, lingering."),
        ({"replicationID": "x"}, "There is no parameter 'replicationID'; there are "),
    ],
)
def test_a_bad_parameter_gets_a_sentence(given: dict[str, str], sentence: str) -> None:
    answer = read_query(given)

    assert isinstance(answer, str)
    assert answer.startswith(sentence)
