"""What is done to the service and to the controls: a burst, long syncs, many in flight, a steady trickle.

Each function measures one subject once and returns a `Run`. Figures' names end with their units; `_ms` and CPU are
per request.
"""

import asyncio
import itertools
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.controls import replication_ids
from benchmarks.results import Run, histogram_quantile, quantile, thinned
from benchmarks.sizes import Sizes
from benchmarks.stage import SERVICE, BenchError, Kind, Stage, cpu_seconds, resident
from benchmarks.traffic import Outcomes, Request, burst, trickle

BURST_DURATION = 0.1
PATIENCE = 300.0
"""Seconds beyond the longest task until what has no outcome counts as missing."""

LAG = "vm_sync_event_loop_lag_seconds"
COMMIT = "vm_sync_journal_commit_seconds"


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds used so far: by the subject, the simulated VCDA and Kafka; and the time."""

    subject: float
    vcda: float
    kafka: float
    at: float

    @classmethod
    def now(cls, stage: Stage, pid: int) -> "Cpu":
        """Look."""
        return cls(cpu_seconds(pid), *stage.cpu(), time.monotonic())

    def until(self, later: "Cpu", *, requests: int) -> dict[str, float]:
        """Say what was used between."""
        seconds = later.at - self.at
        return {
            "cpu_ms": (later.subject - self.subject) / requests * 1000,
            "cpu_s": later.subject - self.subject,
            "kafka_cpu_ms": (later.kafka - self.kafka) / requests * 1000,
            "vcda_cpu_ms": (later.vcda - self.vcda) / requests * 1000,
            "busy": (later.subject - self.subject) / seconds,
            "vcda_busy": (later.vcda - self.vcda) / seconds,
            "kafka_busy": (later.kafka - self.kafka) / seconds,
        }


def asked(seed: str, count: int, *, replications: int) -> list[Request]:
    """Make requests: all replications once, then all of them again, and so on."""
    names = replication_ids(seed, replications)
    return [Request(f"op-{number}", names[number % replications]) for number in range(count)]


def facts(ledger: Sequence[dict[str, Any]], came: dict[str, float], *, began: float) -> tuple[dict[str, float], Any]:
    """Compare what VCDA knows with when the outcomes came: figures, and the sorted lags."""
    starts = sorted(task["start"] for task in ledger)
    ends = {task["operationID"]: task["end"] for task in ledger}
    lags = sorted(came[operation] - end for operation, end in ends.items() if operation in came)
    if not lags:
        msg = "no outcome came at all"
        raise BenchError(msg)
    last = max(came.values())
    return {
        "posts_per_second": (len(starts) - 1) / max(0.001, starts[-1] - starts[0]),
        "seconds": last - began,
        "after_the_last_end_s": last - max(ends.values()),
        "beyond_the_longest_s": last - began - max(task["end"] - task["start"] for task in ledger),
        "lag_p50_s": quantile(lags, 0.5),
        "lag_p99_s": quantile(lags, 0.99),
        "lag_max_s": lags[-1],
    }, lags


async def tally(stage: Stage, *, requests: int, came: int) -> dict[str, float]:
    """Ask VCDA what happened that should not have, and what it cost in calls."""
    counters = await stage.vcda_says("counters")
    return {
        "calls": sum(counters["calls"].values()) / requests,
        "ids_polled": counters["idsPolled"] / requests,
        "overlapping": counters["overlapping"],
        "repeated": len(counters["repeated"]),
        "missing": requests - came,
    }


# ---------------------------------------------------------------- S1, S2: all at once


async def whole(
    stage: Stage,
    kind: Kind,
    *,
    scenario: str,
    number: int,
    requests: list[Request],
    duration: str,
    shortest: str,
    idle: float = 0.0,
    longest: float = 0.0,
    program: Sequence[str] = SERVICE,
) -> Run:
    """Put all requests on the topic at once, and wait for all outcomes.

    `idle` is for how long it is watched first, doing nothing; `longest` how long the longest task may take; `program`
    is the service's command.
    """
    await stage.fresh(duration=duration)
    topics = await stage.topics()
    subject = stage.start(kind, topics, program=program, SYNC__POLL_MIN=shortest)
    try:
        await subject.ready()
        unused = await idle_busy(subject.pid, idle) if idle else 0.0
        async with Outcomes(stage.bootstrap, topics) as outcomes:
            before, began = Cpu.now(stage, subject.pid), time.time()
            await burst(stage.bootstrap, topics, requests)
            await outcomes.wait(len(requests), within=longest + PATIENCE, checking=subject.check)
            after = Cpu.now(stage, subject.pid)
            came = outcomes.by_operation()
        figures = before.until(after, requests=len(requests))
        if idle:
            figures["idle_busy"] = unused
            figures["idle_cpu_ms"] = unused * (after.at - before.at) / len(requests) * 1000
        figures["rss_mb"] = resident(subject.pid) / 1e6
        told, lags = facts(await stage.vcda_says("ledger"), came, began=began)
        figures |= told | await tally(stage, requests=len(requests), came=len(came))
    finally:
        await subject.stop()
        await stage.drop(topics)
    return Run(scenario=scenario, subject=kind, round=number, figures=figures, curves={"lag_s": thinned(lags)})


async def burst_of_short_ones(stage: Stage, kind: str, *, sizes: Sizes, number: int) -> Run:
    """S1: tasks of 100 ms, ten for each replication."""
    duration = str(BURST_DURATION)
    if kind in {"bare", "ceiling"}:
        await stage.fresh(duration=duration)
        (before, _), began = stage.cpu(), time.monotonic()
        figures = await stage.floor(
            kind, posts=sizes.burst, replications=sizes.burst_replications, seed=f"{kind}-{number}"
        )
        figures["vcda_cpu_ms"] = (stage.cpu()[0] - before) / sizes.burst * 1000
        figures["vcda_busy"] = (stage.cpu()[0] - before) / figures["seconds"]
        figures["wall_s"] = time.monotonic() - began
        return Run(scenario="S1", subject=kind, round=number, figures=figures)
    requests = asked(f"s1-{kind}-{number}", sizes.burst, replications=sizes.burst_replications)
    return await whole(
        stage, _kind(kind), scenario="S1", number=number, requests=requests, duration=duration, shortest="PT0.1S"
    )


async def other_python(stage: Stage, subject: str, *, sizes: Sizes, number: int, interpreter: Path) -> Run:
    """S1 with the service run by another Python, of a virtual environment that has the service's packages."""
    requests = asked(f"python-{subject}-{number}", sizes.burst, replications=sizes.burst_replications)
    run = await whole(
        stage,
        "service",
        scenario="pythons",
        number=number,
        requests=requests,
        duration=str(BURST_DURATION),
        shortest="PT0.1S",
        program=(str(interpreter), *SERVICE[1:]),
    )
    return replace(run, subject=subject)


