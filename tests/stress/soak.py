"""A long life under a steady load: does anything grow that shouldn't?

`python -m tests.stress.soak --minutes 30`: one service process, an embedded Kafka and the simulated VCDA, requests at a
steady rate, identities remembered for a minute. Memory, file descriptors and threads of the second quarter of the
time are compared with those of the last; at the end the process is started anew, and its restore is timed.
"""

import argparse
import asyncio
import re
import statistics
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from service.sandbox.kafka import EmbeddedKafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.support.process_harness import Ledger, Process, appliance

EVERY = 2.0
"""Seconds between two samples."""

ALLOWED = {"memory MiB": 12.0, "file descriptors": 6.0, "threads": 2.0}
"""What may come on top between the quarters: the allocator's and the connection pools' breathing."""

RESTORE_LIMIT = 5.0
"""Seconds. What is in flight and what is remembered is the same at any time, so the restore is, too."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the process."""

    at: float
    figures: dict[str, float]


def look(process: Process) -> dict[str, float]:
    """Read what the kernel says of it."""
    folder = Path(f"/proc/{process.pid}")
    status = (folder / "status").read_text()
    return {
        "memory MiB": int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024,
        "file descriptors": float(len(list((folder / "fd").iterdir()))),
        "threads": float(re.findall(r"Threads:\s+(\d+)", status)[0]),
    }


async def soak(*, minutes: float, rate: float, progress: Progress) -> tuple[list[Sample], float, list[str]]:
    """Run it, and return the samples, the seconds of the last restore, and what went wrong."""
    plan = Plan(queued=Durations.of("0.2"), duration=Durations.of("uniform:1:5"))
    samples: list[Sample] = []
    with EmbeddedKafka() as kafka:
        async with (
            Simulator(appliance(plan)) as vcda,
            Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix="soak") as ledger,
        ):
            settings = {"VM_SYNC_SYNC__DEDUPLICATE_FOR": "PT1M"}
            process = ledger.start(command=(), **settings)
            await ledger.ready(process)
            replications = [f"C4-{uuid.uuid4()}" for _ in range(200)]
            began, asked, task = time.monotonic(), 0, progress.add_task("soaking", total=minutes * 60)
            while (age := time.monotonic() - began) < minutes * 60:
                due = int(age * rate) - asked
                await ledger.ask_all([(f"op-{n}", replications[n % 200]) for n in range(asked, asked + due)])
                asked += due
                samples.append(Sample(age, look(process)))
                progress.update(task, completed=age)
                await asyncio.sleep(EVERY)
            await ledger.wait(within=60)
            await process.stop()
            again = ledger.start(command=(), **settings)
            await ledger.ready(again)
            text = (await again.get("/metrics")).text
            restored = re.findall(r"^vm_sync_journal_restore_seconds_(?:sum|count) (\S+)", text, re.MULTILINE)
            await again.stop()
            verdict = await ledger.judge()
            took = {"sum": 0.0, "count": 1.0} | dict(zip(("count", "sum"), map(float, restored), strict=False))
            return samples, took["sum"] / max(1.0, took["count"]), [*verdict.violations, *ledger.tracebacks()]


def judged(samples: list[Sample], *, minutes: float) -> list[tuple[str, float, float, bool]]:
    """Compare the medians of the second and the last quarter."""
    quarter = minutes * 60 / 4
    second = [s.figures for s in samples if quarter <= s.at < 2 * quarter]
    last = [s.figures for s in samples if s.at >= 3 * quarter]
    rows = []
    for name, allowed in ALLOWED.items():
        before, after = (statistics.median(figures[name] for figures in some) for some in (second, last))
        rows.append((name, before, after, after - before <= allowed))
    return rows


def main() -> int:
    """Soak, print a table, and return 1 where something grew, got lost or came twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    given = parser.parse_args()
    console = Console()
    with Progress(console=console) as progress:
        samples, restore, wrong = asyncio.run(soak(minutes=given.minutes, rate=given.rate, progress=progress))
    rows = judged(samples, minutes=given.minutes)
    rows.append(("seconds of a restore (its limit, and now)", RESTORE_LIMIT, restore, restore <= RESTORE_LIMIT))
    table = Table("", "second quarter", "last quarter", "", title=f"{given.minutes:g} min at {given.rate:g}/s")
    for name, before, after, well in rows:
        table.add_row(name, f"{before:.2f}", f"{after:.2f}", "well" if well else "GREW")
    console.print(table)
    for sentence in wrong:
        console.print(sentence)
    return int(bool(wrong) or not all(well for *_, well in rows))


if __name__ == "__main__":
    sys.exit(main())
