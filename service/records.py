"""What stands in the journal: a record for each sync, keyed by the request's identity, and two that aren't syncs.

JSON, moments in epoch milliseconds, absent fields left out. Readers ignore what they don't know; a new version is
written one release after it can be read, so that an upgrade can be rolled back. Pure: bytes <-> values.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_never

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
            fields = {"state": "lingering", **_request(state.request), **what, "toldAt": _epoch(state.told_at)}
        case Ended():
            fields = {
                "state": "ended",
                **_request(state.request),
                "attempts": state.attempts,
                "reason": state.reason,
                "endedAt": _epoch(state.ended_at),
                "expiresAt": _epoch(state.expires_at),
                "taskId": state.task_id,
                "submittedAt": _epoch(state.submitted_at),
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
    record = json.loads(value)
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


def _request(request: Request) -> dict[str, Any]:
    return {
        "operationID": request.operation_id,
        "replicationId": request.replication_id,
        "site": request.site,
        "offset": request.offset,
        "requestedAt": _epoch(request.requested_at),
        "acceptedAt": _epoch(request.accepted_at),
        "deadline": _epoch(request.deadline),
        "traceparent": request.traceparent,
        "tracestate": request.tracestate,
    }


def _submitting(state: Submitting) -> dict[str, Any]:
    return {
        "attempts": state.attempts,
        "lookFrom": _epoch(state.look_from),
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
        "submittedAt": _epoch(state.submitted_at),
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
    record = json.loads(value)
    return Cursor(topic=record["topic"], offset=record["offset"], stamp=record.get("stamp"))


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _dumps(fields: Mapping[str, Any]) -> bytes:
    # VCDA's texts may hold half a surrogate pair, which has no UTF-8: a question mark instead of a journal lost.
    text = _encoder.encode({name: value for name, value in fields.items() if value is not None})
    return text.encode(errors="replace")


def _epoch(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)


def _moment(epoch: int) -> datetime:
    return datetime.fromtimestamp(epoch / 1000, UTC)


def _maybe(epoch: int | None) -> datetime | None:
    return None if epoch is None else _moment(epoch)
