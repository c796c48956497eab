"""Python's garbage collector as the service runs it: in short looks, and in full when few syncs are in flight."""

import gc
import logging
import weakref
from collections.abc import Iterator
from datetime import timedelta

import pytest

from service.garbage import FEW, HOURLY, MANY_KEPT, SETTLED, THRESHOLDS, GarbageCollector
from tests.support.virtual_time import HandClock

AN_INSTANT = timedelta(milliseconds=1)


class FakePartition:
    """Has so many syncs in flight, and is in a cycle, as one that Kafka's errors have closed."""

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        self.itself: FakePartition | None = self

    def __len__(self) -> int:
        return self.in_flight


class Process:
    """Partitions that come and go, and the collector that watches them."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.partitions: list[FakePartition] = []
        self.collector = GarbageCollector(self.clock, partitions=lambda: self.partitions)

    def take(self, in_flight: int) -> "weakref.ref[FakePartition]":
        """Take over a partition, which is old when this returns."""
        self.partitions = [*self.partitions, FakePartition(in_flight)]
        self.collector.look()
        gc.collect(1)
        return weakref.ref(self.partitions[-1])

    def close(self, number: int = -1) -> None:
        """Close one partition. The collector looks before and after that."""
        self.collector.look()
        self.partitions = [one for one in self.partitions if one is not self.partitions[number]]
        self.collector.look()

    def look_after(self, pause: timedelta) -> None:
        """Look once more, after a pause."""
        self.clock.seconds += pause.total_seconds()
        self.collector.look()


@pytest.fixture
def process() -> Iterator[Process]:
    before = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    yield Process()
    gc.set_threshold(*before)


def young() -> int:
    """Return how many objects the next collection of young ones looks through."""
    return sum(len(gc.get_objects(generation=generation)) for generation in (0, 1))


def test_young_objects_are_few_after_each_look_though_as_many_old_ones_were_freed(process: Process) -> None:
    states: list[list[int]] = [[] for _ in range(50_000)]
    gc.collect()
    for _ in range(3):
        for number in range(len(states)):
            states[number] = []  # frees an old one: Python counts none that was made
        assert young() > len(states)  # and its own collector has not looked
        process.collector.look()
        assert young() < 1_000


def test_python_never_makes_a_full_collection_by_itself(process: Process) -> None:
    gc.set_threshold(1_000, *THRESHOLDS[1:])  # ten times as often, to need fewer objects
    made = gc.get_stats()[2]["collections"]
    kept: list[list[list[int]]] = [[[]] for _ in range(500_000)]
    assert gc.get_stats()[2]["collections"] == made
    assert kept


def test_a_partition_that_was_closed_is_collected_when_no_other_comes_or_goes(process: Process) -> None:
    closed = process.take(10)
    process.take(FEW - 10)
    process.close(0)
    process.look_after(SETTLED - AN_INSTANT)
    assert closed() is not None
    process.look_after(AN_INSTANT)
    assert closed() is None


def test_with_many_in_flight_a_full_collection_waits_until_they_are_few(process: Process) -> None:
    closed = process.take(10)
    process.take(FEW + 1)
    process.close(0)
    process.look_after(SETTLED)
    process.look_after(HOURLY)
    assert closed() is not None
    process.partitions[0].in_flight -= 1
    process.look_after(AN_INSTANT)
    assert closed() is None


def test_with_many_in_flight_for_hours_a_full_collection_is_made_all_the_same(process: Process) -> None:
    closed = process.take(10)
    process.take(50_000)
    process.close(0)
    process.look_after(2 * HOURLY - AN_INSTANT)
    assert closed() is not None
    process.look_after(AN_INSTANT)
    assert closed() is None


def test_a_closed_partition_that_keeps_much_is_collected_though_many_are_in_flight(process: Process) -> None:
    process.take(8_000)
    lost = process.take(MANY_KEPT + 8_000 // 4 + 1)
    process.close()
    process.look_after(SETTLED - AN_INSTANT)
    assert lost() is not None
    process.look_after(AN_INSTANT)
    assert lost() is None


def test_partitions_that_leave_nothing_need_no_full_collection(process: Process) -> None:
    process.take(8_000)
    process.take(50_000)
    process.partitions[-1].itself = None  # as one that was handed over
    made = gc.get_stats()[2]["collections"]
    process.close()
    process.look_after(SETTLED)
    assert gc.get_stats()[2]["collections"] == made


def test_a_cycle_that_no_partition_left_is_collected_within_an_hour(process: Process) -> None:
    thing = FakePartition(0)
    other = weakref.ref(thing)
    gc.collect(1)
    del thing  # nothing but its cycle keeps it
    process.look_after(HOURLY - AN_INSTANT)
    assert other() is not None
    process.look_after(AN_INSTANT)
    assert other() is None


def test_a_process_that_takes_and_loses_a_partition_all_the_time_keeps_few_of_them(process: Process) -> None:
    process.take(50_000)
    lost = []
    for _ in range(200):
        lost.append(process.take(1_000))
        process.close()
        process.clock.seconds += 1.0
    kept = sum(one() is not None for one in lost)
    within = SETTLED / timedelta(seconds=1)
    assert kept <= within + MANY_KEPT / 1_000 + 50_000 / 4 / 1_000 + 1


def test_a_long_full_collection_is_logged(
    process: Process, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_long() -> int:
        process.clock.seconds += 0.15
        return 7

    monkeypatch.setattr(gc, "collect", takes_long)
    caplog.set_level(logging.INFO, "service.garbage")
    process.clock.seconds += HOURLY.total_seconds()
    process.collector.look()
    assert caplog.messages == ["Full garbage collection: 7 objects freed in 150 ms"]
