"""What the calls say, and what their answers mean to a sync."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import unquote

import pytest

from service.sync import (
    Accepted,
    Account,
    ApiError,
    Gone,
    Names,
    NotTaken,
    Refused,
    SubmitAnswer,
    Task,
    Trouble,
    Unanswered,
)
from service.vcda import translate
from service.vcda.client import ApiLimits
from service.vcda.site_clocks import SiteClock
from service.vcda.spellings import EACH
from tests.support.scripted_http_server import (
    REPLICATION_ID,
    TASK_ID,
    Answer,
    Call,
    Cut,
    Ours,
    Reply,
    Script,
    appliance,
    error,
    ours,
    page,
    script,
    session,
    task,
)

HTML = b"<html><body>Bad gateway</body></html>"
ME = Account("admin1@Org1")
AT_SITE2 = Account("admin1@Org1", "admin2@Org2")
SINCE = datetime(2030, 1, 1, 0, 0, 0, 1500, tzinfo=UTC)


async def submitted(answer: Answer, *, site: str | None = None) -> SubmitAnswer:
    async with appliance(script(submit=answer)) as there, ours(there.url) as us:
        return await us.submit(site=site)


async def asked(answer: Answer, *, site: str | None = None) -> Task | Gone | Trouble:
    async with appliance(script(tasks=answer)) as there, ours(there.url) as us:
        return await us.vcda.ask(site=site, task_id=TASK_ID)


def offset(us: Ours, site: str | None) -> timedelta:
    """Return the best estimate of a site's clock."""
    known = us.vcda.site_clock(site)
    assert known is not None
    return known.offset


# ---------------------------------------------------------------- submit


@pytest.mark.parametrize("status", [200, 201, 202])
async def test_any_2xx_with_a_task_is_accepted(status: int) -> None:
    answer = await submitted(Reply(status, task()))

    assert isinstance(answer, Accepted)
    assert answer.task.id == TASK_ID
    assert answer.task.site is None  # the local site
    assert answer.account == ME


def of(replication_id: str | None) -> dict[str, Any]:
    return task(workflowInfo={"type": "sync", "resourceType": "vmReplication", "resourceId": replication_id})


async def test_a_task_of_another_replication_is_the_answer_to_another_post_and_leaves_it_in_doubt() -> None:
    answer = await submitted(Reply(202, of("C4-0c0e8bc5-1a3d-4a4f-9b6e-6a2b1c5d7e9f")))

    assert isinstance(answer, Unanswered)
    assert answer.trouble.detail == (
        f"VCDA answered with task {TASK_ID} of another replication, C4-0c0e8bc5-1a3d-4a4f-9b6e-6a2b1c5d7e9f."
    )


@pytest.mark.parametrize("named", [None, REPLICATION_ID.upper(), "H4-0c0e8bc5-1a3d-4a4f-9b6e-6a2b1c5d7e9f", "VM-001"])
async def test_a_task_that_may_be_the_replications_is_accepted(named: str | None) -> None:
    assert isinstance(await submitted(Reply(202, of(named))), Accepted)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (
            Reply(200, HTML, {"Content-Encoding": "gzip"}),
            "VCDA answered with 200 and a body that can't be understood (application/json, gzip).",
        ),
        (Cut(b"HTTP/1.1 200 OK\r\n\r\n"), "VCDA answered with 200 and a body that can't be understood."),
        (
            Reply(302, HTML, {"Location": "https://sso.example.com/login?state=s3cret"}),
            "VCDA answered with 302, a redirect to https://sso.example.com.",
        ),
        (Reply(302, HTML, {"Location": "/login?state=s3cret"}), "VCDA answered with 302."),
        (Reply(302, HTML, {"Location": "https://host:port/"}), "VCDA answered with 302."),
        (Reply(302, HTML, {"Location": "https://xn--/login"}), "VCDA answered with 302."),
    ],
)
async def test_an_answer_that_is_not_vcdas_is_described_by_its_type_or_by_where_it_redirects_to(
    answer: Answer, detail: str
) -> None:
    seen = await submitted(answer)

    assert isinstance(seen, Unanswered)
    assert seen.trouble.detail == detail


