"""Each record read has one fate, counted once, whatever commits and partitions meet."""

import asyncio
from collections import Counter

import pytest

from service.kafka.journal_api import JournalLost
from service.kafka.journal_codec import CURSOR_KEY, Cursor, encode_cursor
from service.messages.record_fate import NEVER_READ, Fate
from service.partition.balance import Balance, Taken
from service.partition.partition import Partition
from tests.support.simulated_deployment import REQUESTS, UNKNOWN, Deployment, Meter, deployed


def taken(until: int, **fates: int) -> Taken:
    return Taken(until, fates=Counter({Fate(fate): count for fate, count in fates.items()}))


def held(meter: Meter) -> int:
    """How many records wait for their commits, where none is unaccounted for."""
    return -meter.unaccounted - sum(count for fate, count in meter.fates.items() if fate not in NEVER_READ)


def test_what_was_taken_up_has_its_fate_once_the_cursor_has_passed_it() -> None:
    meter = Meter()
    balance = Balance(meter)
    balance.hold(taken(3, admitted=2, dead_lettered=1))
    balance.hold(taken(7, no_record=3, duplicate=1))
    assert (meter.fates, held(meter)) == ({}, 4)

    balance.reached(3)
    assert (meter.fates, held(meter)) == ({"admitted": 2, "dead_lettered": 1}, 1)

    balance.reached(7)
    balance.reached(7)
    assert (meter.fates, held(meter)) == ({"admitted": 2, "dead_lettered": 1, "no_record": 3, "duplicate": 1}, 0)


def test_what_a_lost_journal_had_not_committed_is_reread_and_what_it_had_is_counted() -> None:
    meter = Meter()
    balance = Balance(meter)
    balance.hold(taken(3, admitted=3))
    balance.hold(taken(9, admitted=2, no_record=4))

    balance.reopened(3)

    assert (meter.fates, held(meter)) == ({"admitted": 3, "reread": 2}, 0)


@pytest.mark.parametrize(("fate", "reread"), [("lost", 2), ("later", 2), ("unanswered", 0)])
def test_a_lost_commit_counts_nothing_twice(fate: str, reread: int) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner()
        await d.until(0.5)
        d.broker.script.append(fate)
        d.broker.ask("C4-1", "a1")
        d.broker.ask("C4-1", "a2", value=b"nonsense")
        await d.until(0.5 + UNKNOWN - 0.1)
        assert (p0.meter.fates, p0.meter.unaccounted) == ({}, 0), "nobody knows yet whether it stands"
        await d.settled()

        expected = {"admitted": 1, "dead_lettered": 1} | ({"reread": reread} if reread else {})
        assert (p0.meter.fates, p0.meter.unaccounted) == (expected, 0)
        assert p0.meter.counts["dead-letter not-json"] == 1

    play()


def test_a_dead_letter_and_a_release_are_logged_once_they_are_committed(caplog: pytest.LogCaptureFixture) -> None:
    def said(what: str) -> int:
        return sum(message.startswith(what) for message in caplog.messages)

    @deployed
    async def play(d: Deployment) -> None:
        d.owner()
        await d.until(0.5)
        d.broker.ask("C4-1", "a1")
        await d.until(1.0)
        d.broker.script.append("lost")
        d.broker.ask("C4-2", "a2", value=b"nonsense")
        d.broker.cancel("C4-1", "a1", release=True)
        await d.until(1.0 + UNKNOWN - 0.1)
        assert (said("Invalid message"), said("Released")) == (0, 0), "nobody knows yet whether it stands"
        await d.settled()

        assert (said("Invalid message"), said("Released")) == (1, 1)

    play()


@deployed
async def test_what_a_process_that_lets_go_had_not_committed_is_counted_by_the_next_owner(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(0.5)
    d.broker.script.append("lost")
    d.broker.ask("C4-1", "a1")
    await d.until(1.0)
    p1 = d.owner("P1")
    await d.settled()
    await asyncio.sleep(UNKNOWN)  # so long the first waits for its commit

    assert (p0.meter.fates, p0.meter.unaccounted) == ({"reread": 1}, 0)
    assert (p1.meter.fates, p1.meter.unaccounted) == ({"admitted": 1}, 0)


@deployed
async def test_a_commit_that_is_on_its_way_when_the_partition_closes_is_waited_for_and_counted(d: Deployment) -> None:
    d.broker.latency = lambda: 1.0
    p0 = d.owner()
    await d.until(10.0)
    d.broker.ask("C4-1", "a1", value=b"nonsense")
    await d.until(10.5)
    d.group.owners.clear()
    p0.let_go(0)
    await asyncio.wait(p0._ended)

    assert (p0.meter.fates, p0.meter.unaccounted) == ({"dead_lettered": 1}, 0)


@deployed
async def test_offsets_that_hold_no_record_are_counted_as_such(d: Deployment) -> None:
    p0 = d.owner()
    for number in range(5):
        d.broker.ask("C4-1", f"a{number}")
    del d.log.requests[1:4]  # an aborted transaction's, and its mark
    await d.settled()

    assert p0.meter.fates == {"admitted": 2, "no_record": 3}


@deployed
async def test_an_admission_that_fails_leaves_no_record_without_a_fate(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(0.5)
    partition = p0.partition()
    assert partition is not None
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-1", "a2")
    records = [*d.log.requests, None]
    p0.meter.records_read(3)
    with pytest.raises(AttributeError):
        partition.admit(records)  # type: ignore[arg-type] # a bug
    partition.fail("admission failed")
    await d.settled()

    assert (p0.meter.fates, p0.meter.unaccounted) == ({"reread": 3, "admitted": 2}, 0)


@deployed
async def test_requests_that_are_lost_are_counted_once_though_the_commit_that_passes_them_is_lost(
    d: Deployment,
) -> None:
    p0 = d.process("P0")
    balance = Balance(p0.meter)
    for number in range(3):
        d.broker.ask("C4-1", f"a{number}")
    d.log.cursor = Cursor(REQUESTS, 1)
    d.log.written.append((CURSOR_KEY, encode_cursor(d.log.cursor)))

    async def opened() -> Partition:
        return Partition(
            0,
            opened=await d.broker.open(0, process=p0),
            dependencies=p0._dependencies,
            balance=balance,
            start_at=3,  # the topic begins there
            on_lost=lambda _: None,
        )

    partition = await opened()
    d.broker.script.append("lost")
    with pytest.raises(JournalLost):
        await partition.start()
    await partition.close()
    assert p0.meter.fates[Fate.LOST] == 0

    partition = await opened()
    await partition.start()
    assert (p0.meter.fates[Fate.LOST], p0.meter.unaccounted) == (2, 0)
    await partition.close()
