"""The poller in virtual time: who is asked when, with whom, and what becomes of the answers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random

import pytest

from service.sync import NO_CREDENTIALS, Absent, Account, Gone, PollAnswer, Task, Trouble
from service.vcda.lanes import BREAKER_AFTER, Lane, LaneLimits, Lanes
from service.vcda.poller import CALLS_AT_ONCE, TOLD_AT_ONCE, Poller, Verdict, Watch, _duration
from tests.support.virtual_time import Longest, VirtualClock, now, virtual

BAD = Trouble(label="5xx", detail="It said 500.")


@dataclass
class FakeVcda:
    """Tasks that end at a moment, shown as VCDA would: those it doesn't know are left out."""

    ends: dict[str, float] = field(default_factory=dict)
    takes: float = 0.0
    trouble: dict[str | None, Trouble] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    calls: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    asked_alone: list[tuple[float, str]] = field(default_factory=list)
    poison: set[str] = field(default_factory=set)
    """Tasks that break each call that asks for them."""
    bad: Trouble = BAD
    """What such a call comes to."""
    longest: int = 100
    """More ids in one call make its answer too long."""
    at_once: int = 0
    most_at_once: int = 0

    async def poll(self, *, site: str | None, ids: Sequence[str]) -> list[Task] | Trouble:
        self.calls.append((now(), tuple(ids)))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await asyncio.sleep(self.takes)
        self.at_once -= 1
        if self.poison & set(ids) or len(ids) > self.longest:
            return self.bad
        return self.trouble.get(site) or [self.task(id_) for id_ in ids if id_ not in self.unknown]

    async def ask(self, *, site: str | None, task_id: str) -> Task | Gone | Trouble:  # noqa: ARG002
        self.asked_alone.append((now(), task_id))
        if task_id in self.poison:
            return self.bad
        return Gone(now(), Account("me")) if task_id in self.unknown else self.task(task_id)

    def task(self, id_: str) -> Task:
        return Task(id=id_, state="SUCCEEDED" if now() >= self.ends.get(id_, 1e9) else "RUNNING")

    def paused(self, site: str | None, value: bool) -> None:
        pass

    def without_credentials(self, site: str | None) -> None:
        pass

    def poll_batch(self, site: str | None, size: int) -> None:  # noqa: ARG002
        assert 1 <= size <= 100

    @property
    def moments(self) -> list[float]:
        return [at for at, _ in self.calls]


@dataclass
class Answers:
    """Whoever watches: keeps what it is told, and is done with a task that ended."""

    told: list[tuple[float, str, str]] = field(default_factory=list)
    seen: list[PollAnswer] = field(default_factory=list)
    verdict: Callable[[PollAnswer], Verdict] = field(
        default=lambda seen: Verdict.DONE if isinstance(seen, Task) and seen.state == "SUCCEEDED" else Verdict.GO_ON
    )

    def watch(self, task_id: str, *, site: str | None = None, since: float | None = None) -> Watch:
        def answered(seen: PollAnswer) -> Verdict:
            self.seen.append(seen)
            self.told.append((now(), task_id, seen.state if isinstance(seen, Task) else type(seen).__name__))
            return self.verdict(seen)

        begun = now() if since is None else since
        return Watch(task_id=task_id, site=site, replication_id="C4-" + task_id, since=begun, answered=answered)


@dataclass
class LateLane:
    """A lane on a busy machine: nobody leaves at the very moment."""

    lane: Lane
    late: float

    async def wait_until_open(self) -> None:
        await asyncio.sleep(self.late)
        await self.lane.wait_until_open()

    def try_acquire(self) -> bool:
        return self.lane.try_acquire()

    def record_result(self, trouble: Trouble | None, *, since: int | None = None) -> None:
        self.lane.record_result(trouble, since=since)

    def held_for(self) -> float:
        return self.lane.held_for()

    @property
    def good_answers(self) -> int:
        return self.lane.good_answers

    @property
    def pauses(self) -> int:
        return self.lane.pauses


