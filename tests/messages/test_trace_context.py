"""The trace of a request: taken from headers or the CloudEvent, dropped where it is malformed."""

import json

import pytest

from tests.support.bad_requests import (
    GOOD,
    record,
    structured,
)
from tests.support.some_messages import TRACEPARENT, understood


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
    given = parent.encode(errors="surrogateescape")
    read = understood(record(json.dumps(GOOD).encode(), ("traceparent", given), ("tracestate", b"a=b")))
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
