"""The thirteen rules by which the protocol was proved, each with the shortest trace that breaks it where it is missing.

In virtual time, and in a world that can go wrong. docs/protocol has the rules and the proof.
"""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from service.messages.record_fate import Fate
from service.partition.reconciler import ONE_BY_ONE
from service.sync import Lingering, Submitting, Waiting
from tests.support.simulated_deployment import (
    DEAD,
    LATE,
    UNKNOWN,
    WINDOW,
    Deployment,
    ask_at,
    deployed,
    in_flight,
    run,
    sent,
)
from tests.support.virtual_time import VirtualClock


@deployed
async def test_rule_1_nothing_leaves_before_the_intent_stands_in_the_journal(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    d.broker.script.extend(["stands", "unanswered"])  # the first proves the ownership, the second carries the intent
    await d.until(UNKNOWN)
    assert isinstance(d.log.states()["op:C4-1:a1"], Submitting)
    assert not p0.vcda.sent, "the intent stands, but P0 can't know"
    await d.settled()
    assert d.verdicts() == [("a1", "completed")]
    (at,) = sent(p0, "a1")
    assert at > UNKNOWN + WINDOW + LATE, "restored, it was in doubt"


@deployed
async def test_rule_1_an_intent_that_was_refused_is_never_posted(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(0.021)
    d.log.epoch += 1
    d.broker.ask("C4-1", "a1")
    await d.until(0.1)
    assert (p0.closings, p0.vcda.sent) == (["fenced"], [])
    await d.settled()
    assert len(p0.vcda.sent) == 1


@deployed
async def test_rule_2_a_zombie_that_wakes_with_a_commit_in_hand_finds_its_window_closed(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.until(0.039)  # the intent stands since 0.035, its answer is on the way
    p0.freeze()
    p1 = d.process("P1")
    d.group.hand(0, p1, learns_after=60.0)
    await d.until(10.0)
    p0.thaw()
    await d.until(10.05)
    assert p0.vcda.sent == []
    await d.settled()
    assert p0.closings == ["fenced"]
    assert (len(p1.vcda.sent), d.verdicts()) == (1, [("a1", "completed")])


@deployed
async def test_rule_2_a_zombie_on_a_machine_that_was_suspended_finds_its_window_closed_though_its_clock_stood_still(
    d: Deployment,
) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.until(0.041)  # the intent is known to stand, and its POST about to leave
    p0.freeze()
    p1 = d.process("P1")
    d.group.hand(0, p1, learns_after=60.0)
    await d.until(10.0)
    partition = p0.partition()
    assert partition is not None
    partition._journal_writer.confirmed_at += 10.0 - 0.041  # as long ago as before, on a clock that stood still
    p0.thaw()
    await d.until(10.05)
    assert p0.vcda.sent == []
    await d.settled()
    assert p0.closings == ["fenced"]
    assert (len(p1.vcda.sent), d.verdicts()) == (1, [("a1", "completed")])


@deployed
async def test_rule_2_a_wall_clock_that_is_set_forward_costs_a_commit_and_one_that_is_set_back_nothing(
    d: Deployment,
) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.until(0.039)
    p0.clock.set = timedelta(hours=1)
    await d.settled()
    (at,) = sent(p0, "a1")
    assert at == pytest.approx(0.045 + 0.010 + 0.005), "withheld once, proved by a commit, and gone"

    p0.clock.set = timedelta(hours=-1)
    began = d.loop.time()
    d.broker.ask("C4-2", "a2")
    await d.until(began + 0.039)
    p0.clock.set = timedelta(hours=-2)
    await d.settled()
    (at,) = sent(p0, "a2")
    assert at < began + 0.06
    assert d.verdicts() == [("a1", "completed"), ("a2", "completed")]


@deployed
async def test_rule_2_the_window_counts_from_the_sending_of_the_commit_not_from_its_answer(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(0.021)
    d.broker.ask("C4-1", "a1")
    waits = iter([0.005, WINDOW])  # the commit is there at once, its answer takes long
    d.broker.latency = lambda: next(waits, 0.005)
    await d.settled()
    (at,) = sent(p0, "a1")
    intent = 0.030
    assert at == pytest.approx(intent + 0.005 + WINDOW + 0.005 + 0.010 + 0.005), "withheld, proved anew, and gone"


@deployed
async def test_rule_3_a_restored_intent_is_posted_again_only_after_window_and_latest_post(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    p0.vcda.script["a1"] = ["lost-post"]
    await d.until(0.047)
    assert sent(p0, "a1") == [pytest.approx(0.045)]
    await p0.crash()
    opened_at = d.loop.time() + 0.010
    p1 = d.owner("P1")
    await d.settled()
    (at,) = sent(p1, "a1")
    look_up_and_intent = 0.010 + 0.010 + 0.005
    assert at == pytest.approx(opened_at + WINDOW + LATE + look_up_and_intent)
    assert p1.vcda.asked[-1][0] == opened_at + WINDOW + LATE, "the moment isn't slept past"


@deployed
async def test_rule_3_a_process_with_shorter_limits_waits_as_long_as_the_process_that_sent_the_post(
    d: Deployment,
) -> None:
    p0 = d.owner(policy=replace(d.policy, late=timedelta(seconds=3 * LATE)))
    d.broker.ask("C4-1", "a1")
    p0.vcda.script["a1"] = ["lost-post"]
    await d.until(0.047)
    await p0.crash()
    p1 = d.owner("P1")
    await d.until(d.loop.time() + 1.0)
    await p1.crash()  # what it has written still says how long
    opened_at = d.loop.time() + 0.010
    p2 = d.owner("P2")
    await d.settled()
    (at,) = sent(p2, "a1")
    assert at == pytest.approx(opened_at + WINDOW + 3 * LATE + 0.010 + 0.010 + 0.005)


@deployed
async def test_rule_3_a_predecessors_post_at_the_windows_end_and_taken_late_is_found(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.login = WINDOW - 0.02
    p0.vcda.script["a1"] = ["late"]
    d.broker.ask("C4-1", "a1")
    await d.until(0.036)  # the intent stands: the successor comes at once, and nobody tells P0
    d.group.owners[0] = p0
    p1 = d.process("P1")
    d.group.hand(0, p1, learns_after=60.0)
    await d.settled()
    assert len(p0.vcda.sent) == 1
    assert p1.vcda.sent == []
    assert (p1.meter.counts["adopted"], d.verdicts()) == (1, [("a1", "completed")])


@deployed
async def test_rule_4_an_unanswered_post_is_repeated_only_after_vcda_cannot_take_it_any_more(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    first, second = sent(p0, "a1")
    assert second == pytest.approx(first + LATE + 0.010 + 0.010 + 0.005)
    assert [told.data["attempts"] for told in d.log.told] == [2]


@deployed
async def test_rule_4_a_post_whose_connection_was_reset_goes_on_and_is_found(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["late"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert len(sent(p0, "a1")) == 1
    assert p0.meter.counts["adopted"] == 1
    assert [told.data["attempts"] for told in d.log.told] == [1]


@pytest.mark.parametrize("one_by_one", [ONE_BY_ONE, 0], ids=["for one replication", "for all"])
def test_rule_5_a_look_up_that_began_before_the_wait_was_over_concludes_nothing(one_by_one: int) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner(one_by_one=one_by_one)
            p0.vcda.script["a1"] = ["late"]
            d.broker.ask("C4-1", "a1")
            await d.until(0.047)
            p0.vcda.latency = 1.5 * LATE  # seen half-way, before the task is there; answered after the wait is over
            while not p0.vcda.asked:
                await asyncio.sleep(0.01)
            p0.vcda.latency = 0.01
            await d.settled()
            assert p0.vcda.asked[0][0] < LATE < p0.vcda.asked[1][0]
            assert (len(sent(p0, "a1")), p0.meter.counts["adopted"]) == (1, 1)

    run(play())


@pytest.mark.parametrize("behind", [0.0, 50.0, 3600.0])
def test_rule_6_a_look_up_allows_for_vcdas_clock(behind: float) -> None:
    async def play() -> None:
        async with Deployment(vcda_skew=timedelta(seconds=-behind)) as d:
            p0 = d.owner()
            p0.vcda.script["a1"] = ["lost-answer"]
            d.broker.ask("C4-1", "a1")
            await d.settled()
            assert (len(sent(p0, "a1")), p0.meter.counts["adopted"]) == (1, 1)

    run(play())


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("ahead", [timedelta(minutes=-14), timedelta(minutes=14), timedelta(hours=7)])
def test_rule_6_a_look_up_allows_for_a_site_whose_clock_is_its_own(ahead: timedelta, restarted: bool) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.at_site["site2"] = VirtualClock(d.loop, skew=ahead)
            p0 = d.owner()
            p0.vcda.site_user = "me@site2"
            p0.vcda.script["a1"] = ["lost-answer"]
            ask_at(d, "site2", "C4-1", "a1")
            if restarted:
                await d.until(0.1)
                await p0.crash()
                p0 = d.owner("P1")
                p0.vcda.site_user = "me@site2"
            await d.settled()
            assert (d.world.tasks_of()["a1"], p0.meter.counts["adopted"]) == (1, 1)

    run(play())


@pytest.mark.parametrize("site", [None, "site2"])
@pytest.mark.parametrize("ahead", [timedelta(hours=-7), timedelta(hours=7)])
def test_rule_6_a_look_up_follows_the_clock_that_stamps_the_tasks_whatever_the_date_says(
    ahead: timedelta, site: str | None
) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.dates = VirtualClock(d.loop)  # of VCDA for the remote site, of a proxy for the local one
            d.world.at_site[site] = VirtualClock(d.loop, skew=ahead)
            p0 = d.owner()
            p0.vcda.site_user = "me@site2"
            for number, operation in enumerate(["a1", "a2"]):
                if operation == "a2":
                    p0.vcda.script["a2"] = ["lost-answer"]
                ask_at(d, site, f"C4-{number}", operation)
                await d.settled()
            assert (d.world.tasks_of()["a2"], p0.meter.counts["adopted"]) == (1, 1)

    run(play())


@deployed
async def test_rule_6_a_task_of_before_the_post_is_not_adopted_where_the_sites_clock_is_fast(d: Deployment) -> None:
    d.world.at_site["site2"] = VirtualClock(d.loop, skew=timedelta(hours=7))
    p0 = d.owner()
    p0.vcda.site_user = "me@site2"
    ask_at(d, "site2", "C4-1", "a1")
    await d.settled()
    d.world.make("C4-2", "site2", "by hand", user="me@site2")
    await asyncio.sleep(timedelta(hours=2).total_seconds())
    p0.vcda.script["b1"] = ["lost-post"]
    ask_at(d, "site2", "C4-2", "b1")
    await d.settled()
    assert (len(sent(p0, "b1")), p0.meter.counts["adopted"]) == (2, 0)


@deployed
async def test_rule_6_before_vcda_has_answered_nothing_is_known_of_its_clock(d: Deployment) -> None:
    d.world.clock = VirtualClock(d.loop, skew=timedelta(minutes=-14))
    p0 = d.owner()
    p0.vcda.user = None
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert (len(sent(p0, "a1")), p0.meter.counts["adopted"]) == (1, 1)


@deployed
async def test_rule_6_a_task_that_has_ended_already_is_found(d: Deployment) -> None:
    d.world.lasts = lambda _: 0.001
    d.world.fate = lambda _: "FAILED"
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert (len(sent(p0, "a1")), d.verdicts()) == (1, [("a1", "task-failed")])


@pytest.mark.parametrize("restarted", [False, True])
def test_rule_7_a_task_that_was_given_to_another_request_is_never_adopted(restarted: bool) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            d.broker.ask("C4-1", "a1")
            await d.settled()
            if restarted:
                await p0.crash()
                p0 = d.owner("P1")
            p0.vcda.script["a2"] = ["lost-post"]
            d.broker.ask("C4-1", "a2")
            await d.settled()
            assert (len(sent(p0, "a2")), p0.meter.counts["adopted"]) == (2, 0)
            one, two = (told.data["taskId"] for told in d.log.told)
            assert one != two

    run(play())


@deployed
async def test_rule_7_a_doubt_that_was_restored_passes_over_what_it_passed_over(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.settled()
    p0.vcda.script["a2"] = ["lost-post"]
    d.broker.ask("C4-1", "a2")
    await d.until(d.loop.time() + 0.2)
    assert len(sent(p0, "a2")) == 1
    await p0.crash()
    p1 = d.owner("P1")
    await d.settled()
    assert (len(sent(p1, "a2")), p1.meter.counts["adopted"]) == (1, 0)


@pytest.mark.parametrize("restarted", [False, True])
def test_rule_8_a_request_that_timed_out_keeps_its_replication_until_its_task_has_ended(restarted: bool) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.lasts = lambda operation: 30.0 if operation == "a1" else 1.0
            p0 = d.owner()
            d.broker.ask("C4-1", "a1", deadline=5)
            d.broker.ask("C4-1", "a2")
            await d.until(8.0)
            assert d.verdicts() == [("a1", "timed-out")]
            assert isinstance(d.log.states()["op:C4-1:a1"], Lingering), "in the journal, not in memory only"
            if restarted:
                await p0.crash()
                p0 = d.owner("P1")
            await d.settled()
            assert d.verdicts() == [("a1", "timed-out"), ("a2", "completed")]
            assert d.world.task_of("a2").begun > d.world.task_of("a1").ends
            assert d.world.overlaps == []

    run(play())


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("meets", ["lost-post", "late"])
def test_rule_8_or_until_its_post_is_known_to_have_come_to_nothing(meets: str, restarted: bool) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.lasts = lambda _: 5.0
            p0 = d.owner()
            p0.vcda.script["a1"] = [meets]
            d.broker.ask("C4-1", "a1", deadline=2)
            d.broker.ask("C4-1", "a2")
            await d.until(4.0)
            assert d.verdicts() == [("a1", "timed-out")]
            opened_at = 0.0
            if restarted:
                await p0.crash()
                opened_at = d.loop.time() + 0.010
                p0 = d.owner("P1")
            await d.settled()
            assert d.verdicts() == [("a1", "timed-out"), ("a2", "completed")]
            (at,) = sent(p0, "a2")
            if meets == "late":
                assert at > d.world.task_of("a1").ends
            else:
                assert at >= (opened_at + WINDOW + LATE if restarted else 0.045 + LATE)
            assert d.world.overlaps == []

    run(play())


@deployed
async def test_rule_9_a_waiting_requests_deadline_is_told_only_after_its_elders_outcomes(d: Deployment) -> None:
    d.world.lasts = lambda _: 20.0
    d.owner()
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-1", "a2", deadline=3)
    d.broker.ask("C4-1", "a3", deadline=2)
    await d.until(15.0)
    assert d.verdicts() == []
    await d.settled()
    assert d.verdicts() == [("a1", "completed"), ("a2", "not-started"), ("a3", "not-started")]
    assert [told.at for told in d.log.told] == sorted(told.at for told in d.log.told)
    assert d.log.told[1].data["error"]["msg"] == "The request waited behind a1 of the same replication."


@deployed
async def test_rule_9_a_deadline_is_told_behind_an_elder_that_was_told_and_lingers(d: Deployment) -> None:
    d.world.lasts = lambda _: 20.0
    d.owner()
    d.broker.ask("C4-1", "a1", deadline=5)
    d.broker.ask("C4-1", "a2", deadline=3)
    await d.until(7.0)
    assert d.verdicts() == [("a1", "timed-out"), ("a2", "not-started")]


@deployed
async def test_rule_9_behind_an_elder_that_lingers_the_others_keep_their_order(d: Deployment) -> None:
    d.world.lasts = lambda _: 20.0
    d.owner()
    d.broker.ask("C4-1", "a1", deadline=5)
    d.broker.ask("C4-1", "a2")
    d.broker.ask("C4-1", "a3", deadline=6)
    await d.until(15.0)
    assert d.verdicts() == [("a1", "timed-out")]
    await d.settled()
    assert d.verdicts() == [("a1", "timed-out"), ("a2", "completed"), ("a3", "not-started")]


@pytest.mark.parametrize("which", [1, 2, 3, 4])
@pytest.mark.parametrize("fate", ["lost", "unanswered", "later"])
def test_rule_10_after_a_commit_of_unknown_fate_the_journal_alone_says_what_happened(fate: str, which: int) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            d.broker.script.extend(["stands"] * (which - 1) + [fate])
            d.broker.ask("C4-1", "a1")
            await d.settled()
            await d.until(d.loop.time() + UNKNOWN)
            assert p0.closings == ["no answer"]
            assert d.verdicts() == [("a1", "completed")]
            assert d.world.tasks_of() == {"a1": 1}
            assert sum(p0.meter.in_flight.values()) == 0

    run(play())


@pytest.mark.parametrize("when", [0.011, 0.021, 0.04, 0.06, 0.5, 1.1])
def test_rule_10_fenced_while_it_is_still_assigned_the_partition_is_opened_anew(when: float) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            d.broker.ask("C4-1", "a1")
            await d.until(when)
            d.log.epoch += 1  # the coordinator did, or a zombie that opened late
            d.broker.ask("C4-2", "b1")
            await d.settled()
            assert set(p0.closings) == {"fenced"}
            assert sorted(d.verdicts()) == [("a1", "completed"), ("b1", "completed")]
            assert d.world.tasks_of() == {"a1": 1, "b1": 1}

    run(play())


@deployed
async def test_rule_11_opening_ends_with_a_commit_so_that_an_idle_owner_learns_that_it_is_none(d: Deployment) -> None:
    p1 = d.owner("P1")
    await d.until(0.012)  # it has fenced everybody, and reads
    d.log.epoch += 1  # P0, revoked but still opening, inits after it
    await d.until(0.1)
    assert p1.closings == ["fenced"]
    await d.until(0.2)
    partition = p1.partition()
    assert partition is not None, "it opened again"


@deployed
async def test_rule_11_what_a_predecessor_committed_before_it_was_fenced_is_read(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-1", "a2")
    await d.until(0.039)  # P0's commit of all three stands, unknown to P0 as yet
    p0.freeze()
    p1 = d.owner("P1")
    await d.until(0.1)
    assert [type(state) for state in in_flight(p1)] == [Submitting, Waiting]
    p0.thaw()
    await d.settled()
    assert d.verdicts() == [("a1", "completed"), ("a2", "completed")]


@pytest.mark.parametrize("fate", ["lost", "unanswered", "later"])
def test_rule_12_a_dead_letter_and_the_cursor_behind_it_stand_together(fate: str) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.owner()
            d.broker.script.extend(["stands", fate])
            d.broker.ask("C4-1", "a1", value=b"nonsense")
            await d.settled()
            assert [told.topic for told in d.log.told] == [DEAD]
            assert d.log.cursor is not None
            assert d.log.cursor.offset == 1

    run(play())


@deployed
async def test_rule_13_a_duplicate_is_dropped_in_flight_and_remembered_and_restored(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.until(0.5)
    d.broker.ask("C4-1", "a1")
    await d.until(0.6)
    assert p0.meter.fates[Fate.DUPLICATE] == 1, "in flight"
    await d.settled()
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert p0.meter.fates[Fate.DUPLICATE] == 2, "remembered"
    await p0.crash()
    p1 = d.owner("P1")
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert p1.meter.fates[Fate.DUPLICATE] == 1, "restored"
    assert (d.verdicts(), d.world.tasks_of()) == ([("a1", "completed")], {"a1": 1})


@deployed
async def test_rule_13_a_zombie_that_polls_on_tells_no_second_outcome(d: Deployment) -> None:
    d.world.lasts = lambda _: 10.0
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.until(1.0)
    p1 = d.process("P1")
    d.group.hand(0, p1, learns_after=60.0)
    await d.settled()
    await d.until(20.0)
    assert p0.closings == ["fenced"], "it tried"
    assert [(told.by, told.verdict) for told in d.log.told] == [("P1", "completed")]
