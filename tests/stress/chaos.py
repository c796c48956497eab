"""`make chaos`: kill, freeze and cut off whatever there is, then count outcomes and tasks: one for each request.

    python -m tests.stress.chaos [--seed N] [--seeds N] [--requests N] [--brokers N ...]
                          [--only HAPPENING ...] [--odd ODD ...] [--ending ENDING]                 what `schedule` has
                          [--write]                                          put the table into docs/testing.md

or SEED, SEEDS, REQUESTS and BROKERS in the environment. Each run has a Kafka of one broker or three, a simulated VCDA
and one to four processes of its own; without BROKERS each seed is run on both. The seed is printed first and repeats
the schedule; what the machine makes of its timing differs. Exit code 1 when a promise of `docs/guarantees.md` was
broken; the logs are kept then.
"""

import argparse
import asyncio
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.sandbox.kafka import KafkaError
from tests.stress.chaos_runner import Conductor, Report, kafka_of
from tests.stress.schedule import ODD, TO_BROKERS, Ending, Odd, Schedule, What, draw
from tests.support.cluster import BROKERS

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "testing.md"
MARKS: Final = ("<!-- three brokers: begin -->", "<!-- three brokers: end -->")

SILENCES: Final = {"silent after a kill": What.BROKER_DIES, "silent after a restart": What.BROKER_RESTARTS}
"""The longest time that a partition had no outcome, by column."""

FIGURES = ("asked", "completed", "failed", "lost", "two outcomes", "two tasks", "overlapping", "dead letters", "posts")


async def run(schedule: Schedule, *, progress: Progress | None = None) -> Report:
    """Do one run on a Kafka of its own; logs of a run that found something stay, and its report says where.

    Raises:
        KafkaError: there is no Kafka to be had.
    """
    seed, requests = schedule.seed, len(schedule.sendings)
    bar = None if progress is None else progress.add_task(f"seed {seed}", total=requests)

    def show(words: str, asked: int, told: int) -> None:
        if progress is not None and bar is not None:
            description = f"seed {seed}: {words[:44]}" if words else None
            progress.update(bar, completed=told, total=max(asked, requests), description=description)

    conductor = Conductor(schedule, kafka=kafka_of(schedule.brokers), show=show, prefix=f"chaos-{seed}")
    kept = Path(tempfile.mkdtemp(prefix=f"vm-sync-chaos-{seed}-"))
    report = None
    try:
        report = await conductor.run(keep=kept)
    finally:
        if report is not None and not report.verdict.violations:
            shutil.rmtree(kept)
        else:
            Console(stderr=True).print(f"The logs of seed {seed} are kept in {kept}", style="bold red")
    if progress is not None and bar is not None:
        progress.remove_task(bar)
    return report


def table(reports: Sequence[Report]) -> Table:
    """Sum up, a row for each seed."""
    summary = Table(title="Chaos")
    for name in ("seed", "brokers", "processes", *FIGURES, *SILENCES, "went wrong", "not promised", "calm s", "took s"):
        summary.add_column(name, justify="right")
    for report in reports:
        figures = report.verdict.figures
        summary.add_row(
            str(report.schedule.seed),
            str(report.schedule.brokers),
            str(report.schedule.members),
            *(f"{figures[name]:.0f}" for name in FIGURES),
            *(longest(report, what) for what in SILENCES.values()),
            str(report.faults),
            str(report.verdict.not_promised.total()),
            f"{report.calm:.0f}",
            f"{report.took:.0f}",
            style="red" if report.verdict.violations else None,
        )
    return summary


def longest(report: Report, what: What) -> str:
    """Return the longest silence after something that was done to a broker, in seconds."""
    found = [one.longest for one in report.verdict.silences if one.disturbance.words.startswith(what)]
    return f"{max(found):.1f}" if found else ""


def written(reports: Sequence[Report], *, command: str) -> str:
    """Return what `docs/testing.md` has of these runs."""
    names = ("seed", "processes", *FIGURES[:-1], "POSTs", *(f"{name}, s" for name in SILENCES))
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for report in reports:
        numbers = [f"{report.verdict.figures[name]:,.0f}" for name in FIGURES]
        silent = [longest(report, what) for what in SILENCES.values()]
        lines.append(f"| {' | '.join([str(report.schedule.seed), str(report.schedule.members), *numbers, *silent])} |")
    happened: Counter[str] = Counter()
    for report in reports:
        happened += report.happened
    done = ", ".join(f"{what} {happened[what]} times" for what in What if what in TO_BROKERS and happened[what])
    took = sorted(report.took for report in reports)
    bounds = [one.disturbance.bound for report in reports for one in report.verdict.silences]
    return (
        f"`{command}`: three brokers, of which one is killed, restarted or frozen at a time, and now and then two; "
        f"{took[0]:.0f} to {took[-1]:.0f} s a seed. The last columns are the longest time that any partition had no "
        f"outcome after a broker was killed (at most 14 s on a machine that does nothing else) and restarted (at most "
        f"5 s); this machine's bounds were {min(bounds, default=0.0):.1f} to {max(bounds, default=0.0):.1f} s.\n\n"
        + "\n".join(lines)
        + f"\n\nIn these runs: {done}.\n"
    )


