"""Rules, dashboard, runbook and autoscaling against a real Prometheus that scrapes a real process with a bad day.

What promtool can't tell: whether an expression, right in itself, ever yields anything with the metrics there are.
"""

import asyncio
import json
import math
import re
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from service.kafka.journal_codec import Cursor
from service.observability import metrics
from service.sandbox.kafka import Kafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.conftest import missing
from tests.support.expressions import MONITORING, Expression, all_expressions
from tests.support.process_harness import Ledger, Process, appliance
from tests.support.prometheus import Prometheus, good_moment, prometheus
from tests.support.stolen_journal import write_cursor

pytestmark = pytest.mark.e2e

NAMESPACE = "vm-sync"
"""The one that the autoscaling asks for."""

KAFKA_EXPORTER = """\
kafka_consumergroup_lag{consumergroup="vm-sync",topic="vm-sync.requests",partition="0"} 3
kafka_consumergroup_current_offset{consumergroup="vm-sync",topic="vm-sync.requests",partition="0"} 7
"""
"""What a Kafka exporter shows; it is not ours, and alerts on it are proven by rules_test.yaml."""

RARE: Mapping[str, str] = {
    "vm_sync_records_unaccounted": "tests/system/test_records_balance.py",
    "vm_sync_replications_held": "tests/observability/test_metrics.py",
    "vm_sync_posts_repeated_total": "tests/observability/test_metrics.py",
    "vm_sync_look_ups_failing_seconds": "tests/observability/test_metrics.py",
    "vm_sync_journals_rewritten_total": "tests/intake/test_topics_replaced.py",
    "vm_sync_journals_with_deleted_records_total": "tests/intake/test_journal_comparison.py",
    "vm_sync_reading_stalled_seconds": "tests/intake/test_reading.py",
    "vm_sync_open_transaction_seconds": "tests/intake/test_reading.py",
    "vm_sync_kafka_token_failing_seconds": "tests/system/test_kafka_oauth.py",
    "vm_sync_log_lines_dropped_total": "tests/observability/test_logs.py",
    "vm_sync_certificates_invalid": "tests/test_app.py",
    "vm_sync_progress_dropped_total": "tests/observability/test_metrics.py",
}
"""What a bad day of a minute can't bring about: a day must pass, a bug be there, or a topic be replaced. Each with the
test that moves it."""

SELECTOR = re.compile(r"(?<![\w:])((?:vm_sync|process|kafka)_\w+|up\b|namespace:\w+:\w+)(\{[^}]*\})?")
COMPARISON = re.compile(r"==|!=|>=|<=|>|<")
MATCHERS = re.compile(r"(\{[^}]*\})")

EXPRESSIONS = all_expressions()
METRICS = [metric.name for metric in metrics.METRICS]


def unconditional(promql: str) -> str:
    """Lift an expression's conditions: what remains yields something whenever its metrics are there."""
    parts = MATCHERS.split(promql)
    parts[::2] = [COMPARISON.sub(r"\g<0> bool", part) for part in parts[::2]]
    return re.sub(r"\bunless\b", "or", re.sub(r"\babsent\(", "(", "".join(parts)))


def selectors(promql: str) -> set[str]:
    """Return the series that an expression asks for."""
    return {name + matchers for name, matchers in SELECTOR.findall(promql)}


def test_conditions_are_lifted_and_labels_left_alone() -> None:
    assert unconditional('absent(up{a!="b"} == 1) > 2 unless x >= 3') == (
        '(up{a!="b"} == bool 1) > bool 2 or x >= bool 3'
    )


# ---------------------------------------------------------------- a bad day


@dataclass(frozen=True, slots=True)
class Seen:
    """What Prometheus had to say, by query; an error is a sentence."""

    answers: Mapping[str, list[float] | str]
    unhealthy: list[str]


