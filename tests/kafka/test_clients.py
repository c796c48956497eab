"""Connections that break without a word, a Kafka that moves, clients that won't stop: each has a bound."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Final

import aiokafka.conn
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaConnectionError,
    NodeNotReadyError,
    ProducerFenced,
    RequestTimedOutError,
)
from aiokafka.producer.message_accumulator import BatchBuilder, MessageBatch
from aiokafka.producer.sender import AddPartitionsToTxnHandler, EndTxnHandler, InitPIDHandler
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import BrokerMetadata

from service import event_loop
from service.clock import Clock
from service.intake.timings import DEFAULT_TIMINGS
from service.kafka import clients
from service.kafka.clients import Client, end, rebootstrap
from service.kafka.connection import KafkaConnection
from service.kafka.consumer import SteadyConsumer
from service.sandbox.kafka import EmbeddedKafka, Kafka
from tests.conftest import TopicNamer, started
from tests.support.kafka_harness import Service, Station, until
from tests.support.relay import Relay

SHORTEST_FIREWALL = timedelta(minutes=4)
"""Azure's load balancers forget a connection that was idle for so long; others take longer."""


@pytest.fixture(scope="module")
def relayed_kafka() -> Iterator[EmbeddedKafka]:
    """One with a second listener, RELAYED; where clients find it, each test says."""
    with started(EmbeddedKafka(listeners={"RELAYED": "PLAINTEXT"})) as embedded:
        yield embedded


async def restart(kafka: EmbeddedKafka, *, advertised: str) -> None:
    """Each test has to: Kafka ends with the thread that started it, and that one with the test's loop."""
    await asyncio.to_thread(kafka.stop)
    kafka.advertise("RELAYED", advertised)
    await asyncio.to_thread(kafka.start)


def relay_to(kafka: EmbeddedKafka) -> Relay:
    """A relay that leads to the listener RELAYED."""
    host, _, port = kafka.address("RELAYED").partition(":")
    return Relay(lambda: (host, int(port)))


@asynccontextmanager
async def behind(relay: Relay, kafka: EmbeddedKafka, prefix: str, *, partitions: int = 1) -> AsyncIterator[Station]:
    """A station whose services reach Kafka through a relay; itself it doesn't."""
    async with Station(kafka.bootstrap, prefix, partitions=partitions) as station:
        station.connection["bootstrap_servers"] = [relay.address]
        yield station


async def post_takes(service: Service, station: Station, operation_id: str, *, partition: int = 0) -> float:
    """Ask for one sync, and return the seconds from the request to its POST."""
    asked = time.monotonic()
    await station.ask(operation_id, partition=partition)
    await until(lambda: bool(service.vcda.posts[operation_id]), within=60, what="the POST")
    return time.monotonic() - asked


# ---------------------------------------------------------------- idle connections


def test_idle_connections_are_closed_before_any_usual_firewall_forgets_them() -> None:
    arguments = KafkaConnection(bootstrap_servers=("kafka:9092",)).arguments()

    assert timedelta(milliseconds=arguments["connections_max_idle_ms"]) <= SHORTEST_FIREWALL / 2


@pytest.mark.kafka
async def test_a_request_after_an_idle_time_is_posted_at_once_behind_a_firewall_that_forgets_idle_connections(
    relayed_kafka: EmbeddedKafka, topic_name: TopicNamer
) -> None:
    async with relay_to(relayed_kafka) as relay:
        await restart(relayed_kafka, advertised=relay.address)
        async with behind(relay, relayed_kafka, topic_name("idle"), partitions=2) as station:
            station.connection["connections_max_idle_ms"] = 2_000
            service = await station.service()
            await until(lambda: len(service.reading) == 2, what="both partitions are open")
            await asyncio.sleep(6.0)
            dropped = relay.drop(idle_for=4.0)

            took = [await post_takes(service, station, f"op-{number}", partition=number) for number in (0, 1)]

            print(f"from request to POST: {took}")  # noqa: T201 - for whoever measures
            assert max(took) < DEFAULT_TIMINGS.kafka_request_timeout.total_seconds()  # what a forgotten one costs
            assert dropped == 0
            await station.settled("op-0", "op-1")


