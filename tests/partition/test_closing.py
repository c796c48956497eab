"""A partition that closes gives back what it holds of the process, wherever it is interrupted."""

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from typing_extensions import override

from service.event_loop import to_its_end
from service.kafka.journal import KafkaJournal, Refusals
from service.kafka.journal_api import JournalLost
from service.partition.driver import RELEASED_AT_ONCE
from service.partition.partition import CANCEL_AGAIN, CLOSING, Partition
from service.vcda.lanes import LaneLimits
from service.vcda.poller import Poller, Watch
from tests.support.simulated_deployment import Deployment, Process, ScatteredSlices, ScriptedJournal, deployed
from tests.support.virtual_time import virtual


class Journals:
    """Closes journals as slowly as Kafka can, and knows which of them are closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.closing = self.closed = 0

        async def close(_: ScriptedJournal) -> None:
            self.closing += 1
            await asyncio.sleep(0)
            await asyncio.sleep(0.5)
            await asyncio.sleep(0)
            self.closed += 1

        monkeypatch.setattr(ScriptedJournal, "close", close)


async def busy(d: Deployment) -> tuple[Process, Partition]:
    """Bring a partition into every state: ended, running, its POST on its way, in doubt, and waiting behind."""
    p0 = d.owner()
    d.broker.ask("C4-0", "ended")
    await d.settled()
    d.world.lasts = lambda _: 1000.0
    p0.vcda.script["doubtful"] = ["lost-post"]
    d.broker.ask("C4-1", "running")
    d.broker.ask("C4-2", "doubtful")
    await asyncio.sleep(1.0)
    d.broker.ask("C4-1", "behind")
    await asyncio.sleep(1.0)
    p0.vcda.latency = 1000.0
    d.broker.ask("C4-3", "posting")
    await asyncio.sleep(1.0)
    partition = p0.partition()
    assert partition is not None
    assert +p0.meter.in_flight == {"running": 1, "in_doubt": 1, "waiting": 1, "submitting": 1}
    assert (p0.meter.remembered, p0.lanes.lane(None).occupied, p0.lanes.lane(None).submitting) == (1, 3, 1)
    return p0, partition


def holds(process: Process) -> tuple[int, int, int, int]:
    """What a process counts of what its partitions hold."""
    lane = process.lanes.lane(None)
    return (sum(map(abs, process.meter.in_flight.values())), process.meter.remembered, lane.occupied, lane.submitting)


@pytest.mark.parametrize("steps", range(16))
def test_a_supervisor_that_is_cancelled_while_it_closes_a_lost_partition_gives_everything_back(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    journals = Journals(monkeypatch)

    @deployed
    async def play(d: Deployment) -> None:
        p0, partition = await busy(d)
        supervisor = p0._tasks[0]
        d.group.owners.clear()
        partition.fail("lost")
        for _ in range(steps):
            await asyncio.sleep(0)
        p0.let_go(0)
        await asyncio.wait([supervisor])

        assert holds(p0) == (0, 0, 0, 0)
        assert (journals.closing, journals.closed) == (1, 1)

    play()


def test_a_partition_gives_back_what_the_process_shares_before_it_waits_for_its_tasks_and_for_kafka(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journals = Journals(monkeypatch)

    @deployed
    async def play(d: Deployment) -> None:
        p0, partition = await busy(d)
        closing = asyncio.create_task(partition.close())
        for _ in range(3):
            await asyncio.sleep(0)
        assert holds(p0) == (0, 0, 0, 0)
        assert journals.closing == 0
        await closing

    play()


@pytest.mark.parametrize("steps", range(1, 24, 4))
def test_a_partition_gives_back_what_it_holds_also_where_its_closing_is_cancelled_between_slices(steps: int) -> None:
    many = 2 * RELEASED_AT_ONCE + 1

    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner(limits=LaneLimits(max_concurrent_submits=many, max_running=0))
        d.world.lasts = lambda _: 1000.0
        for n in range(many):
            d.broker.ask(f"C4-{n}", f"sync-{n}")
        await asyncio.sleep(30.0)
        partition = p0.partition()
        assert partition is not None
        assert holds(p0)[:3] == (many, 0, many)
        d.group.owners.clear()
        closing = asyncio.create_task(partition.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        assert holds(p0)[0] < many or steps < 6, "in slices"
        closing.cancel()
        await asyncio.wait([closing])
        assert holds(p0) == (0, 0, 0, 0)

    play()


@deployed
async def test_deadlines_that_pass_while_a_partition_gives_back_what_it_holds_change_nothing(d: Deployment) -> None:
    p0 = d.owner(slices=ScatteredSlices(lambda: 1.0), limits=LaneLimits(max_concurrent_submits=3, max_running=3))
    d.world.lasts = lambda _: 1000.0
    for n in range(20):
        d.broker.ask(f"C4-{n}", f"sync-{n}", deadline=100)
    await d.until(95.0)
    partition = p0.partition()
    assert partition is not None
    assert holds(p0) == (20, 0, 3, 0)
    d.group.owners.clear()
    written = len(d.log.told)
    await partition.close()
    assert d.loop.time() > 110.0
    assert holds(p0) == (0, 0, 0, 0)
    assert len(d.log.told) == written == 0


class UnevenSlices(ScatteredSlices):
    """A second between two slices, in which the sizes of different work stay as they are to each other."""

    def __init__(self) -> None:
        super().__init__(lambda: 1.0)

    @override
    def size(self, usual: int) -> int:
        return max(1, usual // 125)


def test_a_partition_that_closes_while_it_takes_up_what_it_restored_gives_everything_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is given back goes faster than what is taken up: it must not be taken up after that."""
    watches: list[Watch] = []
    watch = Poller.watch

    def noted(poller: Poller, one: Watch) -> None:
        watches.append(one)
        watch(poller, one)

    @deployed
    async def play(d: Deployment) -> None:
        limits = LaneLimits(max_concurrent_submits=40, max_running=0)
        p0 = d.owner(limits=limits)
        d.world.lasts = lambda _: 1000.0
        for n in range(40):
            d.broker.ask(f"C4-{n}", f"sync-{n}")
        await d.until(10.0)
        await p0.crash()
        monkeypatch.setattr(Poller, "watch", noted)
        p1 = d.owner("P1", limits=limits, slices=UnevenSlices())
        while len(watches) < 10:
            await asyncio.sleep(0.5)
        partition = p1.partition()
        assert partition is not None
        assert holds(p1) == (40, 0, 40, 0)
        d.group.owners.clear()
        await partition.close()
        assert holds(p1) == (0, 0, 0, 0)
        assert not any(one.watched for one in watches)

    play()


