"""Set-ups that are broken in one way each, and what `vm-sync check` has to say of them.

`tools/check_page.py` makes a page of the table by running the command against each of them; a test compares.
"""

import asyncio
import json
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias
from unittest.mock import patch

import trustme
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from typer.testing import CliRunner

from service.cli.commands import app
from service.cli.output import Exit
from service.kafka.connection import KafkaConnection
from service.kafka.topics import TopicNames, ensure_topics
from service.sandbox.kafka import EmbeddedKafka, free_ports
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Config
from service.vcda import check as vcda_check
from tests.support.brokers import LISTENERS, PASSWORD, USER, Operation, Resource, Rights, certificates, secured
from tests.support.simulator_thread import Apart
from tests.support.token_server import CLIENT, SECRET, TokenListener, TokenServer
from tests.support.token_server import LISTENER as TOKENS

Change: TypeAlias = tuple[Resource, str, Operation]

WRONG: Final = "wrong"  # nobody's password


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One of them. Its settings replace those that work; `{...}` in them stands for an address or a file."""

    situation: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Without their prefix."""
    kafka: str = "PLAINTEXT"
    """The listener that is used: of `brokers.LISTENERS`, or the one that takes tokens."""
    vcda: str = "plain"
    """The VCDA that is used: without TLS, or by what is wrong with its certificate."""
    denied: tuple[Change, ...] = ()
    """Rights that Kafka's user lacks; then it logs in."""
    fault: Mapping[str, Any] = field(default_factory=dict)
    """What goes wrong with VCDA's answers."""
    odd: Callable[[Simulator], object] | None = None
    """What else is odd about VCDA."""
    claims: Mapping[str, Any] = field(default_factory=dict)
    """What is unusual in tokens of the token server."""
    check: str
    """The check that finds it."""
    says: str
    """What has to stand in the sentence: the setting to change, or the right to grant."""
    result: str = "failure"
    code: int = 1
    also: frozenset[str] = frozenset()
    """Other checks that find it."""


LOGIN: Final = {
    "KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "KAFKA__SASL_MECHANISM": "SCRAM-SHA-256",
    "KAFKA__SASL_USERNAME": USER,
    "KAFKA__SASL_PASSWORD": PASSWORD,
}
TLS: Final = {"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__SSL_CA_FILE": "{authority}"}
TOKEN: Final = {"KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA__SASL_MECHANISM": "OAUTHBEARER"}
TOKEN_SERVER: Final = TOKEN | {
    "KAFKA__OAUTH_TOKEN_URL": "{token_server}",
    "KAFKA__OAUTH_CLIENT_ID": CLIENT,
    "KAFKA__OAUTH_CLIENT_SECRET": SECRET,
}
SITE: Final = {"VCDA__SITES__0__NAME": "site2", "VCDA__SITES__0__USER": "admin1@org1"}
SITE_PASSWORD: Final = {"VCDA__SITES__0__PASSWORD": "password"}


def _denied(resource: Resource, name: str, operation: Operation) -> tuple[Change, ...]:
    return ((resource, name, operation),)


