"""Dead letters as they are shown to people; what is done with them is in test_cli_kafka.py."""

import asyncio
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from aiokafka.errors import IllegalOperation, TopicAuthorizationFailedError

from service.cli.dead_letters import COLUMNS, Letter, LetterFilter, _facts, _row, _send
from service.messages.kafka_record import Event, Header, Record


@pytest.mark.parametrize(
    ("key", "value", "cells", "fact"),
    [
        (None, None, ("(none)", "(none)"), "(none)"),
        (b"", b"", ("(empty)", "(empty)"), "(empty)"),
        (b"C4-1", b"oops", ("C4-1", "oops"), "4 bytes, below"),
        (b"C4-1", b"x" * 61, ("C4-1", "x" * 60 + "..."), "61 bytes, below"),
    ],
)
def test_no_cell_of_a_letters_key_or_message_is_blank(
    key: bytes | None, value: bytes | None, cells: tuple[str, str], fact: str
) -> None:
    record = Record(topic="dead", partition=0, offset=1, timestamp_ms=0, key=key, value=value)
    letter = Letter(record, None)
    row = dict(zip([column.name for column in COLUMNS], _row(letter), strict=True))

    assert (row["key"], row["message"]) == cells
    assert dict(_facts(letter))["message"] == fact


@pytest.mark.parametrize(
    ("headers", "at_most", "refusal"),
    [
        ((("vm-sync-topic", b"requests"),), 3, None),
        ((), 3, None),
        (
            (("vm-sync-topic", b"staging.requests"),),
            3,
            "sent to the topic staging.requests; --force redrives it to requests nevertheless",
        ),
        ((("vm-sync-topic", b"staging.requests"),), None, None),
    ],
)
def test_a_letter_of_a_deployment_that_shares_the_dead_letter_topic_is_only_redriven_by_force(
    headers: tuple[Header, ...], at_most: int | None, refusal: str | None
) -> None:
    record = Record(topic="dead", partition=0, offset=1, timestamp_ms=0, key=None, value=b"", headers=headers)
    letter = Letter(record, None)

    assert letter.refusal(requests="requests", at_most=at_most) == refusal


def test_only_letters_of_the_own_requests_topic_are_acted_on_unless_topics_are_named() -> None:
    def sent_to(topic: bytes | None, *, discarded: bool = False) -> Letter:
        headers = () if topic is None else (("vm-sync-topic", topic),)
        record = Record(topic="dead", partition=0, offset=1, timestamp_ms=0, key=None, value=b"", headers=headers)
        return Letter(record, None, datetime.now(UTC) if discarded else None)

    own = [sent_to(b"requests"), sent_to(None)]
    others = [sent_to(b"staging"), sent_to(b"staging"), sent_to(b"test")]
    letters = [*own, *others, sent_to(b"test", discarded=True)]

    assert LetterFilter.of().split(letters, requests="requests") == (own, {"staging": 2, "test": 1})
    assert LetterFilter.of(topics=["staging"]).split(others[:2], requests="requests") == (others[:2], {})
    assert [letter for letter in letters if LetterFilter.of(topics=["staging"]).holds(letter)] == others[:2]


def test_a_letter_of_another_topic_that_is_named_by_its_place_is_acted_on_and_not_passed_over_in_silence() -> None:
    headers = (("vm-sync-topic", b"staging"),)
    record = Record(topic="dead", partition=2, offset=7, timestamp_ms=0, key=None, value=b"", headers=headers)
    letter = Letter(record, None)

    assert LetterFilter.of(at=["2:7"]).split([letter], requests="requests") == ([letter], {})
    assert LetterFilter.of(at=["2"]).split([letter], requests="requests") == ([], {"staging": 1})


async def test_of_events_that_kafka_denies_the_denial_is_raised_and_not_that_no_more_may_be_sent() -> None:
    class Denied:
        """A producer whose transaction fails with its first event."""

        sent = 0

        async def send(self, *_: object, **__: object) -> "asyncio.Future[Any]":
            self.sent += 1
            if self.sent > 1:
                raise IllegalOperation
            arrived = asyncio.get_running_loop().create_future()
            arrived.set_exception(TopicAuthorizationFailedError("marks"))
            return arrived

    with pytest.raises(TopicAuthorizationFailedError):
        await _send(cast("Any", Denied()), [Event(topic="marks", key=b"", value=b"")] * 3)
