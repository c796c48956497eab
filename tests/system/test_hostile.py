"""Whoever may write to the requests topic, or reach the operations port, gets no further than that: one real process.

Nothing of a message that isn't a request reaches VCDA, whose simulation counts each call that a correct client would
not make; and neither a long answer, nor a slow client, nor a second port is to be had from the process.
"""

import asyncio
import contextlib
import json
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from service.messages.requests import DeadLetterReason
from service.sandbox.kafka import Kafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.stress.oracle import counts
from tests.support.bad_requests import BAD_REQUESTS
from tests.support.process_harness import PASSWORD, Ledger, Process, Told, appliance

pytestmark = pytest.mark.e2e

ODD_SITE: Final = "a&site=site1#/../%2e%2e/sessions?x=ä ;"
"""A site that a careless client would write into another place of the request. It exists, and we may go there."""

MANY: Final = 2_500
LONGEST: Final = 128 - 8
GOOD: Final = 3


def _request(**fields: object) -> bytes:
    return json.dumps({"operationID": "op-evil", "replicationId": "C4-1", **fields}).encode()


MALICE: Final = {
    "a header after the operationID": _request(operationID="op-1\r\nX-VCAV-Auth: stolen"),
    "a second request after the operationID": _request(operationID="op-1\r\n\r\nDELETE /sessions HTTP/1.1\r\n\r\n"),
    "a bare line feed": _request(operationID="op-1\nHost: elsewhere"),
    "a line separator of Unicode": _request(operationID="op-1\u2028Host: elsewhere"),
    "a path upwards": _request(replicationId="../sessions"),
    "a path upwards from within": _request(replicationId="C4-1/../../sessions"),
    "a path upwards, escaped": _request(replicationId="%2e%2e%2fsessions"),
    "a path upwards, escaped twice": _request(replicationId="%252e%252e"),
    "a path upwards with backslashes": _request(replicationId="..\\sessions"),
    "a query": _request(replicationId="C4-1?site=site2"),
    "a fragment": _request(replicationId="C4-1#"),
    "another host": _request(replicationId="@evil.example"),
    "another scheme": _request(replicationId="https://evil.example"),
    "a path parameter": _request(replicationId="C4-1;jsessionid=1"),
    "a wide digit": _request(replicationId="C4-\uff11"),
    "a NUL that ends it elsewhere": _request(replicationId="C4-1\x00../.."),
    "a task instead of a replication": _request(replicationId={"$ref": "#"}),
    "the last of two operationIDs": b'{"operationID":"ok","replicationId":"C4-1","operationID":"x\\r\\ny: z"}',
    "the last of two replicationIds": b'{"operationID":"ok","replicationId":"C4-1","replicationId":"../sessions"}',
    "a site with a line break": _request(site="site2\r\nX-VCAV-Auth: stolen"),
    "a deadline of NaN": b'{"operationID":"o","replicationId":"C4-1","deadlineSeconds":NaN}',
    "depth": b'{"a":' * 12_000 + b"{}" + b"}" * 12_000,
    "a number that takes long to read": b'{"n":1' + b"0" * 60_000 + b"}",
    "an exponent": b'{"operationID":"o","replicationId":"C4-1","deadlineSeconds":1e308}',
    "bytes that are not UTF-8": b'{"operationID":"\xff\xfe","replicationId":"C4-1"}',
    "an overlong slash": b'{"operationID":"o","replicationId":"..\xc0\xafsessions"}',
    "half a pair": b'{"operationID":"\\ud83d","replicationId":"C4-1"}',
    "a zip of nothing": b"\x1f\x8b\x08\x00" + b"\x00" * 60_000,
    "a hundred thousand bytes": b"x" * 100_000,
}


@dataclass(frozen=True, slots=True)
class Run:
    """What there was to see."""

    reasons: dict[int, str]
    expected: dict[int, DeadLetterReason | None]
    details: list[str]
    outcomes: list[Told]
    violations: list[str]
    tracebacks: list[str]
    counters: dict[str, Any]
    odd_tasks: int
    ports: set[int]
    ops_port: int
    syncs: dict[str, httpx.Response]
    seconds_to_stop: float
    exit_code: int
    log: str


@pytest.fixture(scope="module")
def run(kafka: Kafka) -> Run:
    return asyncio.run(_run(kafka.bootstrap))


