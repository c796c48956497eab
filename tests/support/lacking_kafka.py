"""Stands before a real broker and changes its answers, as a Kafka gives them that lacks something."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any, Final, Self

from aiokafka.protocol import admin
from aiokafka.protocol.types import Int16, Int32

from service.sandbox.kafka import free_ports

API_VERSIONS: Final = 18
DESCRIBE_CONFIGS: Final = 32

_RESPONSES: Final[dict[tuple[int, int], Any]] = {
    (API_VERSIONS, 0): admin.ApiVersionResponse_v0,
    (API_VERSIONS, 1): admin.ApiVersionResponse_v1,
    (API_VERSIONS, 2): admin.ApiVersionResponse_v2,
    (DESCRIBE_CONFIGS, 0): admin.DescribeConfigsResponse_v0,
    (DESCRIBE_CONFIGS, 1): admin.DescribeConfigsResponse_v1,
    (DESCRIBE_CONFIGS, 2): admin.DescribeConfigsResponse_v2,
}
"""What can be changed, by the request's number and version in Kafka's protocol."""

Edit = Callable[[list[Any]], list[Any]]
"""Changes the settings of one topic: tuples of which the first is the name and the second the value."""


class LackingKafka:
    """An address that a broker advertises as its own. An async context.

    `without` are requests that the broker doesn't know, by their numbers; `settings` edits what it tells of a topic.
    """

    def __init__(self) -> None:
        (self._port,) = free_ports(1)
        self.without: set[int] = set()
        self.settings: Edit | None = None
        self._broker: tuple[str, int] = ("", 0)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Where clients find it."""
        return f"127.0.0.1:{self._port}"

    def before(self, broker: str) -> Self:
        """Stand before the broker at this address."""
        host, _, port = broker.partition(":")
        self._broker = (host, int(port))
        return self

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        broker, to_broker = await asyncio.open_connection(*self._broker)
        asked: dict[int, tuple[int, int]] = {}
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await asyncio.gather(
                    self._pass_on(client, to_broker, lambda frame: _note(frame, asked)),
                    self._pass_on(broker, to_client, lambda frame: self._changed(frame, asked)),
                )
        finally:
            to_broker.close()
            to_client.close()
            self._tasks.discard(task)

    @staticmethod
    async def _pass_on(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            frame = change(await reader.readexactly(size))
            writer.write(len(frame).to_bytes(4, "big") + frame)
            await writer.drain()

    def _changed(self, frame: bytes, asked: dict[int, tuple[int, int]]) -> bytes:
        which = asked.pop(Int32.decode(BytesIO(frame)), (0, 0))
        if which not in _RESPONSES:
            return frame
        answer = _RESPONSES[which].decode(frame[4:])
        if which[0] == API_VERSIONS:
            answer.api_versions = [one for one in answer.api_versions if one[0] not in self.without]
        elif self.settings is not None:
            answer.resources = [(*resource[:4], self.settings(resource[4])) for resource in answer.resources]
        return frame[:4] + bytes(answer.encode())


def _note(frame: bytes, asked: dict[int, tuple[int, int]]) -> bytes:
    head = BytesIO(frame)
    key, version, correlation = Int16.decode(head), Int16.decode(head), Int32.decode(head)
    asked[correlation] = (key, version)
    return frame