@pytest.mark.kafka
async def test_a_producer_whose_connection_was_forgotten_costs_one_time_out_and_no_polite_stop(
    relayed_kafka: EmbeddedKafka, topic_name: TopicNamer
) -> None:
    """A firewall that is less patient than we are."""
    async with relay_to(relayed_kafka) as relay:
        await restart(relayed_kafka, advertised=relay.address)
        async with behind(relay, relayed_kafka, topic_name("idle")) as station:
            service = await station.service()
            await asyncio.sleep(5.0)
            dropped = relay.drop(idle_for=3.0)

            took = await post_takes(service, station, "op-1")

            print(f"from request to POST: {took}")  # noqa: T201
            assert dropped > 0
            assert took < (DEFAULT_TIMINGS.kafka_request_timeout + clients.STOP_LIMIT).total_seconds()
            await station.settled("op-1")


# ---------------------------------------------------------------- a Kafka that moves


@pytest.mark.kafka
async def test_a_kafka_that_comes_back_at_another_address_is_found_through_the_bootstrap_servers(
    relayed_kafka: EmbeddedKafka, topic_name: TopicNamer
) -> None:
    async with (
        relay_to(relayed_kafka) as bootstrap,
        relay_to(relayed_kafka) as before,
        relay_to(relayed_kafka) as after,
    ):
        await restart(relayed_kafka, advertised=before.address)
        async with behind(bootstrap, relayed_kafka, topic_name("moved"), partitions=3) as station:
            station.set_timings(ask_bootstrap=timedelta(seconds=3))
            service = await station.service()
            await until(lambda: len(service.reading) == 3, what="all partitions are open")
            await station.ask("op-1")
            await station.settled("op-1")

            before.close()
            await restart(relayed_kafka, advertised=after.address)
            moved = time.monotonic()
            await station.ask("op-2", "op-3", "op-4", "op-5")

            await station.settled("op-1", "op-2", "op-3", "op-4", "op-5", within=60)
            print(f"found after {time.monotonic() - moved:.1f} s")  # noqa: T201
            await until(lambda: service.metric("kafka_connected") == 1, what="it says so")
            assert len(service.reading) == 3
            assert not service.intake.died.is_set()


