"""Partitions that change their owner: a restore from full journals, and processes that come and go under load.

The journals are written directly, in the service's own format, so that half a million ended syncs need no history.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.controls import replication_ids
from benchmarks.results import Run, quantile
from benchmarks.scenarios import PATIENCE, Cpu, idle_busy, posted_after
from benchmarks.sizes import Sizes
from benchmarks.stage import PARTITIONS, BenchError, Stage, Subject, Topics, cpu_seconds, peak, resident
from benchmarks.traffic import Outcomes, Request, partition_of, producing, trickle, write
from service.kafka.connection import KafkaConnection
from service.kafka.journal_codec import CURSOR_KEY, Cursor, encode, encode_cursor
from service.kafka.topics import TopicNames, ensure_topics
from service.sync import Account, Ended, Running, remembered_until
from service.sync import Request as Accepted

LONGER_THAN_WE_LOOK = "100000"
"""Seconds that the restored tasks take."""

# ---------------------------------------------------------------- restores


async def restore(stage: Stage, subject_name: str, *, sizes: Sizes, number: int) -> Run:
    """Start a service before full journals: from the assignment to the first poll of the last sync that is due.

    `bare` reads the same journals and understands nothing; `empty` is the service with nothing to restore.
    """
    in_flight, remembered = (0, 0) if subject_name == "empty" else (sizes.restored, sizes.remembered)
    async with full_journals(stage, in_flight=in_flight, remembered=remembered, number=number) as topics:
        if subject_name == "bare":
            figures = await stage.floor("reading", topic=topics.journal, partitions=PARTITIONS)
        else:
            figures = await _restored(stage, topics, in_flight=in_flight)
    return Run(scenario="restore", subject=subject_name, round=number, figures=figures)


@asynccontextmanager
async def full_journals(stage: Stage, *, in_flight: int, remembered: int, number: int) -> AsyncIterator[Topics]:
    """Make topics whose journals hold so many syncs that run at VCDA, and so many that have ended."""
    await stage.fresh(duration=LONGER_THAN_WE_LOOK)
    tasks: list[dict[str, Any]] = []
    if in_flight:
        await stage.floor("ceiling", posts=in_flight, replications=in_flight, seed=f"restore-{number}")
        tasks = await stage.vcda_says("ledger")
    topics = await stage.topics()
    await _make_topics(stage, topics)
    records = itertools.chain(_running(tasks), _ended(remembered), _cursors(topics))
    async with producing(stage.bootstrap) as producer:
        await write(producer, topics.journal, records, partitions=PARTITIONS)
    try:
        yield topics
    finally:
        await stage.drop(topics)


async def _make_topics(stage: Stage, topics: Topics) -> None:
    completed, failed = topics.outcomes
    await ensure_topics(
        KafkaConnection(bootstrap_servers=(stage.bootstrap,)),
        names=TopicNames(
            requests=topics.requests,
            completed=completed,
            failed=failed,
            dead_letter=topics.dead_letter,
            journal=topics.journal,
        ),
        partitions=topics.partitions,
        create=True,
    )


async def _restored(stage: Stage, topics: Topics, *, in_flight: int) -> dict[str, float]:
    subject = stage.start("service", topics)
    try:
        await subject.ready()
        last = await first_polls(stage, in_flight) if in_flight else time.time()
        assigned = subject.logged("Rebalance: assigned partitions")
        if assigned is None:
            msg = "the log doesn't tell when partitions were assigned"
            raise BenchError(msg)
        return {
            "seconds": last - assigned,
            "rss_mb": resident(subject.pid) / 1e6,
            "peak_mb": peak(subject.pid) / 1e6,
            "cpu_s": Cpu.now(stage, subject.pid).subject,
        }
    finally:
        subject.kill()  # its syncs never end; there is nothing to be learnt from an orderly stop


async def first_polls(stage: Stage, count: int) -> float:
    """Wait until each task was polled for; return when the last was for the first time."""
    give_up = time.monotonic() + PATIENCE
    while (counters := await stage.vcda_says("counters"))["tasksPolled"] < count:
        if time.monotonic() > give_up:
            msg = f"of {count} restored syncs, {counters['tasksPolled']} were polled for"
            raise BenchError(msg)
        await asyncio.sleep(0.5)
    return float(counters["lastFirstPoll"])


def _accepted(replication_id: str, operation_id: str, at: datetime) -> Accepted:
    return Accepted(
        identity=f"op:{replication_id}:{operation_id}",
        operation_id=operation_id,
        replication_id=replication_id,
        site=None,
        offset=0,
        requested_at=at,
        accepted_at=at,
        deadline=at + timedelta(hours=6),
    )


def _running(tasks: list[dict[str, Any]]) -> Iterator[tuple[int, bytes, bytes]]:
    for task in tasks:
        began = datetime.fromtimestamp(task["start"], UTC)
        request = _accepted(task["replicationId"], task["operationID"], began)
        state = Running(
            request=request,
            attempts=1,
            task_id=task["id"],
            site=None,
            account=Account(task["user"]),
            submitted_at=began,
        )
        yield partition_of(request.replication_id, PARTITIONS), request.identity.encode(), encode(state)


def _ended(count: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield syncs that ended in the course of the last day."""
    now = datetime.now(UTC)
    for number, replication_id in enumerate(replication_ids("ended", count)):
        ended = now - timedelta(hours=23) + timedelta(hours=22) * number / count
        request = _accepted(replication_id, "op-0", ended - timedelta(minutes=1))
        state = Ended(
            request=request,
            attempts=1,
            reason=None,
            ended_at=ended,
            expires_at=remembered_until(ended, deduplicate_for=timedelta(days=1)),
            task_id=f"00000000-0000-4000-8000-{number:012x}",
            submitted_at=ended - timedelta(minutes=1),
        )
        yield partition_of(replication_id, PARTITIONS), request.identity.encode(), encode(state)


