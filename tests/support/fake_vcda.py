"""A VCDA at arm's length: the calls of `service.vcda` answered from a script, in whatever time the clock tells.

For tests of what happens behind the API: partitions, journals, hand-overs. The wire itself is tested elsewhere. What
VCDA does, it does whether or not the caller still lives: see `at_a_distance`.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Self, TypeVar

from service import sync
from service.clock import Clock
from service.sync import Task, Trouble
from service.vcda.site_clocks import SiteClock, SiteClocks
from service.vcda.spellings import Spellings

T = TypeVar("T")

ELSEWHERE = Context()
"""Where no process of ours runs: what happens there goes on when one of them is frozen or dead."""


def at_a_distance(there: float, do: Callable[[], T], back: float) -> "asyncio.Future[T]":
    """Do something `there` seconds away, whatever becomes of who asked; its result arrives `back` seconds later."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def arrive(what: T) -> None:
        if not answer.done():
            answer.set_result(what)

    def happen() -> None:
        loop.call_later(back, arrive, do(), context=ELSEWHERE)

    loop.call_later(there, happen, context=ELSEWHERE)
    return answer


@dataclass(slots=True)
class Made:
    """A task that VCDA has made, and for what."""

    task: Task
    operation_id: str
    begun: float
    lasts: float
    fate: str
    owner: str = ""
    """Who sees it, however the task names them."""
    of: str = ""
    """Of which replication it is, however the task names it."""
    error: sync.ApiError | None = None

    @property
    def ends(self) -> float:
        return self.begun + self.lasts


@dataclass
class World:
    """All tasks, whoever asked for them; shared by the `ScriptedVcda`s of several processes. `clock` is VCDA's."""

    clock: Clock
    lasts: Callable[[str], float] = lambda _: 1.0
    fate: Callable[[str], str] = lambda _: "SUCCEEDED"
    made: dict[str, Made] = field(default_factory=dict)
    overlaps: list[tuple[str, str]] = field(default_factory=list)
    forgotten: set[str] = field(default_factory=set)
    """Tasks that VCDA knows no more."""
    used_again: set[str] = field(default_factory=set)
    """Forgotten tasks whose ids VCDA has given to tasks of another replication, which have succeeded."""
    listed: Callable[[str], float] = lambda _: 0.0
    """How long after its start an operation's task is in VCDA's list; it is shown at once to who knows its id."""
    poison: set[str] = field(default_factory=set)
    """Tasks that make each call fail that asks for them."""
    at_site: dict[str | None, Clock] = field(default_factory=dict)
    """The clocks of sites that have their own."""
    dates: Clock | None = None
    """The clock of the `Date` headers; None: VCDA's."""
    ends_off: timedelta = timedelta()
    """By how much the ends that VCDA gives its tasks are wrong."""
    user: str = "admin@org"
    spelled: Callable[[str], str | None] = lambda user: user
    """How tasks name a user."""
    shows: Callable[[Task], Task] = lambda task: task
    """What else of a task is shown otherwise than asked."""
    _ids: "count[int]" = field(default_factory=lambda: count(1))

    def make(self, replication_id: str, site: str | None, operation_id: str, *, user: str | None = None) -> Task:
        now = self.clock.monotonic()
        for other in self.made.values():
            if other.of == replication_id and other.ends > now and other.task.id not in self.forgotten:
                self.overlaps.append((other.operation_id, operation_id))
        owner = user or self.user
        task = Task(
            id=f"task-{next(self._ids)}",
            state="RUNNING",
            site=site,
            user=self.spelled(owner),
            replication_id=replication_id,
            progress=0,
            started_at=self.at_site.get(site, self.clock).now(),
        )
        task = self.shows(task)
        fate = self.fate(operation_id)
        self.made[task.id] = Made(task, operation_id, now, self.lasts(operation_id), fate, owner, replication_id)
        return task

    def look(self, made: Made) -> Task:
        now = self.clock.monotonic()
        if made.task.id in self.used_again:
            return replace(made.task, replication_id="C4-another", state="SUCCEEDED", ended_at=self.clock.now())
        if made.ends == math.inf:
            return replace(made.task, state="ABORTED")
        if now < made.ends:
            return replace(made.task, progress=int(100 * (now - made.begun) / made.lasts))
        ended_at = (made.task.started_at or datetime.now(UTC)) + timedelta(seconds=made.lasts) + self.ends_off
        error = made.error or (sync.ApiError("Boom", "It broke.") if made.fate == "FAILED" else None)
        return replace(made.task, state=made.fate, progress=100, ended_at=ended_at, error=error)

    def shows_to(self, user: str | None, task_id: str) -> bool:
        """Whether VCDA knows the task, and shows it to that user."""
        known = task_id not in self.forgotten or task_id in self.used_again
        return task_id in self.made and known and self.made[task_id].owner == user

    def lists(self, made: Made) -> bool:
        """Whether VCDA's list has the task by now, and still."""
        listed_from = made.begun + self.listed(made.operation_id)
        return made.task.id not in self.forgotten and self.clock.monotonic() >= listed_from

    def tasks_of(self) -> Counter[str]:
        """How many tasks each operation has."""
        return Counter(made.operation_id for made in self.made.values())

    def task_of(self, operation_id: str) -> Made:
        """The only task of an operation."""
        (made,) = (made for made in self.made.values() if made.operation_id == operation_id)
        return made


