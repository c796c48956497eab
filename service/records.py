"""What stands in the journal: a record for each sync, keyed by the request's identity, and two that aren't syncs.

JSON, moments in epoch milliseconds, absent fields left out. Readers ignore what they don't know; a new version is
written one release after it can be read, so that an upgrade can be rolled back. Pure: bytes <-> values.

orjson reads them, since half a million are read before a process takes up its work: 0.8 us each, Python's `json` 5.4.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, assert_never

import orjson

from service.sync import ApiError, Ended, Lingering, Reason, Request, Running, Submitting, Sync, Waiting

VERSION = 1

CURSOR_KEY = b"cursor"
"""Where reading the requests goes on."""

OPENED_KEY = b"opened"
"""Written by whoever opens the journal, to know its end."""


def is_sync(key: bytes) -> bool:
    """Whether a record is of a sync: no identity looks like the other keys, they begin with `ce:` or `op:`."""
    return key not in {CURSOR_KEY, OPENED_KEY}


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next offset to read, and the topic it belongs to.

    `stamp` is the timestamp (ms) of the record before it, by which a topic that was made anew and filled past the
    cursor is told from the one that was read; None where it isn't known.
    """

    topic: str
    offset: int
    stamp: int | None = None


def encode(state: Sync) -> bytes:
    """Write a sync as its journal record; the identity is the record's key."""
    match state:
        case Waiting():
            fields = {"state": "waiting", **_request(state.request), "attempts": state.attempts}
            fields |= _trouble(state.trouble)
        case Submitting():
            fields = {"state": "submitting", **_request(state.request), **_submitting(state)}
        case Running():
            fields = {"state": "running", **_request(state.request), **_running(state)}
        case Lingering(of=of):
            what = _submitting(of) if isinstance(of, Submitting) else _running(of)
            fields = {"state": "lingering", **_request(state.request), **what, "toldAt": epoch(state.told_at)}
        case Ended():
            fields = {
                "state": "ended",
                **_request(state.request),
                "attempts": state.attempts,
                "reason": state.reason,
                "endedAt": epoch(state.ended_at),
                "expiresAt": epoch(state.expires_at),
                "taskId": state.task_id,
                "submittedAt": None if state.submitted_at is None else epoch(state.submitted_at),
                "adopted": state.adopted or None,
            }
        case _:
            assert_never(state)
    return _dumps({"v": VERSION, **fields})


def decode(identity: str, value: bytes) -> Sync:
    """Read a journal record.

    Raises:
        ValueError: it isn't one of ours.
    """
    record = orjson.loads(value)
    request = Request(
        identity=identity,
        operation_id=record["operationID"],
        replication_id=record["replicationId"],
        site=record.get("site"),
        offset=record["offset"],
        requested_at=_moment(record["requestedAt"]),
        accepted_at=_moment(record["acceptedAt"]),
        deadline=_moment(record["deadline"]),
        traceparent=record.get("traceparent"),
        tracestate=record.get("tracestate"),
    )
    match record["state"]:
        case "waiting":
            return Waiting(request=request, attempts=record["attempts"], trouble=_read_trouble(record))
        case "submitting":
            return _read_submitting(request, record)
        case "running":
            return _read_running(request, record)
        case "lingering":
            of = _read_running(request, record) if "taskId" in record else _read_submitting(request, record)
            return Lingering(of=of, told_at=_moment(record["toldAt"]))
        case "ended":
            return Ended(
                request=request,
                attempts=record["attempts"],
                reason=Reason(record["reason"]) if "reason" in record else None,
                ended_at=_moment(record["endedAt"]),
                expires_at=_moment(record["expiresAt"]),
                task_id=record.get("taskId"),
                submitted_at=_maybe(record.get("submittedAt")),
                adopted=record.get("adopted", False),
            )
        case other:
            msg = f"a journal record in the unknown state {other!r}: it was written by a newer version"
            raise ValueError(msg)


