"""Recognises duplicates of a partition's ended requests, and knows the tasks that belong to ended requests.

An ended request's record stays in the journal for the time of deduplication, and 20 minutes more, since its task has to
be known however short that time is; then it gets a tombstone. Memory holds only hashes of the identities
(`dedup_index`), so the journal is read again from time to time to find expired identities.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from random import Random
from typing import Protocol

from service.clock import Clock
from service.event_loop import Slices
from service.kafka.dedup_index import DedupIndex
from service.kafka.journal_api import Journal, JournalLost
from service.kafka.journal_codec import epoch
from service.kafka.journal_replay import KEPT_MS, EndedSyncs
from service.partition.journal_writer import JournalWriter
from service.sync import Ended

log = logging.getLogger(__name__)

SWEEP = timedelta(hours=1)
"""How often expired identities are given their tombstones, at the latest. The whole journal is read for it, so it is
done seldom."""

SWEEP_AT_MOST = timedelta(minutes=1)
"""How often at most; between the two, as often as identities expire: the journal then holds twice as many at most."""

BURIED_AT_ONCE = 100_000
"""Expired identities that one reading of the journal finds, some 20 MB; it is read again soon where there are more."""

TOMBSTONES_AT_ONCE = 1_000
"""Tombstones between two turns of the event loop, some milliseconds."""

FORGOTTEN_AT_ONCE = 10_000
"""Identities forgotten between two turns of the event loop, some milliseconds."""


class DeduplicationMeter(Protocol):
    """The metrics of deduplication."""

    def identities(self, delta: int) -> None: ...  # noqa: D102 - the name says it


class Deduplication:
    """The identities of ended requests. `in_flight`: whether an expired identity is in flight again."""

    def __init__(
        self,
        ended: EndedSyncs,
        *,
        journal: Journal,
        journal_writer: JournalWriter,
        clock: Clock,
        metrics: DeduplicationMeter,
        slices: Slices,
        in_flight: Callable[[str], bool],
        deduplicate_for: timedelta,
    ) -> None:
        self._slices = slices
        self._journal = journal
        self._journal_writer = journal_writer
        self._clock = clock
        self._metrics = metrics
        self._in_flight = in_flight
        self._sweep_every = min(SWEEP, max(deduplicate_for, SWEEP_AT_MOST))
        self._remembered = ended.identities
        self._young = ended.young
        self._metrics.identities(len(self._remembered))
        self._expired: Iterable[str] = ended.expired
        """Identities that expired while nobody was there."""
        self._read_on = 0
        """The offset from which the next reading of the journal looks for expired identities: where the one before had
        enough, whose finds stay in the journal, with their tombstones, until Kafka compacts it. 0: the beginning."""

    async def bury_expired(self) -> None:
        """Write tombstones for what had expired when the journal was opened. Nothing is in flight yet."""
        size = self._slices.size(TOMBSTONES_AT_ONCE)
        expired, self._expired = self._expired, ()
        for number, identity in enumerate(expired, 1):
            self._bury(identity)
            if number % size == 0:
                await self._slices.turn()

    def add(self, ended: Ended) -> None:
        """Remember a request that has ended."""
        request = ended.request
        before = len(self._remembered)
        self._remembered.add(request.identity.encode(), epoch(ended.expires_at))
        self._metrics.identities(len(self._remembered) - before)
        if ended.task_id is not None:
            started_at = epoch(ended.submitted_at or ended.ended_at)
            expires_at = epoch(ended.expires_at)
            self._young.add(request.replication_id, ended.task_id, started_at, written_at=expires_at)

    def holds(self, identity: str) -> bool:
        """Whether a request of this identity ended, and has not expired."""
        return self._remembered.holds(identity.encode(), epoch(self._clock.now()))

    def tasks_since(self, replication_id: str, moment: datetime) -> tuple[str, ...]:
        """Return the tasks that belong to ended requests of the replication and began at `moment` (VCDA's) or later."""
        return tuple(self._young.since(replication_id, epoch(moment)))

    async def sweep(self, random: Random) -> None:
        """Write tombstones for expired identities, periodically."""
        pause = self._sweep_every
        while True:
            await asyncio.sleep(pause.total_seconds() * random.uniform(0.5, 1.0))
            pause = self._sweep_every
            now = epoch(self._clock.now())
            try:
                gone = await self._expired_by(now - KEPT_MS)
            except JournalLost as error:
                log.warning("Expired identities stay in the journal for now; trying again later: %s", error)
                continue
            if self._read_on:
                pause = SWEEP_AT_MOST
            for number, identity in enumerate(gone, 1):
                # It may have come again since it was read.
                if not self._in_flight(identity) and not self._remembered.holds(identity.encode(), now):
                    self._bury(identity)
                if number % self._slices.size(TOMBSTONES_AT_ONCE) == 0:
                    await self._slices.turn()
            while forgotten := self._remembered.forget_expired(now, most=self._slices.size(FORGOTTEN_AT_ONCE)):
                self._metrics.identities(-forgotten)
                await self._slices.turn()

    async def _expired_by(self, now: int) -> dict[str, None]:
        """Read the journal, and return identities that have expired by then: `BURIED_AT_ONCE` at most.

        Raises:
            JournalLost: it can't be read.
        """
        gone: dict[str, None] = {}
        begin, read_on = self._read_on, 0
        async for offset, identity, expires_at in self._journal.entries():
            if expires_at is None or expires_at > now:
                gone.pop(identity, None)
            elif offset >= begin and not read_on:
                gone[identity] = None
                read_on = offset + 1 if len(gone) == BURIED_AT_ONCE else 0
        self._read_on = read_on
        return gone

    def _bury(self, identity: str) -> None:
        """Write tombstones. There may be half a million: each commit must end within its transaction's time limit."""
        self._journal_writer.put(identity, None)
        if self._journal_writer.full:
            self._journal_writer.cut()

    def ended(self) -> EndedSyncs:
        """Return what is remembered, for a journal that has lost it."""
        return EndedSyncs(self._remembered, self._young)

    def forget(self) -> None:
        """The partition is closed: nothing is remembered here any more."""
        self._metrics.identities(-len(self._remembered))
        self._remembered = DedupIndex()
