"""The simulated VCDA in a thread of its own: whatever the tests' own loop is busy with, it goes on answering."""

import asyncio
import ssl
import threading
from collections.abc import Callable
from typing import Self, TypeVar

from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Config, World

T = TypeVar("T")


class Apart:
    """`async with Apart(config) as vcda: ... vcda.url`; what is done to it goes through `do`, into its own thread."""

    def __init__(self, config: Config, *, tls: ssl.SSLContext | None = None) -> None:
        self._config = config
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="simulated VCDA", daemon=True)
        self._made: Simulator | None = None

    @property
    def simulator(self) -> Simulator:
        assert self._made is not None
        return self._made

    @property
    def url(self) -> str:
        return self.simulator.url

    @property
    def world(self) -> World:
        """For a look when nothing moves any more; while it works, look through `do`."""
        return self.simulator.world

    async def do(self, what: Callable[[Simulator], T]) -> T:
        """Do something to it, or look at it, in its own thread."""

        async def there() -> T:
            return what(self.simulator)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), self._loop))

    async def refuse(self, *, seconds: float) -> None:
        """Close its port for a while, and cut all connections."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.simulator.refuse(seconds=seconds), self._loop))

    async def __aenter__(self) -> Self:
        self._thread.start()

        async def there() -> Simulator:
            # Made where it is to run: aiohttp's server belongs to the loop that runs when it is made.
            return await Simulator(self._config, tls=self._tls).__aenter__()

        self._made = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), self._loop))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.simulator.__aexit__(), self._loop))
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, 10)
        self._loop.close()
