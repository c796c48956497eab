"""A VCDA at arm's length: the calls of `service.vcda` answered from a script, in whatever time the clock tells.

For tests of what happens behind the API: partitions, journals, hand-overs. The wire itself is tested elsewhere.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from types import TracebackType

from service import sync
from service.clock import Clock
from service.sync import Task, Trouble

_IDS = count(1)


@dataclass(slots=True)
class Made:
    """A task that VCDA has made, and for what."""

    task: Task
    operation_id: str
    begun: float
    lasts: float
    fate: str = "SUCCEEDED"
    error: sync.ApiError | None = None


@dataclass
class World:
    """All tasks, whoever asked for them; shared by the `ScriptedVcda`s of several processes."""

    clock: Clock
    lasts: Callable[[str], float] = lambda _: 1.0
    fate: Callable[[str], str] = lambda _: "SUCCEEDED"
    made: dict[str, Made] = field(default_factory=dict)
    overlaps: list[tuple[str, str]] = field(default_factory=list)
    forgotten: set[str] = field(default_factory=set)
    user: str = "admin@org"

    def make(self, replication_id: str, site: str | None, operation_id: str) -> Task:
        now = self.clock.monotonic()
        for other in self.made.values():
            if other.task.replication_id == replication_id and other.begun + other.lasts > now:
                self.overlaps.append((other.operation_id, operation_id))
        task = Task(
            id=f"task-{next(_IDS)}",
            state="RUNNING",
            site=site,
            user=self.user,
            replication_id=replication_id,
            progress=0,
            started_at=self.clock.now(),
        )
        self.made[task.id] = Made(task, operation_id, now, self.lasts(operation_id), self.fate(operation_id))
        return task

    def look(self, made: Made) -> Task:
        now, end = self.clock.monotonic(), made.begun + made.lasts
        if now < end:
            return replace(made.task, progress=int(100 * (now - made.begun) / made.lasts))
        ended_at = (made.task.started_at or datetime.now(UTC)) + timedelta(seconds=made.lasts)
        error = made.error or (sync.ApiError("Boom", "It broke.") if made.fate == "FAILED" else None)
        return replace(made.task, state=made.fate, progress=100, ended_at=ended_at, error=error)

    def tasks_of(self) -> Counter[str]:
        """How many tasks each operation has."""
        return Counter(made.operation_id for made in self.made.values())


class ScriptedVcda:
    """One process' way to the world. Each POST takes `latency`; faults are what the test puts into `script`."""

    def __init__(self, world: World, *, latency: float = 0.01, late: timedelta = timedelta(seconds=30)) -> None:
        self.world = world
        self.latency = latency
        self.posts: Counter[str] = Counter()
        self.script: dict[str, list[str]] = {}
        """By operation: what its next POSTs meet: `lost-answer`, `lost-post`, `late`, `429`, `409`, `rejected`, `hang`."""
        self.finds = 0
        self.finding = "well"
        self._late = late
        self._background: set[asyncio.Task[None]] = set()

    async def submit(
        self, *, replication_id: str, site: str | None, operation_id: str, may_leave: Callable[[], bool]
    ) -> sync.SubmitAnswer:
        clock = self.world.clock
        await asyncio.sleep(self.latency / 2)
        if not may_leave():
            return sync.NotTaken(Trouble(label=sync.WITHHELD, detail="held back"), sent=False)
        self.posts[operation_id] += 1
        sent_at = clock.monotonic()
        script = self.script.get(operation_id) or ["well"]
        what = script.pop(0)
        unanswered = sync.Unanswered(Trouble(label="timeout", detail="no answer"), sent_at, self.world.user)
        if what == "late":
            self._later(0.9 * self._late.total_seconds(), replication_id, site, operation_id)
            return unanswered
        await asyncio.sleep(self.latency / 2)
        match what:
            case "429":
                return sync.NotTaken(Trouble(label="429", detail="slow down", http_status=429), sent=True)
            case "409":
                return sync.NotTaken(Trouble(label="409", detail="busy", http_status=409, own=True), sent=True)
            case "rejected":
                return sync.Refused(sync.ApiError("Forbidden", "Permission denied."), 403)
            case "lost-post":
                return unanswered
            case "hang":
                await asyncio.sleep(3600)
        task = self.world.make(replication_id, site, operation_id)
        return unanswered if what == "lost-answer" else sync.Accepted(task, self.world.user)

    def _later(self, delay: float, replication_id: str, site: str | None, operation_id: str) -> None:
        async def make() -> None:
            await asyncio.sleep(delay)
            self.world.make(replication_id, site, operation_id)

        task = asyncio.create_task(make())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def find(
        self, *, site: str | None, replication_id: str | None, since: datetime, operation_id: str | None = None
    ) -> list[Task] | Trouble:
        self.finds += 1
        if self.finding != "well":
            return Trouble(label="5xx", detail=self.finding)
        seen = [
            self.world.look(made)
            for made in self.world.made.values()
            if (replication_id is None or made.task.replication_id == replication_id)
            and made.task.id not in self.world.forgotten
            and made.task.started_at is not None
            and made.task.started_at >= since
        ]
        await asyncio.sleep(self.latency)
        return seen

    async def poll(self, *, site: str | None, ids: Sequence[str]) -> list[Task] | Trouble:
        await asyncio.sleep(self.latency)
        return [self.world.look(self.world.made[i]) for i in ids if i not in self.world.forgotten]

    async def ask(self, *, site: str | None, task_id: str) -> Task | sync.Gone | Trouble:
        await asyncio.sleep(self.latency)
        if task_id in self.world.forgotten:
            return sync.Gone(self.world.clock.monotonic(), self.world.user)
        return self.world.look(self.world.made[task_id])

    def account(self) -> str | None:
        return self.world.user

    def names(self, site: str | None) -> frozenset[str]:
        return frozenset({self.world.user})

    def offset(self, site: str | None) -> timedelta | None:
        return timedelta()

    async def __aenter__(self) -> "ScriptedVcda":
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for task in self._background:
            task.cancel()
