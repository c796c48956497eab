"""One login for all, no storms of them, and the three kinds of 401."""

import asyncio
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.sync import MAX_TEXT, NO_CREDENTIALS, Accepted, Account, ApiError, NotTaken, Refused, SubmitAnswer, Trouble
from service.vcda.client import ApiLimits, SessionStatus
from service.vcda.credentials import Credentials, SiteCredentials
from service.vcda.http import SMALL
from service.vcda.session import BACKOFF, LOGOUT_LIMIT, LOOK_EVERY
from tests.support.scripted_http_server import (
    CREDENTIALS,
    GONE,
    NOT_AUTHENTICATED,
    TASK_ID,
    Answer,
    Appliance,
    Call,
    Cut,
    Drip,
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

LOGIN = "POST /sessions"
EXTEND = "POST /sessions/extend"
REMOTE = error("RemoteAuthenticationFailure", "Authenticate to site2.")


class Guard:
    """Sessions as VCDA keeps them: tokens it issued and hasn't forgotten, and the sites each is extended to."""

    def __init__(self) -> None:
        self.valid: set[str] = set()
        self.extended: set[tuple[str, str]] = set()
        self.issued = 0

    def __call__(self, call: Call) -> Answer:
        if call.name == LOGIN:
            self.issued += 1
            self.valid.add(f"token-{self.issued}")
            return session(f"token-{self.issued}")
        token = call.token or ""
        if token not in self.valid:
            return Reply(401, NOT_AUTHENTICATED, GONE)
        if call.name == EXTEND:
            self.extended.add((token, str(call.json()["site"])))
            return Reply(200, {})
        site = call.query.get("site", "site1")
        if site != "site1" and (token, site) not in self.extended:
            return Reply(401, REMOTE)
        if call.method == "DELETE":
            self.valid.discard(token)
            return Reply(204)
        return Reply(202 if call.method == "POST" else 200, task(site=site))


def logins(there: Appliance) -> int:
    return len(there.seen(LOGIN))


# ---------------------------------------------------------------- single flight


async def test_a_hundred_calls_log_in_once() -> None:
    async with appliance(Guard()) as there, ours(there.url) as us:
        answers = await asyncio.gather(*[us.submit() for _ in range(100)])

        assert logins(there) == 1

    assert all(isinstance(answer, Accepted) for answer in answers)
    assert us.meter.logins == ["ok"]


async def test_the_sites_that_a_login_authenticates_are_reported_so_that_metrics_can_name_them() -> None:
    async with appliance(Guard()) as there, ours(there.url) as us:
        await us.vcda.ask(site=None, task_id=TASK_ID)
        assert us.meter.sites == ["site1"]


async def test_a_hundred_calls_that_find_the_session_gone_log_in_once() -> None:
    guard = Guard()
    async with appliance(guard) as there, ours(there.url) as us:
        await us.submit()
        guard.valid.clear()
        answers = await asyncio.gather(*[us.submit() for _ in range(100)])

        assert logins(there) == 2

    assert all(isinstance(answer, Accepted) for answer in answers)


async def test_each_call_is_counted_for_its_site_and_an_extension_for_the_remote_one() -> None:
    async with appliance(Guard()) as there, ours(there.url) as us:
        await us.submit()
        await us.submit(site="site2")

    counted = us.meter.requests_by_site
    assert counted == [("login", None), ("submit", None), ("extend", "site2"), ("submit", "site2")]


async def test_a_hundred_calls_extend_to_a_site_once() -> None:
    guard = Guard()
    # A hundred connections at once take seconds on a busy machine.
    async with appliance(guard) as there, ours(there.url, request_timeout=timedelta(seconds=60)) as us:
        await us.submit(site="site2")
        guard.extended.clear()
        answers = await asyncio.gather(*[us.submit(site="site2") for _ in range(100)])

        assert len(there.seen(EXTEND)) == 2
        assert logins(there) == 1
        assert there.seen(EXTEND)[0].json() == {
            "type": "credentials",
            "site": "site2",
            "vcdUsername": "admin2@Org2",
            "vcdPassword": "s3cret2",
        }

    assert all(isinstance(answer, Accepted) for answer in answers)


async def submitted_late(there: Appliance, us: Ours, guard: Guard, *, held_back: str, site: str | None) -> SubmitAnswer:
    """Submit with a session that ends, and is replaced, while VCDA holds back its answer to one call."""
    hold, held = asyncio.Event(), asyncio.Event()

    async def slow(call: Call) -> Answer:
        if call.name == held_back:
            held.set()
            await hold.wait()
        return guard(call)

    there.script = slow
    late = asyncio.create_task(us.submit(site=site))
    await held.wait()
    guard.valid.clear()
    there.script = guard
    await us.submit()
    hold.set()
    return await late


async def test_a_late_401_of_an_old_session_does_not_end_the_new_one() -> None:
    guard = Guard()
    async with appliance(guard) as there, ours(there.url) as us:
        await us.submit()

        late = await submitted_late(there, us, guard, held_back=there.posts[0].name, site=None)

        assert isinstance(late, Accepted)
        assert logins(there) == 2


async def test_a_late_401_of_an_extension_of_an_old_session_does_not_pause_the_site() -> None:
    guard = Guard()
    async with appliance(guard) as there, ours(there.url) as us:
        await us.submit()

        late = await submitted_late(there, us, guard, held_back=EXTEND, site="site2")

        assert isinstance(late, Accepted)
        assert logins(there) == 2
        assert isinstance(await us.submit(site="site2"), Accepted)


@pytest.mark.parametrize("ended", ["session", "extension"])
async def test_a_late_401_of_what_was_replaced_twice_pauses_nothing(
    ended: str, caplog: pytest.LogCaptureFixture
) -> None:
    guard, hold, held = Guard(), asyncio.Event(), asyncio.Event()
    async with appliance(guard) as there, ours(there.url) as us:
        await us.submit(site="site2")
        posts = 0

        async def slow(call: Call) -> Answer:
            nonlocal posts
            posts += call.name == there.posts[0].name
            if posts == 2:
                posts += 1
                held.set()
                await hold.wait()
            return guard(call)

        def end() -> None:
            if ended == "session":
                guard.valid.clear()
            guard.extended.clear()

        end()
        there.script = slow
        late = asyncio.create_task(us.submit(site="site2"))
        await held.wait()  # with what has replaced the first
        end()
        assert isinstance(await us.submit(site="site2"), Accepted)
        before = len(there.calls)
        end()
        hold.set()

        assert isinstance(await late, NotTaken)
        assert isinstance(await us.submit(site="site2"), Accepted)
        assert len(there.calls) - before == (4 if ended == "session" else 3)
        assert us.meter.logins == ["ok"] * (4 if ended == "session" else 1)
        assert "right after a successful login" not in caplog.text


# ---------------------------------------------------------------- the three kinds of 401


async def test_a_session_that_is_gone_is_replaced_and_extended_anew() -> None:
    guard = Guard()
    async with appliance(guard) as there, ours(there.url) as us:
        await us.submit(site="site2")
        guard.valid.clear()
        answer = await us.submit(site="site2")

        assert [call.name for call in there.calls[3:]] == [
            there.posts[0].name,
            LOGIN,
            EXTEND,
            there.posts[0].name,
        ]

    assert isinstance(answer, Accepted)


async def test_an_extension_that_is_gone_is_renewed_without_a_login() -> None:
    guard = Guard()
    async with appliance(guard) as there, ours(there.url) as us:
        await us.submit(site="site2")
        guard.extended.clear()
        answer = await us.submit(site="site2")

        assert logins(there) == 1
        assert len(there.seen(EXTEND)) == 2

    assert isinstance(answer, Accepted)


async def test_a_half_dead_session_is_replaced() -> None:
    """Its token is known, but its own login at Cloud Director has ended: reading works, a POST doesn't."""
    dead = True

    def submit(call: Call) -> Answer:
        return Reply(401, NOT_AUTHENTICATED) if dead else Reply(202, task())

    def login(_: Call) -> Answer:
        nonlocal dead
        dead = not dead
        return session()

    async with appliance(script(submit=submit, login=login)) as there, ours(there.url) as us:
        await us.submit()
        dead = True

        assert isinstance(await us.submit(), Accepted)
        assert logins(there) == 2


async def test_a_half_dead_session_is_replaced_for_a_remote_site_too() -> None:
    guard = Guard()
    async with appliance(guard) as there, ours(there.url) as us:
        await us.submit(site="site2")

        def half_dead(call: Call) -> Answer:
            dead = call.path.endswith("/sync") and call.token == "token-1"
            return Reply(401, NOT_AUTHENTICATED) if dead else guard(call)

        there.script = half_dead

        assert isinstance(await us.submit(site="site2"), Accepted)
        assert logins(there) == 2


async def test_where_a_new_extension_does_not_help_a_new_session_may() -> None:
    guard = Guard()
    async with appliance(guard) as there, ours(there.url) as us:
        await us.submit(site="site2")

        def odd(call: Call) -> Answer:
            dead = call.path.endswith("/sync") and call.token == "token-1"
            return Reply(401, REMOTE) if dead else guard(call)

        there.script = odd
        assert isinstance(await us.submit(site="site2"), NotTaken)
        us.clock.seconds += 1
        assert isinstance(await us.submit(site="site2"), Accepted)

        assert logins(there) == 2
        assert len(there.seen(EXTEND)) == 3


async def test_a_session_gone_when_it_is_to_be_extended_is_replaced() -> None:
    guard = Guard()
    async with appliance(guard) as there, ours(there.url) as us:
        await us.submit()
        guard.valid.clear()

        assert isinstance(await us.submit(site="site2"), Accepted)
        assert logins(there) == 2


async def test_a_repeat_after_a_cured_401_asks_again_whether_it_may_leave() -> None:
    guard = Guard()
    async with appliance(guard) as there, ours(there.url) as us:
        await us.submit()
        guard.valid.clear()
        words = [True, False]
        answer = await us.submit(may_leave=lambda _: words.pop(0))

        assert len(there.posts) == 2

    assert isinstance(answer, NotTaken)
    assert answer.trouble.label == "withheld"
    assert answer.sent  # an attempt was made, and turned away


# ---------------------------------------------------------------- no storms


async def test_wrong_credentials_are_tried_once_a_pause_that_grows_to_minutes_so_that_no_account_stays_locked() -> None:
    refuse = script(login=Reply(401, NOT_AUTHENTICATED))
    async with appliance(refuse) as there, ours(there.url) as us:
        attempts = []
        for second in range(800):
            us.clock.seconds = 1000.0 + second
            before = logins(there)
            answers = await asyncio.gather(*[us.submit() for _ in range(3)])
            assert all(isinstance(one, NotTaken) and not one.sent and one.trouble.label == "401" for one in answers)
            if logins(there) > before:
                assert logins(there) == before + 1
                attempts.append(second)

        assert attempts == [0, 1, 3, 93, 273, 513, 753]
        assert there.posts == []

    assert set(us.meter.logins) == {"refused"}


async def test_credentials_that_a_site_refuses_are_tried_as_seldom() -> None:
    async with appliance(script(extend=Reply(401, REMOTE))) as there, ours(there.url) as us:
        attempts = []
        for second in range(520):
            us.clock.seconds = 1000.0 + second
            before = len(there.seen(EXTEND))
            await us.submit(site="site2")
            if len(there.seen(EXTEND)) > before:
                attempts.append(second)

        assert attempts == [0, 1, 3, 93, 273, 513]


async def test_logins_that_fail_otherwise_are_tried_each_minute_and_a_refusal_after_them_soon_again() -> None:
    answers = [*[Reply(503)] * 9, Reply(401, NOT_AUTHENTICATED), session()]
    async with appliance(script(login=lambda _: answers.pop(0))) as there, ours(there.url) as us:
        attempts = []
        for second in range(250):
            us.clock.seconds = 1000.0 + second
            before = logins(there)
            await us.submit()
            if logins(there) > before:
                attempts.append(second)

        assert attempts == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 244]


