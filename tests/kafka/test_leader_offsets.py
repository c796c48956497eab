"""Each partition's leader is asked for its offsets, and one that doesn't say costs the others nothing."""

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    BrokerResponseError,
    KafkaConnectionError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.offset import OffsetResetStrategy

from service.kafka.leader_offsets import LEADER_LIMIT, Offsets, ask_leaders
from tests.support.virtual_time import now, virtual

ONE, TWO, THREE = (TopicPartition("requests", number) for number in range(3))
OTHER = TopicPartition("journal", 0)
COMMITTED = 1


class Brokers:
    """A client for brokers that say, of each partition, its offset or an error's code; a silent one never answers."""

    def __init__(
        self,
        leaders: Mapping[TopicPartition, int | None],
        *,
        codes: Mapping[TopicPartition, int] | None = None,
        silent: int | None = None,
        away: int | None = None,
    ) -> None:
        self.topics: set[str] = set()
        self.refreshed = 0
        self.asked: list[tuple[int, Any]] = []
        self._codes = codes or {}
        self._silent = silent
        self._away = away
        self.cluster = SimpleNamespace(
            leader_for_partition=leaders.get,
            broker_metadata=lambda node: SimpleNamespace(host=f"kafka-{node}", port=9092),
        )

    async def add_topic(self, topic: str) -> None:
        self.topics.add(topic)

    def force_metadata_update(self) -> None:
        self.refreshed += 1

    async def send(self, node: int, request: Any) -> SimpleNamespace:
        asked = [(topic, list(places)) for topic, places in request._topics]
        self.asked.append((node, request))
        if node == self._away:
            raise KafkaConnectionError
        if node == self._silent:
            await asyncio.sleep(10 * LEADER_LIMIT.total_seconds())
        return SimpleNamespace(
            topics=[
                (topic, [(number, self._code(topic, number), -1, 100 * node + number) for number, _ in places])
                for topic, places in asked
            ]
        )

    def _code(self, topic: str, number: int) -> int:
        return self._codes.get(TopicPartition(topic, number), 0)

    async def ask(self, *places: TopicPartition) -> Offsets:
        return await ask_leaders(places, OffsetResetStrategy.LATEST, isolation_level=COMMITTED, client=self)


async def test_a_leader_is_asked_once_for_all_its_partitions() -> None:
    brokers = Brokers({ONE: 0, TWO: 2, THREE: 0, OTHER: 0})
    assert await brokers.ask(ONE, TWO, THREE, OTHER) == Offsets({ONE: 0, TWO: 201, THREE: 2, OTHER: 0}, {})
    assert brokers.topics == {"requests", "journal"}
    assert brokers.refreshed == 0
    last = OffsetResetStrategy.LATEST
    assert [(node, request._topics) for node, request in brokers.asked] == [
        (0, [("requests", [(0, last), (2, last)]), ("journal", [(0, last)])]),
        (2, [("requests", [(1, last)])]),
    ]
    assert {request._isolation_level for _, request in brokers.asked} == {COMMITTED}


@pytest.mark.parametrize("leads", [None, -1])
async def test_a_partition_without_a_leader_is_unknown_and_the_brokers_are_asked_who_leads_it(
    leads: int | None,
) -> None:
    brokers = Brokers({ONE: leads, TWO: 2})
    assert await brokers.ask(ONE, TWO) == Offsets({TWO: 201}, {ONE: "no broker leads it"})
    assert brokers.refreshed == 1


@virtual
async def test_a_leader_that_does_not_answer_costs_its_own_partitions_alone_and_no_more_than_its_limit() -> None:
    began = now()
    offsets = await Brokers({ONE: 0, TWO: 2, THREE: 0}, silent=0).ask(ONE, TWO, THREE)
    silent = "its leader, broker 0 (kafka-0:9092), does not answer"
    assert offsets == Offsets({TWO: 201}, {ONE: silent, THREE: silent})
    assert now() - began == LEADER_LIMIT.total_seconds()


async def test_a_leader_that_cannot_be_reached_costs_its_own_partitions_alone() -> None:
    offsets = await Brokers({ONE: 1, TWO: 2}, away=2).ask(ONE, TWO)
    assert offsets == Offsets({ONE: 100}, {TWO: "its leader, broker 2 (kafka-2:9092), does not answer"})


@pytest.mark.parametrize(
    ("error", "refreshed"),
    [(NotLeaderForPartitionError, 1), (NotEnoughReplicasError, 0), (TopicAuthorizationFailedError, 0)],
)
async def test_a_leader_that_refuses_a_partition_says_why_but_for_a_right_that_reading_itself_reports(
    error: type[BrokerResponseError], refreshed: int
) -> None:
    brokers = Brokers({ONE: 1, TWO: 1}, codes={ONE: error.errno})
    offsets = await brokers.ask(ONE, TWO)
    assert offsets.known == {TWO: 101}
    assert brokers.refreshed == refreshed
    if error is TopicAuthorizationFailedError:
        assert offsets.unknown == {}
    else:
        assert offsets.unknown[ONE].startswith(f"its leader, broker 1 (kafka-1:9092), says {error.__name__}")
