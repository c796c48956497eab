"""A partition's supervisor: it opens, opens again, and ends when it is let go of, whatever Kafka's client does."""

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, KafkaConnectionError, KafkaError, OffsetMetadataTooLargeError
from typing_extensions import override

from service.intake.group import Intake, Plan
from service.intake.group_commits import Committed, note_of
from service.intake.start_position import Looked, Start
from service.intake.subscriber import Subscriber
from service.intake.supervisor import PartitionSupervisor
from service.intake.timings import DEFAULT_TIMINGS
from service.kafka.denials import Account, Denials
from service.kafka.journal_api import Batch, JournalLost, JournalMismatch, Opened, StopReason
from service.kafka.journal_codec import Cursor
from service.kafka.journal_replay import EndedSyncs
from service.messages.kafka_record import Event
from service.partition.partition import Memory
from tests.support.virtual_time import VirtualClock, VirtualLoop, now, run_virtual, virtual

PLACES = {TopicPartition("requests", 7)}


class Quiet:
    """A meter that counts nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Fitting:
    """Finds that every journal fits."""

    async def look(self, *_: object, **__: object) -> Looked:
        return Looked(None, Start(0))

    async def of(self, *_: object, **__: object) -> Start:
        return Start(0)


class Swallowing:
    """Opens journals as slowly as Kafka can, and swallows a cancellation as aiokafka's producer does."""

    def __init__(self) -> None:
        self.opened = 0

    async def open(self, _: int) -> Opened:
        self.opened += 1
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
        msg = "Kafka is away"
        raise JournalLost(msg)


class Unfit(Fitting):
    """Finds, once, that a journal doesn't fit."""

    @override
    async def look(self, *_: object, **__: object) -> Looked:
        if not self.looked:
            self.looked = True
            msg = "the journal is empty"
            raise JournalMismatch(msg, reason=StopReason.JOURNAL_EMPTY)
        return await super().look()

    looked = False


def intake_of(journals: Swallowing, positions: Fitting | None = None) -> Intake:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return Intake(
        connection={"bootstrap_servers": ["127.0.0.1:1"]},
        plan=Plan(
            group_id="group",
            session_timeout=timedelta(seconds=10),
            max_in_flight=10,
            positions=positions or Fitting(),
            open_journal=journals.open,
            journal="journal",
            denials=Denials(Account(), clock=VirtualClock(loop)),
        ),
        dependencies=dependencies(),
        metrics=Quiet(),
    )


def dependencies() -> Any:
    """All that is asked for."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return SimpleNamespace(requests="requests", random=Random(1), clock=VirtualClock(loop))


class Member:
    """Confirms that the partition is its process's own; nothing is ever read."""

    async def committed(self, place: TopicPartition) -> Committed | None:  # noqa: ARG002 - no group was ever told anything
        return None

    async def commit(self, place: TopicPartition, committed: Committed) -> None:
        pass

    def read_from(self, place: TopicPartition, offset: int) -> int | None:  # noqa: ARG002 - nothing is assigned
        return None


def supervisor_of(journals: Swallowing) -> PartitionSupervisor:
    (place,) = PLACES
    return PartitionSupervisor(
        place,
        member=Member(),
        positions=Fitting(),
        open_journal=journals.open,
        dependencies=dependencies(),
        timings=DEFAULT_TIMINGS,
        metrics=Quiet(),
    )


@pytest.mark.parametrize("stopping", [False, True])
def test_a_supervisor_whose_cancellation_was_swallowed_ends_all_the_same(stopping: bool) -> None:
    async def play() -> None:
        journals = Swallowing()
        intake = intake_of(journals)
        await intake._assign(PLACES)
        await asyncio.sleep(2)
        intake._let_go(7)
        (task,) = intake._closing.values()
        await asyncio.wait([task], timeout=60)

        assert task.cancelled()
        assert journals.opened == 1

        intake._stopping = stopping
        await intake._assign(PLACES)
        await asyncio.sleep(2)
        assert journals.opened == (1 if stopping else 2)
        for number in list(intake._supervisors):
            intake._let_go(number)
            await asyncio.wait(intake._closing.values())

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(play())


