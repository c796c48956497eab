"""The operations server: is it alive, is it ready, its metrics, its messages' document, and what is in flight.

It answers as long as the process does anything, through the whole of a drain, and never holds a stop up: a client that
sends half a request or reads no answer is cut off. It only looks; nothing in the service can be changed here, and
nothing of what it shows is secret. It decides nothing but when to call the service alive and ready: see `Health`.
"""

import asyncio
import contextlib
import heapq
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.clock import Clock
from service.metrics import STATES

LOG: Final = logging.getLogger(__name__)

AWAY_FOR_LONG: Final = timedelta(minutes=1)
"""A broker's restart, or a rolling one's election, is over by then; longer, and somebody should hear of it."""

LIMIT: Final = 100
MOST: Final = 1_000
"""Syncs on one page: what a person scrolls through, and what is made in a few milliseconds of the event loop."""

AT_ONCE: Final = 1_000
"""Syncs looked at between two turns of the event loop, a millisecond: 50,000 in one go held it for 68 ms (measured)."""

CONNECTIONS: Final = 200
"""At once: probes, scrapers and people need a handful. With one more, the one that waits longest is closed: no probe is
turned away because of what others do."""

ANSWER_WITHIN: Final = timedelta(seconds=15)
"""How long a connection may stay without a whole answer, because no whole request comes or nobody reads: an answer is
made in milliseconds, and the largest of them is read within seconds over a slow line."""

LEAVE_WITHIN: Final = timedelta(seconds=1)
"""How long answers under way may take once the server stops; it is the last thing to stop, and drains are bounded."""

LAG_INTERVAL: Final = timedelta(milliseconds=500)
"""Between two looks at the event loop: often enough to see a hiccup of a second, too seldom to cost anything."""


# ---------------------------------------------------------------- alive, and ready


class Health:
    """What is known of the process's own condition. Pure: moments are handed in, from the monotonic clock.

    Alive: each watched loop has turned within its limit, no coordination task has died, and where there is something
    to read, it is read. Kafka or VCDA being away is no reason, nor is a refusal of Kafka's: a restart cures neither.

    Ready: Kafka has been joined and what was owned first is restored; an ordinary rebalance doesn't take it back. Not
    while Kafka has been away for long or refuses something, the requests topic is missing, a partition is stopped or
    has not been open for long, or the service drains.

    Reasons are sentences for operators, without secrets.
    """

    def __init__(self, *, away_for_long: timedelta = AWAY_FOR_LONG) -> None:
        self._away_for_long = away_for_long.total_seconds()
        self._limits: dict[str, float] = {}
        self._turned: dict[str, float] = {}
        self._dead: dict[str, str] = {}
        self._stopped: dict[int, str] = {}
        self._missing: str | None = None
        self._stalled: tuple[str, ...] = ()
        self._refused: tuple[str, ...] = ()
        self._unopened: tuple[str, ...] = ()
        self._away_since: float | None = None
        self._held_since: float | None = None
        self._joined = self._restored = self._draining = False

    def watch(self, loop: str, *, limit: timedelta, now: float) -> None:
        """Expect a loop to turn at least every `limit` from now on."""
        self._limits[loop] = limit.total_seconds()
        self._turned[loop] = now

    def beat(self, loop: str, now: float) -> None:
        """A watched loop has turned."""
        self._turned[loop] = now

    def unwatch(self, loop: str) -> None:
        """Expect no more turns of a loop: it was stopped on purpose."""
        self._limits.pop(loop, None)

    def died(self, task: str, reason: str) -> None:
        """A task without which the service does half its work has ended, and nobody will start it again."""
        self._dead[task] = reason

    def joined(self) -> None:
        """The consumer group has been joined."""
        self._joined = True

    def restored(self) -> None:
        """All partitions that are owned have been restored."""
        self._restored = True

    def away(self, now: float) -> None:
        """Kafka doesn't answer; said again and again, the first time counts."""
        if self._away_since is None:
            self._away_since = now

    def back(self) -> None:
        """Kafka answers."""
        self._away_since = None

    def posts_held(self, since: float | None) -> None:
        """POSTs are held back as Kafka's commits take too long, since that moment; None: none is."""
        self._held_since = since

    def stopped(self, partition: int, reason: str) -> None:
        """A partition refuses to work until somebody acts."""
        self._stopped[partition] = reason

    def working(self, partition: int) -> None:
        """A partition works, or is no longer ours."""
        self._stopped.pop(partition, None)

    def missing(self, topic: str | None) -> None:
        """The topic without which nothing is read does not exist; None: it does."""
        self._missing = topic

    def stalled(self, reasons: Iterable[str]) -> None:
        """Records wait that nobody reads, for these reasons; none: reading goes on. Replaces what was said before."""
        self._stalled = tuple(reasons)

    def refused(self, reasons: Iterable[str]) -> None:
        """Kafka refuses what these sentences say, or nothing. Replaces what was said before."""
        self._refused = tuple(reasons)

    def unopened(self, reasons: Iterable[str]) -> None:
        """Partitions have not been open for long, for these reasons, or none. Replaces what was said before."""
        self._unopened = tuple(reasons)

    def draining(self) -> None:
        """The process is on its way out."""
        self._draining = True

    def not_alive(self, now: float) -> list[str]:
        """Return why a restart is called for; nothing when all is well."""
        stalled = [
            f"{loop} has not turned for {now - self._turned[loop]:.0f} s; its limit is {limit:.0f} s"
            for loop, limit in self._limits.items()
            if now - self._turned[loop] > limit
        ]
        return [*stalled, *self._stalled] + [f"{task} has died: {reason}" for task, reason in self._dead.items()]

    def not_ready(self, now: float) -> list[str]:
        """Return why the service isn't ready; nothing when it is."""
        reasons = []
        if self._draining:
            reasons.append("the service is draining")
        if not self._joined:
            reasons.append("Kafka has not been joined yet")
        elif not self._restored:
            reasons.append("the partitions are being restored")
        if self._away_since is not None and now - self._away_since > self._away_for_long:
            reasons.append(f"Kafka has been away for {now - self._away_since:.0f} s")
        if self._missing is not None:
            reasons.append(f"the topic {self._missing} does not exist, or may not be read")
        reasons += self._refused
        reasons += self._unopened
        if self._held_since is not None and now - self._held_since > self._away_for_long:
            held = now - self._held_since
            reasons.append(
                f"Kafka is too slow: its commits take so long that a POST has been held back for {held:.0f} s"
            )
        reasons += [f"partition {partition} is stopped: {why}" for partition, why in sorted(self._stopped.items())]
        return reasons


