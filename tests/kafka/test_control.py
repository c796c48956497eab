"""The control topic: read whole at the start, then followed; what happens when it can't be read."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError, UnknownTopicOrPartitionError

from service.clock import Clock
from service.kafka import control
from service.kafka.control import BACKOFF, FIRST_READING, REREAD, SAY_AFTER, ControlReader, KafkaWire, Read
from service.kafka.denials import Account
from service.kafka.topics import _settled
from service.messages.site_pause import SitePause, pause_key, write_pause
from service.sandbox.kafka import Kafka
from tests.conftest import TopicNamer
from tests.support.virtual_time import EPOCH, VirtualClock, now, virtual

PAUSE = SitePause(site="b", until=EPOCH + timedelta(days=20), by="alice")

LIFTED = (pause_key("b"), None)


@dataclass
class Topic:
    """A topic behind a scripted wire; `error` is what each call meets now."""

    records: list[Read] = field(default_factory=list)
    error: Exception | None = None
    opened: list[float] = field(default_factory=list)
    closed: int = 0
    hangs: bool = False

    def write(self, key: bytes, value: bytes | None) -> None:
        self.records.append(Read(key, value, len(self.records)))

    def wire(self) -> "ScriptedWire":
        return ScriptedWire(self)


class ScriptedWire:
    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._at = 0

    async def open(self) -> None:
        self._topic.opened.append(now())
        if self._topic.hangs:
            await asyncio.get_running_loop().create_future()
        self._fail()

    async def read_whole(self) -> Sequence[Read]:
        self._fail()
        return self._next()

    async def read_on(self) -> Sequence[Read]:
        await asyncio.sleep(1.0)
        self._fail()
        return self._next()

    async def close(self) -> None:
        self._topic.closed += 1

    def _fail(self) -> None:
        if self._topic.error is not None:
            raise self._topic.error

    def _next(self) -> Sequence[Read]:
        found, self._at = self._topic.records[self._at :], len(self._topic.records)
        return found


def reader(topic: Topic, heard: list[Mapping[str, SitePause]]) -> ControlReader:
    return ControlReader(
        topic="control",
        wire=topic.wire,
        clock=VirtualClock(asyncio.get_running_loop()),
        account=Account(principal="User:vm-sync", settings={"control": "VM_SYNC_TOPICS__CONTROL"}),
        changed=lambda pauses: heard.append(dict(pauses)),
    )


# ---------------------------------------------------------------- while it can be read


@virtual
async def test_what_stands_in_the_topic_is_known_after_the_first_reading_and_what_is_added_soon() -> None:
    topic, heard = Topic(), list[Mapping[str, SitePause]]()
    topic.write(*write_pause(PAUSE))
    control = reader(topic, heard)
    control.open()
    await control.first_reading()
    assert (now(), heard) == (0.0, [{"b": PAUSE}])

    topic.write(*LIFTED)
    await asyncio.sleep(1.5)
    assert heard[1:] == [{}]
    assert (control.trouble(), control.unreadable_for(), control.invalid()) == ([], 0.0, 0)
    await control.close()
    assert topic.closed == 1


@virtual
async def test_the_topic_is_read_whole_again_at_intervals_so_that_nothing_is_missed_for_longer() -> None:
    topic, heard = Topic(), list[Mapping[str, SitePause]]()
    topic.write(*write_pause(PAUSE))
    control = reader(topic, heard)
    control.open()
    await asyncio.sleep(10.0)
    topic.records = [Read(*LIFTED, 0)]  # deleted, and made again
    await asyncio.sleep(REREAD.total_seconds())

    assert heard == [{"b": PAUSE}, {}]
    assert topic.opened == [0.0, REREAD.total_seconds()]
    await control.close()


@virtual
async def test_a_pause_that_is_gone_from_the_topic_is_held_until_it_is_over_or_resumed_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic, heard = Topic(), list[Mapping[str, SitePause]]()
    topic.write(*write_pause(PAUSE))
    control = reader(topic, heard)
    control.open()
    await asyncio.sleep(10.0)
    topic.records.clear()  # deleted, and made again
    await asyncio.sleep(2 * REREAD.total_seconds())

    assert heard == [{"b": PAUSE}] * 3
    assert [pauses["b"].recorded for pauses in heard] == [True, False, False]
    (said,) = control.trouble()
    assert said.startswith("the control topic no longer has the pause of site b")
    assert [record.getMessage() for record in caplog.records] == [f"Control topic control: {said}"]
    topic.write(*LIFTED)
    await asyncio.sleep(REREAD.total_seconds())
    assert (heard[-1], control.trouble()) == ({}, [])
    await control.close()


@virtual
async def test_a_pause_that_lasts_longer_than_makes_sense_is_obeyed_and_said_to_be_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic, heard = Topic(), list[Mapping[str, SitePause]]()
    topic.write(*write_pause(SitePause(site="b", until=datetime(9999, 1, 1, tzinfo=UTC))))
    control = reader(topic, heard)
    control.open()
    await asyncio.sleep(10.0)

    (said,) = control.trouble()
    assert said.startswith("the pause of site b lasts until 9999-01-01 00:00:00Z, more than 31 days from now")
    assert [record.getMessage() for record in caplog.records] == [f"Control topic control: {said}"]
    assert list(heard[-1]) == ["b"]
    await control.close()


@virtual
async def test_an_invalid_record_is_logged_once_and_stays_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    topic, heard = Topic(), list[Mapping[str, SitePause]]()
    topic.write(b"site:b", b"{}")
    control = reader(topic, heard)
    control.open()
    await asyncio.sleep(3 * REREAD.total_seconds())

    fault = (
        "ontrol topic control: the record at offset 0 is invalid (until: a moment such as 2026-03-01T22:00:00Z); it "
        "is ignored"
    )
    assert [record.getMessage() for record in caplog.records] == [f"C{fault}"]
    assert (control.trouble(), control.invalid()) == ([f"c{fault}"], 1)
    topic.write(*LIFTED)
    await asyncio.sleep(2.0)
    assert (control.trouble(), control.invalid()) == ([], 0)
    await control.close()


# ---------------------------------------------------------------- while it can't


@virtual
async def test_an_outage_is_retried_with_growing_pauses_and_said_once_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic, heard = Topic(), list[Mapping[str, SitePause]]()
    topic.write(*write_pause(PAUSE))
    control = reader(topic, heard)
    control.open()
    await asyncio.sleep(10.5)
    topic.error = KafkaConnectionError("broker 1 is away")
    await asyncio.sleep(10.0)
    assert (caplog.records, control.trouble()) == ([], []), "a broker's restart is nothing to tell of"
    await asyncio.sleep(600.0)

    gaps = [later - earlier for earlier, later in zip(topic.opened[1:], topic.opened[2:], strict=False)]
    assert gaps[:3] == [2.0, 4.0, 5.0]
    assert max(gaps) == BACKOFF.longest.total_seconds()
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "The control topic control can't be read: KafkaConnectionError: broker 1 is away"
    ]
    (reason,) = control.trouble()
    assert reason.endswith("so changes of site pauses are not seen: KafkaConnectionError: broker 1 is away")
    assert control.unreadable_for() > 600.0
    assert heard == [{"b": PAUSE}], "what is known stays"

    topic.error = None
    topic.write(*LIFTED)
    await asyncio.sleep(BACKOFF.longest.total_seconds())
    assert heard[-1] == {}
    assert (control.trouble(), control.unreadable_for()) == ([], 0.0)
    assert caplog.records[-1].getMessage().startswith("The control topic control can be read again, after ")
    await control.close()


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (UnknownTopicOrPartitionError("control"), "it does not exist; create it with `vm-sync topics create`"),
        (
            TopicAuthorizationFailedError("control"),
            (
                "Kafka denies User:vm-sync the right Read on topic control (VM_SYNC_TOPICS__CONTROL): grant it to "
                "User:vm-sync by an ACL"
            ),
        ),
    ],
)
@virtual
async def test_a_topic_that_is_missing_or_denied_is_said_at_once_and_delays_no_start(
    error: Exception, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = Topic(error=error)
    control = reader(topic, [])
    control.open()
    await control.first_reading()

    assert now() == 0.0
    assert [record.getMessage() for record in caplog.records] == [
        (
            f"The control topic control can't be read: {why}; known site pauses stay in effect until they end, changes "
            "are not seen; trying again"
        )
    ]
    await asyncio.sleep(SAY_AFTER.total_seconds())
    (reason,) = control.trouble()
    assert reason.endswith(why)
    await control.close()


@virtual
async def test_a_wire_that_cannot_be_made_is_tried_again_and_said(caplog: pytest.LogCaptureFixture) -> None:
    topic, heard, broken = Topic(), list[Mapping[str, SitePause]](), [True]
    topic.write(*write_pause(PAUSE))
    control = reader(topic, heard)
    control._wire = lambda: topic.wire() if not broken else 1 // 0  # type: ignore[assignment,return-value]
    control.open()
    await asyncio.sleep(60.0)
    assert control.unreadable_for() == 60.0
    assert "The control topic control can't be read: ZeroDivisionError" in caplog.text
    broken.clear()
    await asyncio.sleep(BACKOFF.longest.total_seconds())
    assert heard == [{"b": PAUSE}]
    await control.close()


@virtual
async def test_a_start_waits_for_the_first_reading_within_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    topic = Topic(hangs=True)
    control = reader(topic, [])
    control.open()
    await control.first_reading()

    assert now() == FIRST_READING.total_seconds()
    assert "site pauses are unknown" in caplog.records[-1].getMessage()
    await control.close()


@virtual
async def test_once_kafka_has_been_reached_the_topic_is_tried_at_once() -> None:
    topic, heard = Topic(error=KafkaConnectionError("away")), list[Mapping[str, SitePause]]()
    topic.write(*write_pause(PAUSE))
    control = reader(topic, heard)
    control.open()
    await asyncio.sleep(10.0)
    topic.error = None
    control.retry()
    await asyncio.sleep(0.1)

    assert heard == [{"b": PAUSE}]
    await control.close()


# ---------------------------------------------------------------- against a real Kafka


async def _make(kafka: Kafka, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"cleanup.policy": "compact"})])
        await _settled(admin, [name])
    finally:
        await admin.close()


async def _write(kafka: Kafka, topic: str, *records: tuple[bytes, bytes | None]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
    await producer.start()
    try:
        for key, value in records:
            await producer.send_and_wait(topic, value, key=key)
    finally:
        await producer.stop()


def on_kafka(kafka: Kafka, topic: str, changed: Any) -> ControlReader:
    connection = {"bootstrap_servers": [kafka.bootstrap]}
    return ControlReader(
        topic=topic, wire=lambda: KafkaWire(topic, connection), clock=Clock(), account=Account(), changed=changed
    )


async def test_a_real_topic_is_read_whole_and_followed_through_its_deletion(
    kafka: Kafka, topic_name: TopicNamer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LOOK", timedelta(seconds=1))
    monkeypatch.setattr(control, "REQUEST_LIMIT", timedelta(seconds=2))
    topic = topic_name("control")
    await _make(kafka, topic)
    await _write(kafka, topic, write_pause(PAUSE), (b"other", b"?"))
    heard: asyncio.Queue[Mapping[str, SitePause]] = asyncio.Queue()
    reading = on_kafka(kafka, topic, heard.put_nowait)
    reading.open()
    try:
        async with asyncio.timeout(60):
            await reading.first_reading()
            assert dict(await heard.get()) == {"b": PAUSE}
            await _write(kafka, topic, LIFTED)
            assert dict(await heard.get()) == {}

            admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
            await admin.start()
            await admin.delete_topics([topic])
            await admin.close()
            while not reading.unreadable_for():
                await asyncio.sleep(0.1)
            await _make(kafka, topic)
            await _write(kafka, topic, write_pause(PAUSE))
            while dict(await heard.get()) != {"b": PAUSE}:
                pass
            assert reading.unreadable_for() == 0.0
    finally:
        await reading.close()


async def test_a_real_topic_that_is_deleted_and_created_again_ends_no_pause(
    kafka: Kafka, topic_name: TopicNamer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LOOK", timedelta(seconds=1))
    monkeypatch.setattr(control, "REQUEST_LIMIT", timedelta(seconds=2))
    topic = topic_name("control")
    pause = replace(PAUSE, until=datetime.now(UTC).replace(microsecond=0) + timedelta(days=1))
    await _make(kafka, topic)
    await _write(kafka, topic, write_pause(pause))
    heard: asyncio.Queue[Mapping[str, SitePause]] = asyncio.Queue()
    reading = on_kafka(kafka, topic, heard.put_nowait)
    reading.open()
    try:
        async with asyncio.timeout(60):
            assert dict(await heard.get()) == {"b": pause}
            admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
            await admin.start()
            await admin.delete_topics([topic])
            await admin.close()
            while not reading.unreadable_for():
                await asyncio.sleep(0.1)
            await _make(kafka, topic)

            kept = await heard.get()
            assert (dict(kept), kept["b"].recorded) == ({"b": pause}, False)
            while not (trouble := reading.trouble()):
                await asyncio.sleep(0.1)
            assert trouble[0].startswith("the control topic no longer has the pause of site b")
            await _write(kafka, topic, write_pause(pause))
            assert (await heard.get())["b"].recorded
            await _write(kafka, topic, LIFTED)
            assert dict(await heard.get()) == {}
    finally:
        await reading.close()


async def test_a_topic_that_does_not_exist_is_found_once_it_is_made(kafka: Kafka, topic_name: TopicNamer) -> None:
    topic = topic_name("control")
    heard: asyncio.Queue[Mapping[str, SitePause]] = asyncio.Queue()
    reading = on_kafka(kafka, topic, heard.put_nowait)
    reading.open()
    try:
        async with asyncio.timeout(60):
            await reading.first_reading()
            assert "does not exist" in reading._why
            await _make(kafka, topic)
            assert dict(await heard.get()) == {}
    finally:
        await reading.close()
