"""What probes, scrapers and people are told, and that no client can hold a stop up."""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from typing_extensions import override

from service.clock import Clock
from service.messages.wait_cause import WaitCause
from service.ops import server, syncs_page
from service.ops.health import Health, probe_loop
from service.ops.server import Document, operations, serving
from service.ops.syncs_page import SYNCS_AT_ONCE, Query, read_query
from service.partition.waiting import WaitsFor
from service.sync import ApiError
from tests.support.virtual_time import VirtualClock, run_virtual, virtual

NOW = datetime(2026, 1, 1, tzinfo=UTC)


ELDER = WaitsFor(WaitCause.ELDER, "request op-0 is running", until=NOW, behind="op-0")
BUSY = ApiError("Busy", "A sync is running.")

AWAY_FOR_LONG = timedelta(minutes=1)


@dataclass
class Shown:
    identity: str
    replication_id: str = "C4-1"
    operation_id: str = "op"
    site: str | None = None
    state: str = "running"
    partition: int = 3
    attempts: int = 1
    task_id: str | None = "task"
    progress: int | None = 40
    accepted_at: datetime = NOW
    submitted_at: datetime | None = None
    deadline: datetime = NOW + timedelta(hours=6)
    held: bool = False
    error: ApiError | None = BUSY
    http_status: int | None = 409
    waits_for: WaitsFor | None = ELDER


class HandClock(Clock):
    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0

    @override
    def monotonic(self) -> float:
        return self.at


# ---------------------------------------------------------------- alive


def test_it_is_alive_while_its_loops_turn() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.watch("the reading loop", limit=timedelta(seconds=60), now=0.0)

    assert health.not_alive(60.0) == []
    assert health.not_alive(61.0) == ["the reading loop has made no progress for 61 s; its limit is 60 s"]
    health.beat("the reading loop", 61.0)
    assert health.not_alive(121.0) == []


def test_a_loop_that_was_stopped_on_purpose_is_not_missed() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.watch("the reading loop", limit=timedelta(seconds=60), now=0.0)
    health.unwatch("the reading loop")
    health.beat("the reading loop", 1.0)

    assert health.not_alive(1000.0) == []


def test_it_is_not_alive_while_records_wait_that_nobody_reads() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.stalled(["partition 3 has unread records, and none was read for 91 s"])
    assert health.not_alive(0.0) == ["partition 3 has unread records, and none was read for 91 s"]

    health.stalled([])
    assert health.not_alive(0.0) == []


def test_what_kafka_refuses_makes_it_unready_and_is_no_reason_to_restart() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.joined()
    health.restored()
    health.refused(["Kafka refuses the consumer group: GroupAuthorizationFailedError('vm-sync')"])

    assert health.not_ready(0.0) == ["Kafka refuses the consumer group: GroupAuthorizationFailedError('vm-sync')"]
    assert health.not_alive(0.0) == []
    health.refused([])
    assert health.not_ready(0.0) == []


def test_a_partition_that_is_not_open_for_long_makes_it_unready_and_is_no_reason_to_restart() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.joined()
    health.restored()
    health.unopened(["partition 3 has not been open for 121 s: why"])

    assert health.not_ready(0.0) == ["partition 3 has not been open for 121 s: why"]
    assert health.not_alive(0.0) == []
    health.unopened([])
    assert health.not_ready(0.0) == []


def test_a_dead_coordination_task_is_a_reason_for_good() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.died("the poller", "KeyError")

    assert health.not_alive(0.0) == ["the poller has failed: KeyError"]


def test_kafka_being_away_is_no_reason_to_restart() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.away(0.0)
    health.stopped(3, "the cursor is beyond the end")
    health.draining()

    assert health.not_alive(10_000.0) == []


# ---------------------------------------------------------------- ready


def ready() -> Health:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.joined()
    health.restored()
    return health


