"""Each alert provoked for real: processes of the service, a Kafka, simulated VCDAs, and a Prometheus that scrapes them.

Some deployments side by side, each in a namespace of its own, each with its own misfortunes. While an alert fires, what
its page in the runbook says is done: each query is asked, and each command run, with stand-ins for `kubectl` and `curl`
that reach the deployment's processes. Then the cause is removed, and the queries under "Over when" must fall silent.

The alerts' expressions are the real ones; their windows, offsets and `for` are `HURRY` times shorter, since half an
hour of waiting for each of them shows no more. Thresholds are untouched: what has to be two minutes late is.
"""

import asyncio
import os
import re
import resource
import signal
import ssl
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeAlias

import trustme
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from service.kafka.connection import KafkaConnection
from service.kafka.journal_codec import Cursor
from service.kafka.topics import JOURNAL_SETTINGS, TopicNames, ensure_topics
from service.sandbox.kafka import LOGIN, EmbeddedKafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.support.cluster import PASSWORDS, SERVICE
from tests.support.grants import Acls, Grant, Operation, Pattern, Resource, grants_of
from tests.support.process_harness import PASSWORD, Ledger, Process, appliance
from tests.support.prometheus import Prometheus, hurried, prometheus, within
from tests.support.relay import Relay
from tests.support.runbook import commands, pages, printed, queries
from tests.support.scripted_http_server import Reply
from tests.support.stolen_journal import write_cursor
from tests.support.token_server import CLIENT, LISTENER, SCOPE, SECRET, TokenListener, TokenServer

HURRY: Final = 30
"""By how much windows, offsets and `for` are shortened: 5 minutes are 10 s, 15 minutes 30 s, an hour two minutes."""

PATIENCE: Final = 300.0
"""Seconds that an alert, or its end, is waited for: several times what it takes on an idle machine."""

COMMANDS_AT_ONCE: Final = 2

RELAYED: Final = "RELAYED"

CHECK: Final = "kubectl -n vm-sync exec deploy/vm-sync -- vm-sync check"
"""What the runbook begins with, whatever the alert."""

NEEDS_A_CLUSTER: Final = re.compile(
    r"kubectl -n vm-sync (get|describe|port-forward|rollout|scale) |-c check|^kafka-[a-z-]+\.sh |--previous"
)
"""What can't be run here."""

KUBECTL: Final = """\
#!/bin/sh
# Stands in for kubectl: a pod is a process, its log a file.
shift 2
verb=$1
shift
case $verb in
    exec) while [ "$1" != -- ]; do shift; done; shift; exec "$@" ;;
    logs) cat "$LOGS"/*.log ;;
    *) echo "no cluster here" >&2; exit 64 ;;
esac
"""

CURL: Final = f"""\
#!{sys.executable}
import os, sys, urllib.error, urllib.request
url = "http://" + sys.argv[2].replace("localhost:8080", os.environ["OPS"])
try:
    print(urllib.request.urlopen(url, timeout=10).read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command of a page, and what came of it."""

    command: str
    code: int
    output: str
    wanted: str | None = None
    """What the page says that it prints."""


@dataclass(slots=True)
class Finding:
    """What was seen of one alert."""

    alert: str
    how: str
    fired_after: float | None = None
    """Seconds from the cause; None: it did not fire in time."""
    asked: dict[str, int] = field(default_factory=dict)
    """The page's queries, with the number of rows of each while the alert fired."""
    ran: list[Ran] = field(default_factory=list)
    over_after: float | None = None
    """Seconds from the end of the cause until the queries under "Over when" yielded nothing; None: not seen."""
    not_over: list[str] = field(default_factory=list)
    """Queries under "Over when" that still yielded something, or that yielded nothing while the alert fired."""
    ends: bool = True
    """Whether the cause was removed."""


