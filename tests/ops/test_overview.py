"""The state of a process, read from its parts."""

import asyncio
from datetime import timedelta

from service.messages.site_pause import SitePause
from service.messages.wait_cause import WaitCause
from service.ops import overview
from service.ops.sites_view import LANES_AT_ONCE, Hindrance, Hold
from service.sync import NO_CREDENTIALS, Trouble
from service.vcda.client import SessionStatus
from service.vcda.lanes import LaneLimits
from tests.support.shown_overview import INSTANCE, Read
from tests.support.shown_syncs import ready
from tests.support.simulated_deployment import Deployment, deployed, moment


@deployed
async def test_a_process_that_has_only_begun_to_start_has_a_state(d: Deployment) -> None:
    p0 = d.owner()

    state = await overview.read(INSTANCE, None, health=ready(), clock=p0.clock, in_flight=dict)

    assert (state.partitions.joined, state.partitions.total, state.session_age) == (False, 0, None)
    assert [(site.name, site.session) for site in state.sites] == [(None, False), ("site2", False)]


@deployed
async def test_health_partitions_and_outcomes_are_those_of_the_process(d: Deployment) -> None:
    d.world.fate = lambda operation_id: "FAILED" if operation_id == "fails" else "SUCCEEDED"
    read = Read(d.owner())
    for name in ("fails", "well", "well too"):
        d.broker.ask(f"C4-{len(name)}", name.replace(" ", "-"))
    await d.settled()
    read.health.degraded("the login", ["no session at VCDA"])
    read.health.draining()
    read.health.died("polling", "a bug")
    read.member.opening_ones, read.member.stopped_ones = {3: "under way", 1: "slow"}, {2: "replaced"}

    state = await read()

    assert state.not_alive == ("polling has failed: a bug",)
    assert state.not_ready == ("the service is draining",)
    assert state.degraded == ("no session at VCDA",)
    assert (state.partitions.open, state.partitions.total) == ((0,), 4)
    assert list(state.partitions.opening.items()) == [(1, "slow"), (3, "under way")]
    assert state.partitions.stopped == {2: "replaced"}
    assert (state.completed, state.failed) == (2, 1)
    assert [failure.operation_id for failure in state.failures] == ["fails"]


@deployed
async def test_what_waits_is_counted_by_cause_and_the_rest_of_it_as_other(d: Deployment) -> None:
    d.world.lasts = lambda _: 1e6
    read = Read(d.owner(limits=LaneLimits(max_concurrent_submits=4, max_running=1)))
    for replication, name in (("C4-1", "runs"), ("C4-1", "behind"), ("C4-2", "past-the-limit")):
        d.broker.ask(replication, name)
        await d.until(d.loop.time() + 1.0)
    read.in_flight = {("running", None): 1, ("waiting", None): 5, ("waiting", "site2"): 2}

    state = await read()

    local, remote = state.sites
    assert local.waiting == {WaitCause.ELDER: 1, WaitCause.LIMIT: 1, WaitCause.OTHER: 3}
    assert remote.waiting == {WaitCause.OTHER: 2}
    assert state.waiting == {WaitCause.ELDER: 1, WaitCause.LIMIT: 1, WaitCause.OTHER: 5}
    assert state.states == {"running": 1, "waiting": 7}
    assert [hindrance.hold for hindrance in local.hindrances] == [Hold.LIMIT]
    assert [sync.operation_id for sync in state.oldest] == ["runs", "behind", "past-the-limit"]