async def test_no_header_of_an_answer_makes_a_call_raise() -> None:
    names = ("Location", "Retry-After", "Date", "Age", "Content-Type", "Content-Encoding", "WWW-Authenticate")
    values = (
        *(
            "",
            ":",
            "//",
            "https://",
            "https://[::1",
            "https://xn--/",
            "https://xn--a\u0080b/",
            "https://ä.example/",
            "//%zz@:99999/",
        ),
        *("nan", "inf", "-inf", "-99999999999999999999", "1e999", "\u0663", "5, 5", "0x10", "9" * 5000),
        *("Thu, 01 Jan 1970 00:00:00 +9999", "Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 00 Jan 0000 99:99:99 GMT"),
    )
    replies = iter([Reply(302, HTML, {name: value}) for name in names for value in values])
    async with appliance(script(tasks=lambda _: next(replies))) as there, ours(there.url) as us:
        for _ in range(len(names) * len(values)):
            assert isinstance(await us.vcda.ask(site=None, task_id=TASK_ID), Trouble)


async def test_a_bug_in_the_reading_of_an_answer_is_a_failed_call_and_leaves_a_post_in_doubt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async with appliance(script(tasks=page(task()))) as there, ours(there.url) as us:
        await us.vcda.unusable()  # logged in
        for name in ("read_created", "read_page", "read_task"):
            monkeypatch.setattr(translate, name, broken)
        answers = [
            await us.vcda.poll(site=None, ids=[TASK_ID]),
            await us.vcda.find(site="site2", replication_id=REPLICATION_ID, since=SINCE),
            await us.vcda.ask(site=None, task_id=TASK_ID),
        ]
        posted = await us.submit()

    calls = [f"answer to a {call};" for call in ("poll call", "find call for site site2", "poll call", "submit call")]
    assert [call in message for call, message in zip(calls, caplog.messages, strict=True)] == [True] * 4
    detail = "An answer of VCDA led to an internal error (ZeroDivisionError)."
    assert answers == [Trouble(label="error", detail=detail)] * 3
    assert isinstance(posted, Unanswered)
    assert posted.trouble.detail == detail


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 415, 422])
async def test_a_4xx_in_vcdas_own_words_is_a_refusal(status: int) -> None:
    answer = await submitted(Reply(status, error()))

    assert isinstance(answer, Refused)
    assert (answer.error, answer.http_status) == (ApiError("Forbidden", "Permission denied."), status)
    assert answer.sent
    assert answer.at is not None


@pytest.mark.parametrize("status", [400, 403, 404, 405, 407, 413, 421])
async def test_a_4xx_of_somebody_else_leaves_it_in_doubt(status: int) -> None:
    answer = await submitted(Reply(status, HTML))

    assert isinstance(answer, Unanswered)
    assert answer.trouble.http_status == status


@pytest.mark.parametrize("status", [300, 302, 307, 408, 500, 501, 502, 503, 504])
@pytest.mark.parametrize("body", [HTML, error("GeneralServerFailure", "Try later.")])
async def test_what_tells_nothing_of_how_far_it_came_leaves_it_in_doubt(status: int, body: object) -> None:
    assert isinstance(await submitted(Reply(status, body)), Unanswered)


@pytest.mark.parametrize("body", [HTML, error("Busy", "A sync is running.")])
async def test_409_is_about_this_replication_alone(body: object) -> None:
    answer = await submitted(Reply(409, body))

    assert isinstance(answer, NotTaken)
    assert answer.sent
    assert answer.trouble.own
    assert answer.trouble.label == "409"
    assert answer.busy_at is not None


async def test_429_says_when_to_come_again() -> None:
    answer = await submitted(Reply(429, None, {"Retry-After": "12"}))
    assert getattr(answer, "busy_at", 0.0) is None

    assert isinstance(answer, NotTaken)
    assert answer.sent
    assert not answer.trouble.own
    assert answer.trouble.retry_after == timedelta(seconds=12)