async def test_a_thousand_requests_at_a_failing_login_are_one_login() -> None:
    async with appliance(script(login=Reply(503, b"<html>"))) as there, ours(there.url) as us:
        answers = await asyncio.gather(*[us.submit() for _ in range(1000)])
        answers += [await us.submit() for _ in range(50)]

        assert logins(there) == 1

    assert all(isinstance(answer, NotTaken) and not answer.sent for answer in answers)
    assert us.meter.logins == ["error"]


async def test_new_credentials_end_the_pause(caplog: pytest.LogCaptureFixture) -> None:
    def login(call: Call) -> Answer:
        return session() if call.json()["vcdPassword"] == "new" else Reply(401, NOT_AUTHENTICATED)

    async with appliance(script(login=login)) as there, ours(there.url) as us:
        for second in range(30):
            us.clock.seconds = 1000.0 + second
            await us.submit()
        before = logins(there)
        assert "next attempt in 90 s, or once the credentials change: Login answered with 401" in caplog.text
        us.credentials.append(replace(CREDENTIALS, password="new"))
        us.clock.seconds += 1

        assert isinstance(await us.submit(), Accepted)
        assert logins(there) == before + 1


@pytest.mark.parametrize("noticed_by", ["a request for a site that was added", "a new login"])
async def test_new_credentials_of_a_site_end_its_pause_also_where_they_were_read_for_something_else_before(
    noticed_by: str,
) -> None:
    def extend(call: Call) -> Answer:
        return Reply(401, REMOTE) if "s3cret2" in call.body.decode() else Reply(200, {})

    guard = Guard()

    def answer(call: Call) -> Answer:
        reply = guard(call)
        return extend(call) if call.name == EXTEND and reply == Reply(200, {}) else reply

    async with appliance(answer) as there, ours(there.url) as us:
        for second in range(30):
            us.clock.seconds = 1000.0 + second
            await us.submit(site="site2")
        tried = len(there.seen(EXTEND))
        sites = tuple(SiteCredentials(name=name, user="admin2@Org2", password="new") for name in ("site2", "site3"))
        us.credentials.append(replace(CREDENTIALS, sites=sites))
        us.clock.seconds += LOOK_EVERY
        if noticed_by == "a new login":
            guard.valid.clear()
            assert isinstance(await us.submit(), Accepted)
        else:
            assert isinstance(await us.submit(site="site3"), Accepted)
        us.clock.seconds += LOOK_EVERY

        assert isinstance(await us.submit(site="site2"), Accepted)
        assert tried == 3