@asynccontextmanager
async def polling(vcda: FakeVcda, *, late: float = 0.0) -> AsyncIterator[tuple[Poller, Lanes]]:
    clock = VirtualClock(asyncio.get_running_loop())
    limits = LaneLimits(max_concurrent_submits=1, max_running=1)
    lanes = Lanes(limits=limits, clock=clock, metrics=vcda, random=Longest())
    poller = Poller(
        api=vcda,
        lane=lanes.lane if not late else lambda site: LateLane(lanes.lane(site), late),
        clock=clock,
        metrics=vcda,
        random=Random(5),
        shortest=timedelta(seconds=1),
        longest=timedelta(seconds=60),
    )
    running = asyncio.create_task(poller.run())
    try:
        yield poller, lanes
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        lanes.close()


@virtual
async def test_a_task_is_asked_after_until_it_has_ended_and_then_no_more() -> None:
    vcda, answers = FakeVcda(ends={"a": 5.5}), Answers()
    async with polling(vcda) as (poller, _):
        poller.watch(answers.watch("a"))
        await asyncio.sleep(1000)
    assert answers.told == [(float(at), "a", "RUNNING") for at in range(1, 6)] + [(6.0, "a", "SUCCEEDED")]


@virtual
async def test_calls_that_leave_some_milliseconds_late_do_not_put_each_other_off() -> None:
    vcda, answers = FakeVcda(), Answers()
    async with polling(vcda, late=0.005) as (poller, _):
        poller.watch(answers.watch("a"))
        await asyncio.sleep(5.5)
    assert vcda.moments == pytest.approx([1.005, 2.005, 3.005, 4.005, 5.005])


@virtual
async def test_a_task_of_which_nothing_is_known_is_asked_after_ever_more_seldom() -> None:
    vcda, answers = FakeVcda(), Answers()
    async with polling(vcda) as (poller, _):
        poller.watch(answers.watch("a"))
        await asyncio.sleep(3600)
    gaps = [later - earlier for earlier, later in zip(vcda.moments, vcda.moments[1:], strict=False)]
    assert gaps[0] == 1.0
    assert all(1.0 <= gap <= 61.0 for gap in gaps)
    assert gaps[-1] >= 60.0
    assert 60 < len(gaps) < 110


@virtual
async def test_tasks_due_together_share_calls_of_a_hundred() -> None:
    vcda, answers = FakeVcda(), Answers()
    async with polling(vcda) as (poller, _):
        for number in range(250):
            poller.watch(answers.watch(f"t{number}"))
        await asyncio.sleep(1.5)
    assert [(at, len(ids)) for at, ids in vcda.calls] == [(1.0, 100), (1.0, 100), (1.0, 50)]


@virtual
async def test_one_due_a_moment_later_comes_along() -> None:
    vcda, answers = FakeVcda(), Answers()
    async with polling(vcda) as (poller, _):
        poller.watch(answers.watch("a"))
        await asyncio.sleep(0.05)
        poller.watch(answers.watch("b"))
        await asyncio.sleep(1)
    assert vcda.calls == [(1.0, ("a", "b"))]


@pytest.mark.parametrize("takes", [0.0, 0.05])
@virtual
async def test_thousands_restored_together_are_all_asked_within_seconds_and_never_all_at_once(takes: float) -> None:
    vcda, answers = FakeVcda(takes=takes), Answers()
    await asyncio.sleep(1000)
    async with polling(vcda) as (poller, _):
        for number in range(5000):
            poller.watch(answers.watch(f"t{number}", since=0.0))
        await asyncio.sleep(1.25)
        assert {id_ for _, id_, _ in answers.told} == {f"t{number}" for number in range(5000)}
    assert vcda.most_at_once <= CALLS_AT_ONCE
    assert len(set(vcda.moments)) > 10


@virtual
async def test_the_answers_of_full_calls_that_come_together_are_handed_on_in_slices() -> None:
    vcda, in_turns = FakeVcda(takes=0.05), [0]

    def counted(_: PollAnswer) -> Verdict:
        if not in_turns[-1]:
            asyncio.get_running_loop().call_soon(in_turns.append, 0)  # in the next turn
        in_turns[-1] += 1
        return Verdict.GO_ON

    answers = Answers(verdict=counted)
    await asyncio.sleep(1000)
    async with polling(vcda) as (poller, _):
        for number in range(800):
            poller.watch(answers.watch(f"t{number}", since=0.0))
        await asyncio.sleep(1.25)
    assert len(answers.told) >= 800
    assert max(in_turns) == TOLD_AT_ONCE


