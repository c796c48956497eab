"""A sender's transaction that stays open holds back a partition: it is measured, and reported once it lasts."""

import logging
from collections.abc import Callable
from datetime import timedelta

import pytest
from aiokafka import TopicPartition

from service.intake.open_transactions import OpenTransactions
from tests.support.virtual_time import HandClock

PLACE = TopicPartition("vm-sync.requests", 3)
OTHER = TopicPartition("vm-sync.requests", 10)
LIMIT = 90
MINUTE = 60


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def transactions(clock: HandClock) -> OpenTransactions:
    return OpenTransactions(limit=timedelta(seconds=LIMIT), clock=clock)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "service.intake.open_transactions")
    return lambda: [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def test_a_transaction_that_lasts_is_reported_once_and_its_end_too(
    transactions: OpenTransactions, clock: HandClock, log: Callable[[], list[str]]
) -> None:
    transactions.look(PLACE, reached=7, stable=7, end=9)
    clock.seconds += LIMIT
    transactions.look(PLACE, reached=7, stable=7, end=9)
    assert (transactions.longest(), transactions.reasons(), log()) == (90.0, [], [])

    clock.seconds += 1
    transactions.look(PLACE, reached=7, stable=7, end=20)
    clock.seconds += 9
    transactions.look(PLACE, reached=7, stable=7, end=20)
    assert transactions.reasons() == [
        "partition 3: an open transaction of a sender has held back all requests from offset 7 on for 100 s"
    ]
    assert transactions.longest() == 100

    transactions.look(PLACE, reached=7, stable=20, end=20)
    assert (transactions.longest(), transactions.reasons()) == (0, [])
    begun, ended = log()
    assert begun == (
        "WARNING Partition 3: an open transaction of a sender has held back all requests from offset 7 on for 91 s; "
        "find its producer with: kafka-transactions.sh --bootstrap-server BROKER describe-producers "
        "--topic vm-sync.requests --partition 3"
    )
    assert ended == (
        "INFO Partition 3: the open transaction at offset 7 has ended after 100 s; the requests behind it are read"
    )


def test_transactions_that_end_soon_are_none_to_report_however_close_they_follow(
    transactions: OpenTransactions, clock: HandClock, log: Callable[[], list[str]]
) -> None:
    for offset in range(10, 100, 10):
        transactions.look(PLACE, reached=offset, stable=offset, end=offset + 15)
        assert transactions.longest() == 0
        clock.seconds += MINUTE

    assert (transactions.longest(), transactions.reasons(), log()) == (60, [], [])


@pytest.mark.parametrize(
    ("reached", "stable", "end"),
    [
        (7, 7, 7),  # all is read
        (5, 7, 9),  # what lies before the transaction is not read yet
        (7, 7, None),  # nothing was fetched yet
        (7, None, 9),  # Kafka doesn't say
        (None, 7, 9),  # there is no position
        (7, 8, 7),  # the high watermark of an earlier fetch
    ],
)
def test_a_partition_is_held_back_only_if_reading_stands_at_the_open_transaction(
    transactions: OpenTransactions, clock: HandClock, reached: int | None, stable: int | None, end: int | None
) -> None:
    transactions.look(PLACE, reached=reached, stable=stable, end=end)
    clock.seconds += 2 * LIMIT
    transactions.look(PLACE, reached=reached, stable=stable, end=end)

    assert (transactions.longest(), transactions.reasons()) == (0, [])


@pytest.mark.parametrize(
    ("reached", "stable", "end"),
    [
        (7, None, 9),  # Kafka is away
        (None, 7, 9),  # a rebalance
        (0, 7, None),  # nothing was fetched since the rebalance
        (5, 7, 9),  # the partition was opened again, and reads on from its cursor
    ],
)
def test_what_is_not_known_for_a_while_ends_no_hold(
    transactions: OpenTransactions,
    clock: HandClock,
    log: Callable[[], list[str]],
    reached: int | None,
    stable: int | None,
    end: int | None,
) -> None:
    transactions.look(PLACE, reached=7, stable=7, end=9)
    clock.seconds += MINUTE
    transactions.look(PLACE, reached=reached, stable=stable, end=end)
    clock.seconds += MINUTE
    transactions.look(PLACE, reached=7, stable=7, end=9)

    assert transactions.longest() == 120
    assert len(log()) == 1


@pytest.mark.parametrize(("reached", "stable", "end"), [(7, 7, 7), (None, 8, None), (7, 5, 9)])
def test_a_hold_ends_with_the_last_stable_offset_or_with_what_lies_behind_it(
    transactions: OpenTransactions, clock: HandClock, reached: int | None, stable: int | None, end: int | None
) -> None:
    transactions.look(PLACE, reached=7, stable=7, end=9)
    clock.seconds += 2 * LIMIT
    transactions.look(PLACE, reached=reached, stable=stable, end=end)

    assert transactions.longest() == 0


def test_each_partition_has_its_own_and_one_that_is_assigned_elsewhere_has_none(
    transactions: OpenTransactions, clock: HandClock
) -> None:
    transactions.look(OTHER, reached=1, stable=1, end=2)
    clock.seconds += MINUTE
    transactions.look(PLACE, reached=7, stable=7, end=9)
    clock.seconds += 2 * MINUTE

    assert transactions.longest() == 180
    assert [reason.split(":")[0] for reason in transactions.reasons()] == ["partition 3", "partition 10"]
    transactions.forget(OTHER)
    assert transactions.longest() == 120
    assert [reason.split(":")[0] for reason in transactions.reasons()] == ["partition 3"]
