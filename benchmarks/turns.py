"""How long the event loop stands still: the CPU time between two of its turns.

A probe runs once in each turn of the loop, and asks for the next turn at once, so the loop never sleeps. It reads the
thread's own CPU time: what other processes take from the machine isn't in it. What one turn takes is what everything
else has to wait: a socket, a timer, a heartbeat.
"""

import asyncio
import gc
import time
from array import array
from typing import Any

from benchmarks.results import quantile


class Turns:
    """Measures the turns of the running loop, from `start` on.

    `shortest` is the length, in seconds, from which a turn is remembered: an idle loop turns 100,000 times a second.
    """

    def __init__(self, *, shortest: float = 0.0) -> None:
        self._shortest = shortest
        self._loop = asyncio.get_running_loop()
        self._turns = array("d")
        self._last = 0.0
        self._cpu = 0.0
        self._collecting = 0.0
        self._collected = [0.0] * 3
        """The longest collection of each generation, in seconds."""
        self._running = False

    def start(self) -> None:
        """Begin to measure, and forget what was measured before."""
        self._turns = array("d")
        self._collected = [0.0] * 3
        if not self._running:
            self._running = True
            gc.callbacks.append(self._collector)
            self._loop.call_soon(self._turn)
        self._last = time.thread_time()
        self._cpu = time.process_time()

    def stop(self) -> dict[str, float]:
        """Stop measuring, and return the longest turn and others, in milliseconds."""
        self._running = False
        gc.callbacks.remove(self._collector)
        return self.figures()

    def figures(self) -> dict[str, float]:
        """Return what was measured since the start. The garbage collections are within their turns."""
        turns = sorted(self._turns) or [0.0]
        return {
            "worst_ms": turns[-1] * 1000,
            "second_ms": turns[-2] * 1000 if len(turns) > 1 else 0.0,
            "over_20_ms": float(sum(turn > LONG for turn in turns)),
            "p99_ms": quantile([turn for turn in turns if turn > IDLE] or [0.0], 0.99) * 1000,
            "garbage_ms": max(self._collected) * 1000,
            "full_garbage_ms": self._collected[2] * 1000,
            "cpu_s": time.process_time() - self._cpu,
        }

    def longest(self) -> list[float]:
        """Return what was measured since the start, in milliseconds, the longest first."""
        return [turn * 1000 for turn in sorted(self._turns, reverse=True)]

    def _turn(self) -> None:
        now = time.thread_time()
        if (took := now - self._last) >= self._shortest:
            self._turns.append(took)
        self._last = now
        if self._running:
            self._loop.call_soon(self._turn)

    def _collector(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            took, of = time.thread_time() - self._collecting, info["generation"]
            self._collected[of] = max(self._collected[of], took)


LONG = 0.020
"""What no turn is to take, in seconds."""

IDLE = 0.0001
"""Turns of less than this, in seconds, did nothing; they would hide the others among the quantiles."""
