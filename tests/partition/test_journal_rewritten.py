"""Records of a journal that are deleted while its partition is open are written again; before its opening: reported."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from service.intake.journal_comparison import JournalComparison
from service.intake.timings import DEFAULT_TIMINGS
from service.kafka.leader_offsets import Offsets
from service.partition.partition import Partition
from service.sync import Ended, Running
from tests.support.simulated_deployment import (
    POLICY,
    Deployment,
    Process,
    ScatteredSlices,
    deployed,
    in_flight,
)

START = 100
"""The first offset of a journal of which records were deleted."""


def opened(process: Process) -> Partition:
    partition = process.partition()
    assert partition is not None
    return partition


async def at_work(d: Deployment, **how: Any) -> Process:
    """Have two syncs that run, and a request that waits behind one of them."""
    p0 = d.owner(**how)
    d.world.lasts = lambda _: 60.0
    for replication_id, operation_id in (("C4-1", "a1"), ("C4-1", "a2"), ("C4-2", "b1")):
        d.broker.ask(replication_id, operation_id)
    await d.until(5.0)
    return p0


@deployed
async def test_what_is_in_flight_is_written_again_and_nothing_is_lost_with_the_process(d: Deployment) -> None:
    p0 = await at_work(d)
    before = d.log.states()
    d.log.delete_records(start=START)

    opened(p0).rewrite_journal(START)
    await d.until(6.0)
    assert d.log.states() == before
    assert d.log.cursor is not None
    assert d.log.cursor.journal_start == START

    await p0.crash()
    p1 = d.owner("P1")
    await d.settled()
    assert sorted(d.verdicts()) == [("a1", "completed"), ("a2", "completed"), ("b1", "completed")]
    assert d.world.tasks_of() == {"a1": 1, "a2": 1, "b1": 1}
    assert p1.meter.counts["records deleted"] == 0


@deployed
async def test_an_end_between_two_slices_leaves_the_loss_to_be_reported_by_the_next_owner(
    d: Deployment,
) -> None:
    p0 = await at_work(d, slices=ScatteredSlices(lambda: 1.0))
    d.log.delete_records(start=START)

    opened(p0).rewrite_journal(START)
    await d.until(6.5)  # two of three are written
    opened(p0)._journal_writer.advance_cursor()
    await d.until(6.8)
    assert len(d.log.states()) == 2
    assert d.log.cursor is not None
    assert d.log.cursor.journal_start == 0
    await p0.crash()

    p1 = d.owner("P1")
    await d.until(d.loop.time() + 5.0)
    assert p1.meter.counts["records deleted"] == 1


@deployed
async def test_a_request_that_ends_and_comes_again_while_the_journal_is_written_again_is_not_overwritten(
    d: Deployment,
) -> None:
    forgetful, apart = replace(POLICY, deduplicate_for=timedelta(seconds=1)), 0.0
    p0 = await at_work(d, slices=ScatteredSlices(lambda: apart), policy=forgetful)
    d.log.delete_records(start=START)

    apart = 85.0
    opened(p0).rewrite_journal(START)
    await d.until(5.1)
    apart = 0.0  # one slice takes until 90, and b1 ends after a minute
    await d.until(75.0)
    assert isinstance(d.log.states()["op:C4-2:b1"], Ended)
    d.broker.ask("C4-2", "b1")
    await d.until(100.0)
    assert not opened(p0).rewriting
    assert isinstance(d.log.states()["op:C4-2:b1"], Running)


@deployed
async def test_a_process_that_has_lost_the_partition_writes_nothing_again(d: Deployment) -> None:
    p0 = await at_work(d)
    lost = opened(p0)
    d.group.hand(0, p1 := d.process("P1"), learns_after=100.0)
    await d.until(8.0)
    d.log.delete_records(start=START)

    lost.rewrite_journal(START)
    await d.until(10.0)
    assert d.log.states() == {}
    assert d.log.refused >= 1
    assert len(in_flight(p1)) == 3


@deployed
async def test_a_rewriting_that_takes_longer_than_a_comparison_may_is_begun_once_for_each_deletion(
    d: Deployment,
) -> None:
    p0 = await at_work(d, slices=ScatteredSlices(lambda: 8.0))  # 24 s for three
    start = START
    comparison = JournalComparison(
        "journal",
        subscriber=journals_beginning(lambda: start),
        supervisors=p0.supervisors.values,
        metrics=p0.meter,
    )

    async def compare_until(moment: float) -> None:
        while d.loop.time() < moment:
            async with asyncio.timeout(DEFAULT_TIMINGS.compare_limit.total_seconds()):
                await comparison.compare()
            await d.until(d.loop.time() + DEFAULT_TIMINGS.compare.total_seconds())

    await compare_until(25.0)
    assert p0.meter.counts["rewritten"] == 1
    start += 1  # more was deleted while the first rewriting was under way
    await compare_until(100.0)
    assert p0.meter.counts["rewritten"] == 2
    assert d.log.cursor is not None
    assert d.log.cursor.journal_start == START + 1


def journals_beginning(start: Callable[[], int]) -> Any:
    """Return a subscriber whose consumer finds that all journals begin there."""

    async def first_offsets(places: Iterable[TopicPartition]) -> Offsets:
        return Offsets(dict.fromkeys(places, start()), {})

    return SimpleNamespace(consumer=SimpleNamespace(first_offsets=first_offsets))


@deployed
async def test_records_that_were_deleted_before_a_partition_was_opened_are_reported_once(d: Deployment) -> None:
    p0 = await at_work(d)
    await p0.crash()
    d.log.delete_records(start=START)

    p1 = d.owner("P1")
    await d.until(10.0)
    assert p1.meter.counts["records deleted"] == 1
    assert in_flight(p1) == []

    await p1.crash()
    p2 = d.owner("P2")
    await d.until(15.0)
    assert p2.meter.counts["records deleted"] == 0


def test_they_are_reported_once_also_where_the_opening_fails_then(caplog: pytest.LogCaptureFixture) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0 = await at_work(d)
        await p0.crash()
        d.log.delete_records(start=START)
        d.broker.script.extend(["lost", "lost"])

        p1 = d.owner("P1")
        await d.until(120.0)
        assert p1.meter.counts["restored"] == 1
        assert p1.meter.counts["records deleted"] == 1

    play()
    assert caplog.text.count("were deleted before it was opened: the journal began at offset 0, and begins at") == 1


@deployed
async def test_a_lost_journal_gets_again_the_outcomes_that_no_commit_is_known_to_hold(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert opened(p0).memory().batch.events == []

    d.broker.latency = lambda: 1000.0  # its outcome's commit stays under way
    d.broker.ask("C4-1", "a2", deadline=5)
    await d.until(d.loop.time() + 3000.0)
    assert len(d.log.told) == 1
    assert len(opened(p0).memory().batch.events) == 1
