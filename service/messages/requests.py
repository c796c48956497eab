"""Reads requests: a record of the requests topic becomes a SyncRequested, a SyncCancelRequested or an InvalidRequest.

    a Kafka record --read_request--> SyncRequested or SyncCancelRequested, or InvalidRequest and why

`schemas.py` has the fields of a message; this module reads them from a record, plain or as a CloudEvent.

It never does I/O, reads the time, or raises because of a message's content: an invalid request is a value. The detail
of a dead letter names the field and the rule, and never repeats content.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final, TypeAlias
from urllib.parse import quote

from pydantic import ValidationError
from pydantic_core import from_json

from service.messages.kafka_record import MAX_REQUEST_BYTES, Header, Record, record_size
from service.messages.schemas import SyncCancelRequestedModel, SyncRequestedModel
from service.messages.trace_context import read_trace

MAX_IDENTITY_PART: Final = 255
"""Characters of each part of an identity, before percent-encoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequested:
    """A valid request. `deadline` counts from acceptance; None is the service's deadline."""

    identity: str
    operation_id: str
    replication_id: str
    site: str | None = None
    deadline: timedelta | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    has_key: bool = True
    other_key: bool = False
    """Its key is not its replicationId, so it may be in another partition than its siblings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncCancelRequested:
    """A valid cancel of a request that was sent before: of one identity, or of a replication's requests by operation.

    `release`: it ends also what VCDA has accepted, or may have.
    """

    identity: str | None = None
    ids: tuple[str, str] | None = None
    """replicationId and operationID, where the message names them instead of the identity."""
    release: bool = False
    by: str | None = None
    why: str | None = None

    @property
    def named(self) -> str:
        """The request's name, as the message has it, for a log line."""
        return self.identity or ":".join(self.ids or ())


class DeadLetterReason(StrEnum):
    """Why a message is invalid: the header `vm-sync-reason`, and a metric's label. Part of the contract."""

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
class InvalidRequest:
    """An invalid message. `detail` names the field and the rule, and contains nothing of the message."""

    reason: DeadLetterReason
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
    "cancel": "a requestId, or an object with replicationId and operationID",
    "release": "true or false",
    "by": "a string of 1 to 255 printable characters",
    "reason": "a string of 1 to 255 printable characters",
}


Read: TypeAlias = SyncRequested | SyncCancelRequested | InvalidRequest


def read_request(record: Record) -> Read:
    """Read a record. Never raises: an invalid message is a value."""
    if record.unreadable is not None:
        return InvalidRequest(DeadLetterReason.UNREADABLE, record.unreadable)
    if record_size(record) > MAX_REQUEST_BYTES:
        return InvalidRequest(
            DeadLetterReason.TOO_LARGE, f"key, value and headers are more than {MAX_REQUEST_BYTES} bytes together"
        )
    headers = _read_headers(record.headers)
    if isinstance(headers, InvalidRequest):
        return headers
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == STRUCTURED:
        return _read_structured(record, headers)
    if content_type.startswith("application/cloudevents"):
        return InvalidRequest(
            DeadLetterReason.BAD_CLOUDEVENT, f"content-type: of CloudEvents only {STRUCTURED} is understood"
        )
    return _read_plain_or_binary(record, headers)


