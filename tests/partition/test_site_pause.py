"""An operator's pause of a site: no POST is sent there, whatever a request is about; all else goes on."""

import asyncio
import json
from datetime import timedelta

from service.messages.wait_cause import WaitCause
from service.partition.in_flight_view import in_flight_views
from service.partition.waiting import WaitsFor, waiting_by_cause
from service.sync import Running, Submitting, Waiting
from tests.support.simulated_deployment import (
    LATE,
    WINDOW,
    Deployment,
    Process,
    ask_at,
    deployed,
    in_flight,
    moment,
    sent,
    told_at,
)


def waits(process: Process) -> dict[str, WaitsFor | None]:
    partition = process.partition()
    assert partition is not None
    return {view.operation_id: view.waits_for for view in in_flight_views([partition])}


@deployed
async def test_a_request_waits_for_the_end_of_its_sites_pause_and_others_do_not(d: Deployment) -> None:
    p0 = d.owner()
    d.pause("site2", until=100.0, by="alice", reason="storage upgrade")
    await d.until(1.0)
    ask_at(d, "site2", "C4-1", "held")
    d.broker.ask("C4-2", "free")
    await d.until(50.0)

    detail = "site site2 is paused by alice since 2030-01-01 00:00:00Z until 2030-01-01 00:01:40Z: storage upgrade"
    waiting = waits(p0)["held"]
    assert waiting is not None
    assert (waiting.cause, waiting.detail, waiting.until) == (WaitCause.SITE_PAUSED, detail, moment(100.0))
    partition = p0.partition()
    assert partition is not None
    assert waiting_by_cause([partition], p0.lanes) == {("site2", WaitCause.SITE_PAUSED): 1}
    assert d.verdicts() == [("free", "completed")]
    await d.settled()
    (left_at,) = sent(p0, "held")
    assert 100.0 <= left_at < 100.1


