"""What the brokers say of topics: which exist, which we may not see, their partitions, settings and ids.

A topic that was just made is known to one broker and not yet to the next, so all of them are asked. None makes a topic
by being asked for it.
"""

import asyncio
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from io import BytesIO
from random import shuffle
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedVersionError,
    for_code,
)
from aiokafka.protocol.admin import ApiVersionRequest, DescribeConfigsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields
from typing_extensions import override

ASK_LIMIT: Final = timedelta(seconds=5)
"""For one broker's answer, where others can be asked too."""

NEXT_BROKER: Final = timedelta(seconds=1)
"""How long one broker's answer is waited for before the next is asked, too. An answer takes milliseconds; a broker that
hangs is waited for until its connection or the request times out, 10 s each."""

SETTLES: Final = 100
"""How often a broker is asked for the settings of a topic that another one has described: for ten seconds."""

AGAIN: Final = 0.1
"""Seconds until brokers are asked again for what they don't know yet."""

CLEANUP_POLICY: Final = "cleanup.policy"
"""The setting of a topic that says what Kafka does with its old messages."""

TRANSACTIONS: Final = {22: "InitProducerId", 24: "AddPartitionsToTxn", 26: "EndTxn"}
"""The requests, by their number in Kafka's protocol, that a transactional producer makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic as Kafka describes it.

    `settings` are those that Kafka tells: None where we aren't allowed to see them, or Kafka has no such request.
    """

    partitions: int
    replicas: int
    settings: Mapping[str, str] | None = None

    @property
    def policy(self) -> str | None:
        """What Kafka does with its old messages; None if unknown."""
        return (self.settings or {}).get(CLEANUP_POLICY)

    @property
    def min_insync(self) -> int:
        """How many replicas must have a message before it is acknowledged; 0 if unknown."""
        return self._number("min.insync.replicas")

    @property
    def largest(self) -> int:
        """The longest message it takes, in bytes; 0 if unknown."""
        return self._number("max.message.bytes")

    def flag(self, name: str) -> bool:
        """Return whether a setting is on."""
        return (self.settings or {}).get(name) == "true"

    def _number(self, name: str) -> int:
        text = (self.settings or {}).get(name, "")
        return int(text) if text.isdecimal() else 0


@dataclass(slots=True)
class Described:
    """What the brokers say of some topics, together."""

    topics: dict[str, Topic] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    """Topics that we may not see: whether they exist, brokers don't tell then."""
    unsettled: set[str] = field(default_factory=set)
    """Topics that a broker doesn't know yet, or that have partitions without a leader."""


async def describe(admin: AIOKafkaAdminClient, names: Iterable[str]) -> Described:
    """Ask all brokers; what any of them knows exists.

    Raises:
        KafkaError: none of them answers.
    """
    names = list(names)
    found = Described()
    for answer in await _ask_all(admin, MetadataRequest(names, allow_auto_topic_creation=False)):
        for topic in answer.to_object()["topics"]:
            _take(found, topic)
    found.hidden -= found.topics.keys()
    settings = await _settings(admin._client, found.topics)
    found.topics = {name: replace(topic, settings=settings.get(name)) for name, topic in found.topics.items()}
    return found


def _take(found: Described, topic: Mapping[str, Any]) -> None:
    name, code, partitions = topic["topic"], topic["error_code"], topic["partitions"]
    if code == TopicAuthorizationFailedError.errno:
        found.hidden.add(name)
    elif partitions:
        replicas = min(len(partition["replicas"]) for partition in partitions)
        known = found.topics.get(name)
        if known is None or known.partitions <= len(partitions):
            found.topics[name] = Topic(partitions=len(partitions), replicas=replicas)
    if code or not partitions or any(partition["leader"] < 0 for partition in partitions):
        found.unsettled.add(name)


