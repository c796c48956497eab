"""However slow Kafka is, what waits for a commit has a bound, and nothing is lost or written twice for it."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from service import sync
from service.kafka.journal import KafkaJournal
from service.kafka.journal_api import Batch
from service.kafka.journal_codec import encode
from service.kafka.journal_replay import EXPIRED_AT_MOST, KEPT
from service.messages.kafka_record import Event
from service.messages.record_fate import Fate
from service.partition.expiry import EXPIRED_AT_ONCE
from service.partition.journal_writer import BEHIND, CHANGE_BYTES, CUT, TOMBSTONE_BYTES
from service.partition.partition import Partition
from service.sandbox.kafka import Kafka
from service.vcda.lanes import LaneLimits
from tests.conftest import TopicNamer
from tests.support.kafka_harness import Station, until, word
from tests.support.simulated_deployment import DEAD, FETCH, Deployment, ScriptedJournal, deployed

LARGE = b"?" * 900_000

SLOW = 2.0
"""Seconds of each way to Kafka and back."""


def large(number: int) -> bytes:
    return b"%06d" % number + LARGE


def size(batch: Batch) -> int:
    return sum(len(event.value or b"") for event in batch.events)


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all commits."""
    sizes: list[int] = []
    commit = ScriptedJournal.commit

    async def noted(self: ScriptedJournal, batch: Batch) -> None:
        sizes.append(size(batch))
        await commit(self, batch)

    monkeypatch.setattr(ScriptedJournal, "commit", noted)
    return sizes


async def most_waiting(d: Deployment, partition: Callable[[], Partition | None], over: Callable[[], bool]) -> int:
    """Wait until it is over, and return how much waited for its commit at most."""
    most = 0
    while not over():
        if (open_one := partition()) is not None:
            most = max(most, open_one._journal_writer._waiting)
        await asyncio.sleep(0.05)
        assert d.loop.time() < 10_000.0, "it never ends"
    return most


def test_dead_letters_that_come_faster_than_kafka_takes_them_are_not_read_without_bound(commits: list[int]) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        d.broker.latency = lambda: SLOW
        p0 = d.owner()
        for number in range(60):
            d.broker.ask("C4-1", "a1", value=large(number))

        most = await most_waiting(d, p0.partition, lambda: len(d.log.told) == 60)

        assert BEHIND <= most <= BEHIND + FETCH
        assert max(commits) <= CUT + len(large(0))
        assert [told.event.value for told in d.log.told] == [large(number) for number in range(60)]
        await asyncio.sleep(SLOW + 1.0)  # until the last commit's answer is here
        assert (p0.meter.fates, p0.meter.unaccounted) == ({"dead_lettered": 60}, 0)

    play()


@pytest.mark.parametrize("fate", ["lost", "unanswered", "later"])
def test_one_read_that_is_large_is_committed_in_parts_each_with_its_own_cursor(fate: str, commits: list[int]) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner()
        await d.until(1.0)
        partition = p0.partition()
        assert partition is not None
        for number in range(10):
            d.broker.ask("C4-1", f"a{number}", value=None if number == 5 else large(number))
        d.broker.script.extend(["stands", "stands", fate])
        p0.meter.records_read(10)
        partition.admit(d.log.requests)
        await d.settled()

        assert [size for size in commits if size > CUT] == [2 * len(large(0))] * len([s for s in commits if s > CUT])
        dead = [told.event.value for told in d.log.told if told.topic == DEAD]
        assert dead == [large(number) for number in range(10) if number != 5]
        assert d.verdicts() == [("a5", "completed")]
        fates = {fate: count for fate, count in p0.meter.fates.items() if fate is not Fate.REREAD}
        assert (fates, p0.meter.unaccounted) == ({"dead_lettered": 9, "admitted": 1}, 0)

    play()


def test_outcomes_that_come_faster_than_kafka_takes_them_wait_at_vcda(commits: list[int]) -> None:
    count = 300

    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner(limits=LaneLimits(max_concurrent_submits=count, max_running=0))
        d.world.lasts = lambda _: 100.0
        d.world.fate = lambda _: "FAILED"
        for number in range(count):
            d.broker.ask(f"C4-{number}", f"a{number}")
        await d.until(50.0)
        for made in d.world.made.values():
            made.error = sync.ApiError("Boom", "?" * 1000, ("?" * 1000,) * 20)
        d.broker.latency = lambda: SLOW

        most = await most_waiting(d, p0.partition, lambda: len(d.log.told) == count)

        largest = max(len(told.event.value or b"") for told in d.log.told)
        assert count * largest > 3 * BEHIND
        assert BEHIND <= most <= BEHIND + 2 * largest
        assert max(commits) <= BEHIND
        await d.settled()
        assert sorted(d.verdicts()) == sorted((f"a{number}", "task-failed") for number in range(count))
        assert set(d.world.tasks_of().values()) == {1}

    play()


