"""Ended requests are remembered for a time, and forgotten with tombstones."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from service.kafka.dedup_index import YOUNG
from service.kafka.journal_api import Entry, JournalLost
from service.kafka.journal_replay import KEPT
from service.partition import deduplication
from service.partition.deduplication import SWEEP
from service.partition.driver import CLOCKS_MARGIN, UNCALIBRATED_MARGIN
from tests.support.simulated_deployment import POLICY, Deployment, ScriptedJournal, ask_at, deployed, run

FORGETFUL = replace(POLICY, deduplicate_for=timedelta(hours=1))


@deployed
async def test_expired_identities_get_tombstones_and_may_come_again(d: Deployment) -> None:
    day = FORGETFUL.deduplicate_for.total_seconds()
    p0 = d.owner(policy=FORGETFUL)
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert p0.meter.remembered == 1
    await d.until(day + 2 * SWEEP.total_seconds())
    assert d.log.records == {}
    assert p0.meter.remembered == 0
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert d.verdicts() == [("a1", "completed"), ("a1", "completed")]
    assert p0.meter.remembered == 1


@deployed
async def test_a_journal_holds_identities_for_twice_a_short_time_of_deduplication_and_20_minutes_at_most(
    d: Deployment,
) -> None:
    short = timedelta(minutes=5)
    d.owner(policy=replace(POLICY, deduplicate_for=short))
    d.broker.ask("C4-1", "a1")
    await d.settled()
    await d.until(d.loop.time() + (KEPT + 2 * short).total_seconds() + 60.0)
    assert d.log.records == {}


@deployed
async def test_a_journal_is_read_once_a_minute_at_most_however_soon_identities_expire(d: Deployment) -> None:
    d.owner(policy=replace(POLICY, deduplicate_for=timedelta(seconds=1)))
    d.broker.ask("C4-1", "a1")
    await d.settled()
    await d.until(d.loop.time() + 3600.0)
    assert 60 <= len(d.log.read_at) <= 120


def test_many_expired_identities_are_given_tombstones_in_several_readings_within_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deduplication, "BURIED_AT_ONCE", 2)

    async def play() -> None:
        async with Deployment() as d:
            d.owner(policy=FORGETFUL)
            for number in range(5):
                d.broker.ask(f"C4-{number}", f"a{number}")
            await d.settled()
            while not d.log.read_at or d.log.read_at[-1] <= (FORGETFUL.deduplicate_for + KEPT).total_seconds() + 60.0:
                await asyncio.sleep(1.0)
            await d.until(d.loop.time() + 180.0)
            assert d.log.records == {}

    run(play())


@deployed
async def test_an_expired_identity_gets_one_tombstone_however_late_kafka_compacts_the_journal(d: Deployment) -> None:
    d.owner(policy=FORGETFUL)
    d.broker.ask("C4-1", "a1")
    await d.settled()
    await d.until(d.loop.time() + 24 * 3600.0)
    assert [key for key, value in d.log.written if value is None] == [b"op:C4-1:a1"]


@deployed
async def test_an_identity_that_came_twice_is_kept_as_long_as_the_second_request_is(d: Deployment) -> None:
    short = timedelta(minutes=5)
    d.owner(policy=replace(POLICY, deduplicate_for=short))
    d.broker.ask("C4-1", "a1")
    await d.until(short.total_seconds() + 10.0)
    d.broker.ask("C4-1", "a1")
    await d.until((2 * short + KEPT).total_seconds() + 9.0)
    assert len(d.log.told) == 2
    assert "op:C4-1:a1" in d.log.records
    await d.until(d.loop.time() + short.total_seconds() + 60.0)
    assert d.log.records == {}


def test_a_reading_for_expired_identities_that_fails_is_made_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entries = ScriptedJournal.entries
    failed: list[float] = []

    async def first_lost(journal: ScriptedJournal) -> AsyncIterator[Entry]:
        async for entry in entries(journal):
            if not failed:
                failed.append(asyncio.get_running_loop().time())
                msg = "not now"
                raise JournalLost(msg)
            yield entry

    monkeypatch.setattr(ScriptedJournal, "entries", first_lost)

    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner(policy=FORGETFUL)
        d.broker.ask("C4-1", "a1")
        await d.until((2 * FORGETFUL.deduplicate_for + KEPT).total_seconds() + 60.0)
        assert d.log.records == {}
        assert (len(failed), p0.closings) == (1, [])

    play()
    assert "Expired identities stay in the journal for now; trying again later: not now" in caplog.text


@deployed
async def test_identities_that_expired_while_nobody_was_there_get_tombstones_when_it_opens(d: Deployment) -> None:
    p0 = d.owner(policy=FORGETFUL)
    d.broker.ask("C4-1", "a1")
    await d.settled()
    await p0.crash()
    await d.until((FORGETFUL.deduplicate_for + KEPT).total_seconds() + 60.0)
    d.owner("P1")
    await d.until(d.loop.time() + 0.1)
    assert d.log.records == {}


@deployed
async def test_an_identity_that_came_again_right_after_it_expired_counts_as_one(d: Deployment) -> None:
    p0 = d.owner(policy=FORGETFUL)
    d.broker.ask("C4-1", "a1")
    await d.settled()
    await d.until(FORGETFUL.deduplicate_for.total_seconds() + 5.0)
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert len(d.verdicts()) == 2
    assert p0.meter.remembered == 1


@pytest.mark.parametrize("lasts", [1.0, 300.0])
def test_an_identity_that_comes_again_while_the_journal_is_read_gets_no_tombstone(lasts: float) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.owner(policy=FORGETFUL)
            d.broker.reading = 60.0
            d.broker.ask("C4-1", "a1")
            await d.settled()
            expired = (FORGETFUL.deduplicate_for + KEPT).total_seconds() + 5.0
            while not d.log.read_at or d.log.read_at[-1] < expired:
                await asyncio.sleep(1.0)
            d.world.lasts = lambda _: lasts
            d.broker.ask("C4-1", "a1")
            await d.until(d.loop.time() + 120.0)
            assert "op:C4-1:a1" in d.log.records

    run(play())


@deployed
async def test_the_task_of_a_request_is_known_after_its_identity_is_forgotten(d: Deployment) -> None:
    """A look-up for the replication's next POST goes back by minutes, and must not take it for that POST's."""
    hasty = replace(POLICY, deduplicate_for=timedelta())
    p0 = d.owner(policy=hasty)
    ask_at(d, "far", "C4-1", "a1")
    await d.until(300.0)
    await p0.crash()
    p1 = d.owner("P1", policy=hasty)
    await d.until(d.loop.time() + 1.0)
    await p1.crash()
    d.log.written[:] = dict(d.log.written).items()  # as compaction leaves it
    p2 = d.owner("P2", policy=hasty)
    p2.vcda.script["a2"] = ["lost-post"]
    ask_at(d, "far", "C4-1", "a2")
    await d.settled()
    assert d.world.tasks_of() == {"a1": 1, "a2": 1}
    assert [told.data["taskId"] for told in d.log.told] == ["task-1", "task-2"]


def test_the_tasks_of_ended_requests_are_known_for_longer_than_look_ups_go_back() -> None:
    """A look-up goes back by a site clock's margin; tasks that are passed over may have begun by a margin earlier."""
    assert max(CLOCKS_MARGIN, UNCALIBRATED_MARGIN) + CLOCKS_MARGIN < min(KEPT, YOUNG)
