"""Who may POST when: slots of a site, the order of those that wait, busy replications, and slots given back."""

import asyncio
from itertools import pairwise

import pytest

from service.messages.wait_cause import WaitCause
from service.partition.postponements import BUSY_BACKOFF
from service.sync import Submitting, Trouble
from service.vcda.lanes import BREAKER_AFTER, Lane, LaneLimits
from tests.support.simulated_deployment import Deployment, Process, deployed, in_flight, run, sent


@deployed
async def test_requests_of_one_replication_run_one_after_another_and_others_beside_them(d: Deployment) -> None:
    d.world.lasts = lambda _: 10.0
    p0 = d.owner()
    for operation in ("a1", "a2", "a3"):
        d.broker.ask("C4-1", operation)
    d.broker.ask("C4-2", "b1")
    await d.settled()
    assert [operation for _, operation in p0.vcda.sent] == ["a1", "b1", "a2", "a3"]
    assert d.world.task_of("b1").begun == d.world.task_of("a1").begun
    assert d.world.overlaps == []
    assert [name for name, _ in d.verdicts() if name != "b1"] == ["a1", "a2", "a3"]


@deployed
async def test_a_rejected_request_frees_its_replication(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["rejected"]
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-1", "a2")
    await d.settled()
    assert d.verdicts() == [("a1", "rejected"), ("a2", "completed")]


@deployed
async def test_a_partition_that_is_lost_gives_the_lane_back_all_it_had_of_it(d: Deployment) -> None:
    d.world.lasts = lambda _: 5.0
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=2, max_running=3))
    for n in range(6):
        p0.vcda.script[f"a{n}"] = ["hang"]
        d.broker.ask(f"C4-{n}", f"a{n}")
    await d.until(1.0)
    lane = p0.lanes.lane(None)
    assert (lane.submitting, lane.occupied) == (2, 2)
    d.log.epoch += 1
    d.broker.ask("C4-9", "a9")
    await d.until(1.15)
    assert (p0.closings, lane.submitting, lane.occupied) == (["fenced"], 0, 0)
    await d.settled()
    assert (lane.submitting, lane.occupied) == (0, 0)
    assert len(d.verdicts()) == 7


@deployed
async def test_an_intent_whose_commit_was_lost_gives_its_slot_back(d: Deployment) -> None:
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=1))
    d.broker.script.extend(["stands", "lost"])
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert d.verdicts() == [("a1", "completed")]
    lane = p0.lanes.lane(None)
    assert (lane.submitting, lane.occupied) == (0, 0)


@deployed
async def test_intents_are_committed_while_others_post_and_never_more_post_at_once_than_allowed(d: Deployment) -> None:
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=2, max_running=0, slots_ahead=2))
    p0.vcda.latency = 0.1
    d.world.lasts = lambda _: 30.0
    for n in range(6):
        d.broker.ask(f"C4-{n}", f"a{n}")
    await d.until(0.06)  # the first two have just left
    assert sum(isinstance(state, Submitting) for state in in_flight(p0)) == 4
    await d.settled()
    moments = [at for n in range(6) for at in sent(p0, f"a{n}")]
    first, second, third = moments[0], moments[2], moments[4]
    assert moments == [first, first, second, second, third, third]
    whole_call = 0.15  # half a latency until it leaves, and one until its answer
    assert second - first == pytest.approx(whole_call), "as soon as there is an answer: their intents stood already"
    assert d.world.tasks_of() == {f"a{n}": 1 for n in range(6)}


@deployed
async def test_what_was_about_to_post_when_its_site_paused_waits_for_the_pause_to_end(d: Deployment) -> None:
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=0, slots_ahead=3))
    p0.vcda.script["a0"] = ["429"]
    for n in range(4):
        d.broker.ask(f"C4-{n}", f"a{n}")
    lane = p0.lanes.lane(None)
    await d.until(0.06)
    assert (lane.paused, p0.vcda.sent) == (True, [(p0.vcda.sent[0][0], "a0")])
    assert not any(isinstance(state, Submitting) for state in in_flight(p0)), "taken back"
    await d.until(0.06 + lane.held_for())
    await d.settled()
    assert [operation for _, operation in p0.vcda.sent] == ["a0", "a0", "a1", "a2", "a3"], "nobody lost its place"
    assert {told.data["attempts"] for told in d.log.told if told.operation_id != "a0"} == {1}


