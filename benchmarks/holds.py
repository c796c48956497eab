"""What holds the event loop of the service for longest: a process that does one thing, and measures its turns.

Real: partitions with their drivers, journals, metrics, lanes and poller; the records' encoding; Kafka's client where it
decodes. Not real: whatever is behind a socket. So what is measured is the service's own code, and nothing waits.

    python -m benchmarks.holds deadlines --count 50000
"""

# ruff: noqa: ANN401, ARG002, SLF001 - stands in for what is behind the wire, inside the clients that would talk to it

import argparse
import asyncio
import gc
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import httpx
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from prometheus_client import CollectorRegistry
from typing_extensions import override

from benchmarks.turns import Turns
from service import event_loop, garbage
from service.clock import Clock
from service.event_loop import Slices
from service.intake.subscriber import _record
from service.intake.timings import DEFAULT_TIMINGS
from service.kafka.consumer import SteadyConsumer
from service.kafka.journal import KafkaJournal, Refusals
from service.kafka.journal_api import Batch, Opened
from service.kafka.journal_codec import Cursor
from service.kafka.journal_replay import EndedSyncs
from service.messages.kafka_record import Event
from service.messages.outcomes import OutcomeTopics
from service.observability import logs
from service.observability.metrics import Metrics
from service.ops import server
from service.ops.health import Health
from service.partition.balance import Balance
from service.partition.dependencies import Dependencies
from service.partition.in_flight_view import oldest_accepted
from service.partition.partition import Partition
from service.partition.waiting import waiting_by_cause
from service.sync import Account, InFlight, NotTaken, Policy, Request, Running, Task, Trouble, Waiting
from service.vcda.lanes import LaneLimits, Lanes
from service.vcda.poller import Poller
from service.vcda.site_clocks import SiteClock

PARTITIONS = 8
MANY_PARTITIONS = 48
ROUND_TRIP = 0.005
"""Seconds of each simulated answer, of VCDA and of Kafka."""

log = logging.getLogger(__name__)


class _Clock(Clock):
    """The real one, whose wall time can be moved on."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = timedelta()

    @override
    def now(self) -> datetime:
        return super().now() + self.ahead


class _Vcda:
    """Shows all tasks as running, and takes no POST."""

    def __init__(self) -> None:
        self.polled = 0

    async def submit(self, **_: object) -> NotTaken:
        await asyncio.sleep(ROUND_TRIP)
        return NotTaken(Trouble(label="503", detail="Busy.", retry_after=timedelta(hours=1)), sent=True)

    async def poll(self, *, site: str | None, ids: Sequence[str]) -> list[Task]:
        await asyncio.sleep(ROUND_TRIP)
        self.polled += len(ids)
        return [Task(id=id_, state="RUNNING", site=site, progress=10) for id_ in ids]

    async def ask(self, **_: object) -> Trouble:
        raise NotImplementedError

    async def find(self, **_: object) -> list[Task]:
        await asyncio.sleep(ROUND_TRIP)
        return []

    def account(self, site: str | None) -> Account:
        return Account("us")

    def names(self, site: str | None, account: Account | None) -> Any:
        raise NotImplementedError

    def site_clock(self, site: str | None) -> SiteClock:
        return SiteClock(timedelta(), timedelta(), certain=True)

    def spellings(self) -> tuple[()]:
        return ()

    def learn(self, spellings: object) -> None: ...

    def learn_name(self, account: Account, **_: object) -> None: ...


class _Producer:
    """Stands for aiokafka's producer: packs as it does, and every broker answers at once."""

    def __init__(self, real: Any) -> None:
        self.create_batch = real.create_batch
        self.client = real.client
        self._offset = count(1_000_000, 100_000)

    async def partitions_for(self, topic: str) -> set[int]:
        return set(range(8))

    async def begin_transaction(self) -> None: ...

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> "asyncio.Future[Any]":
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(SimpleNamespace(offset=next(self._offset)))
        return done

    async def commit_transaction(self) -> None:
        await asyncio.sleep(ROUND_TRIP)

    async def stop(self) -> None: ...


def _journal(clock: Clock, number: int, slices: Slices) -> KafkaJournal:
    journal = KafkaJournal(
        topic="journal",
        partition=number,
        connection={"bootstrap_servers": "localhost:1"},
        refusals=Refusals(clock),
        slices=slices,
    )
    journal._producer = _Producer(journal._producer)
    return journal


