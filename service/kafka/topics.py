"""Creates missing topics, and checks the configuration of existing ones.

It also reads Kafka's topic id, which distinguishes a topic from an earlier one of the same name. It never changes or
deletes an existing topic.
"""

import asyncio
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from types import MappingProxyType
from typing import Any, TypeAlias

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, NodeNotReadyError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields
from typing_extensions import override

from service.kafka.clients import end
from service.kafka.connection import KafkaConnection
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
"""For the cluster's id, which only a line of the log is about."""

CREATE_LIMIT = timedelta(seconds=15)
"""How long the making of topics may take, and then their becoming visible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicNames:
    """The names of the topics. `completed` and `failed` may be the same; `progress` None: not published."""

    requests: str
    completed: str
    failed: str
    dead_letter: str
    journal: str
    progress: str | None = None

    def all(self) -> tuple[str, ...]:
        """Return each name once, in the order of the contract."""
        names = (self.requests, self.completed, self.failed, self.dead_letter, self.journal, self.progress)
        return tuple(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True, slots=True)
class Refusal:
    """The service can't work with these topics; the text says what to do."""

    text: str


@dataclass(frozen=True, slots=True)
class Advice:
    """The service can work, but with a risk that the text describes."""

    text: str


@dataclass(frozen=True, slots=True)
class Created:
    """A missing topic was created."""

    text: str


