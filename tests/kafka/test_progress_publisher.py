"""Progress is told sparingly, in order, and at nobody's expense."""

import asyncio
import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, UnknownTopicOrPartitionError

from service.kafka.progress_publisher import CAPACITY, CLOSE_LIMIT, EVENTS_AT_ONCE, KafkaWire, Progress, Progressing
from service.messages.kafka_record import Event
from service.sandbox.kafka import Kafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from service.sync import Request, Task
from tests.conftest import TopicNamer
from tests.support.ecma import validator
from tests.support.process_harness import Ledger, appliance, counts
from tests.support.simulated_deployment import Deployment, deployed
from tests.support.virtual_time import VirtualClock, virtual

NOW = datetime(2030, 1, 1, tzinfo=UTC)
AWAY = KafkaConnectionError("away")


def request(name: str = "op-1") -> Request:
    return Request(
        identity=f"op:C4-1:{name}",
        operation_id=name,
        replication_id="C4-1",
        site=None,
        offset=0,
        requested_at=NOW,
        accepted_at=NOW,
        deadline=NOW + timedelta(hours=1),
    )


def task(percent: int | None) -> Task:
    return Task(id="task-1", state="RUNNING", progress=percent)


class Brokers:
    """Kafka, and every wire to it. `trouble`: what the next wires meet, at opening or sending."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.told: list[tuple[float, str, str, int | None]] = []
        self.opened: list[float] = []
        self.closed = 0
        self.lots: list[int] = []
        self.dropped: list[int] = []
        self.refuses_to_open = False
        self.refuses_lots = 0
        self.hangs = False
        self.opens: asyncio.Event | None = None
        self.swallows = False
        """What is sent is never acknowledged."""

    def wire(self) -> "Brokers":
        return self

    async def open(self) -> None:
        self.opened.append(self.loop.time())
        if self.hangs:
            await asyncio.Event().wait()
        if self.opens is not None:
            await self.opens.wait()
        if self.refuses_to_open:
            raise AWAY

    async def send(self, events: Sequence[Event]) -> None:
        if self.refuses_lots:
            self.refuses_lots -= 1
            raise AWAY
        self.lots.append(len(events))
        if self.swallows:
            await asyncio.Event().wait()
        for event in events:
            assert event.topic == "progress"
            data: dict[str, Any] = json.loads(event.value or b"")
            validator("sync-progressed.v1").validate(data)
            self.told.append((self.loop.time(), data["operationID"], data["state"], data["progress"]))

    async def close(self) -> None:
        self.closed += 1
        if self.hangs:
            await asyncio.Event().wait()


def telling(brokers: Brokers, *, capacity: int = CAPACITY) -> Progressing:
    told = Progressing(
        topic="progress",
        wire=brokers.wire,
        clock=VirtualClock(brokers.loop),
        dropped=brokers.dropped.append,
        capacity=capacity,
    )
    told.open()
    return told


async def look(told: Progress, *readings: tuple[float, int | None], of: Request | None = None) -> None:
    """Show it readings, each so many seconds after the one before."""
    for gap, percent in readings:
        await asyncio.sleep(gap)
        told.seen(of or request(), task(percent))
    await asyncio.sleep(0.001)


# ---------------------------------------------------------------- what is told


@virtual
async def test_a_start_and_every_fifth_percent_are_told_at_once() -> None:
    brokers = Brokers()
    told = telling(brokers)
    told.started(request(), "task-1")
    await look(told, *[(1.0, percent) for percent in (0, 3, 4, 5, 9, 10, 31, 35, 36)])
    assert brokers.told == [
        (0.0, "op-1", "started", None),
        (4.0, "op-1", "running", 5),
        (6.0, "op-1", "running", 10),
        (7.0, "op-1", "running", 31),
        (9.0, "op-1", "running", 36),
    ]
    await told.close()


@virtual
async def test_a_smaller_step_or_a_fall_is_told_thirty_seconds_after_what_was_told_before() -> None:
    brokers = Brokers()
    told = telling(brokers)
    told.started(request(), "task-1")
    await look(told, (29.0, 1), (1.0, 1), (29.0, 0), (1.0, 0), (1.0, None), (29.0, None))
    assert [(at, percent) for at, *_, percent in brokers.told] == [(0, None), (30, 1), (60, 0), (90, None)]
    await told.close()


@virtual
async def test_what_stands_still_is_not_told_again() -> None:
    brokers = Brokers()
    told = telling(brokers)
    await look(told, (1.0, 40), *[(60.0, 40)] * 100)
    assert brokers.told == [(1.0, "op-1", "running", 40)]
    await told.close()


@virtual
async def test_a_sync_taken_over_from_another_process_is_told_as_running() -> None:
    brokers = Brokers()
    told = telling(brokers)
    await look(told, (0.0, 40), (1.0, 44), (1.0, 45))
    assert [(state, percent) for _, _, state, percent in brokers.told] == [("running", 40), ("running", 45)]
    await told.close()


@virtual
async def test_what_has_ended_is_neither_told_nor_remembered() -> None:
    brokers = Brokers()
    told = telling(brokers)
    told.started(request("op-1"), "task-1")
    told.started(request("op-2"), "task-2")
    told.ended(request("op-1"))
    told.ended(request("op-3"))
    await look(told, (0.0, None), of=request("op-2"))
    told.ended(request("op-2"))
    assert [operation_id for _, operation_id, *_ in brokers.told] == ["op-2"]
    assert told._told == {}
    await told.close()


# ---------------------------------------------------------------- at nobody's expense


@virtual
async def test_without_anything_to_tell_nothing_is_opened() -> None:
    brokers = Brokers()
    told = telling(brokers)
    await asyncio.sleep(100)
    await told.close()
    assert (brokers.opened, brokers.closed) == ([], 0)


@virtual
async def test_where_nothing_is_wanted_nothing_happens() -> None:
    nothing = Progress()
    nothing.open()
    nothing.started(request(), "task-1")
    nothing.seen(request(), task(50))
    nothing.ended(request())
    await nothing.close()
    assert len(asyncio.all_tasks()) == 1


@virtual
async def test_a_full_queue_leaves_events_out_and_the_next_look_makes_up_for_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    brokers = Brokers()
    told = telling(brokers, capacity=3)
    names = [f"op-{number}" for number in range(5)]
    for name in names:
        told.started(request(name), "task-1")
    await look(told, (0.0, 0), of=request("op-0"))
    assert [operation_id for _, operation_id, *_ in brokers.told] == ["op-0", "op-1", "op-2"]
    assert [record.message for record in caplog.records] == ["Kafka is too slow: 2 progress events were dropped"]
    assert sum(brokers.dropped) == 2
    for name in names:
        await look(told, (1.0, 2), of=request(name))
    assert [(name, percent) for _, name, state, percent in brokers.told if state == "running"] == [
        ("op-3", 2),
        ("op-4", 2),
    ]
    await told.close()


@virtual
async def test_many_are_sent_a_lot_at_a_time() -> None:
    brokers = Brokers()
    told = telling(brokers)
    for number in range(2 * EVENTS_AT_ONCE + 1):
        told.started(request(f"op-{number}"), "task-1")
    await asyncio.sleep(0.001)
    assert brokers.lots == [EVENTS_AT_ONCE, EVENTS_AT_ONCE, 1]
    await told.close()


@virtual
async def test_while_kafka_is_away_it_is_tried_less_and_less_often(caplog: pytest.LogCaptureFixture) -> None:
    brokers = Brokers()
    brokers.refuses_to_open = True
    told = telling(brokers)
    for number in range(20):
        told.started(request(f"op-{number}"), "task-1")
    await asyncio.sleep(200)
    assert brokers.opened == [0, 1, 3, 7, 15, 31, 63, 123, 183]
    assert brokers.closed == len(brokers.opened)
    assert brokers.dropped == [1] * len(brokers.opened)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    brokers.refuses_to_open = False
    await asyncio.sleep(60)
    assert [operation_id for _, operation_id, *_ in brokers.told] == [f"op-{number}" for number in range(9, 20)]
    await told.close()


@virtual
async def test_a_failed_lot_is_given_up_and_the_next_goes_over_a_new_wire() -> None:
    brokers = Brokers()
    brokers.refuses_lots = 1
    told = telling(brokers)
    told.started(request(), "task-1")
    told.started(request("op-2"), "task-2")
    await look(told, (0.5, 10))
    assert (brokers.told, brokers.dropped) == ([], [2])
    await asyncio.sleep(1)
    assert brokers.told == [(1.0, "op-1", "running", 10)]
    assert brokers.opened == [0.0, 1.0]
    await told.close()
    assert brokers.closed == 2


@virtual
async def test_a_wire_over_which_nothing_arrives_is_given_up_in_time_and_the_next_lot_goes_over_a_new_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Kafka's client tries without end, also at addresses that no broker has any more."""
    brokers = Brokers()
    told = telling(brokers)
    await look(told, (1.0, 0))
    brokers.swallows = True
    await look(told, (1.0, 10))
    brokers.swallows = False
    await look(told, (1.0, 20), (1.0, 30))
    assert [percent for *_, percent in brokers.told] == [0]

    await asyncio.sleep(60)

    assert [(at, percent) for at, *_, percent in brokers.told[1:]] == [(33.001, 20), (33.001, 30)]
    assert [record.getMessage() for record in caplog.records] == [
        "Publishing progress failed, trying again in 1 s: Kafka gave no answer within 30 s"
    ]
    await told.close()


