"""How long the event loop stands still, a run for each kind of work, each in a process of its own.

What `holds` can do alone needs no Kafka. The rest is the service itself, after a restore from full journals: the
restore, and people and Prometheus that look at all that is in flight then.
"""

import asyncio
import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx

from benchmarks import owners, views
from benchmarks.results import Run, quantile
from benchmarks.sizes import Sizes
from benchmarks.stage import BenchError, Stage, Subject

ALONE = {
    "deadlines": ("deadlines", "--each=1"),
    "deadlines-20": ("deadlines", "--each=20"),
    "commit": ("commit", "--each=1"),
    "read": ("read",),
    "close": ("close", "--each=1"),
}
"""The arguments of `holds`, by subject."""

PAGES = {"syncs": "/syncs?limit=1000", "metrics": "/metrics"}
"""What is looked at, by subject, as often as the answers come."""

SUBJECTS = (*ALONE, "restored", *PAGES)

ENDS_WITHIN = 600.0
"""Seconds for a process that does one thing."""


async def standstill(stage: Stage, subject_name: str, *, sizes: Sizes, number: int) -> Run:
    """Measure the turns of the event loop, in milliseconds of CPU time, while it does one kind of work."""
    if subject_name in ALONE:
        figures = await _alone(*ALONE[subject_name], count=sizes.restored)
    else:
        figures = await _in_service(stage, PAGES.get(subject_name), sizes=sizes, number=number)
    return Run(scenario="standstill", subject=subject_name, round=number, figures=figures)


async def _alone(*arguments: str, count: int) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.holds", *arguments, f"--count={count}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(ENDS_WITHIN):
            said, complaint = await process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        raise
    if process.returncode:
        msg = f"{arguments[0]} failed:\n{complaint.decode()[-3000:]}"
        raise BenchError(msg)
    figures: dict[str, float] = json.loads(said.splitlines()[-1])
    return figures


async def _in_service(stage: Stage, page: str | None, *, sizes: Sizes, number: int) -> dict[str, float]:
    """Measure while a process restores full journals; or while a page of it is loaded after that."""
    async with owners.full_journals(
        stage, in_flight=sizes.restored, remembered=sizes.remembered, number=number
    ) as topics:
        with tempfile.TemporaryDirectory() as folder:
            probe = views.Probe(Path(folder) / "turns")
            subject = probe.start(stage, topics)
            try:
                await _assigned(subject)
                await probe.turns(subject)  # what a start takes before that holds nothing up
                await owners.first_polls(stage, sizes.restored)
                turns = await probe.turns(subject)
                if page is not None:
                    await _load(subject, page, seconds=sizes.idle)
                    turns = await probe.turns(subject)
            finally:
                subject.kill()
    return _figures(turns)


async def _assigned(subject: Subject) -> None:
    """Wait until partitions were assigned to it: then its restore begins."""
    while subject.logged("Rebalance: assigned partitions") is None:
        subject.check()
        await asyncio.sleep(0.01)


async def _load(subject: Subject, page: str, *, seconds: float) -> None:
    until = time.monotonic() + seconds
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        while time.monotonic() < until:
            (await client.get(f"{subject.url}{page}")).raise_for_status()


def _figures(turns: list[float]) -> dict[str, float]:
    """Sum up turns, the longest first, of which the shortest are left out."""
    turns = turns or [0.0]
    return {
        "worst_ms": turns[0],
        "second_ms": turns[min(1, len(turns) - 1)],
        "over_20_ms": float(sum(turn > 20 for turn in turns)),  # noqa: PLR2004 - milliseconds
        "p99_ms": quantile(turns[::-1], 0.99),
    }
