"""What a run of chaos ends with: things that happen to a topic, after which its usual accounting is over.

Each says what the right answer is: what nobody has read is counted; what is known is written again; or the partitions
refuse to work, and the runbook's way leads on. They come one to a run, when all has been told and all members are well.
"""

import asyncio
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Final, Protocol

import httpx
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.errors import KafkaError

from service.sandbox.vcda.simulator import Simulator
from tests.stress.schedule import PARTITIONS, Ending
from tests.stress.watch import Watch
from tests.support.process_harness import Ledger, Process
from tests.support.simulator_thread import Apart

OVERTAKEN: Final = 200
"""Requests that come while nobody reads; some reach the members all the same, and get their syncs."""

REQUESTS: Final = 4 * PARTITIONS
"""Enough for each partition to have some."""

NOTICED: Final = 120.0
"""Seconds until the service has said what is wrong: a look every few seconds, and a new leader's time to settle."""

TOLD: Final = 120.0
"""Seconds for short syncs, and a start of all members before them."""

RECREATED: Final = 20.0
"""Seconds in which Kafka deletes a topic and takes another of its name."""

LONG: Final = 15.0
"""Seconds of a sync that is still running when the journal goes."""


class Actor(Protocol):
    """A member of the group."""

    @property
    def process(self) -> Process: ...
    @property
    def watch(self) -> Watch: ...

    frozen: bool


class Stage(Protocol):
    """What an ending does things to."""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def vcda(self) -> Apart: ...

    def free(self) -> Sequence[Actor]: ...
    def find(self, sentence: str) -> None: ...
    def untold(self) -> set[str]: ...
    async def begin_again(self, **settings: str) -> None:
        """End all members, and start as many, as the ledger has it now, with these settings from now on."""


async def play(ending: Ending, stage: Stage) -> None:
    """Play one, and find what is wrong with the answer."""
    endings = {
        Ending.OVERTAKEN: _overtaken,
        Ending.REQUESTS_REPLACED: _requests_replaced,
        Ending.JOURNAL_REPLACED: _journal_replaced,
    }
    admin = AIOKafkaAdminClient(bootstrap_servers=stage.ledger.bootstrap)
    await admin.start()
    try:
        await endings[ending](stage, admin)
    finally:
        await admin.close()


async def _overtaken(stage: Stage, admin: AIOKafkaAdminClient) -> None:
    """Requests go before anybody reads them: counted, and those that remain get their syncs."""
    ledger, topic = stage.ledger, stage.ledger.topics["requests"]
    members = stage.free()
    for member in members:
        member.frozen = True
        member.process.signal(signal.SIGSTOP)
    pairs = _pairs(OVERTAKEN)
    # The first ones answer fetches that Kafka holds back for members: what comes behind those, nobody has.
    await ledger.ask_all(pairs[:REQUESTS])
    await asyncio.sleep(0.5)
    await ledger.ask_all(pairs[REQUESTS:])
    ledger.deleted |= {operation_id for operation_id, _ in pairs}
    everything = RecordsToDelete(before_offset=-1)
    await admin.delete_records({TopicPartition(topic, number): everything for number in range(PARTITIONS)})
    for member in members:
        member.process.signal(signal.SIGCONT)
        member.frozen = False
    await ledger.ask_all(_pairs(REQUESTS))

    def settled() -> bool:
        untold, lost = stage.untold(), sum(member.watch.lost for member in members)
        return untold <= ledger.deleted and len(untold) <= lost

    await _until(settled, stage, within=TOLD)
    if not stage.untold():
        stage.find("retention overtook nobody, so that this ending shows nothing")


async def _requests_replaced(stage: Stage, admin: AIOKafkaAdminClient) -> None:
    """Another requests topic of the same name: all partitions refuse, until neither journal nor group know the old."""
    ledger = stage.ledger
    await _recreate(admin, ledger.topics["requests"])
    await ledger.hang_up()
    await ledger.ask_all(_pairs(REQUESTS))
    await _refused(stage, "its requests topic was created again")
    ledger.renamed["journal"] = f"{ledger.topics['journal']}.second"
    ledger.group += ".second"
    await stage.begin_again()
    if not await _until(lambda: not stage.untold(), stage, within=TOLD):
        stage.find(f"{len(stage.untold())} requests of a new requests topic are not read with a new journal")


