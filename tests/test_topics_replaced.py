"""Topics that are deleted, created again, cut or outrun under a running service: nothing is skipped silently."""

import logging
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from service import intake
from service.journal import StopReason
from service.sandbox.kafka import Kafka
from tests.conftest import TopicNamer
from tests.station import Station, until


@pytest.fixture
async def station(kafka: Kafka, topic_name: TopicNamer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Station]:
    monkeypatch.setattr(intake, "LEADER_SETTLES", timedelta(seconds=0.2))
    async with Station(kafka.bootstrap, topic_name("replaced")) as station:
        yield station


# ---------------------------------------------------------------- the requests topic


async def test_a_requests_topic_that_is_recreated_under_a_running_service_skips_nothing_silently(
    station: Station,
) -> None:
    service = await station.service()
    await station.ask(*(f"op-{n}" for n in range(4)))
    await station.settled(*(f"op-{n}" for n in range(4)))

    await station.recreate(station.topics.requests)
    await station.ask("new-1", "new-2", "new-3")

    await until(lambda: bool(service.intake.unfit()), what="it refuses")
    assert service.metric("partitions_stopped", reason=StopReason.CURSOR_BEYOND_END) == 1
    assert "has read up to offset 4, but" in service.intake.unfit()[0]
    await station.settled(*(f"op-{n}" for n in range(4)))


async def test_a_record_below_the_cursor_is_never_dropped_silently(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    service = await station.service()
    await station.ask("op-1", "op-2")
    await station.settled("op-1", "op-2")

    with caplog.at_level(logging.WARNING):
        service.consumer._subscription.seek(service.intake._keepers[0].place, 0)  # behind our back
        await until(lambda: service.metric("partitions_reopened_total") == 1, what="it is opened again")
    assert "Kafka returned record 0 below the cursor 2" in caplog.text
    await station.ask("op-3")
    await station.settled("op-1", "op-2", "op-3")


async def test_a_requests_topic_that_is_gone_is_said_and_found_again_within_seconds(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SHOW_PROGRESS", timedelta(seconds=0.3))
    service = await station.service()
    await station.drop(station.topics.requests)
    await until(lambda: service.intake.missing() is not None, what="it is missed")
    await until(lambda: not service.owned, what="nothing is assigned any more")

    await station.make(station.topics.requests)
    await until(lambda: service.reading == {0}, what="it is read")
    await until(lambda: service.intake.missing() is None, what="it is no longer missed")
    await station.ask("op-1")
    await station.settled("op-1")
