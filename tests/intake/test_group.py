"""The group and the journal: who may work on a partition, where reading begins, and when it must not."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataRequest

from service.kafka.journal import KafkaJournal
from service.kafka.journal_api import Batch, JournalLost, StopReason
from service.kafka.topics import JOURNAL_SETTINGS
from service.partition.partition import Partition
from service.sandbox.kafka import Kafka
from service.sync import SubmitAnswer
from tests.conftest import TopicNamer
from tests.support.kafka_harness import Service, Station, good, impatient, until


@pytest.fixture
async def station(kafka: Kafka, topic_name: TopicNamer) -> AsyncIterator[Station]:
    async with Station(kafka.bootstrap, topic_name("intake")) as station:
        yield station


# ---------------------------------------------------------------- where reading begins


async def test_without_the_groups_offsets_nothing_is_replayed(station: Station) -> None:
    first = await station.service()
    await station.ask("op-1", "op-2")
    await station.settled("op-1", "op-2")
    await first.stop()
    await station.forget_group()

    second = await station.service("B")
    await station.ask("op-3")

    await station.settled("op-1", "op-2", "op-3")
    assert [second.metric("requests_total", result=word) for word in ("accepted", "duplicate")] == [1, 0]


async def test_no_client_asks_the_brokers_for_topics_other_than_the_services_own(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[str] | None] = []
    send = AIOKafkaConnection.send

    def heard(self: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
        if isinstance(request, MetadataRequest) and self._client_id == "the service's":
            asked.append(request._topics)
        return send(self, request, expect_response)

    monkeypatch.setattr(AIOKafkaConnection, "send", heard)
    station.connection["client_id"] = "the service's"
    first = await station.service()
    await station.ask("op-1")
    await station.settled("op-1")
    await first.stop()

    second = await station.service("B")
    await second.intake._report()

    assert None not in asked, "the metadata of a whole cluster, which may have thousands of topics"
    assert {topic for topics in asked for topic in topics or ()} <= set(station.topics.all())


async def test_under_another_groups_name_nothing_is_replayed(station: Station) -> None:
    first = await station.service()
    await station.ask("op-1", "op-2")
    await station.settled("op-1", "op-2")
    await first.stop()

    second = await station.service("B", group=f"{station.prefix}-renamed")
    await station.ask("op-3")

    await station.settled("op-1", "op-2", "op-3")
    assert [second.metric("requests_total", result=word) for word in ("accepted", "duplicate")] == [1, 0]


async def refusal(station: Station, reason: StopReason) -> str:
    """Start a service that refuses to work on its only partition for that reason, and return what it says."""
    service = await station.begin("refuses")
    await until(lambda: bool(service.intake.mismatched()), what="it refuses")
    assert service.metric("partitions_stopped", reason=reason) == 1
    assert (service.owned, service.metric("partitions_owned")) == (set(), 0)
    assert not service.vcda.posts
    return service.intake.mismatched()[0]


async def test_an_emptied_journal_is_refused(station: Station) -> None:
    first = await station.service()
    await station.ask("op-1", "op-2")
    await station.settled("op-1", "op-2")
    await first.stop()
    await station.drop(station.topics.journal)
    await station.make(station.topics.journal)

    says = await refusal(station, StopReason.JOURNAL_EMPTY)

    assert f"has committed offset 2, but the journal {station.topics.journal} is empty" in says
    assert "set VM_SYNC_TOPICS__JOURNAL to it, or restore it" in says
    assert "If an operator has set the group's offsets before" in says, "who did so has lost nothing"


async def test_another_journal_is_refused_where_the_group_has_had_the_partition_also_if_nothing_was_read(
    station: Station,
) -> None:
    """While instances are replaced, one with another journal would run what one with the former runs again."""
    station.set_timings(report=timedelta(seconds=0.2))
    first = await station.service()
    await until_reported(station, 0)
    await first.stop()
    station.topics = replace(station.topics, journal=f"{station.topics.journal}-new")
    station.settings[station.topics.journal] = dict(JOURNAL_SETTINGS)
    await station.make(station.topics.journal)

    says = await refusal(station, StopReason.JOURNAL_EMPTY)

    assert f"has committed offset 0, but the journal {station.topics.journal} is empty" in says


async def test_a_journal_whose_first_commit_failed_is_not_taken_for_an_emptied_one(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests topic is older than the service, so that reading begins at an offset above 0."""
    commit = KafkaJournal.commit
    failed: list[Batch] = []

    async def commit_later(journal: KafkaJournal, batch: Batch) -> None:
        if not failed:
            failed.append(batch)
            msg = "Kafka is away for a moment"
            raise JournalLost(msg)
        await commit(journal, batch)

    monkeypatch.setattr(KafkaJournal, "commit", commit_later)
    await station.ask("gone-1", "gone-2", "op-1")
    await station.delete_before(2)

    service = await station.begin()

    await station.settled("op-1")
    assert failed
    assert service.intake.mismatched() == {}


