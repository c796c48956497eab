"""A hand-over: a partition quiesces before its next owner opens it, in bounded time."""

from collections import Counter

import pytest

from service.intake.start_position import Looked
from service.kafka.journal_api import JournalMismatch, StopReason
from service.sync import Running, Submitting, Waiting
from service.vcda.lanes import LaneLimits
from tests.support.simulated_deployment import Deployment, deployed, in_flight, run


@deployed
async def test_a_hand_over_with_quiescing_leaves_nothing_in_doubt(d: Deployment) -> None:
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=100, max_running=0))
    p0.vcda.latency = 0.1
    p1 = d.process("P1")
    d.world.lasts = lambda _: 30.0
    for n in range(40):
        d.broker.ask(f"C4-{n}", f"a{n}")
    await d.until(0.1)  # their POSTs are on their way
    for n in range(40, 80):
        d.broker.ask(f"C4-{n}", f"b{n}")
    await d.until(0.115)  # their intents are on the way to the journal
    assert len(p0.vcda.sent) == 40
    assert sum(isinstance(state, Submitting) for state in in_flight(p0)) == 80
    revoked_at = d.loop.time()
    await d.group.give(0, p1)
    assert d.loop.time() - revoked_at < 0.2
    assert Counter(type(state) for state in d.log.states().values()) == {Running: 40, Waiting: 40}
    await d.settled()
    assert p1.vcda.finds == 0, "nobody had to look"
    assert set(d.world.tasks_of().values()) == {1}


@pytest.mark.parametrize("when", [0.001 * n for n in range(20, 70)])
def test_whenever_it_is_revoked_quiescing_leaves_nothing_in_doubt(when: float) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            d.broker.ask("C4-1", "a1")
            await d.until(when)
            assert await p0.quiesce(0)
            states = d.log.states()
            assert not any(isinstance(state, Submitting) for state in states.values()), "answered, or taken back"
            await p0.crash()
            p1 = d.owner("P1")
            await d.settled()
            assert p1.vcda.finds == 0
            assert d.world.tasks_of() == {"a1": 1}

    run(play())


@pytest.mark.parametrize("when", [0.001 * n for n in range(1, 60)])
def test_whenever_it_is_revoked_while_it_opens_no_post_begins_until_it_is_assigned_again(when: float) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            await d.until(0.1)
            partition = p0.partition()
            assert partition is not None
            assert await partition.quiesce(1.0)
            d.broker.ask("C4-1", "a1")
            await d.until(0.2)
            assert [type(state) for state in d.log.states().values()] == [Waiting]
            await p0.crash()
            opened_at = d.loop.time()
            p1 = d.owner("P1")
            await d.until(opened_at + when)
            assert await p1.quiesce(0)
            sent = len(p1.vcda.sent)
            await d.until(opened_at + 10.0)  # other members quiesce
            assert len(p1.vcda.sent) == sent
            assert not any(isinstance(state, Submitting) for state in d.log.states().values())

            p1.take(0)
            await d.settled()
            assert d.verdicts() == [("a1", "completed")]
            assert d.log.epoch == 2

    run(play())


@deployed
async def test_a_partition_that_is_opened_while_its_process_stops_begins_no_post(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    p0.vcda.script["a1"] = ["429"]
    await d.until(0.1)
    await p0.crash()
    assert [type(state) for state in d.log.states().values()] == [Waiting]
    p1 = d.owner("P1")
    await d.until(0.105)
    p1.supervisors[0]._member.read_from = lambda *_: None  # type: ignore[method-assign]
    await d.until(10.0)

    assert p1.partition() is not None
    assert p1.vcda.sent == []


@deployed
async def test_quiescing_is_bounded_where_a_post_hangs(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["hang"]
    d.broker.ask("C4-1", "a1")
    await d.until(0.1)
    partition = p0.partition()
    assert partition is not None
    assert not await partition.quiesce(3.0)
    assert d.loop.time() == pytest.approx(3.1)


@deployed
async def test_quiescing_is_bounded_where_the_journal_does_not_answer(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(0.5)
    d.broker.script.append("lost")
    partition = p0.partition()
    assert partition is not None
    assert not await partition.quiesce(1.0)
    assert d.loop.time() == pytest.approx(1.5)


@deployed
async def test_quiescing_polls_go_on_and_outcomes_are_told(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-1", "a2")
    await d.until(0.5)
    assert await p0.quiesce(0)
    await d.until(5.0)
    assert d.verdicts() == [("a1", "completed")]
    assert len(p0.vcda.sent) == 1, "and nothing new is begun"


@deployed
async def test_a_partition_that_stays_goes_on_with_the_journal_it_has(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-1", "a2")
    await d.until(0.5)
    await d.group.give(0, p0)
    await d.settled()
    assert (p0.closings, d.log.epoch) == ([], 1)
    assert d.verdicts() == [("a1", "completed"), ("a2", "completed")]


async def unfit(*_: object, **__: object) -> Looked:
    msg = "the journal is not compacted"
    raise JournalMismatch(msg, reason=StopReason.JOURNAL_NOT_COMPACTED)


@deployed
async def test_a_frozen_process_fences_no_new_owner_once_a_journal_that_did_not_fit_fits(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.until(1.0)
    supervisor = p0.supervisors[0]
    look = supervisor._positions.look
    supervisor._positions.look = unfit  # type: ignore[method-assign]
    supervisor.distrust("it is looked at again")
    await d.until(10.0)
    assert supervisor.mismatched is not None
    supervisor._positions.look = look  # type: ignore[method-assign]
    p0.freeze()
    p1 = d.process("P1")
    d.group.hand(0, p1, learns_after=100.0)
    await d.until(60.0)
    p0.thaw()
    await d.until(90.0)

    assert p1.partition() is not None
    assert p1.closings == []
    assert d.log.epoch == 2
