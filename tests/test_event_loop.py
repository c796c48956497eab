"""The event loop, against a peer that talks on after our good-bye and never says its own, as Kafka's brokers do."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import trustme

from service import event_loop as loop

SHORT = 0.2


@pytest.fixture
def talker() -> Iterator[tuple[tuple[str, int], ssl.SSLContext]]:
    """Serve one connection from a thread; yields where, and whom to trust."""
    authority, over = trustme.CA(), threading.Event()
    there, here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(there)
    authority.configure_trust(here)

    def talk() -> None:
        accepted, _ = listener.accept()
        with there.wrap_socket(accepted, server_side=True) as connection, contextlib.suppress(OSError):
            connection.recv(1)
            connection.sendall(b"an answer that comes too late")
            over.wait(60)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=talk)
        thread.start()
        yield listener.getsockname(), here
        over.set()
        thread.join()


def test_a_tls_connection_whose_peer_talks_on_is_closed_soon(
    talker: tuple[tuple[str, int], ssl.SSLContext],
) -> None:
    async def seconds_to_close() -> float:
        (host, port), context = talker
        _, writer = await asyncio.open_connection(host, port, ssl=context)
        writer.write(b"?")
        await writer.drain()
        began = asyncio.get_running_loop().time()
        writer.close()
        with contextlib.suppress(OSError):  # how it ended is of no interest: TimeoutError is one
            await asyncio.wait_for(writer.wait_closed(), 60)
        return asyncio.get_running_loop().time() - began

    with asyncio.Runner(loop_factory=loop.factory(farewell=SHORT)) as runner:
        assert runner.run(seconds_to_close()) < 20  # asyncio's own limit is 30 s


def test_the_service_runs_on_the_fast_loop() -> None:
    pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=loop.factory()) as runner:
        assert "uvloop" in [base.__module__.split(".")[0] for base in type(runner.get_loop()).__mro__]


async def test_an_error_of_work_whose_caller_was_cancelled_is_logged_unless_it_is_expected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_on = asyncio.Event()

    async def work(error: Exception) -> None:
        await go_on.wait()
        raise error

    waiting = [
        asyncio.create_task(loop.to_its_end(work(error), expected=(OSError,)))
        for error in (ZeroDivisionError(), TimeoutError())
    ]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait(waiting)

    assert [task.cancelled() for task in waiting] == [True, True]
    (record,) = caplog.records
    assert record.getMessage().endswith("work, whose caller was cancelled")
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_work_that_fails_after_its_caller_has_given_up_is_no_error_and_other_errors_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    running = asyncio.get_running_loop()
    running.set_exception_handler(loop.report)
    go_on = asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        raise ZeroDivisionError

    shielded = asyncio.create_task(work())
    waiting = asyncio.create_task(asyncio.wait_for(asyncio.shield(shielded), 60))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    go_on.set()
    await asyncio.wait([shielded])
    await asyncio.sleep(0)
    running.call_exception_handler({"message": "An error of a callback"})

    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "An error of a callback"
    ]


async def test_the_end_of_a_task_that_nothing_awaits_is_logged_if_it_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    works = (fail(), asyncio.sleep(0), asyncio.sleep(9))
    tasks = [loop.log_death(asyncio.create_task(work), "a test") for work in works]
    tasks[2].cancel()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)

    assert [record.getMessage() for record in caplog.records] == ["Internal error in a test, which has ended"]


async def test_a_task_that_ends_as_cancelled_although_nobody_has_cancelled_it_has_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def wait_for_what_a_library_cancels() -> None:
        theirs = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(theirs.cancel)
        await theirs

    task = loop.log_death(asyncio.create_task(wait_for_what_a_library_cancels()), "a test")
    await asyncio.wait([task])
    await asyncio.sleep(0)

    assert task.cancelled()
    assert isinstance(loop.error_of(task), loop.CancelledFromWithin)
    assert [record.getMessage() for record in caplog.records] == ["Internal error in a test, which has ended"]


WITHOUT_A_THREAD = """
import threading, time
from service import event_loop

def refuse(_):
    raise RuntimeError("can't start new thread")

threading.Thread(target=time.sleep, args=[3_600]).start()
threading.Thread.start = refuse
event_loop.end_soon(7)
"""


def test_a_process_that_gets_no_thread_to_watch_its_end_waits_for_none_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_THREAD], capture_output=True, check=False, timeout=60)

    assert done.returncode == 7
