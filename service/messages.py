"""What other programs say to this one, and hear from it: bytes <-> values.

    a Kafka record --read_request--> SyncRequested, or Unreadable and why
    an outcome     --write_outcome-----> Event (a CloudEvent in Kafka's binary mode)
    Progressed     --write_progress----> Event (the same)
    Unreadable     --write_dead_letter-> Event (the original, and why it couldn't be understood)
    a dead letter  --put_back----------> Event (the original again, counted)

What a message looks like is said in `schemas.py`; how it travels, and how it is understood, here.

It will never do I/O, ask for the time, raise because of what a message holds (a request that makes no sense is a
value), or repeat in a sentence what a message held: dead letters' details name the field and the rule, no more.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import quote

from pydantic import ValidationError
from pydantic_core import from_json

from service import sync
from service.schemas import MAX_LIST, MAX_TEXT, SyncRequestedModel
from service.tracing import TraceContext, context_of

MAX_MESSAGE: Final = 64 * 1024
"""Bytes of key, value and headers together, after decompression. A request is a few hundred bytes; what is larger is
somebody's mistake, and must fit the dead-letter topic nevertheless."""

MAX_IDENTITY_PART: Final = 255
"""Characters of each part of an identity, before percent-encoding."""

Header: TypeAlias = tuple[str, bytes | None]
"""Kafka lets a header's value be null; such a header counts as absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record as it was read from the requests topic.

    `unreadable` says, as a sentence, why Kafka's client could not hand it over; it then comes without key and value.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    unreadable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A record to be written. Without a timestamp the producer gives it one.

    `shorter` is what to write in its place where the broker refuses it for its size.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    timestamp_ms: int | None = None
    shorter: "Event | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeTopics:
    """Where outcomes go. Both may name the same topic."""

    completed: str
    failed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequested:
    """A request that was understood. `deadline` counts from acceptance; None means the service's own."""

    identity: str
    operation_id: str
    replication_id: str
    site: str | None = None
    deadline: timedelta | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    has_key: bool = True