@virtual
async def test_a_few_restored_together_share_a_call() -> None:
    vcda, answers = FakeVcda(), Answers()
    await asyncio.sleep(1000)
    async with polling(vcda) as (poller, _):
        for number in range(60):
            poller.watch(answers.watch(f"t{number}", since=0.0))
        await asyncio.sleep(1.0)
        for number in range(60, 120):
            poller.watch(answers.watch(f"t{number}", since=0.0))
        await asyncio.sleep(1.0)
    assert [len(ids) for _, ids in vcda.calls[:2]] == [60, 60]


@virtual
async def test_a_slow_site_is_asked_by_no_more_than_four_calls_at_once() -> None:
    vcda, answers = FakeVcda(takes=10.0), Answers()
    async with polling(vcda) as (poller, _):
        for number in range(2000):
            poller.watch(answers.watch(f"t{number}"))
        await asyncio.sleep(60)
    assert vcda.most_at_once == CALLS_AT_ONCE


@virtual
async def test_one_dead_site_delays_nobody_else() -> None:
    vcda, answers = FakeVcda(trouble={"dead": BAD}), Answers()
    async with polling(vcda) as (poller, _):
        poller.watch(answers.watch("x", site="dead"))
        poller.watch(answers.watch("a", site="alive"))
        await asyncio.sleep(4.5)
    assert answers.told == [(float(at), "a", "RUNNING") for at in range(1, 5)]


@virtual
async def test_a_failed_poll_teaches_nothing_and_those_due_stay_due() -> None:
    vcda, answers = FakeVcda(trouble={None: BAD}), Answers()
    async with polling(vcda) as (poller, _):
        poller.watch(answers.watch("a"))
        await asyncio.sleep(9.5)
        assert answers.told == []
        assert vcda.moments == [1.0, 2.0, 4.0, 8.0]
        assert poller.overdue() == {None: 8.5}
        vcda.trouble.clear()
        await asyncio.sleep(7)
    assert answers.told == [(16.0, "a", "RUNNING")]


@virtual
async def test_a_site_without_credentials_is_looked_at_every_ten_seconds_and_holds_no_turn_back() -> None:
    missing = Trouble(label=NO_CREDENTIALS, detail="No credentials are configured for site x.", own=True)
    vcda, answers = FakeVcda(trouble={"x": missing}), Answers()
    async with polling(vcda) as (poller, lanes):
        poller.watch(answers.watch("a", site="x"))
        await asyncio.sleep(25)
        assert vcda.moments == [1.0, 11.0, 21.0]
        assert (lanes.lane("x").paused, lanes.lane("x").without_credentials) == (False, True)
        vcda.trouble.clear()
        await asyncio.sleep(7)
        assert not lanes.lane("x").without_credentials
    assert answers.told == [(31.0, "a", "RUNNING")]


@virtual
async def test_retry_after_is_obeyed_to_the_moment() -> None:
    vcda, answers = FakeVcda(), Answers()
    async with polling(vcda) as (poller, lanes):
        lanes.lane(None).record_result(Trouble(label="429", detail="Slower.", retry_after=timedelta(seconds=33.25)))
        poller.watch(answers.watch("a"))
        await asyncio.sleep(34)
    assert vcda.moments == [33.25]


@virtual
async def test_a_full_lane_does_not_hold_polls_back() -> None:
    vcda, answers = FakeVcda(), Answers()
    async with polling(vcda) as (poller, lanes):
        for _ in range(100):
            lanes.lane(None).queue(lambda: True)
        poller.watch(answers.watch("a"))
        await asyncio.sleep(1.5)
    assert vcda.moments == [1.0]


@virtual
async def test_a_task_left_out_of_a_good_answer_is_reported_absent() -> None:
    vcda, answers = FakeVcda(unknown={"a"}), Answers()
    async with polling(vcda) as (poller, _):
        poller.watch(answers.watch("a"))
        poller.watch(answers.watch("b"))
        await asyncio.sleep(1.5)
    assert answers.told == [(1.0, "a", "Absent"), (1.0, "b", "RUNNING")]


@virtual
async def test_a_task_of_another_replication_under_the_same_id_counts_as_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def suspicious(seen: PollAnswer) -> Verdict:
        return Verdict.ASK_ALONE if len(answers.seen) == 1 else Verdict.DONE

    def others(id_: str) -> Task:
        return Task(id=id_, state="SUCCEEDED", replication_id="C4-other")

    vcda, answers = FakeVcda(), Answers(verdict=suspicious)
    monkeypatch.setattr(vcda, "task", others)
    async with polling(vcda) as (poller, _):
        poller.watch(answers.watch("a"))
        await asyncio.sleep(100)
    assert answers.seen == 2 * [Absent(1.0, another="C4-other")]
    assert vcda.asked_alone == [(1.0, "a")]