async def test_a_requests_topic_that_was_made_anew_is_refused(station: Station) -> None:
    station.set_timings(leader_settles=timedelta(seconds=0.2))
    first = await station.service()
    await station.ask("op-1", "op-2")
    await station.settled("op-1", "op-2")
    await first.stop()
    await station.drop(station.topics.requests)
    await station.make(station.topics.requests)

    says = await refusal(station, StopReason.REQUESTS_REPLACED)

    assert "cursor is at offset 2 of another topic" in says
    assert "start it with a new journal (VM_SYNC_TOPICS__JOURNAL) and a new group" in says


async def test_a_requests_topic_that_was_made_anew_and_filled_again_is_refused(station: Station) -> None:
    first = await station.service()
    await station.ask("op-1", "op-2")
    await station.settled("op-1", "op-2")
    await first.stop()
    await station.drop(station.topics.requests)
    await station.make(station.topics.requests)
    await station.ask("other-1", "other-2", "other-3")

    says = await refusal(station, StopReason.REQUESTS_REPLACED)

    assert "the requests below that offset were never read" in says
    assert "start it with a new journal (VM_SYNC_TOPICS__JOURNAL) and a new group" in says


async def test_requests_that_were_read_and_then_deleted_are_no_reason_to_refuse(
    station: Station,
) -> None:
    first = await station.service()
    await station.ask("op-1", "op-2")
    await station.settled("op-1", "op-2")
    await first.stop()
    await station.delete_before(2)

    second = await station.service("B")
    await station.ask("op-3")

    await station.settled("op-1", "op-2", "op-3")
    assert second.metric("requests_lost_total") == 0


async def test_requests_that_were_deleted_unread_are_counted(station: Station) -> None:
    first = await station.service()
    await station.ask("op-1")
    await station.settled("op-1")
    await first.stop()
    await station.ask("gone-1", "gone-2", "op-2")
    await station.delete_before(3)

    second = await station.service("B")

    await station.settled("op-1", "op-2")
    assert second.metric("requests_lost_total") == 2
    assert second.metric("records_total", fate="lost") == 2


async def test_the_groups_offset_is_past_what_holds_no_requests(
    station: Station, kafka: Kafka, topic_name: TopicNamer
) -> None:
    station.set_timings(report=timedelta(seconds=0.2))
    await station.service()
    upstream = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=topic_name("upstream"))
    await upstream.start()
    for operation_id, stands in (("done", True), ("undone", False)):
        await upstream.begin_transaction()
        await upstream.send_and_wait(station.topics.requests, **good(operation_id))
        await (upstream.commit_transaction() if stands else upstream.abort_transaction())
    await upstream.stop()
    await station.settled("done")

    reached = -1
    async with asyncio.timeout(60):
        while reached < 4:  # two records, and each transaction's mark
            reached = await station.group_offset()
    assert reached == 4


async def until_reported(station: Station, offset: int) -> None:
    """Wait until the group has committed an offset."""
    async with asyncio.timeout(60):
        while await station.group_offset() != offset:
            await asyncio.sleep(0.05)


def _reported(service: Service, since: float) -> bool:
    return service.intake.kafka_seen_at > since


