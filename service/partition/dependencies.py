"""Interfaces of the objects that all partitions of a process share, with only the methods that a partition calls."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Protocol

from service import sync
from service.clock import Clock
from service.event_loop import Slices
from service.kafka.progress_publisher import Progress
from service.messages.outcomes import OutcomeTopics
from service.observability.tracing import Tracing
from service.partition.deduplication import DeduplicationMeter
from service.partition.journal_writer import JournalWriterMeter
from service.partition.recent_outcomes import RecentOutcomes
from service.partition.reconciler import ONE_BY_ONE, FindApi
from service.sync import Policy
from service.vcda.lanes import Lane
from service.vcda.poller import Watch


class Api(FindApi, Protocol):
    """The calls to VCDA that a partition makes; the poller makes the polls."""

    async def submit(
        self,
        *,
        replication_id: str,
        site: str | None,
        operation_id: str,
        may_leave: Callable[[sync.Account | None], bool],
    ) -> sync.SubmitAnswer:
        """POST the sync. `may_leave` is called with the account just before the POST is sent, and may forbid it."""

    def spellings(self) -> tuple[sync.Spelling, ...]:
        """Return the known spellings of the service's user on tasks: the same object until another is learnt."""

    def learn(self, spellings: Iterable[sync.Spelling]) -> None:
        """Add spellings that an earlier process learnt."""

    def learn_name(self, account: sync.Account, *, site: str | None, name: str) -> None:
        """Learn a spelling from a task that certainly belongs to the account."""


class Lanes(Protocol):
    """The lanes of all sites."""

    def lane(self, site: str | None) -> Lane:
        """Return the site's lane."""


class Poller(Protocol):
    """Polls tasks until `unwatch`."""

    def watch(self, watch: Watch) -> None:
        """Start polling a task."""

    def unwatch(self, watch: Watch) -> None:
        """Stop polling a task."""


class Meter(JournalWriterMeter, DeduplicationMeter, Protocol):
    """The metrics of a partition."""

    def adopted(self) -> None: ...  # noqa: D102 - the names say it
    def post_repeated(self, site: str | None) -> None: ...  # noqa: D102
    def unknown_task_state(self) -> None: ...  # noqa: D102
    def moved(self, site: str | None, before: str | None, after: str | None) -> None: ...  # noqa: D102
    def replication_held(self, site: str | None, *, held: bool) -> None: ...  # noqa: D102
    def outcome(self, outcome: sync.Outcome, *, site: str | None, duration: float, lag: float | None) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """The objects and names that a partition gets from its process.

    `requests` and `dead_letters` are topics; `deadline` is for requests that name none; `group` is the consumer group,
    for the cursors in the journals.
    """

    api: Api
    lanes: Lanes
    poller: Poller
    clock: Clock
    policy: Policy
    metrics: Meter
    requests: str
    outcomes: OutcomeTopics
    dead_letters: str
    deadline: timedelta
    group: str | None = None
    random: Random = field(default_factory=Random)
    tracing: Tracing = field(default_factory=Tracing)
    progress: Progress = field(default_factory=Progress)
    recent_outcomes: RecentOutcomes = field(default_factory=RecentOutcomes)
    slices: Slices = field(default_factory=Slices)
    """Of all long work in the process."""
    one_by_one: int = ONE_BY_ONE
    tick: timedelta = timedelta(seconds=1)
    """How often deadlines are looked at. The shortest deadline of the contract is a second."""
