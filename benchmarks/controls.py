"""What the service is measured against: programs of their own, written as somebody in a hurry would write them well.

    bare        the service's HTTP client in a loop that only POSTs: the floor under any client of VCDA
    obvious     the whole job as an obvious FastStream service: its handler POSTs, asks once a second, publishes
    listing     the whole job with its state in memory: POSTs, and each second lists all sync tasks, page by page
    running     the same, but lists those that run, and asks by their ids for those that no longer do
    ceiling     ready-made bytes on bare sockets: how many POSTs the simulated VCDA itself can take
    reading     a bare consumer that reads journals and understands nothing: the floor under a restore
    dictionary  what the service remembers, beside a plain dict from identity to expiry: the cost of not hashing

They get what the service gets: uvloop, the same HTTP client and connections, a session of their own; and they write
no logs, which the service does. What they don't do: keep a replication's syncs apart, or survive anything. Never slow
one down.
"""

import argparse
import asyncio
import itertools
import json
import re
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit
from zlib import crc32

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from httpx_aiohttp import AiohttpTransport
from pydantic import BaseModel, Field
from typing_extensions import override

ENDED = frozenset({"SUCCEEDED", "FAILED"})
CONTENT_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


async def client(given: argparse.Namespace) -> httpx.AsyncClient:
    """Log in; return the client that every control uses, with as many connections as the service has POSTs."""
    limits = httpx.Limits(max_connections=given.concurrency, max_keepalive_connections=given.concurrency)
    http = httpx.AsyncClient(base_url=given.vcda, transport=AiohttpTransport(limits=limits), timeout=60.0)
    answer = await http.post(
        "/sessions",
        json={"type": "vcdCredentials", "vcdUser": given.user, "vcdPassword": given.password},
        headers={"Accept": "application/json"},
    )
    answer.raise_for_status()
    http.headers["X-VCAV-Auth"] = answer.headers["X-VCAV-Auth"]
    http.headers["Accept"] = "application/json"
    return http


async def post(http: httpx.AsyncClient, *, replication_id: str, operation_id: str) -> dict[str, Any]:
    """Begin one sync and return its task."""
    answer = await http.post(f"/vm-replications/{replication_id}/sync", headers={"operationID": operation_id})
    answer.raise_for_status()
    task: dict[str, Any] = answer.json()
    return task


# ---------------------------------------------------------------- floors


def replication_ids(seed: str, count: int) -> list[str]:
    """Make names of replications as VCDA has them, the same for the same seed."""
    head = f"{crc32(seed.encode()):08x}"
    return [f"C4-{head}-0000-4000-8000-{number:012x}" for number in range(count)]


async def bare(given: argparse.Namespace) -> dict[str, float]:
    """POST and do nothing else."""
    http = await client(given)
    names = replication_ids(given.seed, given.replications)
    numbers = iter(range(given.posts))

    async def one_after_another() -> None:
        for number in numbers:
            await post(http, replication_id=names[number % len(names)], operation_id=f"op-{number}")

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one_after_another() for _ in range(given.concurrency)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    await http.aclose()
    return {"posts_per_second": given.posts / seconds, "cpu_ms": cpu / given.posts * 1000, "seconds": seconds}