class DeadReason(StrEnum):
    """Why a message could not be understood: `vm-sync-reason`, and a metric's label. Words of the contract."""

    UNREADABLE = "unreadable"
    TOO_LARGE = "too-large"
    BAD_HEADER = "bad-header"
    BAD_CLOUDEVENT = "bad-cloudevent"
    UNKNOWN_SPECVERSION = "unknown-specversion"
    NOT_JSON = "not-json"
    NOT_AN_OBJECT = "not-an-object"
    MISSING_FIELD = "missing-field"
    BAD_FIELD = "bad-field"
    IDENTITY_TOO_LONG = "identity-too-long"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message that could not be understood. `detail` names the field and the rule, and repeats no content."""

    reason: DeadReason
    detail: str


# ---------------------------------------------------------------- reading requests

STRUCTURED: Final = "application/cloudevents+json"

_UNDERSTOOD: Final = frozenset({"content-type", "ce_specversion", "ce_source", "ce_id"})
"""Headers that say what a message is."""

_TRACE: Final = frozenset({"traceparent", "tracestate", "ce_traceparent", "ce_tracestate"})
"""Headers that are taken along where they are well-formed."""

_RULES: Final = {
    "operationID": "a string of 1 to 128 characters of A-Z a-z 0-9 . _ : -",
    "replicationId": "a string of 1 to 128 characters of A-Z a-z 0-9 _ -",
    "site": "a string of 1 to 255 printable characters",
    "deadlineSeconds": "an integer from 1 to 604800",
}

# https://www.w3.org/TR/trace-context/: a version other than ff, ids that aren't all zero.
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_*/-]{0,240}(?:@[a-z][a-z0-9_*/-]{0,13})?=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_TRACESTATE_MEMBERS: Final = 32
_TRACESTATE_LENGTH: Final = 512


def read_request(record: Record) -> SyncRequested | Unreadable:
    """Understand a record. Total: whatever the bytes, the answer is a value."""
    if record.unreadable is not None:
        return Unreadable(DeadReason.UNREADABLE, record.unreadable)
    if _size(record) > MAX_MESSAGE:
        return Unreadable(DeadReason.TOO_LARGE, f"key, value and headers are more than {MAX_MESSAGE} bytes together")
    headers = _read_headers(record.headers)
    if isinstance(headers, Unreadable):
        return headers
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == STRUCTURED:
        return _read_structured(record, headers)
    if content_type.startswith("application/cloudevents"):
        return Unreadable(DeadReason.BAD_CLOUDEVENT, f"content-type: of CloudEvents only {STRUCTURED} is understood")
    return _read_plain_or_binary(record, headers)


def _size(record: Record) -> int:
    size = len(record.value or b"") + len(record.key or b"")
    for name, value in record.headers:
        size += len(name) if name.isascii() else len(name.encode("utf-8", "replace"))
        size += len(value or b"")
    return size


def _read_headers(headers: tuple[Header, ...]) -> dict[str, str] | Unreadable:
    """Read those that mean something here as text; others are none of our business. The last of a name counts.

    Names are read without regard to case, and with either sign after `ce`, as other transports spell them.
    """
    texts: dict[str, str] = {}
    for given, value in headers:
        name = given.lower()
        if name.startswith("ce-"):
            name = f"ce_{name[3:]}"
        if name not in _UNDERSTOOD and name not in _TRACE:
            continue
        try:
            text = None if value is None else value.decode()
        except UnicodeDecodeError:
            if name in _UNDERSTOOD:
                return Unreadable(DeadReason.BAD_HEADER, f"the header {name} is not UTF-8")
            text = None
        if text is None:
            texts.pop(name, None)
        else:
            texts[name] = text
    return texts


def _read_json(value: bytes | None) -> object:
    """Parse strictly: no NaN, no lone surrogate, 200 levels at most. Of a name given twice the last counts."""
    if not value:
        return Unreadable(DeadReason.NOT_JSON, "the value is empty")
    try:
        return from_json(value, allow_inf_nan=False)
    except ValueError:
        return Unreadable(DeadReason.NOT_JSON, "the value is not JSON in UTF-8")


def _read_plain_or_binary(record: Record, headers: Mapping[str, str]) -> SyncRequested | Unreadable:
    specversion, source, id_ = headers.get("ce_specversion"), headers.get("ce_source"), headers.get("ce_id")
    plain = specversion is None and source is None and id_ is None
    event = None if plain else _read_attributes(specversion, source=source, id_=id_)
    if isinstance(event, Unreadable):
        return event
    data = _read_json(record.value)
    if isinstance(data, Unreadable):
        return data
    read = _read_data(data, record=record, event=event, trace=headers)
    if isinstance(read, Unreadable) and event is None and _is_envelope(data):
        return Unreadable(DeadReason.BAD_CLOUDEVENT, f"a CloudEvent's envelope needs the content-type {STRUCTURED}")
    return read


def _is_envelope(data: object) -> bool:
    return isinstance(data, dict) and "specversion" in data and ("data" in data or "data_base64" in data)


def _read_structured(record: Record, headers: Mapping[str, str]) -> SyncRequested | Unreadable:
    envelope = _read_json(record.value)
    if isinstance(envelope, Unreadable):
        return envelope
    if not isinstance(envelope, dict):
        return Unreadable(DeadReason.NOT_AN_OBJECT, "the CloudEvent is not a JSON object")
    event = _read_attributes(envelope.get("specversion"), source=envelope.get("source"), id_=envelope.get("id"))
    if isinstance(event, Unreadable):
        return event
    encoded = envelope.get("data_base64")  # null counts as absent: many libraries write what they don't use
    if ("data" in envelope) == (encoded is not None):
        return Unreadable(DeadReason.BAD_CLOUDEVENT, "a CloudEvent needs either data or data_base64")
    data = envelope["data"] if encoded is None else _read_base64(encoded)
    if isinstance(data, Unreadable):
        return data
    return _read_data(data, record=record, event=event, trace={**envelope, **headers})


def _read_base64(text: object) -> object:
    if not isinstance(text, str):
        return Unreadable(DeadReason.BAD_CLOUDEVENT, "data_base64 must be a string")
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        return Unreadable(DeadReason.BAD_CLOUDEVENT, "data_base64 is not base64")
    return _read_json(value)


def _read_attributes(specversion: object, *, source: object, id_: object) -> tuple[str, str] | Unreadable:
    """Give a CloudEvent's (source, id). Its other attributes mean nothing to us, and may be missing."""
    if specversion is None:
        return Unreadable(DeadReason.BAD_CLOUDEVENT, "a CloudEvent needs specversion")
    if specversion != "1.0":
        return Unreadable(DeadReason.UNKNOWN_SPECVERSION, "of CloudEvents only specversion 1.0 is understood")
    for name, part in (("source", source), ("id", id_)):
        if not isinstance(part, str) or not part:
            return Unreadable(DeadReason.BAD_CLOUDEVENT, f"a CloudEvent needs {name}, a string that isn't empty")
        if len(part) > MAX_IDENTITY_PART:
            return Unreadable(
                DeadReason.IDENTITY_TOO_LONG, f"the CloudEvent's {name} is longer than {MAX_IDENTITY_PART} characters"
            )
    return str(source), str(id_)