class HoldsUp(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka is untyped
    """A member's listener that lets no rebalance go on."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def on_partitions_revoked(self, revoked: object) -> None:
        del revoked
        if self.asked.is_set():
            await asyncio.get_running_loop().create_future()

    async def on_partitions_assigned(self, assigned: object) -> None:
        del assigned
        self.asked.set()


@pytest.mark.kafka
async def test_a_kafka_that_moves_while_a_process_joins_is_found_through_the_bootstrap_servers(
    relayed_kafka: EmbeddedKafka, topic_name: TopicNamer
) -> None:
    async with (
        relay_to(relayed_kafka) as bootstrap,
        relay_to(relayed_kafka) as before,
        relay_to(relayed_kafka) as after,
    ):
        await restart(relayed_kafka, advertised=before.address)
        async with behind(bootstrap, relayed_kafka, topic_name("joining"), partitions=3) as station:
            station.set_timings(ask_bootstrap=timedelta(seconds=1))
            held_up = HoldsUp()
            holder = AIOKafkaConsumer(
                bootstrap_servers=bootstrap.address,
                group_id=station.prefix,
                session_timeout_ms=6000,
                partition_assignment_strategy=[RoundRobinPartitionAssignor],
            )
            holder.subscribe([station.topics.requests], listener=held_up)
            await holder.start()
            await held_up.asked.wait()
            joining = asyncio.create_task(station.begin())
            await until(lambda: any(waits_for_the_group(one) for one in station.services), what="it joins", within=60)

            before.close()
            await end(holder, within=timedelta())
            await restart(relayed_kafka, advertised=after.address)

            service = await asyncio.wait_for(joining, 60)
            await until(lambda: len(service.reading) == 3, what="all partitions are open", within=60)


def waits_for_the_group(service: Service) -> bool:
    subscriber = service.intake._subscriber
    return subscriber.started and getattr(subscriber.consumer._coordinator, "coordinator_id", None) is not None


@pytest.mark.kafka
async def test_a_process_that_kafka_does_not_answer_although_it_answers_others_ends(
    relayed_kafka: EmbeddedKafka, topic_name: TopicNamer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await restart(relayed_kafka, advertised=relayed_kafka.address("RELAYED"))
    async with Station(relayed_kafka.bootstrap, topic_name("deaf")) as station:
        often = timedelta(seconds=0.5)
        station.set_timings(ask_bootstrap=often, report=often, give_up=timedelta(seconds=1))
        service = await station.service()

        async def unanswered() -> None:
            raise KafkaConnectionError

        monkeypatch.setattr(service.consumer, "topics", unanswered)
        async with asyncio.timeout(30):
            await service.intake.died.wait()


# ---------------------------------------------------------------- what clients raise

NODE: Final = 1

KINDS: Final = [
    pytest.param(partial(SteadyConsumer, clock=Clock()), id="the consumer"),
    pytest.param(AIOKafkaConsumer, id="a journal's consumer"),
    pytest.param(AIOKafkaProducer, id="a producer"),
    pytest.param(AIOKafkaAdminClient, id="an admin client"),
]


async def connect(port: int, *, request_timeout_ms: int) -> AIOKafkaConnection:
    """Connect as `aiokafka.conn.create_conn` does, without asking the broker for its versions."""
    connection = aiokafka.conn.AIOKafkaConnection("127.0.0.1", port, request_timeout_ms=request_timeout_ms)
    connection._reader, connection._writer = await asyncio.open_connection("127.0.0.1", port)
    connection._read_task = connection._create_reader_task()
    connection._versions = {MetadataRequest.API_KEY: (0, 5)}
    connection._closed_fut = asyncio.get_running_loop().create_future()
    connection._closed_fut.set_result(None)
    return connection


@asynccontextmanager
async def connected(kind: Callable[..., Client], *, request_timeout_ms: int = 10_000) -> AsyncIterator[AIOKafkaClient]:
    """Give what a client of this kind speaks to brokers with, connected to one that answers nothing."""
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        gone.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    made = kind(bootstrap_servers=f"127.0.0.1:{port}", request_timeout_ms=request_timeout_ms)
    client: AIOKafkaClient = made.client if isinstance(made, AIOKafkaProducer) else made._client
    at = NODE, ConnectionGroup.DEFAULT
    client._conns[at] = await connect(port, request_timeout_ms=request_timeout_ms)

    async def ready(*_: object, **__: object) -> bool:
        return True

    client.ready = ready
    try:
        yield client
    finally:
        await end(made, within=timedelta())
        await gone.wait()
        server.close()


async def test_a_server_that_takes_a_connection_and_answers_nothing_is_given_up_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    monkeypatch.setattr(clients, "CONNECT_LIMIT", timedelta(seconds=0.2))
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = AIOKafkaClient(bootstrap_servers=f"127.0.0.1:{port}", request_timeout_ms=3_600_000)
    try:
        async with asyncio.timeout(60):
            with pytest.raises(KafkaConnectionError, match="Unable to bootstrap"):
                await client.bootstrap()
    finally:
        await end(client, within=timedelta())
        server.close()

    assert f"127.0.0.1:{port} gave no answer within 0 s" in caplog.text


@pytest.mark.skipif(event_loop.factory() is None, reason="uvloop is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_closes_in_the_moment_of_a_write_is_ordinary_trouble(kind: Callable[..., Client]) -> None:
    async def play() -> None:
        async with connected(kind) as client:
            (connection,) = client._conns.values()
            connection._writer.transport.abort()
            await asyncio.sleep(0)
            with pytest.raises(KafkaConnectionError, match="the handler is closed"):
                await client.send(NODE, MetadataRequest([]))
            assert not connection.connected()

    with asyncio.Runner(loop_factory=event_loop.factory()) as runner:
        runner.run(play())


@pytest.mark.skipif(event_loop.factory() is None, reason="uvloop is not installed")
def test_so_it_is_while_a_client_logs_in() -> None:
    async def play() -> None:
        async with connected(AIOKafkaProducer) as client:
            (connection,) = client._conns.values()
            connection._writer.transport.abort()
            await asyncio.sleep(0)
            with pytest.raises(KafkaConnectionError, match="the handler is closed"):
                connection._send_sasl_token(b"token")

    with asyncio.Runner(loop_factory=event_loop.factory()) as runner:
        runner.run(play())


@pytest.mark.parametrize("error", [IncompatibleBrokerVersion, NotImplementedError])
async def test_a_request_that_the_broker_is_too_old_for_is_told_apart(error: type[Exception]) -> None:
    class TooNew:
        def prepare(self, _: object) -> None:
            raise error

    async with connected(AIOKafkaAdminClient) as client:
        with pytest.raises(error):
            await client.send(NODE, TooNew())


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_that_times_out_on_a_connection_given_up_is_ordinary_trouble(
    kind: Callable[..., Client],
) -> None:
    async with connected(kind, request_timeout_ms=50) as client:
        (connection,) = client._conns.values()
        asking = asyncio.create_task(client.send(NODE, MetadataRequest([])))
        await asyncio.sleep(0)
        client._conns.clear()
        with pytest.raises(RequestTimedOutError):
            await asking
        await connection.close()


@pytest.mark.kafka
async def test_a_connection_that_closes_while_a_producer_looks_for_its_coordinator_costs_no_transaction(
    kafka: Kafka, topic_name: TopicNamer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = topic_name("coordinator")
    async with Station(kafka.bootstrap, topic) as station:
        producer = AIOKafkaProducer(
            bootstrap_servers=kafka.bootstrap, transactional_id=topic_name("coordinator"), retry_backoff_ms=20
        )
        await producer.start()
        send, closed = AIOKafkaClient.send, 0

        async def closing(client: AIOKafkaClient, node: int, request: object, **options: object) -> object:
            nonlocal closed
            if client is producer.client and isinstance(request, FindCoordinatorRequest) and closed < 2:
                closed += 1
                raise KafkaConnectionError
            return await send(client, node, request, **options)

        monkeypatch.setattr(AIOKafkaClient, "send", closing)
        try:
            producer._sender._coordinator_dead(CoordinationType.TRANSACTION)
            async with producer.transaction():
                await producer.send_and_wait(station.topics.requests, b"")
        finally:
            await producer.stop()
        assert closed == 2


async def test_where_one_address_is_left_the_others_are_heard_of_there(monkeypatch: pytest.MonkeyPatch) -> None:
    client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")
    found: list[set[int]] = [{1}, {2, 3}]

    async def answer(_: AIOKafkaClient) -> None:
        pass

    async def update(*_: object) -> bool:
        client.cluster._brokers = {port: BrokerMetadata(port, "127.0.0.1", 9000 + port, None) for port in found.pop(0)}
        return True

    monkeypatch.setattr(AIOKafkaClient, "bootstrap", answer)
    monkeypatch.setattr(AIOKafkaClient, "_metadata_update", update)
    client.cluster._brokers = {port: BrokerMetadata(port, "127.0.0.1", 9000 + port, None) for port in (1, 2, 3)}
    connection = {"bootstrap_servers": "127.0.0.1:1"}

    assert await rebootstrap(client, connection=connection) is False, "two brokers are away"
    assert await rebootstrap(client, connection=connection) is True, "the only known one has moved"


# ---------------------------------------------------------------- what a client tries again


async def test_a_client_knows_which_broker_it_can_not_reach() -> None:
    client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")
    client.cluster._brokers = {4: BrokerMetadata(4, "127.0.0.1", 1, None)}

    assert not await client.ready(4)
    assert client.last_trouble == "broker 4 (127.0.0.1:1) can't be reached"
    with pytest.raises(NodeNotReadyError):
        await client.send(5, MetadataRequest([]))
    assert client.last_trouble == "broker 5 can't be reached"


async def test_a_client_knows_why_it_asks_a_transaction_coordinator_again() -> None:
    client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")
    transactions = SimpleNamespace(txn_partitions=[], partition_added=lambda _: None)
    sender = SimpleNamespace(
        client=client, _txn_manager=transactions, _retry_backoff=0.1, _coordinator_dead=lambda _: None
    )
    busy = "transaction coordinator: ConcurrentTransactions: "

    assert InitPIDHandler(sender).handle_response(SimpleNamespace(error_code=51)) == 0.1
    assert client.last_trouble.startswith(busy)
    assert EndTxnHandler(sender, True).handle_response(SimpleNamespace(error_code=16)) == 0.1
    assert client.last_trouble.startswith("transaction coordinator: NotCoordinatorForGroupError: ")
    answer = SimpleNamespace(errors=[("topic", [(0, 0), (1, 51)])])
    assert AddPartitionsToTxnHandler(sender, []).handle_response(answer)
    assert client.last_trouble.startswith(busy)
    answer = SimpleNamespace(errors=[("journal", [(0, 55)]), ("gone", [(1, 3)]), ("other", [(0, 55)])])
    assert AddPartitionsToTxnHandler(sender, []).handle_response(answer)
    assert client.last_trouble.startswith("transaction coordinator: UnknownTopicOrPartitionError: ")
    assert client.last_trouble.endswith(" (topic gone)")
    gone, again = ("gone", [(1, 3), (2, 3)]), ("gone too", [(0, 3)])
    answer = SimpleNamespace(errors=[gone, ("journal", [(0, 55)]), again, ("denied", [(0, 29)])])
    assert AddPartitionsToTxnHandler(sender, []).handle_response(answer)
    assert " (topics gone, gone too); TopicAuthorizationFailedError: " in client.last_trouble
    assert client.last_trouble.endswith(" (topic denied)")
    client.last_trouble = ""
    assert AddPartitionsToTxnHandler(sender, []).handle_response(SimpleNamespace(errors=[("topic", [(0, 0)])])) is None
    assert client.last_trouble == ""


# ---------------------------------------------------------------- clients that won't stop


class Stubborn:
    """Stops as aiokafka can: not at all, whoever cancels it, until it is `released`."""

    def __init__(self) -> None:
        self.client = AIOKafkaConsumer(bootstrap_servers="127.0.0.1:1")
        self.released = asyncio.Event()

    async def stop(self) -> None:
        while not self.released.is_set():
            with suppress(asyncio.CancelledError):
                await self.released.wait()
        await self.client.stop()


async def test_a_client_that_swallows_the_cancellation_of_its_stop_is_left_behind() -> None:
    stubborn = Stubborn()

    async with asyncio.timeout(60):
        await end(stubborn.client, stop=stubborn.stop, within=timedelta(seconds=0.1))

    stubborn.released.set()


async def test_whoever_stops_a_client_can_be_cancelled_meanwhile() -> None:
    stubborn = Stubborn()
    stopping = asyncio.create_task(end(stubborn.client, stop=stubborn.stop, within=timedelta(seconds=0.1)))
    await asyncio.sleep(0.01)
    stopping.cancel()

    with pytest.raises(asyncio.CancelledError):
        await stopping

    assert not stubborn.released.is_set()
    assert clients._stopping, "the stopping goes on without its caller"
    stubborn.released.set()


def of_producers() -> set["asyncio.Task[object]"]:
    """Return the tasks of aiokafka's producers that are running."""
    mine = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not mine and "/aiokafka/producer/" in repr(task)}


