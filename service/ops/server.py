"""The operations server: probes, metrics, the AsyncAPI document, requests in flight, and a page for people.

It answers until the process ends, also during a drain, and never delays a stop: the connection of a client that sends
half a request or reads no answer is closed. It is read-only, and shows no secrets. `Health` decides whether the service
is alive and ready.
"""

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.clock import Clock
from service.ops import exposition, overview_page, syncs_table
from service.ops.accept import prefers_html
from service.ops.health import Health
from service.ops.overview import Overview
from service.ops.page_frame import POLICY
from service.ops.sites_view import SiteView, sites_json
from service.ops.syncs_page import InFlight, Query, page, read_query, rows

LOG: Final = logging.getLogger(__name__)

CONNECTIONS: Final = 200
"""At once: probes, scrapers and people need a handful. With one more, the one that waits longest is closed: no probe is
refused because of other clients."""

ANSWER_WITHIN: Final = timedelta(seconds=15)
"""How long a connection may stay without a whole answer, because no whole request comes or nobody reads: an answer is
made in milliseconds, and the largest of them is read within seconds over a slow line."""

KEEP: Final = timedelta(seconds=1)
"""How long the page at `/` is kept for those who ask next."""

LEAVE_WITHIN: Final = timedelta(seconds=1)
"""How long answers under way may take once the server stops; it is the last thing to stop, and drains are bounded."""


# ---------------------------------------------------------------- the answers


@dataclass(frozen=True, slots=True)
class Document:
    """Something to hand out as it is."""

    content: bytes
    media_type: str


def operations(
    *,
    health: Health,
    clock: Clock,
    registry: CollectorRegistry,
    documents: Mapping[str, Callable[[], Document]],
    in_flight: Callable[[], Iterable[InFlight]],
    overview: Callable[[], Awaitable[Overview]],
    clean: Callable[[str], str],
    sites: Callable[[], Awaitable[Iterable[SiteView]]] | None = None,
) -> Starlette:
    """Return the application. `documents` are further paths, made once each; `clean` hides secrets in texts.

    Long answers are made in pieces, one answer at a time: else each turn of the event loop had a piece of each of them.
    """
    one_at_a_time = asyncio.Lock()

    async def write_overview() -> bytes:
        async with one_at_a_time:
            return overview_page.write(await overview(), clean=clean)

    newest_overview = Kept(write_overview, clock=clock)

    async def root(_: Request) -> Response:
        return _page(await newest_overview())

    async def livez(_: Request) -> Response:
        return _condition("alive", map(clean, health.not_alive(clock.monotonic())))

    async def readyz(_: Request) -> Response:
        reasons, degraded = health.not_ready(clock.monotonic()), health.what_is_degraded()
        return _condition("ready", map(clean, reasons), degraded=list(map(clean, degraded)))

    async def metrics(request: Request) -> Response:
        try:
            encode, media_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # a version in it that is no number
            encode, media_type = choose_encoder("")
        async with one_at_a_time:
            return _answer(await exposition.write(registry, encode), media_type)

    def hand_out(make: Callable[[], Document]) -> Callable[[Request], Awaitable[Response]]:
        making = asyncio.Lock()
        made: Document | None = None

        async def endpoint(_: Request) -> Response:
            nonlocal made
            async with making:
                if made is None:
                    # In a thread, so that a large document stops no loop; once, since threads that compute hold it up.
                    made = await run_in_threadpool(make)
            return _answer(made.content, made.media_type)

        return endpoint

    return Starlette(
        routes=[
            Route("/", root),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/syncs", _syncs(in_flight, sites, clock=clock, clean=clean, one_at_a_time=one_at_a_time)),
            *(Route(path, hand_out(make)) for path, make in documents.items()),
        ]
    )


def _syncs(
    in_flight: Callable[[], Iterable[InFlight]],
    sites: Callable[[], Awaitable[Iterable[SiteView]]] | None,
    *,
    clock: Clock,
    clean: Callable[[str], str],
    one_at_a_time: asyncio.Lock,
) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint `/syncs`: a table for browsers, JSON for others."""

    async def for_browsers(query: Query | str) -> Response:
        if isinstance(query, str):
            return _page(syncs_table.write_error(query), status=400, more=VARY)
        now = clock.now()
        row = partial(syncs_table.row, now=now, clean=clean)
        found, following = await rows(in_flight(), query, row, at_once=syncs_table.ROWS_AT_ONCE)
        return _page(syncs_table.write(found, following, query, now=now), more=VARY)

    async def for_programs(query: Query | str) -> Response:
        if isinstance(query, str):
            return JSONResponse({"error": query}, status_code=400, headers=HEADERS | VARY)
        more = {"sites": sites_json(await sites() if sites else ())}
        answer = await page(in_flight(), query, clean=clean, more=more)
        return _answer(answer, "application/json", more=VARY)

    async def endpoint(request: Request) -> Response:
        query = read_query(dict(request.query_params))
        answer = for_browsers if prefers_html(request.headers.get("accept", "")) else for_programs
        async with one_at_a_time:
            return await answer(query)

    return endpoint


HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""Headers of every answer: no caching, no content sniffing."""

