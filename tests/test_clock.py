"""Two kinds of time: the wall's, which may be skewed for a test, and the event loop's."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

from service.clock import Clock


def test_wall_time_is_aware_and_in_utc() -> None:
    before = datetime.now(UTC)
    now = Clock().now()
    assert before <= now <= datetime.now(UTC)
    assert now.tzinfo is UTC


def test_a_skew_moves_the_wall_clock_alone() -> None:
    skewed = Clock(skew=timedelta(days=-1))
    earliest = datetime.now(UTC)
    assert earliest <= skewed.now() + timedelta(days=1) <= datetime.now(UTC)
    before = time.monotonic()
    assert before <= skewed.monotonic() <= time.monotonic()


async def test_monotonic_time_is_that_of_the_event_loops_timers() -> None:
    before = asyncio.get_running_loop().time()
    assert before <= Clock().monotonic() <= asyncio.get_running_loop().time()
