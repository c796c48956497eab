"""A Kafka that goes away and comes back: one line each."""

import logging
from collections.abc import Iterator

import pytest
from aiokafka.errors import KafkaConnectionError

from service.kafka.outage import Outage
from tests.support.virtual_time import HandClock

SERVERS = "kafka-0:9092,kafka-1:9092"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def outage(clock: HandClock) -> Iterator[Outage]:
    outage = Outage(servers=SERVERS, clock=clock)
    yield outage
    outage.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "service.kafka.outage"]


def test_an_outage_is_one_line_with_broker_moment_and_cause_and_one_with_its_duration(
    outage: Outage, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    since = clock.monotonic()
    error = KafkaConnectionError("Connection at kafka-1:9092\n  failed")
    logging.getLogger("aiokafka.client").error("Unable connect to node with id %s: %s", 1, error)
    for _ in range(60):
        clock.seconds += 5
        outage.silent(since)
    outage.answered()
    outage.answered()

    assert lines(caplog) == [
        (
            f"Kafka at {SERVERS} has not answered since 2030-01-01 00:16:40Z: "
            "broker 1: KafkaConnectionError: Connection at kafka-1:9092 failed"
        ),
        "Kafka answers again, after 300 s",
    ]


def test_a_silence_as_long_as_a_brokers_restart_is_not_mentioned(
    outage: Outage, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    since = clock.monotonic()
    clock.seconds += 9
    outage.silent(since)
    outage.answered()

    assert lines(caplog) == []


def test_an_outage_that_lasts_is_mentioned_again_after_ten_minutes(
    outage: Outage, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    since = clock.monotonic()
    for _ in range(25):
        clock.seconds += 60
        outage.silent(since)

    assert len(lines(caplog)) == 3


def test_the_cause_of_an_outage_that_is_over_is_not_taken_for_that_of_the_next_one(
    outage: Outage, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("aiokafka.client").error("Unable connect to node with id %s: %s", 1, KafkaConnectionError("Gone"))
    outage.answered()
    since = clock.monotonic()
    clock.seconds += 60
    outage.silent(since)

    assert lines(caplog) == [f"Kafka at {SERVERS} has not answered since 2030-01-01 00:16:40Z: no answer in time"]
