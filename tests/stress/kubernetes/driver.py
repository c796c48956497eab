"""Runs in a pod beside the simulated VCDA, in the service's image: sends requests, reads outcomes, opens connections.

It prints facts, one JSON document a line; what they mean is judged in `report`. It imports nothing of the project.

    driver.py listen                            accept connections on a port that no NetworkPolicy names, until SIGTERM
    driver.py flow RATE LONGEST PATIENCE        send requests until "stop" comes on stdin, then wait for their outcomes
    driver.py vcda METHOD PATH [JSON]           ask the simulated VCDA's control API
"""

import asyncio
import contextlib
import json
import signal
import ssl
import sys
import threading
import time
import urllib.request
import uuid
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

BOOTSTRAP = "kafka:9092"
REQUESTS = "vm-sync.requests"
OUTCOMES = ("vm-sync.completed", "vm-sync.failed", "vm-sync.dead-letter")
VCDA = "https://vcda:8443/_simulator/"
CA = "/tls/ca.crt"
LISTENER = 9999

REMOTE_SITE, REMOTE_EVERY = "site2", 4
"""Every which request is for a remote site."""

AFTERWARDS = 3.0
"""Seconds after the last outcome in which a second one of the same request would be seen."""


def say(fact: object) -> None:
    """Print a fact."""
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def vcda(method: str, path: str, body: str | None = None) -> Any:
    """Ask the simulated VCDA's control API."""
    request = urllib.request.Request(VCDA + path, method=method, data=None if body is None else body.encode())  # noqa: S310 - the address is ours
    with urllib.request.urlopen(request, timeout=20, context=ssl.create_default_context(cafile=CA)) as answer:  # noqa: S310
        return json.load(answer)


async def listen() -> None:
    """Accept connections, and close them."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await asyncio.start_server(lambda _, writer: writer.close(), "0.0.0.0", LISTENER):  # noqa: S104 - a pod
        await stop.wait()


class Flow:
    """Requests at a rate, and what became of them."""

    def __init__(self) -> None:
        self._run = uuid.uuid4().hex[:8]
        self._asked: dict[str, tuple[str, float]] = {}
        self._told: list[tuple[str, str, str | None]] = []
        self._ended: set[str] = set()
        self._stop = asyncio.Event()
        self._consumer = AIOKafkaConsumer(
            *OUTCOMES, bootstrap_servers=BOOTSTRAP, isolation_level="read_committed", auto_offset_reset="latest"
        )
        self._producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, acks="all", enable_idempotence=True)

    async def run(self, rate: float, *, longest: float, patience: float) -> None:
        """Send for at most `longest` seconds, and wait at most `patience` seconds for the last outcome."""
        loop = asyncio.get_running_loop()

        def obey() -> None:
            sys.stdin.readline()
            loop.call_soon_threadsafe(self._stop.set)

        threading.Thread(target=obey, daemon=True).start()
        await self._consumer.start()
        await self._consumer.seek_to_end()
        for partition in self._consumer.assignment():
            await self._consumer.position(partition)
        await self._producer.start()
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._report())]
        try:
            await self._ask(rate, longest=longest)
            last = loop.time()
            while len(self._ended) < len(self._asked) and loop.time() - last < patience:
                await asyncio.sleep(0.2)
            await asyncio.sleep(AFTERWARDS)
        finally:
            for task in tasks:
                task.cancel()
            await self._consumer.stop()
            await self._producer.stop()
        ours = {replication for replication, _ in self._asked.values()}
        ledger = await asyncio.to_thread(vcda, "GET", "ledger")
        tasks_seen = [(task["replicationId"], task["start"]) for task in ledger if task["replicationId"] in ours]
        say({"asked": self._asked, "told": self._told, "tasks": tasks_seen})

    async def _read(self) -> None:
        async for record in self._consumer:
            event = json.loads(record.value) if record.value else {}
            operation = str(event.get("operationID"))
            if record.topic == OUTCOMES[2] or operation in self._asked:
                self._told.append((operation, record.topic, event.get("reason")))
            if operation in self._asked:
                self._ended.add(operation)

    async def _ask(self, rate: float, *, longest: float) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not self._stop.is_set() and loop.time() - began < longest:
            number = len(self._asked)
            operation, replication = f"{self._run}-{number}", f"C4-{uuid.uuid4()}"
            request = {"operationID": operation, "replicationId": replication}
            if number % REMOTE_EVERY == REMOTE_EVERY - 1:
                request["site"] = REMOTE_SITE
            self._asked[operation] = replication, time.time()
            await self._producer.send(REQUESTS, json.dumps(request).encode(), key=replication.encode())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, began + len(self._asked) / rate - loop.time())):
                    await self._stop.wait()
        await self._producer.flush()

    async def _report(self) -> None:
        while True:
            say({"sent": len(self._asked), "ended": len(self._ended)})
            await asyncio.sleep(1.0)


async def flow(rate: float, longest: float, patience: float) -> None:
    """Send requests until "stop" comes on stdin, and print what became of them."""
    await Flow().run(rate, longest=longest, patience=patience)


def main(arguments: list[str]) -> None:
    """Do what the first argument says."""
    match arguments:
        case ["listen"]:
            asyncio.run(listen())
        case ["flow", rate, longest, patience]:
            asyncio.run(flow(float(rate), float(longest), float(patience)))
        case ["vcda", method, path, *body]:
            say(vcda(method, path, *body))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