async def test_a_moment_to_retry_at_counts_from_the_answers_own_date() -> None:
    ahead = datetime(2035, 5, 5, tzinfo=UTC)
    headers = {
        "Date": format_datetime(ahead, usegmt=True),
        "Retry-After": format_datetime(ahead + timedelta(seconds=40), usegmt=True),
    }
    answer = await submitted(Reply(503, None, headers))

    assert isinstance(answer, Unanswered)
    assert answer.trouble.retry_after == timedelta(seconds=40)


@pytest.mark.parametrize("site", ["site2&x=1", "a b/c?d#e%2F", "grün", "+", "..", "a=b;c"])
async def test_a_site_arrives_as_it_is(site: str) -> None:
    async with appliance(script(login=session(sites=(site,)))) as there, ours(there.url) as us:
        await us.submit(site=site)

        (post,) = there.posts
        assert post.path == f"/vm-replications/{REPLICATION_ID}/sync"
        assert post.query == {"site": site}
        assert unquote(post.target.partition("?site=")[2]) == site


@pytest.mark.parametrize("odd", ["..", "a/b", "a?b", "a%2Fb", "", "a\r\nX: y", "é", "a" * 129])
async def test_an_id_that_could_bend_a_path_is_a_bug(odd: str) -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        with pytest.raises(ValueError, match="can't be part of a call"):
            await us.vcda.submit(replication_id=odd, site=None, operation_id="op", may_leave=lambda _: True)
        with pytest.raises(ValueError, match="can't be part of a call"):
            await us.vcda.ask(site=None, task_id=odd)
        with pytest.raises(ValueError, match="can't be part of a call"):
            await us.vcda.poll(site=None, ids=[odd])
        with pytest.raises(ValueError, match="can't be part of a call"):
            await us.vcda.find(site=None, replication_id=odd, since=SINCE)

        assert there.calls == []


@pytest.mark.parametrize("odd", ["", "a\r\nX: y", "é", "a b", "a" * 129])
async def test_an_operation_id_that_could_bend_a_header_is_a_bug(odd: str) -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        with pytest.raises(ValueError, match="can't be part of a call"):
            await us.vcda.submit(replication_id="C4-1", site=None, operation_id=odd, may_leave=lambda _: True)

        assert there.calls == []


# ---------------------------------------------------------------- find


def shelf(tasks: list[dict[str, Any]], *, per_page: int = 100) -> Script:
    """Answer queries page by page."""

    def answer(call: Call) -> Answer:
        offset = int(call.query.get("offset", "0"))
        return page(*tasks[offset : offset + per_page], total=len(tasks))

    return answer


async def test_a_look_up_asks_for_all_syncs_since_then_in_any_state() -> None:
    async with appliance(script(tasks=page(task()))) as there, ours(there.url) as us:
        found = await us.vcda.find(site="site1", replication_id=REPLICATION_ID, since=SINCE, operation_id="op-1")

        call = there.calls[-1]
        assert call.path == "/tasks"
        assert call.query == {
            "type": "sync",
            "startTimeAfter": str(1893456000001 - 1),
            "resourceId": REPLICATION_ID,
            "sort": "startTime-",
            "limit": "100",
            "site": "site1",
        }
        assert call.headers["operationid"] == "op-1"

    assert isinstance(found, list)
    assert [one.id for one in found] == [TASK_ID]


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    """Return a task of another type than the documented one."""
    shown = task(**fields)
    return shown | {"workflowInfo": shown["workflowInfo"] | {"type": kind}}


