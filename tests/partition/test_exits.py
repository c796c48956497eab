"""No state without an exit: whatever VCDA says for ever, or doesn't say, a partition lets go of everything in time.

The sync core has a property test of its own (`test_sync.py`); here the partition, its lane, its poller and its look-ups
have to bring it about, through restarts, in virtual time.
"""

import math
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.partition import driver
from service.sync import LINGER_LIMIT, Lingering, Running
from service.vcda.lanes import LaneLimits
from tests.support.simulated_deployment import Deployment, Process, run

HOUR = 3600.0
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
            new = d.owner(name, limits=limits, meets=meets.__getitem__)
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
    with patch.object(driver, "TICK", timedelta(minutes=1)):  # a day has fewer ticks then
        run(play(habits))