def test_outcomes_of_deadlines_that_pass_together_are_told_as_fast_as_kafka_takes_them(commits: list[int]) -> None:
    count = 10_000

    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=1))
        d.world.lasts = lambda _: 1e6
        for number in range(count):
            d.broker.ask(f"C4-{number}", f"a{number}", deadline=100)
        await d.until(50.0)
        d.broker.latency = lambda: SLOW
        most = await most_waiting(d, p0.partition, lambda: len(d.log.told) == count)
        each = CHANGE_BYTES + max(len(told.event.value or b"") for told in d.log.told)
        assert count * each > 3 * BEHIND
        assert BEHIND <= most <= BEHIND + EXPIRED_AT_ONCE * 2 * each
        await asyncio.sleep(SLOW + 1.0)
        assert len(d.verdicts()) == len(set(d.verdicts())) == count

    play()


def test_what_gathers_while_a_commit_is_slow_is_cut_between_two_steps_and_never_within_one(commits: list[int]) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner()
        await d.until(1.0)
        partition = p0.partition()
        assert partition is not None
        d.broker.latency = lambda: SLOW
        commits.clear()
        for step in range(4):
            for part in range(3):
                partition._journal_writer.publish(Event(topic=DEAD, key=None, value=b"%d %d" % (step, part) + LARGE))
            await asyncio.sleep(0.1)
        partition._journal_writer.publish(Event(topic=DEAD, key=None, value=b"last"))
        await most_waiting(d, p0.partition, lambda: len(d.log.told) == 13)

        assert [round(size / len(LARGE)) for size in commits if size] == [3, 3, 3, 3, 0]
        values = [bytes(told.event.value or b"")[:4] for told in d.log.told]
        assert values == [b"%d %d?" % (step, part) for step in range(4) for part in range(3)] + [b"last"]

    play()


@pytest.mark.parametrize("away", [True, False])
def test_tombstones_that_come_by_the_hundred_thousand_are_committed_in_parts(
    away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, sizes = 40_000, []
    commit = ScriptedJournal.commit

    async def noted(self: ScriptedJournal, batch: Batch) -> None:
        sizes.append(len(batch.changes))
        await commit(self, batch)

    monkeypatch.setattr(ScriptedJournal, "commit", noted)

    @deployed
    async def play(d: Deployment) -> None:
        now = d.world.clock.now()
        request = sync.Request(
            identity="op:C4-1:a1",
            operation_id="a1",
            replication_id="C4-1",
            site=None,
            offset=0,
            requested_at=now,
            accepted_at=now,
            deadline=now,
        )
        expires = now + (-KEPT if away else timedelta(minutes=5))
        value = encode(sync.Ended(request=request, attempts=1, reason=None, ended_at=now, expires_at=expires))
        d.log.write({f"op:C4-1:{number}": value for number in range(count)}, None)
        d.owner()
        await d.until(1.0)
        assert len(d.log.records) == count - (EXPIRED_AT_MOST if away else 0)
        await d.until(2 * 3600.0)
        assert d.log.records == {}
        assert max(sizes) == CUT // TOMBSTONE_BYTES

    play()


def test_no_empty_commit_follows_what_was_cut_off_to_the_last_since_it_would_prove_nothing() -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner()
        await d.until(1.0)
        partition = p0.partition()
        assert partition is not None
        d.broker.latency = lambda: SLOW
        partition._journal_writer.publish(Event(topic=DEAD, key=None, value=LARGE + LARGE))
        await d.until(20.0)
        assert len(d.log.told) == 1
        assert partition._journal_writer.confirmed_at < 1.1

    play()


async def test_reading_from_a_real_kafka_pauses_while_much_waits_and_goes_on(
    kafka: Kafka, topic_name: TopicNamer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit = KafkaJournal.commit
    slow = True

    async def slowly(self: KafkaJournal, batch: Batch) -> None:
        await asyncio.sleep(0.5 if slow else 0.0)
        await commit(self, batch)

    monkeypatch.setattr(KafkaJournal, "commit", slowly)
    caplog.set_level("INFO")
    async with Station(kafka.bootstrap, topic_name("backlog")) as station:
        service = await station.service()
        most, paused = 0, False

        def looked(*_: Any) -> bool:
            nonlocal most, paused
            most = max(most, service.partition()._journal_writer._waiting)
            paused = paused or bool(service.consumer.paused())
            return len(station.dead) == 12

        for number in range(12):
            await station.send(value=large(number))
        await until(looked, what="all are dead letters")
        assert paused
        assert BEHIND <= most <= BEHIND + FETCH + len(large(0))
        assert [word(letter, "offset") for letter in station.dead] == [str(number) for number in range(12)]
        assert "reading is paused until more of the requests read are committed" in caplog.text
        slow = False
        await station.ask("op-1")
        await station.settled("op-1")
        assert service.metric("records_unaccounted") == 0
