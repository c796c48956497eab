"""The simulated VCDA keeps to the documentation, and goes wrong exactly as told."""

import asyncio
import base64
import json
import math
import random
import re
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import aiohttp
import pytest
import trustme

from service.sandbox.vcda.faults import Fault
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import PASSWORD, Config, Durations, Plan, User

A = "C4-ec991bd5-af9d-446a-8599-5b693842c4a3"
B = "C4-00000000-0000-4000-8000-000000000002"
ADMINISTRATOR = {"type": "vcdCredentials", "vcdUser": "administrator@System", "vcdPassword": PASSWORD}
TENANT = {"type": "vcdCredentials", "vcdUser": "admin1@org1", "vcdPassword": PASSWORD}
EXTENSION = {"type": "credentials", "site": "site2", "vcdUsername": "administrator@System", "vcdPassword": PASSWORD}
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
PRACTICE = Path(__file__).resolve().parents[2] / "docs" / "practice.md"
CONFIG = Config(plan=Plan(queued=Durations("fixed", 1), duration=Durations("fixed", 10)))


class Hand:
    """A clock that a test moves by hand; seconds since 1970."""

    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> float:
        return self.at


class Answer:
    """A whole answer, read."""

    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.status, self.headers, self.body = response.status, response.headers, body

    @property
    def json(self) -> Any:  # as json.loads
        return json.loads(self.body)


class Browser:
    """A client without opinions: it sends what it is told."""

    def __init__(self, sim: Simulator, http: aiohttp.ClientSession) -> None:
        self.sim, self.http, self.token = sim, http, ""

    async def __call__(
        self, method: str, path: str, *, body: object = None, headers: dict[str, str] | None = None, patience: float = 5
    ) -> Answer:
        headers = {"X-VCAV-Auth": self.token, **(headers or {})}
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        async with asyncio.timeout(patience):
            async with self.http.request(method, self.sim.url + path, data=data, headers=headers) as response:
                return Answer(response, await response.read())

    async def log_in(self, body: object = None) -> Answer:
        answer = await self("POST", "/sessions", body=body or ADMINISTRATOR)
        self.token = answer.headers.get("X-VCAV-Auth", "")
        return answer

    async def sync(self, replication: str = A, *, site: str | None = None, operation_id: str = "op-1") -> Answer:
        query = "" if site is None else f"?site={site}"
        return await self("POST", f"/vm-replications/{replication}/sync{query}", headers={"operationID": operation_id})

    async def until_there_is_a_task(self) -> None:
        async with asyncio.timeout(60):
            while not (await self("GET", "/_simulator/ledger")).json:
                pass

    async def tasks(self, query: str = "") -> list[str]:
        answer = await self("GET", f"/tasks?{query}" if query else "/tasks")
        assert answer.status == 200, answer.body
        return [task["id"] for task in answer.json["items"]]


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
async def sim(hand: Hand) -> AsyncIterator[Simulator]:
    async with Simulator(CONFIG, clock=hand) as sim:
        yield sim


@pytest.fixture
async def stranger(sim: Simulator) -> AsyncIterator[Browser]:
    """Somebody without a session."""
    async with aiohttp.ClientSession() as http:
        yield Browser(sim, http)


@pytest.fixture
async def browser(stranger: Browser) -> Browser:
    """The administrator, logged in."""
    await stranger.log_in()
    return stranger


# ---------------------------------------------------------------- sessions


async def test_a_token_is_base64_of_twenty_bytes(stranger: Browser) -> None:
    answer = await stranger.log_in()
    assert answer.status == 200
    assert len(stranger.token) == 28
    assert len(base64.b64decode(stranger.token, validate=True)) == 20
    assert answer.json == {
        "user": "administrator@System",
        "roles": ["EVERYONE", "ADMINISTRATORS", "VRADMINISTRATORS"],
        "authenticatedSites": [{"site": "site1", "org": "System"}],
    }


@pytest.mark.parametrize(
    "body",
    [
        ADMINISTRATOR,
        {"type": "localUser", "localUser": "root", "localPassword": PASSWORD},
        {"type": "ssoCredentials", "username": "administrator@vsphere.local", "password": PASSWORD, "principal": None},
        {"type": "ssoCredentials", "username": "administrator@vsphere.local", "password": PASSWORD},
        {"type": "vcdCookie", "vcdCookie": "token-of-admin1-at-org1"},
        {"type": "vcdAccessToken", "vcdAccessToken": "token-of-admin1-at-org1", "context": "org1"},
        {"type": "ssoToken", "samlToken": "token-of-admin1-at-org1", "timestamp": 1, "nonce": "n", "signature": "s"},
    ],
)
async def test_each_documented_login_is_taken(stranger: Browser, body: dict[str, Any]) -> None:
    assert (await stranger.log_in(body)).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"type": "vcdCredentials", "username": "administrator@System", "password": PASSWORD}, 400),
        ({**ADMINISTRATOR, "org": "System"}, 400),
        ({**ADMINISTRATOR, "type": "VcdCredentials"}, 400),
        ({**ADMINISTRATOR, "vcdPassword": None}, 400),
        ({**ADMINISTRATOR, "principal": None}, 400),
        (b"[]", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        ({"type": "localUser", "localUser": "administrator@System", "localPassword": PASSWORD}, 401),
        ({**ADMINISTRATOR, "vcdPassword": "wrong"}, 401),
        ({"type": "vcdAccessToken", "vcdAccessToken": "token-of-admin1-at-org1", "context": "org2"}, 401),
    ],
)
async def test_a_login_that_the_documentation_does_not_know_is_refused(
    stranger: Browser, body: object, status: int
) -> None:
    answer = await stranger.log_in(body)
    assert answer.status == status
    assert "X-VCAV-Auth" not in answer.headers
    assert answer.json.keys() == {"code", "msg", "args", "stacktrace"}
    assert stranger.sim.world.counters()["refused"] == (status == 400)


