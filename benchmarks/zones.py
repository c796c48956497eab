"""Three brokers in three zones: what a commit costs where brokers are some milliseconds apart.

Each broker reaches the others over a relay that delays all bytes, and so does the service all brokers but the first,
which is in its own zone. Each topic has three replicas, of which two must have a message before it is acknowledged.
The relays are a process of their own: `python -m benchmarks.zones DELAY TARGET...` prints where each listens, as JSON.

It is no model of a network: nothing is lost, and nothing waits for bandwidth.
"""

import asyncio
import json
import subprocess
import sys
from functools import partial
from types import TracebackType
from typing import Self

from benchmarks.results import Run
from benchmarks.scenarios import burst_of_short_ones, steady_trickle
from benchmarks.sizes import Sizes
from benchmarks.stage import BenchError, Stage
from service.sandbox.child_processes import dying_with_us
from service.sandbox.kafka import EmbeddedKafka
from tests.support.relay import Address, Relay

BETWEEN, SERVICE = "ZONES", "SERVICE"
"""The listeners at which brokers reach each other, and at which the service reaches them."""

ROUND_TRIPS = {"three": 0.0, "three-5": 5.0, "three-10": 10.0}
"""By subject, milliseconds from one zone to another and back."""


class Zones:
    """A Kafka of three brokers, so many milliseconds apart, there and back. An async context."""

    def __init__(self, round_trip: float) -> None:
        self.kafka = EmbeddedKafka(
            brokers=3,
            listeners={BETWEEN: "PLAINTEXT", SERVICE: "PLAINTEXT"},
            properties={"inter.broker.listener.name": BETWEEN},
        )
        self._delay = round_trip / 2000
        self._relays: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        try:
            if self._delay:
                await asyncio.to_thread(self._lay_out)
            await asyncio.to_thread(self.kafka.start)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.kafka.close)
        if self._relays is not None:
            self._relays.kill()
            self._relays.wait()

    def _lay_out(self) -> None:
        """Start the relays, and have the brokers advertise them."""
        brokers = self.kafka.brokers
        ways = [(number, BETWEEN) for number in brokers] + [(number, SERVICE) for number in list(brokers)[1:]]
        targets = [brokers[number].address(listener) for number, listener in ways]
        command = [sys.executable, "-m", "benchmarks.zones", str(self._delay), *targets]
        self._relays = subprocess.Popen(dying_with_us(command), stdout=subprocess.PIPE)  # noqa: S603 - all of it is ours
        if self._relays.stdout is None or not (told := self._relays.stdout.readline()):
            msg = "the relays between the zones don't start"
            raise BenchError(msg)
        for (number, listener), address in zip(ways, json.loads(told), strict=True):
            brokers[number].advertise(listener, address)


async def zones(stage: Stage, subject: str, *, sizes: Sizes, number: int) -> Run:
    """Measure the service's trickle and its burst, on one broker or on three."""
    if subject == "one":
        return await _measured(stage, subject, sizes=sizes, number=number)
    async with Zones(ROUND_TRIPS[subject]) as there, Stage(there.kafka, listener=SERVICE, replicas=3) as apart:
        return await _measured(apart, subject, sizes=sizes, number=number)


async def _measured(stage: Stage, subject: str, *, sizes: Sizes, number: int) -> Run:
    trickle = await steady_trickle(stage, "service", sizes=sizes, number=number)
    burst = await burst_of_short_ones(stage, "service", sizes=sizes, number=number)
    figures = {name: trickle.figures[name] for name in ("wait_p50_ms", "wait_p99_ms", "commit_p50_ms", "cpu_ms")}
    figures |= {name: burst.figures[name] for name in ("posts_per_second", "overlapping", "busy", "kafka_busy")}
    figures["burst_cpu_ms"] = burst.figures["cpu_ms"]
    figures["missing"] = trickle.figures["missing"] + burst.figures["missing"]
    return Run(scenario="zones", subject=subject, round=number, figures=figures)


# ---------------------------------------------------------------- the relays


async def _relay(delay: float, targets: list[str]) -> None:
    relays = []
    for target in targets:
        relay = Relay(partial(_place, target))
        relay.delay = delay
        await relay.open()
        relays.append(relay)
    print(json.dumps([relay.address for relay in relays]), flush=True)
    await asyncio.Event().wait()


def _place(address: str) -> Address:
    host, _, port = address.partition(":")
    return host, int(port)


if __name__ == "__main__":
    asyncio.run(_relay(float(sys.argv[1]), sys.argv[2:]))
