"""Turns an invalid message into a dead letter, and a dead letter into the original message for a redrive."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from service.messages.kafka_record import MAX_REQUEST_BYTES, Event, Header, Record
from service.messages.requests import InvalidRequest

REDRIVEN: Final = "vm-sync-redriven"
_OURS: Final = frozenset(
    f"vm-sync-{name}"
    for name in ("reason", "detail", "topic", "partition", "offset", "timestamp", "redriven", "truncated")
)


def write_dead_letter(record: Record, bad: InvalidRequest, *, topic: str) -> Event:
    """Write a dead letter: the record unchanged, and the reason. Headers of an earlier dead letter are replaced.

    Where the broker refuses it for its size, it comes without the value, and if that isn't enough, also without the key
    and the record's headers: whoever sends must not be able to stop a partition.
    """
    words = {
        "vm-sync-reason": bad.reason.value,
        "vm-sync-detail": bad.detail,
        "vm-sync-topic": record.topic,
        "vm-sync-partition": str(record.partition),
        "vm-sync-offset": str(record.offset),
        "vm-sync-timestamp": str(record.timestamp_ms),
        REDRIVEN: str(redriven(record.headers)),
    }
    less = words | {"vm-sync-truncated": "true"}
    bare = _dead_letter(replace(record, key=None, value=None, headers=()), less, topic=topic)
    without_value = _dead_letter(replace(record, value=None), less, topic=topic, shorter=bare)
    return _dead_letter(record, words, topic=topic, shorter=without_value)


def _dead_letter(record: Record, words: Mapping[str, str], *, topic: str, shorter: Event | None = None) -> Event:
    original = tuple([header for header in record.headers if header[0] not in _OURS])
    ours = tuple([(name, text.encode("utf-8", "replace")) for name, text in words.items()])
    # aiokafka refuses a record that has neither key nor value.
    value = b"" if record.key is None and record.value is None else record.value
    return Event(topic=topic, key=record.key, value=value, headers=original + ours, shorter=shorter)


def redriven(headers: tuple[Header, ...]) -> int:
    """Return how often a message was redriven, from its header; 0 if the header is missing or invalid."""
    value = dict(headers).get(REDRIVEN) or b""
    return int(value) if value.isdigit() and len(value) <= len(str(MAX_REQUEST_BYTES)) else 0


def write_redriven(dead_letter: Record, *, topic: str) -> Event:
    """Restore the message of a dead letter: the service's headers are removed, and the redrive count is increased."""
    original = tuple([header for header in dead_letter.headers if header[0] not in _OURS])
    count = str(redriven(dead_letter.headers) + 1).encode()
    return Event(topic=topic, key=dead_letter.key, value=dead_letter.value, headers=(*original, (REDRIVEN, count)))