@virtual
async def test_tasks_that_vanish_together_are_reported_as_such(caplog: pytest.LogCaptureFixture) -> None:
    vcda, answers = FakeVcda(unknown={f"t{number}" for number in range(5)}), Answers()
    async with polling(vcda) as (poller, _):
        for number in range(9):
            poller.watch(answers.watch(f"t{number}"))
        with caplog.at_level(logging.WARNING):
            await asyncio.sleep(500)
            assert caplog.text.count("5 of 9 polled tasks are missing from one response") == 1
            await asyncio.sleep(500)
            assert caplog.text.count("tasks are missing from one response") == 2, (
                "it is repeated, but not for each call"
            )
    absent = [seen for seen in answers.seen if isinstance(seen, Absent)]
    assert absent
    assert all(seen.together for seen in absent)


@virtual
async def test_a_few_absent_among_many_are_reported() -> None:
    vcda, answers = FakeVcda(unknown={f"t{number}" for number in range(5)}), Answers()
    async with polling(vcda) as (poller, _):
        for number in range(10):
            poller.watch(answers.watch(f"t{number}"))
        await asyncio.sleep(1.5)
    assert [seen.together for seen in answers.seen if isinstance(seen, Absent)] == 5 * [False]


@virtual
async def test_one_suspected_lost_is_asked_for_alone_at_once() -> None:
    def suspicious(seen: PollAnswer) -> Verdict:
        return Verdict.ASK_ALONE if isinstance(seen, Absent) else Verdict.DONE

    vcda, answers = FakeVcda(unknown={"a"}), Answers(verdict=suspicious)
    async with polling(vcda) as (poller, _):
        poller.watch(answers.watch("a"))
        await asyncio.sleep(100)
    assert answers.told == [(1.0, "a", "Absent"), (1.0, "a", "Gone")]
    assert vcda.asked_alone == [(1.0, "a")]


@virtual
async def test_one_asked_for_alone_and_still_suspected_takes_its_ordinary_turns() -> None:
    vcda, answers = FakeVcda(unknown={"a"}), Answers(verdict=lambda _: Verdict.ASK_ALONE)
    async with polling(vcda) as (poller, _):
        poller.watch(answers.watch("a"))
        await asyncio.sleep(3.5)
    assert vcda.asked_alone == [(1.0, "a"), (2.0, "a"), (3.0, "a")]


# ---------------------------------------------------------------- one task that breaks its calls


@virtual
async def test_a_task_that_breaks_its_calls_is_found_by_halves_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    vcda, answers = FakeVcda(poison={"t66"}), Answers()
    async with polling(vcda) as (poller, lanes):
        for number in range(100):
            poller.watch(answers.watch(f"t{number}"))
        with caplog.at_level(logging.WARNING):
            await asyncio.sleep(10.0)
        assert {id_ for _, id_, _ in answers.told} == {f"t{number}" for number in range(100) if number != 66}
        assert (
            caplog.text.count("Polling task t66 of replication C4-t66 failed, other calls to site local succeed") == 1
        )
        vcda.calls.clear()
        pauses = lanes.lane(None).pauses
        await asyncio.sleep(3600.0)
        broken = [at for at, ids in vcda.calls if "t66" in ids]
        gaps = [later - earlier for earlier, later in pairwise(broken)]
        assert all(ids == ("t66",) for _, ids in vcda.calls if "t66" in ids), "it is asked for alone"
        assert gaps == [20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0, 600.0, 600.0][: len(gaps)]
        assert len(gaps) > 6
        assert lanes.lane(None).pauses == pauses, "it says nothing about the site"
        assert poller.overdue()[None] > 3600.0, "and yet it can be seen that it has no answer"
        vcda.poison.clear()
        await asyncio.sleep(1300.0)
        assert answers.told[-1][2] == "RUNNING"
        assert len([at for at, id_, _ in answers.told if id_ == "t66"]) > 10, "it is asked after like the others again"
        assert poller.overdue()[None] == 0.0


