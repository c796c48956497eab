"""Records from Kafka to the partitions that are owned here.

FastStream's subscriber, the rebalance listener, and one keeper for each assigned partition:

    assigned --keeper opens the journal, seeks to the cursor--> open --revoked--> quiescing --assigned again--> open
                                                                 |                    |
                                                                 | journal lost       +--assigned elsewhere--> closed
                                                                 +--group-checked--> opened anew

The journal's cursor alone says where reading goes on; the group's committed offsets are for lag displays, and to ask
the group whether this process is still a member. A batch for a partition that isn't open, or that was fetched before
its last seek, is dropped: it will be read again.

It never understands a message (`messages` does), and never acknowledges one through FastStream: an ack there commits
the positions of all partitions (measured).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

from aiokafka import ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.kafka.message import FAKE_CONSUMER
from typing_extensions import override

from service.clock import Clock
from service.intake.start_position import Start, StartPositions
from service.kafka.clients import rebootstrap
from service.kafka.consumer import SteadyConsumer, UnreadableRecord
from service.kafka.journal_api import Batch, JournalLost, JournalMismatch, Opened, StopReason
from service.messages.kafka_record import Record
from service.messages.record_fate import Fate
from service.partition.balance import Balance, BalanceMeter
from service.partition.dependencies import Dependencies
from service.partition.partition import Memory, Partition
from service.sync import Ended

log = logging.getLogger(__name__)

HEARTBEAT = timedelta(milliseconds=500)
"""Members hear of a join at once, instead of after aiokafka's 3 s."""

REBALANCE_TIMEOUT = timedelta(seconds=30)
"""How long the group waits for a member that quiesces. aiokafka's default is the session timeout: a joiner then took
over while the old member still quiesced (measured)."""

QUIESCE_LIMIT = timedelta(seconds=20)
"""How long a revoked partition may take to let its POSTs be answered; well within the rebalance timeout."""

KAFKA_REQUEST_TIMEOUT = timedelta(seconds=10)
"""A killed broker leaves requests hanging for so long; with aiokafka's 40 s the service stood still with them."""

SHOW_PROGRESS = timedelta(seconds=5)
"""How often the group is told the cursors, and Kafka is asked whether it is there."""

ASK_BOOTSTRAP = timedelta(seconds=10)
"""Kafka silent for so long may have other addresses: the bootstrap servers are asked. A broker's restart takes 5 s."""

GIVE_UP = timedelta(minutes=2)
"""A Kafka that answers new clients, but not ours for so long, is there: then it is this process that is broken."""

REFUSAL_COUNTS = timedelta(seconds=5)
"""A refusal is over when it has not been heard again for so long; while it lasts, it is asked again each second."""

REFUSAL_AGAIN = timedelta(minutes=1)
"""How often a refusal that lasts is logged."""

UNREAD_LIMIT = timedelta(seconds=90)
"""A partition that has records and room, and that nothing was read of for so long, is not read any more, whatever the
cause: a slow broker answers within `KAFKA_REQUEST_TIMEOUT`, and records come with its next answer."""

ASSIGNMENT_LIMIT = timedelta(minutes=2)
"""How long the group may take to assign partitions: each member has the rebalance timeout, and some join late."""

REOPEN_FIRST, REOPEN_LONGEST = timedelta(milliseconds=100), timedelta(seconds=10)
"""Pauses between attempts to open a partition anew, doubling."""

OPENING_LIMIT = timedelta(minutes=2)
"""How long a partition may be closed before the process is not ready: its predecessor's hand-over takes half a minute
at most, reading the journal of half a million requests some seconds."""

PROVEN = timedelta(minutes=1)
"""A partition that was lost sooner than this after it was opened has come to nothing again: the pauses go on doubling,
so that what can't be done isn't tried ten times a second."""

MISMATCH_RECHECK = timedelta(seconds=30)
"""How often a partition that doesn't fit is looked at again, so that it goes on by itself once it was mended."""

COMPARE = timedelta(seconds=5)
"""How often the requests topic is compared with what was read of it: three requests, for all partitions together."""

COMPARE_LIMIT = timedelta(seconds=10)
"""How long that may take. A leader that is away lets it fail, and the next time comes soon."""

NAMED = 20
"""How many syncs a log line names."""

AT_ONCE = 500
"""Records a `getmany` returns for one partition: some 20 ms of work between two turns of the event loop."""

RESUME_AT = 0.7
"""A partition that was paused for being full reads on when it is down to this part of its share."""


SAY_PAUSED = timedelta(minutes=1)
"""How often at most the log says that a partition's reading pauses: with a slow Kafka it does so all the time."""


