"""A journal's waits have bounds, its batches have sizes, and its producer is given up only where it has failed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder

from service.clock import Clock
from service.kafka import journal
from service.kafka.journal import (
    BATCH_BYTES,
    LOOKS,
    READ_PATIENCE,
    REQUEST_TIMEOUT,
    START_LIMIT,
    TRANSACTION_TIMEOUT,
    KafkaJournal,
    Refusals,
)
from service.kafka.journal_api import Batch, JournalLost, JournalMismatch, StopReason
from service.messages.kafka_record import Event
from tests.support.virtual_time import HandClock, now, virtual

CONNECTION = {"bootstrap_servers": ["127.0.0.1:1"]}
CHANGE = Batch({"op:C4-1:1": None})


async def forever(*_: object, **__: object) -> None:
    await asyncio.get_running_loop().create_future()


async def at_once(*_: object, **__: object) -> None:
    """Succeed."""


def one_partition(_: str) -> "asyncio.Future[set[int]]":
    found: asyncio.Future[set[int]] = asyncio.get_running_loop().create_future()
    found.set_result({0})
    return found


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, timedelta | None]]:
    """Which clients were stopped, and within what time; None: as long as any client may take."""
    seen: list[tuple[object, timedelta | None]] = []

    async def end(client: object, *, within: timedelta | None = None) -> None:
        seen.append((client, within))

    monkeypatch.setattr(journal, "end", end)
    return seen


class Producer(SimpleNamespace):
    """A producer whose steps succeed, but for those that are given, and which notes what was done."""

    def __init__(self, **steps: Any) -> None:
        self.done: list[str] = []
        self.client = SimpleNamespace(last_trouble="", add_topic=lambda topic: self.done.append(f"follow {topic}"))
        for name in ("start", "begin_transaction", "abort_transaction", "commit_transaction"):
            setattr(self, name, self._noted(name, steps.get(name, at_once)))
        self.partitions_for = steps.get("partitions_for", one_partition)
        self.send_batch = steps.get("send_batch", self._acknowledged)

    def _noted(self, name: str, step: Any) -> Any:
        async def noted() -> None:
            self.done.append(name)
            await step()

        return noted

    @staticmethod
    def create_batch() -> BatchBuilder:
        return BatchBuilder(BATCH_BYTES, 0, is_transactional=1)

    @staticmethod
    async def _acknowledged(*_: object, **__: object) -> "asyncio.Future[Any]":
        arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        arrived.set_result(SimpleNamespace(offset=7))
        return arrived


def with_producer(**steps: Any) -> tuple[KafkaJournal, Producer]:
    one = KafkaJournal(topic="journal", partition=0, connection=CONNECTION, refusals=Refusals())
    one._producer = Producer(**steps)
    return one, one._producer


async def opened(monkeypatch: pytest.MonkeyPatch, partition: int = 0, **steps: Any) -> Producer:
    """Open a journal whose producer has these steps, and return the producer with the failure."""
    producer = Producer(**steps)
    monkeypatch.setattr(journal, "AIOKafkaProducer", lambda **_: producer)
    try:
        await KafkaJournal.open(
            topic="journal", partition=partition, connection=CONNECTION, clock=Clock(), refusals=Refusals()
        )
    except (JournalLost, JournalMismatch) as error:
        producer.error = error
    return producer


# ---------------------------------------------------------------- waits


@pytest.mark.parametrize(
    ("steps", "limit"),
    [({"start": forever}, START_LIMIT), ({"partitions_for": forever}, REQUEST_TIMEOUT)],
    ids=["its start", "the partitions"],
)
@virtual
async def test_an_opening_that_is_never_answered_ends_in_time_and_cuts_its_producer(
    steps: dict[str, Any],
    limit: timedelta,
    monkeypatch: pytest.MonkeyPatch,
    ended: list[tuple[object, timedelta | None]],
) -> None:
    producer = await opened(monkeypatch, **steps)
    assert isinstance(producer.error, JournalLost)
    assert now() == limit.total_seconds()
    assert ended == [(producer, timedelta())]


@pytest.mark.parametrize("step", ["partitions_for", "begin_transaction", "send_batch", "commit_transaction"])
@virtual
async def test_a_commit_that_is_never_answered_ends_in_time(step: str) -> None:
    stuck, _ = with_producer(**{step: forever})
    with pytest.raises(JournalLost, match="TimeoutError"):
        await stuck.commit(Batch(CHANGE.changes, [Event(topic="completed", key=b"k", value=b"", headers=())]))
    assert now() == TRANSACTION_TIMEOUT.total_seconds()


@virtual
async def test_a_commit_that_times_out_does_not_name_what_an_earlier_one_met() -> None:
    stuck, producer = with_producer(begin_transaction=forever)
    producer.client.last_trouble = "broker 4 is away"
    with pytest.raises(JournalLost, match=r"failed: TimeoutError$"):
        await stuck.commit(CHANGE)


@virtual
async def test_an_opening_follows_the_journal_before_it_looks_for_its_coordinator(
    monkeypatch: pytest.MonkeyPatch, ended: list[tuple[object, timedelta | None]]
) -> None:
    producer = await opened(monkeypatch, start=forever)
    assert producer.done == ["follow journal", "start"]


@virtual
async def test_an_opening_that_fails_says_what_the_producer_says_where_nothing_was_logged(
    monkeypatch: pytest.MonkeyPatch, ended: list[tuple[object, timedelta | None]]
) -> None:
    async def away() -> None:
        msg = "no broker"
        raise KafkaConnectionError(msg)

    assert "no broker" in str((await opened(monkeypatch, start=away)).error)


# ---------------------------------------------------------------- ends


@virtual
async def test_a_transaction_that_fails_is_aborted_at_once_so_that_no_reader_waits_for_its_end() -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise KafkaError

    failing, producer = with_producer(send_batch=refuse)
    with pytest.raises(JournalLost):
        await failing.commit(CHANGE)
    assert producer.done == ["begin_transaction", "abort_transaction"]


@virtual
async def test_a_journal_is_closed_in_an_orderly_way_unless_it_has_failed(
    ended: list[tuple[object, timedelta | None]],
) -> None:
    well, producer = with_producer()
    await well.commit(CHANGE)
    await well.close()
    failed, cut = with_producer(begin_transaction=forever)
    with pytest.raises(JournalLost):
        await failed.commit(CHANGE)
    await failed.close()
    assert ended == [(producer, REQUEST_TIMEOUT), (cut, timedelta())]


@virtual
async def test_a_journal_that_is_too_narrow_is_closed_in_an_orderly_way(
    monkeypatch: pytest.MonkeyPatch, ended: list[tuple[object, timedelta | None]]
) -> None:
    producer = await opened(monkeypatch, partition=1)
    assert producer.error.reason is StopReason.JOURNAL_TOO_NARROW
    assert ended == [(producer, REQUEST_TIMEOUT)]


# ---------------------------------------------------------------- sizes


async def packed(values: Sequence[int], *, room: int) -> list[tuple[int, int]]:
    """Pack records with values so long; return each batch's number of records, and its size."""
    one, _ = with_producer()
    records: list[journal._Record] = [(b"key", bytes(size), [], None) for size in values]
    return [(part.record_count(), part.size()) async for part in one._packed(records, room=room)]


