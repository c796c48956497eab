"""What `vm-sync top` knows: the requests in flight and the latest outcomes, record by record. Pure.

Of each request in flight it holds some 400 bytes, of ended ones nothing.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from service.cli.options import State
from service.cli.outcome_events import OutcomeEvent, read_event
from service.cli.outcome_summary import Published
from service.kafka.journal_codec import is_sync, read
from service.moments import rfc3339

STATES: Final = (State.WAITING, State.SUBMITTING, State.IN_DOUBT, State.RUNNING, State.LINGERING)
"""The states of a request in flight."""

WINDOW: Final = timedelta(minutes=1)
"""For how long outcomes are counted."""


class InFlight(msgspec.Struct, gc=False, frozen=True):
    """A request in flight, as the journal has it."""

    identity: str
    operation_id: str
    replication_id: str
    site: str | None
    state: str
    accepted_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCounts:
    """A site's requests in flight by state, and when the oldest of them was accepted."""

    site: str | None
    states: Mapping[str, int]
    oldest: datetime

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.states.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """All that is shown, at one moment. `completed` and `failed` are those of the last minute."""

    at: datetime
    total: int
    sites: list[SiteCounts]
    oldest: list[InFlight]
    completed: int
    failed: int
    latest: list[OutcomeEvent]
    unreadable: int

    def json(self) -> dict[str, Any]:
        """Return it as JSON, with the field names of the contract."""
        states = Counter[str]()
        for one in self.sites:
            states.update(one.states)
        return {
            "at": rfc3339(self.at),
            "inFlight": self.total,
            "states": {state.value: states[state] for state in STATES},
            "sites": [
                {
                    "site": one.site,
                    "states": {state.value: one.states.get(state, 0) for state in STATES},
                    "oldestAcceptedAt": rfc3339(one.oldest),
                }
                for one in self.sites
            ],
            "lastMinute": {"completed": self.completed, "failed": self.failed},
            "oldest": [
                {
                    "requestId": one.identity,
                    "operationID": one.operation_id,
                    "replicationId": one.replication_id,
                    "site": one.site,
                    "state": one.state,
                    "acceptedAt": rfc3339(_moment(one.accepted_ms)),
                }
                for one in self.oldest
            ],
            "latest": [
                {
                    "requestId": one.request_id,
                    "operationID": one.operation_id,
                    "replicationId": one.replication_id,
                    "site": one.site,
                    "outcome": one.outcome,
                    "reason": one.reason,
                    "endedAt": rfc3339(one.ended_at),
                }
                for one in self.latest
            ],
            "unreadable": self.unreadable,
        }


class TopState:
    """Takes the records of the journal and of the outcome topics, each partition's in their order."""

    def __init__(self, *, latest: int) -> None:
        self._most = latest
        self._in_flight: dict[bytes, InFlight] = {}
        self._unreadable: set[bytes] = set()
        self._ended: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
        """Completed and failed by the second of their publication, of the window."""
        self._latest: list[Published] = []

    def take_journal(self, key: bytes | None, value: bytes | None) -> None:
        """Take the next record of a journal partition."""
        if key is None or not is_sync(key):
            return
        self._in_flight.pop(key, None)
        self._unreadable.discard(key)
        if value is None:
            return
        try:
            stored = read(value)
        except ValueError:
            self._unreadable.add(key)
            return
        state = State.IN_DOUBT if stored.state == State.SUBMITTING and stored.in_doubt else stored.state
        if state in STATES:
            self._in_flight[key] = InFlight(
                key.decode("utf-8", "replace"),
                stored.operation_id,
                stored.replication_id,
                stored.site,
                state,
                stored.accepted_at,
            )
        elif state != "ended":
            self._unreadable.add(key)

    def take_outcome(self, value: bytes | None, *, at_ms: int, partition: int, offset: int) -> None:
        """Take a record of an outcome topic; what is no outcome is left out."""
        event = read_event(value)
        if event is None:
            return
        self._ended[at_ms // 1000][event.reason is not None] += 1
        found = Published(at_ms, partition, offset, event)
        self._latest = heapq.nlargest(self._most, [*self._latest, found])

    def moment(self, now: datetime, *, rows: int) -> Moment:
        """Return what is shown now, with so many of the oldest requests."""
        self._forget(now)
        states: defaultdict[str | None, Counter[str]] = defaultdict(Counter)
        oldest: dict[str | None, int] = {}
        for one in self._in_flight.values():
            states[one.site][one.state] += 1
            if one.accepted_ms < oldest.get(one.site, one.accepted_ms + 1):
                oldest[one.site] = one.accepted_ms
        sites = [SiteCounts(site=site, states=counts, oldest=_moment(oldest[site])) for site, counts in states.items()]
        return Moment(
            at=now,
            total=len(self._in_flight),
            sites=sorted(sites, key=lambda one: (-one.total, one.site or "")),
            oldest=heapq.nsmallest(rows, self._in_flight.values(), key=lambda one: (one.accepted_ms, one.identity)),
            completed=sum(counts[0] for counts in self._ended.values()),
            failed=sum(counts[1] for counts in self._ended.values()),
            latest=[found.event for found in reversed(self._latest)],
            unreadable=len(self._unreadable),
        )

    def _forget(self, now: datetime) -> None:
        """Leave out the outcomes from before the window."""
        since = (now - WINDOW).timestamp()
        for second in [second for second in self._ended if second < since]:
            del self._ended[second]


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