def test_it_is_ready_once_kafka_is_joined_and_the_partitions_are_restored() -> None:
    health = Health(away_for_long=AWAY_FOR_LONG)

    assert health.not_ready(0.0) == ["the consumer group has not been joined yet"]
    health.joined()
    assert health.not_ready(0.0) == ["the partitions are being restored"]
    health.restored()
    assert health.not_ready(0.0) == []


def test_it_stays_ready_through_a_rebalance() -> None:
    health = ready()
    health.joined()

    assert health.not_ready(1.0) == []


def test_posts_may_be_held_back_by_a_slow_kafka_for_a_minute() -> None:
    health = ready()
    health.posts_held(10.0)

    assert health.not_ready(70.0) == []
    assert health.not_ready(71.0) == [
        "Kafka is too slow: its commits take so long that a POST has been held back for 61 s"
    ]
    assert health.not_alive(71.0) == []

    health.posts_held(None)
    assert health.not_ready(72.0) == []


def test_kafka_may_be_away_for_a_minute_counted_from_the_first_miss() -> None:
    health = ready()
    health.away(10.0)
    health.away(50.0)

    assert health.not_ready(70.0) == []
    assert health.not_ready(71.0) == ["Kafka has been unreachable for 61 s"]
    health.back()
    assert health.not_ready(72.0) == []
    health.away(80.0)
    assert health.not_ready(90.0) == []


def test_a_missing_requests_topic_makes_it_unready_until_it_is_there() -> None:
    health = ready()
    health.missing("requests")

    assert health.not_ready(0.0) == ["the topic requests does not exist, or the right to read it is missing"]
    health.missing(None)
    assert health.not_ready(0.0) == []


def test_a_stopped_partition_makes_it_unready_until_it_works_or_leaves() -> None:
    health = ready()
    health.stopped(7, "its cursor is beyond the end")
    health.stopped(3, "no cursor")

    assert health.not_ready(0.0) == [
        "partition 3 is stopped: no cursor",
        "partition 7 is stopped: its cursor is beyond the end",
    ]
    health.working(3)
    health.working(7)
    health.working(8)
    assert health.not_ready(0.0) == []


def test_it_is_unready_while_draining() -> None:
    health = ready()
    health.draining()

    assert health.not_ready(0.0) == ["the service is draining"]


# ---------------------------------------------------------------- the event loop's lag


@virtual
async def test_a_loop_on_time_has_no_lag() -> None:
    seen: list[float] = []
    clock = VirtualClock(asyncio.get_running_loop())
    probe = asyncio.create_task(probe_loop(clock, lag=seen.append))

    await asyncio.sleep(1.25)
    probe.cancel()

    assert seen == [0.0, 0.0]


@virtual
async def test_a_late_awakening_is_the_lag() -> None:
    class Late(VirtualClock):
        looks = 0

        @override
        def monotonic(self) -> float:
            self.looks += 1
            return super().monotonic() + (0.25 if self.looks == 2 else 0.0)

    seen: list[float] = []
    probe = asyncio.create_task(probe_loop(Late(asyncio.get_running_loop()), lag=seen.append))

    await asyncio.sleep(0.75)
    probe.cancel()

    assert seen == [0.25]


# ---------------------------------------------------------------- in flight


def query(**given: str) -> Query:
    read = read_query(given)
    assert isinstance(read, Query)
    return read


def page(syncs: Iterable[Shown], query: Query) -> dict[str, Any]:
    return run_virtual(syncs_page.page(syncs, query))


def ids(shown: dict[str, Any]) -> list[str]:
    return [sync["requestId"] for sync in shown["syncs"]]


