"""Whose turn it is to be asked: every running task is watched here, and asked after together with others.

When a task is due is decided in `pacing`; here, those due share calls of up to 100 ids, and the calls are made. Each
site has a loop of its own, so a dead site delays nobody else. This module draws no conclusion from an answer: it hands
each to whoever watches, and is told whether to go on.
"""

import asyncio
import heapq
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto
from itertools import count
from random import Random
from typing import Protocol

from service.clock import Clock
from service.pacing import History, Pace, come_along, meeting_time, next_interval
from service.sync import Absent, Gone, PollAnswer, Task, TaskState, Trouble
from service.tracing import TraceContext, Tracing

log = logging.getLogger(__name__)

BATCH = 100
"""Ids in one call: the most that VCDA shows on one page."""

CALLS_AT_ONCE = 4
"""Polls on their way to one site. One would do for what falls due in ordinary times; after a restore, thousands are
due, and a remote site may take a second to answer. More would crowd an appliance that has two processors."""

VANISHED_TOGETHER = 5
"""So many absent from one answer, and more than half of those asked, say something of VCDA rather than of the tasks."""

# ---------------------------------------------------------------- who is due


class Verdict(Enum):
    """What whoever watches makes of an answer."""

    GO_ON = auto()
    DONE = auto()
    ASK_ALONE = auto()
    """It may be lost: ask for it alone, which is the only way to be told so."""


UNSEEN = Pace()
"""Nothing has been heard of the task yet: one for all, since restores begin with tens of thousands."""


@dataclass(slots=True, eq=False, kw_only=True)
class Watch:
    """A task to be asked after. `since` is the monotonic moment when it began, an estimate if it was restored.

    `answered` is called with each answer, on the event loop, and must not raise.
    """

    task_id: str
    site: str | None
    replication_id: str
    since: float
    answered: Callable[[PollAnswer], Verdict]
    trace: TraceContext | None = None
    pace: Pace = field(default=UNSEEN, init=False)
    due: float = field(default=0.0, init=False)
    """When its turn is, or was if it is being asked after."""
    watched: bool = field(default=True, init=False)


class Agenda:
    """Who is due when, at one site. Who is no longer watched stays until the turn, and is passed over then.

    Turns meet (`meeting_time`): with 50,000 tasks there are some hundred moments to be kept in order, not 50,000 turns.
    """

    def __init__(self) -> None:
        self._order: list[float] = []
        """The moments, as a heap."""
        self._turns: dict[float, list[Watch]] = {}

    def add(self, watch: Watch, due: float) -> None:
        """Note a watch's next turn."""
        watch.due = due
        turns = self._turns.get(due)
        if turns is None:
            turns = self._turns[due] = []
            heapq.heappush(self._order, due)
        turns.append(watch)

    def put_back(self, watches: Iterable[Watch]) -> None:
        """Let turns that came to nothing be due as they were."""
        for watch in watches:
            self.add(watch, watch.due)

    def next_due(self) -> float | None:
        """Return the earliest turn; None: nobody is waiting for one."""
        while self._order:
            due = self._order[0]
            turns = self._turns[due]
            while turns and not turns[-1].watched:
                turns.pop()
            if turns:
                return due
            del self._turns[heapq.heappop(self._order)]
        return None

    def take(self, until: float) -> list[Watch]:
        """Take the turns due until then, the earliest first, as many as go into one call."""
        batch: list[Watch] = []
        while (room := BATCH - len(batch)) and (due := self.next_due()) is not None and due <= until:
            turns = self._turns[due]
            batch += [watch for watch in turns[-room:] if watch.watched]
            del turns[-room:]
        return batch


# ---------------------------------------------------------------- asking


class PollApi(Protocol):
    """What is needed of VCDA."""

    async def poll(self, *, site: str | None, ids: Sequence[str]) -> list[Task] | Trouble:
        """Ask after up to BATCH tasks at once; those that VCDA doesn't know, or doesn't show us, are left out."""

    async def ask(self, *, site: str | None, task_id: str) -> Task | Gone | Trouble:
        """Ask after one task."""


