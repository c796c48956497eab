"""Checks that Kafka provides all that the service needs. Each check comes after those that it depends on.

Nothing is changed: no topic is made, no message written, no group joined, no producer fenced. Only on a cluster where
no group or no transaction ever was, Kafka itself makes its own topic for them when it is asked who coordinates them,
as it does at each client's first question.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, KafkaConnectionError, KafkaError
from aiokafka.protocol.admin import ApiVersionRequest

from service import endpoints
from service.checks import Check, Result, Verdict, clocks, failure, ok, results, unless_another_works, warning
from service.clock import Clock
from service.endpoints import Endpoint
from service.kafka import diagnosis, rights, topics
from service.kafka.clients import CUT_LIMIT, end, wire_of
from service.kafka.connection import KafkaConnection
from service.kafka.denials import Operation
from service.kafka.journal import BATCH_BYTES, transactional_id
from service.kafka.tokens import Tokens
from service.kafka.topic_descriptions import Described, Topic, describe
from service.kafka.topics import Denied, Refusal, TopicNames, Unavailable
from service.messages.kafka_record import MAX_REQUEST_BYTES
from service.moments import milliseconds

if TYPE_CHECKING:
    import ssl

GROUP: Final = "Kafka"

ALL: Final = timedelta(seconds=60)
"""For all of Kafka's checks together."""

STEP: Final = timedelta(seconds=10)
"""For one check: a broker that is alive but slow answers within it."""

REQUEST: Final = timedelta(seconds=8)
"""For one request, or one address: shorter than `STEP`, so that its own error is what is reported."""

MOST_IDS: Final = 100
"""Transactional ids that are asked for: the first, the last, and some between them where there are more partitions."""

MOST_STRANGERS: Final = 5
"""Members that are named."""

UNSUPPORTED: Final = (IncompatibleBrokerVersion, NotImplementedError)
"""What aiokafka raises of a request for which the brokers and it have no version in common."""


class KafkaSettings(diagnosis.KafkaSettings, Protocol):
    """What is set for Kafka, as far as it is checked."""

    @property
    def servers(self) -> list[str]: ...  # noqa: D102 - the names say it
    @property
    def group_id(self) -> str: ...  # noqa: D102
    @property
    def create_topics(self) -> bool: ...  # noqa: D102
    @property
    def partitions(self) -> int: ...  # noqa: D102