@deployed
async def test_a_pause_stops_an_intent_whose_commit_is_on_its_way(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(1.0)
    d.broker.latency = lambda: 0.5
    d.broker.ask("C4-1", "a1")
    await d.until(1.5)
    assert isinstance(in_flight(p0)[0], Submitting), d.log.history
    d.pause(None, until=60.0)
    await d.until(10.0)

    assert isinstance(in_flight(p0)[0], Waiting)
    assert sent(p0, "a1") == []
    await d.settled()
    (left_at,) = sent(p0, "a1")
    assert left_at >= 60.0
    assert d.world.tasks_of() == {"a1": 1}


@deployed
async def test_a_post_that_is_on_the_wire_and_what_runs_go_on_in_a_pause(d: Deployment) -> None:
    d.world.lasts = lambda _: 20.0
    p0 = d.owner()
    p0.vcda.latency = 2.0
    d.broker.ask("C4-1", "a1")
    await d.until(1.5)
    assert len(sent(p0, "a1")) == 1
    d.pause(None, until=3600.0)
    await d.until(10.0)
    assert isinstance(in_flight(p0)[0], Running)
    await d.until(60.0)

    assert d.verdicts() == [("a1", "completed")]


@deployed
async def test_a_doubt_is_concluded_in_a_pause_and_its_post_is_repeated_after_it(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"]
    d.broker.ask("C4-1", "a1")
    await d.until(0.5)
    d.pause(None, until=200.0)
    await d.until(WINDOW + LATE + 60.0)

    assert isinstance(in_flight(p0)[0], Waiting), "its doubt is over: VCDA has no task"
    assert len(sent(p0, "a1")) == 1
    await d.settled()
    assert [at >= 200.0 for at in sent(p0, "a1")] == [False, True]
    assert d.verdicts() == [("a1", "completed")]


@deployed
async def test_a_task_is_adopted_in_a_pause(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.until(0.5)
    d.pause(None, until=3600.0)
    await d.until(120.0)

    assert d.verdicts() == [("a1", "completed")]
    assert d.world.tasks_of() == {"a1": 1}


@deployed
async def test_a_deadline_passes_in_a_pause_and_the_outcome_says_who_paused_the_site(d: Deployment) -> None:
    d.owner()
    d.pause(None, until=3600.0, by="alice", reason="storage upgrade")
    await d.until(1.0)
    d.broker.ask("C4-1", "a1", deadline=30)
    await d.until(60.0)

    (told,) = d.log.told
    assert told.verdict == "not-started"
    assert told.data["error"]["msg"] == (
        "The deadline passed while site local is paused by alice since 2030-01-01 00:00:00Z until 2030-01-01 "
        "01:00:00Z: storage upgrade."
    )
    assert 31.0 <= told_at(d, "a1") <= 33.0


@deployed
async def test_a_request_is_cancelled_in_a_pause(d: Deployment) -> None:
    d.owner()
    d.pause(None, until=3600.0)
    await d.until(1.0)
    d.broker.ask("C4-1", "a1")
    await d.until(2.0)
    d.broker.cancel("C4-1", "a1")
    await d.until(3.0)

    assert d.verdicts() == [("a1", "cancelled")]


@deployed
async def test_a_resume_lets_the_requests_go_at_once_in_their_order(d: Deployment) -> None:
    p0 = d.owner()
    d.pause(None, until=3600.0)
    await d.until(1.0)
    for number in range(3):
        d.broker.ask(f"C4-{number}", f"a{number}")
    await d.until(5.0)
    assert p0.vcda.sent == []
    d.resume(None)
    await d.settled()

    assert [name for _, name in p0.vcda.sent] == ["a0", "a1", "a2"]
    assert p0.vcda.sent[0][0] < 5.2
    d.resume(None)
    await d.until(d.loop.time() + 1.0)


@deployed
async def test_a_site_paused_twice_is_paused_until_the_later_record_says(d: Deployment) -> None:
    p0 = d.owner()
    d.pause(None, until=3600.0)
    await d.until(1.0)
    d.pause(None, until=10.0)
    d.broker.ask("C4-1", "a1")
    await d.settled()

    (left_at,) = sent(p0, "a1")
    assert 10.0 <= left_at < 10.2


@deployed
async def test_the_pause_survives_the_process_and_ends_while_nobody_lives(d: Deployment) -> None:
    p0 = d.owner()
    d.pause(None, until=100.0)
    await d.until(1.0)
    d.broker.ask("C4-1", "a1")
    await d.until(5.0)
    await p0.crash()
    p1 = d.owner("P1")
    await d.until(50.0)
    assert sent(p1, "a1") == []
    await p1.crash()
    await d.until(200.0)
    p2 = d.owner("P2")
    await d.settled()

    (left_at,) = sent(p2, "a1")
    assert 200.0 <= left_at < 200.2


@deployed
async def test_a_frozen_process_that_thaws_in_a_pause_sends_nothing(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(1.0)
    d.broker.latency = lambda: 0.5
    d.broker.ask("C4-1", "a1")
    await d.until(1.5)
    assert isinstance(in_flight(p0)[0], Submitting)
    d.pause(None, until=60.0)
    p0.freeze()
    await d.until(20.0)
    p0.thaw()
    await d.until(40.0)

    assert sent(p0, "a1") == []
    await d.settled()
    (left_at,) = sent(p0, "a1")
    assert left_at >= 60.0


@deployed
async def test_each_process_ends_a_pause_by_its_own_clock(d: Deployment) -> None:
    p0 = d.owner(skew=timedelta(seconds=30))
    d.pause(None, until=100.0)
    await d.until(1.0)
    d.broker.ask("C4-1", "a1")
    await d.settled()

    (left_at,) = sent(p0, "a1")
    assert 70.0 <= left_at < 70.2


@deployed
async def test_an_invalid_record_pauses_nothing(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.control.append((b"site:local", json.dumps({"until": "soon"}).encode()))
    p0.later(0.0, p0.read_control)
    await asyncio.sleep(1.0)
    d.broker.ask("C4-1", "a1")
    await d.settled()

    assert d.verdicts() == [("a1", "completed")]