async def test_a_login_that_is_not_json_is_refused(stranger: Browser) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await stranger("POST", "/sessions", body=ADMINISTRATOR, headers=form)).status == 415


async def test_the_three_kinds_of_401_can_be_told_apart(browser: Browser) -> None:
    failed = await browser("POST", "/sessions", body={**ADMINISTRATOR, "vcdPassword": "wrong"})
    assert (failed.status, failed.json["code"]) == (401, "NotAuthenticated")
    assert "WWW-Authenticate" not in failed.headers
    elsewhere = await browser.sync(site="site2")
    assert (elsewhere.status, elsewhere.json["code"]) == (401, "RemoteAuthenticationFailure")
    assert "WWW-Authenticate" not in elsewhere.headers
    browser.token = "nonsense"
    gone = await browser.sync()
    assert (gone.status, gone.headers["WWW-Authenticate"]) == (401, "Authentication Token Required")
    assert browser.sim.world.counters()["unauthorised"] == 3


async def test_a_session_idles_out_unless_it_is_used_and_ends_after_a_day_anyway(browser: Browser, hand: Hand) -> None:
    for _ in range(47):
        hand.at += 1800
        assert (await browser("GET", "/sessions")).status == 200
    hand.at += 1801
    assert (await browser("GET", "/sessions")).status == 401
    await browser.log_in()
    for _ in range(48):
        hand.at += 1800
        assert (await browser("GET", "/sessions")).status == 200
    hand.at += 1
    assert (await browser("GET", "/sessions")).status == 401


async def test_logging_out_ends_the_session(browser: Browser) -> None:
    answer = await browser("DELETE", "/sessions")
    assert (answer.status, answer.body) == (204, b"")
    assert (await browser("GET", "/sessions")).status == 401


@pytest.mark.parametrize(
    "body",
    [
        EXTENSION,
        {"type": "cookie", "site": "site2", "cookie": "token-of-admin1-at-org1"},
        {"type": "vcdAccessToken", "site": "site2", "vcdAccessToken": "token-of-admin2-at-org2"},
        {"type": "multisite", "site": "site2", "org": "System"},
    ],
)
async def test_a_session_is_extended_by_each_documented_body_and_shrunk_again(
    browser: Browser, body: dict[str, str]
) -> None:
    answer = await browser("POST", "/sessions/extend", body=body)
    assert answer.status == 200
    assert [site["site"] for site in answer.json["authenticatedSites"]] == ["site1", "site2"]
    assert (await browser.tasks("site=site2")) == []
    answer = await browser("DELETE", "/sessions/site2")
    assert [site["site"] for site in answer.json["authenticatedSites"]] == ["site1"]
    assert (await browser("GET", "/tasks?site=site2")).status == 401
    assert (await browser("DELETE", "/sessions/site2")).status == 400


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"type": "credentials", "site": "site2", "vcdUser": "x", "vcdPassword": "x"}, 400, "BadUserInput"),
        ({"type": "cookie", "site": "site2", "vcdCookie": "x"}, 400, "BadUserInput"),
        ({**EXTENSION, "site": "site1"}, 400, "BadUserInput"),
        ({**EXTENSION, "vcdPassword": "wrong"}, 401, "RemoteAuthenticationFailure"),
        ({"type": "multisite", "site": "site2", "org": "org1"}, 401, "RemoteAuthenticationFailure"),
        ({**EXTENSION, "site": "site9"}, 404, "SiteNotFound"),
    ],
)
async def test_an_extension_that_cannot_be_is_refused(
    browser: Browser, body: dict[str, str], status: int, code: str
) -> None:
    answer = await browser("POST", "/sessions/extend", body=body)
    assert (answer.status, answer.json["code"]) == (status, code)


async def test_extensions_and_the_right_to_operate_end_apart_from_the_session(browser: Browser) -> None:
    await browser("POST", "/sessions/extend", body=EXTENSION)
    browser.sim.world.expire(what="extensions")
    assert (await browser("GET", "/tasks?site=site2")).status == 401
    browser.sim.world.expire(what="cloud-director")
    assert (await browser("GET", "/tasks")).status == 200
    answer = await browser.sync()
    assert (answer.status, answer.headers.get("WWW-Authenticate")) == (401, None)


# ---------------------------------------------------------------- strictness


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", f"//vm-replications/{A}/sync", 400),
        ("POST", f"/vm-replications//{A}/sync", 400),
        ("POST", f"/vm-replications/{A}/sync/", 404),
        ("POST", f"/VM-replications/{A}/sync", 404),
        ("POST", f"/vm-replications/{A}/sync?site=", 400),
        ("POST", f"/vm-replications/{A}/sync?site=site1&site=site1", 400),
        ("POST", f"/vm-replications/{A}/sync?operationID=op", 400),
        ("GET", f"/vm-replications/{A}/sync", 405),
        ("PUT", f"/vm-replications/{A}", 405),
        ("POST", "/tasks", 405),
        ("GET", "/tasks?operationID=op", 400),
        ("GET", "/tasks?limit=0", 400),
        ("GET", "/tasks?limit=ten", 400),
        ("GET", "/tasks?offset=-1", 400),
        ("GET", "/tasks?state=QUEUED", 400),
        ("GET", "/tasks?startTimeAfter=1.5", 400),
        ("GET", "/tasks?sort=colour", 400),
        ("GET", "/tasks?ids=1,2", 400),
        ("GET", "/tasks?user=x&destinationOrg=y", 400),
        ("GET", "/", 404),
    ],
)
async def test_what_the_documentation_does_not_allow_is_refused_and_remembered(
    browser: Browser, method: str, path: str, status: int
) -> None:
    assert (await browser(method, path)).status == status
    counters = browser.sim.world.counters()
    assert counters["refused"] == 1
    assert f"{method} {path}: {status}" in counters["refusals"][0]


