"""A rolling upgrade from an earlier release, and a rollback, under load and with `kill -9`; then everything is counted.

`python -m tests.stress.upgrade [--before REVISION] [--requests N]`: processes of both releases share a consumer group,
a journal and a simulated VCDA. Four rounds change all processes to the other release, one of them by SIGTERM and one by
SIGKILL, while some of VCDA's answers are lost. What the journal's format promises is judged from outside: one outcome
and at most one task for each request. Some requests are cancelled, and some released; a release that doesn't know that
puts it on the dead letters.
"""

import argparse
import asyncio
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from service.sandbox.kafka import EmbeddedKafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.support.process_harness import Ledger, Process, appliance, counts

ROOT: Final = Path(__file__).resolve().parents[2]

BEFORE: Final = "474f8ce"
"""The release before. There is none yet, so a revision from before the layout, the site accounts and the topic ids."""

ENV: Final = shutil.which("env") or "env"
"""It starts a process in another folder, whose package Python then finds first."""

NEWER: Final = ("VM_SYNC_TOPICS__CONTROL",)
"""Settings that the earlier release doesn't know, and so refuses; whoever rolls back takes them away first."""

PACKAGES: Final = "packages"
"""Where a release has packages of its own; the folder may be missing."""

WITHIN: Final = 180.0
"""Seconds for all outcomes after the last round: a restored doubt waits for the request timeout and SETTLE."""

EVERY: Final = 0.02
"""Seconds between two requests, so that each round's come while processes change."""

CANCELLED: Final = 8
"""Every which request is cancelled: the last of four for its replication, which waits, as a rule."""

RELEASED: Final = 10
"""Every which replication has releases instead, which let two of its syncs overlap."""

FAULTS: Final[tuple[dict[str, Any], ...]] = (
    {"operation": "submit", "answer": "cut", "effect": "first", "probability": 0.05},
    {"operation": "submit", "answer": "cut", "effect": "none", "probability": 0.05},
    {"operation": "submit", "answer": "status", "status": 503, "probability": 0.05},
    {"operation": "find", "answer": "status", "status": 500, "probability": 0.1},
    {"operation": "poll", "answer": "half", "probability": 0.1},
)
"""What goes wrong at VCDA all the time, so that doubts are handed over as well."""

PLAN: Final = Plan(queued=Durations.of("0.1"), duration=Durations.of("uniform:0.5:3"))


class Deployment:
    """Two processes of a release at a time. `folders` has each release's tree; the one that is worked in by default."""

    def __init__(self, ledger: Ledger, *, before: Path) -> None:
        self._ledger = ledger
        self._folders = {"before": before, "now": ROOT}
        self.running: list[Process] = []

    def start(self, release: str) -> Process:
        """Start a process of a release."""
        process = start(self._ledger, self._folders[release], newer=release == "now")
        self.running.append(process)
        return process

    async def change_to(self, release: str) -> None:
        """Replace all processes, one of them as a deployment does it, and one as if its node died."""
        stopped, killed = self.running
        for old, ends in ((stopped, "stop"), (killed, "kill")):
            await self._ledger.ready(self.start(release))
            self.running.remove(old)
            await (old.kill() if ends == "kill" else old.stop())


def start(ledger: Ledger, folder: Path, *, newer: bool, **settings: str) -> Process:
    """Start a process of the release whose tree is in a folder."""
    unset = [word for name in NEWER if not newer for word in ("-u", name)]
    return ledger.start(command=(ENV, "-C", str(folder), *unset, f"PYTHONPATH={folder / PACKAGES}"), **settings)


def knows_cancels(folder: Path) -> bool:
    """Whether the release whose tree is in a folder carries cancels out, instead of taking them for invalid."""
    return any("SyncCancelRequested" in file.read_text() for file in folder.glob("service/messages/requests.py"))