Finding: TypeAlias = Refusal | Advice | Created


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic as Kafka describes it. `settings` is None if the right to read them is missing."""

    partitions: int
    replicas: int
    settings: Mapping[str, str] | None = None

    @property
    def policy(self) -> str | None:
        """The cleanup policy; None if unknown."""
        return (self.settings or {}).get("cleanup.policy")

    @property
    def min_insync(self) -> int:
        """How many replicas must have a message before it is acknowledged; 0 if unknown."""
        return int((self.settings or {}).get("min.insync.replicas", 0))

    @property
    def largest(self) -> int:
        """The longest message it takes, in bytes; 0 if unknown."""
        return int((self.settings or {}).get("max.message.bytes", 0))

    def flag(self, name: str) -> bool:
        """Return whether a setting is on."""
        return (self.settings or {}).get(name) == "true"


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
    admin = AIOKafkaAdminClient(**connection.arguments())
    try:
        await admin.start()
        topics = await describe(admin, names)
        created = await _create_missing(admin, topics, names=names, partitions=partitions) if create else []
        if created:
            topics = await describe(admin, names)
        refused = any(isinstance(finding, Refusal) for finding in created)
        return created if refused else [*created, *judge(topics, names=names)]
    finally:
        await end(admin)


def judge(topics: Mapping[str, Topic], *, names: TopicNames) -> list[Finding]:
    """Compare the topics that exist, by name, with what the service needs."""
    missing = [absent(name) for name in names.all() if name not in topics]
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
    if journal and journal.policy not in {None, "compact"}:
        findings.append(
            Refusal(
                f"The journal {names.journal} has cleanup.policy={journal.policy}, so Kafka would delete requests that "
                "are still in flight: set it to compact."
            )
        )
    findings += [
        Refusal(
            f"Nothing can be written to the topic {name}: its min.insync.replicas={topic.min_insync} is greater than "
            f"its {topic.replicas} replicas. Lower min.insync.replicas, or add replicas."
        )
        for name, topic in needed.items()
        if name != names.requests and topic.min_insync > topic.replicas
    ]
    return [*findings, *_advice(needed, names)]


def _advice(needed: Mapping[str, Topic], names: TopicNames) -> Iterable[Advice]:
    if few := [name for name, topic in needed.items() if topic.replicas < REPLICAS]:
        yield Advice(f"Fewer than {REPLICAS} replicas, so messages can be lost with their brokers: {', '.join(few)}.")
    if unseen := [name for name, topic in needed.items() if topic.settings is None]:
        yield Advice(f"The topics' settings can't be checked without the right DescribeConfigs: {', '.join(unseen)}.")
    written = {name: topic for name, topic in needed.items() if name != names.requests}
    if lonely := [name for name, topic in written.items() if topic.replicas >= REPLICAS and topic.min_insync == 1]:
        yield Advice(
            "min.insync.replicas=1, so a message may be on only one broker when it is acknowledged: "
            f"{', '.join(lonely)}."
        )
    if unclean := [name for name, topic in needed.items() if topic.flag("unclean.leader.election.enable")]:
        yield Advice(f"Unclean leader election is on, which loses acknowledged messages: {', '.join(unclean)}.")
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
    if names.progress is not None:
        others.append(names.progress)
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


async def describe(admin: AIOKafkaAdminClient, names: TopicNames) -> dict[str, Topic]:
    """Return those of the topics that exist, and that we are allowed to see. Raises KafkaError."""
    # Asked for by name, missing topics would be made by the brokers, with one partition: aiokafka allows it, and
    # brokers do by default. So ask for all.
    seen = {
        topic["topic"]: topic["partitions"]
        for topic in await admin.describe_topics()
        if topic["topic"] in names.all() and topic["partitions"]
    }
    settings = await _settings(admin, seen)
    return {
        name: Topic(
            partitions=len(partitions),
            replicas=min(len(partition["replicas"]) for partition in partitions),
            settings=settings[name],
        )
        for name, partitions in seen.items()
    }


async def _settings(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, Mapping[str, str] | None]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    if not resources:
        return {}
    return {
        name: None if code else {entry[0]: entry[1] for entry in entries}
        for response in await admin.describe_configs(resources)
        for code, _message, _type, name, entries in response.resources
    }


async def refused_creations(
    admin: AIOKafkaAdminClient,
    missing: Sequence[str],
    topics: Mapping[str, Topic],
    *,
    names: TopicNames,
    partitions: int,
) -> list[Refusal]:
    """Return why Kafka would not create the missing topics; none of them is created by asking. Raises KafkaError."""
    new = await _new_topics(admin, missing, topics, names=names, partitions=partitions)
    response = await admin.create_topics(new, timeout_ms=milliseconds(CREATE_LIMIT), validate_only=True)
    findings = [_created(name, code, message) for name, code, message in response.topic_errors]
    return [finding for finding in findings if isinstance(finding, Refusal)]


async def _create_missing(
    admin: AIOKafkaAdminClient, topics: Mapping[str, Topic], *, names: TopicNames, partitions: int
) -> list[Finding]:
    missing = [name for name in names.all() if name not in topics]
    if not missing:
        return []
    new = await _new_topics(admin, missing, topics, names=names, partitions=partitions)
    response = await admin.create_topics(new, timeout_ms=milliseconds(CREATE_LIMIT))
    findings = [_created(name, code, message) for name, code, message in response.topic_errors]
    if not any(isinstance(finding, Refusal) for finding in findings):
        await _visible(admin, missing)
    return findings


async def _new_topics(
    admin: AIOKafkaAdminClient,
    missing: Iterable[str],
    topics: Mapping[str, Topic],
    *,
    names: TopicNames,
    partitions: int,
) -> list[NewTopic]:
    replicas = min(REPLICAS, len((await admin.describe_cluster())["brokers"]))
    twin = topics.get(names.requests) or topics.get(names.journal)
    paired = twin.partitions if twin else partitions
    everywhere = {
        "min.insync.replicas": str(max(1, replicas - 1)),
        "unclean.leader.election.enable": "false",
    }
    special = {
        names.journal: JOURNAL_SETTINGS,
        names.dead_letter: {"max.message.bytes": str(BROKER_MESSAGE_LIMIT + HEADER_ROOM)},
    }
    if (requests := topics.get(names.requests)) is not None and requests.largest:
        special[names.dead_letter] = {"max.message.bytes": str(requests.largest + HEADER_ROOM)}
    return [
        NewTopic(
            name,
            paired if name in {names.requests, names.journal} else partitions,
            replicas,
            topic_configs=everywhere | dict(special.get(name, {})),
        )
        for name in missing
    ]


def _created(name: str, code: int, message: str | None) -> Finding:
    if code == TopicAlreadyExistsError.errno:  # another process of the service was faster
        return Created(f"The topic {name} was created by another process.")
    if code:
        error = for_code(code)
        if error.retriable:
            raise error(message)
        return Refusal(
            f"Creating the topic {name} failed: {message or error.__name__}. Create the topic yourself, or grant "
            "Create to the service's user."
        )
    return Created(f"The topic {name} was created.")


async def _visible(admin: AIOKafkaAdminClient, names: Iterable[str]) -> None:
    """Wait until the brokers' metadata has each topic with a leader for each partition."""
    waiting = set(names)
    async with asyncio.timeout(CREATE_LIMIT.total_seconds()):
        while waiting:
            for topic in await admin.describe_topics():
                if topic["partitions"] and all(partition["leader"] >= 0 for partition in topic["partitions"]):
                    waiting.discard(topic["topic"])
            if waiting:
                await asyncio.sleep(0.05)


