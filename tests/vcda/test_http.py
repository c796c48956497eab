"""The wire itself: real sockets, and the certainty about what left. The timeouts here are short, but real."""

import asyncio
import hashlib
import json
import socket
import ssl
import struct
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import trustme

from service.clock import Clock
from service.sync import Accepted, Account, NotTaken, Trouble, Unanswered
from service.vcda import http as transport
from service.vcda.http import SMALL, Tls, Wire, status_label
from service.vcda.transport import BEFORE_THE_FIRST_BYTE, ConnectionTransport
from tests.support.descriptors import no_more_descriptors
from tests.support.scripted_http_server import (
    REPLICATION_ID,
    TASK_ID,
    Answer,
    Call,
    Cut,
    Drip,
    Meter,
    Reply,
    appliance,
    ours,
    script,
    session,
    task,
)


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


# ---------------------------------------------------------------- what left


async def test_a_refused_connection_means_that_nothing_left() -> None:
    async with ours(f"http://127.0.0.1:{closed_port()}") as us:
        answer = await us.submit()

    assert isinstance(answer, NotTaken)
    assert not answer.sent
    assert answer.trouble.label == "error"
    assert us.meter.requests == [("login", "error")]


async def test_a_refused_connection_of_the_post_alone_means_that_nothing_left() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        assert isinstance(await us.submit(), Accepted)  # logged in
        way = us.vcda._wire._ways["submit"]
        way._base, way._goal = f"http://127.0.0.1:{closed_port()}", None
        answer = await us.submit()

    assert isinstance(answer, NotTaken)
    assert not answer.sent
    assert us.meter.requests[-1] == ("submit", "error")
    assert "refuses connections: check VM_SYNC_VCDA__URL" in answer.trouble.detail


async def test_a_post_for_which_no_descriptor_was_left_has_not_left_and_the_next_one_goes() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        assert isinstance(await us.submit(), Accepted)  # logged in
        ways = us.vcda._wire._ways
        await ways["submit"].aclose()
        ways["submit"] = ConnectionTransport(httpx.URL(there.url), ssl.create_default_context(), timedelta(seconds=5))
        with no_more_descriptors():
            answer = await us.submit()
        then = await us.submit()

    assert isinstance(answer, NotTaken)
    assert not answer.sent
    assert "(Too many open files): this process may open no more files" in answer.trouble.detail
    assert isinstance(then, Accepted)


async def test_a_host_name_that_does_not_exist_names_the_setting() -> None:
    async with ours("https://vcda.invalid") as us:
        answer = await us.submit()

    assert isinstance(answer, NotTaken)
    assert "The host name vcda.invalid can't be resolved" in answer.trouble.detail
    assert "check VM_SYNC_VCDA__URL and DNS" in answer.trouble.detail