def _cursors(topics: Topics) -> Iterator[tuple[int, bytes, bytes]]:
    for number in range(topics.partitions):
        yield number, CURSOR_KEY, encode_cursor(Cursor(topics.requests, 0))


# ---------------------------------------------------------------- many partitions


async def partitions(stage: Stage, count: str, *, sizes: Sizes, number: int) -> Run:
    """Start a service before so many partitions whose journals hold a cursor alone; then watch it do nothing.

    From the assignment to the opening of the last one.
    """
    topics = await stage.topics(int(count))
    await _make_topics(stage, topics)
    async with producing(stage.bootstrap) as producer:
        await write(producer, topics.journal, _cursors(topics), partitions=topics.partitions)
    subject = stage.start("service", topics)
    try:
        await subject.ready()
        assigned, last = subject.logged("Rebalance: assigned partitions"), subject.logged_last(" is open: ")
        if assigned is None or last is None:
            msg = "the log doesn't tell when partitions were assigned and opened"
            raise BenchError(msg)
        started = cpu_seconds(subject.pid)
        figures = {
            "open_s": last - assigned,
            "cpu_s": started,
            "idle_busy": await idle_busy(subject.pid, sizes.idle),
            "rss_mb": resident(subject.pid) / 1e6,
        }
    finally:
        await subject.stop()
        await stage.drop(topics)
    return Run(scenario="partitions", subject=count, round=number, figures=figures)


# ---------------------------------------------------------------- what remembering costs


async def remembering(stage: Stage, subject_name: str, *, sizes: Sizes, number: int) -> Run:
    """Count the bytes of a remembered identity, in a process that does nothing else."""
    figures = await stage.floor("dictionary", posts=sizes.remembered, seed=f"{subject_name}-{number}")
    return Run(scenario="remembering", subject=subject_name, round=number, figures=figures)


# ---------------------------------------------------------------- processes that come and go


async def hand_over(stage: Stage, subject_name: str, *, sizes: Sizes, number: int) -> Run:
    """One process works; a second joins; the first is told to stop; a third joins; the second is killed.

    What counts is how long the requests appended around each event waited for their POSTs.
    """
    await stage.fresh(duration="1")
    topics = await stage.topics()
    pause = sizes.hand_over_pause
    # What a kill leaves in doubt is POSTed again after these two and a window of 2 s, if it has no task.
    settings = {"VCDA__REQUEST_TIMEOUT": "PT5S", "SYNC__SETTLE": "PT2S", "KAFKA__SESSION_TIMEOUT": "PT6S"}
    events: dict[str, float] = {}
    appended: dict[str, float] = {}
    processes: list[Subject] = []
    sending: asyncio.Task[None] | None = None

    async def join(name: str) -> Subject:
        process = stage.start("service", topics, **settings)
        processes.append(process)
        events[name] = time.time()
        await process.ready()
        return process

    try:
        first = await join("start")
        async with Outcomes(stage.bootstrap, topics) as outcomes:
            sending = asyncio.create_task(
                trickle(
                    stage.bootstrap,
                    topics.requests,
                    _endless(number),
                    rate=sizes.hand_over_rate,
                    appended=appended,
                )
            )
            await asyncio.sleep(pause / 2)
            second = await join("join")
            await asyncio.sleep(pause)
            events["stop"] = time.time()
            await first.stop()
            await asyncio.sleep(pause)
            await join("join again")
            await asyncio.sleep(pause)
            events["kill"] = time.time()
            second.kill()
            await asyncio.sleep(pause)
            sending.cancel()
            await asyncio.wait([sending])
            await outcomes.wait(len(appended), within=PATIENCE)
            missing = len(appended) - len(outcomes.by_operation())
        figures = _waits(await stage.vcda_says("ledger"), appended, events, within=pause)
        counters = await stage.vcda_says("counters")
        figures |= {
            "missing": float(missing),
            "overlapping": counters["overlapping"],
            "repeated": float(len(counters["repeated"])),
        }
    finally:
        if sending is not None:
            sending.cancel()
        await asyncio.gather(*(process.stop() for process in processes))
        await stage.drop(topics)
    return Run(scenario="hand-over", subject=subject_name, round=number, figures=figures)


def _endless(number: int) -> Iterator[Request]:
    for count in itertools.count():
        yield Request(f"op-{count}", replication_ids(f"hand-over-{number}-{count}", 1)[0])


def _waits(
    ledger: list[dict[str, Any]], appended: dict[str, float], events: dict[str, float], *, within: float
) -> dict[str, float]:
    """Tell the median and the longest wait of the requests around each event, and of those before the first."""

    def between(low: float, high: float) -> list[float]:
        some = {operation: at for operation, at in appended.items() if low <= at < high}
        return sorted(posted_after(ledger, some)) or [0.0]

    figures = {"quiet_p50_s": quantile(between(events["start"], events["join"]), 0.5)}
    figures["quiet_max_s"] = between(events["start"], events["join"])[-1]
    for name in ("join", "stop", "kill"):
        waits = between(events[name] - 1.0, events[name] + within)
        figures[f"{name}_p50_s"], figures[f"{name}_max_s"] = quantile(waits, 0.5), waits[-1]
    return figures
