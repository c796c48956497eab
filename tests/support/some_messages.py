"""Messages for tests, and what is read of them."""

import json
from typing import Any

from service.messages.kafka_record import Event, Record
from service.messages.requests import InvalidRequest, SyncRequested, read_request

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def understood(given_record: Record) -> SyncRequested:
    read = read_request(given_record)
    assert isinstance(read, SyncRequested), read
    return read


def dead(given_record: Record) -> InvalidRequest:
    read = read_request(given_record)
    assert isinstance(read, InvalidRequest), read
    return read


def data(event: Event) -> dict[str, Any]:
    assert event.value is not None
    read = json.loads(event.value)
    assert isinstance(read, dict)
    return read


def headers(event: Event) -> dict[str, str]:
    assert len(dict(event.headers)) == len(event.headers)
    return {name: (value or b"").decode() for name, value in event.headers}