@dataclass(slots=True)
class Stage:
    """What all deployments share."""

    kafka: EmbeddedKafka
    relay: Relay
    tokens: TokenServer
    """Kafka's listener `LISTENER` accepts its tokens."""
    prometheus: Prometheus
    folder: Path
    findings: dict[str, Finding] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    """By scene, why it did not come to its end."""
    say: Callable[[str], None] = lambda _: None
    _running: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(COMMANDS_AT_ONCE))

    @asynccontextmanager
    async def deployment(
        self,
        name: str,
        *,
        plan: Plan | None = None,
        partitions: int = 4,
        door: str | None = None,
        tls: ssl.SSLContext | None = None,
        **more: Any,
    ) -> AsyncIterator["Deployment"]:
        """Open a deployment without a process; `tls` is for VCDA."""
        async with (
            Simulator(appliance(plan or Plan(duration=Durations.of("uniform:0.5:2")), **more), tls=tls) as vcda,
            Ledger(
                bootstrap=self.kafka.bootstrap, simulator=vcda, prefix=name, partitions=partitions, door=door
            ) as ledger,
        ):
            yield Deployment(self, name, vcda, ledger)

    async def run(self, command: str, *, environment: Mapping[str, str]) -> Ran:
        """Run a command as a person at a shell would."""
        programs = Path(sys.executable).parent
        async with self._running:
            child = await asyncio.create_subprocess_exec(
                "bash",
                "-o",
                "pipefail",
                "-c",
                command,
                env={
                    **os.environ,
                    **environment,
                    "PATH": f"{self.folder}:{programs}:{os.environ['PATH']}",
                },
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            try:
                output, _ = await asyncio.wait_for(child.communicate(b"y\n"), 120)
            except TimeoutError:
                child.kill()
                return Ran(command, -1, "not ended within 120 s")
            return Ran(command, child.returncode or 0, output.decode(errors="replace"))


@dataclass(slots=True)
class Deployment:
    """One deployment in its namespace."""

    stage: Stage
    name: str
    vcda: Simulator
    ledger: Ledger
    settings: dict[str, str] = field(default_factory=dict)
    """Those of the process that was started last, for the commands."""
    words: dict[str, str] = field(default_factory=dict)
    """What stands for ID, and for PARTITION:OFFSET."""
    _ran: dict[str, tuple[float, "asyncio.Task[Ran]"]] = field(default_factory=dict)
    """By command, when it was run last, and what comes of it."""

    async def start(
        self, settings: Mapping[str, str] | None = None, *, command: tuple[str, ...] = (), scraped: bool = True
    ) -> Process:
        """Start a process, wait until it is ready, and have it scraped. The settings are without their prefix."""
        self.settings = {f"VM_SYNC_{name}": value for name, value in (settings or {}).items()}
        process = self.ledger.start(command=command, **self.settings)
        await self.ledger.ready(process, within=PATIENCE)
        if scraped:
            address = f"127.0.0.1:{process.port()}"
            self.stage.prometheus.scrape(address, job="vm-sync", namespace=self.name)
            # Twice, since an increase begins with the second value.
            scraped_twice = f'count_over_time(up{{instance="{address}"}}[1m]) > 1'
            assert await self.stage.prometheus.until(scraped_twice, seconds=PATIENCE), f"{address} is not scraped"
        return process

    async def requests(self, name: str, number: int, **fields: object) -> list[tuple[str, str]]:
        """Send requests; return their operations and replications."""
        pairs = [(f"{name}-{n}", replication(f"{self.name}-{name}-{n}")) for n in range(number)]
        await self.ledger.ask_all(pairs, **fields)
        self.words.setdefault("ID", pairs[0][0])
        return pairs

    async def until(self, holds: Callable[[], bool | Awaitable[bool]], *, what: str, seconds: float = PATIENCE) -> None:
        """Wait for something."""
        end = time.monotonic() + seconds
        while True:
            there = holds()
            if there if isinstance(there, bool) else await there:
                return
            assert time.monotonic() < end, f"{self.name}: not within {seconds:g} s: {what}"
            await asyncio.sleep(0.1)

    async def fires(self, alert: str, how: str, *, since: float | None = None, ends: bool = True) -> None:
        """Wait until an alert fires, and do what its page says; `since` (monotonic) is when the cause began."""
        began = time.monotonic() if since is None else since
        finding = self.stage.findings[alert] = Finding(alert, how, ends=ends)
        firing = f'ALERTS{{alertname="{alert}", alertstate="firing", namespace=~"{self.name}|"}}'
        moment = await self.stage.prometheus.moment_of(firing, seconds=PATIENCE)
        if moment is None:
            self.stage.say(f"{alert} did not fire")
            return
        finding.fired_after = time.monotonic() - began
        self.stage.say(f"{alert} fired after {finding.fired_after:.0f} s")
        parts = pages()[alert].parts
        await look_up(finding, self.stage.prometheus, namespace=self.name, moment=moment)
        finding.ran += await self.run([CHECK, *commands(parts["Look"] + parts["Act"])], since=began)
        self.stage.say(f"{alert}: page done")

    async def over(self, *alerts: str) -> None:
        """Wait until the queries under "Over when" of these alerts yield nothing, and run the commands there."""
        began = time.monotonic()
        await asyncio.gather(*(self._over(alert, began) for alert in alerts))

    async def _over(self, alert: str, began: float) -> None:
        finding, text = self.stage.findings[alert], pages()[alert].parts["Over when"]
        for query in queries(text):
            # A target whose scrape took too long has no series until the next one: then silence shows nothing.
            scoped = f'({within(hurried(query, by=HURRY), self.name)}) or up{{namespace="{self.name}"}} == 0'
            left = PATIENCE - (time.monotonic() - began)
            if not await self.stage.prometheus.until(scoped, seconds=max(left, 1), empty=True):
                finding.not_over.append(query)
        finding.over_after = time.monotonic() - began
        self.stage.say(f"{alert} was over after {finding.over_after:.0f} s")
        finding.ran += await self.run(commands(text), since=began, wanted=printed(text))

    async def command(self, line: str) -> None:
        """Run a command with this deployment's settings; it has to succeed."""
        ran = await self.stage.run(line, environment=self.ledger.environment(**self.settings))
        assert ran.code == 0, ran

    async def run(self, lines: Iterable[str], *, since: float, wanted: Mapping[str, str] | None = None) -> list[Ran]:
        """Run commands of the runbook; one that was run since then, for another alert of the same cause, not again."""
        found = []
        for line in lines:
            expected = (wanted or {}).get(line)
            if NEEDS_A_CLUSTER.search(line):
                continue
            command = line
            for word, value in ({"PARTITION:OFFSET": "0:0"} | self.words).items():
                command = re.sub(rf"\b{word}\b", value, command)
            if command not in self._ran or self._ran[command][0] < since:
                environment = self.ledger.environment(**self.settings) | {"LOGS": str(self.ledger.folder)}
                if living := [process for process in self.ledger.processes if process.running]:
                    environment["OPS"] = f"127.0.0.1:{living[-1].port()}"
                running = asyncio.create_task(self.stage.run(command, environment=environment))
                self._ran[command] = (time.monotonic(), running)
            ran = await self._ran[command][1]
            found.append(Ran(line, ran.code, ran.output, expected))
        return found


async def look_up(finding: Finding, prometheus: Prometheus, *, namespace: str, moment: float) -> None:
    """Ask the queries of an alert's page, of one deployment alone, for the moment at which its rule was evaluated.

    Not for now: on a busy machine, a window that is a thirtieth as long may be over before the last one is asked.
    """
    parts = pages()[finding.alert].parts
    for query in queries("".join(parts.values())):
        rows = await prometheus.rows(within(hurried(query, by=HURRY), namespace), moment=moment)
        finding.asked[query] = len(rows)
    if not any(finding.asked[query] for query in queries(parts["Over when"])):
        finding.not_over.append('none of the queries under "Over when" yields anything while the alert fires')


def replication(name: str) -> str:
    """Return an id as VCDA's look."""
    return f"C4-{uuid.uuid5(uuid.NAMESPACE_URL, name)}"


@asynccontextmanager
async def stage(program: str, *, folder: Path, say: Callable[[str], None] = lambda _: None) -> AsyncIterator[Stage]:
    """Open the stage: a Kafka with rights, tokens and a long way to it, and a Prometheus in a hurry."""
    for name, text in (("kubectl", KUBECTL), ("curl", CURL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    tokens, accepting = TokenServer(), TokenListener(folder / "keys.json")
    tokens.write_keys(accepting.keys)
    kafka = EmbeddedKafka(
        users=PASSWORDS,
        authorizer=True,
        listeners={RELAYED: "PLAINTEXT", **accepting.listeners},
        properties=accepting.properties,
        java_properties=accepting.java_properties,
    )

    def place() -> tuple[str, int]:
        host, _, port = kafka.address(RELAYED).partition(":")
        return host, int(port)

    relay = Relay(place)
    kafka.advertise(RELAYED, relay.address)
    await asyncio.to_thread(kafka.start)
    try:
        async with relay, tokens, prometheus(program, folder=folder, hurry=HURRY) as found:
            yield Stage(kafka, relay, tokens, found, folder, say=say)
    finally:
        await asyncio.to_thread(kafka.close)


# ---------------------------------------------------------------- the scenes


async def strange_answers(stage: Stage) -> None:
    """Have VCDA fail syncs, show what nobody knows and lose POSTs; and have senders send what is no request."""
    site = {"NAME": "site2", "USER": "administrator@System", "PASSWORD": PASSWORD}
    settings = {f"VCDA__SITES__0__{name}": value for name, value in site.items()}
    async with stage.deployment("answers") as here:
        await here.start(settings | {"VCDA__REQUEST_TIMEOUT": "PT2S"})
        world, began = here.vcda.world, time.monotonic()
        for n in range(8):
            world.plan(replication=replication(f"answers-fails-{n}"), failing=1.0)
        world.plan(replication=replication("answers-strange-0"), word="PAUSED_BY_AN_ADMINISTRATOR", duration=20)
        for n in range(3):
            here.vcda.fault(
                operation="submit", replication=replication(f"answers-cut-{n}"), answer="cut", effect="none", times=1
            )
        for name, number in (("cut", 3), ("strange", 1), ("fails", 8)):
            await here.requests(name, number)
        await here.requests("nowhere", 1, site="site-x")
        for partition in range(4):
            await here.ledger.send_raw(partition=partition, value=b"no JSON")
        await asyncio.gather(
            here.fires("VmSyncDeadLetters", "messages that are no JSON", since=began),
            here.fires("VmSyncCredentialsMissing", "a request for a site without credentials", since=began),
            here.fires("VmSyncUnknownTaskState", "a task in the state PAUSED_BY_AN_ADMINISTRATOR", since=began),
            here.fires("VmSyncSiteFailing", "8 syncs that end as FAILED", since=began),
            here.fires("VmSyncPostsRepeated", "3 POSTs whose connections are cut before they arrive", since=began),
        )
        await here.over(
            "VmSyncDeadLetters",
            "VmSyncCredentialsMissing",
            "VmSyncUnknownTaskState",
            "VmSyncSiteFailing",
            "VmSyncPostsRepeated",
        )


async def look_ups_refused(stage: Stage) -> None:
    """Have VCDA lose the answer to a POST, and refuse to list tasks, while it answers all other calls."""
    async with stage.deployment("doubt", plan=Plan(duration=Durations.of(1e6))) as here:
        await here.start()
        await here.requests("runs", 3)
        await here.until(lambda: here.vcda.world.counts.calls["submit"] >= 3, what="3 syncs run")
        began = time.monotonic()
        here.vcda.fault(operation="find", answer="status", status=403)
        here.vcda.fault(operation="submit", replication=replication("doubt-lost-0"), answer="cut", times=1)
        await here.requests("lost", 1)
        await here.fires("VmSyncLookUpsFailing", "look-ups are answered with 403, other calls succeed", since=began)
        here.vcda.faults.remove()
        await here.over("VmSyncLookUpsFailing")


async def site_away(stage: Stage) -> None:
    """Have VCDA answer everything with 503 while syncs run, for longer than they last."""
    async with stage.deployment("away", plan=Plan(duration=Durations.of(3))) as here:
        await here.start()
        await here.requests("late", 10)
        await here.until(lambda: here.vcda.world.counts.calls["submit"] >= 10, what="10 syncs run")
        began = time.monotonic()
        here.vcda.fault(answer="status", status=503)
        await here.requests("waits", 5)
        await here.fires("VmSyncSitePaused", "VCDA answers 503 to all calls", since=began)
        here.vcda.faults.remove()
        late = asyncio.gather(
            here.fires("VmSyncOutcomesLateFast", "10 outcomes that were late, as VCDA was away", since=began),
            here.fires("VmSyncOutcomesLateSlow", "the same", since=began),
        )
        await here.over("VmSyncSitePaused")
        await late
        here.vcda.world.plan(duration=0.5)
        await here.requests("good", 500)
        await here.over("VmSyncOutcomesLateFast", "VmSyncOutcomesLateSlow")


async def wrong_password(stage: Stage) -> None:
    """Change the account's password at VCDA, and end all sessions."""
    async with stage.deployment("login", plan=Plan(duration=Durations.of(600))) as here:
        await here.start()
        await here.requests("runs", 3)
        await here.until(lambda: here.vcda.world.counts.calls["submit"] >= 3, what="3 syncs run")
        world, began = here.vcda.world, time.monotonic()
        world.user(name="administrator@System", password="another")
        world.expire()
        await asyncio.gather(
            here.fires("VmSyncLoginFailing", "the account's password is changed, its sessions ended", since=began),
            here.fires("VmSyncNotLoggedIn", "the same", since=began),
        )
        world.user(name="administrator@System", password=PASSWORD)
        await here.over("VmSyncLoginFailing", "VmSyncNotLoggedIn")


async def old_requests(stage: Stage) -> None:
    """Have tasks that never end, and a service whose wall clock shows the next day."""
    async with stage.deployment("old", plan=Plan(duration=Durations.of(1e6))) as here:
        first = await here.start(scraped=False)
        await here.requests("endless", 11, deadlineSeconds=604_800)
        await here.requests("held", 1, deadlineSeconds=2)
        await here.ledger.wait(within=PATIENCE, least=1)
        await first.stop()
        later = (sys.executable, "-m", "tests.stress.skewed", str(31 * 3600))
        await here.start(command=later)
        began = time.monotonic()
        await asyncio.gather(
            here.fires("VmSyncRequestNearDeadline", "requests of 31 hours ago whose tasks do not end", since=began),
            here.fires("VmSyncNothingEnds", "the same: 11 of them", since=began),
            here.fires("VmSyncReplicationHeld", "one whose deadline was 31 hours ago", since=began),
        )
        here.vcda.world.finish()
        await here.over("VmSyncRequestNearDeadline", "VmSyncNothingEnds", "VmSyncReplicationHeld")


async def topics_harmed(stage: Stage) -> None:
    """Delete a journal, and records of one, let retention overtake reading, and point a journal to another topic."""
    async with stage.deployment("topics") as here:
        ledger = here.ledger
        await here.start()
        await here.requests("before", 12)
        await ledger.wait(within=PATIENCE)
        began = time.monotonic()
        async with _admin(ledger.bootstrap) as admin:
            await _recreate(admin, ledger.topics["journal"], partitions=4, settings=JOURNAL_SETTINGS)
            await here.requests("after", 8)
            await here.fires("VmSyncJournalRewritten", "the journal is deleted and created again", since=began)
            await here.over("VmSyncJournalRewritten")

            places = {(asked.offset, asked.partition) for asked in ledger.asked.values()}
            last, overtaken = max(places)
            elsewhere = next(partition for _, partition in places if partition != overtaken)
            place = TopicPartition(ledger.topics["requests"], overtaken)
            await admin.delete_records({place: RecordsToDelete(before_offset=last)})
            journal = TopicPartition(ledger.topics["journal"], overtaken)
            await _set(admin, journal.topic, {"cleanup.policy": "delete"})  # Kafka deletes no record of a compacted one
            await admin.delete_records({journal: RecordsToDelete(before_offset=1)})
            await _set(admin, journal.topic, JOURNAL_SETTINGS)
        began = time.monotonic()
        await write_cursor(ledger, overtaken, Cursor(ledger.topics["requests"], 0, journal_start=0))
        await write_cursor(ledger, elsewhere, Cursor("another-topic", 0))
        await asyncio.gather(
            here.fires("VmSyncRequestsLost", "records below the end are deleted, as by retention", since=began),
            here.fires("VmSyncJournalRecordsDeleted", "the journal's first record is deleted", since=began),
            here.fires("VmSyncPartitionStopped", "a journal's cursor is of another topic", since=began),
        )
        end = 1 + max(offset for offset, partition in places if partition == elsewhere)
        await write_cursor(ledger, elsewhere, Cursor(ledger.topics["requests"], end), poke=False)
        await here.over("VmSyncPartitionStopped", "VmSyncRequestsLost", "VmSyncJournalRecordsDeleted")


async def one_of_two(stage: Stage) -> None:
    """Run two instances with different settings, and kill one whose partitions nobody else gets for a minute."""
    session = {"KAFKA__SESSION_TIMEOUT": "PT1M"}
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(stage.deployment("vm-sync"))
        first = await here.start(session)
        exporter = await stack.enter_async_context(_exporter(here.ledger))
        stage.prometheus.scrape(exporter, job="kafka-exporter", namespace="vm-sync")
        second = await here.start(session | {"SYNC__DEADLINE": "PT5H"})
        began = time.monotonic()
        await here.requests("shared", 12)
        await here.fires("VmSyncSettingsDiffer", "one of two instances has another deadline", since=began)
        address = f"127.0.0.1:{second.port()}"
        began = time.monotonic()
        await second.kill()
        await here.requests("unread", 40)
        await asyncio.gather(
            here.fires("VmSyncInstanceDown", "one of two instances is killed", since=began),
            here.fires("VmSyncPartitionWithoutOwner", "the same, with a session timeout of a minute", since=began),
            here.fires("VmSyncConsumerStalled", "the same, and requests for its partitions", since=began),
        )
        stage.prometheus.leave(address)
        await here.over(
            "VmSyncSettingsDiffer", "VmSyncInstanceDown", "VmSyncPartitionWithoutOwner", "VmSyncConsumerStalled"
        )
        assert first.running


async def kafka_far_away(stage: Stage) -> None:
    """Put the service far from Kafka, and then beyond it."""
    stage.relay.delay = 0.7
    async with stage.deployment("far", partitions=1, door=stage.relay.address) as here:
        began = time.monotonic()
        process = await here.start()
        await here.fires("VmSyncRestoreSlow", "round trips to Kafka take 1.4 s", since=began)
        stage.relay.delay = 0.3
        began = time.monotonic()
        sending = asyncio.create_task(_trickle(here))
        try:
            await here.until(lambda: "missed their submit windows" in process.text(), what="POSTs are held back")
            await here.fires("VmSyncCommitsSlow", "round trips to Kafka take 0.6 s", since=began)
        finally:
            sending.cancel()
        began = time.monotonic()
        stage.relay.close()
        await here.fires("VmSyncKafkaDisconnected", "Kafka can't be reached", since=began)
        stage.relay.delay = 0.0
        await stage.relay.open()
        await here.over("VmSyncKafkaDisconnected", "VmSyncCommitsSlow")
        address = f"127.0.0.1:{process.port()}"
        await process.stop()
        stage.prometheus.leave(address)
        await here.start()
        await here.over("VmSyncRestoreSlow")


async def _trickle(here: Deployment) -> None:
    for n in range(1000):
        await here.requests(f"trickle-{n}", 1)
        await asyncio.sleep(1)


@asynccontextmanager
async def _with_rights(here: Deployment) -> AsyncIterator[Acls]:
    """Make a deployment's topics, and give the service's account the rights of users.yaml there."""
    topics, kafka = here.ledger.topics, here.stage.kafka
    connection = KafkaConnection(bootstrap_servers=(kafka.bootstrap,))
    await ensure_topics(connection, names=TopicNames(**topics), partitions=here.ledger.partitions, create=True)
    async with Acls(kafka.bootstrap, SERVICE) as acls:
        await acls.grant(*(grant.under(here.name) for grant in grants_of(SERVICE)))
        yield acls


def _login(**settings: str) -> dict[str, str]:
    return {f"KAFKA__{name}": text for name, text in (settings | {"SECURITY_PROTOCOL": "SASL_PLAINTEXT"}).items()}


async def rights_denied(stage: Stage) -> None:
    """Take away the rights to write outcomes, and to read requests."""
    async with (
        stage.deployment("rights", partitions=16, door=stage.kafka.address(LOGIN)) as here,
        _with_rights(here) as acls,
    ):
        topics = here.ledger.topics
        login = _login(SASL_MECHANISM="SCRAM-SHA-512", SASL_USERNAME=SERVICE, SASL_PASSWORD=PASSWORDS[SERVICE])
        await here.start(login | {"KAFKA__CREATE_TOPICS": "false"})
        write = [Grant(Resource.topic, topics["completed"], Pattern.literal, Operation.Write)]
        read = [Grant(Resource.topic, topics["requests"], Pattern.literal, Operation.Read)]
        began = time.monotonic()
        await acls.take(*read)
        await here.requests("unread", 40)
        await here.fires("VmSyncReadingStalled", "the right to read the requests topic is taken away", since=began)
        await acls.grant(*read)
        await here.over("VmSyncReadingStalled")
        began = time.monotonic()
        await acls.take(*write)
        await here.requests("unwritten", 60)
        await here.fires("VmSyncPartitionsReopened", "the right to write outcomes is taken away", since=began)
        await acls.grant(*write)
        await here.over("VmSyncPartitionsReopened")


async def token_refused(stage: Stage) -> None:
    """Have the token server refuse the client's secret, while the service's tokens for Kafka last half a minute."""
    async with stage.deployment("tokens", door=stage.kafka.address(LISTENER)) as here, _with_rights(here):
        stage.tokens.lifetime = 30.0
        login = _login(
            SASL_MECHANISM="OAUTHBEARER",
            OAUTH_TOKEN_URL=stage.tokens.url,
            OAUTH_CLIENT_ID=CLIENT,
            OAUTH_CLIENT_SECRET=SECRET,
            OAUTH_SCOPE=SCOPE,
        )
        await here.start(login | {"KAFKA__CREATE_TOPICS": "false"})
        began = time.monotonic()
        stage.tokens.answer = Reply(401, {"error": "invalid_client"})
        await here.fires("VmSyncKafkaTokenFailing", "the token server refuses the client's secret", since=began)
        stage.tokens.answer = None
        await here.over("VmSyncKafkaTokenFailing")


async def broken_resources(stage: Stage) -> None:
    """Replace a certificate file with one that is cut, or expires soon, and take away most of the file descriptors."""
    authority, file = trustme.CA(), stage.folder / "vcda-ca.pem"
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with stage.deployment("files", tls=tls) as here:
        good = authority.cert_pem.bytes()
        file.write_bytes(good)
        process = await here.start({"VCDA__CA_FILE": str(file)})
        began = time.monotonic()
        file.write_bytes(good[:100])
        await here.fires("VmSyncCertificatesInvalid", "a new certificate file is cut after 100 bytes", since=began)
        file.write_bytes(good)
        await here.over("VmSyncCertificatesInvalid")
        began = time.monotonic()
        ends = datetime.now(UTC) + timedelta(days=3)
        file.write_bytes(authority.issue_cert("expiring", not_after=ends).cert_chain_pems[0].bytes())
        await here.fires("VmSyncCertificateExpires", "the file has a certificate that expires in 3 days", since=began)
        file.write_bytes(good)
        await here.over("VmSyncCertificateExpires")
        limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        used = process.open_files()
        began = time.monotonic()
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + used // 10, limits[1]))
        how = "the limit of open files is lowered to 1.1 times those in use"
        await here.fires("VmSyncOpenFilesNearLimit", how, since=began)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
        await here.over("VmSyncOpenFilesNearLimit")


async def transaction_left_open(stage: Stage) -> None:
    """Have a sender leave a transaction open on the requests topic."""
    async with stage.deployment("held", partitions=1) as here:
        await here.start()
        sender = AIOKafkaProducer(
            bootstrap_servers=stage.kafka.bootstrap, transactional_id="held-sender", transaction_timeout_ms=600_000
        )
        await sender.start()
        try:
            await sender.begin_transaction()
            await sender.send_and_wait(here.ledger.topics["requests"], b"{}")
            began = time.monotonic()
            await here.requests("behind", 4)
            await here.fires("VmSyncTransactionOpen", "a sender leaves its transaction open", since=began)
            await sender.abort_transaction()
        finally:
            await sender.stop()
        await here.over("VmSyncTransactionOpen")


async def defects(stage: Stage) -> None:
    """Run a service that forgets records and gets too little CPU, at a VCDA that can't show a certain task."""
    async with stage.deployment("defects", partitions=2, plan=Plan(duration=Durations.of(1e6))) as here:
        process = await here.start(command=(sys.executable, "-m", "tests.support.forgetful"))
        began = time.monotonic()
        here.vcda.fault(operation="poll", replication=replication("defects-poison-0"), answer="status", status=500)
        await here.requests("poison", 1)
        await here.requests("sound", 4)
        overdue = asyncio.create_task(
            here.fires("VmSyncPollsOverdue", "polls of one task fail with 500, others succeed", since=began)
        )
        process.signal(signal.SIGUSR1)
        await here.requests("forgotten", 8)
        await here.fires("VmSyncRecordsSkipped", "a defect, injected: the reading loop drops records", since=began)
        began = time.monotonic()
        hindered = asyncio.create_task(_hinder(process))
        try:
            await here.fires("VmSyncEventLoopLagging", "the process stands still for 0.7 s of each second", since=began)
        finally:
            hindered.cancel()
            process.signal(signal.SIGCONT)
        await overdue
        here.vcda.faults.remove()
        here.vcda.world.finish()
        await here.over("VmSyncEventLoopLagging")
        # Its page: a restart of the instance resets the gauge. The task whose polls failed is looked at again, too.
        address = f"127.0.0.1:{process.port()}"
        await process.stop()
        stage.prometheus.leave(address)
        await here.start()
        await here.over("VmSyncRecordsSkipped", "VmSyncPollsOverdue")


async def _hinder(process: Process) -> None:
    while process.running:
        process.signal(signal.SIGSTOP)
        await asyncio.sleep(0.7)
        process.signal(signal.SIGCONT)
        await asyncio.sleep(0.3)


async def crowd(stage: Stage) -> None:
    """Have half as many requests as an instance takes wait for a site that is away, and nobody read the log."""
    async with stage.deployment("crowd") as here:
        here.vcda.fault(operation="submit", answer="status", status=503)
        process = await here.start()
        began = time.monotonic()
        await here.requests("waits", 25_200)
        how = "25,200 requests for a site that is away"
        full = asyncio.create_task(here.fires("VmSyncSiteFillsCapacity", how, since=began, ends=False))
        with process.unread():
            began = time.monotonic()
            await here.requests("waits", 20_000)  # a line for each duplicate
            how = "nobody reads the log while 20,000 duplicates are logged"
            await here.fires("VmSyncLogLinesDropped", how, since=began)
        await full
        await here.over("VmSyncLogLinesDropped")


async def progress_refused(stage: Stage) -> None:
    """Have the progress topic take no event, since each is too large for it."""
    async with stage.deployment("progress") as here:
        topic = f"{here.name}.progress"
        await here.start({"TOPICS__PROGRESS": topic})
        admin = AIOKafkaAdminClient(bootstrap_servers=stage.kafka.bootstrap)
        await admin.start()

        async def asked() -> None:
            for number in count():
                await here.requests(f"told-{number}", 1)
                await asyncio.sleep(1.0)

        asking = asyncio.create_task(asked())
        try:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "64"})])
            began = time.monotonic()
            await here.fires("VmSyncProgressDropped", "the progress topic refuses each event as too large", since=began)
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "65536"})])
            await here.over("VmSyncProgressDropped")
        finally:
            asking.cancel()
            await asyncio.wait([asking])
            await admin.close()


