"""A whole deployment in virtual time: a broker, a group and several processes, each with real partitions at work.

Real: `PartitionSupervisor`, `Partition`, `Lanes`, `Poller`, the sync core and the journal's records. Not real: what is
behind the wire. The journal of a partition is a `Log` that refuses who has been fenced and can lose answers; `Group`
says who owns what; `Process` gives its supervisors what the intake would. A process can crash, which leaves only what
it had sent, and freeze: all its timers and all answers to it are then held back until it thaws; the world goes on.
"""

# ruff: noqa: ARG002 - a fake takes what the real one takes

import asyncio
import contextvars
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any, ParamSpec, Self, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import UnknownMemberIdError
from typing_extensions import override

from service import sync
from service.backoff import Backoff
from service.event_loop import Slices
from service.intake.group_commits import Committed
from service.intake.start_position import AskGroup, Looked, Start
from service.intake.supervisor import PartitionSupervisor
from service.intake.timings import IntakeTimings
from service.kafka.journal_api import Batch, Entry, JournalLost, Opened
from service.kafka.journal_codec import CURSOR_KEY, Cursor, decode, encode, encode_cursor, is_sync, read
from service.kafka.journal_replay import Replay
from service.messages.kafka_record import Event, Header, Record
from service.messages.outcomes import OutcomeTopics
from service.messages.record_fate import NEVER_READ, Fate
from service.messages.site_pause import SitePause, SitePauses, pause_key, public_name, write_pause
from service.partition.dependencies import Dependencies
from service.partition.in_flight import TrackedSync
from service.partition.partition import Partition
from service.partition.recent_outcomes import RecentOutcomes
from service.partition.reconciler import ONE_BY_ONE
from service.sync import Policy
from service.vcda.lanes import LaneLimits, Lanes
from service.vcda.poller import Poller
from tests.support.fake_vcda import ScriptedVcda, World, at_a_distance
from tests.support.virtual_time import EPOCH, VirtualClock, VirtualLoop

P = ParamSpec("P")
T = TypeVar("T")

REQUESTS, COMPLETED, FAILED, DEAD = "requests", "completed", "failed", "dead"

POLICY = Policy(
    window=timedelta(seconds=2),
    late=timedelta(seconds=10),
    lost_after=timedelta(seconds=30),
    deduplicate_for=timedelta(hours=24),
)

WINDOW, LATE = POLICY.window.total_seconds(), POLICY.late.total_seconds()

UNKNOWN = 3.0
"""How long a commit whose answer is lost is waited for."""

SESSION = 10.0
"""How long the group waits for a member that is silent."""

REBALANCE = 30.0
"""How long the group waits for a member that quiesces."""

TIMINGS = IntakeTimings(reopen=Backoff(first=timedelta(seconds=0.1), longest=timedelta(seconds=0.1)))
"""Pauses that don't grow: what a scenario loses again and again is its own affair."""


# ---------------------------------------------------------------- freezing

_AT: "contextvars.ContextVar[Process | None]" = contextvars.ContextVar("process", default=None)