PAGE_HEADERS: Final = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
}
"""Headers of a page for people."""

VARY: Final = {"vary": "accept"}
NO_MORE: Final[dict[str, str]] = {}


def _condition(word: str, reasons: Iterable[str], **more: list[str]) -> Response:
    said = list(reasons)
    content = {word: not said, "reasons": said, **more}
    return JSONResponse(content, status_code=503 if said else 200, headers=HEADERS)


def _answer(content: bytes, media_type: str, *, more: dict[str, str] = NO_MORE) -> Response:
    # As a header of our own: Starlette would add a second charset to what has one.
    return Response(content, headers=HEADERS | {"content-type": media_type} | more)


def _page(content: bytes, *, status: int = 200, more: dict[str, str] = NO_MORE) -> Response:
    return Response(content, status_code=status, headers=HEADERS | PAGE_HEADERS | more)


class Kept:
    """An answer that is made once for all who ask for it within `KEEP`: however many look, it costs the same."""

    def __init__(self, make: Callable[[], Awaitable[bytes]], *, clock: Clock) -> None:
        self._make = make
        self._clock = clock
        self._lock = asyncio.Lock()
        self._made: bytes = b""
        self._until = -math.inf

    async def __call__(self) -> bytes:
        """Return the answer."""
        async with self._lock:
            if self._clock.monotonic() >= self._until:
                self._made = await self._make()
                self._until = self._clock.monotonic() + KEEP.total_seconds()
            return self._made


# ---------------------------------------------------------------- the server


class _Connection(H11Protocol):
    """A connection that is closed when nothing is asked or read on it, and when too many others are open."""

    def __init__(self, *given: Any, answer_within: timedelta, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*given, **options)
        self._answer_within = answer_within.total_seconds()

    answered_at: float
    """When its last answer was whole, or it was opened, on the event loop's clock."""
    _limit: asyncio.TimerHandle

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_an_answer()
        if len(self.connections) > CONNECTIONS:
            others = [other for other in self.connections if isinstance(other, _Connection)]
            min(others, key=lambda other: other.answered_at).cut()

    @override
    def on_response_complete(self) -> None:
        self._limit.cancel()
        self._expect_an_answer()
        super().on_response_complete()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._limit.cancel()
        super().connection_lost(exc)

    def _expect_an_answer(self) -> None:
        self.answered_at = self.loop.time()
        self._limit = self.loop.call_later(self._answer_within, self.cut)

    def cut(self) -> None:
        """Close the connection at once, even if an answer is incomplete."""
        self.connections.discard(self)  # so that the next to come doesn't choose it again
        self.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn without hands on the process: signals are the application's."""

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(
    app: Starlette, *, host: str, port: int, answer_within: timedelta = ANSWER_WITHIN
) -> AsyncIterator[int]:
    """Serve while the body runs, and yield the port, which the system picks where 0 was asked for.

    Raises OSError when the address can't be had. Leaving takes about `LEAVE_WITHIN` at most, whatever clients do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # "::" is the address of all interfaces: of IPv4's, too, wherever the system can.
    both = host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server((host, port), family=family, dualstack_ipv6=both)
    connection: Any = partial(_Connection, answer_within=answer_within)  # uvicorn calls it, as it would a class
    server = _Server(
        uvicorn.Config(
            app,
            http=connection,
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            workers=1,  # else it looks for a number in WEB_CONCURRENCY
            timeout_keep_alive=5,  # probes come every few seconds, other clients may connect again
            timeout_graceful_shutdown=int(LEAVE_WITHIN.total_seconds()),
        )
    )
    with contextlib.closing(listener):
        serve = asyncio.create_task(server.serve(sockets=[listener]), name="operations server")
        serve.add_done_callback(_tell_of_death)
        try:
            # Connections queue at the listener from here on, so there is nothing to wait for.
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            # uvicorn looks ten times a second whether it shall stop, and gives its clients LEAVE_WITHIN.
            await asyncio.wait([serve], timeout=2 * LEAVE_WITHIN.total_seconds())
            serve.cancel()
            await asyncio.wait([serve], timeout=LEAVE_WITHIN.total_seconds())
            for connection in list(server.server_state.connections):
                if connection.transport is not None:
                    connection.transport.abort()


def _tell_of_death(serve: asyncio.Task[None]) -> None:
    # Nobody else need act: without an answer from /livez the process is restarted.
    if not serve.cancelled() and (error := serve.exception()) is not None:
        LOG.error("The operations server has failed", exc_info=error)
