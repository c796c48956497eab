"""Finds transactions of senders that stay open on the requests topic.

A read_committed reader gets nothing that lies behind an open transaction, also of other senders: reading stands at the
partition's last stable offset, below its high watermark, and looks as if there were nothing to read. An instance can't
end such a transaction, so that it is no reason to restart it; it can name the partition and the offset.

It never reads a record, and never asks Kafka for anything.
"""

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from aiokafka import TopicPartition

from service.clock import Clock

log = logging.getLogger(__name__)

LISTED_BY: Final = "kafka-transactions.sh --bootstrap-server BROKER describe-producers --topic {} --partition {}"
"""The command that lists a partition's producers, with the offset at which a transaction of theirs began."""


@dataclass(slots=True)
class _Hold:
    """One transaction that holds back a partition."""

    offset: int
    """Where the transaction began: the last stable offset."""
    since: float
    """When reading was first seen to stand there (monotonic)."""
    logged: bool = False


class OpenTransactions:
    """Measures how long reading has stood before an open transaction, for each partition that is read.

    A transaction counts as long as it is the one that holds back the partition: of several open ones, that is the one
    that began first. What is not known, as while Kafka is away or in a rebalance, neither begins nor ends a hold.
    """

    def __init__(self, *, limit: timedelta, clock: Clock) -> None:
        self._limit = limit.total_seconds()
        self._clock = clock
        self._holds: dict[TopicPartition, _Hold] = {}

    def look(self, place: TopicPartition, *, reached: int | None, stable: int | None, end: int | None) -> None:
        """Look at a partition: the next offset to read, its last stable offset, its high watermark; None: not known.

        The high watermark may be an earlier one: it only grows, so that one above the last stable offset shows that
        there are records behind it.
        """
        hold = self._holds.get(place)
        if stable is None:
            return
        if hold is not None and stable != hold.offset:
            self._over(place, hold)
            hold = None
        if end is None or reached is None:
            return
        if end <= stable:
            if hold is not None:
                self._over(place, hold)
        elif hold is None and reached >= stable:
            self._holds[place] = _Hold(stable, self._clock.monotonic())
        elif hold is not None and not hold.logged and self._seconds(hold) > self._limit:
            hold.logged = True
            log.warning(
                "Partition %d: an open transaction of a sender has held back all requests from offset %d on for %.0f s;"
                " find its producer with: %s",
                place.partition,
                hold.offset,
                self._seconds(hold),
                LISTED_BY.format(place.topic, place.partition),
            )

    def forget(self, place: TopicPartition) -> None:
        """The partition is no longer assigned here."""
        self._holds.pop(place, None)

    def longest(self) -> float:
        """Return for how many seconds the longest open transaction has held back its partition; 0: there is none."""
        return max(map(self._seconds, self._holds.values()), default=0.0)

    def reasons(self) -> list[str]:
        """Return which partitions have been held back for long, as sentences."""
        return [
            f"partition {place.partition}: an open transaction of a sender has held back all requests from offset "
            f"{hold.offset} on for {self._seconds(hold):.0f} s"
            for place, hold in sorted(self._holds.items())
            if self._seconds(hold) > self._limit
        ]

    def _seconds(self, hold: _Hold) -> float:
        return self._clock.monotonic() - hold.since

    def _over(self, place: TopicPartition, hold: _Hold) -> None:
        del self._holds[place]
        if hold.logged:
            log.info(
                "Partition %d: the open transaction at offset %d has ended after %.0f s; the requests behind it are "
                "read",
                place.partition,
                hold.offset,
                self._seconds(hold),
            )
