"""Reads the control topic, which has the operators' site pauses: whole at the start, then whatever is added.

Every process reads it by itself, outside of any group. The service needs the topic for pauses alone, so it goes on
without it: while the topic is missing or can't be read, the pauses that are known stay in effect until they end,
changes are not seen, and `trouble` says so. A process that has never read it knows of no pause, and sends POSTs.

Reading fails in bounded time, and is tried again without end. Every `REREAD` the topic is read whole again, so that
nothing that was missed, such as a topic that was deleted and created again, is missed for longer. Known pauses of which
the topic has no record any more stay in effect, too, and `trouble` says so.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NamedTuple, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaTimeoutError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from typing_extensions import override

from service.backoff import Backoff
from service.clock import Clock
from service.event_loop import log_death
from service.kafka.clients import end, wire_of
from service.kafka.denials import Account, MissingRight, Operation, Resource, explain
from service.kafka.topic_descriptions import topic_metadata
from service.messages.site_pause import SitePause, SitePauses
from service.moments import milliseconds

log = logging.getLogger(__name__)

BACKOFF: Final = Backoff(first=timedelta(seconds=1), longest=timedelta(seconds=5))
"""Pauses before the topic is tried again: no operator's pause waits longer than the longest after an outage."""

SAY_AFTER: Final = timedelta(seconds=15)
"""How long reading has to fail until that is said: a broker's restart is over by then, or another one leads."""

SAY_AGAIN: Final = timedelta(minutes=10)
"""How often it is said while it lasts."""

FIRST_READING: Final = timedelta(seconds=10)
"""How long a start waits for the first reading, which takes 50 ms: so that no POST is sent to a paused site."""

REREAD: Final = timedelta(minutes=5)
"""How often the topic is read whole again."""

LOOK: Final = timedelta(seconds=5)
"""How often the leader is asked for the topic's end while nothing is added. It would hand out new records at once; but
a topic that is gone, or a leader that is away, shows in this answer alone."""

REQUEST_LIMIT: Final = timedelta(seconds=10)
"""For one request to a broker."""

READ_LIMIT: Final = timedelta(seconds=30)
"""For connecting, and for reading the topic to its end."""

ANSWERS: Final = (TopicAuthorizationFailedError, UnknownTopicOrPartitionError)
"""What a start does not wait for to change: Kafka has answered."""


class Read(NamedTuple):
    """A record of the topic."""

    key: bytes | None
    value: bytes | None
    offset: int


class Control:
    """Knows of no pause; `ControlReader` reads them."""

    def open(self) -> None:
        """Start reading; called once Kafka has been reached."""

    async def first_reading(self) -> None:
        """Wait until the topic was read, or Kafka refuses it, for `FIRST_READING` at most."""

    def retry(self) -> None:
        """Try to read now, if it has failed: Kafka has just been reached."""

    def trouble(self) -> list[str]:
        """Return why pauses may be unknown, as sentences for operators; empty: they are all known."""
        return []

    def unreadable_for(self) -> float:
        """Return for how many seconds reading has failed; 0: the topic is being read."""
        return 0.0

    def invalid(self) -> int:
        """Return how many sites have an invalid latest record."""
        return 0

    async def close(self) -> None:
        """Stop reading."""


class Wire(Protocol):
    """A connection to Kafka, replaced after any failure. Each method is bounded in time."""

    async def open(self) -> None:
        """Connect, and position at the beginning of the topic."""

    async def read_whole(self) -> Sequence[Read]:
        """Return all records up to the topic's present end."""

    async def read_on(self) -> Sequence[Read]:
        """Return the next records; none after `LOOK`, if the topic is still there."""

    async def close(self) -> None:
        """Disconnect; never raise."""