def test_a_sync_is_shown_with_its_progress() -> None:
    assert page([Shown("op:C4-1:a")], query())["syncs"] == [
        {
            "requestId": "op:C4-1:a",
            "operationID": "op",
            "replicationId": "C4-1",
            "site": None,
            "state": "running",
            "partition": 3,
            "attempts": 1,
            "taskId": "task",
            "progress": 40,
            "acceptedAt": "2026-01-01T00:00:00.000Z",
            "submittedAt": None,
            "deadline": "2026-01-01T06:00:00.000Z",
            "held": False,
            "error": {"code": "Busy", "msg": "A sync is running.", "httpStatus": 409},
            "waitsFor": {
                "cause": "elder",
                "site": None,
                "until": "2026-01-01T00:00:00.000Z",
                "behind": "op-0",
                "detail": "request op-0 is running",
            },
        }
    ]


def test_pages_follow_one_another_in_order_without_gap_or_overlap() -> None:
    syncs = [Shown(f"op:C4-1:{number:02}") for number in (4, 1, 3, 0, 2)]

    first = page(syncs, query(limit="2"))
    second = page(syncs, query(limit="2", after=str(first["next"])))
    third = page(syncs, query(limit="2", after=str(second["next"])))

    assert [ids(first), ids(second), ids(third)] == [
        ["op:C4-1:00", "op:C4-1:01"],
        ["op:C4-1:02", "op:C4-1:03"],
        ["op:C4-1:04"],
    ]
    assert third["next"] is None


@virtual
async def test_the_event_loop_turns_while_many_syncs_are_looked_through() -> None:
    looked, longest, done = 0, 0, False

    def syncs() -> Iterator[Shown]:
        nonlocal looked
        for number in range(20_000):
            looked += 1
            yield Shown(f"op:C4-1:{(number * 7919) % 20_000:05}")

    async def turn() -> None:
        nonlocal looked, longest
        while not done:
            longest, looked = max(longest, looked), 0
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    shown = await syncs_page.page(syncs(), query(limit="3", after="op:C4-1:00041"))
    done = True
    await turning

    assert longest == SYNCS_AT_ONCE
    assert ids(shown) == ["op:C4-1:00042", "op:C4-1:00043", "op:C4-1:00044"]
    assert shown["next"] == "op:C4-1:00044"


@virtual
async def test_a_sync_that_ends_while_the_page_is_made_is_not_shown() -> None:
    first = Shown("a")

    def syncs() -> Iterator[Shown]:
        yield first
        first.state = "ended"
        yield Shown("b")

    assert ids(await syncs_page.page(syncs(), query())) == ["b"]


def test_a_page_that_just_suffices_is_the_last() -> None:
    assert page([Shown("a"), Shown("b")], query(limit="2"))["next"] is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"state": "waiting"}, ["b"]),
        ({"site": "berlin"}, ["c"]),
        ({"replicationId": "C4-2"}, ["d"]),
        ({"state": "waiting", "site": "berlin"}, []),
        ({}, ["a", "b", "c", "d"]),
    ],
)
def test_syncs_are_chosen_by_state_site_and_replication(given: dict[str, str], expected: list[str]) -> None:
    syncs = [Shown("a"), Shown("b", state="waiting"), Shown("c", site="berlin"), Shown("d", replication_id="C4-2")]

    assert ids(page(syncs, query(**given))) == expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"limit": "0"}, "limit is a number from 1 to 1000."),
        ({"limit": "1001"}, "limit is a number from 1 to 1000."),
        ({"limit": "-1"}, "limit is a number from 1 to 1000."),
        ({"limit": "ten"}, "limit is a number from 1 to 1000."),
        ({"limit": "9" * 5000}, "limit is a number from 1 to 1000."),
        ({"limit": "²"}, "limit is a number from 1 to 1000."),
        ({"state": "Running"}, "state is one of waiting, submitting, in_doubt, running, lingering."),
        ({"replicationID": "x"}, "There is no parameter 'replicationID'; there are "),
    ],
)
def test_a_bad_parameter_gets_a_sentence(given: dict[str, str], sentence: str) -> None:
    answer = read_query(given)

    assert isinstance(answer, str)
    assert answer.startswith(sentence)


