"""Polls the running tasks of all partitions, in batches for each site.

When a task is due is decided in `poll_policy`; here, those due share calls of up to 100 ids, and the calls are made.
Each site has a loop of its own, so a dead site does not delay other sites. This module draws no conclusion from an
answer: it hands each to the task's watcher, which decides whether polling continues.

A call may fail because of the site, or because of a single task that makes each call fail. So a call that fails again
is split into halves, until the failing task is alone. If the site answers other calls meanwhile, the fault is the
task's: it does not count against the lane, and the intervals between its polls grow.
"""

import asyncio
import heapq
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum, auto
from itertools import count
from random import Random
from typing import Protocol

from service.clock import Clock
from service.event_loop import Slices
from service.messages.trace_context import TraceContext
from service.observability.tracing import Tracing
from service.sync import NO_CREDENTIALS, Absent, Gone, PollAnswer, Task, TaskState, Trouble, is_of_another
from service.vcda.poll_policy import History, Pace, coalesced_due, coalescing_window, next_interval
from service.vcda.translate import BATCH

log = logging.getLogger(__name__)

CALLS_AT_ONCE = 4
"""Polls on their way to one site. One would do for what falls due in ordinary times; after a restore, thousands are
due, and a remote site may take a second to answer. More would crowd an appliance that has two processors."""

TOLD_AT_ONCE = 25
"""Answers of a poll that are handed on between two turns of the event loop: of tasks that have ended some 4 ms."""

VANISHED_TOGETHER = 5
"""So many absent from one answer, and more than half of those asked, say something of VCDA rather than of the tasks;
`sync` decides for how long."""

REMIND = timedelta(minutes=10)
"""How often it is logged that tasks are still missing together."""

SPLIT_AFTER = 2
"""Failures in a row after which a call is made in halves: a lone failure is everyday life, and passes."""

PROBES = 4
"""Failures in a row after which a task, if it alone is left to be asked for, lets the site's polls leave every second
probe of an open circuit breaker to others: for example to a POST, which may show that the site works and the task is at
fault. All polls of the site, since several tasks that break theirs would else take turns, and leave none. Not sooner: a
POST to a site that is dead may leave a doubt."""

HEAD_START = timedelta(seconds=1)
"""How long after a pause such a probe is left to others."""

OWN_PAUSE = (timedelta(seconds=10), timedelta(minutes=10))
"""How long a task that breaks its calls is left alone while its site answers others: at first, doubling, at most."""

LONGEST_SYNC = timedelta(days=7)
"""A task that VCDA says ran for longer than any deadline, or ended before it began, tells nothing of other tasks."""

CREDENTIALS_PAUSE = timedelta(seconds=10)
"""How long no task of a site is asked for that has no credentials here. It costs no call to see whether it has now."""

# ---------------------------------------------------------------- who is due


class Verdict(Enum):
    """The decision of a task's watcher after an answer."""

    GO_ON = auto()
    DONE = auto()
    ASK_ALONE = auto()
    """The task may be lost: poll it alone, since only then VCDA answers 404."""


UNSEEN = Pace()
"""The pace of a task without an answer yet; one object for all, since a restore begins with tens of thousands."""


@dataclass(slots=True, eq=False, kw_only=True)
class Watch:
    """A polled task. `since` is the monotonic moment when it began, an estimate if it was restored.

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
    """When the task is due, or was due if a poll is under way."""
    watched: bool = field(default=True, init=False)
    pause: float = field(default=0.0, init=False)
    """The last pause after a failure of this task alone, in seconds; 0.0: none."""


class Agenda:
    """The due times of one site's tasks. An unwatched task stays until it is due, and is skipped then.

    Turns meet (`coalesced_due`): with 50,000 tasks some hundred moments are kept in order, not 50,000 turns.
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
        """Make polls that were not answered due again."""
        for watch in watches:
            self.add(watch, watch.due)

    def next_due(self) -> float | None:
        """Return the earliest due time; None: no task is due."""
        while self._order:
            due = self._order[0]
            turns = self._turns[due]
            while turns and not turns[-1].watched:
                turns.pop()
            if turns:
                return due
            del self._turns[heapq.heappop(self._order)]
        return None

    def take(self, until: float, *, most: int) -> list[Watch]:
        """Take at most `most` tasks that are due until a moment, the earliest first."""
        batch: list[Watch] = []
        while (room := most - len(batch)) and (due := self.next_due()) is not None and due <= until:
            turns = self._turns[due]
            batch += [watch for watch in turns[-room:] if watch.watched]
            del turns[-room:]
        return batch


# ---------------------------------------------------------------- asking


