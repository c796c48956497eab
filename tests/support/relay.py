"""A way to a server that can be lost: a TCP relay, whose connections fall silent without an end, or that moves.

It can also be a long way: `delay` is how many seconds all bytes take, in each direction.

Bytes pass as they are. What a relay in a process can't be is a firewall: the kernel goes on acknowledging, so that a
client learns of a silent connection from its own time-outs alone.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Self

from typing_extensions import override

from service.sandbox.kafka import free_ports

Address = tuple[str, int]


class Relay:
    """`async with Relay(target) as relay: ... relay.address`; `target` is asked for each connection anew."""

    def __init__(self, target: Callable[[], Address]) -> None:
        self._target = target
        (self._port,) = free_ports(1)
        self._server: asyncio.Server | None = None
        self._pairs: set[_Client] = set()
        self.delay = 0.0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def place(self) -> Address:
        """The address, for another relay to lead here."""
        return "127.0.0.1", self._port

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def open(self) -> None:
        """Listen, on the port that it had."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._client, "127.0.0.1", self._port)

    def _client(self) -> "_Client":
        return _Client(self._target, self._pairs, lambda: self.delay)

    def close(self) -> None:
        """Close the port, and every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for pair in list(self._pairs):
            pair.end()

    async def move(self) -> None:
        """Listen on another port, and close every connection."""
        self.close()
        (self._port,) = free_ports(1)
        await self.open()

    def drop(self, *, idle_for: float = 0.0) -> int:
        """Let nothing more through the connections idle for so many seconds, and tell neither side. Return how many."""
        until = time.monotonic() - idle_for
        live = [pair for pair in self._pairs if not pair.dropped and pair.passed_at <= until]
        for pair in live:
            pair.dropped = True
        return len(live)


class _Half(asyncio.Protocol):
    """One side of a connection. What it gets goes to the other side, no faster than that takes it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Half | None = None

    @property
    def client(self) -> "_Client":
        raise NotImplementedError

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    @override
    def data_received(self, data: bytes) -> None:
        self.client.passed_at = time.monotonic()
        if self.client.delay:
            asyncio.get_running_loop().call_later(self.client.delay, self._pass, data)
        else:
            self._pass(data)

    def _pass(self, data: bytes) -> None:
        if not self.client.dropped and self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    @override
    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    @override
    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if not self.client.dropped:
            self.client.end()


class _Client(_Half):
    """The side of the client, which knows both."""

    def __init__(self, target: Callable[[], Address], pairs: "set[_Client]", delay: Callable[[], float]) -> None:
        super().__init__()
        self._target = target
        self._delay = delay
        self._pairs = pairs
        self.dropped = False
        self.passed_at = time.monotonic()
        self._connecting: asyncio.Task[None] | None = None

    @property
    def delay(self) -> float:
        return self._delay()

    @property
    @override
    def client(self) -> "_Client":
        return self

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._pairs.add(self)
        assert self.transport is not None
        self.transport.pause_reading()
        self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            _, self.other = await asyncio.get_running_loop().create_connection(lambda: _Server(self), *self._target())
        except OSError:
            self.end()
            return
        if self.transport is None:
            self.end()
        else:
            self.transport.resume_reading()

    def end(self) -> None:
        """Close both sides, with what was received still going out."""
        self._pairs.discard(self)
        for half in (self, self.other):
            if half is not None and half.transport is not None:
                half.transport.close()


class _Server(_Half):
    """The side of the server."""

    def __init__(self, client: _Client) -> None:
        super().__init__()
        self.other = client

    @property
    @override
    def client(self) -> _Client:
        assert isinstance(self.other, _Client)
        return self.other