async def probe_loop(clock: Clock, *, lag: Callable[[float], None], interval: timedelta = LAG_INTERVAL) -> None:
    """Tell again and again how many seconds later than asked the event loop wakes a sleeper. Never returns."""
    seconds = interval.total_seconds()
    while True:
        asleep = clock.monotonic()
        await asyncio.sleep(seconds)
        lag(max(clock.monotonic() - asleep - seconds, 0.0))


# ---------------------------------------------------------------- what is in flight


class InFlight(Protocol):
    """A sync that isn't over, as it is shown. Only those on the asked page are read whole."""

    @property
    def identity(self) -> str:
        """The request's identity."""

    @property
    def replication_id(self) -> str:
        """What is synced."""

    @property
    def operation_id(self) -> str:
        """As in the request."""

    @property
    def site(self) -> str | None:
        """As in the request."""

    @property
    def state(self) -> str:
        """One of the states of `vm_sync_in_flight`."""

    @property
    def partition(self) -> int:
        """Of the requests topic."""

    @property
    def attempts(self) -> int:
        """POSTs made."""

    @property
    def task_id(self) -> str | None:
        """VCDA's task."""

    @property
    def progress(self) -> int | None:
        """In percent, as VCDA last told."""

    @property
    def accepted_at(self) -> datetime:
        """When it was written down."""

    @property
    def submitted_at(self) -> datetime | None:
        """When VCDA accepted it."""

    @property
    def deadline(self) -> datetime:
        """When its outcome will be told at the latest."""

    @property
    def held(self) -> bool:
        """Whether its outcome was told long ago, and it holds its replication since VCDA still shows its task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which syncs are asked for."""

    state: str | None
    site: str | None
    replication_id: str | None
    limit: int
    after: str


PARAMETERS: Final = ("state", "site", "replicationId", "limit", "after")


def read_query(given: Mapping[str, str]) -> Query | str:
    """Understand the parameters of `/syncs`, or say in a sentence what is wrong with them."""
    for name in given:
        if name not in PARAMETERS:
            return f"There is no parameter {name[:50]!r}; there are {', '.join(PARAMETERS)}."
    state, limit = given.get("state"), given.get("limit", str(LIMIT))
    if state is not None and state not in STATES:
        return f"state is one of {', '.join(STATES)}."
    if not (limit.isascii() and limit.isdecimal() and len(limit) < len(str(MOST)) + 1 and 1 <= int(limit) <= MOST):
        return f"limit is a number from 1 to {MOST}."
    return Query(
        state=state,
        site=given.get("site"),
        replication_id=given.get("replicationId"),
        limit=int(limit),
        after=given.get("after", ""),
    )


