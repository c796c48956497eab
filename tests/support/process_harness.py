"""What was asked, what VCDA did, and what a read_committed reader sees: kept apart, and compared at the end.

A `Ledger` puts requests on a real Kafka, runs the service in processes of their own against the simulated VCDA, does
to them whatever a test wants, and has `oracle` judge. It knows nothing of how the service works; only what it promises.
"""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy as PlainBuilder
from typing_extensions import override

from service.sandbox.child_processes import dying_with_us
from service.sandbox.vcda.world import Config, Plan, User, World
from tests.stress.oracle import Asked, Cancel, Evidence, Spoilt, Told, Verdict, counts, judge

__all__ = ["GUEST_SECRET", "PASSWORD", "Ledger", "Process", "Told", "Verdict", "appliance", "counts", "run_command"]

PASSWORD = "Vm-Sync-Secret-0815"
"""Must never be seen anywhere outside of a login's body."""

GUEST_SECRET = "S3cret"
"""What the simulator's task results carry where real ones carry guest customization passwords."""


def appliance(plan: Plan, *, others: tuple[User, ...] = (), spelled: str | None = None, **more: Any) -> Config:
    """A VCDA that knows our user, with the password that must never be seen; `spelled`: how tasks name users."""
    ours = User(name="administrator@System", password=PASSWORD, administrator=True)
    users = tuple(replace(user, on_tasks=spelled) for user in (ours, *others))
    return Config(users=users, plan=plan, **more)


class Simulated(Protocol):
    """A simulated VCDA, in this loop or apart."""

    @property
    def url(self) -> str: ...
    @property
    def world(self) -> World: ...


class _Name(str):
    """A header's name that becomes bytes that are no text."""

    __slots__ = ()

    @override
    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"\xff\xfe"


