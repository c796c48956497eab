"""The state of a process that has a bit of everything, for tests of the page at `/`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from service.messages.wait_cause import WaitCause
from service.ops import overview
from service.ops.overview import Instance, Overview, Partitions, Parts, Site
from service.ops.sites_view import Hindrance, Hold
from service.partition.partition import Partition
from service.partition.recent_outcomes import Failure
from service.partition.waiting import WaitsFor
from service.sync import ApiError, Reason
from service.vcda.client import SessionStatus
from tests.support.shown_syncs import Shown, ready
from tests.support.simulated_deployment import Process

AT: Final = datetime(2026, 3, 1, 22, 14, 5, tzinfo=UTC)
BREAKER: Final = "the circuit breaker of site {} has been open since 2026-03-01 22:10:00Z: POST answered with 503"


def some_overview(text: str = "site-b") -> Overview:
    """Return a state in which `text` stands wherever something from outside may stand."""
    breaker = BREAKER.format(text)
    return Overview(
        at=AT,
        instance=Instance(
            name=text,
            version="0.1.0",
            settings_hash="a1b2c3d4e5f6",
            started_at=AT - timedelta(hours=30),
            kafka=text,
            vcda=text,
            requests=text,
            group=text,
        ),
        not_alive=(f"{text} has made no progress",),
        not_ready=(f"the topic {text} does not exist",),
        degraded=(breaker,),
        partitions=Partitions(
            total=12, joined=True, open=(0, 1, 2, 5, 7, 8), opening={4: text}, stopped={9: f"held by {text}"}
        ),
        session_age=timedelta(hours=5),
        sites=(
            Site(
                name=text,
                session=True,
                hindrances=(Hindrance(Hold.BREAKER, WaitCause.CIRCUIT_OPEN, breaker, AT + timedelta(seconds=40)),),
                states={"waiting": 1200, "in_doubt": 3, "running": 50},
                waiting={WaitCause.CIRCUIT_OPEN: 1100, WaitCause.ELDER: 100},
            ),
            Site(
                name=None,
                session=True,
                states={"waiting": 20, "submitting": 3, "running": 200, "lingering": 1},
                waiting={WaitCause.LIMIT: 20},
            ),
            Site(name="site-c", session=False),
        ),
        further_sites=2,
        states={"waiting": 1220, "submitting": 3, "in_doubt": 3, "running": 250, "lingering": 1},
        waiting={WaitCause.CIRCUIT_OPEN: 1100, WaitCause.ELDER: 100, WaitCause.LIMIT: 20},
        oldest=some_syncs(text),
        completed=12_345,
        failed=2,
        failures=(
            _failure(text, reason=Reason.REJECTED, minutes=3),
            _failure(text, reason=Reason.TIMED_OUT, minutes=90),
        ),
    )


def some_syncs(text: str = "site-b") -> tuple[Shown, ...]:
    """Return requests of several states, with the text wherever one from outside may stand."""
    waiting = Shown(
        f"op:{text}:1",
        replication_id=text,
        operation_id=text,
        site=text,
        state="waiting",
        task_id=None,
        progress=None,
        accepted_at=AT - timedelta(minutes=50),
        deadline=AT + timedelta(hours=3),
        error=ApiError(text, f"{text} is unreachable."),
        http_status=503,
        waits_for=WaitsFor(WaitCause.CIRCUIT_OPEN, BREAKER.format(text), until=AT + timedelta(seconds=40)),
    )
    running = Shown(
        f"op:{text}:2",
        replication_id=text,
        operation_id=text,
        accepted_at=AT - timedelta(minutes=5),
        deadline=AT + timedelta(hours=6),
        error=None,
        waits_for=None,
        http_status=None,
    )
    held = Shown(f"op:{text}:3", state="lingering", deadline=AT - timedelta(days=1), held=True, progress=None)
    return waiting, running, held


def _failure(text: str, *, reason: Reason, minutes: int) -> Failure:
    return Failure(
        at=AT - timedelta(minutes=minutes),
        operation_id=text,
        replication_id=text,
        site=text,
        reason=reason,
        error=f"{text}: There is no such replication. (HTTP 404)",
    )


# ---------------------------------------------------------------- the state of a simulated process

INSTANCE: Final = replace(some_overview().instance, sites=frozenset({"site2"}))


@dataclass
class Member:
    """The member of the group, as the page sees it."""

    process: Process
    partition_count: int = 4
    joined: bool = True
    opening_ones: dict[int, str] = field(default_factory=dict)
    stopped_ones: dict[int, str] = field(default_factory=dict)

    def partitions(self) -> Iterator[Partition]:
        for supervisor in self.process.supervisors.values():
            if supervisor.partition is not None:
                yield supervisor.partition

    def opening(self) -> Mapping[int, str]:
        return self.opening_ones

    def mismatched(self) -> Mapping[int, str]:
        return self.stopped_ones


class Read:
    """Reads the state of a process; `in_flight` is what the metrics count."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.member = Member(process)
        self.health = ready()
        self.session = SessionStatus(age=timedelta(hours=1), sites=frozenset({"site2"}))
        self.in_flight: dict[tuple[str, str | None], int] = {}

    async def __call__(self) -> Overview:
        parts = Parts(
            lanes=self.process.lanes,
            session=lambda: self.session,
            recent_outcomes=self.process.recent_outcomes,
            intake=self.member,
        )
        return await overview.read(
            INSTANCE, parts, health=self.health, clock=self.process.clock, in_flight=lambda: self.in_flight
        )
