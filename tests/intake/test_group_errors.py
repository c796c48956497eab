"""Errors inside a member of the group: what ends the process, and what reopens a partition, so that nothing is lost."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import TopicPartition

from service.intake.timings import DEFAULT_TIMINGS
from service.kafka.journal_api import Opened
from service.messages.kafka_record import Record
from service.messages.record_fate import Fate
from tests.intake.test_supervisor import Swallowing, intake_of
from tests.support.virtual_time import now, virtual

PLACE = TopicPartition("requests", 7)
RECORDS = [
    Record(topic="requests", partition=7, offset=offset, timestamp_ms=0, key=None, value=None) for offset in range(3)
]


class Supervised:
    """A partition's supervisor, of which a test says what fails; it remembers why it was distrusted."""

    place = PLACE

    def __init__(self, *, admit: Callable[[list[Record]], None]) -> None:
        self.distrusted: list[str] = []
        self.failed: list[str] = []
        self.partition = SimpleNamespace(cursor=0, admit=admit, fail=self.failed.append)

    def distrust(self, why: str) -> None:
        self.distrusted.append(why)

    def revoke(self) -> None:
        raise ZeroDivisionError


class Counted:
    """A meter that counts the fates of records."""

    def __init__(self) -> None:
        self.fates: list[tuple[Fate, int]] = []

    def records(self, fate: Fate, count: int) -> None:
        self.fates.append((fate, count))


def with_partition(admit: Callable[[list[Record]], None], *, current: bool = True, doubt: str | None = None) -> Any:
    """Return a member of the group, its partition's supervisor, and its meter."""
    intake, supervisor, meter = intake_of(Swallowing()), Supervised(admit=admit), Counted()
    intake._supervisors[PLACE.partition] = cast("Any", supervisor)
    intake._metrics = cast("Any", meter)
    intake._arrivals = cast("Any", SimpleNamespace(are_current=lambda _: current, doubt=lambda *_: doubt))
    return intake, supervisor, meter


@virtual
async def test_a_rebalance_listener_that_fails_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    """Kafka's client ignores its exceptions, and would go on with partitions that nobody has let go of."""
    intake, _, _ = with_partition(lambda _: None)
    await intake.on_partitions_revoked([PLACE])

    assert intake.died.is_set()
    assert "Rebalance listener failed; the process ends" in caplog.text


@virtual
async def test_an_admission_that_fails_reopens_the_partition_and_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: list[Record]) -> None:
        raise ZeroDivisionError

    intake, supervisor, _ = with_partition(fail)
    intake._take(PLACE.partition, RECORDS)

    assert supervisor.distrusted == ["admission failed"]
    assert "Admission failed on partition 7" in caplog.text
    assert not intake.died.is_set()


@virtual
async def test_records_that_are_read_again_are_not_admitted_and_are_counted_as_such() -> None:
    admitted: list[Record] = []
    for current, doubt, stopping in ((False, None, False), (True, "there is a gap", False), (True, None, True)):
        intake, supervisor, meter = with_partition(admitted.extend, current=current, doubt=doubt)
        intake._stopping = stopping
        intake._take(PLACE.partition, RECORDS)

        assert meter.fates == [(Fate.REREAD, 3)]
        assert supervisor.distrusted == ([doubt] if doubt else [])
    assert admitted == []


@virtual
async def test_partitions_are_reopened_at_new_addresses_and_the_process_ends_where_only_others_are_answered() -> None:
    intake, supervisor, _ = with_partition(lambda _: None)

    async def look(moved: bool | None) -> None:
        async def ask() -> bool | None:
            return moved

        intake._reachability.ask_bootstrap_servers = ask
        await intake._watch_kafka()

    await asyncio.sleep(DEFAULT_TIMINGS.ask_bootstrap.total_seconds() + 1)
    await look(None)
    assert intake._reachability._answers_others_since is None, "nobody answers"
    await look(True)
    assert supervisor.failed == ["the addresses of Kafka's brokers have changed"]
    await asyncio.sleep(DEFAULT_TIMINGS.give_up.total_seconds())
    await look(False)
    await asyncio.sleep(1)
    with pytest.raises(RuntimeError, match="Kafka has answered new clients, but not the consumer"):
        await look(False)


@virtual
async def test_a_kafka_that_answers_nobody_in_between_does_not_end_the_process() -> None:
    intake, _, _ = with_partition(lambda _: None)
    answers = iter([False, None, False])

    async def ask() -> bool | None:
        return next(answers)

    intake._reachability.ask_bootstrap_servers = ask
    await asyncio.sleep(DEFAULT_TIMINGS.ask_bootstrap.total_seconds() + 1)
    for _ in range(3):
        await intake._watch_kafka()
        await asyncio.sleep(DEFAULT_TIMINGS.give_up.total_seconds())
    assert not intake.died.is_set()


@virtual
async def test_a_supervisor_that_a_library_cancels_by_itself_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    async def cancelled(_: int) -> Opened:
        raise asyncio.CancelledError

    intake = intake_of(cast("Any", SimpleNamespace(open=cancelled)))
    await intake._assign({PLACE})
    await asyncio.sleep(1)

    assert intake.died.is_set()
    assert (
        "A background task that must not end has failed (the supervisor of partition 7); the process ends"
        in caplog.text
    )


@virtual
@pytest.mark.parametrize("limit", [3.0, 23.0])
async def test_stopping_ends_in_time_where_kafka_does_not_answer(limit: float) -> None:
    async def never(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    intake = intake_of(Swallowing())
    consumer = SimpleNamespace(
        assignment=set,
        pause=lambda *_: None,
        partitions_for_topic=lambda _: {7},
        may_see=lambda _: True,
        partitions_of=never,
    )
    intake._subscriber = cast("Any", SimpleNamespace(started=True, consumer=consumer, stop=never))
    await intake.stop(limit)

    assert now() == limit