async def upgrade(*, before: Path, requests: int, console: Console) -> list[str]:
    """Go through the rounds, and return what is wrong."""
    replications = [f"C4-{uuid.uuid4()}" for _ in range(requests // 4)]
    pairs = [(f"op-{number}", replications[number // 4 % len(replications)]) for number in range(requests)]
    rounds = ("now", "before", "now", "before")
    share = -(-requests // (len(rounds) + 1))
    config = appliance(PLAN, submit_latency=Durations.of("0.05"))
    with EmbeddedKafka() as kafka:
        async with (
            Simulator(config) as vcda,
            Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix="upgrade", partitions=6) as ledger,
        ):
            for fault in FAULTS:
                vcda.fault(**fault)
            deployment = Deployment(ledger, before=before)
            for replication in replications[::RELEASED]:
                ledger.foreseen[replication] = "a request was released while VCDA worked on it"
            for _ in range(2):
                await ledger.ready(deployment.start("before"))
            await ask(ledger, pairs[:share])
            for number, release in enumerate(rounds, 1):
                changing = asyncio.create_task(deployment.change_to(release))
                await ask(ledger, pairs[number * share : (number + 1) * share])
                await changing
                console.print(f"round {number}: all processes are of the release {release!r}")
            told = await ledger.wait(within=WITHIN)
            verdict = await ledger.judge(foreign=frozenset((one.partition, one.offset) for one in ledger.cancels))
            found = counts(told)
            console.print(
                f"{requests} requests: {dict(found)}; {vcda.world.counters()['calls'].get('submit', 0)} POSTs; "
                f"{len(ledger.cancels)} cancels, of which {verdict.figures['dead letters']:.0f} are dead letters"
            )
            wrong = list(verdict.violations)
            if found["completed"] + found["cancelled"] != requests:
                wrong.append(f"not all requests are completed or cancelled: {dict(found)}")
            if not found["cancelled"] or bool(verdict.figures["dead letters"]) == knows_cancels(before):
                wrong.append("no cancel was carried out, or none was read by the earlier release: this shows nothing")
            return wrong


async def ask(ledger: Ledger, pairs: Sequence[tuple[str, str]]) -> None:
    """Put requests on the topic, a few at a time, and cancels of some of them behind."""
    standing: list[asyncio.Task[None]] = []
    for number, (operation, replication) in enumerate(pairs):
        standing.append(await ledger.begin_to_ask(operation, replication))
        if number % CANCELLED == CANCELLED - 1:
            release = replication in ledger.foreseen
            standing.append(await ledger.begin_to_cancel(operation, replication, release=release))
        await asyncio.sleep(EVERY)
    await asyncio.gather(*standing)


def extract(revision: str, folder: Path) -> None:
    """Write the package as it was at a revision, with the packages that it needed where these are others than now.

    Raises:
        subprocess.CalledProcessError: there is no such revision here, in a clone without history for instance.
    """
    git = shutil.which("git") or "git"
    command = [git, "archive", revision, "service", "requirements.txt"]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    needs = folder / "requirements.txt"
    if needs.read_bytes() != (ROOT / "requirements.txt").read_bytes():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, "--require-hashes", "-r", needs, "--target", folder / PACKAGES], check=True)


def judged(revision: str, console: Console, play: Callable[[Path], list[str]]) -> int:
    """Play with the package of an earlier revision, print what was wrong, and return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            extract(revision, Path(folder))
        except subprocess.CalledProcessError as error:
            console.print(f"The revision {revision} can't be had: {(error.stderr or b'').decode().strip()}")
            return 1
        wrong = play(Path(folder))
    for sentence in wrong:
        console.print(sentence, style="bold red", markup=False)
    return 1 if wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Upgrade, roll back, and twice again."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.upgrade", description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help="the revision of the earlier release")
    parser.add_argument("--requests", type=int, default=2_000)
    given = parser.parse_args(arguments)
    console = Console()
    return judged(
        given.before,
        console,
        lambda before: asyncio.run(upgrade(before=before, requests=given.requests, console=console)),
    )


if __name__ == "__main__":
    sys.exit(main())
