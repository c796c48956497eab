"""How soon the end of a task is noticed, and at what cost: the polling policy beside fixed intervals.

Simulated tasks, simulated time, and of the service only what decides: the real policy, agenda and batches. It asks no
clock, opens no connection, and gives the same numbers on every machine.

    python -m benchmarks.polling_bench [--tasks 0.2] [--json FILE]
"""

import argparse
import heapq
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from service.vcda.poll_policy import History, Pace, coalesced_due, coalescing_window, next_interval
from service.vcda.poller import CALLS_AT_ONCE, Agenda, Verdict, Watch
from service.vcda.translate import BATCH

SHORTEST, LONGEST = 1.0, 60.0
"""POLL_MIN and POLL_MAX as they are by default, in seconds."""

ROUND_TRIP = 0.05
"""From a call's sending to its answer, in seconds; VCDA looks half-way."""

FIXED = (1.0, 2.0, 5.0, 10.0, 30.0)
"""The pollers to compare with, in seconds between two questions."""


# ---------------------------------------------------------------- the tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Tasks that begin `rate` a second; how long they take is log-normal."""

    name: str
    tasks: int
    rate: float
    median: float
    sigma: float


WORKLOADS = (
    Workload(name="90 s", tasks=2_000, rate=5.0, median=90.0, sigma=1.0),
    Workload(name="10 min", tasks=800, rate=0.5, median=600.0, sigma=1.0),
    Workload(name="20 s, 1000/s", tasks=20_000, rate=1000.0, median=20.0 * math.exp(-0.125), sigma=0.5),
)

KINDS = ("progress", "queued first", "sticks", "jumps", "no progress", "no progress, repeated")
"""What tasks show: a whole percent at a rate that varies; the same after a while in the queue; with a standstill of a
tenth to four tenths of its time; tens of percent, and the end out of the blue; nothing; nothing, but each
replication's syncs take about as long as its last ones."""


@dataclass(slots=True, eq=False)
class SimulatedTask:
    """One task: when it begins and ends, and what it shows in between."""

    id: str
    replication_id: str
    begins: float
    ends: float
    shows: Callable[[float], tuple[int | None, bool]]
    """From the seconds since it began to its progress, and whether it is queued."""
    pace: Pace = field(default_factory=Pace)
    answers: int = 0
    seen: float = 0.0