@virtual
async def test_a_task_whose_broken_calls_ask_for_a_pause_is_found_by_halves_too() -> None:
    asked = Trouble(label="5xx", detail="It said 503.", retry_after=timedelta(seconds=30))
    vcda, answers, posts = FakeVcda(poison={"t66"}, bad=asked), Answers(), []

    def post() -> bool:
        posts.append(now())
        return False

    async with polling(vcda) as (poller, lanes):
        for number in range(100):
            poller.watch(answers.watch(f"t{number}"))
        await asyncio.sleep(600.0)
        assert {id_ for _, id_, _ in answers.told} == {f"t{number}" for number in range(100) if number != 66}
        lanes.lane(None).queue(post)
        await asyncio.sleep(3600.0)
        assert posts
        broken = [at for at, ids in vcda.calls if "t66" in ids]
        assert all(later - earlier >= 30.0 for earlier, later in pairwise(broken)), "and the pause is kept"
        assert len([at for at in broken if at > 600.0]) < 10


@virtual
async def test_the_probe_of_an_open_breaker_is_not_always_the_poll_of_the_only_task() -> None:
    vcda, answers, posts = FakeVcda(poison={"a"}), Answers(), []

    def post() -> bool:
        posts.append(now())
        lanes.lane(None).record_result(None)
        return False

    async with polling(vcda) as (poller, lanes):
        poller.watch(answers.watch("a"))
        await asyncio.sleep(10.0)
        assert vcda.moments == [1.0, 2.0, 4.0, 8.0]
        lanes.lane(None).queue(post)
        await asyncio.sleep(1000.0)
        assert posts == [32.0], "the poll of 16.0 was the last to take the probe"
        assert vcda.moments[4:7] == [16.0, 33.0, 43.0]
        assert lanes.lane(None).pauses == 5, "once another call went well, the trouble is the task's own"


@virtual
async def test_a_poll_that_is_the_probe_and_fails_for_a_reason_of_its_own_leaves_the_probe_to_the_next_call() -> None:
    vcda, answers = FakeVcda(poison={"a"}), Answers()
    async with polling(vcda) as (poller, lanes):
        lane, sound = lanes.lane(None), answers.watch("sound")
        poller.watch(answers.watch("a"))
        poller.watch(sound)
        await asyncio.sleep(300.0)
        assert not lane.paused
        poller.unwatch(sound)
        for _ in range(BREAKER_AFTER):
            await asyncio.sleep(lane.held_for())
            lane.record_result(BAD)
        await asyncio.sleep(lane.held_for())
        before = len(vcda.asked_alone) + len(vcda.calls)
        while len(vcda.asked_alone) + len(vcda.calls) == before:
            await asyncio.sleep(1.0)
        assert (lane.open_breaker() is not None, lane.held_for()) == (True, 0.0)


@virtual
async def test_a_poll_that_leaves_the_probe_to_others_does_so_from_the_end_of_a_pause_that_ends_early() -> None:
    no_session = Trouble(label="401", detail="The login answered with 401.", no_session=True)
    vcda, answers = FakeVcda(poison={"a"}, bad=no_session), Answers()
    async with polling(vcda) as (poller, lanes):
        poller.watch(answers.watch("a"))
        await asyncio.sleep(20.0)
        assert vcda.moments == [1.0, 2.0, 4.0, 8.0, 16.0]
        vcda.poison.clear()
        lanes.retry(None)
        await asyncio.sleep(2.0)
        assert vcda.moments[5:] == [21.0]


@virtual
async def test_the_probe_of_an_open_breaker_is_not_always_a_poll_where_several_tasks_break_theirs() -> None:
    """Seen before: each left a turn to the others, and those took it; in hours nothing was POSTed."""
    names = {"a", "b", "c"}
    vcda, answers, posts = FakeVcda(poison=names), Answers(), []

    def post() -> bool:
        posts.append(now())
        lanes.lane(None).record_result(None)
        return False

    async with polling(vcda) as (poller, lanes):
        for name in sorted(names):
            poller.watch(answers.watch(name))
        await asyncio.sleep(10.0)
        for _ in range(10):
            lanes.lane(None).queue(post)
        await asyncio.sleep(600.0)
        assert len(posts) == 10
        assert posts[0] < 300.0
        pauses = lanes.lane(None).pauses
        await asyncio.sleep(3600.0)
        assert lanes.lane(None).pauses == pauses, "their trouble is known for their own"


