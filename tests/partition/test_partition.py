"""A partition at work, in virtual time and in a world that can go wrong.

First the thirteen rules by which the protocol was proved, each with the shortest trace that breaks it where the rule
is missing; then what else a partition promises.
"""

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import pairwise

import pytest

from service import sync
from service.messages.record_fate import Fate
from service.partition.deduplication import SWEEP
from service.partition.driver import EXPIRED_AT_ONCE, OWN_BACKOFF
from service.partition.in_flight import TrackedSync
from service.partition.reconciler import LOOK_SELDOM, ONE_BY_ONE
from service.partition.submitter import BACKOFF, LOOK
from service.sync import MISSING_TOGETHER_FACTOR, UNSEEN_LIMIT, Ended, Lingering, Running, Submitting, Waiting
from service.vcda.lanes import LaneLimits
from tests.support.simulated_deployment import DEAD, POLICY, UNKNOWN, Deployment, Process, deployed, moment, run
from tests.support.virtual_time import VirtualClock

DAY = 24 * 3600.0
WINDOW, LATE = POLICY.window.total_seconds(), POLICY.late.total_seconds()


def in_flight(process: Process) -> list[sync.Sync]:
    partition = process.partition()
    assert partition is not None
    return [work.state for work in partition.tracked_syncs()]


def tracked_syncs(process: Process) -> list[TrackedSync]:
    partition = process.partition()
    assert partition is not None
    return list(partition.tracked_syncs())


def sent(process: Process, operation_id: str) -> list[float]:
    """When the POSTs of an operation left this process."""
    return [at for at, which in process.vcda.sent if which == operation_id]


def ask_at(d: Deployment, site: str, replication_id: str, operation_id: str) -> None:
    """Put a request for a remote site on the topic."""
    asked = {"replicationId": replication_id, "operationID": operation_id, "site": site}
    d.broker.ask(replication_id, operation_id, value=json.dumps(asked).encode())


def told_at(d: Deployment, operation_id: str) -> float:
    (at,) = (told.at for told in d.log.told if told.operation_id == operation_id)
    return at


