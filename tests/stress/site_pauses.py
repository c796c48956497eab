"""Operators' pauses of sites in a run of chaos: ordered, seen by each process, looked after, and ended again."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import httpx

from service.messages.site_pause import LOCAL, SitePause, pause_key, write_pause
from service.sandbox.vcda.simulator import Simulator
from tests.stress.oracle import SitePaused
from tests.support.process_harness import Ledger, Process
from tests.support.simulator_thread import Apart

LONGEST: Final = timedelta(minutes=3)
"""Until when a site is paused at most, by clocks that are wrong by half a minute; it is resumed much earlier."""

SEEN_WITHIN: Final = 10.0
"""Seconds for all processes to say that they have read a pause. Where one is frozen, or away from Kafka, nothing is
judged."""

GRACE: Final = 2.5
"""Seconds from then on in which a POST may still arrive that had left before: a busy machine reads it late."""

SLOWEST_CLOCK: Final = 31.0
"""Seconds by which a process' clock may be behind, and so the end of a pause late."""

UNKNOWN: Final = "site pauses are unknown"
"""What a process logs that starts while the control topic can't be read; it then sends POSTs, which is documented."""


class Run(Protocol):
    """What is needed of a run."""

    @property
    def ledger(self) -> Ledger: ...

    @property
    def vcda(self) -> Apart: ...

    def living(self) -> Sequence[tuple[Process, bool]]:
        """Return the processes that run, and whether each is free: neither frozen nor told to end."""


class SitePauses:
    """The pauses of one run; one at a time for each site."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._paused: set[str] = set()
        self.found: list[SitePaused] = []
        self.over_at = 0.0
        """When the last pause that nobody ends is over, by the slowest clock, on the monotonic clock."""

    async def play(self, name: str, *, seconds: float) -> None:
        """Pause a site, for so long once each process has read it, and resume it."""
        site = _site(name)
        if site in self._paused:
            return
        self._paused.add(site)
        try:
            await self._order(name, LONGEST)
            if await self._seen(name):
                await asyncio.sleep(GRACE)
                await self._look_after(site, seconds)
        finally:
            await self._run.ledger.order(pause_key(name), None)
            self._paused.discard(site)

    async def end_unseen(self, name: str, *, seconds: float, gone: Callable[[datetime], Awaitable[None]]) -> bool:
        """Pause a site for so long; `gone` keeps all processes dead until then. Return whether one had read the pause.

        Nobody resumes the site: the run's last requests show whether it works.
        """
        if _site(name) in self._paused:
            return False
        self._paused.add(_site(name))
        try:
            until = await self._order(name, timedelta(seconds=seconds))
            self.over_at = max(self.over_at, time.monotonic() + seconds + SLOWEST_CLOCK)
            held = await self._held_by_one(name, before=until)
            await gone(until)
            return held
        finally:
            self._paused.discard(_site(name))

    async def _order(self, name: str, lasting: timedelta) -> datetime:
        now = datetime.now(UTC)
        pause = SitePause(site=name, until=now + lasting, since=now, by="chaos")
        await self._run.ledger.order(*write_pause(pause))
        return pause.until

    async def _held_by_one(self, name: str, *, before: datetime) -> bool:
        while datetime.now(UTC) < before - timedelta(seconds=GRACE):
            for process, _ in self._run.living():
                if process.port() is not None and await _holds(process, name):
                    return True
            await asyncio.sleep(0.1)
        return False

    async def _look_after(self, site: str, seconds: float) -> None:
        processes = self._run.ledger.processes
        new = next((n for n, one in enumerate(processes) if one.running and one.port() is None), len(processes))
        began, before = time.monotonic(), await self._posts(site)
        await asyncio.sleep(seconds)
        posts, took = await self._posts(site) - before, time.monotonic() - began
        if not any(UNKNOWN in process.text() for process in processes[new:]):
            self.found.append(SitePaused(site=site, seconds=took, posts=posts))

    async def _seen(self, name: str) -> bool:
        """Wait until each process holds the pause; False if one does not in time."""
        until = time.monotonic() + SEEN_WITHIN
        while time.monotonic() < until:
            living = self._run.living()
            up = [process for process, _ in living if process.port() is not None]  # others read it when they start
            if up and all(free for _, free in living) and all([await _holds(process, name) for process in up]):
                return True
            await asyncio.sleep(0.1)
        return False

    async def _posts(self, site: str) -> int:
        def count(sim: Simulator) -> int:
            return sim.world.counts.calls_by_site[f"submit {site}"]

        return await self._run.vcda.do(count)


def _site(name: str) -> str:
    """Return what VCDA calls a site."""
    return "site1" if name == LOCAL else name


async def _holds(process: Process, name: str) -> bool:
    try:
        sites = (await process.get("/syncs?limit=1", timeout=5.0)).json()["sites"]
    except (httpx.HTTPError, ValueError, KeyError):
        return False
    held = {one["site"] or LOCAL: one["pause"] for one in sites}
    return held.get(name) is not None