async def on_cores(stage: Stage, processes: str, *, sizes: Sizes, number: int) -> Run:
    """S1 with so many processes, each held to a core of its own, sharing 8 partitions. CPU time is that of all."""
    taskset = shutil.which("taskset")
    if taskset is None:
        msg = "holding processes to cores takes the program taskset, of util-linux"
        raise BenchError(msg)
    await stage.fresh(duration=str(BURST_DURATION))
    topics = await stage.topics()
    requests = asked(f"cores-{processes}-{number}", sizes.burst, replications=sizes.burst_replications)
    cores = itertools.cycle(sorted(os.sched_getaffinity(0)))
    subjects = [
        stage.start("service", topics, program=(taskset, "--cpu-list", str(core), *SERVICE), SYNC__POLL_MIN="PT0.1S")
        for core in itertools.islice(cores, int(processes))
    ]
    try:
        for subject in subjects:
            await subject.ready()
        async with Outcomes(stage.bootstrap, topics) as outcomes:
            before = [Cpu.now(stage, subject.pid) for subject in subjects]
            await burst(stage.bootstrap, topics, requests)
            await outcomes.wait(len(requests), within=PATIENCE, checking=subjects[0].check)
            after = [Cpu.now(stage, subject.pid) for subject in subjects]
            came = outcomes.by_operation()
        each = [one.until(two, requests=len(requests)) for one, two in zip(before, after, strict=True)]
        starts = sorted(task["start"] for task in await stage.vcda_says("ledger"))
        figures = each[0] | {
            "posts_per_second": (len(starts) - 1) / max(0.001, starts[-1] - starts[0]),
            "cpu_ms": sum(one["cpu_ms"] for one in each),
            "least_share": min(one["cpu_s"] for one in each) / sum(one["cpu_s"] for one in each),
        }
        # A process that is bound by its core makes 1 / (CPU time of a task) tasks a second.
        figures["tasks_per_core_second"] = 1000 * len(subjects) / figures["cpu_ms"]
        figures |= await tally(stage, requests=len(requests), came=len(came))
    finally:
        await asyncio.gather(*(subject.stop() for subject in subjects))
        await stage.drop(topics)
    return Run(scenario="cores", subject=processes, round=number, figures=figures)


async def long_ones(stage: Stage, kind: str, *, sizes: Sizes, number: int) -> Run:
    """S2: each request for a replication of its own; tasks whose durations are log-normal, sigma 0.5."""
    return await _long(stage, kind, sizes=sizes, number=number, scenario="S2", count=sizes.long, sigma=0.5)


async def long_ones_with_a_tail(stage: Stage, kind: str, *, sizes: Sizes, number: int) -> Run:
    """S2 wide: the same with sigma 0.8, so that the last tasks run for minutes after most have ended."""
    return await _long(stage, kind, sizes=sizes, number=number, scenario="S2 wide", count=sizes.wide, sigma=0.8)


async def _long(stage: Stage, kind: str, *, sizes: Sizes, number: int, scenario: str, count: int, sigma: float) -> Run:
    return await whole(
        stage,
        _kind(kind),
        scenario=scenario,
        number=number,
        requests=asked(f"{scenario}-{kind}-{number}", count, replications=count),
        duration=f"lognormal-mean:{sizes.long_mean}:{sigma}",
        shortest="PT1S",
        idle=sizes.idle,
        longest=20 * sizes.long_mean,
    )


