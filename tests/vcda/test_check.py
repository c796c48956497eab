"""The checks of VCDA, against a simulated one, and against scripted ones that behave otherwise."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from service.checks import Result, Status
from service.clock import Clock
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Config
from service.vcda.check import VcdaChecks
from service.vcda.credentials import Credentials, CredentialType, SiteCredentials
from service.vcda.http import Tls
from tests.support.scripted_http_server import Call, Cut, Reply, appliance, error, page, script, session, task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SITE2 = SiteCredentials(name="site2", user="admin1@org1", password="password")
ADMINISTRATOR = Credentials(user="administrator@System", password="password", sites=(SITE2,))
TENANT = Credentials(user="admin1@org1", password="password")


async def found(url: str, credentials: Credentials = TENANT) -> list[Result]:
    checks = VcdaChecks(
        url,
        credentials=credentials,
        tls=Tls(),
        request_timeout=timedelta(seconds=30),
        clock=Clock(),
        version="1.2.3",
        aged=0.0,
    )
    return [result async for result in checks.results()]


def by_name(results: list[Result], *, group: str = "VCDA") -> dict[str, tuple[Status, str]]:
    return {result.check: (result.status, result.text) for result in results if result.group == group}


# ---------------------------------------------------------------- a simulated one


async def test_all_is_well_with_a_simulated_vcda_and_nothing_is_left_behind() -> None:
    async with Simulator(Config()) as vcda:
        for number in range(3):
            replication = f"C4-0000000{number}-0000-0000-0000-000000000000"
            vcda.world.by_hand(replication=replication)
            vcda.world.by_hand(replication=replication.replace("C4-0", "C4-1"), user="admin1@org1", site="site2")
        before = [task["id"] for task in vcda.world.ledger()]

        results = await found(vcda.url, ADMINISTRATOR)

        assert {result.status for result in results} == {Status.OK}
        assert [result.text for result in results if result.text.startswith("Not compared")] == []
        assert by_name(results)["login"][1] == (
            "Logged in as administrator@System at site1, version 4.7.0.5431581-59ae61a850; roles EVERYONE, "
            "ADMINISTRATORS, VRADMINISTRATORS."
        )
        assert by_name(results)["users on tasks"][1].endswith("as its session does: administrator@System.")
        counters = vcda.world.counters()
        assert [task["id"] for task in vcda.world.ledger()] == before
        assert counters["sessions"] == 0
        assert counters["refusals"] == []
        assert counters["calls"]["login"] == 1
        assert "submit" not in counters["calls"]


async def test_without_any_task_what_could_be_compared_is_ok_and_the_rest_says_so() -> None:
    async with Simulator(Config()) as vcda:
        results = await found(vcda.url)

    assert {result.status for result in results} == {Status.OK}
    assert by_name(results)["filters"][1] == "Not compared: VCDA has no task yet that would show it."
    assert "unknown ids are left out" in by_name(results)["task ids"][1]


async def test_tasks_of_other_kinds_are_compared_where_no_sync_has_one() -> None:
    async with Simulator(Config()) as vcda:
        vcda.world.by_hand(replication="C4-00000000-0000-0000-0000-000000000000", type="failover")
        results = by_name(await found(vcda.url, Credentials(user="administrator@System", password="password")))

    assert results["tasks"][1] == "No sync has a task yet."
    assert results["filters"] == (Status.OK, "Tasks are found by their replication and by their start.")


async def test_a_user_who_is_spelled_otherwise_on_tasks_is_told() -> None:
    async with Simulator(Config()) as vcda:
        vcda.world.user(name="admin1@org1", on_tasks="{org}@{site}")
        vcda.world.by_hand(replication="C4-00000000-0000-0000-0000-000000000000", user="admin1@org1")
        results = by_name(await found(vcda.url))

    assert results["users on tasks"][0] is Status.OK
    assert "No task names admin1@org1; tasks name org1@site1." in results["users on tasks"][1]


async def test_the_session_is_closed_also_when_a_check_fails() -> None:
    async with Simulator(Config()) as vcda:
        vcda.fault(operation="find", answer="status", status=500)
        results = by_name(await found(vcda.url))

        assert results["tasks"][0] is Status.FAILURE
        assert "The tasks can't be listed, VCDA answered with 500" in results["tasks"][1]
        assert vcda.world.counters()["sessions"] == 0


async def test_the_session_of_a_login_whose_answer_breaks_off_is_closed() -> None:
    head = b"HTTP/1.1 200 OK\r\nX-VCAV-Auth: t\r\nContent-Length: 100\r\n\r\n"
    async with appliance(script(login=Cut(head + b'{"user"'))) as vcda:
        status, _ = by_name(await found(vcda.url))["login"]

        assert status is Status.FAILURE
        assert [call.token for call in vcda.seen("DELETE /sessions")] == ["t"]


# ---------------------------------------------------------------- scripted ones: what the service relies on, otherwise


def newest_first(count: int = 3) -> list[dict[str, Any]]:
    return [
        task(
            id=f"00000000-0000-0000-0000-00000000000{number}",
            startTime=1_000_000 - number,
            workflowInfo={"type": "sync", "resourceType": "vmReplication", "resourceId": f"C4-{number}"},
        )
        for number in range(count)
    ]


def answers(call: Call, *, ignoring: str = "") -> Reply:
    """Answer as VCDA does, but for one parameter."""
    parts = urlsplit(call.target)
    if parts.path == "/diagnostics/about":
        return Reply(200, {})
    if parts.path != "/tasks":
        return Reply(404, error("TaskNotFound", "Task not found."))
    query: Mapping[str, str] = {name: values[0] for name, values in parse_qs(parts.query).items() if name != ignoring}
    tasks = newest_first()
    if "sort" not in query:
        tasks.reverse()
    keeps: dict[str, Callable[[dict[str, Any], str], bool]] = {
        "ids": lambda one, value: one["id"] in value.split(","),
        "resourceId": lambda one, value: one["workflowInfo"]["resourceId"] == value,
        "startTimeAfter": lambda one, value: one["startTime"] > int(value),
        "startTimeBefore": lambda one, value: one["startTime"] < int(value),
    }
    for name in keeps.keys() & query.keys():
        tasks = [one for one in tasks if keeps[name](one, query[name])]
    offset, limit = int(query.get("offset", 0)), int(query.get("limit", 100))
    return page(*tasks[offset : offset + limit], total=len(tasks))


async def test_a_scripted_vcda_that_does_as_the_real_one_passes() -> None:
    async with appliance(script(login=session(user="admin1@Org1"), tasks=answers)) as vcda:
        results = by_name(await found(vcda.url))

    assert {name: status for name, (status, _) in results.items() if status is not Status.OK} == {
        "clock": Status.WARNING  # it says no Date
    }


@pytest.mark.parametrize(
    ("ignored", "check"),
    [
        ("sort", "order"),
        ("ids", "task ids"),
        ("limit", "paging"),
        ("offset", "paging"),
        ("resourceId", "filters"),
        ("startTimeAfter", "filters"),
        ("startTimeBefore", "filters"),
    ],
)
async def test_a_parameter_that_is_ignored_is_found_and_where_to_look_is_said(ignored: str, check: str) -> None:
    async with appliance(script(tasks=lambda call: answers(call, ignoring=ignored))) as vcda:
        results = by_name(await found(vcda.url))

    assert {name for name, (status, _) in results.items() if status is Status.FAILURE} == {check}
    assert ignored in results[check][1] or check == "task ids"
    assert "look for a proxy" in results[check][1]


async def test_tasks_of_another_kind_among_those_of_syncs_are_found() -> None:
    def failovers(call: Call) -> Reply:
        return page(task(workflowInfo={"type": "failover", "resourceId": "C4-1"}))

    async with appliance(script(tasks=failovers)) as vcda:
        results = by_name(await found(vcda.url))

    assert results["filters"][0] is Status.FAILURE
    assert "VCDA ignores the filter type=sync" in results["filters"][1]


@pytest.mark.parametrize(
    "body",
    [{"items": [{"user": "nobody"}], "total": 1}, {"items": []}, [], "<html>"],
    ids=["no id", "no total", "list", "html"],
)
async def test_a_list_that_is_none_is_a_failure_and_what_rests_on_it_is_skipped(body: object) -> None:
    async with appliance(script(tasks=Reply(200, body))) as vcda:
        results = by_name(await found(vcda.url))

    assert results["tasks"][0] is Status.FAILURE
    assert "VM_SYNC_VCDA__URL" in results["tasks"][1]
    assert results["order"] == (Status.SKIPPED, "Skipped because the check of VCDA's tasks failed.")


@pytest.mark.parametrize(
    ("answer", "credentials", "words"),
    [
        (Reply(200, {"user": "x"}), TENANT, "This is not VCDA's API"),
        (Reply(405), TENANT, "This is not VCDA's API"),
        (Reply(400, error("BadUserInput", "type is unknown.")), TENANT, "check VM_SYNC_VCDA__CREDENTIALS__TYPE"),
        (Reply(429), TENANT, "takes no logins at present"),
        (
            Reply(401, error("NotAuthenticated", "Authentication required.")),
            Credentials(type=CredentialType.VCD_ACCESS_TOKEN, token="s3cret", org="Org1"),
            "check VM_SYNC_VCDA__CREDENTIALS__TOKEN and VM_SYNC_VCDA__CREDENTIALS__ORG",
        ),
    ],
    ids=["no token", "no such call", "not understood", "too many", "a token that is refused"],
)
async def test_a_login_that_comes_to_nothing_says_what_to_change(
    answer: Reply, credentials: Credentials, words: str
) -> None:
    async with appliance(script(login=answer)) as vcda:
        status, text = by_name(await found(vcda.url, credentials))["login"]

    assert status is Status.FAILURE
    assert words in text
    assert "s3cret" not in text


async def test_each_sites_settings_are_named_by_its_own_number() -> None:
    sites = (SITE2, SiteCredentials(name="site3", token="s3cret"))
    refusal = Reply(401, error("RemoteAuthenticationFailure", "Authentication required."))
    credentials = Credentials(user="admin1@org1", password="password", sites=sites)
    async with appliance(script(extend=refusal, tasks=answers)) as vcda:
        results = await found(vcda.url, credentials)

    assert "VM_SYNC_VCDA__SITES__0__PASSWORD" in by_name(results, group="site site2")["extension"][1]
    assert "VM_SYNC_VCDA__SITES__1__TOKEN" in by_name(results, group="site site3")["extension"][1]


@pytest.mark.parametrize("path", ["/sessions", "/sessions/extend", "/tasks"])
async def test_an_answer_that_repeats_what_it_was_sent_in_secret_shows_none_of_it(path: str) -> None:
    def echo(call: Call) -> Reply:
        if call.path == path:
            return Reply(400, error("BadRequest", f"Can't read {call.body.decode()} with {call.headers}"))
        return session("t0ken") if call.path == "/sessions" else Reply(200, {})

    site2 = SiteCredentials(name="site2", user="admin2", password="s3cret2")
    async with appliance(echo) as there:
        results = await found(there.url, Credentials(user="admin1", password="s3cret1", sites=(site2,)))

    text = " ".join(result.text for result in results)
    assert "[hidden]" in text
    assert "s3cret" not in text
    assert "t0ken" not in text
