"""Compares the journals' first offsets while their partitions are open, and has what was deleted written again.

Kafka's compaction never moves the first offset of a partition. If it has moved, records were deleted. This process
still knows what they held: everything in flight is written to the journal again, by the partition's own producer, so
that a process which has lost the partition can't. What was deleted while no process had the partition open is found
when it is opened (`supervisor`).

A rewriting may take longer than a comparison may: the partition's journal is compared again once it has ended.

It never closes a partition: what the partition has in memory is right.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from aiokafka import TopicPartition

from service.intake.subscriber import Subscriber
from service.intake.supervisor import DELETED, PartitionSupervisor

log = logging.getLogger(__name__)


class JournalMeter(Protocol):
    """The metrics of the comparison."""

    def rewritten(self) -> None: ...  # noqa: D102 - the name says it


class JournalComparison:
    """Compares the open partitions' journals whenever it is asked to."""

    def __init__(
        self,
        journal: str,
        *,
        subscriber: Subscriber,
        supervisors: Callable[[], Iterable[PartitionSupervisor]],
        metrics: JournalMeter,
    ) -> None:
        self._journal = journal
        self._subscriber = subscriber
        self._supervisors = supervisors
        self._metrics = metrics

    async def compare(self) -> None:
        """Compare once.

        Raises:
            KafkaError: Kafka could not be asked.
        """
        opened = {
            TopicPartition(self._journal, supervisor.place.partition): partition
            for supervisor in self._supervisors()
            if (partition := supervisor.partition) is not None and partition.journal_start is not None
        }
        if not opened:
            return
        starts = await self._subscriber.consumer.first_offsets(opened)
        for place, partition in opened.items():
            before, start = partition.journal_start, starts.known.get(place)
            if before is None or start is None or start <= before or partition.closed or partition.rewriting:
                continue
            log.error(
                "Records of the journal of partition %d were deleted while the partition was open: the journal began "
                "at offset %d, and begins at offset %d now; %s. It is being rewritten from memory, with %d syncs in "
                "flight. Duplicates of requests that have ended are recognised only until the partition is closed "
                "here; after that, a repeated request runs again. Check that the topic is compacted: vm-sync topics "
                "check",
                place.partition,
                before,
                start,
                DELETED,
                len(partition),
            )
            self._metrics.rewritten()
            partition.rewrite_journal(start)