async def test_a_sync_takes_no_body(browser: Browser) -> None:
    assert (await browser("POST", f"/vm-replications/{A}/sync", body={})).status == 400
    assert browser.sim.world.ledger() == []


@pytest.mark.parametrize("replication", ["C4-1", "H4-ec991bd5-af9d-446a-8599-5b693842c4a3", A + "0"])
async def test_a_replication_that_cannot_be_is_not_found(browser: Browser, replication: str) -> None:
    assert (await browser.sync(replication)).status == 404


async def test_an_unknown_site_is_not_found(browser: Browser) -> None:
    answer = await browser.sync(site="site9")
    assert (answer.status, answer.json["code"]) == (404, "SiteNotFound")


@pytest.mark.parametrize(
    ("accept", "tasks", "sync"),
    [
        ("*/*", "application/vnd.vmware.h4-v4.7+json;charset=UTF-8", "application/json;charset=UTF-8"),
        ("application/json", "application/json;charset=UTF-8", "application/json;charset=UTF-8"),
        ("application/vnd.vmware.h4-v4.5+json", *["application/vnd.vmware.h4-v4.5+json;charset=UTF-8"] * 2),
    ],
)
async def test_the_content_type_follows_accept(browser: Browser, accept: str, tasks: str, sync: str) -> None:
    assert (await browser("GET", "/tasks", headers={"Accept": accept})).headers["Content-Type"] == tasks
    answer = await browser("POST", f"/vm-replications/{A}/sync", headers={"Accept": accept})
    assert answer.headers["Content-Type"] == sync


@pytest.mark.parametrize("accept", ["text/html", "application/vnd.vmware.h4-v9.9+json"])
async def test_a_foreign_accept_is_refused(browser: Browser, accept: str) -> None:
    assert (await browser("GET", "/tasks", headers={"Accept": accept})).status == 406


# ---------------------------------------------------------------- syncs


async def test_a_sync_queues_runs_and_succeeds_with_a_newer_instance(browser: Browser, hand: Hand) -> None:
    answer = await browser.sync()
    task = answer.json
    assert (answer.status, task["state"], task["progress"], task["endTime"]) == (202, "QUEUED", 0, -1)
    assert task["startTime"] == NOON * 1000
    assert task["site"] == "site1"
    assert task["user"] == "administrator@System"
    assert task["workflowInfo"]["resourceId"] == A
    hand.at += 6
    task = (await browser("GET", f"/tasks/{task['id']}")).json
    assert (task["state"], task["progress"], task["result"]) == ("RUNNING", 50, None)
    hand.at += 5
    task = (await browser("GET", f"/tasks/{task['id']}")).json
    assert (task["state"], task["progress"], task["endTime"]) == ("SUCCEEDED", 100, (NOON + 11) * 1000)
    first = task["result"]["destinationState"]["latestInstance"]
    assert "S3cret" in task["result"]["guestCustomization"]["adminPassword"]
    await browser.sync()
    hand.at += 11
    now = (await browser("GET", f"/vm-replications/{A}")).json["destinationState"]["latestInstance"]
    assert now["sequenceNumber"] == first["sequenceNumber"] + 1
    assert now["timestamp"] == (NOON + 22) * 1000


async def test_a_failed_sync_has_an_error_with_a_stack_trace_and_no_result(browser: Browser, hand: Hand) -> None:
    browser.sim.world.plan(failing=1.0, warned=1.0, code="OutOfSpace")
    task = (await browser.sync()).json
    hand.at += 11
    task = (await browser("GET", f"/tasks/{task['id']}")).json
    assert (task["state"], task["result"], task["error"]["code"]) == ("FAILED", None, "OutOfSpace")
    assert "S3cret" in task["error"]["stacktrace"]
    assert [warning["code"] for warning in task["warnings"]] == ["QuiesceFailed"]


async def test_a_plan_for_one_replication_leaves_the_others_and_runs_out(browser: Browser, hand: Hand) -> None:
    browser.sim.world.plan(replication=A, times=1, duration="fixed:100", word="PRUNING")
    ids = [(await browser.sync(replication)).json["id"] for replication in (A, B, A)]
    hand.at += 12
    states = {task["id"]: task["state"] for task in (await browser("GET", "/tasks")).json["items"]}
    assert [states[id_] for id_ in ids] == ["PRUNING", "SUCCEEDED", "SUCCEEDED"]


async def test_syncs_of_one_replication_that_overlap_are_counted(browser: Browser, hand: Hand) -> None:
    await browser.sync(operation_id="op-1")
    hand.at += 11
    await browser.sync(operation_id="op-2")
    assert browser.sim.world.counters()["overlapping"] == 0
    await browser.sync(operation_id="op-2")
    await browser.sync(B, operation_id="op-2")
    counters = browser.sim.world.counters()
    assert counters["overlapping"] == 1
    assert counters["repeated"] == [{"replicationId": A, "operationID": "op-2", "tasks": 2}]
    assert counters["mostRunning"] == {"site1": 3}
    assert [task["overlapped"] for task in browser.sim.world.ledger()] == [False, False, True, False]
    assert len(browser.sim.world.tasks_of(A, "op-2")) == 2


