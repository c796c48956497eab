"""What was asked, what VCDA did, and what a read_committed reader sees: kept apart, and compared at the end.

A `Ledger` puts requests on a real Kafka, runs the service in processes of their own against the simulated VCDA, does
to them whatever a test wants, and judges. It knows nothing of how the service works; only what it promises.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from service.sandbox.simulator import Simulator
from service.sandbox.vcda_world import Config, Plan, User

PASSWORD = "Vm-Sync-Secret-0815"
"""Must never be seen anywhere outside of a login's body."""

GUEST_SECRET = "S3cret"
"""What the simulator's task results carry where real ones carry guest customization passwords."""


def appliance(plan: Plan, **more: Any) -> Config:
    """A VCDA that knows our user, with the password that must never be seen."""
    return Config(users=(User(name="administrator@System", password=PASSWORD, administrator=True),), plan=plan, **more)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was put on the topic."""

    operation_id: str
    replication_id: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Told:
    """An outcome as a read_committed reader sees it."""

    kind: str
    event: Mapping[str, Any]
    headers: Mapping[str, bytes]
    place: TopicPartition
    offset: int


@dataclass(slots=True)
class Verdict:
    """What was found; `violations` are sentences, and none is what a run has to show."""

    violations: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def must(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.violations.append(sentence)


class Process:
    """One service process; its log goes to a file, which is read for secrets in the end."""

    def __init__(self, environment: Mapping[str, str], *, log: Path, command: tuple[str, ...] = ()) -> None:
        self.log = log
        self._file = log.open("ab")
        self.child = subprocess.Popen(
            [*command, sys.executable, "-m", "service.cli", "run"],
            env={**os.environ, **environment},
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def running(self) -> bool:
        return self.child.poll() is None

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    async def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        await self.ended(within=10.0)

    async def stop(self, *, within: float = 40.0) -> int:
        """SIGTERM, and the exit code."""
        if self.running:
            self.child.send_signal(signal.SIGTERM)
        return await self.ended(within=within)

    async def ended(self, *, within: float) -> int:
        """Wait for its end without holding up the simulator, which runs on the same event loop."""
        return await asyncio.to_thread(self.child.wait, within)

    def close(self) -> None:
        if self.running:
            self.child.kill()
            self.child.wait(10)
        self._file.close()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def port(self) -> int | None:
        """The operations server's port, as the log tells it."""
        for line in self.text().splitlines():
            if "Operations server" in line and '"port"' in line:
                return int(json.loads(line)["port"])
        return None

    async def get(self, path: str, *, timeout: float = 2.0) -> httpx.Response:
        """Ask its operations server; raises httpx.HTTPError when it doesn't answer."""
        port = self.port()
        if port is None:
            msg = "no port yet"
            raise httpx.ConnectError(msg)
        async with httpx.AsyncClient() as client:
            return await client.get(f"http://127.0.0.1:{port}{path}", timeout=timeout)