def _read_data(
    data: object, *, record: Record, event: tuple[str, str] | None, trace: Mapping[str, object]
) -> SyncRequested | Unreadable:
    if not isinstance(data, dict):
        return Unreadable(DeadReason.NOT_AN_OBJECT, "the request is not a JSON object")
    try:
        read = SyncRequestedModel.model_validate(data)
    except ValidationError as error:
        return _explain(error)
    if event is None:
        # The two ids hold nothing else that percent-encoding would change.
        identity = f"op:{read.replication_id}:{read.operation_id.replace(':', '%3A')}"
    else:
        identity = f"ce:{quote(event[0], safe='')}:{quote(event[1], safe='')}"
    traceparent, tracestate = _read_trace(trace)
    return SyncRequested(
        identity=identity,
        operation_id=read.operation_id,
        replication_id=read.replication_id,
        site=read.site or None,
        deadline=timedelta(seconds=read.deadline_seconds) if read.deadline_seconds else None,
        traceparent=traceparent,
        tracestate=tracestate,
        has_key=record.key is not None,
    )


def _explain(error: ValidationError) -> Unreadable:
    """Name the first field that is wrong. pydantic's own sentence isn't used: it changes with its version."""
    first = error.errors(include_input=False, include_context=False, include_url=False)[0]
    field = str(first["loc"][0])
    if first["type"] == "missing":
        return Unreadable(DeadReason.MISSING_FIELD, f"{field} is missing: {_RULES[field]}")
    return Unreadable(DeadReason.BAD_FIELD, f"{field} must be {_RULES[field]}")


def _read_trace(trace: Mapping[str, object]) -> tuple[str | None, str | None]:
    """Take the trace context where it is well-formed; drop it, not the request, where it isn't."""
    parent = trace.get("traceparent") or trace.get("ce_traceparent")
    if parent is None:
        return None, None
    if not isinstance(parent, str) or not _TRACEPARENT.fullmatch(parent):
        return None, None
    state = trace.get("tracestate") or trace.get("ce_tracestate")
    if not isinstance(state, str) or len(state) > _TRACESTATE_LENGTH:
        return parent, None
    members = [member for part in state.split(",") if (member := part.strip(" \t"))]
    if not 0 < len(members) <= _TRACESTATE_MEMBERS or not all(map(_TRACESTATE_MEMBER.fullmatch, members)):
        return parent, None
    return parent, state


# ---------------------------------------------------------------- writing outcomes