@pytest.mark.parametrize("waits", [True, False], ids=["it waits", "it was about to wait"])
async def test_a_batch_that_waits_to_be_sent_again_is_failed_without_an_error_in_the_event_loop(*, waits: bool) -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    producer = AIOKafkaProducer(bootstrap_servers="127.0.0.1:1", transactional_id="cut")
    producer._txn_manager.set_pid_and_epoch(1, 0)
    producer._txn_manager.begin_transaction()
    accumulator, place = producer._message_accumulator, TopicPartition("requests", 0)
    part = producer.create_batch()
    part.append(key=None, value=b"", timestamp=None)
    part.close()
    sent = await accumulator.add_batch(part, place, 1.0)
    batch = accumulator._pop_batch(place)
    if waits:
        accumulator.reenqueue(batch)

    await end(producer, stop=producer.client.close, within=timedelta())
    if not waits:
        accumulator.reenqueue(batch)

    with pytest.raises(KafkaConnectionError):
        await sent
    assert errors == []


@pytest.mark.kafka
async def test_a_producer_in_the_middle_of_a_transaction_is_cut_without_leaving_tasks_behind(
    relayed_kafka: EmbeddedKafka, topic_name: TopicNamer, caplog: pytest.LogCaptureFixture
) -> None:
    async with relay_to(relayed_kafka) as relay:
        await restart(relayed_kafka, advertised=relay.address)
        async with behind(relay, relayed_kafka, topic_name("cut")) as station:
            before = of_producers()
            producer = AIOKafkaProducer(bootstrap_servers=relay.address, transactional_id=topic_name("cut"))
            await producer.start()
            await producer.begin_transaction()
            await producer.send_and_wait(station.topics.requests, b"")
            relay.drop()
            await producer.send(station.topics.requests, b"")
            committing = asyncio.create_task(producer.commit_transaction())
            await asyncio.sleep(0.5)

            with caplog.at_level("WARNING", logger="service.kafka.clients"):
                await end(producer, within=timedelta())

            assert "did not stop" not in caplog.text
            committing.cancel()  # as the journal does, whose commits have a limit
            await asyncio.wait([committing])
            await until(lambda: of_producers() <= before, what=lambda: f"nothing is left: {of_producers()}")