async def paused_by_an_operator(stage: Stage) -> None:
    """Pause a site, and leave what is no pause on the control topic."""
    async with stage.deployment("paused") as here:
        await here.start()
        began = time.monotonic()
        await here.command("vm-sync sites pause local --for 2d --reason 'storage upgrade'")
        await here.requests("waits", 3)
        await here.fires("VmSyncSitePausedByOperator", "`vm-sync sites pause local --for 2d`", since=began)
        await here.command("vm-sync sites resume local")
        await here.over("VmSyncSitePausedByOperator")
        began = time.monotonic()
        await here.ledger.send_raw(topic="control", partition=0, key=b"site:local", value=b"no JSON")
        await here.fires("VmSyncSitePausesUnknown", "an invalid record on the control topic", since=began)
        await here.command("vm-sync sites resume local")
        await here.over("VmSyncSitePausesUnknown")


async def nothing_left(stage: Stage) -> None:
    """Have no instance at all. To be played when no other scene is."""
    async with stage.deployment("absent") as here:
        await here.fires("VmSyncAbsent", "no instance is left")
        await here.start()
        await here.over("VmSyncAbsent")


Scene: TypeAlias = Callable[[Stage], Coroutine[Any, Any, None]]

SCENES: Final[Mapping[Scene, tuple[str, ...]]] = {
    defects: ("VmSyncPollsOverdue", "VmSyncRecordsSkipped", "VmSyncEventLoopLagging"),
    one_of_two: (
        "VmSyncSettingsDiffer",
        "VmSyncInstanceDown",
        "VmSyncPartitionWithoutOwner",
        "VmSyncConsumerStalled",
    ),
    rights_denied: ("VmSyncReadingStalled", "VmSyncPartitionsReopened"),
    token_refused: ("VmSyncKafkaTokenFailing",),
    broken_resources: ("VmSyncCertificatesInvalid", "VmSyncCertificateExpires", "VmSyncOpenFilesNearLimit"),
    transaction_left_open: ("VmSyncTransactionOpen",),
    kafka_far_away: ("VmSyncRestoreSlow", "VmSyncCommitsSlow", "VmSyncKafkaDisconnected"),
    site_away: ("VmSyncSitePaused", "VmSyncOutcomesLateFast", "VmSyncOutcomesLateSlow"),
    paused_by_an_operator: ("VmSyncSitePausedByOperator", "VmSyncSitePausesUnknown"),
    topics_harmed: (
        "VmSyncJournalRewritten",
        "VmSyncRequestsLost",
        "VmSyncJournalRecordsDeleted",
        "VmSyncPartitionStopped",
    ),
    strange_answers: (
        "VmSyncDeadLetters",
        "VmSyncCredentialsMissing",
        "VmSyncUnknownTaskState",
        "VmSyncSiteFailing",
        "VmSyncPostsRepeated",
    ),
    old_requests: ("VmSyncRequestNearDeadline", "VmSyncNothingEnds", "VmSyncReplicationHeld"),
    wrong_password: ("VmSyncLoginFailing", "VmSyncNotLoggedIn"),
    look_ups_refused: ("VmSyncLookUpsFailing",),
    progress_refused: ("VmSyncProgressDropped",),
    crowd: ("VmSyncSiteFillsCapacity", "VmSyncLogLinesDropped"),
    nothing_left: ("VmSyncAbsent",),
}
"""The scenes with the alerts that they provoke, the longest first."""


