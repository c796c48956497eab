"""A Kafka of three brokers with rights, shared by the tests of a session, and what one does to single brokers of it."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.coordination import FindCoordinatorRequest

from service.sandbox.kafka import LOGIN, Broker, EmbeddedKafka
from service.sandbox.kafka_jars import KAFKA_VERSION

BROKERS: Final = 3

SERVICE: Final = "vm-sync"
OPERATOR: Final = "vm-sync-operator"
PASSWORDS: Final = {SERVICE: "service-secret", OPERATOR: "operator-secret"}
"""Those who log in; they have no rights but those that a test gives them."""

SETTLE_LIMIT: Final = 120.0
"""Seconds until all replicas have caught up after what was done to a broker; on a busy machine."""


class Cluster:
    """Three brokers, each of which is a controller as well; whoever comes without a login may do everything.

    All that starts or ends a broker runs in one thread of its own, since a broker dies with the thread that started it.
    A test that harms the cluster leaves it whole: `await cluster.heal()`.
    """

    def __init__(self, *, version: str = KAFKA_VERSION) -> None:
        self.kafka = EmbeddedKafka(brokers=BROKERS, version=version, users=PASSWORDS, authorizer=True)
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

    async def leader(self, topic: str, partition: int = 0) -> Broker:
        """Return the broker that leads a partition by now."""
        async with _Admin(self.bootstrap) as admin:
            (found,) = await admin.describe_topics([topic])
        (number,) = [one["leader"] for one in found["partitions"] if one["partition"] == partition]
        return self.broker(number)

    async def coordinator(self, group: str) -> Broker:
        """Return the broker that coordinates a consumer group."""
        return await self._coordinating(group, kind=0)

    async def transaction_coordinator(self, transactional_id: str) -> Broker:
        """Return the broker that coordinates the transactions of an id."""
        return await self._coordinating(transactional_id, kind=1)

    async def _coordinating(self, name: str, *, kind: int) -> Broker:
        until = time.monotonic() + SETTLE_LIMIT
        async with _Admin(self.bootstrap) as admin:
            while True:
                answer = await admin._send_request(FindCoordinatorRequest(name, kind))
                if not answer.error_code:
                    return self.broker(answer.coordinator_id)
                assert time.monotonic() < until, answer
                await asyncio.sleep(0.1)

    async def heal(self) -> None:
        """Start what doesn't run, thaw what is frozen, and wait until every replica has caught up."""
        for broker in self.kafka.brokers.values():
            broker.thaw()
        await self.run(self.kafka.start)
        until = time.monotonic() + SETTLE_LIMIT
        async with _Admin(self.bootstrap) as admin:
            while behind := await _behind(admin):
                assert time.monotonic() < until, f"replicas are behind: {behind}"
                await asyncio.sleep(0.1)


async def _behind(admin: AIOKafkaAdminClient) -> list[str]:
    if len((await admin.describe_cluster())["brokers"]) < BROKERS:
        return ["a broker"]
    return [
        f"{topic['topic']}-{partition['partition']}"
        for topic in await admin.describe_topics()
        for partition in topic["partitions"]
        if partition["leader"] < 0 or len(partition["isr"]) < len(partition["replicas"])
    ]


class _Admin:
    """An admin client for a moment."""

    def __init__(self, bootstrap: str) -> None:
        self._client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)

    async def __aenter__(self) -> AIOKafkaAdminClient:
        await self._client.start()
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
