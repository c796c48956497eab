"""A Kafka of three brokers with rights, shared by the tests of a session, and what is done to it and its brokers."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import AlterPartitionReassignmentsRequest, CreateAclsRequest, DeleteAclsRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest

from service.sandbox.kafka import LOGIN, Broker, EmbeddedKafka
from service.sandbox.kafka_jars import KAFKA_VERSION
from tests.support.grants import Grant, acl_request
from tests.support.kafka_requests import TIMEOUT_MS, AlterQuotas, AlterTopic, ElectLeaders, codes

T = TypeVar("T")

BROKERS: Final = 3

SERVICE: Final = "vm-sync"
OPERATOR: Final = "vm-sync-operator"
PASSWORDS: Final = {SERVICE: "service-secret", OPERATOR: "operator-secret"}
"""Those who log in; they have no rights but those that a test gives them."""

SETTLE_LIMIT: Final = 120.0
"""Seconds until all replicas have caught up after what was done to a broker; on a busy machine."""

ANSWERS_WITHIN: Final = 5_000
"""Milliseconds after which another broker is asked: the one that was asked may be frozen."""

_OF_THE_TOPIC: Final = 1
"""Where a setting comes from, as DescribeConfigs says it."""

_DONE, _DONE_BEFORE = 0, 84
"""Kafka's code for what is done, and that of an election that isn't needed."""


class Cluster:
    """Three brokers, each of which is a controller as well; whoever comes without a login may do everything.

    All that starts or ends a broker runs in one thread of its own, since a broker dies with the thread that started it.
    A test that harms the cluster leaves it whole: `await cluster.heal()`. What is asked of Kafka is asked again, of
    another broker, until one answers: others may be away.
    """

    def __init__(self, kafka: EmbeddedKafka | None = None, *, version: str = KAFKA_VERSION) -> None:
        self.kafka = kafka or EmbeddedKafka(brokers=BROKERS, version=version, users=PASSWORDS, authorizer=True)
        self._thread = ThreadPoolExecutor(1, "kafka")

    def open(self) -> None:
        """Start it. Blocking.

        Raises:
            KafkaError: it can't be had, or doesn't start.
        """
        self._thread.submit(self.kafka.start).result()

    def close(self) -> None:
        """End it, and remove its data. Blocking."""
        self._thread.submit(self.kafka.close).result()
        self._thread.shutdown()

    @property
    def bootstrap(self) -> str:
        """Where clients find it without a login, comma-separated."""
        return self.kafka.bootstrap

    @property
    def login(self) -> str:
        """Where users log in, comma-separated."""
        return self.kafka.address(LOGIN)

    def broker(self, number: int) -> Broker:
        """Return the broker with this id, 1 to 3."""
        return self.kafka.brokers[number]

    async def run(self, do: Callable[[], None]) -> None:
        """Do something to a broker: `await cluster.run(cluster.broker(2).restart)`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, do)

    # ------------------------------------------------------------ who is who

    async def leader(self, topic: str, partition: int = 0) -> Broker:
        """Return the broker that leads a partition by now."""

        async def ask(admin: AIOKafkaAdminClient) -> int:
            (found,) = await admin.describe_topics([topic])
            (number,) = [one["leader"] for one in found["partitions"] if one["partition"] == partition]
            return int(number)

        return self.broker(await self._until_answered(ask, accept=lambda number: number in self.kafka.brokers))

    async def coordinator(self, group: str) -> Broker:
        """Return the broker that coordinates a consumer group."""
        return await self._coordinating(group, kind=0)

    async def transaction_coordinator(self, transactional_id: str) -> Broker:
        """Return the broker that coordinates the transactions of an id."""
        return await self._coordinating(transactional_id, kind=1)

    async def _coordinating(self, name: str, *, kind: int) -> Broker:
        async def ask(admin: AIOKafkaAdminClient) -> Any:
            return await admin._send_request(FindCoordinatorRequest(name, kind))

        answer = await self._until_answered(ask, accept=lambda answer: not answer.error_code)
        return self.broker(answer.coordinator_id)

    async def replicas(self, topic: str) -> dict[int, list[int]]:
        """Return the brokers of each partition of a topic; the first one is preferred as leader."""

        async def ask(admin: AIOKafkaAdminClient) -> dict[int, list[int]]:
            (found,) = await admin.describe_topics([topic])
            return {one["partition"]: list(one["replicas"]) for one in found["partitions"]}

        return await self._until_answered(ask, accept=bool)

    # ------------------------------------------------------------ what operators do

    async def elect_leaders(self, *topics: str) -> None:
        """Let the preferred replica lead each partition of these topics."""
        partitions = {topic: sorted(await self.replicas(topic)) for topic in topics}
        await self._done(ElectLeaders(partitions))

    async def reassign(self, topic: str, replicas: Mapping[int, Sequence[int]]) -> None:
        """Move partitions of a topic to these brokers; returns once Kafka has begun."""
        moved: list[Any] = [(partition, list(brokers), {}) for partition, brokers in replicas.items()]
        await self._done(AlterPartitionReassignmentsRequest(TIMEOUT_MS, [(topic, moved, {})], {}))

    async def alter_topic(self, topic: str, **settings: str | None) -> None:
        """Change settings of a topic, `max_message_bytes="16384"`; None: back to the broker's."""
        await self._done(AlterTopic(topic, {name.replace("_", "."): value for name, value in settings.items()}))

    async def topic_settings(self, topic: str, *names: str) -> dict[str, str | None]:
        """Return settings of a topic, for `alter_topic` to give them back; None: it has the broker's."""

        async def ask(admin: AIOKafkaAdminClient) -> dict[str, str | None]:
            wanted = {name.replace("_", "."): name for name in names}
            (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            ((code, _, _, _, entries),) = answer.resources
            return (
                {}
                if code
                else {
                    wanted[name]: value if source == _OF_THE_TOPIC else None
                    for name, value, _, source, *_ in entries
                    if name in wanted
                }
            )

        return await self._until_answered(ask, accept=bool)

    async def grant(self, user: str, *grants: Grant) -> None:
        """Give rights to a user."""
        for grant in grants:
            await self._done(acl_request(CreateAclsRequest, grant, f"User:{user}"))

    async def take(self, user: str, *grants: Grant) -> None:
        """Take rights from a user."""
        for grant in grants:
            await self._done(acl_request(DeleteAclsRequest, grant, f"User:{user}"))

    async def throttle(self, user: str, **quotas: float | None) -> None:
        """Limit a user, by `producer_byte_rate` and the like; None: no limit any more."""
        await self._done(AlterQuotas(user, quotas))

    async def delete_read_records(self, topic: str, *, group: str) -> int:
        """Delete what a group has committed as read; return how many partitions it had committed."""

        async def delete(admin: AIOKafkaAdminClient) -> int:
            offsets = await admin.list_consumer_group_offsets(group)
            before = {
                TopicPartition(place.topic, place.partition): RecordsToDelete(before_offset=found.offset)
                for place, found in offsets.items()
                if place.topic == topic and found.offset > 0
            }
            if before:
                await admin.delete_records(before)
            return len(before)

        return await self._until_answered(delete, accept=lambda _: True)

    async def _done(self, request: Any) -> None:
        async def ask(admin: AIOKafkaAdminClient) -> set[int]:
            return set(codes(await admin._send_request(request)))

        await self._until_answered(ask, accept=lambda said: said <= {_DONE, _DONE_BEFORE})

    async def _until_answered(
        self, ask: Callable[[AIOKafkaAdminClient], Awaitable[T]], *, accept: Callable[[T], bool]
    ) -> T:
        until = time.monotonic() + SETTLE_LIMIT
        while True:
            answer: object = None
            try:
                async with Admin(self.bootstrap) as admin:
                    found = await ask(admin)
                    if accept(found):
                        return found
                    answer = found
            except (KafkaError, TimeoutError) as error:
                answer = error
            assert time.monotonic() < until, repr(answer)
            await asyncio.sleep(0.1)

    # ------------------------------------------------------------ whole again

    async def heal(self) -> None:
        """Start what doesn't run, thaw what is frozen, and wait until every replica has caught up."""
        for broker in self.kafka.brokers.values():
            broker.thaw()
        await self.run(self.kafka.start)
        await self._until_answered(self._behind, accept=lambda behind: not behind)

    async def _behind(self, admin: AIOKafkaAdminClient) -> list[str]:
        if len((await admin.describe_cluster())["brokers"]) < len(self.kafka.brokers):
            return ["a broker"]
        return [
            f"{topic['topic']}-{partition['partition']}"
            for topic in await admin.describe_topics()
            for partition in topic["partitions"]
            if partition["leader"] < 0 or len(partition["isr"]) < len(partition["replicas"])
        ]


class Admin:
    """An admin client for a moment."""

    def __init__(self, bootstrap: str) -> None:
        self._client = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=ANSWERS_WITHIN)

    async def __aenter__(self) -> AIOKafkaAdminClient:
        await self._client.start()
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
