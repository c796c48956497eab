"""Encodes and decodes the journal's records: one for each sync, keyed by the request's identity, cursor and mark.

JSON, moments in epoch milliseconds, absent fields left out. Readers ignore what they don't know; a new version is
written one release after it can be read, so that an upgrade can be rolled back. Pure: bytes <-> values.

msgspec reads them, since half a million are read before a process takes up its work: 0.5 us each, where orjson takes
0.7 and Python's `json` 5. Nor does what it writes hold more memory than it is long: orjson's bytes hold 4 KB each
(measured), and a partition may begin with thousands.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Final, TypeAlias, TypeVar, assert_never

import msgspec

from service.moments import milliseconds
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

VERSION = 1

CURSOR_KEY = b"cursor"
"""Key of the cursor's record."""

OPENED_KEY = b"opened"
"""Key of the mark that each process writes when it opens the journal, to find the journal's end."""


def is_sync(key: bytes) -> bool:
    """Whether a key is a sync's: identities begin with `ce:` or `op:`, the other keys don't."""
    return key not in {CURSOR_KEY, OPENED_KEY}


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next offset to read, and the topic it belongs to.

    `stamp` is the timestamp (ms) of the record before it, and `topic_id` Kafka's id of the topic, by which a topic that
    was created again and filled past the cursor differs from the one that was read. `group` is the consumer group that
    wrote the cursor. None where it isn't known; versions before 0.1 knew neither of the last two, and ignore them.

    `journal_start` is the journal's first offset. Kafka's compaction never moves it: if it has moved when the journal
    is opened again, records were deleted. Versions before 0.1 did not store it, and ignore it.

    `spellings` are the spellings of the service's user that the writer knew. They survive restarts here, since versions
    before 0.1 would take a record of their own for a sync.
    """

    topic: str
    offset: int
    stamp: int | None = None
    topic_id: str | None = None
    group: str | None = None
    journal_start: int | None = None
    spellings: tuple[Spelling, ...] = ()


WITHDRAWN: Final = -(2**63)
"""The stamp of a cursor that matches no topic any more, since no record has this timestamp."""


def encode_cursor(cursor: Cursor) -> bytes:
    """Write where reading goes on."""
    stored = _StoredCursor(
        v=VERSION,
        topic=cursor.topic,
        offset=cursor.offset,
        stamp=cursor.stamp,
        topic_id=cursor.topic_id,
        group=cursor.group,
        journal_start=cursor.journal_start,
        spellings=tuple(
            _StoredSpelling(
                name=one.name,
                site=one.site,
                account=one.account.user,
                site_account=one.account.at_site,
                task_type=one.task_type,
            )
            for one in cursor.spellings
        ),
    )
    return _write(stored)


def decode_cursor(value: bytes) -> Cursor:
    """Read where reading goes on.

    Raises:
        ValueError: the record is invalid.
    """
    stored = _read_cursor(value)
    return Cursor(
        topic=stored.topic,
        offset=stored.offset,
        stamp=stored.stamp,
        topic_id=stored.topic_id,
        group=stored.group,
        journal_start=stored.journal_start,
        spellings=tuple(
            Spelling(Account(one.account, one.site_account), one.site, one.name, one.task_type)
            for one in stored.spellings
        ),
    )


class _StoredSpelling(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """A spelling's part of the cursor record."""

    name: str
    site: str | None = None
    account: str
    site_account: str | None = None
    task_type: str | None = None


class _StoredCursor(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """The cursor record, field by field."""

    v: int = 0
    topic: str
    offset: int
    stamp: int | None = None
    topic_id: str | None = None
    group: str | None = None
    journal_start: int | None = None
    spellings: tuple[_StoredSpelling, ...] = ()


# ---------------------------------------------------------------- syncs


Moment: TypeAlias = Annotated[int, msgspec.Meta(ge=-62_135_596_800_000, le=253_402_300_799_999)]
"""Epoch milliseconds, of a year that a datetime can hold."""

Span: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=milliseconds(timedelta(days=366_000)))]
"""Milliseconds, of a time that a timedelta can hold."""


class Replayed(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True, gc=False):
    """What a replay reads of a sync's record; the rest is passed over. Of what has ended, nothing else is needed.

    It is in no cycle, so the garbage collector need not know of it.
    """

    v: int
    state: str
    replication_id: str
    task_id: str | None = None
    submitted_at: Moment | None = None
    ended_at: Moment | None = None
    expires_at: Moment | None = None
    """Only what has ended expires."""

    @property
    def began(self) -> int:
        """When its task began, by VCDA's clock, or at the latest."""
        return self.submitted_at or self.ended_at or 0