async def test_tasks_ended_by_the_test_no_longer_overlap(browser: Browser) -> None:
    await browser.sync()
    assert browser.sim.world.finish(replication=A, fails=True) == 1
    assert browser.sim.world.ledger()[0]["state"] == "FAILED"
    await browser.sync()
    assert browser.sim.world.counters()["overlapping"] == 0


@pytest.mark.parametrize("text", ["5", "fixed:5", "uniform:1:9", "lognormal-mean:5:0.5", "lognormal:5:0.01"])
def test_durations_have_the_mean_they_promise(text: str) -> None:
    rng = random.Random(1)
    assert fmean(Durations.of(text).draw(rng) for _ in range(5000)) == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize("text", ["gauss:1:2", "uniform:1", "fixed:1:2", "soon"])
def test_durations_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"distribution|could not convert"):
        Durations.of(text)


# ---------------------------------------------------------------- GET /tasks


async def test_ids_select_and_unknown_ones_are_left_out_silently(browser: Browser) -> None:
    first, second = [(await browser.sync(replication)).json["id"] for replication in (A, B)]
    unknown = "00000000-0000-4000-8000-000000000000"
    assert sorted(await browser.tasks(f"ids={first},{unknown},{second},{first}")) == sorted([first, second])
    counters = browser.sim.world.counters()
    assert (counters["calls"]["poll"], counters["idsPolled"]) == (1, 4)


async def test_pages_have_at_most_a_hundred_tasks_the_youngest_first(browser: Browser, hand: Hand) -> None:
    ids = []
    for _ in range(130):
        ids.append((await browser.sync()).json["id"])
        hand.at += 0.01
    page = (await browser("GET", "/tasks?limit=500")).json
    assert (page["total"], page["limit"], page["offset"]) == (130, 100, 0)
    rest = (await browser("GET", "/tasks?offset=100")).json
    assert [task["id"] for task in page["items"] + rest["items"]] == ids[::-1]
    assert await browser.tasks("limit=2&sort=startTime") == ids[:2]
    assert await browser.tasks("limit=2&sort=state,%20startTime-") == ids[:-3:-1]


async def test_each_filter_filters(browser: Browser, hand: Hand) -> None:
    a = (await browser.sync(A)).json["id"]
    hand.at += 11
    b = (await browser.sync(B)).json["id"]
    hand.at += 2
    started = int((NOON + 11) * 1000)
    for query, expected in {
        f"resourceId={A}&type=sync": [a],
        "type=failover": [],
        "resourceName=VM-002": [b],
        "resourceType=replication,vmReplication": [b, a],
        "resourceType=replication&resourceType=vmReplication": [b, a],
        "resourceType=replication": [],
        "state=RUNNING": [b],
        "state=SUCCEEDED": [a],
        f"startTimeAfter={started}": [],
        f"startTimeAfter={started - 1}": [b],
        f"startTimeBefore={started}": [a],
        f"resourceId={B}&startTimeAfter={started}": [],
        f"endTimeAfter={started - 1}": [a],
        f"endTimeAfter={started}": [],
        f"endTimeBefore={started}": [],
        f"endTimeBefore={started + 1}": [a],
        "user=administrator@System": [b, a],
        "user=root": [],
        "sourceOrg=System": [b, a],
        "destinationOrg=org1": [],
    }.items():
        assert await browser.tasks(query) == expected, query


async def test_tasks_are_seen_by_their_user_and_by_administrators_only(browser: Browser) -> None:
    theirs = (await browser.sync(A)).json["id"]
    await browser.log_in(TENANT)
    own = (await browser.sync(B)).json["id"]
    assert await browser.tasks() == [own]
    assert (await browser("GET", f"/tasks/{theirs}")).status == 404
    assert (await browser("GET", "/tasks?user=admin1@org1")).status == 403
    await browser.log_in()
    assert sorted(await browser.tasks()) == sorted([own, theirs])


async def test_a_remote_task_is_found_at_its_site_only_and_by_the_user_there(browser: Browser) -> None:
    await browser.log_in(TENANT)
    await browser(
        "POST", "/sessions/extend", body={"type": "cookie", "site": "site2", "cookie": "token-of-admin2-at-org2"}
    )
    task = (await browser.sync(site="site2")).json
    assert (task["site"], task["user"]) == ("site2", "admin2@org2")
    assert await browser.tasks() == []
    assert (await browser("GET", f"/tasks/{task['id']}")).status == 404
    assert await browser.tasks("site=site2") == [task["id"]]
    assert (await browser("GET", f"/tasks/{task['id']}?site=site2")).status == 200
    assert (await browser.sync()).status == 404  # it lives at site2


async def test_even_an_administrator_of_both_sites_has_to_name_the_right_one(browser: Browser) -> None:
    await browser("POST", "/sessions/extend", body=EXTENSION)
    there = (await browser.sync(A, site="site2")).json["id"]
    here = (await browser.sync(B)).json["id"]
    for query in (f"ids={there},{here}", "type=sync"):
        assert await browser.tasks(query) == [here]
        assert await browser.tasks(f"{query}&site=site2") == [there]
    assert await browser.tasks(f"resourceId={A}") == []
    assert (await browser("GET", f"/tasks/{there}")).status == 404
    assert (await browser("GET", f"/tasks/{here}?site=site2")).status == 404


async def test_a_user_may_be_renamed_or_become_another_account(browser: Browser) -> None:
    await browser.log_in(TENANT)
    task = (await browser.sync()).json
    browser.sim.world.user(name="admin1@org1", spelled="org1@site1")
    renamed = (await browser.sync(B)).json
    assert (task["user"], renamed["user"]) == ("admin1@org1", "org1@site1")
    assert len(await browser.tasks()) == 2
    browser.sim.world.user(name="admin1@org1", account="somebody else")
    assert await browser.tasks() == []