def write(text: str) -> None:
    """Put the figures of several brokers into the page."""
    page = PAGE.read_text(encoding="utf-8")
    begin, rest = page.split(MARKS[0])
    _, end = rest.split(MARKS[1])
    PAGE.write_text(f"{begin}{MARKS[0]}\n{text}{MARKS[1]}{end}", encoding="utf-8")


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, and the environment where it says nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.chaos", description="Break everything, count everything."
    )
    environ = os.environ
    parser.add_argument("--seed", type=int, default=environ.get("SEED"), help="the first seed; drawn if not given")
    parser.add_argument("--seeds", type=int, default=environ.get("SEEDS", "1"), help="how many, one after another")
    parser.add_argument("--requests", type=int, default=environ.get("REQUESTS", "3000"), help="in each run")
    brokers = [int(number) for number in environ.get("BROKERS", "1 3").split()]
    parser.add_argument("--brokers", type=int, nargs="+", default=brokers, choices=(1, BROKERS), help="of Kafka")
    for name, words in (("only", What), ("odd", Odd)):
        choices = [word.name.lower() for word in words]
        parser.add_argument(f"--{name}", nargs="*", default=[], choices=choices, help="and nothing else of this kind")
    parser.add_argument("--ending", choices=[ending.name.lower() for ending in Ending], help="how each run ends")
    parser.add_argument("--write", action="store_true", help=f"put the table of three brokers into {PAGE.name}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds one after another, each on every number of brokers."""
    given = options(arguments)
    first = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background, and so by our commands
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it can't know that we stopped Kafka ourselves
    console = Console(width=max(170, Console().width))
    reports: list[Report] = []
    unfinished: list[int] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for brokers, seed in product(given.brokers, range(first, first + given.seeds)):
            console.print(f"SEED={seed} REQUESTS={given.requests} BROKERS={brokers} make chaos")
            schedule = draw(
                seed,
                requests=given.requests,
                only=[What[name.upper()] for name in given.only],
                odd=[Odd[name.upper()] for name in given.odd] or ODD,
                ending=Ending[given.ending.upper()] if given.ending else None,
                brokers=brokers,
            )
            try:
                report = asyncio.run(run(schedule, progress=progress))
            except (KafkaError, TimeoutError, AssertionError) as error:
                console.print(f"  did not come to its end: {error!r}", style="bold red", markup=False)
                unfinished.append(seed)
                if isinstance(error, KafkaError) and not reports:
                    return 1  # there is no Kafka to be had
                continue
            reports.append(report)
            tell(report, console)
            if given.write and (several := [report for report in reports if report.schedule.brokers > 1]):
                command = f"SEED={first} SEEDS={given.seeds} REQUESTS={given.requests} BROKERS={BROKERS} make chaos"
                write(written(several, command=command))  # after each seed, so that none is lost with the next one
    console.print(table(reports))
    not_promised: Counter[str] = Counter()
    for report in reports:
        not_promised += report.verdict.not_promised
    for case, count in not_promised.items():
        console.print(f"Not promised, provoked {count} times: {case}")
    broken = [report.schedule.seed for report in reports if report.verdict.violations]
    if broken:
        console.print(f"Promises were broken with seeds {broken}", style="bold red")
    if unfinished:
        console.print(f"Seeds that did not come to their ends: {unfinished}", style="bold red")
    return 1 if broken or unfinished else 0


def tell(report: Report, console: Console) -> None:
    """Print what a run has shown."""
    happened = ", ".join(f"{words} x{count}" for words, count in report.happened.items())
    figures = ", ".join(f"{name} {report.verdict.figures[name]:.0f}" for name in FIGURES)
    console.print(f"  {figures}; {report.took:.0f} s")
    console.print(f"  {happened}", style="dim")
    for one in report.verdict.silences:
        words = f"  no outcome for {one.longest:.1f} s (at most {one.disturbance.bound:.1f}) of partition"
        console.print(f"{words} {one.partition}: {one.disturbance.words}", markup=False)
    for sentence in report.verdict.violations:
        console.print(f"  {sentence}", style="bold red", markup=False)


if __name__ == "__main__":
    sys.exit(main())
