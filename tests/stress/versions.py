"""The short ledger on each supported version of Kafka: once undisturbed, once with a process that is killed.

`python -m tests.stress.versions` runs all of `VERSIONS`, a minute each; `make test` runs the oldest one, beside the
default version, on which all other tests run. docs/kafka-versions.md lists the same versions, and a test compares.
"""

import argparse
import asyncio
import sys
import uuid
from collections.abc import Sequence
from typing import Final

from service.sandbox.kafka import EmbeddedKafka
from service.sandbox.kafka_jars import KAFKA_VERSION
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.support.process_harness import Ledger, appliance, counts

VERSIONS: Final = ("3.7.2", "3.9.2", "4.0.2", KAFKA_VERSION, "4.4.0")
"""From the oldest to the newest."""

OLDEST: Final = VERSIONS[0]

SHORT: Final = Plan(queued=Durations.of("0.1"), duration=Durations.of("uniform:0.3:1"))

REQUESTS: Final = 120

WITHIN: Final = 120.0


async def undisturbed(kafka: EmbeddedKafka, *, prefix: str) -> list[str]:
    """Have one process work on all requests, and return what is wrong."""
    return await _ledger(kafka, prefix=prefix, killed=False)


async def with_a_kill(kafka: EmbeddedKafka, *, prefix: str) -> list[str]:
    """Kill a process with POSTs on their way, while another one is there to take over; return what is wrong."""
    return await _ledger(kafka, prefix=prefix, killed=True)


async def _ledger(kafka: EmbeddedKafka, *, prefix: str, killed: bool) -> list[str]:
    replications = [f"C4-{uuid.uuid4()}" for _ in range(REQUESTS // 4)]
    pairs = [(f"op-{number}", replications[number % len(replications)]) for number in range(REQUESTS)]
    async with (
        Simulator(appliance(SHORT, submit_latency=Durations.of("0.05"))) as vcda,
        Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix=prefix, partitions=4) as ledger,
    ):
        first = ledger.start()
        if killed:
            await ledger.ready(ledger.start(), within=WITHIN)
        await ledger.ready(first, within=WITHIN)
        await ledger.ask_all(pairs)
        if killed:
            async with asyncio.timeout(WITHIN):
                while vcda.world.counters()["tasks"] < REQUESTS // 4:
                    await asyncio.sleep(0.02)
            await first.kill()
        told = await ledger.wait(within=WITHIN)
        verdict = await ledger.judge()
        wrong = [*verdict.violations, *ledger.tracebacks()]
        if counts(told) != {"completed": REQUESTS}:
            wrong.append(f"not all {REQUESTS} requests are completed: {dict(counts(told))}")
        return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the versions, and say what is wrong with each."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.versions", description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    failed = False
    for version in parser.parse_args(arguments).versions:
        with EmbeddedKafka(version=version) as kafka:
            for name, run in (("undisturbed", undisturbed), ("with a kill", with_a_kill)):
                wrong = asyncio.run(run(kafka, prefix=name.replace(" ", "-")))
                print(f"Kafka {version}, {name}: {'; '.join(wrong) or 'all is well'}", flush=True)  # noqa: T201
                failed |= bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