class PollApi(Protocol):
    """The calls to VCDA."""

    async def poll(self, *, site: str | None, ids: Sequence[str]) -> list[Task] | Trouble:
        """Poll up to BATCH tasks at once; tasks that VCDA doesn't know or show are left out."""

    async def ask(self, *, site: str | None, task_id: str) -> Task | Gone | Trouble:
        """Poll one task by its own path."""


class PollLane(Protocol):
    """The interface to a site's lane."""

    async def wait_until_open(self) -> None:
        """Wait until a call may go."""

    def try_acquire(self) -> bool:
        """Ask for leave to make one call now."""

    def record_result(self, trouble: Trouble | None, *, since: int | None = None) -> None:
        """Learn from a call's result; `since`: what `pauses` was when it had leave."""

    def held_for(self) -> float:
        """Return the seconds until a call may go."""

    @property
    def good_answers(self) -> int:
        """How many calls of the site went well so far."""

    @property
    def pauses(self) -> int:
        """How many pauses of the site have begun."""


class PollMetrics(Protocol):
    """The metrics of polling."""

    def poll_batch(self, site: str | None, size: int) -> None:
        """Count the ids of one call."""


@dataclass(slots=True, eq=False)
class _Question:
    """The tasks of one call; kept while the call fails."""

    watches: list[Watch]
    alone: bool = False
    """The task is asked for by its own path, not in a list."""
    failures: int = 0
    """Of this question, and of the one that it is a half of."""
    good_answers: int = 0
    """How many good answers the site had given when it failed first."""
    since: int = 0
    """How many pauses of the site had begun when its call had leave."""
    whole: "_Halved | None" = None

    @property
    def own(self) -> bool:
        """Whether it asks for a task that is known to break its calls."""
        return len(self.watches) == 1 and self.watches[0].pause > 0.0


@dataclass(slots=True, eq=False)
class _Halved:
    """A failed call that was split into halves."""

    size: int
    answered: int = 0


class _Site:
    """One site's turns, and its calls on their way."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.agenda = Agenda()
        self.soon, self.room = 0.0, 0
        """The next turn of tasks that were restored, and how many more of them it takes."""
        self.apart: deque[_Question] = deque()
        """What is asked apart from the agenda: after calls that failed, or for tasks that may be lost."""
        self.apart_next = False
        self.left_alone: list[tuple[float, int, _Question]] = []
        """A heap of what is asked apart from some moment on."""
        self.most = BATCH
        """Ids in one call: less where longer answers fail and their halves don't, as they may be too long."""
        self.stands_back = False
        """The next calls are left to others."""
        self.probes_failed = 0
        """How many calls failed that might have left their turns to others."""
        self.calls: dict[int, float] = {}
        """For each call on its way the earliest turn in it."""
        self.changed = asyncio.Event()
        self.missing_told = -math.inf
        """When it was last logged that tasks are missing together."""

    def next_call(self, now: float) -> float | None:
        """Return when a call may be made at the earliest; None: nothing is to be asked."""
        while self.left_alone and self.left_alone[0][0] <= now:
            self.apart.append(heapq.heappop(self.left_alone)[2])
        while self.apart and not any(watch.watched for watch in self.apart[0].watches):
            self.apart.popleft()
        if self.apart:
            return now
        later = (self.agenda.next_due(), self.left_alone[0][0] if self.left_alone else None)
        return min((moment for moment in later if moment is not None), default=None)

    def take(self, now: float, *, until: float) -> _Question:
        """Take what to ask next, when a call may be made now.

        What is asked apart and what isn't take turns, so that neither keeps the other from the only call that an open
        circuit breaker lets through.
        """
        due = self.agenda.next_due()
        others = due is not None and due <= now
        if self.apart and (self.apart_next or not others):
            self.apart_next = False
            return self.apart.popleft()
        self.apart_next = True
        return _Question(self.agenda.take(until, most=self.most))

    def dues(self) -> Iterable[float]:
        """Yield the earliest turns of what isn't answered."""
        yield from self.calls.values()
        if (due := self.agenda.next_due()) is not None:
            yield due
        for question in (*self.apart, *(question for _, _, question in self.left_alone)):
            yield from (watch.due for watch in question.watches if watch.watched)