def _refused(what: str, *, at: float) -> sync.Refused:
    if what == "rejected":
        return sync.Refused(sync.ApiError("Forbidden", "Permission denied."), 403, at=at)
    return sync.Refused(sync.ApiError(sync.WITHOUT_CREDENTIALS, "None."), None, sent=False)


class ScriptedVcda:
    """One process' way to the world. Each call takes `latency`; what POSTs meet is what the test puts into `script`."""

    def __init__(
        self,
        world: World,
        *,
        latency: float = 0.01,
        late: timedelta = timedelta(seconds=30),
        clock: Clock | None = None,
        meets: Callable[[str], str] = lambda _: "well",
    ) -> None:
        self.world = world
        self.latency = latency
        self.login = 0.0
        """How long a POST is kept here, by logging in and connecting, before anything could leave."""
        self.posts: Counter[str] = Counter()
        self.sent: list[tuple[float, str]] = []
        """When each POST left, and of which operation."""
        self.asked: list[tuple[float, str | None]] = []
        """When each look-up began, and for which replication."""
        self.script: dict[str, list[str]] = {}
        """By operation: what its next POSTs meet: `lost-answer`, `lost-post`, `late`, `429`, `409`, `5xx`, `rejected`,
        `hang` (no answer, and no task, for `late`). Once it is used up, `meets` is asked."""
        self.finding = "well"
        """Or what look-ups meet."""
        self.user: str | None = world.user
        """Whose session it is; None before the first login."""
        self.site_user: str | None = None
        """Who it was extended as to remote sites."""
        self.leaves: Callable[[str], object] = lambda _: None
        """Told of each POST as it leaves."""
        self.dead = False
        """Whether the process has died: nothing leaves it any more."""
        self._late = late.total_seconds()
        self._clock = clock or world.clock
        self._meets = meets
        self._spellings = Spellings()
        self._site_clocks = SiteClocks()

    @property
    def finds(self) -> int:
        return len(self.asked)

    async def submit(
        self,
        *,
        replication_id: str,
        site: str | None,
        operation_id: str,
        may_leave: Callable[[sync.Account | None], bool],
    ) -> sync.SubmitAnswer:
        await asyncio.sleep(self.login + self.latency / 2)
        self.user = self.user or self.world.user
        account = self.account(site)
        if not may_leave(account):
            return sync.NotTaken(Trouble(label=sync.WITHHELD, detail="held back"), sent=False)
        if self.dead:
            await asyncio.get_running_loop().create_future()
        self.posts[operation_id] += 1
        sent_at = self._clock.monotonic()
        self.sent.append((sent_at, operation_id))
        self.leaves(operation_id)
        script = self.script.get(operation_id)
        what = script.pop(0) if script else self._meets("submit")
        user = self._user_at(site)

        def make() -> Task:
            return self.world.make(replication_id, site, operation_id, user=user)

        unanswered = sync.Unanswered(Trouble(label="timeout", detail="no answer"), sent_at, account)
        there = back = self.latency / 2
        match what:
            case "well":
                return self._accepted(await at_a_distance(there, make, back), account, site, sent_at=sent_at)
            case "lost-answer":
                await at_a_distance(there, make, back)
            case "late":
                _ = at_a_distance(0.9 * self._late, make, back)
            case "hang":
                await asyncio.sleep(self._late)
            case "lost-post":
                await asyncio.sleep(self.latency)
            case "rejected" | "no credentials":
                await asyncio.sleep(self.latency)
                return _refused(what, at=self._clock.monotonic())
            case _:
                await asyncio.sleep(self.latency)
                busy_at = self._clock.monotonic() if what == "409" else None
                return sync.NotTaken(
                    Trouble(label=what, detail="not now", own=busy_at is not None), sent=True, busy_at=busy_at
                )
        return unanswered

    def _accepted(self, task: Task, account: sync.Account | None, site: str | None, *, sent_at: float) -> sync.Accepted:
        if task.started_at is not None:
            self._site_clocks.heard(site, task.started_at, sent=sent_at, received=self._clock.monotonic())
        if task.user is not None and account is not None:
            self.learn_name(account, site=site, name=task.user)
        return sync.Accepted(task, account)

    async def find(
        self,
        *,
        site: str | None,
        replication_id: str | None,
        since: datetime,
        until: datetime | None = None,
        operation_id: str | None = None,  # noqa: ARG002 - says whose POST it is about, which only the wire tells VCDA
    ) -> list[Task] | Trouble:
        self.asked.append((self._clock.monotonic(), replication_id))
        self.user = self.user or self.world.user
        what = self.finding if self.finding != "well" else self._meets("find")
        user = self._user_at(site)

        def look() -> list[Task]:
            return [
                self.world.look(made)
                for made in self.world.made.values()
                if (replication_id is None or made.task.replication_id == replication_id)
                and made.owner == user
                and self.world.lists(made)
                and made.task.started_at is not None
                and made.task.started_at >= since
                and (until is None or made.task.started_at < until)
            ]

        seen = await at_a_distance(self.latency / 2, look, self.latency / 2)
        return seen if what == "well" else Trouble(label="5xx", detail=what)

    async def poll(self, *, site: str | None, ids: Sequence[str]) -> list[Task] | Trouble:
        self.user = self.user or self.world.user
        what, user = self._meets("poll"), self._user_at(site)

        def look() -> list[Task]:
            return [self.world.look(self.world.made[i]) for i in ids if self.world.shows_to(user, i)]

        seen = await at_a_distance(self.latency / 2, look, self.latency / 2)
        if what == sync.NO_CREDENTIALS:
            return Trouble(label=what, detail="No credentials are configured.", own=True)
        return seen if what == "well" and self._healthy(*ids) else Trouble(label="5xx", detail=what)

    async def ask(self, *, site: str | None, task_id: str) -> Task | sync.Gone | Trouble:
        self.user = self.user or self.world.user
        await asyncio.sleep(self.latency)
        if not self._healthy(task_id):
            return Trouble(label="5xx", detail="poison")
        if not self.world.shows_to(self._user_at(site), task_id):
            return sync.Gone(self._clock.monotonic(), self.account(site))
        return self.world.look(self.world.made[task_id])

    def account(self, site: str | None) -> sync.Account | None:
        return None if self.user is None else sync.Account(self.user, None if site is None else self.site_user)

    def names(self, site: str | None, account: sync.Account | None) -> sync.Names:
        return self._spellings.names(account or self.account(site), site)

    def spellings(self) -> tuple[sync.Spelling, ...]:
        return self._spellings.known

    def learn(self, spellings: Iterable[sync.Spelling]) -> None:
        self._spellings.learn(spellings)

    def learn_name(self, account: sync.Account, *, site: str | None, name: str) -> None:
        self._spellings.learn([sync.Spelling(account, site, name)])

    def _healthy(self, *ids: str) -> bool:
        return self.world.poison.isdisjoint(ids)

    def _user_at(self, site: str | None) -> str | None:
        return self.user if site is None or self.site_user is None else self.site_user

    def site_clock(self, site: str | None) -> SiteClock | None:
        """What is known of the site's clock: of VCDA's own what its `Date` header tells, in whole seconds."""
        now = self._clock.now()
        there = (self.world.dates or self.world.clock).now()
        dated = None if self.user is None else timedelta(seconds=math.floor((there - now).total_seconds()))
        return self._site_clocks.of(site, dated=dated, now=now, monotonic=self._clock.monotonic())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is left: what VCDA does is VCDA's."""
