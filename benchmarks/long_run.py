"""A million requests through one deployment, at a steady rate: does anything grow, get lost or come twice?

    python -m benchmarks.long_run --docs docs                             a million at 500 a second, and its page
    python -m benchmarks.long_run --requests 20000 --remember 10          the same in small; prints, and writes no page
    python -m benchmarks.long_run --pages docs/performance/long-run.json  write the page from raw figures

A real Kafka, the simulated VCDA and several processes of the service, each a process of its own. Tasks take seconds
instead of minutes. Ended requests are remembered for a while and then forgotten, so that the journal has to be
compacted. Each ten seconds, a sample is taken: memory, file descriptors, threads and CPU time of each process, and the
journal's files. If the outcomes fall far behind, requests wait: the machine sets the rate then.

At the end all processes are stopped while tasks run, and a single one takes over all partitions; then each journal
partition is opened by itself. Each request must have one task and one outcome that tells this task's end.
Exit code 1 if not, or if something has grown. Prints a table; with `--docs` it writes a page and keeps the raw figures.
"""

import argparse
import asyncio
import json
import logging
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import plots
from benchmarks.controls import replication_ids
from benchmarks.log_files import OnDisk, on_disk
from benchmarks.page import number, table
from benchmarks.results import machine, quantile
from benchmarks.stage import PARTITIONS, BenchError, Stage, Subject, Topics, cpu_seconds, peak, resident
from benchmarks.tally import Tally
from benchmarks.traffic import Outcomes, Request, producing
from service.clock import Clock
from service.kafka.connection import KafkaConnection
from service.kafka.journal import KafkaJournal, Refusals
from service.kafka.topics import JOURNAL_SETTINGS
from service.sandbox.kafka import KafkaError

QUICK_COMPACTION: Final = {
    "segment.bytes": str(4 * 1024 * 1024),
    "delete.retention.ms": "60000",
}
"""Settings of the journal that differ from those which the service creates it with. Compaction leaves the segment that
is being written alone, and keeps the record that deletes an identity for `delete.retention.ms`, a day by default."""

REPLICATIONS: Final = 20_000
"""At 500 a second one is asked for again after 40 s, when its last sync has ended."""

TASKS: Final = "uniform:1:5"
"""Seconds that a task runs."""

FAILING: Final = 0.01
"""The part of the tasks that fail."""

LOOK_EVERY: Final = 10.0
"""Seconds between two samples."""

SEND_EVERY: Final = 0.05
"""Seconds between two handfuls of requests."""

BEHIND: Final = 40.0
"""Requests wait while so many seconds' worth of them have no outcome."""

ARCHIVED_AFTER: Final = 60.0
"""Seconds after a task's end until the simulated VCDA forgets it; by then, the service has seen its end long ago."""

PATIENCE: Final = 120.0
"""Seconds without any outcome after which those that are missing count as lost."""

GROWTH: Final = {"memory, MB": 12.0, "file descriptors": 6.0, "threads": 2.0}
"""What may be added from the second quarter of the time to the last: slack of the allocator and of connection pools."""

RESTORE_LIMIT: Final = 5.0
"""Seconds."""

MB: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked for. Times in seconds."""

    requests: int
    rate: float
    seconds: float | None
    """After so long, nothing more is asked for; None: no limit."""
    processes: int
    remember: float
    partitions: int = PARTITIONS

    @property
    def most(self) -> int:
        """How many requests there can be in the time."""
        return self.requests if self.seconds is None else min(self.requests, int(self.rate * self.seconds))


@dataclass(slots=True)
class LongRun:
    """What a long run has shown; its raw figures."""

    load: Load
    taken: str
    machine: Mapping[str, str]
    journal_settings: Mapping[str, str]
    samples: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    opened: list[dict[str, float]] = field(default_factory=list)
    """Each journal partition, opened by itself: seconds, and what is in flight and remembered there."""
    findings: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Keep it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "LongRun":
        """Read it again."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls(load=Load(**raw.pop("load")), **raw)


