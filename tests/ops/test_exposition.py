"""The text of the metrics: the same as in one go, written while the event loop turns."""

import asyncio
from typing import Final

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from service.clock import Clock
from service.observability.metrics import Metrics
from service.ops.exposition import SAMPLES_AT_ONCE, write

ACCEPTS: Final = ("", "text/plain; version=1.0.0", "application/openmetrics-text; version=1.0.0")


def some_metrics() -> CollectorRegistry:
    disable_created_metrics()  # type: ignore[no-untyped-call] # as the service does
    registry = CollectorRegistry()
    many = Counter("many", "With more children than are written at once.", ["number"], registry=registry)
    for number in range(3 * SAMPLES_AT_ONCE + 1):
        many.labels(f"#{number}\n").inc(number)
    Histogram("some", "Some.", registry=registry).observe(0.3)
    Gauge("none", "Without children.", ["number"], registry=registry)
    return registry


@pytest.mark.parametrize("accept", ACCEPTS)
async def test_it_is_what_the_client_writes_in_one_go(accept: str) -> None:
    registry = some_metrics()
    encode, _ = choose_encoder(accept)

    assert await write(registry, encode) == encode(registry)
    assert await write(CollectorRegistry(), encode) == encode(CollectorRegistry())


async def test_the_event_loop_turns_while_the_metrics_of_many_sites_are_written() -> None:
    registry, turns = CollectorRegistry(), 0
    Metrics(registry, clock=Clock(), version="0", sites=[f"site-{number}" for number in range(20)])
    encode, _ = choose_encoder("")

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    await write(registry, encode)
    turning.cancel()

    samples = sum(len(metric.samples) for metric in registry.collect())
    assert turns > samples / SAMPLES_AT_ONCE