async def test_look_ups_also_search_for_the_type_that_answers_to_posts_give_tasks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lists = {"sync": page(task(id="old")), "vmSync": page(typed("vmSync"))}
    renamed = script(submit=Reply(202, typed("vmSync")), tasks=lambda call: lists[call.query["type"]])
    async with appliance(renamed) as there, ours(there.url) as us:

        async def found(site: str | None = None) -> list[str]:
            tasks = await us.vcda.find(site=site, replication_id=REPLICATION_ID, since=SINCE)
            assert isinstance(tasks, list)
            return [one.id for one in tasks]

        assert await found() == ["old"]
        await us.submit()
        await us.submit()
        assert await found() == ["old", TASK_ID]
        assert await found("site1") == ["old", TASK_ID], "it is the local site"
        assert await found("site2") == ["old"], "another appliance may have another version"
        lists["vmSync"] = Reply(503)
        assert isinstance(await us.vcda.find(site=None, replication_id=None, since=SINCE), Trouble)

        async with ours(there.url) as successor:
            successor.vcda.learn(us.vcda.spellings())
            lists["vmSync"] = page(typed("vmSync"))
            tasks = await successor.vcda.find(site=None, replication_id=None, since=SINCE)
            assert isinstance(tasks, list)
            assert len(tasks) == 2, "a restart forgets no type"

    (logged,) = [record.getMessage() for record in caplog.records if "type" in record.getMessage()]
    assert logged == (
        "Site local: VCDA gives the task of a sync the type 'vmSync' instead of 'sync'; look-ups for POSTs in doubt "
        "search for tasks of both types"
    )


async def test_types_that_no_query_can_ask_for_are_not_searched_for_and_of_many_only_the_latest() -> None:
    kinds = iter(["sync", "a b", "\ud800", "x&y", "", *(f"kind{n}" for n in range(9))])
    mine = script(submit=lambda _: Reply(202, typed(next(kinds))), tasks=page())
    async with appliance(mine) as there, ours(there.url) as us:
        for _ in range(14):
            await us.submit()
        await us.vcda.find(site=None, replication_id=None, since=SINCE)

        assert [call.query["type"] for call in there.calls if call.path == "/tasks"] == [
            "sync",
            *(f"kind{n}" for n in range(9)[-EACH:]),
        ]


@pytest.mark.parametrize("per_page", [100, 7])
async def test_a_look_up_reads_all_pages(per_page: int) -> None:
    tasks = [task(id=f"t{n}") for n in range(250)]
    async with appliance(script(tasks=shelf(tasks, per_page=per_page))) as there, ours(there.url) as us:
        found = await us.vcda.find(site=None, replication_id=None, since=SINCE)

    assert isinstance(found, list)
    assert {one.id for one in found} == {f"t{n}" for n in range(250)}


async def test_tasks_begun_while_it_reads_do_not_spoil_a_look_up() -> None:
    tasks = [task(id=f"t{n}") for n in range(150)]

    def growing(call: Call) -> Answer:
        offset = int(call.query.get("offset", "0"))
        answer = page(*tasks[offset : offset + 100], total=len(tasks))
        tasks.insert(0, task(id=f"new{len(tasks)}"))  # the newest come first
        return answer

    async with appliance(script(tasks=growing)) as there, ours(there.url) as us:
        found = await us.vcda.find(site=None, replication_id=None, since=SINCE)

    assert isinstance(found, list)
    assert {one.id for one in found} >= {f"t{n}" for n in range(150)}


async def test_a_look_up_that_may_have_missed_a_task_is_trouble() -> None:
    tasks = [task(id=f"t{n}") for n in range(150)]

    def forgetting(call: Call) -> Answer:
        offset = int(call.query.get("offset", "0"))
        answer = page(*tasks[offset : offset + 100], total=len(tasks))
        del tasks[:3]
        return answer

    async with appliance(script(tasks=forgetting)) as there, ours(there.url) as us:
        found = await us.vcda.find(site=None, replication_id=None, since=SINCE)

    assert isinstance(found, Trouble)
    assert found.label == "incomplete"


