"""A partition whose records nobody reads is noticed, whatever the cause; one that has a reason to wait is not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaConnectionError

from service.sandbox.kafka import Kafka
from tests.conftest import TopicNamer
from tests.support.kafka_harness import Service, Station, good, until

LIMIT = 1.0
"""Seconds; 90 in a process."""

ASSIGNED_WITHIN = 5.0
"""Seconds, likewise: more than joining the group takes on a busy machine."""


@pytest.fixture
async def station(kafka: Kafka, topic_name: TopicNamer) -> AsyncIterator[Station]:
    async with Station(kafka.bootstrap, topic_name("reading")) as station:
        station.set_timings(
            report=timedelta(seconds=0.2),
            unread_limit=timedelta(seconds=LIMIT),
            assignment_limit=timedelta(seconds=ASSIGNED_WITHIN),
            open_transaction_limit=timedelta(seconds=LIMIT),
        )
        yield station


async def test_records_that_are_not_read_are_a_reason_to_restart(station: Station) -> None:
    service = await station.service()

    async def stuck(*_: object) -> bool:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return False

    service.consumer._fetcher._proc_fetch_request = stuck
    await asyncio.sleep(1.0)  # the last one that isn't stuck comes back
    assert service.intake.stalled() == []
    await station.ask("op-1")

    await until(lambda: bool(service.intake.stalled()), what="it is noticed")
    assert service.intake.stalled()[0].startswith("partition 0 has unread records, and none was read for ")
    await until(lambda: service.metric("reading_stalled_seconds") > LIMIT / 2, what="it is measured, at the next look")
    service.intake._refused(None, PermissionError())
    assert service.intake.stalled() == []  # a restart would not give the right back
    await until(lambda: not service.intake.refused(), what="it is over")
    assert service.intake.stalled() != []

    async def away(topic: str) -> set[int]:
        raise KafkaConnectionError

    service.consumer.partitions_of = away  # type: ignore[method-assign]
    await until(lambda: not service.intake.stalled(), what="Kafka is away")
    assert service.metric("reading_stalled_seconds") == 0


async def test_a_group_that_assigns_nothing_though_kafka_is_there_is_a_reason_to_restart(station: Station) -> None:
    service = await station.service()
    service.deafen()
    service.consumer._subscription.begin_reassignment()

    await until(lambda: bool(service.intake.stalled()), what="it is noticed")
    assert service.intake.stalled()[0].startswith("the consumer group has assigned no partition for ")


async def never_stalled(service: Service) -> None:
    for _ in range(20):
        await asyncio.sleep(2 * LIMIT / 20)
        assert service.intake.stalled() == []
    assert service.metric("reading_stalled_seconds") == 0


async def test_a_partition_that_has_its_share_in_flight_is_not_missed(station: Station) -> None:
    station.world.lasts = lambda _: 1e6
    service = await station.service(max_in_flight=1)
    await station.ask("op-1")
    await until(lambda: bool(service.consumer.paused()), what="it has its share")
    await station.ask("op-2")

    await never_stalled(service)


async def test_an_upstream_that_leaves_its_transaction_open_is_reported_and_is_not_our_standstill(
    station: Station, kafka: Kafka, topic_name: TopicNamer
) -> None:
    station.set_timings(report=timedelta(seconds=1))  # also how long the question may take where the partitions end
    service = await station.service()
    upstream = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap, transactional_id=topic_name("upstream"), transaction_timeout_ms=600_000
    )
    await upstream.start()
    try:
        await upstream.begin_transaction()
        await upstream.send_and_wait(station.topics.requests, **good("op-1"))
        await station.ask("behind")

        await never_stalled(service)
        await until(lambda: bool(service.intake.held_back()), what="it is reported")
        assert service.intake.held_back()[0].startswith(
            "partition 0: an open transaction of a sender has held back all requests from offset 0 on for "
        )
        await until(lambda: service.metric("open_transaction_seconds") > LIMIT, what="it is measured, at the next look")
        await upstream.commit_transaction()
        await until(lambda: service.metric("open_transaction_seconds") == 0, what="it is over")
        assert service.intake.held_back() == []
    finally:
        await upstream.stop()
    await station.settled("op-1", "behind")


async def test_the_marker_at_the_end_of_a_transaction_holds_nothing_back(
    station: Station, kafka: Kafka, topic_name: TopicNamer
) -> None:
    service = await station.service()
    upstream = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=topic_name("upstream"))
    await upstream.start()
    try:
        async with upstream.transaction():
            await upstream.send_and_wait(station.topics.requests, **good("op-1"))
        await upstream.begin_transaction()
        await upstream.send_and_wait(station.topics.requests, **good("op-2"))
        await upstream.abort_transaction()
    finally:
        await upstream.stop()
    await station.settled("op-1")
    place = TopicPartition(station.topics.requests, 0)  # two records and two markers
    await until(lambda: service.consumer.high_watermark(place) == 4, what="the markers are fetched")

    for _ in range(10):
        await asyncio.sleep(2 * LIMIT / 10)
        assert service.intake.held_back() == []
    assert service.metric("open_transaction_seconds") == 0
