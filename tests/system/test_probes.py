"""What Kubernetes sees of a process: when it is alive, when it is ready, and how it starts and stops.

The tests act as the kubelet does: they ask, send SIGTERM, and look at the exit code.
"""

import asyncio
import json
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from service.sandbox.kafka import EmbeddedKafka, Kafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.conftest import TopicNamer
from tests.stress import fragile
from tests.support.process_harness import Ledger, Process, appliance, counts

pytestmark = pytest.mark.e2e

POST = 4.0
"""Seconds that VCDA takes for a POST: a process that is told to stop waits for those that it has begun."""

SOON = 3.0
"""Seconds within which something that happens at once has to show, on a machine that does other things too."""

NOBODY_THERE = "127.0.0.1:1"


def replication(number: int) -> str:
    return f"C4-00000000-0000-4000-8000-{number:012d}"


async def until(holds: Callable[[], object], *, within: float = 60.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + within
    while not holds():
        assert time.monotonic() < end, f"it didn't come about within {within} s"
        await asyncio.sleep(0.02)


async def answers(process: Process, path: str, status: int, *, within: float = 60.0) -> str:
    """Wait until the process answers so, and return the text."""
    end = time.monotonic() + within
    while True:
        try:
            answer = await process.get(path)
        except httpx.HTTPError:
            answer = None
        if answer is not None and answer.status_code == status:
            return answer.text
        assert time.monotonic() < end, f"{path} isn't {status} within {within} s: {answer and answer.text}"
        await asyncio.sleep(0.1)


async def shows(process: Process, path: str, pattern: str) -> None:
    """Wait until a page has this: an outcome is on its topic before it is counted here."""
    async with asyncio.timeout(60):
        while not re.search(pattern, re.sub(r"<[^>]+>", " ", (await process.get(path)).text), re.MULTILINE):
            await asyncio.sleep(0.1)


def messages(process: Process, *, level: str | None = None, logger: str = "") -> list[str]:
    """Return what the process logged."""
    lines = [json.loads(line) for line in process.text().splitlines() if line.startswith("{")]
    return [line["message"] for line in lines if level in {None, line["level"]} and line["logger"].startswith(logger)]


def moment(process: Process, message: str) -> float:
    """Return when it logged this, in seconds since 1970."""
    lines = [json.loads(line) for line in process.text().splitlines() if line.startswith("{")]
    return next(datetime.fromisoformat(line["time"]).timestamp() for line in lines if line["message"] == message)


# ---------------------------------------------------------------- the end


@dataclass(slots=True)
class Watched:
    """What the kubelet, and Prometheus, got to hear: when (since 1970) and which status; None is no answer."""

    heard: dict[str, list[tuple[float, int | None]]] = field(
        default_factory=lambda: {path: [] for path in ("/livez", "/readyz", "/metrics")}
    )

    def statuses(self, path: str) -> list[int | None]:
        """Return the statuses in their order, repeated ones once."""
        heard = [status for _, status in self.heard[path]]
        return [status for number, status in enumerate(heard) if number == 0 or status != heard[number - 1]]

    def first(self, path: str, status: int | None) -> float:
        """Return when this was first heard."""
        return next(at for at, heard in self.heard[path] if heard == status)

    def last(self, path: str, status: int | None) -> float:
        """Return when this was last heard."""
        return max(at for at, heard in self.heard[path] if heard == status)


@asynccontextmanager
async def watched(process: Process) -> AsyncIterator[Watched]:
    """Ask every 50 ms, on a new connection each time as the kubelet does."""
    seen = Watched()

    async def watch() -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.port()}", limits=limits) as client:
            while True:
                for path, heard in seen.heard.items():
                    try:
                        status = (await client.get(path, timeout=20.0)).status_code
                    except httpx.HTTPError:
                        status = None
                    heard.append((time.time(), status))
                await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def test_told_to_stop_it_is_unready_at_once_ends_what_it_began_and_answers_to_the_end(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    slow = appliance(Plan(duration=Durations.of(4)), submit_latency=Durations.of(POST))
    async with (
        Simulator(slow) as simulator,
        Ledger(bootstrap=kafka.bootstrap, simulator=simulator, prefix=topic_name("drain")) as ledger,
    ):
        first = ledger.start(VM_SYNC_SYNC__MAX_CONCURRENT_SUBMITS="4", VM_SYNC_VCDA__REQUEST_TIMEOUT="PT10S")
        await ledger.ready(first)
        await ledger.ask_all([(f"op-{number}", replication(number)) for number in range(24)])
        calls = simulator.world.counts.calls
        await until(lambda: calls["submit"] == 8)  # four run, four are being POSTed, the others wait

        async with watched(first) as seen:
            await until(lambda: all(200 in seen.statuses(path) for path in ("/readyz", "/livez", "/metrics")))
            told_at = time.time()
            first.signal(signal.SIGTERM)
            await until(lambda: 503 in seen.statuses("/readyz"))
            assert first.running
            code = await first.ended(within=60)
            await asyncio.sleep(0.1)

        assert code == 0
        assert seen.statuses("/readyz") == [200, 503, None]
        assert seen.statuses("/livez") == seen.statuses("/metrics") == [200, None]
        assert seen.first("/readyz", 503) - told_at < SOON
        stopped_at = moment(first, "Stopped")
        assert seen.last("/livez", 200) > stopped_at - SOON
        assert seen.last("/metrics", 200) > stopped_at - SOON
        assert calls["submit"] == 8  # nothing was begun any more ...
        assert not [line for line in messages(first) if "in doubt" in line]  # ... and all that was begun was ended
        assert messages(first)[-1] == "Stopped"
        assert messages(first, logger="asyncio") == []  # nothing is left open
        assert simulator.world.counters()["sessions"] == 0

        second = ledger.start()
        told = await ledger.wait(within=60)
        verdict = await ledger.judge()

        assert verdict.violations == []
        assert counts(told) == {"completed": 24}
        assert verdict.figures["posts"] == 24
        assert await second.stop() == 0
        assert ledger.tracebacks() == []


async def test_a_post_that_nobody_answers_does_not_hold_up_a_stop_past_its_limit(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    async with (
        Simulator(appliance(Plan())) as simulator,
        Ledger(bootstrap=kafka.bootstrap, simulator=simulator, prefix=topic_name("hang")) as ledger,
    ):
        process = ledger.start(VM_SYNC_OPS__DRAIN_LIMIT="PT5S", VM_SYNC_VCDA__REQUEST_TIMEOUT="PT1M")
        await ledger.ready(process)
        simulator.fault(operation="submit", answer="silent")
        simulator.fault(operation="logout", answer="silent")
        await ledger.ask("op-1", replication(1))
        await until(lambda: simulator.world.counts.calls["submit"] == 1)

        began = time.monotonic()
        code = await process.stop()

        assert code == 0
        assert time.monotonic() - began < 30  # VM_SYNC_VCDA__REQUEST_TIMEOUT is a minute
        assert [line for line in messages(process) if "are closed with POSTs in doubt" in line]
        assert ledger.tracebacks() == []


# ---------------------------------------------------------------- alive


async def test_it_is_not_alive_while_its_loop_is_wedged_nor_once_nothing_is_read_any_more(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    async with (
        Simulator(appliance(Plan())) as simulator,
        Ledger(bootstrap=kafka.bootstrap, simulator=simulator, prefix=topic_name("wedged")) as ledger,
    ):
        process = ledger.start(command=fragile.command(READING_STALLED=2))
        await ledger.ready(process)

        process.signal(signal.SIGSTOP)
        with pytest.raises(httpx.TimeoutException):
            await process.get("/livez", timeout=1.0)
        process.signal(signal.SIGCONT)
        await answers(process, "/livez", 200)

        process.signal(signal.SIGUSR1)
        assert "the reading loop has made no progress" in await answers(process, "/livez", 503)
        assert await process.stop() == 0


# ---------------------------------------------------------------- Kafka away


async def test_kafka_away_is_told_and_waited_for_and_no_reason_to_be_restarted() -> None:
    # With a Kafka of its own, whose port is known before it runs.
    embedded = EmbeddedKafka()
    try:
        async with (
            Simulator(appliance(Plan(duration=Durations.of(1)))) as simulator,
            Ledger(bootstrap=embedded.bootstrap, simulator=simulator, prefix="away") as ledger,
        ):
            process = ledger.start(command=fragile.command(AWAY_FOR_LONG=1, KAFKA_SILENT=6))
            assert "the consumer group has not been joined yet" in await answers(process, "/readyz", 503)
            await until(lambda: _attempts(process))
            (line,) = _attempts(process)  # the same cause is logged once a minute
            assert f"Kafka at {embedded.bootstrap} can't be" in line
            assert (await process.get("/livez")).status_code == 200
            assert len(messages(process)) < 15

            await asyncio.to_thread(embedded.start)
            await ledger.ready(process)
            await ledger.ask("op-1", replication(1))
            assert counts(await ledger.wait(within=60)) == {"completed": 1}

            lines = len(messages(process))
            await asyncio.to_thread(embedded.kill)
            async with watched(process) as seen:
                assert "Kafka has been unreachable" in await answers(process, "/readyz", 503, within=60)
            assert seen.statuses("/livez") == [200]
            assert len(messages(process)) - lines < 20, "the log fills while Kafka is away"

            await asyncio.to_thread(embedded.start)
            await answers(process, "/readyz", 200, within=60)
            await ledger.ask("op-2", replication(2))
            assert counts(await ledger.wait(within=60)) == {"completed": 2}
            assert await process.stop() == 0
            assert ledger.tracebacks() == []
    finally:
        await asyncio.to_thread(embedded.close)


def _attempts(process: Process) -> list[str]:
    return [line for line in messages(process, level="WARNING") if "trying again" in line]


async def test_without_kafka_it_gives_up_after_the_start_limit_and_stops_when_told_before(tmp_path: Path) -> None:
    settings = environment(tmp_path)
    with running(settings | {"VM_SYNC_KAFKA__START_LIMIT": "PT2S"}, log=tmp_path / "limited.log") as impatient:
        code = await impatient.ended(within=60)

    assert code == 1
    (line,) = messages(impatient, level="ERROR", logger="service")
    assert re.search(rf"Kafka at {NOBODY_THERE} .*the limit is 2 s \(VM_SYNC_KAFKA__START_LIMIT\): ", line), line

    with running(settings, log=tmp_path / "told.log") as patient:
        await until(lambda: _attempts(patient))
        began = time.monotonic()
        assert await patient.stop() == 0
        assert time.monotonic() - began < 60  # VM_SYNC_KAFKA__START_LIMIT is five minutes


# ---------------------------------------------------------------- VCDA away


async def test_while_vcda_is_away_requests_wait_tasks_are_asked_after_and_nothing_ends_before_its_deadline(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    async with (
        Simulator(appliance(Plan(duration=Durations.of(2)))) as simulator,
        Ledger(bootstrap=kafka.bootstrap, simulator=simulator, prefix=topic_name("gone")) as ledger,
    ):
        process = ledger.start()
        await ledger.ready(process)
        simulator.world.plan(replication=replication(2), duration=600)
        await ledger.ask("ends-meanwhile", replication(1))
        await ledger.ask("runs-past-its-deadline", replication(2), deadlineSeconds=10)
        await until(lambda: simulator.world.counts.tasks == 2)

        await simulator.refuse()
        await ledger.ask("waits", replication(3))
        await ledger.ask("waits-past-its-deadline", replication(4), deadlineSeconds=3)
        async with watched(process) as seen:
            told = await ledger.wait(within=60, least=2)

        assert {one.event["operationID"]: one.event["reason"] for one in told} == {
            "runs-past-its-deadline": "timed-out",
            "waits-past-its-deadline": "not-started",
        }
        assert seen.statuses("/livez") == seen.statuses("/readyz") == [200]
        polls = r'^vm_sync_api_requests_total\{operation="poll",site="local",status="error"\} (?!1\.0)[1-9]'
        await shows(process, "/metrics", polls)
        await shows(process, "/", "0 completed and 2 failed since this instance started.")
        await shows(process, "/", r"runs-past-its-deadline .+ timed-out .+ VCDA may still work on it")
        await shows(process, "/", r"local\s+circuit breaker open")

        await simulator.accept()
        told = await ledger.wait(within=60)
        assert counts(told) == {"completed": 2, "timed-out": 1, "not-started": 1}
        assert (await ledger.judge()).violations == []
        assert await process.stop() == 0
        assert ledger.tracebacks() == []


# ---------------------------------------------------------------- what doesn't fit


def environment(secrets: Path) -> dict[str, str]:
    """Return settings that would do, if anybody were there."""
    return {
        "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": NOBODY_THERE,
        "VM_SYNC_VCDA__URL": "https://127.0.0.1:1",
        "VM_SYNC_VCDA__CREDENTIALS__USER": "administrator@System",
        "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": "secret-of-this-test",
        "VM_SYNC_OPS__HOST": "127.0.0.1",
        "VM_SYNC_OPS__PORT": "0",
        "VM_SYNC_SECRETS_DIR": str(secrets),
    }


@contextmanager
def running(settings: dict[str, str], *, log: Path) -> Iterator[Process]:
    """Run the service with these settings."""
    process = Process(settings, log=log)
    try:
        yield process
    finally:
        process.close()


async def test_each_setting_that_does_not_fit_has_a_line_that_names_it_and_the_exit_code_is_2(tmp_path: Path) -> None:
    settings = environment(tmp_path)
    del settings["VM_SYNC_VCDA__URL"]
    settings |= {"VM_SYNC_SYNC__DEADLINE": "six hours", "VM_SYNC_OPS__PORT": "http", "VM_SYNC_SYNC__SETLE": "PT1M"}
    with running(settings, log=tmp_path / "log") as process:
        code = await process.ended(within=60)

    assert code == 2
    lines = process.text().splitlines()
    for name in ("VCDA__URL", "SYNC__DEADLINE", "OPS__PORT", "SYNC__SETLE"):
        assert sum(f"VM_SYNC_{name}" in line for line in lines) == 1, lines
    assert len(lines) == 4
    assert "secret-of-this-test" not in process.text()


async def test_topics_that_do_not_fit_are_refused_with_advice_and_exit_code_2(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    async with (
        Simulator(appliance(Plan())) as simulator,
        Ledger(bootstrap=kafka.bootstrap, simulator=simulator, prefix=topic_name("misfit")) as ledger,
    ):
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        try:
            names = ledger.topics
            await admin.create_topics(
                [
                    NewTopic(names["requests"], num_partitions=3, replication_factor=1),
                    NewTopic(names["journal"], num_partitions=2, replication_factor=1),
                ]
            )
        finally:
            await admin.close()
        process = ledger.start()
        code = await process.ended(within=60)

        assert code == 2
        refusals = messages(process, level="ERROR")
        assert any(names["journal"] in line and "partitions" in line for line in refusals), refusals
        assert any(names["journal"] in line and "compact" in line for line in refusals), refusals
        assert messages(process)[-1] in refusals, "the reason is what is read last"
        assert set(simulator.world.counts.calls) <= {"login", "logout"}  # a login is tried from the start
        assert ledger.tracebacks() == []
