"""Commits offsets to the consumer group: one call at a time, and none during a rebalance.

With each offset goes a note: how far the partition's journal had come. A journal that ends before that when it is
opened has lost records at its end (`start_position`).

A refused commit makes aiokafka join the group again, mostly as a new member. A commit that is sent meanwhile is
refused, too, and makes it join once more: where a process that had been suspended asked for four partitions at once,
the whole group rebalanced for 50 s (measured).
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, OffsetMetadataTooLargeError

from service.clock import Clock
from service.intake.subscriber import Subscriber

log = logging.getLogger(__name__)

REBALANCE_LIMIT: Final = 60.0
"""Seconds after the beginning of a rebalance after which an offset is committed although no assignment has come: longer
than a rebalance takes."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What the group knows of a partition: the next offset to read, and a note, Kafka's metadata of an offset."""

    offset: int
    note: str = ""


def note_of(journal: str, end: int) -> str:
    """Return the note that a journal, by its name and topic id, ends at this offset."""
    return f"{journal} ends at {end}"


def noted_end(note: str, journal: str) -> int | None:
    """Return where a journal ended by a note; None: the note is of another journal, or has other words."""
    found = re.fullmatch(rf"{re.escape(journal)} ends at (\d+)", note)
    return None if found is None else int(found[1])


class GroupCommits:
    """The commits of one member of the group. `assigned` and `rebalancing` say where the group stands."""

    def __init__(self, subscriber: Subscriber, *, clock: Clock) -> None:
        self._subscriber = subscriber
        self._clock = clock
        self._lock = asyncio.Lock()
        self._assigned = asyncio.Event()
        """Set while the member has its assignment, and knows of no rebalance."""
        self._rebalancing_since = clock.monotonic()
        self._takes_notes = True

    def assigned(self) -> None:
        """The member has its assignment: commits that wait for it go on."""
        self._assigned.set()

    def rebalancing(self) -> None:
        """Let commits wait for the next assignment."""
        self._assigned.clear()
        self._rebalancing_since = self._clock.monotonic()

    async def commit(self, reached: Mapping[TopicPartition, Committed]) -> None:
        """Commit offsets, which the group takes from members only.

        Where no assignment follows for a minute, the next commit finds out: if the group accepts it, this process is a
        member, and no commit waits any more; if not, the minute begins again.
        """
        offsets = {place: (one.offset, one.note if self._takes_notes else "") for place, one in reached.items()}
        async with self._lock:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rebalancing_since + REBALANCE_LIMIT - self._clock.monotonic()):
                    await self._assigned.wait()
            try:
                await self._subscriber.consumer.commit(offsets)
            except CommitFailedError:
                self.rebalancing()  # until the next assignment
                raise
            except OffsetMetadataTooLargeError:
                if self._takes_notes:
                    self._takes_notes = False
                    log.warning(
                        "Kafka's brokers take no %d characters with an offset (offset.metadata.max.bytes): offsets are "
                        "committed without a note from now on, and a journal that loses its end while no process has "
                        "it open is not noticed",
                        max(len(note) for _, note in offsets.values()),
                    )
                raise  # the caller commits again