# ---------------------------------------------------------------- failures that nobody waits for


async def _collected(reported: list[str]) -> list[str]:
    gc.collect()
    await asyncio.sleep(0)
    return reported


@pytest.mark.parametrize("how", ["error_transaction", "fatal_error"])
async def test_a_transaction_that_fails_while_nobody_waits_for_its_end_is_no_error_of_the_event_loop(how: str) -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
    manager = TransactionManager("an-id", 1_000)
    manager.set_pid_and_epoch(1, 1)
    manager.begin_transaction()
    getattr(manager, how)(ProducerFenced())
    waiter = manager.wait_for_transaction_end()
    with pytest.raises(ProducerFenced):
        await waiter
    manager._transaction_waiter = None
    del waiter

    manager = TransactionManager("an-id", 1_000)
    manager.set_pid_and_epoch(1, 1)
    manager.begin_transaction()
    getattr(manager, how)(ProducerFenced())
    del manager

    assert await _collected(reported) == []


async def test_a_batch_that_fails_is_no_error_of_the_event_loop() -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
    batch = MessageBatch(TopicPartition("t", 0), BatchBuilder(1_000, 0), 10.0, 0.0)
    sent = batch.append(None, b"a record", None)
    batch.failure(exception=KafkaConnectionError("the broker refuses it"))  # as where an answer is read
    with pytest.raises(KafkaConnectionError):
        await sent
    with pytest.raises(KafkaConnectionError):
        await batch.wait_drain()
    batch = MessageBatch(TopicPartition("t", 0), BatchBuilder(1_000, 0), 10.0, 0.0)
    sent = batch.append(None, b"a record", None)
    batch.failure(KafkaConnectionError("the client was stopped"))
    sent.exception()
    del batch

    assert await _collected(reported) == []


