"""A batch that would fill the memory when it is decompressed is refused; all others are decompressed as before."""

import gzip
import importlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiokafka.codec
import pytest
from aiokafka.record import default_records

import service.kafka.clients  # noqa: F401 - bounds them
from service.kafka import decompression
from service.kafka.decompression import LARGEST, READERS, TooLargeDecompressed
from service.sandbox.kafka import Kafka
from tests.conftest import TopicNamer
from tests.support.kafka_harness import Station, good, word

CODECS = ("gzip", "lz4", "zstd")


def functions(codec: str) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    """Return what compresses with a codec, and what Kafka's client decompresses with."""
    return getattr(aiokafka.codec, f"{codec}_encode"), getattr(default_records, f"{codec}_decode")


@pytest.mark.parametrize("codec", CODECS)
def test_what_fits_is_decompressed_whole_and_one_byte_more_is_refused(codec: str) -> None:
    encode, decode = functions(codec)

    for payload in (b"", b"x", bytes(range(256)) * 1000, bytes(LARGEST)):
        assert decode(memoryview(bytes(encode(payload)))) == payload
    with pytest.raises(TooLargeDecompressed):
        decode(memoryview(bytes(encode(bytes(LARGEST + 1)))))


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_broken_is_still_an_error_of_its_own(codec: str) -> None:
    encode, decode = functions(codec)

    with pytest.raises(Exception, match=r"\w") as error:
        decode(bytes(encode(b"abc" * 1000))[:-9])
    assert not isinstance(error.value, TooLargeDecompressed)


def test_gzip_may_have_several_parts() -> None:
    assert decompression.gunzip(gzip.compress(b"one ") + gzip.compress(b"two")) == b"one two"


@pytest.mark.parametrize("name", READERS)
def test_each_reader_of_batches_is_bounded(name: str) -> None:
    reader = importlib.import_module(name)

    for codec in CODECS:
        if hasattr(reader, f"{codec}_decode"):
            assert getattr(reader, f"{codec}_decode") is getattr(default_records, f"{codec}_decode"), codec
    assert reader.gzip_decode is decompression.gunzip


@pytest.fixture
async def station(kafka: Kafka, topic_name: TopicNamer) -> AsyncIterator[Station]:
    async with Station(kafka.bootstrap, topic_name("decompression")) as station:
        yield station


@pytest.mark.parametrize("codec", CODECS)
async def test_a_batch_that_would_fill_the_memory_costs_its_own_records_alone(
    station: Station, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    monkeypatch.setattr(decompression, "LARGEST", 1024 * 1024)
    huge = {"key": b"C4-huge", "value": bytes(700_000)}
    await station.ask("before")
    await station.send_together([huge, huge], compression=codec)
    await station.send_together([good("packed-1"), good("packed-2")], compression=codec)
    service = await station.service()

    await station.settled("before", "packed-1", "packed-2")
    letters = await station.dead_letters(2)
    assert [(word(letter, "reason"), word(letter, "offset")) for letter in letters] == [
        ("unreadable", "1"),
        ("unreadable", "2"),
    ]
    assert word(letters[0], "detail") == "Its batch is larger than 32 MiB when it is decompressed."
    assert service.metric("requests_total", result="accepted") == 3