def test_a_stopped_partition_that_goes_elsewhere_while_it_is_tried_again_is_no_longer_shown_as_stopped_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def play() -> None:
        journals = Swallowing()
        intake = intake_of(journals, Unfit())
        monkeypatch.setattr(intake, "committed", Member().committed)
        await intake._assign(PLACES)
        await asyncio.sleep(1)
        stopped = [intake.seen().stopped]
        # It is looked at again, its journal can't be opened within 5 s, and it pauses before the next attempt.
        await asyncio.sleep(DEFAULT_TIMINGS.mismatch_recheck.total_seconds() + 4.01)
        stopped.append(intake.seen().stopped)
        intake._let_go(7)
        await asyncio.wait(intake._closing.values())

        assert journals.opened == 1
        assert stopped == [[StopReason.JOURNAL_EMPTY]] * 2, "still while its journal can't be opened"
        assert intake.seen().stopped == []

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(play())


class HalfStarted:
    """FastStream's broker, which is given a partition while it starts, and never comes to an end with that."""

    config = SimpleNamespace(broker_config=SimpleNamespace(builder=None))

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def connect(self) -> None:
        """Nothing to connect to."""

    async def start(self) -> None:
        await self._intake._assign(PLACES)
        await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        await self._intake._assign(PLACES)  # the group hands it out once more before it hears that we leave


def test_whoever_is_told_to_stop_while_it_joins_lets_go_of_what_it_was_given() -> None:
    async def play() -> None:
        journals = Swallowing()
        intake = intake_of(journals)
        intake._subscriber.broker = HalfStarted(intake)  # type: ignore[assignment] # all that is asked of it
        starting = asyncio.create_task(intake.start())
        await asyncio.sleep(2)
        assert journals.opened == 1
        starting.cancel()
        await asyncio.wait([starting])
        assert intake.opening() == {}
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nobody goes on opening it"

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(play())


def test_leaving_ends_in_time_although_a_cancellation_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> float:
        loop = asyncio.get_running_loop()
        intake = intake_of(Swallowing())
        released = loop.create_future()

        async def never() -> None:
            while not released.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.shield(released)

        monkeypatch.setattr(intake._subscriber, "stop", never)
        began = loop.time()
        await intake._leave(3.0)
        took = loop.time() - began
        released.set_result(None)
        await asyncio.sleep(1)
        return took

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(play()) == 3.0


