"""The pages for people, looked at in a real browser that can reach nothing but this machine."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.clock import Clock
from service.ops import page_frame, server
from service.ops.overview import Overview
from service.ops.page_frame import POLICY
from tests.ops.test_overview_page import HOSTILE
from tests.support.browser import PATIENCE, Window, window
from tests.support.shown_overview import some_overview, some_syncs
from tests.support.shown_syncs import ready

WIDTHS = (1280, 400)
"""Pixels: a desk's screen, and a phone's."""

LONG = "site-" + "x" * 120


@asynccontextmanager
async def pages(overview: Callable[[], Awaitable[Overview]], *, text: str = "site-b") -> AsyncIterator[str]:
    """Serve the pages; yield their address."""
    app = server.operations(
        health=ready(),
        clock=Clock(),
        registry=CollectorRegistry(),
        documents={},
        in_flight=lambda: some_syncs(text),
        overview=overview,
        clean=str,
    )
    async with server.serving(app, host="127.0.0.1", port=0) as port:
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def looking(folder: Path, *, text: str = "site-b") -> AsyncIterator[tuple[Window, str]]:
    async def overview() -> Overview:
        return some_overview(text)

    async with pages(overview, text=text) as address, window(folder) as seen:
        yield seen, address


@pytest.mark.e2e
@pytest.mark.parametrize("path", ["/", "/syncs"])
async def test_the_pages_fit_a_desk_and_a_phone_in_the_dark_and_in_the_light(path: str, tmp_path: Path) -> None:
    backgrounds = set()
    async with looking(tmp_path, text=LONG) as (seen, address):
        for width in WIDTHS:
            for dark in (False, True):
                await seen.open(address + path, width=width, dark=dark)
                assert await seen.evaluate("document.documentElement.scrollWidth") == width
                backgrounds.add(await seen.evaluate("getComputedStyle(document.body).backgroundColor"))
                picture = await seen.picture()
                assert struct.unpack(">I", picture[16:20]) == (width,)
                assert len(picture) > 20_000  # an empty page of this size packs into a few thousand bytes

        assert seen.problems == []
        assert set(seen.fetched) == {address + path}
    assert len(backgrounds) == 2


@pytest.mark.e2e
async def test_style_and_script_work_under_the_policy(tmp_path: Path) -> None:
    async with looking(tmp_path) as (seen, address):
        await seen.open(f"{address}/", width=1280)

        assert await seen.evaluate("getComputedStyle(document.querySelector('.card')).borderRadius") == "9.6px"
        assert await seen.evaluate("document.querySelectorAll('svg.bar rect').length") == 5
        # A style or a script of somebody else's is refused, and shows up among the problems: the policy is in force.
        for element, content in (("style", "{textContent: 'b {}'}"), ("script", "{text: 'hit = 1'}")):
            await seen.evaluate(f"document.body.append(Object.assign(document.createElement('{element}'), {content}))")
        assert await seen.evaluate("typeof hit") == "undefined"
        assert len(seen.problems) == 2
        assert all("Content Security Policy" in problem for problem in seen.problems)


@pytest.mark.e2e
@pytest.mark.parametrize("path", ["/", "/syncs"])
async def test_hostile_texts_run_nothing_and_load_nothing(path: str, tmp_path: Path) -> None:
    text = "".join(HOSTILE).replace("x" * 100_000, "")
    async with looking(tmp_path, text=text) as (seen, address):
        await seen.open(address + path, width=400)

        assert await seen.evaluate("document.querySelectorAll('img, h1').length") == 1, "its own headline"
        assert await seen.evaluate("document.body.textContent.includes('<script>alert(1)</script>')")
        assert await seen.evaluate("document.documentElement.scrollWidth") == 400
        assert seen.problems == []
        assert set(seen.fetched) == {address + path}


@pytest.mark.e2e
async def test_the_page_renews_itself_and_says_when_the_instance_no_longer_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The script that the browser runs is the real one, in a hurry; the policy has its hash.
    hurried = page_frame.SCRIPT.replace("usual = 5000, longest = 60000", "usual = 100, longest = 200")
    assert hurried != page_frame.SCRIPT
    policy = POLICY.replace(page_frame._hash(page_frame.SCRIPT), page_frame._hash(hurried))
    monkeypatch.setattr(page_frame, "SCRIPT", hurried)
    monkeypatch.setitem(server.PAGE_HEADERS, "content-security-policy", policy)
    monkeypatch.setattr(server, "KEEP", timedelta())
    looks = 0
    may_answer = asyncio.Event()
    may_answer.set()

    async def overview() -> Overview:
        nonlocal looks
        looks += 1
        await may_answer.wait()
        return replace(some_overview(), completed=looks)

    async with window(tmp_path) as seen:
        async with pages(overview) as address:
            await seen.open(f"{address}/", width=1280)
            await until(seen, "document.body.textContent.includes('5 completed')")
            may_answer.clear()
            before = looks
            async with asyncio.timeout(PATIENCE):
                while looks == before:
                    await asyncio.sleep(0.01)
            before = looks
            await seen.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
            may_answer.set()  # of a page that was asked for before the selection
            await asyncio.sleep(0.8)
            assert looks == before, "somebody is about to copy something"
            await seen.evaluate("getSelection().removeAllRanges()")
            await until(seen, f"document.body.textContent.includes('{before + 2} completed')")
            assert await seen.evaluate("document.getElementById('stale').hidden")
            assert seen.problems == []

        await until(seen, "!document.getElementById('stale').hidden")
        assert await seen.evaluate("document.querySelectorAll('main').length") == 1, "the last state stays"


async def until(seen: Window, condition: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await seen.evaluate(condition):
            await asyncio.sleep(0.05)
