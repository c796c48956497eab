"""Records of a journal that somebody deletes: said at the next opening, written again under a running service."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import count

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from service.kafka.journal import KafkaJournal
from service.kafka.journal_api import JournalLost
from service.kafka.journal_codec import CURSOR_KEY, Cursor, encode_cursor
from service.sandbox.kafka import Kafka
from tests.conftest import TopicNamer
from tests.support.kafka_harness import PATIENCE, Service, Station, until

SAID = "were deleted before it was opened: the journal began at offset 0, and begins at offset"


@pytest.fixture
async def station(kafka: Kafka, topic_name: TopicNamer) -> AsyncIterator[Station]:
    async with Station(kafka.bootstrap, topic_name("deleted")) as station:
        yield station


async def running(station: Station, *operation_ids: str) -> Service:
    """Start a service, and have syncs that run."""
    station.world.lasts = lambda _: 1e6
    service = await station.service()
    await station.ask(*operation_ids)
    await until(lambda: len(station.world.made) == len(operation_ids), what="all run")
    return service


def end_all(station: Station) -> None:
    for made in station.world.made.values():
        made.lasts = 0.0


async def journal_of(station: Station) -> list[tuple[int, bytes | None]]:
    """Return the offset and key of each record in the journal."""
    place = TopicPartition(station.topics.journal, 0)
    reader = AIOKafkaConsumer(
        **station.connection,
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    reader.assign([place])
    await reader.start()
    try:
        found: list[tuple[int, bytes | None]] = []
        last = (await reader.end_offsets([place]))[place]
        while await reader.position(place) < last:
            records = (await reader.getmany(place, timeout_ms=100)).get(place, ())
            found += [(record.offset, record.key) for record in records]
        return found
    finally:
        await reader.stop()


async def last_cursor(station: Station) -> int:
    """Return the offset of the journal's last cursor."""
    return max(offset for offset, key in await journal_of(station) if key == CURSOR_KEY)


async def test_requests_whose_records_were_deleted_between_two_owners_are_said_to_be_lost_once(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    first = await running(station, "op-1", "op-2")
    await first.stop()
    await station.delete_journal_before(await last_cursor(station))

    second = await station.service("B")
    assert len(second.partition()) == 0, "nobody knows of them any more"
    assert second.metric("journals_with_deleted_records_total") == 1
    assert caplog.text.count(SAID) == 1
    assert "vm-sync topics check" in caplog.text

    second.partition().fail("a reopening")
    await until(lambda: second.metric("partitions_reopened_total") == 1 and second.owned == {0}, what="it is open")
    await second.stop()
    third = await station.service("C")
    assert [service.metric("journals_with_deleted_records_total") for service in (first, second, third)] == [0, 1, 0]
    assert caplog.text.count(SAID) == 1


async def test_records_that_are_deleted_under_a_running_service_are_written_again(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    station.set_timings(compare=timedelta(seconds=0.3))
    first = await running(station, "op-1", "op-2")

    await station.delete_journal_before(-1)
    await until(lambda: first.metric("journals_rewritten_total") == 1, what="it is noticed")
    committed = first.partition()._journal_writer
    await until(lambda: (committed.committed or Cursor("", 0)).journal_start != 0, what="it is written again")
    assert "It is being rewritten from memory, with 2 syncs in flight" in caplog.text
    assert first.metric("partitions_reopened_total") == 0
    await first.stop()

    second = await station.service("B")
    assert len(second.partition()) == 2
    end_all(station)
    await station.settled("op-1", "op-2")
    assert second.metric("journals_with_deleted_records_total") == 0
    assert first.metric("journals_rewritten_total") == 1


async def test_a_journal_of_a_release_before_that_begins_late_is_a_warning_once(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    journal = station.topics.journal
    await station.send(topic=journal, key=b"op:C4-1:gone", value=b"{}")
    await station.send(topic=journal, key=CURSOR_KEY, value=encode_cursor(Cursor(station.topics.requests, 0)))
    await station.delete_journal_before(1)

    with caplog.at_level(logging.WARNING):
        first = await station.service("A")
        await first.stop()
        second = await station.service("B")
    assert caplog.text.count("The journal of partition 0 begins at offset 1, not at 0") == 1
    assert [service.metric("journals_with_deleted_records_total") for service in (first, second)] == [0, 0]


async def test_compaction_alone_is_no_deletion(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    journal = station.topics.journal
    await station.drop(journal)
    station.settings[journal] = {
        "cleanup.policy": "compact",
        "segment.ms": "1",
        "min.cleanable.dirty.ratio": "0",
        "max.compaction.lag.ms": "1",
        "delete.retention.ms": "0",
    }
    await station.make(journal)
    station.set_timings(compare=timedelta(seconds=0.3))
    first = await station.service()
    await station.ask("op-0")
    await station.told_of("op-0")
    await first.stop()
    second = await station.service("B")  # whose mark takes the place of the first one's, at offset 0
    asked = count(1)
    async with asyncio.timeout(PATIENCE):
        while (await journal_of(station))[0][0] == 0:
            await station.ask(one := f"op-{next(asked)}")
            await station.told_of(one)
    await second.stop()

    third = await station.service("C")
    assert third.partition().journal_start == 0
    for service in (first, second, third):
        assert service.metric("journals_with_deleted_records_total") == 0
        assert service.metric("journals_rewritten_total") == 0
    assert "were deleted" not in caplog.text


async def test_a_journal_of_which_records_are_deleted_while_it_is_read_is_read_again(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = iter((0, 7))

    async def first_offset(*_: object) -> int:
        return next(starts)

    monkeypatch.setattr(KafkaJournal, "_first_offset", first_offset)
    with pytest.raises(JournalLost, match="its first offset was 0, now it is 7"):
        await station.open_journal()
