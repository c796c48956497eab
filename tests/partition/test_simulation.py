"""Thousands of random schedules against the promises, each played in milliseconds of virtual time.

A schedule is all dice of one seed: requests, what POSTs, look-ups and commits meet, who crashes, freezes or is given
the partition when. A failure names its seed; `SEED=123 pytest tests/partition/test_simulation.py` plays it again, the
same to the last event, and shows what the journal said. `SCHEDULES=100000` plays more of them.

Not generated is what is not promised: POSTs that VCDA takes later than D, tasks it forgets before they are known here,
other people's syncs. A release gives promises up, for its own replication alone: VCDA may still work on what was
released.
"""

import asyncio
import gc
import math
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from random import Random

from service.messages.site_pause import LOCAL
from service.sync import Ended, Lingering, Running, Submitting
from service.vcda.lanes import LaneLimits
from service.vcda.poller import VANISHED_TOGETHER
from tests.support.fake_vcda import ELSEWHERE, Made
from tests.support.simulated_deployment import (
    DEAD,
    POLICY,
    SESSION,
    UNHEARD,
    Deployment,
    Process,
    ScatteredSlices,
    Told,
    run,
)

SCHEDULES = int(os.environ.get("SCHEDULES", "600"))

ROUGH = 20.0
"""For so long things go wrong; then they go well, so that everything can end."""

CALM = 600.0
"""By then everything must have ended."""

CROWD = 8
"""Replications whose tasks are forgotten together in some schedules; in the others there are two."""

TEMPERS: tuple[dict[str, int], ...] = (
    {"lost-post": 4, "lost-answer": 4, "late": 4, "hang": 1},
    {"429": 5, "5xx": 2},
    {"409": 4},
    {"rejected": 4},
    {"lost-post": 1, "lost-answer": 1, "late": 1, "hang": 1, "429": 1, "5xx": 1, "409": 1, "rejected": 1},
    {},
)
"""What POSTs may meet in one schedule, with weights; going well weighs ten."""


@dataclass
class Asked:
    """A request as it was put on the topic."""

    replication_id: str
    operation_id: str
    order: int
    deadline: int | None