class Remade:
    """A journal that was made anew, with `end` records."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.commits: list[Batch] = []

    async def commit(self, batch: Batch) -> None:
        self.commits.append(batch)
        self.end += 3


def test_what_was_written_back_into_a_new_journal_is_not_published_again_if_the_opening_fails_then() -> None:
    def opened(journal: Remade, cursor: Cursor | None) -> Opened:
        return Opened(
            journal=journal,  # type: ignore[arg-type] # all that is asked of it
            opened_at=0.0,
            cursor=cursor,
            in_flight=[],
            ended=EndedSyncs(),
            begin=journal.end - 1,
        )

    async def play() -> None:
        supervisor = supervisor_of(Swallowing())
        cursor = Cursor("requests", 5)
        batch = Batch(events=[Event(topic="completed", key=None, value=b"{}")], cursor=cursor)
        first, second = Remade(1), Remade(6)
        await supervisor._write_back(opened(first, None), Memory(batch, EndedSyncs(), end=100))
        assert [len(batch.events) for batch in first.commits] == [1]
        assert supervisor._memory is not None
        await supervisor._write_back(opened(second, cursor), supervisor._memory)
        assert second.commits == []

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(play())


def test_a_new_journal_is_written_back_however_far_openings_that_failed_have_taken_its_end() -> None:
    async def play() -> None:
        supervisor = supervisor_of(Swallowing())
        journal = Remade(8)
        opened = Opened(
            journal=journal,  # type: ignore[arg-type] # all that is asked of it
            opened_at=0.0,
            cursor=None,
            in_flight=[],
            ended=EndedSyncs(),
            begin=7,
        )
        memory = Memory(Batch(cursor=Cursor("requests", 1)), EndedSyncs(), end=4)
        opened = await supervisor._write_back(opened, memory)
        assert len(journal.commits) == 1
        assert opened.cursor == Cursor("requests", 1)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(play())


@virtual
async def test_the_group_hears_where_a_journal_ends_before_a_partition_goes_on_with_what_was_written_back() -> None:
    told: list[Committed] = []

    class Hearing(Member):
        @override
        async def commit(self, place: TopicPartition, committed: Committed) -> None:
            told.append(committed)

    supervisor = supervisor_of(Swallowing())
    supervisor._member = Hearing()
    supervisor.journal, supervisor.note = "journal id-1", "journal id-1 ends at 100"
    opened = Opened(
        journal=Remade(61),  # type: ignore[arg-type] # all that is asked of it
        opened_at=0.0,
        cursor=Cursor("requests", 4),
        in_flight=[],
        ended=EndedSyncs(),
        begin=60,
    )
    await supervisor._write_back(opened, Memory(Batch(cursor=Cursor("requests", 5)), EndedSyncs(), end=100))
    assert told == [Committed(5, "journal id-1 ends at 64")]


def test_a_partition_of_a_replaced_topic_is_opened_again_also_where_kafka_is_too_slow_to_let_that_stand() -> None:
    async def play() -> list[str]:
        intake = intake_of(Swallowing())
        failed: list[str] = []
        partition = SimpleNamespace(disown_cursor=asyncio.get_running_loop().create_future, fail=failed.append)
        supervisor = supervisor_of(Swallowing())
        supervisor.partition = partition  # type: ignore[assignment] # all that is asked of it
        with suppress(TimeoutError):
            async with asyncio.timeout(DEFAULT_TIMINGS.compare_limit.total_seconds()):
                await intake._comparison._replaced(supervisor, supervisor.partition)  # type: ignore[arg-type]
        return failed

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(play()) == ["the requests topic was deleted and created again"]


def test_a_partition_whose_journal_can_not_be_opened_for_long_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def play() -> tuple[list[str], list[str]]:
        intake = intake_of(Swallowing())
        monkeypatch.setattr(intake, "committed", Member().committed)
        await intake._assign(PLACES)
        await asyncio.sleep(120)
        early = intake.unopened()
        await asyncio.sleep(60)
        late = intake.unopened()
        intake._let_go(7)
        await asyncio.wait(intake._closing.values())
        return early, late

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(play()) == ([], ["partition 7 has not been open for 180 s: Kafka is away"])


def test_a_group_that_goes_on_refusing_is_logged_once_for_each_cause(caplog: pytest.LogCaptureFixture) -> None:
    """It is asked each second, for each partition."""
    causes = [CommitFailedError("no member")] * 50 + [KafkaConnectionError("away")] * 50

    class Refused(Member):
        @override
        async def committed(self, place: TopicPartition) -> Committed | None:
            if causes:
                raise causes.pop(0)
            return await super().committed(place)

    async def play() -> None:
        supervisor = supervisor_of(Swallowing())
        supervisor._member = Refused()
        await supervisor._until_confirmed()

    caplog.set_level(logging.INFO, "service")
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(play())

    assert causes == []
    assert [text.partition(": ")[2].partition("(")[0] for text in caplog.messages] == [
        "CommitFailedError",
        "KafkaConnectionError",
    ]


class ThrownOut:
    """A consumer that its group has removed: each commit that is refused makes it join again, as aiokafka does."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._request = asyncio.Lock()
        self._member = False
        self._rejoin = asyncio.Event()
        self.refused = self.accepted = self.joined = 0

    async def commit(self, _: object) -> None:
        async with self._request:
            member = self._member
            await asyncio.sleep(0.005)
            if not member:
                self.refused += 1
                self._member = False
                self._rejoin.set()
                raise CommitFailedError
            self.accepted += 1

    async def coordinate(self) -> None:
        while True:
            await self._rejoin.wait()
            await asyncio.sleep(0.01)  # it is not always the next to run
            await self._intake.on_partitions_revoked([])
            self._rejoin.clear()
            await asyncio.sleep(0.02)
            self._member = not self._rejoin.is_set()
            self.joined += 1
            await self._intake.on_partitions_assigned([])


def test_partitions_that_ask_for_the_membership_together_make_the_member_join_again_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask(intake: Intake, number: int) -> None:
        while True:
            with suppress(KafkaError):
                await intake.commit(TopicPartition("requests", number), Committed(5))
                return
            await asyncio.sleep(0)

    async def scene() -> ThrownOut:
        intake = intake_of(Swallowing())
        consumer = ThrownOut(intake)
        monkeypatch.setattr(Subscriber, "consumer", property(lambda _: consumer))
        await intake.on_partitions_assigned([])
        coordination = asyncio.create_task(consumer.coordinate())
        async with asyncio.timeout(60):
            await asyncio.gather(*[ask(intake, number) for number in range(4)])
        coordination.cancel()
        return consumer

    consumer = run_virtual(scene())

    assert (consumer.refused, consumer.joined, consumer.accepted) == (1, 1, 4)


