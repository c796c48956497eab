"""The rights at Kafka that the service needs, and requests that show whether its user has them, without side effects.

    topics              Metadata's answer lists what the user may do with each of them
    consumer group      so does DescribeGroups
    transactional ids   Kafka lists nothing for them. EndTxn is asked for, in the name of a producer that nobody is:
                        Kafka looks at the right first, then finds that there is no such producer, and does nothing;
                        also while the id's real producer is in the middle of a transaction (a test looks).
                        InitProducerId would fence that producer.

aiokafka asks for none of this; the requests that it lacks are spelled out here.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    InvalidProducerIdMapping,
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    NoError,
    NotCoordinatorForGroupError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.transaction import EndTxnRequest
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields
from typing_extensions import override

from service.kafka.connection import ops_port_of
from service.kafka.denials import Operation
from service.kafka.topic_descriptions import topic_metadata
from service.kafka.topics import TopicNames

NUMBERS: Final = MappingProxyType(
    {Operation.READ: 3, Operation.WRITE: 4, Operation.DESCRIBE: 8, Operation.DESCRIBE_CONFIGS: 10}
)
"""The operations that the service needs, as Kafka's protocol numbers them."""


def of_topics(names: TopicNames) -> Mapping[str, frozenset[Operation]]:
    """Return what the service does with each topic. To read or to write brings Describe along."""
    wanted: dict[str, frozenset[Operation]] = dict.fromkeys(names.all(), frozenset({Operation.WRITE}))
    wanted[names.requests] = frozenset({Operation.READ})
    wanted[names.journal] = frozenset({Operation.READ, Operation.WRITE})
    if names.control is not None:
        wanted[names.control] = frozenset({Operation.READ})
    return MappingProxyType(wanted)


COORDINATORS_AWAY: Final = (GroupLoadInProgressError, GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError)
"""A coordinator that moves, starts, or is being made for the first time; asked for again until the caller's limit."""

ASK_AGAIN: Final = 0.2
"""Seconds until then."""

GROUP_LIMIT: Final = timedelta(seconds=10)
"""How long the group's coordinator may take to say what is committed."""

NOBODY: Final = 2**63 - 1
"""A producer id that Kafka gives to nobody: it counts from 0."""

UNTOLD: Final = -(2**31)
"""Stands for the rights that Kafka doesn't tell."""

GROUP, TRANSACTION = 0, 1
"""Kinds of coordinators, as Kafka's protocol numbers them."""


@dataclass(frozen=True, slots=True)
class Group:
    """What Kafka says of a consumer group. `allowed` is None where it may not be seen."""

    members: int
    allowed: frozenset[Operation] | None
    strangers: tuple[str, ...] = ()
    """Its members that are not the service's, by client id and host."""


async def allowed_on_topics(client: AIOKafkaClient, names: Iterable[str]) -> dict[str, frozenset[Operation] | None]:
    """Return what the user may do with each topic; None for one that Kafka doesn't show to the user.

    A topic that doesn't exist is in it only if Kafka says what the user might do with it.

    Raises:
        KafkaError: Kafka can't be asked, or (IncompatibleBrokerVersion) is older than 2.8 and doesn't say.
    """
    found: dict[str, frozenset[Operation] | None] = {}
    for topic in await topic_metadata(client, names, rights=True):
        error, bits = for_code(topic["error_code"]), topic["authorized_operations"]
        if error is TopicAuthorizationFailedError:
            found[topic["name"]] = None
        elif error is NoError or (error is UnknownTopicOrPartitionError and bits != UNTOLD):
            found[topic["name"]] = _operations(bits)
    return found


async def group(client: AIOKafkaClient, name: str) -> Group:
    """Return the state of a consumer group, and what the user may do with it.

    Raises:
        KafkaError: it can't be asked for.
    """
    while True:
        try:
            node = await _coordinator(client, GROUP, name)
        except GroupAuthorizationFailedError:
            return Group(0, None)
        ((code, _, _, _, _, members, allowed),) = (await client.send(node, _DescribeGroup(name))).groups
        error = for_code(code)
        if error is GroupAuthorizationFailedError:
            return Group(0, None)
        if error is NoError:
            strangers = [f"{client} at {host}" for _, client, host, *_ in members if ops_port_of(client) is None]
            return Group(len(members), _operations(allowed), tuple(sorted(strangers)))
        if error not in COORDINATORS_AWAY:
            raise error
        await asyncio.sleep(ASK_AGAIN)


async def committed_with_note(client: AIOKafkaClient, name: str, place: TopicPartition) -> tuple[int, str] | None:
    """Return the offset that a group has committed, with its metadata; None: there is none. Also for non-members.

    Raises:
        KafkaError: it can't be asked for.
    """
    try:
        async with asyncio.timeout(GROUP_LIMIT.total_seconds()):
            return await _committed(client, name, place)
    except TimeoutError as error:
        msg = f"the coordinator of the consumer group {name} does not answer"
        raise KafkaTimeoutError(msg) from error