class Process:
    """One service process; its log goes to a file, by way of a pipe, and is read for secrets in the end."""

    def __init__(self, environment: Mapping[str, str], *, log: Path, command: tuple[str, ...] = ()) -> None:
        self.log = log
        self._port: int | None = None
        self._pipe, theirs = os.pipe()
        self._reads = threading.Event()
        self._reads.set()
        self.child = subprocess.Popen(
            dying_with_us([*command, sys.executable, "-m", "service.cli", "run"]),
            env={**os.environ, **environment},
            stdout=theirs,
            stderr=subprocess.STDOUT,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, name=f"reads {log.name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self.log.open("ab", buffering=0) as file:
            while text := os.read(self._pipe, 65_536):
                file.write(text)
                self._reads.wait()

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Have nobody read the log for a while; the pipe holds as little as the kernel allows then."""
        self._reads.clear()
        with suppress(OSError, AttributeError):  # busy: it holds more already, which is as good
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, 4096)
        try:
            yield
        finally:
            self._reads.set()
            with suppress(OSError, AttributeError):
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, 65_536)

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def running(self) -> bool:
        return self.child.poll() is None

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    def open_files(self) -> int:
        """Return how many file descriptors it has."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    async def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        await self.ended(within=60.0)

    async def stop(self, *, within: float = 120.0) -> int:
        """SIGTERM, and the exit code."""
        if self.running:
            self.child.send_signal(signal.SIGTERM)
        return await self.ended(within=within)

    async def ended(self, *, within: float) -> int:
        """Wait for its end without holding up the simulator, which runs on the same event loop."""
        code = await asyncio.to_thread(self.child.wait, within)
        await asyncio.to_thread(self._reader.join, 10)
        return code

    def close(self) -> None:
        if self.running:
            self.child.kill()
            self.child.wait(60)
        self._reads.set()
        self._reader.join(10)
        os.close(self._pipe)

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def port(self) -> int | None:
        """The operations server's port, as the log tells it."""
        if self._port is None:
            for line in self.text().splitlines():
                if "Operations server" in line and '"port"' in line:
                    self._port = int(json.loads(line)["port"])
        return self._port

    async def get(self, path: str, *, timeout: float = 20.0) -> httpx.Response:
        """Ask its operations server; raises httpx.HTTPError when it doesn't answer, on a busy machine either."""
        port = self.port()
        if port is None:
            msg = "no port yet"
            raise httpx.ConnectError(msg)
        # There is no TLS here, and to read the system's authorities each time takes 35 ms of CPU time.
        async with httpx.AsyncClient(verify=False) as client:  # noqa: S501
            return await client.get(f"http://127.0.0.1:{port}{path}", timeout=timeout)


class Ledger:
    """See the module. An async context: leaving it ends every process that it started."""

    def __init__(
        self, *, bootstrap: str, simulator: Simulated, prefix: str, partitions: int = 8, door: str | None = None
    ) -> None:
        self.bootstrap = bootstrap
        self.door = door or bootstrap
        """Where the service is to look for Kafka, if not where we do."""
        self.simulator = simulator
        self.prefix = self.group = prefix
        self.partitions = partitions
        self.asked: dict[str, Asked] = {}
        self.unsure: set[str] = set()
        self.cancelled: dict[str, bool] = {}
        """Operations for which there was a cancel, and whether one of theirs was a release."""
        self.cancels: list[Cancel] = []
        """Those that are known to stand on the topic."""
        self.spoilt: list[Spoilt] = []
        self.spoilt_twice: Counter[int] = Counter()
        """By partition, how often nobody knows whether a record that can't be handed over stands there."""
        self.foreseen: dict[str, str] = {}
        """By replication: what a test does to it that no client can stand up to."""
        self.deleted: set[str] = set()
        """Operations whose records a test took from the topic."""
        self.renamed: dict[str, str] = {}
        """Topics with names of a test's own, by what they are for."""
        self.processes: list[Process] = []
        self._folder = tempfile.TemporaryDirectory(prefix="vm-sync-ledger-")
        self.folder = Path(self._folder.name)
        (self.folder / "secrets").mkdir()
        self._producer: AIOKafkaProducer | None = None

    @property
    def topics(self) -> dict[str, str]:
        names = ("requests", "completed", "failed", "dead_letter", "journal", "control")
        return {name: f"{self.prefix}.{name.replace('_', '-')}" for name in names} | self.renamed

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": self.door,
            "VM_SYNC_KAFKA__GROUP_ID": self.group,
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

    async def ready(self, process: Process, *, within: float = 180.0) -> None:
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

    async def order(self, key: bytes, value: bytes | None) -> None:
        """Write to the control topic, as `vm-sync sites` does, again until it stands there: Kafka may be away."""
        producer = await self._producing()
        while True:
            with suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(30):
                    await producer.send_and_wait(self.topics["control"], value, key=key)
                return
            await asyncio.sleep(0.5)

    async def ask(self, operation_id: str, replication_id: str, **fields: object) -> None:
        """Put one request on the topic."""
        await self.ask_all([(operation_id, replication_id)], **fields)

    async def ask_all(self, pairs: list[tuple[str, str]], **fields: object) -> None:
        """Put requests on the topic, keyed by their replication, in this order."""
        standing = [
            await self.begin_to_ask(operation_id, replication_id, **fields) for operation_id, replication_id in pairs
        ]
        await asyncio.gather(*standing)

    async def begin_to_ask(self, operation_id: str, replication_id: str, **fields: object) -> "asyncio.Task[None]":
        """Put one request on the topic, behind those put before; what is returned is done when it stands there."""
        producer = await self._producing()
        value = json.dumps({"operationID": operation_id, "replicationId": replication_id, **fields}).encode()
        sent = await producer.send(self.topics["requests"], key=replication_id.encode(), value=value)

        async def stands() -> None:
            try:
                record = await sent
            except KafkaError:
                if operation_id not in self.asked:
                    self.unsure.add(operation_id)
                return
            self.unsure.discard(operation_id)
            asked = Asked(operation_id, replication_id, record.partition, record.offset)
            self.asked.setdefault(operation_id, asked)

        return asyncio.create_task(stands())

    async def begin_to_cancel(
        self, operation_id: str, replication_id: str, *, release: bool = False
    ) -> "asyncio.Task[None]":
        """Put a cancel on the topic, behind what was put before; what is returned is done when it stands there."""
        self.cancelled[operation_id] = release or self.cancelled.get(operation_id, False)
        producer = await self._producing()
        named = {"operationID": operation_id, "replicationId": replication_id}
        value = json.dumps({"cancel": named, "release": release, "by": "chaos"}).encode()
        sent = await producer.send(self.topics["requests"], key=replication_id.encode(), value=value)

        async def stands() -> None:
            with suppress(KafkaError):
                record = await sent
                where = {"partition": record.partition, "offset": record.offset}
                self.cancels.append(Cancel(operation_id=operation_id, release=release, **where))

        return asyncio.create_task(stands())

    async def spoil(
        self, *, partition: int, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        """Put a message on the requests topic that nobody can understand."""
        producer = await self._producing()
        record = await producer.send_and_wait(
            self.topics["requests"], partition=partition, key=key, value=value, headers=list(headers)
        )
        self.spoilt.append(Spoilt(partition, record.offset, key, value, headers))

    async def spoil_below(self, *, partition: int) -> None:
        """Put a record there that Kafka's clients can't hand over: its header's name is not UTF-8."""
        # Neither idempotent nor with the compiled builder: these take no name but a real string.
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all")  # a broker may die at once
        self.spoilt_twice[partition] += 1  # the client may send it again
        try:
            await producer.start()
            batch = producer.create_batch()
            batch._builder = PlainBuilder(
                magic=2,
                compression_type=0,
                is_transactional=False,
                producer_id=-1,
                producer_epoch=-1,
                base_sequence=-1,
                batch_size=16_384,
            )
            batch.append(key=b"poison", value=b"poison", timestamp=None, headers=[(_Name("?"), b"")])
            batch.close()
            record = await (await producer.send_batch(batch, self.topics["requests"], partition=partition))
        finally:
            await producer.stop()
        self.spoilt.append(Spoilt(partition, record.offset, b"poison", b"poison", (), lost=True))

    async def send_raw(self, *, partition: int, topic: str = "requests", **record: Any) -> None:
        """Put any bytes on the requests topic, or on another one of the service's."""
        producer = await self._producing()
        await producer.send_and_wait(self.topics[topic], partition=partition, **record)

    async def hang_up(self) -> None:
        """Begin again with who has never sent anything, for a topic that has never been sent anything."""
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None

    async def _producing(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self.bootstrap,
                linger_ms=5,
                enable_idempotence=True,
                request_timeout_ms=120_000,  # tests stop Kafka; what was asked meanwhile is asked when it is back
            )
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

    async def produced(self) -> int:
        """Return how many records the requests topic was given, by anybody."""
        producer = await self._producing()
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap)
        await consumer.start()
        try:
            topic = self.topics["requests"]
            places = [TopicPartition(topic, number) for number in await producer.partitions_for(topic)]
            return sum((await consumer.end_offsets(places)).values())
        finally:
            await consumer.stop()

    async def judge(self, **more: Any) -> Verdict:
        """Compare. Call it when nothing is to be expected any more; `more` is evidence that only others have."""
        told = await self.outcomes()
        counters = self.simulator.world.counters()
        texts = {process.log.name: process.text() for process in self.processes}
        texts |= {path.name: path.read_text(errors="replace") for path in self.folder.glob("command-*")}
        texts["the outcomes"] = "\n".join(json.dumps(one.event) for one in told)
        texts["the journal"] = "\n".join((one.value or b"").decode() for one in await self.read("journal"))
        return judge(
            Evidence(
                asked=self.asked,
                unsure=frozenset(self.unsure),
                cancelled=self.cancelled,
                cancels=self.cancels,
                told=told,
                tasks=self.simulator.world.ledger(),
                spoilt=self.spoilt,
                spoilt_twice=self.spoilt_twice,
                dead=await self.read("dead_letter"),
                foreseen=self.foreseen,
                deleted=frozenset(self.deleted),
                posts=counters["calls"].get("submit", 0),
                posts_while_paused=counters["postsWhilePaused"],
                refusals=counters["refusals"],
                texts=texts,
                secrets=(PASSWORD, GUEST_SECRET),
                **more,
            )
        )

    def tracebacks(self) -> list[str]:
        """Return the log lines that hold a traceback: bugs, whatever the outcomes say.

        Those of Kafka's client are its own: what it stumbles over is seen in what does or doesn't come of it.
        """
        return [
            line[:2000]
            for process in self.processes
            for line in process.text().splitlines()
            if ("Traceback" in line or '"level": "CRITICAL"' in line) and '"logger": "aiokafka' not in line
        ]

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hang_up()
        for process in self.processes:
            process.close()
        self._folder.cleanup()


def _told(record: Any, place: TopicPartition) -> Told:
    kind = place.topic.rsplit(".", 1)[-1]
    event: Mapping[str, Any] = {}
    if kind in {"completed", "failed"}:
        event = json.loads(record.value)
        datetime.fromisoformat(event["endedAt"])
    headers = tuple(record.headers)
    return Told(kind, event, headers, place, record.offset, record.key, record.value, record.timestamp / 1000)


async def run_command(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Run `vm-sync` with these arguments, and return its exit code and all that it has printed."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service.cli",
        *arguments,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(child.communicate(), 120)
    except TimeoutError:
        child.kill()
        raise
    assert child.returncode is not None
    return child.returncode, output.decode()