class _Gate:
    """A callback of a process: held back while the process is frozen."""

    __slots__ = ("args", "callback", "context", "handle", "process")

    def __init__(
        self, process: "Process", callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        self.process = process
        self.callback = callback
        self.args = args
        self.context = context
        self.handle: asyncio.Handle | None = None

    def __call__(self) -> None:
        if self.process.frozen:
            self.process.held_back.append(self)
        elif self.handle is None or not self.handle.cancelled():
            self.callback(*self.args)


class FreezingLoop(VirtualLoop):
    """A virtual loop that knows whose callback it is about to run."""

    @override
    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        process = _AT.get() if context is None else context.get(_AT)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        gate = _Gate(process, callback, args, context or contextvars.copy_context())
        gate.handle = super().call_soon(gate, context=gate.context)
        return gate.handle

    @override
    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        process = _AT.get() if context is None else context.get(_AT)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        gate = _Gate(process, callback, args, context or contextvars.copy_context())
        handle = super().call_at(when, gate, context=gate.context)
        gate.handle = handle
        return handle


UNHEARD: list[str] = []
"""What loops had to say of tasks whose errors nobody took, once their garbage was collected."""


def _hear(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    UNHEARD.append(f"{context['message']}: {context.get('exception')!r}")
    loop.default_exception_handler(context)


def run(coro: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time, in a loop that can freeze processes."""
    with asyncio.Runner(loop_factory=FreezingLoop) as runner:
        runner.get_loop().set_exception_handler(_hear)
        return runner.run(coro)


class ScatteredSlices(Slices):
    """Slices of one piece each, and time between them: a crash or a hand-over may come after any piece."""

    def __init__(self, lasts: Callable[[], float]) -> None:
        super().__init__(largest=1)
        self._lasts = lasts

    @override
    async def turn(self) -> None:
        await super().turn()
        await asyncio.sleep(self._lasts())


# ---------------------------------------------------------------- the broker


@dataclass(frozen=True, slots=True)
class Told:
    """An event that a read_committed reader sees."""

    at: float
    by: str
    event: Event

    @property
    def topic(self) -> str:
        return self.event.topic

    @property
    def data(self) -> dict[str, Any]:
        return dict(json.loads(self.event.value or b"{}"))

    @property
    def operation_id(self) -> str:
        return str(self.data["operationID"])

    @property
    def verdict(self) -> str:
        """`completed`, or the reason of the failure."""
        return str(self.data.get("reason", "completed"))


@dataclass(slots=True)
class Log:
    """One partition: its requests, its journal, and the events that were committed together with it."""

    requests: list[Record] = field(default_factory=list)
    epoch: int = 0
    written: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    """The journal, record by record; nobody compacts it."""
    records: dict[str, bytes] = field(default_factory=dict)
    """Its last record of each sync."""
    cursor: Cursor | None = None
    start: int = 0
    """The journal's first offset."""
    told: list[Told] = field(default_factory=list)
    refused: int = 0
    """Commits of those who had been fenced."""
    readers: "list[asyncio.Future[None]]" = field(default_factory=list)
    """Those who have read all there is."""
    read_at: list[float] = field(default_factory=list)
    """When it was read while at work."""
    history: list[str] = field(default_factory=list)
    """What the journal said, change by change: for whoever has to find out why."""

    def write(self, changes: dict[str, bytes | None], cursor: Cursor | None) -> None:
        """Append to the journal."""
        for identity, value in changes.items():
            self.written.append((identity.encode(), value))
            if value is None:
                self.records.pop(identity, None)
            else:
                self.records[identity] = value
        if cursor is not None:
            self.cursor = cursor
            self.written.append((CURSOR_KEY, encode_cursor(cursor)))

    def delete_records(self, *, start: int) -> None:
        """Delete all that the journal holds, but for its cursor, so that it begins at `start`."""
        self.start = start
        self.written.clear()
        self.records.clear()
        self.write({}, self.cursor)

    def states(self) -> dict[str, sync.Sync]:
        """What stands in the journal now."""
        return {identity: decode(identity, value) for identity, value in self.records.items()}


@dataclass(slots=True)
class Broker:
    """Kafka, as far as a partition meets it."""

    latency: Callable[[], float] = lambda: 0.005
    """How long each way takes."""
    meets: "Callable[[Process], str]" = lambda _: "stands"
    """What a process' commit meets when no script says: `stands`; `lost`: never arrives; `unanswered`: stands, and its
    answer is lost; `later`: stands after it was given up, unless somebody opens the journal before."""
    script: deque[str] = field(default_factory=deque)
    reading: float = 0.0
    """How long it takes to read a journal that is at work."""
    logs: dict[int, Log] = field(default_factory=dict)
    control: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    """The control topic."""

    def log(self, number: int = 0) -> Log:
        return self.logs.setdefault(number, Log())

    def pauses(self, count: int) -> SitePauses:
        """Return what the first records of the control topic say."""
        pauses = SitePauses()
        for offset, (key, value) in enumerate(self.control[:count]):
            pauses.take(key, value, offset=offset)
        return pauses

    def ask(
        self,
        replication_id: str,
        operation_id: str,
        *,
        number: int = 0,
        deadline: int | None = None,
        value: bytes | None = None,
        headers: tuple[Header, ...] = (),
    ) -> None:
        """Put a request on the topic; `value` instead of it."""
        asked = {"replicationId": replication_id, "operationID": operation_id}
        if deadline is not None:
            asked["deadlineSeconds"] = deadline  # type: ignore[assignment]
        log = self.log(number)
        requests = log.requests
        moment = EPOCH + timedelta(seconds=asyncio.get_running_loop().time())
        requests.append(
            Record(
                topic=REQUESTS,
                partition=number,
                offset=len(requests),
                timestamp_ms=int(moment.timestamp() * 1000),
                key=replication_id.encode(),
                value=json.dumps(asked).encode() if value is None else value,
                headers=headers,
            )
        )
        readers, log.readers = log.readers, []
        for reader in readers:
            if not reader.done():
                reader.set_result(None)

    def cancel(self, replication_id: str, operation_id: str, *, release: bool = False, **fields: str) -> None:
        """Put a cancel of a request on the topic."""
        asked = {"cancel": f"op:{replication_id}:{operation_id}", "release": release, **fields}
        self.ask(replication_id, operation_id, value=json.dumps(asked).encode())

    async def open(self, number: int, *, process: "Process") -> Opened:
        """Fence whoever had the journal, then read it."""
        log = self.log(number)

        def init() -> int:
            log.epoch += 1
            log.history.append(f"epoch {log.epoch}: {process.name} opens")
            return log.epoch

        def read() -> list[tuple[bytes, bytes | None]]:
            return list(log.written)

        epoch = await at_a_distance(self.latency(), init, self.latency())
        opened_at = process.clock.monotonic()
        replay = Replay(now=process.clock.now())
        for key, value in await at_a_distance(self.latency(), read, self.latency()):
            replay.take(key, value)
        return Opened(
            journal=ScriptedJournal(self, log, epoch=epoch, process=process),
            opened_at=opened_at,
            cursor=replay.cursor(),
            in_flight=list(replay.in_flight()),
            ended=replay.ended(),
            journal_start=log.start,
        )


class ScriptedJournal:
    """One process' way to the journal; `fate` is what the world does to its commits."""

    def __init__(self, broker: Broker, log: Log, *, epoch: int, process: "Process") -> None:
        self._broker = broker
        self._log = log
        self._epoch = epoch
        self._process = process
        self.end = 0

    async def commit(self, batch: Batch) -> None:
        log, broker = self._log, self._broker
        changes = {identity: None if state is None else encode(state) for identity, state in batch.changes.items()}
        events, cursor = list(batch.events), batch.cursor
        if self._process.dead:
            await asyncio.get_running_loop().create_future()
        if not (changes or events or cursor):
            return  # Kafka's client asks no broker then

        def arrive() -> bool:
            if log.epoch != self._epoch:
                log.refused += 1
                return False
            now = asyncio.get_running_loop().time()
            log.write(changes, cursor)
            for identity, value in changes.items():
                state = "gone" if value is None else json.loads(value)["state"]
                log.history.append(f"{now:.3f} epoch {self._epoch} ({self._process.name}): {identity} {state}")
            log.told += [Told(now, self._process.name, event) for event in events]
            return True

        fate = broker.script.popleft() if broker.script else broker.meets(self._process)
        stood: bool | None = None
        if fate == "stands":
            stood = await at_a_distance(broker.latency(), arrive, broker.latency())
        elif fate == "unanswered":
            await at_a_distance(broker.latency(), arrive, UNKNOWN)
        else:
            if fate == "later":
                _ = at_a_distance(1.5 * UNKNOWN, arrive, 0.0)
            await asyncio.sleep(UNKNOWN)
        if not stood:
            msg = "fenced" if stood is False else "no answer"
            raise JournalLost(msg)

    async def entries(self) -> AsyncIterator[Entry]:
        records = list(enumerate(self._log.written))
        self._log.read_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self._broker.reading)
        for offset, (key, value) in records:
            if is_sync(key):
                yield offset, key.decode(), None if value is None else read(value).expires_at

    async def close(self) -> None:
        """Nothing to let go of."""


# ---------------------------------------------------------------- the group


class Group:
    """Who owns which partition, as the coordinator has it; a process learns of it later, or too late."""

    def __init__(self) -> None:
        self.owners: dict[int, Process] = {}

    async def give(self, number: int, process: "Process") -> None:
        """Rebalance: the owner quiesces, within bounds, and the partition goes to `process`, perhaps the same again."""
        old = self.owners.get(number)
        if old is not None and not old.dead:
            revoked = old.spawn(old.quiesce(number))
            await asyncio.wait([revoked], timeout=SESSION if old.frozen else REBALANCE)
        self.hand(number, process)

    def hand(self, number: int, process: "Process", *, learns_after: float = 0.1) -> None:
        """Give the partition to `process`; the old owner learns `learns_after` it could."""
        old = self.owners.get(number)
        self.owners[number] = process
        if old is not None and old is not process:
            old.later(learns_after, old.let_go, number)
        process.later(0.0, process.take, number)

    async def confirms(self, number: int, process: "Process") -> bool:
        """Tell a process whether the partition is its own, as a group-checked commit does."""
        return await at_a_distance(0.005, lambda: self.owners.get(number) is process, 0.005)


# ---------------------------------------------------------------- a process


class Meter:
    """Everything that is counted, and the in-flight gauge."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.fates: Counter[Fate] = Counter()
        self.unaccounted = 0
        self.in_flight: Counter[str] = Counter()
        self.lags: list[float | None] = []
        self.remembered = 0

    def records_read(self, count: int) -> None:
        self.unaccounted += count

    def records_held(self, delta: int) -> None:
        self.unaccounted -= delta

    def records(self, fate: Fate, count: int) -> None:
        self.fates[fate] += count
        if fate not in NEVER_READ:
            self.unaccounted -= count

    def dead_lettered(self, reason: str, count: int) -> None:
        self.counts[f"dead-letter {reason}"] += count

    def without_key(self, count: int) -> None:
        self.counts["without key"] += count

    def other_key(self, count: int) -> None:
        self.counts["other key"] += count

    def adopted(self) -> None:
        self.counts["adopted"] += 1

    def post_repeated(self, site: str | None) -> None:
        self.counts["repeated"] += 1

    def unknown_task_state(self) -> None:
        self.counts["unknown state"] += 1

    def moved(self, site: str | None, before: str | None, after: str | None) -> None:
        if before is not None:
            self.in_flight[before] -= 1
        if after is not None:
            self.in_flight[after] += 1

    def replication_held(self, site: str | None, *, held: bool) -> None:
        self.counts["held"] += 1 if held else -1

    def restored(self, seconds: float) -> None:
        self.counts["restored"] += 1

    def reopened(self) -> None:
        self.counts["reopened"] += 1

    def rewritten(self) -> None:
        self.counts["rewritten"] += 1

    def journal_records_deleted(self) -> None:
        self.counts["records deleted"] += 1

    def outcome(self, outcome: sync.Outcome, *, site: str | None, duration: float, lag: float | None) -> None:
        self.counts["outcome"] += 1
        self.lags.append(lag)

    def commit(self, seconds: float, records: int) -> None:
        self.counts["commit"] += 1

    def identities(self, delta: int) -> None:
        self.remembered += delta

    def paused(self, site: str | None, value: bool) -> None:
        self.counts["paused"] += value

    def without_credentials(self, site: str | None) -> None:
        self.counts["without credentials"] += 1

    def poll_batch(self, site: str | None, size: int) -> None:
        self.counts["poll"] += 1


class _Positions:
    """Finds that each journal fits; reading begins at its cursor."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def look(self, place: TopicPartition, *, committed: AskGroup, remembered: bool) -> Looked:
        cursor = self._broker.log(place.partition).cursor
        return Looked(cursor, await self.of(place, cursor, committed=committed))

    async def of(self, place: TopicPartition, cursor: Cursor | None, *, committed: AskGroup) -> Start:
        return Start(0 if cursor is None else cursor.offset)


class Process:
    """One process of the service; `skew` is how wrong its wall clock is."""

    def __init__(
        self,
        name: str,
        *,
        world: World,
        broker: Broker,
        group: Group,
        policy: Policy = POLICY,
        skew: timedelta = timedelta(),
        seed: int = 0,
        limits: LaneLimits | None = None,
        meets: Callable[[str], str] = lambda _: "well",
        deadline: timedelta = timedelta(hours=6),
        one_by_one: int = ONE_BY_ONE,
        tick: timedelta = timedelta(seconds=1),
        slices: Slices | None = None,
    ) -> None:
        self.name = name
        self.frozen = False
        self.dead = False
        self.held_back: list[_Gate] = []
        self.closings: list[str] = []
        """Why partitions were closed here."""
        self.meter = Meter()
        self.recent_outcomes = RecentOutcomes()
        self.clock = VirtualClock(asyncio.get_running_loop(), skew=skew)
        self.vcda = ScriptedVcda(world, clock=self.clock, late=policy.late, meets=meets)
        self._broker = broker
        self._group = group
        self._context = contextvars.copy_context()
        self._context.run(_AT.set, self)
        self.supervisors: dict[int, PartitionSupervisor] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """Of the supervisors, the last one of each partition."""
        self._ended: list[asyncio.Task[None]] = []
        random = Random(seed)
        self.lanes = Lanes(
            limits=limits or LaneLimits(max_concurrent_submits=4, max_running=0),
            clock=self.clock,
            metrics=self.meter,
            random=random,
        )
        poller = Poller(
            api=self.vcda,
            lane=self.lanes.lane,
            clock=self.clock,
            metrics=self.meter,
            random=random,
            shortest=timedelta(seconds=1),
            longest=timedelta(minutes=1),
            slices=slices,
        )
        self._dependencies = Dependencies(
            api=self.vcda,
            lanes=self.lanes,
            poller=poller,
            clock=self.clock,
            policy=policy,
            metrics=self.meter,
            requests=REQUESTS,
            outcomes=OutcomeTopics(completed=COMPLETED, failed=FAILED),
            dead_letters=DEAD,
            deadline=deadline,
            random=random,
            recent_outcomes=self.recent_outcomes,
            one_by_one=one_by_one,
            tick=tick,
            slices=slices or Slices(),
        )
        self._polling = self.spawn(poller.run())
        self.control_read = 0
        """Records of the control topic that it has read."""
        self._context.run(self.read_control)

    # ------------------------------------------------------------ life and death

    def spawn(self, coro: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run something in this process."""
        return asyncio.get_running_loop().create_task(coro, context=self._context)

    def later(self, delay: float, callback: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call something in this process, if it lives then; later if it is frozen."""
        asyncio.get_running_loop().call_later(delay, partial(callback, *args, **kwargs), context=self._context)

    def freeze(self) -> None:
        """Stop, as by SIGSTOP: nothing runs here, and whatever arrives has to wait."""
        self.frozen = True

    def thaw(self) -> None:
        """Go on, first with all that was held back."""
        self.frozen = False
        loop = asyncio.get_running_loop()
        held_back, self.held_back = self.held_back, []
        for gate in held_back:
            if gate.handle is None or not gate.handle.cancelled():
                # Not through our own `call_soon`, which would wrap it again; the handle stays the one that may be
                # cancelled by whoever comes before it.
                VirtualLoop.call_soon(loop, gate, context=gate.context)  # type: ignore[arg-type]

    async def crash(self) -> None:
        """Die: what was sent was sent, nothing more is."""
        self.dead = self.vcda.dead = True
        if self.frozen:
            self.thaw()
        for number, supervisor in list(self.supervisors.items()):
            for task in () if supervisor.partition is None else tuple(supervisor.partition._tasks):
                task.cancel()  # its commits, too, which a living process waits for
            self.let_go(number)
        self._polling.cancel()
        self.lanes.close()
        await asyncio.wait([self._polling, *self._ended])

    def read_control(self) -> None:
        """Read the control topic, whole, as a process does at its start and whenever something is added."""
        if not self.dead:
            self.control_read = len(self._broker.control)
            self.lanes.operator_pauses.replace(self._broker.pauses(self.control_read).by_site())

    # ------------------------------------------------------------ what the group wants

    def take(self, number: int) -> None:
        """Assigned: keep the partition, from now on or still."""
        if self.dead:
            return
        supervisor = self.supervisors.get(number)
        if supervisor is not None:
            supervisor.assign_again()
            return
        self.supervisors[number] = supervisor = _Supervisor(
            TopicPartition(REQUESTS, number),
            member=_Member(self, number, broker=self._broker, group=self._group),
            positions=_Positions(self._broker),
            open_journal=partial(self._broker.open, process=self),
            dependencies=self._dependencies,
            timings=TIMINGS,
            metrics=self.meter,
        )
        supervisor.closings = self.closings
        self._tasks[number] = supervisor.start(after=self._tasks.get(number))

    async def quiesce(self, number: int) -> bool:
        """Revoked: begin nothing."""
        supervisor = self.supervisors.get(number)
        partition = None if supervisor is None else supervisor.revoke()
        return partition is None or await partition.quiesce(REBALANCE * 2 / 3)

    def let_go(self, number: int) -> None:
        """Assigned elsewhere: close."""
        if self._group.owners.get(number) is self and not self.dead:
            return
        supervisor = self.supervisors.pop(number, None)
        if supervisor is not None:
            self._ended.append(supervisor.let_go())

    def partition(self, number: int = 0) -> Partition | None:
        """The partition, if it is open here."""
        supervisor = self.supervisors.get(number)
        return None if supervisor is None else supervisor.partition


class _Supervisor(PartitionSupervisor):
    """Notes why the partition was closed, or not opened."""

    closings: list[str]

    @override
    async def _keep_open(self) -> float:
        lasted = await super()._keep_open()
        self.closings.append(self.trouble)
        return lasted


class _Member:
    """What the supervisor of one partition needs of its process; see `supervisor.GroupMember`."""

    def __init__(self, process: Process, number: int, *, broker: Broker, group: Group) -> None:
        self._process = process
        self._number = number
        self._broker = broker
        self._group = group
        self._seeks = 0

    @property
    def _supervisor(self) -> PartitionSupervisor | None:
        return self._process.supervisors.get(self._number)

    async def committed(self, place: TopicPartition) -> Committed | None:
        cursor = self._broker.log(place.partition).cursor
        return None if cursor is None else Committed(cursor.offset)

    async def commit(self, place: TopicPartition, committed: Committed) -> None:
        if not await self._group.confirms(self._number, self._process):
            raise UnknownMemberIdError

    def read_from(self, place: TopicPartition, offset: int) -> int | None:
        self._seeks += 1
        _ = self._process.spawn(self._read(self._seeks))
        return self._seeks

    async def _read(self, seek: int) -> None:
        log, supervisor = self._broker.log(self._number), self._supervisor
        while supervisor is not None and supervisor.reading == seek and (partition := supervisor.partition) is not None:
            if partition.behind:
                await asyncio.sleep(0.2)
            elif partition.cursor < len(log.requests):
                records = _fetched(log.requests[partition.cursor :])
                self._process.meter.records_read(len(records))
                partition.admit(records)
            else:
                log.readers.append(asyncio.get_running_loop().create_future())
                await log.readers[-1]
                await asyncio.sleep(0.01)


FETCH = 1024 * 1024
"""Bytes of a partition that a real consumer fetches at once."""


def _fetched(records: list[Record]) -> list[Record]:
    """Return the first of them, as many as are fetched at once; always one."""
    size, count = 0, 0
    for record in records:
        size += len(record.value or b"")
        if count and size > FETCH:
            break
        count += 1
    return records[:count]


# ---------------------------------------------------------------- all together


class Deployment:
    """Broker, group, VCDA and processes; at the end all of them are gone."""

    def __init__(self, *, policy: Policy = POLICY, vcda_skew: timedelta = timedelta()) -> None:
        self.loop = asyncio.get_running_loop()
        self.world = World(VirtualClock(self.loop, skew=vcda_skew))
        self.broker = Broker()
        self.group = Group()
        self.policy = policy
        self.processes: list[Process] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes:
            if not process.dead:
                await process.crash()

    def process(self, name: str, **how: Any) -> Process:
        """Start a process that owns nothing yet."""
        process = Process(
            name, world=self.world, broker=self.broker, group=self.group, **({"policy": self.policy} | how)
        )
        self.processes.append(process)
        return process

    def owner(self, name: str = "P0", **how: Any) -> Process:
        """Start a process that owns partition 0 from now on, whoever had it before."""
        process = self.process(name, **how)
        self.group.hand(0, process)
        return process

    def pause(
        self,
        site: str | None,
        *,
        until: float,
        learns_after: float = 0.05,
        by: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Put a site's pause on the control topic; each process that lives learns of it some time later."""
        since = moment(self.loop.time())
        pause = SitePause(site=public_name(site), until=moment(until), since=since, by=by, reason=reason)
        self._order(*write_pause(pause), learns_after=learns_after)

    def resume(self, site: str | None, *, learns_after: float = 0.05) -> None:
        """Lift a site's pause."""
        self._order(pause_key(public_name(site)), None, learns_after=learns_after)

    def _order(self, key: bytes, value: bytes | None, *, learns_after: float) -> None:
        self.broker.control.append((key, value))
        for process in self.processes:
            process.later(learns_after, process.read_control)

    @property
    def log(self) -> Log:
        """Partition 0's."""
        return self.broker.log(0)

    def verdicts(self) -> list[tuple[str, str]]:
        """What a reader has seen of partition 0: operation and verdict, in order."""
        return [(told.operation_id, told.verdict) for told in self.log.told if told.topic != DEAD]

    async def until(self, moment: float) -> None:
        """Let time pass to that moment."""
        await asyncio.sleep(moment - self.loop.time())

    async def settled(self, limit: float = 100_000.0) -> None:
        """Let time pass until all requests have their outcomes, and nobody has anything in flight."""
        end = self.loop.time() + limit
        while not self._is_settled():
            assert self.loop.time() < end, "it never ends:\n" + "\n".join(self.log.history[-50:])
            await asyncio.sleep(0.25)

    def _is_settled(self) -> bool:
        for number, log in self.broker.logs.items():
            owner = self.group.owners.get(number)
            partition = None if owner is None or owner.dead or owner.frozen else owner.partition(number)
            if partition is None or len(partition) or partition.cursor < len(log.requests):
                return False
            if log.cursor is None or log.cursor.offset < len(log.requests):
                return False
            if any(not isinstance(state, sync.Ended) for state in log.states().values()):
                return False
        return True


def moment(seconds: float) -> datetime:
    """The wall time of a virtual moment."""
    return EPOCH + timedelta(seconds=seconds)


# ---------------------------------------------------------------- what a scenario looks at


def in_flight(process: Process) -> list[sync.Sync]:
    """What is in flight in partition 0, which is open there, in the order of acceptance."""
    return [tracked.state for tracked in tracked_syncs(process)]


def tracked_syncs(process: Process) -> list[TrackedSync]:
    """The same, with what is true of each here and now."""
    partition = process.partition()
    assert partition is not None
    return list(partition.tracked_syncs())


def sent(process: Process, operation_id: str) -> list[float]:
    """When the POSTs of an operation left this process."""
    return [at for at, which in process.vcda.sent if which == operation_id]


def ask_at(d: Deployment, site: str | None, replication_id: str, operation_id: str) -> None:
    """Put a request for a site on the topic; None: the local site."""
    asked = {"replicationId": replication_id, "operationID": operation_id} | ({} if site is None else {"site": site})
    d.broker.ask(replication_id, operation_id, value=json.dumps(asked).encode())


def told_at(d: Deployment, operation_id: str) -> float:
    """When a reader saw the operation's only outcome."""
    (at,) = (told.at for told in d.log.told if told.operation_id == operation_id)
    return at


# ---------------------------------------------------------------- scenarios as tests

Scenario = Callable[[Deployment], Coroutine[Any, Any, None]]


def deployed(scenario: Scenario) -> Callable[[], None]:
    """Make a scenario a test: a fresh deployment, in virtual time."""

    async def play() -> None:
        async with Deployment() as deployment:
            await scenario(deployment)

    def test() -> None:
        run(play())

    test.__name__ = test.__qualname__ = getattr(scenario, "__name__", "test")
    return test