@pytest.mark.parametrize(
    "answer",
    [
        page(task(), {"id": None}, total=2),
        page(total=1),
        Reply(200, {"items": [task()]}),
        Reply(200, [task()]),
        Reply(204),
        Reply(500, error("GeneralServerFailure")),
        Reply(404, HTML),
        Reply(400, error("BadUserInput")),
        Cut(),
    ],
)
async def test_a_look_up_without_a_whole_and_understood_answer_is_trouble(answer: Answer) -> None:
    async with appliance(script(tasks=answer)) as there, ours(there.url) as us:
        assert isinstance(await us.vcda.find(site=None, replication_id=None, since=SINCE), Trouble)


async def test_a_look_up_may_have_an_end() -> None:
    async with appliance(script(tasks=page())) as there, ours(there.url) as us:
        await us.vcda.find(site=None, replication_id=None, since=SINCE, until=SINCE)

        assert there.calls[-1].query["startTimeBefore"] == str(1893456000001 + 1)


@pytest.mark.parametrize("each", [1_000, 15_000])
async def test_a_page_that_is_too_long_is_asked_for_again_with_fewer_tasks(each: int) -> None:
    limits = ApiLimits(page_bytes=20_000)
    tasks = [task(id=f"t{n}", result={"padding": "x" * each}) for n in range(12)]

    def shown(call: Call) -> Answer:
        offset, limit = int(call.query.get("offset", "0")), int(call.query["limit"])
        return page(*tasks[offset : offset + limit] * (9 if limit > 12 else 1), total=12)

    async with appliance(script(tasks=shown)) as there, ours(there.url, limits=limits) as us:
        found = await us.vcda.find(site=None, replication_id=None, since=SINCE)

    assert isinstance(found, list)
    assert {one.id for one in found} == {f"t{n}" for n in range(12)}


async def test_a_page_of_too_many_values_is_asked_for_again_with_fewer_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translate, "MOST_VALUES", 2_000)
    tasks = [task(id=f"t{n}", result={"parts": [0] * 500}) for n in range(12)]

    def shown(call: Call) -> Answer:
        offset, limit = int(call.query.get("offset", "0")), int(call.query["limit"])
        return page(*tasks[offset : offset + limit], total=12)

    async with appliance(script(tasks=shown)) as there, ours(there.url) as us:
        found = await us.vcda.find(site=None, replication_id=None, since=SINCE)

    assert isinstance(found, list)
    assert {one.id for one in found} == {f"t{n}" for n in range(12)}


async def test_a_single_task_that_is_too_long_is_trouble_in_words() -> None:
    long = Reply(200, b" " * (16 * 1024 * 1024 + 1))
    async with appliance(script(tasks=long)) as there, ours(there.url) as us:
        found = await us.vcda.poll(site=None, ids=[TASK_ID])

        assert [call.query["limit"] for call in there.calls[1:]] == ["100", "10", "1"]

    assert isinstance(found, Trouble)
    assert found.detail == "VCDA's answer is longer than the limit of 16 MiB."


async def test_caches_are_asked_to_let_every_get_through() -> None:
    async with appliance(script(tasks=page(task()))) as there, ours(there.url) as us:
        await us.submit(site="site2")
        await us.vcda.find(site=None, replication_id=None, since=SINCE)
        await us.vcda.poll(site=None, ids=[TASK_ID])
        await us.vcda.ask(site=None, task_id=TASK_ID)

        asked = {(call.method, call.headers.get("cache-control")) for call in there.calls}

    assert asked == {("POST", None), ("GET", "no-cache")}


@pytest.mark.parametrize("age", ["1", "20", "0020", "soon"])
async def test_what_a_cache_in_front_answers_concludes_nothing(age: str) -> None:
    stale = {"Age": age}
    async with appliance(script(tasks=Reply(200, page(task()).body, stale))) as there, ours(there.url) as us:
        seen: list[object] = [
            await us.vcda.find(site=None, replication_id=None, since=SINCE),
            await us.vcda.poll(site=None, ids=[TASK_ID]),
        ]
        for answer in (Reply(200, task(), stale), Reply(404, error("TaskNotFound", "No such task."), stale)):
            there.script = script(tasks=answer)
            seen.append(await us.vcda.ask(site=None, task_id=TASK_ID))

    for trouble in seen:
        assert isinstance(trouble, Trouble)
        assert trouble.label == "cached"
        assert f"A cache between this service and VCDA has answered (Age: {age})" in trouble.detail
    assert [status for operation, status in us.meter.requests if operation != "login"] == ["cached"] * 4


