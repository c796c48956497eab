"""A Kafka with the topics of one deployment, and two accounts that have the rights of the Strimzi overlay or fewer.

For the tests of the rights, and for the script that takes each of them away and writes down what is said.
"""

import asyncio
import json
import uuid
from collections.abc import Mapping
from typing import Final, Self

import httpx
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from typer.testing import CliRunner, Result

from service.cli.commands import app
from service.kafka.connection import KafkaConnection
from service.kafka.topics import TopicNames, ensure_topics
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.support.cluster import OPERATOR, PASSWORDS, SERVICE
from tests.support.grants import Acls, Grant, grants_of
from tests.support.process_harness import Ledger, Process, appliance

SHORT: Final = Plan(queued=Durations.of(0), duration=Durations.of(0.3))

REPLICATION: Final = "C4-0c0e8bc5-1a3d-4a4f-9b6e-6a2b1c5d7e9f"

BY_HAND: Final = "by-hand"
"""An operation id; in its place each run has another, since a repeated one is a duplicate and has no new outcome."""

COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "request": ("request", REPLICATION, "--operation-id", BY_HAND),
    "request --wait": ("request", REPLICATION, "--operation-id", BY_HAND, "--wait", "--timeout", "60"),
    "request --from": ("request", "--from", "{ids}", "--wait", "--timeout", "60"),
    "cancel": ("cancel", "{waiting}"),
    "outcomes": ("outcomes",),
    "top": ("top", "--once"),
    "list": ("list",),
    "show": ("show", "op-1"),
    "dead-letters list": ("dead-letters", "list"),
    "dead-letters redrive --dry-run": ("dead-letters", "redrive", "--dry-run", "--force"),
    "dead-letters redrive": ("dead-letters", "redrive", "--force"),
    "topics check": ("topics", "check"),
    "sites": ("sites",),
    "sites pause": ("sites", "pause", "local", "--for", "1h"),
    "sites resume": ("sites", "resume", "{paused}"),
}
"""What an operator runs against Kafka, by what it is called in the documentation.

`{ids}` is a file of requests that no run has sent yet, `{waiting}` a request that waits at a service that runs,
`{paused}` a site that is paused.
"""

HELD: Final = "C4-5a6ccf7a-45ab-4d5b-8b5d-2a6a0b0f0c55"
"""A replication whose first sync takes a day."""

SOON: Final = 30.0
"""Seconds within which a service that runs accepts a request."""


