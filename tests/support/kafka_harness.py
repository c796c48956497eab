"""Whole services in one event loop: real intake, journals and partitions on a real Kafka; only VCDA is scripted.

A `Station` has topics of its own and a world, puts anything on the requests topic, and reads what is told, as a
read_committed reader sees it. Any number of `Service`s work on it, each what a process would be. For what only whole
processes show, such as signals, freezing and exit codes, there is `process_harness`.
"""

import asyncio
import json
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import count
from random import Random
from typing import Any, Final, Self

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import TopicAlreadyExistsError
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.record.default_records import DefaultRecordBase, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from prometheus_client import CollectorRegistry

from service import wiring
from service.clock import Clock
from service.event_loop import Slices
from service.intake.timings import DEFAULT_TIMINGS, IntakeTimings
from service.kafka.consumer import SteadyConsumer
from service.kafka.journal import KafkaJournal, Refusals
from service.kafka.journal_api import Opened, StopReason
from service.kafka.topics import JOURNAL_SETTINGS, TopicNames
from service.messages.requests import DeadLetterReason
from service.observability.metrics import Metrics
from service.partition.partition import Partition
from service.sync import Policy
from service.vcda.lanes import LaneLimits
from tests.support.fake_vcda import ScriptedVcda, World

POLICY: Final = Policy(
    window=timedelta(seconds=2),
    late=timedelta(seconds=1),
    lost_after=timedelta(seconds=600),
    deduplicate_for=timedelta(hours=24),
)

SESSION: Final = timedelta(seconds=6)
"""The shortest that brokers allow by default."""

PATIENCE: Final = 60.0
"""Seconds that a condition is waited for: many times what it takes on an idle machine."""


def fetch_waits(patch: pytest.MonkeyPatch) -> Mapping[str, set[int]]:
    """Return how long (ms) fetches allow a broker to wait, by topic; a question on their connection waits as long."""
    waits: defaultdict[str, set[int]] = defaultdict(set)
    send = AIOKafkaClient.send

    async def noted(client: AIOKafkaClient, node: int, request: Any, **options: Any) -> Any:
        if isinstance(request, FetchRequest):
            for topic, _ in request.topics:
                waits[topic].add(request._max_wait_ms)
        return await send(client, node, request, **options)

    patch.setattr(AIOKafkaClient, "send", noted)
    return waits


async def until(holds: Callable[[], bool], *, within: float = PATIENCE, what: str | Callable[[], str] = "") -> None:
    """Wait for a condition; `what` says what it is, and is asked when it is waited for in vain."""
    end = time.monotonic() + within
    while not holds():
        assert time.monotonic() < end, f"not within {within} s: {what() if callable(what) else what}"
        await asyncio.sleep(0.01)