async def play(stage: Stage, *scenes: Scene, at_once: int = 5) -> None:
    """Play scenes side by side, `at_once` of them at a time. One that breaks off leaves the others alone."""
    turn = asyncio.Semaphore(at_once)

    async def played(scene: Scene) -> None:
        async with turn:
            try:
                await scene(stage)
            except Exception:  # noqa: BLE001 - whatever it is, it is told in the end
                stage.broken[scene.__name__] = traceback.format_exc()
                stage.say(f"{scene.__name__} broke off")

    await asyncio.gather(*(played(scene) for scene in scenes if scene is not nothing_left))
    if nothing_left in scenes:
        await played(nothing_left)


def faults(finding: Finding) -> list[str]:
    """Return what is not as it should be: the alert, the queries of its page, and its commands."""
    parts = pages()[finding.alert].parts
    if finding.fired_after is None:
        return ["it did not fire"]
    found = [f"still or never under Over when: {query}" for query in finding.not_over]
    if finding.ends and finding.over_after is None:
        found.append("it was not over in time")
    looks = queries(parts["Look"])
    if not any(finding.asked[query] for query in looks) and finding.alert != "VmSyncAbsent":
        found.append("no query under Look yields anything")
    for ran in finding.ran:
        # 1 and 3 are what `vm-sync check` and `topics check` say while something is wrong, 2 where it is a setting.
        wrong_setting = {2} if finding.alert == "VmSyncCertificatesInvalid" else set[int]()
        allowed = {0, 1, 3} | wrong_setting if re.search(r"check( |$)", ran.command) else {0}
        if ran.code not in allowed or not ran.output or "Traceback" in ran.output:
            found.append(f"{ran.command} ended with {ran.code}: {ran.output[-500:]}")
        elif ran.wanted is not None and ran.wanted not in ran.output:
            found.append(f"{ran.command} does not print {ran.wanted}")
    return found


