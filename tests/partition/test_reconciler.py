"""Look-ups for POSTs in doubt: when, for which, as whom, and what follows where they fail."""

import asyncio
from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from random import Random

import pytest

from service import sync
from service.partition.in_flight import TrackedSync
from service.partition.reconciler import LOOK_SELDOM, ONE_BY_ONE, Reconciler
from service.sync import Account, Lingering, Names, Submitting, Trouble, Waiting
from service.vcda.lanes import LaneLimits, Lanes
from service.vcda.look_ups import OWN_AFTER, LookUps
from tests.support.simulated_deployment import (
    LATE,
    POLICY,
    Deployment,
    Meter,
    Process,
    ask_at,
    deployed,
    in_flight,
    run,
    sent,
)
from tests.support.virtual_time import EPOCH, VirtualClock, now, virtual


@pytest.mark.parametrize("doubts", [ONE_BY_ONE, ONE_BY_ONE + 1])
def test_few_doubts_are_looked_up_one_by_one_and_many_together(doubts: int) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.lasts = lambda _: 100.0
            p0 = d.owner(limits=LaneLimits(max_concurrent_submits=100, max_running=0))
            for n in range(doubts):
                p0.vcda.script[f"a{n}"] = ["lost-answer"] if n % 2 else ["lost-post"]
                d.broker.ask(f"C4-{n}", f"a{n}")
            await d.until(0.06)
            await p0.crash()
            p1 = d.owner("P1", limits=LaneLimits(max_concurrent_submits=100, max_running=0))
            await d.until(0.1)
            asked = {replication for _, replication in p1.vcda.asked}
            if doubts <= ONE_BY_ONE:
                assert None not in asked
            else:
                assert asked == {None}
            await d.settled()
            assert set(d.world.tasks_of().values()) == {1}
            assert p1.meter.counts["adopted"] == doubts // 2

    run(play())


