"""The identities and recent tasks of a partition's ended requests, in memory.

An ended request's record stays in the journal for the time of deduplication. The index answers two questions without
reading the journal: is this identity a duplicate, and which tasks must a look-up ignore, since they belong to ended
requests? There may be hundreds of thousands of entries, so moments are epoch milliseconds, as in the journal, and
entries are no objects that Python's garbage collector tracks. Pure: it knows no clock, and never writes.
"""

from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from hashlib import blake2b
from itertools import islice
from struct import Struct
from typing import Final

from service.moments import milliseconds

HASH_BYTES: Final = 15
"""Bytes of a hash: with Python's overhead 48 bytes. With 120 bits and 500,000 remembered identities, a new identity is
mistaken for a duplicate once in 10^30 requests."""

_hash = partial(blake2b, digest_size=HASH_BYTES)

YOUNG: Final = timedelta(hours=1)
"""How long tasks of ended requests are kept for look-ups: longer than these go back, 16 min (a test compares them)."""


class DedupIndex:
    """The identities of ended requests until they expire; some 100 bytes each, whatever the identity's length.

    They are kept in the order in which they were added last, which is that of their expiry unless a clock or the time
    of deduplication is set. So what has expired is at the front, and a look at it is short; what a later expiry keeps
    behind it stays in memory until the next look, and doesn't count as remembered.
    """

    def __init__(self) -> None:
        self._expiry: dict[bytes, int] = {}
        self._latest = 0
        """One object for all that expire together: they are added one after another."""

    def __len__(self) -> int:
        return len(self._expiry)

    def add(self, identity: bytes, expires_at: int) -> None:
        """Remember an identity until a moment."""
        if expires_at != self._latest:
            self._latest = expires_at
        digest = _hash(identity).digest()
        self._expiry.pop(digest, None)
        self._expiry[digest] = self._latest

    def discard(self, identity: bytes) -> None:
        """Forget an identity, if it is remembered."""
        self._expiry.pop(_hash(identity).digest(), None)

    def holds(self, identity: bytes, now: int) -> bool:
        """Whether a request with this identity ended and has not expired."""
        expiry = self._expiry.get(_hash(identity).digest())
        return expiry is not None and expiry > now

    def forget_expired(self, now: int, *, most: int) -> int:
        """Drop what has expired, the first of it, and return how many; 0: nothing is left of it at the front.

        What expires later than the latest was added by a clock that was ahead: it goes to the end.
        """
        expired: list[bytes] = []
        ahead: list[bytes] = []
        for digest, expiry in islice(self._expiry.items(), most):
            if expiry <= now:
                expired.append(digest)
            elif expiry > self._latest:
                ahead.append(digest)
            else:
                break
        for digest in expired:
            del self._expiry[digest]
        for digest in ahead:
            self._expiry[digest] = self._expiry.pop(digest)
        return len(expired)


FEW: Final = 1_000
"""So many tasks are kept however old they seem. Fewer than half as many that are written while our own clock is wrong
make no other task old: of three tasks so far apart, two have been written by a clock that was right."""

_MOMENTS: Final = Struct("<qqH")
"""When a task's record was written, when the task began, and the length of its replication's name."""

_ANY: Final = "surrogatepass"
"""VCDA's texts may hold half a surrogate pair."""


class YoungTasks:
    """The tasks of ended requests that a look-up for a later request of the same replication could mistake for its own.

    When a task began is VCDA's clock, as the task itself carries it. That says which tasks a look-up could see, and
    not which have grown old: one beginning in the future would make all others of its site old. A task is as old as its
    end is on our clock, which is later than its beginning.

    Each is packed into one `bytes`, some 130 bytes; as a tuple with its texts and numbers it took 330. At 125 requests
    a second there are 450,000 of them.
    """

    def __init__(self, *, horizon: timedelta = YOUNG, few: int = FEW) -> None:
        self._horizon = milliseconds(horizon)
        self._few = few
        self._order: deque[bytes] = deque()
        self._share = few // 10 + 1
        """Old tasks are looked for each time that so many were added. A look with each took six times as long as all
        else here."""
        self._unlooked = 0
        self._set_back: int | None = None
        """When our clock, by which the first tasks were written, was found to have been set back since."""
        self._tasks: dict[bytes, tuple[bytes, ...]] | None = None
        """By replication, from the first question on: most that a restore adds have grown old before anybody asks."""

    def add(self, replication_id: str, task_id: str, started_at: int, *, written_at: int) -> None:
        """Keep a task that was given to a request, and drop those that have grown old.

        `written_at` may be any moment of our clock that is as long after the writing for all of them: the expiry is.
        """
        replication = replication_id.casefold().encode()
        task = _MOMENTS.pack(written_at, started_at, len(replication)) + replication + task_id.encode(errors=_ANY)
        self._order.append(task)
        if self._tasks is not None:
            _put(task, self._tasks)
        self._unlooked += 1
        if self._unlooked == self._share:
            self._unlooked = 0
            self._drop_old()

    def _drop_old(self) -> None:
        """Drop the first tasks, a share at a time, as far as its last one is old by the moments of those around it."""
        while len(self._order) >= self._few + self._share:
            last, latest = self._moment(self._share - 1, 1), self._moment(-1, -1)
            if last > latest:  # our clock has been set back since, and the task is old a horizon later
                self._set_back = min(self._set_back or latest, latest)
                last = self._set_back
            else:
                self._set_back = None
            if last >= latest - self._horizon:
                return
            for _ in range(self._share):
                gone = self._order.popleft()
                if self._tasks is not None:
                    _drop(gone, self._tasks)

    def _moment(self, at: int, step: int) -> int:
        """Return when the task at a place was written: the middle one of three moments, of which one may be wrong."""
        places = (at, at + step * (self._few // 2), at + step * self._few)
        return sorted(_written(self._order[place]) for place in places)[1]

    def since(self, replication_id: str, moment: int) -> Iterator[str]:
        """Yield the ids of this replication's tasks that started at `moment` or later."""
        if self._tasks is None:
            self._tasks = {}
            for task in self._order:
                _put(task, self._tasks)
        replication = replication_id.casefold().encode()
        for task in self._tasks.get(replication, ()):
            _, started_at, length = _MOMENTS.unpack_from(task)
            if started_at >= moment:
                yield task[_MOMENTS.size + length :].decode(errors=_ANY)


def _written(task: bytes) -> int:
    moment: int = _MOMENTS.unpack_from(task)[0]
    return moment


def _replication(task: bytes) -> bytes:
    *_, length = _MOMENTS.unpack_from(task)
    return task[_MOMENTS.size : _MOMENTS.size + length]


def _put(task: bytes, tasks: dict[bytes, tuple[bytes, ...]]) -> None:
    key = _replication(task)
    tasks[key] = (*tasks.get(key, ()), task)


def _drop(task: bytes, tasks: dict[bytes, tuple[bytes, ...]]) -> None:
    key = _replication(task)
    siblings = tasks[key]
    if len(siblings) == 1:
        del tasks[key]
    else:
        at = siblings.index(task)
        tasks[key] = siblings[:at] + siblings[at + 1 :]
