"""A partition whose records nobody reads is noticed, whatever the cause; one that has a reason to wait is not."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.offset import OffsetRequest

from service.kafka import leader_offsets
from service.sandbox.kafka import EmbeddedKafka, Kafka
from tests.conftest import TopicNamer
from tests.support.kafka_harness import Service, Station, good, request, until
from tests.support.relay import Relay

LIMIT = 1.0
"""Seconds; 90 in a process."""

REPORT = timedelta(seconds=0.6)
"""5 s in a process. Longer than a fetch that finds no records, 0.5 s, behind which each question to a broker waits."""

ASSIGNED_WITHIN = 5.0
"""Seconds, likewise: more than joining the group takes on a busy machine."""


@pytest.fixture
async def station(kafka: Kafka, topic_name: TopicNamer) -> AsyncIterator[Station]:
    async with Station(kafka.bootstrap, topic_name("reading")) as station:
        station.set_timings(
            report=REPORT,
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
    assert service.metric("reading_stalled_seconds") > LIMIT
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


async def test_tasks_that_never_end_do_not_keep_a_partition_full_so_that_a_release_is_read(station: Station) -> None:
    station.world.lasts = lambda _: 1e6
    service = await station.service(max_in_flight=1)
    await station.send(value=request("stuck", "C4-stuck", deadlineSeconds=1), key=b"C4-stuck")
    await until(lambda: bool(service.consumer.paused()), what="it has its share")
    await station.told_of("stuck")

    release = {"cancel": {"replicationId": "C4-stuck", "operationID": "stuck"}, "release": True}
    await station.send(value=json.dumps(release).encode(), key=b"C4-stuck")
    await until(lambda: len(service.partition()) == 0, what="the replication is free")


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
        assert service.metric("open_transaction_seconds") > LIMIT
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


# ---------------------------------------------------------------- leaders that don't answer


@asynccontextmanager
async def firewalled(prefix: str) -> AsyncIterator[tuple[Station, Callable[[int], None]]]:
    """Two brokers behind relays, and services that reach them there; and what keeps one of them from the services.

    It takes connections then, and answers nothing; with 0, both are reached again.
    """
    kafka = EmbeddedKafka(brokers=2, listeners={"RELAYED": "PLAINTEXT"})
    hidden = 0

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with AsyncExitStack() as stack:
        hole = await stack.enter_async_context(await asyncio.start_server(mute, "127.0.0.1", 0))

        def target(number: int) -> tuple[str, int]:
            if number == hidden:
                return "127.0.0.1", int(hole.sockets[0].getsockname()[1])
            host, _, port = kafka.brokers[number].address("RELAYED").partition(":")
            return host, int(port)

        relays = {number: Relay(partial(target, number)) for number in kafka.brokers}
        for number, relay in relays.items():
            await stack.enter_async_context(relay)
            kafka.brokers[number].advertise("RELAYED", relay.address)

        def hide(number: int) -> None:
            nonlocal hidden
            # The other broker's connections stay: a process that loses the group's coordinator, too, may be put out.
            changed, hidden = {hidden, number} & relays.keys(), number
            for one in changed:
                relays[one].drop()

        stack.push_async_callback(asyncio.to_thread, kafka.close)
        await asyncio.to_thread(kafka.start)
        station = await stack.enter_async_context(Station(kafka.bootstrap, prefix, partitions=4))
        station.connection["bootstrap_servers"] = [relay.address for relay in relays.values()]
        yield station, hide


@pytest.mark.kafka
async def test_a_broker_that_only_this_process_cannot_reach_is_named_and_hides_nothing_of_the_others(
    topic_name: TopicNamer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_offsets, "LEADER_LIMIT", timedelta(seconds=1))
    async with firewalled(topic_name("firewalled")) as (station, hide):
        station.set_timings(
            report=timedelta(seconds=4),
            kafka_request_timeout=timedelta(seconds=3),
            unread_limit=timedelta(seconds=LIMIT),
        )
        service = await station.service()
        await until(lambda: len(service.reading) == 4, what="all are read")
        places = [supervisor.place for supervisor in service.intake._supervisors.values()]
        leaders = {place.partition: service.consumer.client.cluster.leader_for_partition(place) for place in places}
        away = next(broker for broker in (1, 2) if broker != service.consumer._coordinator.coordinator_id)
        theirs = {number for number, leader in leaders.items() if leader == away}
        assert 0 < len(theirs) < 4

        hide(away)
        await until(lambda: len(service.intake.unreadable()) == len(theirs), what="they are named")
        assert {int(reason.split()[1]) for reason in service.intake.unreadable()} == theirs
        where = service.consumer.client.cluster.broker_metadata(away)
        for reason in service.intake.unreadable():
            assert reason.endswith(f" s: its leader, broker {away} ({where.host}:{where.port}), does not answer")
        assert service.metric("reading_stalled_seconds") > LIMIT
        assert service.intake.stalled() == [], "no restart would help"
        said = await service.consumer.end_of_committed(places)
        assert {place.partition for place in said.known} == set(leaders) - theirs
        seen_at = service.intake.kafka_seen_at
        await until(lambda: service.intake.kafka_seen_at > seen_at, within=9, what="Kafka as a whole is there")
        hide(0)
        await until(lambda: not service.intake.unreadable(), what="they are read again")


async def test_a_partition_that_no_broker_leads_is_named_and_is_read_when_one_does(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await station.service()
    with monkeypatch.context() as away:
        away.setattr(service.consumer.client.cluster, "leader_for_partition", lambda _: -1)
        await until(lambda: bool(service.intake.unreadable()), what="it is named")
        assert service.intake.unreadable()[0].endswith(" s: no broker leads it")
        await station.ask("op-1")

    await station.settled("op-1")
    await until(lambda: not service.intake.unreadable(), what="it is read")


async def test_a_refusal_of_one_partition_hides_no_other_and_is_named(
    kafka: Kafka, topic_name: TopicNamer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a broker answers whose disk has failed; aiokafka gives up all partitions for it."""
    async with Station(kafka.bootstrap, topic_name("refused"), partitions=2) as station:
        station.set_timings(report=REPORT, unread_limit=timedelta(seconds=LIMIT))
        service = await station.service()
        await until(lambda: len(service.reading) == 2, what="both are read")
        client = service.consumer.client
        send = client.send

        async def broken(node: int, request: Any, **options: Any) -> Any:
            answer = await send(node, request, **options)
            if isinstance(request, OffsetRequest):
                ((topic, offsets),) = answer.topics
                answer.topics = [(topic, [(n, 56 if n else code, *rest) for n, code, *rest in offsets])]
            return answer

        with monkeypatch.context() as disk:
            disk.setattr(client, "send", broken)
            await until(lambda: bool(service.intake.unreadable()), what="it is named")
            (reason,) = service.intake.unreadable()
            assert reason.startswith("partition 1 has not been readable for ")
            assert ", says KafkaStorageError: Disk error when trying to access log file on the disk" in reason
        await until(lambda: not service.intake.unreadable(), what="it is over")
