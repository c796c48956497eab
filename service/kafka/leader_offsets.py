"""Asks the leaders of partitions for offsets, each once and bounded in time, and says why one is not known.

aiokafka's own questions fail as a whole: one broker that can't be reached, or one partition without a leader, would
leave all others unknown for as long as that lasts.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError, for_code
from aiokafka.protocol.offset import OffsetRequest

from service.kafka.clients import broker
from service.kafka.denials import explain

log = logging.getLogger(__name__)

LEADER_LIMIT = timedelta(seconds=5)
"""How long the leader of partitions may take to say where they begin, or end; then it counts as silent."""


@dataclass(frozen=True, slots=True)
class Offsets:
    """What the leaders of partitions say: offsets; and of each partition of which none is known, why, in words."""

    known: dict[TopicPartition, int]
    unknown: dict[TopicPartition, str]


async def ask_leaders(
    partitions: Iterable[TopicPartition], which: int, *, isolation_level: int, client: AIOKafkaClient
) -> Offsets:
    """Ask the leader of each partition for its first or last offset, as `which` says: an `OffsetResetStrategy`.

    Raises:
        KafkaError: nobody says who leads the partitions.
    """
    partitions = list(partitions)
    for topic in {place.topic for place in partitions}:
        await client.add_topic(topic)
    offsets = Offsets({}, {})
    by_leader: dict[int, list[TopicPartition]] = {}
    for place in partitions:
        leader = client.cluster.leader_for_partition(place)
        if leader is None or leader < 0:
            offsets.unknown[place] = silence(place, client=client)
            client.force_metadata_update()
        else:
            by_leader.setdefault(leader, []).append(place)
    await asyncio.gather(
        *(
            _ask(leader, places, which, offsets, isolation_level=isolation_level, client=client)
            for leader, places in by_leader.items()
        )
    )
    return offsets


async def _ask(
    leader: int,
    places: list[TopicPartition],
    which: int,
    offsets: Offsets,
    *,
    isolation_level: int,
    client: AIOKafkaClient,
) -> None:
    """Ask one broker about the partitions that it leads, and add what it says."""
    by_topic: dict[str, list[tuple[int, int]]] = {}
    for place in places:
        by_topic.setdefault(place.topic, []).append((place.partition, which))
    request = OffsetRequest(-1, isolation_level, list(by_topic.items()))
    try:
        async with asyncio.timeout(LEADER_LIMIT.total_seconds()):
            response = await client.send(leader, request)
    except (KafkaError, TimeoutError) as error:
        log.debug("Asking broker %d for offsets failed: %r", leader, error)
        offsets.unknown.update({place: silence(place, client=client) for place in places})
        return
    for topic, answers in response.topics:
        for number, code, _, offset in answers:
            place, refusal = TopicPartition(topic, number), for_code(code)
            if not code:
                offsets.known[place] = offset
                continue
            if refusal.invalid_metadata:
                client.force_metadata_update()
            if refusal is not TopicAuthorizationFailedError:  # which reading itself reports
                offsets.unknown[place] = f"its leader, {broker(client, leader)}, says {explain(refusal())}"


def silence(place: TopicPartition, *, client: AIOKafkaClient) -> str:
    """Say why nothing is known of a partition's offsets: it has no leader, or its leader does not answer."""
    leader = client.cluster.leader_for_partition(place)
    if leader is None or leader < 0:
        return "no broker leads it"
    return f"its leader, {broker(client, leader)}, does not answer"