class Stored(Replayed, rename="camel", omit_defaults=True, kw_only=True, gc=False):
    """A sync's record, field by field; which of those with a default are there depends on its state."""

    operation_id: str = msgspec.field(name="operationID")
    offset: int
    requested_at: Moment
    accepted_at: Moment
    deadline: Moment
    attempts: int
    site: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    trouble: tuple[str, str, tuple[str, ...]] | None = None
    """Of what has ended: the error of its outcome."""
    http_status: int | None = None
    in_doubt: bool = False
    """Of `submitting`: the POST was in doubt when this was written. Read back from a journal, it is so in any case."""
    account: str | None = None
    site_account: str | None = None
    repeats: int = 0
    busy: bool = False
    refusal: tuple[str, str, tuple[str, ...]] | None = None
    """Of `submitting`: VCDA's error to a repeated POST, and below the status. `busy` says which kind it is."""
    refusal_status: int | None = None
    doubt_for: Span = 0
    """Of `submitting`: how long a process that takes over has to wait before it may repeat the POST."""
    look_from: Moment | None = None
    passed_over: tuple[str, ...] = ()
    task_site: str | None = None
    adopted: bool = False
    told_at: Moment | None = None
    reason: str | None = None


def encode(state: Sync) -> bytes:
    """Write a sync as its journal record; the identity is the record's key."""
    match state:
        case Waiting():
            stored = _stored("waiting", state.request, _waiting(state))
        case Submitting():
            stored = _stored("submitting", state.request, _submitting(state))
        case Running():
            stored = _stored("running", state.request, _running(state))
        case Lingering(of=of):
            what = _submitting(of) if isinstance(of, Submitting) else _running(of)
            stored = _stored("lingering", state.request, what | {"told_at": epoch(state.told_at)})
        case Ended():
            fields = {
                "attempts": state.attempts,
                "reason": state.reason,
                "ended_at": epoch(state.ended_at),
                "expires_at": epoch(state.expires_at),
                "task_id": state.task_id,
                "submitted_at": None if state.submitted_at is None else epoch(state.submitted_at),
                "adopted": state.adopted,
                "trouble": _words(state.error),
                "http_status": state.http_status,
            }
            stored = _stored("ended", state.request, fields)
        case _:
            assert_never(state)
    return _write(stored)


def decode(identity: str, value: bytes) -> Sync:
    """Read a sync from its journal record.

    Raises:
        ValueError: the record is invalid.
    """
    return restore(identity, read(value))


def restore(identity: str, stored: Stored) -> Sync:
    """Make a sync of what was stored.

    Raises:
        ValueError: the record is invalid.
    """
    request = Request(
        identity=identity,
        operation_id=stored.operation_id,
        replication_id=stored.replication_id,
        site=stored.site,
        offset=stored.offset,
        requested_at=_moment(stored.requested_at),
        accepted_at=_moment(stored.accepted_at),
        deadline=_moment(stored.deadline),
        traceparent=stored.traceparent,
        tracestate=stored.tracestate,
    )
    match stored.state:
        case "waiting":
            return Waiting(
                request=request,
                attempts=stored.attempts,
                trouble=_trouble(stored),
                http_status=stored.http_status,
                repeats=stored.repeats,
                look_from=_maybe(stored.look_from),
                passed_over=stored.passed_over,
            )
        case "submitting":
            return _read_submitting(request, stored)
        case "running":
            return _read_running(request, stored)
        case "lingering":
            of = _read_submitting(request, stored) if stored.task_id is None else _read_running(request, stored)
            return Lingering(of=of, told_at=_moment(stored.told_at))
        case "ended":
            return Ended(
                request=request,
                attempts=stored.attempts,
                reason=None if stored.reason is None else Reason(stored.reason),
                ended_at=_moment(stored.ended_at),
                expires_at=_moment(stored.expires_at),
                task_id=stored.task_id,
                submitted_at=_maybe(stored.submitted_at),
                adopted=stored.adopted,
                error=_trouble(stored),
                http_status=stored.http_status,
            )
        case other:
            msg = f"a journal record in the unknown state {other!r}: it was written by a newer version"
            raise ValueError(msg)


def _stored(state: str, request: Request, fields: Mapping[str, Any]) -> Stored:
    return Stored(
        v=VERSION,
        state=state,
        operation_id=request.operation_id,
        replication_id=request.replication_id,
        site=request.site,
        offset=request.offset,
        requested_at=epoch(request.requested_at),
        accepted_at=epoch(request.accepted_at),
        deadline=epoch(request.deadline),
        traceparent=request.traceparent,
        tracestate=request.tracestate,
        **fields,
    )


def _waiting(state: Waiting) -> dict[str, Any]:
    return {
        "attempts": state.attempts,
        "trouble": _words(state.trouble),
        "http_status": state.http_status,
        "repeats": state.repeats,
        "look_from": None if state.look_from is None else epoch(state.look_from),
        "passed_over": state.passed_over,
    }