# ---------------------------------------------------------------- running


def look(pid: int) -> dict[str, float]:
    """Read what the kernel says of a process."""
    folder = Path(f"/proc/{pid}")
    threads = re.search(r"Threads:\s+(\d+)", (folder / "status").read_text(encoding="ascii"))
    return {
        "memory, MB": resident(pid) / MB,
        "file descriptors": float(len([*(folder / "fd").iterdir()])),
        "threads": float(threads[1]) if threads else 0.0,
        "CPU s": cpu_seconds(pid),
    }


class Deployment:
    """Some processes of the service under a steady load, and what is known of their requests."""

    def __init__(self, stage: Stage, topics: Topics, load: Load, run: LongRun, progress: Progress) -> None:
        self._stage = stage
        self._topics = topics
        self._load = load
        self._run = run
        self._progress = progress
        self._bar = progress.add_task("outcomes", total=load.most)
        self._names = replication_ids("long-run", REPLICATIONS)
        self._tally = Tally()
        self._began = time.monotonic()
        self._processes: list[Subject] = []

    async def work(self) -> None:
        """Run it from the first request to the last outcome, and write down everything."""
        self._processes = [self._start() for _ in range(self._load.processes)]
        for process in self._processes:
            await process.ready()
        take = self._tally.take_outcome
        async with Outcomes(self._stage.bootstrap, self._topics, take=take) as outcomes:
            self._began = time.monotonic()
            asked = asyncio.Event()
            looking = asyncio.create_task(self._look_on(asked))
            try:
                await self._ask(looking)
            finally:
                asked.set()
                await asyncio.wait([looking])
            looking.result()
            seconds = time.monotonic() - self._began
            last = await self._take_over()
            await self._wait_for_the_rest(outcomes)
        await last.stop()
        await self._archive(ended_for=0.0)
        await self._open_each()
        for process in self._processes:
            self._run.findings += await asyncio.to_thread(_errors, process.log)
        self._sum_up(seconds)

    def _start(self) -> Subject:
        return self._stage.start("service", self._topics, SYNC__DEDUPLICATE_FOR=f"PT{self._load.remember:g}S")

    async def _ask(self, looking: "asyncio.Task[None]") -> None:
        """Put requests on the topic, until there are enough or the time is up."""
        load, tally = self._load, self._tally
        allowed, moment = 0.0, time.monotonic()
        until = moment + load.seconds if load.seconds is not None else float("inf")
        async with producing(self._stage.bootstrap) as producer:
            while tally.asked < load.requests and time.monotonic() < until:
                await asyncio.sleep(SEND_EVERY)
                for process in self._processes:
                    process.check()
                if looking.done():
                    looking.result()
                now = time.monotonic()
                allowed, moment = min(allowed + (now - moment) * load.rate, load.rate), now
                room = int(BEHIND * load.rate) - (tally.asked - tally.ended)
                count = min(int(allowed), room, load.requests - tally.asked)
                if count > 0:
                    allowed -= count
                    await self._send(producer, tally.ask(count))

    async def _send(self, producer: AIOKafkaProducer, numbers: range) -> None:
        for one in numbers:
            request = Request(f"op-{one}", self._names[one % len(self._names)])
            await producer.send(self._topics.requests, request.value, key=request.replication_id.encode())

    async def _look_on(self, asked: asyncio.Event) -> None:
        """Take samples until everything is asked for."""
        while not asked.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await asked.wait()
            await self._archive(ended_for=ARCHIVED_AFTER)
            disk = await self._on_disk()
            self._run.samples.append(
                {
                    "at": time.monotonic() - self._began,
                    "asked": self._tally.asked,
                    "ended": self._tally.ended,
                    "processes": [look(process.pid) for process in self._processes],
                    "kafka CPU s": self._stage.cpu()[1],
                    "vcda CPU s": self._stage.cpu()[0],
                    "journal": asdict(disk),
                }
            )
            self._progress.update(self._bar, completed=self._tally.ended)
            if not self._progress.console.is_terminal and len(self._run.samples) % 6 == 0:
                at = time.monotonic() - self._began
                print(f"{at:6.0f} s: {self._tally.asked:,} requests, {self._tally.ended:,} outcomes", flush=True)

    async def _on_disk(self) -> OnDisk:
        return await asyncio.to_thread(on_disk, self._stage.kafka_data, self._topics.journal)

    async def _archive(self, *, ended_for: float) -> None:
        self._tally.take_tasks(await self._stage.vcda_told("archive", ended_for=ended_for))

    async def _take_over(self) -> Subject:
        """Stop all processes while tasks run, and have a single one take over; return it, working."""
        self._run.figures["peak_mb"] = max(peak(process.pid) for process in self._processes) / MB
        await asyncio.gather(*(process.stop() for process in self._processes))
        disk = await self._on_disk()
        running = self._tally.asked - self._tally.ended
        last = self._start()
        await last.ready()
        assigned = last.logged("Rebalance: assigned partitions")
        opened = [last.logged(f"Partition {place} is open:") for place in range(self._load.partitions)]
        moments = sorted(moment for moment in opened if moment is not None)
        if assigned is None or len(moments) < self._load.partitions:
            msg = f"the log doesn't tell when all partitions were opened:\n{last.text()[-3000:]}"
            raise BenchError(msg)
        self._run.figures |= {
            "without_outcome": float(running),
            "restore_s": moments[-1] - assigned,
            "restore_first_s": moments[0] - assigned,
            "restored_mb": resident(last.pid) / MB,
            "journal_mb": disk.bytes / MB,
            "journal_records": float(disk.records),
            "journal_written": float(disk.written),
        }
        self._processes.append(last)
        return last

    async def _wait_for_the_rest(self, outcomes: Outcomes) -> None:
        """Wait until each request has an outcome, for as long as outcomes come."""
        came, give_up = len(outcomes), time.monotonic() + PATIENCE
        while self._tally.ended < self._tally.asked and time.monotonic() < give_up:
            await asyncio.sleep(0.1)
            if len(outcomes) > came:
                came, give_up = len(outcomes), time.monotonic() + PATIENCE
        await asyncio.sleep(2.0)  # what comes twice comes late
        self._progress.update(self._bar, completed=self._tally.ended)

    async def _open_each(self) -> None:
        """Open one journal partition after the other, as a process does that is given one alone."""
        connection = KafkaConnection(bootstrap_servers=(self._stage.bootstrap,)).arguments()
        clock = Clock()
        for partition in range(self._load.partitions):
            began = time.monotonic()
            opened = await KafkaJournal.open(
                topic=self._topics.journal,
                partition=partition,
                connection=connection,
                clock=clock,
                refusals=Refusals(),
            )
            seconds = time.monotonic() - began
            await opened.journal.close()
            self._run.opened.append(
                {"seconds": seconds, "in_flight": len(opened.in_flight), "remembered": len(opened.ended.identities)}
            )

    def _sum_up(self, seconds: float) -> None:
        tally, run = self._tally, self._run
        lags = tally.lags() or [0.0]
        used = sum(process["CPU s"] for process in run.samples[-1]["processes"]) if run.samples else 0.0
        run.figures |= {
            "asked": float(tally.asked),
            "ended": float(tally.ended),
            "seconds": seconds,
            "rate": tally.asked / seconds,
            "cpu_ms": used / max(1, run.samples[-1]["ended"]) * 1000 if run.samples else 0.0,
            "lag_p50_s": quantile(lags, 0.5),
            "lag_p99_s": quantile(lags, 0.99),
            "lag_max_s": lags[-1],
        }
        run.outcomes = dict(tally.outcomes)
        run.findings += tally.findings()


