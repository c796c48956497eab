"""Topics that are deleted and created again under load, on three brokers, where not all know of it at once.

What an operator has deleted is gone. The service notices within seconds, says so, and isn't ready; nothing is wrong
with the outcomes of what it had read, and nothing of another topic is taken for the old one's.
"""

import asyncio
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from aiokafka.admin import NewTopic
from typer.testing import CliRunner

from service.cli.commands import app
from service.kafka.topics import JOURNAL_SETTINGS
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.conftest import TopicNamer
from tests.support.cluster import BROKERS, Admin, Cluster
from tests.support.process_harness import Ledger, Process, appliance

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]

PARTITIONS = 3

NOTICED = 15.0
"""Seconds until it is said; what a busy machine adds comes on top."""

BUSY = 45.0

PLAN = Plan(queued=Durations.of("0.1"), duration=Durations.of("uniform:0.3:1.5"))


class Load:
    """Requests that are put on the topic all the time, one in `every` so many seconds, until `stop`."""

    def __init__(self, ledger: Ledger, *, every: float = 0.1) -> None:
        self._ledger = ledger
        self._every = every
        self._standing: list[asyncio.Task[None]] = []
        self._going = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        while True:
            name = str(uuid.uuid4())
            self._standing.append(await self._ledger.begin_to_ask(f"op-{name}", f"C4-{name}"))
            await asyncio.sleep(self._every)

    async def stop(self) -> None:
        """Put no more there, and return when all that was put stands there, or failed."""
        self._going.cancel()
        await asyncio.wait([self._going, *self._standing])


@asynccontextmanager
async def _under_load(cluster: Cluster, prefix: str) -> AsyncIterator[tuple[Ledger, list[Process], Load]]:
    """Two processes, with syncs on their way in each partition."""
    async with (
        Simulator(appliance(PLAN, submit_latency=Durations.of("0.02"))) as vcda,
        Ledger(bootstrap=cluster.bootstrap, simulator=vcda, prefix=prefix, partitions=PARTITIONS) as ledger,
    ):
        processes = [ledger.start() for _ in range(2)]
        await asyncio.gather(*(ledger.ready(process) for process in processes))
        load = Load(ledger)
        try:
            await _until(lambda: vcda.world.counters()["tasks"] >= 20, "syncs are running")
            yield ledger, processes, load
        finally:
            await load.stop()


async def _recreate(cluster: Cluster, topic: str, **settings: str) -> None:
    """Delete a topic and create it again, as soon as the name is free."""
    async with Admin(cluster.bootstrap) as admin:
        await admin.delete_topics([topic])
        async with asyncio.timeout(BUSY):
            while True:
                new = NewTopic(topic, PARTITIONS, BROKERS, topic_configs=settings)
                if not any(code for _, code, *_ in (await admin.create_topics([new])).topic_errors):
                    return
                await asyncio.sleep(0.02)