async def test_a_socket_that_the_event_loop_refuses_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast loop has a RuntimeError for a socket that it takes for one in use, and aiohttp passes it on."""

    async def refused(*_: object, **__: object) -> socket.socket:
        msg = "File descriptor 7 is used by transport <TCPTransport closed=True>"
        raise RuntimeError(msg)

    async with appliance(script()) as there, ours(there.url) as us:
        await us.vcda._session.admit(None)
        with monkeypatch.context() as patched:
            patched.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", refused)
            answer, polled = await us.submit(), await us.vcda.poll(site=None, ids=[TASK_ID])

        assert isinstance(answer, NotTaken)
        assert not answer.sent
        assert "File descriptor 7 is used by transport" in answer.trouble.detail
        assert isinstance(polled, Trouble)
        assert isinstance(await us.submit(), Accepted)


async def test_a_post_cut_after_the_server_has_read_it_is_unanswered() -> None:
    async with appliance(script(submit=Cut())) as there, ours(there.url) as us:
        answer = await us.submit()

        assert len(there.posts) == 1  # and never repeated by any library

    assert isinstance(answer, Unanswered)
    assert answer.sent_at == us.clock.monotonic()
    assert answer.account == Account("admin1@Org1")
    assert us.meter.requests[-1] == ("submit", "error")


async def test_a_post_on_a_kept_connection_that_is_cut_is_not_repeated() -> None:
    answers: list[Answer] = [Reply(202, task()), Cut()]
    async with appliance(script(submit=lambda _: answers.pop(0))) as there, ours(there.url) as us:
        assert isinstance(await us.submit(), Accepted)
        assert isinstance(await us.submit(), Unanswered)

        assert len(there.posts) == 2


async def test_a_connection_reset_after_the_post_is_unanswered() -> None:
    async with appliance() as there, ours(there.url) as us:

        async def reset(_: Call) -> Cut:
            for writer in there.writers:
                raw = writer.transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return Cut()

        there.script = script(submit=reset)
        assert isinstance(await us.submit(), Unanswered)


async def test_what_may_not_leave_does_not_leave_by_a_single_byte() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        await us.submit()
        before = there.received
        answer = await us.submit(may_leave=lambda _: False)
        await asyncio.sleep(0.05)  # what was sent would have come

        assert there.received == before

    assert answer == NotTaken(
        Trouble(label="withheld", detail="The call was not sent: the time in which it may be sent was over."),
        sent=False,
    )
    assert us.meter.requests == [("login", "2xx"), ("submit", "2xx")]


async def test_whether_a_post_may_leave_is_asked_after_login_extension_and_connection() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        asked_after: list[tuple[list[str], int]] = []

        def may_leave(_: Account | None) -> bool:
            asked_after.append(([call.name for call in there.calls], there.connections))
            return True

        await us.submit(site="site2", may_leave=may_leave)

    ((names, connections),) = asked_after
    assert names == ["POST /sessions", "POST /sessions/extend"]
    assert connections >= 1


async def test_posts_side_by_side_are_told_apart() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        await us.submit()
        answers = await asyncio.gather(*[us.submit(may_leave=lambda _, n=n: n % 3 != 0) for n in range(30)])  # type: ignore[misc]

        assert len(there.posts) == 21

    assert [isinstance(answer, Accepted) for answer in answers] == [n % 3 != 0 for n in range(30)]


async def test_a_bug_in_the_question_is_not_taken_for_trouble() -> None:
    def broken(_: Account | None) -> bool:
        raise LookupError

    async with appliance(script()) as there, ours(there.url) as us:
        with pytest.raises(LookupError):
            await us.submit(may_leave=broken)

        assert there.posts == []


# ---------------------------------------------------------------- what doesn't come back


@pytest.mark.parametrize(
    "broken",
    [
        Drip(b"HTTP/1.1 202 Accepted\r\nContent-Length: 1000\r\n\r\n{"),
        Drip(b"HTTP/1.1 202 Acc"),
        Drip(b"", drop=b""),
    ],
)
async def test_a_post_whose_answer_drips_is_unanswered_after_the_request_timeout(broken: Drip) -> None:
    async with appliance(script(submit=broken)) as there, ours(there.url) as us:
        await us.vcda._session.admit(None)
        us.vcda._wire._timeout = 1.0  # a connection is made before, also on a busy machine
        answer = await asyncio.wait_for(us.submit(), 20)

        assert len(there.posts) == 1

    assert isinstance(answer, Unanswered)
    assert answer.trouble.label == "timeout"
    assert us.meter.requests[-1] == ("submit", "timeout")


@pytest.mark.parametrize(
    "odd",
    [
        Cut(b"HTTP/1.1 202 Accepted\r\nContent-Length: 1000\r\n\r\n" + b'{"id": "' + TASK_ID.encode()),
        Cut(b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\n"),
        Cut(b"SSH-2.0-OpenSSH_9.6\r\n"),
        Cut(b"HTTP/1.1 202 \xff\xfe\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
        Cut(b"HTTP/1.1 202 OK\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"),
        Cut(b"HTTP/1.1 202 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        Cut(b"HTTP/1.1 202 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"),
        Cut(b"\x00" * 100),
        Reply(202),
        Reply(202, b'{"id": "' + TASK_ID.encode()),
        Reply(202, {"state": "RUNNING"}),
        Reply(202, {"id": None, "state": "RUNNING"}),
        Reply(202, {"id": "../../sessions", "state": "RUNNING"}),
        Reply(202, [task()]),
        Reply(202, b"<html>OK</html>"),
        Reply(202, {"id": TASK_ID, "padding": "x" * (SMALL + 1)}),
        Reply(204),
    ],
    ids=str,
)
async def test_a_post_without_a_whole_and_understood_answer_is_unanswered(odd: Cut | Reply) -> None:
    async with appliance(script(submit=odd)) as there, ours(there.url) as us:
        assert isinstance(await us.submit(), Unanswered)
        assert len(there.posts) == 1

        there.script = script()
        assert isinstance(await us.submit(), Accepted)  # on a connection that holds no rest of it


ACCEPTED = json.dumps(task()).encode()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 202 Accept\xe9\r\n",
        b"HTTP/1.1 202 OK\r\nSet-Cookie: " + b"x" * 9_000 + b"\r\n",
        b"HTTP/1.1 202 OK\r\n" + b"X-Policy: strict\r\n" * 300,
        b"HTTP/1.1 202 OK\r\nX-Name: Andr\xe9\r\n",
    ],
    ids=["a reason phrase in Latin-1", "a header of 9,000 bytes", "300 headers", "a header in Latin-1"],
)
async def test_an_answer_whose_head_is_odd_or_long_is_read_all_the_same(head: bytes) -> None:
    whole = head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(ACCEPTED) + ACCEPTED
    async with appliance(script(submit=Cut(whole))) as there, ours(there.url) as us:
        assert isinstance(await us.submit(), Accepted)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (Cut(), "VCDA closed the connection without an answer"),
        (
            Cut(b"HTTP/1.1 202 OK\r\nContent-Length: 100\r\n\r\n{"),
            "VCDA's answer is incomplete: the connection was closed",
        ),
        (Cut(b"SSH-2.0-OpenSSH_9.6\r\n"), "The headers of VCDA's answer can't be parsed"),
        (Cut(b"HTTP/1.1 202 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), "The headers of VCDA's answer can't be parsed"),
        (Cut(b"HTTP/1.1 202 OK\r\n" + b"X: y\r\n" * 2_000 + b"\r\n"), "The headers of VCDA's answer can't be parsed"),
    ],
    ids=["nothing", "half", "no HTTP", "a line too long", "too many headers"],
)
async def test_what_is_wrong_with_an_answer_is_said_in_a_sentence(odd: Cut, said: str) -> None:
    async with appliance(script(submit=odd)) as there, ours(there.url) as us:
        answer = await us.submit()

    assert isinstance(answer, Unanswered)
    assert answer.trouble.detail.startswith(said)
    assert "XX" not in answer.trouble.detail.upper(), "no words of the other side"


async def test_an_endless_answer_is_cut_off() -> None:
    async def endless(_: Call) -> Cut:
        return Cut(b"HTTP/1.1 202 OK\r\n\r\n" + b" " * (40 * SMALL))

    async with appliance(script(submit=endless)) as there, ours(there.url) as us:
        answer = await us.submit()

    assert isinstance(answer, Unanswered)
    assert "longer than" in answer.trouble.detail


async def test_an_unforeseen_error_over_an_answer_leaves_the_post_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> bytes:
        raise ZeroDivisionError

    async with appliance(script()) as there, ours(there.url) as us:
        await us.vcda._session.admit(None)
        with monkeypatch.context() as patched:
            patched.setattr(transport, "_read", broken)
            assert isinstance(await us.submit(), Unanswered)


@pytest.mark.parametrize("sent", [False, True])
async def test_a_call_that_a_library_cancels_by_itself_has_no_answer(
    sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        assert isinstance(await us.submit(), Accepted)  # logged in
        way = us.vcda._wire._ways["submit"]

        async def exchange(request: httpx.Request) -> httpx.Response:
            if sent:
                request.extensions[BEFORE_THE_FIRST_BYTE](SimpleNamespace(transport=None))
            raise asyncio.CancelledError

        monkeypatch.setattr(way, "handle_async_request", exchange)
        answer = await us.submit()

    assert isinstance(answer, Unanswered if sent else NotTaken)
    assert answer.trouble.detail == "CancelledError"


async def test_a_caller_who_gives_up_takes_nobody_along() -> None:
    release = asyncio.Event()

    async def slow(_: Call) -> Reply:
        await release.wait()
        return session()

    async with appliance(script(login=slow)) as there, ours(there.url) as us:
        impatient, patient = asyncio.create_task(us.submit()), asyncio.create_task(us.submit())
        await there.until(lambda: bool(there.calls))
        impatient.cancel()
        release.set()

        assert isinstance(await patient, Accepted)
        assert impatient.cancelled()
        assert len(there.seen("POST /sessions")) == 1


# ---------------------------------------------------------------- what is sent


async def test_a_post_says_what_is_agreed_and_nothing_else() -> None:
    async with appliance(script()) as there, ours(there.url) as us:
        await us.submit(site="site1")

        (post,) = there.posts
        assert post.target == f"/vm-replications/{REPLICATION_ID}/sync?site=site1"
        assert post.body == b""
        assert post.headers == {
            "host": there.url.removeprefix("http://"),
            "user-agent": "vm-sync/1.2.3",
            "accept": "application/json",
            "accept-encoding": "identity",
            "x-vcav-auth": "t0+/=",
            "operationid": "op-1",
            "content-length": "0",
        }


def by_name(url: str) -> str:
    """Return a URL whose host could have cookies; aiohttp keeps none of an address."""
    return url.replace("127.0.0.1", "localhost")


async def test_redirects_are_not_followed_and_cookies_not_kept() -> None:
    answers = [Reply(307, None, {"Location": "/elsewhere", "Set-Cookie": "a=b"}), Reply(202, task())]
    async with appliance(script(submit=lambda _: answers.pop(0))) as there, ours(by_name(there.url)) as us:
        moved = await us.submit()
        await us.submit()

        assert isinstance(moved, Unanswered)
        assert moved.trouble.label == "3xx"
        assert [call.path for call in there.posts] == [f"/vm-replications/{REPLICATION_ID}/sync"] * 2
        assert "cookie" not in there.posts[1].headers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_call_is_made_where_a_redirect_leads(status: int) -> None:
    """Each call but the logout's own carries a session's token, or a password."""
    async with appliance(script()) as elsewhere:
        there = Reply(status, None, {"Location": f"{elsewhere.url}/sessions"})
        everywhere = dict.fromkeys(("extend", "submit", "tasks", "logout"), there)
        async with appliance(script(**everywhere)) as here, ours(here.url) as us:
            await us.submit(site="site2")
            await us.submit()
            await us.vcda.ask(site=None, task_id=TASK_ID)
        async with appliance(script(login=there)) as here, ours(here.url) as us:
            await us.submit()

        assert not elsewhere.calls


async def test_polls_go_on_while_posts_hang() -> None:
    hang = asyncio.Event()

    async def hanging(_: Call) -> Reply:
        await hang.wait()
        return Reply(202, task())

    async with appliance(script(submit=hanging, tasks=Reply(200, task()))) as there, ours(there.url) as us:
        posts = [asyncio.create_task(us.submit()) for _ in range(100)]
        await there.until(lambda: len(there.posts) == 100)
        assert not isinstance(await us.vcda.ask(site=None, task_id=TASK_ID), Trouble)
        hang.set()
        await asyncio.gather(*posts)


# ---------------------------------------------------------------- whom we believe


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("127.0.0.1")


@pytest.fixture
def server_side(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def thumbprint(certificate: trustme.LeafCert) -> str:
    der = ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())
    return hashlib.sha256(der).hexdigest()


async def test_a_certificate_that_nobody_vouches_for_gets_not_a_byte(server_side: ssl.SSLContext) -> None:
    async with appliance(script(), tls=server_side) as there, ours(there.url) as us:
        answer = await us.submit()

        assert there.received == 0

    assert isinstance(answer, NotTaken)
    assert not answer.sent
    assert "can't be trusted (unable to get local issuer certificate)" in answer.trouble.detail
    assert "VM_SYNC_VCDA__CA_FILE" in answer.trouble.detail


async def test_a_certificate_of_the_own_authority_is_believed(
    server_side: ssl.SSLContext, authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = Tls(ca_file=tmp_path / "ca.pem")
    async with appliance(script(), tls=server_side) as there, ours(there.url, tls=tls) as us:
        assert isinstance(await us.submit(), Accepted)


async def test_a_certificate_known_by_its_thumbprint_is_believed(
    server_side: ssl.SSLContext, certificate: trustme.LeafCert
) -> None:
    digits = thumbprint(certificate).upper()
    tls = Tls(thumbprint=":".join(digits[n : n + 2] for n in range(0, 64, 2)))
    async with appliance(script(), tls=server_side) as there, ours(there.url, tls=tls) as us:
        assert isinstance(await us.submit(), Accepted)


async def test_a_ca_file_that_is_replaced_counts_for_new_connections(
    server_side: ssl.SSLContext, authority: trustme.CA, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = Tls(ca_file=tmp_path / "ca.pem")
    async with appliance(script(), tls=server_side) as there, ours(there.url, tls=tls) as us:
        assert isinstance(await us.submit(), NotTaken)
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        us.clock.seconds += 60  # the next login may begin
        assert isinstance(await us.submit(), Accepted)


async def test_another_thumbprint_gets_not_a_byte(server_side: ssl.SSLContext) -> None:
    tls = Tls(thumbprint="00" * 32)
    async with appliance(script(), tls=server_side) as there, ours(there.url, tls=tls) as us:
        answer = await us.submit()

        assert there.received == 0

    assert isinstance(answer, NotTaken)
    assert not answer.sent


@pytest.mark.parametrize(
    "tls",
    [
        Tls(thumbprint=""),
        Tls(thumbprint="abc"),
        Tls(thumbprint="zz" * 32),
        Tls(ca_file=Path("x"), thumbprint="00" * 32),
    ],
)
def test_a_thumbprint_that_is_none_stops_the_start(tls: Tls) -> None:
    with pytest.raises(ValueError, match=r"thumbprint|SHA-256"):
        tls.verification()


@pytest.mark.parametrize(
    "url",
    [
        "http://vcda.example.com",
        "http://10.0.0.1",
        "http://127.0.0.1.example.com",
        "ftp://vcda.example.com",
        "vcda.example.com",
        "https://",
        "https://user:password@vcda.example.com",
        "https://vcda.example.com/api",
        "https://vcda.example.com?x=1",
        "https://vcda.example.com:port",
        "https://\N{SNOWMAN}.example.com",
    ],
)
def test_a_url_that_is_not_just_a_machine_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|http|[Pp]ort"):
        transport._base(url)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://vcda.example.com", "https://vcda.example.com"),
        ("https://vcda.example.com:8443/", "https://vcda.example.com:8443"),
        ("https://vcda.example.com//", "https://vcda.example.com"),
        ("http://localhost:80", "http://localhost:80"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_a_url_ends_where_the_paths_begin(url: str, base: str) -> None:
    assert transport._base(url)[0] == base


async def test_a_wire_never_used_closes_cleanly() -> None:
    wire = Wire(
        "https://vcda.example.com",
        tls=Tls(),
        request_timeout=timedelta(seconds=1),
        user_agent="x",
        clock=Clock(),
        meter=Meter(),
    )
    await wire.close()


@pytest.mark.parametrize(
    ("status", "label"),
    [(202, "2xx"), (307, "3xx"), (400, "4xx"), (401, "401"), (409, "409"), (429, "429"), (503, "5xx")],
)
def test_only_statuses_that_mean_something_by_themselves_have_their_own_label(status: int, label: str) -> None:
    assert status_label(status) == label