class Poller:
    """Polls every watched task until its watcher no longer needs it."""

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
        slices: Slices | None = None,
    ) -> None:
        self._slices = slices or Slices()
        self._api = api
        self._lane = lane
        self._clock = clock
        self._metrics = metrics
        self._random = random
        self._shortest = shortest.total_seconds()
        self._moment = coalescing_window(self._shortest)
        self._longest = longest.total_seconds()
        self._tracing = tracing or Tracing()
        self._history = History()
        self._sites: dict[str | None, _Site] = {}
        self._new_sites: asyncio.Queue[_Site] = asyncio.Queue()
        self._calls = count(1)

    def watch(self, watch: Watch) -> None:
        """Start polling a task: a new one when it may have ended, a restored one soon.

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
        """Stop polling a task; an answer under way is dropped."""
        watch.watched = False

    def overdue(self) -> Mapping[str | None, float]:
        """Return for each site how late its most overdue poll is, in seconds, polls without an answer included."""
        now = self._clock.monotonic()
        return {site.name: max(0.0, now - min(site.dues(), default=now)) for site in self._sites.values()}

    async def run(self) -> None:
        """Poll until cancelled. Any exception is a bug, and ends the poller."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                site = await self._new_sites.get()
                tasks.create_task(self._serve(site, tasks), name=f"poll {site.name or 'local'}")

    # ------------------------------------------------------------ one site

    def _site(self, name: str | None) -> _Site:
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = _Site(name)
            self._new_sites.put_nowait(site)
        return site

    async def _serve(self, site: _Site, tasks: asyncio.TaskGroup) -> None:
        """Send a call whenever a turn is due, the lane is clear and not too many are on their way."""
        while True:
            await self._until_due(site)
            lane = self._lane(site.name)
            await lane.wait_until_open()
            if site.stands_back:
                site.stands_back = False
                await asyncio.sleep(HEAD_START.total_seconds())
            elif self._is_due(site) and lane.try_acquire():
                now = self._clock.monotonic()
                # Those due a moment later come along.
                question = site.take(now, until=now + self._moment)
                call = next(self._calls)
                site.calls[call] = min(watch.due for watch in question.watches)
                question.since = lane.pauses
                tasks.create_task(self._ask(site, call, question))

    def _is_due(self, site: _Site) -> bool:
        now = self._clock.monotonic()
        due = site.next_call(now)
        return due is not None and due <= now and len(site.calls) < CALLS_AT_ONCE

    async def _until_due(self, site: _Site) -> None:
        while not self._is_due(site):
            site.changed.clear()
            due = site.next_call(self._clock.monotonic()) if len(site.calls) < CALLS_AT_ONCE else None
            timer = None if due is None else asyncio.get_running_loop().call_at(due, site.changed.set)
            try:
                await site.changed.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    async def _ask(self, site: _Site, call: int, question: _Question) -> None:
        sent = self._clock.monotonic()
        watches = question.watches
        answer: list[Task] | Task | Gone | Trouble
        if question.alone:
            answer = await self._api.ask(site=site.name, task_id=watches[0].task_id)
        else:
            self._metrics.poll_batch(site.name, len(watches))
            with self._tracing.polling(site.name, [watch.trace for watch in watches]):
                answer = await self._api.poll(site=site.name, ids=[watch.task_id for watch in watches])
        del site.calls[call]
        site.changed.set()
        if isinstance(answer, Trouble):
            self._failed(site, question, answer)
            return
        self._lane(site.name).record_result(None)
        if isinstance(answer, list):
            await self._answered_together(site, question, answer, sent)
        else:
            shown = _shown(answer, watches[0], sent) if isinstance(answer, Task) else answer
            self._tell(site, watches[0], shown, sent)

    async def _answered_together(self, site: _Site, question: _Question, tasks: list[Task], sent: float) -> None:
        """Hand on the answers, in slices: several calls are answered in one turn of the event loop."""
        batch = question.watches
        if question.whole is not None:
            question.whole.answered += 1
            if question.whole.answered == 2:  # noqa: PLR2004 - both halves: only the whole was too much
                site.most = max(1, min(site.most, question.whole.size // 2))
        elif len(batch) == site.most < BATCH:
            site.most += 1
        seen = {task.id: task for task in tasks}
        shown = [_shown(seen.get(watch.task_id), watch, sent) for watch in batch]
        absent = sum(isinstance(answer, Absent) for answer in shown)
        together = absent >= VANISHED_TOGETHER and 2 * absent > len(batch)
        if together and sent - site.missing_told >= REMIND.total_seconds():
            site.missing_told = sent
            log.warning(
                "Site %s: %d of %d polled tasks are missing from one response; treated as a VCDA fault, not as lost "
                "tasks",
                site.name or "local",
                absent,
                len(batch),
            )
        size = self._slices.size(TOLD_AT_ONCE)
        for number, watch in enumerate(batch):
            if number % size == 0 and len(batch) > size:
                await self._slices.turn()
            answer = shown[number]
            self._tell(site, watch, replace(answer, together=together) if isinstance(answer, Absent) else answer, sent)
        site.changed.set()

    def _failed(self, site: _Site, question: _Question, trouble: Trouble) -> None:
        """Decide when, and in how many parts, a failed call is repeated."""
        lane = self._lane(site.name)
        if trouble.label == NO_CREDENTIALS:
            lane.record_result(trouble, since=question.since)
            self._ask_at(site, self._clock.monotonic() + CREDENTIALS_PAUSE.total_seconds(), question)
            return
        if trouble.label == "429":  # VCDA says itself that it is about the site
            lane.record_result(trouble)
            site.agenda.put_back(question.watches)
            return
        own = question.own or (question.failures > 0 and lane.good_answers > question.good_answers)
        if question.failures == 0:
            question.good_answers = lane.good_answers
        # Retry-After is obeyed; but a proxy may write it on each 503, also on those of a single task.
        judged = replace(trouble, own=True) if own and trouble.retry_after is None else trouble
        lane.record_result(judged, since=question.since)
        question.failures += 1
        question.watches = [watch for watch in question.watches if watch.watched]
        if len(question.watches) > 1 and question.failures >= SPLIT_AFTER:
            # Later halves indicate a long outage rather than long answers.
            whole = _Halved(len(question.watches)) if question.failures == SPLIT_AFTER else None
            middle = len(question.watches) // 2
            for half in (question.watches[:middle], question.watches[middle:]):
                site.apart.append(replace(question, watches=half, whole=whole))
        elif own and len(question.watches) == 1:
            self._leave_alone(site, question, trouble)
        else:
            site.apart.append(question)
        if not own and question.failures > PROBES and len(question.watches) == 1:
            site.probes_failed += 1
            if site.probes_failed % 2:
                site.stands_back = True

    def _leave_alone(self, site: _Site, question: _Question, trouble: Trouble) -> None:
        """Increase the polling interval of a task that makes its calls fail while the site answers others."""
        (watch,) = question.watches
        first, longest = (pause.total_seconds() for pause in OWN_PAUSE)
        watch.pause = min(max(2 * watch.pause, first), longest)
        question.alone = False  # it may be shown in a list again
        # From the end of a pause that this very call has asked for, which is left to others.
        self._ask_at(site, self._clock.monotonic() + self._lane(site.name).held_for() + watch.pause, question)
        log.warning(
            "Polling task %s of replication %s failed, other calls to site %s succeed; next attempt in %.0f s: %s",
            watch.task_id,
            watch.replication_id,
            site.name or "local",
            watch.pause,
            trouble.detail,
        )

    def _ask_at(self, site: _Site, moment: float, question: _Question) -> None:
        heapq.heappush(site.left_alone, (moment, next(self._calls), question))

    def _tell(self, site: _Site, watch: Watch, answer: PollAnswer, sent: float) -> None:
        """Hand on an answer to a call that left at `sent`, and plan the next."""
        if not watch.watched:
            return
        elapsed = sent - watch.since
        if not isinstance(answer, Absent):
            watch.pause = 0.0
        if isinstance(answer, Task):
            watch.pace = watch.pace.read(answer.progress, queued=answer.state == TaskState.QUEUED, elapsed=elapsed)
        verdict = watch.answered(answer)
        if isinstance(answer, Task) and answer.state == TaskState.SUCCEEDED:
            self._history.learn(_duration(answer, elapsed), site=watch.site, replication_id=watch.replication_id)
        if verdict is Verdict.DONE:
            watch.watched = False
        elif verdict is Verdict.ASK_ALONE and isinstance(answer, Absent):
            watch.due = sent
            site.apart.append(_Question([watch], alone=True))
        else:
            # From when it was due: from when the call left, some milliseconds later, it would miss the next meeting.
            self._plan(watch, max(min(watch.due, sent), sent - self._moment), elapsed)

    def _plan(self, watch: Watch, at: float, elapsed: float) -> None:
        usual = self._history.usual(site=watch.site, replication_id=watch.replication_id)
        outlook = watch.pace.outlook(elapsed, usual=usual)
        interval = next_interval(outlook, shortest=self._shortest, longest=self._longest)
        self._site(watch.site).agenda.add(watch, coalesced_due(at + interval, interval))


def _shown(task: Task | None, watch: Watch, sent: float) -> Task | Absent:
    """Return what an answer shows of a task: nothing, where the id is now that of another replication's."""
    if task is None:
        return Absent(sent)
    if is_of_another(task, watch.replication_id):
        return Absent(sent, another=task.replication_id)
    return task


def _duration(task: Task, elapsed: float) -> float:
    if task.started_at is not None and task.ended_at is not None:
        ran = task.ended_at - task.started_at
        if timedelta() <= ran <= LONGEST_SYNC:
            return ran.total_seconds()
    return elapsed