@deployed
async def test_a_site_is_held_back_by_a_pause_by_its_breaker_and_by_missing_credentials(d: Deployment) -> None:
    read = Read(d.owner())
    await d.until(1.0)
    lanes = read.process.lanes
    lanes.lane("paused").record_result(Trouble(label="429", detail="It said 429.", retry_after=timedelta(seconds=60)))
    lanes.lane("unknown").record_result(Trouble(label=NO_CREDENTIALS, detail="none", own=True))
    lanes.lane("fine").record_result(None)
    for number in range(3):
        lanes.lane("broken").record_result(Trouble(label="503", detail="It said 503."))
        await d.until(100.0 * (number + 1))
    lanes.lane("paused").record_result(Trouble(label="429", detail="It said 429.", retry_after=timedelta(seconds=60)))

    state = await read()

    hindrances = {site.name: site.hindrances for site in state.sites}
    assert hindrances["paused"] == (
        Hindrance(Hold.PAUSE, WaitCause.SITE_PAUSED, "calls to site paused are paused: It said 429.", moment(360.0)),
    )
    assert [one.hold for one in hindrances["unknown"]] == [Hold.CREDENTIALS]
    assert [(one.hold, one.until) for one in hindrances["broken"]] == [(Hold.BREAKER, None)]
    assert "fine" not in hindrances, "nothing is in flight there, and nobody configured it"
    assert [site.name for site in state.sites] == ["broken", "paused", "unknown", None, "site2"]


@deployed
async def test_a_site_that_an_operator_has_paused_says_so_whether_or_not_it_has_anything_in_flight(
    d: Deployment,
) -> None:
    read = Read(d.owner())
    await d.until(1.0)
    lanes = read.process.lanes
    for number in range(3):
        lanes.lane("broken").record_result(Trouble(label="503", detail="It said 503."))
        await d.until(100.0 * (number + 1))
    lanes.lane("busy").record_result(Trouble(label="429", detail="It said 429.", retry_after=timedelta(seconds=60)))
    until = moment(1_000.0)
    names = ("local", "broken", "busy", "nothing-there")
    lanes.operator_pauses.replace(
        {name: SitePause(site=name, until=until, since=moment(1.0), by="alice", reason="move") for name in names}
        | {"bare": SitePause(site="bare", until=until)}
    )

    state = await read()

    def ordered(name: str) -> Hindrance:
        detail = f"site {name} is paused by alice since 2030-01-01 00:00:01Z until 2030-01-01 00:16:40Z: move"
        return Hindrance(Hold.OPERATOR, WaitCause.SITE_PAUSED, detail, until)

    hindrances = {site.name: site.hindrances for site in state.sites}
    assert hindrances[None] == (ordered("local"),)
    assert hindrances["nothing-there"] == (ordered("nothing-there"),)
    assert hindrances["busy"] == (ordered("busy"),)
    assert hindrances["bare"] == (
        Hindrance(Hold.OPERATOR, WaitCause.SITE_PAUSED, "site bare is paused until 2030-01-01 00:16:40Z", until),
    )
    assert hindrances["broken"][0] == ordered("broken")
    assert [one.hold for one in hindrances["broken"]] == [Hold.OPERATOR, Hold.BREAKER]
    await d.until(1_001.0)
    assert [site.name for site in (await read()).sites if Hold.OPERATOR in {one.hold for one in site.hindrances}] == []


@deployed
async def test_a_site_has_a_session_if_the_login_or_an_extension_is_good_for_it(d: Deployment) -> None:
    read = Read(d.owner())
    read.in_flight = {("waiting", "site3"): 1}

    assert {site.name: site.session for site in (await read()).sites} == {None: True, "site2": True, "site3": False}
    read.session = SessionStatus(age=None, sites=frozenset())
    assert {site.name: site.session for site in (await read()).sites} == {None: False, "site2": False, "site3": False}


@deployed
async def test_of_very_many_sites_those_with_the_most_in_flight_are_shown(d: Deployment) -> None:
    read = Read(d.owner())
    read.in_flight = {("running", f"site-{number}"): number for number in range(1, 1_001)}

    state = await read()

    assert (len(state.sites), state.further_sites) == (overview.SITES, 1_002 - overview.SITES)
    assert state.sites[0].name == "site-1000"
    assert state.states == {"running": 500_500}


@deployed
async def test_the_event_loop_turns_while_very_many_lanes_are_looked_at(d: Deployment) -> None:
    read = Read(d.owner())
    for number in range(3 * LANES_AT_ONCE):
        read.process.lanes.lane(f"site-{number}").occupy()
    turns, reading = 0, asyncio.ensure_future(read())

    while not reading.done():
        await asyncio.sleep(0)
        turns += 1

    assert turns >= 3
