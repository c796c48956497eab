"""What Kafka is asked when it is checked: it tells what is wanted, and it changes nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    BrokerResponseError,
    GroupAuthorizationFailedError,
    GroupLoadInProgressError,
    KafkaTimeoutError,
    NotCoordinatorForGroupError,
)
from aiokafka.protocol.commit import OffsetFetchResponse_v3
from aiokafka.protocol.coordination import FindCoordinatorRequest, FindCoordinatorResponse_v1

from service.checks import Status
from service.clock import Clock
from service.kafka import check, rights
from service.kafka.check import KafkaChecks
from service.kafka.connection import KafkaConnection
from service.kafka.journal import transactional_id
from service.kafka.topics import Refusal, TopicNames, ensure_topics
from service.sandbox.kafka import EmbeddedKafka, Kafka, KafkaError, free_ports
from service.settings import load_for_kafka
from tests.conftest import TopicNamer, missing, started
from tests.support.virtual_time import virtual

if TYPE_CHECKING:
    from service.checks import Result


def names(topic_name: TopicNamer) -> TopicNames:
    fields = ("requests", "completed", "failed", "dead_letter", "journal")
    return TopicNames(**{field: topic_name(field) for field in fields})


@asynccontextmanager
async def connected(kafka: Kafka) -> AsyncIterator[AIOKafkaClient]:
    client = AIOKafkaClient(bootstrap_servers=kafka.bootstrap)
    await client.bootstrap()
    try:
        yield client
    finally:
        await client.close()


async def results(
    kafka: Kafka, topics: TopicNames, *, step: timedelta = check.STEP, **settings: str
) -> dict[str, "Result"]:
    given = {"BOOTSTRAP_SERVERS": kafka.bootstrap, "PARTITIONS": "3", **settings}
    found = load_for_kafka({f"VM_SYNC_KAFKA__{name}": value for name, value in given.items()}).kafka
    connection = KafkaConnection(bootstrap_servers=tuple(found.servers))
    checks = KafkaChecks(connection, settings=found, names=topics, clock=Clock(), step=step)
    return {result.check: result async for result in checks.results()}


async def test_all_is_ok_but_for_the_single_broker_and_nothing_is_made(kafka: Kafka, topic_name: TopicNamer) -> None:
    topics = names(topic_name)
    made = KafkaConnection(bootstrap_servers=(kafka.bootstrap,))
    await ensure_topics(made, names=topics, partitions=3, create=True)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        found = await results(kafka, topics, GROUP_ID=topic_name("group"))
        groups = [name for name, *_ in await admin.list_consumer_groups()]
    finally:
        await admin.close()

    statuses = {name: result.status for name, result in found.items()}
    assert {name for name, status in statuses.items() if status is not Status.OK} == {"topics"}
    assert found["topics"].status is Status.WARNING  # fewer than three replicas
    assert found["transactions"].text.startswith(
        f"Write is granted on the transactional ids {topics.journal}-0 to {topics.journal}-2,"
    )
    assert topic_name("group") not in groups


async def test_bootstrap_servers_of_two_kafka_clusters_are_told_apart_and_one_that_is_away_is_not(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    """As where servers of a test and of a production Kafka are listed together."""
    topics, (nothing,) = names(topic_name), free_ports(1)
    gone = f"{kafka.bootstrap},127.0.0.1:{nothing}"
    one = (await results(kafka, topics, BOOTSTRAP_SERVERS=gone))["cluster"]

    with started(EmbeddedKafka(cluster_id="another")) as another:
        mixed = f"{gone},{another.bootstrap}"
        two = await results(kafka, topics, BOOTSTRAP_SERVERS=mixed)
        connection = KafkaConnection(bootstrap_servers=tuple(mixed.split(",")))
        findings = await ensure_topics(connection, names=topics, partitions=3, create=True)

    assert (one.status, one.text) == (Status.OK, "The bootstrap servers that answer belong to one Kafka cluster.")
    told = two["cluster"]
    assert (told.status, told.settings) == (Status.FAILURE, ("VM_SYNC_KAFKA__BOOTSTRAP_SERVERS",))
    assert f"{another.bootstrap} to another" in told.text
    assert [finding.text for finding in findings] == [told.text]
    assert two["brokers"].status is Status.SKIPPED
    here = KafkaConnection(bootstrap_servers=(kafka.bootstrap,))
    made = await ensure_topics(here, names=topics, partitions=3, create=False)
    assert len([finding for finding in made if isinstance(finding, Refusal)]) == len(topics.all()), "no topic was made"


async def test_members_of_the_group_that_are_not_the_services_are_named(kafka: Kafka, topic_name: TopicNamer) -> None:
    """As an operator's console consumer, or a second application with the same group id: each takes partitions away."""
    topics, group = names(topic_name), topic_name("group")
    made = KafkaConnection(bootstrap_servers=(kafka.bootstrap,))
    await ensure_topics(made, names=topics, partitions=3, create=True)

    async def member(client_id: str, stack: AsyncExitStack) -> None:
        consumer = AIOKafkaConsumer(
            topics.requests, bootstrap_servers=kafka.bootstrap, group_id=group, client_id=client_id
        )
        await consumer.start()
        stack.push_async_callback(consumer.stop)

    async with AsyncExitStack() as stack:
        await member("vm-sync-ops-8080", stack)
        assert (await results(kafka, topics, GROUP_ID=group))["consumer group"].status is Status.OK
        await member("kcat", stack)
        found = (await results(kafka, topics, GROUP_ID=group))["consumer group"]

    assert found.status is Status.WARNING
    assert "(VM_SYNC_KAFKA__GROUP_ID) has members that are not the service's: kcat at /127.0.0.1. " in found.text


