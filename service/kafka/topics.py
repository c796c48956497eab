"""Creates missing topics, and checks the configuration of existing ones.

The control topic is the exception: without it the service works, but no site can be paused, so its findings are advice.

It never changes or deletes an existing topic.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeAlias

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidConfigurationError,
    InvalidReplicationFactorError,
    KafkaError,
    PolicyViolationError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from service.kafka.clients import end, wire_of
from service.kafka.connection import KafkaConnection
from service.kafka.denials import Account, MissingRight, Operation, Resource, principal
from service.kafka.topic_descriptions import AGAIN, Described, Topic, describe, missing_requests
from service.moments import milliseconds

REPLICAS = 3
"""Of each topic, where there are so many brokers: one may be down for maintenance while another fails."""

HEADER_ROOM = 64 * 1024
"""Bytes by which a dead letter may be longer than the request it was: it has additional headers, and may be less well
compressed."""

JOURNAL_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "cleanup.policy": "compact",
        # A restore reads what compaction has left and the segments it may not touch yet: keep both small.
        "segment.bytes": str(32 * 1024 * 1024),
        "segment.ms": str(milliseconds(timedelta(hours=1))),
        "min.cleanable.dirty.ratio": "0.1",
    }
)

BROKER_MESSAGE_LIMIT = 1024 * 1024
"""Kafka's own limit for a message, near enough, where the requests topic has not been given another."""

ASK_CLUSTER = timedelta(seconds=5)
"""For the cluster's id: a server that doesn't tell it in time is not compared with the others."""

CREATE_LIMIT = timedelta(seconds=15)
"""How long the making of topics may take, and then their becoming visible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicNames:
    """The names of the topics. `completed` and `failed` may be the same.

    `control` None: there are no site pauses. `progress` None: it is not published.
    """

    requests: str
    completed: str
    failed: str
    dead_letter: str
    journal: str
    control: str | None = None
    progress: str | None = None

    def all(self) -> tuple[str, ...]:
        """Return each name once, in the order of the contract."""
        return tuple(self.settings())

    def settings(self) -> dict[str, str]:
        """Return the setting that has each name; of a name that two have, the first."""
        found: dict[str, str] = {}
        for field in fields(self):
            if (name := getattr(self, field.name)) is not None:
                found.setdefault(name, f"VM_SYNC_TOPICS__{field.name.upper()}")
        return found

    def account(self, connection: Mapping[str, Any], *, group: str) -> Account:
        """Return whom Kafka sees in a client with these of aiokafka's arguments, and what the settings name."""
        named = {**self.settings(), group: "VM_SYNC_KAFKA__GROUP_ID"}
        return Account(principal=principal(connection), settings=named)

    def right(self, name: str) -> MissingRight:
        """Return the right without which the service may not even see one of the topics."""
        operation = Operation.READ if name in {self.requests, self.control} else Operation.WRITE
        return MissingRight(operation, Resource.TOPIC, name)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The service can't work with these topics; the text says what to do."""

    text: str


@dataclass(frozen=True, slots=True)
class Unsupported(Refusal):
    """This Kafka lacks what the service can't do without."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The account lacks a right on a topic; the text names it. The service waits for it."""

    text: str
    topic: str


@dataclass(frozen=True, slots=True)
class Advice:
    """The service can work, but with a risk that the text describes."""

    text: str


@dataclass(frozen=True, slots=True)
class Unavailable(Advice):
    """The service can work, but without a topic that it can do without, for the time being."""

    topic: str


@dataclass(frozen=True, slots=True)
class Created:
    """A missing topic was created."""

    text: str
    topic: str


Finding: TypeAlias = Refusal | Denied | Advice | Created


async def ensure_topics(
    connection: KafkaConnection, *, names: TopicNames, partitions: int, create: bool
) -> list[Finding]:
    """Create missing topics, if `create`, and check existing ones. An empty list: no findings.

    `partitions` counts for new topics only; a new journal gets as many as the requests topic has, and the reverse.

    Raises:
        KafkaError: Kafka can't be reached, or asks to try again.
    """
    if (clash := _clash(names)) is not None:
        return [clash]
    account = Account(principal=principal(connection.security), settings=names.settings())
    admin = AIOKafkaAdminClient(**connection.arguments())
    try:
        await admin.start()
        if lacking := await missing_requests(admin):
            return [_without_transactions(lacking)]
        if (clusters := await different_clusters(connection)) is not None:
            return [clusters]
        seen = await describe(admin, names.all())
        findings: list[Finding] = [
            _needed(_hidden(name, names, account), name, names) for name in names.all() if name in seen.hidden
        ]
        if create:
            findings += await _create_missing(admin, seen, names=names, partitions=partitions, account=account)
            created = {finding.topic for finding in findings if isinstance(finding, Created)}
            if any(isinstance(finding, Refusal) for finding in findings):
                return findings
            if created:
                seen = await _settled(admin, seen.topics.keys() | created)
        said = {finding.topic for finding in findings if isinstance(finding, Denied | Unavailable)}
        return [*findings, *judge(seen.topics, names=names, but=said)]
    finally:
        await end(admin)


