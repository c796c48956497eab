"""Bytes become requests, or dead letters; outcomes become bytes. Nothing that others send can do more than that."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import sync
from service.messages import schemas
from service.messages.dead_letters import redriven, write_dead_letter, write_redriven
from service.messages.kafka_record import MAX_REQUEST_BYTES, Event, Header, Record
from service.messages.outcomes import OutcomeTopics, write_outcome
from service.messages.requests import DeadLetterReason, InvalidRequest, SyncRequested, read_request
from tests.support.bad_requests import (
    BAD_REQUESTS,
    GOOD,
    STRUCTURED,
    BadRequest,
    binary,
    record,
    structured,
    with_fields,
)
from tests.support.ecma import validator

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOON = datetime(2026, 3, 1, 12, 0, 0, 123_999, tzinfo=UTC)
TOPICS = OutcomeTopics(completed="done", failed="not-done")


def understood(given_record: Record) -> SyncRequested:
    read = read_request(given_record)
    assert isinstance(read, SyncRequested), read
    return read


def dead(given_record: Record) -> InvalidRequest:
    read = read_request(given_record)
    assert isinstance(read, InvalidRequest), read
    return read


# ---------------------------------------------------------------- requests


def test_a_plain_request_is_read_and_named_by_its_ids() -> None:
    value = {"operationID": "a:b", "replicationId": "C4-1", "site": "Site B", "deadlineSeconds": 60, "more": [1]}
    assert read_request(record(json.dumps(value).encode())) == SyncRequested(
        identity="op:C4-1:a%3Ab",
        operation_id="a:b",
        replication_id="C4-1",
        site="Site B",
        deadline=timedelta(minutes=1),
        traceparent=None,
        tracestate=None,
        has_key=True,
    )


def test_what_may_be_left_out_is_none() -> None:
    read = understood(record(key=None))
    assert (read.site, read.deadline, read.traceparent, read.tracestate, read.has_key) == (None,) * 4 + (False,)


def test_a_cloudevent_is_named_by_its_source_and_id_in_every_mode() -> None:
    data = {"data": None, "data_base64": "eyJvcGVyYXRpb25JRCI6Im9wLTEiLCJyZXBsaWNhdGlvbklkIjoiQzQtMSJ9"}
    attributes = {"source": "/a b", "id": "é:1", "type": ""}
    reads = {
        understood(binary(**attributes)),
        understood(structured(**attributes)),
        understood(structured(**attributes, **data)),
    }
    assert len(reads) == 1
    assert reads.pop().identity == "ce:%2Fa%20b:%C3%A9%3A1"


def test_no_two_requests_share_an_identity_unless_their_parts_are_equal() -> None:
    assert (
        understood(binary(source="a", id="b:c")).identity
        != understood(binary(source="a:b", id="c")).identity
        != understood(binary(source="a%3Ab", id="c")).identity
    )


@given(st.text(st.sampled_from("az09AZ._:-"), min_size=1, max_size=128))
def test_the_short_way_to_encode_an_operation_id_agrees_with_percent_encoding(operation_id: str) -> None:
    assert understood(with_fields(operationID=operation_id)).identity == f"op:C4-1:{quote(operation_id, safe='')}"


def test_parts_of_an_identity_may_have_255_characters_of_any_kind() -> None:
    assert understood(binary(source="é" * 255, id="x" * 255)).identity.startswith("ce:%C3%A9%C3%A9")


def test_the_last_of_a_header_given_twice_counts() -> None:
    first: Header = ("ce_id", b"first")
    good = binary(id="last")
    assert understood(record(good.value, first, *good.headers)).identity == "ce:%2Fa:last"
    assert understood(record(good.value, STRUCTURED, ("content-type", b"text/plain"))).identity.startswith("op:")


@pytest.mark.parametrize("spelled", ["CE_ID", "ce-id", "Ce-Id", "cE_iD"])
def test_names_of_headers_are_read_without_regard_to_case_and_to_the_sign_in_them(spelled: str) -> None:
    headers = [(spelled if name == "ce_id" else name, value) for name, value in binary(id="7").headers]
    assert understood(record(binary().value, *headers)).identity == "ce:%2Fa:7"
    assert understood(record(binary().value, *headers, ("ce_id", b"last"))).identity == "ce:%2Fa:last"
    mode: Header = ("Content-Type", b"application/cloudevents+json")
    assert understood(record(structured().value, mode)).identity == "ce:%2Fa:1"


@pytest.mark.parametrize(
    "header",
    [
        ("__value_schema_id", b"\x01\x8f\xff\xfe\xc3\x28"),
        ("__key_schema_id", b"\x00\x00\x00\x00\x07"),
        ("grpc-trace-bin", bytes(range(128, 256))),
        ("x", b"\xed\xa0\x80"),
        ("ce_custom", b"\xff"),
    ],
)
def test_headers_that_are_not_read_may_hold_anything(header: Header) -> None:
    assert understood(record(json.dumps(GOOD).encode(), header)).identity == "op:C4-1:op-1"
    assert understood(record(binary().value, *binary().headers, header)).identity == "ce:%2Fa:1"


def test_a_data_base64_of_null_counts_as_absent() -> None:
    event = json.loads(structured().value or b"")
    value = json.dumps(event | {"data_base64": None}).encode()
    assert understood(record(value, STRUCTURED)).identity == "ce:%2Fa:1"


def test_an_envelope_without_its_content_type_is_named_as_such() -> None:
    assert dead(record(structured().value)).detail == (
        "a CloudEvent's envelope needs the content-type application/cloudevents+json"
    )
    assert understood(with_fields(specversion="1.0", data={})).identity == "op:C4-1:op-1", "unknown fields are ignored"


def test_a_header_of_null_counts_as_absent() -> None:
    assert understood(record(binary().value, *binary().headers, ("traceparent", None))).traceparent is None
    nothing: list[Header] = [(name, None) for name, _ in binary().headers]
    assert understood(record(binary().value, *binary().headers, *nothing)).identity.startswith("op:")


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "text/plain", "", "Application/JSON"]
)
def test_any_other_content_type_is_read_as_json(content_type: str) -> None:
    assert understood(record(json.dumps(GOOD).encode(), ("content-type", content_type.encode()))).operation_id == "op-1"


@pytest.mark.parametrize("suffix", ["", "; charset=utf-8", " ;x=y;z", ";"])
def test_a_structured_cloudevent_is_known_whatever_its_parameters_and_case(suffix: str) -> None:
    header = ("content-type", f"application/CloudEvents+JSON{suffix}".encode())
    assert understood(record(structured().value, header)).identity == "ce:%2Fa:1"


def test_of_a_field_given_twice_the_last_counts_as_with_headers() -> None:
    value = b'{"operationID":"o","replicationId":"first","replicationId":"last"}'
    assert understood(record(value)).replication_id == "last"


def test_an_integer_may_be_written_as_json_schema_allows() -> None:
    assert understood(with_fields(deadlineSeconds=60.0)).deadline == timedelta(minutes=1)


def test_the_largest_message_is_understood_and_a_byte_more_is_not() -> None:
    value = json.dumps(GOOD).encode()
    room = MAX_REQUEST_BYTES - len(value) - len(b"C4-1") - len("é".encode())
    understood(record(value, ("é", b"x" * room)))
    assert dead(record(value, ("é", b"x" * (room + 1)))).reason is DeadLetterReason.TOO_LARGE


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=[bad.name for bad in BAD_REQUESTS])
def test_a_bad_request_is_a_value_with_a_stable_reason(bad: BadRequest) -> None:
    read = dead(bad.record)
    assert read.reason is bad.reason
    assert read.detail
    assert len(read.detail) < 120


def test_the_table_of_bad_requests_shows_every_reason_and_no_name_twice() -> None:
    assert {bad.reason for bad in BAD_REQUESTS} == set(DeadLetterReason)
    assert len({bad.name for bad in BAD_REQUESTS}) == len(BAD_REQUESTS)


@pytest.mark.parametrize("field", ["operationID", "replicationId", "site", "deadlineSeconds"])
def test_a_detail_names_the_field_and_repeats_nothing_of_its_content(field: str) -> None:
    detail = dead(with_fields(**{field: "hunter2\n"})).detail
    assert detail.startswith(f"{field} must be ")
    assert "hunter2" not in detail


def test_a_detail_says_in_the_contracts_words_what_a_field_should_be() -> None:
    properties = schemas.shape("sync-requested.v1")["properties"]
    for name, rule in properties.items():
        detail = dead(with_fields(**{name: []})).detail
        assert str(rule.get("maxLength", rule.get("maximum"))) in detail


# ---------------------------------------------------------------- trace context


@pytest.mark.parametrize("name", ["traceparent", "ce_traceparent"])
def test_a_trace_is_taken_along_from_headers(name: str) -> None:
    state = "vendor=a b,other@tenant=1"
    read = understood(
        record(
            json.dumps(GOOD).encode(),
            (name, TRACEPARENT.encode()),
            (name.replace("parent", "state"), state.encode()),
        )
    )
    assert (read.traceparent, read.tracestate) == (TRACEPARENT, state)


def test_a_trace_is_taken_along_from_a_structured_cloudevent() -> None:
    read = understood(structured(traceparent=TRACEPARENT, tracestate="a=b"))
    assert (read.traceparent, read.tracestate) == (TRACEPARENT, "a=b")


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "x",
        TRACEPARENT.upper(),
        TRACEPARENT + "-00",
        TRACEPARENT + "\n",
        "ff" + TRACEPARENT[2:],
        "00-" + "0" * 32 + TRACEPARENT[35:],
        TRACEPARENT[:36] + "0" * 16 + "-01",
        "\udcff",
    ],
)
def test_a_malformed_trace_is_dropped_and_the_request_is_not(parent: str) -> None:
    headers: list[Header] = [("traceparent", parent.encode(errors="surrogateescape")), ("tracestate", b"a=b")]
    read = understood(record(json.dumps(GOOD).encode(), *headers))
    assert (read.traceparent, read.tracestate) == (None, None)


@pytest.mark.parametrize("state", ["", "x", "A=1", "a=b\n", "a=\x01", "a=" + "b" * 600, ",".join(["a=b"] * 33), "a=é"])
def test_a_malformed_trace_state_is_dropped_alone(state: str) -> None:
    read = understood(
        record(json.dumps(GOOD).encode(), ("traceparent", TRACEPARENT.encode()), ("tracestate", state.encode()))
    )
    assert (read.traceparent, read.tracestate) == (TRACEPARENT, None)


@pytest.mark.parametrize("value", [1, None, [], {"a": 1}])
def test_a_trace_that_is_no_string_is_dropped(value: object) -> None:
    read = understood(structured(traceparent=value))
    assert read.traceparent is None


# ---------------------------------------------------------------- whatever the bytes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["content-type", "ce_specversion", "ce_id", "ce_source", "ce_type", "traceparent", "tracestate", "vm-sync-redriven"]
)
VALUES = st.sampled_from(
    [b"1.0", b"application/cloudevents+json", b"application/cloudevents", b"\xff", b"", b";", TRACEPARENT.encode()]
)
HEADERS = st.lists(st.tuples(NAMES | st.text(), st.none() | VALUES | st.binary(max_size=30)), max_size=8).map(tuple)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        name: JSON | st.text(st.sampled_from("aZ0-._: é\n\x00"), max_size=5) | st.integers(-1, 604_802) | st.just(60.0)
        for name in ["operationID", "replicationId", "site", "deadlineSeconds", "specversion", "id", "source", "data"]
    }
    | {"data_base64": JSON | st.binary(max_size=20).map(lambda raw: raw.hex())},
)


@settings(max_examples=200, deadline=None)
@given(value=st.none() | st.binary(max_size=200) | (FIELDS | JSON).map(json.dumps).map(str.encode), headers=HEADERS)
def test_whatever_the_bytes_the_answer_is_a_value_and_can_be_set_aside(
    value: bytes | None, headers: tuple[Header, ...]
) -> None:
    given_record = record(value, *headers)
    read = read_request(given_record)
    if isinstance(read, InvalidRequest):
        event = write_dead_letter(given_record, read, topic="dead")
        assert (event.key, event.value) == (given_record.key, given_record.value)
        assert write_redriven(given_record, topic="again").value == value
    else:
        assert read.identity.isascii()
        assert read.identity.isprintable()


@settings(max_examples=200, deadline=None)
@given(st.one_of(FIELDS.map(lambda fields: {**GOOD, **fields}), FIELDS))
def test_requests_are_accepted_and_refused_as_the_json_schema_does(fields: dict[str, Any]) -> None:
    try:
        value = json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, UnicodeEncodeError):
        return  # not JSON, of which a JSON Schema can say nothing
    accepted = isinstance(read_request(record(value)), SyncRequested)
    assert accepted == validator("sync-requested.v1").is_valid(fields)


# ---------------------------------------------------------------- outcomes


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


def data(event: Event) -> dict[str, Any]:
    assert event.value is not None
    read = json.loads(event.value)
    assert isinstance(read, dict)
    return read


def headers(event: Event) -> dict[str, str]:
    assert len(dict(event.headers)) == len(event.headers)
    return {name: (value or b"").decode() for name, value in event.headers}


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


# ---------------------------------------------------------------- dead letters

BAD = InvalidRequest(DeadLetterReason.BAD_FIELD, "site must be different")


def test_a_dead_letter_is_the_original_untouched_and_why() -> None:
    original = record(b"\xff\x00", ("x", b"\xfe"), ("x", b"2"), ("y", None), key=b"\x00k")
    event = write_dead_letter(original, BAD, topic="dead")
    assert (event.topic, event.key, event.value, event.timestamp_ms) == ("dead", b"\x00k", b"\xff\x00", None)
    assert event.headers == (
        *original.headers,
        ("vm-sync-reason", b"bad-field"),
        ("vm-sync-detail", b"site must be different"),
        ("vm-sync-topic", b"vm-sync.requests"),
        ("vm-sync-partition", b"3"),
        ("vm-sync-offset", b"41"),
        ("vm-sync-timestamp", b"1772402400000"),
        ("vm-sync-redriven", b"0"),
    )


@pytest.mark.parametrize(("key", "value"), [(None, b""), (b"k", None)])
def test_a_dead_letter_without_key_and_value_gets_an_empty_value_since_kafka_needs_one(
    key: bytes | None, value: bytes | None
) -> None:
    assert write_dead_letter(record(None, key=key), BAD, topic="dead").value == value


def test_a_dead_letter_that_was_put_back_and_fails_again_tells_only_of_the_last_time() -> None:
    letter = write_dead_letter(
        record(b"{}", ("x", b"1")), InvalidRequest(DeadLetterReason.NOT_JSON, "old"), topic="dead"
    )
    for times in (1, 2, 3):
        again = write_redriven(as_record(letter), topic="vm-sync.requests")
        assert (again.topic, again.key, again.value) == ("vm-sync.requests", b"C4-1", b"{}")
        assert again.headers == (("x", b"1"), ("vm-sync-redriven", str(times).encode()))
        letter = write_dead_letter(as_record(again), BAD, topic="dead")
        told = headers(letter)
        assert (told["vm-sync-reason"], told["vm-sync-detail"]) == ("bad-field", "site must be different")
        assert told["vm-sync-redriven"] == str(times)
        assert len(letter.headers) == 8


def as_record(event: Event) -> Record:
    return record(event.value, *event.headers, key=event.key)


@pytest.mark.parametrize("value", [b"", b"-1", b"many", b"1" * 5_000, "\u0663".encode(), b"\xff", None])
def test_a_count_that_makes_no_sense_counts_as_never(value: bytes | None) -> None:
    assert redriven((("vm-sync-redriven", value),)) == 0


def test_a_dead_letter_too_large_for_the_broker_comes_without_value_and_says_so() -> None:
    large = record(b"x" * 2_000_000, ("x", b"1"))
    event = write_dead_letter(large, dead(large), topic="dead", truncated=True)
    assert (event.key, event.value, event.headers[0]) == (b"C4-1", None, ("x", b"1"))
    assert headers(event)["vm-sync-truncated"] == "true"
    assert headers(event)["vm-sync-reason"] == "too-large"


@pytest.mark.parametrize("key", [b"k" * 2_000_000, b"k"])
def test_a_dead_letter_whose_key_or_headers_are_too_large_comes_without_them(key: bytes) -> None:
    huge = record(b"{}", ("x", b"1" * 2_000_000), key=key)
    event = write_dead_letter(huge, dead(huge), topic="dead", truncated=True)
    assert sum(len(name) + len(value or b"") for name, value in event.headers) < 1_000
    assert (event.key, event.value) == ((b"k", None) if len(key) == 1 else (None, b""))


def test_the_reason_words_are_those_that_dashboards_know() -> None:
    assert {reason.value for reason in DeadLetterReason} == {
        "unreadable",
        "too-large",
        "bad-header",
        "bad-cloudevent",
        "unknown-specversion",
        "not-json",
        "not-an-object",
        "missing-field",
        "bad-field",
        "identity-too-long",
    }
