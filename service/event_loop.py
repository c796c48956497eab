"""The event loop that the service runs on: uvloop where it is installed, without its slow closing of TLS connections.

Also `Slices`, which divides long work between the turns of the loop, `to_its_end`, which waits for work that must not
be cancelled half-way, and `settle`, which ends a wait.
"""

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from typing_extensions import override

T = TypeVar("T")

FAREWELL: Final = 1.0
"""Seconds that closing a TLS connection may take. uvloop waits 30 s for the other side's close_notify, and never sees
it if an answer arrives before it (its issue 471; measured: each time that a Kafka consumer stops while it reads, so a
partition took half a minute to open). By then all requests have been answered."""


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


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await work that must not stop half-way, and that ends by itself within bounds.

    Where the waiting is cancelled, the work ends first, and the cancellation goes on then.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # it was looked at
        raise


def settle(future: "asyncio.Future[T]", result: T) -> None:
    """Give a future its result, unless it has one, or nobody waits for it any more."""
    if not future.done():
        future.set_result(result)
