"""Admits the records of one partition: each becomes a request, a cancel, a dead letter, or a duplicate that is dropped.

A request is recognised as a duplicate if its identity is in flight, or ended within the time of deduplication.
"""

import logging
import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial

from service import sync
from service.messages.dead_letters import write_dead_letter
from service.messages.kafka_record import Record
from service.messages.record_fate import Fate
from service.messages.requests import InvalidRequest, SyncCancelRequested, SyncRequested, read_request
from service.partition.balance import Balance, Taken
from service.partition.deduplication import Deduplication
from service.partition.dependencies import Dependencies
from service.partition.driver import Driver
from service.partition.in_flight import InFlight
from service.partition.journal_writer import JournalWriter

log = logging.getLogger(__name__)

DUPLICATES = 1_000
"""How many identities are remembered whose duplicates were logged: of older ones it may be said once more."""

SAY_KEY_AGAIN = timedelta(minutes=1)
"""How often it is said of a partition that its requests have other keys than they should."""


class Admission:
    """The admission of one partition, and its cursor."""

    def __init__(
        self,
        number: int,
        *,
        cursor: int,
        stamp: int | None,
        in_flight: InFlight,
        journal_writer: JournalWriter,
        deduplication: Deduplication,
        driver: Driver,
        balance: Balance,
        dependencies: Dependencies,
    ) -> None:
        self.cursor = cursor
        """The offset of the next record to admit."""
        self.stamp = stamp
        """The timestamp of the record before it, by which its topic is recognised; None: not known."""
        self._number = number
        self._in_flight = in_flight
        self._journal_writer = journal_writer
        self._deduplication = deduplication
        self._driver = driver
        self._balance = balance
        self._dependencies = dependencies
        self._duplicates: dict[str, None] = {}
        """Identities whose duplicates were logged, the latest last."""
        self._other_keys = 0
        self._say_key_at = -math.inf

    def admit(self, records: Sequence[Record]) -> None:
        """Admit records in the order of the topic; records below the cursor were admitted before.

        An exception is a bug: nothing of the records is committed then, and the partition must not continue.
        """
        now = self._dependencies.clock.now()
        taken, held = Taken(self.cursor), 0
        try:
            for number, record in enumerate(records, 1):
                self._take(record, now, taken)
                if self._journal_writer.full or number == len(records):
                    self.hold(taken)
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
        self.stamp = record.timestamp_ms if record.unreadable is None else None
        asked = read_request(record)
        if isinstance(asked, InvalidRequest):
            taken.fates[Fate.DEAD_LETTERED] += 1
            taken.dead[asked.reason] += 1
            self._journal_writer.publish(write_dead_letter(record, asked, topic=self._dependencies.dead_letters))
            written = "Invalid message at offset %d of partition %d was written to the dead-letter topic: %s"
            self._journal_writer.after_commit(partial(log.warning, written, record.offset, self._number, asked.detail))
            return
        if isinstance(asked, SyncCancelRequested):
            taken.fates[Fate.CANCEL] += 1
            self._driver.cancel(asked, offset=record.offset)
            return
        if not asked.has_key:
            taken.without_key += 1
        if asked.other_key:
            taken.other_key += 1
            self._warn_of_key(asked, record)
        if asked.identity in self._in_flight or self._deduplication.holds(asked.identity):
            taken.fates[Fate.DUPLICATE] += 1
            self._log_duplicate(asked, record)
        else:
            taken.fates[Fate.ADMITTED] += 1
            self._admit(asked, record, now)

    def _warn_of_key(self, asked: SyncRequested, record: Record) -> None:
        """Say that the sender sets another key; once a minute, since a sender does so with all its requests."""
        self._other_keys += 1
        now = self._dependencies.clock.monotonic()
        if now < self._say_key_at:
            return
        self._say_key_at = now + SAY_KEY_AGAIN.total_seconds()
        log.warning(
            "The key of request %s at offset %d of partition %d is not its replicationId (%d such requests since the "
            "last line): requests of one replication may be in different partitions, and run at once; the sender has "
            "to use the replicationId as key",
            asked.identity,
            record.offset,
            self._number,
            self._other_keys,
            extra={"operation_id": asked.operation_id, "replication_id": asked.replication_id, "site": asked.site},
        )
        self._other_keys = 0

    def _log_duplicate(self, asked: SyncRequested, record: Record) -> None:
        """Say once of an identity that it came again, however often it comes."""
        if asked.identity in self._duplicates:
            return
        self._duplicates[asked.identity] = None
        if len(self._duplicates) > DUPLICATES:
            del self._duplicates[next(iter(self._duplicates))]
        log.info(
            "Duplicate of request %s at offset %d of partition %d was dropped: the request %s",
            asked.identity,
            record.offset,
            self._number,
            "is in flight" if asked.identity in self._in_flight else "ended within VM_SYNC_SYNC__DEDUPLICATE_FOR",
            extra={"operation_id": asked.operation_id, "replication_id": asked.replication_id, "site": asked.site},
        )

    def hold(self, taken: Taken) -> None:
        """Count fates of records after the next commit, which contains the cursor."""
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
        self._driver.accept(request)


def _written_at(record: Record, *, default: datetime) -> datetime:
    """The record's timestamp. A producer may have set it to anything: -1 (none), a year that Python doesn't know."""
    if record.timestamp_ms < 0:
        return default
    try:
        return sync.EPOCH + timedelta(milliseconds=record.timestamp_ms)  # exact, unlike `fromtimestamp`
    except OverflowError:
        return default
