"""What looking costs: how long the service's event loop stands still while people look, and what `vm-sync top` takes.

    python -m benchmarks.views [--in-flight 50000] [--seconds 30]

A real Kafka, a simulated VCDA and one process of the service with so many requests in flight: one in ten runs, the
others wait behind it. Then, for a while each: nobody looks; several `vm-sync top` run; several people load the page at
`/`, `/syncs` as a table, or as JSON; Prometheus scrapes. The loop's time is CPU time of its thread between two of its
turns, so what other processes take from the machine isn't in it. Prints a row for each; some minutes.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.scenarios import asked
from benchmarks.stage import BenchError, Stage, Subject, Topics, cpu_seconds
from benchmarks.traffic import burst
from benchmarks.turns import Turns

SERVE: Final = "serve"

EACH: Final = 10
"""Requests for each replication, of which one runs."""

LOOKERS: Final = 5
"""People who look at once."""

FILLED_WITHIN: Final = 900.0
"""Seconds until all requests are in flight."""

WORTH_REMEMBERING: Final = 0.001
"""Seconds of a turn of the event loop: filling takes minutes, and an idle loop turns all the time."""

FOREVER: Final = "36000"
"""Seconds of a sync: none ends while it is measured."""


# ---------------------------------------------------------------- within the service's process


def _report(turns: Turns) -> None:
    """Write down the turns since the last time, in milliseconds, the longest first."""
    text = json.dumps([round(turn, 1) for turn in turns.longest()])
    turns.start()
    Path(os.environ["TURNS"]).write_text(text, encoding="utf-8")


def serve() -> None:
    """Run the service with the probe."""
    from service.app import App
    from service.cli import main as vm_sync

    original = App.run

    async def run(self: App, stop: asyncio.Event) -> int:
        turns = Turns(shortest=WORTH_REMEMBERING)
        turns.start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _report, turns)
        return await original(self, stop)

    App.run = run  # type: ignore[method-assign]
    sys.argv = ["vm-sync", "run"]
    vm_sync()


class Probe:
    """A file in which a process of the service that has the probe writes its turns down, when it is asked for them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, stage: Stage, topics: Topics, **settings: str) -> Subject:
        """Start the service with the probe."""
        os.environ["TURNS"] = str(self._path)
        return stage.start("service", topics, program=[sys.executable, "-m", "benchmarks.views", SERVE], **settings)

    async def turns(self, subject: Subject) -> list[float]:
        """Return the turns since the last time, or the start, in milliseconds, the longest first."""
        self._path.unlink(missing_ok=True)
        os.kill(subject.pid, signal.SIGUSR1)
        async with asyncio.timeout(60):
            while not self._path.exists() or not (text := self._path.read_text(encoding="utf-8")):
                subject.check()
                await asyncio.sleep(0.05)
        turns: list[float] = json.loads(text)
        return turns


# ---------------------------------------------------------------- looking


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What happened while something looked. `turns` are the loop's, in milliseconds, the longest first."""

    name: str
    turns: list[float]
    answers: int
    own: str = ""

    def row(self) -> str:
        """Return it as a row of a table."""
        over = sum(turn > 20 for turn in self.turns)  # noqa: PLR2004 - milliseconds
        worst = ", ".join(f"{turn:.1f}" for turn in self.turns[:3])
        return f"| {self.name} | {self.answers or ''} | {worst} | {over} | {self.own} |"