async def test_records_go_together_in_one_batch_as_long_as_they_fit() -> None:
    assert [count for count, _ in await packed([1_000] * 100, room=BATCH_BYTES)] == [100]
    assert [count for count, _ in await packed([BATCH_BYTES // 3] * 5, room=BATCH_BYTES)] == [2, 2, 1]


async def test_no_batch_of_several_records_is_longer_than_what_was_refused_but_a_long_record_goes_alone() -> None:
    batches = await packed([400] * 10 + [5_000] + [400], room=2_000)
    assert sum(count for count, _ in batches) == 12
    assert [count for count, size in batches if size > 2_000] == [1]
    assert max(count for count, _ in batches) == 4


async def test_a_batch_may_be_exactly_as_long_as_its_room() -> None:
    [(_, size)] = await packed([400, 400], room=BATCH_BYTES)
    bound = size - await _size_of(400) + journal._size((b"key", bytes(400), [], None))
    assert len(await packed([400, 400], room=bound)) == 1
    assert len(await packed([400, 400], room=bound - 1)) == 2


async def _size_of(length: int) -> int:
    [(_, one)], [(_, two)] = await packed([length], room=BATCH_BYTES), await packed([length] * 2, room=BATCH_BYTES)
    return two - one


def test_what_is_as_long_as_the_room_that_is_left_fits_and_half_of_several_records_is_tried() -> None:
    refusals = Refusals(HandClock())
    event = Event(topic="completed", key=b"k", value=bytes(1_000), headers=())
    size = journal._size((event.key, event.value, [], None))
    refusals.refused("completed", size=size + 1, records=1)
    assert refusals.fits(event)
    refusals.refused("completed", size=size, records=1)
    assert not refusals.fits(event)
    refusals.refused("completed", size=9_000, records=3)
    assert refusals.room("completed") == 4_500


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)
def test_an_outcomes_partition_is_the_one_that_javas_client_takes(key: bytes, hashed: int) -> None:
    """The hashes are those of Kafka's own tests."""
    for count in (1, 2, 3, 12):
        assert journal._partition(key, count) == (hashed & 0x7FFFFFFF) % count
    assert journal._partition(None, 12) == 0


# ---------------------------------------------------------------- reading


class Consumer:
    """A consumer of a journal that hands out so many records, one at each read, and then nothing more."""

    def __init__(self, count: int) -> None:
        self._fetcher = SimpleNamespace(_records={})
        self._place = TopicPartition("journal", 0)
        self._left = list(range(count))

    def assign(self, places: list[TopicPartition]) -> None:
        assert places == [self._place]

    async def start(self) -> None:
        """Be there at once."""

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        assert max_records > 1
        if self._left:
            return {self._place: [SimpleNamespace(offset=self._left.pop(0))]}
        await asyncio.sleep(timeout_ms / 1000)
        return {}


async def read(count: int, *, end: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Consumer, AsyncIterator[Any]]:
    consumer = Consumer(count)
    monkeypatch.setattr(journal, "AIOKafkaConsumer", lambda **_: consumer)
    one, _ = with_producer()
    one.end = end
    return consumer, one._records()


@virtual
async def test_a_journal_of_many_reads_is_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch, ended: list[tuple[object, timedelta | None]]
) -> None:
    consumer, records = await read(3 * LOOKS, end=3 * LOOKS, monkeypatch=monkeypatch)
    assert [record.offset async for some in records for record in some] == list(range(3 * LOOKS))
    assert (now(), [client for client, _ in ended]) == (0, [consumer])


@virtual
async def test_a_journal_whose_end_does_not_come_is_given_up_when_no_transaction_can_stand_open_any_more(
    monkeypatch: pytest.MonkeyPatch, ended: list[tuple[object, timedelta | None]]
) -> None:
    consumer, records = await read(3 * LOOKS, end=3 * LOOKS + 1, monkeypatch=monkeypatch)
    with pytest.raises(KafkaError, match=f"stalled at offset {3 * LOOKS}, before its end at {3 * LOOKS + 1}"):
        async for _ in records:
            pass
    assert now() == pytest.approx(READ_PATIENCE.total_seconds())
    assert [client for client, _ in ended] == [consumer]