async def _committed(client: AIOKafkaClient, name: str, place: TopicPartition) -> tuple[int, str] | None:
    while True:
        node = await _coordinator(client, GROUP, name)
        answer = await client.send(node, OffsetFetchRequest(name, [(place.topic, [place.partition])]))
        error = for_code(getattr(answer, "error_code", 0))  # with one, no topic is named
        if error is NoError:
            ((_, ((_, offset, note, code),)),) = answer.topics
            if not code:
                return None if offset < 0 else (int(offset), note or "")
            error = for_code(code)
        if error not in COORDINATORS_AWAY:
            raise error
        await asyncio.sleep(ASK_AGAIN)


async def may_transact(client: AIOKafkaClient, transactional_id: str) -> bool:
    """Return whether the user may write in transactions of this id. Neither begins one nor ends one; see the top.

    Raises:
        KafkaError: it can't be asked for.
    """
    while True:
        try:
            node = await _coordinator(client, TRANSACTION, transactional_id)
        except TransactionalIdAuthorizationFailed:
            return False
        answer = await client.send(node, EndTxnRequest(transactional_id, NOBODY, 0, transaction_result=False))
        error = for_code(answer.error_code)
        if error is InvalidProducerIdMapping:
            return True
        if error is TransactionalIdAuthorizationFailed:
            return False
        if error not in COORDINATORS_AWAY:
            raise error
        await asyncio.sleep(ASK_AGAIN)


async def controller_time(client: AIOKafkaClient) -> datetime | None:
    """Return the wall time of Kafka's controller; None if Kafka doesn't say, as without Describe on the cluster.

    Nothing else in Kafka's protocol has a broker's time in it.

    Raises:
        KafkaError: Kafka can't be asked, or (IncompatibleBrokerVersion) has no such request.
    """
    answer = (await client.send(any_node(client), _DescribeQuorum())).to_object()
    leaders = [
        voter["caught_up"]
        for topic in answer["topics"] or ()
        for partition in topic["partitions"]
        for voter in partition["voters"]
        if voter["id"] == partition["leader"] and voter["caught_up"] > 0
    ]
    return datetime.fromtimestamp(leaders[0] / 1000, UTC) if leaders else None


def any_node(client: AIOKafkaClient) -> int:
    """Return a broker to ask.

    Raises:
        NodeNotReadyError: none is known.
    """
    node: int | None = client.get_random_node()
    if node is None:
        raise NodeNotReadyError
    return node


async def _coordinator(client: AIOKafkaClient, kind: int, key: str) -> int:
    while True:
        answer = await client.send(any_node(client), FindCoordinatorRequest(key, kind))
        error: type[KafkaError] = for_code(answer.error_code)
        if error is NoError:
            return int(answer.coordinator_id)
        if error not in COORDINATORS_AWAY:
            raise error
        await asyncio.sleep(ASK_AGAIN)


def _operations(bits: int) -> frozenset[Operation]:
    return frozenset(operation for operation, number in NUMBERS.items() if bits >> number & 1)


# ---------------------------------------------------------------- requests that aiokafka lacks


class _DescribeGroupsStruct(DescribeGroupsRequest_v3):  # type: ignore[misc] # aiokafka is untyped
    """aiokafka's own reads the answer by the schema of the version before, without the rights at its end."""

    RESPONSE_TYPE = DescribeGroupsResponse_v3


class _DescribeGroup(Request[_DescribeGroupsStruct]):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    @override
    def build(self, request_struct_class: type[_DescribeGroupsStruct]) -> _DescribeGroupsStruct:
        return request_struct_class(groups=[self._group], include_authorized_operations=True)


_REPLICAS: Final[Any] = CompactArray(
    ("id", Int32), ("end", Int64), ("fetched", Int64), ("caught_up", Int64), ("tags", TaggedFields)
)


class _DescribeQuorumResponse(Response):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 55
    API_VERSION = 1
    SCHEMA = Schema(
        ("error_code", Int16),
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("high_watermark", Int64),
                        ("voters", _REPLICAS),
                        ("observers", _REPLICAS),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeQuorumStruct(RequestStruct):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 55
    API_VERSION = 1
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _DescribeQuorumResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("partitions", CompactArray(("partition", Int32), ("tags", TaggedFields))),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeQuorum(Request[_DescribeQuorumStruct]):  # type: ignore[misc] # aiokafka is untyped
    """The state of the controllers, of which the leader says its own time."""

    API_KEY = 55

    @override
    def build(self, request_struct_class: type[_DescribeQuorumStruct]) -> _DescribeQuorumStruct:
        return request_struct_class([("__cluster_metadata", [(0, {})], {})], {})