async def test_credentials_that_change_while_the_ones_before_are_being_refused_are_tried_soon() -> None:
    refused = asyncio.Event()

    async def login(call: Call) -> Answer:
        if call.json()["vcdPassword"] == "new":
            return session()
        await refused.wait()
        return Reply(401, NOT_AUTHENTICATED, {"Retry-After": "240"})

    async with appliance(script(login=login)) as there, ours(there.url) as us:
        us.credentials.append(replace(CREDENTIALS, sites=()))
        first = asyncio.create_task(us.submit())
        await there.until(lambda: logins(there) == 1)
        us.credentials.append(replace(CREDENTIALS, password="new"))
        us.clock.seconds += LOOK_EVERY
        assert us.vcda._session.may_call("site2")  # as it is asked for the site of a task
        refused.set()
        assert isinstance(await first, NotTaken)
        us.clock.seconds += LOOK_EVERY

        assert isinstance(await us.submit(), Accepted)


async def test_credentials_that_cannot_be_read_are_not_tried_more_often_for_that() -> None:
    def read() -> Credentials:
        reads.append(us.clock.seconds)
        if len(reads) > 1:
            raise OSError
        return CREDENTIALS

    reads: list[float] = []
    async with appliance(script(login=Reply(503))) as there, ours(there.url) as us:
        us.vcda._session._read_credentials = read
        for second in range(20):
            us.clock.seconds = 1000.0 + second
            await asyncio.gather(*[us.submit() for _ in range(3)])

    assert us.meter.logins == ["error"] * 5  # after 0, 1, 3, 7 and 15 s
    assert len(reads) <= 20


