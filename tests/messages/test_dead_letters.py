"""Dead letters: the original message, the reason, and what is left out where it is too large."""

import pytest

from service.messages.dead_letters import redriven, write_dead_letter, write_redriven
from service.messages.kafka_record import Event, Record
from service.messages.requests import DeadLetterReason, InvalidRequest
from tests.support.bad_requests import (
    record,
)
from tests.support.some_messages import dead, headers

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
    event = write_dead_letter(large, dead(large), topic="dead").shorter
    assert event is not None
    assert (event.key, event.value, event.headers[0]) == (b"C4-1", None, ("x", b"1"))
    assert headers(event)["vm-sync-truncated"] == "true"
    assert headers(event)["vm-sync-reason"] == "too-large"


@pytest.mark.parametrize("key", [b"k" * 2_000_000, b"k"])
def test_a_dead_letter_whose_key_or_headers_are_too_large_comes_without_them(key: bytes) -> None:
    huge = record(b"{}", ("x", b"1" * 2_000_000), key=key)
    event = write_dead_letter(huge, dead(huge), topic="dead")
    while event.shorter is not None:
        event = event.shorter
    assert (event.key, event.value) == (None, b"")
    assert headers(event)["vm-sync-truncated"] == "true"
    assert headers(event)["vm-sync-offset"] == "41"
    assert sum(len(name) + len(value or b"") for name, value in event.headers) < 1_000


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
