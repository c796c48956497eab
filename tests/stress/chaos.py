"""`make chaos`: kill, freeze and cut off whatever there is, then count outcomes and tasks: one for each request.

    python -m tests.stress.chaos [--seed N] [--seeds N] [--requests N]   or SEED, SEEDS and REQUESTS in the environment
                          [--only HAPPENING ...] [--odd ODD ...] [--ending ENDING]                 what `schedule` has

Each run has a Kafka, a simulated VCDA and one to four processes of its own. The seed is printed first and repeats the
schedule; what the machine makes of its timing differs. Exit code 1 when a promise of `docs/guarantees.md` was broken;
the logs are kept then.
"""

import argparse
import asyncio
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.sandbox.kafka import KafkaError
from tests.stress.chaos_runner import Conductor, Report, broker
from tests.stress.schedule import ODD, Ending, Odd, Schedule, What, draw

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

    conductor = Conductor(schedule, kafka=broker(), show=show, prefix=f"chaos-{seed}")
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
    for name in ("seed", "processes", *FIGURES, "went wrong", "not promised", "calm s", "took s"):
        summary.add_column(name, justify="right")
    for report in reports:
        figures = report.verdict.figures
        summary.add_row(
            str(report.schedule.seed),
            str(report.schedule.members),
            *(f"{figures[name]:.0f}" for name in FIGURES),
            str(report.faults),
            str(report.verdict.not_promised.total()),
            f"{report.calm:.0f}",
            f"{report.took:.0f}",
            style="red" if report.verdict.violations else None,
        )
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds one after another."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.chaos", description="Break everything, count everything."
    )
    environ = os.environ
    parser.add_argument("--seed", type=int, default=environ.get("SEED"), help="the first seed; drawn if not given")
    parser.add_argument("--seeds", type=int, default=environ.get("SEEDS", "1"), help="how many, one after another")
    parser.add_argument("--requests", type=int, default=environ.get("REQUESTS", "3000"), help="in each run")
    for name, words in (("only", What), ("odd", Odd)):
        choices = [word.name.lower() for word in words]
        parser.add_argument(f"--{name}", nargs="*", default=[], choices=choices, help="and nothing else of this kind")
    parser.add_argument("--ending", choices=[ending.name.lower() for ending in Ending], help="how each run ends")
    given = parser.parse_args(arguments)
    first = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it can't know that we stopped Kafka ourselves
    console = Console(width=max(150, Console().width))
    reports: list[Report] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for seed in range(first, first + given.seeds):
            console.print(f"SEED={seed} REQUESTS={given.requests} make chaos")
            schedule = draw(
                seed,
                requests=given.requests,
                only=[What[name.upper()] for name in given.only],
                odd=[Odd[name.upper()] for name in given.odd] or ODD,
                ending=Ending[given.ending.upper()] if given.ending else None,
            )
            try:
                report = asyncio.run(run(schedule, progress=progress))
            except KafkaError as error:
                console.print(str(error), style="red")
                return 1
            reports.append(report)
            happened = ", ".join(f"{words} x{count}" for words, count in report.happened.items())
            figures = ", ".join(f"{name} {report.verdict.figures[name]:.0f}" for name in FIGURES)
            console.print(f"  {figures}; {report.took:.0f} s")
            console.print(f"  {happened}", style="dim")
            for sentence in report.verdict.violations:
                console.print(f"  {sentence}", style="bold red", markup=False)
    console.print(table(reports))
    not_promised: Counter[str] = Counter()
    for report in reports:
        not_promised += report.verdict.not_promised
    for case, count in not_promised.items():
        console.print(f"Not promised, provoked {count} times: {case}")
    broken = [report.schedule.seed for report in reports if report.verdict.violations]
    if broken:
        console.print(f"Promises were broken with seeds {broken}", style="bold red")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
