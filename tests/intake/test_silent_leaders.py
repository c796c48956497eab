"""A partition whose leader doesn't answer, or that has none, is measured, and reported once it lasts."""

import logging
from datetime import timedelta

import pytest
from aiokafka import TopicPartition

from service.intake.silent_leaders import SilentLeaders
from tests.support.virtual_time import HandClock

PLACE = TopicPartition("vm-sync.requests", 3)
OTHER = TopicPartition("vm-sync.requests", 10)
LIMIT = 90
SILENT = "its leader, broker 4 (kafka-4:9092), does not answer"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def leaders(clock: HandClock) -> SilentLeaders:
    return SilentLeaders(limit=timedelta(seconds=LIMIT), clock=clock)


def test_a_leader_that_stays_silent_is_reported_once_with_its_address_and_its_end_too(
    leaders: SilentLeaders, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.intake.silent_leaders")
    leaders.look(PLACE, SILENT)
    clock.seconds += LIMIT
    leaders.look(PLACE, SILENT)
    assert (leaders.longest(), leaders.reasons(), caplog.messages) == (90.0, [], [])

    clock.seconds += 1
    leaders.look(PLACE, SILENT)
    clock.seconds += 9
    leaders.look(PLACE, "no broker leads it")
    assert leaders.reasons() == ["partition 3 has not been readable for 100 s: no broker leads it"]
    assert caplog.messages == [f"Partition 3 of vm-sync.requests has not been readable for 91 s: {SILENT}"]

    leaders.look(PLACE, None)
    assert (leaders.longest(), leaders.reasons()) == (0, [])
    assert caplog.messages[1:] == ["Partition 3 of vm-sync.requests is no longer unreadable"]


def test_each_partition_is_measured_and_reported_on_its_own(leaders: SilentLeaders, clock: HandClock) -> None:
    leaders.look(OTHER, SILENT)
    clock.seconds += 5
    leaders.look(PLACE, SILENT)
    clock.seconds += LIMIT

    assert leaders.reasons() == [f"partition 10 has not been readable for 95 s: {SILENT}"]
    clock.seconds += 1
    assert [reason.split()[1] for reason in leaders.reasons()] == ["3", "10"]
    leaders.forget(OTHER)
    assert leaders.longest() == LIMIT + 1


def test_a_leader_that_is_elected_soon_is_not_worth_a_word(
    leaders: SilentLeaders, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.intake.silent_leaders")
    leaders.look(PLACE, "no broker leads it")
    clock.seconds += 15
    leaders.look(PLACE, None)
    leaders.look(PLACE, "no broker leads it")
    clock.seconds += LIMIT
    leaders.look(PLACE, None)

    assert caplog.messages == []