@deployed
async def test_a_look_up_under_another_account_concludes_nothing(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"]
    d.broker.ask("C4-1", "a1", deadline=3600)
    await d.until(0.1)
    await p0.crash()
    p1 = d.process("P1")
    p1.vcda.user = "somebody@else"
    d.group.hand(0, p1)
    await d.until(600.0)
    assert p1.vcda.sent == []
    (doubt,) = in_flight(p1)
    assert isinstance(doubt, Submitting)
    assert doubt.trouble is not None
    assert "was sent as admin@org; the look-up is made as somebody@else" in doubt.trouble.msg
    p1.vcda.user = d.world.user
    await d.until(600.0 + LOOK_SELDOM.total_seconds())
    assert len(p1.vcda.sent) == 1


@deployed
async def test_nor_does_one_as_another_user_of_its_site(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.site_user = "us@west"
    p0.vcda.script["a1"] = ["lost-post"]
    ask_at(d, "west", "C4-1", "a1")
    await d.until(0.1)
    await p0.crash()
    p1 = d.process("P1")
    p1.vcda.site_user = "them@west"
    d.group.hand(0, p1)
    await d.until(600.0)
    assert p1.vcda.sent == []
    p1.vcda.site_user = "us@west"
    await d.until(600.0 + LOOK_SELDOM.total_seconds())
    assert len(p1.vcda.sent) == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_a_doubt_of_an_account_that_never_comes_back_lets_go_of_its_replication_in_the_end(
    restarted: bool,
) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            p0.vcda.script["a1"] = ["lost-post"]
            d.broker.ask("C4-1", "a1", deadline=60)
            await d.until(1.0)
            p0.vcda.user = "somebody@else"
            await d.until(62.0)
            if restarted:
                await p0.crash()
                p0 = d.process("P1")
                p0.vcda.user = "somebody@else"
                d.group.hand(0, p0)
            limit = 60.0 + sync.LINGER_LIMIT.total_seconds()
            await d.until(limit - 5.0)
            assert isinstance(in_flight(p0)[0], Lingering)
            await d.until(limit + 2.0)
            assert in_flight(p0) == []
            assert d.verdicts() == [("a1", "timed-out")]

    run(play())


@deployed
async def test_an_account_that_changes_during_a_look_up_concludes_nothing(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"]
    d.broker.ask("C4-1", "a1")
    await d.until(LATE)
    (at,) = sent(p0, "a1")
    while p0.vcda.asked[-1][0] < at + LATE:
        await asyncio.sleep(0.001)
    p0.vcda.user = "somebody@else"  # the conclusive look-up is on its way, under the account that made the POST
    await d.until(LATE + 60.0)
    assert len(p0.vcda.sent) == 1


def breaking(p0: Process, *, replications: Collection[str | None], retry_after: float | None = None) -> None:
    """Let look-ups for these replications fail; None: for all at once. They ask for a pause, in seconds."""
    find = p0.vcda.find
    asks_for = None if retry_after is None else timedelta(seconds=retry_after)

    async def broken(**asked: object) -> list[sync.Task] | sync.Trouble:
        if asked["replication_id"] in replications:
            return sync.Trouble(label="5xx", detail="This breaks VCDA.", retry_after=asks_for)
        return await find(**asked)  # type: ignore[arg-type]

    p0.vcda.find = broken  # type: ignore[method-assign]


@deployed
async def test_a_replication_whose_look_up_fails_is_told_of_by_the_look_up_for_all(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script |= {"a1": ["lost-post"], "b1": ["lost-post"]}
    breaking(p0, replications={"C4-1"})
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-2", "b1")
    await d.until(120.0)
    assert sorted(d.verdicts()) == [("a1", "completed"), ("b1", "completed")]


@deployed
async def test_one_whose_look_up_always_fails_holds_nobody_up(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script |= {"a1": ["lost-post"], "b1": ["lost-post"]}
    find = p0.vcda.find
    breaking(p0, replications={"C4-1", None})
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-2", "b1")
    await d.until(120.0)
    assert d.verdicts() == [("b1", "completed")], "what its own look-up shows has to do"
    for n in range(5):
        d.broker.ask("C4-3", f"c{n}")
    await d.until(180.0)
    assert len(d.verdicts()) == 6
    p0.vcda.find = find  # type: ignore[method-assign]
    await d.settled()
    assert ("a1", "completed") in d.verdicts()


@deployed
async def test_one_whose_look_up_always_fails_does_not_hold_an_idle_site_back(d: Deployment) -> None:
    """Seen before: the circuit breaker's probe was always this look-up, so a POST waited for 154 s on average."""
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"]
    breaking(p0, replications={"C4-1", None})
    d.broker.ask("C4-1", "a1")
    await d.until(600.0)
    for n in range(6):
        at = d.loop.time()
        d.broker.ask("C4-2", f"b{n}")
        await d.until(at + 100.0)
        assert sent(p0, f"b{n}")[0] - at < 10.0


@pytest.mark.parametrize("partitions", [1, 12])
@pytest.mark.parametrize("asked", [None, 30.0, 300.0])
@pytest.mark.parametrize("many", [1, 3, 30])
def test_however_many_look_ups_always_fail_and_whatever_pauses_they_ask_for_other_calls_go_on(
    many: int, asked: float | None, partitions: int
) -> None:
    """Seen before: 30 counted as the site's trouble, twice each: 49 minutes; those of 12 partitions had no end."""

    async def play() -> None:
        async with Deployment() as d:
            d.world.lasts = lambda _: 30.0
            p0 = d.owner(limits=LaneLimits(max_concurrent_submits=many + 4, max_running=many + 20))
            for number in range(1, partitions):
                d.group.hand(number, p0)
            bad = [f"C4-bad{n}" for n in range(many)]
            breaking(p0, replications={*bad, None}, retry_after=asked)
            for n, replication in enumerate(bad):
                p0.vcda.script[replication] = ["lost-answer"]
                d.broker.ask(replication, replication, number=n % partitions)
            await d.until(60.0)
            for n in range(60):
                d.broker.ask(f"C4-{n}", f"a{n}", number=n % partitions)
            await d.until(60.0 + 120.0 + 4 * (asked or 0.0))
            told = {told.operation_id for log in d.broker.logs.values() for told in log.told}
            assert told >= {f"a{n}" for n in range(60)}

    run(play())


@deployed
async def test_a_second_failure_is_of_the_look_ups_where_the_site_answered_another_call_since_the_first(
    d: Deployment,
) -> None:
    d.world.lasts = lambda operation: 1000.0 if operation == "polled" else 1.0
    p0 = d.owner()
    d.broker.ask("C4-1", "polled")
    await d.until(5.0)
    breaking(p0, replications={"C4-2", None})
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-2", "a1")
    await d.until(500.0)
    assert p0.meter.counts["paused"] == 2, "after the POST, and after the first look-up"


def test_look_ups_that_fail_alone_are_logged_when_that_begins_and_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            for number in range(3):
                if number:
                    d.group.hand(number, p0)
                p0.vcda.script[f"a{number}"] = ["lost-answer"]
                d.broker.ask(f"C4-{number}", f"a{number}", number=number)
            find = p0.vcda.find
            breaking(p0, replications={"C4-0", "C4-1", "C4-2", None})
            await d.until(500.0)
            begun = (
                "Site local: look-ups for POSTs in doubt fail (5xx: This breaks VCDA.); the POSTs stay in doubt until "
                "one succeeds, other calls to the site do not wait for them"
            )
            assert look_up_lines(caplog) == [begun]

            p0.vcda.find = find  # type: ignore[method-assign]
            await d.settled()
            (_, ended) = look_up_lines(caplog)
            assert ended.startswith("Site local: look-ups for POSTs in doubt succeed again, after ")

    run(play())


def test_look_ups_that_fail_until_no_post_is_in_doubt_any_more_are_logged_as_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            p0.vcda.script["a1"] = ["lost-answer"]
            d.broker.ask("C4-1", "a1")
            breaking(p0, replications={"C4-1", None})
            await d.until(200.0)
            d.group.hand(0, d.process("P1"))
            await d.until(210.0)

            assert [line.split(" (")[0] for line in look_up_lines(caplog)] == [
                "Site local: look-ups for POSTs in doubt fail",
                "Site local: no POST is in doubt here any more, so no look-up fails",
            ]

    run(play())


@virtual
async def test_look_ups_of_a_site_still_fail_when_one_of_two_partitions_has_no_post_in_doubt_any_more() -> None:
    look_ups = LookUps(None, clock=VirtualClock(asyncio.get_running_loop()))
    with look_ups.searching():
        with look_ups.searching():
            for _ in range(OWN_AFTER):
                look_ups.record_result(Trouble(label="5xx", detail="It said 500."), began=now(), good_answers=0)
            assert look_ups.failing
        assert look_ups.failing
    assert not look_ups.failing


@virtual
async def test_the_first_look_up_that_fails_says_nothing_of_look_ups_however_much_the_site_answered_before() -> None:
    look_ups = LookUps(None, clock=VirtualClock(asyncio.get_running_loop()))
    trouble = Trouble(label="5xx", detail="It said 500.")
    assert not look_ups.record_result(trouble, began=now(), good_answers=50)
    assert not look_ups.record_result(trouble, began=now(), good_answers=50)
    assert look_ups.record_result(trouble, began=now(), good_answers=51), "it has answered another call since"


def look_up_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "service.vcda.look_ups"]


def test_the_list_of_all_tasks_that_can_be_read_again_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            p0.vcda.script |= {"a1": ["lost-post"], "b1": ["lost-post"]}
            find = p0.vcda.find
            breaking(p0, replications={None})
            d.broker.ask("C4-1", "a1")
            await d.until(LATE)
            d.broker.ask("C4-2", "b1")
            while "use the latter" not in caplog.text:
                await asyncio.sleep(1.0)
            p0.vcda.find = find  # type: ignore[method-assign]
            await d.until(d.loop.time() + 600.0)

    run(play())
    assert caplog.text.count("Site local: reading the list of all sync tasks succeeds again") == 1


@deployed
async def test_a_site_that_answers_nothing_pauses_for_its_look_ups_too(d: Deployment) -> None:
    p0 = d.owner(meets=lambda kind: "lost-post" if kind == "submit" else "down")
    for n in range(3):
        d.broker.ask(f"C4-{n}", f"a{n}")
    await d.until(30.0)
    asked = [at for at, _ in p0.vcda.asked]
    assert p0.lanes.lane(None).look_ups.failed == len(asked) >= OWN_AFTER
    assert p0.meter.counts["paused"] >= 1


@deployed
async def test_look_ups_of_several_partitions_that_fail_together_are_one_failure(d: Deployment) -> None:
    """Otherwise one round was taken for a trouble of look-ups alone, and the breaker of a dead site stayed closed."""
    p0 = d.owner(meets=lambda kind: "lost-post" if kind == "submit" else "down")
    for number in range(4):
        if number:
            d.group.hand(number, p0)
        d.broker.ask(f"C4-{number}", f"a{number}", number=number)
    await d.until(120.0)
    assert p0.lanes.lane(None).open_breaker() is not None


@deployed
async def test_look_ups_grow_seldom_but_the_conclusive_moment_is_never_slept_past(d: Deployment) -> None:
    p0 = d.owner(policy=replace(POLICY, late=timedelta(seconds=90)))
    p0.vcda.script["a1"] = ["lost-post"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    asked = [at for at, _ in p0.vcda.asked]
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert gaps[:4] == pytest.approx([1.01, 2.01, 4.01, 8.01])
    assert max(gaps) == pytest.approx(15.01)
    (first, second) = sent(p0, "a1")
    assert asked[-1] == pytest.approx(first + 90.0)
    assert second - first < 90.1


@virtual
async def test_a_second_doubt_of_a_request_does_not_inherit_the_pauses_of_the_first() -> None:
    """A round of look-ups may last: a request may be POSTed again, and its POST be in doubt again, before it ends."""
    loop = asyncio.get_running_loop()
    clock, account = VirtualClock(loop), Account("us")
    asked: list[float] = []
    concluded: list[float] = []
    api = SlowApi(asked, account)
    lanes = Lanes(
        limits=LaneLimits(max_concurrent_submits=4, max_running=0), clock=clock, metrics=Meter(), random=Random(1)
    )
    spawned: list[asyncio.Task[None]] = []

    def looked_up(tracked: TrackedSync, seen: sync.LookUp) -> None:
        if tracked is not first or concluded or not isinstance(seen, sync.NotFound) or seen.account is None:
            return
        concluded.append(loop.time())
        first.state = Waiting(request=first.request)
        loop.call_later(5.0, doubt_again)

    def doubt_again() -> None:
        first.state = doubt("C4-0", attempts=2, conclusive_from=loop.time() + 60.0)
        reconciler.add(first)

    reconciler = Reconciler(
        api=api,
        lane=lanes.lane,
        clock=clock,
        spawn=lambda work: spawned.append(asyncio.create_task(work)),
        looked_up=looked_up,
    )
    first = TrackedSync(doubt("C4-0", attempts=1, conclusive_from=0.0))
    others = [TrackedSync(doubt(f"C4-{number}", attempts=1, conclusive_from=1e9)) for number in range(1, 6)]
    for tracked in (first, *others):
        reconciler.add(tracked)
    await asyncio.sleep(3000)
    api.known = True
    while not concluded:
        await asyncio.sleep(1)
    await asyncio.sleep(400)

    again = min(at for at in asked if at > concluded[0])
    assert again - concluded[0] < LOOK_SELDOM.total_seconds() / 2
    spawned[0].cancel()


class SlowApi:
    """Answers for the list of all tasks at once, and for the list of a replication's after twenty seconds: none."""

    def __init__(self, asked: list[float], account: Account) -> None:
        self._asked = asked
        self._account = account
        self.known = False
        """Whether the account is known, so that look-ups conclude."""

    async def find(self, *, replication_id: str | None, **_: object) -> list[sync.Task]:
        if replication_id is None:
            self._asked.append(now())
        else:
            await asyncio.sleep(20.0)
        return []

    def account(self, _: str | None) -> Account | None:
        return self._account if self.known else None

    def names(self, *_: object) -> Names:
        return Names(frozenset({"us"}), learnt=True)

    def site_clock(self, _: str | None) -> None:
        return None


class ScriptedApi:
    """Fails for the lists of some replications' tasks (None: of all), and shows no task in the others."""

    def __init__(self, failing: Collection[str | None]) -> None:
        self.failing = set(failing)
        self.calls: list[tuple[float, str | None, str | None]] = []
        """When, for which replication, in the name of which operation."""

    async def find(
        self, *, replication_id: str | None, operation_id: str | None = None, **_: object
    ) -> list[sync.Task] | Trouble:
        self.calls.append((now(), replication_id, operation_id))
        return Trouble(label="5xx", detail="It broke.", own=True) if replication_id in self.failing else []

    def account(self, _: str | None) -> Account:
        return Account("us")

    def names(self, *_: object) -> Names:
        return Names(frozenset({"us"}), learnt=True)

    def site_clock(self, _: str | None) -> None:
        return None

    @property
    def asked(self) -> list[str | None]:
        return [replication for _, replication, _ in self.calls]


class Doubts:
    """A reconciler with POSTs in doubt, each of which ends when a look-up concludes that it made no task."""

    def __init__(self, api: ScriptedApi, *, of: Collection[str], conclusive_from: float = 0.0) -> None:
        clock = VirtualClock(asyncio.get_running_loop())
        lanes = Lanes(
            limits=LaneLimits(max_concurrent_submits=4, max_running=0), clock=clock, metrics=Meter(), random=Random(1)
        )
        self.api = api
        self.concluded: list[str] = []
        self._conclusive_from = conclusive_from
        self._tasks: list[asyncio.Task[None]] = []
        reconciler = Reconciler(
            api=api,
            lane=lanes.lane,
            clock=clock,
            spawn=lambda work: self._tasks.append(asyncio.create_task(work)),
            looked_up=self._looked_up,
        )
        for name in of:
            reconciler.add(TrackedSync(doubt(name, attempts=1, conclusive_from=conclusive_from)))

    def _looked_up(self, tracked: TrackedSync, seen: sync.LookUp) -> None:
        if isinstance(seen, sync.NotFound) and seen.began >= self._conclusive_from:
            self.concluded.append(tracked.request.replication_id)
            tracked.state = Waiting(request=tracked.request)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@virtual
async def test_few_of_many_doubts_are_looked_up_alone_before_the_list_of_all_tasks_is_tried_again() -> None:
    names = [f"C4-{n}" for n in range(3 * ONE_BY_ONE)]
    doubts = Doubts(ScriptedApi({None}), of=names)
    await asyncio.sleep(3600.0)
    between = "".join("|" if replication is None else "." for replication in doubts.api.asked).split("|")
    assert max(map(len, between)) == 1 + ONE_BY_ONE, "the one that shows whether single ones work, and the others"
    first = doubts.api.asked[1 : 2 + ONE_BY_ONE]
    assert len(set(first)) == len(first), "each once"
    assert sorted(doubts.concluded) == sorted(names)
    await doubts.end()


@virtual
async def test_the_list_of_a_replications_tasks_has_to_do_once_that_of_all_has_failed_three_times() -> None:
    doubts = Doubts(ScriptedApi({None}), of=["C4-1"])
    while not doubts.concluded:
        await asyncio.sleep(0.1)
    assert doubts.api.asked.count(None) == OWN_AFTER
    await doubts.end()


@virtual
async def test_a_doubt_is_looked_up_alone_once_for_each_time_that_the_list_of_all_tasks_fails() -> None:
    doubts = Doubts(ScriptedApi({None}), of=["C4-1"])
    while not doubts.concluded:
        await asyncio.sleep(0.1)
    assert doubts.api.asked == [None, "C4-1"] * OWN_AFTER
    await doubts.end()


@virtual
async def test_of_many_doubts_the_one_whose_look_up_fails_does_not_come_first_again() -> None:
    doubts = Doubts(ScriptedApi({None, "C4-0"}), of=[f"C4-{n}" for n in range(3 * ONE_BY_ONE)])
    await asyncio.sleep(60.0)
    assert [replication for replication in doubts.api.asked if replication is not None][:2] == ["C4-0", "C4-1"]
    await doubts.end()


@virtual
async def test_look_ups_that_failed_are_rare_only_until_one_succeeds() -> None:
    api = ScriptedApi({"C4-1"})
    doubts = Doubts(api, of=["C4-1"], conclusive_from=1e9)
    while len(api.calls) < OWN_AFTER:
        await asyncio.sleep(0.1)
    api.failing.clear()
    while len(api.calls) == OWN_AFTER:
        await asyncio.sleep(0.1)
    api.failing.add("C4-1")
    await asyncio.sleep(600.0)
    gaps = [later - earlier for (earlier, *_), (later, *_) in pairwise(api.calls[OWN_AFTER + 1 :])]
    assert gaps[:4] == pytest.approx([15.0, 15.0, 15.0, 30.0])
    await doubts.end()


@virtual
async def test_a_look_up_for_several_posts_is_made_in_the_name_of_none() -> None:
    doubts = Doubts(ScriptedApi({None}), of=["C4-1", "C4-2"])
    await asyncio.sleep(1.0)
    (_, *first), (_, *second) = doubts.api.calls[:2]
    assert (first, second) == ([None, None], ["C4-1", "a"])
    await doubts.end()


def doubt(replication_id: str, *, attempts: int, conclusive_from: float) -> Submitting:
    request = sync.Request(
        identity=f"op:{replication_id}:a",
        operation_id="a",
        replication_id=replication_id,
        site=None,
        offset=0,
        requested_at=EPOCH,
        accepted_at=EPOCH,
        deadline=EPOCH + timedelta(days=7),
    )
    return Submitting(request=request, attempts=attempts, look_from=EPOCH, conclusive_from=conclusive_from)