@deployed
async def test_a_replication_that_is_busy_waits_alone(d: Deployment) -> None:
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=0))
    p0.vcda.script["a1"] = ["409"]
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-2", "b1")
    await d.settled()
    first, second = sent(p0, "a1")
    pause = BUSY_BACKOFF.first.total_seconds()
    assert 0.5 * pause < second - first < pause + 0.1
    (at,) = sent(p0, "b1")
    assert at < 0.1, "the site's other requests go on"
    assert p0.meter.counts["paused"] == 0


@deployed
async def test_of_two_busy_replications_the_other_is_still_counted_when_the_request_of_one_is_cancelled(
    d: Deployment,
) -> None:
    p0 = d.owner()
    for n in range(2):
        p0.vcda.script[f"a{n}"] = ["409"]
        d.broker.ask(f"C4-{n}", f"a{n}")
    await d.until(1.0)
    partition = p0.partition()
    assert partition is not None
    counts = partition._driver.postponements.counts
    assert counts == {(None, WaitCause.BUSY): 2}
    d.broker.cancel("C4-0", "a0")
    await d.until(2.0)
    assert counts == {(None, WaitCause.BUSY): 1}
    await d.settled()
    assert counts == {}
    assert d.verdicts() == [("a0", "cancelled"), ("a1", "completed")]


@deployed
async def test_a_replication_that_stays_busy_is_asked_for_ever_more_seldom(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["409"] * 7
    d.broker.ask("C4-1", "a1")
    await d.settled()
    pauses = [later - earlier for earlier, later in pairwise(sent(p0, "a1"))]
    for pause, usual in zip(pauses, [10, 20, 40, 80, 160, 300, 300], strict=True):
        assert 0.5 * usual < pause < 1.5 * usual + 0.1
    assert d.verdicts() == [("a1", "completed")]


@deployed
async def test_a_replication_that_was_busy_goes_behind_those_that_wait_already(d: Deployment) -> None:
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=0))
    p0.vcda.latency = 1.0
    p0.vcda.script["a1"] = ["409"]
    d.broker.ask("C4-1", "a1")
    await d.until(5.0)
    for n in range(30):  # they have their turns for longer than the pause
        d.broker.ask(f"C4-other{n}", f"b{n}")
    await d.settled()
    assert [operation for _, operation in p0.vcda.sent] == ["a1", *(f"b{n}" for n in range(30)), "a1"]


@deployed
async def test_however_many_replications_are_busy_another_has_its_turn_after_one_round_of_them(d: Deployment) -> None:
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=0))
    p0.vcda.latency = 1.0  # a POST takes 1.5 s, so that 40 busy ones leave no time if all are asked for each 10 s
    for n in range(40):
        p0.vcda.script[f"busy{n}"] = ["409"] * 1_000
        d.broker.ask(f"C4-{n}", f"busy{n}", deadline=7200)
    await d.until(300.0)
    d.broker.ask("C4-99", "a1")
    await d.until(300.0 + 40 * 1.6)
    assert len(sent(p0, "a1")) == 1
    await d.settled()
    assert d.verdicts()[0] == ("a1", "completed")


@deployed
async def test_a_partition_that_is_closed_withdraws_its_turns_though_its_lane_is_paused(d: Deployment) -> None:
    p0 = d.owner()
    lane = p0.lanes.lane(None)
    lane.hold(1e6)
    for n in range(5):
        d.broker.ask(f"C4-{n}", f"a{n}", deadline=7 * 24 * 3600)
    await d.until(1.0)
    assert lane.queued == 5
    d.group.hand(0, d.process("P1"))
    await d.until(2.0)
    assert lane.queued == 0


@deployed
async def test_a_request_that_expires_while_its_lane_is_paused_leaves_nothing_in_the_lane(d: Deployment) -> None:
    p0 = d.owner()
    lane = p0.lanes.lane(None)
    lane.hold(1e6)
    d.broker.ask("C4-1", "a1", deadline=60)
    await d.until(59.0)
    assert lane.queued == 1
    await d.until(62.0)
    assert (lane.queued, d.verdicts()) == (0, [("a1", "not-started")])


@deployed
async def test_a_request_that_was_turned_away_comes_back_before_those_that_never_tried(d: Deployment) -> None:
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=0))
    p0.vcda.script["a0"] = ["429"]
    for n in range(4):
        d.broker.ask(f"C4-{n}", f"a{n}")
    await d.settled()
    assert [operation for _, operation in p0.vcda.sent] == ["a0", "a0", "a1", "a2", "a3"]
    (told,) = (told for told in d.log.told if told.operation_id == "a0")
    assert told.data["attempts"] == 2


