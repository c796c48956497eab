"""The event loop that the service runs on: uvloop where it is installed, without its slow closing of TLS connections.

And how to wait in it for what must not stop half-way.
"""

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

FAREWELL: Final = 1.0
"""Seconds that closing a TLS connection may take. uvloop waits for the other side's good-bye for 30 s, and never sees
it where an answer comes before it (its issue 471; measured: each time that a Kafka consumer stops while it reads, so a
partition took half a minute to open). By then all that we had to say has been answered."""


def factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop; None: Python's own way of making one."""
    if not TYPE_CHECKING and importlib.util.find_spec("uvloop") is None:  # not on every platform
        return None
    import uvloop  # noqa: PLC0415 - see above

    class Loop(uvloop.Loop):
        @override
        async def create_connection(self, *given: Any, **options: Any) -> Any:
            if options.get("ssl"):
                options.setdefault("ssl_shutdown_timeout", FAREWELL)
            return await super().create_connection(*given, **options)

    return Loop


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