# ---------------------------------------------------------------- a topic's id


class _Uuid:
    """Sixteen bytes, as Kafka's tools write them; None: the broker knows none."""

    @staticmethod
    def encode(value: bytes) -> bytes:
        return value

    @staticmethod
    def decode(data: BytesIO) -> str | None:
        value = data.read(16)
        return None if value == bytes(16) else urlsafe_b64encode(value).decode().rstrip("=")


class _MetadataResponse(Response):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequestStruct(RequestStruct):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataRequestStruct]):  # type: ignore[misc] # aiokafka is untyped
    """Topics' metadata in the first version that has their ids; aiokafka's own end before that."""

    API_KEY = 3

    def __init__(self, topics: Iterable[str], *, rights: bool) -> None:
        self._topics = list(topics)
        self._rights = rights

    @override
    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        flags = (False, False, self._rights)  # not made by asking, and nobody's rights on the cluster wanted
        return request_struct_class([(bytes(16), topic, {}) for topic in self._topics], *flags, {})


async def topic_metadata(client: AIOKafkaClient, names: Iterable[str], *, rights: bool = False) -> list[dict[str, Any]]:
    """Return what Kafka says of topics, a missing or hidden one included, as its `error_code`; makes none by asking.

    Raises:
        KafkaError: Kafka can't be asked.
        IncompatibleBrokerVersion, NotImplementedError: the brokers are older than 2.8, or not Apache Kafka.
    """
    node = client.get_random_node()
    if node is None:
        raise NodeNotReadyError
    response = await client.send(node, _MetadataRequest(names, rights=rights))
    topics: list[dict[str, Any]] = response.to_object()["topics"]
    return topics


async def topic_id(client: AIOKafkaClient, name: str) -> str | None:
    """Return a topic's id, as Kafka's tools write it: a topic that is deleted and created again has a different id.

    None: the brokers (before 2.8, or not Apache Kafka) know none.

    Raises:
        KafkaError: Kafka can't be asked, or has no such topic.
    """
    try:
        (topic,) = await topic_metadata(client, [name])
    except (IncompatibleBrokerVersion, NotImplementedError):
        return None
    if topic["error_code"]:
        raise for_code(topic["error_code"])
    identity: str | None = topic["topic_id"]
    return identity


async def cluster_id(connection: KafkaConnection) -> str | None:
    """Return the id of the cluster; None: it could not be asked for within `ASK_CLUSTER`."""
    admin = AIOKafkaAdminClient(**connection.arguments())
    try:
        async with asyncio.timeout(ASK_CLUSTER.total_seconds()):
            await admin.start()
            return str((await admin.describe_cluster())["cluster_id"])
    except (KafkaError, OSError, TimeoutError):
        return None
    finally:
        await end(admin)