async def test_tasks_may_spell_a_user_as_sessions_do_not(browser: Browser) -> None:
    browser.sim.world.user(name="admin1@org1", on_tasks="{org}@{site}")
    assert (await browser.log_in(TENANT)).json["user"] == "admin1@org1"
    assert (await browser.sync()).json["user"] == "org1@site1"
    assert len((await browser("GET", "/tasks")).json["items"]) == 1, "whose it is, VCDA knows all the same"


async def test_a_task_may_name_neither_its_user_nor_its_replication(browser: Browser) -> None:
    browser.sim.world.plan(no_user=True, resource="null")
    task = (await browser.sync()).json
    assert (task["user"], task["workflowInfo"]["resourceId"]) == (None, None)
    assert await browser.tasks(f"resourceId={A}") == [], "a filter sees what is shown"
    assert len(await browser.tasks("type=sync")) == 1


async def test_a_task_may_name_its_replication_in_another_letter_case(browser: Browser) -> None:
    browser.sim.world.plan(resource="upper")
    assert (await browser.sync()).json["workflowInfo"]["resourceId"] == A.upper()
    assert await browser.tasks(f"resourceId={A}") == []


async def test_a_task_may_be_in_lists_only_some_time_after_its_creation(browser: Browser, hand: Hand) -> None:
    browser.sim.world.plan(listed_after=5.0)
    task = (await browser.sync()).json
    assert await browser.tasks("type=sync") == []
    assert await browser.tasks(f"ids={task['id']}") == [task["id"]]
    hand.at += 5.0
    assert await browser.tasks("type=sync") == [task["id"]]


async def test_a_task_is_in_lists_once_a_post_was_refused_for_it(browser: Browser) -> None:
    browser.sim.world.plan(replication=A, times=1, refuses=409, listed_after=math.inf)
    task = (await browser.sync()).json
    assert await browser.tasks("type=sync") == []
    assert (await browser.sync()).status == 409
    assert await browser.tasks("type=sync") == [task["id"]]


async def test_posts_may_be_refused_while_a_sync_of_the_replication_runs(browser: Browser, hand: Hand) -> None:
    browser.sim.world.plan(replication=A, times=1, refuses=403)
    await browser.sync()
    refused = await browser.sync()
    assert (refused.status, refused.json["code"]) == (403, "OperationInProgress")
    hand.at += 60.0
    assert (await browser.sync()).status == 202
    assert (await browser.sync()).status == 202, "the second sync was planned otherwise"
    assert browser.sim.world.counters()["refusedWhileRunning"] == 1


async def test_an_account_that_is_replaced_can_do_nothing_more_and_its_tasks_stay_its_own(browser: Browser) -> None:
    await browser.log_in(TENANT)
    await browser.sync()
    browser.sim.world.replace_account(name="admin1@org1", by="admin9@org1", password="other")
    assert (await browser("GET", "/tasks")).status == 401
    assert (await browser.log_in(TENANT)).status == 401
    assert (await browser.log_in({**TENANT, "vcdUser": "admin9@org1", "vcdPassword": "other"})).status == 200
    assert await browser.tasks() == []


async def test_a_sites_account_that_is_replaced_ends_the_extension(browser: Browser) -> None:
    extension = {**EXTENSION, "vcdUsername": "admin2@org2"}
    await browser("POST", "/sessions/extend", body=extension)
    await browser.sync(site="site2")
    browser.sim.world.replace_account(name="admin2@org2", by="admin9@org2", site="site2")
    assert (await browser("GET", "/tasks?site=site2")).status == 401
    assert (await browser("GET", "/tasks")).status == 200
    assert (await browser("POST", "/sessions/extend", body=extension)).status == 401
    again = await browser("POST", "/sessions/extend", body={**extension, "vcdUsername": "admin9@org2"})
    assert again.status == 200
    assert await browser.tasks("site=site2") == []


async def test_a_cache_in_front_answers_what_was_true_a_while_ago(browser: Browser, hand: Hand) -> None:
    browser.sim.cache(seconds=30)
    first = await browser("GET", "/tasks")
    assert "Age" not in first.headers
    await browser.sync()
    hand.at += 20
    stale = await browser("GET", "/tasks", headers={"Cache-Control": "no-cache"})
    assert (stale.json["items"], stale.headers["Age"]) == ([], "20")
    assert browser.sim.world.counters()["cached"] == 1
    hand.at += 20
    assert len((await browser("GET", "/tasks")).json["items"]) == 1
    browser.sim.cache(seconds=0)
    await browser.sync(B)
    assert len((await browser("GET", "/tasks")).json["items"]) == 2


async def test_a_cache_may_obey_and_may_keep_its_age_to_itself(browser: Browser, hand: Hand) -> None:
    browser.sim.cache(seconds=30, obeys=True, tells=False)
    await browser("GET", "/tasks")
    await browser.sync()
    hand.at += 20
    stale = await browser("GET", "/tasks")
    assert (stale.json["items"], "Age" in stale.headers) == ([], False)
    assert len((await browser("GET", "/tasks", headers={"Cache-Control": "no-cache"})).json["items"]) == 1


async def test_a_forgotten_task_and_one_past_its_retention_are_gone(hand: Hand) -> None:
    async with (
        Simulator(Config(plan=CONFIG.plan, retention=60), clock=hand) as sim,
        aiohttp.ClientSession() as http,
    ):
        browser = Browser(sim, http)
        await browser.log_in()
        ids = [(await browser.sync(replication)).json["id"] for replication in (A, B)]
        sim.world.forget(ids=ids[:1])
        assert await browser.tasks() == ids[1:]
        assert (await browser("GET", f"/tasks/{ids[0]}")).json["code"] == "TaskNotFound"
        hand.at += 71
        assert await browser.tasks() == []
        assert [task["state"] for task in sim.world.ledger()] == ["SUCCEEDED", "SUCCEEDED"]


