"""Requests: bytes of any kind become a SyncRequested, or an InvalidRequest with a stable reason."""

import json
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.messages import schemas
from service.messages.dead_letters import write_dead_letter, write_redriven
from service.messages.kafka_record import MAX_REQUEST_BYTES, Header
from service.messages.requests import (
    DeadLetterReason,
    InvalidRequest,
    SyncCancelRequested,
    SyncRequested,
    read_request,
)
from tests.support.bad_requests import (
    BAD_REQUESTS,
    GOOD,
    STRUCTURED,
    BadRequest,
    binary,
    cancel,
    record,
    structured,
    with_fields,
)
from tests.support.ecma import validator
from tests.support.some_messages import TRACEPARENT, dead, understood


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


TEXT = st.text(st.sampled_from("aZ0-._: é\n\x00"), max_size=5)


FIELD_NAMES = (
    *("operationID", "replicationId", "site", "deadlineSeconds"),
    *("specversion", "id", "source", "data", "cancel"),
)


FIELDS = st.fixed_dictionaries(
    {},
    optional={name: JSON | TEXT | st.integers(-1, 604_802) | st.just(60.0) for name in FIELD_NAMES}
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
    elif isinstance(read, SyncRequested):
        assert read.identity.isascii()
        assert read.identity.isprintable()
    else:
        assert read.named.isascii()
        assert read.named.isprintable()


@settings(max_examples=200, deadline=None)
@given(st.one_of(FIELDS.map(lambda fields: {**GOOD, **fields}), FIELDS))
def test_requests_are_accepted_and_refused_as_the_json_schema_does(fields: dict[str, Any]) -> None:
    try:
        value = json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, UnicodeEncodeError):
        return  # not JSON, of which a JSON Schema can say nothing
    accepted = isinstance(read_request(record(value)), SyncRequested)
    assert accepted == validator("sync-requested.v1").is_valid(fields)


# ---------------------------------------------------------------- cancels


def test_a_cancel_names_a_request_by_its_identity() -> None:
    read = read_request(cancel("ce:%2Fa:1"))
    assert read == SyncCancelRequested(identity="ce:%2Fa:1")
    assert read.named == "ce:%2Fa:1"


def test_a_cancel_names_a_request_by_its_ids_and_says_by_whom_and_why() -> None:
    read = read_request(cancel(GOOD, release=True, by="Zoë", reason="stuck, see ticket", more=1))
    assert read == SyncCancelRequested(ids=("C4-1", "op-1"), release=True, by="Zoë", why="stuck, see ticket")
    assert read.named == "C4-1:op-1"


def test_a_cancel_may_be_a_cloudevent_in_either_mode() -> None:
    value = {"cancel": "op:C4-1:op-1"}
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t"}
    headers = [(f"ce_{name}", text.encode()) for name, text in event.items()]
    wanted = SyncCancelRequested(identity="op:C4-1:op-1")
    assert read_request(record(json.dumps(value).encode(), *headers)) == wanted
    assert read_request(record(json.dumps({**event, "data": value}).encode(), STRUCTURED)) == wanted


def test_the_longest_identity_of_a_cloudevent_can_be_cancelled() -> None:
    longest = understood(structured(source="\U0001f600" * 255, id="\U0001f600" * 255)).identity
    assert read_request(cancel(longest)) == SyncCancelRequested(identity=longest)
    assert isinstance(read_request(cancel(longest + "a")), InvalidRequest)


def test_a_request_with_an_unknown_field_of_that_name_is_a_request() -> None:
    assert understood(with_fields(cancel="op:C4-1:op-1")).operation_id == "op-1"


IDS = st.fixed_dictionaries(
    {}, optional={"operationID": st.just("op-1") | JSON, "replicationId": st.just("C4-1") | JSON}
)
CANCELS = st.fixed_dictionaries(
    {"cancel": st.sampled_from(["op:C4-1:op-1", "ce:a:b", "op-1", "op:C4-1:op-1\n"]) | IDS | JSON},
    optional={"release": st.booleans() | JSON, "by": TEXT | JSON, "reason": TEXT | JSON, "more": JSON},
)


@settings(max_examples=200, deadline=None)
@given(CANCELS)
def test_cancels_are_accepted_and_refused_as_the_json_schema_does(fields: dict[str, Any]) -> None:
    try:
        value = json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, UnicodeEncodeError):
        return
    accepted = isinstance(read_request(record(value)), SyncCancelRequested)
    assert accepted == validator("sync-cancel-requested.v1").is_valid(fields)
