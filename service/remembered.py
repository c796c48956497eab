"""What a partition remembers of requests that have ended: whose identities, and whose young tasks.

An ended request's record stays in the journal for the time of deduplication. Here only so much of it is kept as
answers two questions at once: is this identity a duplicate, and which tasks must a look-up pass over? Pure: it
knows no clock, and never writes.
"""

from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from hashlib import blake2b

HASH_BYTES = 11
"""88 bits fit into three digits of a Python integer (48 bytes). Among 500,000 remembered identities a new one is
mistaken for a duplicate once in 10^20 requests."""


class Remembered:
    """The identities of ended requests until they expire; some 90 bytes each, whatever the identity's length."""

    def __init__(self) -> None:
        self._expiry: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._expiry)

    def add(self, identity: str, expires_at: datetime) -> None:
        """Remember it until then, to the second."""
        self._expiry[_digest(identity)] = int(expires_at.timestamp())

    def holds(self, identity: str, now: datetime) -> bool:
        """Whether a request of this identity ended, and has not expired."""
        expiry = self._expiry.get(_digest(identity))
        return expiry is not None and expiry > now.timestamp()

    def forget_expired(self, now: datetime) -> int:
        """Drop what has expired, and return how many."""
        seconds = now.timestamp()
        expired = [digest for digest, expiry in self._expiry.items() if expiry <= seconds]
        for digest in expired:
            del self._expiry[digest]
        return len(expired)


class YoungTasks:
    """The tasks of ended requests that a look-up for a later request of the same replication could mistake for its own.

    Moments are VCDA's clock, as the tasks themselves carry them. Each site's is its own, and may be hours off: so which
    tasks have grown old is told by the site's latest task, never by another site's.
    """

    def __init__(self, *, horizon: timedelta) -> None:
        self._horizon = horizon
        self._tasks: dict[str, dict[str, datetime]] = {}
        self._order: dict[str | None, deque[tuple[datetime, str, str]]] = {}

    def add(self, replication_id: str, task_id: str, started_at: datetime, *, site: str | None) -> None:
        """Keep a task that was given to a request, and drop the site's that have grown old."""
        self._tasks.setdefault(replication_id, {})[task_id] = started_at
        order = self._order.setdefault(site, deque())
        order.append((started_at, replication_id, task_id))
        while order[0][0] < started_at - self._horizon:
            _, old_replication, old_task = order.popleft()
            siblings = self._tasks.get(old_replication, {})
            siblings.pop(old_task, None)
            if not siblings:
                self._tasks.pop(old_replication, None)

    def since(self, replication_id: str, moment: datetime) -> Iterator[str]:
        """Yield the ids of this replication's tasks that started at `moment` or later."""
        for task_id, started_at in self._tasks.get(replication_id, {}).items():
            if started_at >= moment:
                yield task_id


def _digest(identity: str) -> int:
    return int.from_bytes(blake2b(identity.encode(), digest_size=HASH_BYTES).digest(), "big")
