"""No state without an exit: whatever VCDA says for ever, or doesn't say, a partition lets go of everything in time.

The sync core has a property test of its own (`test_sync.py`); here the partition, its lane, its poller and its look-ups
have to bring it about, through restarts, in virtual time.
"""

import asyncio
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service import sync
from service.partition.expiry import EXPIRED_AT_ONCE, EXPIRED_BEHIND
from service.sync import LINGER_LIMIT, MISSING_TOGETHER_FACTOR, UNSEEN_LIMIT, Lingering, Running
from service.vcda.lanes import LaneLimits
from tests.support.simulated_deployment import POLICY, Deployment, Process, deployed, run, sent, tracked_syncs

HOUR = 3600.0
DAY = 24 * HOUR
LATEST = 2 * HOUR
"""The latest deadline, counted from the start."""

REPLICATIONS = 6


@dataclass(frozen=True)
class Habits:
    """What VCDA does, again and again. Times are seconds from the start."""

    posts: str = "well"
    """What each POST meets."""
    finds: str = "well"
    polls: str = "well"
    ends: float = math.inf
    """How long tasks take."""
    forgets_at: float = math.inf
    """When VCDA forgets all tasks."""
    poisons_at: float = math.inf
    """When one task begins to break each call that asks for it."""
    replaced_at: float = math.inf
    """When the account becomes another, which sees none of the tasks."""
    restarts: tuple[float, ...] = ()
    max_running: int = 2


moments = st.one_of(st.just(math.inf), st.floats(10.0, 2 * LATEST))
habits = st.builds(
    Habits,
    posts=st.sampled_from(
        ["well", "well", "lost-answer", "lost-post", "late", "409", "429", "5xx", "rejected", "hang"]
    ),
    finds=st.sampled_from(["well", "well", "down"]),
    polls=st.sampled_from(["well", "well", "down"]),
    ends=st.sampled_from([5.0, HOUR, math.inf, math.inf]),
    forgets_at=moments,
    poisons_at=moments,
    replaced_at=moments,
    restarts=st.lists(st.floats(10.0, 2 * LATEST), max_size=2).map(lambda some: tuple(sorted(some))),
    max_running=st.sampled_from([1, 2, 0]),
)


async def play(given_habits: Habits) -> None:
    """Play until everything must be free, and look."""
    async with Deployment() as d:
        habits = given_habits
        d.world.lasts = lambda _: habits.ends

        def process(name: str) -> Process:
            meets = {"submit": habits.posts, "find": habits.finds, "poll": habits.polls}
            limits = LaneLimits(max_concurrent_submits=1, max_running=habits.max_running)
            new = d.owner(
                name, limits=limits, meets=meets.__getitem__, tick=timedelta(minutes=1)
            )  # a day has fewer ticks then
            new.vcda.user = "another" if d.loop.time() >= habits.replaced_at else d.world.user
            return new

        owner = process("P0")
        for n in range(REPLICATIONS):
            for kind in ("elder", "younger"):
                d.broker.ask(f"C4-{n}", f"{kind}-{n}", deadline=int(LATEST / (n + 1)))
        happenings = [(habits.forgets_at, "forget"), (habits.poisons_at, "poison"), (habits.replaced_at, "replace")]
        for at, what in sorted([*happenings, *((at, "restart") for at in habits.restarts)]):
            if at == math.inf:
                continue
            await d.until(max(at, d.loop.time()))
            if what == "forget":
                d.world.forgotten |= set(d.world.made)
            elif what == "poison":
                d.world.poison |= set(sorted(d.world.made)[:1])
            elif what == "replace":
                owner.vcda.user = "another"
            else:
                await owner.crash()
                owner = process(f"P{len(d.processes)}")
        await d.until(max(LATEST + HOUR, d.loop.time() + HOUR))
        told = Counter(operation for operation, _ in d.verdicts())
        assert told == Counter(f"{kind}-{n}" for n in range(REPLICATIONS) for kind in ("elder", "younger"))
        await d.until(LATEST + LINGER_LIMIT.total_seconds() + HOUR)
        lane = owner.lanes.lane(None)
        assert (lane.submitting, lane.occupied) == (0, 0), "no place at the site is taken"
        work_left = owner.partition()
        assert work_left is not None
        for work in work_left.tracked_syncs():
            assert isinstance(work.state, Lingering)
            assert isinstance(work.state.of, Running)
            made = d.world.made[work.state.of.task_id]
            shown = made.task.id not in d.world.forgotten | d.world.poison and made.owner == owner.vcda.user
            assert habits.polls == "well", "nothing is heard of any task"
            assert made.ends == math.inf, "its task has ended"
            assert shown, "its replication is held without a proof"
        assert owner.meter.counts["held"] == len(work_left)


@settings(max_examples=6, deadline=None)
@example(Habits())
@example(Habits(forgets_at=60.0, max_running=0))
@example(Habits(poisons_at=60.0))
@example(Habits(posts="lost-answer", finds="down"))
@example(Habits(replaced_at=60.0, restarts=(120.0,)))
@example(Habits(polls="down"))
@example(Habits(replaced_at=LATEST + LINGER_LIMIT.total_seconds() - 600.0))
@given(habits)
def test_everything_is_told_and_let_go_of_in_time(habits: Habits) -> None:
    run(play(habits))


