"""A process without a file descriptor left says so."""

import asyncio

import pytest

from service.ops.descriptors import watch
from tests.support.descriptors import no_more_descriptors
from tests.support.virtual_time import VirtualClock, virtual


@virtual
async def test_a_want_of_file_descriptors_is_logged_once_a_minute_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watching = asyncio.create_task(watch(VirtualClock(asyncio.get_running_loop())))
    await asyncio.sleep(600)
    assert caplog.messages == []

    with no_more_descriptors():
        await asyncio.sleep(90)
    await asyncio.sleep(90)
    watching.cancel()

    assert [(record.levelname, record.getMessage()[:29]) for record in caplog.records] == [
        ("ERROR", "No file descriptor is left: n"),
        ("ERROR", "No file descriptor is left: n"),
        ("WARNING", "There are file descriptors ag"),
    ]
    assert caplog.messages[-1] == "There are file descriptors again, after 90 s"
