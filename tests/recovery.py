"""`python -m tests.recovery`: how long a partition stands still when something dies, in seconds.

    killed     a process with --in-flight syncs gets kill -9: until its partitions tell outcomes again
    rolling    three processes are restarted one after another: the longest pause of any partition's outcomes
    kafka      Kafka is killed and comes back: from its return until each partition tells outcomes again

Syncs end all the time, many a second in each partition, so that a pause in the outcomes is a pause of the work. Each
outcome's moment is the one at which the transaction that committed it was written.
"""

import argparse
import asyncio
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

from rich.console import Console
from rich.table import Table

from service.sandbox.kafka import EmbeddedKafka
from service.sandbox.simulator import Simulator
from service.sandbox.vcda_world import Durations, Plan
from tests.apart import Apart
from tests.conductor import BROKER
from tests.ledger import Ledger, Process, appliance

PARTITIONS: Final = 6
SESSION_TIMEOUT: Final = 6.0
KAFKA_AWAY: Final = 5.0

SETTINGS: Final = {
    "VM_SYNC_SYNC__MAX_RUNNING": "0",
    "VM_SYNC_SYNC__MAX_CONCURRENT_SUBMITS": "64",
    "VM_SYNC_SYNC__POLL_MAX": "PT10S",
    "VM_SYNC_SYNC__DEADLINE": "PT1H",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure, and what it may be at most."""

    what: str
    bound: float
    pauses: Mapping[int, float]
    """By partition, in seconds."""
    doubts: int
    """Look-ups for POSTs in doubt."""
    violations: Sequence[str]

    @property
    def longest(self) -> float:
        return max(self.pauses.values(), default=float("inf"))

    @property
    def kept(self) -> bool:
        return self.longest <= self.bound and not self.violations


Scene = Callable[[Ledger, Apart, list[Process]], Awaitable[tuple[float, float]]]
"""Does the damage while outcomes flow. Returns from when to when (wall clock) pauses count."""


async def measure(
    what: str, scene: Scene, *, kafka: EmbeddedKafka, bound: float, processes: int, requests: int, rate: float
) -> Measured:
    """Fill VCDA with syncs, which end at so many a second, do the damage, and look at the outcomes."""
    plan = Plan(queued=Durations.of("0.1"), duration=Durations.of("3600"))
    prefix = f"recovery-{time.time_ns()}"
    async with (
        Apart(appliance(plan)) as vcda,
        Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix=prefix, partitions=PARTITIONS) as ledger,
    ):
        members = [_start(ledger) for _ in range(processes)]
        await asyncio.gather(*(ledger.ready(member) for member in members))
        await ledger.ask_all([(f"op-{n}", f"C4-{n:08x}-0000-0000-0000-000000000000") for n in range(requests)])
        while (await vcda.do(lambda sim: sim.world.counts.tasks)) < requests:
            await asyncio.sleep(0.2)
        await vcda.do(partial(_release, over=requests / rate))
        await asyncio.sleep(12)  # until every task has been asked after once more
        before = await vcda.do(lambda sim: sim.world.counts.calls["find"])
        began, until = await scene(ledger, vcda, members)
        after = await vcda.do(lambda sim: sim.world.counts.calls["find"])
        await vcda.do(lambda sim: sim.world.finish())
        told = await ledger.wait(within=120)
        verdict = await ledger.judge()
        moments: defaultdict[int, list[float]] = defaultdict(list)
        for one in told:
            moments[one.place.partition].append(one.at)
        pauses = {
            partition: _longest([at for at in sorted(some) if began <= at <= until], began, until)
            for partition, some in moments.items()
        }
        return Measured(what, bound, pauses, after - before, verdict.violations)


def _start(ledger: Ledger) -> Process:
    return ledger.start(**SETTINGS)  # type: ignore[arg-type] # mypy takes them for the command


def _release(sim: Simulator, *, over: float) -> None:
    """Let all syncs end, evenly spread over so many seconds."""
    world = sim.world
    for task in world.tasks.values():
        task.ends = world.now() + world.rng.uniform(0.0, over)


def _longest(moments: Sequence[float], began: float, until: float) -> float:
    marks = [began, *moments, until]
    return max(later - earlier for earlier, later in pairwise(marks))


async def killed(ledger: Ledger, _: Apart, members: list[Process]) -> tuple[float, float]:
    """Kill the first of two."""
    began = time.time()
    await members[0].kill()
    await asyncio.sleep(SESSION_TIMEOUT + 14)
    return began, time.time()


async def rolling(ledger: Ledger, _: Apart, members: list[Process]) -> tuple[float, float]:
    """Stop one, start another, wait until it is ready; then the next."""
    began = time.time()
    for member in members:
        await member.stop()
        await ledger.ready(_start(ledger))
    await asyncio.sleep(2)
    return began, time.time()


def without(kafka: EmbeddedKafka) -> Scene:
    """Kill Kafka, and bring it back."""

    async def scene(ledger: Ledger, _: Apart, __: list[Process]) -> tuple[float, float]:
        await asyncio.to_thread(kafka.kill)
        await asyncio.sleep(KAFKA_AWAY)
        await asyncio.to_thread(kafka.start)
        back = time.time()
        await asyncio.sleep(20)
        return back, time.time()

    return scene


async def measure_all(*, in_flight: int, rate: float, only: str | None) -> list[Measured]:
    """Measure each scene on the same Kafka."""
    measured = []
    with EmbeddedKafka(properties=BROKER) as kafka:
        scenes: list[tuple[str, Scene, float, int, int]] = [
            ("killed", killed, SESSION_TIMEOUT + 2, 2, 2 * in_flight),
            ("rolling", rolling, 2.0, 3, round(rate * 70)),
            ("kafka", without(kafka), 10.0, 2, round(rate * 60)),
        ]
        for what, scene, bound, processes, requests in scenes:
            if only in {None, what}:
                measured.append(
                    await measure(
                        what, scene, kafka=kafka, bound=bound, processes=processes, requests=requests, rate=rate
                    )
                )
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.recovery", description="Pauses after deaths, in seconds.")
    parser.add_argument("--in-flight", type=int, default=10_000, help="of the process that is killed")
    parser.add_argument("--rate", type=float, default=100.0, help="outcomes a second while nothing is wrong")
    parser.add_argument("--only", choices=("killed", "rolling", "kafka"))
    given = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it can't know that we killed Kafka ourselves
    measured = asyncio.run(measure_all(in_flight=given.in_flight, rate=given.rate, only=given.only))
    summary = Table(title="Recovery")
    for column in ("scene", "at most", "longest pause", "by partition", "look-ups", "violations"):
        summary.add_column(column)
    for one in measured:
        summary.add_row(
            one.what,
            f"{one.bound:.1f} s",
            f"{one.longest:.1f} s",
            ", ".join(f"{number}: {pause:.1f}" for number, pause in sorted(one.pauses.items())),
            str(one.doubts),
            "; ".join(one.violations) or "none",
            style=None if one.kept else "red",
        )
    Console(width=150).print(summary)
    return 0 if all(one.kept for one in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