class Meter(BalanceMeter, Protocol):
    """What is counted here."""

    def records_read(self, count: int) -> None: ...  # noqa: D102 - the names say it
    def restored(self, seconds: float) -> None: ...  # noqa: D102
    def owned(self, count: int) -> None: ...  # noqa: D102
    def partitions(self, total: int) -> None: ...  # noqa: D102
    def stopped(self, reason: str, count: int) -> None: ...  # noqa: D102
    def reopened(self) -> None: ...  # noqa: D102
    def rewritten(self) -> None: ...  # noqa: D102
    def kafka_connected(self, value: bool) -> None: ...  # noqa: D102, FBT001
    def unread(self, seconds: float) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the intake is to do, from the settings."""

    group_id: str
    session_timeout: timedelta
    max_in_flight: int
    positions: StartPositions
    """Checks that a journal and the requests topic belong together."""
    open_journal: Callable[[int], Awaitable[Opened]]
    """Opens the journal of a partition: fences, reads, raises `JournalLost` or `JournalMismatch`."""


@dataclass(slots=True, eq=False)
class PartitionSupervisor:
    """One assigned partition: its task, and what is open of it."""

    place: TopicPartition
    balance: Balance
    closed_since: float
    """Since when (monotonic) it is not open, while it isn't."""
    task: "asyncio.Task[None] | None" = None
    partition: Partition | None = None
    trouble: str = "opening is still under way"
    """Why it is not open, while it isn't."""
    reading: int | None = None
    """The seek under which records are admitted; None: none are."""
    mismatched: JournalMismatch | None = None
    full: bool = False
    say_paused_at: float = 0.0
    """Not before this moment (monotonic) is it said again that reading pauses."""
    awaited: tuple[int, int] | None = None
    """The seek and the end of what the consumer had handed out, where the cursor was not there at the last look."""
    cursor: int | None = None
    """The last one known, to ask the group with."""
    reached: int | None = None
    """Where reading was when it was last looked at."""
    unread_since: float | None = None
    """Since when (monotonic) there have been records to read, with reading at the same place; None: it gets on."""
    memory: Memory | None = None
    """What was known here when the journal was lost, until it is open again."""
    topic_id: str | None = None
    """Of the requests topic as it was opened; None: the brokers tell none."""
    beyond_end: bool = False
    """The last comparison found the cursor beyond the topic's end, as a new leader may show it for a moment."""
    returned: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    """It was let go of. Its task was cancelled, too, but a producer that is being stopped swallows that (read in the
    source, and seen): such a keeper would live on, and its partition's next one would wait for it for ever."""

    def check(self) -> None:
        """End the task whose cancellation may have been swallowed meanwhile."""
        if self.gone:
            raise asyncio.CancelledError


@dataclass(slots=True)
class _Refusal:
    """Something that Kafka refuses again and again. Moments are monotonic."""

    heard_at: float
    logged_at: float


