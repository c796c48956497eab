"""A batch that the client gives up as a whole is taken apart: only what can't be read of it is lost."""

import gzip
import struct
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    UnsupportedCodecError,
)
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.default_records import _DefaultRecordBatchPy as DefaultRecordBatch

from service.kafka.decompression import TooLargeDecompressed
from service.kafka.salvage import BATCH_BYTES, UnreadableRecord, batch_at, salvaged
from tests.support.kafka_harness import seal

PLACE = TopicPartition("vm-sync.requests", 3)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
BASE = 100
BAD_NAME = "A header's name is not UTF-8."
NOT_UTF_8 = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


class Leader:
    """A client whose partition's leader answers a fetch with these bytes, or with an error."""

    def __init__(self, fetched: bytes = b"", *, code: int = 0, leads: int | None = 1) -> None:
        self._fetched = fetched
        self._code = code
        self.asked: list[tuple[int, Any]] = []
        self.cluster = SimpleNamespace(leader_for_partition={PLACE: leads}.get)

    async def send(self, node: int, request: Any) -> SimpleNamespace:
        self.asked.append((node, request))
        return SimpleNamespace(topics=[(PLACE.topic, [(PLACE.partition, self._code, 0, 0, 0, None, self._fetched)])])


def batch(numbers: Iterable[int], *, bad: Iterable[int] = (), packed: bool = False) -> bytes:
    """Return a batch at offset BASE with a record for each number; the name of a bad one's header isn't UTF-8."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 100_000)
    for number in numbers:
        name = "NAME" if number in bad else "name"
        builder.append(number, timestamp=1_000 + 7 * number, key=b"%d" % number, value=b"{}", headers=[(name, b"")])
    whole = bytearray(builder.build()).replace(b"NAME", b"\xff\xfe\xfd\xfc")
    if packed:
        head = DefaultRecordBatch.HEADER_STRUCT.size
        whole[head:] = gzip.compress(whole[head:])
        length = len(whole) - DefaultRecordBatch.AFTER_LEN_OFFSET
        struct.pack_into(">i", whole, 8, length)
        struct.pack_into(">h", whole, DefaultRecordBatch.ATTRIBUTES_OFFSET, DefaultRecordBatch.CODEC_GZIP)
    struct.pack_into(">q", whole, 0, BASE)
    seal(whole)
    return bytes(whole)


async def salvage(leader: Leader, offset: int, error: Exception = NOT_UTF_8) -> dict[int, str | bytes | None]:
    """Return by offset the key of each record, or why it is unreadable."""
    records = await salvaged(PLACE, offset, error, client=leader, now=NOW)
    return {record.offset: getattr(record, "unreadable", record.key) for record in records}


async def test_of_a_batch_with_a_bad_record_its_neighbours_are_handed_over_as_they_are() -> None:
    leader = Leader(batch(range(4), bad=[1, 2]))
    before, bad, _, after = await salvaged(PLACE, 100, NOT_UTF_8, client=leader, now=NOW)

    assert (before.topic, before.partition, before.offset, before.timestamp) == (*PLACE, 100, 1_000)
    assert (after.key, after.value, after.headers, after.timestamp) == (b"3", b"{}", (("name", b""),), 1_021)
    assert (after.serialized_key_size, after.serialized_value_size) == (1, 2)
    assert isinstance(bad, UnreadableRecord)
    assert (bad.topic, bad.partition, bad.offset, bad.key, bad.value, bad.headers) == (*PLACE, 101, None, None, ())
    assert bad.timestamp == NOW.timestamp() * 1000
    assert await salvage(leader, 100) == {100: b"0", 101: BAD_NAME, 102: BAD_NAME, 103: b"3"}


async def test_records_before_the_one_that_is_read_next_are_not_handed_over_again() -> None:
    leader = Leader(batch(range(4), bad=[2]))
    assert await salvage(leader, 102) == {102: BAD_NAME, 103: b"3"}
    [(node, request)] = leader.asked
    assert node == 1
    assert request._topics == [(PLACE.topic, [(PLACE.partition, 102, BATCH_BYTES)])]


@pytest.mark.parametrize("packed", [False, True])
async def test_offsets_that_a_batch_lacks_are_not_taken_for_records(packed: bool) -> None:
    leader = Leader(batch([0, 5, 9], bad=[5], packed=packed))
    assert await salvage(leader, 100) == {100: b"0", 105: BAD_NAME, 109: b"9"}


async def test_of_a_batch_that_cannot_be_decompressed_each_record_is_unreadable() -> None:
    whole = bytearray(batch(range(3), packed=True))
    whole[70:74] = bytes(4)
    seal(whole)
    text = "Kafka's client could not decode it (EOFError)."
    assert await salvage(Leader(bytes(whole)), 101, EOFError()) == {101: text, 102: text}


def with_second_record(change: Callable[[bytearray], None]) -> bytes:
    """Return a batch of four records, the second of them changed."""
    whole = bytearray(batch(range(4)))
    head = DefaultRecordBatch.HEADER_STRUCT.size
    size = 1 + whole[head] // 2  # all are equally long, and say so in their first byte, doubled
    second = whole[head + size : head + 2 * size]
    change(second)
    whole[head + size : head + 2 * size] = second
    seal(whole)
    return bytes(whole)


LENGTH, OFFSET, KEY_LENGTH = 0, 3, 4
"""Where they stand in a record of a batch like these."""


@pytest.mark.parametrize("length", [0, 1, 5, 0x7E, 0x7F])
async def test_behind_a_record_whose_length_is_wrong_each_offset_of_the_batch_is_unreadable(length: int) -> None:
    fetched = with_second_record(lambda record: record.__setitem__(LENGTH, length))
    assert await salvage(Leader(fetched), 100) == {100: b"0", 101: BAD_NAME, 102: BAD_NAME, 103: BAD_NAME}


@pytest.mark.parametrize("delta", [-1, 0, 4, 60])
async def test_a_record_with_an_offset_out_of_order_moves_reading_neither_back_nor_beyond_the_batch(delta: int) -> None:
    fetched = with_second_record(lambda record: record.__setitem__(OFFSET, 2 * delta % 128))
    assert await salvage(Leader(fetched), 100) == {100: b"0", 101: BAD_NAME, 102: BAD_NAME, 103: BAD_NAME}


async def test_a_record_that_names_more_bytes_than_there_are_costs_itself_alone_and_not_the_process() -> None:
    def longer(record: bytearray) -> None:
        record[KEY_LENGTH : KEY_LENGTH + 9] = b"\xfe" * 8 + b"\x7e"  # an address that the process doesn't have

    expected = {100: b"0", 101: BAD_NAME, 102: b"2", 103: b"3"}
    assert await salvage(Leader(with_second_record(longer)), 100) == expected


@pytest.mark.parametrize(
    "fetched",
    [
        pytest.param(batch([0, 1])[:-1], id="cut off"),
        pytest.param(batch([0, 1])[:30], id="cut off in its head"),
        pytest.param(b"", id="nothing"),
        pytest.param(batch([0, 1])[:16] + b"\1" + batch([0, 1])[17:], id="an old format"),
        pytest.param(batch([0, 1])[:-1] + b"\xaa", id="a wrong checksum"),
    ],
)
async def test_where_nothing_of_a_batch_can_be_trusted_the_record_that_is_read_next_is_lost_alone(
    fetched: bytes,
) -> None:
    text = "Its checksum does not match its bytes."
    assert await salvage(Leader(fetched), 100, CorruptRecordException()) == {100: text}


async def test_only_the_first_batch_of_a_fetch_is_taken_apart() -> None:
    assert await salvage(Leader(batch([0, 1], bad=[0]) + batch([7])), 100) == {100: BAD_NAME, 101: b"1"}


async def test_a_batch_whose_leader_refuses_it_or_is_unknown_is_not_taken_for_a_bad_one() -> None:
    with pytest.raises(NotLeaderForPartitionError):
        await batch_at(PLACE, 100, client=Leader(code=NotLeaderForPartitionError.errno))
    for leads in (None, -1):
        with pytest.raises(LeaderNotAvailableError):
            await batch_at(PLACE, 100, client=Leader(batch([0]), leads=leads))
    assert await batch_at(PLACE, 100, client=Leader(batch([0]), leads=0)) is not None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UnsupportedCodecError(), "It is compressed with a codec that this client does not have."),
        (TooLargeDecompressed(), "Its batch is larger than 32 MiB when it is decompressed."),
        (ValueError("secret"), "Kafka's client could not decode it (ValueError)."),
    ],
)
async def test_why_a_record_is_unreadable_is_said_without_its_content(error: Exception, text: str) -> None:
    assert await salvage(Leader(), 100, error) == {100: text}