def judge(topics: Mapping[str, Topic], *, names: TopicNames, but: Collection[str] = ()) -> list[Finding]:
    """Compare the topics that exist, by name, with what the service needs; nothing is said of those in `but`."""
    missing = [_needed(absent(name), name, names) for name in names.all() if name not in topics and name not in but]
    return [*missing, *judge_existing(topics, names=names)]


def absent(name: str) -> Refusal:
    """Say that a topic is missing."""
    return Refusal(
        f"The topic {name} doesn't exist: create it with `vm-sync topics create`, or let the service create it "
        "with VM_SYNC_KAFKA__CREATE_TOPICS=true."
    )


def judge_existing(topics: Mapping[str, Topic], *, names: TopicNames) -> list[Finding]:
    """Compare those topics that exist with what the service needs of them; says nothing of the others."""
    needed = {name: topics[name] for name in names.all() if name in topics}
    findings: list[Finding] = []
    requests, journal = needed.get(names.requests), needed.get(names.journal)
    if requests and journal and requests.partitions != journal.partitions:
        findings.append(_unequal(names, requests, journal))
    if journal and (text := not_compacted(names.journal, journal.policy)):
        findings.append(Refusal(f"The {text}."))
    dead_letter = needed.get(names.dead_letter)
    if dead_letter and "compact" in (dead_letter.policy or ""):
        findings.append(
            Refusal(
                f"The topic {names.dead_letter} has cleanup.policy={dead_letter.policy}, so Kafka refuses the dead "
                "letter of a message without a key, which stops the message's partition; and it keeps only the latest "
                "dead letter of each key: set it to delete."
            )
        )
    control = needed.get(names.control or "")
    if control and control.partitions > 1:
        findings.append(
            Advice(
                f"The control topic {names.control} has {control.partitions} partitions and must have 1: the orders "
                "for a site from before and after its partitions were added stand in different ones, so a resumed "
                "site may stay paused, or a paused one not. Delete the topic, create it again with `vm-sync topics "
                "create`, and pause again what is to be paused."
            )
        )
    if control and control.policy not in {None, "compact"}:
        findings.append(
            Advice(
                f"The control topic {names.control} has cleanup.policy={control.policy}, so Kafka would delete site "
                "pauses that still last: set it to compact."
            )
        )
    return [*findings, *_advice(needed, names)]


def not_compacted(journal: str, policy: str | None) -> str | None:
    """Say why a journal with this cleanup.policy can't be worked with; None: it can, or the policy is unknown."""
    if policy in {None, "compact"}:
        return None
    return (
        f"journal {journal} has cleanup.policy={policy}, so Kafka would delete requests that are still in flight: set "
        "it to compact"
    )


def _advice(needed: Mapping[str, Topic], names: TopicNames) -> Iterable[Advice]:
    if few := [name for name, topic in needed.items() if topic.replicas < REPLICAS]:
        yield Advice(f"Fewer than {REPLICAS} replicas, so messages can be lost with their brokers: {', '.join(few)}.")
    if unseen := [name for name, topic in needed.items() if topic.settings is None]:
        yield Advice(
            "The topics' settings can't be checked: this takes the right DescribeConfigs, and a Kafka that has such a "
            f"request: {', '.join(unseen)}."
        )
    if (journal := needed.get(names.journal)) and journal.policy is None:
        yield Advice(
            f"Kafka doesn't tell the cleanup.policy of the journal {names.journal}: check yourself that it is compact."
        )
    written = {name: topic for name, topic in needed.items() if name not in {names.requests, names.control}}
    if lonely := [name for name, topic in written.items() if topic.replicas >= REPLICAS and topic.min_insync == 1]:
        yield Advice(
            "min.insync.replicas=1, so a message may be on only one broker when it is acknowledged: "
            f"{', '.join(lonely)}."
        )
    # From 3.7 on, Kafka takes the number of replicas where it is the smaller one. It is no reason to refuse the topic:
    # brokers whose default is 2 give it to a topic of one replica, too, which works.
    if capped := [f"{name} ({topic.replicas})" for name, topic in written.items() if topic.min_insync > topic.replicas]:
        yield Advice(
            "min.insync.replicas is greater than the number of replicas, so nothing can be written while any broker "
            f"that has one is away: add replicas, or lower min.insync.replicas: {', '.join(capped)}."
        )
    if unclean := [name for name, topic in needed.items() if topic.flag("unclean.leader.election.enable")]:
        yield Advice(f"Unclean leader election is on, which loses acknowledged messages: {', '.join(unclean)}.")
    outcomes = dict.fromkeys((names.completed, names.failed))
    if compacted := [name for name in outcomes if name in needed and "compact" in (needed[name].policy or "")]:
        yield Advice(
            f"Kafka keeps only the latest outcome of each replication on compacted topics: {', '.join(compacted)}."
        )
    requests, dead_letter = needed.get(names.requests), needed.get(names.dead_letter)
    if requests and "compact" in (requests.policy or ""):
        yield Advice(f"{names.requests} is compacted: Kafka may delete all but the latest request for a replication.")
    if requests and dead_letter and 0 < dead_letter.largest < requests.largest:
        yield Advice(
            f"{names.dead_letter} accepts messages of {dead_letter.largest} bytes, {names.requests} of "
            f"{requests.largest}: a dead letter larger than that is written without its value. Raise "
            "max.message.bytes of "
            f"{names.dead_letter}."
        )


