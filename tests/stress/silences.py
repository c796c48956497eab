"""How long outcomes stay away when one broker is restarted or dies: measured in each run on several brokers.

Nothing else is wrong meanwhile. Syncs that VCDA has begun end all the time, some in each partition every second, and
are polled every second; so a pause in the outcomes is a pause of the work.
"""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, Protocol

from service.sandbox.vcda.simulator import Simulator
from tests.stress.broker_faults import BrokerFaults
from tests.stress.control import Control
from tests.stress.oracle import Disturbance
from tests.stress.schedule import Measuring, What
from tests.support.cluster import Cluster
from tests.support.process_harness import Ledger
from tests.support.simulator_thread import Apart

POLLED_OFTEN: Final = {"VM_SYNC_SYNC__POLL_MAX": "PT1S", "VM_SYNC_SYNC__MAX_RUNNING": "0"}
"""Settings of the processes meanwhile."""

RATE: Final = 2.0
"""Syncs that end in each partition each second."""

LASTS: Final = 28.0
"""Seconds that one measurement takes at most, in order to have enough syncs; on a busy machine too."""

WITHIN: Final = 5.0
"""Seconds for the clients to notice, and for the work to go on, of a machine that does nothing else.

To these comes what Kafka itself takes to replace the broker: 9 s after a kill (`broker.session.timeout.ms`), and on a
busy machine as long after a clean stop.
"""

SETTLES: Final = 3.0
"""Seconds before and after what is done."""

REPLACED: Final = 90.0
"""Seconds until another broker does what the one did, on a busy machine."""

BEGUN: Final = 120.0
"""Seconds until VCDA has begun all syncs."""


class Stage(Protocol):
    """What is measured on."""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def vcda(self) -> Apart: ...
    def find(self, sentence: str) -> None: ...
    async def begin_again(self, **settings: str) -> None:
        """End all members, and start as many, with these settings."""


async def measure(
    stage: Stage, cluster: Cluster, faults: BrokerFaults, measurings: Sequence[Measuring]
) -> list[Disturbance]:
    """Do these things one after another, while outcomes are due all the time; return what the oracle has to look at."""
    ledger = stage.ledger
    await stage.begin_again(**POLLED_OFTEN)
    count = round(RATE * LASTS * len(measurings)) * ledger.partitions
    pairs = [(f"due-{name}", f"C4-{name}") for name in (str(uuid.uuid4()) for _ in range(count))]
    await stage.vcda.do(partial(_never_end, replications=[replication for _, replication in pairs]))
    await ledger.ask_all(pairs, deadlineSeconds=3600)
    if not await _begun(stage, {operation for operation, _ in pairs}):
        stage.find(f"not all of {count} syncs are begun within {BEGUN:.0f} s although nothing is wrong")
    by_partition: defaultdict[int, list[str]] = defaultdict(list)
    for operation, replication in pairs:
        by_partition[ledger.asked[operation].partition].append(replication)
    ending = asyncio.create_task(_end_evenly(stage.vcda, [iter(some) for some in by_partition.values()]))
    disturbances = []
    try:
        async with Control() as control:
            for one in measurings:
                await asyncio.sleep(SETTLES)
                disturbances.append(await _measure(one, cluster, faults, control))
    finally:
        ending.cancel()
        await stage.vcda.do(partial(_end, replications=[replication for _, replication in pairs]))
    return disturbances


async def _measure(one: Measuring, cluster: Cluster, faults: BrokerFaults, control: Control) -> Disturbance:
    broker = await faults.choose(one.whom, one.who)
    faults.note(f"measuring: {one.what}: {broker.id}, {one.whom}")
    began = time.time()
    await (faults.kill if one.what is What.BROKER_DIES else faults.stop)(broker)
    async with asyncio.timeout(REPLACED):
        while await faults.choose(one.whom, one.who) is broker:
            await asyncio.sleep(0.1)
    replaced = time.time() - began
    await faults.start(broker)
    await cluster.heal()
    await asyncio.sleep(SETTLES)
    until = time.time()
    slowdown = control.slowdown(began, until)
    words = (
        f"{one.what}, {one.whom} (broker {broker.id}), and replaced by another within {replaced:.1f} s; all else took "
        f"{slowdown:.1f} times as long as alone"
    )
    return Disturbance(words=words, began=began, until=until, bound=replaced + WITHIN * slowdown)


async def _begun(stage: Stage, operations: set[str]) -> bool:
    until = time.monotonic() + BEGUN
    while time.monotonic() < until:
        tasks = await stage.vcda.do(lambda sim: {task.operation_id for task in sim.world.tasks.values()})
        if operations <= tasks:
            return True
        await asyncio.sleep(0.2)
    return False


async def _end_evenly(vcda: Apart, partitions: Sequence[Iterator[str]]) -> None:
    """Have a sync of each partition end, again and again."""
    while True:
        for some in partitions:
            if (replication := next(some, None)) is not None:
                await vcda.do(partial(_end, replications=[replication]))
            await asyncio.sleep(1 / RATE / len(partitions))


def _never_end(sim: Simulator, *, replications: Sequence[str]) -> None:
    for replication in replications:
        sim.world.plan(replication=replication, duration=3600.0, failing=0.0)


def _end(sim: Simulator, *, replications: Sequence[str]) -> None:
    chosen = set(replications)
    sim.world.finish(ids=[task.id for task in sim.world.tasks.values() if task.replication_id in chosen])