@pytest.fixture(scope="module")
def seen(kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    if (program := shutil.which("prometheus")) is None:
        missing("prometheus is not installed: apt-get install prometheus")
    return asyncio.run(_look(kafka.bootstrap, program=program, folder=tmp_path_factory.mktemp("prometheus")))


async def _look(bootstrap: str, *, program: str, folder: Path) -> Seen:
    plan = Plan(duration=Durations.of("uniform:0.5:2"))
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(str(folder / "vcda-ca.pem"))
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with (
        Simulator(appliance(plan), tls=tls) as simulator,
        Ledger(bootstrap=bootstrap, simulator=simulator, prefix="monitoring", partitions=4) as ledger,
        _kafka_exporter() as exporter,
    ):
        simulator.fault(operation="login", answer="status", status=401, times=1)
        process = ledger.start(VM_SYNC_VCDA__CA_FILE=str(folder / "vcda-ca.pem"))
        await ledger.ready(process)
        targets = {"vm-sync": f"127.0.0.1:{process.port()}", "kafka-exporter": exporter}
        async with prometheus(program, folder=folder) as found:
            for job, target in targets.items():
                found.scrape(target, job=job, namespace=NAMESPACE)
            assert await found.until("up == 1", seconds=90)
            await _bad_day(ledger, simulator)
            await _misfortunes_of_kafka(ledger, process)
            # Three scrapes, so that whatever was counted last has a rate.
            late = ("vm_sync_partitions_stopped", "vm_sync_requests_lost_total", "vm_sync_control_unreadable_seconds")
            last = f"({' and '.join(f'sum({name}) > 0' for name in late)})"
            assert await found.until(f"count_over_time({last}[10m:1s]) > 2", seconds=90)
            moment = await _good_moment(found, targets)
            queries = {_moved(metric) for metric in METRICS}
            for expression in EXPRESSIONS:
                queries |= {unconditional(expression.promql), *selectors(expression.promql)}
            return Seen(
                answers={query: await found.ask(query, moment=moment) for query in queries},
                unhealthy=await found.unhealthy_rules(),
            )


async def _bad_day(ledger: Ledger, simulator: Simulator) -> None:
    """Have everything happen that VCDA, and those who ask, can do to the service."""
    names = ("fails", "strange", "cut", "busy", "twice", *(f"plain-{number}" for number in range(8)))
    replications = {name: f"C4-00000000-0000-4000-8000-{number:012d}" for number, name in enumerate(names)}
    world = simulator.world
    world.plan(replication=replications["fails"], failing=1.0)
    world.plan(replication=replications["strange"], word="PAUSED_BY_AN_ADMINISTRATOR", duration=4)
    simulator.fault(operation="submit", replication=replications["cut"], answer="cut", effect="first", times=1)
    simulator.fault(
        operation="submit", replication=replications["busy"], answer="status", status=429, retry_after=2, times=1
    )
    await ledger.ask_all([(f"op-{name}", replication) for name, replication in replications.items()])
    await ledger.ask("op-twice", replications["twice"])
    await ledger.send_raw(partition=0, value=b"no JSON")
    keyless = b'{"operationID": "op-keyless", "replicationId": "C4-00000000-0000-4000-8000-00000000aaaa"}'
    await ledger.send_raw(partition=0, value=keyless)
    other_key = b'{"operationID": "op-other-key", "replicationId": "C4-00000000-0000-4000-8000-00000000aaab"}'
    await ledger.send_raw(partition=0, key=b"another-key", value=other_key)
    nowhere = b'{"operationID": "op-x", "replicationId": "C4-00000000-0000-4000-8000-00000000aaac", "site": "site-x"}'
    await ledger.send_raw(partition=0, value=nowhere)  # a site without credentials
    lasting = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    pause = json.dumps({"site": "site-y", "since": lasting, "until": lasting}).encode()
    await ledger.send_raw(topic="control", partition=0, key=b"site:site-y", value=pause)
    await ledger.send_raw(topic="control", partition=0, key=b"site:site-z", value=b"no JSON")
    await ledger.wait(within=120, least=len(names) + 3)
    simulator.fault(operation="poll", answer="status", status=503, times=2)
    world.plan(replication="C4-00000000-0000-4000-8000-00000000bbbb", duration=600)
    await ledger.ask("op-still-running", "C4-00000000-0000-4000-8000-00000000bbbb")


async def _misfortunes_of_kafka(ledger: Ledger, process: Process) -> None:
    """Have retention overtake a partition's reading, another's journal point to another topic, and a topic vanish."""
    places = {(asked.offset, asked.partition) for asked in ledger.asked.values()}
    last, overtaken = max(places)
    elsewhere = next(partition for _, partition in places if partition != overtaken)
    admin = AIOKafkaAdminClient(bootstrap_servers=ledger.bootstrap)
    await admin.start()
    try:
        place = TopicPartition(ledger.topics["requests"], overtaken)
        await admin.delete_records({place: RecordsToDelete(before_offset=last)})
        await admin.delete_topics([ledger.topics["control"]])
    finally:
        await admin.close()
    await write_cursor(ledger, overtaken, Cursor(ledger.topics["requests"], 0))
    await write_cursor(ledger, elsewhere, Cursor("another-topic", 0))
    async with asyncio.timeout(30):
        while (await process.get("/readyz")).status_code == 200:
            await asyncio.sleep(0.1)


async def _good_moment(found: Prometheus, targets: Collection[str], *, within: float = 60.0) -> float:
    async with asyncio.timeout(within):
        while (moment := await good_moment(found, targets, now=time.time())) is None:
            await asyncio.sleep(0.5)
        return moment


@asynccontextmanager
async def _kafka_exporter() -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(KAFKA_EXPORTER)}\r\n"
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write((head + "Connection: close\r\n\r\n" + KAFKA_EXPORTER).encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # Prometheus was ended in the middle of a scrape
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


# ---------------------------------------------------------------- what it saw


def _moved(metric: str) -> str:
    """Return the query for the largest value that a metric ever had; of a histogram, its count."""
    return f"max(max_over_time({metric}[10m])) or max(max_over_time({metric}_count[10m]))"


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_has_moved(metric: str, seen: Seen) -> None:
    answer = seen.answers[_moved(metric)]

    assert isinstance(answer, list), answer
    if metric in RARE:
        assert answer, "it has no series"
        moved = metric.removeprefix("vm_sync_").removesuffix("_total")
        assert moved in (MONITORING.parents[1] / RARE[metric]).read_text(), f"{RARE[metric]} does not move it"
    else:
        assert max(answer) > 0


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda e: e.where)
def test_an_expression_asks_for_series_that_there_are(expression: Expression, seen: Seen) -> None:
    for selector in selectors(expression.promql):
        assert seen.answers[selector], f"there is no {selector}"


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda e: e.where)
def test_an_expression_yields_a_number_once_its_conditions_are_lifted(expression: Expression, seen: Seen) -> None:
    answer = seen.answers[unconditional(expression.promql)]

    assert isinstance(answer, list), answer
    assert any(math.isfinite(value) for value in answer), answer


def test_prometheus_can_evaluate_every_rule(seen: Seen) -> None:
    assert seen.unhealthy == []