class ControlReader(Control):
    """Reads the topic, and calls `changed` with all pauses whenever it has read some of it."""

    def __init__(
        self,
        *,
        topic: str,
        wire: Callable[[], Wire],
        clock: Clock,
        account: Account,
        changed: Callable[[Mapping[str, SitePause]], None],
    ) -> None:
        self._topic = topic
        self._wire = wire
        self._clock = clock
        self._account = account
        self._changed = changed
        self._pauses = SitePauses()
        self._tried = asyncio.Event()
        self._hurry = asyncio.Event()
        self._failing_since: float | None = None
        self._repeats = 0
        self._why = ""
        self._said_at: float | None = None
        self._faults: list[str] = []
        self._said_doubts: list[str] = []
        self._reading: asyncio.Task[None] | None = None

    @override
    def open(self) -> None:
        self._reading = log_death(asyncio.create_task(self._read()), "the reading of the control topic")

    @override
    async def first_reading(self) -> None:
        try:
            async with asyncio.timeout(FIRST_READING.total_seconds()):
                await self._tried.wait()
        except TimeoutError:
            log.warning(
                "The control topic %s could not be read within %.0f s; starting without it: site pauses are unknown",
                self._topic,
                FIRST_READING.total_seconds(),
            )

    @override
    def retry(self) -> None:
        self._hurry.set()

    @override
    def trouble(self) -> list[str]:
        reasons = [f"control topic {self._topic}: {fault}; it is ignored" for fault in self._faults]
        reasons += self._doubts()
        if self.unreadable_for() >= SAY_AFTER.total_seconds():
            reasons.append(
                f"the control topic {self._topic} has not been readable for {self.unreadable_for():.0f} s, so changes "
                f"of site pauses are not seen: {self._why}"
            )
        return reasons

    @override
    def unreadable_for(self) -> float:
        return 0.0 if self._failing_since is None else self._clock.monotonic() - self._failing_since

    @override
    def invalid(self) -> int:
        return self._pauses.invalid

    @override
    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    # ------------------------------------------------------------ the one task

    async def _read(self) -> None:
        while True:
            try:
                wire = self._wire()
                try:
                    await self._read_over(wire)
                finally:
                    await wire.close()
            except Exception as error:  # noqa: BLE001 - whatever it is may cost pauses, and nothing else
                self._failed(error)
            if self._failing_since is not None:
                self._hurry.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(BACKOFF.pause(self._repeats)):
                        await self._hurry.wait()
                self._repeats += 1

    async def _read_over(self, wire: Wire) -> None:
        """Read the topic whole, then whatever is added, until it is to be read whole again."""
        await wire.open()
        whole = SitePauses()
        self._take(whole, await wire.read_whole())
        whole.keep(self._pauses, now=self._clock.now())
        self._learn(whole)
        self._succeeded()
        reread_at = self._clock.monotonic() + REREAD.total_seconds()
        while self._clock.monotonic() < reread_at:
            if records := await wire.read_on():
                self._take(self._pauses, records)
                self._learn(self._pauses)

    def _take(self, pauses: SitePauses, records: Sequence[Read]) -> None:
        for record in records:
            pauses.take(record.key, record.value, offset=record.offset)

    def _doubts(self) -> list[str]:
        now = self._clock.now()
        lasting = [pause for pause in self._pauses.by_site().values() if pause.lasts(now)]
        return [doubt for pause in lasting for doubt in pause.doubts(now)]

    def _learn(self, pauses: SitePauses) -> None:
        self._pauses = pauses
        for fault in (faults := pauses.faults()):
            if fault not in self._faults:
                log.warning("Control topic %s: %s; it is ignored", self._topic, fault)
        self._faults = faults
        for doubt in (doubts := self._doubts()):
            if doubt not in self._said_doubts:
                log.warning("Control topic %s: %s", self._topic, doubt)
        self._said_doubts = doubts
        self._changed(pauses.by_site())

    def _succeeded(self) -> None:
        if self._said_at is not None:
            log.warning("The control topic %s can be read again, after %.0f s", self._topic, self.unreadable_for())
        self._failing_since = self._said_at = None
        self._repeats = 0
        self._tried.set()

    def _failed(self, error: Exception) -> None:
        now = self._clock.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        self._why = self._explained(error)
        if isinstance(error, ANSWERS):
            self._tried.set()
        elif now - self._failing_since < SAY_AFTER.total_seconds():
            return
        if self._said_at is None or now - self._said_at >= SAY_AGAIN.total_seconds():
            self._said_at = now
            log.warning(
                "The control topic %s can't be read: %s; known site pauses stay in effect until they end, changes are "
                "not seen; trying again",
                self._topic,
                self._why,
            )

    def _explained(self, error: Exception) -> str:
        match error:
            case TopicAuthorizationFailedError():
                return self._account.denial(MissingRight(Operation.READ, Resource.TOPIC, self._topic))
            case UnknownTopicOrPartitionError():
                return "it does not exist; create it with `vm-sync topics create`"
            case _:
                return explain(error)