class PollLane(Protocol):
    """What is needed of a site's lane."""

    async def clear(self) -> None:
        """Wait until a call may go."""

    def pause_left(self) -> float:
        """Return the seconds until a call may go; 0.0 is leave for one."""

    def heard(self, trouble: Trouble | None) -> None:
        """Learn from a call's result."""


class PollMetrics(Protocol):
    """What polling reports."""

    def poll_batch(self, site: str | None, size: int) -> None:
        """Count the ids asked after in one call."""


class _Site:
    """One site's turns, and its calls on their way."""

    def __init__(self, name: str | None, lane: PollLane) -> None:
        self.name = name
        self.lane = lane
        self.agenda = Agenda()
        self.soon, self.room = 0.0, 0
        """The next turn of tasks that were restored, and how many more of them it takes."""
        self.alone: list[Watch] = []
        self.calls: dict[int, float] = {}
        """For each call on its way the earliest turn in it."""
        self.changed = asyncio.Event()

    def next_due(self) -> float | None:
        """Return the earliest turn that no call on its way sees to."""
        while self.alone and not self.alone[0].watched:
            self.alone.pop(0)
        return self.alone[0].due if self.alone else self.agenda.next_due()


class Poller:
    """Asks after every watched task until whoever watches is done with it."""

    def __init__(
        self,
        *,
        api: PollApi,
        lane: Callable[[str | None], PollLane],
        clock: Clock,
        metrics: PollMetrics,
        random: Random,
        shortest: timedelta,
        longest: timedelta,
        tracing: Tracing | None = None,
    ) -> None:
        self._api = api
        self._lane = lane
        self._clock = clock
        self._metrics = metrics
        self._random = random
        self._shortest = shortest.total_seconds()
        self._moment = come_along(self._shortest)
        self._longest = longest.total_seconds()
        self._tracing = tracing or Tracing()
        self._history = History()
        self._sites: dict[str | None, _Site] = {}
        self._new_sites: asyncio.Queue[_Site] = asyncio.Queue()
        self._calls = count(1)

    def watch(self, watch: Watch) -> None:
        """Begin to ask after a task: a new one when the answer may be of use, a restored one soon.

        Those restored together fall due by the hundred, so that calls are full, and spread over the shortest interval.
        """
        now = self._clock.monotonic()
        elapsed = now - watch.since
        site = self._site(watch.site)
        if elapsed < self._shortest:
            self._plan(watch, watch.since, elapsed)
        else:
            if site.room == 0 or site.soon < now:
                site.soon, site.room = now + self._random.uniform(0.0, self._shortest), BATCH
            site.room -= 1
            site.agenda.add(watch, site.soon)
        site.changed.set()

    def unwatch(self, watch: Watch) -> None:
        """Ask no more; an answer on its way is dropped."""
        watch.watched = False

    def overdue(self) -> Mapping[str | None, float]:
        """Tell for each site how late its most overdue turn is, in seconds; an unanswered turn gets later, too."""
        now = self._clock.monotonic()
        late = {}
        for site in self._sites.values():
            waiting = site.next_due()
            dues = [*site.calls.values(), *(() if waiting is None else (waiting,))]
            late[site.name] = max(0.0, now - min(dues, default=now))
        return late

    async def run(self) -> None:
        """Ask, until cancelled. Whatever is raised in here is a bug, and ends it."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                site = await self._new_sites.get()
                tasks.create_task(self._serve(site, tasks), name=f"poll {site.name or 'local site'}")

    # ------------------------------------------------------------ one site

    def _site(self, name: str | None) -> _Site:
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = _Site(name, self._lane(name))
            self._new_sites.put_nowait(site)
        return site

    async def _serve(self, site: _Site, tasks: asyncio.TaskGroup) -> None:
        """Send a call whenever a turn is due, the lane is clear and not too many are on their way."""
        while True:
            await self._until_due(site)
            await site.lane.clear()
            if self._is_due(site) and site.lane.pause_left() == 0.0:
                call = next(self._calls)
                if site.alone:
                    watch = site.alone.pop(0)
                    site.calls[call] = watch.due
                    tasks.create_task(self._ask_alone(site, call, watch))
                else:
                    # Those due a moment later come along.
                    batch = site.agenda.take(self._clock.monotonic() + self._moment)
                    site.calls[call] = batch[0].due
                    tasks.create_task(self._ask_together(site, call, batch))

    def _is_due(self, site: _Site) -> bool:
        due = site.next_due()
        return due is not None and due <= self._clock.monotonic() and len(site.calls) < CALLS_AT_ONCE

    async def _until_due(self, site: _Site) -> None:
        while not self._is_due(site):
            site.changed.clear()
            due = site.next_due() if len(site.calls) < CALLS_AT_ONCE else None
            timer = None if due is None else asyncio.get_running_loop().call_at(due, site.changed.set)
            try:
                await site.changed.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    async def _ask_together(self, site: _Site, call: int, batch: list[Watch]) -> None:
        sent = self._clock.monotonic()
        self._metrics.poll_batch(site.name, len(batch))
        with self._tracing.polling(site.name, [watch.trace for watch in batch]):
            answer = await self._api.poll(site=site.name, ids=[watch.task_id for watch in batch])
        self._answered(site, call, answer if isinstance(answer, Trouble) else None)
        if isinstance(answer, Trouble):
            site.agenda.put_back(batch)
            return
        seen = {task.id: task for task in answer}
        absent = sum(watch.task_id not in seen for watch in batch)
        vanished = absent >= VANISHED_TOGETHER and 2 * absent > len(batch)
        if vanished:
            log.warning(
                "%s: %d of %d tasks vanished together; taken for trouble of VCDA's, not for lost tasks",
                site.name or "local site",
                absent,
                len(batch),
            )
        for watch in batch:
            task = seen.get(watch.task_id)
            if task is not None:
                self._tell(site, watch, task, sent)
            elif not vanished:
                self._tell(site, watch, Absent(sent), sent)
            elif watch.watched:
                self._plan(watch, sent, sent - watch.since)

    async def _ask_alone(self, site: _Site, call: int, watch: Watch) -> None:
        sent = self._clock.monotonic()
        answer = await self._api.ask(site=site.name, task_id=watch.task_id)
        self._answered(site, call, answer if isinstance(answer, Trouble) else None)
        if isinstance(answer, Trouble):
            site.agenda.put_back([watch])
        else:
            self._tell(site, watch, answer, sent)

    def _answered(self, site: _Site, call: int, trouble: Trouble | None) -> None:
        del site.calls[call]
        site.changed.set()
        site.lane.heard(trouble)

    def _tell(self, site: _Site, watch: Watch, answer: PollAnswer, sent: float) -> None:
        """Hand on an answer to a call that left at `sent`, and plan the next."""
        if not watch.watched:
            return
        elapsed = sent - watch.since
        if isinstance(answer, Task):
            watch.pace = watch.pace.read(answer.progress, queued=answer.state == TaskState.QUEUED, elapsed=elapsed)
        verdict = watch.answered(answer)
        if isinstance(answer, Task) and answer.state == TaskState.SUCCEEDED:
            self._history.learn(_duration(answer, elapsed), site=watch.site, replication_id=watch.replication_id)
        if verdict is Verdict.DONE:
            watch.watched = False
        elif verdict is Verdict.ASK_ALONE and isinstance(answer, Absent):
            watch.due = sent
            site.alone.append(watch)
        else:
            # From when it was due: from when the call left, some milliseconds later, it would miss the next meeting.
            self._plan(watch, max(min(watch.due, sent), sent - self._moment), elapsed)

    def _plan(self, watch: Watch, at: float, elapsed: float) -> None:
        usual = self._history.usual(site=watch.site, replication_id=watch.replication_id)
        outlook = watch.pace.outlook(elapsed, usual=usual)
        interval = next_interval(outlook, shortest=self._shortest, longest=self._longest)
        self._site(watch.site).agenda.add(watch, meeting_time(at + interval, interval))


def _duration(task: Task, elapsed: float) -> float:
    if task.started_at is not None and task.ended_at is not None:
        return (task.ended_at - task.started_at).total_seconds()
    return elapsed