async def test_a_purge_loses_all_that_was_polled_for_a_while_and_nothing_else(browser: Browser, hand: Hand) -> None:
    ids = [(await browser.sync(replication)).json["id"] for replication in (A, B)]
    await browser.tasks(f"ids={ids[0]}")
    hand.at += 2
    await browser.tasks(f"ids={ids[0]},{ids[1]}")
    assert browser.sim.world.purge(polled_for=2) == 1
    assert await browser.tasks() == ids[1:]
    assert browser.sim.world.purge() == 2
    assert await browser.tasks() == []
    await browser.sync()
    assert browser.sim.world.counters()["overlapping"] == 0, "what was restored without a sync isn't busy with it"


async def test_archived_tasks_are_returned_once_and_take_no_more_memory(browser: Browser, hand: Hand) -> None:
    ids = [(await browser.sync(replication)).json["id"] for replication in (A, B)]
    await browser.tasks(f"ids={ids[0]},{ids[1]}")
    hand.at += 11
    later = (await browser.sync()).json["id"]
    world = browser.sim.world
    truth = {task["id"]: task for task in world.ledger()}
    assert world.archive(ended_for=60) == []
    gone = (await browser("POST", "/_simulator/archive", body={"ended_for": 0})).json["result"]
    assert {task["id"]: task for task in gone} == {id_: truth[id_] for id_ in ids}
    assert await browser.tasks() == [later]
    assert [*world.tasks] == [later]
    assert [task.id for known in world.replications.values() for task in known.tasks] == [later]
    assert not world.counts.polled
    assert len(world.counts.requests) == 1


async def test_a_state_may_never_end(browser: Browser, hand: Hand) -> None:
    browser.sim.world.plan(replication=A, word="ABORTED", duration=1e9)
    await browser.sync()
    hand.at += 1000
    assert [task["state"] for task in (await browser("GET", "/tasks")).json["items"]] == ["ABORTED"]


async def test_each_site_has_its_own_clock_and_the_local_one_dates_the_answers(browser: Browser) -> None:
    await browser("POST", "/sessions/extend", body=EXTENSION)
    browser.sim.world.clock_offset(seconds=90)
    browser.sim.world.clock_offset(seconds=-30, site="site2")
    answer = await browser.sync(site="site2")
    assert answer.json["startTime"] == (NOON - 30) * 1000
    assert parsedate_to_datetime(answer.headers["Date"]).timestamp() == NOON + 90
    assert (await browser.sync(B)).json["startTime"] == (NOON + 90) * 1000
    assert browser.sim.world.ledger()[0]["start"] == NOON
    browser.sim.world.clock_offset(seconds=0)
    early = (await browser.sync(B)).json["id"]
    assert (await browser.tasks())[-1] == early  # a clock set back: the later task seems the older


async def test_somebody_may_start_a_sync_by_hand(browser: Browser) -> None:
    id_ = browser.sim.world.by_hand(replication=A, user="admin1@org1")
    assert await browser.tasks(f"resourceId={A}") == [id_]


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500, 502, 503, 504])
async def test_a_wished_for_status_comes_with_an_api_error_and_without_a_task(browser: Browser, status: int) -> None:
    browser.sim.fault(operation="submit", answer="status", status=status, times=2)
    for _ in range(2):
        answer = await browser.sync()
        assert answer.status == status
        assert answer.json["stacktrace"] is None
    assert browser.sim.world.ledger() == []
    assert (await browser.sync()).status == 202
    assert browser.sim.world.counters()["faults"] == {"submit status": 2}


async def test_a_proxy_says_where_to_go_instead(browser: Browser) -> None:
    browser.sim.fault(answer="status", status=404, html=True, location="https://sso.example.com/")
    answer = await browser("GET", "/tasks")  # with a status that this client doesn't follow
    assert (answer.status, answer.headers["Location"]) == (404, "https://sso.example.com/")


async def test_a_proxy_answers_in_html(browser: Browser) -> None:
    browser.sim.fault(answer="status", status=404, html=True)
    answer = await browser("GET", "/tasks")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "text/html")
    assert answer.body.startswith(b"<html>")


async def test_a_fault_is_for_its_operation_site_and_replication(browser: Browser) -> None:
    await browser("POST", "/sessions/extend", body=EXTENSION)
    browser.sim.fault(operation="submit", site="site2", replication=B, answer="status", status=500)
    assert (await browser.sync(A, site="site2")).status == 202
    assert (await browser.sync(B, site="site2")).status == 500
    assert (await browser.sync(B)).status == 202
    assert (await browser("GET", "/tasks?site=site2")).status == 200
    browser.sim.faults.remove()
    browser.sim.fault(site="site1", answer="status", status=500)
    assert (await browser("GET", "/tasks")).status == 500


async def test_one_poisonous_task_fails_whatever_asks_for_it(browser: Browser) -> None:
    ids = [(await browser.sync(replication)).json["id"] for replication in (A, B)]
    for operation in ("poll", "ask"):
        browser.sim.fault(operation=operation, replication=B, answer="status", status=500)
    for query in (f"ids={ids[0]},{ids[1]}", f"ids={ids[1]}"):
        assert (await browser("GET", f"/tasks?{query}")).status == 500
    assert (await browser("GET", f"/tasks/{ids[1]}")).status == 500
    assert await browser.tasks(f"ids={ids[0]}") == ids[:1]
    assert await browser.tasks(f"resourceId={B}") == ids[1:]