async def test_missing_topics_that_would_be_created_are_ok_and_stay_missing(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    topics = names(topic_name)
    found = await results(kafka, topics)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        there = await admin.list_topics()
    finally:
        await admin.close()

    assert found["topics"].status is Status.OK
    assert topics.journal in found["topics"].text
    assert not [name for name in topics.all() if name in there]


class Coordinator:
    """Answers what a broker does that coordinates a group, once it has said these errors."""

    def __init__(self, *errors: type[BrokerResponseError]) -> None:
        self._errors = list(errors)

    def get_random_node(self) -> int:
        return 1

    async def send(self, _: int, request: object) -> object:
        if isinstance(request, FindCoordinatorRequest):
            return FindCoordinatorResponse_v1(0, 0, None, 1, "127.0.0.1", 9092)
        if self._errors:
            return OffsetFetchResponse_v3(0, [], self._errors.pop(0).errno)
        return OffsetFetchResponse_v3(0, [("requests", [(0, 5, "a note", 0)])], 0)


@virtual
async def test_what_a_group_has_committed_is_asked_again_while_its_coordinator_moves_but_not_for_ever() -> None:
    place, moves = TopicPartition("requests", 0), [NotCoordinatorForGroupError, GroupLoadInProgressError]

    async def found(coordinator: Coordinator) -> tuple[int, str] | None:
        return await rights.committed_with_note(cast("AIOKafkaClient", coordinator), "g", place)

    assert await found(Coordinator(*moves)) == (5, "a note")
    with pytest.raises(KafkaTimeoutError, match="the consumer group g does not answer"):
        await found(Coordinator(*moves * 1000))
    with pytest.raises(GroupAuthorizationFailedError):
        await found(Coordinator(GroupAuthorizationFailedError))


async def test_asking_for_a_transactional_id_leaves_its_producers_transaction_alone(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    topic = topic_name("journal")
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    name = transactional_id(topic, 0)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=name)
    await producer.start()
    async with connected(kafka) as client:
        assert await rights.may_transact(client, name)
        async with producer.transaction():
            await producer.send_and_wait(topic, b"first")
            assert await rights.may_transact(client, name)
            await producer.send_and_wait(topic, b"second")
        assert await rights.may_transact(client, name)
        async with producer.transaction():
            await producer.send_and_wait(topic, b"third")
    await producer.stop()

    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    async with asyncio.timeout(60):
        read = [(await consumer.getone()).value for _ in range(3)]
    await consumer.stop()
    assert read == [b"first", b"second", b"third"]


async def test_kafkas_clock_is_its_controllers(kafka: Kafka) -> None:
    async with connected(kafka) as client:
        before = datetime.now(UTC)
        there = await rights.controller_time(client)
        after = datetime.now(UTC)

    assert there is not None
    assert before - timedelta(seconds=1) <= there <= after + timedelta(seconds=1)


@pytest.mark.kafka
async def test_a_cluster_that_cannot_coordinate_transactions_is_told_by_the_brokers_setting(
    topic_name: TopicNamer,
) -> None:
    lacking = EmbeddedKafka(properties={"transaction.state.log.replication.factor": "3"})
    try:
        await asyncio.to_thread(lacking.start)
        found = await results(lacking, names(topic_name), step=timedelta(seconds=3))
    except KafkaError as error:
        missing(str(error))
    finally:
        await asyncio.to_thread(lacking.close)

    assert found["transactions"].status is Status.FAILURE
    assert "transaction.state.log.replication.factor" in found["transactions"].text
    assert found["consumer group"].status is Status.OK


@pytest.mark.parametrize(
    ("count", "some"),
    [(1, {0}), (2, {0, 1}), (100, set(range(100))), (10_000, {0, 101, 9_999})],
)
def test_of_many_partitions_the_ids_of_the_first_the_last_and_some_between_are_asked_for(
    count: int, some: set[int]
) -> None:
    numbers = check.numbers_to_ask(count)

    assert some <= set(numbers)
    assert len(numbers) == len(set(numbers)) == min(count, check.MOST_IDS)
    assert max(numbers) == count - 1


@pytest.mark.parametrize(
    ("versions", "release", "enough"),
    [
        ({1: (4, 18), 60: (0, 2), 65: (0, 0)}, "4.0 or later", True),
        ({1: (0, 16), 60: (0, 1), 65: (0, 0)}, "3.x", True),
        ({1: (0, 12), 60: (0, 0)}, "2.8", True),
        ({1: (0, 11)}, "earlier than 2.8", False),
    ],
)
def test_a_release_is_known_by_what_it_speaks(versions: dict[int, tuple[int, int]], release: str, enough: bool) -> None:
    assert check.release(versions) == (release, enough)