@deployed
async def test_tasks_that_vcda_forgets_together_are_lost_after_a_multiple_of_the_usual_time(d: Deployment) -> None:
    d.world.lasts = lambda _: 3600.0
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=8, max_running=8))
    for n in range(8):
        d.broker.ask(f"C4-{n}", f"a{n}")
    await d.until(30.0)
    d.world.forgotten |= set(d.world.made)
    usual = POLICY.lost_after.total_seconds()
    await d.until(30.0 + MISSING_TOGETHER_FACTOR * usual - 1.0)
    assert d.verdicts() == [], "it may be trouble that passes"
    await d.until(30.0 + MISSING_TOGETHER_FACTOR * usual + 120.0)
    assert sorted(d.verdicts()) == [(f"a{n}", "task-lost") for n in range(8)]
    assert p0.lanes.lane(None).occupied == 0


@deployed
async def test_tasks_that_are_missing_together_for_a_while_are_not_lost(d: Deployment) -> None:
    d.world.lasts = lambda _: 600.0
    d.owner(limits=LaneLimits(max_concurrent_submits=8, max_running=8))
    for n in range(8):
        d.broker.ask(f"C4-{n}", f"a{n}")
    await d.until(30.0)
    d.world.forgotten |= set(d.world.made)
    await d.until(30.0 + MISSING_TOGETHER_FACTOR * POLICY.lost_after.total_seconds() - 1.0)
    d.world.forgotten.clear()
    await d.settled()
    assert sorted(d.verdicts()) == [(f"a{n}", "completed") for n in range(8)]


@deployed
async def test_a_task_that_never_ends_gives_its_place_back_a_day_after_its_deadline_and_keeps_its_replication(
    d: Deployment,
) -> None:
    d.world.lasts = lambda operation: math.inf if operation == "stuck" else 1.0
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=1))
    lane, limit = p0.lanes.lane(None), 60.0 + DAY
    d.broker.ask("C4-1", "stuck", deadline=60)
    d.broker.ask("C4-1", "behind", deadline=120)
    d.broker.ask("C4-2", "other", deadline=7 * 24 * 3600)
    await d.until(limit - 1.0)
    assert d.verdicts() == [("stuck", "timed-out"), ("behind", "not-started")]
    assert (lane.occupied, p0.meter.counts["held"], sent(p0, "other")) == (1, 0, [])
    await d.until(limit + 3.0)
    assert d.verdicts()[2:] == [("other", "completed")], "its place at the site is free"
    assert (lane.occupied, p0.meter.counts["held"]) == (0, 1)
    d.broker.ask("C4-1", "next")
    await d.until(limit + DAY)
    assert d.verdicts()[3:] == [("next", "not-started")], "two syncs of one replication never overlap"
    assert [work.held for work in tracked_syncs(p0)] == [True]
    d.world.task_of("stuck").lasts = 0.0
    await d.settled(300.0)
    assert (lane.occupied, p0.meter.counts["held"]) == (0, 0)


@deployed
async def test_a_task_that_nobody_sees_frees_its_replication_a_day_after_its_deadline(d: Deployment) -> None:
    d.world.lasts = lambda operation: math.inf if operation == "unseen" else 1.0
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=1))
    d.broker.ask("C4-1", "unseen", deadline=60)
    d.broker.ask("C4-1", "next", deadline=7 * 24 * 3600)
    await d.until(30.0)
    d.world.forgotten.add(d.world.task_of("unseen").task.id)
    p0.vcda.user = "somebody else"  # whose 404 proves nothing
    await d.until(60.0 + DAY - 1.0)
    assert sent(p0, "next") == []
    await d.until(60.0 + DAY + 1.5)
    assert len(sent(p0, "next")) == 1
    await d.settled()
    assert d.verdicts() == [("unseen", "timed-out"), ("next", "completed")]
    assert p0.meter.counts["held"] == 0


@deployed
async def test_a_restart_a_day_after_the_deadline_gives_vcda_time_to_show_the_task_before_its_replication_is_free(
    d: Deployment,
) -> None:
    d.world.lasts = lambda _: math.inf
    p0 = d.owner()
    d.broker.ask("C4-1", "stuck", deadline=60)
    d.broker.ask("C4-1", "next", deadline=7 * 24 * 3600)
    await d.until(70.0)
    await p0.crash()
    restart = 60.0 + 2 * DAY
    await d.until(restart)
    p1 = d.owner("P1", limits=LaneLimits(max_concurrent_submits=1, max_running=1))
    await d.until(restart + 120.0)
    assert (sent(p1, "next"), p1.lanes.lane(None).occupied, p1.meter.counts["held"]) == ([], 0, 1)
    d.world.forgotten.add(d.world.task_of("stuck").task.id)
    p1.vcda.user = "somebody else"
    await d.until(restart + UNSEEN_LIMIT.total_seconds() - 60.0)
    assert sent(p1, "next") == []
    await d.until(restart + UNSEEN_LIMIT.total_seconds() + 180.0)
    assert len(sent(p1, "next")) == 1
    assert p1.meter.counts["held"] == 0