async def test_a_401_that_survives_a_fresh_login_is_trouble_and_no_reason_to_log_in_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with appliance(script(submit=Reply(401, NOT_AUTHENTICATED))) as there, ours(there.url) as us:
        answers = [await us.submit() for _ in range(20)]
        answers += await asyncio.gather(*[us.submit() for _ in range(20)])

        assert logins(there) == 2  # the first, and the one that was to cure it

        us.clock.seconds += 1
        await asyncio.gather(*[us.submit() for _ in range(20)])
        assert logins(there) == 3

    for answer in answers:
        assert isinstance(answer, NotTaken)
        assert answer.sent
        assert answer.trouble.label == "401"
        assert answer.trouble.error is not None
        assert not answer.trouble.own
    assert us.meter.logins == ["ok", "ok", "refused", "ok", "refused"]
    assert "that a load balancer sends all calls to the appliance that has the session" in caplog.text


async def test_polls_go_on_with_a_session_that_is_no_good_for_posts() -> None:
    answers = script(submit=Reply(401, NOT_AUTHENTICATED), tasks=Reply(200, task()))
    async with appliance(answers) as there, ours(there.url) as us:
        await us.submit()

        assert not isinstance(await us.vcda.ask(site=None, task_id=TASK_ID), Trouble)


async def test_a_site_that_refuses_us_is_extended_to_once_a_pause_and_the_others_go_on() -> None:
    async with appliance(script(extend=Reply(401, REMOTE))) as there, ours(there.url) as us:
        answers = await asyncio.gather(*[us.submit(site="site2") for _ in range(50)])
        answers += [await us.submit(site="site2") for _ in range(50)]

        assert len(there.seen(EXTEND)) == 1
        assert isinstance(await us.submit(), Accepted)

        us.clock.seconds += 1
        await us.submit(site="site2")
        await us.submit(site="site2")
        assert len(there.seen(EXTEND)) == 2
        assert logins(there) == 1

    assert all(isinstance(answer, NotTaken) and not answer.sent for answer in answers)


@pytest.mark.parametrize(
    "refusal", [Reply(401, REMOTE), Reply(401, NOT_AUTHENTICATED), Reply(401, NOT_AUTHENTICATED, GONE), Reply(401)]
)
async def test_a_site_where_nothing_helps_is_no_reason_to_log_in_for_ever(refusal: Reply) -> None:
    async with appliance(script(submit=refusal)) as there, ours(there.url) as us:
        for second in range(70):
            us.clock.seconds = 1000.0 + second
            answers = await asyncio.gather(*[us.submit(site="site2") for _ in range(3)])
            assert all(isinstance(answer, NotTaken) for answer in answers)

        assert logins(there) <= 8
        assert len(there.seen(EXTEND)) <= 8


async def test_a_session_that_never_extends_is_not_replaced_for_ever() -> None:
    async with appliance(script(extend=Reply(401, NOT_AUTHENTICATED, GONE))) as there, ours(there.url) as us:
        for _ in range(20):
            await asyncio.gather(*[us.submit(site="site2") for _ in range(5)])

        assert logins(there) == 2
        assert len(there.seen(EXTEND)) == 2


async def test_retry_after_of_a_login_is_obeyed() -> None:
    async with appliance(script(login=Reply(503, None, {"Retry-After": "90"}))) as there, ours(there.url) as us:
        await us.submit()
        us.clock.seconds += 89
        await us.submit()
        assert logins(there) == 1
        us.clock.seconds += 1
        await us.submit()
        assert logins(there) == 2


# ---------------------------------------------------------------- renewal and end