def _submitting(state: Submitting) -> dict[str, Any]:
    return {
        "attempts": state.attempts,
        "look_from": epoch(state.look_from),
        **_of_account(state.account),
        "passed_over": state.passed_over,
        "trouble": _words(state.trouble),
        "http_status": state.http_status,
        "in_doubt": state.in_doubt,
        "repeats": state.repeats,
        "doubt_for": milliseconds(state.doubt_for),
        **_of_refusal(state.refusal),
    }


def _read_submitting(request: Request, stored: Stored) -> Submitting:
    return Submitting(
        request=request,
        attempts=stored.attempts,
        look_from=_moment(stored.look_from),
        account=_account(stored.account, stored.site_account),
        passed_over=stored.passed_over,
        trouble=_trouble(stored),
        http_status=stored.http_status,
        repeats=stored.repeats,
        refusal=_refusal(stored),
        doubt_for=timedelta(milliseconds=stored.doubt_for),
    )


def _running(state: Running) -> dict[str, Any]:
    return {
        "attempts": state.attempts,
        "task_id": state.task_id,
        "task_site": state.site,
        **_of_account(state.account),
        "submitted_at": None if state.submitted_at is None else epoch(state.submitted_at),
        "adopted": state.adopted,
    }


def _read_running(request: Request, stored: Stored) -> Running:
    if stored.task_id is None:
        msg = "a journal record of a running sync without its task"
        raise ValueError(msg)
    return Running(
        request=request,
        attempts=stored.attempts,
        task_id=stored.task_id,
        site=stored.task_site,
        account=_account(stored.account, stored.site_account),
        submitted_at=_maybe(stored.submitted_at),
        adopted=stored.adopted,
    )


def _of_account(account: Account | None) -> dict[str, str | None]:
    return {} if account is None else {"account": account.user, "site_account": account.at_site}


def _of_refusal(refusal: Refusal | None) -> dict[str, Any]:
    if refusal is None:
        return {}
    return {"busy": refusal.busy, "refusal": _words(refusal.error), "refusal_status": refusal.http_status}


def _refusal(stored: Stored) -> Refusal | None:
    if stored.refusal is not None:
        return Refusal(ApiError(*stored.refusal), stored.refusal_status, stored.busy)
    if stored.busy and (error := _trouble(stored)) is not None:  # an earlier version wrote no more than that
        return Refusal(error, stored.http_status, busy=True)
    return None


@lru_cache(maxsize=64)  # there are a few, and tens of thousands of syncs share each of them
def _account(user: str | None, at_site: str | None) -> Account | None:
    return None if user is None else Account(user, at_site)


def _words(trouble: ApiError | None) -> tuple[str, str, tuple[str, ...]] | None:
    return None if trouble is None else (trouble.code, trouble.msg, trouble.args)


def _trouble(stored: Stored) -> ApiError | None:
    return None if stored.trouble is None else ApiError(*stored.trouble)


# ---------------------------------------------------------------- small parts

Record = TypeVar("Record", bound=msgspec.Struct)


def _reader(kind: type[Record]) -> Callable[[bytes], Record]:
    decode = msgspec.json.Decoder(kind).decode

    def read(value: bytes) -> Record:
        try:
            return decode(value)
        except RecursionError:  # msgspec's word for too many levels, also in a field that it skips
            msg = "too many levels of JSON"
            raise ValueError(msg) from None

    return read


replayed: Final = _reader(Replayed)
"""Reads what a replay needs of a sync's record, in two thirds of the time of `read`; a ValueError if it is invalid."""

read: Final = _reader(Stored)
"""Reads a sync's record, in a seventh of the time of `decode`; a ValueError if it is invalid."""

_read_cursor = _reader(_StoredCursor)
_encode: Final = msgspec.json.Encoder().encode


def _write(record: msgspec.Struct) -> bytes:
    try:
        return _encode(record)
    except UnicodeEncodeError:
        # VCDA's texts may hold half a surrogate pair, which has no UTF-8: a question mark instead of a journal lost.
        text = json.dumps(msgspec.to_builtins(record), ensure_ascii=False, separators=(",", ":"))
        return text.encode(errors="replace")


def epoch(moment: datetime) -> int:
    """Write a moment: milliseconds since 1970."""
    return round(moment.timestamp() * 1000)


def _moment(ms: int | None) -> datetime:
    if ms is None:
        msg = "a journal record without a timestamp that its state requires"
        raise ValueError(msg)
    return datetime.fromtimestamp(ms / 1000, UTC)


def _maybe(ms: int | None) -> datetime | None:
    return None if ms is None else _moment(ms)
