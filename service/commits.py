"""What changes in a partition, on its way into the journal: gathered, committed, and only then acted on.

While one batch commits, the next gathers. What must wait for its batch to stand, such as a POST for its intent, is
called once it does, in the order it was handed in. A commit that stood proves that the partition is still ours, and
the proof is as old as the moment before its sending: how much may be done on its strength depends on that.

It never looks into a change, and never repeats a commit: the first that fails is the last.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Protocol

from service.clock import Clock
from service.journal import Batch, Journal, JournalLost
from service.messages import Event
from service.records import Cursor
from service.sync import Sync

GATHER = timedelta(milliseconds=10)
"""How long changes that nobody waits for gather before they are committed; a commit costs 3-25 ms (measured)."""


class CommitMeter(Protocol):
    """What is counted here."""

    def commit(self, seconds: float, records: int) -> None: ...  # noqa: D102 - the name says it


@dataclass(slots=True)
class _Gathering(Batch):
    """The batch that gathers, and what is to be done once it stands."""

    after: list[Callable[[], None]] = field(default_factory=list)


class Commits:
    """See the module. `here` is asked for the cursor that a proof carries: an empty commit would prove nothing."""

    def __init__(
        self, journal: Journal, *, opened_at: float, here: Callable[[], Cursor], clock: Clock, metrics: CommitMeter
    ) -> None:
        self._journal = journal
        self._here = here
        self._clock = clock
        self._metrics = metrics
        self._gathering = _Gathering()
        self._dirty = asyncio.Event()
        self._urgent = asyncio.Event()
        self._over: asyncio.Future[None] | None = None
        self._stopped = False
        self.proved_at = opened_at
        """The moment (monotonic) before the sending of the last commit that stood."""

    def change(self, identity: str, state: Sync | None) -> None:
        """Let it stand in the journal with the next batch; None: a tombstone."""
        self._gathering.changes[identity] = state
        self._dirty.set()

    def tell(self, event: Event) -> None:
        """Publish it with the next batch."""
        self._gathering.events.append(event)
        self._dirty.set()

    def move_on(self) -> None:
        """Let the cursor stand with the next batch."""
        self._gathering.cursor = self._here()
        self._dirty.set()

    def then(self, do: Callable[[], None]) -> None:
        """Call it once the next batch stands, with all that was handed in before it."""
        self._gathering.after.append(do)

    def hurry(self) -> None:
        """Don't wait for more to gather."""
        self._dirty.set()
        self._urgent.set()

    async def commit(self) -> None:
        """Commit what has gathered.

        Raises:
            JournalLost: it is not known whether it stands.
        """
        batch, self._gathering = self._gathering, _Gathering()
        self._dirty.clear()
        self._urgent.clear()
        began = self._clock.monotonic()
        await self._journal.commit(batch)
        self.proved_at = began
        self._metrics.commit(self._clock.monotonic() - began, len(batch.changes) + len(batch.events))
        for do in batch.after:
            do()

    async def run(self) -> None:
        """Commit batch after batch, until one fails.

        Raises:
            JournalLost: see `commit`.
        """
        self._over = asyncio.get_running_loop().create_future()
        try:
            while not self._stopped:
                await self._dirty.wait()
                with suppress(TimeoutError):
                    async with asyncio.timeout(GATHER.total_seconds()):
                        await self._urgent.wait()
                if not self._stopped:
                    await self.commit()
        finally:
            self._over.set_result(None)

    def stop(self) -> None:
        """Begin no further commit: what has gathered can't be trusted."""
        self._stopped = True

    async def prove(self) -> None:
        """Prove the ownership: return once a record that is written from now on stands.

        Raises:
            JournalLost: it doesn't.
        """
        if self._over is None or self._stopped:
            msg = "the partition is closed"
            raise JournalLost(msg)
        stood: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.then(partial(_settle, stood))
        self.move_on()
        self.hurry()
        await asyncio.wait([stood, self._over], return_when=asyncio.FIRST_COMPLETED)
        if not stood.done():
            msg = "the journal was lost before the proof stood"
            raise JournalLost(msg)


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
