"""Is a process getting on? A group drains around a wedged member and looks healthy, so each one is looked at itself."""

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import httpx

from tests.support.process_harness import Process

EVERY: Final = 2.0
STALLED: Final = 40.0
"""Seconds with work at hand and without any sign of it: longer than a closed port's backoff and a rebalance."""
SKIPPED: Final = 20.0
"""Seconds in which records that were read must have arrived where they get a fate."""
SILENT: Final = 15.0
"""Seconds in which an operations server may fail to answer, on a machine that is busy."""

_SIGNS: Final = re.compile(
    r"^(vm_sync_(?:outcomes_total|requests_total|api_requests_total|journal_commit_seconds_count)[{ ].*)$", re.MULTILINE
)
_IN_FLIGHT: Final = re.compile(
    r'^vm_sync_in_flight\{(?!(?=[^}]*site="other")[^}]*state="(?:in_doubt|lingering)")[^}]*\} (\S+)$',
    re.MULTILINE,
)
"""All but doubts at sites that nobody knows: nothing can be done about them until their deadline."""

_FATES: Final = re.compile(r'^vm_sync_records_total\{fate="(\w+)"\} (\S+)$', re.MULTILINE)
_UNACCOUNTED: Final = re.compile(r"^vm_sync_records_unaccounted (\S+)$", re.MULTILINE)
_LOST: Final = re.compile(r"^vm_sync_requests_lost_total (\S+)$", re.MULTILINE)
_REWRITTEN: Final = re.compile(r"^vm_sync_journals_rewritten_total (\S+)$", re.MULTILINE)
_STOPPED: Final = re.compile(r"^vm_sync_partitions_stopped\{[^}]*\} (\S+)$", re.MULTILINE)
_OWNED: Final = re.compile(r"^vm_sync_partitions_owned (\S+)$", re.MULTILINE)


class Watch:
    """Looks at one process again and again. `excused`: it can't be expected to get on just now."""

    def __init__(self, process: Process, *, excused: Callable[[], bool]) -> None:
        self._process = process
        self._excused = excused
        self.findings: list[str] = []
        self.owned = 0.0
        self.most_in_flight = 0.0
        self.fates: dict[str, float] = {}
        """Records by what became of them, as counted when it last answered; a process takes its counters with it."""
        self.unaccounted = 0.0
        """Records that it has read, and that neither have a fate nor wait for a commit."""
        self.lost = 0.0
        """Requests that it counted as lost, likewise."""
        self.stopped = 0.0
        """Partitions that it refuses to work on."""
        self.rewritten = 0.0
        """Journals that it has written again from memory."""

    async def scrape(self) -> str:
        """Read its metrics. Raises httpx.HTTPError when it doesn't answer."""
        text = (await self._process.get("/metrics", timeout=SILENT)).text
        self.fates = {fate: float(number) for fate, number in _FATES.findall(text)}
        self.unaccounted = sum(float(number) for number in _UNACCOUNTED.findall(text))
        self.lost = sum(float(number) for number in _LOST.findall(text))
        self.rewritten = sum(float(number) for number in _REWRITTEN.findall(text))
        self.stopped = sum(float(number) for number in _STOPPED.findall(text))
        self.owned = sum(float(number) for number in _OWNED.findall(text))
        return text

    async def until_ended(self) -> None:
        """Read its metrics for as long as it answers, so that next to nothing is missed."""
        while self._process.running:
            with suppress(httpx.HTTPError):
                await self.scrape()
            await asyncio.sleep(0.05)

    async def look(self) -> None:
        """Look until the process ends."""
        signs: list[str] = []
        moved = answered = balanced = time.monotonic()
        name = self._process.log.name
        while self._process.running:
            await asyncio.sleep(EVERY)
            now = time.monotonic()
            if self._excused() or self._process.port() is None:
                moved = answered = balanced = now
                continue
            try:
                text = await self.scrape()
                alive = (await self._process.get("/livez", timeout=SILENT)).status_code == 200
            except httpx.HTTPError as error:
                gone = not self._process.running
                if not gone and not self._excused() and time.monotonic() - answered > SILENT:
                    self.findings.append(f"{name} did not answer: {error!r}")
                    answered = now
                continue
            answered = time.monotonic()
            if self.unaccounted == 0:
                balanced = now
            elif now - balanced > SKIPPED:
                self.findings.append(f"{name} has read {self.unaccounted:.0f} records that have no fate")
                balanced = now
            in_flight = sum(float(number) for number in _IN_FLIGHT.findall(text))
            self.most_in_flight = max(self.most_in_flight, in_flight)
            before, signs = signs, _SIGNS.findall(text)
            if in_flight == 0 or not alive or signs != before:
                moved = now
            elif now - moved > STALLED:
                self.findings.append(f"{name} holds {in_flight:.0f} syncs and does nothing, and says it is well")
                moved = now
