"""Topics that are deleted, created again, cut or outrun under a running service: nothing is skipped silently."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import UnknownTopicOrPartitionError

from service.clock import Clock
from service.intake.group_commits import note_of, noted_end
from service.intake.start_position import KafkaStartPositions, end_of_all
from service.kafka.consumer import SteadyConsumer, probe_consumer
from service.kafka.journal_api import Opened, StopReason
from service.kafka.journal_codec import Cursor, encode_cursor
from service.kafka.leader_offsets import Offsets
from service.kafka.rights import committed_with_note
from service.sandbox.kafka import EmbeddedKafka, Kafka
from tests.conftest import TopicNamer, started
from tests.support.kafka_harness import PATIENCE, Service, Station, until


@pytest.fixture
async def station(kafka: Kafka, topic_name: TopicNamer) -> AsyncIterator[Station]:
    async with Station(kafka.bootstrap, topic_name("replaced")) as station:
        station.set_timings(leader_settles=timedelta(seconds=0.2))
        yield station


# ---------------------------------------------------------------- the requests topic


async def test_a_requests_topic_that_is_recreated_under_a_running_service_skips_nothing_silently(
    station: Station,
) -> None:
    service = await station.service()
    await station.ask(*(f"op-{n}" for n in range(4)))
    await station.settled(*(f"op-{n}" for n in range(4)))

    await station.recreate(station.topics.requests)
    await station.ask("new-1", "new-2", "new-3")

    await until(lambda: bool(service.intake.mismatched()), what="it refuses")
    assert service.metric("partitions_stopped", reason=StopReason.REQUESTS_REPLACED) == 1
    assert "cursor is at offset 4 of another topic" in service.intake.mismatched()[0]
    await station.settled(*(f"op-{n}" for n in range(4)))


async def test_a_record_below_the_cursor_is_never_dropped_silently(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    service = await station.service()
    await station.ask("op-1", "op-2")
    await station.settled("op-1", "op-2")

    with caplog.at_level(logging.WARNING):
        service.consumer._subscription.seek(service.intake._supervisors[0].place, 0)  # behind our back
        await until(lambda: service.metric("partitions_reopened_total") == 1, what="it is opened again")
    assert "Kafka returned the record at offset 0, which is below the cursor 2" in caplog.text
    await station.ask("op-3")
    await station.settled("op-1", "op-2", "op-3")


async def test_a_requests_topic_that_is_gone_is_said_and_found_again_within_seconds(
    station: Station,
) -> None:
    station.set_timings(report=timedelta(seconds=0.3))
    service = await station.service()
    await station.drop(station.topics.requests)
    await until(lambda: service.intake.missing() is not None, what="it is missed")
    await until(lambda: not service.owned, what="nothing is assigned any more")

    await station.make(station.topics.requests)
    await until(lambda: service.reading == {0}, what="it is read")
    await until(lambda: service.intake.missing() is None, what="it is no longer missed")
    await station.ask("op-1")
    await station.settled("op-1")


async def test_a_requests_topic_that_is_recreated_and_filled_past_the_cursor_at_once_is_refused_for_good(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = timedelta(hours=1)
    station.set_timings(compare=by_hand, mismatch_recheck=timedelta(seconds=0.2))
    service = await station.service()
    await station.ask("op-1", "op-2")
    await station.settled("op-1", "op-2")

    asked: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    asked.set_result(True)
    monkeypatch.setattr(service.consumer._client, "force_metadata_update", lambda: asked)  # it does not see it missing
    place = service.intake._supervisors[0].place
    service.consumer.pause(place)
    await until(lambda: not service.consumer._fetcher._in_flight, what="no fetch is under way")
    await station.recreate(station.topics.requests)
    await station.ask("new-1", "new-2", "new-3", "new-4")
    service.consumer.resume(place)
    # Taken for the old one: nothing but the topic's id shows the difference.
    await station.told_of("new-3", "new-4")
    await service.intake._comparison.compare()

    await until(lambda: bool(service.intake.mismatched()), what="it refuses")
    assert "this topic was deleted and created again" in service.intake.mismatched()[0]
    times = len(service.opened)
    await asyncio.sleep(1)
    assert service.intake.mismatched()
    assert len(service.opened) == times, "it does not even open the journal"
    await service.stop()
    successor = await station.begin("B")
    await until(
        lambda: bool(successor.intake.mismatched()), what="nor does anybody else take the cursor for the new one's"
    )


async def test_a_requests_topic_that_lost_its_end_is_noticed_while_nothing_is_read(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    station.set_timings(compare=timedelta(seconds=0.3))
    service = await station.service()
    await station.ask("op-1", "op-2")
    await station.settled("op-1", "op-2")
    ends, asked = SteadyConsumer.end_offsets, SteadyConsumer.end_of_committed

    async def cut(consumer: SteadyConsumer, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        found = await ends(consumer, places)
        return {place: 1 if place.topic == station.topics.requests else end for place, end in found.items()}

    async def seen_cut(consumer: SteadyConsumer, places: Iterable[TopicPartition]) -> Offsets:
        return replace(await asked(consumer, places), known=dict.fromkeys(places, 1))

    monkeypatch.setattr(SteadyConsumer, "end_offsets", cut)
    monkeypatch.setattr(SteadyConsumer, "end_of_committed", seen_cut)
    await until(lambda: bool(service.intake.mismatched()), what="it refuses")
    assert (
        "ends at 1: the topic was deleted and created again, or truncated at its end" in service.intake.mismatched()[0]
    )
    assert service.metric("partitions_stopped", reason=StopReason.CURSOR_BEYOND_END) == 1


async def test_requests_that_retention_takes_from_under_a_full_partition_are_counted_and_the_rest_is_read(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    station.set_timings(compare=timedelta(seconds=0.3), records_at_once=1)
    station.world.lasts = lambda _: 1e6
    service = await station.service(max_in_flight=2)
    await station.ask("op-1", "op-2")
    await until(lambda: bool(service.consumer.paused()), what="it is full")
    await station.ask("gone-1", "gone-2", "op-3")

    await station.delete_before(4)
    await until(lambda: service.metric("requests_lost_total") == 2, what="the loss is counted")
    assert "Up to 2 requests of partition 0 were deleted from" in caplog.text
    assert "VM_SYNC_SYNC__MAX_IN_FLIGHT" in caplog.text
    station.world.lasts = lambda _: 0.0
    for made in station.world.made.values():
        made.lasts = 0.0
    await station.settled("op-1", "op-2", "op-3")
    assert service.metric("requests_lost_total") == 2


async def test_a_topic_has_an_id_and_its_successor_another(station: Station) -> None:
    async with probe_consumer(connection=station.connection, clock=Clock()) as consumer:
        first = await consumer.topic_id(station.topics.requests)
        await station.recreate(station.topics.requests)
        second = first
        async with asyncio.timeout(PATIENCE):
            while second == first:  # a broker may know of the new topic later than the controller that has made it
                with suppress(UnknownTopicOrPartitionError):
                    second = await consumer.topic_id(station.topics.requests)
    assert [len(found or "") for found in (first, second)] == [22, 22]  # as Kafka's tools write them


@pytest.fixture
def making_kafka() -> Iterator[EmbeddedKafka]:
    """One that makes topics that are asked for, as brokers do unless they are told not to."""
    with started(EmbeddedKafka(properties={"auto.create.topics.enable": "true"})) as kafka:
        yield kafka


@pytest.mark.kafka
async def test_a_topic_that_is_deleted_does_not_come_back_by_being_asked_for(
    making_kafka: EmbeddedKafka, topic_name: TopicNamer
) -> None:
    async with Station(making_kafka.bootstrap, topic_name("asked-for"), partitions=2) as station:
        station.set_timings(report=timedelta(seconds=0.3), compare=timedelta(seconds=0.3))
        service = await station.service()
        await station.ask("op-1")
        await station.settled("op-1")
        for name in (station.topics.journal, station.topics.requests):
            await station.drop(name)
        await until(lambda: service.intake.missing() is not None, what="the requests topic is missed")
        await asyncio.sleep(2)
        there = {topic["topic"] for topic in await station._admin.describe_topics()}
        assert there.isdisjoint({station.topics.journal, station.topics.requests})


# ---------------------------------------------------------------- two deployments, one journal


async def test_a_deployment_with_another_requests_topic_refuses_the_journal_without_fencing_its_owner(
    station: Station,
) -> None:
    station.set_timings(mismatch_recheck=timedelta(seconds=0.2))
    owner = await station.service("owner")
    await station.ask("op-1")
    await station.settled("op-1")
    other = f"{station.prefix}.other-requests"
    await station.make(other)

    second = await station.begin("second", group=f"{station.prefix}-2", requests=other)
    await until(lambda: bool(second.intake.mismatched()), what="it refuses")
    assert second.metric("partitions_stopped", reason=StopReason.OTHER_TOPIC) == 1
    await asyncio.sleep(1)  # some more tries
    await station.ask("op-2")
    await station.settled("op-1", "op-2")
    assert (second.opened, owner.metric("partitions_reopened_total")) == ([], 0)


async def test_of_two_groups_on_one_journal_one_works_and_the_other_names_it_until_it_is_gone(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    station.set_timings(mismatch_recheck=timedelta(seconds=0.2))
    first = await station.service("first", group=f"{station.prefix}-one")
    await station.ask("op-1")
    await station.settled("op-1")

    second = await station.begin("second", group=f"{station.prefix}-two")
    await until(lambda: bool(second.intake.mismatched()), what="it refuses")
    assert second.metric("partitions_stopped", reason=StopReason.OTHER_GROUP) == 1
    await asyncio.sleep(1)  # some more tries
    await station.ask("op-2")
    await station.settled("op-1", "op-2")
    assert (second.opened, first.metric("partitions_reopened_total")) == ([], 0)
    assert caplog.text.count(f"the consumer group {station.prefix}-one uses the same journal") == 1

    await first.stop()
    await until(lambda: second.reading == {0}, what="it takes over")
    await station.ask("op-3")
    await station.settled("op-1", "op-2", "op-3")
    assert second.metric("requests_total", result="accepted") == 1


async def test_of_two_groups_that_may_not_be_described_the_silent_one_is_taken_over(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forbidden(*_: object) -> None:
        return None

    station.set_timings(mismatch_recheck=timedelta(seconds=0.2))
    monkeypatch.setattr(KafkaStartPositions, "_holds", forbidden)
    first = await station.service("first", group=f"{station.prefix}-one")
    await station.ask("op-1")
    await station.settled("op-1")
    await first.stop()

    second = await station.begin("second", group=f"{station.prefix}-two")
    await until(lambda: bool(second.intake.mismatched()), what="it waits for a sign of life")
    await until(lambda: second.reading == {0}, what="it takes over")
    await station.ask("op-2")
    await station.settled("op-1", "op-2")


async def test_the_last_cursor_is_found_however_far_it_lies_before_the_journals_end(
    station: Station,
) -> None:
    one, journal = TopicPartition(station.topics.requests, 0), station.topics.journal
    positions = KafkaStartPositions(
        connection=station.connection, requests=one.topic, journal=journal, group_id="g", clock=Clock(), tail=2
    )

    async def committed() -> None:
        return None

    assert (await positions.look(one, committed=committed, remembered=False)).cursor is None
    cursor = Cursor(one.topic, 0, group="g")
    await station.send(topic=journal, key=b"cursor", value=encode_cursor(Cursor("older", 0)))
    await station.send(topic=journal, key=b"cursor", value=encode_cursor(cursor))
    for _ in range(30):
        await station.send(topic=journal, key=b"op:C4-1:1", value=b"{}")
    assert (await positions.look(one, committed=committed, remembered=False)).cursor == cursor


# ---------------------------------------------------------------- the journal


async def test_a_journal_that_has_lost_its_end_is_refused_and_nothing_is_done_again(station: Station) -> None:
    """As after an unclean leader election while no process runs: the group was told of records that are gone."""
    station.set_timings(mismatch_recheck=timedelta(seconds=0.2))
    first = await station.service()
    await station.ask("op-1", "op-2")
    await station.settled("op-1", "op-2")
    await first.stop()
    place = TopicPartition(station.topics.requests, 0)
    async with probe_consumer(connection=station.connection, clock=Clock()) as consumer:
        offset, note = await committed_with_note(consumer.client, station.prefix, place) or (0, "")
        reached = int(note.rpartition(" ")[2])
        end = await end_of_all(TopicPartition(station.topics.journal, 0), consumer)
    assert reached <= end <= reached + 1, "the mark of the last transaction may follow"
    group = AIOKafkaConsumer(**station.connection, group_id=station.prefix, enable_auto_commit=False)
    await group.start()
    group.assign([place])
    await group.commit({place: (offset, note.replace(f" {reached}", f" {reached + 7}"))})
    await group.stop()

    second = await station.begin("B")
    await until(lambda: bool(second.intake.mismatched()), what="it refuses")
    assert second.metric("partitions_stopped", reason=StopReason.JOURNAL_TRUNCATED) == 1
    assert f"ends at offset {end}, but {reached + 7} had been reached" in second.intake.mismatched()[0]
    await asyncio.sleep(1)
    assert second.intake.mismatched(), "nothing that it does itself makes the journal longer"
    assert not second.opened
    await second.stop()

    await station.forget_group()  # the way out that the text names
    await station.service("C")
    await station.ask("op-3")
    await station.settled("op-1", "op-2", "op-3")


def test_a_note_of_another_journal_tells_nothing_of_this_one() -> None:
    note = note_of("journal id-1", 700)

    assert noted_end(note, "journal id-1") == 700
    assert [noted_end(text, "journal id-2") for text in (note, "", "journal id-2 ends at sea")] == [None] * 3


async def test_a_journal_that_is_recreated_in_use_is_written_again_from_memory(
    station: Station, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    station.world.lasts = lambda _: 1e6
    service = await station.service()
    await station.ask("op-1", "op-2", "ended")
    await until(lambda: len(station.world.made) == 3, what="all run")
    end(station, "ended")
    await station.told_of("ended")

    await station.recreate(station.topics.journal)
    end(station, "op-1")  # its outcome is the first that is written to the new journal
    await station.told_of("op-1")
    await until(lambda: service.owned == {0} and service.metric("journals_rewritten_total") == 1, what="it is open")
    assert "with 1 syncs in flight (op:C4-op-2:op-2)" in caplog.text
    await station.ask("op-3", "ended")  # a duplicate
    await until(
        lambda: service.metric("requests_total", result="duplicate") == 1,
        what=lambda: str([service.metric("requests_total", result=word) for word in ("accepted", "duplicate")]),
    )
    await service.stop()

    successor = await station.service("B")
    assert not successor.intake.mismatched()
    end(station, "op-2")
    await until(lambda: "op-3" in station.world.tasks_of(), what="it runs")
    end(station, "op-3")
    await station.settled("op-1", "op-2", "op-3", "ended")


async def test_a_journal_that_is_gone_for_a_while_is_written_again_when_it_is_back(station: Station) -> None:
    station.world.lasts = lambda _: 1e6
    service = await station.service()
    await station.ask("op-1", "op-2")
    await until(lambda: len(station.world.made) == 2, what="both run")

    await station.drop(station.topics.journal)
    end(station, "op-1")
    await until(lambda: not service.owned, what="the journal is lost")
    await asyncio.sleep(1)
    await station.make(station.topics.journal)

    await until(lambda: service.owned == {0}, what="it works again", within=40)
    assert service.metric("journals_rewritten_total") == 1
    end(station, "op-2")
    await station.settled("op-1", "op-2")


async def test_a_journal_that_comes_back_not_compacted_is_not_opened_before_it_is(station: Station) -> None:
    station.set_timings(mismatch_recheck=timedelta(seconds=0.3))
    station.world.lasts = lambda _: 1e6
    service = await station.service()
    await station.ask("op-1", "op-2")
    await until(lambda: len(station.world.made) == 2, what="both run")

    del station.settings[station.topics.journal]  # as brokers make it that make missing topics
    await station.recreate(station.topics.journal)
    end(station, "op-1")
    await until(lambda: bool(service.intake.mismatched()), what="it refuses", within=40)
    assert service.metric("partitions_stopped", reason=StopReason.JOURNAL_NOT_COMPACTED) == 1
    assert "has cleanup.policy=delete, so Kafka would delete requests" in service.intake.mismatched()[0]

    await station.set_policy(station.topics.journal, "compact")
    await until(lambda: service.owned == {0}, what="it works again", within=40)
    assert service.metric("journals_rewritten_total") == 1
    end(station, "op-2")
    await station.settled("op-1", "op-2")


async def test_a_journal_that_lost_its_end_does_not_bring_back_what_has_ended(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    station.world.lasts = lambda _: 1e6
    service = await station.service()
    await station.ask("op-1", "op-2")
    await until(lambda: len(station.world.made) == 2, what="both run")
    ended = await opened_without_end(station, service, monkeypatch)

    await until(lambda: service.owned == {0} and ended.is_set(), what="it works again")
    assert service.metric("journals_rewritten_total") == 1
    end(station, "op-2")
    await station.settled("op-1", "op-2")
    # A reader may have an outcome before the service hears that its commit has succeeded.
    await until(lambda: len(service.partition()) == 0, what="the commit is known")
    assert service.metric("outcomes_total", outcome="completed", reason="", site="local") == 2


async def opened_without_end(station: Station, service: Service, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let an outcome be committed, and the journal then be lost and opened as it was before that."""
    cut = asyncio.Event()
    fenced = service.partition()
    before = await station.open_journal()  # fences the owner, who opens it again
    await before.journal.close()
    fenced._journal_writer.advance_cursor()  # which is refused
    await until(lambda: service.owned == {0} and service.partition() is not fenced, what="it is open again")
    end(station, "op-1")
    await station.told_of("op-1")
    supervisor = service.intake._supervisors[0]
    open_journal = supervisor._open_journal

    async def as_before(partition: int) -> Opened:
        opened = await open_journal(partition)
        if cut.is_set():
            return opened
        cut.set()
        return replace(opened, in_flight=before.in_flight, cursor=before.cursor, ended=before.ended, begin=1)

    monkeypatch.setattr(supervisor, "_open_journal", as_before)
    service.partition().fail("its journal is gone")
    return cut


def end(station: Station, operation_id: str) -> None:
    """Let a sync end."""
    (made,) = [made for made in station.world.made.values() if made.operation_id == operation_id]
    made.lasts = 0.0