def _errors(log: Path) -> list[str]:
    """Find what a process logged as errors, without reading a log of hundreds of megabytes into memory."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        bad = [line for line in lines if "Traceback" in line or '"ERROR"' in line or '"CRITICAL"' in line]
    return [f"{len(bad)} errors in the log of a process, the first: {bad[0][:500]}"] if bad else []


async def long_run(load: Load, *, show: Console) -> LongRun:
    """Run it all."""
    settings = {**JOURNAL_SETTINGS, **QUICK_COMPACTION}
    run = LongRun(load, datetime.now(UTC).isoformat(timespec="minutes"), machine(), settings)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=show) as progress:
        async with Stage() as stage:
            await stage.vcda_told("plan", queued="0.2", duration=TASKS, failing=FAILING)
            topics = await stage.topics(load.partitions, journal=settings)
            await Deployment(stage, topics, load, run, progress).work()
    return run


# ---------------------------------------------------------------- judging


def growth(run: LongRun) -> Iterator[tuple[str, float, float, bool]]:
    """Compare the medians of the second and the last quarter: of all processes, the one that has grown most.

    Yields nothing where identities are remembered for longer than a quarter: memory grows until they are forgotten.
    """
    end = run.samples[-1]["at"] if run.samples else 0.0
    if end / 4 < run.load.remember:
        return
    for name, allowed in GROWTH.items():
        pairs = [
            tuple(
                median(sample["processes"][place][name] for sample in run.samples if low <= sample["at"] / end <= high)
                for low, high in ((0.25, 0.5), (0.75, 1.0))
            )
            for place in range(run.load.processes)
        ]
        before, after = max(pairs, key=lambda pair: pair[1] - pair[0])
        yield name, before, after, after - before <= allowed


def passed(run: LongRun) -> bool:
    """Whether nothing has grown, got lost or come twice, and the restore was fast enough."""
    flat = all(well for *_, well in growth(run))
    return flat and not run.findings and run.figures["restore_s"] <= RESTORE_LIMIT


# ---------------------------------------------------------------- telling


def rows(run: LongRun) -> Iterator[tuple[str, str]]:
    """Yield what was measured, for a table."""
    figures = run.figures
    yield "requests, and those with an outcome", f"{figures['asked']:,.0f}, {figures['ended']:,.0f}"
    yield "how they ended", ", ".join(f"{reason} {count:,}" for reason, count in sorted(run.outcomes.items()))
    yield "not one task and one outcome each, or an error in a log", "; ".join(run.findings) or "nothing"
    yield "requests/s", number(figures["rate"])
    yield "CPU of the service per request", f"{number(figures['cpu_ms'])} ms"
    lags = (figures["lag_p50_s"], figures["lag_p99_s"], figures["lag_max_s"])
    yield "from a task's end to its outcome: p50, p99, longest", ", ".join(f"{number(lag)} s" for lag in lags)
    compared = list(growth(run))
    for name, before, after, flat in compared:
        judged = f"{before:.1f}, {after:.1f}" + (": flat" if flat else ": **grew**")
        yield f"{name}: second quarter, last quarter, of the process that grew most", judged
    if not compared:
        yield "growth", "not judged: identities are remembered for longer than a quarter of the run"
    yield "most memory of a process", f"{number(figures['peak_mb'])} MB"
    most = max((sample["journal"]["bytes"] for sample in run.samples), default=0)
    yield "the journal's files at the end, and at most", f"{number(figures['journal_mb'])}, {number(most / MB)} MB"
    yield (
        "the journal's records at the end, of so many written, markers included",
        f"{figures['journal_records']:,.0f} of {figures['journal_written']:,.0f}",
    )
    taken = (
        f"one process takes over {run.load.partitions} partitions, with {figures['without_outcome']:,.0f} requests in "
        f"flight: first and last partition open after (wanted: {RESTORE_LIMIT:g} s)"
    )
    late = ": **too late**" if figures["restore_s"] > RESTORE_LIMIT else ""
    yield taken, f"{number(figures['restore_first_s'])}, {number(figures['restore_s'])} s{late}"
    yield "memory of that process when it is ready", f"{number(figures['restored_mb'])} MB"
    remembered = median(partition["remembered"] for partition in run.opened)
    seconds = [partition["seconds"] for partition in run.opened]
    yield (
        f"a journal partition opened by itself, some {remembered:,.0f} remembered in it: median, longest",
        f"{number(median(seconds))}, {number(max(seconds))} s",
    )


def write(run: LongRun, docs: Path) -> None:
    """Write the page, draw its picture, and keep the raw figures."""
    folder = docs / "performance"
    run.write(folder / "long-run.json")
    plots.draw_long_run(run.samples, folder / "long-run.svg")
    (folder / "long-run.md").write_text("\n\n".join(_page(run)) + "\n", encoding="utf-8")


def _page(run: LongRun) -> Iterator[str]:
    load, settings = run.load, run.journal_settings
    yield "# A long run"
    yield (
        "Written by `python -m benchmarks.long_run --docs docs` from [its raw figures](long-run.json); don't edit it. "
        f"{run.figures['asked']:,.0f} requests through one deployment of {load.processes} processes and "
        f"{load.partitions} partitions, {load.rate:g} a second wanted, for {REPLICATIONS:,} replications; tasks of 1 "
        f"to 5 s, of which {FAILING:.0%} fail. Ended requests are remembered for {load.remember:g} s "
        "(`DEDUPLICATE_FOR`)."
    )
    yield table(("what", "measured"), rows(run))
    yield "![Memory of each process, and the journal's size, over time](long-run.svg)"
    yield "## Method"
    yield METHOD.format(
        settings=", ".join(f"`{name}={text}`" for name, text in settings.items()),
        own=", ".join(f"`{name}`" for name in QUICK_COMPACTION),
        taken=run.taken,
        **run.machine,
    )


METHOD = """\
- {taken}, revision {revision}: {processor}, {cores} cores, {memory}, {system}; load before the start {load}. Kafka
  (one node, no replication), the simulated VCDA, the service's processes and what asks and reads share these cores.
