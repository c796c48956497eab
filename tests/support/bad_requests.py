"""Invalid messages and their dead letters: a table, also for the documentation.

Each row is a name (a phrase that ends "a record with ..."), the record, and the reason its dead letter gives.
"""

import json
from typing import Final, NamedTuple

from service.messages.kafka_record import Header, Record
from service.messages.requests import DeadLetterReason

GOOD: Final = {"operationID": "op-1", "replicationId": "C4-1"}


class BadRequest(NamedTuple):
    name: str
    record: Record
    reason: DeadLetterReason


def record(
    value: bytes | None = json.dumps(GOOD).encode(),
    *headers: Header,
    key: bytes | None = b"C4-1",
    unreadable: str | None = None,
) -> Record:
    """Make a record of the requests topic; unless told otherwise, a good one."""
    return Record(
        topic="vm-sync.requests",
        partition=3,
        offset=41,
        timestamp_ms=1_772_402_400_000,
        key=key,
        value=value,
        headers=headers,
        unreadable=unreadable,
    )


def with_fields(**fields: object) -> Record:
    """Make a plain request with fields changed or added."""
    return record(json.dumps({**GOOD, **fields}).encode())


def without(field: str) -> Record:
    """Make a plain request with a field left out."""
    return record(json.dumps({name: value for name, value in GOOD.items() if name != field}).encode())


def cancel(name: object, **fields: object) -> Record:
    """Make a cancel of a request, with fields added."""
    return record(json.dumps({"cancel": name, **fields}).encode())


def binary(**attributes: str | None) -> Record:
    """Make a CloudEvent in binary mode; an attribute of None is left out."""
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", **attributes}
    return record(
        json.dumps(GOOD).encode(), *((f"ce_{name}", text.encode()) for name, text in event.items() if text is not None)
    )


STRUCTURED: Final[Header] = ("content-type", b"application/cloudevents+json; charset=utf-8")


def structured(**attributes: object) -> Record:
    """Make a CloudEvent in structured mode; an attribute of None is left out."""
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "data": GOOD, **attributes}
    return record(json.dumps({name: value for name, value in event.items() if value is not None}).encode(), STRUCTURED)


_R = DeadLetterReason
_LARGE = b" " * (64 * 1024)

