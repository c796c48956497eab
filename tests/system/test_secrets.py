"""Passwords come from files that change, are never tried in vain again and again, and are told to nobody but VCDA.

One process, at the most talkative log level, whose password changes at VCDA first and in its file later.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from itertools import chain
from urllib.parse import quote

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from service.sandbox.kafka import Kafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan, User
from tests.conftest import TopicNamer
from tests.support.process_harness import GUEST_SECRET, PASSWORD, Ledger, Process, appliance, counts

pytestmark = pytest.mark.e2e

USER = "administrator@System"
NEW_PASSWORD = 'Another "Secret" \\ 4711 ä'
"""With what JSON, addresses and Python's `repr` spell their own way."""
SITE_TOKEN = "site2-access-token-0815"
STORM = 5
"""The most logins in the seconds that a wrong password lasts here: the pauses between them are 1, 2, 4 s."""

PLACES = (
    "/",
    "/livez",
    "/readyz",
    "/metrics",
    "/syncs?limit=1000",
    "/asyncapi.json",
    "/asyncapi.yaml",
    "/asyncapi",
    "/no",
)


async def test_a_password_that_changes_is_read_again_and_nobody_ever_sees_it(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    world = appliance(
        Plan(queued=Durations.of(0), duration=Durations.of(0.3)),
        site_users={"site2": (User(name=USER, password="unused", administrator=True, token=SITE_TOKEN),)},
    )
    async with (
        Simulator(world) as vcda,
        Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix=topic_name("secrets"), partitions=1) as ledger,
    ):
        files = ledger.folder / "secrets"
        (files / "VCDA__CREDENTIALS__PASSWORD").write_text(PASSWORD + "\n", encoding="utf-8")
        (files / "vcda__sites__0__token").write_text(SITE_TOKEN, encoding="utf-8")
        process = ledger.start(
            command=(),
            VM_SYNC_VCDA__CREDENTIALS__PASSWORD="",
            VM_SYNC_VCDA__SITES__0__NAME="site2",
            VM_SYNC_LOG__LEVEL="DEBUG",
        )
        await ledger.ready(process, within=120)
        await ledger.ask("op-1", _replication())
        await ledger.ask("op-2", _replication(), site="site2")
        await ledger.spoil(partition=0, key=b"C4-1", value=json.dumps({"password": 1}).encode())
        assert counts(await ledger.wait(within=60)) == {"completed": 2}
        tokens = set(vcda.world.sessions)
        # VCDA, or something before it, repeats what it was sent.
        vcda.fault(operation="submit", answer="status", status=403, msg=f"Not with {' '.join(tokens)}.", times=1)
        await ledger.ask("op-repeated", _replication())
        assert counts(await ledger.wait(within=60)) == {"completed": 2, "rejected": 1}
        seen = [await _answers(process)]

        vcda.world.user(name=USER, password=NEW_PASSWORD)
        vcda.fault(operation="login", answer="status", status=401, msg=f"Nobody has {PASSWORD}.", times=1)
        vcda.world.expire(what="sessions")
        before = _logins(vcda)
        began = time.monotonic()
        await ledger.ask("op-3", _replication())
        await _until(lambda: _logins(vcda) >= before + 3, what="three logins")
        lasted = time.monotonic() - began
        seen.append(await _answers(process))
        waiting = (await process.get("/syncs")).json()["syncs"]

        assert [sync["operationID"] for sync in waiting] == ["op-3"]
        assert _logins(vcda) - before <= STORM
        assert lasted > 2.5  # of which 1 + 2 s are pauses
        assert "Login answered with 401" in process.text()

        (files / "VCDA__CREDENTIALS__PASSWORD").write_text(NEW_PASSWORD, encoding="utf-8")
        assert counts(await ledger.wait(within=90)) == {"completed": 3, "rejected": 1}
        tokens |= set(vcda.world.sessions)
        seen.append(await _answers(process))
        topics = await _everything(ledger)
        assert await process.stop() == 0
        verdict = await ledger.judge()

        assert verdict.violations == []
        assert len(tokens) >= 2
        text = "\n".join((process.text(), *seen, topics))
        assert "Not with [hidden]." in topics
        assert "Nobody has [hidden]" in text
        for secret in chain((PASSWORD, NEW_PASSWORD, SITE_TOKEN, GUEST_SECRET), tokens):
            for spelled in (
                secret,
                json.dumps(secret)[1:-1],
                json.dumps(json.dumps(secret)[1:-1])[1:-1],
                quote(secret),
            ):
                assert spelled not in text, _around(text, spelled)


def _replication() -> str:
    return f"C4-{uuid.uuid4()}"


def _logins(vcda: Simulator) -> int:
    calls: dict[str, int] = vcda.world.counters()["calls"]
    return calls.get("login", 0)


async def _answers(process: Process) -> str:
    """Return all that the operations server has to say."""
    return "\n".join([(await process.get(place)).text for place in PLACES])


async def _everything(ledger: Ledger) -> str:
    """Return all that the service has written to Kafka, headers and keys included, aborted or not."""
    consumer = AIOKafkaConsumer(bootstrap_servers=ledger.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        places = [TopicPartition(topic, 0) for name, topic in ledger.topics.items() if name != "requests"]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        found: list[bytes] = []
        while any([await consumer.position(place) < ends[place] for place in places]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    found += [record.key or b"", record.value or b"", *(value for _, value in record.headers)]
        assert len(found) > 10
        return b"\n".join(found).decode()
    finally:
        await consumer.stop()


async def _until(holds: Callable[[], bool], *, what: str, within: float = 60.0) -> None:
    until = time.monotonic() + within
    while not holds():
        assert time.monotonic() < until, what
        await asyncio.sleep(0.05)


def _around(text: str, secret: str) -> str:
    at = text.index(secret)
    return text[max(0, at - 300) : at + 100]
