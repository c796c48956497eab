"""Watches reading: partitions that have room, records that never arrive, and records that are not read.

- `BackPressure` pauses a partition that has its share in flight, or whose commits lag behind, and resumes it.
- `Arrivals` finds records that the consumer handed out and that never reached their partition.
- `ReadingWatch` finds partitions with records that are not read, and a group that assigns nothing. It lets
  `OpenTransactions` and `SilentLeaders` look at each partition, too, since it has asked where they end.

They close a partition only through its supervisor, and never end the process.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Final

from aiokafka import TopicPartition

from service.clock import Clock
from service.intake.open_transactions import OpenTransactions
from service.intake.silent_leaders import SilentLeaders
from service.intake.subscriber import Subscriber
from service.intake.supervisor import PartitionSupervisor
from service.intake.timings import IntakeTimings
from service.kafka.leader_offsets import Offsets
from service.messages.kafka_record import Record
from service.partition.partition import Partition

log = logging.getLogger(__name__)

NOBODY_ASKED: Final = Offsets({}, {})

RESUME_AT: Final = 0.7
"""A partition that was paused for being full reads on when it is down to this part of its share."""


class BackPressure:
    """Pauses and resumes the reading of full partitions."""

    def __init__(self, *, max_in_flight: int, subscriber: Subscriber, timings: IntakeTimings, clock: Clock) -> None:
        self._max_in_flight = max_in_flight
        self._subscriber = subscriber
        self._say_again = timings.say_paused.total_seconds()
        self._clock = clock
        self._full: set[TopicPartition] = set()
        self._say_at: dict[TopicPartition, float] = {}
        """Not before this moment (monotonic) is a pause logged again."""

    def holds(self, place: TopicPartition) -> bool:
        """Whether the partition's reading pauses because it is full."""
        return place in self._full

    def forget(self, place: TopicPartition) -> None:
        """The partition is no longer assigned here."""
        self._full.discard(place)
        self._say_at.pop(place, None)

    def apply(self, supervisor: PartitionSupervisor, *, assigned: int) -> None:
        """Pause the partition if it is full; read on when it has room. `assigned` partitions share what is allowed."""
        place, partition = supervisor.place, supervisor.partition
        if partition is None:
            return
        share = max(1, self._max_in_flight // max(1, assigned))
        full = place in self._full
        # Those that linger don't count: their tasks may never end, and a release of one is read like all else.
        if not full and (partition.behind or partition.without_outcome >= share):
            self._full.add(place)
            self._subscriber.consumer.pause(place)
            self._say(place, partition)
        elif full and not partition.behind and partition.without_outcome <= share * RESUME_AT:
            self._full.discard(place)
            if supervisor.reading is not None:
                self._subscriber.consumer.resume(place)

    def _say(self, place: TopicPartition, partition: Partition) -> None:
        now = self._clock.monotonic()
        if now < self._say_at.get(place, now):
            return
        self._say_at[place] = now + self._say_again
        number = place.partition
        if partition.behind:
            log.info("Partition %d: reading is paused until more of the requests read are committed to Kafka", number)
        else:
            log.info(
                "Partition %d: reading is paused, since %d requests are in flight, its share of "
                "VM_SYNC_SYNC__MAX_IN_FLIGHT",
                number,
                partition.without_outcome,
            )


class Arrivals:
    """Compares what arrives at a partition with what the consumer has handed out."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._awaited: dict[TopicPartition, tuple[int, int]] = {}
        """The seek and the end of what the consumer had handed out, where the cursor was not there at the last look."""

    def are_current(self, supervisor: PartitionSupervisor) -> bool:
        """Whether what was read last was read under the seek whose records are admitted."""
        fetched_under = self._subscriber.consumer.fetched_under.get(supervisor.place)
        return supervisor.reading is not None and supervisor.reading == fetched_under

    def doubt(self, place: TopicPartition, cursor: int, records: list[Record]) -> str | None:
        """Return why these records can't be the next ones; None: they are."""
        if records[0].offset < cursor:
            return f"Kafka returned the record at offset {records[0].offset}, which is below the cursor {cursor}"
        if (follows := self._subscriber.consumer.follows[place]) > cursor:
            return _missed(cursor, follows)
        return None

    def look(self, supervisors: Iterable[PartitionSupervisor]) -> None:
        """Open partitions again where records handed out before the last look have still not arrived."""
        before, self._awaited = self._awaited, {}
        for supervisor in supervisors:
            if supervisor.partition is None or supervisor.reading is None:
                continue
            place, cursor = supervisor.place, supervisor.partition.cursor
            seek, end = before.get(place, (None, cursor))
            if seek == supervisor.reading and end > cursor:
                supervisor.distrust(_missed(cursor, end))
            elif (handed_out := self._subscriber.consumer.handed_out.get(place, cursor)) > cursor:
                self._awaited[place] = supervisor.reading, handed_out


class ReadingWatch:
    """Measures how long partitions have had unread records, and how long the group has assigned nothing."""

    def __init__(self, *, subscriber: Subscriber, pressure: BackPressure, timings: IntakeTimings, clock: Clock) -> None:
        self._subscriber = subscriber
        self._pressure = pressure
        self._timings = timings
        self._clock = clock
        self.transactions = OpenTransactions(limit=timings.open_transaction_limit, clock=clock)
        self.leaders = SilentLeaders(limit=timings.unread_limit, clock=clock)
        self._assigning_since: float | None = None
        self._unread_since: dict[int, float] = {}
        """Since when (monotonic) there have been records to read, with reading at the same place."""
        self._reached: dict[TopicPartition, int | None] = {}
        """Where reading was when it was last looked at."""

    def stalled(self) -> list[str]:
        """Return why nothing is read, or which partitions with records are not read; empty when all is well."""
        now = self._clock.monotonic()
        since = self._assigning_since
        if since is not None and now - since > self._timings.assignment_limit.total_seconds():
            return [
                f"the consumer group has assigned no partition for {now - since:.0f} s, although Kafka is reachable"
            ]
        return [
            f"partition {number} has unread records, and none was read for {now - since:.0f} s"
            for number, since in sorted(self._unread_since.items())
            if now - since > self._timings.unread_limit.total_seconds()
        ]

    def unread_for(self) -> float:
        """Return for how many seconds the longest-waiting partition has had unread records, or no leader to ask."""
        now = self._clock.monotonic()
        return max(now - min(self._unread_since.values(), default=now), self.leaders.longest())

    def forget(self, place: TopicPartition) -> None:
        """The partition is no longer assigned here."""
        self._unread_since.pop(place.partition, None)
        self._reached.pop(place, None)
        self.transactions.forget(place)
        self.leaders.forget(place)

    async def look(self, supervisors: Mapping[int, PartitionSupervisor], *, kafka_is_there: bool) -> None:
        """Look at where reading has come to in each partition, and where the partitions end."""
        now = self._clock.monotonic()
        if not self._subscriber.consumer.rebalancing or not kafka_is_there:
            self._assigning_since = None
        elif self._assigning_since is None:
            self._assigning_since = now
        ends = await self._ends(supervisors.values()) if kafka_is_there else NOBODY_ASKED
        now = self._clock.monotonic()
        before, self._reached = self._reached, {}
        for number, supervisor in supervisors.items():
            place = supervisor.place
            reached = self._reached[place] = self._subscriber.consumer.reached(place)
            high_watermark = self._subscriber.consumer.high_watermark(place)
            end = ends.known.get(place)  # None also while Kafka is away: then nobody can say that there are records
            self.transactions.look(place, reached=reached, stable=end, end=high_watermark)
            may_read = (
                supervisor.partition is not None and supervisor.reading is not None and not self._pressure.holds(place)
            )
            stands = may_read and reached is not None and reached == before.get(place)
            self.leaders.look(place, ends.unknown.get(place) if stands else None)
            if not stands or reached is None or end is None or reached >= end:
                self._unread_since.pop(number, None)
            else:
                self._unread_since.setdefault(number, now)

    async def _ends(self, supervisors: Iterable[PartitionSupervisor]) -> Offsets:
        """Return where the partitions that are read end for a read_committed reader."""
        places = [supervisor.place for supervisor in supervisors if supervisor.reading is not None]
        return await self._subscriber.consumer.end_of_committed(places)


def _missed(cursor: int, end: int) -> str:
    return f"records {cursor} to {end - 1} were fetched, but did not arrive at the partition"