# ---------------------------------------------------------------- what is done to Kafka


@asynccontextmanager
async def _admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def _recreate(admin: AIOKafkaAdminClient, name: str, *, partitions: int, settings: Mapping[str, str]) -> None:
    await admin.delete_topics([name])
    code = -1
    while code:
        topic = NewTopic(name, partitions, 1, topic_configs=dict(settings))
        ((_, code, *_),) = (await admin.create_topics([topic])).topic_errors
        assert code in {0, TopicAlreadyExistsError.errno}


async def _set(admin: AIOKafkaAdminClient, topic: str, settings: Mapping[str, str]) -> None:
    """Give a topic these settings, and no others."""
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, dict(settings))
    for response in await admin.alter_configs([resource]):
        assert [code for code, *_ in response.resources] == [0]


@asynccontextmanager
async def _exporter(ledger: Ledger) -> AsyncIterator[str]:
    """Show the group's lag, as exporters of Kafka's consumer groups do."""
    topic, group = ledger.topics["requests"], ledger.group
    consumer = AIOKafkaConsumer(bootstrap_servers=ledger.bootstrap, group_id=group, enable_auto_commit=False)
    places = [TopicPartition(topic, number) for number in range(ledger.partitions)]

    page = ""

    async def look() -> None:
        """Keep the page up to date, so that a scrape never waits for Kafka."""
        nonlocal page
        while True:
            lines = []
            with suppress(KafkaError):
                ends = await consumer.end_offsets(places)
                for place in places:
                    at = await consumer.committed(place) or 0
                    words = f'{{consumergroup="{group}",topic="{topic}",partition="{place.partition}"}}'
                    lines.append(f"kafka_consumergroup_current_offset{words} {at}\n")
                    lines.append(f"kafka_consumergroup_lag{words} {ends[place] - at}\n")
                page = "".join(lines)
            await asyncio.sleep(1)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(page)}\r\n"
            writer.write((head + "Connection: close\r\n\r\n" + page).encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # Prometheus was ended in the middle of a scrape
        finally:
            writer.close()

    await consumer.start()
    consumer.assign(places)
    looking = asyncio.create_task(look())
    try:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        looking.cancel()
        await consumer.stop()