@deployed
async def test_a_task_that_is_found_while_a_partition_gives_back_what_it_holds_changes_nothing(d: Deployment) -> None:
    p0 = d.owner(slices=UnevenSlices(), limits=LaneLimits(max_concurrent_submits=40, max_running=0))
    d.world.lasts = lambda _: 1000.0
    p0.vcda.latency = 3.0
    p0.vcda.script["doubtful"] = ["lost-answer"]
    d.broker.ask("C4-0", "doubtful")
    for n in range(1, 40):
        d.broker.ask(f"C4-{n}", f"sync-{n}")
    while not p0.vcda.asked:
        await asyncio.sleep(0.5)
    partition = p0.partition()
    assert partition is not None
    d.group.owners.clear()
    began = d.loop.time()
    await partition.close()
    assert d.loop.time() > began + p0.vcda.latency, "the look-up was answered meanwhile"
    assert holds(p0) == (0, 0, 0, 0)


def test_a_commit_on_its_way_is_waited_for_and_what_swallows_its_cancellation_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journals = Journals(monkeypatch)

    @deployed
    async def play(d: Deployment) -> None:
        p0, partition = await busy(d)
        swallowed: list[float] = []

        async def stubborn(times: int) -> None:
            for _ in range(times):
                try:
                    await asyncio.sleep(1e9)
                except asyncio.CancelledError:
                    swallowed.append(d.loop.time())
            await asyncio.sleep(1e9)

        _ = partition._spawn(stubborn(2))
        await asyncio.sleep(0)
        began = d.loop.time()
        d.group.owners.clear()
        p0.let_go(0)
        await asyncio.wait(p0._ended)
        assert d.loop.time() - began == pytest.approx(2 * CANCEL_AGAIN.total_seconds() + 0.5)
        assert swallowed == [began, began + CANCEL_AGAIN.total_seconds()]
        assert (journals.closed, caplog.text) == (1, "")

        d.owner("P1")
        await asyncio.sleep(10.0)
        (p1,) = (process for process in d.processes if process.name == "P1")
        other = p1.partition()
        assert other is not None
        _ = other._spawn(stubborn(100))
        await asyncio.sleep(0)
        began = d.loop.time()
        await other.close()
        assert d.loop.time() - began == pytest.approx(CLOSING.total_seconds() + 0.5)
        assert "1 background tasks did not end" in caplog.text
        for task in tuple(other._tasks):
            for _ in range(100):
                task.cancel()
                await asyncio.sleep(0)

    play()