async def test_a_session_is_renewed_before_its_end_without_making_anybody_wait() -> None:
    guard, hold = Guard(), asyncio.Event()
    async with appliance(guard) as there, ours(there.url) as us:
        await us.submit()

        async def slow(call: Call) -> Answer:
            if call.name == LOGIN:
                await hold.wait()
            return guard(call)

        there.script = slow
        us.clock.seconds += 23 * 3600 - 1
        await us.submit()
        us.clock.seconds += 1
        answers = await asyncio.gather(*[us.submit() for _ in range(10)])
        await there.until(lambda: logins(there) == 2)
        hold.set()
        while us.vcda._session._flight is not None:
            await asyncio.sleep(0)
        await us.submit()

        assert logins(there) == 2
        assert [call.token for call in there.posts] == ["token-1"] * 12 + ["token-2"]

    assert all(isinstance(answer, Accepted) for answer in answers)


async def test_a_renewal_that_fails_leaves_the_session_in_use() -> None:
    refused = [session(), Reply(503)]
    async with appliance(script(login=lambda _: refused.pop(0))) as there, ours(there.url) as us:
        await us.submit()
        us.clock.seconds += 23 * 3600
        for _ in range(5):
            assert isinstance(await us.submit(), Accepted)
            await there.until(lambda: logins(there) == 2)


async def test_an_internal_error_of_a_renewal_is_a_failed_login_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        await us.submit()
        us.clock.seconds += 23 * 3600
        us.credentials.clear()  # so that reading them is an IndexError
        assert isinstance(await us.submit(), Accepted)
        us.credentials.append(CREDENTIALS)
        for _ in range(3):
            assert isinstance(await us.submit(), Accepted)
        assert logins(there) == 1, "the next attempt waits"
        us.clock.seconds += BACKOFF.longest.total_seconds()
        await us.submit()
        await there.until(lambda: logins(there) == 2)

    assert us.meter.logins[:2] == ["ok", "error"]
    assert caplog.text.count("Internal error in a login to VCDA or its extension to a site") == 1
    assert "The login ended with an internal error (IndexError); see the log" in caplog.text


async def test_an_internal_error_of_a_login_lets_a_post_wait_as_any_failed_login() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        us.credentials.clear()
        answer = await us.submit()

    assert isinstance(answer, NotTaken)
    assert (answer.sent, answer.trouble.no_session) == (False, True)
    assert there.posts == []


async def test_an_internal_error_of_an_extension_is_logged_and_pauses_the_site_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        await us.submit()
        us.credentials.clear()
        failed = await us.submit(site="site2")
        us.credentials.append(CREDENTIALS)
        paused = await us.submit(site="site2")
        assert isinstance(await us.submit(), Accepted)

    for answer in (failed, paused):
        assert isinstance(answer, NotTaken)
        assert "The extension to site site2 ended with an internal error (IndexError)" in answer.trouble.detail
    assert caplog.text.count("Internal error in a login to VCDA or its extension to a site") == 1


async def test_the_end_logs_out() -> None:
    async with appliance(script()) as there:
        async with ours(there.url) as us:
            await us.submit()

        assert [call.token for call in there.seen("DELETE /sessions")] == ["t0+/="]


async def test_an_end_does_not_wait_for_a_logout_that_hangs() -> None:
    limits = ApiLimits(logout=timedelta(seconds=0.05))
    async with appliance(script(logout=Drip(b"", drop=b""))) as there, ours(there.url, limits=limits) as us:
        await us.submit()
        await asyncio.wait_for(us.vcda.close(), LOGOUT_LIMIT.total_seconds() - 1)

        assert len(there.seen("DELETE /sessions")) == 1


async def test_an_end_gives_up_a_login_under_way() -> None:
    minute = timedelta(minutes=1)
    async with appliance(script(login=Drip(b"", drop=b""))) as there, ours(there.url, request_timeout=minute) as us:
        waiting = asyncio.create_task(us.submit())
        await there.until(lambda: logins(there) == 1)
        await asyncio.wait_for(us.vcda.close(), 20)
        await asyncio.wait([waiting])

        assert waiting.cancelled()


async def test_an_extension_without_an_answer_is_trouble_of_its_site_alone() -> None:
    async with appliance(script(extend=Cut())) as there, ours(there.url) as us:
        answer = await us.submit(site="site2")

        assert isinstance(answer, NotTaken)
        assert not answer.sent
        assert isinstance(await us.submit(), Accepted)


async def test_an_end_without_a_login_makes_no_call() -> None:
    async with appliance(script()) as there:
        async with ours(there.url):
            pass

        assert there.calls == []


# ---------------------------------------------------------------- answers to a login


@pytest.mark.parametrize(
    ("answer", "result", "label"),
    [
        (Reply(200, {"user": "u"}), "error", "2xx"),
        (Reply(200, {"user": "u"}, {"X-VCAV-Auth": "  "}), "error", "2xx"),
        (Reply(400, error("BadUserInput")), "refused", "4xx"),
        (Reply(403, error()), "refused", "403"),
        (Reply(302, None, {"Location": "/"}), "error", "3xx"),
        (Reply(500, error("GeneralServerFailure")), "error", "5xx"),
        (Reply(401, b"<html>"), "refused", "401"),
    ],
)
async def test_a_login_without_a_token_is_none(answer: Reply, result: str, label: str) -> None:
    async with appliance(script(login=answer)) as there, ours(there.url) as us:
        seen = await us.submit()

    assert isinstance(seen, NotTaken)
    assert not seen.sent
    assert seen.trouble.label == label
    assert us.meter.logins == [result]


