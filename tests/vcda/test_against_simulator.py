"""Two readings of one documentation, ours and the simulator's, written apart: here they meet."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from service.clock import Clock
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import PASSWORD, Config, Durations, Plan
from service.sync import Accepted, Account, Gone, Names, NotTaken, SubmitAnswer, Task, Trouble, Unanswered
from service.vcda.client import Vcda
from service.vcda.credentials import Credentials, CredentialType, SiteCredentials
from tests.support.scripted_http_server import Meter

ADMINISTRATOR = Credentials(
    user="administrator@System",
    password=PASSWORD,
    sites=(
        SiteCredentials(name="site2", user="administrator@System", password=PASSWORD),
        SiteCredentials(name="site3", token="token-of-admin1-at-org1"),
    ),
)
RUNNING = Config(plan=Plan(queued=Durations("fixed", 0), duration=Durations("fixed", 3600)))


ANSWERED_BY: Final = timedelta(seconds=30)
"""The request time-out where every answer comes: it must not pass on a busy machine either."""

UNANSWERED: Final = timedelta(seconds=2)
"""The request time-out where an answer doesn't come, or not whole."""


def meeting(
    credentials: Credentials = ADMINISTRATOR, *, request_timeout: timedelta = ANSWERED_BY
) -> AbstractAsyncContextManager[tuple[Simulator, Vcda]]:
    """Bring both together; whatever happens, nothing of ours may be malformed in the simulator's eyes."""
    return meeting_as([credentials], request_timeout=request_timeout)


@asynccontextmanager
async def meeting_as(
    credentials: list[Credentials], *, request_timeout: timedelta = ANSWERED_BY
) -> AsyncIterator[tuple[Simulator, Vcda]]:
    """The same with credentials that may change: the first of the list are asked for."""
    async with Simulator(RUNNING) as sim:
        vcda = Vcda(
            sim.url,
            credentials=lambda: credentials[0],
            request_timeout=request_timeout,
            clock=Clock(),
            meter=Meter(),
            version="1",
        )
        try:
            yield sim, vcda
        finally:
            await vcda.close()
        assert sim.world.counters()["refusals"] == []
        assert sim.world.counters()["sessions"] <= 1  # the one thrown away, where one was


async def submit(vcda: Vcda, number: int, *, site: str | None = None) -> SubmitAnswer:
    return await vcda.submit(
        replication_id=f"C4-00000000-0000-4000-8000-{number:012d}",
        site=site,
        operation_id=f"op-{number}",
        may_leave=lambda _: True,
    )


@pytest.mark.parametrize(
    "credentials",
    [
        ADMINISTRATOR,
        Credentials(user="admin1@org1", password=PASSWORD),
        Credentials(type=CredentialType.LOCAL_USER, user="root", password=PASSWORD),
        Credentials(type=CredentialType.SSO_CREDENTIALS, user="administrator@vsphere.local", password=PASSWORD),
        Credentials(type=CredentialType.VCD_ACCESS_TOKEN, token="token-of-admin1-at-org1", org="org1"),
    ],
    ids=lambda credentials: f"{credentials.type} {credentials.org}",
)
async def test_every_kind_of_login_is_understood(credentials: Credentials) -> None:
    async with meeting(credentials) as (_, vcda):
        answer = await submit(vcda, 1)

        assert isinstance(answer, Accepted)
        assert answer.task.user in vcda.names(None, None).names


@pytest.mark.parametrize("seconds", [-7200, 7200])
async def test_the_clock_of_each_site_is_read_off_its_tasks(seconds: int) -> None:
    async with meeting() as (sim, vcda):
        sim.world.clock_offset(seconds=seconds, site="site2")
        for number, site in enumerate([None, "site2"], 1):
            assert isinstance(await submit(vcda, number, site=site), Accepted)

        for site, offset in ((None, 0), ("site1", 0), ("site2", seconds)):
            known = vcda.site_clock(site)
            assert known is not None
            assert known.certain
            assert known.offset == pytest.approx(timedelta(seconds=offset), abs=timedelta(seconds=15)), site


@pytest.mark.parametrize("site", [None, "site1", "site2", "site3"])
async def test_a_task_is_found_polled_and_asked_for_where_it_runs(site: str | None) -> None:
    async with meeting() as (sim, vcda):
        since = datetime.now(UTC) - timedelta(minutes=1)
        answer = await submit(vcda, 1, site=site)
        assert isinstance(answer, Accepted)
        task = answer.task
        assert task.site == (site if site in {"site2", "site3"} else None)
        sim.world.finish()

        found = await vcda.find(site=site, replication_id=task.replication_id, since=since, operation_id="op-1")
        polled = await vcda.poll(site=task.site, ids=[task.id, str(uuid.uuid4())])
        asked = await vcda.ask(site=task.site, task_id=task.id)

        assert isinstance(found, list)
        assert isinstance(polled, list)
        assert isinstance(asked, Task)
        assert asked.instance is not None
        assert [one.id for one in (*found, *polled, asked)] == [task.id] * 3
        assert isinstance(await vcda.ask(site=site, task_id=str(uuid.uuid4())), Gone)


