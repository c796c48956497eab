"""Make the pictures of docs/page.md from a real run: `python -m tools.page_pictures`, two minutes.

A real Kafka, the service, and a simulated VCDA: at the local site syncs run, some have failed, and some wait; one
remote site answers every call with 503, one asked for a pause, and one is paused by an operator. A real browser takes
the pictures.
"""

import asyncio
import json
import os
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
from aiokafka import AIOKafkaProducer

from service.sandbox.child_processes import dying_with_us
from service.sandbox.kafka import EmbeddedKafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Config, Durations, Plan
from tests.support.browser import window
from tools.png import with_palette

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"

PICTURES: Final = (
    ("page", "/", 1280, 2_400, False),
    ("page-dark", "/", 1280, 1_400, True),
    ("page-phone", "/", 400, 1_400, False),
    ("page-phone-dark", "/", 400, 1_400, True),
    ("page-syncs", "/syncs?state=waiting&limit=8", 1280, 1_000, False),
)
"""Name, path, width and greatest height in pixels, and whether it is dark."""

PATIENCE: Final = 120.0
"""Seconds for each thing that is waited for."""

SITES: Final = ("site2", "site3", "site4")

QUICK: Final = Plan(queued=Durations("fixed", 0.1), duration=Durations("uniform", 0.5, 2.0))


