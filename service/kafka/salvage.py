"""Takes a batch apart that aiokafka gives up as a whole: each record as it is, or as an `UnreadableRecord`.

aiokafka reads a batch from its beginning whatever is asked of it, so that one bad record hides its neighbours.
"""

import logging
from collections.abc import Iterator
from datetime import datetime

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import CorruptRecordException, LeaderNotAvailableError, UnsupportedCodecError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import _DefaultRecordBatchPy as DefaultRecordBatch
from aiokafka.record.default_records import _DefaultRecordPy as DefaultRecord
from aiokafka.record.util import decode_varint_py as decode_varint

from service.kafka.decompression import LARGEST, TooLargeDecompressed

log = logging.getLogger(__name__)

BATCH_BYTES = 1024 * 1024
"""What is fetched of the batch. A broker returns a whole batch, however long it is."""

CURRENT_FORMAT = 2
"""The only format of batches that Kafka has written since 0.11."""


class UnreadableRecord(ConsumerRecord):  # type: ignore[misc] # aiokafka is untyped
    """Stands for a record that exists at its offset and can't be handed over; `key` and `value` are None."""

    unreadable: str


async def salvaged(
    place: TopicPartition, offset: int, error: Exception, *, client: AIOKafkaClient, now: datetime
) -> list[ConsumerRecord]:
    """Return the records from `offset` to the end of its batch, which aiokafka could not read because of `error`.

    Records that can't be read are among them, as such; at least the one at `offset` is there.

    Raises:
        KafkaError: the batch can't be had now.
    """
    batch = await batch_at(place, offset, client=client)
    records: list[ConsumerRecord] = []
    end = offset + 1
    if batch is not None and batch.validate_crc():
        end = max(end, batch.next_offset)
        try:
            iter(batch)  # decompresses
            for number, record in _each(batch):
                if number >= offset:
                    records.append(_unreadable(place, error, number, now) if record is None else _read(place, record))
        except Exception as trouble:  # noqa: BLE001 - whatever a codec makes of bytes that may be anything
            log.debug("Parsing the batch at offset %d of partition %d failed: %r", offset, place.partition, trouble)
    begin = records[-1].offset + 1 if records else offset
    return records + [_unreadable(place, error, number, now) for number in range(begin, end)]


async def batch_at(place: TopicPartition, offset: int, *, client: AIOKafkaClient) -> DefaultRecordBatch | None:
    """Fetch the batch that holds `offset`, as it is; None where it is not of the current format.

    Raises:
        KafkaError: it can't be had now.
    """
    leader = client.cluster.leader_for_partition(place)
    if leader is None or leader < 0:
        raise LeaderNotAvailableError
    request = FetchRequest(0, 1, BATCH_BYTES, 0, [(place.topic, [(place.partition, offset, BATCH_BYTES)])])
    response = await client.send(leader, request)
    ((_, ((_, code, *_, fetched),)),) = response.topics
    if code:
        raise for_code(code)
    head = DefaultRecordBatch.HEADER_STRUCT
    if len(fetched) < head.size:
        return None
    _, length, _, magic, *_ = head.unpack_from(fetched)
    whole = DefaultRecordBatch.AFTER_LEN_OFFSET + length
    return DefaultRecordBatch(fetched[:whole]) if magic == CURRENT_FORMAT and len(fetched) >= whole else None


def _each(batch: DefaultRecordBatch) -> Iterator[tuple[int, DefaultRecord | None]]:
    """Yield each record of a decompressed batch with its offset; None where it can't be read.

    Records say their length first, so that one can be passed over whatever is in it. Numbers are read in Python: the
    compiled reader doesn't check bounds, so that a wrong length would end the process.

    Raises:
        CorruptRecordException: an offset is out of order, so a length was wrong, and what follows is no record.
        IndexError: there are fewer records than the batch says.
    """
    last, count = -1, batch.next_offset - batch.base_offset
    for _ in range(batch._num_records):
        length, begin = decode_varint(batch._buffer, batch._pos)
        _, at = decode_varint(batch._buffer, begin)
        _, at = decode_varint(batch._buffer, at)
        delta, _ = decode_varint(batch._buffer, at)
        if not last < delta < count:
            raise CorruptRecordException
        last = delta
        try:
            record = batch._read_msg(decode_varint)
        except (ValueError, IndexError, CorruptRecordException):
            record = None
        batch._pos = begin + length
        yield batch.base_offset + delta, record


def _unreadable(place: TopicPartition, error: Exception, offset: int, now: datetime) -> UnreadableRecord:
    record = UnreadableRecord(
        topic=place.topic,
        partition=place.partition,
        offset=offset,
        timestamp=int(now.timestamp() * 1000),
        timestamp_type=0,
        key=None,
        value=None,
        checksum=None,
        serialized_key_size=-1,
        serialized_value_size=-1,
        headers=(),
    )
    record.unreadable = _sentence(error)
    return record


def _read(place: TopicPartition, record: DefaultRecord) -> ConsumerRecord:
    return ConsumerRecord(
        topic=place.topic,
        partition=place.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        timestamp_type=record.timestamp_type,
        key=record.key,
        value=record.value,
        checksum=None,
        serialized_key_size=len(record.key or b""),
        serialized_value_size=len(record.value or b""),
        headers=tuple(record.headers),
    )


def _sentence(error: Exception) -> str:
    """Describe the error without the record's content."""
    if isinstance(error, UnicodeDecodeError):
        return "A header's name is not UTF-8."
    if isinstance(error, UnsupportedCodecError):
        return "It is compressed with a codec that this client does not have."
    if isinstance(error, TooLargeDecompressed):
        return f"Its batch is larger than {LARGEST // 1024**2} MiB when it is decompressed."
    if isinstance(error, CorruptRecordException):
        return "Its checksum does not match its bytes."
    return f"Kafka's client could not decode it ({type(error).__name__})."