@virtual
async def test_what_fails_and_what_is_due_take_turns_while_only_one_call_may_go() -> None:
    vcda, answers = FakeVcda(poison={"bad"}), Answers()
    async with polling(vcda) as (poller, lanes):
        poller.watch(answers.watch("bad"))
        await asyncio.sleep(7.5)  # the breaker is open, the next probe at 8.0
        poller.watch(answers.watch("good", since=now() - 0.9))
        await asyncio.sleep(100.0)
        assert answers.told[0] == (8.0, "good", "RUNNING")
        assert not lanes.lane(None).paused


@virtual
async def test_answers_that_are_too_long_are_asked_for_in_smaller_parts_from_then_on() -> None:
    vcda, answers = FakeVcda(longest=60), Answers()
    async with polling(vcda) as (poller, _):
        for number in range(100):
            poller.watch(answers.watch(f"t{number}"))
        await asyncio.sleep(600.0)
        assert [len(ids) for _, ids in vcda.calls[:6]] == [100, 100, 50, 50, 50, 50]
        failed = sum(len(ids) > 60 for _, ids in vcda.calls)
        assert failed / len(vcda.calls) < 0.2
        vcda.longest = 100
        await asyncio.sleep(6000.0)
        assert max(len(ids) for _, ids in vcda.calls[-50:]) > 60, "in larger ones again once longer answers come"


@virtual
async def test_a_site_that_asks_to_be_left_alone_is_not_asked_in_smaller_parts_and_its_tasks_stay_due() -> None:
    vcda, answers = FakeVcda(trouble={None: Trouble(label="429", detail="Slower.")}), Answers()
    async with polling(vcda) as (poller, _):
        for number in range(100):
            poller.watch(answers.watch(f"t{number}"))
        await asyncio.sleep(600.0)
        assert {len(ids) for _, ids in vcda.calls} == {100}
        assert len(vcda.calls) > 10
        vcda.trouble.clear()
        await asyncio.sleep(62.0)
        assert {id_ for _, id_, _ in answers.told} == {f"t{number}" for number in range(100)}


@virtual
async def test_a_site_that_fails_after_good_answers_is_not_taken_for_a_task_that_breaks_its_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    vcda, answers = FakeVcda(), Answers()
    async with polling(vcda) as (poller, lanes):
        poller.watch(answers.watch("a"))
        await asyncio.sleep(10.0)
        assert answers.told
        vcda.trouble[None] = BAD
        await asyncio.sleep(100.0)
        assert lanes.lane(None).open_breaker() is not None
        assert "Polling task a" not in caplog.text


@virtual
async def test_after_an_hour_without_any_answer_all_are_asked_within_seconds() -> None:
    vcda, answers = FakeVcda(trouble={None: BAD}), Answers()
    async with polling(vcda) as (poller, _):
        for number in range(1000):
            poller.watch(answers.watch(f"t{number}"))
        await asyncio.sleep(3600.0)
        assert len(vcda.calls) < 80, "one probe a minute"
        vcda.trouble.clear()
        await asyncio.sleep(62.0)
        assert {id_ for _, id_, _ in answers.told} == {f"t{number}" for number in range(1000)}
        vcda.calls.clear()
        await asyncio.sleep(600.0)
        assert sum(len(ids) for _, ids in vcda.calls) / len(vcda.calls) > 50, "and soon together again"


@virtual
async def test_a_task_that_may_be_lost_and_breaks_the_call_for_it_alone_holds_nobody_up() -> None:
    def suspicious(seen: PollAnswer) -> Verdict:
        return Verdict.ASK_ALONE if isinstance(seen, Absent) else Verdict.GO_ON

    vcda, answers = FakeVcda(unknown={"a"}), Answers(verdict=suspicious)
    ask = vcda.ask

    async def broken(*, site: str | None, task_id: str) -> Task | Gone | Trouble:
        await ask(site=site, task_id=task_id)
        return BAD

    vcda.ask = broken  # type: ignore[method-assign]
    async with polling(vcda) as (poller, lanes):
        poller.watch(answers.watch("a"))
        poller.watch(answers.watch("b"))
        await asyncio.sleep(600.0)
        assert lanes.lane(None).pauses < 5
    assert 5 < len(vcda.asked_alone) < 100
    assert sum(id_ == "b" for _, id_, _ in answers.told) > 20