COMPLETED_TYPE: Final = "vm-sync.completed.v1"
FAILED_TYPE: Final = "vm-sync.failed.v1"
SOURCE: Final = "/vm-sync"

BRIEF_TEXT: Final = 100
"""Characters that are left of VCDA's texts where a broker refuses the outcome for its size."""

_JSON: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def write_outcome(
    outcome: sync.Outcome, *, topics: OutcomeTopics, now: datetime, trace: TraceContext | None = None
) -> Event:
    """Tell how a request ended. The same outcome written again carries the same `ce_id`.

    `trace` is where its readers continue; without it, where the request came from.
    """
    request = outcome.request
    data: dict[str, Any] = {
        **_about(request),
        "taskId": outcome.task_id,
        "requestedAt": _moment(request.requested_at),
        "submittedAt": _moment(outcome.submitted_at) if outcome.submitted_at else None,
        "endedAt": _moment(outcome.ended_at),
        "attempts": outcome.attempts,
        "warnings": [
            {"code": warning.code[:MAX_TEXT], "msg": warning.msg[:MAX_TEXT]} for warning in outcome.warnings[:MAX_LIST]
        ],
    }
    if isinstance(outcome, sync.Completed):
        topic, kind = topics.completed, COMPLETED_TYPE
        data["instance"] = _instance(outcome.instance) if outcome.instance else None
    else:
        topic, kind = topics.failed, FAILED_TYPE
        data["reason"] = outcome.reason.value
        data["error"] = _error(outcome.error) if outcome.error else None
        data["httpStatus"] = outcome.http_status
    brief = _brief(outcome)
    return Event(
        topic=topic,
        key=request.replication_id.encode(),
        value=_json(data),
        headers=_cloud_event(request, kind=kind, same=request.identity, now=now, trace=trace),
        shorter=write_outcome(brief, topics=topics, now=now, trace=trace) if brief is not None else None,
    )


def _about(request: sync.Request) -> dict[str, Any]:
    return {
        "requestId": request.identity,
        "operationID": request.operation_id,
        "replicationId": request.replication_id,
        "site": request.site,
    }


def _json(data: Mapping[str, object]) -> bytes:
    # VCDA's texts may hold half a surrogate pair, which has no UTF-8: a question mark instead of an outcome lost.
    return _JSON(data).encode("utf-8", "replace")


def _cloud_event(
    request: sync.Request, *, kind: str, same: str, now: datetime, trace: TraceContext | None
) -> tuple[Header, ...]:
    """Give the headers of an event about a request; two events of a kind are one where `same` is the same."""
    headers = {
        "ce_specversion": "1.0",
        "ce_type": kind,
        "ce_source": SOURCE,
        "ce_id": hashlib.sha256(f"{kind}\n{same}".encode("utf-8", "replace")).hexdigest()[:32],
        "ce_subject": request.replication_id,
        "ce_time": _moment(now),
        "content-type": "application/json",
        "correlation_id": request.operation_id,
    }
    trace = trace or context_of(request)
    if trace is not None:
        headers["traceparent"] = trace.traceparent
        if trace.tracestate is not None:
            headers["tracestate"] = trace.tracestate
    return tuple([(name, text.encode()) for name, text in headers.items()])


def _brief(outcome: sync.Outcome) -> sync.Outcome | None:
    """Leave out what others have to say of it, but for the first words; None where they say no more."""
    if isinstance(outcome, sync.Completed):
        return replace(outcome, warnings=()) if outcome.warnings else None
    error = outcome.error and sync.ApiError(outcome.error.code[:BRIEF_TEXT], outcome.error.msg[:BRIEF_TEXT])
    return replace(outcome, warnings=(), error=error) if outcome.warnings or error != outcome.error else None