# ---------------------------------------------------------------- many in flight


async def in_flight(stage: Stage, level: str, *, sizes: Sizes, number: int) -> Run:
    """Have so many in flight at once, all for other replications, and let them end; the service alone."""
    count = int(level)
    low, high = sizes.flight_between
    await stage.fresh(duration=f"uniform:{low}:{high}")
    topics = await stage.topics()
    subject = stage.start("service", topics)
    try:
        await subject.ready()
        idle = await idle_busy(subject.pid, sizes.idle)
        empty = resident(subject.pid)
        scraped = await subject.metrics()
        requests = asked(f"flight-{level}-{number}", count, replications=count)
        async with Outcomes(stage.bootstrap, topics) as outcomes:
            before, began = Cpu.now(stage, subject.pid), time.time()
            await burst(stage.bootstrap, topics, requests)
            full = await _all_posted(stage, count)
            held = resident(subject.pid)
            await outcomes.wait(count, within=high + PATIENCE, checking=subject.check)
            after = Cpu.now(stage, subject.pid)
            came = outcomes.by_operation()
        figures = before.until(after, requests=count)
        seconds = after.at - before.at
        figures["net_cpu_ms"] = (figures["cpu_s"] - idle * seconds) / count * 1000
        figures["idle_busy"] = idle
        figures["bytes_each"] = (held - empty) / count
        figures["empty_mb"], figures["held_mb"] = empty / 1e6, held / 1e6
        figures["at_once"] = float(full)
        figures["loop_lag_p99_s"] = histogram_quantile(scraped, await subject.metrics(), LAG, 0.99)
        told, lags = facts(await stage.vcda_says("ledger"), came, began=began)
        figures |= told | await tally(stage, requests=count, came=len(came))
    finally:
        await subject.stop()
        await stage.drop(topics)
    return Run(scenario="flight", subject=level, round=number, figures=figures, curves={"lag_s": thinned(lags)})


async def idle_busy(pid: int, seconds: float) -> float:
    """Return the CPU seconds a second that a process uses doing nothing."""
    before = cpu_seconds(pid)
    await asyncio.sleep(seconds)
    return (cpu_seconds(pid) - before) / seconds


async def _all_posted(stage: Stage, count: int) -> int:
    """Wait until all syncs have been begun; return how many of them have not ended yet."""
    give_up = time.monotonic() + PATIENCE
    while True:
        counters = await stage.vcda_says("counters")
        if counters["tasks"] >= count or time.monotonic() > give_up:
            return sum(n for state, n in counters["tasksByState"].items() if state in {"QUEUED", "RUNNING"})
        await asyncio.sleep(0.2 if count <= 1_000 else 1.0)  # noqa: PLR2004 - counting many costs VCDA some time


# ---------------------------------------------------------------- a trickle


async def steady_trickle(stage: Stage, kind: str, *, sizes: Sizes, number: int) -> Run:
    """Requests at random moments: how long from Kafka's appending a record to VCDA's receiving the POST."""
    await stage.fresh(duration="1")
    topics = await stage.topics(partitions=4)
    subject = stage.start(_kind(kind), topics)
    try:
        await subject.ready()
        count = int(sizes.rate * sizes.trickle)
        requests = asked(f"trickle-{kind}-{number}", count, replications=count)
        appended: dict[str, float] = {}
        scraped = await subject.metrics() if kind == "service" else ""
        async with Outcomes(stage.bootstrap, topics) as outcomes:
            before = Cpu.now(stage, subject.pid)
            await trickle(stage.bootstrap, topics.requests, requests, rate=sizes.rate, appended=appended)
            await outcomes.wait(count, within=PATIENCE, checking=subject.check)
            after = Cpu.now(stage, subject.pid)
            missing = count - len(outcomes.by_operation())
        waits = posted_after(await stage.vcda_says("ledger"), appended)
        # The first ones find the process cold: its connections to VCDA are yet to be made.
        waits = sorted(waits[len(waits) // 20 :])
        figures = before.until(after, requests=count) | {
            "wait_p50_ms": quantile(waits, 0.5) * 1000,
            "wait_p99_ms": quantile(waits, 0.99) * 1000,
            "wait_max_ms": waits[-1] * 1000,
            "missing": float(missing),
        }
        if kind == "service":
            figures["commit_p50_ms"] = histogram_quantile(scraped, await subject.metrics(), COMMIT, 0.5) * 1000
    finally:
        await subject.stop()
        await stage.drop(topics)
    return Run(scenario="trickle", subject=kind, round=number, figures=figures, curves={"wait_s": thinned(waits)})


def posted_after(ledger: Sequence[dict[str, Any]], appended: dict[str, float]) -> list[float]:
    """Return how long each request waited for its POST, in the order of the requests' appending."""
    posted = {task["operationID"]: task["start"] for task in ledger}
    return [
        max(0.0, posted[operation] - at)
        for operation, at in sorted(appended.items(), key=lambda item: item[1])
        if operation in posted
    ]


def _kind(name: str) -> Kind:
    match name:
        case "service" | "obvious" | "listing" | "running":
            return name
        case _:
            raise ValueError(name)