async def _journal_replaced(stage: Stage, admin: AIOKafkaAdminClient) -> None:
    """Another journal of the same name, while syncs are running: what is known goes into it, and nothing is lost."""
    ledger = stage.ledger
    pairs = _pairs(REQUESTS)
    for _, replication_id in pairs:
        await stage.vcda.do(partial(_lasts, replication_id=replication_id))
    await ledger.ask_all(pairs)
    operations = {operation_id for operation_id, _ in pairs}

    async def begun() -> bool:
        return {task["operationID"] for task in await stage.vcda.do(lambda sim: sim.world.ledger())} >= operations

    until = time.monotonic() + TOLD
    while not await begun() and time.monotonic() < until:
        await asyncio.sleep(0.2)
    await _recreate(admin, ledger.topics["journal"], **{"cleanup.policy": "compact"})
    await ledger.ask_all(_pairs(REQUESTS))  # something to write for each partition, which shows it that all is gone

    def rewritten() -> bool:
        return sum(member.watch.rewritten for member in stage.free()) >= PARTITIONS

    if not await _until(rewritten, stage, within=NOTICED):
        count = sum(member.watch.rewritten for member in stage.free())
        stage.find(f"{count:.0f} of {PARTITIONS} journals were written again after they had been created again")
        return
    await stage.begin_again()  # from now on the new journal alone knows
    if not await _until(lambda: not stage.untold(), stage, within=TOLD):
        stage.find(f"{len(stage.untold())} requests are forgotten with a journal that was created again")


def _lasts(sim: Simulator, *, replication_id: str) -> None:
    sim.world.plan(replication=replication_id, duration=LONG, failing=0.0)


def _pairs(count: int) -> list[tuple[str, str]]:
    """Requests that nobody else makes, over all partitions."""
    names = [str(uuid.uuid4()) for _ in range(count)]
    return [(f"ending-{name}", f"C4-{name}") for name in names]


async def _recreate(admin: AIOKafkaAdminClient, topic: str, **configs: str) -> None:
    replicas = len((await admin.describe_cluster())["brokers"])
    await admin.delete_topics([topic])
    until = time.monotonic() + RECREATED
    while True:  # the name is free a moment after the deletion was answered
        response = await admin.create_topics([NewTopic(topic, PARTITIONS, replicas, topic_configs=configs)])
        codes = [code for _, code, *_ in response.topic_errors]
        if not any(codes):
            return
        if time.monotonic() > until:
            msg = f"{topic} could not be created again: {codes}"
            raise KafkaError(msg)
        await asyncio.sleep(0.02)


async def _refused(stage: Stage, why: str) -> None:
    """Each partition is refused by who has it, and each who refuses any says so."""

    def noticed() -> bool:
        return sum(member.watch.stopped for member in stage.free()) == PARTITIONS

    if not await _until(noticed, stage, within=NOTICED):
        stopped = sum(member.watch.stopped for member in stage.free())
        stage.find(f"{PARTITIONS - stopped:.0f} of {PARTITIONS} partitions go on as if nothing were wrong: {why}")
        return
    # A member whose metadata have just changed joins its group once more, and has no partition meanwhile.
    until = time.monotonic() + NOTICED
    while (silent := await _silent(stage)) and time.monotonic() < until:
        await asyncio.sleep(0.5)
    for finding in silent:
        stage.find(f"{finding}: {why}")


async def _silent(stage: Stage) -> list[str]:
    """Members that refuse a partition and don't say so where an operator looks."""
    silent = []
    for member in stage.free():
        try:
            await member.watch.scrape()
            ready = await member.process.get("/readyz")
        except httpx.HTTPError as error:  # busy, on a busy machine
            silent.append(f"{member.process.log.name} says nothing ({error!r})")
            continue
        refused = ready.status_code == HTTPStatus.SERVICE_UNAVAILABLE and "partition" in ready.text.lower()
        if member.watch.stopped and not refused:
            silent.append(f"{member.process.log.name} says {ready.status_code} {ready.text[:200]!r}")
    return silent


async def _until(holds: Callable[[], bool], stage: Stage, *, within: float) -> bool:
    """Look at all members again and again until something holds."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        for member in stage.free():
            try:
                await member.watch.scrape()
            except httpx.HTTPError:
                continue
        if holds():
            return True
        await asyncio.sleep(0.5)
    return False