async def test_the_group_is_never_told_of_requests_that_the_journal_does_not_hold_yet(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a group has committed as read, operators and tools delete from the topic."""
    station.set_timings(report=timedelta(seconds=0.2))
    service = await station.service()
    await station.ask("op-1")
    await station.settled("op-1")
    commit, stands = KafkaJournal.commit, asyncio.Event()

    async def slow(journal: KafkaJournal, batch: Batch) -> None:
        await stands.wait()
        await commit(journal, batch)

    monkeypatch.setattr(KafkaJournal, "commit", slow)
    await station.ask("op-2", "op-3")
    await until(lambda: service.partition().cursor == 3, what="both are admitted")
    for _ in range(3):  # the first report may have begun before; it is over when the next one has been answered
        reported = service.intake.kafka_seen_at
        await until(partial(_reported, service, reported), what="it reports")

    assert await station.group_offset() == 1
    stands.set()
    await station.settled("op-1", "op-2", "op-3")
    async with asyncio.timeout(30):
        while await station.group_offset() != 3:
            await asyncio.sleep(0.05)


# ---------------------------------------------------------------- who may work


async def test_a_member_that_was_thrown_out_writes_nothing_and_fences_nobody(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await station.service("old")
    await station.ask("op-1")
    await station.settled("op-1")
    zombie = old.partition()
    await old.throw_out()
    new = await station.service("new")
    asked = count_commits(old, monkeypatch)

    assert not await zombie.quiesce(5.0)  # what it writes to hand over is refused
    await until(lambda: bool(asked), what="it has asked the group whether it may open again")
    await station.ask("op-2")

    await station.settled("op-1", "op-2")
    assert (old.opened, new.opened) == ([0], [0])
    assert [new.metric("partitions_reopened_total"), old.metric("partitions_owned")] == [0, 0]

    old.wake()
    await until(lambda: len(old.consumer.assignment()) + len(new.consumer.assignment()) == 1, what="one member has it")
    await station.ask("op-3")
    await station.settled("op-1", "op-2", "op-3")


def count_commits(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[dict[Any, Any]]:
    """Note what it tells the group from now on."""
    told: list[dict[Any, Any]] = []
    commit = service.consumer.commit

    async def counted(offsets: dict[Any, Any]) -> None:
        told.append(offsets)
        await commit(offsets)

    monkeypatch.setattr(service.consumer, "commit", counted)
    return told


async def test_a_member_that_quiesces_for_too_long_is_succeeded_and_tells_nothing_more(station: Station) -> None:
    station.set_timings(rebalance_timeout=timedelta(seconds=1))
    old = await station.service("old")
    old.vcda.script["op-1"] = ["lost-answer"]
    old.vcda.latency = 3.0  # the task is there after half of it, the end of the POST after the whole
    await station.ask("op-1")
    await until(lambda: old.vcda.posts.total() == 1, what="the POST has left")

    new = await station.begin("new")  # it may have handed over already when one looks whether it is open
    await station.settled("op-1")
    await until(lambda: not old.owned or not new.owned, what="the old one knows")
    await station.ask("op-2")

    await station.settled("op-1", "op-2")
    adopted = [service.metric("tasks_adopted_total") for service in (old, new)]
    # By whichever of them has the partition then; by both, where the old one is fenced before it has written that down.
    assert sum(adopted) >= 1, adopted
    assert old.vcda.posts + new.vcda.posts == {"op-1": 1, "op-2": 1}


async def test_a_zombie_that_wakes_between_its_intent_and_its_post_does_not_post(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = impatient(window=timedelta(seconds=0.3), late=timedelta(seconds=0.5))
    zombie = await station.service("zombie", policy=policy)
    asleep, awake, submit = asyncio.Event(), asyncio.Event(), zombie.vcda.submit

    async def sleeping(**request: Any) -> SubmitAnswer:
        asleep.set()
        await awake.wait()
        return await submit(**request)

    monkeypatch.setattr(zombie.vcda, "submit", sleeping)
    await station.ask("op-1")
    await asleep.wait()
    await zombie.throw_out()
    successor = await station.service("successor", policy=policy)
    await station.settled("op-1")

    awake.set()
    await until(lambda: not zombie.owned, what="it has found out")
    assert (zombie.vcda.posts, successor.vcda.posts) == ({}, {"op-1": 1})
    await station.settled("op-1")


async def test_whoever_stops_lets_its_posts_be_answered_so_that_nothing_is_in_doubt(station: Station) -> None:
    first = await station.service()
    first.vcda.latency = 1.0
    await station.ask("op-1", "op-2")
    await until(lambda: first.vcda.posts.total() == 2, what="the POSTs have left")
    await first.stop()

    second = await station.service("B")

    await station.settled("op-1", "op-2")
    assert second.vcda.finds == 0


async def test_members_come_and_go_while_posts_are_in_flight_and_nothing_is_in_doubt(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    async with Station(kafka.bootstrap, topic_name("rebalance"), partitions=4, lasts=1.0) as station:
        first = await station.service("A")
        first.vcda.latency = 0.6
        some = [f"op-{number}" for number in range(20)]
        await station.ask(*some)
        await until(lambda: first.vcda.posts.total() > 0, what="POSTs are in flight")

        second = await station.begin("B")
        await until(lambda: len(second.reading) == 2 and len(first.reading) == 2, what="both have their share")
        more = [f"more-{number}" for number in range(20)]
        await station.ask(*more)
        await until(lambda: second.vcda.posts.total() > 0, what="B POSTs too")
        kept = set(first.owned)
        await second.stop()

        await station.settled(*some, *more)
        assert (first.vcda.finds, second.vcda.finds) == (0, 0)
        assert sorted(second.opened) == sorted({0, 1, 2, 3} - kept)
        # Those that it kept went on with the journals they had.
        assert sorted(first.opened) == sorted([0, 1, 2, 3, *second.opened])
        assert first.metric("partitions_reopened_total") == second.metric("partitions_reopened_total") == 0


# ---------------------------------------------------------------- how much is read


async def test_a_partition_that_has_its_share_in_flight_is_read_on_when_there_is_room(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    station.set_timings(records_at_once=1)
    station.world.lasts = lambda _: 1e6
    service = await station.service(max_in_flight=10)
    partition, consumer = service.partition(), service.consumer
    resumed: list[int] = []
    resume = consumer.resume

    def noted(*places: Any) -> None:
        resumed.append(len(partition))
        resume(*places)

    monkeypatch.setattr(consumer, "resume", noted)
    await station.ask(*(f"op-{number:02}" for number in range(14)))
    await until(lambda: len(station.world.made) == 10 and bool(consumer.paused()), what="it has its share")

    async def end_one() -> None:
        made = next(made for made in station.world.made.values() if made.lasts)
        made.lasts = 0.0
        left = len(partition) - 1
        await until(lambda: len(partition) <= left, what="it has ended")
        service.intake._hold_back(service.intake._supervisors[0])  # as it does by itself, sooner or later

    await end_one()  # 9
    await end_one()  # 8
    assert resumed == []
    await end_one()
    assert resumed == [7]
    await until(lambda: len(station.world.made) == 13, what="it is full again")
    assert service.metric("requests_total", result="accepted") == 13
    station.world.lasts = lambda _: 0.0
    for made in station.world.made.values():
        made.lasts = 0.0
    await station.settled(*(f"op-{number:02}" for number in range(14)))


async def test_partitions_that_were_added_without_widening_the_journal_wait_and_the_others_work(
    station: Station,
) -> None:
    station.set_timings(mismatch_recheck=timedelta(seconds=0.3))
    station.connection["metadata_max_age_ms"] = 300
    service = await station.service()
    await station.widen(station.topics.requests, 2)
    await until(lambda: bool(service.intake.mismatched()), what="the added partition is seen")

    says = service.intake.mismatched()[1]
    assert "drain the service, add partitions to the journal, then to the requests topic; in this order" in says
    assert service.metric("partitions_stopped", reason="journal-too-narrow") == 1
    await station.ask("op-1", partition=0)
    await station.settled("op-1")

    await station.widen(station.topics.journal, 2)
    await until(lambda: service.reading == {0, 1}, what="it works as soon as it can")
    assert service.metric("partitions_stopped", reason="journal-too-narrow") == 0
    await station.ask("op-2", partition=1)
    await station.settled("op-1", "op-2")


async def test_a_partition_that_is_lost_again_and_again_is_a_reason_not_to_be_ready_until_it_stays_open(
    station: Station,
) -> None:
    station.set_timings(settled=timedelta(seconds=1.5))
    service = await station.service()
    await until(lambda: service.owned == {0}, what="the partition is open")
    for number in range(3):
        assert service.intake.unopened() == [], number
        lost = service.partition()
        lost.fail("Kafka refuses each commit")
        await until(partial(reopened, service, lost), what="it is open again")

    (reason,) = service.intake.unopened()
    assert reason.startswith("partition 0 has been lost 3 times in a row")
    assert "Kafka refuses each commit" in reason
    await until(lambda: service.intake.unopened() == [], what="it has stayed open")


def reopened(service: Service, lost: Partition) -> bool:
    """Tell whether the only partition is open, and not as the one that was lost."""
    return service.owned == {0} and service.partition() is not lost