class Process:
    """What the partitions of a process share, and the partitions."""

    def __init__(self, partitions: int = PARTITIONS, *, submits: int = 16) -> None:
        self.clock = _Clock()
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, clock=self.clock, version="0", sites=[f"site-{n}" for n in range(4)])
        self.api = _Vcda()
        self.lanes = Lanes(
            limits=LaneLimits(max_concurrent_submits=submits, max_running=0, slots_ahead=submits),
            clock=self.clock,
            metrics=self.metrics,
            random=Random(1),
        )
        self.slices = Slices()
        self.poller = Poller(
            api=self.api,
            lane=self.lanes.lane,
            clock=self.clock,
            metrics=self.metrics,
            random=Random(2),
            shortest=timedelta(seconds=1),
            longest=timedelta(minutes=1),
            slices=self.slices,
        )
        self.dependencies = Dependencies(
            api=self.api,
            lanes=self.lanes,
            poller=self.poller,
            clock=self.clock,
            policy=Policy(
                window=timedelta(seconds=2),
                late=timedelta(seconds=60),
                lost_after=timedelta(minutes=10),
                deduplicate_for=timedelta(days=1),
            ),
            metrics=self.metrics,
            requests="requests",
            outcomes=OutcomeTopics(completed="completed", failed="failed"),
            dead_letters="dead",
            deadline=timedelta(hours=6),
            slices=self.slices,
        )
        self.partitions: list[Partition] = []
        self.metrics.set_oldest(lambda: oldest_accepted(self.partitions))
        self.metrics.set_waiting(lambda: waiting_by_cause(self.partitions, self.lanes))
        self.metrics.set_overdue(self.poller.overdue)
        self.polling = asyncio.create_task(self.poller.run())
        if gc.isenabled():
            collector = garbage.GarbageCollector(self.clock, partitions=lambda: self.partitions)
            self.collecting = asyncio.create_task(collector.run())
        self.count = partitions

    def make(self, states: Sequence[InFlight]) -> None:
        """Make the partitions; the states are shared out by replication."""
        shares: list[list[InFlight]] = [[] for _ in range(self.count)]
        for state in states:
            shares[crc32(state.request.replication_id.encode()) % self.count].append(state)
        for number, share in enumerate(shares):
            opened = Opened(
                journal=_journal(self.clock, number, self.slices),
                opened_at=self.clock.monotonic(),
                cursor=Cursor("requests", 0),
                in_flight=share,
                ended=EndedSyncs(),
            )
            self.partitions.append(
                Partition(
                    number,
                    opened=opened,
                    dependencies=self.dependencies,
                    balance=Balance(self.metrics),
                    start_at=0,
                    on_lost=partial(log.error, "lost: %s"),
                )
            )

    async def start(self) -> None:
        """Start all partitions."""
        await asyncio.gather(*(partition.start() for partition in self.partitions))

    @property
    def in_flight(self) -> int:
        """So many are in flight."""
        return sum(map(len, self.partitions))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait, looking now and then."""
        while not condition():  # noqa: ASYNC110 - whatever the condition is
            await asyncio.sleep(0.1)


def states(number: int, *, each: int, deadline: datetime) -> list[InFlight]:
    """Make so many syncs: of each replication one runs, and the others wait behind it."""
    now = deadline - timedelta(hours=1)
    made: list[InFlight] = []
    for n in range(number):
        replication = f"C4-{n // each:08x}-0000-4000-8000-000000000000"
        request = Request(
            identity=f"op:{replication}:op-{n}",
            operation_id=f"op-{n}",
            replication_id=replication,
            site=None,
            offset=n,
            requested_at=now,
            accepted_at=now,
            deadline=deadline,
        )
        if n % each == 0:
            made.append(
                Running(
                    request=request,
                    attempts=1,
                    task_id=f"task-{n}",
                    site=None,
                    account=Account("us"),
                    submitted_at=now,
                )
            )
        else:
            made.append(Waiting(request=request))
    return made


Scenario = Callable[[Turns, argparse.Namespace], Awaitable[None]]


async def _restored(given: argparse.Namespace, *, partitions: int = PARTITIONS) -> Process:
    process = Process(partitions)
    process.make(states(given.count, each=given.each, deadline=process.clock.now() + timedelta(hours=1)))
    await process.start()
    running = -(-given.count // given.each)
    await process.until(lambda: process.api.polled >= running)
    return process


async def restore(turns: Turns, given: argparse.Namespace) -> None:
    """Take up what was in flight, until each task was polled once."""
    process = Process()
    process.make(states(given.count, each=given.each, deadline=process.clock.now() + timedelta(hours=1)))
    gc.collect()
    turns.start()
    await process.start()
    running = -(-given.count // given.each)
    await process.until(lambda: process.api.polled >= running)


async def deadlines(turns: Turns, given: argparse.Namespace) -> None:
    """All deadlines pass at one moment."""
    process = await _restored(given)
    turns.start()
    process.clock.ahead = timedelta(hours=1, seconds=1)
    told = process.metrics._outcomes
    await process.until(lambda: sum(child._value.get() for child in told.values()) >= given.count)


async def scrape(turns: Turns, given: argparse.Namespace) -> None:
    """Scrape `/metrics` ten times."""
    process = await _restored(given)
    app = server.operations(
        health=Health(away_for_long=timedelta(minutes=1)),
        clock=process.clock,
        registry=process.registry,
        documents={},
        in_flight=lambda: iter(()),
        sites=None,
        overview=None,  # type: ignore[arg-type]
        clean=str,
    )
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ops")
    await http.get("/metrics")
    turns.start()
    for _ in range(10):
        await http.get("/metrics")
        await asyncio.sleep(0.05)


async def commit(turns: Turns, given: argparse.Namespace) -> None:
    """Commit so many changes in one transaction, each with an outcome."""
    clock = Clock()
    journal = _journal(clock, 0, Slices())
    some = states(given.count, each=given.each, deadline=clock.now())
    event = [
        Event(topic="completed", key=state.request.replication_id.encode(), value=b"x" * 500, headers=())
        for state in some
    ]
    batch = Batch({state.request.identity: state for state in some}, event, Cursor("requests", 0))
    turns.start()
    await journal.commit(batch)
    given.kept = batch, some  # freeing it is not measured: in the service its pieces live on


async def close(turns: Turns, given: argparse.Namespace) -> None:
    """Quiesce, take back, and close all partitions at once."""
    process = await _restored(given)
    turns.start()
    await asyncio.gather(*(partition.quiesce(10.0) for partition in process.partitions))
    for partition in process.partitions:
        partition.resume()
    await asyncio.sleep(0.2)
    await asyncio.gather(*(partition.quiesce(10.0) for partition in process.partitions))
    await asyncio.gather(*(partition.close() for partition in process.partitions))
    process.partitions.clear()
    await asyncio.sleep(0.2)


async def read(turns: Turns, given: argparse.Namespace) -> None:
    """Read a backlog of 48 partitions, as Kafka's client has fetched it, and admit it."""
    process = Process(MANY_PARTITIONS)
    process.make([])
    await process.start()
    process.lanes.lane(None).hold(process.clock.monotonic() + 1e6)
    consumer = SteadyConsumer(clock=process.clock, read=process.metrics.records_read, bootstrap_servers="localhost:1")
    places = [TopicPartition("requests", number) for number in range(MANY_PARTITIONS)]
    consumer.assign(places)
    assignment = consumer._subscription.subscription.assignment
    fetcher = consumer._fetcher = Fetcher.__new__(Fetcher)
    fetcher._loop, fetcher._fetch_waiters = asyncio.get_running_loop(), set()
    fetcher._subscriptions, fetcher._records, fetcher._wait_consume_future = consumer._subscription, OrderedDict(), None
    consumer._coordinator = None
    each = given.count // MANY_PARTITIONS
    for place in places:
        assignment.state_value(place).seek(0)
        fetcher._records[place] = FetchResult(
            place, assignment=assignment, partition_records=_fetched(place, each), backoff=0.1
        )
    gc.collect()
    turns.start()
    while fetcher._records:
        got = await consumer.getmany(timeout_ms=10, max_records=DEFAULT_TIMINGS.records_at_once)
        for place, records in got.items():
            process.partitions[place.partition].admit([_record(record) for record in records])
    await process.until(lambda: process.in_flight == each * MANY_PARTITIONS)


