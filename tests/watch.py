"""Is a process getting on? A group drains around a wedged member and looks healthy, so each one is looked at itself."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import Final

import httpx

from tests.ledger import Process

EVERY: Final = 2.0
STALLED: Final = 40.0
"""Seconds with work at hand and without any sign of it: longer than a closed port's backoff and a rebalance."""
SILENT: Final = 15.0
"""Seconds in which an operations server may fail to answer, on a machine that is busy."""

_SIGNS: Final = re.compile(
    r"^(vm_sync_(?:outcomes_total|requests_total|api_requests_total|journal_commit_seconds_count)[{ ].*)$", re.MULTILINE
)
_IN_FLIGHT: Final = re.compile(
    r'^vm_sync_in_flight\{(?![^}]*site="other",state="in_doubt"|[^}]*state="in_doubt",site="other")[^}]*\} (\S+)$',
    re.MULTILINE,
)
"""All but doubts at sites that nobody knows: nothing can be done about them until their deadline."""

_OWNED: Final = re.compile(r"^vm_sync_partitions_owned (\S+)$", re.MULTILINE)


class Watch:
    """Looks at one process again and again. `excused`: it can't be expected to get on just now."""

    def __init__(self, process: Process, *, excused: Callable[[], bool]) -> None:
        self._process = process
        self._excused = excused
        self.findings: list[str] = []
        self.owned = 0.0
        self.most_in_flight = 0.0

    async def look(self) -> None:
        """Look until the process ends."""
        signs: list[str] = []
        moved = answered = time.monotonic()
        name = self._process.log.name
        async with httpx.AsyncClient() as client:
            while self._process.running:
                await asyncio.sleep(EVERY)
                now = time.monotonic()
                port = self._process.port()
                if self._excused() or port is None:
                    moved = answered = now
                    continue
                try:
                    text = (await client.get(f"http://127.0.0.1:{port}/metrics", timeout=SILENT)).text
                    alive = (await client.get(f"http://127.0.0.1:{port}/livez", timeout=SILENT)).status_code == 200
                except httpx.HTTPError as error:
                    gone = not self._process.running
                    if not gone and not self._excused() and time.monotonic() - answered > SILENT:
                        self.findings.append(f"{name} did not answer: {error!r}")
                        answered = now
                    continue
                answered = time.monotonic()
                in_flight = sum(float(number) for number in _IN_FLIGHT.findall(text))
                self.most_in_flight = max(self.most_in_flight, in_flight)
                self.owned = sum(float(number) for number in _OWNED.findall(text))
                before, signs = signs, _SIGNS.findall(text)
                if in_flight == 0 or not alive or signs != before:
                    moved = now
                elif now - moved > STALLED:
                    self.findings.append(f"{name} holds {in_flight:.0f} syncs and does nothing, and says it is well")
                    moved = now