@deployed
async def test_an_answer_that_comes_after_the_closing_changes_nothing(d: Deployment) -> None:
    p0, partition = await busy(d)
    (posting,) = (work for work in partition.tracked_syncs() if work.submitting)
    d.group.owners.clear()
    p0.let_go(0)
    await asyncio.wait(p0._ended)
    answer = await p0.vcda.submit(replication_id="C4-3", site=None, operation_id="posting", may_leave=lambda _: True)
    partition._driver._answered(posting, answer)
    partition._driver._move_on("C4-1")

    assert holds(p0) == (0, 0, 0, 0)


@deployed
async def test_a_commit_that_fails_while_its_partition_closes_is_no_unheard_exception(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(1.0)
    partition = p0.partition()
    assert partition is not None
    d.broker.script.append("lost")
    d.broker.ask("C4-1", "a1")
    await d.until(2.0)
    d.group.owners.clear()
    p0.let_go(0)
    await asyncio.wait(p0._ended)

    committing: Any = partition._committing
    assert not committing._log_traceback, "asyncio would log it when it is collected"
    assert isinstance(committing.exception(), JournalLost)


def test_an_internal_error_while_a_partition_closes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0, partition = await busy(d)

        async def buggy() -> None:
            try:
                await asyncio.sleep(1e9)
            except asyncio.CancelledError:
                _ = 1 / 0

        _ = partition._spawn(buggy())
        await asyncio.sleep(0)
        d.group.owners.clear()
        p0.let_go(0)
        await asyncio.wait(p0._ended)

    play()
    (record,) = caplog.records
    assert record.getMessage() == "Internal error in partition 0"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@virtual
async def test_a_journal_whose_closing_is_cancelled_closes_its_producer_all_the_same() -> None:
    journal = KafkaJournal(
        topic="journal", partition=0, connection={"bootstrap_servers": ["127.0.0.1:1"]}, refusals=Refusals()
    )
    closed: list[str] = []

    async def stop() -> None:
        await asyncio.sleep(1.0)
        closed.append("producer")

    real = journal._producer
    journal._producer = SimpleNamespace(stop=stop)
    closing = asyncio.create_task(journal.close())
    await asyncio.sleep(0.5)
    closing.cancel()
    await asyncio.wait([closing])
    await real.stop()

    assert (closing.cancelled(), closed) == (True, ["producer"])


@virtual
async def test_work_that_must_not_stop_half_way_ends_before_the_cancellation_goes_on() -> None:
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(timedelta(seconds=2).total_seconds())
        done.append("work")

    waiting = asyncio.create_task(to_its_end(work()))
    await asyncio.sleep(1.0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (waiting.cancelled(), done) == (True, ["work"])


@virtual
async def test_what_such_work_raises_is_raised() -> None:
    async def work() -> None:
        await asyncio.sleep(1.0)
        raise JournalLost

    with pytest.raises(JournalLost):
        await to_its_end(work())
