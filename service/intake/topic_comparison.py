"""Compares the requests topic with the cursors while it is read.

It finds faults that reading doesn't show: a topic that was deleted and created again, that has lost records at its end,
or whose retention has deleted unread records of a paused partition. It closes such a partition; reopening it checks
both (`start_position`). It never moves a position.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from aiokafka import TopicPartition

from service.intake.subscriber import Subscriber
from service.intake.supervisor import PartitionSupervisor
from service.kafka.journal_api import JournalLost
from service.partition.partition import Partition

log = logging.getLogger(__name__)


class TopicComparison:
    """Compares whenever it is asked to. `reached` returns the next offset to read, given a partition and its cursor."""

    def __init__(
        self,
        topic: str,
        *,
        subscriber: Subscriber,
        supervisors: Callable[[], Iterable[PartitionSupervisor]],
        reached: Callable[[TopicPartition, int], int],
    ) -> None:
        self._topic = topic
        self._subscriber = subscriber
        self._supervisors = supervisors
        self._reached = reached
        self._beyond_end: dict[TopicPartition, Partition] = {}
        """Opened partitions whose cursor the last comparison found beyond the topic's end, as a new leader may show it
        for a moment."""

    async def compare(self) -> None:
        """Compare once.

        Raises:
            KafkaError: Kafka could not be asked.
        """
        opened = {
            supervisor.place: (supervisor, supervisor.partition, supervisor.reading, supervisor.partition.cursor)
            for supervisor in self._supervisors()
            if supervisor.partition is not None and supervisor.reading is not None
        }
        if not opened:
            return
        consumer = self._subscriber.consumer
        identity, begins, ends = await asyncio.gather(
            consumer.topic_id(self._topic),
            consumer.first_offsets(opened),
            consumer.end_of_committed(opened),
        )
        before, self._beyond_end = self._beyond_end, {}
        replaced: list[Awaitable[None]] = []
        for place, (supervisor, partition, reading, cursor) in opened.items():
            if supervisor.partition is not partition or supervisor.reading != reading:
                continue  # opened again meanwhile, or assigned
            begin, end = begins.known.get(place), ends.known.get(place)  # None: its leader doesn't say
            if identity is not None and supervisor.topic_id not in {None, identity}:
                supervisor.reading = None  # before anything is awaited, of all of them
                replaced.append(self._replaced(supervisor, partition))
            elif begin is not None and begin > self._reached(place, partition.cursor):
                supervisor.distrust(f"offset {partition.cursor} was deleted: the requests topic begins at {begin}")
            elif end is not None and end < cursor and before.get(place) is partition:
                supervisor.distrust(f"offset {cursor} is beyond the end: the requests topic ends at {end}")
            elif end is None:  # what was found before stands until its leader says where it ends
                if before.get(place) is partition:
                    self._beyond_end[place] = partition
            elif end < cursor:
                self._beyond_end[place] = partition
        await asyncio.gather(*replaced)

    async def _replaced(self, supervisor: PartitionSupervisor, partition: Partition) -> None:
        """Disown the cursor, since records of the new topic may have been read, and close the partition."""
        try:
            with suppress(JournalLost):
                await partition.disown_cursor()
        finally:  # also where a slow Kafka makes it too late: nothing is read here until it is opened again
            supervisor.distrust("the requests topic was deleted and created again")