async def test_one_poisonous_look_up_leaves_the_others(browser: Browser) -> None:
    ids = [(await browser.sync(replication)).json["id"] for replication in (A, B)]
    browser.sim.fault(operation="find", replication=B, answer="status", status=500)
    assert (await browser("GET", f"/tasks?resourceId={B}")).status == 500
    assert await browser.tasks(f"resourceId={A}") == ids[:1]
    assert await browser.tasks(f"ids={ids[1]}") == ids[1:]


async def test_a_probability_is_kept(browser: Browser) -> None:
    browser.sim.fault(operation="ask", answer="status", status=500, probability=0.3)
    task = (await browser.sync()).json["id"]
    statuses = [(await browser("GET", f"/tasks/{task}")).status for _ in range(200)]
    assert 40 <= statuses.count(500) <= 80
    assert set(statuses) == {200, 500}


async def test_posts_after_a_retry_after_was_told_are_violations(browser: Browser, hand: Hand) -> None:
    browser.sim.fault(operation="submit", answer="status", status=429, retry_after=5, times=1)
    answer = await browser.sync()
    assert (answer.status, answer.headers["Retry-After"]) == (429, "5")
    hand.at += 0.2  # on its way already
    await browser.sync()
    assert browser.sim.world.counters()["postsWhilePaused"] == 0
    hand.at += 4.7
    await browser.sync()
    assert browser.sim.world.counters()["postsWhilePaused"] == 1
    hand.at += 0.1
    await browser.sync()
    assert browser.sim.world.counters()["postsWhilePaused"] == 1


async def test_a_maintenance_tells_what_is_left_of_it_as_a_date(browser: Browser, hand: Hand) -> None:
    browser.sim.fault(answer="status", status=503, lasting=30, retry_after="rest", http_date=True)
    hand.at += 10
    answer = await browser("GET", "/tasks")
    assert parsedate_to_datetime(answer.headers["Retry-After"]).timestamp() == NOON + 30
    hand.at += 20
    assert (await browser("GET", "/tasks")).status == 200


@pytest.mark.parametrize("answer", ["cut", "close"])
@pytest.mark.parametrize(("effect", "tasks"), [(None, 0), ("first", 1)])
async def test_a_connection_is_lost_before_or_after_the_task_was_made(
    browser: Browser, answer: str, effect: str | None, tasks: int
) -> None:
    browser.sim.fault(operation="submit", answer=answer, effect=effect)
    with pytest.raises(aiohttp.ClientConnectionError):
        await browser.sync()
    assert len(browser.sim.world.ledger()) == tasks


async def test_half_an_answer_is_whole_http_and_broken_json(browser: Browser) -> None:
    browser.sim.fault(answer="half", times=1)
    answer = await browser.sync()
    assert answer.status == 202
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.body)
    assert len(browser.sim.world.ledger()) == 1


async def test_a_torn_answer_ends_before_its_length(browser: Browser) -> None:
    browser.sim.fault(answer="torn")
    with pytest.raises(aiohttp.ClientPayloadError):
        await browser.sync()


async def test_an_empty_answer_and_an_empty_page_are_different(browser: Browser) -> None:
    await browser.sync()
    browser.sim.fault(answer="empty", times=1)
    assert (await browser("GET", "/tasks")).body == b""
    browser.sim.fault(answer="empty page", times=1)
    assert (await browser("GET", "/tasks")).json == {"items": [], "total": 0, "offset": 0, "limit": 100}
    assert len(await browser.tasks()) == 1


@pytest.mark.parametrize("fault", [{"answer": "silent"}, {"answer": "drip", "seconds": 0.02}])
async def test_an_answer_may_outlast_any_patience(browser: Browser, fault: dict[str, Any]) -> None:
    browser.sim.fault(**fault)
    with pytest.raises(TimeoutError):
        await browser("GET", "/tasks", patience=0.1)


async def test_a_task_may_be_made_after_its_client_has_gone(browser: Browser) -> None:
    browser.sim.fault(operation="submit", effect="last", seconds=0.1)
    with pytest.raises(TimeoutError):
        await browser("POST", f"/vm-replications/{A}/sync", patience=0.05)
    assert browser.sim.world.ledger() == []
    await browser.until_there_is_a_task()


async def test_a_task_may_be_made_behind_the_back_of_an_error(browser: Browser) -> None:
    browser.sim.fault(
        operation="submit", answer="status", status=504, html=True, effect="behind", seconds=0.05, times=1
    )
    assert (await browser.sync()).status == 504
    assert browser.sim.world.ledger() == []
    await browser.until_there_is_a_task()


async def test_posts_at_once_are_counted_at_their_most(browser: Browser) -> None:
    browser.sim.fault(operation="submit", seconds=0.05)
    await asyncio.gather(*(browser.sync() for _ in range(7)))
    assert browser.sim.world.counters()["mostConcurrentPosts"] == {"site1": 7}


async def test_connections_that_are_dropped_stay_silent_and_new_ones_work(browser: Browser) -> None:
    assert browser.sim.drop() == 1
    with pytest.raises(TimeoutError):
        await browser("GET", "/tasks", patience=0.1)
    assert await browser.tasks() == []


async def test_idle_connections_get_an_answer_that_nothing_has_asked_for(browser: Browser) -> None:
    assert await browser.tasks() == []
    counted = browser.sim.world.counters()["calls"]
    assert browser.sim.answer_unasked() == 1
    assert browser.sim.world.counters()["calls"] == counted


async def test_a_post_whose_connection_is_dropped_meanwhile_has_its_effect_and_no_answer(browser: Browser) -> None:
    browser.sim.fault(operation="submit", effect="last", seconds=0.2)
    post = asyncio.create_task(browser("POST", f"/vm-replications/{A}/sync", patience=1.0))
    async with asyncio.timeout(30):
        while not browser.sim.world.counts.calls["submit"]:  # it has no event for it
            await asyncio.sleep(0.005)
    browser.sim.drop()
    with pytest.raises(TimeoutError):
        await post
    assert browser.sim.world.counters()["tasks"] == 1


