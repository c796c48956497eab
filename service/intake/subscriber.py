"""The edge to FastStream: its broker, its subscriber, and the consumer that replaces FastStream's own.

    Kafka --> SteadyConsumer --> FastStream's reading loop --> _parse, _decode --> records by partition --> `take`

It never decodes a message (`messages` does), and never acknowledges one through FastStream: an ack would commit the
positions of all partitions (measured). Nothing below the intake uses FastStream.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final, TypeAlias

import anyio.lowlevel
from aiokafka import ConsumerRebalanceListener, ConsumerRecord
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.kafka.message import FAKE_CONSUMER

from service.clock import Clock
from service.intake.timings import IntakeTimings
from service.kafka.consumer import Refused, SteadyConsumer
from service.kafka.salvage import UnreadableRecord
from service.messages.kafka_record import Record
from service.moments import milliseconds

PATIENCE: Final = timedelta(milliseconds=500)
"""How long a read waits for records where there are none; they are returned as soon as they come. With FastStream's 10
ms and its sleep after each empty read, the loop turned 50 times a second for nothing: half of what an idle process
costs (measured)."""

Take: TypeAlias = Callable[[int, list[Record]], None]
"""Takes records of one partition, in order. Total: what it raised would be swallowed, and its batch skipped."""


class Subscriber:
    """Reads the requests topic as a member of the group, and hands its records on, partition by partition.

    `read` is called with the number of records that were read, `refused` with what Kafka refuses.
    """

    def __init__(
        self,
        topic: str,
        *,
        connection: Mapping[str, Any],
        group_id: str,
        session_timeout: timedelta,
        timings: IntakeTimings,
        clock: Clock,
        listener: ConsumerRebalanceListener,
        take: Take,
        read: Callable[[int], None],
        refused: Refused,
    ) -> None:
        self._connection = connection
        self._request_timeout = timings.kafka_request_timeout
        self._clock = clock
        self._take = take
        self._read = read
        self._refused = refused
        # `consumer_only`: events are written by the journals' producers. Types are not applied to bytes that may be
        # anything. The service itself creates topics: FastStream would create them with a single partition.
        self.broker = KafkaBroker(
            bootstrap_servers=connection["bootstrap_servers"],
            consumer_only=True,
            allow_auto_create_topics=False,
            apply_types=False,
            logger=logging.getLogger("faststream"),
            log_level=logging.DEBUG,  # of each message; what goes wrong while reading is logged above that
        )
        self._subscriber = self.broker.subscriber(
            topic,
            batch=True,
            group_id=group_id,
            ack_policy=AckPolicy.MANUAL,
            auto_offset_reset="none",
            isolation_level="read_committed",
            session_timeout_ms=milliseconds(session_timeout),
            heartbeat_interval_ms=milliseconds(timings.heartbeat),
            rebalance_timeout_ms=milliseconds(timings.rebalance_timeout),
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
            batch_timeout_ms=10,  # also how long FastStream sleeps after an empty read: see PATIENCE
            max_records=timings.records_at_once,
            listener=listener,
            parser=_parse,
            decoder=_decode,
        )
        self._subscriber(self._handle)

    async def start(self) -> None:
        """Join the group; see `Intake.start`."""
        # Loads the half of anyio that FastStream's pauses need, which takes 40 ms: nothing waits for the loop here yet.
        await anyio.lowlevel.checkpoint()
        await self.broker.connect()
        # The seam by which FastStream's own test broker replaces the consumer; the minor version is pinned for it.
        self.broker.config.broker_config.builder = self._consumer_of
        await self.broker.start()

    async def stop(self) -> None:
        """Stop reading, and leave the group; hangs for as long as its broker is away."""
        await self.broker.stop()

    @property
    def started(self) -> bool:
        """Whether there is a consumer."""
        return self._subscriber.consumer is not None

    @property
    def consumer(self) -> SteadyConsumer:
        """The member of the group, once there is one."""
        consumer = self._subscriber.consumer
        if not isinstance(consumer, SteadyConsumer):
            msg = "the consumer is not a SteadyConsumer: FastStream creates its consumer in another way now"
            raise TypeError(msg)
        return consumer

    def _consumer_of(self, **options: Any) -> SteadyConsumer:  # noqa: ANN401 - as FastStream calls it
        options |= self._connection
        options |= {"request_timeout_ms": milliseconds(self._request_timeout), "enable_auto_commit": False}
        return SteadyConsumer(clock=self._clock, read=self._read, refused=self._refused, patience=PATIENCE, **options)

    async def _handle(self, records: tuple[ConsumerRecord, ...]) -> None:
        """Hand the records on, those of each partition together."""
        by_partition: dict[int, list[Record]] = {}
        for record in records:
            by_partition.setdefault(record.partition, []).append(_record(record))
        for number, some in by_partition.items():
            self._take(number, some)


async def _parse(records: tuple[ConsumerRecord, ...]) -> KafkaMessage:
    """Hand the records on as they are.

    FastStream's own parser decodes header values, and skips a batch silently where one isn't UTF-8 (measured).
    """
    return KafkaMessage(body=b"", raw_message=records, headers={}, consumer=FAKE_CONSUMER)


async def _decode(message: KafkaMessage) -> tuple[ConsumerRecord, ...]:
    return message.raw_message  # a batch: a tuple of records


def _record(record: ConsumerRecord) -> Record:
    return Record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=-1 if record.timestamp is None else record.timestamp,  # the oldest message format has none
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
        unreadable=record.unreadable if isinstance(record, UnreadableRecord) else None,
    )