def _clash(names: TopicNames) -> Refusal | None:
    """Only the outcome topics may be the same: a service that reads its own messages would never stop."""
    outcomes = {names.completed, names.failed}
    others = [names.requests, names.dead_letter, names.journal]
    others += [name for name in (names.control, names.progress) if name is not None]
    if len(set(others)) == len(others) and outcomes.isdisjoint(others):
        return None
    return Refusal(
        "The topics' names must differ; only VM_SYNC_TOPICS__COMPLETED and VM_SYNC_TOPICS__FAILED may be the same."
    )


def _unequal(names: TopicNames, requests: Topic, journal: Topic) -> Refusal:
    fewer, target = (
        (names.journal, requests.partitions)
        if journal.partitions < requests.partitions
        else (names.requests, journal.partitions)
    )
    return Refusal(
        f"{names.requests} has {requests.partitions} partitions and its journal {names.journal} {journal.partitions}; "
        f"the numbers must be equal. Raise {fewer} to {target} partitions, after all requests in flight have ended: "
        "added partitions move keys, so requests for one replication could overlap."
    )


# ---------------------------------------------------------------- talking to Kafka


async def refused_creations(
    admin: AIOKafkaAdminClient, seen: Described, *, names: TopicNames, partitions: int, account: Account
) -> list[Refusal | Denied | Unavailable]:
    """Return why Kafka would not create the missing topics; none of them is created by asking. Raises KafkaError."""
    journal = seen.topics.get(names.requests)
    new = await _new_topics(
        admin, seen, names=names, partitions=partitions, journal=journal.partitions if journal else partitions
    )
    findings = await _create(admin, new, names=names, account=account, validate_only=True)
    return [finding for finding in findings if isinstance(finding, Refusal | Denied | Unavailable)]


async def _create_missing(
    admin: AIOKafkaAdminClient, seen: Described, *, names: TopicNames, partitions: int, account: Account
) -> list[Finding]:
    """Create what is missing; the journal last, as wide as the requests topic turned out to be."""
    new = await _new_topics(admin, seen, names=names, partitions=partitions, journal=partitions)
    others = [topic for topic in new if topic.name != names.journal]
    findings = await _create(admin, others, names=names, account=account)
    if all(topic.name != names.journal for topic in new) or _any_failed(findings):
        return findings
    requests = (await _settled(admin, [names.requests])).topics.get(names.requests)
    width = requests.partitions if requests else partitions
    new = await _new_topics(admin, seen, names=names, partitions=partitions, journal=width)
    journals = [topic for topic in new if topic.name == names.journal]
    return findings + await _create(admin, journals, names=names, account=account)


def _any_failed(findings: Iterable[Finding]) -> bool:
    return any(isinstance(finding, Refusal | Denied) for finding in findings)


async def _new_topics(
    admin: AIOKafkaAdminClient, seen: Described, *, names: TopicNames, partitions: int, journal: int
) -> list[NewTopic]:
    """Return the topics that are missing, as they have to be; `journal` is the width of a journal."""
    topics = seen.topics
    missing = [name for name in names.all() if name not in topics and name not in seen.hidden]
    if not missing:
        return []
    replicas = min(REPLICAS, len(wire_of(admin).cluster.brokers()))
    requests = topics[names.journal].partitions if names.journal in topics else partitions
    width = {names.requests: requests, names.journal: journal, names.control: 1}
    largest = topics[names.requests].largest if names.requests in topics else 0
    everywhere = {
        "min.insync.replicas": str(max(1, replicas - 1)),
        "unclean.leader.election.enable": "false",
    }
    special = {
        names.journal: JOURNAL_SETTINGS,
        names.control: {"cleanup.policy": "compact"},
        names.dead_letter: {"max.message.bytes": str((largest or BROKER_MESSAGE_LIMIT) + HEADER_ROOM)},
    }
    return [
        NewTopic(name, width.get(name, partitions), replicas, topic_configs=everywhere | dict(special.get(name, {})))
        for name in missing
    ]


