"""What is done to a Kafka of several brokers in a run of chaos: to one of them, chosen by whom it hits, and to topics.

Each is over when it returns, and the cluster is whole again. Brokers are away one at a time, but for a majority that is
killed on purpose. With three replicas, of which two must have a record, nothing that was acknowledged may be lost.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from service.sandbox.kafka import Broker, KafkaError
from tests.stress.routes import Routes
from tests.stress.schedule import Happening, What, Whom
from tests.support.cluster import SERVICE, Cluster
from tests.support.grants import Grant, Operation, Pattern, Resource, grants_of
from tests.support.process_harness import Ledger

WRONG_CLOCK: Final = 10.0
"""Seconds that a broker's clock is wrong."""

SETTINGS: Final[Sequence[tuple[str, Mapping[str, str]]]] = (
    ("journal", {"max_message_bytes": "16384"}),
    ("completed", {"max_message_bytes": "16384"}),
    ("journal", {"segment_bytes": "1048576", "segment_ms": "1000", "min_cleanable_dirty_ratio": "0.01"}),
    ("requests", {"retention_ms": "3600000"}),
    ("requests", {"min_insync_replicas": "3"}),
    ("completed", {"compression_type": "zstd"}),
    ("failed", {"retention_bytes": "1073741824"}),
)
"""Topics, and settings that are none too small for what the service writes; what is acknowledged stays."""

QUOTAS: Final[Sequence[tuple[str, float]]] = (
    ("producer_byte_rate", 50_000.0),
    ("consumer_byte_rate", 50_000.0),
    ("request_percentage", 5.0),
)

KAFKAS_OWN: Final = ("__consumer_offsets", "__transaction_state")
"""Topics whose leaders are coordinators."""

FAKETIME: Final = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
"""A library that gives a process another wall clock, where it is installed."""


def service_grants(prefix: str) -> list[Grant]:
    """Return what the service is granted in a run: the overlay's rights, and those to create topics.

    What has another name after a run's ending begins with the first one's name.
    """
    create = Grant(Resource.topic, f"{prefix}.", Pattern.prefix, Operation.Create)
    again = [
        Grant(grant.resource, f"{grant.name}.second", grant.pattern, grant.operation)
        for grant in grants_of(SERVICE)
        if grant.name in {SERVICE, f"{SERVICE}.journal"}
    ]
    again += [
        Grant(grant.resource, f"{SERVICE}.journal.second-", grant.pattern, grant.operation)
        for grant in grants_of(SERVICE)
        if grant.resource is Resource.transactionalId
    ]
    return [create, *(grant.under(prefix) for grant in (*grants_of(SERVICE), *again))]


