"""Long work in slices: whatever comes between two of them, nothing is lost, repeated, or begun out of turn."""

import asyncio
from collections import Counter

import pytest

from service.event_loop import Slices
from service.kafka.journal_api import Batch
from service.kafka.journal_codec import Cursor
from service.messages.kafka_record import Event
from service.partition.journal_writer import ACTIONS_AT_ONCE, CUT, JournalWriter
from service.vcda.lanes import LaneLimits
from service.vcda.poller import Poller, Watch
from tests.support.simulated_deployment import Deployment, Meter, ScatteredSlices, ask_at, deployed, sent
from tests.support.virtual_time import VirtualClock, run_virtual, virtual

APART = 0.05
"""Seconds between two slices, each of one piece."""

EACH = 4
"""Requests of a replication."""

REPLICATIONS = 5


def scattered() -> ScatteredSlices:
    return ScatteredSlices(lambda: APART)


async def begun(d: Deployment) -> None:
    """Have some replications with a sync that runs, and requests behind it, of which the last expire."""
    d.owner(slices=scattered())
    d.world.lasts = lambda _: 3.0
    for n in range(REPLICATIONS):
        for m in range(EACH):
            d.broker.ask(f"C4-{n}", f"sync-{n}-{m}", deadline=5 if m >= EACH // 2 else None)
    await d.until(2.5)


@pytest.mark.parametrize("what", ["crash", "hand over", "fence", "rebalance"])
@pytest.mark.parametrize("step", range(0, 60, 4))
def test_whatever_happens_between_two_slices_each_request_has_one_task_and_one_outcome(what: str, step: int) -> None:
    """The moments lie in a restore, in the first polls, in the outcomes of what expired, and in the closing."""

    @deployed
    async def play(d: Deployment) -> None:
        await begun(d)
        p1, p2 = d.process("P1", slices=scattered()), d.process("P2", slices=scattered())
        await d.group.give(0, p1)  # which restores, in slices
        await asyncio.sleep(step * APART * 1.01)
        if what == "crash":
            await p1.crash()
            d.group.hand(0, p2)
        elif what == "hand over":
            d.group.hand(0, p2)
        elif what == "fence":
            d.log.epoch += 1
        else:
            await d.group.give(0, p1)
        await d.settled()

        verdicts = Counter(operation for operation, _ in d.verdicts())
        assert verdicts == {f"sync-{n}-{m}": 1 for n in range(REPLICATIONS) for m in range(EACH)}
        assert set(d.world.tasks_of().values()) == {1}
        assert not d.world.overlaps
        completed = [operation for operation, verdict in d.verdicts() if verdict == "completed"]
        assert {f"sync-{n}-0" for n in range(REPLICATIONS)} <= set(completed)

    play()


def test_a_restored_request_that_moved_on_before_its_slice_is_driven_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: Counter[str] = Counter()
    watch = Poller.watch

    def counted(poller: Poller, one: Watch) -> None:
        watched[one.task_id] += 1
        watch(poller, one)

    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner()
        d.world.lasts = lambda operation: 4.0 if operation == "elder" else 100.0
        d.broker.ask("C4-0", "elder")
        for n in range(1, 200):
            ask_at(d, "elsewhere", f"C4-{n}", f"other-{n}")
        d.broker.ask("C4-0", "younger")
        await d.until(3.9)
        await p0.crash()
        monkeypatch.setattr(Poller, "watch", counted)
        d.owner("P1", slices=scattered())  # restores 200 of them in 10 s, then takes them up in 10 s
        await d.until(50.0)

        younger = d.world.task_of("younger")
        assert younger.begun < 3.9 + 2 * 200 * APART, "before its slice"
        assert watched[younger.task.id] == 1
        assert set(watched.values()) == {1}
        await d.settled()

    play()


@deployed
async def test_all_that_run_count_before_one_that_waits_is_given_a_slot(d: Deployment) -> None:
    limits = LaneLimits(max_concurrent_submits=4, max_running=3)
    p0 = d.owner(limits=limits)
    d.world.lasts = lambda _: 100.0
    p0.vcda.script["busy"] = ["409"]
    for n, operation in enumerate(("first", "busy", "second", "third")):
        d.broker.ask(f"C4-{n}", operation)
    await d.until(2.0)
    assert p0.lanes.lane(None).occupied == 3
    await p0.crash()
    p1 = d.owner("P1", limits=limits, slices=scattered())
    await d.until(50.0)
    assert p1.lanes.lane(None).occupied == 3
    assert sent(p1, "busy") == []
    await d.settled()


@deployed
async def test_a_partition_that_quiesces_again_while_it_resumes_begins_nothing_more(d: Deployment) -> None:
    p0 = d.owner(slices=scattered())
    d.pause(None, until=5.0)
    await asyncio.sleep(0.1)
    for n in range(10):
        d.broker.ask(f"C4-{n}", f"sync-{n}")
    await d.until(4.0)
    partition = p0.partition()
    assert partition is not None
    assert await partition.quiesce(10.0)
    await d.until(6.0)
    partition.resume()
    await asyncio.sleep(3.5 * APART)
    assert await partition.quiesce(10.0)
    begun = len(p0.vcda.sent)
    assert 0 < begun < 10
    await asyncio.sleep(5.0)
    assert len(p0.vcda.sent) == begun
    partition.resume()
    await d.settled()
    assert set(d.world.tasks_of().values()) == {1}


class Committed:
    """A journal whose commits succeed at once."""

    end = 0

    async def commit(self, batch: Batch) -> None: ...


def writer(loop_slices: Slices) -> JournalWriter:
    return JournalWriter(
        Committed(),  # type: ignore[arg-type]
        here=lambda: Cursor("requests", 0),
        clock=VirtualClock(asyncio.get_running_loop()),
        metrics=Meter(),
        slices=loop_slices,
    )


@virtual
async def test_what_is_large_is_cut_off_again_after_a_commit_has_taken_what_was_to_be_cut_off() -> None:
    journal_writer = writer(Slices())
    large = Event(topic="outcomes", key=None, value=b"?" * CUT)
    journal_writer.publish(large)
    await journal_writer.commit()
    full = [journal_writer.full]
    journal_writer.publish(large)
    full.append(journal_writer.full)
    await asyncio.sleep(0)
    full.append(journal_writer.full)
    assert full == [False, True, False]


@virtual
async def test_the_actions_after_a_commit_are_called_in_order_and_in_slices() -> None:
    journal_writer, called = writer(Slices()), []
    many = 3 * ACTIONS_AT_ONCE + 1
    for n in range(many):
        journal_writer.after_commit(lambda n=n: called.append(n))  # type: ignore[misc]
    committing = asyncio.create_task(journal_writer.commit())
    longest, before = 0, 0
    while not committing.done():
        await asyncio.sleep(0)
        longest, before = max(longest, len(called) - before), len(called)
    assert called == list(range(many))
    assert longest == ACTIONS_AT_ONCE


@pytest.mark.parametrize("turns", range(1, 8))
def test_the_actions_after_a_commit_are_called_also_where_the_waiting_is_cancelled(turns: int) -> None:
    async def play() -> None:
        journal_writer, called = writer(Slices()), []
        many = 3 * ACTIONS_AT_ONCE + 1
        for n in range(many):
            journal_writer.after_commit(lambda n=n: called.append(n))  # type: ignore[misc]
        committing = asyncio.create_task(journal_writer.commit())
        for _ in range(turns):
            await asyncio.sleep(0)
        committing.cancel()
        await asyncio.wait([committing])
        assert called == list(range(many))

    run_virtual(play())


@virtual
async def test_of_all_long_work_in_a_process_one_slice_runs_in_each_turn_of_the_event_loop() -> None:
    slices, running = Slices(), Counter[int]()
    turn = 0

    async def work() -> None:
        for _ in range(10):
            await slices.turn()
            running[turn] += 1

    works = [asyncio.create_task(work()) for _ in range(48)]
    while not all(one.done() for one in works):
        turn += 1
        await asyncio.sleep(0)
    assert sum(running.values()) == 480
    assert max(running.values()) == 1


@virtual
async def test_long_work_waits_for_its_turn_no_longer_than_all_the_others_take() -> None:
    slices, order = Slices(), []

    async def work(name: str) -> None:
        for _ in range(3):
            await slices.turn()
            order.append(name)

    await asyncio.gather(*(work(name) for name in "abc"))
    assert "".join(order) == "abcabcabc"