class Unassigned:
    """A consumer whose group refuses the first commits, and makes no assignment: the moments of all commits."""

    def __init__(self, *, refuses: int, takes: float = 0.005) -> None:
        self._refuses = refuses
        self._takes = takes
        self.refused: list[float] = []
        self.accepted: list[float] = []

    async def commit(self, _: object) -> None:
        moment = now()
        await asyncio.sleep(self._takes)
        if len(self.refused) < self._refuses:
            self.refused.append(moment)
            raise CommitFailedError
        self.accepted.append(moment)


async def unassigned(monkeypatch: pytest.MonkeyPatch, **given: Any) -> tuple[Intake, Unassigned]:
    """Return a member that has its assignment, and whose next commits are refused."""
    intake, consumer = intake_of(Swallowing()), Unassigned(**given)
    monkeypatch.setattr(Subscriber, "consumer", property(lambda _: consumer))
    await intake.on_partitions_assigned([])
    return intake, consumer


async def commit_until_accepted(intake: Intake, number: int) -> None:
    while True:
        with suppress(KafkaError):
            await intake.commit(TopicPartition("requests", number), Committed(5))
            return
        await asyncio.sleep(1)


@virtual
async def test_no_commit_waits_any_more_once_the_group_has_accepted_one_though_no_assignment_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    intake, consumer = await unassigned(monkeypatch, refuses=1)

    await asyncio.gather(*[commit_until_accepted(intake, number) for number in range(4)])

    assert consumer.refused == [0.0]
    assert consumer.accepted == pytest.approx([60.005, 60.01, 60.015, 60.02])


@virtual
async def test_offsets_are_committed_without_notes_where_brokers_take_none_so_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Brief(Unassigned):
        @override
        async def commit(self, offsets: Any) -> None:
            if any(len(note) > 64 for _, note in offsets.values()):
                raise OffsetMetadataTooLargeError
            await super().commit(offsets)

    intake, consumer = intake_of(Swallowing()), Brief(refuses=0)
    monkeypatch.setattr(Subscriber, "consumer", property(lambda _: consumer))
    await intake.on_partitions_assigned([])
    place, committed = TopicPartition("requests", 1), Committed(5, note_of("j" * 249, 7))
    with pytest.raises(OffsetMetadataTooLargeError):
        await intake.commit(place, committed)
    await intake.commit(place, committed)
    assert len(consumer.accepted) == 1
    (text,) = caplog.messages
    assert "take no 259 characters with an offset (offset.metadata.max.bytes)" in text


@virtual
async def test_a_member_that_the_group_goes_on_refusing_asks_it_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    intake, consumer = await unassigned(monkeypatch, refuses=3)

    await asyncio.gather(*[commit_until_accepted(intake, number) for number in range(4)])

    assert consumer.refused == pytest.approx([0.0, 60.005, 120.01])
    assert consumer.accepted[-1] < 181


@virtual
async def test_the_minute_for_an_assignment_passes_also_where_each_commit_is_given_up_earlier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cursors are committed every 5 s, and within 5 s: otherwise the group's offsets would stand still."""
    intake, consumer = await unassigned(monkeypatch, refuses=1)

    while not consumer.accepted:
        with suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(5):
                await intake.commit(TopicPartition("requests", 7), Committed(5))
        assert now() < 70

    assert consumer.accepted == pytest.approx([60.005])


@virtual
async def test_commits_wait_for_a_rebalance_that_begins_while_one_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    intake, consumer = await unassigned(monkeypatch, refuses=1, takes=10)
    commits = asyncio.gather(*[commit_until_accepted(intake, number) for number in range(3)])
    await asyncio.sleep(75)  # the first commit after the refusal is on its way since the 70th second
    await intake.on_partitions_revoked([])
    await asyncio.sleep(15)
    assert consumer.accepted == [70.0]
    await intake.on_partitions_assigned([])
    await commits

    assert consumer.accepted == [70.0, 90.0, 100.0]
