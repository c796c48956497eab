"""Time that jumps: an event loop which, when nothing is ready, is at once at the moment of its next timer.

Hours pass in milliseconds, and assertions about moments are exact. Real I/O and threads aren't waited for under it:
with sockets or executors use an ordinary loop.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, ParamSpec, TypeVar

from typing_extensions import override

from service.clock import Clock

P = ParamSpec("P")
T = TypeVar("T")

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
"""The wall time at which every virtual loop starts; its `time()` starts at 0."""


class DeadlockError(RuntimeError):
    """Nothing is ready and no timer is set: on a real loop the test would hang for ever."""


class _Jump(selectors.DefaultSelector):  # type: ignore[misc,valid-type,unused-ignore]  # its base depends on the platform
    """Where a real loop would sleep, ask the virtual one to jump."""

    loop: "VirtualLoop"

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise DeadlockError(self.loop.story())
        if timeout > 0:
            self.loop.jump()
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with its own time, in seconds from 0."""

    def __init__(self) -> None:
        self._virtual_now = 0.0
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)

    @override
    def time(self) -> float:
        """Return the virtual moment."""
        return self._virtual_now

    def jump(self) -> None:
        """Go to the next timer: to its very moment, since adding up differences would lose the last bits."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        self._virtual_now = timers[0].when()

    def story(self) -> str:
        """Say who waits, for whoever has to find out why."""
        waiting = sorted(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks(self))
        return f"at {self._virtual_now} nothing is ready and no timer is set; waiting: {', '.join(waiting)}"


class HandClock(Clock):
    """Clocks that stand still until a test moves them, for code that runs on a real loop or on none."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 1000.0
        """The monotonic moment."""
        self.set = timedelta()
        """By how much the wall clock was set."""

    @override
    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.seconds) + self.set

    @override
    def monotonic(self) -> float:
        return self.seconds


class VirtualClock(Clock):
    """Both times taken from a loop's `time()`; `skew` and `set` move the wall clock alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, skew: timedelta = timedelta()) -> None:
        super().__init__(skew=skew)
        self._loop = loop
        self.set = timedelta()
        """By how much the wall clock was set."""

    @override
    def now(self) -> datetime:
        """Return the virtual wall time."""
        return EPOCH + timedelta(seconds=self._loop.time()) + self._skew + self.set

    @override
    def monotonic(self) -> float:
        """Return the loop's time."""
        return self._loop.time()


class Longest(Random):
    """Dice that always fall on the longest pause, so that jittered moments are exact too."""

    @override
    def random(self) -> float:
        return 1.0


def now() -> float:
    """Return the moment of the loop that runs."""
    return asyncio.get_running_loop().time()


def run_virtual(coro: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time; DeadlockError when it can't get there."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coro)


def virtual(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make an async test an ordinary one that runs in virtual time; fixtures still reach it."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtual(test(*args, **kwargs))

    return run
