"""Outcomes as CloudEvents: their fields, ids and limits, and that they fit the schemas."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import sync
from service.messages import schemas
from service.messages.kafka_record import Event
from service.messages.outcomes import OutcomeTopics, write_outcome
from tests.support.ecma import validator
from tests.support.some_messages import TRACEPARENT, data, headers

NOON = datetime(2026, 3, 1, 12, 0, 0, 123_999, tzinfo=UTC)


TOPICS = OutcomeTopics(completed="done", failed="not-done")


REQUEST = sync.Request(
    identity="op:C4-1:op-1",
    operation_id="op-1",
    replication_id="C4-1",
    site=None,
    offset=41,
    requested_at=NOON,
    accepted_at=NOON,
    deadline=NOON + timedelta(hours=6),
)


FAILED = sync.Failed(request=REQUEST, reason=sync.Reason.REJECTED, ended_at=NOON, attempts=1)


COMPLETED = sync.Completed(request=REQUEST, task_id="t", submitted_at=NOON, ended_at=NOON, attempts=1)


def write(outcome: sync.Outcome) -> Event:
    return write_outcome(outcome, topics=TOPICS, now=NOON + timedelta(minutes=1))


def test_a_completed_sync_is_told_as_a_cloudevent() -> None:
    instance = sync.Instance(sequence_number=7, timestamp=NOON, transfer_bytes=5, transfer_seconds=1.5)
    event = write(replace(COMPLETED, instance=instance, warnings=(sync.ApiError("W", "careful", ("x",)),)))
    assert (event.topic, event.key, event.timestamp_ms) == ("done", b"C4-1", None)
    assert data(event) == {
        "requestId": "op:C4-1:op-1",
        "operationID": "op-1",
        "replicationId": "C4-1",
        "site": None,
        "taskId": "t",
        "requestedAt": "2026-03-01T12:00:00.123Z",
        "submittedAt": "2026-03-01T12:00:00.123Z",
        "endedAt": "2026-03-01T12:00:00.123Z",
        "attempts": 1,
        "warnings": [{"code": "W", "msg": "careful"}],
        "instance": {
            "sequenceNumber": 7,
            "timestamp": "2026-03-01T12:00:00.123Z",
            "transferBytes": 5,
            "transferSeconds": 1.5,
        },
    }
    told = headers(event)
    assert len(told.pop("ce_id")) == 32
    assert told == {
        "ce_specversion": "1.0",
        "ce_type": "vm-sync.completed.v1",
        "ce_source": "/vm-sync",
        "ce_subject": "C4-1",
        "ce_time": "2026-03-01T12:01:00.123Z",
        "content-type": "application/json",
        "correlation_id": "op-1",
    }


def test_a_failed_request_is_told_with_its_reason_and_vcdas_words() -> None:
    event = write(replace(FAILED, error=sync.ApiError("BadRequest", "no", ("a", "b")), http_status=400))
    assert event.topic == "not-done"
    assert headers(event)["ce_type"] == "vm-sync.failed.v1"
    told = data(event)
    assert (told["reason"], told["httpStatus"], told["taskId"], told["submittedAt"]) == ("rejected", 400, None, None)
    assert told["error"] == {"code": "BadRequest", "msg": "no", "args": ["a", "b"]}
    assert "instance" not in told


def test_an_outcome_written_again_carries_the_same_id_and_another_requests_does_not() -> None:
    first, again = write(replace(FAILED, attempts=1)), write_outcome(FAILED, topics=TOPICS, now=NOON)
    other = write(replace(FAILED, request=replace(REQUEST, identity="op:C4-1:op-2")))
    assert headers(first)["ce_id"] == headers(again)["ce_id"] != headers(other)["ce_id"]


def test_the_trace_goes_on_in_the_outcome() -> None:
    told = headers(write(replace(COMPLETED, request=replace(REQUEST, traceparent=TRACEPARENT, tracestate="a=b"))))
    assert (told["traceparent"], told["tracestate"]) == (TRACEPARENT, "a=b")
    assert not {"traceparent", "tracestate"} & set(headers(write(COMPLETED)))


def test_moments_are_told_in_utc_whatever_their_zone() -> None:
    east = timezone(timedelta(hours=2))
    assert data(write(replace(COMPLETED, ended_at=NOON.astimezone(east))))["endedAt"] == "2026-03-01T12:00:00.123Z"


def test_vcdas_texts_are_cut() -> None:
    long = sync.ApiError("c" * 1_001, "m" * 1_001, ("a" * 1_001,) * 21)
    told = data(write(replace(FAILED, error=long, warnings=(long,) * 21)))
    assert [len(told["error"][name]) for name in ("code", "msg", "args")] == [1_000, 1_000, 20]
    assert {len(arg) for arg in told["error"]["args"]} == {1_000}
    assert len(told["warnings"]) == 20
    assert {len(warning["msg"]) for warning in told["warnings"]} == {1_000}


def test_a_text_without_utf8_is_told_with_a_question_mark() -> None:
    assert (
        data(write(replace(FAILED, error=sync.ApiError("x", "half \ud800 a pair"))))["error"]["msg"] == "half ? a pair"
    )


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), None])
def test_seconds_that_json_has_no_word_for_are_null(seconds: float | None) -> None:
    instance = sync.Instance(sequence_number=None, timestamp=None, transfer_bytes=None, transfer_seconds=seconds)
    assert data(write(replace(COMPLETED, instance=instance)))["instance"]["transferSeconds"] is None


TEXT = st.text(st.characters(codec=None), max_size=30)


MOMENTS = st.datetimes(timezones=st.just(UTC))


ERRORS = st.builds(sync.ApiError, TEXT, TEXT, st.lists(TEXT, max_size=22).map(tuple))


INSTANCES = st.builds(
    sync.Instance,
    sequence_number=st.none() | st.integers(),
    timestamp=st.none() | MOMENTS,
    transfer_bytes=st.none() | st.integers(),
    transfer_seconds=st.none() | st.floats(),
)


WARNINGS = st.lists(ERRORS, max_size=22).map(tuple)


OUTCOMES = st.builds(
    partial(replace, COMPLETED),
    task_id=TEXT,
    submitted_at=st.none() | MOMENTS,
    ended_at=MOMENTS,
    attempts=st.integers(0),
    warnings=WARNINGS,
    instance=st.none() | INSTANCES,
) | st.builds(
    partial(replace, FAILED),
    reason=st.sampled_from(sync.Reason),
    task_id=st.none() | TEXT,
    submitted_at=st.none() | MOMENTS,
    error=st.none() | ERRORS,
    http_status=st.none() | st.integers(),
    warnings=WARNINGS,
)


@settings(max_examples=100, deadline=None)
@given(OUTCOMES)
def test_every_outcome_fits_its_schema(outcome: sync.Outcome) -> None:
    event = write(outcome)
    name = "sync-completed.v1" if isinstance(outcome, sync.Completed) else "sync-failed.v1"
    told = data(event)
    validator(name).validate(told)
    assert set(told) == set(schemas.shape(name)["properties"])


def test_a_schema_refuses_an_outcome_that_lacks_a_field() -> None:
    told = data(write(COMPLETED))
    del told["endedAt"]
    with pytest.raises(jsonschema.ValidationError):
        validator("sync-completed.v1").validate(told)