@pytest.mark.parametrize("what", ["sessions", "extensions", "cloud-director"])
@pytest.mark.parametrize("site", [None, "site2"])
async def test_what_expires_there_is_renewed_here(what: str, site: str | None) -> None:
    async with meeting() as (sim, vcda):
        await submit(vcda, 1, site=site)
        sim.world.expire(what=what)
        answers = await asyncio.gather(*[submit(vcda, n, site=site) for n in range(2, 30)])

        assert all(isinstance(answer, Accepted) for answer in answers)
        assert sim.world.counters()["calls"]["login"] == (1 if what == "extensions" else 2)


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ({"answer": "status", "status": 409}, NotTaken),
        ({"answer": "status", "status": 429, "retry_after": 5, "http_date": True}, NotTaken),
        ({"answer": "status", "status": 504, "html": True}, Unanswered),
        ({"answer": "half"}, Unanswered),
        ({"answer": "torn"}, Unanswered),
        ({"answer": "empty"}, Unanswered),
        ({"answer": "cut"}, Unanswered),
        ({"answer": "close"}, Unanswered),
        ({"answer": "silent"}, Unanswered),
        ({"answer": "drip", "seconds": 0.05}, Unanswered),
    ],
    ids=lambda value: "-".join(str(word) for word in value.values()) if isinstance(value, dict) else "",
)
async def test_what_goes_wrong_there_is_a_value_here(fault: dict[str, Any], seen: type) -> None:
    never = fault["answer"] in {"silent", "drip"}
    async with meeting(request_timeout=UNANSWERED if never else ANSWERED_BY) as (sim, vcda):
        await submit(vcda, 1)
        sim.fault(**fault)
        answer = await submit(vcda, 2)
        assert isinstance(answer, seen)
        assert isinstance(await vcda.poll(site=None, ids=[str(uuid.uuid4())]), Trouble)

        sim.faults.remove()
        assert isinstance(await submit(vcda, 3), Accepted)


async def test_many_tasks_are_found_page_by_page() -> None:
    async with meeting() as (sim, vcda):
        await submit(vcda, 0)
        for n in range(1, 250):
            sim.world.by_hand(replication=f"C4-00000000-0000-4000-8000-{n:012d}")
        since = datetime.now(UTC) - timedelta(minutes=1)
        found = await vcda.find(site=None, replication_id=None, since=since)

        assert isinstance(found, list)
        assert len({task.id for task in found}) == 250


TENANT = Credentials(
    user="admin1@org1",
    password=PASSWORD,
    sites=(SiteCredentials(name="site2", user="admin2@org2", password=PASSWORD),),
)


async def test_how_a_site_spells_our_user_there_is_learnt_from_a_task_of_ours_and_handed_on() -> None:
    async with meeting(TENANT) as (sim, vcda):
        sim.world.user(name="admin2@org2", site="site2", on_tasks="{org}@{site}")
        await vcda.poll(site="site2", ids=[str(uuid.uuid4())])
        account = vcda.account("site2")
        assert account == Account("admin1@org1", "admin2@org2")
        assert vcda.names("site2", account) == Names(frozenset({"admin1@org1", "admin2@org2"}), learnt=False)
        await submit(vcda, 1, site="site2")
        assert vcda.names("site2", account).learnt
        assert "org2@site2" in vcda.names("site2", account).names
        assert not vcda.names(None, None).learnt, "that is site2's spelling, and nobody else's"
    async with meeting(TENANT) as (_, successor):
        successor.learn(vcda.spellings())
        assert "org2@site2" in successor.names("site2", account).names


async def test_a_sites_account_that_is_replaced_is_another_account() -> None:
    credentials = [TENANT]
    async with meeting_as(credentials) as (sim, vcda):
        answer = await submit(vcda, 1, site="site2")
        assert isinstance(answer, Accepted)
        sim.world.replace_account(name="admin2@org2", by="admin9@org2", site="site2")
        credentials[0] = replace(TENANT, sites=(replace(TENANT.sites[0], user="admin9@org2"),))
        gone = await vcda.ask(site="site2", task_id=answer.task.id)
        assert isinstance(gone, Gone), "VCDA doesn't show one user's tasks to another"
        assert gone.account == Account("admin1@org1", "admin9@org2")
        assert answer.account == Account("admin1@org1", "admin2@org2")


@pytest.mark.parametrize("obeys", [True, False])
async def test_a_cache_in_front_is_asked_to_step_aside_and_noticed_if_it_does_not(obeys: bool) -> None:
    async with meeting() as (sim, vcda):
        answer = await submit(vcda, 1)
        assert isinstance(answer, Accepted)
        sim.cache(seconds=3600, obeys=obeys)
        assert isinstance(await vcda.poll(site=None, ids=[answer.task.id]), list)
        now = sim.world.now
        sim.world.now = lambda: now() + 20
        seen = await vcda.poll(site=None, ids=[answer.task.id])
        assert isinstance(seen, list) if obeys else isinstance(seen, Trouble) and seen.label == "cached"


async def test_a_task_that_spells_its_replication_differently_is_among_all_tasks_alone() -> None:
    async with meeting() as (sim, vcda):
        since = datetime.now(UTC) - timedelta(minutes=1)
        sim.world.plan(resource="lower")
        await submit(vcda, 1)
        assert await vcda.find(site=None, replication_id="C4-00000000-0000-4000-8000-000000000001", since=since) == []
        found = await vcda.find(site=None, replication_id=None, since=since)
        assert isinstance(found, list)
        assert [task.replication_id for task in found] == ["c4-00000000-0000-4000-8000-000000000001"]
