"""What a journal's records come to, in whatever order a sync's own are written."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from unittest.mock import Mock

import pytest

from service.kafka import journal_replay
from service.kafka.dedup_index import YoungTasks
from service.kafka.journal_codec import CURSOR_KEY, OPENED_KEY, Cursor, encode, encode_cursor, epoch
from service.kafka.journal_replay import KEPT, Replay
from service.sync import Account, Ended, InFlight, Lingering, Reason, Request, Running, Submitting, Waiting

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
BEFORE = epoch(NOON - HOUR)
REQUEST = Request(
    identity="op:C4-1:sync-1",
    operation_id="sync-1",
    replication_id="C4-1",
    site="west",
    offset=7,
    requested_at=NOON,
    accepted_at=NOON,
    deadline=NOON,
)
KEY = REQUEST.identity.encode()
WAITING = Waiting(request=REQUEST)
SUBMITTING = Submitting(request=REQUEST, attempts=1, look_from=NOON)
RUNNING = Running(request=REQUEST, attempts=1, task_id="task-1", site="west", account=Account("me"), submitted_at=NOON)
LINGERING = Lingering(of=RUNNING, told_at=NOON)
ENDED = Ended(
    request=REQUEST,
    attempts=1,
    reason=None,
    ended_at=NOON - timedelta(minutes=1),
    expires_at=NOON + HOUR,
    task_id="task-1",
    submitted_at=NOON - timedelta(minutes=2),
)
EXPIRED = replace(ENDED, expires_at=NOON - KEPT)
JUST_EXPIRED = replace(ENDED, expires_at=NOON)


def replay(*states: Ended | InFlight | None) -> Replay:
    """What an identity's records come to; None: a tombstone."""
    taken = Replay(now=NOON)
    for state in states:
        taken.take(KEY, None if state is None else encode(state))
    return taken


def what_counts(taken: Replay) -> object:
    """What is in flight, how many are remembered, and what has expired."""
    ended = taken.ended()
    return list(taken.in_flight()), len(ended.identities), ended.expired


OUTCOMES: tuple[tuple[tuple[Ended | InFlight | None, ...], list[InFlight], int, tuple[str, ...]], ...] = (
    ((WAITING, SUBMITTING, RUNNING, LINGERING), [LINGERING], 0, ()),
    ((RUNNING, ENDED), [], 1, ()),
    ((RUNNING, EXPIRED), [], 0, (REQUEST.identity,)),
    ((RUNNING, JUST_EXPIRED), [], 0, ()),
    ((RUNNING, None), [], 0, ()),
    ((ENDED, None), [], 0, ()),
    ((EXPIRED, None), [], 0, ()),
    ((ENDED, WAITING, SUBMITTING), [SUBMITTING], 0, ()),
    ((EXPIRED, WAITING), [WAITING], 0, ()),
    ((EXPIRED, None, WAITING, ENDED), [], 1, ()),
    ((ENDED, ENDED), [], 1, ()),
    ((EXPIRED, ENDED), [], 1, ()),
    ((ENDED, EXPIRED), [], 0, (REQUEST.identity,)),
    ((EXPIRED, WAITING, EXPIRED), [], 0, (REQUEST.identity,)),
    ((None,), [], 0, ()),
)


@pytest.mark.parametrize(("states", "in_flight", "remembered", "expired"), OUTCOMES)
def test_only_an_identitys_last_record_counts(
    states: tuple[Ended | InFlight | None, ...],
    in_flight: list[InFlight],
    remembered: int,
    expired: tuple[str, ...],
) -> None:
    assert what_counts(replay(*states)) == (in_flight, remembered, expired)


@pytest.mark.parametrize("states", list(permutations((RUNNING, ENDED, EXPIRED, None))))
def test_whether_a_journal_was_compacted_makes_no_difference(states: tuple[Ended | InFlight | None, ...]) -> None:
    assert what_counts(replay(*states)) == what_counts(replay(states[-1]))


def test_what_ended_is_remembered_until_it_expires() -> None:
    ended = replay(ENDED).ended()
    assert ended.identities.holds(KEY, epoch(NOON + HOUR) - 1)
    assert not ended.identities.holds(KEY, epoch(NOON + HOUR))


@pytest.mark.parametrize("states", [(ENDED,), (EXPIRED,), (ENDED, None), (EXPIRED, WAITING)])
def test_the_task_of_what_ended_is_nobody_elses_even_after_its_identity(
    states: tuple[Ended | InFlight | None, ...],
) -> None:
    young = replay(*states).ended().young
    assert list(young.since("C4-1", epoch(NOON - timedelta(minutes=2)))) == ["task-1"]
    assert list(young.since("C4-1", epoch(NOON - timedelta(minutes=2)) + 1)) == []