# ---------------------------------------------------------------- the answers


class Service:
    """The application over an empty registry, and a client that talks to it without a socket."""

    def __init__(self) -> None:
        self.health = ready()
        self.clock = HandClock()
        self.registry = CollectorRegistry()
        self.syncs: list[Shown] = []
        self.app = operations(
            health=self.health,
            clock=self.clock,
            registry=self.registry,
            documents={"/asyncapi.yaml": lambda: Document(b"asyncapi: 3.0.0", "application/yaml")},
            in_flight=self.in_flight,
        )
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://ops")

    def in_flight(self) -> Iterable[Shown]:
        return self.syncs


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    async with service.client:
        yield service


async def test_livez_and_readyz_say_yes(service: Service) -> None:
    livez, readyz = await service.client.get("/livez"), await service.client.get("/readyz")

    assert (livez.status_code, livez.json()) == (200, {"alive": True, "reasons": []})
    assert (readyz.status_code, readyz.json()) == (200, {"ready": True, "reasons": [], "degraded": []})


async def test_livez_says_503_and_why_when_a_loop_has_stalled(service: Service) -> None:
    service.health.watch("the reading loop", limit=timedelta(seconds=60), now=0.0)
    service.clock.at = 100.0

    answer = await service.client.get("/livez")

    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["the reading loop has made no progress for 100 s; its limit is 60 s"]