class Views:
    """Looks at one process in all ways."""

    def __init__(self, stage: Stage, subject: Subject, topics: Topics, *, seconds: float, probe: Probe) -> None:
        self._stage = stage
        self._subject = subject
        self._topics = topics
        self._seconds = seconds
        self._probe = probe

    async def all(self) -> None:
        """Print a row for each way."""
        print("| who looks | answers | longest holds, ms | over 20 ms | the command's own |\n|---|---|---|---|---|")
        await self._looked("nobody", self._nobody)
        await self._looked(f"{LOOKERS} `vm-sync top`", self._top)
        html, as_json = {"accept": "text/html"}, {"accept": "application/json"}
        for name, path, headers in (
            ("the page `/`", "/", html),
            ("`/syncs` as a table", "/syncs?limit=1000", html),
            ("`/syncs` as JSON", "/syncs?limit=1000", as_json),
            ("`/syncs?limit=1`, as `vm-sync sites`", "/syncs?limit=1", as_json),
            ("`/metrics`", "/metrics", {}),
        ):
            await self._looked(f"{LOOKERS} at {name}", partial(self._load, path, headers))

    async def _looked(self, name: str, look: Callable[[], Awaitable[tuple[int, str]]]) -> None:
        await self._probe.turns(self._subject)
        answers, own = await look()
        print(
            Looked(name=name, turns=await self._probe.turns(self._subject), answers=answers, own=own).row(), flush=True
        )

    async def _nobody(self) -> tuple[int, str]:
        await asyncio.sleep(self._seconds)
        return 0, ""

    async def _load(self, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """Load a page again and again, each looker as soon as it has it."""
        until, answers = time.monotonic() + self._seconds, 0

        async def look(client: httpx.AsyncClient) -> None:
            nonlocal answers
            while time.monotonic() < until:
                with suppress(httpx.TransportError):  # cut after 15 s, on a machine that is busy
                    (await client.get(f"{self._subject.url}{path}", headers=headers)).raise_for_status()
                    answers += 1

        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            await asyncio.gather(*(look(client) for _ in range(LOOKERS)))
        return answers, ""

    async def _top(self) -> tuple[int, str]:
        """Run `vm-sync top` by several people."""
        command = [sys.executable, "-m", "service.cli", "top", "--interval", "1"]
        children = [
            await asyncio.create_subprocess_exec(
                *command,
                env=os.environ | self._stage.environment(self._topics),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            for _ in range(LOOKERS)
        ]
        await asyncio.sleep(self._seconds)
        used = [cpu_seconds(child.pid) for child in children]
        await asyncio.sleep(self._seconds)
        busy = [(cpu_seconds(child.pid) - before) / self._seconds for child, before in zip(children, used, strict=True)]
        peaks = [_peak(child.pid) for child in children]
        for child in children:
            child.terminate()
        await asyncio.gather(*(child.wait() for child in children))
        first = f"{max(used):.1f} s of CPU in the first {self._seconds:.0f} s"
        return 0, f"{max(peaks) / 1e6:.0f} MB; {first}, then {max(busy):.1%} of a core"


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


async def measure(*, in_flight: int, seconds: float) -> None:
    """Fill a process of the service, and look at it."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Probe(Path(folder) / "turns")
        async with Stage() as stage:
            await stage.fresh(duration=FOREVER)
            topics = await stage.topics()
            subject = probe.start(stage, topics, SYNC__DEADLINE="P1D")
            await subject.ready()
            await burst(stage.bootstrap, topics, asked("views", in_flight, replications=in_flight // EACH))
            await _filled(subject, stage, in_flight)
            await Views(stage, subject, topics, seconds=seconds, probe=probe).all()


async def _filled(subject: Subject, stage: Stage, in_flight: int) -> None:
    give_up = time.monotonic() + FILLED_WITHIN
    while True:
        subject.check()
        lines = [line for line in (await subject.metrics()).splitlines() if line.startswith("vm_sync_in_flight{")]
        there = sum(float(line.split()[-1]) for line in lines)
        tasks: Any = (await stage.vcda_says("counters"))["tasks"]
        if there >= in_flight and tasks >= in_flight // EACH:
            await asyncio.sleep(10)  # for first polls
            return
        if time.monotonic() > give_up:
            msg = f"{there:.0f} of {in_flight} requests are in flight, {tasks} tasks run"
            raise BenchError(msg)
        await asyncio.sleep(1)


def main() -> None:
    """Measure, or be the process that is measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.views", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=[SERVE], help=argparse.SUPPRESS)
    parser.add_argument("--in-flight", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each row")
    given = parser.parse_args()
    if given.what == SERVE:
        serve()
    else:
        asyncio.run(measure(in_flight=given.in_flight, seconds=given.seconds))


if __name__ == "__main__":
    main()