def test_a_task_that_nobody_saw_begin_is_as_young_as_its_end() -> None:
    young = replay(replace(ENDED, submitted_at=None)).ended().young
    assert list(young.since("C4-1", epoch(ENDED.ended_at))) == ["task-1"]
    assert list(young.since("C4-1", epoch(ENDED.ended_at) + 1)) == []


def test_a_task_that_says_it_began_in_the_future_makes_no_other_old() -> None:
    taken = replay(ENDED)
    request = replace(REQUEST, identity="op:C4-2:2", replication_id="C4-2", site=None)
    ahead = replace(ENDED, request=request, submitted_at=NOON + 50_000 * HOUR)
    taken.take(b"op:C4-2:2", encode(ahead))
    assert list(taken.ended().young.since("C4-1", BEFORE)) == ["task-1"]


@pytest.mark.parametrize(
    ("minutes", "kept"),
    [
        ((0, 30, 110, 120), [1, 3, 4]),  # when the fourth followed, the second was 90 minutes old
        ((0, 10, 20, 500_000, 40), [1, 2, 3, 4, 5]),  # the clock was wrong for a moment
    ],
)
def test_of_many_tasks_those_are_kept_that_are_young_when_others_have_followed(
    minutes: Sequence[int], kept: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_replay, "LATEST", 2)
    monkeypatch.setattr(journal_replay, "SHARE", 1)
    monkeypatch.setattr(journal_replay, "APART", 1)
    taken = Replay(now=NOON)
    for number, expiry in enumerate(minutes, 1):
        request = replace(REQUEST, identity=f"op:C4-1:{number}")
        ended = replace(ENDED, request=request, task_id=f"task-{number}", expires_at=NOON + timedelta(minutes=expiry))
        taken.take(request.identity.encode(), encode(ended))
    assert list(taken.ended().young.since("C4-1", 0)) == [f"task-{number}" for number in kept]


def test_of_500000_requests_a_day_no_task_is_packed_that_has_grown_old(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Mock()
    monkeypatch.setattr(YoungTasks, "add", packed)
    between = timedelta(days=1) / (500_000 / 8)
    taken = Replay(now=NOON)
    for number in range(10_000):
        taken.take(b"op:C4-1:%d" % number, encode(replace(ENDED, expires_at=NOON + HOUR + number * between)))
    assert not packed.called
    taken.ended()
    assert packed.call_count > HOUR / between


def test_what_ended_without_a_task_leaves_none() -> None:
    assert list(replay(replace(ENDED, task_id=None)).ended().young.since("C4-1", 0)) == []


def test_what_ended_for_a_reason_of_a_newer_version_is_remembered_all_the_same() -> None:
    taken = Replay(now=NOON)
    taken.take(KEY, encode(replace(ENDED, reason=Reason.REJECTED)).replace(b"rejected", b"not-known-here"))
    assert what_counts(taken) == ([], 1, ())


def test_the_last_cursor_counts_and_a_mark_counts_for_nothing() -> None:
    taken = Replay(now=NOON)
    assert taken.cursor() is None
    for offset in (1, 2):
        taken.take(CURSOR_KEY, encode_cursor(Cursor("requests", offset)))
        taken.take(OPENED_KEY, b"{}")
    assert taken.cursor() == Cursor("requests", 2)
    assert what_counts(taken) == ([], 0, ())


def test_syncs_in_flight_are_told_apart() -> None:
    taken = replay(RUNNING)
    other = replace(WAITING, request=replace(REQUEST, identity="op:C4-1:sync-2"))
    taken.take(b"op:C4-1:sync-2", encode(other))
    assert list(taken.in_flight()) == [RUNNING, other]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b"7",
        b"{}",
        b'{"v": 9, "state": "paused"}',
        b'{"v": 1, "state": "ended"}',
        b'{"v": 1, "state": "ended", "expiresAt": "noon", "replicationId": "C4-1", "endedAt": 1}',
        b'{"v": 1, "state": "running"}',
        encode(WAITING).replace(b'"state":"waiting"', b'"state":"running"'),
        encode(ENDED).replace(b'"expiresAt":', b'"expiresAt":99999'),
    ],
)
def test_a_record_that_nobody_here_has_written_is_an_error(value: bytes) -> None:
    taken = Replay(now=NOON)
    with pytest.raises(ValueError):  # noqa: PT011, PT012 - some show when they are taken, some later
        taken.take(KEY, value)
        list(taken.in_flight())


def test_of_many_expired_identities_the_first_are_returned_and_none_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_replay, "EXPIRED_AT_MOST", 2)
    taken = Replay(now=NOON)
    for number in range(5):
        taken.take(f"op:C4-{number}:sync".encode(), encode(EXPIRED))
    assert what_counts(taken) == ([], 0, ("op:C4-0:sync", "op:C4-1:sync"))