KAFKA_SETUPS: Final = (
    Setup(
        situation="the name of the bootstrap server doesn't exist",
        settings={"KAFKA__BOOTSTRAP_SERVERS": "kafka.invalid:9092"},
        check="name resolution",
        says="VM_SYNC_KAFKA__BOOTSTRAP_SERVERS",
        code=3,
    ),
    Setup(
        situation="nothing listens at the port",
        settings={"KAFKA__BOOTSTRAP_SERVERS": "{nothing}"},
        check="TCP connection",
        says="VM_SYNC_KAFKA__BOOTSTRAP_SERVERS",
        code=3,
    ),
    Setup(
        situation="one of two bootstrap servers is gone",
        settings={"KAFKA__BOOTSTRAP_SERVERS": "{PLAINTEXT},{nothing}"},
        check="TCP connection",
        says="VM_SYNC_KAFKA__BOOTSTRAP_SERVERS",
        result="warning",
        code=0,
    ),
    Setup(
        situation="the broker advertises an address that can't be reached",
        kafka="AWAY",
        check="brokers",
        says="advertised.listeners",
        code=3,
    ),
    Setup(
        situation="another authority has signed the brokers' certificate",
        kafka="TLS",
        settings=TLS | {"KAFKA__SSL_CA_FILE": "{another_authority}"},
        check="certificate",
        says="VM_SYNC_KAFKA__SSL_CA_FILE",
    ),
    Setup(
        situation="the brokers' certificate has expired",
        kafka="EXPIRED",
        settings=TLS,
        check="certificate",
        says="install a new certificate on the brokers",
    ),
    Setup(
        situation="the brokers' certificate is for another host",
        kafka="ELSEWHERE",
        settings=TLS,
        check="certificate",
        says="VM_SYNC_KAFKA__BOOTSTRAP_SERVERS",
    ),
    Setup(
        situation="the brokers want a client certificate",
        kafka="MUTUAL",
        settings=TLS,
        check="login",
        says="VM_SYNC_KAFKA__SSL_CERT_FILE",
    ),
    Setup(
        situation="the listener speaks TLS, the settings don't",
        kafka="TLS",
        check="login",
        says="VM_SYNC_KAFKA__SECURITY_PROTOCOL",
    ),
    Setup(
        situation="the settings speak TLS, the listener doesn't",
        settings=TLS,
        check="certificate",
        says="VM_SYNC_KAFKA__SECURITY_PROTOCOL",
    ),
    Setup(
        situation="the listener wants a login, the settings have none",
        kafka="LOGIN",
        check="login",
        says="VM_SYNC_KAFKA__SECURITY_PROTOCOL",
    ),
    Setup(
        situation="the password is wrong",
        kafka="LOGIN",
        settings=LOGIN | {"KAFKA__SASL_PASSWORD": WRONG},
        check="login",
        says="VM_SYNC_KAFKA__SASL_PASSWORD",
    ),
    Setup(
        situation="the brokers don't have the SASL mechanism",
        kafka="SCRAM_ONLY",
        settings=LOGIN | TLS | {"KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "KAFKA__SASL_MECHANISM": "PLAIN"},
        check="login",
        says="VM_SYNC_KAFKA__SASL_MECHANISM",
    ),
    Setup(
        situation="the token server refuses the client's secret",
        kafka=TOKENS,
        settings=TOKEN_SERVER | {"KAFKA__OAUTH_CLIENT_SECRET": WRONG},
        check="OAuth token",
        says="invalid_client.+VM_SYNC_KAFKA__OAUTH_CLIENT_SECRET",
    ),
    Setup(
        situation="the token server is away",
        kafka=TOKENS,
        settings=TOKEN_SERVER | {"KAFKA__OAUTH_TOKEN_URL": "http://{nothing}/token"},
        check="OAuth token",
        says="VM_SYNC_KAFKA__OAUTH_TOKEN_URL",
        code=3,
    ),
    Setup(
        situation="the token server's tokens are for another audience than the brokers'",
        kafka=TOKENS,
        settings=TOKEN_SERVER,
        claims={"aud": "another-cluster"},
        check="login",
        says="audience",
    ),
    Setup(
        situation="there is no token file",
        kafka=TOKENS,
        settings=TOKEN | {"KAFKA__OAUTH_TOKEN_FILE": "{token_missing}"},
        check="value",
        says="VM_SYNC_KAFKA__OAUTH_TOKEN_FILE",
        code=2,
    ),
    Setup(
        situation="the token file is empty",
        kafka=TOKENS,
        settings=TOKEN | {"KAFKA__OAUTH_TOKEN_FILE": "{token_empty}"},
        check="OAuth token",
        says="VM_SYNC_KAFKA__OAUTH_TOKEN_FILE",
    ),
    Setup(
        situation="the token in the file has expired",
        kafka=TOKENS,
        settings=TOKEN | {"KAFKA__OAUTH_TOKEN_FILE": "{token_expired}"},
        check="login",
        says="VM_SYNC_KAFKA__OAUTH_TOKEN_FILE",
        also=frozenset({"OAuth token"}),
    ),
    Setup(
        situation="a topic is missing, and must not be created",
        settings={"KAFKA__CREATE_TOPICS": "false", "TOPICS__FAILED": "vm-sync.missing"},
        check="topics",
        says="VM_SYNC_KAFKA__CREATE_TOPICS",
    ),
    Setup(
        situation="a topic is missing, and the user may not create it",
        settings={"TOPICS__FAILED": "vm-sync.missing"},
        denied=(
            (Resource.TOPIC, "vm-sync.missing", Operation.CREATE),
            (Resource.CLUSTER, "kafka-cluster", Operation.CREATE),
        ),
        check="topics",
        says="denies User:vm-sync the right Create on topic vm-sync.missing",
    ),
    Setup(
        situation="the journal isn't compacted",
        settings={"TOPICS__JOURNAL": "vm-sync.deleting"},
        check="topics",
        says="vm-sync.deleting has cleanup.policy=delete.+: set it to compact",
    ),
    Setup(
        situation="journal and requests topic have different numbers of partitions",
        settings={"TOPICS__JOURNAL": "vm-sync.narrow"},
        check="topics",
        says="Raise vm-sync.narrow to 2 partitions",
    ),
    Setup(
        situation="the dead-letter topic is compacted",
        settings={"TOPICS__DEAD_LETTER": "vm-sync.odd-letters"},
        check="topics",
        says="vm-sync.odd-letters has cleanup.policy=compact.+: set it to delete",
    ),
    Setup(
        situation="a topic wants more replicas in sync than it has",
        settings={"TOPICS__COMPLETED": "vm-sync.demanding"},
        check="topics",
        says="lower min.insync.replicas: vm-sync.demanding",
        result="warning",
        code=0,
    ),
    Setup(
        situation="the requests topic refuses requests of the allowed size",
        settings={"TOPICS__REQUESTS": "vm-sync.small"},
        check="largest message",
        says="VM_SYNC_TOPICS__REQUESTS.+raise its max.message.bytes",
        result="warning",
        code=0,
    ),
    Setup(
        situation="no right to read requests",
        denied=_denied(Resource.TOPIC, "vm-sync.requests", Operation.READ),
        check="rights on topics",
        says=r"User:vm-sync lacks Read on topic vm-sync.requests \(VM_SYNC_TOPICS__REQUESTS\): grant it by an ACL",
    ),
    Setup(
        situation="no right to write outcomes",
        denied=_denied(Resource.TOPIC, "vm-sync.completed", Operation.WRITE),
        check="rights on topics",
        says=r"User:vm-sync lacks Write on topic vm-sync.completed \(VM_SYNC_TOPICS__COMPLETED\): grant it by an ACL",
    ),
    Setup(
        situation="the journal is hidden from the user",
        denied=_denied(Resource.TOPIC, "vm-sync.journal", Operation.DESCRIBE),
        check="rights on topics",
        says=r"User:vm-sync lacks Read and Write on topic vm-sync.journal \(VM_SYNC_TOPICS__JOURNAL\)",
    ),
    Setup(
        situation="no right to see the topics' settings",
        denied=_denied(Resource.TOPIC, "vm-sync.journal", Operation.DESCRIBE_CONFIGS),
        check="topics",
        says="takes the right DescribeConfigs, .+ vm-sync.journal",
        result="warning",
        code=0,
    ),
    Setup(
        situation="no right to join the consumer group",
        denied=_denied(Resource.GROUP, "vm-sync", Operation.READ),
        check="consumer group",
        says=r"User:vm-sync lacks Read on group vm-sync \(VM_SYNC_KAFKA__GROUP_ID\): grant it by an ACL",
    ),
    Setup(
        situation="no right to write in transactions",
        denied=_denied(Resource.TRANSACTIONAL_ID, "vm-sync.journal-1", Operation.WRITE),
        check="transactions",
        says="User:vm-sync lacks Write on transactional id vm-sync.journal-1",
    ),
)

VCDA_SETUPS: Final = (
    Setup(
        situation="the name of VCDA doesn't exist",
        settings={"VCDA__URL": "https://vcda.invalid"},
        check="name resolution",
        says="VM_SYNC_VCDA__URL",
        code=3,
    ),
    Setup(
        situation="nothing listens at VCDA's port",
        settings={"VCDA__URL": "http://{nothing}"},
        check="TCP connection",
        says="VM_SYNC_VCDA__URL",
        code=3,
    ),
    Setup(
        situation="something else listens there",
        fault={"operation": "login", "answer": "status", "status": 404, "html": True},
        check="login",
        says="This is not VCDA's API.+VM_SYNC_VCDA__URL",
    ),
    Setup(
        situation="the port speaks http, not https",
        settings={"VCDA__URL": "https://{vcda}"},
        check="certificate",
        says="VM_SYNC_VCDA__URL",
    ),
    Setup(
        situation="the authority that signed VCDA's certificate is unknown",
        vcda="good",
        settings={"VCDA__CA_FILE": ""},
        check="certificate",
        says="VM_SYNC_VCDA__CA_FILE.+VM_SYNC_VCDA__THUMBPRINT",
    ),
    Setup(
        situation="VCDA's certificate isn't the one of the thumbprint",
        vcda="good",
        settings={"VCDA__CA_FILE": "", "VCDA__THUMBPRINT": "00" * 32},
        check="certificate",
        says="does not match VM_SYNC_VCDA__THUMBPRINT",
    ),
    Setup(
        situation="VCDA's certificate has expired",
        vcda="expired",
        check="certificate",
        says="install a new certificate on the appliance",
    ),
    Setup(
        situation="VCDA's certificate is for another host",
        vcda="elsewhere",
        check="certificate",
        says="VM_SYNC_VCDA__URL",
    ),
    Setup(
        situation="VCDA's certificate ends within days",
        vcda="ending",
        check="certificate",
        says="renew it",
        result="warning",
        code=0,
    ),
    Setup(
        situation="VCDA doesn't answer",
        settings={"VCDA__REQUEST_TIMEOUT": "PT1S"},
        fault={"operation": "login", "answer": "silent"},
        check="login",
        says="No complete answer within 1 s.+VM_SYNC_VCDA__URL",
        code=3,
    ),
    Setup(
        situation="VCDA is in maintenance",
        fault={"operation": "login", "answer": "status", "status": 503, "html": True},
        check="login",
        says="look at the appliance.+VM_SYNC_VCDA__URL",
        code=3,
    ),
    Setup(
        situation="VCDA's password is wrong",
        settings={"VCDA__CREDENTIALS__PASSWORD": WRONG},
        check="login",
        says="VM_SYNC_VCDA__CREDENTIALS__PASSWORD",
    ),
    Setup(
        situation="the user is of another kind",
        settings={"VCDA__CREDENTIALS__TYPE": "localUser"},
        check="login",
        says="VM_SYNC_VCDA__CREDENTIALS__TYPE",
    ),
    Setup(
        situation="there is no such site",
        settings=SITE | SITE_PASSWORD | {"VCDA__SITES__0__NAME": "site9"},
        check="extension",
        says="VM_SYNC_VCDA__SITES__0__NAME",
    ),
    Setup(
        situation="the site's password is wrong",
        settings=SITE | {"VCDA__SITES__0__PASSWORD": WRONG},
        check="extension",
        says="VM_SYNC_VCDA__SITES__0__PASSWORD",
    ),
    Setup(
        situation="the local site is configured as a remote one",
        settings=SITE | SITE_PASSWORD | {"VCDA__SITES__0__NAME": "site1"},
        check="extension",
        says="the local site needs no entry in VM_SYNC_VCDA__SITES",
    ),
    Setup(
        situation="the site doesn't answer",
        settings=SITE | SITE_PASSWORD | {"VCDA__REQUEST_TIMEOUT": "PT1S"},
        fault={"operation": "find", "site": "site2", "answer": "silent"},
        check="tasks",
        says="connection to site2.+VM_SYNC_VCDA__REQUEST_TIMEOUT",
        code=3,
    ),
    Setup(
        situation="the account may not see tasks",
        fault={"operation": "find", "answer": "status", "status": 403},
        check="tasks",
        says="VM_SYNC_VCDA__CREDENTIALS__USER",
    ),
    Setup(
        situation="a cache answers for VCDA",
        odd=lambda vcda: vcda.cache(seconds=60),
        check="caches",
        says="exclude /tasks from the cache",
    ),
    Setup(
        situation="lists of tasks come without their body",
        fault={"operation": "poll", "answer": "empty"},
        check="task ids",
        says="VM_SYNC_VCDA__URL",
    ),
    Setup(
        situation="a proxy answers for tasks that don't exist",
        fault={"operation": "ask", "answer": "status", "status": 404, "html": True},
        check="task ids",
        says="VM_SYNC_SYNC__DEADLINE",
        result="warning",
        code=0,
    ),
    Setup(
        situation="VCDA's clock is five minutes ahead",
        odd=lambda vcda: vcda.world.clock_offset(seconds=300),
        check="clock",
        says="NTP",
        result="warning",
        code=0,
    ),
)


SETUPS: Final = {"Kafka": KAFKA_SETUPS, "VCDA": VCDA_SETUPS}


# ---------------------------------------------------------------- where they are tried

NAMES: Final = TopicNames(
    requests="vm-sync.requests",
    completed="vm-sync.completed",
    failed="vm-sync.failed",
    dead_letter="vm-sync.dead-letter",
    journal="vm-sync.journal",
    control="vm-sync.control",
)
ODD_TOPICS: Final = (
    NewTopic("vm-sync.deleting", 2, 1, topic_configs={"cleanup.policy": "delete"}),
    NewTopic("vm-sync.narrow", 1, 1, topic_configs={"cleanup.policy": "compact"}),
    NewTopic("vm-sync.odd-letters", 2, 1, topic_configs={"cleanup.policy": "compact"}),
    NewTopic("vm-sync.demanding", 2, 1, topic_configs={"min.insync.replicas": "2"}),
    NewTopic("vm-sync.small", 2, 1, topic_configs={"max.message.bytes": "32768"}),
)


SETTINGS: Final = {"result": "failure", "about": "settings", "check": "value"}
"""Of a line that says that a setting is invalid."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What `vm-sync check` said."""

    code: int
    lines: tuple[Mapping[str, Any], ...]

    @property
    def wrong(self) -> list[Mapping[str, Any]]:
        """The lines that are neither ok nor skipped."""
        return [line for line in self.lines if line["result"] in {"failure", "warning"}]


@dataclass(slots=True)
class Grounds:
    """A Kafka and some VCDAs in which each set-up can be made, one after the other."""

    kafka: EmbeddedKafka
    vcdas: Mapping[str, Apart]
    rights: Rights
    tokens: TokenServer
    places: dict[str, str]
    """What stands for `{...}` in settings."""

    async def answer(self, setup: Setup) -> Answer:
        """Run the command in a set-up."""
        async with self.made(setup) as environment:
            return await asyncio.to_thread(self._run, setup, environment)

    @asynccontextmanager
    async def made(self, setup: Setup) -> AsyncIterator[dict[str, str]]:
        """Make a set-up, give the environment of a process for it, and take it away again."""
        vcda = self.vcdas[setup.vcda]
        for change in setup.denied:
            await self.rights.deny(*change)
        if setup.odd is not None:
            await vcda.do(setup.odd)
        self.tokens.claims = dict(setup.claims)
        if setup.fault:
            await vcda.do(lambda simulator: simulator.fault(**setup.fault))
        try:
            yield self._environment(setup)
        finally:
            await vcda.do(lambda simulator: simulator.reset())
            for change in setup.denied:
                await self.rights.give_back(*change)

    def _run(self, setup: Setup, environment: Mapping[str, str]) -> Answer:
        # Only where there is a cache: the time it takes until an answer out of it shows its age.
        aged = vcda_check.AGED if setup.check == "caches" else 0.0
        with patch.object(vcda_check, "AGED", aged), patch.dict(os.environ, environment, clear=True):
            result = CliRunner().invoke(app, ["check", "--json"], prog_name="vm-sync")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        if result.exit_code == Exit.USAGE:  # before any check
            said = [line for line in result.stderr.splitlines() if line.startswith("VM_SYNC_")]
            lines = [{"text": line, "settings": re.findall(r"VM_SYNC_\w+", line)} for line in said]
            return Answer(result.exit_code, tuple(line | SETTINGS for line in lines))
        return Answer(result.exit_code, tuple(json.loads(result.stdout)["checks"]))

    def _environment(self, setup: Setup) -> dict[str, str]:
        usual = {
            "KAFKA__BOOTSTRAP_SERVERS": "{LOGIN}" if setup.denied else f"{{{setup.kafka}}}",
            "KAFKA__PARTITIONS": "2",
            "VCDA__URL": self.vcdas[setup.vcda].url,
            "VCDA__CREDENTIALS__USER": "administrator@System",
            "VCDA__CREDENTIALS__PASSWORD": "password",
            "VCDA__CA_FILE": "" if setup.vcda == "plain" else "{vcda_authority}",
        }
        given = usual | (LOGIN if setup.denied else {}) | dict(setup.settings)
        others = {name: text for name, text in os.environ.items() if not name.startswith("VM_SYNC_")}
        return others | {f"VM_SYNC_{name}": text.format(**self.places) for name, text in given.items()}

    def tidied(self, text: str) -> str:
        """Write addresses as they might be elsewhere, so that a page doesn't change with them."""
        for listener in ("PLAINTEXT", *LISTENERS, "AWAY", TOKENS):
            text = text.replace(self.kafka.address(listener), "kafka:9092")
        for vcda in self.vcdas.values():
            text = text.replace(vcda.url.partition("//")[2], "vcda:443")
        text = text.replace(self.tokens.url.split("/")[2], "tokens:443")
        text = text.replace(str(Path(self.places["token_missing"]).parent), "/run/kafka-token")
        text = text.replace(self.places["nothing"], "localhost:9")
        text = text.replace(self.places["nowhere"], "broker-1:9092")
        text = re.sub(r"trustme v[0-9.]+, valid until [0-9-]+", "our authority, valid until 2027-01-03", text)
        return re.sub(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", "AB:CD:...", text)


@asynccontextmanager
async def grounds(folder: Path) -> AsyncIterator[Grounds]:
    """Make it, in some seconds. Raises `KafkaError` where there can be no Kafka."""
    files, tokens, accepting = certificates(folder), TokenServer(), TokenListener(folder / "keys.json")
    tokens.write_keys(accepting.keys)
    (folder / "empty-token").touch()
    (folder / "expired-token").write_text(tokens.issue(exp=1_767_225_600))
    kafka = secured(
        folder,
        asking=True,
        also={"AWAY": "PLAINTEXT", **accepting.listeners},
        properties=accepting.properties,
        java_properties=accepting.java_properties,
    )
    nothing, nowhere = free_ports(2)
    kafka.advertise("AWAY", f"127.0.0.1:{nowhere}")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, kafka.close)
        await asyncio.to_thread(kafka.start)
        connection = KafkaConnection(bootstrap_servers=(kafka.bootstrap,))
        await ensure_topics(connection, names=NAMES, partitions=2, create=True)
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        await admin.create_topics(list(ODD_TOPICS))
        await admin.close()
        vcdas = {"plain": await stack.enter_async_context(Apart(Config()))}
        for name, tls in _certificates_of_vcda(folder):
            vcdas[name] = await stack.enter_async_context(Apart(Config(), tls=tls))
        rights = await stack.enter_async_context(Rights(kafka.bootstrap))
        await stack.enter_async_context(tokens)
        places = {
            "nothing": f"127.0.0.1:{nothing}",
            "nowhere": f"127.0.0.1:{nowhere}",
            "authority": str(files.authority),
            "another_authority": str(files.another_authority),
            "vcda": vcdas["plain"].url.partition("//")[2],
            "vcda_authority": str(folder / "vcda-ca.pem"),
            "token_server": tokens.url,
            "token_missing": str(folder / "token"),
            "token_empty": str(folder / "empty-token"),
            "token_expired": str(folder / "expired-token"),
            **{listener: kafka.address(listener) for listener in ("PLAINTEXT", *LISTENERS, "AWAY", TOKENS)},
        }
        yield Grounds(kafka, vcdas, rights, tokens, places)


def _certificates_of_vcda(folder: Path) -> Iterator[tuple[str, ssl.SSLContext]]:
    authority, now = trustme.CA(), datetime.now(UTC)
    authority.cert_pem.write_to_path(folder / "vcda-ca.pem")
    for name, host, ends in (
        ("good", "127.0.0.1", now + timedelta(days=300)),
        ("ending", "127.0.0.1", now + timedelta(days=3, hours=1)),
        ("expired", "127.0.0.1", now - timedelta(days=1)),
        ("elsewhere", "vcda.example", now + timedelta(days=300)),
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(host, not_after=ends).configure_cert(context)
        yield name, context
