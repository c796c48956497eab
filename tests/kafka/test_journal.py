"""Journals on a real Kafka: all of a commit or nothing, none from whoever was fenced, and sizes that are refused."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import NotEnoughReplicasError, TransactionalIdAuthorizationFailed
from aiokafka.protocol.produce import ProduceRequest
from typing_extensions import override

from service.clock import Clock
from service.event_loop import Slices
from service.kafka import journal, journal_codec
from service.kafka.consumer import LOOK_WAIT_MS
from service.kafka.journal import PACKED_AT_ONCE, READ_AT_ONCE, KafkaJournal, Refusals
from service.kafka.journal_api import Batch, JournalLost, JournalMismatch, StopReason
from service.kafka.journal_codec import Cursor
from service.messages.kafka_record import MAX_REQUEST_BYTES, Event
from service.sandbox.kafka import EmbeddedKafka, Kafka
from service.sync import ApiError, Request, Sync, Task, Waiting
from tests.conftest import TopicNamer, started
from tests.support.kafka_harness import Station, fetch_waits, request, until, word
from tests.support.virtual_time import HandClock, now, virtual

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def waiting(operation_id: str) -> Waiting:
    return Waiting(
        request=Request(
            identity=f"op:C4-1:{operation_id}",
            operation_id=operation_id,
            replication_id="C4-1",
            site=None,
            offset=7,
            requested_at=NOON,
            accepted_at=NOON,
            deadline=NOON,
        )
    )


@pytest.fixture
async def station(kafka: Kafka, topic_name: TopicNamer) -> AsyncIterator[Station]:
    async with Station(kafka.bootstrap, topic_name("journal")) as station:
        yield station


async def test_an_opening_says_why_no_server_can_be_reached() -> None:
    with pytest.raises(JournalLost, match=r"no bootstrap server can be reached, .+Connect call failed"):
        await KafkaJournal.open(
            topic="journal",
            partition=0,
            connection={"bootstrap_servers": "127.0.0.1:1"},
            clock=Clock(),
            refusals=Refusals(),
        )


async def test_what_was_committed_is_there_for_who_opens_next(station: Station) -> None:
    first = await station.open_journal()
    one, two = waiting("1"), waiting("2")
    cursor = Cursor(station.topics.requests, 8, 1_772_402_400_000)
    event = Event(topic=station.topics.completed, key=b"k", value=b'{"operationID": "1"}', headers=(("h", b"v"),))
    await first.journal.commit(
        Batch(changes={one.request.identity: one, two.request.identity: two}, events=[event], cursor=cursor)
    )
    await first.journal.commit(Batch(changes={one.request.identity: None}))
    second = await station.open_journal()

    assert (second.cursor, second.in_flight) == (cursor, [two])
    entries = [entry async for entry in second.journal.entries()]
    assert [(identity, expires_at) for _, identity, expires_at in entries] == [
        (one.request.identity, None),
        (two.request.identity, None),
        (one.request.identity, None),  # its tombstone
    ]
    assert [offset for offset, *_ in entries] == sorted({offset for offset, *_ in entries})
    await station.told_of("1")
    assert (station.told[0].key, station.told[0].headers) == (b"k", (("h", b"v"),))
    await first.journal.close()
    await second.journal.close()


async def test_a_journal_is_read_and_decoded_in_slices_that_the_process_shares(station: Station) -> None:
    class CountedSlices(Slices):
        turns = 0

        @override
        async def turn(self) -> None:
            self.turns += 1
            await super().turn()

    first = await station.open_journal()
    some = [waiting(str(number)) for number in range(20)]
    await first.journal.commit(Batch(changes={one.request.identity: one for one in some}))
    slices = CountedSlices(largest=5)
    second = await station.open_journal(slices=slices)

    assert second.in_flight == some
    assert slices.turns >= 20 / 5 + 20 / 5  # to read them, and to decode them
    await first.journal.close()
    await second.journal.close()


async def test_whoever_was_fenced_writes_nothing_more(station: Station) -> None:
    first = await station.open_journal()
    second = await station.open_journal()
    lost = waiting("lost")
    told = Event(topic=station.topics.completed, key=b"k", value=b'{"operationID": "lost"}')
    with pytest.raises(JournalLost):
        await first.journal.commit(Batch(changes={lost.request.identity: lost}, events=[told]))
    await second.journal.commit(Batch(cursor=Cursor(station.topics.requests, 1)))
    third = await station.open_journal()

    assert (third.cursor, third.in_flight) == (Cursor(station.topics.requests, 1), [])
    assert station.told == []
    for one in (first, second, third):
        await one.journal.close()


async def test_a_journal_that_ends_with_an_aborted_transaction_is_read_to_its_end(station: Station) -> None:
    first = await station.open_journal()
    await first.journal.commit(Batch(cursor=Cursor(station.topics.requests, 1)))
    await first.journal.close()
    dying = AIOKafkaProducer(**station.connection, transactional_id=f"{station.topics.journal}-0")
    await dying.start()
    await dying.begin_transaction()
    await dying.send_and_wait(station.topics.journal, key=b"cursor", value=b'{"topic": "other", "offset": 9}')

    second = await station.open_journal()

    assert second.cursor == Cursor(station.topics.requests, 1)
    await second.journal.close()
    with pytest.raises(Exception):  # noqa: B017, PT011 - the dead one's client has several words for it
        await dying.commit_transaction()
    await dying.stop()


async def test_no_question_waits_long_behind_a_fetch_while_a_journal_is_opened(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = fetch_waits(monkeypatch)
    await station.open_journal()

    assert waits[station.topics.journal] == {LOOK_WAIT_MS}


async def test_a_journal_is_read_as_any_consumer_reads_it_with_few_objects_for_its_records(station: Station) -> None:
    first = await station.open_journal()
    many = [waiting(str(number)) for number in range(3 * READ_AT_ONCE)]
    await first.journal.commit(Batch(changes={one.request.identity: one for one in many}))
    await first.journal.close()
    aborting = AIOKafkaProducer(**station.connection, transactional_id=f"{station.topics.journal}-0")
    await aborting.start()
    for number in range(3):
        await aborting.begin_transaction()
        await aborting.send_and_wait(station.topics.journal, key=b"cursor", value=b"%d" % number, partition=0)
        await aborting.abort_transaction()
    await aborting.stop()
    second = await station.open_journal()
    await second.journal.commit(Batch(changes={many[0].request.identity: None}, cursor=Cursor("requests", 8)))
    assert isinstance(second.journal, KafkaJournal)

    read = [record async for records in second.journal._records() for record in records]

    place = TopicPartition(station.topics.journal, 0)
    consumer = AIOKafkaConsumer(
        **station.connection, isolation_level="read_committed", auto_offset_reset="earliest", enable_auto_commit=False
    )
    consumer.assign([place])
    await consumer.start()
    expected: list[Any] = []
    while len(expected) < len(read):
        expected += (await consumer.getmany(timeout_ms=1_000)).get(place, [])
    await consumer.stop()
    assert [(it.offset, it.key, it.value) for it in read] == [(it.offset, it.key, it.value) for it in expected]
    assert read[-1].offset > len(read)  # what was aborted, and the marks of transactions, have offsets, too
    assert sum(isinstance(record, ConsumerRecord) for record in read) <= READ_AT_ONCE
    await second.journal.close()


async def test_a_commit_that_nobody_waits_for_any_more_is_not_cut_in_half(station: Station) -> None:
    first = await station.open_journal()
    one = waiting("1")
    committing = asyncio.create_task(first.journal.commit(Batch(changes={one.request.identity: one})))
    await asyncio.sleep(0)  # it has begun
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    await first.journal.commit(Batch(cursor=Cursor(station.topics.requests, 1)))
    await first.journal.close()

    second = await station.open_journal()

    assert (second.cursor, second.in_flight) == (Cursor(station.topics.requests, 1), [one])
    await second.journal.close()


async def test_a_journal_with_what_nobody_here_can_read_is_unfit(station: Station) -> None:
    await station.send(topic=station.topics.journal, key=b"op:C4-1:1", value=b'{"v": 9, "state": "paused"}')
    with pytest.raises(JournalMismatch, match="run the version that wrote it") as caught:
        await station.open_journal()
    assert caught.value.reason == StopReason.JOURNAL_UNREADABLE


async def test_more_than_one_batch_holds_goes_in_one_transaction(station: Station) -> None:
    first = await station.open_journal()
    events = [
        Event(topic=station.topics.completed, key=b"k", value=request(f"op-{n}", "C4-1", padding="x" * 300_000))
        for n in range(5)
    ]
    await first.journal.commit(Batch(events=events))
    await first.journal.close()

    await station.told_of(*(f"op-{n}" for n in range(5)))


async def test_a_large_commit_is_encoded_in_slices_before_its_transaction_begins(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await station.open_journal()
    producer, encoded, begun = first.journal._producer, Counter[int](), []  # type: ignore[attr-defined]
    encode, begin, turn = journal_codec.encode, producer.begin_transaction, 0

    def counted(state: Sync) -> bytes:
        encoded[turn] += 1
        return encode(state)

    async def beginning() -> None:
        begun.append(encoded.total())
        await begin()

    async def turning() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    monkeypatch.setattr(journal, "encode", counted)
    monkeypatch.setattr(producer, "begin_transaction", beginning)
    many = 4 * PACKED_AT_ONCE
    other = asyncio.create_task(turning())
    await first.journal.commit(Batch({f"op:C4-1:op-{n}": waiting(f"op-{n}") for n in range(many)}))
    other.cancel()
    await first.journal.close()

    assert (max(encoded.values()), begun) == (PACKED_AT_ONCE, [many])
    second = await station.open_journal()
    assert len(second.in_flight) == many
    await second.journal.close()


async def test_of_a_transaction_that_a_broker_refuses_in_part_nothing_stands(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    station = Station(kafka.bootstrap, topic_name("refused"))
    station.settings[station.topics.failed] = {"max.message.bytes": "2000"}
    async with station:
        first = await station.open_journal()
        one = waiting("1")
        good = Event(topic=station.topics.completed, key=b"k", value=b'{"operationID": "1"}')
        large = Event(topic=station.topics.failed, key=b"k", value=request("1", "C4-1", padding="x" * 3_000))
        with pytest.raises(JournalLost, match=rf"MessageSizeTooLargeError: .* \(topic {station.topics.failed}\)$"):
            await first.journal.commit(
                Batch(changes={one.request.identity: one}, events=[good, large], cursor=Cursor("requests", 1))
            )
        await first.journal.close()
        second = await station.open_journal()

        assert (second.cursor, second.in_flight, station.told) == (None, [], [])
        await second.journal.close()


# ---------------------------------------------------------------- sizes, through the whole service


async def test_the_largest_request_is_served_and_larger_ones_are_set_aside_untouched(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    station = Station(kafka.bootstrap, topic_name("sizes"))
    station.settings[station.topics.dead_letter] = {"max.message.bytes": str(1024 * 1024 + 64 * 1024)}
    async with station:
        service = await station.service()

        def sized(operation_id: str, size: int) -> dict[str, Any]:
            """A request of so many bytes: key, value and headers."""
            key, headers = b"C4-1", [("h", b"v" * 1000)]
            bare = len(request(operation_id, "C4-1", padding="")) + len(key) + 1001
            padding = "x" * (size - bare)
            return {"key": key, "value": request(operation_id, "C4-1", padding=padding), "headers": headers}

        await station.send(**sized("largest", MAX_REQUEST_BYTES))
        over = sized("over", MAX_REQUEST_BYTES + 1)
        huge = sized("huge", 900 * 1024)
        await station.send(**over)
        await station.send(**huge)
        await station.ask("behind")

        await station.settled("largest", "behind")
        letters = await station.dead_letters(2)
        for letter, original in zip(letters, (over, huge), strict=True):
            assert (letter.key, letter.value, letter.headers[0]) == (
                original["key"],
                original["value"],
                original["headers"][0],
            )
            assert (word(letter, "reason"), word(letter, "truncated")) == ("too-large", None)
        assert service.metric("partitions_reopened_total") == 0


async def test_dead_letters_that_the_broker_refuses_for_their_size_come_without_value(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    station = Station(kafka.bootstrap, topic_name("narrow"))
    station.settings[station.topics.dead_letter] = {"max.message.bytes": "20000"}
    async with station:
        service = await station.service()
        await station.ask("before")
        for number, size in enumerate((100_000, 10_000, 200_000, 90_000)):
            await station.send(key=b"k%d" % number, value=b"x" * size, headers=[("h", b"v")])
        await station.ask("behind")

        await station.settled("before", "behind")
        letters = await station.dead_letters(4)
        assert [(letter.key, len(letter.value or b""), word(letter, "truncated")) for letter in letters] == [
            (b"k0", 0, "true"),
            (b"k1", 10_000, None),
            (b"k2", 0, "true"),
            (b"k3", 0, "true"),
        ]
        assert letters[0].headers[0] == ("h", b"v")
        # Refused together, then one by one, each larger one once; but not for ever.
        assert service.metric("partitions_reopened_total") <= 8


async def test_dead_letters_whose_keys_or_headers_the_broker_refuses_come_without_them_and_stop_nothing(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    station = Station(kafka.bootstrap, topic_name("narrow-keys"))
    station.settings[station.topics.dead_letter] = {"max.message.bytes": "20000"}
    async with station:
        await station.service()
        await station.send(key=b"k" * 30_000, value=b"x", headers=[("h", b"v")])
        await station.send(key=b"k", value=b"x", headers=[("h", b"v" * 30_000)])
        await station.ask("behind")

        await station.settled("behind")
        letters = await station.dead_letters(2)
        assert [(letter.key, letter.value, word(letter, "truncated")) for letter in letters] == [
            (None, b"", "true")
        ] * 2


async def test_an_outcome_that_the_broker_refuses_for_its_size_comes_with_fewer_words(
    kafka: Kafka, topic_name: TopicNamer, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = Station(kafka.bootstrap, topic_name("terse"))
    station.settings[station.topics.failed] = {"max.message.bytes": "2000"}
    async with station:
        station.world.fate = lambda _: "FAILED"
        make = station.world.make
        warnings = tuple(ApiError(f"W{n}", "w" * 1000) for n in range(5))

        def verbose(*args: Any, **options: Any) -> Task:
            task = make(*args, **options)
            made = station.world.made[task.id]
            made.task, made.error = replace(made.task, warnings=warnings), ApiError("Boom", "b" * 1000)
            return task

        monkeypatch.setattr(station.world, "make", verbose)
        service = await station.service()
        await station.ask("op-1")

        await station.told_of("op-1")
        event = json.loads(station.told[0].value)
        assert (event["reason"], event["warnings"]) == ("task-failed", [])
        assert event["error"] == {"code": "Boom", "msg": "b" * 100, "args": []}
        assert service.metric("partitions_reopened_total") == 1
        assert station.world.tasks_of() == {"op-1": 1}


async def test_what_can_not_be_told_at_all_is_tried_less_and_less_often(
    kafka: Kafka, topic_name: TopicNamer, caplog: pytest.LogCaptureFixture
) -> None:
    station = Station(kafka.bootstrap, topic_name("mute"), partitions=2)
    station.set_timings(reopen=replace(station.timings.reopen, first=timedelta(milliseconds=40)))
    station.settings[station.topics.completed] = {"max.message.bytes": "100"}
    async with station:
        service = await station.service()
        await station.ask("mute", partition=0)
        await until(lambda: service.opened.count(0) > 6, what="it is opened again after the sixth time")
        opened_at = time.time()
        lost_at = [record.created for record in caplog.records if "will be reopened" in record.getMessage()]

        # The sixth pause is of 1,280 ms, at least half of it; the first was of 40.
        assert opened_at - lost_at[5] > 0.6
        assert service.opened.count(1) == 1


# ---------------------------------------------------------------- a transaction past its time-out


@pytest.fixture
def strict_kafka() -> Iterator[EmbeddedKafka]:
    """One that looks for transactions past their time-out all the time."""
    with started(
        EmbeddedKafka(properties={"transaction.abort.timed.out.transaction.cleanup.interval.ms": "50"})
    ) as strict:
        yield strict


async def test_a_partition_whose_transaction_timed_out_works_again_by_itself(
    strict_kafka: EmbeddedKafka, topic_name: TopicNamer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalls: list[float] = []

    class Stalling(AIOKafkaProducer):  # type: ignore[misc] # aiokafka is untyped
        """Its transactions time out early, and one is not committed in time."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**(options | {"transaction_timeout_ms": 1500}))

        async def commit_transaction(self) -> None:
            if stalls:
                await asyncio.sleep(stalls.pop())
            await super().commit_transaction()

    monkeypatch.setattr(journal, "AIOKafkaProducer", Stalling)
    async with Station(strict_kafka.bootstrap, topic_name("stalled")) as station:
        service = await station.service()
        stalls.append(4.0)
        await station.ask("op-1")

        await station.settled("op-1")
        # On a busy machine others of its short transactions may time out, too.

        def works_again() -> bool:
            reopened = service.metric("partitions_reopened_total")
            return reopened >= 1 and len(service.opened) == 1 + reopened and service.metric("partitions_owned") == 1

        await until(works_again, what=lambda: f"it works again, opened {len(service.opened)} times")