async def page(syncs: Iterable[InFlight], query: Query) -> dict[str, object]:
    """Return one page, in the order of identities, so that what comes and goes between two pages moves no other.

    The event loop turns meanwhile, so a sync may end before the page is made: such a one isn't shown.
    """
    found: list[InFlight] = []
    for number, sync in enumerate(syncs, 1):
        if _wanted(sync, query):
            found.append(sync)
        if number % AT_ONCE == 0:
            found = _first(query.limit + 1, found)
            await asyncio.sleep(0)
    found = _first(query.limit + 1, found)
    more = len(found) > query.limit
    shown = found[: query.limit]
    return {
        "syncs": [_shown(sync) for sync in shown if sync.state in STATES],
        "next": shown[-1].identity if more else None,
    }


def _wanted(sync: InFlight, query: Query) -> bool:
    return (
        sync.identity > query.after
        and (query.state is None or sync.state == query.state)
        and (query.site is None or sync.site == query.site)
        and (query.replication_id is None or sync.replication_id == query.replication_id)
    )


def _first(count: int, syncs: Iterable[InFlight]) -> list[InFlight]:
    return heapq.nsmallest(count, syncs, key=lambda sync: sync.identity)


def _shown(sync: InFlight) -> dict[str, object]:
    return {
        "requestId": sync.identity,
        "operationID": sync.operation_id,
        "replicationId": sync.replication_id,
        "site": sync.site,
        "state": sync.state,
        "partition": sync.partition,
        "attempts": sync.attempts,
        "taskId": sync.task_id,
        "progress": sync.progress,
        "acceptedAt": _moment(sync.accepted_at),
        "submittedAt": _moment(sync.submitted_at),
        "deadline": _moment(sync.deadline),
        "held": sync.held,
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
) -> Starlette:
    """Return the application. `documents` are further paths, made anew for each who asks."""

    async def livez(_: Request) -> Response:
        return _condition("alive", health.not_alive(clock.monotonic()))

    async def readyz(_: Request) -> Response:
        return _condition("ready", health.not_ready(clock.monotonic()))

    async def metrics(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return _answer(encode(registry), media_type)

    async def syncs(request: Request) -> Response:
        query = read_query(dict(request.query_params))
        if isinstance(query, str):
            return JSONResponse({"error": query}, status_code=400, headers=HEADERS)
        return _answer(json.dumps(await page(in_flight(), query)).encode(), "application/json")

    def hand_out(make: Callable[[], Document]) -> Callable[[Request], Response]:
        def endpoint(_: Request) -> Response:
            document = make()
            return _answer(document.content, document.media_type)

        return endpoint

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/syncs", syncs),
            # Not coroutines, so that Starlette makes them in a thread: a large document stops no loop.
            *(Route(path, hand_out(make)) for path, make in documents.items()),
        ]
    )


HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""Every answer is about this moment, and is what it says it is."""


def _condition(word: str, reasons: list[str]) -> Response:
    return JSONResponse({word: not reasons, "reasons": reasons}, status_code=503 if reasons else 200, headers=HEADERS)


def _answer(content: bytes, media_type: str) -> Response:
    # As a header of our own: Starlette would add a second charset to what has one.
    return Response(content, headers=HEADERS | {"content-type": media_type})


# ---------------------------------------------------------------- the server


class _Connection(H11Protocol):
    """A connection that is closed when nothing is asked or read on it, and when too many others are open."""

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
        self._limit = self.loop.call_later(ANSWER_WITHIN.total_seconds(), self.cut)

    def cut(self) -> None:
        """Close it at once, whatever has not been sent."""
        self.connections.discard(self)  # so that the next to come doesn't choose it again
        self.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn without hands on the process: signals are the application's."""

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: Starlette, *, host: str, port: int) -> AsyncIterator[int]:
    """Serve while the body runs, and yield the port, which the system picks where 0 was asked for.

    Raises OSError when the address can't be had. Leaving takes about `LEAVE_WITHIN` at most, whatever clients do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # "::" is the address of all interfaces: of IPv4's, too, wherever the system can.
    both = host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server((host, port), family=family, dualstack_ipv6=both)
    server = _Server(
        uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            workers=1,  # else it looks for a number in WEB_CONCURRENCY
            timeout_keep_alive=5,  # probes come every few seconds, anybody else may connect anew
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
        LOG.error("The operations server has died.", exc_info=error)