async def test_readyz_says_503_and_why_while_draining_and_livez_stays(service: Service) -> None:
    service.health.draining()

    readyz = await service.client.get("/readyz")

    assert (readyz.status_code, readyz.json()["reasons"]) == (503, ["the service is draining"])
    assert (await service.client.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    ("accept", "media_type", "end"),
    [
        ("", "text/plain", "x_total 1.0\n"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", "# EOF\n"),
    ],
)
async def test_metrics_come_as_text_or_as_openmetrics(service: Service, accept: str, media_type: str, end: str) -> None:
    counter = Counter("x", "An x.", registry=service.registry)
    counter.inc()

    answer = await service.client.get("/metrics", headers={"accept": accept})

    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["content-type"].count("charset") == 1
    assert "x_total 1.0" in answer.text
    assert answer.text.endswith(end) or "_created" in answer.text


async def test_documents_are_handed_out_as_they_are(service: Service) -> None:
    answer = await service.client.get("/asyncapi.yaml")

    assert (answer.content, answer.headers["content-type"]) == (b"asyncapi: 3.0.0", "application/yaml")


async def test_syncs_are_shown_a_page_at_a_time_and_a_bad_question_gets_400(service: Service) -> None:
    service.syncs = [Shown("op:a"), Shown("ce:%2Fx:b", state="waiting")]

    first = await service.client.get("/syncs", params={"limit": 1})
    second = await service.client.get("/syncs", params={"limit": 1, "after": first.json()["next"]})
    bad = await service.client.get("/syncs", params={"state": "lost"})

    assert (ids(first.json()), ids(second.json())) == (["ce:%2Fx:b"], ["op:a"])
    assert (bad.status_code, bad.json()["error"][:15]) == (400, "state is one of")


@pytest.mark.parametrize("path", ["/livez", "/syncs", "/metrics"])
async def test_nothing_can_be_changed_from_here(service: Service, path: str) -> None:
    assert (await service.client.post(path)).status_code == 405
    assert (await service.client.get("/elsewhere")).status_code == 404


async def test_no_answer_is_kept_by_a_cache(service: Service) -> None:
    assert (await service.client.get("/readyz")).headers["cache-control"] == "no-store"


# ---------------------------------------------------------------- the server, over real sockets


async def ask(port: int, path: str = "/livez") -> dict[str, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    body: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return body


async def test_port_0_picks_a_free_one_and_it_answers_until_the_body_ends() -> None:
    async with serving(Service().app, host="127.0.0.1", port=0) as port:
        assert port > 0
        assert await ask(port) == {"alive": True, "reasons": []}

    with pytest.raises(OSError, match="Connect call failed"):
        await ask(port)


async def test_a_port_that_is_taken_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            async with serving(Service().app, host="127.0.0.1", port=port):
                pytest.fail("it has no port to serve on")


async def test_clients_that_send_half_a_request_or_read_no_answer_hold_no_stop_up() -> None:
    service = Service()
    service.syncs = [Shown(f"{number:05}" * 200) for number in range(1000)]
    loop = asyncio.get_running_loop()
    writers = []
    async with serving(service.app, host="127.0.0.1", port=0) as port:
        for text in ("", "GET /livez HT", "GET /syncs?limit=1000 HTTP/1.1\r\nhost: x\r\n\r\n" * 30):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(text.encode())
            writers.append(writer)
        assert await ask(port) == {"alive": True, "reasons": []}
        leaving = loop.time()

    assert loop.time() - leaving < 2.5
    for writer in writers:
        writer.close()


async def test_a_probe_is_answered_however_many_connections_send_nothing() -> None:
    silent = []
    async with serving(Service().app, host="127.0.0.1", port=0) as port:
        silent += [await asyncio.open_connection("127.0.0.1", port) for _ in range(server.CONNECTIONS + 50)]

        assert await ask(port) == {"alive": True, "reasons": []}
        # The oldest had to make room.
        assert await asyncio.wait_for(silent[0][0].read(), 5) == b""

    for _, writer in silent:
        writer.close()


@pytest.mark.parametrize(
    "text",
    ["", "GET /livez HTTP/1.1\r\nhost: o", "GET /livez HTTP/1.1\r\nhost: o\r\n\r\nGET /liv"],
    ids=["nothing", "half a request", "half a second request"],
)
async def test_a_connection_on_which_nothing_is_asked_is_closed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ANSWER_WITHIN", timedelta(seconds=0.3))
    async with serving(Service().app, host="127.0.0.1", port=0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(text.encode())

        with contextlib.suppress(ConnectionResetError):
            answer = await asyncio.wait_for(reader.read(), 10)
            assert answer.count(b"200 OK") == text.count("\r\n\r\n")
        writer.close()


async def test_a_connection_on_which_nothing_is_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ANSWER_WITHIN", timedelta(seconds=0.3))
    service = Service()
    service.syncs = [Shown(f"{number:05}" * 200) for number in range(1000)]
    async with serving(service.app, host="127.0.0.1", port=0) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /syncs?limit=1000 HTTP/1.1\r\nhost: x\r\n\r\n" * 30)
            await asyncio.sleep(1)  # the server's timer is another of this loop's, due long before
            read = await asyncio.wait_for(asyncio.to_thread(_read_all, client), 20)

    assert read.count(b"200 OK") < 30


def _read_all(client: socket.socket) -> bytes:
    read = b""
    with contextlib.suppress(ConnectionResetError):
        while some := client.recv(1024 * 1024):
            read += some
    return read


async def test_the_address_of_all_interfaces_serves_both_families() -> None:
    async with serving(Service().app, host="::", port=0) as port:
        for host in ("127.0.0.1", "::1"):
            async with httpx.AsyncClient() as client:
                url = f"http://[{host}]:{port}/livez" if ":" in host else f"http://{host}:{port}/livez"
                assert (await client.get(url)).status_code == 200


async def test_a_number_of_workers_for_other_servers_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "many")
    async with serving(Service().app, host="127.0.0.1", port=0) as port:
        assert await ask(port) == {"alive": True, "reasons": []}


async def test_an_error_in_the_body_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with serving(Service().app, host="127.0.0.1", port=0):
            _ = 1 / 0


async def test_the_process_keeps_its_signal_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with serving(Service().app, host="127.0.0.1", port=0) as port:
        await ask(port)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