class Ledger:
    """See the module. An async context: leaving it ends every process that it started."""

    def __init__(self, *, bootstrap: str, simulator: Simulator, prefix: str, partitions: int = 8) -> None:
        self.bootstrap = bootstrap
        self.simulator = simulator
        self.prefix = prefix
        self.partitions = partitions
        self.asked: dict[str, Asked] = {}
        self.processes: list[Process] = []
        self._folder = tempfile.TemporaryDirectory(prefix="vm-sync-ledger-")
        self.folder = Path(self._folder.name)
        (self.folder / "secrets").mkdir()
        self._producer: AIOKafkaProducer | None = None

    @property
    def topics(self) -> dict[str, str]:
        names = ("requests", "completed", "failed", "dead_letter", "journal")
        return {name: f"{self.prefix}.{name.replace('_', '-')}" for name in names}

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap,
            "VM_SYNC_KAFKA__GROUP_ID": self.prefix,
            "VM_SYNC_KAFKA__PARTITIONS": str(self.partitions),
            "VM_SYNC_KAFKA__SESSION_TIMEOUT": "PT6S",
            **{f"VM_SYNC_TOPICS__{name.upper()}": topic for name, topic in self.topics.items()},
            "VM_SYNC_VCDA__URL": self.simulator.url,
            "VM_SYNC_VCDA__CREDENTIALS__USER": "administrator@System",
            "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": PASSWORD,
            "VM_SYNC_VCDA__REQUEST_TIMEOUT": "PT5S",
            "VM_SYNC_SYNC__SETTLE": "PT2S",
            "VM_SYNC_SYNC__POLL_MIN": "PT0.2S",
            "VM_SYNC_OPS__HOST": "127.0.0.1",
            "VM_SYNC_OPS__PORT": "0",
            "VM_SYNC_SECRETS_DIR": str(self.folder / "secrets"),
            **more,
        }

    def start(self, *, command: tuple[str, ...] = (), **settings: str) -> Process:
        """Start one more service process."""
        log = self.folder / f"process-{len(self.processes)}.log"
        process = Process(self.environment(**settings), log=log, command=command)
        self.processes.append(process)
        return process

    async def ready(self, process: Process, *, within: float = 60.0) -> None:
        """Wait until the process says that it is ready."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            assert process.running, f"it ended with {process.child.returncode}:\n{process.text()[-3000:]}"
            try:
                if (await process.get("/readyz")).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)
        msg = f"not ready within {within} s:\n{process.text()[-3000:]}"
        raise AssertionError(msg)

    # ------------------------------------------------------------ asking

    async def ask(self, operation_id: str, replication_id: str, **fields: object) -> None:
        """Put one request on the topic."""
        await self.ask_all([(operation_id, replication_id)], **fields)

    async def ask_all(self, pairs: list[tuple[str, str]], **fields: object) -> None:
        """Put requests on the topic, keyed by their replication, in this order."""
        producer = await self._producing()
        sent = []
        for operation_id, replication_id in pairs:
            value = json.dumps({"operationID": operation_id, "replicationId": replication_id, **fields}).encode()
            sent.append(await producer.send(self.topics["requests"], key=replication_id.encode(), value=value))
        for (operation_id, replication_id), record in zip(pairs, await asyncio.gather(*sent), strict=True):
            asked = Asked(operation_id, replication_id, record.partition, record.offset)
            self.asked.setdefault(operation_id, asked)

    async def send_raw(self, *, partition: int, **record: Any) -> None:
        """Put any bytes on the requests topic."""
        producer = await self._producing()
        await producer.send_and_wait(self.topics["requests"], partition=partition, **record)

    async def _producing(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, linger_ms=5, enable_idempotence=True)
            await self._producer.start()
        return self._producer

    # ------------------------------------------------------------ reading

    async def read(self, *names: str) -> list[Told]:
        """Read topics to their ends, as a read_committed reader sees them."""
        producer = await self._producing()
        topics = {self.topics[name] for name in names}
        places = [TopicPartition(topic, number) for topic in topics for number in await producer.partitions_for(topic)]
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_partition_fetch_bytes=8 * 1024 * 1024,
        )
        await consumer.start()
        try:
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            told: list[Told] = []
            while any([await consumer.position(place) < ends[place] for place in places]):
                for place, records in (await consumer.getmany(timeout_ms=200)).items():
                    told.extend(_told(record, place) for record in records)
            return told
        finally:
            await consumer.stop()

    async def outcomes(self) -> list[Told]:
        return await self.read("completed", "failed")

    async def wait(self, *, within: float, least: int | None = None) -> list[Told]:
        """Wait until every request has an outcome (or `least` of them), then return all there are."""
        until = time.monotonic() + within
        told: list[Told] = []
        while time.monotonic() < until:
            told = await self.outcomes()
            if len({t.event["operationID"] for t in told}) >= (len(self.asked) if least is None else least):
                return told
            await asyncio.sleep(0.5)
        return told

    # ------------------------------------------------------------ judging

    async def judge(self) -> Verdict:
        """Compare. Call it when nothing is to be expected any more."""
        verdict = Verdict()
        told = await self.outcomes()
        tasks: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        by_id = {}
        for task in self.simulator.world.ledger():
            tasks[task["operationID"]].append(task)
            by_id[task["id"]] = task
        by_operation = defaultdict(list)
        for one in told:
            by_operation[one.event["operationID"]].append(one)
        lost = sorted(set(self.asked) - set(by_operation))
        twice = sorted(op for op, some in by_operation.items() if len(some) > 1)
        doubled = sorted(op for op in self.asked if len(tasks[op]) > 1)
        verdict.must(not lost, f"{len(lost)} requests have no outcome, such as {lost[:5]}")
        verdict.must(not twice, f"{len(twice)} requests have two outcomes, such as {twice[:5]}")
        verdict.must(not doubled, f"{len(doubled)} requests have two tasks, such as {doubled[:5]}")
        overlapping = self.simulator.world.counters()["overlapping"]
        verdict.must(overlapping == 0, f"{overlapping} syncs overlapped one of the same replication")
        paused = self.simulator.world.counters()["postsWhilePaused"]
        verdict.must(paused == 0, f"{paused} POSTs came inside a Retry-After pause")
        for sentence in self._truth(by_operation, tasks, by_id):
            verdict.violations.append(sentence)
        for sentence in self._order(told):
            verdict.violations.append(sentence)
        for sentence in self._secrets(told):
            verdict.violations.append(sentence)
        verdict.figures = {
            "asked": len(self.asked),
            "completed": sum(one.kind == "completed" for one in told),
            "failed": sum(one.kind == "failed" for one in told),
            "lost": len(lost),
            "two outcomes": len(twice),
            "two tasks": len(doubled),
            "overlapping": overlapping,
            "posts": self.simulator.world.counters()["calls"].get("submit", 0),
        }
        return verdict

    def _truth(
        self,
        by_operation: Mapping[str, list[Told]],
        tasks: Mapping[str, list[dict[str, Any]]],
        by_id: Mapping[str, dict[str, Any]],
    ) -> Iterator[str]:
        for operation_id, some in by_operation.items():
            event = some[0].event
            if operation_id not in self.asked:
                yield f"{operation_id} has an outcome, and was never asked for"
                continue
            task = by_id.get(event["taskId"]) if event["taskId"] else None
            if event["taskId"] and (task is None or task["operationID"] != operation_id):
                yield f"{operation_id} tells of a task that is not its own"
            reason = event.get("reason")
            if some[0].kind == "completed" and (task is None or task["state"] != "SUCCEEDED"):
                yield f"{operation_id} is told completed, and its task is {task and task['state']}"
            if reason == "task-failed" and (task is None or task["state"] != "FAILED"):
                yield f"{operation_id} is told task-failed, and its task is {task and task['state']}"
            if reason in {"not-started", "rejected"} and tasks[operation_id]:
                yield f"{operation_id} is told {reason}, and VCDA has a task for it"

    def _order(self, told: list[Told]) -> Iterator[str]:
        """Outcomes of one replication come in the order of its requests: by their tasks' starts, which VCDA knows."""
        started: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for task in self.simulator.world.ledger():
            if (asked := self.asked.get(task["operationID"])) is not None:
                started[asked.replication_id].append((asked.offset, task["start"]))
        for replication_id, some in started.items():
            by_offset = [start for _, start in sorted(some)]
            if by_offset != sorted(by_offset):
                yield f"the syncs of {replication_id} began out of order"
        placed: defaultdict[tuple[str, TopicPartition], list[tuple[int, int]]] = defaultdict(list)
        for one in told:
            if (asked := self.asked.get(one.event["operationID"])) is not None:
                placed[asked.replication_id, one.place].append((asked.offset, one.offset))
        for (replication_id, _), offsets in placed.items():
            told_at = [at for _, at in sorted(offsets)]
            if told_at != sorted(told_at):
                yield f"the outcomes of {replication_id} were told out of order"

    def _secrets(self, told: list[Told]) -> Iterator[str]:
        for secret in (PASSWORD, GUEST_SECRET):
            if any(secret in json.dumps(one.event) for one in told):
                yield f"the secret {secret[:3]}... stands in an outcome"
            for process in self.processes:
                if secret in process.text():
                    yield f"the secret {secret[:3]}... stands in a log"

    def tracebacks(self) -> list[str]:
        """Return the log lines that hold a traceback: bugs, whatever the outcomes say."""
        return [
            line[:2000]
            for process in self.processes
            for line in process.text().splitlines()
            if "Traceback" in line or '"level":"CRITICAL"' in line
        ]

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._producer is not None:
            await self._producer.stop()
        for process in self.processes:
            process.close()
        self._folder.cleanup()


def _told(record: Any, place: TopicPartition) -> Told:
    kind = place.topic.rsplit(".", 1)[-1]
    event: Mapping[str, Any] = {}
    if kind in {"completed", "failed"}:
        event = json.loads(record.value)
        datetime.fromisoformat(event["endedAt"])
    return Told(kind, event, dict(record.headers), place, record.offset)


def counts(told: list[Told]) -> Counter[str]:
    """Count outcomes by their word."""
    return Counter(one.event.get("reason", "completed") for one in told)
