"""A Kafka consumer that doesn't trip over a record that its own library can't read.

aiokafka decodes header names while records are handed out, and decompresses batches then, too. A name that isn't
UTF-8, or an unknown codec, makes `getmany` raise: for ever, for all partitions, while records of the others that were
handed out in the same call are never seen (measured). Here each partition is asked on its own; one that raises is
read again, record by record, up to the bad one, which is handed on as an `UnreadableRecord`.

It never decides what becomes of a record, and never skips one silently.
"""

import asyncio
import logging
from collections import Counter
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import CorruptRecordException, KafkaError, UnsupportedCodecError
from typing_extensions import override

from service.clock import Clock

log = logging.getLogger(__name__)

Records = dict[TopicPartition, list[ConsumerRecord]]


class UnreadableRecord(ConsumerRecord):  # type: ignore[misc] # aiokafka is untyped
    """Stands for a record that exists at its offset and can't be handed over; `key` and `value` are None."""

    unreadable: str


class SteadyConsumer(AIOKafkaConsumer):  # type: ignore[misc] # aiokafka is untyped
    """See the module.

    `seeks` counts the seeks of each partition, and `fetched_under` says under which count the last `getmany` began to
    fetch it: records of one count follow each other without a gap, those of another don't.
    """

    def __init__(self, *topics: str, clock: Clock, **options: Any) -> None:  # noqa: ANN401 - aiokafka's own, passed on
        super().__init__(*topics, **options)
        self._clock = clock
        self.seeks: Counter[TopicPartition] = Counter()
        self.fetched_under: dict[TopicPartition, int] = {}
        self.asked_at = clock.monotonic()
        """When `getmany` was last called, for whoever wonders whether the reading loop still turns."""
        self._bad: dict[TopicPartition, int] = {}

    @override
    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Seek; what was fetched before is told apart from what comes."""
        self.seeks[partition] += 1
        self._bad.pop(partition, None)
        super().seek(partition, offset)

    @override
    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> Records:
        """Return records of any assigned partition; waits up to `timeout_ms` until there are some."""
        until = self._clock.monotonic() + timeout_ms / 1000
        while True:
            self.asked_at = self._clock.monotonic()
            got = await self._collect(partitions, max_records)
            left = until - self._clock.monotonic()
            if got or left <= 0:
                return got
            if not self._fetcher._records:
                waiter = self._fetcher._create_fetch_waiter()
                await asyncio.wait([waiter], timeout=left)
                if waiter.done():
                    waiter.result()  # authorization errors come this way
                else:
                    waiter.cancel()
            else:
                # What lies there belongs to partitions that are paused or being taken away: wait without turning.
                await asyncio.sleep(min(left, 0.02))

    async def _collect(self, partitions: tuple[TopicPartition, ...], max_records: int | None) -> Records:
        got: Records = {}
        if self._subscription.reassignment_in_progress or not self._fetcher._records:
            await super().getmany(TopicPartition("", -1))  # raises what the coordinator has to say
        for place in list(self._fetcher._records):
            if partitions and place not in partitions:
                continue
            under = self.seeks[place]
            records = await self._ask(place, max_records)
            if records:
                got[place] = records
                self.fetched_under[place] = under
        return got

    async def _ask(self, place: TopicPartition, max_records: int | None) -> list[ConsumerRecord]:
        try:
            position = await self.position(place)
        except KafkaError:
            return []  # taken away meanwhile
        bad = self._bad.get(place)
        if bad is not None and position > bad:
            del self._bad[place]
            bad = None
        try:
            got = await super().getmany(place, max_records=max_records if bad is None else 1)
        except Exception as error:
            if isinstance(error, KafkaError) and not isinstance(error, UnsupportedCodecError | CorruptRecordException):
                raise
            return self._stumbled(place, position, error)
        return list(got.get(place, ()))

    def _stumbled(self, place: TopicPartition, position: int, error: Exception) -> list[ConsumerRecord]:
        result = self._fetcher._records.get(place)
        # Past control records and aborted batches, which `position` doesn't know of when the first record is bad.
        offset = max(position, result._partition_records.next_fetch_offset) if result is not None else position
        if self._bad.get(place) != offset:
            # Records before it were lost on the way: read them again, one by one.
            self._bad[place] = offset
            super().seek(place, position)
            return []
        log.warning("Record %d of %s can't be read: %s", offset, place, type(error).__name__)
        super().seek(place, offset + 1)
        del self._bad[place]
        record = UnreadableRecord(
            topic=place.topic,
            partition=place.partition,
            offset=offset,
            timestamp=int(self._clock.now().timestamp() * 1000),
            timestamp_type=0,
            key=None,
            value=None,
            checksum=None,
            serialized_key_size=-1,
            serialized_value_size=-1,
            headers=(),
        )
        record.unreadable = _sentence(error)
        return [record]


def _sentence(error: Exception) -> str:
    """Say what is wrong without repeating what the record held."""
    if isinstance(error, UnicodeDecodeError):
        return "A header's name is not UTF-8."
    if isinstance(error, UnsupportedCodecError):
        return "It is compressed with a codec that this client does not have."
    if isinstance(error, CorruptRecordException):
        return "Its checksum does not fit its bytes."
    return f"Kafka's client could not decode it ({type(error).__name__})."