class KafkaChecks:
    """The checks of one Kafka. Make it inside the event loop that it will be used in, and use it once."""

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        settings: KafkaSettings,
        names: TopicNames,
        clock: Clock,
        step: timedelta = STEP,
    ) -> None:
        self._step = step
        self._settings = settings
        self._names = names
        self._clock = clock
        self._connection = connection
        self._tokens = connection.tokens
        self._arguments = connection.arguments()
        self._arguments |= {"request_timeout_ms": milliseconds(REQUEST)}
        self._account = names.account(self._arguments, group=settings.group_id)
        self._setting = names.settings()
        # What earlier checks find out for later ones.
        self._servers = [_endpoint(server) for server in settings.servers]
        self._admin = AIOKafkaAdminClient(**self._arguments)
        self._hidden: list[str] = []
        self._topics: Mapping[str, Topic] = {}

    async def results(self) -> AsyncIterator[Result]:
        """Make the checks, and give each result as soon as it is known; all of it within `ALL`."""
        try:
            async for result in results(self._checks(), within=ALL):
                yield result
        finally:
            await end(self._admin, within=CUT_LIMIT)

    def _checks(self) -> Sequence[Check]:
        silent = (
            "check VM_SYNC_KAFKA__BOOTSTRAP_SERVERS, and whether a firewall or a network policy drops packets to the "
            "brokers"
        )
        busy = "look at the brokers' logs"
        replicas = "compare the brokers' {0}.replication.factor with the number of brokers, and look at their logs"
        names = self._check("name resolution", self._names_resolve, silent)
        connection = self._check("TCP connection", self._connects, silent, names)
        tls: ssl.SSLContext | None = self._arguments.get("ssl_context")
        secured = (
            () if tls is None else (self._check("certificate", partial(self._certificate, tls), silent, connection),)
        )
        token = (
            ()
            if self._tokens is None
            else (self._check("OAuth token", partial(self._token, self._tokens), "check the OAuth token server"),)
        )
        login = self._check("login", self._login, silent, connection, *secured, *token)
        several = len(self._servers) > 1
        cluster = (self._check("cluster", self._one_cluster, silent, login),) if several else ()
        brokers = self._check("brokers", self._brokers, silent, login, *cluster)
        return [
            names,
            connection,
            *secured,
            *token,
            login,
            *cluster,
            brokers,
            self._check("version", self._version, busy, brokers),
            self._check("rights on topics", self._rights, busy, brokers),
            self._check("topics", self._topics_fit, busy, brokers),
            self._check("largest message", self._largest, busy, brokers),
            self._check("consumer group", self._group, replicas.format("offsets.topic"), brokers),
            self._check("transactions", self._transactions, replicas.format("transaction.state.log"), brokers),
            self._check("clock", self._clocks, busy, brokers),
        ]

    def _check(self, name: str, run: Callable[[], Awaitable[Sequence[Verdict]]], overdue: str, *needs: Check) -> Check:
        async def explained() -> Sequence[Verdict]:
            with diagnosis.overheard() as errors:
                try:
                    return await run()
                except (KafkaError, OSError) as error:
                    return [self._failed(error, errors)]

        return Check(group=GROUP, name=name, run=explained, limit=self._step, overdue=overdue, needs=needs)

    def _failed(self, error: BaseException, overheard: Sequence[BaseException]) -> Verdict:
        return failure(
            diagnosis.diagnosis(error, overheard, kafka=self._settings),
            answered=diagnosis.is_answer(error, overheard, kafka=self._settings),
        )

    # ------------------------------------------------------------ the way there

    async def _names_resolve(self) -> Sequence[Verdict]:
        async def one(server: Endpoint) -> Verdict:
            try:
                async with asyncio.timeout(REQUEST.total_seconds()):
                    addresses = await endpoints.resolve(server)
            except OSError:
                return failure(
                    f"There is no address for the name {server.host}: check VM_SYNC_KAFKA__BOOTSTRAP_SERVERS.",
                    answered=False,
                )
            return endpoints.resolved(server, addresses)

        return await self._each_server(one)

    async def _connects(self) -> Sequence[Verdict]:
        async def one(server: Endpoint) -> Verdict:
            try:
                async with asyncio.timeout(REQUEST.total_seconds()):
                    await endpoints.connect(server)
            except OSError as error:
                return failure(
                    f"{server} can't be reached, {endpoints.why(error)}: check VM_SYNC_KAFKA__BOOTSTRAP_SERVERS, and "
                    "whether a firewall or a network policy is in between.",
                    answered=False,
                )
            return ok(f"{server} accepts connections.")

        return await self._each_server(one)

    async def _certificate(self, tls: "ssl.SSLContext") -> Sequence[Verdict]:
        async def one(server: Endpoint) -> Verdict:
            try:
                async with asyncio.timeout(REQUEST.total_seconds()):
                    certificate = await endpoints.handshake(server, tls)
            except OSError as error:
                return self._failed(error, [error])
            return endpoints.expiry(certificate, now=self._clock.now())

        return [*await self._each_server(one), *endpoints.expiring(tls, now=self._clock.now())]

    async def _token(self, tokens: Tokens) -> Sequence[Verdict]:
        await tokens.token()
        where, ends = tokens.source.where, tokens.expires
        if ends is None:
            return [ok(f"There is a token from {where}; it doesn't say when it expires.")]
        left = ends - self._clock.now()
        if left <= timedelta():
            return [
                warning(
                    f"The token from {where} expired at {ends:%Y-%m-%d %H:%M:%SZ}: check what renews the token, and "
                    "this machine's clock."
                )
            ]
        return [ok(f"There is a token from {where}; it expires at {ends:%Y-%m-%d %H:%M:%SZ}, in {_rounded(left)}.")]

    async def _each_server(self, check: Callable[[Endpoint], Awaitable[Verdict]]) -> Sequence[Verdict]:
        """Check each bootstrap server, and leave those out that have failed, if not all of them have."""
        verdicts = await asyncio.gather(*map(check, self._servers))
        pairs = zip(self._servers, verdicts, strict=True)
        good = [server for server, verdict in pairs if verdict.status != "failure"]
        self._servers = good or self._servers
        return list(dict.fromkeys(unless_another_works(verdicts)))

    async def _login(self) -> Sequence[Verdict]:
        # Only those servers that answer: the client would wait for each of the others.
        reachable = {"bootstrap_servers": [str(server) for server in self._servers]}
        self._admin = AIOKafkaAdminClient(**self._arguments | reachable)
        await self._admin.start()
        protocol = self._settings.security_protocol
        if self._settings.sasl_mechanism:
            who = self._settings.sasl_username or "the token's user"
            return [ok(f"Logged in as {who} with {self._settings.sasl_mechanism}, {protocol}.")]
        return [ok(f"Connected with {protocol}, which has no login.")]

    async def _one_cluster(self) -> Sequence[Verdict]:
        reachable = tuple(map(str, self._servers))
        clusters = await topics.different_clusters(replace(self._connection, bootstrap_servers=reachable))
        if clusters is not None:
            return [failure(clusters.text)]
        return [ok("The bootstrap servers that answer belong to one Kafka cluster.")]

    async def _brokers(self) -> Sequence[Verdict]:
        client = self._client
        brokers = {broker.nodeId: Endpoint(broker.host, broker.port) for broker in client.cluster.brokers()}

        async def one(node: int, address: Endpoint) -> Verdict | None:
            try:
                async with asyncio.timeout(REQUEST.total_seconds()):
                    await endpoints.connect(address)
            except OSError as error:
                return failure(
                    f"Kafka gives the address {address} for its broker {node}, which can't be reached from here, "
                    f"{endpoints.why(error)}: change the brokers' advertised.listeners, or "
                    "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS to a listener whose addresses can be reached.",
                    answered=False,
                )
            with diagnosis.overheard() as errors:
                if await client.ready(node):
                    return None
                return self._failed(KafkaConnectionError(), errors)

        found = await asyncio.gather(*[one(node, address) for node, address in sorted(brokers.items())])
        wrong = [verdict for verdict in found if verdict is not None]
        if wrong:
            return wrong
        listed = ", ".join(f"{node} at {address}" for node, address in sorted(brokers.items()))
        return [ok(f"Each broker can be reached: {listed}.")]

    async def _version(self) -> Sequence[Verdict]:
        cluster = (await self._admin.describe_cluster())["cluster_id"]
        answer = await self._client.send(rights.any_node(self._client), ApiVersionRequest())
        said_to_be, enough = release({key: (lowest, highest) for key, lowest, highest in answer.api_versions})
        said = f"The cluster's id is {cluster}, its version {said_to_be}"
        if enough:
            return [ok(f"{said}.")]
        return [
            warning(
                f"{said}: it gives topics no ids, so a requests topic that is deleted and created again isn't noticed. "
                "Upgrade the brokers to 2.8 or later."
            )
        ]

    # ------------------------------------------------------------ what is there, and may be used

    async def _rights(self) -> Sequence[Verdict]:
        wanted = rights.of_topics(self._names)
        try:
            allowed = await rights.allowed_on_topics(self._client, wanted)
        except UNSUPPORTED:
            return [warning("These brokers can't say which rights a user has: upgrade the brokers to 2.8 or later.")]
        self._hidden = [name for name, operations in allowed.items() if operations is None]
        wrong = [
            self._without(name, self._grant(lacking, f"topic {name}", self._setting[name]))
            for name, needed in wanted.items()
            if name in allowed and (lacking := needed - (allowed[name] or frozenset()))
        ]
        if wrong:
            return wrong
        return [ok(f"Granted: {'; '.join(f'{_listed(some)} on {name}' for name, some in wanted.items())}.")]

    def _grant(self, operations: frozenset[Operation], resource: str, setting: str) -> Verdict:
        return failure(
            f"{self._account.principal} lacks {_listed(operations)} on {resource} ({setting}): grant it by an ACL."
        )

    def _without(self, name: str, verdict: Verdict) -> Verdict:
        """Return what is wrong with a topic; as a warning where the service can do without the topic."""
        return warning(f"{verdict.text} Until then no site can be paused.") if name == self._names.control else verdict

    async def _topics_fit(self) -> Sequence[Verdict]:
        admin, names = self._admin, self._names
        self._topics = (await describe(admin, names.all())).topics
        missing = [name for name in names.all() if name not in self._topics and name not in self._hidden]
        verdicts = await self._missing(missing)
        for finding in topics.judge_existing(self._topics, names=names):
            verdicts.append(failure(finding.text) if isinstance(finding, Refusal | Denied) else warning(finding.text))
        hidden = [name for name in self._hidden if name != names.control]
        if not verdicts and not hidden:
            count = self._topics[names.requests].partitions
            verdicts.append(
                ok(
                    f"All {len(self._topics)} topics fit: {names.requests} and {names.journal} have {count} partitions "
                    f"each, {names.journal} is compacted."
                )
            )
        return verdicts or [failure("Not checked, since topics are hidden from the service's user; see above.")]

    async def _missing(self, missing: Sequence[str]) -> list[Verdict]:
        if not missing or not self._settings.create_topics:
            return [self._without(name, failure(topics.absent(name).text)) for name in missing]
        refused = await topics.refused_creations(
            self._admin,
            Described(dict(self._topics), set(self._hidden)),
            names=self._names,
            partitions=self._settings.partitions,
            account=self._account,
        )
        if refused:
            return [
                warning(refusal.text) if isinstance(refusal, Unavailable) else failure(refusal.text)
                for refusal in refused
            ]
        return [ok(f"The service will create, and may create, the topics {', '.join(missing)}.")]

    async def _largest(self) -> Sequence[Verdict]:
        verdicts = []
        for name, topic in self._topics.items():
            if name == self._names.control:
                continue  # the service writes nothing there
            needed = MAX_REQUEST_BYTES if name == self._names.requests else BATCH_BYTES
            if 0 < topic.largest < needed:
                what = "requests have up to" if name == self._names.requests else "the service writes batches of up to"
                verdicts.append(
                    warning(
                        f"The topic {name} ({self._setting[name]}) accepts messages of at most {topic.largest} bytes; "
                        f"{what} {needed}: raise its max.message.bytes."
                    )
                )
        seen = [topic.largest for topic in self._topics.values() if topic.largest]
        if not seen:
            return [ok("Not compared: no topic's settings can be seen so far.")]
        return verdicts or [ok(f"Each topic accepts messages of {min(seen)} bytes, or more.")]

    async def _group(self) -> Sequence[Verdict]:
        name, setting = self._settings.group_id, "VM_SYNC_KAFKA__GROUP_ID"
        group = await rights.group(self._client, name)
        if group.allowed is None or Operation.READ not in group.allowed:
            return [self._grant(frozenset({Operation.READ}), f"group {name}", setting)]
        if group.strangers:
            return [
                warning(
                    f"The group {name} ({setting}) has members that are not the service's: "
                    f"{', '.join(group.strangers[:MOST_STRANGERS])}. The group gives them partitions, whose requests "
                    "then wait: end them, or give them a group of their own."
                )
            ]
        return [ok(f"The group {name} may be joined; members at present: {group.members}.")]

    async def _transactions(self) -> Sequence[Verdict]:
        journal = self._names.journal
        known = self._topics.get(journal) or self._topics.get(self._names.requests)
        count = known.partitions if known else self._settings.partitions
        ids = [transactional_id(journal, number) for number in numbers_to_ask(count)]
        denied = [one for one in ids if not await rights.may_transact(self._client, one)]
        if denied:
            some = ", ".join(denied[:3]) + (f" and {len(denied) - 3} more" if len(denied) > 3 else "")  # noqa: PLR2004
            return [
                self._grant(
                    frozenset({Operation.WRITE}),
                    f"transactional id {some}; a prefixed ACL on {journal}- covers all",
                    self._setting[journal],
                )
            ]
        return [ok(f"Write is granted on the transactional ids {ids[0]} to {ids[-1]}, and they have a coordinator.")]

    async def _clocks(self) -> Sequence[Verdict]:
        asked = self._clock.now()
        try:
            there = await rights.controller_time(self._client)
        except UNSUPPORTED:
            there = None
        if there is None:
            return [ok("Not compared: Kafka doesn't tell its time without Describe on the cluster.")]
        return [clocks("Kafka's", there - (asked + (self._clock.now() - asked) / 2))]

    @property
    def _client(self) -> AIOKafkaClient:
        return wire_of(self._admin)