@virtual
async def test_a_wire_that_does_not_open_in_time_is_given_up() -> None:
    brokers = Brokers()
    brokers.opens = asyncio.Event()
    told = telling(brokers)
    told.started(request("op-1"), "task-1")
    await asyncio.sleep(20)
    brokers.opens = None
    told.started(request("op-2"), "task-2")
    await asyncio.sleep(20)

    assert (brokers.opened, brokers.closed) == ([0.0, 31.0], 1)
    assert [operation_id for _, operation_id, *_ in brokers.told] == ["op-2"]
    await told.close()


@virtual
async def test_a_wire_that_cannot_be_made_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers()
    told = telling(brokers)
    make = told._wire
    monkeypatch.setattr(told, "_wire", lambda: 1 // 0)
    told.started(request("op-1"), "task-1")
    await asyncio.sleep(0.5)
    monkeypatch.setattr(told, "_wire", make)
    told.started(request("op-2"), "task-2")
    await asyncio.sleep(1)
    assert [operation_id for _, operation_id, *_ in brokers.told] == ["op-2"]
    await told.close()


@virtual
async def test_closing_waits_for_no_kafka_that_hangs() -> None:
    brokers = Brokers()
    brokers.hangs = True
    told = telling(brokers)
    told.started(request(), "task-1")
    await asyncio.sleep(1)
    await told.close()
    assert (brokers.loop.time(), brokers.closed) == (1.0 + CLOSE_LIMIT.total_seconds(), 1)


# ---------------------------------------------------------------- from a partition


def first(d: Deployment, told: Progress) -> None:
    """Give the partition to a process that tells progress."""
    process = d.process("P0")
    process._dependencies = replace(process._dependencies, progress=told)
    d.group.hand(0, process)


async def outcomes(d: Deployment, told: Progress) -> list[tuple[float, str]]:
    d.world.lasts = lambda _: 300.0
    first(d, told)
    for number in range(10):
        d.broker.ask(f"C4-{number}", f"a{number}")
    await d.settled()
    return [(one.at, one.operation_id) for one in d.log.told]


@deployed
async def test_a_partition_tells_how_far_its_syncs_are(d: Deployment) -> None:
    brokers = Brokers()
    told = telling(brokers)
    assert len(await outcomes(d, told)) == 10
    for number in range(10):
        mine = [(state, percent) for _, name, state, percent in brokers.told if name == f"a{number}"]
        percents = [percent for _, percent in mine[1:] if percent is not None]
        assert len(percents) == len(mine) - 1
        assert mine[0] == ("started", None)
        assert {state for state, _ in mine[1:]} == {"running"}
        assert len(percents) >= 4
        assert percents == sorted(set(percents))
    assert told._told == {}
    await told.close()


def test_outcomes_come_at_the_same_moments_whatever_becomes_of_progress() -> None:
    went: list[list[tuple[float, str]]] = []

    def go(kafka: str) -> None:
        @deployed
        async def deploy(d: Deployment) -> None:
            brokers = Brokers()
            brokers.hangs, brokers.refuses_to_open = kafka in {"hangs", "full"}, kafka == "away"
            told = Progress() if kafka == "none" else telling(brokers, capacity=1 if kafka == "full" else CAPACITY)
            went.append(sorted(await outcomes(d, told)))  # timers of one moment come in any order
            await told.close()

        deploy()

    for kafka in ("none", "well", "hangs", "away", "full"):
        go(kafka)
    assert len(went[0]) == 10
    assert went == [went[0]] * 5


@deployed
async def test_after_a_deadlines_outcome_nothing_more_is_told(d: Deployment) -> None:
    brokers = Brokers()
    told = telling(brokers)
    d.world.lasts = lambda _: 300.0
    first(d, told)
    d.broker.ask("C4-1", "a1", deadline=100)
    await d.until(150)
    assert told._told == {}, "it still runs, but nobody waits for it"
    await d.settled()
    (outcome,) = d.log.told
    assert 20 < max(at for at, *_ in brokers.told) <= outcome.at < 110
    await told.close()


# ---------------------------------------------------------------- on a real Kafka


@pytest.mark.kafka
async def test_what_is_sent_arrives_in_order(kafka: Kafka, topic_name: TopicNamer) -> None:
    topic = topic_name("progress")
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    wire = KafkaWire({"bootstrap_servers": kafka.bootstrap})
    await wire.open()
    await wire.send([Event(topic=topic, key=b"k", value=str(number).encode(), headers=()) for number in range(50)])
    await wire.close()
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        values = [(await asyncio.wait_for(consumer.getone(), 60)).value for _ in range(50)]
    finally:
        await consumer.stop()
    assert values == [str(number).encode() for number in range(50)]


@pytest.mark.kafka
async def test_a_topic_that_is_gone_is_not_waited_for_and_leaves_nothing_at_work(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    wire = KafkaWire({"bootstrap_servers": kafka.bootstrap}, request_limit=timedelta(seconds=1))
    await wire.open()
    with pytest.raises(UnknownTopicOrPartitionError):
        await wire.send([Event(topic=topic_name("gone"), key=b"k", value=b"v", headers=())])
    await wire.close()
    assert len(asyncio.all_tasks()) == 1


async def test_a_wire_to_nowhere_fails_and_closes() -> None:
    wire = KafkaWire({"bootstrap_servers": "127.0.0.1:1"})
    with pytest.raises(KafkaConnectionError):
        await wire.open()
    await wire.close()


@pytest.mark.e2e
async def test_a_service_tells_starts_then_progress_and_every_outcome(kafka: Kafka, topic_name: TopicNamer) -> None:
    pairs = [(f"op-{number}", f"C4-{uuid.uuid4()}") for number in range(20)]
    topic = topic_name("progress")
    world = appliance(Plan(queued=Durations.of("0.1"), duration=Durations.of("uniform:4:6")))
    async with (
        Simulator(world) as vcda,
        Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix=topic_name("ledger")) as ledger,
    ):
        process = ledger.start(VM_SYNC_TOPICS__PROGRESS=topic)
        await ledger.ready(process)
        await ledger.ask_all(pairs)
        told = await ledger.wait(within=60)
        assert await process.stop() == 0
        verdict = await ledger.judge()
        tracebacks = ledger.tracebacks()
    assert verdict.violations == []
    assert tracebacks == []
    assert counts(told) == {"completed": len(pairs)}
    events = await everything(kafka, topic)
    for operation_id, replication_id in pairs:
        mine = [event for key, event in events if event["operationID"] == operation_id and key == replication_id]
        percents = [event["progress"] for event in mine[1:]]
        assert [event["state"] for event in mine] == ["started", *["running"] * len(percents)]
        assert len(percents) >= 2
        assert percents == sorted(percents)
        for event in mine:
            validator("sync-progressed.v1").validate(event)


async def everything(kafka: Kafka, topic: str) -> list[tuple[str, dict[str, Any]]]:
    """Read a topic to its end: keys and values, each partition's in order."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        places = consumer.assignment()
        ends = await consumer.end_offsets(places)
        read: list[tuple[str, dict[str, Any]]] = []
        while any([await consumer.position(place) < end for place, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                read += [(record.key.decode(), json.loads(record.value)) for record in records]
        return read
    finally:
        await consumer.stop()