@pytest.mark.parametrize("age", ["0", " 00 "])
async def test_an_age_of_nothing_is_an_answer_of_vcdas(age: str) -> None:
    async with appliance(script(tasks=Reply(200, page(task()).body, {"Age": age}))) as there, ours(there.url) as us:
        assert isinstance(await us.vcda.poll(site=None, ids=[TASK_ID]), list)


async def test_tasks_of_another_kind_are_not_found_even_if_shown() -> None:
    other = task(id="other", workflowInfo={"type": "failover", "resourceId": REPLICATION_ID})
    async with appliance(script(tasks=page(other, task()))) as there, ours(there.url) as us:
        found = await us.vcda.find(site=None, replication_id=REPLICATION_ID, since=SINCE)

    assert isinstance(found, list)
    assert [one.id for one in found] == [TASK_ID]


async def test_a_server_that_always_has_another_page_is_trouble() -> None:
    limits = ApiLimits(pages=5)
    async with appliance(script(tasks=page(task(), total=10**9))) as there, ours(there.url, limits=limits) as us:
        found = await us.vcda.find(site=None, replication_id=None, since=SINCE)

        assert len(there.calls) == 6

    assert isinstance(found, Trouble)


# ---------------------------------------------------------------- poll and ask


async def test_a_poll_asks_for_many_tasks_at_once() -> None:
    ids = [f"t{n}" for n in range(100)]
    shown = page(*[task(id=name) for name in ids[:98]], task(id="stranger"))
    async with appliance(script(tasks=shown)) as there, ours(there.url) as us:
        tasks = await us.vcda.poll(site="site2", ids=ids)

        call = there.calls[-1]
        assert call.query == {"ids": ",".join(ids), "sort": "startTime-", "limit": "100", "site": "site2"}
        assert f"ids={','.join(ids)}&" in call.target

    assert isinstance(tasks, list)
    assert [one.id for one in tasks] == ids[:98]
    assert us.meter.requests[-1] == ("poll", "2xx")


async def test_a_poll_for_nothing_asks_nothing_and_one_for_too_much_is_a_bug() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        assert await us.vcda.poll(site=None, ids=[]) == []
        with pytest.raises(ValueError, match="101"):
            await us.vcda.poll(site=None, ids=["x"] * 101)

        assert there.calls == []


async def test_a_task_asked_for_alone_is_shown() -> None:
    read = await asked(Reply(200, task(progress=50)))

    assert isinstance(read, Task)
    assert read.progress == 50


async def test_only_vcdas_own_404_says_that_a_task_is_gone() -> None:
    gone = await asked(Reply(404, error("TaskNotFound", "No such task.")))

    assert gone == Gone(1000.0, ME)


@pytest.mark.parametrize(
    "answer",
    [
        Reply(404, HTML),
        Reply(404, error("SiteNotFound", "No such site.")),
        Reply(410, error()),
        Reply(403, error()),
        Reply(500, error()),
        Reply(200, task(id="another")),
        Reply(200, {}),
        Reply(204),
        Reply(401, HTML),
        Cut(),
    ],
)
async def test_nothing_else_says_so(answer: Answer) -> None:
    assert isinstance(await asked(answer), Trouble)


# ---------------------------------------------------------------- what is known on the side