class KafkaWire:
    """A consumer without a group. `connection`: aiokafka's arguments."""

    def __init__(self, topic: str, connection: Mapping[str, Any]) -> None:
        self._topic = topic
        self._consumer = AIOKafkaConsumer(
            **connection,
            enable_auto_commit=False,
            auto_offset_reset="none",
            request_timeout_ms=milliseconds(REQUEST_LIMIT),
        )
        self._places: list[TopicPartition] = []

    async def open(self) -> None:
        """See `Wire`, here and below."""
        async with asyncio.timeout(READ_LIMIT.total_seconds()):
            await self._consumer.start()
            self._places = [TopicPartition(self._topic, number) for number in range(await self._partitions())]
            self._consumer.assign(self._places)
            for place, offset in (await self._consumer.beginning_offsets(self._places)).items():
                self._consumer.seek(place, offset)

    async def read_whole(self) -> Sequence[Read]:  # noqa: D102
        async with asyncio.timeout(READ_LIMIT.total_seconds()):
            ends, records = await self._ends(), list[Read]()
            while not await self._reached(ends):
                records += await self._next(timedelta(milliseconds=200))
            return records

    async def read_on(self) -> Sequence[Read]:  # noqa: D102
        if records := await self._next(LOOK):
            return records
        for place, offset in (await self._ends()).items():
            if await self._consumer.position(place) > offset:
                raise OffsetOutOfRangeError({place: offset})
        return ()

    async def close(self) -> None:  # noqa: D102
        await end(self._consumer)

    async def _partitions(self) -> int:
        """Return how many partitions the topic has: one, unless somebody has made it with more."""
        try:
            (topic,) = await topic_metadata(wire_of(self._consumer), [self._topic])
        except (IncompatibleBrokerVersion, NotImplementedError):
            return 1
        if topic["error_code"]:
            raise for_code(topic["error_code"])(self._topic)
        return len(topic["partitions"])

    async def _ends(self) -> Mapping[TopicPartition, int]:
        try:
            async with asyncio.timeout(REQUEST_LIMIT.total_seconds()):
                ends: Mapping[TopicPartition, int] = await self._consumer.end_offsets(self._places)
                return ends
        except (KafkaTimeoutError, TimeoutError):
            async with asyncio.timeout(REQUEST_LIMIT.total_seconds()):
                await self._partitions()  # of a topic that is gone, aiokafka says nothing else
            raise

    async def _reached(self, ends: Mapping[TopicPartition, int]) -> bool:
        return all([await self._consumer.position(place) >= offset for place, offset in ends.items()])

    async def _next(self, within: timedelta) -> list[Read]:
        got: Mapping[TopicPartition, Sequence[ConsumerRecord]] = await self._consumer.getmany(
            timeout_ms=milliseconds(within)
        )
        return [Read(record.key, record.value, record.offset) for records in got.values() for record in records]