class Intake(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka is untyped
    """See the module. `start` and `stop` once each."""

    def __init__(
        self, *, connection: Mapping[str, Any], plan: Plan, dependencies: Dependencies, metrics: Meter, clock: Clock
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._dependencies = dependencies
        self._metrics = metrics
        self._clock = clock
        self._supervisors: dict[int, PartitionSupervisor] = {}
        self._closing: dict[int, asyncio.Task[None]] = {}
        self._reasons: set[StopReason] = set()
        self._progress: asyncio.Task[None] | None = None
        self._refusals: dict[str, _Refusal] = {}
        self._assigning_since: float | None = None
        self._answers_others_since: float | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._stopping = False
        self.joined = False
        """Whether the group has ever assigned something here, were it nothing."""
        self._missing = False
        self.kafka_seen_at = clock.monotonic()
        self.died = asyncio.Event()
        """Set when a task has ended that never must; the log tells which."""
        # `consumer_only`: events are written by the journals' producers. Types are not applied to bytes that may be
        # anything. Topics are made by us: FastStream would make them with a single partition.
        self.broker = KafkaBroker(
            bootstrap_servers=connection["bootstrap_servers"],
            consumer_only=True,
            allow_auto_create_topics=False,
            apply_types=False,
            logger=logging.getLogger("faststream"),
            log_level=logging.DEBUG,  # of each message; what goes wrong while reading is logged above that
        )
        subscriber = self.broker.subscriber(
            dependencies.requests,
            batch=True,
            group_id=plan.group_id,
            ack_policy=AckPolicy.MANUAL,
            auto_offset_reset="none",
            isolation_level="read_committed",
            session_timeout_ms=_ms(plan.session_timeout),
            heartbeat_interval_ms=_ms(HEARTBEAT),
            rebalance_timeout_ms=_ms(REBALANCE_TIMEOUT),
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
            batch_timeout_ms=10,  # also how long FastStream sleeps after an empty read: our consumer waits by itself
            max_records=AT_ONCE,
            listener=self,
            parser=_parse,
            decoder=_decode,
        )
        subscriber(self._take)
        self._subscriber = subscriber

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Join the group. May be tried again where it failed.

        Raises:
            KafkaError: Kafka can't be reached, or refuses us.
        """
        self._stopping = False
        await self.broker.connect()
        # The seam by which FastStream's own test broker replaces the consumer; the minor version is pinned for it.
        self.broker.config.broker_config.builder = self._consumer_of
        try:
            await self.broker.start()
        except BaseException:
            # A consumer half started would go on trying, and may have been given partitions already.
            self._stopping = True
            await self._leave(KAFKA_REQUEST_TIMEOUT.total_seconds())
            raise
        self._progress = asyncio.create_task(self._show_progress())
        self._progress.add_done_callback(self._note_death)
        self._comparing = asyncio.create_task(self._compare_again())
        self._comparing.add_done_callback(self._note_death)

    def _consumer_of(self, **options: Any) -> SteadyConsumer:  # noqa: ANN401 - as FastStream calls it
        options |= self._connection
        options |= {"request_timeout_ms": _ms(KAFKA_REQUEST_TIMEOUT), "enable_auto_commit": False}
        return SteadyConsumer(clock=self._clock, read=self._metrics.records_read, refused=self._note_refusal, **options)

    async def stop(self, limit: float) -> None:
        """Stop reading, quiesce, let everything stand in the journals, leave the group; within `limit` seconds."""
        self._stopping = True
        deadline = self._clock.monotonic() + limit
        if self._started:
            self._consumer.pause(*self._consumer.assignment())
        opened = [supervisor.partition for supervisor in self._supervisors.values() if supervisor.partition is not None]
        log.info("Shutting down: waiting for in-flight POSTs of %d partitions", len(opened))
        done = await asyncio.gather(*(partition.quiesce(limit * 0.6) for partition in opened))
        if not all(done):
            log.warning(
                "%d partitions stop with POSTs in doubt; their next owners will look for the tasks", done.count(False)
            )
        await self._report_cursors()
        for task in (self._progress, self._comparing):
            if task is not None:
                task.cancel()
        await self._leave(max(1.0, deadline - self._clock.monotonic()))

    async def _leave(self, limit: float) -> None:
        """Let go of the partitions and of the group, within `limit` seconds."""
        for number in list(self._supervisors):
            self._let_go(number)
        # Leaving the group hangs while the broker is away (13 s measured): the group will notice by itself. Waited for
        # from outside, since a cancellation may be swallowed in there.
        leaving = {asyncio.ensure_future(self.broker.stop()), *self._closing.values()}
        done, late = await asyncio.wait(leaving, timeout=limit)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.debug("Leaving the consumer group failed: %r", error)
        if late:
            log.warning("Leaving the consumer group timed out; the group removes this member by its session timeout")
            for task in late:
                task.cancel()

    # ------------------------------------------------------------ what others see

    @property
    def _started(self) -> bool:
        return self._subscriber.consumer is not None

    @property
    def _consumer(self) -> SteadyConsumer:
        consumer = self._subscriber.consumer
        if not isinstance(consumer, SteadyConsumer):
            msg = "the consumer is not a SteadyConsumer: FastStream creates its consumer in another way now"
            raise TypeError(msg)
        return consumer

    @property
    def read_at(self) -> float:
        """When the reading loop last asked for records, on the monotonic clock; now, once it was told to stop."""
        return self._clock.monotonic() if self._stopping else self._consumer.asked_at

    def refused(self) -> list[str]:
        """Return what Kafka refuses at present; nothing when it refuses nothing."""
        now = self._clock.monotonic()
        return [
            text for text, refusal in self._refusals.items() if now - refusal.heard_at <= REFUSAL_COUNTS.total_seconds()
        ]

    def stalled(self) -> list[str]:
        """Return why nothing is read, or of which partitions, though there are records; nothing when all is well.

        Not where Kafka is away or refuses: a restart cures neither.
        """
        now = self._clock.monotonic()
        if self.refused():
            return []
        since = self._assigning_since
        if since is not None and now - since > ASSIGNMENT_LIMIT.total_seconds():
            return [
                f"the consumer group has assigned no partition for {now - since:.0f} s, although Kafka is reachable"
            ]
        return [
            f"partition {number} has unread records, and none was read for {now - supervisor.unread_since:.0f} s"
            for number, supervisor in sorted(self._supervisors.items())
            if supervisor.unread_since is not None and now - supervisor.unread_since > UNREAD_LIMIT.total_seconds()
        ]

    def partitions(self) -> Iterator[Partition]:
        """Yield the partitions open here."""
        for supervisor in self._supervisors.values():
            if supervisor.partition is not None:
                yield supervisor.partition

    def opening(self) -> list[int]:
        """Return the partitions that are assigned and not open yet."""
        return [
            n
            for n, supervisor in self._supervisors.items()
            if supervisor.partition is None and supervisor.mismatched is None
        ]

    def unopened(self) -> list[str]:
        """Return which partitions have not been open for long, and why; those that refuse to work aside."""
        now = self._clock.monotonic()
        return [
            f"partition {number} has not been open for {now - supervisor.closed_since:.0f} s: {supervisor.trouble}"
            for number, supervisor in sorted(self._supervisors.items())
            if supervisor.partition is None
            and supervisor.mismatched is None
            and now - supervisor.closed_since > OPENING_LIMIT.total_seconds()
        ]

    def missing(self) -> str | None:
        """Return the name of the requests topic while Kafka has none."""
        return self._dependencies.requests if self._missing else None

    def mismatched(self) -> dict[int, str]:
        """Return the partitions that refuse to work, and why."""
        return {
            n: str(supervisor.mismatched)
            for n, supervisor in self._supervisors.items()
            if supervisor.mismatched is not None
        }

    # ------------------------------------------------------------ the group

    @override
    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Begin nothing new, and let what is on its way be answered. aiokafka revokes everything at each rebalance."""
        await self._crash_on_error(self._revoke(revoked))

    async def _revoke(self, revoked: Iterable[TopicPartition]) -> None:
        supervisors = [
            supervisor for place in revoked if (supervisor := self._supervisors.get(place.partition)) is not None
        ]
        for supervisor in supervisors:
            supervisor.reading = None
        opened = [supervisor.partition for supervisor in supervisors if supervisor.partition is not None]
        await asyncio.gather(*(partition.quiesce(QUIESCE_LIMIT.total_seconds()) for partition in opened))

    @override
    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Pause and seek before anything is awaited, so that nothing is read from where the group believes to be."""
        places = set(assigned)
        if places:
            self._consumer.park(*places)
        await self._crash_on_error(self._assign(places))

    async def _assign(self, places: set[TopicPartition]) -> None:
        self.joined = True
        numbers = {place.partition for place in places}
        for number in set(self._supervisors) - numbers:
            self._let_go(number)
        for place in places:
            supervisor = self._supervisors.get(place.partition)
            if supervisor is None and self._stopping:
                continue  # given to us on our way out: to open it would only fence whoever comes next
            if supervisor is None:
                supervisor = self._supervisors[place.partition] = PartitionSupervisor(
                    place, Balance(self._metrics), self._clock.monotonic()
                )
                supervisor.task = asyncio.create_task(self._supervise(supervisor))
                supervisor.task.add_done_callback(self._note_death)
                supervisor.task.add_done_callback(partial(_give_up, supervisor.balance))
            else:
                supervisor.returned.set()
                if supervisor.partition is not None:
                    self._read_on(supervisor, supervisor.partition)
        log.info("Rebalance: assigned partitions %s", sorted(numbers))

    async def _crash_on_error(self, work: Awaitable[None]) -> None:
        """End the process where the listener fails: aiokafka swallows what it raises (measured), and goes on."""
        try:
            await work
        except Exception:
            log.exception("Rebalance listener failed; the process ends")
            self.died.set()

    def _let_go(self, number: int) -> None:
        supervisor = self._supervisors.pop(number)
        supervisor.gone = True
        if supervisor.task is not None:
            supervisor.task.cancel()
            self._closing[number] = supervisor.task

    # ------------------------------------------------------------ one partition's keeper

    async def _supervise(self, supervisor: PartitionSupervisor) -> None:
        """Open the partition, again and again as its journal is lost, until it is assigned elsewhere."""
        pause = REOPEN_FIRST
        number = supervisor.place.partition
        if (earlier := self._closing.pop(number, None)) is not None:
            try:
                await asyncio.wait([earlier])  # opening and closing one partition are serialised
            except asyncio.CancelledError:
                await asyncio.wait([earlier])  # whoever is next waits for us alone
                raise
        while True:
            supervisor.check()
            lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            partition: Partition | None = None
            try:
                partition = await self._open(supervisor, lost)
                opened_at = self._clock.monotonic()
                log.warning("Partition %d is closed and will be reopened: %s", number, await lost)
                self._metrics.reopened()
                if self._clock.monotonic() - opened_at > PROVEN.total_seconds():
                    pause = REOPEN_FIRST
            except JournalLost as error:
                supervisor.trouble = str(error)
                log.warning("Opening partition %d failed; trying again: %s", number, error)
            except JournalMismatch as error:
                await self._refuse(supervisor, error)
                continue
            finally:
                supervisor.reading = None
                if supervisor.partition is not None:
                    supervisor.partition, supervisor.closed_since = None, self._clock.monotonic()
                self._count()
                if partition is not None:
                    await partition.close()
                    supervisor.memory = partition.memory()
            await asyncio.sleep(pause.total_seconds() * self._dependencies.random.uniform(0.5, 1.0))
            pause = min(2 * pause, REOPEN_LONGEST)
            await self._still_a_member(supervisor)

    async def _open(self, supervisor: PartitionSupervisor, lost: "asyncio.Future[str]") -> Partition:
        began = self._clock.monotonic()
        place, positions = supervisor.place, self._plan.positions
        committed = partial(self._committed, place)
        looked = await positions.look(place, committed=committed, remembered=supervisor.memory is not None)
        supervisor.check()
        opened = await self._plan.open_journal(place.partition)
        try:
            supervisor.check()
            if supervisor.memory is not None:
                opened = await self._write_back(supervisor, opened, supervisor.memory)
                supervisor.check()
            start = looked.start
            if opened.cursor != looked.cursor or (opened.cursor is None and supervisor.memory is not None):
                start = await positions.of(place, opened.cursor, committed=committed)
                supervisor.check()
            self._tell_lost(place, start)
            supervisor.cursor = start.offset
            supervisor.topic_id = start.topic_id
            supervisor.beyond_end = False
            partition = Partition(
                place.partition,
                opened=opened,
                dependencies=self._dependencies,
                balance=supervisor.balance,
                start_at=start.offset,
                on_lost=partial(_settle, lost),
                topic_id=start.topic_id,
            )
        except BaseException:
            await opened.journal.close()
            raise
        try:
            await partition.start()
            supervisor.check()
        except BaseException:
            await partition.close()
            raise
        supervisor.partition, supervisor.mismatched, supervisor.memory = partition, None, None
        self._metrics.restored(self._clock.monotonic() - began)
        self._count()
        log.info(
            "Partition %d is open: %d requests in flight, reading from offset %d",
            place.partition,
            len(partition),
            start.offset,
        )
        self._read_on(supervisor, partition)
        return partition

    async def _write_back(self, supervisor: PartitionSupervisor, opened: Opened, memory: Memory) -> Opened:
        """Write what is remembered into a journal that has lost it: it was deleted and made again, or cut at its end.

        Nobody else can have worked here meanwhile: the group says that the partition has been ours, and whoever opens
        an empty journal refuses.
        """
        batch = memory.batch
        if opened.begin >= memory.end or batch.cursor is None:
            return opened  # the usual case: it goes on where it was lost
        if opened.cursor is not None and opened.cursor.offset > batch.cursor.offset:
            return opened
        changes = {state.request.identity: None for state in opened.in_flight} | batch.changes
        in_flight = [state for state in changes.values() if state is not None and not isinstance(state, Ended)]
        log.error(
            "The journal of partition %d was deleted and created again, or truncated at its end: it begins at offset "
            "%d, but offset %d had been reached. It is being rewritten from memory, with %d syncs in flight (%s). "
            "Duplicates of requests that have ended are recognised only until this process ends; after that, a "
            "repeated request runs again. Check that the topic is compacted: vm-sync topics check",
            supervisor.place.partition,
            opened.begin,
            memory.end,
            len(in_flight),
            ", ".join(state.request.identity for state in in_flight[:NAMED]) + ", ..." * (len(in_flight) > NAMED),
        )
        await opened.journal.commit(Batch(changes, batch.events, batch.cursor))
        # It stands, and what it publishes is published: that is not to be repeated if the opening fails from here on.
        supervisor.memory = replace(memory, batch=replace(batch, events=[]), end=opened.journal.end)
        self._metrics.rewritten()
        return replace(opened, cursor=batch.cursor, in_flight=in_flight, ended=memory.ended)

    def _tell_lost(self, place: TopicPartition, start: Start) -> None:
        if not start.lost:
            return
        log.error(
            "Up to %d requests of partition %d were deleted from the topic before they were read: the retention of %s "
            "(retention.ms, retention.bytes) is shorter than the time that the service was down, or that the partition "
            "was full (VM_SYNC_SYNC__MAX_IN_FLIGHT)",
            start.lost,
            place.partition,
            place.topic,
        )

    def _read_on(self, supervisor: PartitionSupervisor, partition: Partition) -> None:
        """Read from the partition's own cursor; a seek drops what was fetched before."""
        place = supervisor.place
        if self._stopping or place not in self._consumer.assignment():
            return
        self._consumer.seek(place, partition.cursor)
        supervisor.reading = self._consumer.seeks[place]
        partition.resume()
        if not supervisor.full:
            self._consumer.resume(place)

    async def _committed(self, place: TopicPartition) -> int | None:
        """Ask the group how far it has read."""
        offset = await self._consumer.committed(place)
        return None if offset is None else int(offset)

    async def _still_a_member(self, supervisor: PartitionSupervisor) -> None:
        """Wait until the group confirms that the partition is ours.

        A member that was thrown out would otherwise fence its successor: its own transactions still commit (measured).
        """
        while True:
            supervisor.check()
            supervisor.returned.clear()
            try:
                offset = supervisor.cursor
                if offset is None:
                    offset = await self._consumer.committed(supervisor.place)
                if offset is None:
                    return  # nobody has ever read here: there is nobody to fence
                await self._consumer.commit({supervisor.place: offset})
            except KafkaError as error:
                log.info(
                    "Partition %d waits for the consumer group to accept a commit: %r",
                    supervisor.place.partition,
                    error,
                )
                try:
                    async with asyncio.timeout(1.0):
                        await supervisor.returned.wait()
                except TimeoutError:
                    pass
            else:
                return

    async def _refuse(self, supervisor: PartitionSupervisor, error: JournalMismatch) -> None:
        if supervisor.mismatched is None or str(supervisor.mismatched) != str(error):
            log.error("Partition %d is stopped: %s", supervisor.place.partition, error)
        supervisor.mismatched = error
        self._count()
        try:
            await asyncio.sleep(MISMATCH_RECHECK.total_seconds())
        except asyncio.CancelledError:
            supervisor.mismatched = None
            self._count(error.reason)
            raise

    def _count(self, *also: StopReason) -> None:
        self._metrics.owned(sum(1 for _ in self.partitions()))
        reasons = [
            supervisor.mismatched.reason
            for supervisor in self._supervisors.values()
            if supervisor.mismatched is not None
        ]
        for reason in {*reasons, *also, *self._reasons}:
            self._metrics.stopped(reason, reasons.count(reason))
        self._reasons = set(reasons)

    # ------------------------------------------------------------ reading

    async def _take(self, records: tuple[ConsumerRecord, ...]) -> None:
        """FastStream's handler. Total: what it raised would be swallowed, and its batch skipped."""
        by_partition: dict[int, list[ConsumerRecord]] = {}
        for record in records:
            by_partition.setdefault(record.partition, []).append(record)
        for number, some in by_partition.items():
            supervisor = self._supervisors.get(number)
            if supervisor is None or supervisor.partition is None or not self._read_under(supervisor):
                self._metrics.records(Fate.REREAD, len(some))  # by a partition's next seek
                continue
            if (doubt := self._doubt(supervisor.place, supervisor.partition.cursor, some)) is not None:
                self._metrics.records(Fate.REREAD, len(some))
                self._distrust(supervisor, doubt)
                continue
            try:
                supervisor.partition.admit([_record(record) for record in some])
            except Exception:
                log.exception("Admission failed on partition %d", number)
                self._distrust(supervisor, "admission failed")
                continue
            self._hold_back(supervisor, supervisor.partition)

    def _read_under(self, supervisor: PartitionSupervisor) -> bool:
        """Whether what was read last was read under the seek whose records are admitted; none is on the way out."""
        if self._stopping:
            return False
        return supervisor.reading is not None and supervisor.reading == self._consumer.fetched_under.get(
            supervisor.place
        )

    def _doubt(self, place: TopicPartition, cursor: int, some: list[ConsumerRecord]) -> str | None:
        """Say why these records can't be the next ones; None: they are."""
        if some[0].offset < cursor:
            return f"Kafka returned the record at offset {some[0].offset}, which is below the cursor {cursor}"
        if (follows := self._consumer.follows[place]) > cursor:
            return _missed(cursor, follows)
        return None

    def _miss(self, supervisor: PartitionSupervisor, cursor: int) -> None:
        """Open a partition again where records that were handed out before the last look have still not arrived."""
        awaited, supervisor.awaited = supervisor.awaited, None
        if supervisor.reading is None:
            return
        if awaited is not None and awaited[0] == supervisor.reading and awaited[1] > cursor:
            self._distrust(supervisor, _missed(cursor, awaited[1]))
        elif (handed_out := self._consumer.handed_out.get(supervisor.place, cursor)) > cursor:
            supervisor.awaited = supervisor.reading, handed_out

    def _hold_back(self, supervisor: PartitionSupervisor, partition: Partition) -> None:
        """Pause a partition that has its share in flight, or whose commits lag behind; read on when it has room."""
        share = max(1, self._plan.max_in_flight // max(1, len(self._supervisors)))
        if not supervisor.full and (partition.behind or len(partition) >= share):
            supervisor.full = True
            self._consumer.pause(supervisor.place)
            self._say_paused(supervisor, partition)
        elif supervisor.full and not partition.behind and len(partition) <= share * RESUME_AT:
            supervisor.full = False
            if supervisor.reading is not None:
                self._consumer.resume(supervisor.place)

    def _say_paused(self, supervisor: PartitionSupervisor, partition: Partition) -> None:
        now = self._clock.monotonic()
        if now < supervisor.say_paused_at:
            return
        supervisor.say_paused_at = now + SAY_PAUSED.total_seconds()
        number = supervisor.place.partition
        if partition.behind:
            log.info("Partition %d: reading is paused until more of the requests read are committed to Kafka", number)
        else:
            log.info(
                "Partition %d: reading is paused, since %d requests are in flight, its share of "
                "VM_SYNC_SYNC__MAX_IN_FLIGHT",
                number,
                len(partition),
            )

    def _distrust(self, supervisor: PartitionSupervisor, reason: str) -> None:
        """Close a partition whose position is no longer one of the topic as it was: opening it again checks both."""
        supervisor.reading = None
        if supervisor.partition is not None:
            supervisor.partition.fail(reason)

    async def _show_progress(self) -> None:
        """Tell the group the cursors, watch over Kafka and the reading, let partitions read on that have room again."""
        told = 0.0
        while True:
            if (dead := self._consumer.dead()) is not None:
                msg = f"aiokafka's task of {dead} has ended: the consumer would read no more records"
                raise RuntimeError(msg)
            for supervisor in list(self._supervisors.values()):
                if supervisor.partition is None:
                    continue
                if (
                    supervisor.reading is not None
                    and (offset := self._consumer.out_of_range.get(supervisor.place)) is not None
                ):
                    self._distrust(supervisor, f"offset {offset} of the requests topic is out of range")
                else:
                    self._hold_back(supervisor, supervisor.partition)
            if self._clock.monotonic() - told >= SHOW_PROGRESS.total_seconds():
                told = self._clock.monotonic()
                await self._report_cursors()
                await self._watch_reading()
                self._forget_refusals()
                if self._clock.monotonic() - self.kafka_seen_at > ASK_BOOTSTRAP.total_seconds():
                    await self._look_elsewhere()
                else:
                    self._answers_others_since = None
            await asyncio.sleep(0.2)

    async def _report_cursors(self) -> None:
        for supervisor in self._supervisors.values():
            if supervisor.partition is not None:
                supervisor.cursor = supervisor.partition.cursor
                self._miss(supervisor, supervisor.partition.cursor)
        self._note_partitions(len(self._consumer.partitions_for_topic(self._dependencies.requests) or ()))
        seen = False
        try:
            async with asyncio.timeout(SHOW_PROGRESS.total_seconds()):
                await self._consumer.topics()
                seen = True
                reached = {
                    supervisor.place: self._reached(supervisor.place, supervisor.partition.cursor)
                    for supervisor in list(self._supervisors.values())
                    if supervisor.partition is not None and supervisor.reading is not None
                }
                if reached:
                    await self._consumer.commit(reached)
        except (TimeoutError, KafkaError) as error:
            # What is said of the commit is the group's word, and shows that Kafka is there.
            log.debug("Committing the cursors to the consumer group failed: %r", error)
        if seen:
            self.kafka_seen_at = self._clock.monotonic()
        self._metrics.kafka_connected(seen)

    def _note_partitions(self, count: int) -> None:
        """Count the topic's partitions, and look for a topic that is missing: aiokafka does so every five minutes."""
        self._metrics.partitions(count)
        if count == 0:
            self._consumer.refresh()
            if not self._missing:
                log.error(
                    "The requests topic %s does not exist, or the right to read it is missing; waiting for it",
                    self._dependencies.requests,
                )
        elif self._missing:
            log.warning("The requests topic %s is available again", self._dependencies.requests)
        self._missing = count == 0

    def _reached(self, place: TopicPartition, cursor: int) -> int:
        """Return where reading has come to, for lag displays.

        Past the cursor where all has been taken up that was handed out: what lies between are the marks and the
        records of transactions, which would else look like requests that nobody takes up.
        """
        if self._consumer.handed_out.get(place, cursor) > cursor:
            return cursor
        return max(cursor, self._consumer.reached(place) or cursor)

    # ------------------------------------------------------------ whether reading gets on

    async def _watch_reading(self) -> None:
        """Note since when partitions have had records that nobody reads, and since when the group assigns nothing."""
        now = self._clock.monotonic()
        there = now - self.kafka_seen_at < SHOW_PROGRESS.total_seconds()
        if not self._consumer.rebalancing or not there:
            self._assigning_since = None
        elif self._assigning_since is None:
            self._assigning_since = now
        ends = await self._ends() if there else {}
        now = self._clock.monotonic()
        for supervisor in self._supervisors.values():
            reached = self._consumer.reached(supervisor.place)
            may_read = supervisor.partition is not None and supervisor.reading is not None and not supervisor.full
            end = ends.get(supervisor.place)
            if not may_read or reached is None or reached != supervisor.reached or end is None or reached >= end:
                supervisor.unread_since = None  # also while Kafka is away: then nobody can say that there are records
            elif supervisor.unread_since is None:
                supervisor.unread_since = now
            supervisor.reached = reached
        since = [
            supervisor.unread_since for supervisor in self._supervisors.values() if supervisor.unread_since is not None
        ]
        self._metrics.unread(now - min(since, default=now))

    async def _ends(self) -> dict[TopicPartition, int]:
        """Return where the partitions that are read end for a read_committed reader, without those that can't say."""
        places = [
            supervisor.place
            for supervisor in self._supervisors.values()
            if supervisor.reading is not None and self._consumer.has_leader(supervisor.place)
        ]
        try:
            async with asyncio.timeout(SHOW_PROGRESS.total_seconds()):
                return dict(await self._consumer.end_offsets(places)) if places else {}
        except (TimeoutError, KafkaError) as error:
            log.debug("Reading the end offsets of the requests topic failed: %r", error)
            return {}

    def _note_refusal(self, place: TopicPartition | None, error: Exception) -> None:
        """Take what the consumer hears from the group, or of a partition; it asks again by itself."""
        about = "the consumer group" if place is None else f"topic {place.topic}"
        text = f"Kafka refuses {about}: {error!r}"
        now = self._clock.monotonic()
        refusal = self._refusals.get(text)
        if refusal is None:
            self._refusals[text] = _Refusal(heard_at=now, logged_at=now)
            log.warning("%s; trying again every second", text)
            return
        if now - refusal.logged_at >= REFUSAL_AGAIN.total_seconds():
            refusal.logged_at = now
            log.warning("%s; still trying again every second", text)
        refusal.heard_at = now

    def _forget_refusals(self) -> None:
        over = self._refusals.keys() - set(self.refused())
        for text in over:
            del self._refusals[text]
            log.info("No longer refused: %s", text)

    # ------------------------------------------------------------ a Kafka that has moved

    async def _look_elsewhere(self) -> None:
        """Ask the bootstrap servers where the brokers are: aiokafka knows only the addresses that it has heard last.

        Where they are others, the consumer goes on with them; journals are opened again, since their producers would
        each wait for a commit to fail.

        Raises:
            RuntimeError: Kafka answers a new client, and for long has not answered ours.
        """
        try:
            moved = await rebootstrap(self._consumer.client, connection=self._connection)
        except Exception as error:  # noqa: BLE001 - a source of tokens may raise anything, and Kafka is away already
            log.debug("Asking the bootstrap servers for the brokers' addresses failed: %r", error)
            return
        if moved:
            log.warning("The addresses of Kafka's brokers have changed; all partitions are reopened with the new ones")
            for partition in list(self.partitions()):
                partition.fail("the addresses of Kafka's brokers have changed")
        now = self._clock.monotonic()
        if self._answers_others_since is None:
            self._answers_others_since = now
        if now - self._answers_others_since > GIVE_UP.total_seconds():
            msg = f"Kafka has answered new clients, but not the consumer, for {now - self._answers_others_since:.0f} s"
            raise RuntimeError(msg)

    # ------------------------------------------------------------ the topic, compared with what was read of it

    async def _compare_again(self) -> None:
        """Look for what reading alone doesn't show: a topic that was replaced, cut, or outran a paused partition."""
        while True:
            await asyncio.sleep(COMPARE.total_seconds())
            try:
                async with asyncio.timeout(COMPARE_LIMIT.total_seconds()):
                    await self._compare()
            except (TimeoutError, KafkaError) as error:
                log.debug("Comparing the requests topic with the cursors failed: %r", error)

    async def _compare(self) -> None:
        supervisors = {
            supervisor.place: (supervisor, supervisor.partition, supervisor.reading, supervisor.partition.cursor)
            for supervisor in self._supervisors.values()
            if supervisor.partition is not None and supervisor.reading is not None
        }
        if not supervisors:
            return
        identity, begins, ends = await asyncio.gather(
            self._consumer.topic_id(self._dependencies.requests),
            self._consumer.beginning_offsets(list(supervisors)),
            self._consumer.end_offsets(list(supervisors)),
        )
        replaced: list[Awaitable[None]] = []
        for place, (supervisor, opened, reading, cursor) in supervisors.items():
            if supervisor.partition is not opened or supervisor.reading != reading:
                continue  # opened again meanwhile, or assigned
            if identity is not None and supervisor.topic_id not in {None, identity}:
                supervisor.reading = None  # before anything is awaited, of all of them
                replaced.append(self._replaced(supervisor, opened))
            elif begins[place] > self._reached(place, opened.cursor):
                self._distrust(
                    supervisor, f"offset {opened.cursor} was deleted: the requests topic begins at {begins[place]}"
                )
            elif ends[place] >= cursor:
                supervisor.beyond_end = False
            elif supervisor.beyond_end:
                self._distrust(
                    supervisor, f"offset {cursor} is beyond the end: the requests topic ends at {ends[place]}"
                )
            else:
                supervisor.beyond_end = True
        await asyncio.gather(*replaced)

    async def _replaced(self, supervisor: PartitionSupervisor, opened: Partition) -> None:
        """What was read since the last comparison may be the new topic's, so that the cursor would pass for its own."""
        supervisor.reading = None
        try:
            with suppress(JournalLost):
                await opened.disown_cursor()
        finally:  # also where a slow Kafka makes it too late: nothing is read here until it is opened again
            self._distrust(supervisor, "the requests topic was deleted and created again")

    def _note_death(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("A background task that must not end has failed; the process ends", exc_info=error)
        self.died.set()


async def _parse(records: tuple[ConsumerRecord, ...]) -> KafkaMessage:
    """Hand the records on as they are.

    FastStream's own parser decodes header values, and skips a batch silently where one isn't UTF-8 (measured).
    """
    return KafkaMessage(body=b"", raw_message=records, headers={}, consumer=FAKE_CONSUMER)


async def _decode(message: KafkaMessage) -> tuple[ConsumerRecord, ...]:
    return message.raw_message  # a batch: a tuple of records


def _record(record: ConsumerRecord) -> Record:
    return Record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=-1 if record.timestamp is None else record.timestamp,  # the oldest message format has none
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
        unreadable=record.unreadable if isinstance(record, UnreadableRecord) else None,
    )


def _give_up(balance: Balance, _: "asyncio.Task[None]") -> None:
    balance.give_up()


def _missed(cursor: int, end: int) -> str:
    return f"records {cursor} to {end - 1} were fetched, but did not arrive at the partition"


def _settle(future: "asyncio.Future[str]", reason: str) -> None:
    if not future.done():
        future.set_result(reason)


def _ms(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)