async def test_a_login_whose_body_stops_half_way_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    """Without the names of its sites, the local site would pass for a remote one until the session ends."""
    whole = session()
    assert isinstance(whole.body, dict)
    torn = replace(whole, body=json.dumps(whole.body).encode()[:60])
    answers = iter([torn, whole])
    async with appliance(script(login=lambda _: next(answers))) as there, ours(there.url) as us:
        first = await us.submit(site="site1")
        us.clock.seconds += BACKOFF.longest.total_seconds()
        second = await us.submit(site="site1")

    assert isinstance(first, NotTaken)
    assert not first.sent
    assert first.trouble.label == "unreadable"
    assert isinstance(second, Accepted)
    assert us.meter.logins == ["error", "ok"]
    assert "VM_SYNC_VCDA__URL" in caplog.text


HEAD = b"HTTP/1.1 200 OK\r\nX-VCAV-Auth: t\r\nContent-Type: application/json\r\nContent-Length: 4000000\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        Reply(200, b"<html>", {"X-VCAV-Auth": "t"}),
        Cut(HEAD + b'{"user": "u"'),
        Cut(HEAD + b"x" * (SMALL + 1)),
        Drip(HEAD),
    ],
    ids=["no JSON", "half a body", "too long", "too slow"],
)
async def test_a_session_of_a_login_that_cannot_be_used_is_ended(answer: Answer) -> None:
    async with (
        appliance(script(login=answer)) as there,
        ours(there.url, request_timeout=timedelta(seconds=0.5)) as us,
    ):
        assert isinstance(await us.submit(), NotTaken)
        ended = there.seen("DELETE /sessions")

    assert [call.token for call in ended] == ["t"]
    assert us.meter.logins == ["error"]


