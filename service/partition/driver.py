"""Drives the syncs of one partition: `sync.py` decides each step of a sync, and this module carries it out.

    Waiting --a slot in the lane--> Submitting --commit--> POST --> Running --polls--> outcome
                                        |                   |
                                     (a crash, or no answer: look up the task first)

A waiting or running sync needs no coroutine: the lane calls back when a slot is free, the poller after a poll, and the
journal writer after a commit. Only a POST has an asyncio task (`Submitter.post`), which returns the answer, and so has
the pause of a request that is postponed. Every step is handed to the journal writer in the same iteration of the event
loop.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from functools import cache, partial
from typing import TypeAlias

from service import sync
from service.messages.outcomes import describe_error, write_outcome
from service.messages.requests import SyncCancelRequested
from service.messages.trace_context import context_of
from service.moments import rfc3339
from service.partition.deduplication import Deduplication
from service.partition.dependencies import Dependencies
from service.partition.expiry import Expiry
from service.partition.in_flight import InFlight, TrackedSync, public_state
from service.partition.journal_writer import JournalWriter
from service.partition.outcome_log import record_outcome
from service.partition.postponements import Postponements
from service.partition.reconciler import Reconciler
from service.partition.submitter import Submitter, withheld
from service.sync import KNOWN_STATES, Absent, Ended, Lingering, Running, Step, Submitting, Task, Waiting
from service.vcda.lanes import Lane
from service.vcda.poller import Verdict, Watch
from service.vcda.site_clocks import SiteClock

log = logging.getLogger(__name__)

CLOCKS_MARGIN = timedelta(minutes=1)
"""How far a task's start may lie before the first POST, by the site's clock as it is known: clocks drift and are set,
and the appliances behind one address may differ."""

UNCALIBRATED_MARGIN = timedelta(minutes=15)
"""The same while the site's clock is unknown: before VCDA's first answer, and for a remote site, which has a clock of
its own, before the first answer to a POST there."""

RESTORED_AT_ONCE = 250
"""Syncs restored between two turns of the event loop while a partition starts, some milliseconds."""

TAKEN_UP_AT_ONCE = 250
"""Restored syncs, or replications after quiescing, that are taken up between two turns of the event loop."""

RELEASED_AT_ONCE = 500
"""Syncs of a closed partition whose slots and polls are given back between two turns of the event loop."""

SiteClockOf: TypeAlias = Callable[[str | None], SiteClock | None]
"""Returns what is known of the clock that stamps a site's tasks."""