async def _run(bootstrap: str) -> Run:
    world = appliance(Plan(queued=Durations.of(0), duration=Durations.of(0.3)), remote_sites=(ODD_SITE,))
    async with (
        Simulator(world) as vcda,
        Ledger(bootstrap=bootstrap, simulator=vcda, prefix=f"hostile-{uuid.uuid4().hex[:8]}", partitions=1) as ledger,
    ):
        process = ledger.start(
            command=(),
            VM_SYNC_VCDA__SITES__0__NAME=ODD_SITE,
            VM_SYNC_VCDA__SITES__0__USER="administrator@System",
            VM_SYNC_VCDA__SITES__0__PASSWORD=PASSWORD,
            VM_SYNC_SYNC__MAX_RUNNING="20",
        )
        await ledger.ready(process, within=120)
        expected = await _do_mischief(ledger)
        await ledger.ask_all([(f"op-{n}", f"C4-{uuid.uuid4()}") for n in range(GOOD)])
        await ledger.ask("op-odd", f"C4-{uuid.uuid4()}", site=ODD_SITE)
        outcomes = await ledger.wait(within=120)
        verdict = await ledger.judge()
        dead = [dict(letter.headers) for letter in await ledger.read("dead_letter")]
        counters = vcda.world.counters()
        odd = sum(task["site"] == ODD_SITE for task in vcda.world.ledger())

        vcda.world.plan(duration="600")
        await ledger.ask_all([(f"op-{n:04d}-".ljust(LONGEST, "x"), f"C4-{uuid.uuid4()}") for n in range(MANY)])
        syncs = await _look(process)
        port = await _port(process)
        ports = _listening(process.pid)
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        for connection in slow:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        began = time.monotonic()
        code = await process.stop(within=60)
        lasted = time.monotonic() - began
        for connection in slow:
            connection.close()
        return Run(
            reasons={int(headers["vm-sync-offset"]): headers["vm-sync-reason"].decode() for headers in dead},
            expected=expected,
            details=[headers["vm-sync-detail"].decode() for headers in dead],
            outcomes=outcomes,
            violations=verdict.violations,
            tracebacks=ledger.tracebacks(),
            counters=counters,
            odd_tasks=odd,
            ports=ports,
            ops_port=port,
            syncs=syncs,
            seconds_to_stop=lasted,
            exit_code=code,
            log=process.text(),
        )


async def _do_mischief(ledger: Ledger) -> dict[int, DeadLetterReason | None]:
    """Put everything bad on the topic; returns the reason that the table gives, by offset."""
    reasons: list[DeadLetterReason | None] = []
    for bad in BAD_REQUESTS:
        record = bad.record
        # Kafka's client can neither send what nobody can read, nor a record with nothing in it.
        if record.unreadable is None and not (record.key is None and record.value is None):
            headers = tuple((name, value) for name, value in record.headers if value is not None)
            await ledger.spoil(partition=0, key=record.key, value=record.value, headers=headers)
            reasons.append(bad.reason)
    for value in MALICE.values():
        await ledger.spoil(partition=0, key=b"C4-1\r\n../", value=value, headers=(("ce_id\r\nx", b"\r\n\r\n"),))
        reasons.append(None)
    return {spoilt.offset: reason for spoilt, reason in zip(ledger.spoilt, reasons, strict=True)}


async def _look(process: Process) -> dict[str, httpx.Response]:
    until = time.monotonic() + 60
    while f'state="waiting"}} {MANY - 20}.0' not in (await process.get("/metrics")).text:
        assert time.monotonic() < until, (await process.get("/metrics")).text[:3000]
        await asyncio.sleep(0.2)
    asked = (
        "",
        "?limit=1000",
        "?limit=1001",
        "?limit=-1",
        "?limit=1e3",
        "?after=~",
        "?offset=5",
        "?limit=" + "9" * 5000,
    )
    return {query: await process.get("/syncs" + query) for query in asked}


async def _port(process: Process) -> int:
    return int((await process.get("/livez")).url.port or 0)


def _listening(pid: int) -> set[int]:
    """Return the TCP ports, of either family, on which a process listens, as the kernel knows them."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    rows = [
        row.split()
        for table in ("tcp", "tcp6")
        for row in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]
    ]
    return {int(row[1].rsplit(":", 1)[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


def test_each_becomes_a_dead_letter_for_the_reason_in_the_table(run: Run) -> None:
    assert run.violations == []
    assert set(run.reasons) == set(run.expected)
    assert {at: reason for at, reason in run.expected.items() if reason is not None and run.reasons[at] != reason} == {}


def test_a_dead_letters_detail_repeats_nothing_of_the_message(run: Run) -> None:
    assert [detail for detail in run.details if any(word in detail for word in ("stolen", "evil", "sessions"))] == []
    assert max(map(len, run.details)) < 200


def test_nothing_of_them_reaches_vcda(run: Run) -> None:
    assert run.counters["refusals"] == []
    assert run.counters["calls"]["submit"] == GOOD + 1
    assert run.counters["calls"]["login"] == 1
    assert "logout" not in run.counters["calls"]
    assert counts(run.outcomes) == {"completed": GOOD + 1}


def test_a_sites_name_arrives_as_it_is_whatever_it_is_made_of(run: Run) -> None:
    assert run.odd_tasks == 1


def test_syncs_are_told_in_pages_of_bounded_size(run: Run) -> None:
    default, most = run.syncs[""], run.syncs["?limit=1000"]

    assert len(default.json()["syncs"]) == 100
    assert len(most.json()["syncs"]) == 1000
    assert len(most.content) < 1_000_000
    assert run.syncs["?after=~"].json()["syncs"] == []


@pytest.mark.parametrize("query", ["?limit=1001", "?limit=-1", "?limit=1e3", "?offset=5", "?limit=" + "9" * 5000])
def test_a_bad_question_gets_a_short_no(query: str, run: Run) -> None:
    answer = run.syncs[query]

    assert answer.status_code == 400
    assert len(answer.content) < 300


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux tells which process listens where")
def test_it_listens_on_the_operations_port_alone(run: Run) -> None:
    assert run.ports == {run.ops_port}


def test_clients_that_never_finish_their_question_hold_no_stop_up(run: Run) -> None:
    assert run.exit_code == 0
    assert run.seconds_to_stop < 20


def test_nothing_of_it_is_a_bug_and_the_log_stays_short(run: Run) -> None:
    assert run.tracebacks == []
    assert "stolen" not in run.log
    assert max(map(len, run.log.splitlines())) < 5_000