class RightsScene:
    """See the module. An async context: topics exist, no right is granted yet, VCDA answers at once."""

    def __init__(self, *, bootstrap: str, login: str, prefix: str) -> None:
        self.prefix = prefix
        self._bootstrap, self._login = bootstrap, login
        self.simulator = Simulator(appliance(SHORT))
        self.service = [grant.under(prefix) for grant in grants_of(SERVICE)]
        """The service's rights, for this deployment."""
        self.operator = [grant.under(prefix) for grant in grants_of(OPERATOR)]
        """The operator's."""
        self._runs = 0
        self.service_acls = Acls(bootstrap, SERVICE)
        self.operator_acls = Acls(bootstrap, OPERATOR)

    async def __aenter__(self) -> Self:
        await self.simulator.__aenter__()
        self.ledger = Ledger(
            bootstrap=self._bootstrap, simulator=self.simulator, prefix=self.prefix, partitions=1, door=self._login
        )
        await self.service_acls.__aenter__()
        await self.operator_acls.__aenter__()
        topics = self.ledger.topics
        connection = KafkaConnection(bootstrap_servers=tuple(self._bootstrap.split(",")))
        await ensure_topics(connection, names=TopicNames(**topics), partitions=1, create=True)
        await self._create_marks()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.operator_acls.__aexit__(*args)
        await self.service_acls.__aexit__(*args)
        await self.ledger.__aexit__(*args)
        await self.simulator.__aexit__(*args)

    async def _create_marks(self) -> None:
        """Create the topic of the redriven letters, as the overlay does."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            replicas = min(3, len((await admin.describe_cluster())["brokers"]))
            settings = {"cleanup.policy": "compact"}
            name = f"{self.ledger.topics['dead_letter']}.redriven"
            await admin.create_topics([NewTopic(name, 1, replicas, topic_configs=settings)])
        finally:
            await admin.close()

    def login(self, user: str) -> dict[str, str]:
        """Return the settings with which somebody logs in."""
        return {
            "VM_SYNC_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "VM_SYNC_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
            "VM_SYNC_KAFKA__SASL_USERNAME": user,
            "VM_SYNC_KAFKA__SASL_PASSWORD": PASSWORDS[user],
        }

    def start(self) -> Process:
        """Start a service process that logs in with its own account, and makes no topics."""
        settings = {**self.login(SERVICE), "VM_SYNC_KAFKA__CREATE_TOPICS": "false"}
        return self.ledger.start(command=(), **settings)

    async def run(self, *command: str) -> Result:
        """Run a command as the operator; each `by-hand` is an operation of its own, which nobody has asked for yet."""
        self._runs += 1
        made = {
            BY_HAND: self._operation,
            "{ids}": self._ids,
            "{waiting}": self._waiting,
            "{paused}": self._paused,
        }
        words = tuple([await made[word]() if word in made else word for word in command])
        result = await self._run(words, self.ledger.environment(**self.login(OPERATOR)))
        if "{paused}" in command:  # whoever may not resume leaves the site paused for the commands that follow
            await self._run(("sites", "resume", *words[2:]), self._everybody)
        return result

    @staticmethod
    async def _run(command: tuple[str, ...], environment: Mapping[str, str]) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, command, env=environment, prog_name="vm-sync")

    @staticmethod
    async def _operation() -> str:
        return f"by-hand-{uuid.uuid4()}"

    async def _ids(self) -> str:
        path = self.ledger.folder / "ids.txt"
        path.write_text(f"# {self._runs}\n{REPLICATION}\n", encoding="utf-8")
        return str(path)

    async def _waiting(self) -> str:
        """Put a request on the topic behind one that takes a day, and wait until the service has accepted it."""
        self.simulator.world.plan(replication=HELD, duration=Durations.of(86_400))
        name = f"waits-{self._runs}"
        await self.ledger.ask_all([("held", HELD), (name, HELD)])
        async with asyncio.timeout(SOON):
            while (await self._run(("show", name), self._everybody)).exit_code:
                await asyncio.sleep(0.2)
        return name

    async def _paused(self) -> str:
        """Pause a site, with all rights."""
        paused = await self._run(("sites", "pause", "local", "--for", "1h"), self._everybody)
        assert paused.exit_code == 0, paused.output
        return "local"

    @property
    def _everybody(self) -> Mapping[str, str]:
        """Settings of somebody who may do all: without a login."""
        return self.ledger.environment(VM_SYNC_KAFKA__BOOTSTRAP_SERVERS=self._bootstrap)

    async def spoil(self) -> None:
        """Write a dead letter, as the service would."""
        producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap)
        await producer.start()
        try:
            await producer.send_and_wait(
                self.ledger.topics["dead_letter"], b"?", key=b"C4-9", headers=[("vm-sync-reason", b"not-json")]
            )
        finally:
            await producer.stop()

    async def ask(self) -> str:
        """Put a request on the topic, and return its operation."""
        name = f"op-{uuid.uuid4().hex[:8]}"
        await self.ledger.ask(name, f"C4-{uuid.uuid4()}")
        return name

    async def told(self, name: str) -> bool:
        """Tell whether a request has its outcome."""
        return any(one.event["operationID"] == name for one in await self.ledger.outcomes())

    @staticmethod
    async def not_ready(process: Process) -> list[str] | None:
        """Return why a process isn't ready: nothing when it is, None where it can't be asked."""
        try:
            answer = await process.get("/readyz")
        except (httpx.HTTPError, AssertionError):
            return None
        return [] if answer.status_code == 200 else answer.json()["reasons"]


def warnings(process: Process) -> list[str]:
    """Return what a process has said above INFO."""
    lines = [json.loads(line) for line in process.text().splitlines() if line.startswith("{")]
    return [line["message"] for line in lines if line["level"] not in {"INFO", "DEBUG"}]


def without(grants: list[Grant], grant: Grant) -> list[Grant]:
    """Return all but one right."""
    return [one for one in grants if one != grant]