class BrokerFaults:
    """See the module. `away` is held while brokers are away; `note` is told on whom the choice fell."""

    def __init__(
        self, cluster: Cluster, *, routes: Routes, ledger: Ledger, away: asyncio.Lock, note: Callable[[str], None]
    ) -> None:
        self._cluster = cluster
        self._routes = routes
        self._ledger = ledger
        self._away = away
        self.note = note
        self._grants = [grant.under(ledger.prefix) for grant in grants_of(SERVICE)]

    async def do(self, one: Happening) -> None:
        """Do what happens."""
        does: Mapping[What, Callable[[Happening], Awaitable[None]]] = {
            What.BROKER_RESTARTS: self._restart,
            What.BROKER_DIES: self._kill,
            What.BROKER_FREEZES: self._freeze,
            What.MAJORITY_DIES: self._kill_two,
            What.BROKER_CLOCK: self._wrong_clock,
            What.PARTITIONS_MOVED: self._move,
        }
        if one.what in does:
            async with self._away:
                await does[one.what](one)
                await self._cluster.heal()
            return
        others: Mapping[What, Callable[[Happening], Awaitable[None]]] = {
            What.LEADERS_ELECTED: self._elect,
            What.RIGHT_TAKEN: self._take_a_right,
            What.TOPIC_SETTINGS: self._change_settings,
            What.RECORDS_DELETED: self._delete_what_was_read,
            What.THROTTLED: self._throttle,
        }
        await others[one.what](one)

    # ------------------------------------------------------------ brokers

    async def choose(self, whom: Whom | None, who: float) -> Broker:
        """Return the broker that does this now; `who` from 0 to 1 chooses a partition."""
        partition = int(who * self._ledger.partitions)
        topics = self._ledger.topics
        match whom:
            case Whom.GROUP:
                return await self._cluster.coordinator(self._ledger.group)
            case Whom.TRANSACTIONS:
                return await self._cluster.transaction_coordinator(f"{topics['journal']}-{partition}")
            case Whom.JOURNAL:
                return await self._cluster.leader(topics["journal"], partition)
            case Whom.COMPLETED:
                return await self._cluster.leader(topics["completed"], partition)
            case _:
                return await self._cluster.leader(topics["requests"], partition)

    async def _chosen(self, one: Happening) -> Broker:
        broker = await self.choose(one.whom, one.who)
        self.note(f"{one.what}: {broker.id}, {one.whom}")
        return broker

    async def _restart(self, one: Happening) -> None:
        broker = await self._chosen(one)
        await self.stop(broker)
        await asyncio.sleep(one.seconds)
        await self.start(broker)

    async def _kill(self, one: Happening) -> None:
        broker = await self._chosen(one)
        await self.kill(broker)
        await asyncio.sleep(one.seconds)
        await self.start(broker)

    async def _freeze(self, one: Happening) -> None:
        broker = await self._chosen(one)
        broker.freeze()
        try:
            await asyncio.sleep(one.seconds)
        finally:
            broker.thaw()

    async def _kill_two(self, one: Happening) -> None:
        broker = await self._chosen(one)
        second = next(other for other in self._cluster.kafka.brokers.values() if other is not broker)
        await asyncio.gather(self.kill(broker), self.kill(second))
        await asyncio.sleep(one.seconds)
        await self._cluster.run(self._cluster.kafka.start)
        await self._routes.open()

    async def _wrong_clock(self, one: Happening) -> None:
        if FAKETIME is None:
            self.note("no clock can be set wrong: libfaketime is not installed")
            return
        broker = await self._chosen(one)
        skew = (f"LD_PRELOAD={FAKETIME}", f"FAKETIME={one.seconds:+.0f}s", "FAKETIME_DONT_FAKE_MONOTONIC=1")
        broker.run_within(shutil.which("env") or "env", *skew)
        await self.stop(broker)
        try:
            await self.start(broker)
            await asyncio.sleep(WRONG_CLOCK)
        except KafkaError:
            self.note("it did not start in time: libfaketime makes Java four times as slow")
        finally:
            broker.run_within()
        await self.stop(broker)
        await self.start(broker)

    async def stop(self, broker: Broker) -> None:
        """Stop a broker as a rolling restart does: it hands its partitions over first."""
        await self._cluster.run(broker.stop)
        self._routes.close([broker.id])

    async def kill(self, broker: Broker) -> None:
        """End a broker as a power cut does."""
        await self._cluster.run(broker.kill)
        self._routes.close([broker.id])

    async def start(self, broker: Broker) -> None:
        """Start one that doesn't run; it has not caught up yet."""
        await self._cluster.run(broker.start)
        await self._routes.open([broker.id])

    # ------------------------------------------------------------ topics

    async def _elect(self, _: Happening) -> None:
        await self._cluster.elect_leaders(*self._ledger.topics.values(), *KAFKAS_OWN)

    async def _move(self, one: Happening) -> None:
        """Leave each partition of a topic two brokers, then three in another order, the new first one leading."""
        topics = [self._ledger.topics[name] for name in ("requests", "completed", "journal")] + [*KAFKAS_OWN]
        topic = topics[int(one.who * len(topics))]
        self.note(f"{one.what}: {topic}")
        before = await self._cluster.replicas(topic)
        turned = {partition: [*brokers[1:], brokers[0]] for partition, brokers in before.items()}
        for replicas in ({partition: brokers[:2] for partition, brokers in turned.items()}, turned):
            await self._cluster.reassign(topic, replicas)
            async with asyncio.timeout(60):
                while await self._cluster.replicas(topic) != replicas:
                    await asyncio.sleep(0.1)
            await self._cluster.heal()
        await self._cluster.elect_leaders(topic)

    async def _change_settings(self, one: Happening) -> None:
        name, settings = SETTINGS[int(one.who * len(SETTINGS))]
        topic = self._ledger.topics[name]
        self.note(f"{one.what}: {name} has {settings}")
        before = await self._cluster.topic_settings(topic, *settings)
        await self._cluster.alter_topic(topic, **settings)
        try:
            await asyncio.sleep(one.seconds)
        finally:
            await self._cluster.alter_topic(topic, **before)

    async def _delete_what_was_read(self, _: Happening) -> None:
        topic = self._ledger.topics["requests"]
        await self._cluster.delete_read_records(topic, group=self._ledger.group)

    # ------------------------------------------------------------ the service's user

    async def _take_a_right(self, one: Happening) -> None:
        grant = self._grants[int(one.who * len(self._grants))]
        self.note(f"{one.what}: {grant}")
        await self._cluster.take(SERVICE, grant)
        try:
            await asyncio.sleep(one.seconds)
        finally:
            await self._cluster.grant(SERVICE, grant)

    async def _throttle(self, one: Happening) -> None:
        name, rate = QUOTAS[int(one.who * len(QUOTAS))]
        self.note(f"{one.what}: {name}")
        await self._cluster.throttle(SERVICE, **{name: rate})
        try:
            await asyncio.sleep(one.seconds)
        finally:
            await self._cluster.throttle(SERVICE, **{name: None})