class Remains(NamedTuple):
    """What has to be known of a request that has ended. Moments are epoch milliseconds."""

    expires_at: int
    replication_id: str
    site: str | None
    task_id: str | None
    started_at: int
    """When its task began, by VCDA's clock."""


def remains(value: bytes) -> Remains | None:
    """Read of a journal record only what has to be known of an ended request; None: it hasn't ended.

    An eighth of the time of `decode`. A record of an unknown state is taken as one that hasn't ended.

    Raises:
        ValueError: it isn't one of ours.
    """
    record = orjson.loads(value)
    if record["state"] != "ended":
        return None
    get = record.get
    return Remains(
        record["expiresAt"],
        record["replicationId"],
        get("site"),
        get("taskId"),
        get("submittedAt", record["endedAt"]),
    )


def _request(request: Request) -> dict[str, Any]:
    return {
        "operationID": request.operation_id,
        "replicationId": request.replication_id,
        "site": request.site,
        "offset": request.offset,
        "requestedAt": epoch(request.requested_at),
        "acceptedAt": epoch(request.accepted_at),
        "deadline": epoch(request.deadline),
        "traceparent": request.traceparent,
        "tracestate": request.tracestate,
    }


def _submitting(state: Submitting) -> dict[str, Any]:
    return {
        "attempts": state.attempts,
        "lookFrom": epoch(state.look_from),
        "account": state.account,
        "passedOver": state.passed_over or None,
        **_trouble(state.trouble),
    }


def _read_submitting(request: Request, record: Mapping[str, Any]) -> Submitting:
    return Submitting(
        request=request,
        attempts=record["attempts"],
        look_from=_moment(record["lookFrom"]),
        account=record.get("account"),
        passed_over=tuple(record.get("passedOver", ())),
        trouble=_read_trouble(record),
    )


def _running(state: Running) -> dict[str, Any]:
    return {
        "attempts": state.attempts,
        "taskId": state.task_id,
        "taskSite": state.site,
        "account": state.account,
        "submittedAt": None if state.submitted_at is None else epoch(state.submitted_at),
        "adopted": state.adopted or None,
    }


def _read_running(request: Request, record: Mapping[str, Any]) -> Running:
    return Running(
        request=request,
        attempts=record["attempts"],
        task_id=record["taskId"],
        site=record.get("taskSite"),
        account=record.get("account"),
        submitted_at=_maybe(record.get("submittedAt")),
        adopted=record.get("adopted", False),
    )


def _trouble(trouble: ApiError | None) -> dict[str, Any]:
    return {} if trouble is None else {"trouble": [trouble.code, trouble.msg, list(trouble.args)]}


def _read_trouble(record: Mapping[str, Any]) -> ApiError | None:
    if "trouble" not in record:
        return None
    code, msg, args = record["trouble"]
    return ApiError(code, msg, tuple(args))


def encode_cursor(cursor: Cursor) -> bytes:
    """Write where reading goes on."""
    return _dumps({"v": VERSION, "topic": cursor.topic, "offset": cursor.offset, "stamp": cursor.stamp})


def decode_cursor(value: bytes) -> Cursor:
    """Read where reading goes on.

    Raises:
        ValueError: it isn't one of ours.
    """
    record = orjson.loads(value)
    return Cursor(topic=record["topic"], offset=record["offset"], stamp=record.get("stamp"))


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _dumps(fields: Mapping[str, Any]) -> bytes:
    present = {name: value for name, value in fields.items() if value is not None}
    try:
        return orjson.dumps(present)
    except TypeError:
        # VCDA's texts may hold half a surrogate pair, which has no UTF-8: a question mark instead of a journal lost.
        return _encoder.encode(present).encode(errors="replace")


def epoch(moment: datetime) -> int:
    """Write a moment: milliseconds since 1970."""
    return round(moment.timestamp() * 1000)


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _maybe(ms: int | None) -> datetime | None:
    return None if ms is None else _moment(ms)
