"""One partition at work, from an opened journal until it is closed or the journal is lost.

It admits requests, drives each sync through `sync.py`, and hands over. Everything it decides stands in the journal
before anything is done about it:

    records --admit--> Waiting --a slot in the lane--> Submitting --commit--> POST --> Running --polls--> outcome
                                                            |                 |
                                                         (a crash, or no answer: look for the task first)

What changes gathers in one `Batch` while the previous one commits; what must wait for the commit waits in `after`.
A POST leaves only within the submit window of a commit that stood: otherwise a process that was suspended would POST
for a partition that is no longer its own.

It never reads from the requests topic, never opens its journal again (its keeper does), and never asks for the time.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from service import sync
from service.event_loop import to_its_end
from service.kafka.journal_api import Batch, JournalLost, Opened
from service.kafka.journal_codec import WITHDRAWN, Cursor
from service.kafka.journal_replay import EndedSyncs
from service.messages.dead_letters import write_dead_letter
from service.messages.kafka_record import Record
from service.messages.outcomes import write_outcome
from service.messages.record_fate import Fate
from service.messages.requests import InvalidRequest, SyncRequested, read_request
from service.messages.trace_context import context_of
from service.partition.balance import Balance, Taken
from service.partition.deadlines import Deadlines
from service.partition.deduplication import Deduplication
from service.partition.dependencies import Dependencies
from service.partition.in_flight import InFlight
from service.partition.journal_writer import JournalWriter
from service.partition.outcome_log import record_outcome
from service.partition.reconciler import Reconciler
from service.partition.submitter import Submitter, withheld
from service.partition.tracked_sync import TrackedSync, public_state
from service.sync import Ended, Lingering, Running, Step, Submitting, Task, TaskState, Waiting
from service.vcda.lanes import Lane
from service.vcda.poller import Verdict, Watch

log = logging.getLogger(__name__)

CLOCKS_MARGIN = timedelta(minutes=1)
"""How far a task's start may lie before our first POST by VCDA's clock as we know it: the `Date` header has whole
seconds, a remote site's clock is its own, and NTP keeps both well within a minute."""

UNCALIBRATED_MARGIN = timedelta(minutes=15)
"""The same while VCDA has not answered yet, so that nothing is known of its clock."""

OWN_BACKOFF = (timedelta(seconds=10), timedelta(minutes=5))
"""How long a replication that is busy (409) is left alone: at first, doubling, and at most; jittered. A sync that
somebody else began takes minutes at least, and a site with hundreds of busy replications has others to serve."""

TICK = timedelta(seconds=1)
"""How often deadlines are looked at. The shortest deadline of the contract is a second."""

REPEAT_PAUSE = (timedelta(seconds=30), timedelta(minutes=10))
"""How long a request waits before its second POST after a doubt, and at most before the later ones: its first such POST
goes at once. A request whose POSTs come to nothing again and again meets a VCDA that takes them too late to be seen:
each further one may be a second sync, and does not help."""

AT_ONCE = 250
"""Syncs let in between two turns of the event loop while a partition begins, some milliseconds."""

EXPIRED_AT_ONCE = 100
"""Expired requests whose outcomes are told between two turns of the event loop, some 8 ms: 75 us each (measured)."""

CANCEL_AGAIN = timedelta(seconds=1)
"""How long a task may take to end before it is cancelled again, but for a commit, whose fate is to be known."""

CLOSING = timedelta(seconds=30)
"""How long a partition waits for its tasks before it lets go of its journal: a commit ends within its transaction's
limit, 12 s, and 10 s more for a request that hangs. Whoever has the partition next here waits for it."""

KNOWN_STATES = frozenset(TaskState)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a closed partition knew, for the case that its journal doesn't any more."""

    batch: Batch
    """All that was in flight, all that had not been committed, and the cursor."""
    ended: EndedSyncs
    end: int
    """The offset that the journal had reached."""


