"""Replays a journal: reads its records in the order of writing; a later record of a key replaces an earlier one.

    cursor      the next offset to read from the requests topic
    in flight   the syncs that have not ended, each as its last record says
    ended       the identities and tasks of ended requests, without their details: there may be half a million

A journal may hold all that a sync ever was, or after compaction only the last of it. Pure, and all of it synchronous:
the caller decides when the event loop runs other tasks.
"""

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from service.kafka.dedup_index import YOUNG, DedupIndex, YoungTasks
from service.kafka.journal_codec import CURSOR_KEY, OPENED_KEY, Cursor, Replayed, decode, decode_cursor, epoch, replayed
from service.moments import milliseconds
from service.sync import Ended, InFlight

EXPIRED_AT_MOST: Final = 20_000
"""Expired identities of a partition that a replay returns, some 6 MB: a journal that nobody has opened for a day may
hold millions. Further ones stay in the journal until it is swept."""

LATEST: Final = 5_000
"""Ended syncs of a partition whose tasks are put aside, some 2 MB, and packed only if they are young when as many
others have followed: of a day's tasks hardly any is, and packing one takes as long as all else of its record."""

SHARE: Final = 100
"""So many of them are looked at in one go: finding a record in the middle takes as long as decoding one."""

APART: Final = 1_000
"""The earlier of two records' moments so far apart counts: fewer that a clock ahead has written make no other task old.
`LATEST` is longer by more than the records of an hour, if there are 500,000 a day in 8 partitions."""

YOUNG_MS: Final = milliseconds(YOUNG)

KEPT: Final = timedelta(minutes=20)
"""How long the record of an ended sync stays in the journal after its identity has expired, so that the next owners of
the partition know its task: longer than look-ups go back for the task of a POST, 16 min (a test compares them)."""

KEPT_MS: Final = milliseconds(KEPT)


@dataclass(frozen=True, slots=True)
class EndedSyncs:
    """Identities and tasks of requests that have ended; `expired` are the first identities that need a tombstone."""

    identities: DedupIndex = field(default_factory=DedupIndex)
    young: YoungTasks = field(default_factory=YoungTasks)
    expired: Collection[str] = ()


class Replay:
    """Builds a partition's state from its journal's records. Identities that have expired by `now` are left out."""

    def __init__(self, *, now: datetime) -> None:
        self._now = epoch(now)
        self._cursor: bytes | None = None
        self._in_flight: dict[bytes, bytes] = {}
        self._identities = DedupIndex()
        self._young = YoungTasks()
        self._latest: deque[Replayed] = deque()
        self._expired: dict[bytes, None] = {}

    def take(self, key: bytes, value: bytes | None) -> None:
        """Take the next record; None: a tombstone.

        Raises:
            ValueError: no version known here has written it.
        """
        if key == CURSOR_KEY:
            self._cursor = value
        elif key == OPENED_KEY:
            pass
        elif value is None:
            self._in_flight.pop(key, None)
            self._let_go(key)
        elif (expires_at := (stored := replayed(value)).expires_at) is None:
            if key not in self._in_flight:  # if it is, it was let go of then
                self._let_go(key)
            self._in_flight[key] = value
        else:
            self._in_flight.pop(key, None)
            if expires_at > self._now:
                self._expired.pop(key, None)
                self._identities.add(key, expires_at)
            else:
                self._identities.discard(key)
                if expires_at <= self._now - KEPT_MS and len(self._expired) < EXPIRED_AT_MOST:
                    self._expired[key] = None
            # Kept even where the identity has expired, or comes again: the task is nobody else's.
            self._latest.append(stored)
            if len(self._latest) >= LATEST + SHARE:
                self._keep_young()

    def _let_go(self, key: bytes) -> None:
        self._identities.discard(key)
        self._expired.pop(key, None)

    def _keep_young(self) -> None:
        """Take the first tasks out of the latest, and keep those that are young."""
        latest = min(self._latest[place].expires_at or 0 for place in (-1, -1 - APART))
        for _ in range(SHARE):
            self._keep(self._latest.popleft(), since=latest - YOUNG_MS)

    def _keep(self, ended: Replayed, *, since: int) -> None:
        """Keep the task of a sync that has ended, if its record expires at `since` or later."""
        if ended.task_id is not None and ended.expires_at is not None and ended.expires_at >= since:
            self._young.add(ended.replication_id, ended.task_id, ended.began, written_at=ended.expires_at)

    def cursor(self) -> Cursor | None:
        """Return the cursor; None: no request was ever read.

        Raises:
            ValueError: no version known here has written it.
        """
        return None if self._cursor is None else decode_cursor(self._cursor)

    def in_flight(self) -> Iterator[InFlight]:
        """Yield the syncs in flight, once: their records are released meanwhile.

        Raises:
            ValueError: no version known here has written one of them.
        """
        for key in tuple(self._in_flight):
            state = decode(key.decode(), self._in_flight.pop(key))
            if not isinstance(state, Ended):  # none is: `take` has seen to it
                yield state

    def ended(self) -> EndedSyncs:
        """Return what has to be known of those that have ended; takes some milliseconds."""
        while self._latest:
            self._keep(self._latest.popleft(), since=0)
        return EndedSyncs(self._identities, self._young, tuple(key.decode() for key in self._expired))