def _moment(moment: datetime) -> str:
    """RFC 3339 in UTC, with milliseconds and a Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _error(error: sync.ApiError) -> dict[str, object]:
    return {
        "code": error.code[:MAX_TEXT],
        "msg": error.msg[:MAX_TEXT],
        "args": [arg[:MAX_TEXT] for arg in error.args[:MAX_LIST]],
    }


def _instance(instance: sync.Instance) -> dict[str, object]:
    seconds = instance.transfer_seconds
    return {
        "sequenceNumber": instance.sequence_number,
        "timestamp": _moment(instance.timestamp) if instance.timestamp else None,
        "transferBytes": instance.transfer_bytes,
        "transferSeconds": seconds if seconds is not None and math.isfinite(seconds) else None,
    }


# ---------------------------------------------------------------- progress

PROGRESS_TYPE: Final = "vm-sync.progress.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """How far a running sync is. `percent` is None where VCDA told none; `at` is our clock's."""

    request: sync.Request
    task_id: str
    state: Literal["started", "running"]
    percent: int | None
    at: datetime


def write_progress(progressed: Progressed, *, topic: str) -> Event:
    """Tell how far a sync is."""
    request, at = progressed.request, _moment(progressed.at)
    data = {
        **_about(request),
        "taskId": progressed.task_id,
        "state": progressed.state,
        "progress": progressed.percent,
        "at": at,
    }
    same = "\n".join((request.identity, progressed.task_id, progressed.state, str(progressed.percent), at))
    return Event(
        topic=topic,
        key=request.replication_id.encode(),
        value=_json(data),
        headers=_cloud_event(request, kind=PROGRESS_TYPE, same=same, now=progressed.at, trace=None),
    )


# ---------------------------------------------------------------- dead letters

REDRIVEN: Final = "vm-sync-redriven"
_OURS: Final = frozenset(
    f"vm-sync-{name}"
    for name in ("reason", "detail", "topic", "partition", "offset", "timestamp", "redriven", "truncated")
)


def write_dead_letter(record: Record, bad: Unreadable, *, topic: str, truncated: bool = False) -> Event:
    """Set a record aside: its bytes untouched, and why. What an earlier failure said of it is replaced, not piled up.

    `truncated` is for a record that the broker refuses for its size: no value then, and no more of key and headers
    than any request may have.
    """
    key, value = record.key, record.value
    original = tuple([header for header in record.headers if header[0] not in _OURS])
    if truncated:
        value = None
        if _size(record) - len(record.value or b"") > MAX_MESSAGE:
            original = ()
            key = None if key is None or len(key) > MAX_MESSAGE else key
    if key is None and value is None:
        # aiokafka refuses a record that has neither.
        value = b""
    words = {
        "vm-sync-reason": bad.reason.value,
        "vm-sync-detail": bad.detail,
        "vm-sync-topic": record.topic,
        "vm-sync-partition": str(record.partition),
        "vm-sync-offset": str(record.offset),
        "vm-sync-timestamp": str(record.timestamp_ms),
        REDRIVEN: str(redriven(record.headers)),
    }
    if truncated:
        words["vm-sync-truncated"] = "true"
    ours = tuple([(name, text.encode("utf-8", "replace")) for name, text in words.items()])
    return Event(
        topic=topic,
        key=key,
        value=value,
        headers=original + ours,
        shorter=None if truncated else write_dead_letter(record, bad, topic=topic, truncated=True),
    )


def redriven(headers: tuple[Header, ...]) -> int:
    """Say how often a record was put back; 0 where nothing, or nonsense, is said of it."""
    value = dict(headers).get(REDRIVEN) or b""
    return int(value) if value.isdigit() and len(value) <= len(str(MAX_MESSAGE)) else 0


def put_back(dead_letter: Record, *, topic: str) -> Event:
    """Make the request again that a dead letter was: what we said of it goes, but for the count, plus one."""
    original = tuple([header for header in dead_letter.headers if header[0] not in _OURS])
    count = str(redriven(dead_letter.headers) + 1).encode()
    return Event(topic=topic, key=dead_letter.key, value=dead_letter.value, headers=(*original, (REDRIVEN, count)))
