"""A VCDA made of a socket and a script: what a test wants it to say, byte by byte, and what it was told.

It is no simulator: it knows nothing of sessions or tasks, but can break off at any byte.
"""

import asyncio
import inspect
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from service.sync import Account, SubmitAnswer
from service.vcda.client import ApiLimits, Vcda
from service.vcda.credentials import Credentials, SiteCredentials
from service.vcda.http import Tls
from tests.support.virtual_time import HandClock

TASK_ID = "f61d60d2-698a-46dc-a266-88df27644956"
REPLICATION_ID = "C4-ec991bd5-af9d-446a-8599-5b693842c4a3"
GONE = {"WWW-Authenticate": "Authentication Token Required"}


@dataclass(frozen=True)
class Call:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def token(self) -> str | None:
        return self.headers.get("x-vcav-auth")

    def json(self) -> dict[str, object]:
        read: dict[str, object] = json.loads(self.body)
        return read


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        body = (
            self.body if isinstance(self.body, bytes) else b"" if self.body is None else json.dumps(self.body).encode()
        )
        lines = [f"HTTP/1.1 {self.status} Whatever", f"Content-Length: {len(body)}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Cut:
    """These bytes, and then the connection is closed."""

    data: bytes = b""


@dataclass(frozen=True)
class Drip:
    """These bytes at once, and then one every now and then, for ever; an empty one is silence."""

    data: bytes
    drop: bytes = b" "


Answer: TypeAlias = Reply | Cut | Drip
Script: TypeAlias = Callable[[Call], Answer | Awaitable[Answer]]


@dataclass
class Appliance:
    """Where it listens, whom it answers how, and what it has seen so far."""

    url: str = ""
    script: Script = lambda _: Reply(500)
    calls: list[Call] = field(default_factory=list)
    received: int = 0
    connections: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    called: asyncio.Event = field(default_factory=asyncio.Event)

    def seen(self, name: str) -> list[Call]:
        """The calls of this name, such as `POST /sessions`."""
        return [call for call in self.calls if call.name == name]

    @property
    def posts(self) -> list[Call]:
        return [call for call in self.calls if call.path.endswith("/sync")]

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait for the call that makes it true."""
        while not ready():
            self.called.clear()
            await self.called.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            while (call := await self.read(reader)) is not None:
                self.calls.append(call)
                self.called.set()
                answer = self.script(call)
                if inspect.isawaitable(answer):
                    answer = await answer
                if isinstance(answer, Reply):
                    writer.write(answer.encode())
                    continue
                writer.write(answer.data)
                while isinstance(answer, Drip):
                    await asyncio.sleep(0.02)
                    writer.write(answer.drop)
                return
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def read(self, reader: asyncio.StreamReader) -> Call | None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = await reader.readline()
            self.received += len(line)
            if not line:
                return None
            head += line
        first, *rest = head.decode().strip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Call(method, target, headers, body)


@asynccontextmanager
async def appliance(script: Script | None = None, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Appliance]:
    """Run one on a free port."""
    it = Appliance()
    if script is not None:
        it.script = script
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    it.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
    try:
        yield it
    finally:
        server.close()
        for writer in list(it.writers):
            writer.transport.abort()
        await asyncio.sleep(0)


# ---------------------------------------------------------------- words of VCDA


def error(code: str = "Forbidden", msg: str = "Permission denied.") -> dict[str, Any]:
    return {"code": code, "msg": msg, "args": [], "stacktrace": "com.vmware.h4.api.error: secret internals"}


NOT_AUTHENTICATED = error("NotAuthenticated", "Authentication required.")


def session(
    token: str = "t0+/=",  # noqa: S107 - of nobody
    *,
    user: str = "admin1@Org1",
    sites: tuple[str, ...] = ("site1",),
) -> Reply:
    body = {
        "user": user,
        "roles": ["EVERYONE"],
        "authenticatedSites": [{"site": site, "org": "Org1"} for site in sites],
    }
    return Reply(200, body, {"X-VCAV-Auth": token})


def task(**changed: object) -> dict[str, Any]:
    return {
        "id": TASK_ID,
        "user": "admin1@Org1",
        "workflowInfo": {"type": "sync", "resourceType": "vmReplication", "resourceId": REPLICATION_ID},
        "progress": 0,
        "state": "RUNNING",
        "lastUpdated": -1,
        "startTime": 1499929548951,
        "endTime": -1,
        "resultType": None,
        "result": None,
        "error": None,
        "warnings": [],
        "site": "site1",
    } | changed


def page(*tasks: object, total: int | None = None) -> Reply:
    return Reply(
        200, {"items": list(tasks), "total": len(tasks) if total is None else total, "offset": 0, "limit": 100}
    )


def script(**answers: Answer | Script) -> Script:
    """Answer by kind of call: login, extend, logout, submit, tasks. A login that isn't scripted succeeds."""
    kinds: dict[str, Answer | Script] = {
        "login": session(),
        "extend": Reply(200, {}),
        "logout": Reply(204),
        "submit": Reply(202, task()),
    } | answers

    def answer(call: Call) -> Answer | Awaitable[Answer]:
        match call.method, call.path.split("/")[1:]:
            case "POST", ["sessions"]:
                kind = "login"
            case "POST", ["sessions", "extend"]:
                kind = "extend"
            case "DELETE", ["sessions"]:
                kind = "logout"
            case "POST", _:
                kind = "submit"
            case _:
                kind = "tasks"
        chosen = kinds[kind]
        return chosen(call) if callable(chosen) else chosen

    return answer


# ---------------------------------------------------------------- our side


class Meter:
    """What was counted."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.requests_by_site: list[tuple[str, str | None]] = []
        self.logins: list[str] = []
        self.opened: list[bool] = []
        self.sites: list[str] = []

    def api_request(self, operation: str, status: str, seconds: float, *, site: str | None) -> None:
        assert seconds >= 0
        self.requests.append((operation, status))
        self.requests_by_site.append((operation, site))

    def login(self, result: str) -> None:
        self.logins.append(result)

    def session_open(self, value: bool) -> None:
        self.opened.append(value)

    def site_authenticated(self, site: str) -> None:
        self.sites.append(site)


CREDENTIALS = Credentials(
    user="admin1",
    org="Org1",
    password="s3cret",
    sites=(SiteCredentials(name="site2", user="admin2@Org2", password="s3cret2"),),
)


@dataclass
class Ours:
    """Our side of the wire, with what a test needs to look at."""

    vcda: Vcda
    clock: HandClock
    meter: Meter
    credentials: list[Credentials]
    established: list[str | None]
    """The sites that a session was established for, None for a login."""

    async def submit(
        self, *, site: str | None = None, may_leave: Callable[[Account | None], bool] = lambda _: True
    ) -> SubmitAnswer:
        return await self.vcda.submit(
            replication_id=REPLICATION_ID, site=site, operation_id="op-1", may_leave=may_leave
        )


@asynccontextmanager
async def ours(
    url: str,
    *,
    tls: Tls | None = None,
    limits: ApiLimits = ApiLimits(),  # noqa: B008 - frozen
    request_timeout: timedelta = timedelta(seconds=5),
) -> AsyncIterator[Ours]:
    """Our side of the wire; `credentials[-1]` is what the provider returns."""
    clock, meter, credentials = HandClock(), Meter(), [CREDENTIALS]
    established: list[str | None] = []
    vcda = Vcda(
        url,
        credentials=lambda: credentials[-1],
        request_timeout=request_timeout,
        clock=clock,
        meter=meter,
        version="1.2.3",
        tls=tls,
        limits=limits,
        established=established.append,
    )
    try:
        yield Ours(vcda, clock, meter, credentials, established)
    finally:
        await vcda.close()