class Scene:
    """What runs while the pictures are taken."""

    def __init__(
        self, address: str, vcda: Simulator, producer: AIOKafkaProducer, environment: Mapping[str, str]
    ) -> None:
        self.address = address
        self.vcda = vcda
        self._environment = environment
        self._producer = producer
        self._client = httpx.AsyncClient(base_url=address)

    async def ask(self, number: int, operation: str, *, site: str | None = None, pattern: str = "C4-{}") -> None:
        """Send a request for the replication of this number."""
        replication = pattern.format(UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128, version=4))
        request = {"operationID": operation, "replicationId": replication} | ({"site": site} if site else {})
        await self._producer.send_and_wait("vm-sync.requests", json.dumps(request).encode(), key=replication.encode())

    async def command(self, *arguments: str) -> None:
        """Run a command of vm-sync, which has to succeed."""
        command = [sys.executable, "-m", "service.cli", *arguments]
        done = await asyncio.create_subprocess_exec(*command, env=self._environment)
        if await done.wait():
            sys.exit(f"vm-sync {' '.join(arguments)} failed")

    async def syncs(self, **query: str) -> list[dict[str, Any]]:
        """Return what is in flight."""
        answer = await self._client.get("/syncs", params={"limit": "1000", **query})
        found: list[dict[str, Any]] = answer.json()["syncs"]
        return found

    async def ended(self) -> int:
        """Return how many requests have ended."""
        text = (await self._client.get("/metrics")).text
        return sum(int(float(value)) for value in re.findall(r"^vm_sync_outcomes_total\S* (\S+)", text, re.MULTILINE))

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait until it holds."""
        async with asyncio.timeout(PATIENCE):
            while not await self._holds(condition):  # noqa: ASYNC110 - it is looked at from outside
                await asyncio.sleep(0.2)

    async def ready(self) -> bool:
        """Whether the service is."""
        return (await self._client.get("/readyz")).is_success

    async def _holds(self, condition: Callable[[], Awaitable[bool]]) -> bool:
        try:
            return await condition()
        except httpx.HTTPError:
            return False


async def play(scene: Scene) -> None:
    """Bring about what the pictures show."""
    numbers: Iterator[int] = iter(range(1, 1_000))
    for number in range(1, 41):
        await scene.ask(next(numbers), f"hourly-2100-{number:02}")
    await scene.until(lambda: _ended(scene, 40))
    scene.vcda.world.plan(failing=1.0, code="QuiesceFailed")
    for number in range(1, 4):
        await scene.ask(next(numbers), f"hourly-2200-{number:02}")
    await scene.ask(next(numbers), "adhoc-417", pattern="H4-{}")  # no replication is called so: rejected
    await scene.until(lambda: _ended(scene, 44))
    scene.vcda.world.plan(failing=0.0, duration=Durations("uniform", 60.0, 400.0))
    scene.vcda.fault(
        operation="submit",
        site="site3",
        answer="status",
        status=429,
        retry_after=900.0,
        times=1,
        msg="Try again later.",
    )
    scene.vcda.fault(site="site2", answer="status", status=503, code="ServiceUnavailable", msg="Down for maintenance.")
    await scene.command("sites", "pause", "site4", "--for", "2h", "--by", "alice", "--reason", "storage upgrade")
    for number in range(1, 19):
        await scene.ask(next(numbers), f"nightly-{number:02}")
        if number % 3:
            await scene.ask(next(numbers), f"nightly-site2-{number:02}", site="site2")
        if number % 6 == 1:
            await scene.ask(next(numbers), f"weekly-{number:02}", site="site3")
            await scene.ask(next(numbers), f"nightly-site4-{number:02}", site="site4")
    again = next(numbers)
    for operation in ("adhoc-418", "adhoc-419", "adhoc-420"):
        await scene.ask(again, operation)
    await scene.until(lambda: _circuit_open(scene))
    await asyncio.sleep(40)  # for ages and percents to look at
    await scene.until(lambda: _circuit_open(scene))


async def _ended(scene: Scene, count: int) -> bool:
    return await scene.ended() == count


async def _circuit_open(scene: Scene) -> bool:
    causes = [sync["waitsFor"]["cause"] for sync in await scene.syncs(site="site2") if sync["waitsFor"]]
    return "circuit_open" in causes


@asynccontextmanager
async def deployed(folder: Path) -> AsyncIterator[Scene]:
    """Start Kafka, a simulated VCDA and the service."""
    with EmbeddedKafka() as kafka:
        async with Simulator(Config(plan=QUICK, remote_sites=SITES)) as vcda:
            port = _free_port()
            user = vcda.world.config.users[0]
            sites = [{"name": name, "user": user.name, "password": user.password} for name in SITES]
            own = {
                "KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
                "VCDA__URL": vcda.url,
                "VCDA__CREDENTIALS__USER": user.name,
                "VCDA__CREDENTIALS__PASSWORD": user.password,
                "VCDA__SITES": json.dumps(sites),
                "SYNC__MAX_RUNNING": "12",
                "SYNC__MAX_CONCURRENT_SUBMITS": "2",
                "OPS__HOST": "127.0.0.1",
                "OPS__PORT": str(port),
                "SECRETS_DIR": str(folder),
            }
            environment = {name: text for name, text in os.environ.items() if not name.startswith("VM_SYNC_")}
            environment |= {f"VM_SYNC_{name}": text for name, text in own.items()}
            service = await asyncio.create_subprocess_exec(
                *dying_with_us([sys.executable, "-m", "service.cli", "run"]),
                env=environment,
                stderr=asyncio.subprocess.DEVNULL,
            )
            producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
            try:
                await producer.start()
                scene = Scene(f"http://127.0.0.1:{port}", vcda, producer, environment)
                await scene.until(scene.ready)
                yield scene
            finally:
                await producer.stop()
                service.terminate()
                await service.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


async def pictures() -> dict[str, bytes]:
    """Take them, by name."""
    taken = {}
    with tempfile.TemporaryDirectory() as folder:
        async with deployed(Path(folder)) as scene, window(Path(folder) / "browser") as seen:
            await play(scene)
            for name, path, width, height, dark in PICTURES:
                await seen.open(scene.address + path, width=width, dark=dark)
                taken[name] = with_palette(await seen.picture(most=height))
            if seen.problems:
                sys.exit("\n".join(seen.problems))
    return taken


def main() -> None:
    """Write into the repository."""
    for name, picture in asyncio.run(pictures()).items():
        (DOCS / f"{name}.png").write_bytes(picture)


if __name__ == "__main__":
    main()
