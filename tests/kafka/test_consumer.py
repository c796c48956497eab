"""Records that Kafka's client can't hand over, and what else lies between requests: nothing behind them waits."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import aiokafka.codec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import ConsumerStoppedError, LeaderNotAvailableError

from service.clock import Clock
from service.kafka import salvage
from service.kafka.consumer import LOOK_WAIT_MS, SteadyConsumer, probe_consumer, timestamp_of
from service.sandbox.kafka import Kafka
from tests.conftest import TopicNamer
from tests.support.kafka_harness import Station, fetch_waits, good, word


@pytest.fixture
async def station(kafka: Kafka, topic_name: TopicNamer) -> AsyncIterator[Station]:
    async with Station(kafka.bootstrap, topic_name("consumer")) as station:
        yield station


async def test_a_header_name_that_is_not_utf_8_costs_that_record_alone(station: Station) -> None:
    service = await station.service()
    bad = good("bad") | {"headers": [("NAME", b"value")]}
    await station.send_together([good("before"), bad, good("after")], instead={b"NAME": b"\xff\xfe\xfd\xfc"})
    await station.ask("behind")

    await station.settled("before", "after", "behind")
    [letter] = await station.dead_letters(1)
    assert (letter.key, letter.value) == (None, b"")
    assert (word(letter, "reason"), word(letter, "offset")) == ("unreadable", "1")
    assert word(letter, "detail") == "A header's name is not UTF-8."
    assert service.metric("requests_total", result="duplicate") == 0
    assert service.metric("partitions_reopened_total") == 0


async def test_bad_header_names_one_after_the_other_are_gone_past(station: Station) -> None:
    for number in range(3):
        bad = good(f"bad-{number}") | {"headers": [("NAME", b"value")]}
        await station.send_together([bad, bad], instead={b"NAME": b"\xff\xfe\xfd\xfc"})
        await station.ask(f"good-{number}")
    service = await station.service()

    await station.settled("good-0", "good-1", "good-2")
    letters = await station.dead_letters(6)
    assert [word(letter, "offset") for letter in letters] == ["0", "1", "3", "4", "6", "7"]
    assert service.metric("requests_total", result="dead_lettered") == 6


async def test_a_codec_that_this_client_lacks_costs_the_batch_that_is_written_with_it(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    await station.ask("before")
    await station.send_together([good("packed-1"), good("packed-2")], compression="lz4")
    await station.ask("after")
    monkeypatch.setattr(aiokafka.codec, "has_lz4", lambda: False)
    service = await station.service()

    await station.settled("before", "after")
    letters = await station.dead_letters(2)
    assert [(word(letter, "reason"), word(letter, "offset")) for letter in letters] == [
        ("unreadable", "1"),
        ("unreadable", "2"),
    ]
    assert word(letters[0], "detail") == "It is compressed with a codec that this client does not have."
    assert service.metric("requests_total", result="accepted") == 2


async def test_a_header_that_is_read_and_is_not_utf_8_goes_to_the_dead_letters_untouched(station: Station) -> None:
    await station.service()
    bad = good("bad") | {"headers": [("content-type", b"\xff\x00"), ("y", b"2")]}
    await station.send_together([good("before"), bad, good("after")])

    await station.settled("before", "after")
    [letter] = await station.dead_letters(1)
    assert (letter.key, letter.value) == (bad["key"], bad["value"])
    assert letter.headers[:2] == (("content-type", b"\xff\x00"), ("y", b"2"))
    assert word(letter, "reason") == "bad-header"


async def test_a_header_that_nobody_reads_may_hold_any_bytes(station: Station) -> None:
    await station.service()
    odd = good("odd") | {"headers": [("__value_schema_id", b"\xff\x00"), ("trace-bin", b"\xfe")]}
    await station.send_together([good("before"), odd, good("after")])

    await station.settled("before", "odd", "after")
    assert station.dead == []


async def test_an_aborted_transaction_of_an_upstream_asks_for_nothing(
    station: Station, kafka: Kafka, topic_name: TopicNamer
) -> None:
    service = await station.service()
    upstream = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=topic_name("upstream"))
    await upstream.start()
    try:
        await station.ask("before")
        for operation_id, stands in (("undone-1", False), ("done", True), ("undone-2", False)):
            await upstream.begin_transaction()
            await upstream.send_and_wait(station.topics.requests, **good(operation_id))
            await (upstream.commit_transaction() if stands else upstream.abort_transaction())
        await station.ask("after")
    finally:
        await upstream.stop()

    await station.settled("before", "done", "after")
    assert service.metric("requests_total", result="accepted") == 3
    assert station.dead == []


async def test_a_bad_record_right_after_an_aborted_one_is_the_only_one_gone_past(
    station: Station, kafka: Kafka, topic_name: TopicNamer
) -> None:
    upstream = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=topic_name("upstream"))
    await upstream.start()
    try:
        await upstream.begin_transaction()
        await upstream.send_and_wait(station.topics.requests, **good("undone"))
        await upstream.abort_transaction()
    finally:
        await upstream.stop()
    bad = good("bad") | {"headers": [("NAME", b"value")]}
    await station.send_together([bad, good("after")], instead={b"NAME": b"\xff\xfe\xfd\xfc"})
    await station.service()

    await station.settled("after")
    [letter] = await station.dead_letters(1)
    assert word(letter, "offset") == "2"  # behind the aborted record and its mark


async def test_a_single_record_tells_its_timestamp_where_there_is_one_that_can_be_read(station: Station) -> None:
    record = good("a") | {"timestamp": 1_772_402_400_123}
    bad = good("bad") | {"headers": [("NAME", b"value")]}
    await station.send_together([record, bad], instead={b"NAME": b"\xff\xfe\xfd\xfc"})
    place = TopicPartition(station.topics.requests, 0)

    async def stamp(offset: int) -> int | None:
        async with probe_consumer(connection=station.connection, clock=Clock()) as consumer:
            return await timestamp_of(place, offset, consumer=consumer)

    assert [await stamp(offset) for offset in (0, 1, 2, 99)] == [1_772_402_400_123, None, None, None]


async def test_a_look_at_a_topic_never_waits_long_behind_a_fetch_that_finds_no_records(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = TopicPartition(station.topics.requests, 0)
    waits = fetch_waits(monkeypatch)
    async with probe_consumer(connection=station.connection, clock=Clock()) as consumer:
        consumer.assign([place])
        consumer.seek(place, 0)
        assert await consumer.getmany(place, timeout_ms=100) == {}

    assert waits[place.topic] == {LOOK_WAIT_MS}
    assert LOOK_WAIT_MS <= 50  # the questions behind it are several


async def test_a_patient_read_waits_for_the_next_record_and_returns_it_as_soon_as_it_comes(
    station: Station, kafka: Kafka
) -> None:
    await station.ask("op-1", partition=0)
    place = TopicPartition(station.topics.requests, 0)
    consumer = SteadyConsumer(clock=Clock(), patience=timedelta(minutes=10), bootstrap_servers=kafka.bootstrap)
    consumer.assign([place])
    await consumer.start()
    try:
        consumer.seek(place, 1)
        reading = asyncio.create_task(consumer.getmany(timeout_ms=10))
        await asyncio.sleep(0.1)  # longer than it was asked to wait
        assert not reading.done()
        await station.ask("op-2", partition=0)
        async with asyncio.timeout(60):
            got = await reading
    finally:
        await consumer.stop()

    assert [record.offset for record in got[place]] == [1]


async def test_a_patient_read_ends_when_the_consumer_stops(station: Station, kafka: Kafka) -> None:
    await station.ask("op-1", partition=0)
    consumer = SteadyConsumer(clock=Clock(), patience=timedelta(minutes=10), bootstrap_servers=kafka.bootstrap)
    consumer.assign([TopicPartition(station.topics.requests, 0)])
    await consumer.start()
    consumer.seek(TopicPartition(station.topics.requests, 0), 1)
    reading = asyncio.create_task(consumer.getmany(timeout_ms=10))
    await asyncio.sleep(0.1)
    assert not reading.done()
    await consumer.stop()

    async with asyncio.timeout(60):
        with pytest.raises(ConsumerStoppedError):
            await reading


async def test_a_process_whose_fetching_has_ended_says_so_and_ends(station: Station) -> None:
    service = await station.service()
    service.intake._consumer._fetcher._fetch_task.cancel()

    async with asyncio.timeout(60):
        await service.intake.died.wait()


async def test_one_read_returns_so_many_records_of_all_partitions_which_take_turns(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    async with Station(kafka.bootstrap, topic_name("turns"), partitions=2) as station:
        places = [TopicPartition(station.topics.requests, number) for number in range(2)]
        for place in places:
            for number in range(30):
                await station.send(partition=place.partition, **good(f"op-{place.partition}-{number}"))
    async with probe_consumer(connection={"bootstrap_servers": kafka.bootstrap}, clock=Clock()) as consumer:
        consumer.assign(places)
        for place in places:
            consumer.seek(place, 0)
        async with asyncio.timeout(60):
            while len(consumer._fetcher._records) < len(places):
                await asyncio.sleep(0.01)
        reads = [await consumer.getmany(max_records=10) for _ in range(6)]

    assert [sum(map(len, got.values())) for got in reads] == [10] * 6
    first = [next(iter(got)) for got in reads]
    assert all(one != other for one, other in pairwise(first)), "they take turns"
    for place in places:
        assert [record.offset for got in reads for record in got.get(place, ())] == list(range(30))


async def test_a_position_that_is_out_of_range_is_noted_and_not_moved(station: Station, kafka: Kafka) -> None:
    await station.ask("op-1", partition=0)
    place = TopicPartition(station.topics.requests, 0)
    connection = {"bootstrap_servers": kafka.bootstrap, "auto_offset_reset": "earliest"}  # what FastStream would say
    async with probe_consumer(connection=connection, clock=Clock()) as consumer:
        consumer.assign([place])
        consumer.seek(place, 1_000)
        async with asyncio.timeout(60):
            while place not in consumer.out_of_range:
                assert await consumer.getmany(timeout_ms=100) == {}

        assert consumer.out_of_range == {place: 1_000}


@pytest.mark.parametrize("moved", [False, True])
async def test_a_batch_that_cannot_be_fetched_a_second_time_is_read_again_and_not_gone_past(
    moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`moved`: reading goes on elsewhere meanwhile, and must not be taken back."""
    place = TopicPartition("requests", 0)
    consumer = SteadyConsumer(bootstrap_servers="127.0.0.1:1", clock=Clock())
    consumer.assign([place])
    consumer._fetcher = SimpleNamespace(_records={})
    state: Any = consumer._state(place)
    monkeypatch.setattr(AIOKafkaConsumer, "seek", lambda _, __, offset: state.seek(offset))
    consumer.seek(place, 5)

    async def away(*_: object, **__: object) -> None:
        if moved:
            consumer.seek(place, 9)
        raise LeaderNotAvailableError

    monkeypatch.setattr(salvage, "batch_at", away)
    for _ in range(2):  # the first time, the records before the bad one are read again
        assert await consumer._pass_bad_record(place, 5, ValueError(), at_most=10) == []

    assert consumer.reached(place) == (9 if moved else 5)
    assert (place in consumer._bad) is not moved
    await consumer.stop()
