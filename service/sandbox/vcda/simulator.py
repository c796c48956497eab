"""The HTTP server of a simulated VCDA: strict, with the oddities of real ones, and with faults on demand.

It is an independent reading of the vendor's documentation and shares nothing with our client: it must be able to
disagree. Not for production, and not a model of VCDA's speed. What it serves:

    POST /sessions              GET /sessions                   DELETE /sessions
    POST /sessions/extend       DELETE /sessions/{site}
    GET  /tasks                 GET /tasks/{id}
    POST /vm-replications/{id}/sync                             GET /vm-replications/{id}
    GET  /diagnostics/about     GET /docs/api-guide.html

Anything else is 404 or 405; `//` in a path, a body where none belongs, an unknown parameter: 400; a foreign
Accept: 406; a login that isn't JSON: 415. All such refusals are counted, with their texts.

Its control API, JSON in and out, open to whoever reaches the port. The members of a body are the keyword arguments of
the method named; the methods can be called directly from a test (`sim.fault(...)`, `sim.world.plan(...)`):

    GET    /_simulator/counters      World.counters  what was asked, and what must never have happened
    GET    /_simulator/ledger        World.ledger    every task, by its true times and state
    GET    /_simulator/faults                        what is switched on
    POST   /_simulator/faults        Fault           {"operation": "submit", "site": "site2", "answer": "status",
                                                      "status": 429, "retry_after": 5, "times": 3, "probability": 0.5}
    DELETE /_simulator/faults[/ID]                   switch one off, or all
    POST   /_simulator/plan          World.plan      {"duration": "lognormal:90:0.8", "failing": 0.1}: the default, or
                                                     with "replication" and "times" that one's next syncs
    POST   /_simulator/finish        World.finish    {"replication": ID | "ids": [..], "fails": true}: end tasks now
    POST   /_simulator/forget        World.forget    {"ids": [..]}: lose tasks
    POST   /_simulator/purge         World.purge     {"polled_for": 2}: lose all that have been polled for so long
    POST   /_simulator/archive       World.archive   {"ended_for": 60}: take ended tasks out of memory, and list them
    POST   /_simulator/by_hand       World.by_hand   {"replication": ID, "user": NAME}: a sync nobody asked us for
    POST   /_simulator/expire        World.expire    {"what": "sessions" | "extensions" | "cloud-director"}
    POST   /_simulator/user          World.user      {"name": NAME, "password": .., "account": .., "spelled": ..,
                                                     "on_tasks": "{org}@{site}", "site": "site2"}
    POST   /_simulator/replace_account     World.replace_account    {"name": NAME, "by": NAME, "site": "site2"}
    POST   /_simulator/cache         Simulator.cache {"seconds": 30, "obeys": false}: a cache in front; 0: none
    POST   /_simulator/clock_offset  World.clock_offset    {"seconds": 90, "site": "site2"}
    POST   /_simulator/refuse        Simulator.refuse      {"seconds": 5}: close the port and all connections
    POST   /_simulator/drop          Simulator.drop        {}: the connections there are stay silent from now on
    POST   /_simulator/answer_unasked      Simulator.answer_unasked     {}: a 408 through each idle connection
    POST   /_simulator/reset                         as at the start

A dead site is a fault: {"site": "site2", "answer": "silent"}. Maintenance is one, too: {"answer": "status",
"status": 503, "lasting": 30, "retry_after": "rest"}. A POST that a proxy gives up and VCDA takes late:
{"operation": "submit", "answer": "status", "status": 504, "html": true, "effect": "behind", "seconds": 5}. An answer
later than any client waits: {"operation": "submit", "seconds": 60}. One poisonous task, that fails whatever asks for
it, alone or together with others: {"operation": "poll", "replication": ID, "answer": "status", "status": 500}; a
poisonous look-up: the same with "find". A state that never ends: the plan's {"word": "ABORTED", "duration": 1e9} for
one replication; an end in an unknown state: {"failing": 1, "failed": "CANCELLED"}. Tasks that don't say whose or of
what they are: the plan's `no_user` and `resource`. A VCDA that refuses another POST for a replication while its sync
runs: the plan's {"refuses": 403}; one whose lists show a task only later: {"listed_after": 10}.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import inspect
import json
import math
import signal
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Self

from aiohttp import web

from service.sandbox.vcda.faults import Fault, Faults
from service.sandbox.vcda.operations import Reply, perform, refusal, replications_of
from service.sandbox.vcda.requests import DEFAULT, Call, understood
from service.sandbox.vcda.shapes import PAGE
from service.sandbox.vcda.world import ApiError, Config, Durations, Plan, User, World

CODES = {
    400: "BadUserInput",
    401: "NotAuthenticated",
    403: "Forbidden",
    404: "ReplicationNotFound",
    409: "OperationInProgress",
    429: "TooManyRequests",
    502: "BadGateway",
    503: "ServiceUnavailable",
    504: "GatewayTimeout",
}
"""The code in the ApiError of a wished-for status, unless it is wished for, too."""

OUR_FAULT = frozenset({400, 405, 406, 415})
"""Statuses that a correct client never sees unless somebody switched them on."""

SITES_OWN = frozenset({"submit", "poll", "find", "ask", "replication"})
"""Operations that a Retry-After speaks of: the traffic of one site."""

CACHEABLE = frozenset({"poll", "find", "ask", "replication"})
"""What a cache in front keeps: a shared one that was set up carelessly, so whoever asks gets it."""

LOOK_EVERY = 0.25
"""Seconds between looks at a silent connection: is the client still there?"""

UNASKED = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
"""What some proxies send through a connection on which no request has come for a while."""

SEND_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing the socket then resets the connection."""