async def test_our_names_are_the_sessions_and_those_on_tasks_of_our_posts() -> None:
    mine = script(submit=lambda call: Reply(202, task(user=f"me@{call.query.get('site')}")))
    async with appliance(mine) as there, ours(there.url) as us:
        assert us.vcda.account(None) is None
        assert us.vcda.names(None, None) == Names(frozenset(), learnt=False)
        await us.submit()
        await us.submit(site="site2")

        assert us.vcda.account(None) == us.vcda.account("site1") == ME
        assert us.vcda.account("site2") == AT_SITE2
        assert us.vcda.names(None, None) == Names(frozenset({"admin1@Org1", "me@None"}), learnt=True)
        assert us.vcda.names("site1", ME) == us.vcda.names(None, None)
        assert us.vcda.names("site2", None) == Names(frozenset({"admin1@Org1", "admin2@Org2", "me@site2"}), learnt=True)
        assert us.vcda.names("site3", None) == Names(frozenset(), learnt=False), "there is no way to it"
        assert us.vcda.names("site2", ME) == Names(frozenset({"admin1@Org1"}), learnt=False), "another account's"


async def test_where_a_login_opens_several_sites_their_names_are_kept() -> None:
    """None would then mean a site that isn't told."""
    async with appliance(script(login=session(sites=("site1", "site3")))) as there, ours(there.url) as us:
        answer = await us.submit()
        await us.submit(site="site3")

        assert not there.seen("POST /sessions/extend")

    assert isinstance(answer, Accepted)
    assert answer.task.site == "site1"


async def test_our_wall_clock_being_set_does_not_move_vcdas() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        date = format_datetime(us.clock.now().replace(microsecond=0), usegmt=True)
        there.script = script(submit=Reply(202, task(), {"Date": date}))
        await us.submit()
        before = us.clock.now() + offset(us, None)
        us.clock.set = timedelta(hours=1)
        after = us.clock.now() + offset(us, None)

    assert after == before


@pytest.mark.parametrize("date", ["Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 GMT", "never"])
async def test_a_date_that_cannot_be_counted_with_is_none(date: str) -> None:
    async with appliance(script(tasks=Reply(200, page().body, {"Date": date}))) as there, ours(there.url) as us:
        assert await us.vcda.poll(site=None, ids=[TASK_ID]) == []


async def test_the_date_of_a_cached_answer_says_nothing_of_vcdas_clock() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        date = format_datetime(us.clock.now(), usegmt=True)
        there.script = script(tasks=Reply(200, page().body, {"Date": date}))
        await us.vcda.poll(site=None, ids=[TASK_ID])
        known = offset(us, None)
        date = format_datetime(us.clock.now() - timedelta(hours=1), usegmt=True)
        there.script = script(tasks=Reply(200, page().body, {"Date": date, "Age": "3600"}))
        for _ in range(3):
            await us.vcda.poll(site=None, ids=[TASK_ID])

        assert offset(us, None) == known


async def test_the_clocks_difference_is_known_from_the_first_answer_on() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        assert us.vcda.site_clock(None) is None
        date = format_datetime(us.clock.now().replace(microsecond=0) + timedelta(minutes=5), usegmt=True)
        there.script = script(tasks=Reply(200, page().body, {"Date": date}))
        await us.vcda.poll(site=None, ids=[TASK_ID])

        there_is = timedelta(minutes=5, seconds=0.5)
        assert us.vcda.site_clock(None) == us.vcda.site_clock("site1") == SiteClock(there_is, there_is, certain=True)
        assert us.vcda.site_clock("site2") == SiteClock(there_is, there_is, certain=False)


async def test_a_sites_clock_is_read_off_the_task_in_the_answer_to_a_post() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        start = round((us.clock.now() - timedelta(hours=2)).timestamp() * 1000)
        date = format_datetime(us.clock.now().replace(microsecond=0), usegmt=True)
        there.script = script(submit=Reply(202, task(startTime=start, site="site2"), {"Date": date}))
        await us.submit(site="site2")
        known = us.vcda.site_clock("site2")

    assert known is not None
    assert known.certain
    assert known.offset == pytest.approx(timedelta(hours=-2), abs=timedelta(seconds=30))
    assert known.latest == pytest.approx(timedelta(), abs=timedelta(seconds=30)), "the `Date` is believed as well"
