"""One example message of every kind, made and read by the production code.

The examples are in the AsyncAPI document and, as files, in `schemas/examples/`. All their values are invented.
"""

import base64
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from service import sync
from service.messages.dead_letters import write_dead_letter
from service.messages.kafka_record import Event, Record
from service.messages.outcomes import OutcomeTopics, Progressed, write_outcome, write_progress
from service.messages.requests import STRUCTURED, InvalidRequest, read_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A message as a record: `value` is the JSON value, or the text if it isn't JSON, or None."""

    name: str
    summary: str
    key: str | None
    headers: dict[str, str]
    value: Any

    def record(self) -> Record:
        """Give the record that Kafka would hand over."""
        return Record(
            topic="vm-sync.requests",
            partition=4,
            offset=1207,
            timestamp_ms=int(_REQUESTED_AT.timestamp() * 1000),
            key=None if self.key is None else self.key.encode(),
            value=self.value.encode() if isinstance(self.value, str) else json.dumps(self.value).encode(),
            headers=tuple((name, text.encode()) for name, text in self.headers.items()),
        )


_REQUESTED_AT: Final = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
_REPLICATION: Final = "C4-5a6ccf7a-45ab-4d5b-8b5d-2a6a0b0f0c55"
_TASK: Final = "6f5d31f2-3b0e-4c53-9a53-0f3e6f3ed1c4"
_TRACE: Final = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "rojo=1"}
_DATA: Final = {"operationID": "nightly-2026-03-01.17", "replicationId": _REPLICATION}
_ATTRIBUTES: Final = {
    "specversion": "1.0",
    "id": "0f4e2c1a-17",
    "source": "/scheduler/nightly",
    "type": "scheduler.sync-wanted",
}

PLAIN: Final = (
    Example(name="request-minimal", summary="Required fields only", key=_REPLICATION, headers={}, value=_DATA),
    Example(
        name="request-full",
        summary="All fields, and a trace context",
        key=_REPLICATION,
        headers={"content-type": "application/json", **_TRACE},
        value={**_DATA, "site": "Site B", "deadlineSeconds": 3600},
    ),
    Example(
        name="request-without-key",
        summary="Without a key: accepted, but not ordered among the requests for its replication",
        key=None,
        headers={},
        value=_DATA,
    ),
)
BINARY: Final = (
    Example(
        name="request-cloudevent-binary",
        summary="A CloudEvent in binary mode: its identity is its source and id",
        key=_REPLICATION,
        headers={
            "content-type": "application/json",
            **{f"ce_{name}": text for name, text in _ATTRIBUTES.items()},
            **_TRACE,
        },
        value=_DATA,
    ),
)
STRUCTURED_MODE: Final = (
    Example(
        name="request-cloudevent-structured",
        summary="A CloudEvent in structured mode",
        key=_REPLICATION,
        headers={"content-type": f"{STRUCTURED}; charset=utf-8"},
        value={**_ATTRIBUTES, "datacontenttype": "application/json", "data": _DATA},
    ),
    Example(
        name="request-cloudevent-structured-base64",
        summary="A CloudEvent in structured mode, its data as base64",
        key=_REPLICATION,
        headers={"content-type": STRUCTURED},
        value={**_ATTRIBUTES, "data_base64": base64.b64encode(json.dumps(_DATA).encode()).decode()},
    ),
)

CANCELS: Final = (
    Example(
        name="cancel-by-request-id",
        summary="Cancels the request that an outcome would name by this requestId",
        key=_REPLICATION,
        headers={},
        value={"cancel": f"op:{_REPLICATION}:nightly-2026-03-01.17"},
    ),
    Example(
        name="cancel-release",
        summary="Releases a request that is named by its ids, whatever its state, and says by whom and why",
        key=_REPLICATION,
        headers={"content-type": "application/json"},
        value={"cancel": _DATA, "release": True, "by": "night shift", "reason": "VCDA's task hangs"},
    ),
)

_REQUEST: Final = sync.Request(
    identity=f"op:{_REPLICATION}:nightly-2026-03-01.17",
    operation_id="nightly-2026-03-01.17",
    replication_id=_REPLICATION,
    site="Site B",
    offset=1207,
    requested_at=_REQUESTED_AT,
    accepted_at=_REQUESTED_AT + timedelta(milliseconds=12),
    deadline=_REQUESTED_AT + timedelta(hours=6),
    traceparent=_TRACE["traceparent"],
    tracestate=_TRACE["tracestate"],
)
_SUBMITTED_AT: Final = _REQUESTED_AT + timedelta(milliseconds=431)
_ENDED_AT: Final = _REQUESTED_AT + timedelta(minutes=7, milliseconds=85)
_DEADLINE: Final = _REQUEST.deadline
_COMPLETED: Final = sync.Completed(
    request=_REQUEST,
    task_id=_TASK,
    submitted_at=_SUBMITTED_AT,
    ended_at=_ENDED_AT,
    attempts=1,
    instance=sync.Instance(
        sequence_number=118,
        timestamp=_REQUESTED_AT + timedelta(seconds=2),
        transfer_bytes=734_003_200,
        transfer_seconds=391.5,
    ),
)
_FAILED: Final = sync.Failed(request=_REQUEST, reason=sync.Reason.TASK_FAILED, ended_at=_ENDED_AT, attempts=1)

