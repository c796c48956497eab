"""Kafka and the simulated VCDA, each a process of its own, and what is started beside them to be measured.

CPU and memory are read from /proc, so this runs on Linux only. CPU is user and system time of that process, to the
hundredth of a second.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import httpx
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from service.sandbox.child_processes import dying_with_us
from service.sandbox.kafka import EmbeddedKafka, Kafka

Kind: TypeAlias = Literal["service", "obvious", "listing", "running"]

READY_LIMIT = 120.0
"""Seconds for a process to be ready; it has half a million journal records to read, perhaps."""

FLOOR_LIMIT = 300.0
"""Seconds for a control that measures itself; the longest takes half a minute."""

TICKS = os.sysconf("SC_CLK_TCK")

SERVICE = (sys.executable, "-m", "service.cli", "run")

PARTITIONS = 8

CONCURRENCY = 100
"""POSTs at once: the service's MAX_CONCURRENT_SUBMITS, and the controls' connections."""


class BenchError(Exception):
    """What was to be measured doesn't work; the text says how."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one run."""

    prefix: str
    partitions: int

    @property
    def requests(self) -> str:
        """What is asked."""
        return f"{self.prefix}.requests"

    @property
    def outcomes(self) -> tuple[str, str]:
        """How it ended."""
        return (f"{self.prefix}.completed", f"{self.prefix}.failed")

    @property
    def dead_letter(self) -> str:
        """What nobody understands."""
        return f"{self.prefix}.dead-letter"

    @property
    def journal(self) -> str:
        """The service's memory."""
        return f"{self.prefix}.journal"


def cpu_seconds(pid: int) -> float:
    """Return what a process has used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident(pid: int) -> int:
    """Return a process' resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(pid: int) -> int:
    """Return the most bytes that were ever resident."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


class Subject:
    """One process that is measured: the service, or a control that does the whole job."""

    def __init__(self, kind: Kind, child: "subprocess.Popen[bytes]", log: Path, http: httpx.AsyncClient) -> None:
        self.kind = kind
        self._http = http
        self.log = log
        self._child = child

    @property
    def pid(self) -> int:
        """Whom to look up in /proc."""
        return self._child.pid

    @property
    def url(self) -> str | None:
        """Where its operations server listens, once it does."""
        found = re.search(r'"port": ?(\d+)', self.text())
        return f"http://127.0.0.1:{found[1]}" if found else None

    def text(self) -> str:
        """Return its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def logged(self, words: str) -> float | None:
        """Return when it first logged a line with these words, in seconds since 1970."""
        return next(self._moments(words), None)

    def logged_last(self, words: str) -> float | None:
        """Return when it last logged a line with these words, in seconds since 1970."""
        return max(self._moments(words), default=None)

    def _moments(self, words: str) -> Iterator[float]:
        from datetime import datetime

        for line in self.text().splitlines():
            if words in line:
                yield datetime.fromisoformat(json.loads(line)["time"]).timestamp()

    def check(self) -> None:
        """Raise `BenchError` if it has ended by itself."""
        if self._child.poll() is not None:
            msg = f"{self.kind} has ended with {self._child.returncode}. The end of its log:\n{self.text()[-3000:]}"
            raise BenchError(msg)

    async def ready(self) -> None:
        """Wait until it says so. Raises `BenchError` if it ends or takes too long."""
        give_up = time.monotonic() + READY_LIMIT
        while not await self._is_ready():
            self.check()
            if time.monotonic() > give_up:
                msg = f"{self.kind} isn't ready. The end of its log:\n{self.text()[-3000:]}"
                raise BenchError(msg)
            await asyncio.sleep(0.05)

    async def _is_ready(self) -> bool:
        if self.kind != "service":
            return "ready" in self.text()
        if self.url is None:
            return False
        with suppress(httpx.HTTPError):
            return (await self._http.get(f"{self.url}/readyz")).is_success
        return False

    async def metrics(self) -> str:
        """Return what `/metrics` says."""
        return (await self._http.get(f"{self.url}/metrics")).text

    async def stop(self) -> None:
        """Have it stop in its own way, or else end it."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                await asyncio.to_thread(self._child.wait, 40.0)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it as a power cut would."""
        self._child.kill()
        self._child.wait()


