"""What became of each record read from a real Kafka, over processes that come and go: nothing is skipped silently."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from service.messages.record_fate import Fate
from service.sandbox.kafka import Kafka
from tests.conftest import TopicNamer
from tests.support.kafka_harness import Service, Station, good, until


@pytest.fixture
async def station(kafka: Kafka, topic_name: TopicNamer) -> AsyncIterator[Station]:
    async with Station(kafka.bootstrap, topic_name("balance"), partitions=2) as station:
        yield station


def fates(*services: Service) -> Counter[str]:
    """What became of all offsets, over all services."""
    total = Counter({fate.value: 0 for fate in Fate})
    for service in services:
        total.update({fate.value: int(service.metric("records_total", fate=fate)) for fate in Fate})
    return total


def passed(*services: Service) -> int:
    """How many offsets were passed, by the fates."""
    counted = fates(*services)
    return counted.total() - counted["reread"]


async def test_the_fates_add_up_to_what_was_produced_whatever_is_opened_again_and_handed_over(
    station: Station, kafka: Kafka, topic_name: TopicNamer
) -> None:
    first = await station.service("A")
    await until(lambda: first.reading == {0, 1}, what="both partitions are read")
    upstream = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=topic_name("upstream"))
    await upstream.start()
    asked: list[str] = []
    end = [0, 0]

    async def some(name: str) -> None:
        for number in range(10):
            operation_id = f"{name}-{number}"
            place = number % 2
            await station.ask(operation_id, partition=place)
            asked.append(operation_id)
            end[place] = await station.send(value=b"nonsense", partition=place) + 1
        await station.ask(f"{name}-0", partition=0)  # a duplicate
        end[0] += 1

    await some("quiet")
    for number in (0, 1):
        first.partition(number).fail("opened again by the test")
        await some(f"reopened-{number}")
    await until(lambda: first.metric("partitions_reopened_total") == 2, what="both were opened again")
    second = await station.begin("B")
    await some("joining")
    await until(lambda: len(first.reading) == len(second.reading) == 1, what="each has one")
    await upstream.begin_transaction()
    await upstream.send_and_wait(station.topics.requests, **good("undone"), partition=1)
    await upstream.abort_transaction()
    await some("shared")
    await second.stop()
    await some("alone")
    await upstream.stop()

    await station.settled(*asked)
    await until(lambda: passed(first, second) == sum(end), what=lambda: f"{fates(first, second)} of {end}")
    counted = fates(first, second)
    rounds = len(asked) // 10
    assert (counted["admitted"], counted["dead_lettered"]) == (len(asked), len(asked))
    assert (counted["duplicate"], counted["no_record"], counted["lost"]) == (rounds, 2, 0)
    assert len(await station.dead_letters(len(asked))) == len(asked)
    assert [service.metric("records_unaccounted") for service in (first, second)] == [0, 0]


@pytest.fixture
def dropping(station: Station, monkeypatch: pytest.MonkeyPatch) -> Callable[[Service], Awaitable[list[int]]]:
    """Let a service lose the records that its consumer returns next; the list then says how many they were."""

    async def drop(service: Service) -> list[int]:
        getmany, asked, dropped = service.consumer.getmany, asyncio.Event(), list[int]()

        async def dropping(*places: Any, **options: Any) -> Any:
            asked.set()
            got = await getmany(*places, **options)
            if got and not dropped:
                dropped.append(sum(map(len, got.values())))
                return {}
            return got

        monkeypatch.setattr(service.consumer, "getmany", dropping)
        # A call that was already under way would return the next records as ever.
        await until(asked.is_set, what="the next call to the consumer")
        return dropped

    return drop


async def test_records_that_are_read_and_do_not_arrive_are_missed_by_the_next_and_read_again(
    station: Station, dropping: Callable[[Service], Awaitable[list[int]]], caplog: pytest.LogCaptureFixture
) -> None:
    service = await station.service()
    await until(lambda: service.reading == {0, 1}, what="both partitions are read")
    dropped = await dropping(service)
    await station.ask("op-1", partition=0)
    await until(lambda: dropped == [1], what="a record is lost")
    await until(lambda: service.metric("records_unaccounted") == 1, what="it is missed")
    await station.ask("op-2", partition=0)
    await station.settled("op-1", "op-2")

    assert "records 0 to 0 were fetched, but did not arrive at the partition" in caplog.text
    assert (service.metric("partitions_reopened_total"), service.metric("records_unaccounted")) == (1, 1)
    assert fates(service) == Counter(admitted=2, reread=1)


async def test_records_that_do_not_arrive_are_missed_and_read_again_though_nothing_follows_them(
    station: Station,
    dropping: Callable[[Service], Awaitable[list[int]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    station.set_timings(report=timedelta(seconds=0.2))
    service = await station.service()
    await until(lambda: service.reading == {0, 1}, what="both partitions are read")
    dropped = await dropping(service)
    await station.ask("op-1", partition=0)
    await until(lambda: dropped == [1], what="a record is lost")
    await station.settled("op-1")

    assert "records 0 to 0 were fetched, but did not arrive at the partition" in caplog.text
    assert fates(service) == Counter(admitted=1)