async def _ask_all(admin: AIOKafkaAdminClient, request: Any) -> list[Any]:  # noqa: ANN401 - aiokafka is untyped
    async def ask(node: int) -> Any:  # noqa: ANN401
        async with asyncio.timeout(ASK_LIMIT.total_seconds()):
            return await admin._client.send(node, request)

    nodes = [broker.nodeId for broker in admin._client.cluster.brokers()]
    answers = await asyncio.gather(*map(ask, nodes), return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    if len(errors) < len(answers):
        return [answer for answer in answers if not isinstance(answer, BaseException)]
    if errors:
        raise errors[0]
    msg = "no broker is known"
    raise KafkaConnectionError(msg)


async def _settings(client: AIOKafkaClient, names: Iterable[str]) -> dict[str, Mapping[str, str] | None]:
    """Return the topics' settings; None where Kafka tells none. Entries without a value are left out."""
    resources = [(ConfigResourceType.TOPIC, name, None) for name in names]
    if not resources:
        return {}
    found: list[Any] = []
    for _ in range(SETTLES):
        try:
            found = (await _any_answer(client, DescribeConfigsRequest(resources))).resources
        except (IncompatibleBrokerVersion, UnsupportedVersionError, NotImplementedError):
            return {}
        if all(code != UnknownTopicOrPartitionError.errno for code, *_ in found):
            break
        await asyncio.sleep(AGAIN)  # the broker that was asked has not heard of a new topic yet
    return {
        name: None if code else {entry[0]: entry[1] for entry in entries or () if entry[1]}
        for code, _message, _type, name, entries in found
    }


async def missing_requests(admin: AIOKafkaAdminClient) -> list[str]:
    """Return the requests of transactions that this Kafka doesn't know; nothing where it doesn't say what it knows."""
    try:
        answers = await _ask_all(admin, ApiVersionRequest())
    except (KafkaError, OSError, TimeoutError):
        return []
    known = {api for answer in answers for api, *_ in answer.api_versions}
    return [name for api, name in TRANSACTIONS.items() if api not in known]


async def partitions_of(client: AIOKafkaClient, name: str) -> set[int]:
    """Return the partitions that a topic has now; none where there is no such topic, or none that we may see.

    The brokers are asked for this topic alone. aiokafka's own way asks for all topics of the cluster: with 20,000
    partitions, decoding the answer holds the event loop for 180 ms (measured).

    Raises:
        KafkaError: no broker answers.
    """
    response = await _any_answer(client, MetadataRequest([name], allow_auto_topic_creation=False))
    topics = response.to_object()["topics"]
    return {partition["partition"] for topic in topics for partition in topic["partitions"]}


async def _any_answer(client: AIOKafkaClient, request: Any) -> Any:  # noqa: ANN401 - aiokafka is untyped
    """Return the answer of the first broker that answers a request, which any broker can.

    They are asked in random order: the next one as soon as one fails, or lets us wait for `NEXT_BROKER`. With one after
    another, each broker that hangs would take 20 s.

    Raises:
        KafkaError: no broker answers; the last one's error.
    """
    error: BaseException = NodeNotReadyError()
    nodes = [broker.nodeId for broker in client.cluster.brokers()]
    shuffle(nodes)
    asked: set[asyncio.Task[Any]] = set()
    try:
        while nodes or asked:
            if nodes:
                asked.add(asyncio.create_task(client.send(nodes.pop(), request)))
            limit = NEXT_BROKER.total_seconds() if nodes else None
            done, asked = await asyncio.wait(asked, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if answers := [one.result() for one in done if one.exception() is None]:
                return answers[0]
            for one in done:
                error = one.exception() or error
                if not isinstance(error, KafkaError):
                    raise error
    finally:
        for one in asked:
            one.cancel()
    raise error


async def cleanup_policy(client: AIOKafkaClient, name: str) -> str | None:
    """Return what Kafka does with a topic's old messages; None where it doesn't say.

    It doesn't where the right DescribeConfigs is missing, where it has no such request, and where the broker that is
    asked has not heard of the topic yet.

    Raises:
        KafkaError: Kafka can't be asked.
    """
    request = DescribeConfigsRequest([(ConfigResourceType.TOPIC, name, [CLEANUP_POLICY])])
    try:
        response = await _any_answer(client, request)
    except (IncompatibleBrokerVersion, UnsupportedVersionError, NotImplementedError):
        return None
    ((code, _message, _type, _name, entries),) = response.resources
    return None if code else {entry[0]: entry[1] for entry in entries or ()}.get(CLEANUP_POLICY)


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
    response = await _any_answer(client, _MetadataRequest(names, rights=rights))
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
        raise for_code(topic["error_code"])(name)
    identity: str | None = topic["topic_id"]
    return identity
