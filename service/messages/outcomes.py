"""An outcome, or a progress report, as a CloudEvent in Kafka's binary mode."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal

from service import sync
from service.messages.kafka_record import Event, Header
from service.messages.trace_context import TraceContext, context_of
from service.moments import rfc3339
from service.sync import MAX_LIST, MAX_TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeTopics:
    """The topics of outcomes. Both may name the same topic."""

    completed: str
    failed: str


# ---------------------------------------------------------------- writing outcomes

COMPLETED_TYPE: Final = "vm-sync.completed.v1"
FAILED_TYPE: Final = "vm-sync.failed.v1"
SOURCE: Final = "/vm-sync"

BRIEF_TEXT: Final = 100
"""Characters that are left of VCDA's texts where a broker refuses the outcome for its size."""

_JSON: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def describe_error(error: sync.ApiError | None, http_status: int | None) -> str:
    """Describe a failure in a sentence: code, message, HTTP status; empty if nothing is known."""
    parts = [] if error is None else [f"{error.code}: {error.msg}" if error.msg else error.code]
    return " ".join([*parts, *([] if http_status is None else [f"(HTTP {http_status})"])])


def write_outcome(
    outcome: sync.Outcome, *, topics: OutcomeTopics, now: datetime, trace: TraceContext | None = None
) -> Event:
    """Write an outcome as an event. If the same outcome is written again, it has the same `ce_id`.

    `trace` is the context for the outcome's readers; by default the request's.
    """
    request = outcome.request
    data: dict[str, Any] = {
        **_about(request),
        "taskId": outcome.task_id,
        "requestedAt": rfc3339(request.requested_at),
        "submittedAt": rfc3339(outcome.submitted_at) if outcome.submitted_at else None,
        "endedAt": rfc3339(outcome.ended_at),
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
        "ce_time": rfc3339(now),
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
    """Shorten VCDA's texts; None if they are already short."""
    if isinstance(outcome, sync.Completed):
        return replace(outcome, warnings=()) if outcome.warnings else None
    error = outcome.error and sync.ApiError(outcome.error.code[:BRIEF_TEXT], outcome.error.msg[:BRIEF_TEXT])
    return replace(outcome, warnings=(), error=error) if outcome.warnings or error != outcome.error else None


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
        "timestamp": rfc3339(instance.timestamp) if instance.timestamp else None,
        "transferBytes": instance.transfer_bytes,
        "transferSeconds": seconds if seconds is not None and math.isfinite(seconds) else None,
    }


# ---------------------------------------------------------------- progress

PROGRESS_TYPE: Final = "vm-sync.progress.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """The progress of a running sync. `percent` is None if VCDA reported none; `at` is by this machine's clock."""

    request: sync.Request
    task_id: str
    state: Literal["started", "running"]
    percent: int | None
    at: datetime


def write_progress(progressed: Progressed, *, topic: str) -> Event:
    """Write a sync's progress as an event."""
    request, at = progressed.request, rfc3339(progressed.at)
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