# ---------------------------------------------------------------- the thirteen rules


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
def test_rule_5_a_look_up_that_began_before_the_wait_was_over_concludes_nothing(
    one_by_one: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.partition.reconciler.ONE_BY_ONE", one_by_one)

    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
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


@deployed
async def test_rule_6_a_look_up_allows_for_a_site_whose_clock_is_its_own(d: Deployment) -> None:
    d.world.clock = VirtualClock(d.loop, skew=timedelta(seconds=-55))
    p0 = d.owner()
    p0.vcda.offset = lambda site: timedelta()  # type: ignore[method-assign]  # what the manager's `Date` says
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert (len(sent(p0, "a1")), p0.meter.counts["adopted"]) == (1, 1)


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


# ---------------------------------------------------------------- admission


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
async def test_a_message_that_cannot_be_understood_goes_to_the_dead_letters_and_stops_nothing(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-1", "a2", value=b"nonsense")
    d.broker.ask("C4-1", "a3")
    await d.settled()
    assert d.verdicts() == [("a1", "completed"), ("a3", "completed")]
    (dead,) = (told for told in d.log.told if told.topic == DEAD)
    assert dead.event.value == b"nonsense"
    assert p0.meter.counts["dead-letter not-json"] == 1


@deployed
async def test_records_below_the_cursor_were_taken_up_before(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1", value=b"nonsense")
    await d.settled()
    partition = p0.partition()
    assert partition is not None
    partition.admit(d.log.requests)
    await d.until(1.0)
    assert len(d.log.told) == 1


@deployed
async def test_a_timestamp_of_no_year_that_is_known_counts_as_now(d: Deployment) -> None:
    d.owner()
    d.broker.ask("C4-1", "a1")
    (record,) = d.log.requests
    d.log.requests[0] = type(record)(
        **{name: getattr(record, name) for name in record.__slots__} | {"timestamp_ms": 10**18}
    )
    await d.settled()
    assert d.log.told[0].data["requestedAt"].startswith("2030-01-01T00:00:00")


# ---------------------------------------------------------------- deadlines


@deployed
async def test_a_deadline_counts_from_acceptance_and_survives_restarts(d: Deployment) -> None:
    d.world.lasts = lambda _: 100.0
    p0 = d.owner()
    d.broker.ask("C4-1", "a1", deadline=20)
    await d.until(15.0)
    await p0.crash()
    p1 = d.owner("P1")
    await d.until(20.0)
    assert d.verdicts() == []
    await d.until(21.1)
    assert d.verdicts() == [("a1", "timed-out")]
    assert isinstance(in_flight(p1)[0], Lingering)
    await d.settled()
    assert d.verdicts() == [("a1", "timed-out")]
    assert d.log.told[0].data["taskId"] == "task-1"


@deployed
async def test_a_deadline_that_passed_while_nobody_was_there_is_told_first_thing(d: Deployment) -> None:
    d.world.lasts = lambda _: 1000.0
    p0 = d.owner()
    d.broker.ask("C4-1", "a1", deadline=20)
    d.broker.ask("C4-1", "a2", deadline=20)
    await d.until(1.0)
    await p0.crash()
    await d.until(50.0)
    d.owner("P1")
    await d.until(50.1)
    assert d.verdicts() == [("a1", "timed-out"), ("a2", "not-started")]


@deployed
async def test_a_deadline_that_passes_while_the_post_waits_to_leave_keeps_it_from_leaving(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.login = 1.5
    d.broker.ask("C4-1", "a1", deadline=1)
    await d.settled()
    assert p0.vcda.sent == []
    assert d.verdicts() == [("a1", "not-started")]
    assert d.log.told[0].data["attempts"] == 0


@deployed
async def test_a_request_that_waited_for_vcda_says_what_it_met(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["409"] * 100
    d.broker.ask("C4-1", "a1", deadline=30)
    await d.settled()
    assert d.verdicts() == [("a1", "not-started")]
    assert d.log.told[0].data["error"] == {"code": "409", "msg": "not now", "args": []}


@deployed
async def test_a_rejected_request_frees_its_replication(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["rejected"]
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-1", "a2")
    await d.settled()
    assert d.verdicts() == [("a1", "rejected"), ("a2", "completed")]


# ---------------------------------------------------------------- hand-over


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


# ---------------------------------------------------------------- POSTs


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


async def slowly(d: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    p0 = d.owner()
    await d.until(1.0)
    d.broker.latency = lambda: 1.8  # each way; a commit takes longer than the submit window
    for number in range(3):
        d.broker.ask(f"C4-{number}", f"a{number}")
    before = p0.meter.counts["commit"]
    await d.until(601.0)
    partition = p0.partition()
    assert partition is not None
    assert p0.vcda.sent == []
    assert partition.held_since == pytest.approx(5.0, abs=5.0)
    assert p0.meter.counts["commit"] - before < 600 / BACKOFF.longest.total_seconds() + 20, "it pauses between proofs"
    said = [record.getMessage() for record in caplog.records if "missed their submit windows" in record.getMessage()]
    assert len(said) == 9, "about once a minute, however many POSTs wait"
    assert re.fullmatch(
        r"Partition 0: 3 POSTs have missed their submit windows, that of op:C4-\d:a\d for 5\d\d s: a commit to Kafka "
        r"\(3\.6 s\) and VCDA's login and connection together take longer than the window of 2 s",
        said[-1],
    )

    d.broker.latency = lambda: 0.005
    await d.settled()
    left = [at for at, _ in p0.vcda.sent]
    assert len(left) == 3
    assert max(left) < 601.0 + BACKOFF.longest.total_seconds() + 4.0
    assert partition.held_since is None


def test_while_commits_take_longer_than_the_window_no_post_leaves_and_that_is_said_and_seen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deployed(partial(slowly, caplog=caplog))()


@deployed
async def test_a_post_that_pauses_between_proofs_does_not_hold_up_whoever_quiesces(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(1.0)
    d.broker.latency = lambda: 1.8
    d.broker.ask("C4-1", "a1")
    await d.until(300.0)
    d.broker.latency = lambda: 0.005
    assert await p0.quiesce(0)
    assert d.loop.time() < 300.0 + LOOK.total_seconds() + 4.0
    assert not p0.vcda.sent


@deployed
async def test_a_post_whose_login_took_longer_than_the_window_proves_anew_and_goes(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.login = WINDOW + 0.5
    d.broker.ask("C4-1", "a1")
    await d.until(3.0)
    p0.vcda.login = 0.0
    commits = p0.meter.counts["commit"]
    await d.settled()
    (at,) = sent(p0, "a1")
    assert at == pytest.approx(0.040 + 2.505 + 2.505 + 0.010, abs=3.0)
    assert p0.meter.counts["commit"] > commits
    assert d.log.told[0].data["attempts"] == 1


@deployed
async def test_a_replication_that_is_busy_waits_alone(d: Deployment) -> None:
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=0))
    p0.vcda.script["a1"] = ["409"]
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-2", "b1")
    await d.settled()
    first, second = sent(p0, "a1")
    pause = OWN_BACKOFF.first.total_seconds()
    assert 0.5 * pause < second - first < 1.5 * pause + 0.1
    (at,) = sent(p0, "b1")
    assert at < 0.1, "the site's other requests go on"
    assert p0.meter.counts["paused"] == 0


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


# ---------------------------------------------------------------- no state without an exit


@deployed
async def test_tasks_that_vcda_forgets_together_are_lost_after_a_multiple_of_the_usual_time(d: Deployment) -> None:
    d.world.lasts = lambda _: 3600.0
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=8, max_running=8))
    for n in range(8):
        d.broker.ask(f"C4-{n}", f"a{n}")
    await d.until(30.0)
    d.world.forgotten |= set(d.world.made)
    usual = POLICY.lost_after.total_seconds()
    await d.until(30.0 + MISSING_TOGETHER_FACTOR * usual - 1.0)
    assert d.verdicts() == [], "it may be trouble that passes"
    await d.until(30.0 + MISSING_TOGETHER_FACTOR * usual + 120.0)
    assert sorted(d.verdicts()) == [(f"a{n}", "task-lost") for n in range(8)]
    assert p0.lanes.lane(None).occupied == 0


@deployed
async def test_tasks_that_are_missing_together_for_a_while_are_not_lost(d: Deployment) -> None:
    d.world.lasts = lambda _: 600.0
    d.owner(limits=LaneLimits(max_concurrent_submits=8, max_running=8))
    for n in range(8):
        d.broker.ask(f"C4-{n}", f"a{n}")
    await d.until(30.0)
    d.world.forgotten |= set(d.world.made)
    await d.until(30.0 + MISSING_TOGETHER_FACTOR * POLICY.lost_after.total_seconds() - 1.0)
    d.world.forgotten.clear()
    await d.settled()
    assert sorted(d.verdicts()) == [(f"a{n}", "completed") for n in range(8)]


@deployed
async def test_a_task_that_never_ends_gives_its_place_back_a_day_after_its_deadline_and_keeps_its_replication(
    d: Deployment,
) -> None:
    d.world.lasts = lambda operation: math.inf if operation == "stuck" else 1.0
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=1))
    lane, limit = p0.lanes.lane(None), 60.0 + DAY
    d.broker.ask("C4-1", "stuck", deadline=60)
    d.broker.ask("C4-1", "behind", deadline=120)
    d.broker.ask("C4-2", "other", deadline=7 * 24 * 3600)
    await d.until(limit - 1.0)
    assert d.verdicts() == [("stuck", "timed-out"), ("behind", "not-started")]
    assert (lane.occupied, p0.meter.counts["held"], sent(p0, "other")) == (1, 0, [])
    await d.until(limit + 3.0)
    assert d.verdicts()[2:] == [("other", "completed")], "its place at the site is free"
    assert (lane.occupied, p0.meter.counts["held"]) == (0, 1)
    d.broker.ask("C4-1", "next")
    await d.until(limit + DAY)
    assert d.verdicts()[3:] == [("next", "not-started")], "two syncs of one replication never overlap"
    assert [work.held for work in tracked_syncs(p0)] == [True]
    d.world.task_of("stuck").lasts = 0.0
    await d.settled(300.0)
    assert (lane.occupied, p0.meter.counts["held"]) == (0, 0)


@deployed
async def test_a_task_that_nobody_sees_frees_its_replication_a_day_after_its_deadline(d: Deployment) -> None:
    d.world.lasts = lambda operation: math.inf if operation == "unseen" else 1.0
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=1))
    d.broker.ask("C4-1", "unseen", deadline=60)
    d.broker.ask("C4-1", "next", deadline=7 * 24 * 3600)
    await d.until(30.0)
    d.world.forgotten.add(d.world.task_of("unseen").task.id)
    p0.vcda.user = "somebody else"  # whose 404 proves nothing
    await d.until(60.0 + DAY - 1.0)
    assert sent(p0, "next") == []
    await d.until(60.0 + DAY + 1.5)
    assert len(sent(p0, "next")) == 1
    await d.settled()
    assert d.verdicts() == [("unseen", "timed-out"), ("next", "completed")]
    assert p0.meter.counts["held"] == 0


@deployed
async def test_a_restart_a_day_after_the_deadline_gives_vcda_time_to_show_the_task_before_its_replication_is_free(
    d: Deployment,
) -> None:
    d.world.lasts = lambda _: math.inf
    p0 = d.owner()
    d.broker.ask("C4-1", "stuck", deadline=60)
    d.broker.ask("C4-1", "next", deadline=7 * 24 * 3600)
    await d.until(70.0)
    await p0.crash()
    restart = 60.0 + 2 * DAY
    await d.until(restart)
    p1 = d.owner("P1", limits=LaneLimits(max_concurrent_submits=1, max_running=1))
    await d.until(restart + 120.0)
    assert (sent(p1, "next"), p1.lanes.lane(None).occupied, p1.meter.counts["held"]) == ([], 0, 1)
    d.world.forgotten.add(d.world.task_of("stuck").task.id)
    p1.vcda.user = "somebody else"
    await d.until(restart + UNSEEN_LIMIT.total_seconds() - 60.0)
    assert sent(p1, "next") == []
    await d.until(restart + UNSEEN_LIMIT.total_seconds() + 180.0)
    assert len(sent(p1, "next")) == 1
    assert p1.meter.counts["held"] == 0


@deployed
async def test_tens_of_thousands_that_expire_at_once_hold_the_event_loop_for_moments_only(d: Deployment) -> None:
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=1))
    p0.lanes.lane(None).hold(1e6)  # nothing is begun
    many = 4 * EXPIRED_AT_ONCE
    for n in range(many):
        d.broker.ask("C4-one", f"one{n}", deadline=60)
    for n in range(many):
        d.broker.ask(f"C4-{n}", f"each{n}", deadline=60)
    await d.until(59.0)
    partition = p0.partition()
    assert partition is not None
    left = [len(partition)]
    while len(partition):
        for _ in range(4 * many // EXPIRED_AT_ONCE):  # turns of the event loop, at one moment
            left.append(len(partition))
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
    assert max(before - after for before, after in pairwise(left)) < 2 * EXPIRED_AT_ONCE
    assert d.loop.time() < 63.0
    await d.settled()
    one = [operation for operation, _ in d.verdicts() if operation.startswith("one")]
    assert one == [f"one{n}" for n in range(many)], "one replication's in order"
    assert Counter(verdict for _, verdict in d.verdicts()) == {"not-started": 2 * many}


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


# ---------------------------------------------------------------- doubt


@pytest.mark.parametrize("doubts", [ONE_BY_ONE, ONE_BY_ONE + 1])
def test_few_doubts_are_looked_up_one_by_one_and_many_together(doubts: int) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.lasts = lambda _: 100.0
            p0 = d.owner(limits=LaneLimits(max_concurrent_submits=100, max_running=0))
            for n in range(doubts):
                p0.vcda.script[f"a{n}"] = ["lost-answer"] if n % 2 else ["lost-post"]
                d.broker.ask(f"C4-{n}", f"a{n}")
            await d.until(0.06)
            await p0.crash()
            p1 = d.owner("P1", limits=LaneLimits(max_concurrent_submits=100, max_running=0))
            await d.until(0.1)
            asked = {replication for _, replication in p1.vcda.asked}
            if doubts <= ONE_BY_ONE:
                assert None not in asked
            else:
                assert asked == {None}
            await d.settled()
            assert set(d.world.tasks_of().values()) == {1}
            assert p1.meter.counts["adopted"] == doubts // 2

    run(play())


@deployed
async def test_a_look_up_under_another_account_concludes_nothing(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"]
    d.broker.ask("C4-1", "a1", deadline=3600)
    await d.until(0.1)
    await p0.crash()
    p1 = d.process("P1")
    p1.vcda.user = "somebody@else"
    d.group.hand(0, p1)
    await d.until(600.0)
    assert p1.vcda.sent == []
    (doubt,) = in_flight(p1)
    assert isinstance(doubt, Submitting)
    assert doubt.trouble is not None
    assert "was sent as admin@org; the look-up is made as somebody@else" in doubt.trouble.msg
    p1.vcda.user = d.world.user
    await d.until(600.0 + LOOK_SELDOM.total_seconds())
    assert len(p1.vcda.sent) == 1


@deployed
async def test_nor_does_one_as_another_user_of_its_site(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.site_user = "us@west"
    p0.vcda.script["a1"] = ["lost-post"]
    ask_at(d, "west", "C4-1", "a1")
    await d.until(0.1)
    await p0.crash()
    p1 = d.process("P1")
    p1.vcda.site_user = "them@west"
    d.group.hand(0, p1)
    await d.until(600.0)
    assert p1.vcda.sent == []
    p1.vcda.site_user = "us@west"
    await d.until(600.0 + LOOK_SELDOM.total_seconds())
    assert len(p1.vcda.sent) == 1


@deployed
async def test_a_post_leaves_under_the_account_that_its_intent_names_and_under_no_other(d: Deployment) -> None:
    """Before the first login nobody knows who we are; whoever finds the intent in doubt has to."""
    p0 = d.owner()
    p0.vcda.user = None
    intents: list[sync.Account | None] = []

    def leaves(_: str) -> None:
        state = list(d.log.states().values())[-1]
        assert isinstance(state, Submitting)
        intents.append(state.account)

    p0.vcda.leaves = leaves
    d.broker.ask("C4-1", "a1")
    await d.settled()
    p0.vcda.user = "somebody@else"
    d.broker.ask("C4-1", "a2")
    await d.settled()
    assert intents == [sync.Account("admin@org"), sync.Account("somebody@else")]
    assert [told.data["attempts"] for told in d.log.told] == [1, 1]


# ---------------------------------------------------------------- whose a task is


@deployed
async def test_a_task_whose_user_vcda_spells_in_its_own_way_is_found_after_a_crash(d: Deployment) -> None:
    d.world.spelled = lambda _: "org2@site2"
    d.world.lasts = lambda _: 1000.0
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.until(0.1)
    await p0.crash()
    p1 = d.owner("P1")
    await d.settled()
    assert p1.vcda.sent == []
    assert d.verdicts() == [("a1", "completed")]
    assert p1.meter.counts["adopted"] == 1


@deployed
async def test_how_vcda_spells_our_user_is_known_to_who_comes_next(d: Deployment) -> None:
    d.world.spelled = lambda _: "org2@site2"
    p0 = d.owner()
    p0.vcda.script["b1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    d.world.lasts = lambda _: 1000.0
    d.broker.ask("C4-2", "b1")
    await d.until(d.loop.time() + 0.1)
    await p0.crash()
    at = d.loop.time()
    p1 = d.owner("P1")
    d.world.make("C4-2", None, "by hand", user="somebody@else")
    await d.until(at + 1.0)
    assert isinstance(in_flight(p1)[0], Running), "found at once: there is nothing to wait for"
    d.world.overlaps.clear()
    await d.settled()
    assert [verdict for _, verdict in d.verdicts()] == ["completed", "completed"]
    assert p1.vcda.sent == []


@deployed
async def test_how_vcda_spells_our_user_is_learnt_from_polls_too(d: Deployment) -> None:
    look = d.world.look
    d.world.look = lambda made: replace(look(made), user="org2@site2")  # type: ignore[method-assign] # unlike for POSTs
    d.world.lasts = lambda _: 100.0
    p0 = d.owner()
    p0.vcda.script["b1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.until(50.0)
    d.broker.ask("C4-2", "b1")
    await d.settled()
    assert d.world.tasks_of() == {"a1": 1, "b1": 1}
    assert d.verdicts() == [("a1", "completed"), ("b1", "completed")]


@deployed
async def test_the_user_of_a_task_that_was_only_taken_for_ours_is_not_learnt(d: Deployment) -> None:
    d.world.spelled = lambda user: user.upper()
    d.world.lasts = lambda _: 100.0
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"]
    d.broker.ask("C4-1", "a1")
    await d.until(1.0)
    made = d.world.make("C4-1", None, "by hand", user="one@else")
    d.world.made[made.id].owner = d.world.user  # an administrator sees everybody's
    await d.settled()
    assert p0.meter.counts["adopted"] == 1
    assert p0.vcda.spellings() == ()


@deployed
async def test_a_vcda_whose_answers_come_too_late_has_one_task_for_each_request_however_it_spells_us(
    d: Deployment,
) -> None:
    """Seen before: 173 POSTs for 30 requests in a minute, 143 of them beside a running sync of the same replication."""
    d.world.spelled = lambda _: "org2@site2"
    d.world.lasts = lambda _: 300.0
    p0 = d.owner(meets=lambda kind: "lost-answer" if kind == "submit" else "well")
    for n in range(30):
        d.broker.ask(f"C4-{n}", f"sync-{n}")
    await d.settled()
    assert d.world.tasks_of() == {f"sync-{n}": 1 for n in range(30)}
    assert len(p0.vcda.sent) == 30
    assert d.world.overlaps == []
    assert Counter(verdict for _, verdict in d.verdicts()) == {"completed": 30}
    assert p0.meter.counts["repeated"] == 0


@deployed
async def test_a_task_that_names_its_replication_in_another_letter_case_is_found(d: Deployment) -> None:
    d.world.shows = lambda task: replace(task, replication_id=str(task.replication_id).lower())
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert len(p0.vcda.sent) == 1
    assert d.verdicts() == [("a1", "completed")]


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


@deployed
async def test_a_task_that_names_no_replication_keeps_its_post_in_doubt_until_the_deadline(d: Deployment) -> None:
    d.world.shows = lambda task: replace(task, replication_id=None)
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1", deadline=600)
    await d.until(650.0)
    assert len(p0.vcda.sent) == 1
    (told,) = d.log.told
    assert told.verdict == "timed-out"
    assert "Task task-1 has no replication id" in told.data["error"]["msg"]
    assert isinstance(in_flight(p0)[0], Lingering)


def test_tasks_that_may_be_ours_are_told_apart_once_vcda_has_shown_how_it_spells_us(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.spelled = lambda user: user.upper()
            p0 = d.owner()
            p0.vcda.script["a1"] = ["lost-post"]
            d.broker.ask("C4-1", "a1")
            await d.until(1.0)
            for user in ("one@else", "two@else"):
                d.world.make("C4-1", None, "by hand", user=user)
                d.world.made[f"task-{len(d.world.made)}"].owner = d.world.user  # an administrator sees everybody's
            d.world.overlaps.clear()
            await d.until(60.0)
            assert len(p0.vcda.sent) == 1
            assert (
                "Look-ups for the POST in doubt of op:C4-1:a1 are inconclusive: One of 2 tasks by ONE@ELSE, TWO@ELSE"
                in caplog.text
            )
            d.broker.ask("C4-2", "b1")
            await d.settled()
            assert len(sent(p0, "a1")) == 2
            assert d.verdicts() == [("b1", "completed"), ("a1", "completed")]

    run(play())


def test_a_post_that_is_repeated_is_told_and_every_further_one_waits_longer(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            p0.vcda.script["a1"] = ["lost-post"] * 7
            d.broker.ask("C4-1", "a1")
            d.broker.ask("C4-2", "b1")
            await d.settled()
            gaps = [later - earlier - LATE for earlier, later in pairwise(sent(p0, "a1"))]
            assert gaps[0] == pytest.approx(0.0, abs=0.1), "the first one is most likely a POST that was lost"
            for gap, usual in zip(gaps[1:], [30, 60, 120, 240, 480, 600], strict=True):
                assert 0.5 * usual <= gap <= 1.5 * usual + 0.1
            assert p0.meter.counts["repeated"] == 7
            repeated = [
                record
                for record in caplog.records
                if record.getMessage().startswith("Repeating the POST of op:C4-1:a1")
            ]
            assert len(repeated) == 7
            assert "its 7 earlier POSTs in doubt (cause of the last: no answer)" in repeated[-1].getMessage()
            assert d.verdicts() == [("b1", "completed"), ("a1", "completed")]

    run(play())


@deployed
async def test_the_pause_before_a_repeated_post_outlives_a_crash(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"] * 4
    d.broker.ask("C4-1", "a1")
    while not (isinstance(d.log.states().get("op:C4-1:a1"), Waiting) and len(p0.vcda.sent) == 4):
        await asyncio.sleep(0.5)
    await p0.crash()
    p1 = d.owner("P1")
    at = d.loop.time()
    await d.settled()
    assert at + 60.0 <= p1.vcda.sent[0][0] <= at + 180.0 + 1.0


@pytest.mark.parametrize("restarted", [False, True])
def test_a_doubt_of_an_account_that_never_comes_back_lets_go_of_its_replication_in_the_end(
    restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "LINGER_LIMIT", timedelta(minutes=20))

    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            p0.vcda.script["a1"] = ["lost-post"]
            d.broker.ask("C4-1", "a1", deadline=60)
            await d.until(1.0)
            p0.vcda.user = "somebody@else"
            await d.until(62.0)
            if restarted:
                await p0.crash()
                p0 = d.process("P1")
                p0.vcda.user = "somebody@else"
                d.group.hand(0, p0)
            limit = 60.0 + sync.LINGER_LIMIT.total_seconds()
            await d.until(limit - 5.0)
            assert isinstance(in_flight(p0)[0], Lingering)
            await d.until(limit + 2.0)
            assert in_flight(p0) == []
            assert d.verdicts() == [("a1", "timed-out")]

    run(play())


@deployed
async def test_an_account_that_changes_during_a_look_up_concludes_nothing(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"]
    d.broker.ask("C4-1", "a1")
    await d.until(LATE)
    (at,) = sent(p0, "a1")
    while p0.vcda.asked[-1][0] < at + LATE:
        await asyncio.sleep(0.001)
    p0.vcda.user = "somebody@else"  # the conclusive look-up is on its way, under the account that made the POST
    await d.until(LATE + 60.0)
    assert len(p0.vcda.sent) == 1


def breaking(p0: Process, *, replications: Collection[str | None], retry_after: float | None = None) -> None:
    """Let look-ups for these replications fail; None: for all at once. They ask for a pause, in seconds."""
    find = p0.vcda.find
    asks_for = None if retry_after is None else timedelta(seconds=retry_after)

    async def broken(**asked: object) -> list[sync.Task] | sync.Trouble:
        if asked["replication_id"] in replications:
            return sync.Trouble(label="5xx", detail="This breaks VCDA.", retry_after=asks_for)
        return await find(**asked)  # type: ignore[arg-type]

    p0.vcda.find = broken  # type: ignore[method-assign]


@deployed
async def test_a_replication_whose_look_up_fails_is_told_of_by_the_look_up_for_all(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script |= {"a1": ["lost-post"], "b1": ["lost-post"]}
    breaking(p0, replications={"C4-1"})
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-2", "b1")
    await d.until(120.0)
    assert sorted(d.verdicts()) == [("a1", "completed"), ("b1", "completed")]


@deployed
async def test_one_whose_look_up_always_fails_holds_nobody_up(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script |= {"a1": ["lost-post"], "b1": ["lost-post"]}
    find = p0.vcda.find
    breaking(p0, replications={"C4-1", None})
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-2", "b1")
    await d.until(120.0)
    assert d.verdicts() == [("b1", "completed")], "what its own look-up shows has to do"
    for n in range(5):
        d.broker.ask("C4-3", f"c{n}")
    await d.until(180.0)
    assert len(d.verdicts()) == 6
    p0.vcda.find = find  # type: ignore[method-assign]
    await d.settled()
    assert ("a1", "completed") in d.verdicts()


@deployed
async def test_one_whose_look_up_always_fails_does_not_hold_an_idle_site_back(d: Deployment) -> None:
    """Seen before: the circuit breaker's probe was always this look-up, so a POST waited for 154 s on average."""
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"]
    breaking(p0, replications={"C4-1", None})
    d.broker.ask("C4-1", "a1")
    await d.until(600.0)
    for n in range(6):
        at = d.loop.time()
        d.broker.ask("C4-2", f"b{n}")
        await d.until(at + 100.0)
        assert sent(p0, f"b{n}")[0] - at < 10.0


@pytest.mark.parametrize("asked", [None, 30.0, 300.0])
@pytest.mark.parametrize("many", [1, 3])
def test_look_ups_that_always_fail_leave_the_ends_of_the_pauses_that_they_ask_for_to_others(
    asked: float | None, many: int
) -> None:
    """Seen before: one was the first to call at the end of each pause, and began the next: nobody else had a turn."""

    async def play() -> None:
        async with Deployment() as d:
            d.world.lasts = lambda _: 30.0
            p0 = d.owner(limits=LaneLimits(max_concurrent_submits=4, max_running=20))
            bad = [f"C4-bad{n}" for n in range(many)]
            breaking(p0, replications={*bad, None}, retry_after=asked)
            for replication in bad:
                p0.vcda.script[replication] = ["lost-answer"]
                d.broker.ask(replication, replication)
            await d.until(60.0)
            for n in range(60):
                d.broker.ask(f"C4-{n}", f"a{n}")
            await d.until(60.0 + 300.0 + 5 * (asked or 0.0))
            assert len(d.verdicts()) == 60

    run(play())


@deployed
async def test_look_ups_grow_seldom_but_the_conclusive_moment_is_never_slept_past(d: Deployment) -> None:
    p0 = d.owner(policy=replace(POLICY, late=timedelta(seconds=90)))
    p0.vcda.script["a1"] = ["lost-post"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    asked = [at for at, _ in p0.vcda.asked]
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert gaps[:4] == pytest.approx([1.01, 2.01, 4.01, 8.01])
    assert max(gaps) == pytest.approx(15.01)
    (first, second) = sent(p0, "a1")
    assert asked[-1] == pytest.approx(first + 90.0)
    assert second - first < 90.1


# ---------------------------------------------------------------- polling


@deployed
async def test_a_task_that_vcda_denies_long_enough_is_lost(d: Deployment) -> None:
    d.world.lasts = lambda _: 10_000.0
    d.owner()
    d.broker.ask("C4-1", "a1")
    await d.until(60.0)
    assert d.verdicts() == []
    d.world.forgotten.add("task-1")
    await d.settled()
    assert d.verdicts() == [("a1", "task-lost")]
    assert told_at(d, "a1") >= 60.0 + POLICY.lost_after.total_seconds()


@deployed
async def test_a_task_that_is_only_hidden_for_a_while_is_not_lost(d: Deployment) -> None:
    d.world.lasts = lambda _: 200.0
    d.owner()
    d.broker.ask("C4-1", "a1")
    await d.until(60.0)
    d.world.forgotten.add("task-1")
    await d.until(60.0 + POLICY.lost_after.total_seconds() - 1.0)
    d.world.forgotten.clear()
    await d.settled()
    assert d.verdicts() == [("a1", "completed")]


@deployed
async def test_an_unknown_task_state_is_counted_and_taken_as_running(d: Deployment) -> None:
    d.world.fate = lambda _: "PONDERING"
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.until(30.0)
    assert p0.meter.counts["unknown state"] > 0
    d.world.task_of("a1").fate = "SUCCEEDED"
    await d.settled()
    assert d.verdicts() == [("a1", "completed")]


@deployed
async def test_a_restored_task_is_polled_on(d: Deployment) -> None:
    d.world.lasts = lambda _: 50.0
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.until(10.0)
    await p0.crash()
    p1 = d.owner("P1")
    await d.settled()
    assert (p1.vcda.sent, p1.vcda.finds) == ([], 0)
    assert d.verdicts() == [("a1", "completed")]


# ---------------------------------------------------------------- what is told and remembered


@deployed
async def test_an_outcome_is_counted_once_it_stands_with_its_lag(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert p0.meter.counts["outcome"] == 1
    (lag,) = p0.meter.lags
    ended = d.world.task_of("a1").ends
    assert lag == pytest.approx(told_at(d, "a1") + 0.005 - ended, abs=0.002)


@pytest.mark.parametrize("skew", [-100.0, 100.0])
def test_the_lag_is_measured_on_one_clock(skew: float) -> None:
    async def play() -> None:
        async with Deployment(vcda_skew=timedelta(seconds=skew)) as d:
            p0 = d.owner()
            d.broker.ask("C4-1", "a1")
            await d.settled()
            (lag,) = p0.meter.lags
            assert lag == pytest.approx(0.05, abs=0.1)

    run(play())


@deployed
async def test_outcomes_decided_here_have_no_lag(d: Deployment) -> None:
    d.world.lasts = lambda _: 5.0
    p0 = d.owner()
    d.broker.ask("C4-1", "a1", deadline=2)
    await d.settled()
    assert p0.meter.lags == [None]


FORGETFUL = replace(POLICY, deduplicate_for=timedelta(hours=1))


@deployed
async def test_expired_identities_get_tombstones_and_may_come_again(d: Deployment) -> None:
    day = FORGETFUL.deduplicate_for.total_seconds()
    p0 = d.owner(policy=FORGETFUL)
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert p0.meter.remembered == 1
    await d.until(day + 2 * SWEEP.total_seconds())
    assert d.log.records == {}
    assert p0.meter.remembered == 0
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert d.verdicts() == [("a1", "completed"), ("a1", "completed")]
    assert p0.meter.remembered == 1


@deployed
async def test_identities_that_expired_while_nobody_was_there_get_tombstones_when_it_opens(d: Deployment) -> None:
    p0 = d.owner(policy=FORGETFUL)
    d.broker.ask("C4-1", "a1")
    await d.settled()
    await p0.crash()
    await d.until(FORGETFUL.deduplicate_for.total_seconds() + 60.0)
    d.owner("P1")
    await d.until(d.loop.time() + 0.1)
    assert d.log.records == {}


@deployed
async def test_an_identity_that_came_again_right_after_it_expired_counts_as_one(d: Deployment) -> None:
    p0 = d.owner(policy=FORGETFUL)
    d.broker.ask("C4-1", "a1")
    await d.settled()
    await d.until(FORGETFUL.deduplicate_for.total_seconds() + 5.0)
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert len(d.verdicts()) == 2
    assert p0.meter.remembered == 1


@pytest.mark.parametrize("lasts", [1.0, 300.0])
def test_an_identity_that_comes_again_while_the_journal_is_read_gets_no_tombstone(lasts: float) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.owner(policy=FORGETFUL)
            d.broker.reading = 60.0
            d.broker.ask("C4-1", "a1")
            await d.settled()
            expired = FORGETFUL.deduplicate_for.total_seconds() + 5.0
            while not d.log.read_at or d.log.read_at[-1] < expired:
                await asyncio.sleep(1.0)
            d.world.lasts = lambda _: lasts
            d.broker.ask("C4-1", "a1")
            await d.until(d.loop.time() + 120.0)
            assert "op:C4-1:a1" in d.log.records

    run(play())


@deployed
async def test_what_has_ended_is_not_kept_until_its_deadline(d: Deployment) -> None:
    d.world.lasts = lambda _: 0.5
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1000, max_running=0))
    for n in range(3000):
        d.broker.ask(f"C4-{n}", f"a{n}")
        if n % 500 == 499:
            await d.settled()
    partition = p0.partition()
    assert partition is not None
    assert len(partition._driver._deadlines) <= 2000


@deployed
async def test_what_is_seen_of_a_partition_is_in_the_order_of_acceptance_and_all_gone_when_it_closes(
    d: Deployment,
) -> None:
    d.world.lasts = lambda _: 50.0
    p0 = d.owner()
    for n in range(5):
        d.broker.ask(f"C4-{n % 3}", f"a{n}")
    await d.until(3.0)
    partition = p0.partition()
    assert partition is not None
    assert len(partition) == 5
    assert [work.request.operation_id for work in partition.tracked_syncs()] == ["a0", "a1", "a2", "a3", "a4"]
    assert p0.meter.in_flight == {"running": 3, "waiting": 2, "submitting": 0}
    await p0.crash()
    assert sum(p0.meter.in_flight.values()) == 0
    assert p0.meter.remembered == 0


@deployed
async def test_ended_syncs_stand_in_the_journal_with_their_story(d: Deployment) -> None:
    d.owner()
    d.broker.ask("C4-1", "a1")
    await d.settled()
    ended = d.log.states()["op:C4-1:a1"]
    assert isinstance(ended, Ended)
    assert (ended.task_id, ended.reason, ended.attempts) == ("task-1", None, 1)
    assert ended.request.accepted_at == moment(0.03)


@deployed
async def test_a_partition_that_is_told_to_fail_commits_nothing_more(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(1.0)
    partition = p0.partition()
    assert partition is not None
    d.broker.ask("C4-1", "a1", value=b"nonsense")
    partition.admit(d.log.requests)
    partition.fail("admission failed")
    partition.fail("and again")
    await d.until(1.05)
    assert d.log.told == []
    await d.settled()
    assert p0.closings == ["admission failed"]
    assert len(d.log.told) == 1
