"""The event loop that the service runs on: uvloop where there is one, cured of its slow farewells."""

import asyncio
import importlib.util
from collections.abc import Callable
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
