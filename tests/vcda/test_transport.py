"""What the transport adds to the wire: when it writes once more, what it refuses to write, and its sockets."""

import asyncio
import json
import socket
from datetime import timedelta

import aiohttp
import pytest

from service.sync import Accepted, Trouble
from service.vcda import transport
from service.vcda.http import Operation
from service.vcda.transport import sockets
from tests.support.scripted_http_server import (
    TASK_ID,
    Answer,
    Appliance,
    Cut,
    Ours,
    Reply,
    appliance,
    ours,
    page,
    script,
    task,
)


async def test_a_poll_on_a_kept_connection_that_ends_without_an_answer_is_made_once_more() -> None:
    answers: list[Answer] = [page(task()), Cut(), page(task()), Cut(), Cut()]
    async with appliance(script(tasks=lambda _: answers.pop(0))) as there, ours(there.url) as us:
        assert isinstance(await us.vcda.poll(site=None, ids=[TASK_ID]), list)
        assert isinstance(await us.vcda.poll(site=None, ids=[TASK_ID]), list)
        assert isinstance(await us.vcda.poll(site=None, ids=[TASK_ID]), Trouble)

        assert len(there.seen("GET /tasks")) == 5


async def test_an_answer_that_announces_another_one_is_waited_out() -> None:
    accepted = json.dumps(task()).encode()
    whole = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 202 OK\r\nContent-Length: %d\r\n\r\n" % len(
        accepted
    )
    async with appliance(script(submit=Cut(whole + accepted))) as there, ours(there.url) as us:
        assert isinstance(await us.submit(), Accepted)


@pytest.mark.parametrize(
    ("target", "token"),
    [("/tasks?ids=a b", "t"), ("/tasks\r\nHost: x", "t"), ("/tasks", "t\r\nHost: x"), ("/tasks", "t\nHost: x")],
)
async def test_what_would_end_a_line_of_the_request_is_not_sent(target: str, token: str) -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        with pytest.raises(ValueError, match="where none belongs"):
            await us.vcda._wire.call("poll", method="GET", target=target, token=token)

        assert there.received == 0


async def test_the_kernel_gives_up_when_we_do() -> None:
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("only Linux has TCP_USER_TIMEOUT")
    make = sockets(timedelta(seconds=30))
    with make((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))) as made:
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


@pytest.mark.parametrize(
    "unasked",
    [
        pytest.param(Reply(202, task()), id="a second copy of the last answer"),
        pytest.param(Reply(408, headers={"Connection": "close"}), id="408 as idle connections get it"),
        pytest.param(Cut(b"garbage"), id="garbage"),
    ],
)
async def test_bytes_that_come_while_a_connection_is_idle_are_not_taken_for_the_next_answer(
    unasked: Reply | Cut,
) -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        await us.submit()
        await _send_unasked(there, unasked.encode() if isinstance(unasked, Reply) else unasked.data)
        await _until_idle_connections_have_bytes(us, "submit")
        there.script = script(submit=Reply(202, task(id="another-task")))

        answer = await us.submit()

        assert isinstance(answer, Accepted)
        assert answer.task.id == "another-task"
        assert len(there.posts) == 2


async def test_a_busy_connection_is_replaced_in_time_so_that_calls_go_where_the_name_points_by_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with appliance(script(tasks=page(task()))) as there, ours(there.url) as us:
        for _ in range(3):
            await us.vcda.poll(site=None, ids=[TASK_ID])
        assert there.connections == 2, "one for the login, one for polls"

        monkeypatch.setattr(transport, "LONGEST_KEPT", 0.0)
        assert isinstance(await us.vcda.poll(site=None, ids=[TASK_ID]), list)
        assert there.connections == 3


async def _send_unasked(there: Appliance, data: bytes) -> None:
    for writer in list(there.writers):
        writer.write(data)
        await writer.drain()


async def _until_idle_connections_have_bytes(us: Ours, operation: Operation) -> None:
    session = us.vcda._wire._ways[operation].client
    assert isinstance(session, aiohttp.ClientSession)
    assert session.connector is not None
    idle = [protocol for kept in session.connector._conns.values() for protocol, _ in kept]
    assert idle
    async with asyncio.timeout(30):
        while not all(protocol.should_close for protocol in idle):
            await asyncio.sleep(0)
