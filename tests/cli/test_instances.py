"""What answers in place of an instance of the service: it may say anything, and for ever."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from typing_extensions import override

from service.cli import instances

SYNC: dict[str, Any] = {"requestId": "op:C4-1:a", "state": "running", "progress": 5}
SITE: dict[str, Any] = {"site": None, "pause": None, "obstacle": None, "withoutCredentials": False}


def answer(body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))


async def read(answer: httpx.Response) -> Any:
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer)) as client:
        return await instances.read_page(client, "http://ops", {})


@pytest.mark.parametrize("more", [{}, {"sites": None}, {"sites": [SITE]}, {"later": 1}])
async def test_a_page_is_read_whatever_release_it_is_of(more: dict[str, Any]) -> None:
    page = {"syncs": [SYNC], "next": None} | more

    assert await read(answer(json.dumps(page).encode())) == page


ODD_SYNCS: tuple[dict[str, Any], ...] = (
    {"requestId": 1},
    {"state": None},
    {"progress": "5"},
    {"progress": 1e9},
    {"waitsFor": "x"},
)
ODD_SITES: tuple[dict[str, Any], ...] = (
    {"site": []},
    {"pause": {"until": 5}},
    {"obstacle": {"cause": "x", "detail": 7}},
)
ODD: tuple[dict[str, Any], ...] = (
    {"syncs": {}},
    {"syncs": [5]},
    {"next": 5},
    *[{"syncs": [SYNC | odd]} for odd in ODD_SYNCS],
    *[{"sites": [SITE | odd]} for odd in ODD_SITES],
)


@pytest.mark.parametrize("odd", ODD, ids=json.dumps)
async def test_a_page_with_a_field_of_another_type_is_none(odd: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        await read(answer(json.dumps({"syncs": [SYNC], "next": None} | odd).encode()))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 100_000, b"{}", b"[]", b"\xff"])
async def test_what_is_no_page_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the libraries' own words
        await read(answer(body))


class Endless(httpx.AsyncByteStream):
    """An answer that never ends, as fast as it is read or not at all."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent
        self.given = 0

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(3600 if self.silent else 0)
            self.given += 100_000
            yield b" " * 100_000


async def test_an_answer_that_never_ends_is_given_up_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "LONGEST", 1_000_000)

    endless = Endless(silent=False)

    with pytest.raises(ValueError, match="longer than 1000000 bytes"):
        await read(httpx.Response(200, stream=endless))

    assert endless.given <= 1_100_000


async def test_an_answer_that_never_ends_is_given_up_by_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "WHOLE", 0.05)

    with pytest.raises(TimeoutError):
        await read(httpx.Response(200, stream=Endless(silent=True)))


async def test_a_zipped_answer_is_not_unzipped() -> None:
    with pytest.raises(ValueError, match="expected value"):
        await read(answer(gzip.compress(b'{"syncs": [], "next": null}'), {"content-encoding": "gzip"}))