def _rounded(left: timedelta) -> str:
    """Write a time that is left as people say it: 59 min, 12 h."""
    seconds = left.total_seconds()
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _endpoint(server: str) -> Endpoint:
    host, _, port = server.rpartition(":")
    return Endpoint(host.strip("[]"), int(port))


def _listed(operations: frozenset[Operation]) -> str:
    return " and ".join([operation for operation in rights.NUMBERS if operation in operations])


def numbers_to_ask(count: int) -> list[int]:
    """Return the partitions, of so many, whose transactional ids are asked for."""
    some = min(count, MOST_IDS)
    return [index * (count - 1) // max(1, some - 1) for index in range(some)]


FETCH, DESCRIBE_CLUSTER, DESCRIBE_TRANSACTIONS = 1, 60, 65


def release(versions: Mapping[int, tuple[int, int]]) -> tuple[str, bool]:
    """Return which release speaks so, as brokers don't say, and whether the service can do all it does with it."""
    if versions.get(FETCH, (0, 0))[0] >= 4:  # noqa: PLR2004 - the first that 4.0 has kept
        return "4.0 or later", True
    if DESCRIBE_TRANSACTIONS in versions:
        return "3.x", True
    if DESCRIBE_CLUSTER in versions:
        return "2.8", True
    return "earlier than 2.8", False
