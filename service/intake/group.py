"""This process as a member of the consumer group: takes records to the partitions that are assigned to it.

    assigned --its supervisor opens the journal--> open --revoked--> quiescing --assigned again--> open
                                                    |                    |
                                                    | journal lost       +--assigned elsewhere--> closed
                                                    +--group-checked--> reopened

Only the journal's cursor decides where reading continues; the group's committed offsets are for lag displays, and to
check whether this process is still a member. A batch for a partition that isn't open, or that was fetched before its
last seek, is dropped: it will be read again.

It never decodes a message (`messages` does), and never opens a partition (`PartitionSupervisor` does).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError
from typing_extensions import override

from service.event_loop import error_of, take_note
from service.intake.group_commits import Committed, GroupCommits, note_of
from service.intake.journal_comparison import JournalComparison
from service.intake.reachability import Reachability
from service.intake.reading import Arrivals, BackPressure, ReadingWatch
from service.intake.start_position import StartPositions
from service.intake.subscriber import Subscriber
from service.intake.supervisor import PartitionSupervisor, SupervisorMeter
from service.intake.timings import DEFAULT_TIMINGS, IntakeTimings
from service.intake.topic_comparison import TopicComparison
from service.kafka.consumer import SteadyConsumer
from service.kafka.denials import LASTS_AT_JOURNALS, Denials, MissingRight, Operation, Resource, explain
from service.kafka.journal_api import Opened
from service.kafka.rights import committed_with_note
from service.messages.kafka_record import Record
from service.messages.record_fate import Fate
from service.observability.metrics import IntakeSeen
from service.partition.dependencies import Dependencies
from service.partition.partition import Partition

log = logging.getLogger(__name__)

LOOK: Final = 0.2
"""Seconds between two checks of the partitions: the longest delay until a partition that is no longer full reads
again."""


class Meter(SupervisorMeter, Protocol):
    """The metrics of the intake."""

    def records_read(self, count: int) -> None: ...  # noqa: D102 - the name says it


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The intake's settings."""

    group_id: str
    session_timeout: timedelta
    max_in_flight: int
    positions: StartPositions
    """Checks that a journal and the requests topic belong together."""
    open_journal: Callable[[int], Awaitable[Opened]]
    """Opens the journal of a partition: fences, reads, raises `JournalLost` or `JournalMismatch`."""
    journal: str
    """The journal topic."""
    denials: Denials
    """What Kafka denies at present, to any client of the process."""
    timings: IntakeTimings = DEFAULT_TIMINGS
    client_id: str | None = None
    """Of the member of the group; None: the client library's."""