@dataclass
class Schedule:
    """One seed's dice, and what came of them."""

    seed: int
    asked: dict[str, Asked] = field(default_factory=dict)
    nonsense: int = 0
    cancelled: set[str] = field(default_factory=set)
    """Operations for which there was a cancel."""
    released: set[str] = field(default_factory=set)
    """Those of them that were to be released."""
    met: Counter[str] = field(default_factory=Counter)
    rough: bool = True
    forgotten: set[str] = field(default_factory=set)
    """Tasks that VCDA forgot."""

    def __post_init__(self) -> None:
        self.dice = Random(self.seed)
        dice = self.dice
        self.temper = dice.choice(TEMPERS)
        self.finding = dice.choice([0.0, 0.0, 0.3])
        self.polling = dice.choice([0.0, 0.0, 0.2])
        self.committing = dice.choice([0.0, 0.0, 0.02, 0.1])
        self.striking = dice.choice([0.0, 0.0, 0.05, 0.2])
        self.slow = dice.choice([0.01, 0.05, 0.5])
        self.spelling = dice.choice(["as in sessions", "as in sessions", "in its own way", "not at all"])
        self.naming = dice.choice(["as asked", "as asked", "in lower case"])
        self.limits = LaneLimits(
            max_concurrent_submits=dice.choice([1, 4]),
            max_running=dice.choice([0, 0, 2]),
            slots_ahead=dice.choice([0, 0, 3]),
        )
        self.replications = dice.choice([2, 2, 2, CROWD])
        self.cancelling = dice.choice([0.0, 0.0, 0.3, 0.6])
        self.releasing = dice.choice([0.0, 0.5])
        self.stuck = dice.choice([0.0, 0.0, 0.3])
        """How often a task never ends by itself."""
        self.policy = replace(POLICY, late=timedelta(seconds=dice.choice([3, 8])))
        self.rollout = Random(f"rollout {self.seed}")
        """Dice of their own, so that all else stays as it was."""
        self.changing = self.rollout.choice([False, True])
        """Whether processes have limits of their own, as while changed settings are rolled out."""
        self.scattered = dice.choice([None, None, 0.01, 0.1])
        """How far apart slices of one piece lie at most; None: slices are of the usual size, and nothing comes between
        them."""

    # ------------------------------------------------------------ dice

    def call(self, kind: str) -> str:
        """Say what a call to VCDA meets."""
        dice = self.dice
        if not self.rough:
            return "well"
        if kind == "submit":
            what = dice.choices(["well", *self.temper], [10, *self.temper.values()])[0]
        else:
            what = "down" if dice.random() < (self.finding if kind == "find" else self.polling) else "well"
        self.met[f"{kind} {what}"] += 1
        return what

    def commit(self, d: Deployment, process: Process) -> str:
        """Say what a commit meets, and perhaps strike while it is on its way: that is when it matters."""
        what = "stands"
        if self.rough and self.dice.random() < self.striking:
            d.loop.call_later(self.dice.uniform(0.0, 3 * self.slow), self._strike, d, process, context=ELSEWHERE)
        if self.rough and self.dice.random() < self.committing:
            what = self.dice.choice(["lost", "unanswered", "later"])
        self.met[f"commit {what}"] += 1
        return what

    def latency(self) -> float:
        """Say how long a way to Kafka takes; now and then longer than the submit window."""
        if self.rough and self.dice.random() < 0.02:
            return self.dice.uniform(0.0, 3.0)
        return self.dice.uniform(0.001, self.slow)

    def _apart(self) -> float:
        """Say how long it takes until the next slice."""
        return self.dice.uniform(0.0, self.scattered or 0.0) if self.rough else 0.0

    # ------------------------------------------------------------ what happens

    async def play(self) -> None:
        skew = timedelta(seconds=self.dice.uniform(-40.0, 40.0))
        async with Deployment(policy=self.policy, vcda_skew=skew) as d:
            self._deploy(d)
            if self.replications == CROWD:
                d.loop.call_later(self.dice.uniform(5.0, ROUGH), self._forget, d, context=ELSEWHERE)
                for n in range(CROWD):
                    self._put(d, Asked(f"C4-{n}", f"crowd-{n}", len(d.log.requests), None))
            for at, what in sorted((self.dice.uniform(0.0, ROUGH), n) for n in range(self.dice.randrange(3, 16))):
                await d.until(at)
                if what < 9:
                    self._ask(d, what)
                else:
                    await self._disturb(d)
            await d.until(max(d.loop.time(), ROUGH))
            self._calm_down(d)
            await d.settled(CALM)
            await d.until(d.loop.time() + 5.0)
            self.judge(d)
        for process in d.processes:
            assert not any(process.meter.in_flight.values()), "the gauge says that something is in flight"

    def _deploy(self, d: Deployment) -> None:
        dice = self.dice
        d.broker.latency = self.latency
        d.broker.meets = partial(self.commit, d)
        long = dice.choice([1.0, 4.0, 15.0])
        if self.replications == CROWD:
            long = 4 * ROUGH

        def lasts(_: str) -> float:
            return math.inf if self.rough and dice.random() < self.stuck else dice.uniform(0.05, long)

        d.world.lasts = lasts
        if self.spelling != "as in sessions":
            d.world.spelled = lambda _: "org2@site2" if self.spelling == "in its own way" else None
        if self.naming == "in lower case":
            d.world.shows = lambda task: replace(task, replication_id=str(task.replication_id).lower())
        self.met[f"users spelled {self.spelling}"] += 1
        self.met[f"replications named {self.naming}"] += 1
        self.met["limits of each process" if self.changing else "the same limits"] += 1
        self.met["slices scattered" if self.scattered else "slices as usual"] += 1
        d.world.fate = lambda _: dice.choice(["SUCCEEDED", "SUCCEEDED", "SUCCEEDED", "FAILED"])
        self._start(d, "P0")
        self._start(d, "P1")
        d.group.hand(0, d.processes[0])

    def _start(self, d: Deployment, name: str) -> Process:
        process = d.process(
            name,
            skew=timedelta(seconds=self.dice.uniform(-20.0, 20.0)),
            seed=self.dice.randrange(1_000_000),
            limits=self.limits,
            meets=self.call,
            policy=replace(self.policy, late=timedelta(seconds=self.dice.choice([3, 8])))
            if self.changing
            else self.policy,
            slices=None if self.scattered is None else ScatteredSlices(self._apart),
        )
        process.vcda.latency = self.dice.choice([0.005, 0.1, 1.0])
        process.vcda.login = self.dice.choice([0.0, 0.0, 0.1, 1.5])
        process.vcda.user = self.dice.choice([None, d.world.user])

        def leaves(operation_id: str) -> None:
            """Nothing leaves before its intent stands, nor to a site whose pause this process has read."""
            self._check_pauses(d, process)
            (state,) = (s for s in d.log.states().values() if s.request.operation_id == operation_id)
            if operation_id in self.released and isinstance(state, Ended):
                return  # the next owner has released it, and this process doesn't know
            assert isinstance(state.of if isinstance(state, Lingering) else state, Submitting)

        process.vcda.leaves = leaves
        return process

    def _check_pauses(self, d: Deployment, process: Process) -> None:
        pause = d.broker.pauses(process.control_read).by_site().get(LOCAL)
        assert pause is None or not pause.lasts(process.clock.now()), "a POST to a site that is paused"

    def _pause(self, d: Deployment) -> None:
        """Pause the site, or end its pause, whatever goes on; each process learns of it a little later."""
        learns_after = self.dice.choice([0.01, 0.5, 5.0])
        paused = d.broker.pauses(len(d.broker.control)).by_site()
        if paused and self.dice.random() < 0.4:
            self.met["resume"] += 1
            d.resume(None, learns_after=learns_after)
        else:
            self.met["pause again" if paused else "pause"] += 1
            d.pause(None, until=d.loop.time() + self.dice.choice([0.5, 5.0, 60.0]), learns_after=learns_after)

    def _ask(self, d: Deployment, n: int) -> None:
        dice = self.dice
        if dice.random() < 0.05:
            self.nonsense += 1
            d.broker.ask("C4-0", "nonsense", value=b"nonsense")
        elif self.asked and dice.random() < self.cancelling:
            self._cancel(d, dice.choice(list(self.asked.values())))
        elif self.asked and dice.random() < 0.15:
            again = dice.choice(list(self.asked.values()))
            d.broker.ask(again.replication_id, again.operation_id, deadline=again.deadline)
        else:
            asked = Asked(
                replication_id=f"C4-{dice.randrange(self.replications)}",
                operation_id=f"sync-{n}",
                order=len(d.log.requests),
                deadline=dice.choice([None, None, dice.randrange(1, 25)]),
            )
            self._put(d, asked)

    def _put(self, d: Deployment, asked: Asked) -> None:
        self.asked[asked.operation_id] = asked
        d.broker.ask(asked.replication_id, asked.operation_id, deadline=asked.deadline)

    def _cancel(self, d: Deployment, asked: Asked) -> None:
        """Cancel or release a request, in whatever state it is; perhaps not for the first time."""
        release = self.dice.random() < self.releasing
        self.cancelled.add(asked.operation_id)
        if release:
            self.released.add(asked.operation_id)
        states = (s for s in d.log.states().values() if s.request.operation_id == asked.operation_id)
        state = next(states, None)
        self.met[f"{'release' if release else 'cancel'} {type(state).__name__}"] += 1
        d.broker.cancel(asked.replication_id, asked.operation_id, release=release, by="dice")

    def _forget(self, d: Deployment) -> None:
        """Let VCDA forget all tasks at once that are known to be ours: it was restored from a backup, say."""
        states = (state.of if isinstance(state, Lingering) else state for state in d.log.states().values())
        known = {state.task_id for state in states if isinstance(state, Running | Ended) and state.task_id}
        running = {task_id for task_id in known if d.world.made[task_id].ends > d.loop.time()}
        if self.rough:
            self.met["forgotten together" if len(running) >= VANISHED_TOGETHER else "forgotten"] += len(running)
            d.world.forgotten |= known
            if self.dice.random() < 0.3:
                self.met["ids used again"] += len(running)
                d.world.used_again |= known

    def _poison(self, d: Deployment) -> None:
        """Let one task break each call that asks for it."""
        if d.world.made:
            self.met["poison"] += 1
            d.world.poison.add(self.dice.choice(sorted(d.world.made)))

    async def _disturb(self, d: Deployment) -> None:
        """Do to the processes what operators and machines do."""
        dice = self.dice
        what = dice.choice(
            ["crash", "freeze", "rebalance", "hand over", "partitioned", "fence", "forget", "poison", "pause"]
        )
        alone = {"forget": self._forget, "poison": self._poison, "pause": self._pause}
        if what in alone:
            alone[what](d)
            return
        self.met[what] += 1
        owner = d.group.owners[0]
        others = [process for process in d.processes if not process.dead and not process.frozen and process != owner]
        other = dice.choice(others) if others else self._start(d, f"P{len(d.processes)}")
        if what == "crash":
            await owner.crash()
            if dice.random() < 0.5:
                await asyncio.sleep(dice.uniform(0.0, SESSION))
            d.group.hand(0, other)
        elif what == "freeze" and not owner.frozen and not owner.dead:
            owner.freeze()
            sleep = dice.uniform(0.1, 12.0)
            d.loop.call_later(sleep, owner.thaw)
            if dice.random() < 0.7:
                d.loop.call_later(dice.uniform(0.0, 5.0), self._expire, d, owner, other)
        elif what == "rebalance":
            await d.group.give(0, dice.choice([owner, other]) if not owner.dead else other)
        elif what == "hand over":
            d.group.hand(0, other)
        elif what == "partitioned":  # from Kafka's coordinator, but not from VCDA
            d.group.hand(0, other, learns_after=dice.uniform(0.0, 15.0))
        elif what == "fence":
            d.log.epoch += 1

    def _strike(self, d: Deployment, process: Process) -> None:
        """Silence a process, and give its partition away at once: the hardest case for its successor."""
        others = [other for other in d.processes if not other.dead and not other.frozen and other is not process]
        if d.group.owners[0] is not process or not others or not self.rough or process.frozen:
            return
        self.met["strike"] += 1
        if self.dice.random() < 0.5:
            process.freeze()
            d.loop.call_later(self.dice.uniform(0.0, 8.0), process.thaw)
        d.group.hand(0, self.dice.choice(others), learns_after=self.dice.uniform(5.0, 30.0))

    def _expire(self, d: Deployment, owner: Process, other: Process) -> None:
        if d.group.owners[0] is owner and not other.dead:
            d.group.hand(0, other, learns_after=self.dice.uniform(0.0, 10.0))

    def _calm_down(self, d: Deployment) -> None:
        self.rough, self.slow = False, 0.05
        d.resume(None)
        d.world.poison.clear()
        for made in d.world.made.values():
            if made.ends == math.inf:  # VCDA's administrators end it
                self.met["stuck"] += 1
                made.lasts = d.loop.time() - made.begun
        for process in d.processes:
            if process.frozen:
                process.thaw()
            process.vcda.login = 0.0  # where a POST is held up for longer than the window each time, it never leaves
        if d.group.owners[0].dead:
            last = self._start(d, "last")
            last.vcda.login = 0.0
            d.group.hand(0, last)
        # An idle owner that was fenced learns it from its next commit: there is one for it.
        self.asked["last"] = Asked("C4-last", "last", len(d.log.requests), None)
        d.broker.ask("C4-last", "last")

    # ------------------------------------------------------------ the promises

    def judge(self, d: Deployment) -> None:
        """Compare what was asked, what VCDA did, and what a reader has seen."""
        told = [one for one in d.log.told if one.topic != DEAD]
        outcomes = Counter(one.operation_id for one in told)
        assert outcomes == Counter(list(self.asked)), "each request has exactly one outcome"
        assert len(d.log.told) - len(told) == self.nonsense, "each message that can't be understood is told once"
        tasks = d.world.tasks_of()
        assert all(n == 1 for n in tasks.values()), f"more than one task: {tasks}"
        freed = {self.asked[operation].replication_id for operation in self.released}
        overlaps = [pair for pair in d.world.overlaps if self.asked[pair[0]].replication_id not in freed]
        assert not overlaps, "two syncs of one replication overlapped"
        self.forgotten = d.world.forgotten
        by_operation = {made.operation_id: made for made in d.world.made.values()}
        for one in told:
            made = by_operation.get(one.operation_id)
            if one.data["replicationId"] in freed and one.verdict in {"completed", "task-failed", "task-lost"}:
                made = d.world.made[one.data["taskId"]]  # or that of a released request, whose task was not known
            self._judge_truth(one, made)
            posts = sum(process.vcda.posts[one.operation_id] for process in d.processes)
            assert posts <= one.data["attempts"], "each POST was an attempt"
        ids = Counter(one.data["taskId"] for one in told if one.data["taskId"] is not None)
        assert all(n == 1 for n in ids.values()), "no task is that of two requests, a released one included"
        order: dict[str, list[int]] = defaultdict(list)
        for one in told:
            if one.verdict == "cancelled":
                continue  # at once, whatever it waited behind
            order[one.data["replicationId"]].append(self.asked[one.operation_id].order)
        assert all(some == sorted(some) for some in order.values()), "outcomes of one replication come in order"
        begun: dict[str, list[int]] = defaultdict(list)
        for made in sorted(d.world.made.values(), key=lambda made: made.begun):
            asked = self.asked[made.operation_id]
            if asked.replication_id in freed:
                continue
            begun[asked.replication_id].append(asked.order)
        assert all(some == sorted(some) for some in begun.values()), "syncs of one replication run in order"
        for process in d.processes:
            lane = process.lanes.lane(None)
            assert process.dead or (lane.submitting, lane.occupied) == (0, 0), "the lane's slots are free again"
            self.met["adopted"] += process.meter.counts["adopted"]
            assert process.dead or process.meter.unaccounted == 0, "each record that was read has a fate"
        self.met["refused"] += d.log.refused
        self.met.update(one.verdict for one in told)

    def _judge_truth(self, one: Told, made: Made | None) -> None:
        match one.verdict:
            case "completed" | "task-failed":
                assert made is not None
                assert made.fate == {"completed": "SUCCEEDED", "task-failed": "FAILED"}[one.verdict]
                assert made.task.id == one.data["taskId"]
                assert one.at >= made.ends
            case "task-lost":
                assert made is not None
                assert made.task.id in self.forgotten
            case "rejected" | "not-started":
                assert made is None, f"{one.verdict}, and yet there is {made}"
            case "cancelled":
                assert one.operation_id in self.cancelled
                released = one.data["error"]["code"] == "Released"
                assert not released or one.operation_id in self.released
                assert released or made is None, f"cancelled before it was submitted, and yet there is {made}"
                assert made is None or one.data["taskId"] in {None, made.task.id}
            case "timed-out":
                assert self.asked[one.operation_id].deadline is not None
                assert made is None or one.data["taskId"] in {None, made.task.id}
            case other:
                raise AssertionError(other)


