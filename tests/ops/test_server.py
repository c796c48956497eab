"""The operations server: its answers, and its connections over real sockets."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from html import unescape
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from service.messages.wait_cause import WaitCause
from service.ops import overview_page, server
from service.ops.overview import Overview
from service.ops.page_frame import POLICY
from service.ops.server import Document, operations, serving
from service.partition.waiting import WaitsFor
from service.sync import ApiError
from tests.support.shown_overview import some_overview
from tests.support.shown_syncs import Shown, ids, ready
from tests.support.virtual_time import HandClock

SOON = timedelta(seconds=0.3)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


class Service:
    """The application over an empty registry, and a client that talks to it without a socket."""

    def __init__(self) -> None:
        self.health = ready()
        self.clock = HandClock()
        self.registry = CollectorRegistry()
        self.syncs: list[Shown] = []
        self.overviews = 0
        self.makers: list[threading.Thread] = []
        self.app = operations(
            health=self.health,
            clock=self.clock,
            registry=self.registry,
            documents={"/asyncapi.yaml": self.document},
            in_flight=self.in_flight,
            overview=self.overview,
            clean=lambda text: text.replace("hunter2", "[hidden]"),
        )
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://ops")

    def in_flight(self) -> Iterable[Shown]:
        return self.syncs

    def document(self) -> Document:
        self.makers.append(threading.current_thread())
        return Document(b"asyncapi: 3.0.0", "application/yaml")

    async def overview(self) -> Overview:
        self.overviews += 1
        await asyncio.sleep(0)
        return some_overview(f"look-{self.overviews}")


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
    service.health.watch("the reading loop", limit=timedelta(seconds=60), now=service.clock.monotonic())
    service.clock.seconds += 100.0

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
        ("application/openmetrics-text; version=x", "text/plain", "x_total 1.0\n"),
        ("text/plain; version=1.x.0", "text/plain", "x_total 1.0\n"),
        (f"application/openmetrics-text; version={'9' * 5000}", "text/plain", "x_total 1.0\n"),
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


async def test_however_many_ask_for_a_document_it_is_made_once_and_not_on_the_loop(service: Service) -> None:
    answers = await asyncio.gather(*[service.client.get("/asyncapi.yaml") for _ in range(50)])

    assert {answer.status_code for answer in answers} == {200}
    assert [maker is threading.main_thread() for maker in service.makers] == [False]


async def test_syncs_are_shown_a_page_at_a_time_and_a_bad_question_gets_400(service: Service) -> None:
    service.syncs = [Shown("op:a"), Shown("ce:%2Fx:b", state="waiting")]

    first = await service.client.get("/syncs", params={"limit": 1})
    second = await service.client.get("/syncs", params={"limit": 1, "after": first.json()["next"]})
    bad = await service.client.get("/syncs", params={"state": "lost"})

    assert (ids(first.json()), ids(second.json())) == (["ce:%2Fx:b"], ["op:a"])
    assert (bad.status_code, bad.json()["error"][:15]) == (400, "state is one of")


async def test_json_shows_no_secret_in_words_of_others(service: Service) -> None:
    waits = WaitsFor(WaitCause.OTHER, "hunter2 is refused")
    service.syncs = [Shown("op:a", error=ApiError("No", "hunter2 is wrong"), waits_for=waits)]
    service.health.refused(["Kafka refuses hunter2"])
    service.health.degraded("the login", ["VCDA refuses hunter2"])

    answers = [await service.client.get(path) for path in ("/syncs", "/readyz")]

    assert [answer.text.count("[hidden]") for answer in answers] == [2, 2]
    assert not any("hunter2" in answer.text for answer in answers)


async def test_the_page_for_people_is_one_file_that_may_load_nothing(service: Service) -> None:
    answer = await service.client.get("/")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "look-1" in answer.text


async def test_however_many_look_at_the_page_it_is_made_once_a_second(service: Service) -> None:
    answers = await asyncio.gather(*[service.client.get("/") for _ in range(50)])
    assert service.overviews == 1
    assert len({answer.content for answer in answers}) == 1

    service.clock.seconds += 0.9
    await service.client.get("/")
    assert service.overviews == 1
    service.clock.seconds += 0.2
    assert "look-2" in (await service.client.get("/")).text


async def test_an_error_while_the_page_is_made_is_not_kept(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview_page, "write", lambda _, clean: clean(None))
    with pytest.raises(AttributeError):
        await service.client.get("/")
    monkeypatch.undo()

    assert (await service.client.get("/")).status_code == 200


@pytest.mark.parametrize("path", ["/", "/syncs", "/livez", "/metrics", "/elsewhere"])
async def test_head_is_answered_as_get_is_without_the_content(path: str) -> None:
    async with serving(Service().app, host="127.0.0.1", port=0) as port, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}{path}"
        get, head = await client.get(url), await client.head(url)

    assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
    assert head.content == b""


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [(BROWSER, "text/html; charset=utf-8"), ("*/*", "application/json"), ("application/json", "application/json")],
)
@pytest.mark.parametrize(("query", "status"), [("", 200), ("?state=lost", 400)])
async def test_browsers_get_syncs_as_a_table_and_others_as_json(
    service: Service, accept: str, media_type: str, query: str, status: int
) -> None:
    service.syncs = [Shown("op:a", operation_id="nightly")]

    answer = await service.client.get(f"/syncs{query}", headers={"accept": accept})

    assert (answer.status_code, answer.headers["content-type"]) == (status, media_type)
    assert answer.headers["vary"] == "accept"
    assert ("content-security-policy" in answer.headers) is (accept == BROWSER)
    assert ("nightly" if status == 200 else "state is one of") in answer.text


async def test_a_browser_follows_the_pages_of_the_table(service: Service) -> None:
    service.syncs = [Shown(f"op:{number:03}", operation_id=f"op-{number:03}") for number in range(250)]
    service.client.headers["accept"] = BROWSER
    shown, link = [], "/syncs?limit=100"
    while link:
        page = (await service.client.get(link)).text
        shown += re.findall(r"<b>(op-\d+)</b>", page)
        following = re.findall(r'href="([^"]+)">Next page<', page)
        link = unescape(following[0]) if following else ""

    assert shown == [f"op-{number:03}" for number in range(250)]


async def test_an_empty_field_of_the_form_filters_nothing(service: Service) -> None:
    service.syncs = [Shown("op:a")]

    for accept in (BROWSER, "*/*"):
        answer = await service.client.get("/syncs?state=&site=&replicationId=&limit=", headers={"accept": accept})
        assert answer.status_code == 200
        assert "op:a" in answer.text or "C4-1" in answer.text


async def test_the_table_hides_secrets(service: Service) -> None:
    service.syncs = [Shown("op:a", error=ApiError("Odd", "The password hunter2 is odd."))]

    assert "hunter2" not in (await service.client.get("/syncs", headers={"accept": BROWSER})).text


@pytest.mark.parametrize("path", ["/", "/livez", "/syncs", "/metrics"])
async def test_nothing_can_be_changed_from_here(service: Service, path: str) -> None:
    assert (await service.client.post(path)).status_code == 405
    assert (await service.client.get("/elsewhere")).status_code == 404


async def test_no_answer_is_kept_by_a_cache(service: Service) -> None:
    assert (await service.client.get("/readyz")).headers["cache-control"] == "no-store"


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

    assert loop.time() - leaving < server.ANSWER_WITHIN.total_seconds()  # until which such clients are served
    for writer in writers:
        writer.close()


async def test_a_probe_is_answered_however_many_connections_send_nothing() -> None:
    silent = []
    async with serving(Service().app, host="127.0.0.1", port=0) as port:
        silent += [await asyncio.open_connection("127.0.0.1", port) for _ in range(server.CONNECTIONS + 50)]

        assert await ask(port) == {"alive": True, "reasons": []}
        # The oldest had to make room.
        assert await asyncio.wait_for(silent[0][0].read(), 60) == b""

    for _, writer in silent:
        writer.close()


@pytest.mark.parametrize(
    "text",
    ["", "GET /livez HTTP/1.1\r\nhost: o", "GET /livez HTTP/1.1\r\nhost: o\r\n\r\nGET /liv"],
    ids=["nothing", "half a request", "half a second request"],
)
async def test_a_connection_on_which_nothing_is_asked_is_closed(text: str) -> None:
    async with serving(Service().app, host="127.0.0.1", port=0, answer_within=SOON) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(text.encode())

        with contextlib.suppress(ConnectionResetError):
            answer = await asyncio.wait_for(reader.read(), 60)
            assert answer.count(b"200 OK") == text.count("\r\n\r\n")
        writer.close()


async def test_a_connection_on_which_nothing_is_read_is_closed() -> None:
    service = Service()
    service.syncs = [Shown(f"{number:05}" * 200) for number in range(1000)]
    async with serving(service.app, host="127.0.0.1", port=0, answer_within=SOON) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /syncs?limit=1000 HTTP/1.1\r\nhost: x\r\n\r\n" * 30)
            await asyncio.sleep(1)  # the server's timer is another of this loop's, due long before
            read = await asyncio.wait_for(asyncio.to_thread(_read_all, client), 60)

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
