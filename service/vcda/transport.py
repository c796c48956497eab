"""httpx's transport over aiohttp's connections: writes a request whose headers are complete, and reads its answer.

aiohttp's own call, `ClientSession.request`, decides about redirects, cookies, proxies, compression and credentials in
URLs, none of which may be here, and takes most of the CPU time of a POST: 0.30 ms with it, 0.06 without (measured). So
from aiohttp come the connections, with their pool, TLS and certificates, and the parser of answers; the bytes of a
request are written here, in one piece.

What is written is what the request says: no header is added. The time limit and the bound on an answer's size are the
caller's.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias
from weakref import WeakKeyDictionary

import aiohttp
import httpx
from aiohttp.streams import StreamReader
from httpx_aiohttp import AiohttpTransport
from typing_extensions import override
from yarl import URL

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler

LONGEST_HEAD_LINE: Final = 64 * 1024
MOST_HEADERS: Final = 1000
"""Proxies and single sign-on add cookies and policies to the head of an answer: aiohttp's 8 KiB and 128 headers are
too few for some, and what it refuses to read is a POST in doubt."""

KEEP_ALIVE: Final = 10.0
"""Seconds an idle connection is kept: less than servers do (Tomcat 20, nginx 75). A POST written to a connection that
the server is just closing isn't lost, but it is in doubt, and doubts cost minutes."""

LONGEST_KEPT: Final = 120.0
"""Seconds after which a connection is not used again, however busy it is: polls each second would keep one for ever.
A new connection goes where the name points by now: after a failover to another appliance, of which the old one still
answers, or to an appliance that a load balancer has got since."""

REPEATABLE: Final = frozenset({"GET", "DELETE"})
"""Methods of requests that are written once more where their connection ends without an answer, as HTTP allows for
those that change nothing, or nothing more: the server has closed a connection that was kept."""

INTERIM: Final = frozenset(range(100, 200)) - {101}
"""Statuses of answers that announce another one."""

BEFORE_THE_FIRST_BYTE: Final = "before_the_first_byte"
"""Extension of a request: called with the open connection, without an await before its first byte is written. What it
raises keeps the request from being sent."""

Hook: TypeAlias = Callable[[aiohttp.connector.Connection], None]

_NO_LIMIT: Final = aiohttp.ClientTimeout(total=None, sock_connect=None)


class ConnectionTransport(AiohttpTransport):
    """The connections for one kind of call to one appliance. Make it inside the event loop that it will be used in.

    Requests need `extensions`: `target`, the path and query, percent-encoded, as httpx defines it; and
    BEFORE_THE_FIRST_BYTE.
    """

    def __init__(self, base: httpx.URL, verification: ssl.SSLContext | aiohttp.Fingerprint, timeout: timedelta) -> None:
        """Prepare; nothing is connected yet. After `timeout`, the kernel resends nothing more."""

        def session() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=KEEP_ALIVE, ssl=verification, socket_factory=sockets(timeout)
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
            )

        # `verify` is for the session it would make itself; the default would load certifi's store.
        context = verification if isinstance(verification, ssl.SSLContext) else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        super().__init__(client=session, verify=context)
        self._base = str(base)
        self._goal: aiohttp.ClientRequest | None = None
        self._kept: WeakKeyDictionary[ResponseHandler, float] = WeakKeyDictionary()
        """The connections that have brought an answer, and the loop's time before they were opened."""

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its answer once the head is there; the body is yet to be read.

        Raises:
            aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError: as aiohttp does.
            ValueError: the target or a header has a character that would end it.
        """
        try:
            return await self._exchange(request)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            if request.method not in REPEATABLE:
                raise
            return await self._exchange(request)

    async def _exchange(self, request: httpx.Request) -> httpx.Response:
        began = asyncio.get_running_loop().time()
        head = _head(request)
        body = await request.aread()
        connection = await self._connect()
        try:
            protocol = connection.protocol
            if protocol is None or protocol.transport is None:
                raise aiohttp.ServerDisconnectedError
            protocol.set_response_params(
                read_until_eof=True,
                auto_decompress=False,
                max_line_size=LONGEST_HEAD_LINE,
                max_field_size=LONGEST_HEAD_LINE,
                max_headers=MOST_HEADERS,
            )
            hook: Hook = request.extensions[BEFORE_THE_FIRST_BYTE]
            hook(connection)
            protocol.transport.write(head + body)
            message, content = await protocol.read()
            while message.code in INTERIM:
                message, content = await protocol.read()
        except BaseException:
            connection.close()
            raise
        self._kept.setdefault(protocol, began)
        return httpx.Response(
            message.code, headers=message.raw_headers, stream=_Body(connection, content), request=request
        )

    async def _connect(self) -> aiohttp.connector.Connection:
        """Return a connection, a kept one if there is one.

        Kept connections on which something has come since their last answer are closed: a proxy's 408 for idle
        connections, say, or an answer that was sent twice. aiohttp would take it for the answer to the next request.
        So are those that are too old.
        """
        if not isinstance(self.client, aiohttp.ClientSession):
            self.client = self.get_client()
        if self._goal is None:  # of a request, a connector looks at nothing but where it goes
            self._goal = aiohttp.ClientRequest("GET", URL(self._base), loop=asyncio.get_running_loop())
        connector = self.client.connector
        if connector is None:
            msg = "the transport is closed"
            raise aiohttp.ClientConnectionError(msg)
        while True:
            try:
                connection = await connector.connect(self._goal, [], _NO_LIMIT)
            except RuntimeError as error:  # of a socket: uvloop's, which aiohttp passes on
                raise OSError(str(error)) from error
            protocol = connection.protocol
            if protocol is None or protocol not in self._kept:
                return connection
            age = asyncio.get_running_loop().time() - self._kept[protocol]
            if not protocol.should_close and age < LONGEST_KEPT:
                return connection
            connection.close()


def _head(request: httpx.Request) -> bytes:
    target, headers = request.extensions["target"], request.headers.raw
    lines = [b"%b %b HTTP/1.1" % (request.method.encode(), target), *[b"%b: %b" % header for header in headers]]
    head = b"\r\n".join([*lines, b"", b""])
    if b" " in target or head.count(b"\n") != len(lines) + 1 or head.count(b"\r") != len(lines) + 1:
        msg = "a target or a header of a request has a space or a line break where none belongs"
        raise ValueError(msg)
    return head


class _Body(httpx.AsyncByteStream):
    """The body of an answer, yet to be read from its connection."""

    def __init__(self, connection: aiohttp.connector.Connection, content: StreamReader) -> None:
        self._connection = connection
        self._content = content

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self._content.at_eof():
            yield await self._content.readany()

    @override
    async def aclose(self) -> None:
        """Give the connection back; close it if something of the answer is left."""
        if self._content.at_eof():
            self._connection.release()
        else:
            self._connection.close()


def sockets(timeout: timedelta) -> Callable[[aiohttp.AddrInfoType], socket.socket]:
    """Make sockets with TCP_USER_TIMEOUT, so that the kernel stops resending when the call has timed out.

    Otherwise the kernel would resend a written POST for minutes, and VCDA might receive it long after the look-up.
    """
    milliseconds = int(timeout.total_seconds() * 1000)

    def make(address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        return made

    return make
