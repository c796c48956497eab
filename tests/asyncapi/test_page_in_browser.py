"""The page at `/asyncapi`, looked at in a real browser that can reach nothing but this machine."""

import struct
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from service import asyncapi
from service.clock import Clock
from service.ops import health, server
from service.ops.overview import Overview
from tests.support.browser import chromium
from tests.support.shown_overview import some_overview

PAGE = asyncapi.document(asyncapi.Topics(), version="1.2.3")


def _operations() -> Starlette:
    return server.operations(
        health=health.Health(away_for_long=timedelta(minutes=1)),
        clock=Clock(),
        registry=CollectorRegistry(),
        documents={"/asyncapi": lambda: server.Document(asyncapi.to_page(PAGE).encode(), "text/html; charset=utf-8")},
        in_flight=lambda: (),
        overview=_overview,
        clean=str,
    )


async def _overview() -> Overview:
    return some_overview()


@pytest.mark.e2e
async def test_a_browser_without_internet_shows_every_channel_and_message(tmp_path: Path) -> None:
    async with server.serving(_operations(), host="127.0.0.1", port=0) as port:
        dom = await chromium(f"--user-data-dir={tmp_path / 'dom'}", "--dump-dom", f"http://127.0.0.1:{port}/asyncapi")

    shown = dom.decode()
    for channel in PAGE["channels"].values():
        assert channel["address"] in shown
    for message in PAGE["components"]["messages"].values():
        assert message["title"] in shown


@pytest.mark.e2e
async def test_a_browser_without_internet_draws_the_page(tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    async with server.serving(_operations(), host="127.0.0.1", port=0) as port:
        await chromium(
            f"--user-data-dir={tmp_path / 'shot'}",
            "--window-size=1200,2000",
            f"--screenshot={picture}",
            f"http://127.0.0.1:{port}/asyncapi",
        )

    header = picture.read_bytes()[:24]
    assert struct.unpack(">II", header[16:24]) == (1200, 2000)
    assert picture.stat().st_size > 50_000  # an empty page of this size packs into a few thousand bytes