class Partition:
    """See the module. `on_lost` is called once, with a sentence, when the work here can't go on."""

    def __init__(
        self,
        number: int,
        *,
        opened: Opened,
        dependencies: Dependencies,
        balance: Balance,
        start_at: int,
        on_lost: Callable[[str], None],
        topic_id: str | None = None,
    ) -> None:
        self.number = number
        self.cursor = start_at
        self.quiescing = False
        self._stamp = opened.cursor.stamp if opened.cursor and opened.cursor.offset == start_at else None
        self._topic_id = topic_id
        self._journal = opened.journal
        self._dependencies = dependencies
        self._balance = balance
        self._committed = start_at if opened.cursor is None else opened.cursor.offset
        self._on_lost = on_lost
        self._in_flight = InFlight()
        self._deadlines: Deadlines[TrackedSync] = Deadlines(wanted=self._in_flight.holds)
        self._journal_writer = JournalWriter(
            opened.journal,
            opened_at=opened.opened_at,
            here=self._here,
            clock=dependencies.clock,
            metrics=dependencies.metrics,
        )
        self._deduplication = Deduplication(
            opened.ended,
            journal=opened.journal,
            journal_writer=self._journal_writer,
            clock=dependencies.clock,
            metrics=dependencies.metrics,
            in_flight=self._in_flight.__contains__,
        )
        self._submitter = Submitter(
            number,
            api=dependencies.api,
            lane=self._lane,
            journal_writer=self._journal_writer,
            clock=dependencies.clock,
            tracing=dependencies.tracing,
            window=dependencies.policy.window,
            may_begin=self._may_begin,
            answered=self._answered,
        )
        self._reconciler = Reconciler(
            api=dependencies.api,
            lane=dependencies.lanes.lane,
            clock=dependencies.clock,
            spawn=self._spawn,
            looked_up=self._looked_up,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._committing: asyncio.Task[None] | None = None
        self._closed = False
        self._bygone = opened.ended
        self._opened_at = opened.opened_at
        self._left_behind = opened.in_flight
        if opened.cursor is not None:
            dependencies.api.learn(opened.cursor.spellings)
        self._spellings: tuple[sync.Spelling, ...] = ()
        """Those that the journal's cursor has."""

    # ------------------------------------------------------------ opening and closing

    async def _restore(self) -> None:
        """Let in what was in flight, and the event loop turn meanwhile: nobody gives this partition work yet."""
        in_flight, self._left_behind = self._left_behind, ()
        for number, state in enumerate(sorted(in_flight, key=lambda state: state.request.offset), 1):
            now = self._dependencies.clock.now()
            self._enter(sync.restored(state, opened_at=self._opened_at, now=now, policy=self._dependencies.policy))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)

    async def start(self) -> None:
        """Prove the ownership with a commit, then begin to work.

        Raises:
            JournalLost: somebody else opened after us, or Kafka is away.
        """
        await self._restore()
        self._balance.reopened(self._committed)
        if (lost := self.cursor - self._committed) > 0:
            self._hold(Taken(self.cursor, fates=Counter({Fate.LOST: lost})))
        self._journal_writer.advance_cursor()
        await self._journal_writer.commit()
        self._committing = self._keep(asyncio.create_task(self._journal_writer.run()))
        self._spawn(self._deadline_loop())
        self._spawn(self._deduplication.sweep(self._dependencies.random))
        for tracked in self._in_flight:
            if isinstance(tracked.state, Waiting) and tracked.state.repeats > 1:
                self._wait_to_repeat(tracked, tracked.state)
            else:
                self._take_up(tracked)

    async def quiesce(self, limit: float) -> bool:
        """Begin nothing, let the POSTs in flight be answered and their answers stand; within `limit` seconds or not.

        For speed only: what is left open is in doubt for whoever comes next, never lost. Polls and outcomes go on.
        """
        self.quiescing = True
        try:
            async with asyncio.timeout(limit):
                while not self._closed and (
                    submitting := [tracked for tracked in self._in_flight if tracked.submitting]
                ):
                    posting = [tracked.posting for tracked in submitting if tracked.posting]
                    if posting:
                        await asyncio.wait(posting)
                    else:
                        await (
                            self._journal_writer.confirm_ownership()
                        )  # their intents are on the way; once they stand, they are withheld
                await self._journal_writer.confirm_ownership()
        except (TimeoutError, JournalLost):
            return False
        return True

    def resume(self) -> None:
        """The partition stays here after all: begin again."""
        if self.quiescing:
            self.quiescing = False
            for replication_id in self._in_flight.replications():
                self._move_on(replication_id)

    async def close(self) -> None:
        """Forget the syncs here; they are never cancelled there. A commit on its way is waited for, within bounds.

        What the process shares with this partition is given back before anything is awaited, and the producer is
        closed all the same where this is cancelled.
        """
        self._closed = True
        self._journal_writer.stop()
        for tracked in self._in_flight:
            tracked.answered(self._lane(tracked))
            self._leave(tracked)
            self._dependencies.metrics.moved(tracked.request.site, public_state(tracked.state), None)
        self._bygone = self._deduplication.ended()
        self._deduplication.forget()
        await to_its_end(self._close_journal())

    async def _close_journal(self) -> None:
        """End the tasks here, then let go of the journal."""
        pending = set(self._tasks)
        for _ in range(CLOSING // CANCEL_AGAIN):
            for task in pending - {self._committing}:
                task.cancel()  # again and again: aiokafka swallows a cancellation here and there
            if not pending:
                break
            _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN.total_seconds())
        if pending:
            log.warning(
                "Partition %d: %d background tasks did not end when cancelled; no longer waiting for them",
                self.number,
                len(pending),
            )
            for task in pending:
                task.cancel()
        await self._journal.close()

    def memory(self) -> Memory:
        """Return what is known here, once it is closed."""
        batch = self._journal_writer.unsaved()
        batch.changes |= {tracked.request.identity: tracked.state for tracked in self._in_flight}
        return Memory(batch, self._bygone, self._journal.end)

    async def disown_cursor(self) -> None:
        """Let it stand in the journal that the cursor fits no topic any more: the topic it came from was replaced.

        Records of the new topic may have been taken up already, so that the cursor would pass for one of it.

        Raises:
            JournalLost: it is not known whether it stands.
        """
        self._stamp = WITHDRAWN
        await self._journal_writer.confirm_ownership()

    # ------------------------------------------------------------ what others see of it

    def __len__(self) -> int:
        return len(self._in_flight)

    @property
    def behind(self) -> bool:
        """Whether so much waits for its commit that nothing more is to be read."""
        return self._journal_writer.behind

    @property
    def held_since(self) -> float | None:
        """Since when (monotonic) POSTs are held back as Kafka's commits take too long; None: none is."""
        return self._submitter.held_since

    def tracked_syncs(self) -> Iterator[TrackedSync]:
        """Yield what is in flight here, in the order of acceptance."""
        yield from self._in_flight

    # ------------------------------------------------------------ admission

    def admit(self, records: Sequence[Record]) -> None:
        """Take up records in the order of the topic; those below the cursor were taken up before.

        What it raises is a bug: nothing of the records stands then, and the partition must not go on.
        """
        now = self._dependencies.clock.now()
        taken, held = Taken(self.cursor), 0
        try:
            for number, record in enumerate(records, 1):
                self._take(record, now, taken)
                if self._journal_writer.full or number == len(records):
                    self._hold(taken)
                    self._journal_writer.advance_cursor()
                    taken, held = Taken(self.cursor), number
                if self._journal_writer.full:
                    self._journal_writer.cut()
        except BaseException:
            self._balance.reread(len(records) - held)
            raise

    def _take(self, record: Record, now: datetime, taken: Taken) -> None:
        if record.offset < self.cursor:
            taken.fates[Fate.REREAD] += 1
            return
        if record.offset > self.cursor:
            taken.fates[Fate.NO_RECORD] += record.offset - self.cursor
        self.cursor = taken.until = record.offset + 1
        self._stamp = record.timestamp_ms if record.unreadable is None else None
        asked = read_request(record)
        if isinstance(asked, InvalidRequest):
            taken.fates[Fate.DEAD_LETTERED] += 1
            taken.dead[asked.reason] += 1
            self._journal_writer.publish(write_dead_letter(record, asked, topic=self._dependencies.dead_letters))
            log.warning(
                "Invalid message at offset %d of partition %d was written to the dead letters: %s",
                record.offset,
                self.number,
                asked.detail,
            )
            return
        if not asked.has_key:
            taken.without_key += 1
        if asked.identity in self._in_flight or self._deduplication.holds(asked.identity):
            taken.fates[Fate.DUPLICATE] += 1
        else:
            taken.fates[Fate.ADMITTED] += 1
            self._admit(asked, record, now)

    def _hold(self, taken: Taken) -> None:
        """Count it once the next commit stands, which carries the cursor."""
        self._balance.hold(taken)
        self._journal_writer.after_commit(partial(self._balance.reached, taken.until))

    def _admit(self, asked: SyncRequested, record: Record, now: datetime) -> None:
        request = sync.Request(
            identity=asked.identity,
            operation_id=asked.operation_id,
            replication_id=asked.replication_id,
            site=asked.site,
            offset=record.offset,
            requested_at=_written_at(record, default=now),
            accepted_at=now,
            deadline=now + (asked.deadline or self._dependencies.deadline),
            traceparent=asked.traceparent,
            tracestate=asked.tracestate,
        )
        self._dependencies.tracing.accepted(request)
        tracked = self._enter(Waiting(request=request))
        self._journal_writer.put(request.identity, tracked.state)
        self._move_on(request.replication_id)

    def _enter(self, state: sync.InFlight) -> TrackedSync:
        tracked = TrackedSync(state)
        self._in_flight.add(tracked)
        self._remind(tracked)
        self._dependencies.metrics.moved(state.request.site, None, public_state(state))
        return tracked

    # ------------------------------------------------------------ one after another

    def _move_on(self, replication_id: str) -> bool:
        """Tell what has expired, and let the replication's next request queue for a slot if none is before it.

        Returns False if more of it has expired than is told at once: the rest is told next.
        """
        if self._closed:
            return True
        told = self._tell_expired(replication_id)
        tracked = self._in_flight.eldest(replication_id)
        if tracked is None or not told or self.quiescing:
            return told
        if (
            isinstance(tracked.state, Waiting)
            and tracked.turn is None
            and tracked.not_before <= self._dependencies.clock.monotonic()
        ):
            # One that its site turned away, or that was held back, keeps its place before those that never had a
            # turn; one that was turned away for its own sake goes behind them.
            tried = tracked.pauses is not None or tracked.state.attempts > 0
            turn = self._lane(tracked).queue(partial(self._slot, tracked), first=tried and not tracked.busy)
            tracked.turn = turn if turn.waits else None
        return True

    def _slot(self, tracked: TrackedSync) -> bool:
        """A slot is free: form the intent, or decline."""
        tracked.turn = None
        now = self._dependencies.clock.now()
        if self._closed or self.quiescing or not isinstance(tracked.state, Waiting) or now >= tracked.request.deadline:
            return False
        request, api = tracked.request, self._dependencies.api
        offset = api.offset(request.site)
        margin = UNCALIBRATED_MARGIN if offset is None else CLOCKS_MARGIN
        look_from = now + (offset or timedelta()) - margin
        tracked.submitting = tracked.occupies = True
        tracked.left = False
        tracked.pauses = self._lane(tracked).pauses
        if tracked.state.repeats > tracked.repeats:
            self._repeated(tracked, tracked.state)
        if api.spellings() is not self._spellings:
            self._journal_writer.advance_cursor()  # whoever finds this intent in doubt has to know the names, too
        intent = sync.begin(
            tracked.state,
            look_from=look_from,
            account=api.account(request.site),
            passed_over=self._deduplication.tasks_since(request.replication_id, look_from - CLOCKS_MARGIN),
        )
        self._become(tracked, Step(intent))
        self._journal_writer.after_commit(partial(self._post_soon, tracked))
        self._journal_writer.flush_soon()
        return True

    def _repeated(self, tracked: TrackedSync, waiting: Waiting) -> None:
        """Tell of a POST that is made again after look-ups have not found a task of the one before."""
        tracked.repeats = waiting.repeats
        self._dependencies.metrics.post_repeated(tracked.request.site)
        log.warning(
            "Repeating the POST of %s: VCDA shows no task for its %d earlier POSTs in doubt (cause of the last: %s)",
            tracked.request.identity,
            waiting.repeats,
            waiting.trouble.msg if waiting.trouble else "the process that sent it has ended",
            extra=tracked.ids,
        )

    def _post_soon(self, tracked: TrackedSync) -> None:
        if self._closed:
            return
        tracked.posting = self._keep(asyncio.create_task(self._submitter.post(tracked)))

    def _may_begin(self, tracked: TrackedSync) -> bool:
        return (
            not self._closed
            and not self.quiescing
            and isinstance(tracked.state, Submitting)
            and tracked.pauses == self._lane(tracked).pauses
            and self._dependencies.clock.now() < tracked.request.deadline
        )

    # ------------------------------------------------------------ what the world says

    def _answered(self, tracked: TrackedSync, answer: sync.SubmitAnswer) -> None:
        lane = self._lane(tracked)
        tracked.answered(lane)
        trouble = answer.trouble if isinstance(answer, sync.NotTaken | sync.Unanswered) else None
        if not withheld(answer):
            lane.record_result(trouble)
        if self._closed or not isinstance(tracked.state, Submitting | Lingering):
            return
        step = sync.answered(
            tracked.state, answer, now=self._dependencies.clock.now(), policy=self._dependencies.policy
        )
        self._become(tracked, step)
        if isinstance(step.state, Waiting) and trouble is not None and trouble.own:
            self._wait_busy(tracked)
        else:
            self._take_up(tracked)

    def _looked_up(self, tracked: TrackedSync, seen: sync.LookUp) -> None:
        if self._closed or not isinstance(tracked.state, Submitting | Lingering):
            return
        before = tracked.state
        step = sync.looked_up(tracked.state, seen, now=self._dependencies.clock.now(), policy=self._dependencies.policy)
        if step.state is before or step.state == before:
            return
        self._become(tracked, step)
        match seen:
            case sync.Found(task) | sync.OnlyOne(task) if tracked.doubt is None:
                self._dependencies.metrics.adopted()
                log.info(
                    "Adopted task %s for the POST in doubt of %s",
                    task.id,
                    tracked.request.identity,
                    extra=tracked.ids,
                )
            case _ if (doubt := tracked.doubt) is not None and doubt.trouble is not None:
                log.warning(
                    "Look-ups for the POST in doubt of %s are inconclusive: %s",
                    tracked.request.identity,
                    doubt.trouble.msg,
                    extra=tracked.ids,
                )
            case _:
                pass
        if isinstance(step.state, Waiting) and step.state.repeats > 1:
            self._wait_to_repeat(tracked, step.state)
        else:
            self._take_up(tracked)

    def _polled(self, tracked: TrackedSync, seen: sync.PollAnswer) -> Verdict:
        state = tracked.state
        if self._closed or not isinstance(state, Running | Lingering):
            return Verdict.DONE
        if isinstance(seen, Task):
            self._learn_name(state.of if isinstance(state, Lingering) else state, seen)
            tracked.progress = seen.progress
            if seen.state not in KNOWN_STATES:
                self._dependencies.metrics.unknown_task_state(tracked.request.site)
                if seen.state != tracked.unknown_state:
                    tracked.unknown_state = seen.state
                    log.warning(
                        "VCDA reported task %s in the unknown state %.40r; treated as running",
                        seen.id,
                        seen.state,
                        extra=tracked.ids,
                    )
        step = sync.polled(state, seen, now=self._dependencies.clock.now(), policy=self._dependencies.policy)
        if isinstance(step.state, Ended):
            if self._journal_writer.behind:
                return Verdict.GO_ON  # its outcome waits at VCDA until there is room: the task is asked after again
            tracked.watch = None
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

    def _learn_name(self, of: Running | Submitting, task: Task) -> None:
        """Learn how VCDA spells our user where it lists tasks: it may differ from its answers to POSTs, or change.

        Not from a task that was found: that it is ours may have been concluded from its being the only one.
        """
        if isinstance(of, Running) and not of.adopted and of.account is not None and task.user is not None:
            self._dependencies.api.learn_name(of.account, site=of.request.site, name=task.user)

    def _take_up(self, tracked: TrackedSync) -> None:
        """Do what its new state asks for."""
        match tracked.state:
            case Waiting() | Ended():
                self._move_on(tracked.request.replication_id)
            case Running() as running:
                self._watch(tracked, running)
            case Lingering(of=Running() as running):
                self._watch(tracked, running)
            case Submitting() | Lingering():
                self._occupy(tracked)
                self._reconciler.add(tracked)

    # ------------------------------------------------------------ polling

    def _watch(self, tracked: TrackedSync, running: Running) -> None:
        self._occupy(tracked)
        clock = self._dependencies.clock
        age = timedelta()
        if running.submitted_at is not None:
            offset = self._dependencies.api.offset(running.site) or timedelta()
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

    # ------------------------------------------------------------ deadlines

    def _remind(self, tracked: TrackedSync) -> None:
        """Look at it again when its deadline comes, or when one that lingers has lingered for too long."""
        told = isinstance(tracked.state, Lingering)
        moment = tracked.request.deadline + (sync.LINGER_LIMIT if told else timedelta())
        self._deadlines.add(moment, tracked)

    async def _deadline_loop(self) -> None:
        """Look at what is due, some at a time: tens of thousands of requests may expire within a second."""
        while True:
            now = self._dependencies.clock.now()
            for number, tracked in enumerate(self._deadlines.due(now), 1):
                while self._journal_writer.behind:  # noqa: ASYNC110 - Kafka is slow, and takes these outcomes later
                    await asyncio.sleep(TICK.total_seconds())
                lingers = isinstance(tracked.state, Lingering)
                told = self._move_on(tracked.request.replication_id)
                if lingers and isinstance(tracked.state, Lingering):
                    self._outstay(tracked, now)
                if not told or number % EXPIRED_AT_ONCE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(TICK.total_seconds())

    def _outstay(self, tracked: TrackedSync, now: datetime) -> None:
        """Give back the place at the site of a sync that lingers past the limit; its task goes on at VCDA."""
        state = tracked.state
        if self._closed or not isinstance(state, Lingering) or sync.occupies(state, now=now):
            return
        tracked.vacate(self._lane(tracked))
        self._deadlines.add(max(sync.let_go_at(state), now + TICK), tracked)
        if not tracked.held:
            tracked.held = True
            self._dependencies.metrics.replication_held(tracked.request.site, held=True)
            log.warning(
                "Replication %s is still held: a day after the deadline of request %s VCDA shows its task %s as "
                "unfinished",
                tracked.request.replication_id,
                tracked.request.identity,
                state.of.task_id if isinstance(state.of, Running) else None,
                extra=tracked.ids,
            )

    def _tell_expired(self, replication_id: str) -> bool:
        """Tell the outcomes of expired requests, the eldest first; nobody's before those of their elders.

        So many at once that the event loop turns in between. Returns False if there may be more: they come next.
        """
        now = self._dependencies.clock.now()
        policy = self._dependencies.policy
        eldest = self._in_flight.eldest(replication_id)
        if eldest is None or (eldest.request.deadline > now and not isinstance(eldest.state, Lingering)):
            return True  # the usual case, whatever waits behind it
        elder: str | None = None
        for number, tracked in enumerate(self._in_flight.of(replication_id, most=EXPIRED_AT_ONCE + 1)):
            if number == EXPIRED_AT_ONCE:
                self._deadlines.add(eldest.request.deadline, tracked)
                return False
            if isinstance(tracked.state, Ended):
                continue
            if isinstance(tracked.state, Submitting) and not tracked.state.in_doubt and not tracked.left:
                break  # its POST has not begun and now won't: the answer will say so, and it comes back here
            elder = elder or tracked.behind
            behind = None if elder is None else f"It waited behind {elder} of the same replication."
            step = sync.expired(tracked.state, now=now, policy=policy, behind=behind)
            if step.state is not tracked.state:
                self._become(tracked, step)
            if not isinstance(step.state, Lingering | Ended):
                break
            elder = tracked.request.operation_id
        return True

    # ------------------------------------------------------------ changes and commits

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
                partial(record_outcome, step.outcome, dependencies=self._dependencies, partition=self.number)
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
                    self._remind(tracked)
            case Waiting():
                tracked.vacate(self._lane(tracked))
            case _:
                pass

    # ------------------------------------------------------------ small parts

    def _here(self) -> Cursor:
        self._spellings = self._dependencies.api.spellings()
        return Cursor(
            self._dependencies.requests,
            self.cursor,
            self._stamp,
            topic_id=self._topic_id,
            group=self._dependencies.group,
            spellings=self._spellings,
        )

    def _lane(self, tracked: TrackedSync) -> Lane:
        return self._dependencies.lanes.lane(tracked.request.site)

    def _leave(self, tracked: TrackedSync) -> None:
        if tracked.watch is not None:
            self._dependencies.poller.unwatch(tracked.watch)
            tracked.watch = None
        self._dependencies.progress.ended(tracked.request)
        lane = self._lane(tracked)
        tracked.vacate(lane)
        if tracked.turn is not None:
            lane.withdraw(tracked.turn)
            tracked.turn = None
        if tracked.held:
            tracked.held = False
            self._dependencies.metrics.replication_held(tracked.request.site, held=False)

    def _occupy(self, tracked: TrackedSync) -> None:
        if sync.occupies(tracked.state, now=self._dependencies.clock.now()):
            tracked.occupy(self._lane(tracked))

    def _wait_to_repeat(self, tracked: TrackedSync, waiting: Waiting) -> None:
        """Let time pass before another POST of a request whose POSTs come to nothing, each time more."""
        self._wait_alone(tracked, REPEAT_PAUSE, times=waiting.repeats - 2)

    def _wait_busy(self, tracked: TrackedSync) -> None:
        """Let the site's other requests go on, and this one ask for a turn again in a while, longer each time."""
        self._wait_alone(tracked, OWN_BACKOFF, times=tracked.busy)
        tracked.busy += 1

    def _wait_alone(self, tracked: TrackedSync, pauses: tuple[timedelta, timedelta], *, times: int) -> None:
        first, longest = (pause.total_seconds() for pause in pauses)
        pause = min(first * 2 ** min(times, 16), longest) * self._dependencies.random.uniform(0.5, 1.5)
        tracked.not_before = self._dependencies.clock.monotonic() + pause

        async def then() -> None:
            await asyncio.sleep(pause)
            tracked.not_before = 0.0  # a loop's timer may be a millisecond early
            self._move_on(tracked.request.replication_id)

        self._spawn(then())

    def _spawn(self, tracked: Coroutine[None, None, None]) -> None:
        _ = self._keep(asyncio.create_task(tracked))

    def _keep(self, task: "asyncio.Task[None]") -> "asyncio.Task[None]":
        self._tasks.add(task)
        task.add_done_callback(self._ended_task)
        return task

    def fail(self, reason: str) -> None:
        """Stop working here: the memory can't be trusted any more."""
        if not self._closed:
            self._closed = True
            self._journal_writer.stop()
            self._on_lost(reason)

    def _ended_task(self, task: "asyncio.Task[None]") -> None:
        """A task that fails takes the partition's work with it: its memory can't be trusted any more."""
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None or self._closed:
            return  # what fails once the partition is closed was looked at, so that asyncio doesn't log it
        if isinstance(error, JournalLost):
            self.fail(str(error))
        else:
            log.error("Internal error in partition %d", self.number, exc_info=error)
            self.fail(f"internal error: {type(error).__name__}")


def _written_at(record: Record, *, default: datetime) -> datetime:
    """The record's timestamp. A producer may have set it to anything: -1 (none), a year that Python doesn't know."""
    if record.timestamp_ms < 0:
        return default
    try:
        return sync.EPOCH + timedelta(milliseconds=record.timestamp_ms)  # exact, unlike `fromtimestamp`
    except OverflowError:
        return default