class Intake(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka is untyped
    """The member of the group. `start` and `stop` once each; a `start` that failed may be repeated.

    It has one supervisor for each assigned partition, is the supervisors' interface to the group
    (`supervisor.GroupMember`), and takes records to the partitions.
    """

    def __init__(
        self, *, connection: Mapping[str, Any], plan: Plan, dependencies: Dependencies, metrics: Meter
    ) -> None:
        self._plan = plan
        self._timings = plan.timings
        self._dependencies = dependencies
        self._metrics = metrics
        self._clock = clock = dependencies.clock
        self._supervisors: dict[int, PartitionSupervisor] = {}
        self._closing: dict[int, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        """Tasks that must not end while the intake runs."""
        self.partition_count = 0
        """Partitions of the requests topic, as far as is known."""
        self._stopping = False
        self._missing = False
        self.joined = False
        """Whether the group has made an assignment to this member, even an empty one."""
        self.died = asyncio.Event()
        """Set when a task that must not end has ended; the log names the task."""
        self._denials = plan.denials
        self._subscriber = Subscriber(
            dependencies.requests,
            connection=connection if plan.client_id is None else {**connection, "client_id": plan.client_id},
            group_id=plan.group_id,
            session_timeout=plan.session_timeout,
            timings=plan.timings,
            clock=clock,
            listener=self,
            take=self._take,
            read=metrics.records_read,
            refused=self._refused,
        )
        self._commits = GroupCommits(self._subscriber, clock=clock)
        self._reachability = Reachability(
            connection=connection, subscriber=self._subscriber, timings=plan.timings, clock=clock
        )
        self._arrivals = Arrivals(self._subscriber)
        self._pressure = BackPressure(
            max_in_flight=plan.max_in_flight, subscriber=self._subscriber, timings=plan.timings, clock=clock
        )
        self._watch = ReadingWatch(
            subscriber=self._subscriber, pressure=self._pressure, timings=plan.timings, clock=clock
        )
        self._comparison = TopicComparison(
            dependencies.requests,
            subscriber=self._subscriber,
            supervisors=self._supervisors.values,
            reached=self._reached,
        )
        self._journal_comparison = JournalComparison(
            plan.journal,
            subscriber=self._subscriber,
            supervisors=self._supervisors.values,
            metrics=metrics,
        )

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Join the group.

        Raises:
            KafkaError: Kafka can't be reached, or refuses access.
            TimeoutError: the group has assigned nothing in time.
        """
        self._stopping = False
        try:
            async with asyncio.timeout(self._timings.assignment_limit.total_seconds()):
                await self._join()
        except BaseException:
            # A consumer half started would go on trying, and may have been given partitions already.
            self._stopping = True
            await self._leave(self._timings.kafka_request_timeout.total_seconds())
            raise
        topic, journals = "the requests topic with the cursors", "the journals' first offsets"
        work = {
            "the group member's periodic work": self._run(),
            f"the comparison of {topic}": self._compare(topic, self._comparison.compare),
            f"the comparison of {journals}": self._compare(journals, self._journal_comparison.compare),
        }
        self._tasks = [asyncio.create_task(one, name=name) for name, one in work.items()]
        for task in self._tasks:
            task.add_done_callback(self._note_death)

    async def _join(self) -> None:
        """Join the group. While that takes long, look for new broker addresses: aiokafka does not."""
        joining = asyncio.create_task(self._subscriber.start())
        try:
            while not (await asyncio.wait([joining], timeout=self._timings.ask_bootstrap.total_seconds()))[0]:
                if self._subscriber.started and await self._reachability.ask_bootstrap_servers():
                    log.warning("The addresses of Kafka's brokers have changed; joining the group with the new ones")
            await joining
        finally:
            joining.cancel()  # where it is still running; leaving the group then stops the consumer
            joining.add_done_callback(take_note)

    async def stop(self, limit: float) -> None:
        """Stop reading, quiesce, commit the journals, leave the group; within `limit` seconds."""
        self._stopping = True
        deadline = self._clock.monotonic() + limit
        if self._subscriber.started:
            self._consumer.pause(*self._consumer.assignment())
        opened = list(self.partitions())
        log.info("Shutting down: waiting for in-flight POSTs of %d partitions", len(opened))
        done = await asyncio.gather(*(partition.quiesce(limit * 0.6) for partition in opened))
        if not all(done):
            log.warning(
                "%d partitions are closed with POSTs in doubt; their next owners will look up the tasks",
                done.count(False),
            )
        with suppress(TimeoutError):
            async with asyncio.timeout(limit * 0.2):
                await self._report()
        for task in self._tasks:
            task.cancel()
        self._reachability.close()
        await self._leave(max(1.0, deadline - self._clock.monotonic()))

    async def _leave(self, limit: float) -> None:
        """Close the partitions and leave the group, within `limit` seconds."""
        for number in list(self._supervisors):
            self._let_go(number)
        # Leaving the group hangs while the broker is unreachable (13 s measured). Waited for
        # from outside, since a cancellation may be swallowed in there.
        leaving = {asyncio.ensure_future(self._subscriber.stop()), *self._closing.values()}
        done, late = await asyncio.wait(leaving, timeout=limit)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.debug("Leaving the consumer group failed: %r", error)
        if late:
            log.warning("Leaving the consumer group timed out; the group removes this member after the session timeout")
            for task in late:
                task.cancel()

    def _note_death(self, task: "asyncio.Task[None]") -> None:
        if (error := error_of(task)) is None:
            return
        name = task.get_name()
        log.error("A background task that must not end has failed (%s); the process ends", name, exc_info=error)
        self.died.set()

    # ------------------------------------------------------------ for health and metrics

    @property
    def _consumer(self) -> SteadyConsumer:
        return self._subscriber.consumer

    @property
    def read_at(self) -> float:
        """When the reading loop last polled for records (monotonic); the current time once reading was stopped."""
        return self._clock.monotonic() if self._stopping else self._consumer.asked_at

    @property
    def kafka_seen_at(self) -> float:
        """When Kafka has answered last (monotonic)."""
        return self._reachability.answered_at

    def refused(self) -> list[str]:
        """Return the rights that Kafka refuses at present, as sentences."""
        return self._denials.current()

    def stalled(self) -> list[str]:
        """Return why nothing is read, or of which partitions, though there are records; nothing when all is well.

        Not where Kafka is away or refuses: a restart would not help.
        """
        return [] if self.refused() else self._watch.stalled()

    def unreadable(self) -> list[str]:
        """Return which partitions nobody leads, or whose leader has not answered for long."""
        return self._watch.leaders.reasons()

    def held_back(self) -> list[str]:
        """Return which partitions a sender's open transaction has held back for long."""
        return self._watch.transactions.reasons()

    def partitions(self) -> Iterator[Partition]:
        """Yield the partitions open here."""
        for supervisor in self._supervisors.values():
            if supervisor.partition is not None:
                yield supervisor.partition

    def opening(self) -> dict[int, str]:
        """Return the partitions that are assigned and not open yet, and why."""
        return {
            number: supervisor.trouble
            for number, supervisor in self._supervisors.items()
            if supervisor.partition is None and supervisor.mismatched is None
        }

    def unopened(self) -> list[str]:
        """Return the partitions whose outcomes are not written: unopened for long, or lost again and again.

        With the cause; without stopped partitions.
        """
        now = self._clock.monotonic()
        reasons = []
        for number, supervisor in sorted(self._supervisors.items()):
            if (seconds := supervisor.unopened_for(now)) > self._timings.opening_limit.total_seconds():
                reasons.append(f"partition {number} has not been open for {seconds:.0f} s: {supervisor.trouble}")
            elif supervisor.reopens_again_and_again(now):
                reasons.append(
                    f"partition {number} has been lost {supervisor.losses} times in a row, so its outcomes are not "
                    f"written: {supervisor.trouble}"
                )
        return reasons

    def missing(self) -> str | None:
        """Return the name of the requests topic while Kafka has none."""
        return self._dependencies.requests if self._missing else None

    def mismatched(self) -> dict[int, str]:
        """Return the stopped partitions and the cause."""
        return {
            number: str(supervisor.mismatched)
            for number, supervisor in self._supervisors.items()
            if supervisor.mismatched is not None
        }

    def seen(self) -> IntakeSeen:
        """Return what the metrics show, as it is at this moment."""
        # What Kafka denies can't be counted: without the right to read, nobody says where the partitions end.
        denied = self._denials.lasting(self._plan.group_id, self._dependencies.requests)
        return IntakeSeen(
            partitions=self.partition_count,
            owned=sum(1 for _ in self.partitions()),
            stopped=[
                supervisor.mismatched.reason
                for supervisor in self._supervisors.values()
                if supervisor.mismatched is not None
            ],
            kafka_answers=self._reachability.answers,
            unread_for=max(self._watch.unread_for(), denied),
            held_back_for=self._watch.transactions.longest(),
        )

    # ------------------------------------------------------------ assigned and revoked

    @override
    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Quiesce the partitions, so that POSTs in flight are answered. aiokafka revokes all at each rebalance."""
        self._commits.rebalancing()
        await self._crash_on_error(self._revoke(revoked))

    async def _revoke(self, revoked: Iterable[TopicPartition]) -> None:
        supervisors = [self._supervisors[place.partition] for place in revoked if place.partition in self._supervisors]
        opened = [partition for supervisor in supervisors if (partition := supervisor.revoke()) is not None]
        limit = self._timings.quiesce_limit.total_seconds()
        await asyncio.gather(*(partition.quiesce(limit) for partition in opened))

    @override
    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Pause and seek before anything is awaited, so that nothing is read from the group's committed offset."""
        places = set(assigned)
        if places:
            self._consumer.park(*places)
        self._commits.assigned()
        await self._crash_on_error(self._assign(places))

    async def _assign(self, places: set[TopicPartition]) -> None:
        self.joined = True
        numbers = {place.partition for place in places}
        for number in set(self._supervisors) - numbers:
            self._let_go(number)
        for place in places:
            supervisor = self._supervisors.get(place.partition)
            if supervisor is not None:
                supervisor.assign_again()
            elif not self._stopping:  # assigned while this process stops: opening it would only fence the next owner
                self._supervise(place)
        log.info("Rebalance: assigned partitions %s", sorted(numbers))

    def _supervise(self, place: TopicPartition) -> None:
        supervisor = self._supervisors[place.partition] = PartitionSupervisor(
            place,
            member=self,
            positions=self._plan.positions,
            open_journal=self._plan.open_journal,
            dependencies=self._dependencies,
            timings=self._timings,
            metrics=self._metrics,
        )
        supervisor.start(after=self._closing.pop(place.partition, None)).add_done_callback(self._note_death)

    def _let_go(self, number: int) -> None:
        supervisor = self._supervisors.pop(number)
        self._closing[number] = supervisor.let_go()
        self._pressure.forget(supervisor.place)
        self._watch.forget(supervisor.place)

    async def _crash_on_error(self, work: Awaitable[None]) -> None:
        """End the process if the listener fails: aiokafka ignores its exceptions (measured)."""
        try:
            await work
        except Exception:
            log.exception("Rebalance listener failed; the process ends")
            self.died.set()

    # ------------------------------------------------------------ for supervisors: `supervisor.GroupMember`

    async def committed(self, place: TopicPartition) -> Committed | None:
        """Return what is committed to the group."""
        found = await committed_with_note(self._consumer.client, self._plan.group_id, place)
        return None if found is None else Committed(*found)

    async def commit(self, place: TopicPartition, committed: Committed) -> None:
        """Commit an offset, which the group takes from members only."""
        await self._commits.commit({place: committed})

    def read_from(self, place: TopicPartition, offset: int) -> int | None:
        """Read on from there; a seek drops what was fetched before."""
        if self._stopping or place not in self._consumer.assignment():
            return None
        self._consumer.seek(place, offset)
        if not self._pressure.holds(place):
            self._consumer.resume(place)
        return self._consumer.seeks[place]

    # ------------------------------------------------------------ records

    def _take(self, number: int, records: list[Record]) -> None:
        """Admit records of one partition, or drop them if they will be read again. Never raises."""
        supervisor = self._supervisors.get(number)
        partition = None if supervisor is None or self._stopping else supervisor.partition
        if supervisor is None or partition is None or not self._arrivals.are_current(supervisor):
            self._metrics.records(Fate.REREAD, len(records))  # by a partition's next seek
            return
        if (doubt := self._arrivals.doubt(supervisor.place, partition.cursor, records)) is not None:
            self._metrics.records(Fate.REREAD, len(records))
            supervisor.distrust(doubt)
            return
        try:
            partition.admit(records)
        except Exception:
            log.exception("Admission failed on partition %d; it is reopened, and reads these records again", number)
            supervisor.distrust("admission failed")
        else:
            self._hold_back(supervisor)

    def _hold_back(self, supervisor: PartitionSupervisor) -> None:
        self._pressure.apply(supervisor, assigned=len(self._supervisors))

    # ------------------------------------------------------------ periodic work

    async def _run(self) -> None:
        """Commit the cursors to the group, check Kafka and the reading, and resume paused partitions, periodically.

        Raises:
            RuntimeError: this process can't read any more, and has to be started again.
        """
        reported = 0.0
        while True:
            self._look()
            if self._clock.monotonic() - reported >= self._timings.report.total_seconds():
                reported = self._clock.monotonic()
                await self._report()
                await self._watch_reading()
                self._denials.forget_past()
                await self._watch_kafka()
            await asyncio.sleep(LOOK)

    def _look(self) -> None:
        """Check the consumer's own state, without a request to Kafka."""
        if (dead := self._consumer.dead()) is not None:
            msg = f"aiokafka's task of {dead} has ended: the consumer would read no more records"
            raise RuntimeError(msg)
        for supervisor in list(self._supervisors.values()):
            offset = self._consumer.out_of_range.get(supervisor.place)
            if offset is not None and supervisor.partition is not None and supervisor.reading is not None:
                supervisor.distrust(f"offset {offset} of the requests topic is out of range")
            else:
                self._hold_back(supervisor)

    async def _report(self) -> None:
        """Commit the cursors to the group; check whether records arrive, and whether Kafka and the topic exist.

        Only what the journals hold: operators and tools delete records that a group has committed as read.
        """
        for supervisor in self._supervisors.values():
            if supervisor.partition is not None:
                supervisor.cursor = supervisor.partition.committed_cursor
                supervisor.note = note_of(supervisor.journal, supervisor.partition.journal_end)
        self._arrivals.look(self._supervisors.values())
        self._note_partitions(len(self._consumer.partitions_for_topic(self._dependencies.requests) or ()))
        seen = False
        try:
            async with asyncio.timeout(self._timings.report.total_seconds()):
                await self._consumer.partitions_of(self._dependencies.requests)
                seen = True
                reached = {
                    supervisor.place: Committed(
                        self._reached(supervisor.place, supervisor.partition.committed_cursor), supervisor.note
                    )
                    for supervisor in list(self._supervisors.values())
                    if supervisor.partition is not None and supervisor.reading is not None
                }
                if reached:
                    await self._commits.commit(reached)
        except (TimeoutError, KafkaError) as error:
            # An error of the commit is the group's answer, so Kafka is reachable.
            log.debug("Committing the cursors to the consumer group failed: %r", error)
        self._reachability.note(answered=seen)

    def _refused(self, place: TopicPartition | None, error: Exception) -> None:
        """Take what a broker has refused to the consumer: of the partition's topic, or (None) of the group."""
        group, topic = self._plan.group_id, self._dependencies.requests
        if right := MissingRight.of(error, operation=Operation.READ, group=group, topics=[topic]):
            self._denials.note(right)
        else:
            about = f"the consumer group {group}" if place is None else f"topic {topic}"
            self._denials.note_text(f"Kafka refuses {about}: {explain(error)}")

    def _note_partitions(self, count: int) -> None:
        """Count the topic's partitions, and look for a topic that is missing: aiokafka does so every five minutes."""
        self.partition_count = count
        topic = self._dependencies.requests
        hidden = count == 0 and not self._consumer.may_see(topic)
        if count == 0:
            self._consumer.refresh()
        if hidden:
            self._denials.note(MissingRight(Operation.READ, Resource.TOPIC, topic), lasts=LASTS_AT_JOURNALS)
        elif count == 0 and not self._missing:
            log.error(
                "The requests topic %s does not exist; no request is read until it is created: vm-sync topics create",
                topic,
            )
        elif count and self._missing:
            log.warning("The requests topic %s is available again", topic)
        self._missing = count == 0 and not hidden

    def _reached(self, place: TopicPartition, cursor: int) -> int:
        """Return the offset to commit to the group, for lag displays.

        Past the cursor if all records handed out were admitted: only marks and records of transactions follow, which
        would otherwise look like unread requests.
        """
        if self._consumer.handed_out.get(place, cursor) > cursor:
            return cursor
        return max(cursor, self._consumer.reached(place) or cursor)

    async def _watch_reading(self) -> None:
        kafka_is_there = self._reachability.silent_for < self._timings.report.total_seconds()
        await self._watch.look(self._supervisors, kafka_is_there=kafka_is_there)

    async def _compare(self, what: str, compare: Callable[[], Awaitable[None]]) -> None:
        """Compare something periodically, until it is cancelled."""
        while True:
            await asyncio.sleep(self._timings.compare.total_seconds())
            try:
                async with asyncio.timeout(self._timings.compare_limit.total_seconds()):
                    await compare()
            except (TimeoutError, KafkaError) as error:
                log.debug("Comparing %s failed: %r", what, error)

    async def _watch_kafka(self) -> None:
        """Reopen all partitions if Kafka's brokers have moved: else each producer would first have to fail in a commit.

        Raises:
            RuntimeError: Kafka answers a new client, but has not answered this process's client for long.
        """
        if await self._reachability.moved():
            for partition in list(self.partitions()):
                partition.fail("the addresses of Kafka's brokers have changed")