class Stage:
    """See the module. An async context; everything started here has ended when it is left.

    With a `kafka` that runs already, the service finds it at `listener`, and topics get so many `replicas`. The CPU
    time of one that runs elsewhere isn't known.
    """

    def __init__(self, kafka: Kafka | None = None, *, listener: str = "PLAINTEXT", replicas: int = 1) -> None:
        self._listener = listener
        self._replicas = replicas
        self._folder = tempfile.TemporaryDirectory(prefix="vm-sync-bench-")
        self._own = EmbeddedKafka() if kafka is None else None
        self._kafka = kafka or self._own
        # All is plain http on this machine; looking for proxies and certificates costs 20 ms each time.
        self._http = httpx.AsyncClient(verify=False, trust_env=False, timeout=60.0)  # noqa: S501
        self._simulator: subprocess.Popen[bytes] | None = None
        self._subjects: list[Subject] = []
        self.vcda = ""

    async def __aenter__(self) -> Self:
        try:
            if self._own is not None:
                await asyncio.to_thread(self._own.start)
            await self._start_simulator()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        for subject in self._subjects:
            subject.kill()
        if self._simulator is not None:
            self._simulator.kill()
            self._simulator.wait()
        if self._own is not None:
            await asyncio.to_thread(self._own.close)
        await self._http.aclose()
        self._folder.cleanup()

    async def _start_simulator(self) -> None:
        log = Path(self._folder.name) / "simulator.log"
        with log.open("wb") as file:
            self._simulator = subprocess.Popen(  # noqa: ASYNC220, S603 - all of it is ours
                dying_with_us([sys.executable, "-m", "service.sandbox.vcda.simulator", "--port", "0"]),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        give_up = time.monotonic() + READY_LIMIT
        while (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text(encoding="utf-8"))) is None:
            if self._simulator.poll() is not None or time.monotonic() > give_up:
                raise BenchError(log.read_text(encoding="utf-8"))
            await asyncio.sleep(0.05)
        self.vcda = found[0]

    # ------------------------------------------------------------ what is there

    @property
    def bootstrap(self) -> str:
        """Kafka's address."""
        return self._kafka.bootstrap if self._kafka else ""

    @property
    def kafka_data(self) -> list[Path]:
        """The brokers' log folders are in these; nothing of a Kafka of somebody else's."""
        return (
            [broker.data for broker in self._kafka.brokers.values()] if isinstance(self._kafka, EmbeddedKafka) else []
        )

    def cpu(self) -> tuple[float, float]:
        """Return the CPU seconds used so far by the simulated VCDA and by Kafka; 0 for a Kafka of somebody else's."""
        brokers = self._kafka.brokers.values() if isinstance(self._kafka, EmbeddedKafka) else ()
        vcda = cpu_seconds(self._simulator.pid) if self._simulator else 0.0
        return vcda, sum(cpu_seconds(broker.pid) for broker in brokers if broker.pid)

    async def vcda_told(self, what: str, **fields: object) -> Any:  # noqa: ANN401 - JSON
        """Use the simulator's control API; return its result."""
        answer = await self._http.post(f"{self.vcda}/_simulator/{what}", json=fields)
        return answer.raise_for_status().json()["result"]

    async def vcda_says(self, what: str) -> Any:  # noqa: ANN401 - JSON
        """Ask the simulator's control API."""
        return (await self._http.get(f"{self.vcda}/_simulator/{what}")).raise_for_status().json()

    async def fresh(self, *, duration: str) -> None:
        """Make the simulated VCDA forget, and say how long its tasks take from now on; they aren't queued."""
        await self.vcda_told("reset")
        await self.vcda_told("plan", queued="0", duration=duration)

    async def topics(self, partitions: int = PARTITIONS, *, journal: Mapping[str, str] | None = None) -> Topics:
        """Make new topics for requests and outcomes. Requests get the broker's own time stamp when appended.

        The service makes its journal, unless settings for a `journal` are given.
        """
        topics = Topics(f"bench-{uuid.uuid4().hex[:8]}", partitions)
        stamped = {"message.timestamp.type": "LogAppendTime"}
        new = [
            NewTopic(topics.requests, partitions, self._replicas, topic_configs=stamped),
            *(NewTopic(name, partitions, self._replicas) for name in topics.outcomes),
        ]
        if journal is not None:
            new.append(NewTopic(topics.journal, partitions, self._replicas, topic_configs=dict(journal)))
        await self._administer("create_topics", new)
        return topics

    async def drop(self, topics: Topics) -> None:
        """Remove a run's topics, so that Kafka doesn't carry them on."""
        names = [topics.requests, *topics.outcomes]
        await self._administer("delete_topics", names)
        await self._administer("delete_topics", [topics.dead_letter, topics.journal])

    async def _administer(self, what: str, subject: list[Any]) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            await getattr(admin, what)(subject)
        finally:
            await admin.close()

    # ------------------------------------------------------------ what is measured

    def start(self, kind: Kind, topics: Topics, *, program: Sequence[str] = SERVICE, **settings: str) -> Subject:
        """Start the service, or a control that does the whole job. `settings` are the service's, without prefix."""
        log = Path(self._folder.name) / f"{topics.prefix}-{kind}-{len(self._subjects)}.log"
        command = program if kind == "service" else self._control(kind, topics=topics)
        environ = {name: text for name, text in os.environ.items() if not name.upper().startswith("VM_SYNC_")}
        if kind == "service":
            environ |= self.environment(topics, **settings)
        with log.open("wb") as file:
            child = subprocess.Popen(  # noqa: S603 - all of it is ours
                dying_with_us(command), env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        subject = Subject(kind, child, log, self._http)
        self._subjects.append(subject)
        return subject

    async def floor(self, control: str, *, topic: str = "", **numbers: int | str) -> dict[str, float]:
        """Run a control that measures itself, and return what it says."""
        arguments = [f"--{name}={value}" for name, value in numbers.items()]
        process = await asyncio.create_subprocess_exec(
            *self._control(control, topics=None, requests=topic),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(FLOOR_LIMIT):
                told, complaint = await process.communicate()
        except TimeoutError:
            process.kill()
            told, complaint = await process.communicate()
        if process.returncode:
            msg = f"{control} failed:\n{complaint.decode()[-3000:]}"
            raise BenchError(msg)
        figures: dict[str, float] = json.loads(told)
        return figures

    def _control(self, control: str, *, topics: Topics | None, requests: str = "") -> list[str]:
        where = [f"--vcda={self.vcda}", f"--kafka={self.bootstrap}", f"--concurrency={CONCURRENCY}"]
        if topics is not None:
            where += [f"--requests={topics.requests}", f"--outcomes={topics.outcomes[0]}"]
        else:
            where += [f"--requests={requests}"]
        return [sys.executable, "-m", "benchmarks.controls", control, *where]

    def environment(self, topics: Topics, **settings: str) -> dict[str, str]:
        """Return the settings of the service, and of its commands."""
        completed, failed = topics.outcomes
        kafka = self._kafka.address(self._listener) if isinstance(self._kafka, EmbeddedKafka) else self.bootstrap
        given = {
            "KAFKA__BOOTSTRAP_SERVERS": kafka,
            "KAFKA__GROUP_ID": topics.prefix,
            "KAFKA__PARTITIONS": str(topics.partitions),
            "TOPICS__REQUESTS": topics.requests,
            "TOPICS__COMPLETED": completed,
            "TOPICS__FAILED": failed,
            "TOPICS__DEAD_LETTER": topics.dead_letter,
            "TOPICS__JOURNAL": topics.journal,
            "VCDA__URL": self.vcda,
            "VCDA__CREDENTIALS__USER": "administrator@System",
            "VCDA__CREDENTIALS__PASSWORD": "password",
            "SYNC__MAX_CONCURRENT_SUBMITS": str(CONCURRENCY),
            "SYNC__MAX_RUNNING": "0",
            "SYNC__MAX_IN_FLIGHT": "100000",  # partitions' shares are never quite even: 50,000 would pause the fullest
            "OPS__HOST": "127.0.0.1",
            "OPS__PORT": "0",
            "SECRETS_DIR": self._folder.name,
            **settings,
        }
        return {f"VM_SYNC_{name}": text for name, text in given.items()}