def _read_headers(headers: tuple[Header, ...]) -> dict[str, str] | InvalidRequest:
    """Read the headers that the service uses, as text. If a header occurs twice, the last one counts.

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
                return InvalidRequest(DeadLetterReason.BAD_HEADER, f"the header {name} is not UTF-8")
            text = None
        if text is None:
            texts.pop(name, None)
        else:
            texts[name] = text
    return texts


def _read_json(value: bytes | None) -> object:
    """Parse strictly: no NaN, no lone surrogate, 200 levels at most. Of a name given twice the last counts.

    pydantic's parser: whatever is wrong is a ValueError, where Python's own and msgspec's run out of stack.
    """
    if not value:
        return InvalidRequest(DeadLetterReason.NOT_JSON, "the value is empty")
    try:
        return from_json(value, allow_inf_nan=False)
    except ValueError:
        return InvalidRequest(DeadLetterReason.NOT_JSON, "the value is not JSON in UTF-8")


def _read_plain_or_binary(record: Record, headers: Mapping[str, str]) -> Read:
    specversion, source, id_ = headers.get("ce_specversion"), headers.get("ce_source"), headers.get("ce_id")
    plain = specversion is None and source is None and id_ is None
    event = None if plain else _read_attributes(specversion, source=source, id_=id_)
    if isinstance(event, InvalidRequest):
        return event
    data = _read_json(record.value)
    if isinstance(data, InvalidRequest):
        return data
    read = _read_data(data, record=record, event=event, trace=headers)
    if isinstance(read, InvalidRequest) and event is None and _is_envelope(data):
        return InvalidRequest(
            DeadLetterReason.BAD_CLOUDEVENT, f"a CloudEvent's envelope needs the content-type {STRUCTURED}"
        )
    return read


def _is_envelope(data: object) -> bool:
    return isinstance(data, dict) and "specversion" in data and ("data" in data or "data_base64" in data)


def _read_structured(record: Record, headers: Mapping[str, str]) -> Read:
    envelope = _read_json(record.value)
    if isinstance(envelope, InvalidRequest):
        return envelope
    if not isinstance(envelope, dict):
        return InvalidRequest(DeadLetterReason.NOT_AN_OBJECT, "the CloudEvent is not a JSON object")
    event = _read_attributes(envelope.get("specversion"), source=envelope.get("source"), id_=envelope.get("id"))
    if isinstance(event, InvalidRequest):
        return event
    encoded = envelope.get("data_base64")  # null counts as absent: many libraries write what they don't use
    if ("data" in envelope) == (encoded is not None):
        return InvalidRequest(DeadLetterReason.BAD_CLOUDEVENT, "a CloudEvent needs either data or data_base64")
    data = envelope["data"] if encoded is None else _read_base64(encoded)
    if isinstance(data, InvalidRequest):
        return data
    return _read_data(data, record=record, event=event, trace={**envelope, **headers})


def _read_base64(text: object) -> object:
    if not isinstance(text, str):
        return InvalidRequest(DeadLetterReason.BAD_CLOUDEVENT, "data_base64 must be a string")
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        return InvalidRequest(DeadLetterReason.BAD_CLOUDEVENT, "data_base64 is not base64")
    return _read_json(value)


def _read_attributes(specversion: object, *, source: object, id_: object) -> tuple[str, str] | InvalidRequest:
    """Return a CloudEvent's (source, id). Its other attributes are not used, and may be missing."""
    if specversion is None:
        return InvalidRequest(DeadLetterReason.BAD_CLOUDEVENT, "a CloudEvent needs specversion")
    if specversion != "1.0":
        return InvalidRequest(DeadLetterReason.UNKNOWN_SPECVERSION, "of CloudEvents only specversion 1.0 is understood")
    for name, part in (("source", source), ("id", id_)):
        if not isinstance(part, str) or not part:
            return InvalidRequest(
                DeadLetterReason.BAD_CLOUDEVENT, f"a CloudEvent needs {name}, a string that isn't empty"
            )
        if len(part) > MAX_IDENTITY_PART:
            return InvalidRequest(
                DeadLetterReason.IDENTITY_TOO_LONG,
                f"the CloudEvent's {name} is longer than {MAX_IDENTITY_PART} characters",
            )
    return str(source), str(id_)


def _read_data(data: object, *, record: Record, event: tuple[str, str] | None, trace: Mapping[str, object]) -> Read:
    if not isinstance(data, dict):
        return InvalidRequest(DeadLetterReason.NOT_AN_OBJECT, "the request is not a JSON object")
    if _is_cancel(data):
        return _read_cancel(data)
    try:
        read = SyncRequestedModel.model_validate(data)
    except ValidationError as error:
        return _explain(error)
    if event is None:
        # The two ids hold nothing else that percent-encoding would change.
        identity = f"op:{read.replication_id}:{read.operation_id.replace(':', '%3A')}"
    else:
        identity = f"ce:{quote(event[0], safe='')}:{quote(event[1], safe='')}"
    traceparent, tracestate = read_trace(trace)
    return SyncRequested(
        identity=identity,
        operation_id=read.operation_id,
        replication_id=read.replication_id,
        site=read.site or None,
        deadline=timedelta(seconds=read.deadline_seconds) if read.deadline_seconds else None,
        traceparent=traceparent,
        tracestate=tracestate,
        has_key=record.key is not None,
        other_key=record.key is not None and record.key != read.replication_id.encode(),
    )


def _is_cancel(data: Mapping[str, object]) -> bool:
    """Whether the message is a cancel. A request may have any unknown field, also one of this name."""
    return "cancel" in data and "operationID" not in data and "replicationId" not in data


def _read_cancel(data: Mapping[str, object]) -> SyncCancelRequested | InvalidRequest:
    try:
        read = SyncCancelRequestedModel.model_validate(data)
    except ValidationError as error:
        return _explain(error)
    name = read.cancel
    return SyncCancelRequested(
        identity=name if isinstance(name, str) else None,
        ids=None if isinstance(name, str) else (name.replication_id, name.operation_id),
        release=read.release,
        by=read.by or None,
        why=read.reason or None,
    )


def _explain(error: ValidationError) -> InvalidRequest:
    """Name the first field that is wrong. pydantic's own sentence isn't used: it changes with its version."""
    first = error.errors(include_input=False, include_context=False, include_url=False)[0]
    field = str(first["loc"][0])
    if first["type"] == "missing":
        return InvalidRequest(DeadLetterReason.MISSING_FIELD, f"{field} is missing: {_RULES[field]}")
    return InvalidRequest(DeadLetterReason.BAD_FIELD, f"{field} must be {_RULES[field]}")