class _Hammer(asyncio.Protocol):
    """One connection that sends the next ready-made request as soon as an answer is there."""

    def __init__(self, requests: Iterator[bytes], done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._done = done
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is none by its class
        self._next()

    @override
    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(head)
        if not found or length is None or len(body) < int(length[1]):
            return
        if not head.startswith(b"HTTP/1.1 202"):
            self._done.set_exception(RuntimeError(head.decode()))
            return
        self._buffer = b""
        self._next()

    def _next(self) -> None:
        request = next(self._requests, None)
        if self._transport is not None and request is not None:
            self._transport.write(request)
        elif not self._done.done():
            self._done.set_result(None)


async def ceiling(given: argparse.Namespace) -> dict[str, float]:
    """Send POSTs that cost next to nothing to make, so that the simulated VCDA is what limits them."""
    http = await client(given)
    host = urlsplit(given.vcda)
    token = http.headers["X-VCAV-Auth"]
    names = itertools.cycle(replication_ids(given.seed, given.replications))
    requests = iter(
        [
            f"POST /vm-replications/{next(names)}/sync HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Length: 0\r\n"
            f"Accept: application/json\r\noperationID: op-{number}\r\nX-VCAV-Auth: {token}\r\n\r\n".encode()
            for number in range(given.posts)
        ]
    )
    loop = asyncio.get_running_loop()
    began, cpu = time.perf_counter(), time.process_time()
    done = [loop.create_future() for _ in range(given.concurrency)]
    connections = [
        await loop.create_connection(lambda one=one: _Hammer(requests, one), host.hostname, host.port)  # type: ignore[misc]
        for one in done
    ]
    await asyncio.gather(*done)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    for transport, _ in connections:
        transport.close()
    await http.aclose()
    return {"posts_per_second": given.posts / seconds, "cpu_ms": cpu / given.posts * 1000, "seconds": seconds}


async def reading(given: argparse.Namespace) -> dict[str, float]:
    """Read a topic to its end, committed records only, and look into none of them."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=given.kafka,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=8 * 1024 * 1024,
    )
    began, cpu = time.perf_counter(), time.process_time()
    await consumer.start()
    places = [TopicPartition(given.requests, number) for number in range(given.partitions)]
    consumer.assign(places)
    ends = await consumer.end_offsets(places)
    await consumer.seek_to_beginning(*places)
    records = size = 0
    while any([await consumer.position(place) < end for place, end in ends.items()]):
        for some in (await consumer.getmany(timeout_ms=200, max_records=2_000)).values():
            records += len(some)
            size += sum(len(record.key) + len(record.value or b"") for record in some)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    await consumer.stop()
    return {"seconds": seconds, "cpu_s": cpu, "records": float(records), "bytes_each": size / max(1, records)}


# ---------------------------------------------------------------- the whole job


class SyncRequested(BaseModel):
    """A request, as the obvious service reads it."""

    operation_id: str = Field(alias="operationID")
    replication_id: str = Field(alias="replicationId")


class SyncEnded(BaseModel):
    """An outcome, as the obvious service writes it."""

    operation_id: str = Field(serialization_alias="operationID")
    task_id: str = Field(serialization_alias="taskId")
    state: str


async def obvious(given: argparse.Namespace) -> None:
    """One handler that waits for its sync to end, many of them at once."""
    from faststream.kafka import KafkaBroker

    http = await client(given)
    broker = KafkaBroker(given.kafka, logger=None)

    async def sync(request: SyncRequested) -> None:
        task = await post(http, replication_id=request.replication_id, operation_id=request.operation_id)
        while task["state"] not in ENDED:
            await asyncio.sleep(1.0)
            task = (await http.get(f"/tasks/{task['id']}")).raise_for_status().json()
        ended = SyncEnded(operation_id=request.operation_id, task_id=task["id"], state=task["state"])
        key = request.replication_id.encode()
        await broker.publish(ended.model_dump_json(by_alias=True), given.outcomes, key=key)

    broker.subscriber(given.requests, group_id=given.requests, max_workers=given.workers, auto_offset_reset="earliest")(
        sync
    )
    await broker.start()
    await _until_told_to_stop()
    await broker.stop()
    await http.aclose()


class ListAll:
    """The list-all poller: what runs is in a dict, and a look at everything each second tells what has ended."""

    def __init__(self, given: argparse.Namespace, http: httpx.AsyncClient) -> None:
        self.consumer = AIOKafkaConsumer(
            given.requests, bootstrap_servers=given.kafka, group_id=given.requests, auto_offset_reset="earliest"
        )
        self.producer = AIOKafkaProducer(bootstrap_servers=given.kafka, linger_ms=5)
        self._outcomes = given.outcomes
        self._http = http
        self._slots = asyncio.Semaphore(given.concurrency)
        self._posting: set[asyncio.Task[None]] = set()
        self._running: dict[str, tuple[int, dict[str, Any]]] = {}

    async def consume(self) -> None:
        """Begin a sync for each request, as soon as a connection is free."""
        async for record in self.consumer:
            task = asyncio.create_task(self._begin(json.loads(record.value)))
            self._posting.add(task)
            task.add_done_callback(self._posting.discard)

    async def _begin(self, request: dict[str, Any]) -> None:
        async with self._slots:
            task = await post(self._http, replication_id=request["replicationId"], operation_id=request["operationID"])
        self._running[task["id"]] = (task["startTime"], request)

    async def look_each_second(self) -> None:
        """List all, once a second, or as soon as the last list is complete."""
        while True:
            began = time.monotonic()
            if self._running:
                await self._look()
            await asyncio.sleep(max(0.0, began + 1.0 - time.monotonic()))

    async def _look(self) -> None:
        """Page through all sync tasks since the oldest that runs, and publish those that have ended."""
        since = min(started for started, _ in self._running.values()) - 1
        for offset in itertools.count(0, 100):
            params: dict[str, str | int] = {"type": "sync", "startTimeAfter": since, "limit": 100, "offset": offset}
            page = (await self._http.get("/tasks", params=params)).raise_for_status().json()
            for task in page["items"]:
                if task["state"] in ENDED and (known := self._running.pop(task["id"], None)) is not None:
                    await self._publish(known[1], task)
            if offset + 100 >= page["total"]:
                return

    async def _publish(self, request: dict[str, Any], task: dict[str, Any]) -> None:
        outcome = {"operationID": request["operationID"], "taskId": task["id"], "state": task["state"]}
        key = request["replicationId"].encode()
        await self.producer.send(self._outcomes, json.dumps(outcome).encode(), key=key)


class ListRunning(ListAll):
    """The same with less to read: what is known and no longer listed as running is asked for by its id."""

    @override
    async def _look(self) -> None:
        known, listed = list(self._running), set[str]()
        for offset in itertools.count(0, 100):
            params: dict[str, str | int] = {"type": "sync", "state": "RUNNING", "limit": 100, "offset": offset}
            page = (await self._http.get("/tasks", params=params)).raise_for_status().json()
            listed.update([task["id"] for task in page["items"]])
            if offset + 100 >= page["total"]:
                break
        gone = [name for name in known if name not in listed]
        for at in range(0, len(gone), 100):
            asked: dict[str, str | int] = {"ids": ",".join(gone[at : at + 100]), "limit": 100}
            page = (await self._http.get("/tasks", params=asked)).raise_for_status().json()
            for task in page["items"]:
                if task["state"] in ENDED:
                    await self._publish(self._running.pop(task["id"])[1], task)


async def listing(given: argparse.Namespace) -> None:
    """Run the list-all poller, or the one that lists what runs."""
    http = await client(given)
    job = (ListRunning if given.control == "running" else ListAll)(given, http)
    await job.consumer.start()
    await job.producer.start()
    await _until_told_to_stop(asyncio.create_task(job.consume()), asyncio.create_task(job.look_each_second()))
    await job.consumer.stop()
    await job.producer.stop()
    await http.aclose()


async def _until_told_to_stop(*work: "asyncio.Task[None]") -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    told = asyncio.create_task(stop.wait())
    await asyncio.wait([told, *work], return_when=asyncio.FIRST_COMPLETED)
    for task in work:
        if task.done():
            task.result()
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)


# ---------------------------------------------------------------- memory


def resident() -> int:
    """Return this process' resident bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - shorter
        return int(file.read().split()[1]) * 4096


async def dictionary(given: argparse.Namespace) -> dict[str, float]:
    """Remember a day's identities in the service's own memory, then in a dict of texts; bytes each."""
    from service.kafka.dedup_index import DedupIndex
    from service.kafka.journal_codec import epoch
    from service.sync import remembered_until

    began, day = datetime.now(UTC), timedelta(days=1)
    names = replication_ids(given.seed, given.posts)
    before = resident()
    remembered = DedupIndex()
    for number, name in enumerate(names):
        expires = remembered_until(began + number * day / given.posts, deduplicate_for=day)
        remembered.add(f"op:{name}:op-{number}".encode(), epoch(expires))
    between = resident()
    plain = {f"op:{name}:op-{number}": began.timestamp() + number for number, name in enumerate(names)}
    after = resident()
    return {"bytes": (between - before) / len(remembered), "plain_bytes": (after - between) / len(plain)}


FLOORS = {"bare": bare, "ceiling": ceiling, "reading": reading, "dictionary": dictionary}
JOBS = {"obvious": obvious, "listing": listing, "running": listing}


def main() -> None:
    """Run one. Floors print what they measured; jobs print `ready`, and run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("control", choices=[*FLOORS, *JOBS])
    parser.add_argument("--vcda", default="")
    parser.add_argument("--user", default="administrator@System")
    parser.add_argument("--password", default="password", help="the simulator's own, public")
    parser.add_argument("--kafka", default="")
    parser.add_argument("--requests", default="", help="topic")
    parser.add_argument("--outcomes", default="", help="topic")
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--posts", type=int, default=1000)
    parser.add_argument("--replications", type=int, default=1000)
    parser.add_argument("--seed", default="bare")
    given = parser.parse_args()

    async def run() -> None:
        if given.control in JOBS:
            await JOBS[given.control](given)
        else:
            print(json.dumps(await FLOORS[given.control](given)))

    _on_uvloop(run())


def _on_uvloop(work: Coroutine[Any, Any, None]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    main()
