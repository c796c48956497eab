"""The main job on a real Kafka, over real HTTP, while processes come, go and die."""

import asyncio
import uuid

import pytest

from service.sandbox.kafka import Kafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.conftest import TopicNamer
from tests.support.process_harness import Ledger, appliance, counts

pytestmark = pytest.mark.e2e

REQUESTS = 2_000
"""Over 500 replications: four for each, so that order and overlap mean something."""

SHORT = Plan(queued=Durations.of("0.1"), duration=Durations.of("uniform:0.5:2"))


async def test_requests_survive_members_that_join_stop_start_and_are_killed(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    pairs = [(f"op-{n}", replication) for n, replication in enumerate(_replications(500) * (REQUESTS // 500))]
    world = appliance(SHORT, submit_latency=Durations.of("0.05"))
    async with (
        Simulator(world) as vcda,
        Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix=topic_name("ledger")) as ledger,
    ):
        first = ledger.start()
        await ledger.ready(first)
        await ledger.ask_all(pairs[: REQUESTS // 2])
        await _until_submitting(vcda, least=50)
        second = ledger.start()
        await ledger.ready(second)
        await ledger.ask_all(pairs[REQUESTS // 2 :])
        await _until_submitting(vcda, least=REQUESTS // 2 + 100)
        assert await second.stop() == 0
        third = ledger.start()
        await ledger.ready(third)
        await first.kill()
        told = await ledger.wait(within=120)
        verdict = await ledger.judge()

        assert verdict.violations == []
        assert counts(told) == {"completed": REQUESTS}
        assert ledger.tracebacks() == []
        assert vcda.world.counters()["refused"] == 0


async def test_a_hand_over_between_living_members_leaves_nothing_in_doubt(kafka: Kafka, topic_name: TopicNamer) -> None:
    pairs = [(f"op-{n}", replication) for n, replication in enumerate(_replications(600))]
    world = appliance(SHORT, submit_latency=Durations.of("0.3"))
    async with (
        Simulator(world) as vcda,
        Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix=topic_name("ledger")) as ledger,
    ):
        first = ledger.start()
        await ledger.ready(first)
        await ledger.ask_all(pairs)
        await _until_submitting(vcda, least=50)
        second = ledger.start()
        await ledger.ready(second)
        await _until_submitting(vcda, least=200)
        assert await first.stop() == 0
        await ledger.wait(within=120)
        verdict = await ledger.judge()

        assert verdict.violations == []
        assert vcda.world.counters()["calls"].get("find", 0) == 0
        assert vcda.world.counters()["calls"]["submit"] == len(pairs)


def _replications(count: int) -> list[str]:
    return [f"C4-{uuid.uuid4()}" for _ in range(count)]


async def _until_submitting(vcda: Simulator, *, least: int) -> None:
    """Wait until VCDA has taken so many POSTs, so that others are on their way."""
    async with asyncio.timeout(60):
        while vcda.world.counters()["tasks"] < least:
            await asyncio.sleep(0.05)