@virtual
async def test_tasks_that_are_not_watched_any_more_are_not_asked_for_again_after_a_failure() -> None:
    vcda, answers = FakeVcda(trouble={None: BAD}), Answers()
    async with polling(vcda) as (poller, _):
        watches = [answers.watch(f"t{number}") for number in range(4)]
        for watch in watches:
            poller.watch(watch)
        await asyncio.sleep(3.0)
        for watch in watches:
            poller.unwatch(watch)
        vcda.calls.clear()
        await asyncio.sleep(1000.0)
        assert (vcda.calls, poller.overdue()) == ([], {None: 0.0})


@virtual
async def test_an_answer_that_comes_after_unwatching_is_dropped() -> None:
    vcda, answers = FakeVcda(takes=2.0), Answers()
    async with polling(vcda) as (poller, _):
        watch = answers.watch("a")
        poller.watch(watch)
        await asyncio.sleep(1.5)
        poller.unwatch(watch)
        await asyncio.sleep(100)
    assert (answers.told, vcda.moments) == ([], [1.0])


@virtual
async def test_a_task_unwatched_before_its_turn_is_not_asked_after() -> None:
    vcda, answers = FakeVcda(), Answers()
    async with polling(vcda) as (poller, _):
        watch = answers.watch("a")
        poller.watch(watch)
        poller.unwatch(watch)
        await asyncio.sleep(100)
        assert poller.overdue() == {None: 0.0}
    assert vcda.calls == []


@virtual
async def test_watching_begins_before_run_does() -> None:
    vcda, answers = FakeVcda(), Answers()
    async with polling(vcda) as (poller, _):
        poller.watch(answers.watch("a"))
        assert poller.overdue() == {None: 0.0}
        await asyncio.sleep(1.5)
    assert vcda.moments == [1.0]


@virtual
async def test_a_turn_that_a_pause_of_the_site_holds_back_counts_as_overdue() -> None:
    vcda, answers = FakeVcda(), Answers()
    async with polling(vcda) as (poller, lanes):
        lanes.lane(None).hold(100.0)
        poller.watch(answers.watch("a"))
        await asyncio.sleep(51.0)
        assert poller.overdue() == {None: 50.0}


@virtual
async def test_an_answer_on_its_way_counts_as_overdue() -> None:
    vcda, answers = FakeVcda(takes=30.0), Answers()
    async with polling(vcda) as (poller, _):
        poller.watch(answers.watch("a", site="far"))
        await asyncio.sleep(21)
        assert poller.overdue() == {"far": 20.0}


@virtual
async def test_what_a_replications_syncs_took_tells_when_to_ask_after_the_next() -> None:
    vcda, answers = FakeVcda(), Answers()
    async with polling(vcda) as (poller, _):
        for _ in range(30):
            vcda.ends["a"] = now() + 40.0
            poller.watch(answers.watch("a"))
            await asyncio.sleep(60)
        vcda.calls.clear()
        poller.watch(answers.watch("a"))
        await asyncio.sleep(39)
    assert vcda.moments[0] >= 1808.0


@virtual
async def test_a_bug_in_whoever_watches_ends_the_run_instead_of_being_swallowed() -> None:
    vcda = FakeVcda()

    def broken(_: PollAnswer) -> Verdict:
        raise ZeroDivisionError

    clock = VirtualClock(asyncio.get_running_loop())
    lanes = Lanes(
        limits=LaneLimits(max_concurrent_submits=1, max_running=1), clock=clock, metrics=vcda, random=Longest()
    )
    poller = Poller(
        api=vcda,
        lane=lanes.lane,
        clock=clock,
        metrics=vcda,
        random=Random(5),
        shortest=timedelta(seconds=1),
        longest=timedelta(seconds=60),
    )
    poller.watch(Watch(task_id="a", site=None, replication_id="C4-a", since=now(), answered=broken))
    with pytest.raises(ExceptionGroup) as raised:
        await poller.run()
    assert raised.group_contains(ZeroDivisionError)


@pytest.mark.parametrize(("ran", "learnt"), [(-1, 300), (0, 0), (604_800, 604_800), (604_801, 300)])
def test_what_a_task_says_of_its_duration_is_believed_where_it_can_be(ran: float, learnt: float) -> None:
    began = datetime(2030, 1, 1, tzinfo=UTC)
    task = Task(id="task-1", state="SUCCEEDED", started_at=began, ended_at=began + timedelta(seconds=ran))

    assert _duration(task, elapsed=300) == learnt
