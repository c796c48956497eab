"""The relay between the service and its servers: connections that fall silent, end, or lead elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from service.sandbox.kafka import EmbeddedKafka, KafkaError
from tests.conftest import missing
from tests.support.relay import Address, Relay

Talk = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Call = Callable[[], Awaitable[Talk]]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
    writer.close()


@pytest.fixture
async def server() -> AsyncIterator[asyncio.Server]:
    async with await asyncio.start_server(_echo, "127.0.0.1", 0) as server:
        yield server


@pytest.fixture
async def relay(server: asyncio.Server) -> AsyncIterator[Relay]:
    place: Address = server.sockets[0].getsockname()
    async with Relay(lambda: place) as relay:
        yield relay


@pytest.fixture
async def call(relay: Relay) -> AsyncIterator[Call]:
    writers: list[asyncio.StreamWriter] = []

    async def call() -> Talk:
        talk = await asyncio.open_connection(*relay.place)
        writers.append(talk[1])
        return talk

    yield call
    for writer in writers:
        writer.close()


async def _answer(talk: Talk, words: bytes, *, within: float = 60) -> bytes:
    reader, writer = talk
    writer.write(words + b"\n")
    async with asyncio.timeout(within):
        return (await reader.readline()).rstrip()


async def test_bytes_pass_both_ways_and_so_does_the_end(call: Call, server: asyncio.Server) -> None:
    talk = await call()
    assert await _answer(talk, b"x" * 50_000) == b"x" * 50_000
    talk[1].write_eof()
    assert await talk[0].read() == b""
    server.close()
    assert await (await call())[0].read() == b"", "nobody is there behind it"


async def test_connections_that_were_dropped_stay_silent_and_new_ones_work(relay: Relay, call: Call) -> None:
    before = await call()
    await _answer(before, b"hello")
    assert relay.drop() == 1
    with pytest.raises(TimeoutError):
        await _answer(before, b"anybody?", within=1)
    assert await _answer(await call(), b"hello") == b"hello"
    assert relay.drop() == 1


async def test_a_relay_that_moves_ends_its_connections_and_is_found_elsewhere(relay: Relay, call: Call) -> None:
    before, was = await call(), relay.place
    await _answer(before, b"hello")
    await relay.move()
    assert await before[0].read() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*was)
    assert await _answer(await call(), b"hello") == b"hello"


@pytest.mark.kafka
async def test_clients_of_a_listener_go_where_kafka_sends_them() -> None:
    kafka = EmbeddedKafka(listeners={"RELAYED": "PLAINTEXT"})
    host, _, port = kafka.address("RELAYED").partition(":")
    async with Relay(lambda: (host, int(port))) as broker, Relay(lambda: broker.place) as door:
        kafka.advertise("RELAYED", broker.address)
        try:
            await asyncio.to_thread(kafka.start)
        except KafkaError as error:
            missing(str(error))
        try:
            admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
            await admin.start()
            await admin.create_topics([NewTopic("relayed", 1, 1)])
            await admin.close()
            await _send(door.address)
            assert broker.drop() > 0
            await asyncio.to_thread(kafka.stop)
            await broker.move()
            kafka.advertise("RELAYED", broker.address)
            await asyncio.to_thread(kafka.start)
            await _send(door.address)
            assert broker.drop() > 0
        finally:
            await asyncio.to_thread(kafka.close)


async def _send(bootstrap: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        async with asyncio.timeout(60):
            await producer.send_and_wait("relayed", b"hello")
    finally:
        await producer.stop()
