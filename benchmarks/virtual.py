"""A process with many sites in virtual time: the service's own polling, pacing and lanes, and nothing else real.

Each site always has as many syncs running: where one ends, the next begins, after a turn in the lane and a POST of
50 ms. Virtual hours pass in seconds, and what is real about them is the CPU time that the service's code takes.
"""

import asyncio
import math
import selectors
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any

from typing_extensions import override

from benchmarks.polling_bench import ROUND_TRIP, showing
from benchmarks.sizes import Sizes
from service.clock import Clock
from service.sync import Gone, PollAnswer, Task, TaskState, Trouble
from service.vcda.lanes import LaneLimits, Lanes
from service.vcda.poller import Poller, Verdict, Watch

SPREAD = 1.0
"""The durations' sigma: log-normal, like the polling bench's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What to simulate: sites, syncs always running at each, the median of their durations, and for how long."""

    sites: int
    each: int
    median: float
    seconds: float


class _Selector(selectors.SelectSelector):
    """Where a real loop would sleep, it jumps to its next timer instead."""

    loop: "_Loop"

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout:
            self.loop.moment = self.loop.next_timer()
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.moment = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    @override
    def time(self) -> float:
        return self.moment

    def next_timer(self) -> float:
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return timers[0].when()


class _Clock(Clock):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop

    @override
    def now(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self._loop.time())

    @override
    def monotonic(self) -> float:
        return self._loop.time()


class _Unmeasured:
    """Metrics that nobody reads."""

    def poll_batch(self, site: str | None, size: int) -> None: ...

    def paused(self, site: str | None, value: bool) -> None: ...  # noqa: FBT001 - the metrics' signature

    def without_credentials(self, site: str | None) -> None: ...


@dataclass(slots=True)
class _Sync:
    """One sync at the simulated VCDA."""

    site: str
    begins: float
    ends: float
    shows: Callable[[float], tuple[int | None, bool]]


@dataclass(slots=True)
class _World:
    """All sites' syncs, and what was asked after them. As the poller sees it, the API."""

    shape: Shape
    clock: Clock
    dice: Random
    syncs: dict[str, _Sync] = field(default_factory=dict)
    calls: int = 0
    ids: int = 0
    lags: list[float] = field(default_factory=list)
    counting: bool = False
    serial: int = 0

    async def poll(self, *, site: str | None, ids: Sequence[str]) -> list[Task] | Trouble:
        """Answer after a round trip; VCDA looks half-way."""
        if self.counting:
            self.calls += 1
            self.ids += len(ids)
        await asyncio.sleep(ROUND_TRIP / 2)
        looked = self.clock.monotonic()
        seen = [self._show(id_, self.syncs[id_], looked, site=site) for id_ in ids]
        await asyncio.sleep(ROUND_TRIP / 2)
        return seen

    async def ask(self, *, site: str | None, task_id: str) -> Task | Gone | Trouble:
        """Never asked: nothing gets lost here."""
        raise NotImplementedError(site, task_id)

    def _show(self, id_: str, sync: _Sync, looked: float, *, site: str | None) -> Task:
        if looked >= sync.ends:
            moment = self.clock.now()
            took = timedelta(seconds=sync.ends - sync.begins)
            return Task(id=id_, site=site, state=TaskState.SUCCEEDED, started_at=moment - took, ended_at=moment)
        progress, _ = sync.shows(looked - sync.begins)
        return Task(id=id_, site=site, state=TaskState.RUNNING, progress=progress)

    def begin(self, site: str, *, under_way: bool) -> str:
        """Begin a sync; one under way is anywhere in its course, and long ones are met under way more often."""
        sigma, mean = SPREAD, math.log(self.shape.median)
        duration = math.exp(mean + (sigma**2 if under_way else 0.0) + sigma * self.dice.gauss(0.0, 1.0))
        shows, lasts = showing("progress", duration, dice=self.dice)
        begins = self.clock.monotonic() - (self.dice.random() * lasts if under_way else 0.0)
        self.serial += 1
        id_ = f"task-{self.serial}"
        self.syncs[id_] = _Sync(site, begins, begins + lasts, shows)
        return id_