def _fetched(place: TopicPartition, each: int) -> PartitionRecords:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 30,
    )
    for n in range(each):
        replication = f"C4-{place.partition:04x}{n:04x}-0000-4000-8000-000000000000"
        value = json.dumps({"replicationId": replication, "operationID": f"op-{n}"}).encode()
        builder.append(n, timestamp=1_700_000_000_000, key=replication.encode(), value=value, headers=[])
    records = MemoryRecords(bytes(builder.build()))
    return PartitionRecords(place, records, [], 0, None, None, check_crcs=True, isolation_level=READ_COMMITTED)


SCENARIOS: dict[str, Scenario] = {
    "restore": restore,
    "deadlines": deadlines,
    "scrape": scrape,
    "commit": commit,
    "close": close,
    "read": read,
}


def main() -> None:
    """Run one, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--each", type=int, default=1, help="requests of each replication")
    parser.add_argument("--no-garbage", action="store_true", help="without the garbage collector")
    given = parser.parse_args()
    logs.configure(form="json", level="INFO", secrets=[])
    garbage.configure()
    if given.no_garbage:
        gc.disable()

    async def measured() -> dict[str, float]:
        turns = Turns()
        await SCENARIOS[given.scenario](turns, given)
        await asyncio.sleep(0.1)
        return turns.stop()

    with asyncio.Runner(loop_factory=event_loop.factory()) as runner:
        print(json.dumps(runner.run(measured())))
        for task in asyncio.all_tasks(runner.get_loop()):
            task.cancel()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
