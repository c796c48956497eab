"""What a waiting request waits for, in words; and of all of them how many wait for what, in numbers."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta

import pytest

from service.messages.wait_cause import WaitCause
from service.partition.in_flight_view import in_flight_views
from service.partition.waiting import WaitsFor, waiting_by_cause
from service.sync import NO_CREDENTIALS, Submitting, Trouble
from service.vcda.lanes import LaneLimits
from tests.support.simulated_deployment import Deployment, Process, deployed, in_flight, moment


def waits(process: Process) -> dict[str, WaitsFor | None]:
    """By operation."""
    partition = process.partition()
    assert partition is not None
    return {view.operation_id: view.waits_for for view in in_flight_views([partition])}


def counts(process: Process) -> Mapping[WaitCause, int]:
    """The numbers that the metric is made of. All is at the local site."""
    partition = process.partition()
    assert partition is not None
    causes: Counter[WaitCause] = Counter()
    for (_, cause), count in waiting_by_cause([partition], process.lanes).items():
        causes[cause] += count
    return causes


def agree(process: Process) -> bool:
    """Whether the counters say what a look at each request says; `other` is what they need not name."""
    partition = process.partition()
    assert partition is not None
    waiting = [view.waits_for for view in in_flight_views([partition]) if view.state == "waiting"]
    seen = Counter(each.cause for each in waiting if each is not None)
    named = counts(process)
    return all(seen[cause] == named.get(cause, 0) for cause in WaitCause if cause is not WaitCause.OTHER)


@deployed
async def test_a_younger_request_waits_for_its_elder_and_names_it(d: Deployment) -> None:
    d.world.lasts = lambda _: 50.0
    p0 = d.owner()
    for name in ("first", "second", "third"):
        d.broker.ask("C4-1", name)
    await d.until(3.0)

    elder = WaitsFor(WaitCause.ELDER, "request first of the same replication is running", behind="first")
    assert waits(p0) == {"first": None, "second": elder, "third": elder}
    assert counts(p0) == {WaitCause.ELDER: 2}
    await d.until(60.0)
    assert counts(p0) == {WaitCause.ELDER: 1}
    await d.settled()
    assert counts(p0) == {}


@deployed
async def test_past_the_limit_of_running_syncs_a_request_waits_for_a_slot(d: Deployment) -> None:
    d.world.lasts = lambda _: 50.0
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=4, max_running=1))
    d.broker.ask("C4-1", "runs")
    await d.until(1.0)
    d.broker.ask("C4-2", "waits")
    await d.until(3.0)

    detail = "site local has 1 running (VM_SYNC_SYNC__MAX_RUNNING is 1)"
    assert waits(p0)["waits"] == WaitsFor(WaitCause.LIMIT, detail)
    assert counts(p0) == {WaitCause.LIMIT: 1}
    await d.settled()
    assert counts(p0) == {}


@deployed
async def test_a_busy_replication_waits_until_a_moment(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["409"]
    d.broker.ask("C4-1", "a1")
    await d.until(1.0)

    waiting = waits(p0)["a1"]
    assert waiting is not None
    assert waiting.cause is WaitCause.BUSY
    assert waiting.detail == "VCDA said that the replication is busy (409)"
    assert waiting.until is not None
    assert moment(5.0) <= waiting.until <= moment(16.0)
    assert counts(p0) == {WaitCause.BUSY: 1}
    await asyncio.sleep((waiting.until - moment(1.0)).total_seconds() + 0.1)
    assert counts(p0) == {}


@deployed
async def test_a_request_that_ends_while_it_waits_by_itself_is_counted_no_more(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["409"] * 9
    d.broker.ask("C4-1", "a1", deadline=3)
    await d.until(1.0)
    assert counts(p0) == {WaitCause.BUSY: 1}
    await d.until(4.9)
    assert d.verdicts() == [("a1", "not-started")]
    assert counts(p0) == {}


@deployed
async def test_at_a_paused_site_a_request_waits_until_the_pause_ends_and_says_why(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(1.0)
    p0.lanes.lane(None).record_result(Trouble(label="429", detail="It said 429.", retry_after=timedelta(seconds=60)))
    d.broker.ask("C4-1", "a1")
    await d.until(2.0)

    waiting = waits(p0)["a1"]
    assert waiting is not None
    assert (waiting.cause, waiting.detail) == (WaitCause.SITE_PAUSED, "calls to site local are paused: It said 429.")
    assert waiting.until == pytest.approx(moment(61.0), abs=timedelta(seconds=0.1))
    assert counts(p0) == {WaitCause.SITE_PAUSED: 1}


@deployed
async def test_a_request_whose_post_is_on_its_way_waits_for_nothing_at_a_paused_site_either(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["hang"]
    d.broker.ask("C4-1", "a1")
    await d.until(1.0)
    p0.lanes.lane(None).hold(60.0)
    await d.until(2.0)
    assert [type(state) for state in in_flight(p0)] == [Submitting]
    assert waits(p0) == {"a1": None}


@deployed
async def test_behind_an_open_circuit_breaker_a_request_says_since_when(d: Deployment) -> None:
    p0 = d.owner()
    for number in range(3):
        d.broker.ask(f"C4-{number}", f"fails-{number}")
        p0.vcda.script[f"fails-{number}"] = ["503"] * 50
    await d.until(60.0)

    causes = {each.cause for each in waits(p0).values() if each is not None}
    assert causes == {WaitCause.CIRCUIT_OPEN}
    assert all("has been open since 2030-01-01 00:00:" in each.detail for each in waits(p0).values() if each)
    assert agree(p0)


@deployed
async def test_a_post_in_doubt_and_a_running_sync_name_the_breaker_that_holds_back_their_calls(d: Deployment) -> None:
    d.world.lasts = lambda _: 50.0
    down: list[str] = []
    p0 = d.owner(meets=lambda _: "down" if down else "well")
    p0.vcda.script["doubted"] = ["lost-answer"]
    d.broker.ask("C4-1", "runs")
    await d.until(1.0)
    down.append("from here on")
    d.broker.ask("C4-2", "doubted")
    await d.until(40.0)

    shown = waits(p0)
    for name, what in (("runs", "its task is not polled"), ("doubted", "its POST is in doubt, and no look-up is made")):
        said = shown[name]
        assert said is not None
        assert said.cause is WaitCause.CIRCUIT_OPEN
        assert said.detail.startswith(
            f"{what}: the circuit breaker of site local has been open since 2030-01-01 00:00:"
        )
    assert counts(p0) == {}, "they do not wait for their POSTs"
    down.clear()
    await d.settled()
    assert waits(p0) == {}


async def asks_for_a_pause(**_: object) -> Trouble:
    return Trouble(label="5xx", detail="It is too much.", retry_after=timedelta(seconds=30))


@deployed
async def test_a_post_in_doubt_says_that_look_ups_rest(d: Deployment) -> None:
    d.world.lasts = lambda _: 1e6
    p0 = d.owner()
    d.broker.ask("C4-2", "polled")
    await d.until(1.0)
    p0.vcda.script["doubted"] = ["lost-answer"]
    p0.vcda.find = asks_for_a_pause  # type: ignore[method-assign]
    d.broker.ask("C4-1", "doubted")
    rests = "its POST is in doubt, and no look-up is made: each look-up at its site fails, and asks for a pause"
    for second in range(2, 600):
        await d.until(float(second))
        said = waits(p0)["doubted"]
        if said is not None and said.detail.startswith(rests):
            break
    else:
        pytest.fail("it never said so")

    assert said.cause is WaitCause.SITE_PAUSED
    assert said.until is not None
    assert moment(d.loop.time()) < said.until <= moment(d.loop.time() + 30.0)


@deployed
async def test_a_request_of_a_site_without_credentials_is_rejected_by_a_fresh_and_by_a_restored_lane(
    d: Deployment,
) -> None:
    d.world.lasts = lambda _: 1e6
    limits = LaneLimits(max_concurrent_submits=4, max_running=1)
    p0 = d.owner(limits=limits)
    d.broker.ask("C4-1", "runs")
    await d.until(1.0)
    await p0.crash()

    p1 = d.owner("P1", limits=limits, meets=lambda call: NO_CREDENTIALS if call == "poll" else "no credentials")
    await d.until(30.0)
    d.broker.ask("C4-2", "rejected")
    await d.until(31.0)

    assert d.verdicts() == [("rejected", "rejected")]
    running = waits(p1)["runs"]
    assert running is not None
    assert running.cause is WaitCause.NO_CREDENTIALS
    assert "VM_SYNC_VCDA__SITES" in running.detail
    assert counts(p1) == {WaitCause.NO_CREDENTIALS: 1}
    assert p1.meter.counts["without credentials"] >= 3
    assert p1.meter.counts["paused"] == 0


@deployed
async def test_in_a_partition_that_is_handed_over_requests_wait_for_that(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(1.0)
    partition = p0.partition()
    assert partition is not None
    await partition.quiesce(1.0)
    d.broker.ask("C4-1", "a1")
    await d.until(3.0)

    handed_over = WaitsFor(WaitCause.OTHER, "partition 0 is being handed over to another instance")
    assert waits(p0) == {"a1": handed_over}
    assert counts(p0) == {}, "what is not named counts as other"


async def may_not_look(**_: object) -> Trouble:
    return Trouble(label="403", detail="VCDA answered with 403.")


@deployed
async def test_a_post_in_doubt_says_that_look_ups_fail_until_they_succeed(d: Deployment) -> None:
    d.world.lasts = lambda _: 1e6
    p0 = d.owner()
    d.broker.ask("C4-2", "polled")
    await d.until(1.0)
    p0.vcda.script["doubted"] = ["lost-answer"]
    find, p0.vcda.find = p0.vcda.find, may_not_look  # type: ignore[method-assign]
    d.broker.ask("C4-1", "doubted")
    await d.until(600.0)

    said = waits(p0)["doubted"]
    assert said is not None
    assert said.cause is WaitCause.OTHER
    assert said.detail == "its POST is in doubt, and look-ups at its site fail (403: VCDA answered with 403.)"
    (since,) = p0.lanes.look_ups_failing().values()
    assert 540.0 < since < 600.0
    assert p0.lanes.lane(None).look_ups.complaint() == (
        f"POSTs to site local stay in doubt: look-ups have failed for {since:.0f} s although other calls succeed (403: "
        "VCDA answered with 403.)"
    )

    p0.vcda.find = find  # type: ignore[method-assign]
    await d.until(1000.0)
    assert p0.lanes.look_ups_failing() == {}
    assert p0.lanes.lane(None).look_ups.complaint() is None
    assert waits(p0).get("doubted") is None
