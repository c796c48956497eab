"""The event loop that the service runs on: uvloop where it is installed, without its slow closing of TLS connections.

Also `Slices`, which divides long work between the turns of the loop, `to_its_end`, which waits for work that must not
be cancelled half-way, `error_of`, `log_death`, `take_note` and `report`, for errors that no caller gets, `settle`,
which ends a wait, and `end_soon`, for processes that must not wait for their threads.
"""

import asyncio
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from typing_extensions import override

log = logging.getLogger(__name__)

T = TypeVar("T")

FAREWELL: Final = 1.0
"""Seconds that closing a TLS connection may take. uvloop waits 30 s for the other side's close_notify, and never sees
it if an answer arrives before it (its issue 471; measured: each time that a Kafka consumer stops while it reads, so a
partition took half a minute to open). By then all requests have been answered."""

END_LIMIT: Final = 2.0
"""Seconds that a process may take to end after everything is closed."""


def factory(*, farewell: float = FAREWELL) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop factory; None: use Python's default loop."""
    if not TYPE_CHECKING and importlib.util.find_spec("uvloop") is None:  # not on every platform
        return None
    import uvloop  # noqa: PLC0415 - see above

    class Loop(uvloop.Loop):
        @override
        async def create_connection(self, *given: Any, **options: Any) -> Any:
            if options.get("ssl"):
                options.setdefault("ssl_shutdown_timeout", farewell)
            return await super().create_connection(*given, **options)

    return Loop


def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that no caller gets, for `loop.set_exception_handler`.

    Since Python 3.14, `asyncio.shield` reports work that fails after the waiting for it was cancelled; earlier versions
    don't. Kafka's client commits in this way. A caller at its time limit doesn't want the result any more, and sees
    in other ways what is the matter.
    """
    if context["message"].endswith("exception in shielded future"):
        log.debug("Nobody waits any more for what failed: %r", context.get("exception"))
    else:
        loop.default_exception_handler(context)


class Slices:
    """Divides the long work of a process into slices, of which one at most runs in each turn of the event loop.

    Work that lets the loop turn between its own slices can hold the loop all the same: of 48 partitions, each with a
    slice of 5 ms in the same turn, the next heartbeat waits for a quarter of a second. `largest` is for tests: no slice
    has more pieces than that, whatever its usual size.
    """

    def __init__(self, *, largest: int | None = None) -> None:
        self._gate = asyncio.Lock()
        self._largest = largest

    def size(self, usual: int) -> int:
        """Return how many pieces of a kind a slice has."""
        return usual if self._largest is None else min(usual, self._largest)

    async def turn(self) -> None:
        """Wait until a slice may run: at once after this returns, up to the next await."""
        async with self._gate:  # first come, first served
            await asyncio.sleep(0)


async def to_its_end(work: Coroutine[Any, Any, None], *, expected: tuple[type[Exception], ...] = ()) -> None:
    """Await work that must not stop half-way, and that ends by itself within bounds.

    Where the waiting is cancelled, the work ends first, and the cancellation goes on then. An error of the work is
    logged then, unless it is one of those that are `expected`.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])  # since Python 3.14, `shield` logs errors of its own, also expected ones
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, expected):
            name = getattr(work, "__qualname__", "work")
            log.exception("Internal error in %s, whose caller was cancelled", name, exc_info=error)
        raise
    task.result()


class CancelledFromWithin(Exception):
    """A task has ended as if it had been cancelled, and nobody has cancelled it."""

    def __init__(self) -> None:
        super().__init__("a library has cancelled something of its own that a task waited for")


def is_cancelled() -> bool:
    """Whether the cancellation that has just arrived was meant for this task: a library may have raised its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def error_of(task: "asyncio.Task[Any]") -> BaseException | None:
    """Return the error that has ended a task; None: it has ended well, or was cancelled by those who own it."""
    if not task.cancelled():
        return task.exception()
    return None if task.cancelling() else CancelledFromWithin()


def log_death(task: "asyncio.Task[T]", what: str) -> "asyncio.Task[T]":
    """Log the error that ends a task which nothing awaits; return the task. `what` it does, as a noun."""
    task.add_done_callback(partial(_log_death, what))
    return task


def _log_death(what: str, task: "asyncio.Task[Any]") -> None:
    if (error := error_of(task)) is not None:
        log.error("Internal error in %s, which has ended", what, exc_info=error)


def settle(future: "asyncio.Future[T]", result: T) -> None:
    """Give a future its result, unless it has one, or nobody waits for it any more."""
    if not future.done():
        future.set_result(result)


def take_note(failed: "asyncio.Future[Any]") -> None:
    """Take note of the error of what nothing awaits any more, so that the loop does not log it. A done-callback."""
    if not failed.cancelled():
        failed.exception()


def end_soon(code: int) -> None:
    """End the process with this exit code, in `END_LIMIT` seconds at the latest; everything is closed and written.

    Python waits for its threads, and an event loop for name look-ups: where DNS doesn't answer, one takes up to a
    minute, and Kubernetes would kill the process.
    """
    timer = threading.Timer(END_LIMIT, os._exit, [code])
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # the system has no thread to give, so nothing would end a wait
        logging.shutdown()
        os._exit(code)
