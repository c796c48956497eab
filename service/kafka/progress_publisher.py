"""Publishes the progress of running syncs to a topic of its own. Off unless the settings name the topic.

    started, seen --> what is due --> a bounded queue --> one task, with a producer of its own --> the topic

Delivery is not guaranteed, and nothing waits for it: a partition hands over a value and continues. If Kafka is too slow
or unreachable, events are dropped. The end of a sync is published by its outcome only.

It never delays or touches an outcome, takes part in no transaction, and never raises into a partition.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple, Protocol

from aiokafka import AIOKafkaProducer
from typing_extensions import override

from service.backoff import Backoff
from service.clock import Clock
from service.event_loop import log_death, take_note
from service.kafka.clients import end
from service.messages.kafka_record import Event
from service.messages.outcomes import Progressed, write_progress
from service.moments import milliseconds
from service.sync import Request, Task

log = logging.getLogger(__name__)

STEP: Final = 5
"""A change of so many percent is published at once: twenty events for each sync."""

EVERY: Final = timedelta(seconds=30)
"""A smaller change is published after this time, so that long syncs show progress too. Unchanged progress is not
published again, so a sync has little more than a hundred events, however long it takes."""

CAPACITY: Final = 10_000
"""Events that may wait: some MB at most, and a second or two of sending."""

EVENTS_AT_ONCE: Final = 100
"""Events that are sent together: a send costs 40 us of the event loop, so this many hold it for 4 ms."""

BACKOFF: Final = Backoff(first=timedelta(seconds=1), longest=timedelta(seconds=60))
"""Pauses before Kafka is tried again: nobody is in a hurry, and a log line comes with each."""

REQUEST_LIMIT: Final = timedelta(seconds=10)
"""For one request to a broker: a restart takes 5 s."""

WIRE_LIMIT: Final = timedelta(seconds=30)
"""For connecting, and for what was sent until the brokers have it. aiokafka tries both without end, also at addresses
that no broker has any more: only a new producer asks the bootstrap servers."""

CLOSE_LIMIT: Final = timedelta(seconds=1)
"""For closing the producer. What it still holds doesn't matter, and the drain has little time."""


class Progress:
    """Publishes nothing; `Progressing` publishes."""

    def open(self) -> None:
        """Start publishing; called once Kafka has been reached."""

    def started(self, request: Request, task_id: str) -> None:
        """VCDA has accepted the request."""

    def seen(self, request: Request, task: Task) -> None:
        """A running task was seen."""

    def ended(self, request: Request) -> None:
        """The sync no longer runs, or not in this process, or its outcome is decided."""

    async def close(self) -> None:
        """Stop publishing, within `CLOSE_LIMIT`; queued events are dropped."""


class Wire(Protocol):
    """A connection to Kafka, replaced after any failure."""

    async def open(self) -> None:
        """Connect."""

    async def send(self, events: Sequence[Event]) -> None:
        """Send in this order, and return when the brokers have all; raise when some will never arrive."""

    async def close(self) -> None:
        """Disconnect, whatever state it is in, once nothing is on its way any more; never raise."""


class _Told(NamedTuple):
    percent: int | None
    at: float

    def outdated(self, percent: int | None, now: float) -> bool:
        """Whether `percent` has to be published."""
        if percent == self.percent:
            return False
        return (percent or 0) - (self.percent or 0) >= STEP or now - self.at >= EVERY.total_seconds()


class Progressing(Progress):
    """Publishes progress on a topic. `dropped` is called with the number of events that were dropped."""

    def __init__(
        self,
        *,
        topic: str,
        wire: Callable[[], Wire],
        clock: Clock,
        dropped: Callable[[int], None],
        capacity: int = CAPACITY,
    ) -> None:
        self._topic = topic
        self._wire = wire
        self._clock = clock
        self._dropped = dropped
        self._told: dict[str, _Told] = {}
        self._queue: asyncio.Queue[Progressed] = asyncio.Queue(capacity)
        self._left_out = 0
        self._sending: asyncio.Task[None] | None = None

    @override
    def open(self) -> None:
        self._sending = log_death(asyncio.create_task(self._send()), "the publishing of progress")

    @override
    def started(self, request: Request, task_id: str) -> None:
        self._put(Progressed(request=request, task_id=task_id, state="started", percent=None, at=self._clock.now()))

    @override
    def seen(self, request: Request, task: Task) -> None:
        last = self._told.get(request.identity)
        if last is None or last.outdated(task.progress, self._clock.monotonic()):
            self._put(
                Progressed(
                    request=request, task_id=task.id, state="running", percent=task.progress, at=self._clock.now()
                )
            )

    @override
    def ended(self, request: Request) -> None:
        self._told.pop(request.identity, None)

    @override
    async def close(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending], timeout=CLOSE_LIMIT.total_seconds())

    def _put(self, progressed: Progressed) -> None:
        """Queue an event, unless the queue is full; then the next poll's progress is published instead."""
        if self._queue.full():
            self._left_out += 1
            self._dropped(1)
            return
        self._queue.put_nowait(progressed)
        self._told[progressed.request.identity] = _Told(progressed.percent, self._clock.monotonic())

    # ------------------------------------------------------------ the one task

    async def _send(self) -> None:
        """Connect once there is something to publish, and again after each failure, which costs the lot on its way."""
        repeats = 0
        while True:
            lot = [await self._queue.get()]
            try:
                wire = self._wire()
                try:
                    async with asyncio.timeout(WIRE_LIMIT.total_seconds()):
                        await wire.open()
                    while True:
                        await self._send_lot(wire, lot)
                        repeats = 0
                        lot = [await self._queue.get()]
                finally:
                    await wire.close()
            except Exception as error:  # noqa: BLE001 - whatever it is may cost progress, and nothing else
                log.warning(
                    "Publishing progress failed, trying again in %.0f s: %s", BACKOFF.pause(repeats), _why(error)
                )
                self._dropped(len(lot))
            await asyncio.sleep(BACKOFF.pause(repeats))
            repeats += 1

    async def _send_lot(self, wire: Wire, lot: list[Progressed]) -> None:
        """Send a lot, after filling it up with what else is queued."""
        while len(lot) < EVENTS_AT_ONCE and not self._queue.empty():
            lot.append(self._queue.get_nowait())
        events = [write_progress(one, topic=self._topic) for one in lot if one.request.identity in self._told]
        if events:
            async with asyncio.timeout(WIRE_LIMIT.total_seconds()):
                await wire.send(events)
        if self._left_out and self._queue.empty():
            log.warning("Kafka is too slow: %d progress events were dropped", self._left_out)
            self._left_out = 0


class KafkaWire:
    """An idempotent producer, without transactions. `connection`: aiokafka's arguments."""

    def __init__(self, connection: Mapping[str, Any], *, request_limit: timedelta = REQUEST_LIMIT) -> None:
        self._producer = AIOKafkaProducer(
            **connection, enable_idempotence=True, request_timeout_ms=milliseconds(request_limit)
        )

    async def open(self) -> None:
        """See `Wire`, here and below."""
        await self._producer.start()

    async def send(self, events: Sequence[Event]) -> None:  # noqa: D102
        arriving: list[asyncio.Future[Any]] = []
        for event in events:
            sent = self._producer.send(event.topic, event.value, key=event.key, headers=list(event.headers))
            arriving.append(await sent)
            arriving[-1].add_done_callback(take_note)  # of several that fail, one is raised
        await asyncio.gather(*arriving)

    async def close(self) -> None:  # noqa: D102
        await end(self._producer)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"Kafka gave no answer within {WIRE_LIMIT.total_seconds():.0f} s"
    return repr(error)
