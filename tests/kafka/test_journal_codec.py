"""What stands in the journal: every state comes back as it was, and older or newer versions can be told apart."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.kafka.journal_codec import VERSION, Cursor, decode, decode_cursor, encode, encode_cursor, read, replayed
from service.sync import (
    Account,
    ApiError,
    Ended,
    Lingering,
    Reason,
    Refusal,
    Request,
    Running,
    Spelling,
    Submitting,
    Sync,
    Waiting,
)


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


# Kafka's and VCDA's moments have milliseconds, and so has the journal.
moments = st.integers(-62_135_596_800_000, 253_402_300_799_000).map(_moment)
maybe_moments = st.none() | moments
words = st.text(max_size=20)
maybe_words = st.none() | words
attempts = st.integers(0, 1_000)
errors = st.builds(ApiError, words, words, st.lists(words, max_size=2).map(tuple))
troubles = st.none() | errors

accounts = st.none() | st.builds(Account, words, maybe_words)
requests = st.builds(
    Request,
    identity=words,
    operation_id=words,
    replication_id=words,
    site=maybe_words,
    offset=st.integers(0, 2**63 - 1),
    requested_at=moments,
    accepted_at=moments,
    deadline=moments,
    traceparent=maybe_words,
    tracestate=maybe_words,
)
statuses = st.none() | st.integers(100, 599)
waiting = st.builds(
    Waiting,
    request=requests,
    attempts=attempts,
    trouble=troubles,
    http_status=statuses,
    repeats=attempts,
    look_from=st.none() | moments,
    passed_over=st.lists(words, max_size=3).map(tuple),
)
submitting = st.builds(
    Submitting,
    request=requests,
    attempts=attempts,
    look_from=moments,
    account=accounts,
    passed_over=st.lists(words, max_size=3).map(tuple),
    trouble=troubles,
    http_status=statuses,
    repeats=attempts,
    refusal=st.none() | st.builds(Refusal, errors, statuses, st.booleans()),
    doubt_for=st.integers(0, 10**12).map(lambda ms: timedelta(milliseconds=ms)),
)
running = st.builds(
    Running,
    request=requests,
    attempts=attempts,
    task_id=words,
    site=maybe_words,
    account=accounts,
    submitted_at=maybe_moments,
    adopted=st.booleans(),
)
lingering = st.builds(Lingering, of=submitting | running, told_at=moments)
ended = st.builds(
    Ended,
    request=requests,
    attempts=attempts,
    reason=st.none() | st.sampled_from(Reason),
    ended_at=moments,
    expires_at=moments,
    task_id=maybe_words,
    submitted_at=maybe_moments,
    adopted=st.booleans(),
    error=troubles,
    http_status=statuses,
)
states = waiting | submitting | running | lingering | ended


def read_back(state: Sync) -> Sync:
    return decode(state.request.identity, encode(state))


NOON = datetime(2030, 1, 1, 12, 0, 0, 123_000, tzinfo=UTC)
REQUEST = Request(
    identity="op:C4-1:sync-1",
    operation_id="sync-1",
    replication_id="C4-1",
    site=None,
    offset=7,
    requested_at=NOON,
    accepted_at=NOON,
    deadline=NOON,
)
SUBMITTING = Submitting(request=REQUEST, attempts=1, look_from=NOON, account=Account("me"))
RUNNING = Running(request=REQUEST, attempts=1, task_id="task-1", site=None, account=Account("me"), submitted_at=NOON)


@given(states)
def test_every_state_comes_back_as_it_was_written(state: Sync) -> None:
    assert read_back(state) == state


def test_a_busy_replication_is_read_from_a_record_of_a_version_that_wrote_no_refusals() -> None:
    busy = Refusal(ApiError("409", "A sync is running."), 409, busy=True)
    doubt = replace(SUBMITTING, trouble=busy.error, http_status=409, refusal=busy)
    earlier = json.loads(encode(doubt))
    assert earlier.pop("refusal")
    assert earlier.pop("refusalStatus")
    assert decode(REQUEST.identity, json.dumps(earlier).encode()) == doubt
    del earlier["trouble"]
    assert getattr(decode(REQUEST.identity, json.dumps(earlier).encode()), "refusal", busy) is None


def test_an_intent_carries_how_long_its_doubt_lasts_and_one_of_an_earlier_release_is_read_without() -> None:
    intent = replace(SUBMITTING, doubt_for=timedelta(seconds=92))
    record = json.loads(encode(intent))
    assert record.pop("doubtFor") == 92_000
    assert decode(REQUEST.identity, json.dumps(record).encode()) == SUBMITTING


@pytest.mark.parametrize("value", [-1, 10**17])
def test_a_doubt_that_lasts_for_no_possible_time_is_an_error(value: int) -> None:
    record = json.loads(encode(SUBMITTING)) | {"doubtFor": value}
    with pytest.raises(ValueError, match="doubtFor"):
        decode(REQUEST.identity, json.dumps(record).encode())


def test_moments_are_kept_to_the_millisecond() -> None:
    odd = replace(REQUEST, accepted_at=NOON.replace(microsecond=123_456))
    assert read_back(Waiting(request=odd)).request.accepted_at == NOON


def test_a_doubt_is_marked_for_those_who_only_read() -> None:
    assert not read(encode(SUBMITTING)).in_doubt
    assert read(encode(replace(SUBMITTING, conclusive_from=99.5))).in_doubt


def test_what_only_this_process_knows_is_not_written() -> None:
    assert read_back(replace(SUBMITTING, conclusive_from=99.5)) == SUBMITTING
    assert read_back(Lingering(of=replace(SUBMITTING, conclusive_from=99.5), told_at=NOON)) == Lingering(
        of=SUBMITTING, told_at=NOON
    )
    assert read_back(replace(RUNNING, absent_since=5.0, absent_answers=2)) == RUNNING


def test_a_record_is_json_that_names_its_version_and_leaves_out_what_is_absent() -> None:
    assert json.loads(encode(Waiting(request=REQUEST))) == {
        "v": VERSION,
        "state": "waiting",
        "operationID": "sync-1",
        "replicationId": "C4-1",
        "offset": 7,
        "requestedAt": 1893499200123,
        "acceptedAt": 1893499200123,
        "deadline": 1893499200123,
        "attempts": 0,
    }


def test_a_text_of_vcdas_that_has_no_utf_8_is_written_all_the_same() -> None:
    state = read_back(Waiting(request=REQUEST, trouble=ApiError("Odd", "half a pair: \ud800")))
    assert state == Waiting(request=REQUEST, trouble=ApiError("Odd", "half a pair: ?"))


def test_the_identity_stands_in_the_key_alone() -> None:
    assert b"op:C4-1" not in encode(Waiting(request=REQUEST))
    assert decode("ce:elsewhere:1", encode(Waiting(request=REQUEST))).request.identity == "ce:elsewhere:1"


@given(states, st.dictionaries(st.text(min_size=1, max_size=8).map(lambda name: "x-" + name), st.integers()))
def test_fields_of_a_newer_version_are_ignored(state: Sync, more: dict[str, int]) -> None:
    record = json.loads(encode(state)) | more | {"v": VERSION + 1}
    assert decode(state.request.identity, json.dumps(record).encode()) == state


class Before(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True, gc=False):
    """What the release before account at sites and repeats read and wrote of a sync; it stays as it was."""

    v: int
    state: str
    operation_id: str = msgspec.field(name="operationID")
    replication_id: str
    offset: int
    requested_at: int
    accepted_at: int
    deadline: int
    attempts: int
    site: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    trouble: tuple[str, str, tuple[str, ...]] | None = None
    account: str | None = None
    look_from: int | None = None
    passed_over: tuple[str, ...] = ()
    task_id: str | None = None
    task_site: str | None = None
    submitted_at: int | None = None
    adopted: bool = False
    told_at: int | None = None
    reason: str | None = None
    ended_at: int | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class CursorBefore:
    """The same of the cursor."""

    topic: str
    offset: int
    stamp: int | None = None


@given(states)
def test_the_release_before_reads_what_is_written_now(state: Sync) -> None:
    read = msgspec.json.decode(encode(state), type=Before)
    assert read.operation_id == state.request.operation_id
    of = state.of if isinstance(state, Lingering) else state
    if isinstance(of, Submitting | Running):
        assert read.account == (None if of.account is None else of.account.user)


@given(states)
def test_what_the_release_before_wrote_is_read_now_with_the_site_unknown(state: Sync) -> None:
    before = msgspec.json.encode(msgspec.json.decode(encode(state), type=Before))
    read = decode(state.request.identity, before)
    of = read.of if isinstance(read, Lingering) else read
    if isinstance(of, Submitting | Running) and of.account is not None:
        assert of.account.at_site is None
    assert getattr(of, "repeats", 0) == 0


def test_the_cursor_carries_how_vcda_spells_us_and_the_release_before_passes_over_it() -> None:
    spelling = Spelling(Account("me", "us@west"), "west", "org2@site2", "vmSync")
    cursor = Cursor("requests", 7, 1893499200123, spellings=(spelling,))
    assert decode_cursor(encode_cursor(cursor)) == cursor
    assert json.loads(encode_cursor(cursor)) == {
        "v": 1,
        "topic": "requests",
        "offset": 7,
        "stamp": 1893499200123,
        "spellings": [
            {"name": "org2@site2", "site": "west", "account": "me", "siteAccount": "us@west", "taskType": "vmSync"}
        ],
    }
    assert msgspec.json.decode(encode_cursor(cursor), type=CursorBefore) == CursorBefore("requests", 7, 1893499200123)
    assert decode_cursor(msgspec.json.encode(CursorBefore("requests", 7))) == Cursor("requests", 7)


def test_the_cursor_carries_the_journals_first_offset_and_the_release_before_passes_over_it() -> None:
    cursor = Cursor("requests", 7, 1893499200123, journal_start=12)
    assert decode_cursor(encode_cursor(cursor)) == cursor
    assert json.loads(encode_cursor(cursor))["journalStart"] == 12
    assert msgspec.json.decode(encode_cursor(cursor), type=CursorBefore) == CursorBefore("requests", 7, 1893499200123)


def test_a_state_of_a_newer_version_is_an_error_that_says_so() -> None:
    record = json.loads(encode(Waiting(request=REQUEST))) | {"state": "paused"}
    with pytest.raises(ValueError, match="unknown state 'paused': it was written by a newer version"):
        decode("op:C4-1:sync-1", json.dumps(record).encode())


@pytest.mark.parametrize("missing", ["state", "operationID", "offset", "deadline", "attempts"])
def test_a_record_without_what_it_needs_is_an_error(missing: str) -> None:
    record = json.loads(encode(Waiting(request=REQUEST)))
    del record[missing]
    with pytest.raises(ValueError, match="missing required field"):
        decode("op:C4-1:sync-1", json.dumps(record).encode())


@pytest.mark.parametrize("take", [read, replayed, decode_cursor])
def test_a_record_with_too_many_levels_is_an_error_as_any_other(take: Callable[[bytes], object]) -> None:
    deep = b'{"later":' + b"[" * 100_000 + b"]" * 100_000 + b"," + encode(Waiting(request=REQUEST))[1:]
    with pytest.raises(ValueError, match="too many levels"):
        take(deep)


def test_what_is_no_record_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expected `object`"):
        decode("op:C4-1:sync-1", b"[]")
