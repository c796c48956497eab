"""The syncs in flight in a partition: by identity, and for each replication in the order of acceptance.

Only the oldest request of a replication may run, and none overtakes another. The driver decides when it runs.
"""

from asyncio import Task
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from service import sync
from service.messages.wait_cause import WaitCause
from service.sync import Ended, Lingering, Running, Submitting, Waiting
from service.vcda.lanes import Lane, SlotRequest
from service.vcda.poller import Watch

LONG = 16
"""From so many requests of one replication on their queue is a deque."""


@dataclass(frozen=True, slots=True)
class Postponement:
    """A request's next POST is postponed for a reason of its own."""

    cause: WaitCause
    until: float
    """The moment (monotonic) until which it is."""


@dataclass(slots=True, eq=False)
class TrackedSync:
    """A sync as a partition works with it: its state, and what this process is doing about it.

    `sync` knows what is true of a request anywhere; this is valid only in this process, and is never stored.
    The state changes step by step, by the driver alone.
    """

    state: sync.Sync
    submitting: bool = False
    """Counted among the site's POSTs on their way: from its slot until the answer."""
    posting: Task[None] | None = None
    left: bool = False
    """The POST's bytes may have left."""
    occupies: bool = False
    """Counted among the site's syncs at VCDA."""
    slot_request: SlotRequest | None = None
    """Its place in the lane's queue, while it has one."""
    pauses: int | None = None
    """How many pauses of its lane had begun when it had its last slot; None: it never had one."""
    held: bool = False
    """The request timed out LINGER_LIMIT ago, and VCDA still shows its task as unfinished: the replication is held."""
    busy: int = 0
    """Number of consecutive answers that the replication is busy (409)."""
    postponed: Postponement | None = None
    """While it is set, no slot is requested."""
    repeats: int = 0
    """The number of doubts for which a repeated POST was logged."""
    behind: str | None = None
    """The operation that it still waited behind when its deadline came."""
    watch: Watch | None = None
    progress: int | None = None
    unknown_state: tuple[str, bool] | None = None
    """The task's state, if it isn't known here, and whether the task has an end: logged once, not at each poll."""
    shown_with: str | None = None
    """The other replication that VCDA shows the task's id with: logged once, likewise."""

    @property
    def request(self) -> sync.Request:
        """The request it is about."""
        return self.state.request

    def occupy(self, lane: Lane) -> None:
        """Occupy a slot of the site for the sync, once."""
        if not self.occupies:
            self.occupies = True
            lane.occupy()

    def vacate(self, lane: Lane) -> None:
        """Release the slot."""
        if self.occupies:
            self.occupies = False
            lane.vacate()

    def answered(self, lane: Lane) -> None:
        """Its POST, if there was one on its way, is answered or given up."""
        if self.submitting:
            self.submitting = False
            lane.answered()

    @property
    def doubt(self) -> Submitting | None:
        """The POST in doubt, if there is one, also of a lingering sync."""
        state = self.state.of if isinstance(self.state, Lingering) else self.state
        return state if isinstance(state, Submitting) and state.in_doubt else None

    @property
    def ids(self) -> dict[str, str | None]:
        """The ids for a log line about the sync."""
        request = self.request
        return {"operation_id": request.operation_id, "replication_id": request.replication_id, "site": request.site}


