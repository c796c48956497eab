"""How busy the machine is: a process beside all others that does the same little work again and again.

`slowdown` is how many times longer that took than it would alone. Bounds of what the service has to do are stretched by
it, and by nothing else: so a busy machine excuses no more than it costs.
"""

import asyncio
import sys
from collections import deque
from typing import Final, Self

PAUSE: Final = 0.1
"""Seconds between two pieces of work."""

_PROGRAM: Final = f"""
import time
while True:
    woken, began, used = time.time(), time.perf_counter(), time.process_time()
    sum(range(350_000))
    spent, worked = time.process_time() - used, time.perf_counter() - began
    rested = time.perf_counter()
    time.sleep({PAUSE})
    late = time.perf_counter() - rested - {PAUSE}
    print(woken, spent, worked + late, flush=True)
"""


class Control:
    """See the module. An async context."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float, float]] = deque()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    def slowdown(self, began: float, until: float) -> float:
        """Return how many times longer work took between two moments, in seconds since 1970; at least 1."""
        seen = [(alone, took) for at, alone, took in self._seen if began <= at <= until]
        alone = sum(alone for alone, _ in seen)
        return max(1.0, sum(took for _, took in seen) / alone) if alone else 1.0

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            at, alone, took = map(float, line.split())
            self._seen.append((at, alone, took))

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", _PROGRAM, stdout=asyncio.subprocess.PIPE
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._reading is not None
        self._process.kill()
        await self._process.wait()
        self._reading.cancel()