BAD_REQUESTS: Final = [
    # not handed over, or too much
    BadRequest("bytes that Kafka's client can't hand over", record(None, unreadable="broken"), _R.UNREADABLE),
    BadRequest("a value over the limit", record(_LARGE + b"{}"), _R.TOO_LARGE),
    BadRequest("a key over the limit", record(key=_LARGE), _R.TOO_LARGE),
    BadRequest("headers over the limit", record(b"{}", *[("h" * 1024, b"v" * 1024)] * 32), _R.TOO_LARGE),
    BadRequest("header names of many bytes over the limit", record(b"{}", *[("é" * 1024, b"")] * 32), _R.TOO_LARGE),
    # headers
    BadRequest("a header we read that is not UTF-8", record(b"{}", ("ce_id", b"\xff")), _R.BAD_HEADER),
    BadRequest("the same, its name spelled another way", record(b"{}", ("Content-Type", b"\xff")), _R.BAD_HEADER),
    BadRequest("half a surrogate pair in a header we read", record(b"{}", ("ce_id", b"\xed\xa0\x80")), _R.BAD_HEADER),
    # CloudEvents
    BadRequest("CloudEvents specversion 0.3, binary", binary(specversion="0.3"), _R.UNKNOWN_SPECVERSION),
    BadRequest("CloudEvents specversion 2.0, structured", structured(specversion="2.0"), _R.UNKNOWN_SPECVERSION),
    BadRequest("a specversion that is a number", structured(specversion=1.0), _R.UNKNOWN_SPECVERSION),
    BadRequest("ce_ headers without specversion", binary(specversion=None), _R.BAD_CLOUDEVENT),
    BadRequest("a CloudEvent without id, binary", binary(id=None), _R.BAD_CLOUDEVENT),
    BadRequest("a CloudEvent without id, structured", structured(id=None), _R.BAD_CLOUDEVENT),
    BadRequest("a CloudEvent with an empty id", binary(id=""), _R.BAD_CLOUDEVENT),
    BadRequest("a CloudEvent whose id is a number", structured(id=7), _R.BAD_CLOUDEVENT),
    BadRequest("a CloudEvent without source", binary(source=None), _R.BAD_CLOUDEVENT),
    BadRequest("a CloudEvent with an empty source", structured(source=""), _R.BAD_CLOUDEVENT),
    BadRequest("a CloudEvent id of 256 characters", binary(id="x" * 256), _R.IDENTITY_TOO_LONG),
    BadRequest("a CloudEvent source of 256 characters", structured(source="/" * 256), _R.IDENTITY_TOO_LONG),
    BadRequest("a CloudEvent without data", structured(data=None), _R.BAD_CLOUDEVENT),
    BadRequest(
        "a CloudEvent whose data_base64 is null",
        record(b'{"specversion":"1.0","id":"1","source":"/a","data_base64":null}', STRUCTURED),
        _R.BAD_CLOUDEVENT,
    ),
    BadRequest("a structured CloudEvent without its content type", record(structured().value), _R.BAD_CLOUDEVENT),
    BadRequest("a CloudEvent with data twice", structured(data_base64="e30="), _R.BAD_CLOUDEVENT),
    BadRequest("data_base64 that is not base64", structured(data=None, data_base64="e30"), _R.BAD_CLOUDEVENT),
    BadRequest("data_base64 with a blank in it", structured(data=None, data_base64="e3 0="), _R.BAD_CLOUDEVENT),
    BadRequest("data_base64 with letters beyond ASCII", structured(data=None, data_base64="é"), _R.BAD_CLOUDEVENT),
    BadRequest("data_base64 that is a number", structured(data=None, data_base64=1), _R.BAD_CLOUDEVENT),
    BadRequest("data_base64 that holds no JSON", structured(data=None, data_base64="eA=="), _R.NOT_JSON),
    BadRequest("empty data_base64", structured(data=None, data_base64=""), _R.NOT_JSON),
    BadRequest("data that is a string", structured(data=json.dumps(GOOD)), _R.NOT_AN_OBJECT),
    BadRequest("data that lacks a field", structured(data={"operationID": "x"}), _R.MISSING_FIELD),
    BadRequest("a structured CloudEvent that is no object", record(b"[]", STRUCTURED), _R.NOT_AN_OBJECT),
    BadRequest("a structured CloudEvent that is not JSON", record(b"{", STRUCTURED), _R.NOT_JSON),
    BadRequest(
        "a batch of CloudEvents",
        record(b"[]", ("content-type", b"application/cloudevents-batch+json")),
        _R.BAD_CLOUDEVENT,
    ),
    BadRequest(
        "a CloudEvent in Avro", record(b"{}", ("content-type", b"application/cloudevents+avro")), _R.BAD_CLOUDEVENT
    ),
    # JSON
    BadRequest("no value", record(None), _R.NOT_JSON),
    BadRequest("neither key nor value", record(None, key=None), _R.NOT_JSON),
    BadRequest("an empty value", record(b""), _R.NOT_JSON),
    BadRequest("blanks alone", record(b" \n"), _R.NOT_JSON),
    BadRequest("words", record(b"please sync C4-1"), _R.NOT_JSON),
    BadRequest("half an object", record(b'{"operationID": "op-1", '), _R.NOT_JSON),
    BadRequest("two objects", record(json.dumps(GOOD).encode() * 2), _R.NOT_JSON),
    BadRequest("a comma too many", record(b'{"operationID":"o","replicationId":"r",}'), _R.NOT_JSON),
    BadRequest("single quotes", record(b"{'operationID':'o','replicationId':'r'}"), _R.NOT_JSON),
    BadRequest("a comment", record(b'{"operationID":"o","replicationId":"r"} // now'), _R.NOT_JSON),
    BadRequest("a byte order mark", record(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()), _R.NOT_JSON),
    BadRequest("UTF-16", record(json.dumps(GOOD).encode("utf-16")), _R.NOT_JSON),
    BadRequest("bytes that are not UTF-8", record(b'{"operationID":"o\xff","replicationId":"r"}'), _R.NOT_JSON),
    BadRequest("half a surrogate pair", record(b'{"operationID":"o","replicationId":"\\ud800"}'), _R.NOT_JSON),
    BadRequest("half a pair in a field we ignore", with_fields(note="\ud800"), _R.NOT_JSON),
    BadRequest("a NUL byte", record(b'{"operationID":"o\x00","replicationId":"r"}'), _R.NOT_JSON),
    BadRequest("NUL bytes alone", record(b"\x00" * 40), _R.NOT_JSON),
    BadRequest("a line break within a string", record(b'{"operationID":"o\n","replicationId":"r"}'), _R.NOT_JSON),
    BadRequest("NaN", with_fields(deadlineSeconds=float("nan")), _R.NOT_JSON),
    BadRequest("NaN in a field we ignore", with_fields(load=float("nan")), _R.NOT_JSON),
    BadRequest("Infinity", with_fields(deadlineSeconds=float("inf")), _R.NOT_JSON),
    BadRequest("-Infinity", with_fields(load=float("-inf")), _R.NOT_JSON),
    BadRequest("30,000 brackets", record(b"[" * 30_000), _R.NOT_JSON),
    BadRequest("10,000 objects within each other", record(b'{"a":' * 10_000 + b"1" + b"}" * 10_000), _R.NOT_JSON),
    BadRequest("a number of 5,000 digits", record(b'{"n":' + b"9" * 5_000 + b"}"), _R.NOT_JSON),
    BadRequest("gzip", record(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"), _R.NOT_JSON),
    BadRequest("Avro with a schema id", record(b"\x00\x00\x00\x00\x07\x08op-1"), _R.NOT_JSON),
    BadRequest("null", record(b"null"), _R.NOT_AN_OBJECT),
    BadRequest("a list of requests", record(json.dumps([GOOD]).encode()), _R.NOT_AN_OBJECT),
    BadRequest("a string", record(b'"C4-1"'), _R.NOT_AN_OBJECT),
    BadRequest("a number", record(b"1"), _R.NOT_AN_OBJECT),
    # fields
    BadRequest("an empty object", record(b"{}"), _R.MISSING_FIELD),
    BadRequest("no operationID", without("operationID"), _R.MISSING_FIELD),
    BadRequest("no replicationId", without("replicationId"), _R.MISSING_FIELD),
    BadRequest("names spelled another way", record(b'{"operationId":"o","replicationID":"r"}'), _R.MISSING_FIELD),
    BadRequest("names in snake case", record(b'{"operation_id":"o","replication_id":"r"}'), _R.MISSING_FIELD),
    BadRequest("an operationID of null", with_fields(operationID=None), _R.BAD_FIELD),
    BadRequest("an operationID that is a number", with_fields(operationID=17), _R.BAD_FIELD),
    BadRequest("an empty operationID", with_fields(operationID=""), _R.BAD_FIELD),
    BadRequest("an operationID of 129 characters", with_fields(operationID="o" * 129), _R.BAD_FIELD),
    BadRequest("an operationID with a blank", with_fields(operationID="op 1"), _R.BAD_FIELD),
    BadRequest("an operationID with a line break at its end", with_fields(operationID="op-1\n"), _R.BAD_FIELD),
    BadRequest("an operationID with a header in it", with_fields(operationID="x\r\nHost: y"), _R.BAD_FIELD),
    BadRequest("an operationID beyond ASCII", with_fields(operationID="op-é"), _R.BAD_FIELD),
    BadRequest("digits of another script", with_fields(operationID="op-\u0661"), _R.BAD_FIELD),
    BadRequest("a replicationId that is a list", with_fields(replicationId=["C4-1"]), _R.BAD_FIELD),
    BadRequest("an empty replicationId", with_fields(replicationId=""), _R.BAD_FIELD),
    BadRequest("a replicationId of 129 characters", with_fields(replicationId="C" * 129), _R.BAD_FIELD),
    BadRequest("a replicationId that climbs a path", with_fields(replicationId="../sessions"), _R.BAD_FIELD),
    BadRequest("a replicationId with a query", with_fields(replicationId="C4-1?site=x"), _R.BAD_FIELD),
    BadRequest("a replicationId with a dot", with_fields(replicationId="C4.1"), _R.BAD_FIELD),
    BadRequest("a replicationId with an escaped NUL", with_fields(replicationId="C4-1\0"), _R.BAD_FIELD),
    BadRequest("a site of null", with_fields(site=None), _R.BAD_FIELD),
    BadRequest("an empty site", with_fields(site=""), _R.BAD_FIELD),
    BadRequest("a site that is a number", with_fields(site=1), _R.BAD_FIELD),
    BadRequest("a site of 256 characters", with_fields(site="s" * 256), _R.BAD_FIELD),
    BadRequest("a site with a tab", with_fields(site="Site\tB"), _R.BAD_FIELD),
    BadRequest("a site with an invisible character", with_fields(site="Site\u200bB"), _R.BAD_FIELD),
    BadRequest("a site that turns the direction of writing", with_fields(site="Site\u202eB"), _R.BAD_FIELD),
    BadRequest("a deadline that is a string", with_fields(deadlineSeconds="60"), _R.BAD_FIELD),
    BadRequest("a deadline in ISO 8601", with_fields(deadlineSeconds="PT1H"), _R.BAD_FIELD),
    BadRequest("a deadline of true", with_fields(deadlineSeconds=True), _R.BAD_FIELD),
    BadRequest("a deadline of null", with_fields(deadlineSeconds=None), _R.BAD_FIELD),
    BadRequest("a deadline of 1.5", with_fields(deadlineSeconds=1.5), _R.BAD_FIELD),
    BadRequest("a deadline of 0", with_fields(deadlineSeconds=0), _R.BAD_FIELD),
    BadRequest("a deadline below 0", with_fields(deadlineSeconds=-1), _R.BAD_FIELD),
    BadRequest("a deadline over a week", with_fields(deadlineSeconds=604_801), _R.BAD_FIELD),
    BadRequest("a deadline of 4,000 digits", with_fields(deadlineSeconds=10**3_999), _R.BAD_FIELD),
    BadRequest(
        "a deadline of 1e999", record(b'{"operationID":"o","replicationId":"r","deadlineSeconds":1e999}'), _R.BAD_FIELD
    ),
    # cancels
    BadRequest("a cancel of null", cancel(None), _R.BAD_FIELD),
    BadRequest("a cancel of true", cancel(True), _R.BAD_FIELD),
    BadRequest("a cancel of a bare operationID", cancel("op-1"), _R.BAD_FIELD),
    BadRequest("a cancel of a list", cancel(["op:C4-1:op-1"]), _R.BAD_FIELD),
    BadRequest("a cancel without an operationID", cancel({"replicationId": "C4-1"}), _R.BAD_FIELD),
    BadRequest("a cancel and an operationID beside it", cancel("op:C4-1:op-1", operationID="op-1"), _R.MISSING_FIELD),
    BadRequest("a cancel with a release that is a string", cancel("op:C4-1:op-1", release="true"), _R.BAD_FIELD),
    BadRequest("a cancel with a release of null", cancel("op:C4-1:op-1", release=None), _R.BAD_FIELD),
    BadRequest("a cancel by nobody", cancel("op:C4-1:op-1", by=""), _R.BAD_FIELD),
    BadRequest("a cancel by 256 characters", cancel("op:C4-1:op-1", by="b" * 256), _R.BAD_FIELD),
    BadRequest("a cancel with a line break in its reason", cancel("op:C4-1:op-1", reason="a\nb"), _R.BAD_FIELD),
]
