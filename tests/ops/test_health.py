"""Alive and ready: which conditions count for which, and the lag of the event loop."""

import asyncio
from datetime import datetime, timedelta

import pytest
from typing_extensions import override

from service.ops.health import Health, probe_loop
from tests.support.shown_syncs import AWAY_FOR_LONG, ready
from tests.support.virtual_time import VirtualClock, virtual


def test_it_is_alive_while_its_loops_turn() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.watch("the reading loop", limit=timedelta(seconds=60), now=0.0)

    assert health.not_alive(60.0) == []
    assert health.not_alive(61.0) == ["the reading loop has made no progress for 61 s; its limit is 60 s"]
    health.beat("the reading loop", 61.0)
    assert health.not_alive(121.0) == []


def test_it_is_not_alive_while_records_wait_that_nobody_reads() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.stalled(["partition 3 has unread records, and none was read for 91 s"])
    assert health.not_alive(0.0) == ["partition 3 has unread records, and none was read for 91 s"]

    health.stalled([])
    assert health.not_alive(0.0) == []


def test_what_kafka_refuses_makes_it_unready_and_is_no_reason_to_restart() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.joined()
    health.restored()
    health.refused(["Kafka refuses the consumer group: GroupAuthorizationFailedError('vm-sync')"])

    assert health.not_ready(0.0) == ["Kafka refuses the consumer group: GroupAuthorizationFailedError('vm-sync')"]
    assert health.not_alive(0.0) == []
    health.refused([])
    assert health.not_ready(0.0) == []


def test_a_partition_that_is_not_open_for_long_makes_it_unready_and_is_no_reason_to_restart() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.joined()
    health.restored()
    health.unopened(["partition 3 has not been open for 121 s: why"])

    assert health.not_ready(0.0) == ["partition 3 has not been open for 121 s: why"]
    assert health.not_alive(0.0) == []
    health.unopened([])
    assert health.not_ready(0.0) == []


def test_a_partition_whose_leader_does_not_answer_makes_it_unready_and_is_no_reason_to_restart() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.joined()
    health.restored()
    health.unreadable(["partition 3 has not been readable for 91 s: no broker leads it"])

    assert health.not_ready(0.0) == ["partition 3 has not been readable for 91 s: no broker leads it"]
    assert health.not_alive(0.0) == []
    health.unreadable([])
    assert health.not_ready(0.0) == []


def test_a_dead_coordination_task_is_a_reason_for_good() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.died("the poller", "KeyError")

    assert health.not_alive(0.0) == ["the poller has failed: KeyError"]


def test_kafka_being_away_is_no_reason_to_restart() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.away(0.0)
    health.stopped(3, "the cursor is beyond the end")
    health.draining()

    assert health.not_alive(10_000.0) == []


def test_it_is_ready_once_kafka_is_joined_and_the_partitions_are_restored() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)

    assert health.not_ready(0.0) == ["the consumer group has not been joined yet"]
    health.joined()
    assert health.not_ready(0.0) == ["the partitions are being restored"]
    health.restored()
    assert health.not_ready(0.0) == []


def test_it_stays_ready_through_a_rebalance() -> None:
    health = ready()
    health.joined()

    assert health.not_ready(1.0) == []


def test_posts_may_be_held_back_by_a_slow_kafka_for_a_minute() -> None:
    health = ready()
    health.posts_held(10.0)

    assert health.not_ready(70.0) == []
    assert health.not_ready(71.0) == [
        "Kafka is too slow: its commits take so long that a POST has been held back for 61 s"
    ]
    assert health.not_alive(71.0) == []

    health.posts_held(None)
    assert health.not_ready(72.0) == []


def test_posts_that_a_late_event_loop_holds_back_are_not_put_down_to_kafka() -> None:
    health = ready()
    health.late(5.0)  # before: it says nothing of what is held back now
    health.posts_held(10.0)
    for seconds in (0.2, 3.84, 0.1):
        health.late(seconds)

    (reason,) = health.not_ready(71.0)
    assert reason == (
        "this process gets too little CPU time: its event loop is up to 3.8 s late, so that a POST has been held back "
        "for 61 s"
    )

    health.posts_held(None)
    health.posts_held(80.0)
    health.late(0.9)
    assert health.not_ready(141.0) == [
        "Kafka is too slow: its commits take so long that a POST has been held back for 61 s"
    ]


def test_kafka_may_be_away_for_a_minute_counted_from_the_first_miss() -> None:
    health = ready()
    health.away(10.0)
    health.away(50.0)

    assert health.not_ready(70.0) == []
    assert health.not_ready(71.0) == ["Kafka has been unreachable for 61 s"]
    health.back()
    assert health.not_ready(72.0) == []
    health.away(80.0)
    assert health.not_ready(90.0) == []


def test_a_missing_requests_topic_makes_it_unready_until_it_is_there() -> None:
    health = ready()
    health.missing("requests")

    assert health.not_ready(0.0) == ["the topic requests does not exist"]
    health.missing(None)
    assert health.not_ready(0.0) == []


def test_a_stopped_partition_makes_it_unready_until_it_works_or_leaves() -> None:
    health = ready()
    health.stopped(7, "its cursor is beyond the end")
    health.stopped(3, "no cursor")

    assert health.not_ready(0.0) == [
        "partition 3 is stopped: no cursor",
        "partition 7 is stopped: its cursor is beyond the end",
    ]
    health.working(3)
    health.working(7)
    health.working(8)
    assert health.not_ready(0.0) == []


def test_it_is_unready_while_draining() -> None:
    health = ready()
    health.draining()

    assert health.not_ready(0.0) == ["the service is draining"]


@virtual
async def test_a_loop_on_time_has_no_lag() -> None:
    seen: list[float] = []
    clock = VirtualClock(asyncio.get_running_loop())
    probe = asyncio.create_task(probe_loop(clock, lag=seen.append))

    await asyncio.sleep(1.25)
    probe.cancel()

    assert seen == [0.0, 0.0]


@virtual
async def test_a_wall_clock_that_is_set_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Set(VirtualClock):
        by = timedelta()

        @override
        def now(self) -> datetime:
            return super().now() + self.by

    clock = Set(asyncio.get_running_loop())
    probe = asyncio.create_task(probe_loop(clock, lag=lambda _: None))
    for by in (timedelta(seconds=29), timedelta(hours=7), timedelta()):
        clock.by = by
        await asyncio.sleep(10)
    probe.cancel()

    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith(
        "The clock of this machine was set forward by 25171 s, or the machine was suspended for as long; deadlines, "
    )
    assert said[1].startswith("The clock of this machine was set back by 25200 s; deadlines, ")


@virtual
async def test_a_late_awakening_is_the_lag() -> None:
    class Late(VirtualClock):
        looks = 0

        @override
        def monotonic(self) -> float:
            self.looks += 1
            return super().monotonic() + (0.25 if self.looks == 2 else 0.0)

    seen: list[float] = []
    probe = asyncio.create_task(probe_loop(Late(asyncio.get_running_loop()), lag=seen.append))

    await asyncio.sleep(0.75)
    probe.cancel()

    assert seen == [0.25]
