"""How a partition drives its syncs: deadlines, polls, lost tasks, and POSTs that are repeated."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest

from service.sync import Lingering, Waiting
from tests.support.simulated_deployment import (
    LATE,
    POLICY,
    Deployment,
    deployed,
    in_flight,
    run,
    sent,
    told_at,
)


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
            for gap, longest in zip(gaps[1:], [45, 90, 180, 360, 720, 900], strict=True):
                assert 0.5 * longest <= gap <= longest + 0.1
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
    assert at + 90.0 <= p1.vcda.sent[0][0] <= at + 180.0 + 1.0


def test_a_task_whose_id_vcda_gives_to_another_replications_task_is_lost_and_not_completed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.lasts = lambda _: 10_000.0
            d.owner()
            d.broker.ask("C4-1", "a1")
            await d.until(60.0)
            d.world.forgotten.add("task-1")
            d.world.used_again.add("task-1")
            await d.settled()
            assert d.verdicts() == [("a1", "task-lost")]
            assert told_at(d, "a1") >= 60.0 + POLICY.lost_after.total_seconds()
            (told,) = d.log.told
            assert told.data["error"]["code"] == "OtherTask"

    run(play())
    assert caplog.text.count("a task of another replication, C4-another; treated as absent") == 1


@pytest.mark.parametrize("lingers", [False, True])
def test_another_replications_task_under_an_id_is_logged_once_also_where_the_task_was_absent_before(
    caplog: pytest.LogCaptureFixture, lingers: bool
) -> None:
    """A VCDA that was restored from a backup gives the ids of lost tasks again, one after another."""

    async def play() -> None:
        async with Deployment() as d:
            d.world.lasts = lambda _: 10_000.0
            d.owner(policy=replace(POLICY, lost_after=timedelta(minutes=10)))
            d.broker.ask("C4-1", "a1", deadline=90 if lingers else None)
            await d.until(100.0)
            d.world.forgotten.add("task-1")
            await d.until(200.0)
            d.world.used_again.add("task-1")
            await d.until(400.0)
            assert d.verdicts() == ([("a1", "timed-out")] if lingers else [])

    run(play())
    assert caplog.text.count("VCDA shows task task-1 as a task of another replication, C4-another") == 1


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