@deployed
async def test_tens_of_thousands_that_expire_at_once_hold_the_event_loop_for_moments_only(d: Deployment) -> None:
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=1))
    p0.lanes.lane(None).hold(1e6)  # nothing is begun
    many = 4 * EXPIRED_AT_ONCE
    for n in range(many):
        d.broker.ask("C4-one", f"one{n}", deadline=60)
    for n in range(many):
        d.broker.ask(f"C4-{n // 10}", f"each{n}", deadline=60)
    await d.until(59.0)
    partition = p0.partition()
    assert partition is not None
    left = [len(partition)]
    while len(partition):
        for _ in range(4 * many // EXPIRED_AT_ONCE):  # turns of the event loop, at one moment
            left.append(len(partition))
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
    assert max(before - after for before, after in pairwise(left)) < 2 * EXPIRED_AT_ONCE
    assert d.loop.time() < 63.0
    await d.settled()
    one = [operation for operation, _ in d.verdicts() if operation.startswith("one")]
    assert one == [f"one{n}" for n in range(many)], "one replication's in order"
    assert Counter(verdict for _, verdict in d.verdicts()) == {"not-started": 2 * many}


def test_an_end_of_a_task_that_can_not_be_is_not_told_and_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        d.owner()
        d.world.ends_off = timedelta(days=-3_650)
        d.broker.ask("C4-1", "sync-1")
        await d.settled()

        (told,) = (told.data for told in d.log.told)
        assert told["submittedAt"] < told["endedAt"]

    play()
    (said,) = (record.getMessage() for record in caplog.records if "impossible end" in record.getMessage())
    assert re.fullmatch(
        r"VCDA reported an impossible end of task task-1: [\dT:.-]+Z, although it began at [\dT:.-]+Z; the outcome "
        r"contains the time at which vm-sync saw the end",
        said,
    )


def test_a_beginning_of_a_task_that_can_not_be_is_not_told_and_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        d.owner()
        d.world.shows = lambda task: replace(task, started_at=datetime(1970, 1, 1, 1, tzinfo=UTC))
        d.broker.ask("C4-1", "sync-1")
        await d.settled()

        (told,) = (told.data for told in d.log.told)
        assert told["submittedAt"] is None

    play()
    (said,) = (record.getMessage() for record in caplog.records if "impossible beginning" in record.getMessage())
    assert re.fullmatch(
        r"VCDA reported an impossible beginning of task task-1: [\dT:.-]+Z; the outcome contains none", said
    )


def test_a_task_that_has_ended_in_an_unknown_state_frees_its_replication(caplog: pytest.LogCaptureFixture) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner()
        d.world.fate = lambda operation: "CANCELLED" if operation == "ended-by-hand" else "SUCCEEDED"
        d.broker.ask("C4-1", "ended-by-hand")
        d.broker.ask("C4-1", "next")
        await d.settled()

        assert d.verdicts() == [("ended-by-hand", "task-failed"), ("next", "completed")]
        (told,) = (told.data for told in d.log.told if told.operation_id == "ended-by-hand")
        assert told["error"]["code"] == "UnknownTaskState"
        assert p0.meter.counts["unknown state"] > 1

    play()
    (said,) = (record.getMessage() for record in caplog.records if "in the unknown state" in record.getMessage())
    assert said == (
        "VCDA reported task task-1 in the unknown state 'CANCELLED'; since it has an end, its request fails if the "
        "state is still unknown after 30 s"
    )


@deployed
async def test_a_request_whose_post_a_library_cancels_by_itself_gets_its_outcome(d: Deployment) -> None:
    p0 = d.owner()
    submit, left = p0.vcda.submit, [True]

    async def cancelled_once(**asked: Any) -> sync.SubmitAnswer:
        if left:
            left.pop()
            raise asyncio.CancelledError
        return await submit(**asked)

    p0.vcda.submit = cancelled_once  # type: ignore[method-assign]
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-1", "a2")
    await d.settled()

    assert d.verdicts() == [("a1", "completed"), ("a2", "completed")]
    assert p0.closings == ["internal error: CancelledFromWithin"]


@deployed
async def test_requests_that_expired_behind_one_with_a_later_deadline_all_end_as_soon_as_it_does(d: Deployment) -> None:
    d.world.lasts = lambda _: 100.0
    d.owner()
    d.broker.ask("C4-1", "elder", deadline=3600)
    names = [f"a{n}" for n in range(EXPIRED_BEHIND + 3)]
    for name in names:
        d.broker.ask("C4-1", name, deadline=10)
    await d.until(90.0)
    assert d.verdicts() == []
    await d.until(120.0)
    assert d.verdicts() == [("elder", "completed"), *((name, "not-started") for name in names)]