async def test_a_client_that_is_cut_while_nobody_waits_for_its_metadata_is_no_error_of_the_event_loop() -> None:
    """A connection that is lost asks for new metadata, and doesn't wait for the answer."""
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
    client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")
    client._on_connection_closed(None, CloseReason.CONNECTION_BROKEN)
    waiting = client.force_metadata_update()

    await end(client, within=timedelta())

    assert not await waiting
    with pytest.raises(KafkaConnectionError, match="the client was stopped"):
        await client.force_metadata_update()
    assert await _collected(reported) == []


async def test_a_bootstrap_that_is_cancelled_closes_its_connection_and_is_no_error_of_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
    asked, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        asked.set()
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        gone.set()

    async def create_conn(_: str, port: int, **__: object) -> AIOKafkaConnection:
        return await connect(port, request_timeout_ms=3_600_000)

    monkeypatch.setattr(aiokafka.client, "create_conn", create_conn)
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    client = AIOKafkaClient(bootstrap_servers=f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with asyncio.timeout(60):
        bootstrap = asyncio.create_task(client.bootstrap())
        await asked.wait()
        bootstrap.cancel()
        await asyncio.wait([bootstrap])
        del bootstrap
        await end(client)
        assert await _collected(reported) == []
        await gone.wait()
    server.close()
