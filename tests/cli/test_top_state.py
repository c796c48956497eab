"""What `vm-sync top` knows after each record: what is in flight now, and the outcomes of the last minute."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cli.top_state import TopState
from service.kafka import journal_codec as records
from service.sync import Ended, Lingering, Request, Running, Submitting, Sync, Waiting

NOON = datetime(2026, 8, 17, 12, tzinfo=UTC)


def a_request(number: int, site: str | None = None) -> Request:
    return Request(
        identity=f"op:C4-{number}:op-{number}",
        operation_id=f"op-{number}",
        replication_id=f"C4-{number}",
        site=site,
        offset=number,
        requested_at=NOON,
        accepted_at=NOON + timedelta(seconds=number),
        deadline=NOON + timedelta(hours=6),
    )


def waiting(number: int, site: str | None = None) -> Waiting:
    return Waiting(request=a_request(number, site), attempts=0)


def running(number: int) -> Running:
    return Running(
        request=a_request(number), attempts=1, task_id="t", site=None, account=None, submitted_at=NOON, adopted=False
    )


def submitting(number: int, *, in_doubt: bool) -> Submitting:
    conclusive = 1.0 if in_doubt else None
    return Submitting(request=a_request(number), attempts=1, look_from=NOON, conclusive_from=conclusive)


def ended(number: int) -> Ended:
    return Ended(request=a_request(number), attempts=1, reason=None, ended_at=NOON, expires_at=NOON + timedelta(days=1))


def taking(*syncs: Sync) -> TopState:
    state = TopState(latest=3)
    for one in syncs:
        state.take_journal(one.request.identity.encode(), records.encode(one))
    return state


def test_requests_in_flight_are_counted_by_site_and_state_as_their_last_record_says() -> None:
    state = taking(
        waiting(1),
        waiting(2, "site2"),
        waiting(3),
        running(3),
        submitting(4, in_doubt=True),
        submitting(5, in_doubt=False),
        Lingering(of=running(6), told_at=NOON),
        running(7),
        ended(7),
        waiting(8),
    )
    state.take_journal(b"op:C4-8:op-8", None)
    state.take_journal(records.CURSOR_KEY, b"{}")
    state.take_journal(records.OPENED_KEY, b"x")
    state.take_journal(None, b"x")

    shown = state.moment(NOON, rows=2)

    assert shown.total == 6
    local, remote = shown.sites
    assert (local.site, dict(local.states)) == (
        None,
        {"waiting": 1, "running": 1, "in_doubt": 1, "submitting": 1, "lingering": 1},
    )
    assert (remote.site, dict(remote.states), remote.oldest) == ("site2", {"waiting": 1}, NOON + timedelta(seconds=2))
    assert [one.operation_id for one in shown.oldest] == ["op-1", "op-2"]
    assert shown.json()["states"] == {"waiting": 2, "submitting": 1, "in_doubt": 1, "running": 1, "lingering": 1}


@pytest.mark.parametrize("value", [b"?", b'{"v": 1}', records.encode(waiting(1)).replace(b"waiting", b"dreaming")])
def test_what_this_version_cannot_read_is_counted_until_it_is_replaced(value: bytes) -> None:
    state = taking(waiting(1))

    state.take_journal(b"op:C4-1:op-1", value)
    assert (state.moment(NOON, rows=1).total, state.moment(NOON, rows=1).unreadable) == (0, 1)
    state.take_journal(b"op:C4-1:op-1", records.encode(running(1)))

    assert (state.moment(NOON, rows=1).total, state.moment(NOON, rows=1).unreadable) == (1, 0)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([waiting, running, ended, None]))))
def test_whatever_comes_nothing_is_held_of_what_has_ended(steps: list[tuple[int, Any]]) -> None:
    state = TopState(latest=1)
    for number, make in steps:
        value = None if make is None else records.encode(make(number))
        state.take_journal(f"op:C4-{number}:op-{number}".encode(), value)

    last = dict(steps)
    assert len(state._in_flight) == sum(make in {waiting, running} for make in last.values())
    assert state.moment(NOON, rows=9).total == len(state._in_flight)


def outcome(number: int, reason: str | None = None) -> bytes:
    body = {
        "requestId": f"op:C4-{number}:op-{number}",
        "operationID": f"op-{number}",
        "replicationId": f"C4-{number}",
        "requestedAt": "2026-08-17T11:00:00Z",
        "endedAt": "2026-08-17T12:00:00Z",
    }
    return json.dumps(body | ({} if reason is None else {"reason": reason})).encode()


def test_outcomes_are_counted_for_a_minute_and_the_latest_are_kept() -> None:
    state, noon = TopState(latest=3), int(NOON.timestamp() * 1000)
    for number in range(5):
        state.take_outcome(
            outcome(number, "rejected" if number == 2 else None), at_ms=noon + number * 1000, partition=0, offset=number
        )
    state.take_outcome(outcome(9), at_ms=noon - 5000, partition=1, offset=0)
    state.take_outcome(b"?", at_ms=noon, partition=1, offset=1)

    now = state.moment(NOON + timedelta(seconds=10), rows=1)
    later = state.moment(NOON + timedelta(seconds=62.5), rows=1)
    at_last = state.moment(NOON + timedelta(hours=1), rows=1)

    assert (now.completed, now.failed) == (5, 1)
    assert [one.operation_id for one in now.latest] == ["op-2", "op-3", "op-4"]
    assert (later.completed, later.failed) == (2, 0)
    assert (at_last.completed, at_last.failed, len(at_last.latest)) == (0, 0, 3)
    assert not state._ended


def test_two_topics_may_have_outcomes_of_the_same_moment_in_the_same_place() -> None:
    state = TopState(latest=2)
    for number in range(4):
        state.take_outcome(outcome(number), at_ms=1000, partition=0, offset=0)

    assert len(state.moment(NOON, rows=1).latest) == 2