- The journal's settings are the topic's own, as an operator sets them: {settings}. The service creates it with others
  for {own}; with those, compaction comes later, and a deleted identity's record stays for a day.
- The journal's size is that of its `.log` files; its records are counted in the batches' headers, each deleting record
  included that compaction still keeps.
- Each request is followed by its number, in some 30 bytes: how many tasks the simulated VCDA had for it, how many
  outcomes a reader of committed records saw, and whether the outcome names this task and its end. The order of a
  replication's syncs is the chaos tests' to judge.
- At the end, all processes are stopped while tasks run, and one process takes over all partitions: the time from the
  assignment to the last partition's opening. Then the service is stopped, and each journal partition is opened by
  itself, as a process does that is given one."""


def main(argv: list[str] | None = None) -> int:
    """Run it, print a table, and return 1 where something grew, got lost or came twice."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second")
    parser.add_argument("--minutes", type=float, help="ask for nothing more after so long")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--remember", type=float, default=300.0, help="seconds for which identities are remembered")
    parser.add_argument("--json", type=Path, default=Path("build/long-run.json"), help="where the raw figures are kept")
    parser.add_argument("--docs", type=Path, help="write the page, its picture and the raw figures there")
    parser.add_argument("--pages", type=Path, metavar="FILE", help="measure nothing: write the page from this file")
    given = parser.parse_args(argv)
    if given.pages:
        write(LongRun.read(given.pages), given.docs or Path("docs"))
        return 0
    show = Console()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # topics that are new have no leader for a moment
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up after any signal
    load = Load(
        requests=given.requests,
        rate=given.rate,
        seconds=None if given.minutes is None else given.minutes * 60,
        processes=given.processes,
        remember=given.remember,
    )
    try:
        run = asyncio.run(long_run(load, show=show))
    except (KafkaError, BenchError) as error:
        show.print(str(error))
        return 1
    run.write(given.json)
    print(table(("what", "measured"), rows(run)))
    if given.docs:
        write(run, given.docs)
    return int(not passed(run))


if __name__ == "__main__":
    sys.exit(main())
