"""What all partitions of a process share, as a partition sees it: only what it calls, and the values it is handed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Protocol

from service import sync
from service.clock import Clock
from service.kafka.progress_publisher import Progress
from service.messages.outcomes import OutcomeTopics
from service.observability.tracing import Tracing
from service.partition.deduplication import DeduplicationMeter
from service.partition.journal_writer import JournalWriterMeter
from service.partition.reconciler import FindApi
from service.sync import Policy
from service.vcda.lanes import Lane
from service.vcda.poller import Watch


class Api(FindApi, Protocol):
    """What is asked of VCDA; polling is the poller's."""

    async def submit(
        self,
        *,
        replication_id: str,
        site: str | None,
        operation_id: str,
        may_leave: Callable[[sync.Account | None], bool],
    ) -> sync.SubmitAnswer:
        """POST the sync, unless `may_leave`, who is told as whom, forbids it at the last moment."""

    def spellings(self) -> tuple[sync.Spelling, ...]:
        """Return what is known of how VCDA names our user on tasks: the same object until more is."""

    def learn(self, spellings: Iterable[sync.Spelling]) -> None:
        """Learn what an earlier process had learnt."""

    def learn_name(self, account: sync.Account, *, site: str | None, name: str) -> None:
        """Learn how a task names an account's user, which that account has made for certain."""


class Lanes(Protocol):
    """The traffic rules of each site."""

    def lane(self, site: str | None) -> Lane:
        """Return the site's lane."""


class Poller(Protocol):
    """Asks after tasks until told not to."""

    def watch(self, watch: Watch) -> None:
        """Begin to ask."""

    def unwatch(self, watch: Watch) -> None:
        """Stop asking."""


class Meter(JournalWriterMeter, DeduplicationMeter, Protocol):
    """What is counted."""

    def adopted(self) -> None: ...  # noqa: D102 - the names say it
    def post_repeated(self, site: str | None) -> None: ...  # noqa: D102
    def unknown_task_state(self, site: str | None) -> None: ...  # noqa: D102
    def moved(self, site: str | None, before: str | None, after: str | None) -> None: ...  # noqa: D102
    def replication_held(self, site: str | None, *, held: bool) -> None: ...  # noqa: D102
    def outcome(self, outcome: sync.Outcome, *, site: str | None, duration: float, lag: float | None) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """What a partition needs from its process.

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