async def test_a_retry_after_that_went_into_a_dropped_connection_binds_nobody(browser: Browser, hand: Hand) -> None:
    browser.sim.fault(operation="submit", answer="status", status=429, retry_after=60, seconds=0.2, times=1)
    post = asyncio.create_task(browser("POST", f"/vm-replications/{A}/sync", patience=1.0))
    async with asyncio.timeout(30):
        while not browser.sim.world.counts.calls["submit"]:  # it has no event for it
            await asyncio.sleep(0.005)
    browser.sim.drop()
    with pytest.raises(TimeoutError):
        await post
    hand.at += 5
    await browser.sync()
    assert browser.sim.world.counters()["postsWhilePaused"] == 0


async def test_a_port_that_refuses_comes_back(browser: Browser) -> None:
    await browser.sim.refuse()
    with pytest.raises(aiohttp.ClientConnectorError):
        await browser("GET", "/tasks")
    await browser.sim.accept()
    assert (await browser("GET", "/tasks")).status == 200


@pytest.mark.parametrize(
    "fault",
    [
        {"operation": "polling"},
        {"answer": "nothing"},
        {"effect": "never"},
        {"answer": "half", "effect": "none"},
        {"answer": "drip"},
        {"answer": "status", "retry_after": "rest"},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Fault(**fault)


# ---------------------------------------------------------------- the control API, and its life


async def test_everything_can_be_switched_over_http(stranger: Browser, hand: Hand) -> None:
    async def control(method: str, control: str, /, **fields: object) -> Any:  # as json.loads
        answer = await stranger(method, f"/_simulator/{control}", body=fields if method == "POST" else None)
        assert answer.status == 200, answer.body
        return answer.json

    number = (await control("POST", "faults", operation="login", answer="status", status=500))["result"]
    assert (await stranger.log_in()).status == 500
    assert [fault["id"] for fault in await control("GET", "faults")] == [number]
    await control("DELETE", f"faults/{number}")
    await stranger.log_in()
    await control("POST", "plan", duration="uniform:20:30", failing=1)
    task = (await stranger.sync()).json["id"]
    assert (await control("POST", "finish", ids=[task], fails=False)) == {"result": 1}
    assert (await control("GET", "ledger"))[0]["state"] == "SUCCEEDED"
    await control("POST", "user", name="new@org1", password="other", org="org1")
    assert (await stranger.log_in({**TENANT, "vcdUser": "new@org1", "vcdPassword": "other"})).status == 200
    await control("POST", "by_hand", replication=B)
    await control("POST", "forget", replication=B)
    await control("POST", "clock_offset", seconds=5)
    await control("POST", "cache", seconds=30)
    await control("POST", "replace_account", name="new@org1", by="newer@org1")
    await control("POST", "expire")
    assert (await stranger("GET", "/sessions")).status == 401
    assert (await control("GET", "counters"))["tasks"] == 2
    await control("POST", "reset")
    counters = await control("GET", "counters")
    assert (counters["tasks"], counters["calls"], counters["sessions"]) == (0, {}, 0)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/_simulator/faults", {"colour": "red"}),
        ("POST", "/_simulator/plan", {"colour": "red"}),
        ("POST", "/_simulator/plan", {"resource": "red"}),
        ("POST", "/_simulator/expire", {"what": "milk"}),
        ("POST", "/_simulator/finish", {"task": 1}),
        ("POST", "/_simulator/nothing", {}),
        ("GET", "/_simulator/", None),
    ],
)
async def test_a_control_that_is_not_understood_says_so(
    stranger: Browser, method: str, path: str, body: object
) -> None:
    answer = await stranger(method, path, body=body)
    assert answer.status == 400
    assert answer.json["error"]


async def test_the_same_seed_gives_the_same_world(hand: Hand) -> None:
    async def story() -> list[dict[str, Any]]:
        config = Config(plan=Plan(duration=Durations("lognormal", 5, 1), failing=0.5), seed=7)
        async with Simulator(config, clock=hand) as sim, aiohttp.ClientSession() as http:
            browser = Browser(sim, http)
            await browser.log_in()
            for _ in range(20):
                await browser.sync()
            return sim.world.ledger()

    assert await story() == await story()


async def test_it_serves_https() -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with (
        Simulator(tls=tls) as sim,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as http,
    ):
        browser = Browser(sim, http)
        assert (await browser.log_in()).status == 200
        sim.fault(operation="submit", answer="cut")
        with pytest.raises(aiohttp.ClientConnectionError):
            await browser.sync()


async def test_each_site_may_have_users_of_its_own() -> None:
    other = User(name="administrator@System", password="other", administrator=True)
    async with Simulator(Config(site_users={"site2": (other,)})) as sim, aiohttp.ClientSession() as http:
        browser = Browser(sim, http)
        await browser.log_in()
        assert (await browser("POST", "/sessions/extend", body=EXTENSION)).status == 401
        assert (await browser("POST", "/sessions/extend", body={**EXTENSION, "vcdPassword": "other"})).status == 200


@pytest.mark.parametrize(("path", "fields"), re.findall(r"`([a-z]+)` `(\{.*?\})`", PRACTICE.read_text()))
async def test_the_simulator_takes_each_trouble_of_the_page_for_practice(
    stranger: Browser, path: str, fields: str
) -> None:
    answer = await stranger("POST", f"/_simulator/{path}", body=json.loads(fields))
    assert answer.status == 200, answer.body
