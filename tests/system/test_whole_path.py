"""From a request's bytes to its outcome, through all that is ours: bad bytes, odd answers, a Kafka that goes away."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.clock import Clock
from service.sandbox.kafka import EmbeddedKafka, Kafka
from service.sync import Gone, Task, Trouble
from tests.conftest import TopicNamer
from tests.support.bad_requests import BAD_REQUESTS
from tests.support.kafka_harness import Station, good, impatient, until, word


@pytest.fixture
async def station(kafka: Kafka, topic_name: TopicNamer) -> AsyncIterator[Station]:
    async with Station(kafka.bootstrap, topic_name("path")) as station:
        yield station


# ---------------------------------------------------------------- bytes


async def test_requests_bad_in_every_way_are_set_aside_untouched_and_nothing_behind_them_waits(
    station: Station,
) -> None:
    bad = [row for row in BAD_REQUESTS if row.record.unreadable is None]
    service = await station.service()
    for number, row in enumerate(bad):
        record = row.record
        await station.send_together([{"key": record.key, "value": record.value, "headers": list(record.headers)}])
        if number % 10 == 0:
            await station.ask(f"op-{number}")

    await station.settled(*(f"op-{number}" for number in range(0, len(bad), 10)))
    letters = await station.dead_letters(len(bad))
    assert len(letters) == len(bad)
    for letter, row in zip(letters, bad, strict=True):
        record = row.record
        nothing = record.key is None and record.value is None
        assert (letter.key, letter.value) == (record.key, b"" if nothing else record.value), row.name
        assert letter.headers[: len(record.headers)] == record.headers, row.name
        assert (word(letter, "reason"), word(letter, "topic")) == (row.reason, station.topics.requests), row.name
    await until(lambda: service.metric("requests_total", result="dead_lettered") == len(bad), what="they are counted")
    assert service.metric("partitions_reopened_total") == 0


async def test_timestamps_may_be_anything(kafka: Kafka, topic_name: TopicNamer) -> None:
    station = Station(kafka.bootstrap, topic_name("stamps"))
    station.settings[station.topics.requests] = {"message.timestamp.after.max.ms": str(2**63 - 1)}
    stamps = [0, 1, 253_402_300_799_999, 253_402_300_800_000, 2**62, 1_772_402_400_123]
    async with station:
        first = await station.service()
        for stamp in stamps:
            await station.send_together([good(f"at-{stamp}") | {"timestamp": stamp}])
            await station.send_together([{"value": b"?", "timestamp": stamp}])
        await station.settled(*(f"at-{stamp}" for stamp in stamps))
        letters = await station.dead_letters(len(stamps))
        assert [word(letter, "timestamp") for letter in letters] == [str(stamp) for stamp in stamps]
        asked = {event["operationID"]: event["requestedAt"] for event in (json.loads(r.value) for r in station.told)}
        assert asked["at-1772402400123"] == "2026-03-01T22:00:00.123Z"
        assert asked["at-253402300799999"] == "9999-12-31T23:59:59.999Z"
        now = datetime.now(UTC)
        for none in ("at-253402300800000", f"at-{2**62}"):  # years that have no name: the moment of acceptance instead
            assert abs(now - datetime.fromisoformat(asked[none])) < timedelta(minutes=1)
        await first.stop()

        second = await station.service("B")  # the journal holds them all, and the cursor the last one's stamp
        await station.ask("after")
        await station.settled(*(f"at-{stamp}" for stamp in stamps), "after")
        assert second.metric("requests_total", result="accepted") == 1


# ---------------------------------------------------------------- what VCDA says


async def test_an_empty_page_of_tasks_loses_nothing(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    service = await station.service(policy=impatient(lost_after=timedelta(seconds=0.0)))
    pages = iter([True])
    poll = service.vcda.poll

    async def empty_once(*, site: str | None, ids: Sequence[str]) -> list[Task] | Trouble:
        return [] if next(pages, False) else await poll(site=site, ids=ids)

    async def unknown(*, site: str | None, task_id: str) -> Gone:
        return Gone(Clock().monotonic(), service.vcda.account(site))

    monkeypatch.setattr(service.vcda, "poll", empty_once)
    monkeypatch.setattr(service.vcda, "ask", unknown)
    station.world.lasts = lambda _: 0.3
    await station.ask("op-1", "op-2")

    await station.settled("op-1", "op-2")
    assert next(pages, None) is None


async def test_a_task_that_is_gone_for_good_is_lost(station: Station) -> None:
    station.world.lasts = lambda operation_id: 1e6 if operation_id == "lost" else 0.1
    service = await station.service(policy=impatient(lost_after=timedelta(seconds=0.5)))
    await station.ask("lost")
    await until(lambda: bool(station.world.made), what="its task runs")
    await station.ask("op-1")
    station.world.forgotten.add(station.world.task_of("lost").task.id)

    await station.told_of("lost", "op-1")
    assert station.outcomes() == [("lost", "task-lost"), ("op-1", "completed")]
    assert service.vcda.posts == {"lost": 1, "op-1": 1}


async def test_a_task_that_was_absent_for_a_while_is_not_lost_for_that(station: Station) -> None:
    station.world.lasts = lambda _: 1e6
    service = await station.service(policy=impatient(lost_after=timedelta(seconds=0.3)))
    await station.ask("op-1")
    await until(lambda: bool(station.world.made), what="its task runs")
    made = station.world.task_of("op-1")
    asked = 0
    ask = service.vcda.ask

    async def there_again(**about: Any) -> Any:
        nonlocal asked
        asked += 1
        station.world.forgotten.clear()
        made.lasts = 0.0
        return await ask(**about)

    service.vcda.ask = there_again  # type: ignore[method-assign]
    station.world.forgotten.add(made.task.id)

    await station.settled("op-1")
    assert asked == 1


# ---------------------------------------------------------------- Kafka goes away


@pytest.mark.e2e
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_kafka_goes_away_for_a_while_and_everything_comes_back_by_itself(
    how: str, own_kafka: EmbeddedKafka, topic_name: TopicNamer
) -> None:
    async with Station(own_kafka.bootstrap, topic_name("away"), partitions=2, lasts=2.0) as station:
        service = await station.service()
        before = [f"before-{number}" for number in range(20)]
        await station.ask(*before)
        await until(lambda: len(station.world.made) >= 10, what="syncs run")

        await asyncio.to_thread(getattr(own_kafka, how))
        await asyncio.sleep(5.0)
        await asyncio.to_thread(own_kafka.start)
        await station.told_of(*before, within=60)
        await station.ask("after", replication_id="C4-after")

        await station.settled(*before, "after", within=60)
        await until(lambda: service.metric("partitions_owned") == 2, what="both are open")
        assert not service.intake.died.is_set()