async def _create(
    admin: AIOKafkaAdminClient,
    topics: Collection[NewTopic],
    *,
    names: TopicNames,
    account: Account,
    validate_only: bool = False,
) -> list[Finding]:
    if not topics:
        return []
    limit = milliseconds(CREATE_LIMIT)
    response = await admin.create_topics(list(topics), timeout_ms=limit, validate_only=validate_only)
    wanted = {topic.name: topic.topic_configs for topic in topics}
    return [
        _needed(_created(name, code, message, settings=wanted[name], account=account), name, names)
        for name, code, message in response.topic_errors
    ]


def _created(name: str, code: int, message: str | None, *, settings: Mapping[str, str], account: Account) -> Finding:
    if code == TopicAlreadyExistsError.errno:  # another process of the service was faster
        return Created(f"The topic {name} was created by another process.", name)
    if not code:
        return Created(f"The topic {name} was created.", name)
    error = for_code(code)
    if error.retriable:
        raise error(message)
    if error in {TopicAuthorizationFailedError, ClusterAuthorizationFailedError}:
        denial = account.denial(MissingRight(Operation.CREATE, Resource.TOPIC, name))
        return Denied(f"The topic {name} doesn't exist. {denial}, or create the topic yourself.", name)
    if error in {InvalidConfigurationError, InvalidReplicationFactorError, PolicyViolationError}:
        wanted = ", ".join(f"{setting}={value}" for setting, value in settings.items())
        return Unsupported(
            f"Kafka refuses to create the topic {name} with {wanted}: {message or error.__name__}. Create the topic "
            "yourself with what this Kafka offers; the journal must have cleanup.policy=compact."
        )
    return Refusal(f"Creating the topic {name} failed: {message or error.__name__}. Create the topic yourself.")


async def _settled(admin: AIOKafkaAdminClient, wanted: Collection[str]) -> Described:
    """Describe topics that exist until every broker knows them, with a leader for each partition, or for so long."""
    seen = await describe(admin, wanted)
    for _ in range(int(CREATE_LIMIT.total_seconds() / AGAIN)):
        if not seen.unsettled:
            break
        await asyncio.sleep(AGAIN)
        seen = await describe(admin, wanted)
    return seen


# ---------------------------------------------------------------- what this Kafka lacks, or denies


def _without_transactions(lacking: Iterable[str]) -> Unsupported:
    return Unsupported(
        f"This Kafka has no transactions (it doesn't know {', '.join(lacking)}): the service can't work with it, since "
        "outcomes, journal and cursor are written in one transaction. docs/kafka-versions.md lists what works."
    )


def _needed(finding: Finding, name: str, names: TopicNames) -> Finding:
    """Return what is found of a topic; as advice where the service can do without the topic."""
    if name != names.control or not isinstance(finding, Refusal | Denied):
        return finding
    return Unavailable(f"{finding.text} Until then no site can be paused; everything else works.", name)


def _hidden(name: str, names: TopicNames, account: Account) -> Denied:
    text = f"{account.denial(names.right(name))}. Without it, Kafka doesn't say whether the topic exists."
    return Denied(text, name)


# ---------------------------------------------------------------- which Kafka


async def different_clusters(connection: KafkaConnection) -> Refusal | None:
    """Ask each bootstrap server for its cluster's id, and refuse several ones; a server that can't say fits.

    A client takes whichever server answers first for the whole Kafka, so the service's clients would end up in
    different ones as soon as one server is away: requests would be read in one, and the journal kept in another.
    """
    servers = connection.bootstrap_servers
    if len(servers) == 1:
        return None
    ids = await asyncio.gather(*[cluster_id(replace(connection, bootstrap_servers=(server,))) for server in servers])
    found: dict[str, list[str]] = {}
    for server, cluster in zip(servers, ids, strict=True):
        if cluster is not None:
            found.setdefault(cluster, []).append(server)
    if len(found) <= 1:
        return None
    listed = "; ".join(f"{', '.join(some)} to {cluster}" for cluster, some in found.items())
    return Refusal(
        f"The bootstrap servers belong to {len(found)} Kafka clusters ({listed}): name those of one cluster in "
        "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS."
    )


async def cluster_id(connection: KafkaConnection) -> str | None:
    """Return the id of the cluster; None: it has none, or could not be asked for within `ASK_CLUSTER`."""
    admin = AIOKafkaAdminClient(**connection.arguments())
    try:
        async with asyncio.timeout(ASK_CLUSTER.total_seconds()):
            await admin.start()
            found = (await admin.describe_cluster())["cluster_id"]
            return None if found is None else str(found)
    except (KafkaError, OSError, TimeoutError):
        return None
    finally:
        await end(admin)