def play(seed: int) -> Counter[str]:
    """Play one schedule; what goes wrong is told with its seed."""
    schedule = Schedule(seed)
    try:
        run(schedule.play())
    except BaseException as error:
        error.add_note(f"Play it again with: SEED={seed} pytest tests/partition/test_simulation.py")
        raise
    return schedule.met


def test_whatever_goes_wrong_the_promises_hold() -> None:
    if "SEED" in os.environ:
        play(int(os.environ["SEED"]))
        return
    met: Counter[str] = Counter()
    UNHEARD.clear()
    for seed in range(SCHEDULES):
        met += play(seed)
    gc.collect()
    assert UNHEARD == [], "no error of a task goes unheard"
    expected = {
        *(f"submit {what}" for temper in TEMPERS for what in temper),
        *(f"commit {what}" for what in ("lost", "unanswered", "later")),
        *("crash", "freeze", "strike", "rebalance", "hand over", "partitioned", "fence"),
        *(f"users spelled {how}" for how in ("as in sessions", "in its own way", "not at all")),
        "replications named in lower case",
        *("find down", "poll down", "adopted", "refused"),
        *("limits of each process", "the same limits"),
        *("forgotten", "forgotten together", "poison", "stuck"),
        *("pause", "pause again", "resume"),
        *("completed", "task-failed", "task-lost", "rejected", "not-started", "timed-out", "cancelled"),
        *(f"cancel {state}" for state in ("NoneType", "Waiting", "Submitting", "Running", "Lingering", "Ended")),
        *(f"release {state}" for state in ("NoneType", "Waiting", "Submitting", "Running", "Lingering", "Ended")),
    }
    assert expected <= set(met), "the dice are loaded: nobody met some of what may go wrong"


def test_a_schedule_is_the_same_each_time_it_is_played() -> None:
    assert play(7) == play(7)