async def _until(holds: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(NOTICED + BUSY):
        while not holds():
            await asyncio.sleep(0.05)
    assert holds(), what


async def _reasons(process: Process) -> str:
    """Why a process isn't ready; empty when it is."""
    try:
        answer = await process.get("/readyz")
    except httpx.HTTPError as error:
        return f"{error!r}"
    return "" if answer.status_code == 200 else answer.text


async def _until_said(processes: list[Process], *words: str) -> None:
    """Wait until a process isn't ready, for a reason with one of these words."""
    began, said = time.monotonic(), [""]
    while not any(word in reason for reason in said for word in words):
        assert time.monotonic() - began < NOTICED + BUSY, (said, processes[0].text()[-3000:])
        said = [await _reasons(process) for process in processes]
        await asyncio.sleep(0.1)


async def _until_all_are_refused(processes: list[Process]) -> None:
    stopped = re.compile(r"^vm_sync_partitions_stopped\{.*\} (\S+)$", re.MULTILINE)
    async with asyncio.timeout(NOTICED + BUSY):
        while True:
            texts = [(await process.get("/metrics", timeout=BUSY)).text for process in processes]
            if sum(float(number) for text in texts for number in stopped.findall(text)) == PARTITIONS:
                return
            await asyncio.sleep(0.2)


async def test_requests_of_a_new_requests_topic_are_not_taken_for_the_old_ones(
    cluster: Cluster, topic_name: TopicNamer
) -> None:
    async with _under_load(cluster, topic_name("new-requests")) as (ledger, processes, load):
        await load.stop()
        before = set(ledger.asked)
        await _recreate(cluster, ledger.topics["requests"])
        await ledger.hang_up()
        more = Load(ledger, every=1)  # the new topic must not reach the cursors before it is noticed

        await _until_said(processes, "created again", "another topic")
        await _until_all_are_refused(processes)
        await more.stop()
        told = Counter(one.event["operationID"] for one in await ledger.outcomes())
        begun = {task["operationID"] for task in ledger.simulator.world.ledger()}
        environment = ledger.environment()
        # All of them: a busy machine has begun more than the 50 that are shown by default.
        listing = ["list", "--json", "--limit", "100000"]
        listed = await asyncio.to_thread(CliRunner().invoke, app, listing, env=environment)

        assert begun <= before
        assert set(told) <= before
        assert set(told.values()) <= {1}
        assert begun - set(told) <= {row["operationID"] for row in json.loads(listed.stdout)}, "an operator sees them"
        assert not ledger.tracebacks()


async def test_a_journal_that_is_created_again_is_written_again_and_nothing_is_lost_or_done_twice(
    cluster: Cluster, topic_name: TopicNamer
) -> None:
    async with _under_load(cluster, topic_name("new-journal")) as (ledger, processes, load):
        await _recreate(cluster, ledger.topics["journal"], **JOURNAL_SETTINGS)

        def rewritten() -> bool:
            return any("created again, or truncated" in process.text() for process in processes)

        await _until(rewritten, "the loss of the journal is said")
        await asyncio.gather(*(ledger.ready(process) for process in processes))
        await load.stop()
        told = await ledger.wait(within=NOTICED + BUSY)
        verdict = await ledger.judge()

        assert len(told) == len(ledger.asked)
        assert verdict.violations == []
        assert not ledger.tracebacks()


async def test_outcomes_go_to_a_completed_topic_that_is_created_again_without_a_restart(
    cluster: Cluster, topic_name: TopicNamer
) -> None:
    async with _under_load(cluster, topic_name("new-completed")) as (ledger, processes, load):
        topic = ledger.topics["completed"]
        async with Admin(cluster.bootstrap) as admin:
            await admin.delete_topics([topic])
            gone = time.time()
            await _until_said(processes, topic)
        await _recreate(cluster, topic)
        back = time.time()
        await asyncio.gather(*(ledger.ready(process, within=NOTICED + BUSY) for process in processes))
        await load.stop()
        await _told(ledger, set(ledger.asked) - _ended_before(ledger, gone))
        told = await ledger.outcomes()

        names = Counter(one.event["operationID"] for one in told)
        assert set(names.values()) == {1}
        assert set(ledger.asked) - set(names) <= _ended_before(ledger, back)
        assert not ledger.tracebacks()
        tasks = Counter(task["operationID"] for task in ledger.simulator.world.ledger())
        assert set(tasks.values()) == {1}


def _ended_before(ledger: Ledger, moment: float) -> set[str]:
    return {task["operationID"] for task in ledger.simulator.world.ledger() if task["end"] < moment}


async def _told(ledger: Ledger, wanted: set[str]) -> list[str]:
    """Wait until these have outcomes, and return whose there are, each as often as there are."""
    until = time.monotonic() + NOTICED + BUSY
    while True:
        names = [one.event["operationID"] for one in await ledger.outcomes()]
        if set(names) >= wanted:
            return names
        assert time.monotonic() < until, f"{len(wanted - set(names))} have none"
        await asyncio.sleep(0.5)
