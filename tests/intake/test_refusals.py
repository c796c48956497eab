"""Rights that are missing for a while: what was refused goes on by itself soon after it is allowed again."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError

from service.clock import Clock
from service.kafka.consumer import SteadyConsumer
from service.kafka.denials import LASTS_AT_JOURNALS
from service.kafka.journal_api import Batch, JournalLost
from service.kafka.journal_codec import Cursor
from service.messages.kafka_record import Event
from service.sandbox.kafka import EmbeddedKafka
from tests.conftest import TopicNamer, started
from tests.support.brokers import LOGIN, Operation, Resource, Rights, guarded
from tests.support.kafka_harness import Station, good, until

pytestmark = pytest.mark.kafka

MISSING_FOR = 3.0
"""Seconds: several heartbeats, and several attempts to fetch."""

BACK_WITHIN = 15.0
"""Seconds from the return of a right to the outcome of a request that has waited for it."""


@pytest.fixture(scope="module")
def guarded_kafka() -> Iterator[EmbeddedKafka]:
    with started(guarded()) as embedded:
        yield embedded


@pytest.fixture
async def rights(guarded_kafka: EmbeddedKafka) -> AsyncIterator[Rights]:
    async with Rights(guarded_kafka.bootstrap) as rights:
        yield rights


def at(kafka: EmbeddedKafka, prefix: str, *, partitions: int = 1) -> Station:
    """A station whose services log in."""
    station = Station(kafka.bootstrap, prefix, partitions=partitions)
    station.connection |= {**LOGIN, "bootstrap_servers": [kafka.address("LOGIN")]}
    return station


@pytest.mark.parametrize(
    ("resource", "name", "operation"),
    [
        (Resource.GROUP, "", Operation.READ),
        (Resource.TOPIC, ".requests", Operation.READ),
        (Resource.TOPIC, ".requests", Operation.DESCRIBE),
        (Resource.TOPIC, ".journal", Operation.WRITE),
        (Resource.TOPIC, ".completed", Operation.WRITE),
        (Resource.TRANSACTIONAL_ID, ".journal-0", Operation.WRITE),
    ],
)
async def test_work_goes_on_soon_after_a_right_that_was_missing_is_back(
    resource: Resource,
    name: str,
    operation: Operation,
    guarded_kafka: EmbeddedKafka,
    rights: Rights,
    topic_name: TopicNamer,
) -> None:
    async with at(guarded_kafka, topic_name("refused"), partitions=12) as station:
        service = await station.service()
        await until(lambda: len(service.reading) == 12, what="all partitions are open")
        await station.ask("before")
        await station.settled("before")
        name = station.prefix + name

        await rights.deny(resource, name, operation)
        await station.ask("during", partition=0)
        await asyncio.sleep(MISSING_FOR)
        await rights.give_back(resource, name, operation)
        back = time.monotonic()
        await station.ask(*(f"after-{number}" for number in range(20)))

        await station.settled("before", "during", *(f"after-{number}" for number in range(20)), within=BACK_WITHIN)
        took = time.monotonic() - back
        print(f"{resource.name} {operation.name}: {took:.1f} s")  # noqa: T201 - for whoever measures
        # The group still has this member, or has it again.
        limit = LASTS_AT_JOURNALS.total_seconds() + BACK_WITHIN  # a topic that was hidden counts as denied so long
        await until(lambda: not service.intake.refused(), within=limit, what="nothing is refused any more")
        assert not service.intake.died.is_set()


async def test_a_commit_names_the_right_that_kafka_denies_for_the_topic_of_an_event(
    guarded_kafka: EmbeddedKafka, rights: Rights, topic_name: TopicNamer
) -> None:
    async with at(guarded_kafka, topic_name("refused")) as station:
        opened = await station.open_journal()
        dead_letters = station.topics.dead_letter
        await rights.deny(Resource.TOPIC, dead_letters, Operation.WRITE)
        event = Event(topic=dead_letters, key=b"C4-1", value=b"?")

        with pytest.raises(JournalLost, match=rf"Kafka denies Write on topic {dead_letters}$"):
            await opened.journal.commit(Batch(events=[event], cursor=Cursor("requests", 1)))

        await rights.give_back(Resource.TOPIC, dead_letters, Operation.WRITE)
        await opened.journal.close()


async def test_reading_that_is_denied_is_a_standstill_for_prometheus_until_it_is_allowed(
    guarded_kafka: EmbeddedKafka, rights: Rights, topic_name: TopicNamer
) -> None:
    async with at(guarded_kafka, topic_name("refused"), partitions=1) as station:
        station.set_timings(report=timedelta(seconds=0.5))
        service = await station.service()
        await until(lambda: service.reading == {0}, what="the partition is read")
        name = station.prefix + ".requests"

        await rights.deny(Resource.TOPIC, name, Operation.READ)
        await until(lambda: service.metric("reading_stalled_seconds") > 1, what="it is counted")
        await rights.give_back(Resource.TOPIC, name, Operation.READ)
        await until(lambda: service.metric("reading_stalled_seconds") == 0, what="it is over")


async def test_a_member_that_is_refused_while_the_group_rebalances_joins_soon_after_the_right_is_back(
    guarded_kafka: EmbeddedKafka, rights: Rights, topic_name: TopicNamer
) -> None:
    async with at(guarded_kafka, topic_name("refused"), partitions=4) as station:
        service = await station.service()
        await rights.deny(Resource.GROUP, station.prefix)
        service.consumer._coordinator.request_rejoin()
        await station.ask("during")
        group = "the right Read on group"
        await until(lambda: any(group in reason for reason in service.intake.refused()), what="it is refused")
        await asyncio.sleep(MISSING_FOR)
        await rights.give_back(Resource.GROUP, station.prefix)

        await station.settled("during", within=BACK_WITHIN)


async def test_records_beside_a_refused_partition_are_all_read(
    guarded_kafka: EmbeddedKafka, rights: Rights, topic_name: TopicNamer
) -> None:
    """More of them than one read returns, so that some wait in the client when the refusal arrives."""
    async with at(guarded_kafka, topic_name("beside"), partitions=2) as station:
        await station.send_together([good(f"op-{number}") for number in range(1300)])
        places = [TopicPartition(station.topics.requests, number) for number in (0, 1)]
        refused: list[tuple[TopicPartition | None, Exception]] = []
        consumer = SteadyConsumer(
            **station.connection,
            clock=Clock(),
            refused=lambda *about: refused.append(about),
            enable_auto_commit=False,
            auto_offset_reset="none",
        )
        await consumer.start()
        try:
            consumer.assign(places)
            for place in places:
                consumer.seek(place, 0)
            await until(lambda: list(consumer._fetcher._records) == places[:1], what="one has records")
            await rights.deny(Resource.TOPIC, station.topics.requests)
            await until(lambda: list(consumer._fetcher._records) == places, what="the other one is refused")
            read = []
            for _ in range(3):
                read += [record.offset for record in (await consumer.getmany(max_records=500))[places[0]]]
            await rights.give_back(Resource.TOPIC, station.topics.requests)

            assert read == list(range(1300))
            assert [(place, type(error)) for place, error in refused] == [(places[1], TopicAuthorizationFailedError)]
            sent = await station.send(partition=1, **good("last"))
            async with asyncio.timeout(60):
                while not (got := await consumer.getmany(timeout_ms=100)):
                    pass
            assert [record.offset for record in got[places[1]]] == [sent]
        finally:
            await consumer.stop()
