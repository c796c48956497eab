"""The sites in `/syncs`: their pauses, and what holds their POSTs back."""

import asyncio
from datetime import timedelta

import httpx
from prometheus_client import CollectorRegistry

from service.messages.site_pause import SitePause
from service.ops.overview import Overview
from service.ops.server import operations
from service.ops.sites_view import LANES_AT_ONCE, MOST, SiteView, site_views, sites_json
from service.sync import Trouble
from service.vcda.lanes import LaneLimits, Lanes
from tests.support.shown_syncs import ready
from tests.support.virtual_time import EPOCH, HandClock, Longest, VirtualClock, virtual
from tests.vcda.test_lanes import Gauges


def some_lanes() -> Lanes:
    clock = VirtualClock(asyncio.get_running_loop())
    limits = LaneLimits(max_concurrent_submits=1, max_running=0)
    return Lanes(limits=limits, clock=clock, metrics=Gauges(), random=Longest())


@virtual
async def test_paused_sites_come_first_then_the_local_one_and_all_that_are_configured_or_in_use() -> None:
    lanes, clock = some_lanes(), VirtualClock(asyncio.get_running_loop())
    pause = SitePause(site="site2", until=EPOCH + timedelta(hours=2), since=EPOCH, by="alice", reason="upgrade")
    lanes.operator_pauses.replace({"site2": pause})
    lanes.lane("site3").record_result(Trouble(label="5xx", detail="It said 500."))
    lanes.lane("idle")

    shown = sites_json(await site_views(lanes, ["site4"], clock))

    told = {
        "until": "2030-01-01T02:00:00.000Z",
        "since": "2030-01-01T00:00:00.000Z",
        "by": "alice",
        "reason": "upgrade",
        "recorded": True,
    }
    ordered = {
        "cause": "site_paused",
        "until": "2030-01-01T02:00:00.000Z",
        "detail": "site site2 is paused by alice since 2030-01-01 00:00:00Z until 2030-01-01 02:00:00Z: upgrade",
    }
    obstacle = {
        "cause": "site_paused",
        "until": "2030-01-01T00:00:01.000Z",
        "detail": "calls to site site3 are paused: It said 500.",
    }
    assert shown == [
        {"site": "site2", "pause": told, "obstacle": ordered, "withoutCredentials": False},
        {"site": None, "pause": None, "obstacle": None, "withoutCredentials": False},
        {"site": "site3", "pause": None, "obstacle": obstacle, "withoutCredentials": False},
        {"site": "site4", "pause": None, "obstacle": None, "withoutCredentials": False},
    ]
    lanes.close()


@virtual
async def test_of_many_sites_the_paused_ones_are_shown() -> None:
    lanes = some_lanes()
    names = [f"site{number}" for number in range(MOST)]
    lanes.operator_pauses.replace({"zzz": SitePause(site="zzz", until=EPOCH + timedelta(hours=2))})

    shown = await site_views(lanes, names, VirtualClock(asyncio.get_running_loop()))

    assert (len(shown), shown[0].name) == (MOST, "zzz")
    lanes.close()


@virtual
async def test_the_event_loop_turns_while_many_lanes_are_looked_at() -> None:
    lanes, turns = some_lanes(), 0
    for number in range(3 * LANES_AT_ONCE):
        lanes.lane(f"site{number}").record_result(Trouble(label="5xx", detail="It said 500."))

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    await site_views(lanes, [], VirtualClock(asyncio.get_running_loop()))
    turning.cancel()

    assert turns >= 6
    lanes.close()


async def test_long_answers_are_made_one_at_a_time() -> None:
    making, most = 0, 0

    async def sites() -> list[SiteView]:
        nonlocal making, most
        making += 1
        most = max(most, making)
        await asyncio.sleep(0)
        making -= 1
        return []

    app = operations(
        health=ready(),
        clock=HandClock(),
        registry=CollectorRegistry(),
        documents={},
        in_flight=tuple,
        sites=sites,
        overview=_no_overview,
        clean=str,
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ops") as client:
        answers = await asyncio.gather(*(client.get("/syncs") for _ in range(5)))

    assert [answer.status_code for answer in answers] == [200] * 5
    assert most == 1


async def test_syncs_has_the_sites() -> None:
    lanes = Lanes(
        limits=LaneLimits(max_concurrent_submits=1, max_running=0),
        clock=HandClock(),
        metrics=Gauges(),
        random=Longest(),
    )
    app = operations(
        health=ready(),
        clock=HandClock(),
        registry=CollectorRegistry(),
        documents={},
        in_flight=tuple,
        sites=lambda: site_views(lanes, [], HandClock()),
        overview=_no_overview,
        clean=str,
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ops") as client:
        answer = (await client.get("/syncs")).json()

    assert answer == {
        "syncs": [],
        "next": None,
        "sites": [{"site": None, "pause": None, "obstacle": None, "withoutCredentials": False}],
    }


async def _no_overview() -> Overview:
    raise NotImplementedError