class _Cache:
    """A caching proxy in front, by path and query alone."""

    def __init__(self, seconds: float, *, obeys: bool, tells: bool) -> None:
        self._seconds, self._obeys, self._tells = seconds, obeys, tells
        self._kept: dict[str, tuple[float, Reply]] = {}

    def find(self, path: str, call: Call, *, now: float) -> Reply | None:
        """Return what it answers by itself."""
        at, reply = self._kept.get(path, (-math.inf, None))
        if reply is None or now - at > self._seconds or (self._obeys and call.no_cache):
            return None
        age = {"Age": str(int(now - at))} if self._tells else {}
        return reply._replace(headers={**reply.headers, **age})

    def keep(self, path: str, reply: Reply, *, now: float) -> None:
        """Keep a good answer."""
        if reply.status == HTTPStatus.OK:
            self._kept[path] = (now, reply)


class Simulator:
    """A simulated VCDA that serves while its context is open: `async with Simulator(config) as sim: ... sim.url`."""

    def __init__(
        self,
        config: Config | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.world = World(config or Config(), clock=clock)
        self.faults = Faults(self.world.rng)
        self._host, self._port, self._tls = host, port, tls
        self._posting: dict[str, dict[int, web.BaseRequest]] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._date = (0, "")
        self._cache: _Cache | None = None
        self._dropped: set[web.RequestHandler] = set()
        self._server = web.Server(self._handle, access_log=None, lingering_time=0)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=0.1)
        self._listener: web.TCPSite | None = None

    # ------------------------------------------------ its life

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._drop_what_is_to_come()
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    def _later(self, seconds: float, what: Callable[[], object]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            what()

        timer = asyncio.get_running_loop().call_later(seconds, run)
        self._timers.add(timer)

    def _start(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drop_what_is_to_come(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for task in self._tasks:
            task.cancel()

    # ------------------------------------------------ what may be done to it

    def fault(self, **fields: Any) -> int:  # noqa: ANN401
        """Switch a `Fault` on. Return its number."""
        return self.faults.add(Fault(**fields), now=self.world.now())

    def cache(self, *, seconds: float, obeys: bool = False, tells: bool = True) -> None:
        """Put a cache in front that answers GETs as they were answered up to `seconds` ago; 0 takes it away.

        `obeys`: it lets requests through that ask for it (`Cache-Control: no-cache`). `tells`: it says so (`Age`).
        """
        self._cache = _Cache(seconds, obeys=obeys, tells=tells) if seconds > 0 else None

    async def refuse(self, *, seconds: float | None = None) -> None:
        """Close the port and cut every connection; listen again after so many seconds, or on `accept`."""
        if self._listener is not None:
            await self._listener.stop()
            self._listener = None
        for connection in self._server.connections:
            connection.force_close()
        if seconds is not None:
            self._later(seconds, lambda: self._start(self.accept()))

    def drop(self) -> int:
        """Leave every connection there is without an answer for ever, and without an end. Return how many.

        As when a firewall forgot them: what comes through them isn't read, what was being answered has its effect.
        """
        there = set(self._server.connections)
        dropped = there - self._dropped
        self._dropped = there
        return len(dropped)

    def answer_unasked(self) -> int:
        """Send an answer that nothing has asked for through every idle connection. Return how many.

        As proxies do with a 408 before they close one.
        """
        # No public member of aiohttp's tells that a connection is idle.
        idle = [there for there in self._server.connections if there.transport and there._current_request is None]  # noqa: SLF001
        for there in idle:
            if there.transport is not None:
                there.transport.write(UNASKED)
        return len(idle)

    async def accept(self) -> None:
        """Listen, on the same port as ever."""
        if self._listener is None:
            listener = web.TCPSite(self._runner, self._host, self._port, ssl_context=self._tls, backlog=1024)
            self._listener = listener
            await listener.start()
            self._port = self._runner.addresses[0][1]

    def reset(self) -> None:
        """Become as it was at the start; what was to come is dropped."""
        self._drop_what_is_to_come()
        self.world.reset()
        self._cache = None
        self.faults.remove()
        self.faults.rng = self.world.rng

    # ------------------------------------------------ a request's way through

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path.startswith("/_simulator"):
            return await self._control(request)
        if request.protocol in self._dropped:
            await self._silence(request)
        response = await self._understand(request)
        if request.protocol in self._dropped:
            await self._silence(request)
        return response

    async def _understand(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            call = understood(request.method, request.raw_path, request.headers, has_body=request.body_exists)
        except ApiError as error:
            return self._respond(self._refusal(request, error, DEFAULT))
        if request.body_exists:
            try:
                call.body = await request.read()
            except ConnectionError:  # the client has gone, half-way
                return web.Response()
        site = call.asked.get("site", self.world.config.local_site)
        self._count(call, site)
        if call.operation != "submit":
            return await self._answer(request, call, site)
        posting = self._posting.setdefault(site, {})
        posting[id(request)] = request
        try:
            self._count_posting(posting, site, call.token)
            if self.world.config.submit_latency is not None:
                await asyncio.sleep(self.world.config.submit_latency.draw(self.world.rng))
            return await self._answer(request, call, site)
        finally:
            del posting[id(request)]

    def _count(self, call: Call, site: str) -> None:
        counts = self.world.counts
        counts.calls[call.operation] += 1
        counts.calls_by_site[f"{call.operation} {site}"] += 1
        if call.operation == "poll":
            ids, now = call.asked["ids"].split(","), self.world.now()
            counts.ids_polled += len(ids)
            for id_ in ids:
                if counts.polled.setdefault(id_, now) == now:
                    counts.last_first_poll = now

    def _count_posting(self, posting: dict[int, web.BaseRequest], site: str, token: str | None) -> None:
        counts, where = self.world.counts, self.world.sites.get(site)
        if where is not None and self.world.posted_while_paused(where, token=token):
            counts.posts_while_paused += 1
        if len(posting) > counts.most_posting[site]:  # those whose clients have gone don't count
            there = sum(request.transport is not None for request in posting.values())
            counts.most_posting[site] = max(counts.most_posting[site], there)

    async def _answer(self, request: web.BaseRequest, call: Call, site: str) -> web.StreamResponse:
        if self.faults:
            spoken_of = replications_of(self.world, call)
            drawn = self.faults.draw(call.operation, site=site, replications=spoken_of, now=self.world.now())
            if drawn is not None:
                fault, rest = drawn
                self.world.counts.faults[f"{call.operation} {fault.answer}"] += 1
                return await self._go_wrong(request, call, fault, site=site, rest=rest)
        if self._cache is None or call.operation not in CACHEABLE:
            return self._respond(self._perform(request, call))
        reply = self._cache.find(request.raw_path, call, now=self.world.now())
        if reply is not None:
            self.world.counts.cached += 1
            return self._respond(reply)
        reply = self._perform(request, call)
        self._cache.keep(request.raw_path, reply, now=self.world.now())
        return self._respond(reply)

    def _perform(self, request: web.BaseRequest, call: Call) -> Reply:
        try:
            return perform(self.world, call)
        except ApiError as error:
            return self._refusal(request, error, call.errors)

    def _refusal(self, request: web.BaseRequest, error: ApiError, content_type: str) -> Reply:
        counts = self.world.counts
        if error.status == HTTPStatus.UNAUTHORIZED:
            counts.unauthorised += 1
        elif error.status in OUR_FAULT or error.code == "NotFound":
            counts.refused += 1
            counts.refusals.append(f"{request.method} {request.raw_path}: {error}")
        return refusal(error, content_type=content_type)

    def _respond(self, reply: Reply) -> web.Response:
        headers = {"Date": self._now(), "Server": "simulated", "Content-Type": reply.content_type, **reply.headers}
        return web.Response(status=reply.status, body=reply.body, headers=headers)

    def _now(self) -> str:
        second = int(self._clock())
        if second != self._date[0]:
            self._date = (second, formatdate(second, usegmt=True))
        return self._date[1]

    def _clock(self) -> float:
        return self.world.now() + self.world.sites[self.world.config.local_site].clock_offset

    # ------------------------------------------------ going wrong

    async def _go_wrong(
        self, request: web.BaseRequest, call: Call, fault: Fault, *, site: str, rest: float | None
    ) -> web.StreamResponse:
        """Have the request take effect, or not, when the fault says so; then answer as it says."""
        reply = Reply(200, b"", call.usual)
        delay = 0.0 if fault.answer == "drip" else fault.seconds
        match fault.takes_effect:
            case "none":
                await asyncio.sleep(delay)
            case "first":
                reply = self._perform(request, call)
                await asyncio.sleep(delay)
            case "last":
                await asyncio.sleep(delay)
                reply = self._perform(request, call)
            case "behind":
                self._later(delay, lambda: self._perform(request, call))
        if fault.answer == "status":
            reply = self._wished_for(request, call, fault, site=site, rest=rest)
        return await self._send(request, call, fault, reply)

    def _wished_for(
        self, request: web.BaseRequest, call: Call, fault: Fault, *, site: str, rest: float | None
    ) -> Reply:
        headers = {"WWW-Authenticate": "Authentication Token Required"} if fault.challenge else {}
        if fault.location is not None:
            headers["Location"] = fault.location
        if fault.retry_after is not None:
            seconds = (rest or 0.0) if fault.retry_after == "rest" else fault.retry_after
            whole = max(1, -int(-seconds // 1))  # rounded up: the header has no fractions
            headers["Retry-After"] = formatdate(self._clock() + whole, usegmt=True) if fault.http_date else str(whole)
            # A login or an extension is nobody's traffic: which site it holds up is a matter of opinion.
            # And an answer that goes into a dropped connection is heard by nobody.
            heard = request.protocol not in self._dropped
            if heard and call.operation in SITES_OWN and (where := self.world.sites.get(site)) is not None:
                self.world.told_to_wait(where, seconds, token=call.token)
        if fault.html:
            page = f"<html><head><title>{fault.status}</title></head><body><center>nginx</center></body></html>"
            return Reply(fault.status, page.encode(), "text/html", headers)
        code = fault.code or CODES.get(fault.status, "GeneralServerFailure")
        error = ApiError(fault.status, code, fault.msg or f"{code}, as was wished for.", headers=headers)
        return refusal(error, content_type=call.errors)

    async def _send(self, request: web.BaseRequest, call: Call, fault: Fault, reply: Reply) -> web.StreamResponse:
        transport = request.transport
        match fault.answer:
            case "half":
                reply = reply._replace(body=reply.body[: len(reply.body) // 2])
            case "empty":
                reply = reply._replace(body=b"")
            case "empty page" if call.operation in {"poll", "find"}:
                page = {"items": [], "total": 0, "offset": 0, "limit": PAGE}
                reply = reply._replace(status=200, body=json.dumps(page).encode())
            case "cut" if transport is not None:
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, SEND_RESET)
                transport.abort()
            case "close" if transport is not None:
                transport.close()
            case "silent":
                await self._silence(request)
            case "torn" | "drip":
                return await self._dribble(request, reply, fault)
            case _:  # as usual, or a status
                pass
        return self._respond(reply)

    async def _silence(self, request: web.BaseRequest) -> None:
        """Wait until the client has gone."""
        while request.transport is not None:  # noqa: ASYNC110  # aiohttp has no event for it
            await asyncio.sleep(LOOK_EVERY)

    async def _dribble(self, request: web.BaseRequest, reply: Reply, fault: Fault) -> web.StreamResponse:
        headers = {**self._respond(reply).headers, "Content-Length": str(len(reply.body))}
        response = web.StreamResponse(status=reply.status, headers=headers)
        with contextlib.suppress(ConnectionError):  # the client has had enough
            await response.prepare(request)
            if fault.answer == "torn":
                await response.write(reply.body[: len(reply.body) // 2])
                if request.transport is not None:
                    request.transport.close()
                return response
            for byte in reply.body:
                await response.write(bytes([byte]))
                await asyncio.sleep(fault.seconds)
        return response

    # ------------------------------------------------ the control API

    @property
    def _methods(self) -> dict[str, Callable[..., Any]]:
        world = self.world
        return {
            "faults": self.fault,
            "plan": world.plan,
            "finish": world.finish,
            "forget": world.forget,
            "purge": world.purge,
            "archive": world.archive,
            "drop": self.drop,
            "answer_unasked": self.answer_unasked,
            "by_hand": world.by_hand,
            "expire": world.expire,
            "user": world.user,
            "replace_account": world.replace_account,
            "cache": self.cache,
            "clock_offset": world.clock_offset,
            "refuse": self._refuse_soon,
            "reset": self.reset,
        }

    async def _control(self, request: web.BaseRequest) -> web.Response:
        name, _, rest = request.raw_path.removeprefix("/_simulator").strip("/").partition("/")
        try:
            result = await self._controlled(request, name, rest)
        except (ValueError, TypeError, KeyError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(result)

    async def _controlled(self, request: web.BaseRequest, name: str, rest: str) -> object:
        world = self.world
        match request.method, name:
            case "GET", "counters":
                return world.counters()
            case "GET", "ledger":
                return world.ledger()
            case "GET", "faults":
                return self.faults.list(now=world.now())
            case "DELETE", "faults":
                self.faults.remove(int(rest) if rest else None)
                return {}
            case "POST", _ if name in self._methods:
                fields = json.loads(await request.read() or b"{}")
                inspect.signature(self._methods[name]).bind(**fields)
                return {"result": self._methods[name](**fields)}
            case _:
                pass
        msg = (
            f"nothing at {request.method} {request.raw_path}; the module docstring of the simulator lists what there is"
        )
        raise ValueError(msg)

    def _refuse_soon(self, *, seconds: float) -> None:
        """Refuse after this very answer has left."""
        self._later(0.05, lambda: self._start(self.refuse(seconds=seconds)))


# ---------------------------------------------------------------- on its own


async def serve(config: Config, *, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    async with Simulator(config, host=host, port=port, tls=tls) as sim:
        user = config.users[0]
        sys.stdout.write(
            f"A simulated VCDA listens on {sim.url}; sites {config.local_site} (local), "
            f"{', '.join(config.remote_sites)}; user {user.name}, password {user.password}; "
            f"control {sim.url}/_simulator/\n"
        )
        sys.stdout.flush()
        await stop.wait()


def run(
    config: Config, *, host: str = "127.0.0.1", port: int = 8046, cert: str | None = None, key: str | None = None
) -> None:
    """Serve in an event loop of its own, uvloop's if it is installed; https if given a certificate."""
    tls = None
    if cert is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(cert, key)
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(config, host=host, port=port, tls=tls))


def main(argv: Sequence[str] | None = None) -> int:
    """`vm-sync simulator`."""
    parser = argparse.ArgumentParser(prog="vm-sync simulator", description="A simulated VCDA.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8046)
    parser.add_argument("--cert", help="certificate chain, PEM: serve https")
    parser.add_argument("--key", help="its private key, PEM")
    parser.add_argument("--password", default=None, help="password of the user administrator@System, at every site")
    durations = "seconds, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA or lognormal-mean:MEAN:SIGMA"
    parser.add_argument(
        "--duration", type=Durations.of, default=Plan().duration, help=f"how long a sync takes: {durations}"
    )
    parser.add_argument(
        "--queued",
        type=Durations.of,
        default=Plan().queued,
        help="how long a task is QUEUED before it runs, in the same form",
    )
    parser.add_argument(
        "--submit-latency",
        type=Durations.of,
        default=None,
        help="how long a POST takes to be answered, in the same form",
    )
    parser.add_argument("--failing", type=float, default=0.0, help="share of syncs that fail")
    parser.add_argument("--warned", type=float, default=0.0, help="share of syncs with a warning")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(argv)
    users = Config().users
    if given.password is not None:
        users = (User(name=users[0].name, password=given.password, administrator=True), *users[1:])
    config = Config(
        users=users,
        plan=Plan(queued=given.queued, duration=given.duration, failing=given.failing, warned=given.warned),
        submit_latency=given.submit_latency,
        seed=given.seed,
    )
    run(config, host=given.host, port=given.port, cert=given.cert, key=given.key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
