"""What the transport adds to the wire: when it writes once more, what it refuses to write, and its sockets."""

import json
import socket
from datetime import timedelta

import pytest

from service.sync import Accepted, Trouble
from service.vcda.transport import sockets
from tests.support.scripted_http_server import TASK_ID, Answer, Cut, appliance, ours, page, script, task


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