class Driver:
    """Drives the syncs of one partition, from acceptance to outcome.

    `spawn` runs a coroutine as a task of the partition: one that fails takes the partition with it.
    """

    def __init__(
        self,
        number: int,
        *,
        in_flight: InFlight,
        journal_writer: JournalWriter,
        deduplication: Deduplication,
        dependencies: Dependencies,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self.quiescing = False
        """No POST begins; polls and outcomes go on."""
        self.postponements = Postponements(
            clock=dependencies.clock,
            random=dependencies.random,
            spawn=spawn,
            over=lambda tracked: self._move_on(tracked.request.replication_id),
        )
        self._number = number
        self._in_flight = in_flight
        self._journal_writer = journal_writer
        self._deduplication = deduplication
        self._dependencies = dependencies
        self._spawn = spawn
        self._slices = dependencies.slices
        self._stopped = False
        self._restored: list[tuple[TrackedSync, sync.Sync]] = []
        """What was restored, each with its state then, until it is taken up."""
        self._expiry = Expiry(
            in_flight=in_flight,
            journal_writer=journal_writer,
            dependencies=dependencies,
            become=self._become,
            queue_next=self._queue_next,
        )
        self._submitter = Submitter(
            number,
            api=dependencies.api,
            lane=self._lane,
            journal_writer=journal_writer,
            clock=dependencies.clock,
            tracing=dependencies.tracing,
            window=dependencies.policy.window,
            may_begin=self._may_begin,
        )
        self._reconciler = Reconciler(
            api=dependencies.api,
            lane=dependencies.lanes.lane,
            clock=dependencies.clock,
            spawn=spawn,
            looked_up=self._looked_up,
            one_by_one=dependencies.one_by_one,
        )

    @property
    def held_since(self) -> float | None:
        """Since when (monotonic) POSTs are held back as Kafka's commits take too long; None: none is."""
        return self._submitter.held_since

    # ------------------------------------------------------------ beginning and ending

    async def restore(self, states: Sequence[sync.InFlight], *, opened_at: float) -> None:
        """Enter what was in flight, in the order of acceptance. The event loop turns meanwhile: nothing begins yet."""
        size = self._slices.size(RESTORED_AT_ONCE)
        if len(states) > size:
            await self._slices.turn()  # sorting those of all partitions in one turn takes 20 ms
        for number, state in enumerate(sorted(states, key=lambda state: state.request.offset), 1):
            now = self._dependencies.clock.now()
            tracked = self._enter(sync.restored(state, opened_at=opened_at, now=now, policy=self._dependencies.policy))
            self._restored.append((tracked, tracked.state))
            if isinstance(tracked.state, Submitting):  # in doubt from now on; `vm-sync list` shows it
                self._journal_writer.put(tracked.request.identity, tracked.state)
            if not isinstance(tracked.state, Waiting):
                self._occupy(tracked)  # all of them, before any that waits is given a slot
            if number % size == 0:
                await self._slices.turn()

    def start(self) -> None:
        """Start to drive the restored syncs, and to check deadlines."""
        _ = self._spawn(self._drive())

    async def _drive(self) -> None:
        await self._take_up_restored()
        await self._expiry.run()

    async def _take_up_restored(self) -> None:
        """Take up the restored syncs in slices, first those that have to wait before their next POST.

        Meanwhile those that were taken up go on, and new requests are admitted: so one that still has to be taken up
        may have taken a step behind an elder that ended, and a request that waited is then driven already. A POST in
        doubt or a task that a deadline has passed is still to be looked for or polled.
        """
        size = self._slices.size(TAKEN_UP_AT_ONCE)
        restored, self._restored = self._restored, []
        site_clock = cache(self._dependencies.api.site_clock)
        for tracked, state in restored:
            if isinstance(state, Waiting) and state.repeats > 1:
                self.postponements.repeat(tracked, state)
        for number, (tracked, state) in enumerate(restored, 1):
            if self._stopped:
                return
            if not isinstance(state, Waiting) or (tracked.state is state and state.repeats <= 1):
                self._take_up(tracked, site_clock=site_clock)
            if number % size == 0:
                await self._slices.turn()
                site_clock.cache_clear()

    def accept(self, request: sync.Request) -> None:
        """Take up a new request: its acceptance is written, and it queues for a slot if it may run."""
        tracked = self._enter(Waiting(request=request))
        self._journal_writer.put(request.identity, tracked.state)
        self._move_on(request.replication_id)

    def cancel(self, asked: SyncCancelRequested, *, offset: int) -> None:
        """Carry out a cancel, which was read at this offset: it names a request that was read before it."""
        if asked.ids is not None:
            found = self._in_flight.of_operation(*asked.ids)
        else:
            named = self._in_flight.get(asked.identity or "")
            found = () if named is None else (named,)
        if not found:
            log.warning(
                "Cancel at offset %d of partition %d has no effect: the request %s is not in flight here; it has "
                "ended, was never accepted, or has another key",
                offset,
                self._number,
                asked.named,
            )
        for tracked in found:
            self._cancel(tracked, asked)

    def _cancel(self, tracked: TrackedSync, asked: SyncCancelRequested) -> None:
        before, now, policy = tracked.state, self._dependencies.clock.now(), self._dependencies.policy
        if isinstance(before, Ended):
            return  # it expired when the one before it was cancelled
        step = sync.cancelled(
            before, sent=tracked.left, release=asked.release, by=asked.by, why=asked.why, now=now, policy=policy
        )
        if not isinstance(step.state, Ended):
            log.warning(
                "Cancel of %s has no effect: the request is %s and goes on, since VCDA has no cancel; a release frees "
                "its replication",
                tracked.request.identity,
                public_state(before),
                extra=tracked.ids,
            )
            return
        if step.state.error is not None and step.state.error.code == sync.RELEASED:
            self._journal_writer.after_commit(
                partial(
                    log.warning,
                    "Released %s, which was %s: %s",
                    tracked.request.identity,
                    public_state(before),
                    step.state.error.msg,
                    extra=tracked.ids | {"task_id": step.state.task_id},
                )
            )
        self._become(tracked, step)
        self._move_on(tracked.request.replication_id)

    def resume(self) -> None:
        """Start POSTs again after quiescing."""
        if self.quiescing:
            self.quiescing = False
            _ = self._spawn(self._move_all_on())

    async def _move_all_on(self) -> None:
        """Let each replication's next request queue for a slot, unless the partition quiesces again meanwhile."""
        for number, replication_id in enumerate(self._in_flight.replications(), 1):
            self._move_on(replication_id)
            if number % self._slices.size(TAKEN_UP_AT_ONCE) == 0:
                await self._slices.turn()

    def stop(self) -> None:
        """Ignore all further events: no sync takes another step."""
        self._stopped = True

    async def release(self) -> None:
        """Release what these syncs hold in the process: slots and queue entries in lanes, polls, progress, counts.

        Call `stop` before: nothing takes a step or a slot here any more, so that each is released once.
        """
        for number, tracked in enumerate(self._in_flight, 1):
            if tracked.submitting:
                self._lane(tracked).not_made(since=tracked.pauses)  # nobody waits for the answer any more
            self._leave(tracked)
            self._dependencies.metrics.moved(tracked.request.site, public_state(tracked.state), None)
            if number % self._slices.size(RELEASED_AT_ONCE) == 0:
                await self._slices.turn()

    def _enter(self, state: sync.InFlight) -> TrackedSync:
        tracked = TrackedSync(state)
        self._in_flight.add(tracked)
        self._expiry.remind(tracked)
        self._dependencies.metrics.moved(state.request.site, None, public_state(state))
        return tracked

    # ------------------------------------------------------------ one after another

    def _move_on(self, replication_id: str) -> None:
        """Write the outcomes of expired requests, and let the replication's next request queue for a slot."""
        if not self._stopped and self._expiry.write_outcomes(replication_id):
            self._queue_next(replication_id)

    def _queue_next(self, replication_id: str) -> None:
        """Let the replication's oldest request queue for a slot, if it waits."""
        if self._stopped or self.quiescing:
            return
        tracked = self._in_flight.eldest(replication_id)
        if tracked is None:
            return
        if isinstance(tracked.state, Waiting) and tracked.slot_request is None and tracked.postponed is None:
            # One that its site turned away, or that was held back, keeps its place before those that never had a
            # slot; one that was turned away for its own sake goes behind them.
            tried = tracked.pauses is not None or tracked.state.attempts > 0
            request = self._lane(tracked).queue(partial(self._slot, tracked), first=tried and not tracked.busy)
            tracked.slot_request = request if request.waits else None

    def _slot(self, tracked: TrackedSync) -> bool:
        """A slot is free: make the intent, or decline."""
        tracked.slot_request = None
        now = self._dependencies.clock.now()
        if self._stopped or self.quiescing or not isinstance(tracked.state, Waiting) or now >= tracked.request.deadline:
            return False
        request, api = tracked.request, self._dependencies.api
        there = api.site_clock(request.site)
        margin = CLOCKS_MARGIN if there is not None and there.certain else UNCALIBRATED_MARGIN
        look_from = now + (there.offset if there is not None else timedelta()) - margin
        look_from = tracked.state.looks_from(look_from)
        tracked.submitting = tracked.occupies = True
        tracked.left = False
        tracked.pauses = self._lane(tracked).pauses
        if (waiting := tracked.state).repeats > tracked.repeats:
            tracked.repeats = waiting.repeats
            self._journal_writer.after_commit(partial(self._repeated, tracked, waiting))
        cursor = self._journal_writer.cursor
        if cursor is None or cursor.spellings is not api.spellings():
            self._journal_writer.advance_cursor()  # a process that restores this intent needs the spellings, too
        intent = sync.begin(
            tracked.state,
            look_from=look_from,
            account=api.account(request.site),
            passed_over=self._deduplication.tasks_since(request.replication_id, look_from - CLOCKS_MARGIN),
            policy=self._dependencies.policy,
        )
        self._become(tracked, Step(intent))
        self._journal_writer.after_commit(partial(self._post_soon, tracked))
        self._journal_writer.flush_soon()
        return True

    def _repeated(self, tracked: TrackedSync, waiting: Waiting) -> None:
        """Log and count a POST that is repeated after look-ups found no task of the one before."""
        self._dependencies.metrics.post_repeated(tracked.request.site)
        log.warning(
            "Repeating the POST of %s: VCDA shows no task for its %d earlier POSTs in doubt (cause of the last: %s)",
            tracked.request.identity,
            waiting.repeats,
            waiting.trouble.msg if waiting.trouble else "the process that sent it has ended",
            extra=tracked.ids,
        )

    def _post_soon(self, tracked: TrackedSync) -> None:
        if not self._stopped:
            tracked.posting = self._spawn(self._post(tracked))

    async def _post(self, tracked: TrackedSync) -> None:
        """Send the POST, and apply its answer.

        Raises:
            JournalLost: the partition has, or may have, another owner.
        """
        answer = await self._submitter.post(tracked)
        tracked.posting = None
        self._answered(tracked, answer)

    def _may_begin(self, tracked: TrackedSync) -> bool:
        return (
            not self._stopped
            and not self.quiescing
            and isinstance(tracked.state, Submitting)
            and tracked.pauses == self._lane(tracked).pauses
            and self._lane(tracked).operator_pause() is None
            and self._dependencies.clock.now() < tracked.request.deadline
        )

    # ------------------------------------------------------------ VCDA's answers

    def _answered(self, tracked: TrackedSync, answer: sync.SubmitAnswer) -> None:
        lane = self._lane(tracked)
        tracked.answered(lane)
        trouble = answer.trouble if isinstance(answer, sync.NotTaken | sync.Unanswered) else None
        if withheld(answer):
            lane.not_made(since=tracked.pauses)
        else:
            lane.record_result(_missing_credentials(answer) or trouble, since=tracked.pauses)
        if isinstance(tracked.state, Ended) and isinstance(answer, sync.Accepted) and not self._stopped:
            self._answered_late(tracked, sync.answered_late(tracked.state, answer))
        if self._stopped or not isinstance(tracked.state, Submitting | Lingering):
            return
        step = sync.answered(
            tracked.state, answer, now=self._dependencies.clock.now(), policy=self._dependencies.policy
        )
        self._become(tracked, step)
        if isinstance(step.state, Waiting) and trouble is not None and trouble.own:
            self.postponements.busy(tracked)
            return
        if (doubt := tracked.doubt) is not None and (refusal := doubt.refusal) is not None:
            log.warning(
                "VCDA refused the repeated POST of %s: %s; looking again for the task of an earlier POST",
                tracked.request.identity,
                describe_error(refusal.error, refusal.http_status),
                extra=tracked.ids,
            )
        self._take_up(tracked)

    def _answered_late(self, tracked: TrackedSync, ended: Ended) -> None:
        """Write down the task of a request that was released while its POST was on its way."""
        self._journal_writer.put(tracked.request.identity, ended)
        self._deduplication.add(ended)
        log.warning(
            "VCDA accepted the POST of %s after the request was released: VCDA works on task %s",
            tracked.request.identity,
            ended.task_id,
            extra=tracked.ids | {"task_id": ended.task_id},
        )

    def _looked_up(self, tracked: TrackedSync, seen: sync.LookUp) -> None:
        if self._stopped or not isinstance(tracked.state, Submitting | Lingering):
            return
        before = tracked.state
        step = sync.looked_up(tracked.state, seen, now=self._dependencies.clock.now(), policy=self._dependencies.policy)
        if step.state is before or step.state == before:
            return
        self._become(tracked, step)
        match seen:
            case sync.Found(task) | sync.OnlyOne(task) if tracked.doubt is None:
                self._journal_writer.after_commit(partial(self._adopted, tracked, task))
            case _ if (doubt := tracked.doubt) is not None and doubt.trouble is not None:
                log.warning(
                    "Look-ups for the POST in doubt of %s are inconclusive: %s",
                    tracked.request.identity,
                    doubt.trouble.msg,
                    extra=tracked.ids,
                )
            case _:
                pass
        if isinstance(step.state, Waiting) and isinstance(before, Submitting) and before.refusal is not None:
            self.postponements.busy(tracked)
        elif isinstance(step.state, Waiting) and step.state.repeats > 1:
            self.postponements.repeat(tracked, step.state)
        else:
            self._take_up(tracked)

    def _adopted(self, tracked: TrackedSync, task: Task) -> None:
        self._dependencies.metrics.adopted()
        text = "Adopted task %s for the POST in doubt of %s"
        log.info(text, task.id, tracked.request.identity, extra=tracked.ids)

    def _polled(self, tracked: TrackedSync, seen: sync.PollAnswer) -> Verdict:
        state = tracked.state
        if self._stopped or not isinstance(state, Running | Lingering):
            return Verdict.DONE
        if isinstance(seen, Task):
            self._learn_name(state.of if isinstance(state, Lingering) else state, seen)
            tracked.progress = seen.progress
            if seen.state not in KNOWN_STATES:
                self._dependencies.metrics.unknown_task_state()
                self._warn_of_unknown_state(tracked, seen)
        elif isinstance(seen, Absent) and seen.another is not None:
            _warn_of_other_task(tracked, seen.another)
        step = sync.polled(state, seen, now=self._dependencies.clock.now(), policy=self._dependencies.policy)
        if isinstance(step.state, Ended):
            if self._journal_writer.behind:
                return Verdict.GO_ON  # its outcome waits at VCDA until there is room: the task is asked after again
            tracked.watch = None
            if isinstance(seen, Task) and step.outcome is not None:
                _warn_of_impossible_moments(tracked, seen, step.outcome)
            self._become(tracked, step)
            self._move_on(tracked.request.replication_id)
            return Verdict.DONE
        tracked.state = step.state
        if isinstance(seen, Task) and isinstance(step.state, Running):
            self._dependencies.progress.seen(tracked.request, seen)
        running = step.state.of if isinstance(step.state, Lingering) else step.state
        lost = isinstance(running, Running) and running.suspected_lost(
            self._dependencies.clock.monotonic(), self._dependencies.policy
        )
        return Verdict.ASK_ALONE if lost else Verdict.GO_ON

    def _warn_of_unknown_state(self, tracked: TrackedSync, seen: Task) -> None:
        shown = seen.state, sync.is_over(seen)
        if shown == tracked.unknown_state:
            return
        tracked.unknown_state = shown
        then = "treated as running"
        if sync.is_over(seen):
            seconds = self._dependencies.policy.lost_after.total_seconds()
            then = f"since it has an end, its request fails if the state is still unknown after {seconds:g} s"
        text = "VCDA reported task %s in the unknown state %.40r; %s"
        log.warning(text, seen.id, seen.state, then, extra=tracked.ids)

    def _learn_name(self, of: Running | Submitting, task: Task) -> None:
        """Learn the spelling in task lists: it may differ from the one in answers to POSTs, or change.

        Not from an adopted task: it may have been adopted only because there was no other.
        """
        if isinstance(of, Running) and not of.adopted and of.account is not None and task.user is not None:
            self._dependencies.api.learn_name(of.account, site=of.request.site, name=task.user)

    def _take_up(self, tracked: TrackedSync, *, site_clock: SiteClockOf | None = None) -> None:
        """Carry out what the new state of a sync requires. `site_clock` is for many that are taken up at once."""
        match tracked.state:
            case Waiting() | Ended():
                self._move_on(tracked.request.replication_id)
            case (Running() as running) | Lingering(of=Running() as running):
                self._watch(tracked, running, site_clock or self._dependencies.api.site_clock)
            case Submitting() | Lingering():
                self._occupy(tracked)
                self._reconciler.add(tracked)

    # ------------------------------------------------------------ polling

    def _watch(self, tracked: TrackedSync, running: Running, site_clock: SiteClockOf) -> None:
        self._occupy(tracked)
        clock = self._dependencies.clock
        age = timedelta()
        if running.submitted_at is not None:
            there = site_clock(running.site)
            offset = timedelta() if there is None else there.offset
            age = max(age, clock.now() + offset - running.submitted_at)
        tracked.watch = Watch(
            task_id=running.task_id,
            site=running.site,
            replication_id=running.request.replication_id,
            since=clock.monotonic() - age.total_seconds(),
            answered=partial(self._polled, tracked),
            trace=context_of(running.request),
        )
        self._dependencies.poller.watch(tracked.watch)

    # ------------------------------------------------------------ taking a step

    def _become(self, tracked: TrackedSync, step: Step) -> None:
        before, tracked.state = tracked.state, step.state
        self._journal_writer.put(tracked.request.identity, step.state)
        self._dependencies.metrics.moved(tracked.request.site, public_state(before), public_state(step.state))
        if step.outcome is not None:
            now = self._dependencies.clock.now()
            trace = self._dependencies.tracing.told(step.outcome)
            self._journal_writer.publish(
                write_outcome(step.outcome, topics=self._dependencies.outcomes, now=now, trace=trace)
            )
            self._journal_writer.after_commit(
                partial(record_outcome, step.outcome, dependencies=self._dependencies, partition=self._number)
            )
        match step.state:
            case Ended() as ended:
                self._leave(tracked)
                self._in_flight.remove(tracked, now=self._dependencies.clock.now())
                self._deduplication.add(ended)
            case Running() as running:
                self._dependencies.progress.started(tracked.request, running.task_id)
            case Lingering():
                if isinstance(step.state.of, Running):
                    self._dependencies.progress.ended(tracked.request)
                if not isinstance(before, Lingering):
                    self._in_flight.lingers(tracked)
                    self._expiry.remind(tracked)
            case Waiting():
                tracked.vacate(self._lane(tracked))
            case _:
                pass

    # ------------------------------------------------------------ small parts

    def _lane(self, tracked: TrackedSync) -> Lane:
        return self._dependencies.lanes.lane(tracked.request.site)

    def _leave(self, tracked: TrackedSync) -> None:
        if tracked.watch is not None:
            self._dependencies.poller.unwatch(tracked.watch)
            tracked.watch = None
        self._dependencies.progress.ended(tracked.request)
        lane = self._lane(tracked)
        tracked.answered(lane)
        tracked.vacate(lane)
        if tracked.slot_request is not None:
            lane.withdraw(tracked.slot_request)
            tracked.slot_request = None
        self.postponements.end(tracked)
        self._expiry.forget(tracked)

    def _occupy(self, tracked: TrackedSync) -> None:
        if not tracked.occupies and sync.occupies(tracked.state, now=self._dependencies.clock.now()):
            tracked.occupy(self._lane(tracked))


def _missing_credentials(answer: sync.SubmitAnswer) -> sync.Trouble | None:
    """Return the trouble that a request is rejected with where no POST was made for want of credentials."""
    if isinstance(answer, sync.Refused) and answer.error.code == sync.WITHOUT_CREDENTIALS:
        return sync.Trouble(label=sync.NO_CREDENTIALS, detail=answer.error.msg, own=True)
    return None


def _warn_of_other_task(tracked: TrackedSync, another: str) -> None:
    """Log that VCDA has given a task's id to another replication; after a restore, no task may have had it before."""
    if another == tracked.shown_with:
        return
    tracked.shown_with = another
    of = tracked.state.of if isinstance(tracked.state, Lingering) else tracked.state
    task_id = of.task_id if isinstance(of, Running) else None
    text = "VCDA shows task %s as a task of another replication, %s; treated as absent"
    log.warning(text, task_id, another, extra=tracked.ids)


def _warn_of_impossible_moments(tracked: TrackedSync, seen: Task, outcome: sync.Outcome) -> None:
    """Log the beginning that VCDA gives a task where the outcome has none, and the end where it has another one."""
    if seen.started_at is not None and outcome.submitted_at is None:
        log.warning(
            "VCDA reported an impossible beginning of task %s: %s; the outcome contains none",
            seen.id,
            rfc3339(seen.started_at),
            extra=tracked.ids,
        )
    if seen.ended_at not in {None, outcome.ended_at}:
        log.warning(
            "VCDA reported an impossible end of task %s: %s, although it began at %s; the outcome contains the time at "
            "which vm-sync saw the end",
            seen.id,
            rfc3339(seen.ended_at),
            rfc3339(outcome.submitted_at) or "an unknown time",
            extra=tracked.ids,
        )