class InFlight:
    """A partition's syncs. Iterating yields all of them, in the order of acceptance."""

    def __init__(self) -> None:
        self._tracked_syncs: dict[str, TrackedSync] = {}
        self.sites: Counter[str | None] = Counter()
        """How many there are of each site."""
        self.behind: Counter[str | None] = Counter()
        """By site: how many wait behind an older request of their replication. Only sites of which some do."""
        self._lingering: set[str] = set()
        self._queues: dict[str, list[TrackedSync] | deque[TrackedSync]] = {}
        """By replication, whatever its letter case: VCDA may show tasks in another one.

        Nearly all are of one: a list of one takes 88 bytes, a deque 760 (measured). A long one is a deque, since a list
        moves all of its entries when the first goes: seconds for tens of thousands."""

    def __len__(self) -> int:
        return len(self._tracked_syncs)

    @property
    def without_outcome(self) -> int:
        """How many have no outcome yet. Those that linger have theirs, perhaps for weeks."""
        return len(self._tracked_syncs) - len(self._lingering)

    def __iter__(self) -> Iterator[TrackedSync]:
        return iter(tuple(self._tracked_syncs.values()))

    def __contains__(self, identity: object) -> bool:
        return identity in self._tracked_syncs

    def holds(self, tracked: TrackedSync) -> bool:
        """Whether this very sync is still in flight; its identity may have come again."""
        return self._tracked_syncs.get(tracked.request.identity) is tracked

    def replications(self) -> tuple[str, ...]:
        """Return the replications that have something in flight."""
        return tuple(self._queues)

    def of(self, replication_id: str, *, most: int) -> tuple[TrackedSync, ...]:
        """Return a replication's syncs, the oldest first."""
        return tuple(islice(self._queues.get(replication_id.casefold(), ()), most))

    def get(self, identity: str) -> TrackedSync | None:
        """Return the sync of an identity, if it is in flight."""
        return self._tracked_syncs.get(identity)

    def of_operation(self, replication_id: str, operation_id: str) -> tuple[TrackedSync, ...]:
        """Return a replication's syncs with this operationID: more than one only where requests are CloudEvents."""
        queue = self._queues.get(replication_id.casefold(), ())
        return tuple(tracked for tracked in queue if tracked.request.operation_id == operation_id)

    def eldest(self, replication_id: str) -> TrackedSync | None:
        """Return the oldest sync of a replication, the only one that may run."""
        queue = self._queues.get(replication_id.casefold())
        return queue[0] if queue else None

    def add(self, tracked: TrackedSync) -> None:
        """Add a sync behind the earlier ones of its replication."""
        self._tracked_syncs[tracked.request.identity] = tracked
        if isinstance(tracked.state, Lingering):
            self.lingers(tracked)
        self.sites[tracked.request.site] += 1
        key = tracked.request.replication_id.casefold()
        queue = self._queues.setdefault(key, [])
        if queue:
            self.behind[tracked.request.site] += 1
        if len(queue) == LONG:
            queue = self._queues[key] = deque(queue)
        queue.append(tracked)

    def lingers(self, tracked: TrackedSync) -> None:
        """Note that a sync in flight has its outcome."""
        self._lingering.add(tracked.request.identity)

    def remove(self, tracked: TrackedSync, *, now: datetime) -> None:
        """Remove an ended sync. Expired requests behind it keep its operationID for their outcomes."""
        request = tracked.request
        del self._tracked_syncs[request.identity]
        self._lingering.discard(request.identity)
        key = request.replication_id.casefold()
        queue = self._queues[key]
        was_first = queue[0] is tracked
        queue.remove(tracked)
        if not was_first:
            _one_less(self.behind, request.site)
        elif queue:
            _one_less(self.behind, queue[0].request.site)
        _one_less(self.sites, request.site)
        if not queue:
            del self._queues[key]
        elif queue[0].request.deadline <= now:
            queue[0].behind = request.operation_id


def _one_less(counts: Counter[str | None], site: str | None) -> None:
    """Count one less. A message may name any site, so nothing is kept of what is at 0."""
    counts[site] -= 1
    if not counts[site]:
        del counts[site]


def public_state(state: sync.Sync) -> str | None:
    """The state's word on the outside; an ended sync isn't in flight."""
    match state:
        case Waiting():
            return "waiting"
        case Submitting():
            return "in_doubt" if state.in_doubt else "submitting"
        case Running():
            return "running"
        case Lingering():
            return "lingering"
        case Ended():
            return None
