"""Turns an invalid message into a dead letter, and a dead letter into the original message for a redrive."""

from typing import Final

from service.messages.kafka_record import MAX_REQUEST_BYTES, Event, Header, Record, record_size
from service.messages.requests import InvalidRequest

# ---------------------------------------------------------------- dead letters

REDRIVEN: Final = "vm-sync-redriven"
_OURS: Final = frozenset(
    f"vm-sync-{name}"
    for name in ("reason", "detail", "topic", "partition", "offset", "timestamp", "redriven", "truncated")
)


def write_dead_letter(record: Record, bad: InvalidRequest, *, topic: str, truncated: bool = False) -> Event:
    """Write a dead letter: the record unchanged, and the reason. Headers of an earlier dead letter are replaced.

    `truncated` is for a record that the broker refuses for its size: no value then, and no more of key and headers
    than any request may have.
    """
    key, value = record.key, record.value
    original = tuple([header for header in record.headers if header[0] not in _OURS])
    if truncated:
        value = None
        if record_size(record) - len(record.value or b"") > MAX_REQUEST_BYTES:
            original = ()
            key = None if key is None or len(key) > MAX_REQUEST_BYTES else key
    if key is None and value is None:
        # aiokafka refuses a record that has neither.
        value = b""
    words = {
        "vm-sync-reason": bad.reason.value,
        "vm-sync-detail": bad.detail,
        "vm-sync-topic": record.topic,
        "vm-sync-partition": str(record.partition),
        "vm-sync-offset": str(record.offset),
        "vm-sync-timestamp": str(record.timestamp_ms),
        REDRIVEN: str(redriven(record.headers)),
    }
    if truncated:
        words["vm-sync-truncated"] = "true"
    ours = tuple([(name, text.encode("utf-8", "replace")) for name, text in words.items()])
    return Event(
        topic=topic,
        key=key,
        value=value,
        headers=original + ours,
        shorter=None if truncated else write_dead_letter(record, bad, topic=topic, truncated=True),
    )


def redriven(headers: tuple[Header, ...]) -> int:
    """Return how often a message was redriven, from its header; 0 if the header is missing or invalid."""
    value = dict(headers).get(REDRIVEN) or b""
    return int(value) if value.isdigit() and len(value) <= len(str(MAX_REQUEST_BYTES)) else 0


def write_redriven(dead_letter: Record, *, topic: str) -> Event:
    """Restore the message of a dead letter: the service's headers are removed, and the redrive count is increased."""
    original = tuple([header for header in dead_letter.headers if header[0] not in _OURS])
    count = str(redriven(dead_letter.headers) + 1).encode()
    return Event(topic=topic, key=dead_letter.key, value=dead_letter.value, headers=(*original, (REDRIVEN, count)))
