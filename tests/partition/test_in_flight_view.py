"""What operators are shown of the syncs in flight: each with its state, and how long the oldest request waits."""

import asyncio
import json
from datetime import timedelta

import pytest

from service import sync
from service.kafka.journal_codec import read
from service.partition import in_flight_view
from service.partition.in_flight_view import InFlightView, in_flight_views, oldest_accepted, oldest_syncs
from service.partition.partition import Partition
from service.sync import ApiError
from service.vcda.lanes import LaneLimits
from tests.support.simulated_deployment import Deployment, Process, deployed, moment, run


def opened(process: Process) -> Partition:
    partition = process.partition()
    assert partition is not None
    return partition


def views(process: Process) -> dict[str, InFlightView]:
    return {view.operation_id: view for view in in_flight_views([opened(process)])}


@deployed
async def test_running_and_waiting_syncs_are_shown_as_the_driver_has_them(d: Deployment) -> None:
    d.world.lasts = lambda _: 50.0
    p0 = d.owner()
    d.broker.ask("C4-1", "first")
    d.broker.ask("C4-1", "second")
    await d.until(3.0)

    first, second = views(p0).values()

    assert (first.identity, first.replication_id, first.site, first.partition) == ("op:C4-1:first", "C4-1", None, 0)
    assert (first.state, first.attempts, first.task_id, first.held) == ("running", 1, "task-1", False)
    assert first.accepted_at == moment(0.03)
    assert first.submitted_at is not None
    assert first.deadline > first.accepted_at
    assert (second.state, second.attempts, second.task_id, second.submitted_at) == ("waiting", 0, None, None)


@deployed
async def test_a_sync_is_shown_with_the_error_of_its_last_attempt(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script = {"busy": ["409"], "doubtful": ["lost-post"]}
    d.broker.ask("C4-1", "busy")
    d.broker.ask("C4-2", "doubtful")
    await d.until(5.0)

    shown = views(p0)

    assert (shown["busy"].state, shown["busy"].error) == ("waiting", ApiError("409", "not now"))
    assert (shown["doubtful"].state, shown["doubtful"].error) == ("in_doubt", ApiError("timeout", "no answer"))
    assert shown["doubtful"].http_status is None


@deployed
async def test_a_restored_intent_is_in_doubt_in_the_journal_as_well(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.latency = 1000.0
    d.broker.ask("C4-1", "a1")
    await d.until(1.0)
    assert not read(d.log.records["op:C4-1:a1"]).in_doubt
    await p0.crash()

    p1 = d.owner("P1")
    await d.until(2.0)

    assert views(p1)["a1"].state == "in_doubt"
    assert read(d.log.records["op:C4-1:a1"]).in_doubt


@deployed
async def test_each_site_has_its_own_oldest_request_and_what_waits_behind_is_not_looked_at(d: Deployment) -> None:
    d.world.lasts = lambda _: 1e6
    p0 = d.owner()
    for number, site in enumerate([None, "site2", "site2", "site3"]):
        request = {"replicationId": f"C4-{number}", "operationID": f"a{number}", "site": site}
        await d.until(number + 1.0)
        d.broker.ask(f"C4-{number}", "", value=json.dumps({k: v for k, v in request.items() if v}).encode())
    await d.until(10.0)

    shown = views(p0)
    oldest = oldest_accepted([opened(p0)])

    assert oldest == {site: shown[name].accepted_at for site, name in ((None, "a0"), ("site2", "a1"), ("site3", "a3"))}


@deployed
async def test_a_view_of_a_sync_that_has_ended_meanwhile_says_so(d: Deployment) -> None:
    d.world.lasts = lambda _: 1.0
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.until(0.5)
    view = views(p0)["a1"]
    await d.settled()

    assert (view.state, view.task_id) == ("ended", None)
    assert views(p0) == {}


@deployed
async def test_the_oldest_request_is_one_that_has_no_outcome_yet(d: Deployment) -> None:
    d.world.lasts = lambda _: 1e6
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=4, max_running=0))
    d.broker.ask("C4-1", "lingers", deadline=10)
    await d.until(5.0)
    d.broker.ask("C4-2", "runs")
    await d.until(6.0)
    assert oldest_accepted([opened(p0)]) == {None: views(p0)["lingers"].accepted_at}
    await d.until(15.0)

    assert (views(p0)["lingers"].state, views(p0)["lingers"].attempts) == ("lingering", 1)
    assert oldest_accepted([opened(p0)]) == {None: views(p0)["runs"].accepted_at}


@deployed
async def test_a_request_that_lingers_does_not_count_as_one_without_an_outcome_here_and_at_the_next_owner(
    d: Deployment,
) -> None:
    d.world.lasts = lambda _: 1e6
    p0 = d.owner()
    d.broker.ask("C4-1", "lingers", deadline=10)
    d.broker.ask("C4-2", "runs")
    await d.until(5.0)
    assert opened(p0).without_outcome == 2
    await d.until(15.0)
    assert (len(opened(p0)), opened(p0).without_outcome) == (2, 1)
    await p0.crash()
    p1 = d.owner("P1")
    await d.until(20.0)
    assert views(p1)["lingers"].state == "lingering"
    assert (len(opened(p1)), opened(p1).without_outcome) == (2, 1)


def test_a_request_that_begins_to_linger_gives_its_place_at_the_site_back_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.lasts = lambda operation: 1e9 if operation == "lingers" else 1.0
            d.owner(limits=LaneLimits(max_concurrent_submits=4, max_running=1))
            d.broker.ask("C4-1", "lingers", deadline=10)
            d.broker.ask("C4-2", "waits", deadline=600)
            await d.until(300.0)
            assert d.verdicts() == [("lingers", "timed-out")]
            await d.until(330.0)
            assert d.verdicts() == [("lingers", "timed-out"), ("waits", "completed")]

    monkeypatch.setattr(sync, "LINGER_LIMIT", timedelta(minutes=5))  # a day of polls takes long to simulate
    run(play())


@deployed
async def test_the_oldest_requests_come_in_the_order_of_acceptance_without_those_that_linger(d: Deployment) -> None:
    d.world.lasts = lambda _: 1e6
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=4, max_running=0))
    d.broker.ask("C4-1", "lingers", deadline=10)
    for number in range(2, 6):
        d.broker.ask(f"C4-{number}", f"a{number}")
        await d.until(float(number))
    await d.until(15.0)

    assert views(p0)["lingers"].state == "lingering"
    assert [view.operation_id for view in await oldest_syncs([opened(p0)], most=3)] == ["a2", "a3", "a4"]


@deployed
async def test_the_event_loop_turns_while_the_oldest_requests_are_looked_for(d: Deployment) -> None:
    d.world.lasts = lambda _: 1e6
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=10_000, max_running=0))
    for number in range(3 * in_flight_view.LOOKED_AT_ONCE):
        d.broker.ask(f"C4-{number}", f"a{number}", deadline=10)
    await d.until(60.0)
    turns, looking = 0, asyncio.ensure_future(oldest_syncs([opened(p0)], most=3))

    while not looking.done():
        await asyncio.sleep(0)
        turns += 1

    assert looking.result() == [], "all of them linger"
    assert turns >= 3
