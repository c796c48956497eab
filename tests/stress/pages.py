"""How long the pages for people hold the event loop: `python -m tests.stress.pages [COUNT]`, a minute.

A process has 50,000 requests in flight, all of which wait for a paused site. Each page is asked for a few times while a
task does nothing but wake up as soon as it may; the longest it had to wait is how long something held the loop. Time
is virtual, so nothing else happens meanwhile; what is measured is CPU time, whatever else the machine does.
"""

import argparse
import asyncio
import gc
import time
from collections.abc import Mapping
from datetime import timedelta

import httpx
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from service.ops import server
from service.partition.in_flight_view import in_flight_views
from service.sync import Trouble
from tests.support.shown_overview import Read
from tests.support.shown_syncs import ready
from tests.support.simulated_deployment import Deployment, run

PATHS = ("/", "/syncs", "/syncs?limit=1000", "/syncs?state=waiting&site=nowhere")
ROUNDS = 5
BROWSER: Mapping[str, str] = {"accept": "text/html"}


async def measure(count: int) -> None:
    """Print a line for each path, for browsers and for programs."""
    async with Deployment() as d:
        read = Read(d.owner())
        await d.until(1.0)
        process = read.process
        process.lanes.lane(None).record_result(
            Trouble(label="429", detail="It said 429.", retry_after=timedelta(days=1))
        )
        for number in range(count):
            d.broker.ask(f"C4-{number:08}", f"nightly-{number:08}", deadline=86_400)
        partition = process.partition()
        assert partition is not None
        while len(partition) < count:
            await asyncio.sleep(1.0)
        read.in_flight = {("waiting", None): count}
        app = server.operations(
            health=ready(),
            clock=process.clock,
            registry=CollectorRegistry(),
            documents={},
            in_flight=lambda: in_flight_views([partition]),
            overview=read,
            clean=str,
        )
        table = Table("path", "for", "ms in all", "ms at once", "kB", title=f"{count:,} requests in flight")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ops") as client:
            for path in PATHS:
                for reader, headers in (("browsers", BROWSER), ("programs", {})):
                    table.add_row(path, reader, *await _ask(client, path, headers))
        Console().print(table)


async def _ask(client: httpx.AsyncClient, path: str, headers: Mapping[str, str]) -> tuple[str, str, str]:
    """Ask for a page some times; return the medians in milliseconds, whole and at once, and its size."""
    wholes, holds, size = [], [], 0
    for _ in range(ROUNDS):
        await asyncio.sleep(2.0)  # past the time for which a page is kept
        gc.collect()
        watching = asyncio.create_task(_longest())
        await asyncio.sleep(0)  # it begins to watch
        began = time.thread_time()
        answer = await client.get(path, headers=headers)
        wholes.append(time.thread_time() - began)
        assert answer.status_code == 200
        watching.cancel()
        holds.append(await watching)
        size = len(answer.content)
    whole, hold = sorted(wholes)[ROUNDS // 2], sorted(holds)[ROUNDS // 2]
    return f"{whole * 1000:.1f}", f"{hold * 1000:.1f}", f"{size / 1024:.0f}"


async def _longest() -> float:
    """Return the longest time in seconds between two turns of the event loop, once cancelled."""
    longest, last = 0.0, time.thread_time()
    try:
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now
    except asyncio.CancelledError:
        return max(longest, time.thread_time() - last)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.pages", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=50_000)
    run(measure(parser.parse_args().count))


if __name__ == "__main__":
    main()