@pytest.mark.parametrize("logout", [Cut(), Drip(b"", drop=b"")], ids=["no answer", "hangs"])
async def test_a_session_that_cannot_be_ended_is_logged_and_holds_up_nothing_for_long(
    logout: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    login = Reply(200, b"<html>", {"X-VCAV-Auth": "t"})
    limits = ApiLimits(logout=timedelta(seconds=0.05))
    async with appliance(script(login=login, logout=logout)) as there, ours(there.url, limits=limits) as us:
        assert isinstance(await us.submit(), NotTaken)

    assert "the session at VCDA ends by its idle timeout" in caplog.text


async def test_a_login_that_names_no_site_is_one_and_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async with appliance(script(login=Reply(200, {}, {"X-VCAV-Auth": "t"}))) as there, ours(there.url) as us:
        assert isinstance(await us.submit(), Accepted)
        assert us.vcda.account(None) == Account("admin1")

    assert "names no site" in caplog.text
    assert "VM_SYNC_VCDA__SITES" in caplog.text


@pytest.mark.parametrize("sites", [(), ("SITE1",)])
async def test_a_task_whose_site_nobody_has_credentials_for_is_asked_for_where_its_post_went(
    sites: tuple[str, ...],
) -> None:
    login = session(sites=sites)
    async with appliance(script(login=login, tasks=page(task()))) as there, ours(there.url) as us:
        accepted = await us.submit()
        found = await us.vcda.find(site=None, replication_id=None, since=datetime(2030, 1, 1, tzinfo=UTC))

    assert isinstance(accepted, Accepted)
    assert accepted.task.site is None
    assert isinstance(found, list)
    assert [one.site for one in found] == [None]


async def test_a_task_that_runs_at_a_site_with_credentials_is_asked_for_there() -> None:
    async with appliance(script(submit=Reply(202, task(site="site2")))) as there, ours(there.url) as us:
        accepted = await us.submit()

    assert isinstance(accepted, Accepted)
    assert accepted.task.site == "site2"


@pytest.mark.parametrize("broken", [OSError("/secret/path"), ValueError("s3cret")])
async def test_credentials_that_cannot_be_read_are_a_failed_login(
    broken: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def read() -> Credentials:
        raise broken

    async with appliance(script()) as there, ours(there.url) as us:
        us.vcda._session._read_credentials = read
        answer = await us.submit()

    assert isinstance(answer, NotTaken)
    assert not answer.sent
    assert "secret" not in answer.trouble.detail
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            {"login": Reply(401, error("AuthenticationFailed", "Wrong password."))},
            (
                "Login answered with 401: Wrong password; check VM_SYNC_VCDA__CREDENTIALS__USER and "
                "VM_SYNC_VCDA__CREDENTIALS__PASSWORD"
            ),
        ),
        (
            {"login": Reply(404, b"<html>")},
            (
                "Login answered with 404: no reason given; check that VM_SYNC_VCDA__URL is the address of VMware Cloud "
                "Director Availability"
            ),
        ),
        (
            {"login": Reply(200, {})},
            (
                "Login answered with 200: no token; check that VM_SYNC_VCDA__URL is the address of VMware Cloud "
                "Director Availability"
            ),
        ),
        ({"login": Reply(503, b"")}, "Login answered with 503: no reason given"),
        (
            {"login": Reply(302, b"", {"location": "https://sso.example.com/login?token=s3cret"})},
            (
                "Login answered with 302: no reason given, a redirect to https://sso.example.com; check that "
                "VM_SYNC_VCDA__URL is the address of VMware Cloud Director Availability"
            ),
        ),
        (
            {"extend": Reply(401, REMOTE)},
            (
                "Extension to site site2 answered with 401: Authenticate to site2; check the credentials of "
                "site site2 in VM_SYNC_VCDA__SITES"
            ),
        ),
    ],
)
async def test_what_cannot_be_used_is_found_before_any_request_and_names_the_setting(
    answers: dict[str, Answer], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with appliance(script(**answers)) as there, ours(there.url) as us:
        remote = "extend" in answers
        lacking = "the session at VCDA is not extended to site site2" if remote else "no session at VCDA"
        assert await us.vcda.unusable() == [f"{lacking}: {said}"]
        assert await us.vcda.unusable() == [f"{lacking}: {said}"], "between attempts it is what the last one met"
        assert len(there.calls) == 1 + ("extend" in answers)

    assert said in caplog.text


@pytest.mark.parametrize(
    ("answers", "site"),
    [
        ({"login": Reply(401, NOT_AUTHENTICATED)}, None),
        ({"login": Reply(429, b"")}, "site2"),
        ({"extend": Reply(401, REMOTE)}, "site2"),
        ({"extend": Reply(503, b"")}, "site2"),
        ({"extend": Reply(401, NOT_AUTHENTICATED, GONE)}, "site2"),
        ({"submit": Reply(401, REMOTE), "tasks": Reply(401, REMOTE)}, "site2"),
        ({"submit": Reply(401, NOT_AUTHENTICATED), "tasks": Reply(401, NOT_AUTHENTICATED)}, None),
    ],
)
async def test_trouble_for_want_of_a_session_is_told_from_that_of_a_site(
    answers: dict[str, Answer], site: str | None
) -> None:
    async with appliance(script(**answers)) as there, ours(there.url) as us:
        for _ in range(2):  # the second time between two attempts
            answer = await us.submit(site=site)
            assert isinstance(answer, NotTaken)
            assert answer.trouble.no_session
            seen = await us.vcda.poll(site=site, ids=[TASK_ID])
            assert isinstance(seen, Trouble)
            assert seen.no_session
    async with appliance(script(tasks=Reply(503, b""))) as there, ours(there.url) as us:
        seen = await us.vcda.poll(site=site, ids=[TASK_ID])
        assert isinstance(seen, Trouble)
        assert not seen.no_session


async def test_each_login_and_each_extension_is_announced_when_calls_can_use_it() -> None:
    async with appliance(Guard()) as there, ours(there.url) as us:
        await us.submit(site="site2")
        await us.submit(site="site2")
        await us.submit()
        assert us.established == [None, "site2"]


async def test_what_can_be_used_has_a_session_at_each_site_before_any_request() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        assert us.vcda.about() == "not logged in"
        assert us.vcda.session_status() == SessionStatus(age=None, sites=frozenset())
        assert us.meter.opened == []
        assert await us.vcda.unusable() == []
        assert await us.vcda.unusable() == []
        assert [call.name for call in there.calls] == [LOGIN, EXTEND]
        assert us.meter.opened == [True]
        assert us.vcda.about() == ""
        status = us.vcda.session_status()
        assert status.sites == {"site1", "site2"}
        assert status.age is not None
        assert timedelta() <= status.age < timedelta(minutes=5)
    assert us.meter.opened == [True, False]
    assert us.vcda.session_status().age is None


async def test_the_version_of_the_api_is_known_where_vcda_tells_it() -> None:
    kind = {"content-type": "application/vnd.vmware.h4-v4.7+json;charset=UTF-8"}
    async with appliance(script(login=Reply(200, {}, {"X-VCAV-Auth": "t", **kind}))) as there, ours(there.url) as us:
        await us.vcda.unusable()
        assert us.vcda.about() == "API 4.7"


async def test_a_site_without_credentials_is_refused_without_a_call() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        answer = await us.submit(site="site9")
        found = await us.vcda.poll(site="site9", ids=[TASK_ID])

        assert [call.name for call in there.calls] == [LOGIN]

    assert isinstance(answer, Refused)
    assert answer.error is not None
    assert answer.error.code == "NoCredentials"
    assert answer.http_status is None
    assert isinstance(found, Trouble)
    assert (found.label, found.own) == (NO_CREDENTIALS, True)


async def test_credentials_of_a_site_that_come_later_are_found_without_a_new_login() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        us.credentials[:] = [replace(CREDENTIALS, sites=())]
        assert isinstance(await us.submit(site="site2"), Refused)
        us.credentials[:] = [CREDENTIALS]
        us.clock.seconds += LOOK_EVERY
        assert isinstance(await us.submit(site="site2"), Accepted)
        assert [call.name for call in there.calls if call.name in {LOGIN, EXTEND}] == [LOGIN, EXTEND]


@pytest.mark.parametrize("extend", [None, Reply(404, error("SiteNotFound", "Site site2 not found."))])
async def test_a_look_up_where_there_is_no_way_to_holds_up_nobody_who_is_to_be_refused(extend: Reply | None) -> None:
    site = "site9" if extend is None else "site2"
    answers = script() if extend is None else script(extend=extend)
    async with appliance(answers) as there, ours(there.url) as us:
        found = await us.vcda.find(site=site, replication_id=None, since=datetime(2026, 3, 1, tzinfo=UTC))
        polled = await us.vcda.poll(site=site, ids=[TASK_ID])

    assert isinstance(found, Trouble)
    assert found.own
    assert isinstance(polled, Trouble)
    assert polled.own == (extend is None)  # at a site that isn't known the poller goes by the lane's pauses


async def test_a_site_that_vcda_does_not_know_is_refused_as_the_post_would_be() -> None:
    unknown = Reply(404, error("SiteNotFound", "Site site2 not found."))
    async with appliance(script(extend=unknown)) as there, ours(there.url) as us:
        answers = [await us.submit(site="site2") for _ in range(3)]

        assert there.posts == []
        assert len(there.seen(EXTEND)) == 1

    assert answers == [Refused(ApiError("SiteNotFound", "Site site2 not found."), 404, sent=False)] * 3


async def test_while_nobody_can_log_in_a_site_without_credentials_is_trouble() -> None:
    async with appliance(script(login=Reply(503))) as there, ours(there.url) as us:
        assert isinstance(await us.submit(site="site9"), NotTaken)


async def test_no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    guard = Guard()

    async def scenario(us: Ours) -> None:
        await us.submit(site="site2")
        guard.valid.clear()
        await us.submit(site="site2")
        us.credentials.append(replace(CREDENTIALS, sites=(SiteCredentials(name="site2", token="s3cret-jwt"),)))
        guard.extended.clear()
        await us.submit(site="site2")

    async with appliance(guard) as there, ours(there.url) as us:
        await scenario(us)
        there.script = script(login=Reply(401, error("NotAuthenticated", "no")), submit=Reply(401, None, GONE))
        await us.submit()

    assert "Logged in to VCDA as admin1@Org1" in caplog.text
    assert "The login to VCDA failed" in caplog.text
    everything = " ".join(str(record.__dict__) for record in caplog.records)
    assert "s3cret" not in everything
    assert "token-1" not in everything


def _echo(call: Call) -> dict[str, Any]:
    """An error that repeats the whole request, as parsers of JSON and some proxies do."""
    sent = f"{call.body.decode()} with {call.headers}"
    words = [*call.json().values()] if call.body else []
    return error("Bad Request", f"Unlike {sent}") | {"args": [sent, *words, f"{'x' * (MAX_TEXT - 3)}{call.token}"]}


_TASKS = page(task())

ECHOES: dict[str, Script] = {
    "login": script(login=lambda call: Reply(400, _echo(call)), tasks=_TASKS),
    "extension": script(extend=lambda call: Reply(400, _echo(call)), tasks=_TASKS),
    "POST": script(submit=lambda call: Reply(403, _echo(call)), tasks=_TASKS),
    "POST after a 401": script(submit=lambda call: Reply(401, _echo(call)), tasks=_TASKS),
    "task": script(submit=lambda call: Reply(202, task(error=_echo(call), warnings=[_echo(call)])), tasks=_TASKS),
    "poll": script(tasks=lambda call: page(task(error=_echo(call), warnings=[_echo(call)]))),
    "failed poll": script(tasks=lambda call: Reply(500, _echo(call))),
    "task by its id": script(tasks=lambda call: Reply(200, task(error=_echo(call)))),
}


@pytest.mark.parametrize("of", ECHOES)
async def test_an_answer_that_repeats_what_it_was_sent_in_secret_shows_none_of_it(
    of: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with appliance(ECHOES[of]) as there, ours(there.url) as us:
        us.credentials.append(replace(CREDENTIALS, password='s3cret "ä\\'))
        seen = [
            repr(await us.submit(site="site2")),
            repr(await us.vcda.poll(site=None, ids=[TASK_ID])),
            repr(await us.vcda.ask(site=None, task_id=TASK_ID)),
            repr(await us.vcda.unusable()),
        ]

    everything = " ".join([*seen, *[str(record.__dict__) for record in caplog.records]])
    assert "Unlike" in everything
    assert "[hidden]" in everything
    assert "s3cret" not in everything
    assert "t0+" not in everything