@deployed
async def test_the_limit_of_running_syncs_holds_those_in_doubt_and_those_restored_too(d: Deployment) -> None:
    limits = LaneLimits(max_concurrent_submits=4, max_running=2)
    d.world.lasts = lambda _: 20.0
    p0 = d.owner(limits=limits)
    p0.vcda.script["a0"] = ["late"]
    for n in range(4):
        d.broker.ask(f"C4-{n}", f"a{n}")
    await d.until(5.0)
    assert [operation for _, operation in p0.vcda.sent] == ["a0", "a1"]
    await p0.crash()
    p1 = d.owner("P1", limits=limits)
    await d.until(15.0)
    assert p1.vcda.sent == []
    await d.settled()
    assert [operation for _, operation in p1.vcda.sent] == ["a2", "a3"]


@deployed
async def test_requests_that_spell_a_replication_in_two_letter_cases_run_one_after_another(d: Deployment) -> None:
    """Seen before: the second took the first one's task for its own."""
    d.world.lasts = lambda _: 100.0
    p0 = d.owner()
    p0.vcda.script["b1"] = ["lost-post"]
    d.broker.ask("C4-x", "a1")
    d.broker.ask("c4-X", "b1")
    await d.settled()
    assert d.world.tasks_of() == {"a1": 1, "b1": 1}
    assert p0.meter.counts["adopted"] == 0


async def half_open(d: Deployment, process: Process) -> Lane:
    """Open the circuit breaker of the local site, and wait until it lets a probe through."""
    lane = process.lanes.lane(None)
    for _ in range(BREAKER_AFTER):
        await asyncio.sleep(lane.held_for())
        lane.record_result(Trouble(label="5xx", detail="down"))
    await asyncio.sleep(lane.held_for())
    assert lane.open_breaker() is not None
    return lane


@deployed
async def test_a_probe_that_was_not_sent_after_all_leaves_the_probe_to_the_next_call(d: Deployment) -> None:
    """The first POST's intent is written before the first login, so that it names no account, and is not sent."""
    p0 = d.owner()
    await d.until(0.1)
    lane = await half_open(d, p0)
    p0.vcda.user = None
    asked_at = d.loop.time()
    d.broker.ask("C4-1", "a1")
    await d.settled()

    (sent_at,) = sent(p0, "a1")
    assert sent_at - asked_at < 1.0
    assert lane.open_breaker() is None


@pytest.mark.parametrize("probe", ["POST", "look-up"])
def test_a_probe_that_fails_for_a_reason_of_its_own_leaves_the_probe_to_the_next_call(probe: str) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.process("P0")
            if probe == "look-up":
                p2 = d.owner("P2")
                p2.vcda.script["a1"] = ["lost-post"]
                d.broker.ask("C4-1", "a1")
                await d.until(0.1)
                await p2.crash()
            lane = await half_open(d, p0)
            found: list[float] = []

            async def find(**_: object) -> Trouble:
                found.append(d.loop.time())
                return Trouble(label="403", detail="Not this one.", own=True)

            p0.vcda.find = find  # type: ignore[method-assign]
            p0.vcda.script["a1"] = ["409"]
            for number in (0, 1):
                d.group.hand(number, p0)
            d.broker.ask("C4-1", "a1")
            await asyncio.sleep(0.5)
            assert found if probe == "look-up" else sent(p0, "a1")
            d.broker.ask("C4-2", "b1", number=1)
            await asyncio.sleep(5.0)
            assert len(sent(p0, "b1")) == 1
            assert lane.open_breaker() is None

    run(play())


@pytest.mark.parametrize("probe", ["POST", "look-up"])
def test_a_probe_of_a_partition_that_is_closed_leaves_the_probe_to_the_next_call(probe: str) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.lasts = lambda _: 1.0
            p0, p1 = d.process("P0"), d.process("P1")
            if probe == "look-up":
                p2 = d.owner("P2")
                p2.vcda.script["a1"] = ["lost-post"]
                d.broker.ask("C4-1", "a1")
                await d.until(0.1)
                await p2.crash()
            await half_open(d, p0)
            p0.vcda.script["a1"] = ["hang"]
            p0.vcda.latency = 20.0
            for number in (0, 1):
                d.group.hand(number, p0)
            d.broker.ask("C4-1", "a1")
            await asyncio.sleep(0.5)
            assert p0.vcda.finds == (probe == "look-up")
            p0.vcda.latency = 0.01
            d.broker.ask("C4-2", "b1", number=1)
            await asyncio.sleep(1.0)
            assert sent(p0, "b1") == []
            d.group.hand(0, p1, learns_after=0.0)
            await asyncio.sleep(2.0)
            assert len(sent(p0, "b1")) == 1
            await d.settled()

    run(play())