async def test_a_commit_that_times_out_says_what_kafka_has_refused_all_the_time(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka's client sends a batch again, without end and without a word, while it has too few replicas."""
    first = await station.open_journal()
    assert isinstance(first.journal, KafkaJournal)
    client = first.journal._producer.client
    send = client.send

    async def too_few(node: int, request: Any, **options: Any) -> Any:
        answer = await send(node, request, **options)
        if isinstance(request, ProduceRequest):
            ((topic, ((partition, _, *rest),)),) = answer.topics
            answer.topics = [(topic, [(partition, NotEnoughReplicasError.errno, *rest)])]
        return answer

    monkeypatch.setattr(client, "send", too_few)
    monkeypatch.setattr(journal, "TRANSACTION_TIMEOUT", timedelta(seconds=3))

    with pytest.raises(JournalLost) as lost:
        await first.journal.commit(Batch({"op:C4-1:a": waiting("a")}))
    await first.journal.close()

    name = station.topics.journal
    assert str(lost.value).startswith(
        f"a commit to journal {name}-0 failed: timed out; the last error was: {name}-0: NotEnoughReplicasError: "
    )


@virtual
async def test_a_commit_ends_in_time_where_a_batch_waits_for_room_and_the_one_before_is_never_acknowledged() -> None:
    """Kafka's client never gives up a batch of a transaction, and lets the next one of its partition wait."""
    stuck = KafkaJournal(
        topic="journal", partition=0, connection={"bootstrap_servers": ["127.0.0.1:1"]}, refusals=Refusals()
    )
    producer, sent = stuck._producer, list[asyncio.Future[Any]]()

    async def begin() -> None:
        """Nothing keeps it from beginning."""

    async def send(*_: object, **__: object) -> "asyncio.Future[Any]":
        arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if sent:
            await arrived
        sent.append(arrived)
        return arrived

    producer.begin_transaction, producer.send_batch = begin, send

    with pytest.raises(JournalLost, match="TimeoutError"):
        await stuck.commit(Batch({f"op:C4-1:{number}": None for number in range(30_000)}))

    assert (now(), len(sent)) == (journal.TRANSACTION_TIMEOUT.total_seconds(), 1)
    await stuck.close()


async def test_a_commit_names_the_transactional_id_that_kafka_denies_without_naming_it() -> None:
    refused = KafkaJournal(
        topic="journal", partition=7, connection={"bootstrap_servers": ["127.0.0.1:1"]}, refusals=Refusals()
    )
    producer = refused._producer

    async def begin() -> None:
        """Nothing keeps it from beginning."""

    async def send(*_: object, **__: object) -> "asyncio.Future[Any]":
        arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        arrived.set_exception(TransactionalIdAuthorizationFailed())
        return arrived

    producer.begin_transaction, producer.send_batch = begin, send

    with pytest.raises(JournalLost, match=r"Kafka denies Write on transactional id journal-7$"):
        await refused.commit(Batch({"op:C4-1:1": None}))

    await refused.close()


def test_a_size_that_is_refused_is_logged_once_and_tried_again_after_some_minutes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = HandClock()
    refusals = Refusals(clock)
    large = Event(topic="completed", key=b"", value=bytes(2_000), headers=())

    for _ in range(3):
        refusals.refused("completed", size=2_000, records=1)
        assert not refusals.fits(large)
        assert refusals.room("completed") == 1_999
        clock.seconds += 700
        assert refusals.fits(large)
        assert refusals.room("completed") == journal.BATCH_BYTES

    assert [record.getMessage().count("2000 bytes for topic completed") for record in caplog.records] == [1]
    refusals.refused("completed", size=1_000, records=1)
    refusals.refused("failed", size=1_000, records=1)
    assert len(caplog.records) == 3


async def test_a_kafka_that_is_away_is_not_taken_for_a_missing_topic(
    own_kafka: EmbeddedKafka, topic_name: TopicNamer
) -> None:
    async with Station(own_kafka.bootstrap, topic_name("away")) as station:
        first = await station.open_journal()
        own_kafka.kill()

        with pytest.raises(JournalLost) as lost:
            await first.journal.commit(Batch(events=[Event(topic="never-seen", key=b"", value=b"")]))
        await first.journal.close()
        own_kafka.start()

    assert "UnknownTopic" not in str(lost.value)