_OUTCOMES: Final[tuple[tuple[str, str, sync.Outcome], ...]] = (
    ("completed", "A sync that created a new instance", _COMPLETED),
    (
        "completed-with-warnings",
        "A sync that VCDA completed with a warning",
        replace(_COMPLETED, warnings=(sync.ApiError("QuiesceFailed", "The guest could not be quiesced."),)),
    ),
    (
        "completed-without-instance",
        "A sync of the local site, without an instance and without a start time from VCDA",
        replace(_COMPLETED, request=replace(_REQUEST, site=None), submitted_at=None, instance=None),
    ),
    (
        "failed-task-failed",
        "The task ended FAILED",
        replace(
            _FAILED,
            task_id=_TASK,
            submitted_at=_SUBMITTED_AT,
            error=sync.ApiError("ReplicationTransferFailed", "The source VM cannot be reached.", ("vm-2041",)),
        ),
    ),
    (
        "failed-rejected",
        "VCDA refused",
        replace(
            _FAILED,
            reason=sync.Reason.REJECTED,
            ended_at=_SUBMITTED_AT,
            error=sync.ApiError("ReplicationNotFound", "No such replication.", (_REPLICATION,)),
            http_status=404,
        ),
    ),
    (
        "failed-rejected-no-credentials",
        "The service has no credentials for the site",
        replace(
            _FAILED,
            reason=sync.Reason.REJECTED,
            ended_at=_SUBMITTED_AT,
            attempts=0,
            error=sync.ApiError("NoCredentials", "There are no credentials for this site."),
        ),
    ),
    (
        "failed-timed-out",
        "The deadline passed while the task was running; the task may still run",
        replace(
            _FAILED,
            reason=sync.Reason.TIMED_OUT,
            task_id=_TASK,
            submitted_at=_SUBMITTED_AT,
            ended_at=_DEADLINE,
        ),
    ),
    (
        "failed-timed-out-in-doubt",
        "The deadline passed while a POST was in doubt",
        replace(
            _FAILED,
            reason=sync.Reason.TIMED_OUT,
            ended_at=_DEADLINE,
            error=sync.ApiError("timeout", "VCDA did not answer."),
        ),
    ),
    (
        "failed-task-lost",
        "VCDA no longer knows the task",
        replace(_FAILED, reason=sync.Reason.TASK_LOST, task_id=_TASK, submitted_at=_SUBMITTED_AT),
    ),
    (
        "failed-not-started",
        "The deadline passed before the request was submitted",
        replace(
            _FAILED,
            reason=sync.Reason.NOT_STARTED,
            ended_at=_DEADLINE,
            attempts=0,
            error=sync.ApiError("NotStarted", "The deadline passed before the request was submitted."),
        ),
    ),
    (
        "failed-cancelled",
        "A SyncCancelRequested ended the request before it was submitted",
        replace(
            _FAILED,
            reason=sync.Reason.CANCELLED,
            attempts=0,
            error=sync.ApiError(sync.CANCELLED, "The request was cancelled by night shift: Site B moves today."),
        ),
    ),
    (
        "failed-cancelled-released",
        "A SyncCancelRequested released the request; VCDA may still work on its task",
        replace(
            _FAILED,
            reason=sync.Reason.CANCELLED,
            task_id=_TASK,
            submitted_at=_SUBMITTED_AT,
            error=sync.ApiError(
                sync.RELEASED,
                f"The request was released by night shift: VCDA's task hangs. VCDA may still work on task {_TASK}.",
            ),
        ),
    ),
)
_STARTED: Final = Progressed(request=_REQUEST, task_id=_TASK, state="started", percent=None, at=_SUBMITTED_AT)
_PROGRESSED: Final = (
    ("progress-started", "VCDA has accepted a request", _STARTED),
    (
        "progress-running",
        "A sync at 50 percent",
        replace(_STARTED, state="running", percent=50, at=_SUBMITTED_AT + timedelta(minutes=3)),
    ),
)
_BAD: Final = (
    ("dead-letter-bad-field", "A field with an invalid value", json.dumps({**_DATA, "deadlineSeconds": "PT1H"})),
    ("dead-letter-not-json", "A value that is not JSON", "sync C4-5a6ccf7a, please"),
)


def _of(event: Event, *, name: str, summary: str) -> Example:
    text = (event.value or b"").decode()
    return Example(
        name=name,
        summary=summary,
        key=None if event.key is None else event.key.decode(),
        headers={header: (value or b"").decode() for header, value in event.headers},
        value=text if name.startswith("dead-letter") else json.loads(text),
    )


def _outcome(name: str, summary: str, outcome: sync.Outcome) -> Example:
    told_at = max(outcome.ended_at, _SUBMITTED_AT) + timedelta(seconds=1)
    topics = OutcomeTopics(completed="vm-sync.completed", failed="vm-sync.failed")
    return _of(write_outcome(outcome, topics=topics, now=told_at), name=name, summary=summary)


def _progress(name: str, summary: str, progressed: Progressed) -> Example:
    return _of(write_progress(progressed, topic="vm-sync.progress"), name=name, summary=summary)


def _dead_letter(name: str, summary: str, value: str) -> Example:
    record = Example(name=name, summary=summary, key=_REPLICATION, headers={}, value=value).record()
    bad = read_request(record)
    if not isinstance(bad, InvalidRequest):
        msg = f"{name} is a good request"
        raise TypeError(msg)
    return _of(write_dead_letter(record, bad, topic="vm-sync.dead-letter"), name=name, summary=summary)


OUTCOMES: Final = tuple(_outcome(*row) for row in _OUTCOMES)
COMPLETED: Final = tuple(example for example in OUTCOMES if example.name.startswith("completed"))
FAILED: Final = tuple(example for example in OUTCOMES if example.name.startswith("failed"))
PROGRESS: Final = tuple(_progress(*row) for row in _PROGRESSED)
DEAD_LETTERS: Final = tuple(_dead_letter(*row) for row in _BAD)
REQUESTS: Final = (*PLAIN, *BINARY, *STRUCTURED_MODE)
ALL: Final = (*REQUESTS, *CANCELS, *OUTCOMES, *PROGRESS, *DEAD_LETTERS)
