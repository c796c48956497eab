"""`python -m tests.stress.recovery`: how long a partition stands still when something dies, in seconds.

    killed     a process with --in-flight syncs gets kill -9: until its partitions tell outcomes again
    rolling    three processes are restarted one after another: the longest pause of any partition's outcomes
    kafka      Kafka is killed and comes back: from its return until each partition tells outcomes again

Syncs end all the time, many a second in each partition, and are asked after every second, so that a pause in the
outcomes is a pause of the work. An outcome's moment is that of the transaction which committed it.
"""

import argparse
import asyncio
import json
import logging
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from service.sandbox.kafka import EmbeddedKafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.stress.chaos_runner import BROKER, keeping
from tests.support.process_harness import Ledger, Process, appliance
from tests.support.simulator_thread import Apart

PARTITIONS: Final = 6
SESSION_TIMEOUT: Final = 6.0
KAFKA_AWAY: Final = 5.0

SETTINGS: Final = {
    "VM_SYNC_SYNC__MAX_RUNNING": "0",
    "VM_SYNC_SYNC__MAX_CONCURRENT_SUBMITS": "64",
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


Pause = Callable[[Sequence[float], float, float], float]
"""Of a partition's outcomes: their moments, from when and until when they count."""

Scene = Callable[[Ledger, Apart, list[Process]], Awaitable[tuple[float, float]]]
"""Does the damage while outcomes flow. Returns from when to when (wall clock) pauses count."""


async def measure(
    what: str,
    scene: Scene,
    *,
    kafka: EmbeddedKafka,
    pause: Pause,
    bound: float,
    processes: int,
    requests: int,
    rate: float,
    poll_max: str,
    logs: Path,
) -> Measured:
    """Fill VCDA with syncs, which end at so many a second, do the damage, and look at the outcomes."""
    plan = Plan(queued=Durations.of("0.1"), duration=Durations.of("3600"))
    prefix = f"recovery-{time.time_ns()}"
    async with (
        Apart(appliance(plan)) as vcda,
        Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix=prefix, partitions=PARTITIONS) as ledger,
        keeping(ledger.folder, logs / what),
    ):
        settings = SETTINGS | {"VM_SYNC_SYNC__POLL_MAX": poll_max}
        members = [ledger.start(**settings) for _ in range(processes)]  # type: ignore[arg-type] # mypy: the command
        await asyncio.gather(*(ledger.ready(member) for member in members))
        await ledger.ask_all([(f"op-{n}", f"C4-{n:08x}-0000-0000-0000-000000000000") for n in range(requests)])
        while (await vcda.do(lambda sim: sim.world.counts.tasks)) < requests:
            await asyncio.sleep(0.2)
        await vcda.do(partial(_release, over=requests / rate))
        await asyncio.sleep(5)  # until every task has been asked after once more
        before = await vcda.do(lambda sim: sim.world.counts.calls["find"])
        began, until = await scene(ledger, vcda, members)
        after = await vcda.do(lambda sim: sim.world.counts.calls["find"])
        await vcda.do(lambda sim: sim.world.finish())
        told = await ledger.wait(within=120)
        verdict = await ledger.judge()
        moments: defaultdict[int, list[float]] = defaultdict(list)
        for one in told:
            moments[one.place.partition].append(one.at)
        taken_over = _taken_over(members, began) if scene is killed else set(moments)
        pauses = {
            partition: pause([at for at in sorted(some) if began <= at <= until], began, until)
            for partition, some in moments.items()
            if partition in taken_over
        }
        return Measured(what, bound, pauses, after - before, verdict.violations)


def _taken_over(members: Sequence[Process], began: float) -> set[int]:
    """Read in the logs which partitions were opened after that moment."""
    opened = set()
    for line in (line for member in members for line in member.text().splitlines() if " is open: " in line):
        record = json.loads(line)
        if datetime.fromisoformat(record["time"]).timestamp() > began:
            opened.add(int(record["message"].split()[1]))
    return opened


def _start(ledger: Ledger) -> Process:
    return ledger.start(**SETTINGS, VM_SYNC_SYNC__POLL_MAX="PT1S")  # type: ignore[arg-type] # mypy takes them for the command


def _release(sim: Simulator, *, over: float) -> None:
    """Let all syncs end, evenly spread over so many seconds."""
    world = sim.world
    for task in world.tasks.values():
        task.ends = world.now() + world.rng.uniform(0.0, over)


def first(moments: Sequence[float], began: float, until: float) -> float:
    """How long until there is an outcome again; what was on its way for a second may still have come."""
    return next((at - began for at in moments if at > began + 1.0), until - began)


def longest(moments: Sequence[float], began: float, until: float) -> float:
    """How long it was at most from one outcome to the next."""
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


async def measure_all(*, in_flight: int, rate: float, only: str | None, logs: Path) -> list[Measured]:
    """Measure each scene on the same Kafka."""
    measured = []
    with EmbeddedKafka(properties=BROKER) as kafka:
        for what, scene, pause, bound, processes, requests, poll_max in (
            # So many can't be asked after every second; but what is restored is asked after at once.
            ("killed", killed, first, SESSION_TIMEOUT + 2, 2, 2 * in_flight, "PT30S"),
            ("rolling", rolling, longest, 2.0, 3, round(rate * 60), "PT1S"),
            ("kafka", without(kafka), first, 10.0, 2, round(rate * 50), "PT1S"),
        ):
            if only in {None, what}:
                one = await measure(
                    what,
                    scene,
                    kafka=kafka,
                    pause=pause,
                    bound=bound,
                    processes=processes,
                    requests=requests,
                    rate=rate,
                    poll_max=poll_max,
                    logs=logs,
                )
                measured.append(one)
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.recovery", description="Pauses after deaths, in seconds."
    )
    parser.add_argument("--in-flight", type=int, default=10_000, help="of the process that is killed")
    parser.add_argument("--rate", type=float, default=100.0, help="outcomes a second while nothing is wrong")
    parser.add_argument("--only", choices=("killed", "rolling", "kafka"))
    given = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it can't know that we killed Kafka ourselves
    logs = Path(tempfile.mkdtemp(prefix="vm-sync-recovery-"))
    measured = asyncio.run(measure_all(in_flight=given.in_flight, rate=given.rate, only=given.only, logs=logs))
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
    if all(one.kept for one in measured):
        shutil.rmtree(logs)
        return 0
    print(f"The logs are kept in {logs}")  # noqa: T201 - for a person at a terminal
    return 1


if __name__ == "__main__":
    sys.exit(main())