class Service:
    """What a process would be."""

    def __init__(
        self,
        station: "Station",
        name: str,
        *,
        group: str | None = None,
        requests: str | None = None,
        policy: Policy = POLICY,
        max_in_flight: int = 1000,
    ) -> None:
        """Prepare; the group's name and the requests topic are the station's unless others are given."""
        self.name = name
        self.opened: list[int] = []
        """Partitions whose journals were opened here, in order."""
        self._registry = CollectorRegistry()
        clock = Clock()
        metrics = Metrics(
            self._registry, clock=clock, version="0", dead_reasons=list(DeadLetterReason), stop_reasons=list(StopReason)
        )
        self.vcda = ScriptedVcda(station.world, late=policy.late)
        seeds = count(1)
        parts = wiring.for_tests(
            self.vcda,
            connection=station.connection,
            topics=replace(station.topics, requests=requests or station.topics.requests),
            tuning=wiring.Tuning(
                group_id=group or station.prefix,
                session_timeout=SESSION,
                max_in_flight=max_in_flight,
                deadline=timedelta(hours=1),
                policy=policy,
                limits=LaneLimits(max_concurrent_submits=16, max_running=0),
                poll_min=timedelta(milliseconds=50),
                poll_max=timedelta(milliseconds=200),
                intake=station.timings,
            ),
            clock=clock,
            metrics=metrics,
            random=lambda: Random(next(seeds)),
            opening=self.opened.append,
        )
        self._lanes, self._poller, self.intake = parts.lanes, parts.poller, parts.make_intake()
        self._polling: asyncio.Task[None] | None = None
        self._awake: asyncio.Future[None]

    async def start(self) -> None:
        self._polling = asyncio.create_task(self._poller.run())
        await self.intake.start()

    async def stop(self, limit: float = 8.0) -> None:
        """Stop in an orderly manner; a second time is nothing."""
        if self._polling is None:
            return
        polling, self._polling = self._polling, None
        await self.intake.stop(limit)
        polling.cancel()
        await asyncio.wait([polling])
        self._lanes.close()

    # ------------------------------------------------------------ looking inside

    @property
    def consumer(self) -> SteadyConsumer:
        return self.intake._consumer

    def partition(self, number: int = 0) -> Partition:
        """An open partition."""
        return {partition.number: partition for partition in self.intake.partitions()}[number]

    @property
    def owned(self) -> set[int]:
        """The partitions that are open here."""
        return {partition.number for partition in self.intake.partitions()}

    @property
    def reading(self) -> set[int]:
        """The partitions that are open here and read from."""
        return {
            n
            for n, supervisor in self.intake._supervisors.items()
            if supervisor.partition is not None and supervisor.reading is not None
        }

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value, without the common prefix."""
        value = self._registry.get_sample_value(f"vm_sync_{name}", labels)
        assert value is not None, f"no such series: {name} {labels}"
        return value

    # ------------------------------------------------------------ making it suffer

    def deafen(self) -> None:
        """Let it hear nothing from the group any more, as a frozen process would; the rest of it goes on."""
        coordinator, self._awake = self.consumer._coordinator, asyncio.get_running_loop().create_future()

        async def unheard() -> bool:
            return True

        async def asleep(*_: object) -> None:
            await asyncio.wait([coordinator._closing, self._awake], return_when=asyncio.FIRST_COMPLETED)

        coordinator._do_heartbeat, coordinator.ensure_active_group = unheard, asleep

    def wake(self) -> None:
        """Let it hear again; what it missed it finds out."""
        coordinator = self.consumer._coordinator
        del coordinator._do_heartbeat, coordinator.ensure_active_group
        self._awake.set_result(None)

    async def throw_out(self) -> None:
        """Remove it from the group without its knowing, as the group does with a member that is silent for long."""
        self.deafen()
        coordinator = self.consumer._coordinator
        response = await coordinator._send_req(LeaveGroupRequest(coordinator.group_id, coordinator.member_id))
        assert response.error_code == 0


class Station:
    """See the module. An async context: leaving it stops every service."""

    def __init__(self, bootstrap: str, prefix: str, *, partitions: int = 1, lasts: float = 0.1) -> None:
        self.prefix = prefix
        self.partitions = partitions
        self.connection: dict[str, Any] = {"bootstrap_servers": [bootstrap]}
        """What all clients of the services take; a test may add to it."""
        self.timings: IntakeTimings = DEFAULT_TIMINGS
        """Of the services that are yet to be started."""
        self.topics = TopicNames(
            requests=f"{prefix}.requests",
            completed=f"{prefix}.completed",
            failed=f"{prefix}.failed",
            dead_letter=f"{prefix}.dead-letter",
            journal=f"{prefix}.journal",
        )
        self.settings: dict[str, dict[str, str]] = {self.topics.journal: dict(JOURNAL_SETTINGS)}
        """Of topics that are yet to be made."""
        self.world = World(Clock(), lasts=lambda _: lasts)
        self.told: list[ConsumerRecord] = []
        """Outcomes, in the order of reading."""
        self.dead: list[ConsumerRecord] = []
        """Dead letters."""
        self.services: list[Service] = []
        self._bootstrap = bootstrap
        self._admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        self.producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=0)
        self._reader = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_partition_fetch_bytes=8 * 1024 * 1024,
        )
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._admin.start()
        await self.make(*self.topics.all())
        await self.producer.start()
        await self._reader.start()
        outward = (self.topics.completed, self.topics.failed, self.topics.dead_letter)
        self._reader.assign([TopicPartition(name, n) for name in outward for n in range(self.partitions)])
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(service.stop() for service in self.services))
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        await self._reader.stop()
        await self.producer.stop()
        await self._admin.close()

    # ------------------------------------------------------------ topics

    async def make(self, *names: str, partitions: int | None = None) -> None:
        """Make topics, and wait until they are there."""
        response = await self._admin.create_topics(
            [
                NewTopic(name, partitions or self.partitions, 1, topic_configs=self.settings.get(name, {}))
                for name in names
            ]
        )
        assert [code for _, code, *_ in response.topic_errors] == [0] * len(names), response
        await self._until_topics(lambda seen: seen >= set(names))

    async def drop(self, name: str) -> None:
        """Delete a topic, and wait until it is gone."""
        await self._admin.delete_topics([name])
        await self._until_topics(lambda seen: name not in seen)

    async def recreate(self, name: str) -> None:
        """Delete a topic and make it again, so soon that hardly any client sees it missing."""
        await self._admin.delete_topics([name])
        code = -1
        while code:
            topic = NewTopic(name, self.partitions, 1, topic_configs=self.settings.get(name, {}))
            ((_, code, *_),) = (await self._admin.create_topics([topic])).topic_errors
            assert code in {0, TopicAlreadyExistsError.errno}
        await self._until_topics(lambda seen: name in seen)

    async def set_policy(self, name: str, policy: str) -> None:
        """Change what Kafka does with a topic's old messages."""
        resource = ConfigResource(ConfigResourceType.TOPIC, name, {"cleanup.policy": policy})
        for response in await self._admin.alter_configs([resource]):
            assert [code for code, *_ in response.resources] == [0]

    async def widen(self, name: str, partitions: int) -> None:
        """Add partitions to a topic."""
        await self._admin.create_partitions({name: NewPartitions(partitions)})

    async def delete_before(self, offset: int) -> None:
        """Delete the requests below an offset, as their retention would."""
        await self._admin.delete_records({TopicPartition(self.topics.requests, 0): RecordsToDelete(offset)})

    async def delete_journal_before(self, offset: int) -> None:
        """Delete the journal's records below an offset; -1: all of them. Kafka refuses it for a compacted topic."""
        await self.set_policy(self.topics.journal, "delete")
        await self._admin.delete_records({TopicPartition(self.topics.journal, 0): RecordsToDelete(offset)})
        await self.set_policy(self.topics.journal, "compact")

    async def forget_group(self, group: str | None = None) -> None:
        """Delete the offsets of a group that nobody is in any more."""
        node = await self._admin.find_coordinator(group or self.prefix)
        response = await self._admin._send_request_to_node(node, DeleteGroupsRequest([group or self.prefix]))
        assert [code for _, code in response.results] == [0]

    async def group_offset(self, partition: int = 0) -> int:
        """Where the group is said to be."""
        offsets = await self._admin.list_consumer_group_offsets(self.prefix)
        place = TopicPartition(self.topics.requests, partition)
        return int(offsets[place].offset) if place in offsets else -1

    async def _until_topics(self, fit: Callable[[set[str]], bool]) -> None:
        while True:
            seen = {
                topic["topic"]
                for topic in await self._admin.describe_topics()
                if topic["partitions"] and all(partition["leader"] >= 0 for partition in topic["partitions"])
            }
            if fit(seen):
                return
            await asyncio.sleep(0.02)

    # ------------------------------------------------------------ services

    def set_timings(self, **timings: Any) -> None:
        """Let the services that are yet to be started be less patient."""
        self.timings = replace(self.timings, **timings)

    async def service(self, name: str = "A", **how: Any) -> Service:
        """Start one more service, and wait until it reads."""
        service = await self.begin(name, **how)
        await until(lambda: bool(service.reading) and not service.intake.opening(), what=f"{name} is open")
        return service

    async def begin(self, name: str = "A", **how: Any) -> Service:
        """Start one more service, as `Service` takes it, and wait for nothing."""
        service = Service(self, name, **how)
        self.services.append(service)
        await service.start()
        return service

    # ------------------------------------------------------------ asking

    async def open_journal(self, *, partition: int = 0, slices: Slices | None = None) -> Opened:
        """Open a partition's journal as another process would: a service that has it open is fenced."""
        return await KafkaJournal.open(
            topic=self.topics.journal,
            partition=partition,
            connection=self.connection,
            clock=Clock(),
            refusals=Refusals(),
            slices=slices,
        )

    async def ask(self, *operation_ids: str, replication_id: str | None = None, partition: int | None = None) -> None:
        """Put requests on the topic, each for a replication of its own unless told otherwise."""
        for operation_id in operation_ids:
            about = replication_id or f"C4-{operation_id}"
            await self.send(value=request(operation_id, about), key=about.encode(), partition=partition)

    async def send(self, *, topic: str | None = None, partition: int | None = None, **record: Any) -> int:
        """Put any bytes on the requests topic, or another; the record's offset."""
        sent = await self.producer.send_and_wait(topic or self.topics.requests, partition=partition, **record)
        return int(sent.offset)

    async def send_together(
        self,
        records: Iterable[Mapping[str, Any]],
        *,
        partition: int = 0,
        compression: str | None = None,
        instead: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Put records on the requests topic in one batch; `instead` replaces bytes by some that no client writes."""
        codec = 0 if compression is None else getattr(DefaultRecordBase, f"CODEC_{compression.upper()}")
        builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 24)
        for number, record in enumerate(records):
            builder.append(
                number,
                record.get("timestamp", int(time.time() * 1000)),
                record.get("key"),
                record.get("value"),
                record.get("headers", []),
            )
        whole = bytearray(builder.build())
        for before, after in (instead or {}).items():
            assert len(before) == len(after)
            assert before in whole
            whole = whole.replace(before, after)
        seal(whole)
        batch = self.producer.create_batch()
        batch.append(key=b"", value=b"", timestamp=None)
        batch._build = lambda: bytes(whole)  # instead of what was appended
        await (await self.producer.send_batch(batch, self.topics.requests, partition=partition))

    # ------------------------------------------------------------ reading

    async def _read(self) -> None:
        while True:
            for place, records in (await self._reader.getmany(timeout_ms=100)).items():
                (self.dead if place.topic == self.topics.dead_letter else self.told).extend(records)

    def outcomes(self) -> list[tuple[str, str]]:
        """Operation and verdict (`completed`, or the reason) of each outcome, sorted."""
        events = [json.loads(record.value) for record in self.told]
        return sorted((event["operationID"], event.get("reason", "completed")) for event in events)

    async def settled(self, *operation_ids: str, within: float = PATIENCE) -> None:
        """Wait until these have outcomes, all completed, and nobody else has; each has one task, and one POST."""
        await self.told_of(*operation_ids, within=within)
        assert self.outcomes() == sorted((operation_id, "completed") for operation_id in operation_ids)
        assert self.world.tasks_of() == dict.fromkeys(operation_ids, 1)
        assert self.world.overlaps == []

    async def told_of(self, *operation_ids: str, within: float = PATIENCE) -> None:
        """Wait until these have outcomes."""
        wanted = set(operation_ids)
        await until(
            lambda: {operation_id for operation_id, _ in self.outcomes()} >= wanted,
            within=within,
            what=lambda: f"outcomes of {sorted(wanted)}; told are {self.outcomes()}",
        )

    async def dead_letters(self, count: int, *, within: float = PATIENCE) -> list[ConsumerRecord]:
        """Wait for so many dead letters, and return all there are, in the order of their originals."""
        await until(lambda: len(self.dead) >= count, within=within, what=f"{count} dead letters")
        return sorted(self.dead, key=lambda record: (word(record, "partition"), int(word(record, "offset") or "0")))


def request(operation_id: str, replication_id: str, **fields: object) -> bytes:
    """A good request's value."""
    return json.dumps({"operationID": operation_id, "replicationId": replication_id, **fields}).encode()


def good(operation_id: str) -> dict[str, Any]:
    """A good request, for `send_together`."""
    return {"key": f"C4-{operation_id}".encode(), "value": request(operation_id, f"C4-{operation_id}")}


def word(record: ConsumerRecord, name: str) -> str | None:
    """What a dead letter says of its original."""
    value = dict(record.headers).get(f"vm-sync-{name}")
    return None if value is None else value.decode()


def impatient(**changes: timedelta) -> Policy:
    """The usual policy, with other numbers."""
    return replace(POLICY, **changes)


def seal(batch: bytearray) -> None:
    """Put the right checksum into a batch that was changed."""
    crc = calc_crc32c(memoryview(batch)[DefaultRecordBase.ATTRIBUTES_OFFSET :])
    struct.pack_into(">I", batch, DefaultRecordBase.CRC_OFFSET, crc)