async def _simulate(shape: Shape) -> dict[str, Any]:
    clock = _Clock(asyncio.get_running_loop())
    world = _World(shape, clock, Random(20_26))
    lanes = Lanes(
        limits=LaneLimits(max_concurrent_submits=16, max_running=0),
        clock=clock,
        metrics=_Unmeasured(),
        random=Random(1),
    )
    poller = Poller(
        api=world,
        lane=lanes.lane,
        clock=clock,
        metrics=_Unmeasured(),
        random=Random(2),
        shortest=timedelta(seconds=1),
        longest=timedelta(minutes=1),
    )
    posting: set[asyncio.Task[None]] = set()
    posts = 0

    def watch(id_: str) -> None:
        sync = world.syncs[id_]
        poller.watch(
            Watch(
                task_id=id_,
                site=sync.site,
                replication_id=id_,
                since=sync.begins,
                answered=partial(answered, id_),
            )
        )

    def answered(id_: str, seen: PollAnswer) -> Verdict:
        if not isinstance(seen, Task) or seen.state != TaskState.SUCCEEDED:
            return Verdict.GO_ON
        sync = world.syncs.pop(id_)
        if world.counting:
            world.lags.append(clock.monotonic() - sync.ends)
        lanes.lane(sync.site).vacate()
        lanes.lane(sync.site).queue(partial(turn, sync.site))
        return Verdict.DONE

    def turn(site: str) -> bool:
        task = asyncio.get_running_loop().create_task(post(site))
        posting.add(task)
        task.add_done_callback(posting.discard)
        return True

    async def post(site: str) -> None:
        nonlocal posts
        posts += world.counting
        await asyncio.sleep(ROUND_TRIP)
        lanes.lane(site).answered()
        lanes.lane(site).record_result(None)
        watch(world.begin(site, under_way=False))

    running = asyncio.create_task(poller.run())
    for number in range(shape.sites):
        for _ in range(shape.each):
            lanes.lane(f"site-{number}").occupy()
            watch(world.begin(f"site-{number}", under_way=True))
    await asyncio.sleep(shape.seconds / 3)  # until restored ones have been asked after, and their pace is known
    world.counting, cpu = True, time.process_time()
    await asyncio.sleep(shape.seconds)
    cpu = time.process_time() - cpu
    running.cancel()
    for task in posting:
        task.cancel()
    await asyncio.gather(running, *posting, return_exceptions=True)
    lags = sorted(world.lags) or [0.0]
    return {
        "sites": shape.sites,
        "each": shape.each,
        "median_s": shape.median,
        "seconds": shape.seconds,
        "posts_per_second": posts / shape.seconds,
        "answers_per_second": world.ids / shape.seconds,
        "calls_per_second_and_site": world.calls / shape.seconds / shape.sites,
        "ids_per_call": world.ids / max(1, world.calls),
        "lag_p50_s": lags[len(lags) // 2],
        "lag_p99_s": lags[min(len(lags) - 1, int(0.99 * len(lags)))],
        "cpu_share": cpu / shape.seconds,
    }


def simulate(shape: Shape) -> dict[str, Any]:
    """Run one shape, and return what it did a second; `cpu_share` is of one core, the simulation itself included."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(_simulate(shape))


def table(sizes: Sizes) -> list[dict[str, Any]]:
    """Simulate a process among twenty, which has a twentieth of each site's syncs; and one that has sites to itself.

    10,000 syncs run at each site in both, of 90 s and of 10 minutes.
    """
    sites, seconds = sizes.virtual_sites, sizes.virtual_seconds
    return [
        simulate(Shape(sites=count, each=each, median=median, seconds=seconds))
        for median in (90.0, 600.0)
        for count, each in ((sites, 500), (max(1, sites // 20), 10_000))
    ]