def make_tasks(workload: Workload, kind: str, *, dice: Random, scale: float) -> list[SimulatedTask]:
    """Throw the dice for every task of a workload."""
    tasks = []
    amount = max(1, int(workload.tasks * scale))
    replications = [workload.median * math.exp(workload.sigma * dice.gauss(0, 1)) for _ in range(max(1, amount // 20))]
    for number in range(amount):
        begins = number / workload.rate
        if kind == "no progress, repeated":
            replication = dice.randrange(len(replications))
            duration = replications[replication] * math.exp(0.1 * dice.gauss(0, 1))
        else:
            replication = number
            duration = workload.median * math.exp(workload.sigma * dice.gauss(0, 1))
        shows, lasts = showing(kind, duration, dice=dice)
        tasks.append(SimulatedTask(f"task-{number}", f"C4-{replication}", begins, begins + lasts, shows))
    return tasks


def showing(kind: str, duration: float, *, dice: Random) -> tuple[Callable[[float], tuple[int | None, bool]], float]:
    """Give what a task shows at each moment, and how long it lasts."""
    curve = uneven(dice)
    match kind:
        case "progress":
            return lambda at: (int(100 * curve(at / duration)), False), duration
        case "queued first":
            queue = dice.uniform(0.0, 60.0)
            return (
                lambda at: (0, True) if at < queue else (int(100 * curve((at - queue) / duration)), False)
            ), queue + duration
        case "sticks":
            where, still = dice.choice((0.3, 0.5, 0.9, 0.99)), dice.uniform(0.1, 0.4)
            moving = 1.0 - still

            def stuck(at: float) -> tuple[int | None, bool]:
                part = at / duration
                return int(100 * curve(min(max(part - still, where * moving), part) / moving)), False

            return stuck, duration
        case "jumps":
            end = dice.uniform(0.4, 0.9)
            return lambda at: (int(10 * end * curve(at / duration)) * 10, False), duration
        case _:
            return lambda _: (None, False), duration


def uneven(dice: Random, *, parts: int = 20, variation: float = 0.3) -> Callable[[float], float]:
    """Give a way from 0 to 1 whose rate varies from part to part, by about a third either way."""
    rates = [math.exp(dice.gauss(0.0, variation)) for _ in range(parts)]
    marks = [0.0]
    for rate in rates:
        marks.append(marks[-1] + rate / sum(rates))
    steps = list(pairwise(marks))

    def curve(part: float) -> float:
        place = min(int(part * parts), parts - 1)
        low, high = steps[place]
        return low + (part * parts - place) * (high - low)

    return curve


# ---------------------------------------------------------------- the pollers


class Adaptive:
    """The service's own policy."""

    name = "adaptive"

    def __init__(self) -> None:
        self.history = History()

    def next_due(self, task: SimulatedTask, at: float) -> float:
        """Decide when to ask again after an answer to a call of this moment, or after the task's begin."""
        usual = self.history.usual(site=None, replication_id=task.replication_id)
        outlook = task.pace.outlook(at - task.begins, usual=usual)
        interval = next_interval(outlook, shortest=SHORTEST, longest=LONGEST)
        return coalesced_due(at + interval, interval)

    def ended(self, task: SimulatedTask) -> None:
        """Learn from an end."""
        self.history.learn(task.ends - task.begins, site=None, replication_id=task.replication_id)


class Fixed:
    """Asks in fixed intervals."""

    def __init__(self, interval: float) -> None:
        self.name = f"every {interval:g} s"
        self.interval = interval

    def next_due(self, task: SimulatedTask, at: float) -> float:  # noqa: ARG002
        """Decide when to ask again."""
        return at + self.interval

    def ended(self, task: SimulatedTask) -> None:
        """Learn nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a poller cost, and how late it noticed. Lags are seconds from a task's end to the answer that showed it."""

    workload: str
    kind: str
    poller: str
    answers_per_task: float
    calls_per_task: float
    lag_p50: float
    lag_p90: float
    lag_p99: float
    lag_max: float


def simulate(tasks: Sequence[SimulatedTask], poller: Adaptive | Fixed) -> tuple[int, list[float]]:
    """Poll all tasks to their ends; return the number of calls, and each task's lag."""
    agenda = Agenda()
    by_id = {task.id: task for task in tasks}
    beginning = list(reversed(tasks))
    on_the_way: list[tuple[float, int, list[Watch]]] = []
    calls, now = 0, 0.0
    while True:
        due = agenda.next_due() if len(on_the_way) < CALLS_AT_ONCE else None
        moments = [
            beginning[-1].begins if beginning else math.inf,
            on_the_way[0][0] if on_the_way else math.inf,
            math.inf if due is None else due,
        ]
        if min(moments) == math.inf:
            break
        now = max(now, min(moments))
        match moments.index(min(moments)):
            case 0:
                task = beginning.pop()
                agenda.add(a_watch(task), poller.next_due(task, task.begins))
            case 1:
                answered, _, batch = heapq.heappop(on_the_way)
                read(batch, by_id, agenda, poller, answered=answered)
            case _:
                calls += 1
                heapq.heappush(
                    on_the_way, (now + ROUND_TRIP, calls, agenda.take(now + coalescing_window(SHORTEST), most=BATCH))
                )
    return calls, sorted(task.seen - task.ends for task in tasks)


def a_watch(task: SimulatedTask) -> Watch:
    """Give the agenda's entry for a task."""
    return Watch(
        task_id=task.id,
        site=None,
        replication_id=task.replication_id,
        since=task.begins,
        answered=lambda _: Verdict.GO_ON,
    )


def read(
    batch: list[Watch], tasks: dict[str, SimulatedTask], agenda: Agenda, poller: Adaptive | Fixed, *, answered: float
) -> None:
    """Take in a call's answer."""
    sent, looked = answered - ROUND_TRIP, answered - ROUND_TRIP / 2
    for watch in batch:
        task = tasks[watch.task_id]
        task.answers += 1
        if looked >= task.ends:
            task.seen = answered
            poller.ended(task)
            continue
        progress, queued = task.shows(looked - task.begins)
        task.pace = task.pace.read(progress, queued=queued, elapsed=sent - task.begins)
        agenda.add(watch, max(poller.next_due(task, sent), answered))


def measure(workload: Workload, kind: str, poller: Adaptive | Fixed, *, scale: float) -> Result:
    """Run one line of the table."""
    tasks = make_tasks(workload, kind, dice=Random(20_26), scale=scale)
    calls, lags = simulate(tasks, poller)

    def quantile(part: float) -> float:
        return round(lags[min(len(lags) - 1, int(part * len(lags)))], 3)

    return Result(
        workload=workload.name,
        kind=kind,
        poller=poller.name,
        answers_per_task=round(sum(task.answers for task in tasks) / len(tasks), 2),
        calls_per_task=round(calls / len(tasks), 4),
        lag_p50=quantile(0.5),
        lag_p90=quantile(0.9),
        lag_p99=quantile(0.99),
        lag_max=quantile(1.0),
    )


def table(scale: float) -> list[dict[str, Any]]:
    """Measure all pollers on all workloads, with that part of their tasks."""
    results = []
    for workload in WORKLOADS:
        for kind in KINDS:
            pollers: list[Adaptive | Fixed] = [*map(Fixed, FIXED), Adaptive()]
            results += [asdict(measure(workload, kind, poller, scale=scale)) for poller in pollers]
    return results


def main() -> None:
    """Print the table, and keep the numbers where asked to."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tasks", type=float, default=1.0, help="part of each workload's tasks to simulate")
    arguments.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = arguments.parse_args()
    results = []
    for workload in WORKLOADS:
        for kind in KINDS:
            print(f"\n{workload.name}, {kind}")
            print(
                f"  {'':12} {'answers':>8} {'calls':>8} {'lag p50':>8} {'p90':>7} {'p99':>7} {'max':>7}   per task; s"
            )
            pollers: list[Adaptive | Fixed] = [*map(Fixed, FIXED), Adaptive()]
            for poller in pollers:
                row = measure(workload, kind, poller, scale=given.tasks)
                results.append(row)
                print(
                    f"  {row.poller:12} {row.answers_per_task:8.1f} {row.calls_per_task:8.3f} {row.lag_p50:8.2f}"
                    f" {row.lag_p90:7.2f} {row.lag_p99:7.2f} {row.lag_max:7.2f}"
                )
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in results], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
