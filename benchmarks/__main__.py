"""Measure, keep the raw figures, and write the pages from them.

python -m benchmarks                     all of it, and docs/performance.md and docs/scaling.md from it
python -m benchmarks --quick             a small form, under three minutes; prints, and writes no page
python -m benchmarks --only S1 flight    some scenarios; prints, and writes no page
python -m benchmarks --only pythons --python build/python-3.13/bin/python
                                         S1 with other versions of Python, beside this one
python -m benchmarks --pages FILE        write the pages anew from raw figures
"""

import argparse
import asyncio
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import owners, page, polling_bench, scenarios, standstill, virtual, zones
from benchmarks.results import Results, Run
from benchmarks.sizes import FULL, QUICK, TINY, Sizes
from benchmarks.stage import Stage
from service.sandbox.kafka import KafkaError

DOCS = Path("docs")
RAW = Path("performance") / "raw.json"
FORMS = {sizes.form: sizes for sizes in (FULL, QUICK, TINY)}


@dataclass(frozen=True, slots=True)
class Step:
    """One subject to be measured once."""

    scenario: str
    subject: str
    round: int
    measure: Callable[..., Awaitable[Run]]


def steps(sizes: Sizes, pythons: Mapping[str, Path]) -> Iterator[Step]:
    """Yield all steps: round by round, each with all subjects in turns, and beginning with another one each time."""

    async def with_python(stage: Stage, subject: str, *, sizes: Sizes, number: int) -> Run:
        return await scenarios.other_python(stage, subject, sizes=sizes, number=number, interpreter=pythons[subject])

    for number in range(sizes.rounds):
        yield from _turns("S1", ("bare", "service", "obvious", "listing", "ceiling"), number, _S1)
        yield from _turns("pythons", tuple(pythons), number, with_python)
        yield from _turns("cores", ("1", "2"), number, scenarios.on_cores)
        yield from _turns("trickle", ("service", "obvious"), number, scenarios.steady_trickle)
        yield from _turns("restore", ("bare", "service", "empty"), number, owners.restore)
        yield from _turns("partitions", tuple(map(str, sizes.partitions)), number, owners.partitions)
        yield from _turns("remembering", ("service",), number, owners.remembering)
        if number < sizes.few:
            pollers = ("service", "listing", "running")
            yield from _turns("S2", pollers, number, scenarios.long_ones)
            yield from _turns("S2 wide", pollers, number, scenarios.long_ones_with_a_tail)
            yield from _turns("flight", tuple(map(str, sizes.flight)), number, scenarios.in_flight)
            yield from _turns("zones", ("one", *zones.ROUND_TRIPS), number, zones.zones)
            yield from _turns("hand-over", ("service",), number, owners.hand_over)
            yield from _turns("standstill", standstill.SUBJECTS, number, standstill.standstill)


_S1 = scenarios.burst_of_short_ones


def _turns(
    scenario: str, subjects: tuple[str, ...], number: int, measure: Callable[..., Awaitable[Run]]
) -> Iterator[Step]:
    first = number % max(1, len(subjects))
    for subject in subjects[first:] + subjects[:first]:
        yield Step(scenario, subject, number, measure)


async def measure(
    sizes: Sizes, *, only: frozenset[str], pythons: Mapping[str, Path], show: Console, keep: Path
) -> Results:
    """Run all steps, and what needs no processes; keep what is known after each."""
    results = Results.begun(asdict(sizes))
    chosen = [step for step in steps(sizes, pythons) if not only or step.scenario in only]
    columns = (TextColumn("{task.description:30}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=show) as progress:
        bar = progress.add_task("Kafka and a simulated VCDA", total=len(chosen) + 2)
        async with Stage() as stage:
            for step in chosen:
                progress.update(bar, description=f"{step.scenario}: {step.subject}, round {step.round + 1}")
                began = time.monotonic()
                run = await step.measure(stage, step.subject, sizes=sizes, number=step.round)
                results.runs.append(run)
                results.write(keep)
                progress.advance(bar)
                if not show.is_terminal:
                    show.print(f"{step.scenario} {step.subject} {step.round + 1}: {time.monotonic() - began:.1f} s")
        if not only or "policy" in only:
            progress.update(bar, description="the polling policy")
            results.policy = await asyncio.to_thread(polling_bench.table, sizes.policy)
        progress.advance(bar)
        if not only or "virtual" in only:
            progress.update(bar, description="many sites in virtual time")
            results.virtual = await asyncio.to_thread(virtual.table, sizes)
        progress.advance(bar)
    results.write(keep)
    return results


def _version(interpreter: Path) -> str:
    """Ask a Python for its version."""
    command = [str(interpreter), "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def main(argv: list[str] | None = None) -> int:
    """Run it. Exit code 1 if Kafka can't be had."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="the same as --form quick")
    parser.add_argument("--form", choices=FORMS, default="full")
    parser.add_argument("--rounds", type=int, help="of all scenarios, instead of the form's own")
    parser.add_argument("--only", nargs="+", default=(), metavar="SCENARIO")
    parser.add_argument(
        "--python",
        nargs="+",
        default=(),
        type=Path,
        metavar="PATH",
        help='interpreters of virtual environments with the service\'s packages, for the scenario "pythons"',
    )
    parser.add_argument("--json", type=Path, help="where the raw figures are kept; build/bench-FORM.json, if not said")
    parser.add_argument("--pages", type=Path, metavar="FILE", help="measure nothing: write the pages from this file")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the pages go")
    given = parser.parse_args(argv)
    show = Console()
    if given.pages:
        page.write(Results.read(given.pages), given.docs)
        return 0
    sizes = QUICK if given.quick else FORMS[given.form]
    if given.rounds:
        sizes = replace(sizes, rounds=given.rounds, few=given.rounds)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # topics that are new have no leader for a moment
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up after any signal
    try:
        keep = given.json or Path("build") / f"bench-{sizes.form}.json"
        only = frozenset(given.only)
        pythons = {_version(path): path for path in (Path(sys.executable), *given.python)} if given.python else {}
        results = asyncio.run(measure(sizes, only=only, pythons=pythons, show=show, keep=keep))
    except KafkaError as error:
        show.print(str(error))
        return 1
    print(page.tables(results))
    if sizes.form == "full" and not given.only:
        results.write(given.docs / RAW)
        page.write(results, given.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
