"""What a token server is asked, and what becomes of each of its answers."""

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from service.certificates import Certificates, Current
from service.kafka import token_server
from service.kafka.clients import CONNECT_LIMIT
from service.kafka.token_server import ClientCredentials
from service.kafka.tokens import TokenUnavailable
from tests.support.scripted_http_server import Answer, Cut, Drip, Reply
from tests.support.token_server import CLIENT, SCOPE, SECRET, TokenServer
from tests.support.virtual_time import HandClock

TOKEN = "opaque.token-1_~+/=="
GOOD = {"access_token": TOKEN, "token_type": "bearer", "expires_in": 3600}


def client(url: str, *, tls: ssl.SSLContext | None = None, **changed: Any) -> ClientCredentials:
    given = {"client_id": CLIENT, "client_secret": SECRET, "scope": SCOPE} | changed
    context = tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return ClientCredentials(url, tls=context, clock=HandClock(), **given)


async def test_a_token_is_asked_for_with_client_and_scope_encoded_as_the_rfc_says() -> None:
    async with TokenServer() as server:
        token = await client(server.url).fetch()

    (call,) = server.calls
    assert token.text == server.issued[0]
    assert token.lifetime == timedelta(hours=1)
    assert call.body == b"grant_type=client_credentials&scope=kafka"
    assert call.headers["content-type"] == "application/x-www-form-urlencoded"
    assert SECRET not in repr(call.body)
    assert token.text not in repr(token)


async def test_without_a_scope_none_is_sent() -> None:
    async with TokenServer() as server:
        await client(server.url, scope=None).fetch()

    assert server.calls[0].body == b"grant_type=client_credentials"


@pytest.mark.parametrize(
    ("seconds", "lifetime"),
    [
        ({"expires_in": 60}, timedelta(seconds=60)),
        ({"expires_in": "60"}, timedelta(seconds=60)),
        ({"expires_in": 59.5}, timedelta(seconds=59.5)),
        ({"expires_in": 10**30}, timedelta(days=365)),
        ({}, None),
        ({"expires_in": None}, None),
        ({"expires_in": "soon"}, None),
        ({"expires_in": "9" * 5000}, timedelta(days=365)),
        ({"expires_in": -1}, None),
    ],
)
async def test_a_tokens_lifetime_is_what_the_server_says(seconds: dict[str, Any], lifetime: timedelta | None) -> None:
    async with TokenServer() as server:
        server.answer = Reply(200, {"access_token": TOKEN, "token_type": "bearer"} | seconds)
        token = await client(server.url).fetch()

    assert (token.text, token.lifetime) == (TOKEN, lifetime)


async def test_a_token_whose_lifetime_the_server_does_not_say_may_say_it_itself() -> None:
    async with TokenServer() as server:
        ends = HandClock().now() + timedelta(minutes=7)
        text = server.issue(exp=ends.timestamp())
        server.answer = Reply(200, {"access_token": text, "token_type": "Bearer"})
        token = await client(server.url).fetch()

    assert token.lifetime == timedelta(minutes=7)


ANSWERS: dict[str, tuple[Answer, str, bool]] = {
    "invalid client": (
        Reply(401, {"error": "invalid_client", "error_description": "no such"}),
        "invalid_client: check VM_SYNC_KAFKA__OAUTH_CLIENT_ID and VM_SYNC_KAFKA__OAUTH_CLIENT_SECRET",
        True,
    ),
    "invalid scope": (
        Reply(400, {"error": "invalid_scope"}),
        "answers 400 with the error invalid_scope: check VM_SYNC_KAFKA__OAUTH_SCOPE",
        True,
    ),
    "a client that may not": (
        Reply(400, {"error": "unauthorized_client"}),
        "answers 400 with the error unauthorized_client: allow the client-credentials grant for this client",
        True,
    ),
    "an error of its own": (
        Reply(400, {"error": "interaction_required"}),
        "answers 400 with the error interaction_required: check VM_SYNC_KAFKA__OAUTH_TOKEN_URL, ",
        True,
    ),
    "an error that is no code": (
        Reply(400, {"error": f"said {TOKEN}"}),
        "answers 400: check VM_SYNC_KAFKA__OAUTH_TOKEN_URL",
        True,
    ),
    "401 without a word": (Reply(401), "answers 401: check VM_SYNC_KAFKA__OAUTH_CLIENT_ID and", True),
    "not found": (Reply(404, b"<html>"), "answers 404: check VM_SYNC_KAFKA__OAUTH_TOKEN_URL", True),
    "a redirect": (
        Reply(302, headers={"Location": "https://elsewhere.example/"}),
        "answers 302: check VM_SYNC_KAFKA__OAUTH_TOKEN_URL",
        True,
    ),
    "too many requests": (Reply(429), "answers 429: look at the token server", False),
    "an internal error": (Reply(503, b"busy"), "answers 503: look at the token server", False),
    "a page": (Reply(200, b"<html>"), "answers without a token: check VM_SYNC_KAFKA__OAUTH_TOKEN_URL", True),
    "a list": (Reply(200, ["x"]), "answers without a token", True),
    "no token": (Reply(200, {"token_type": "bearer"}), "answers without a token", True),
    "an empty token": (Reply(200, GOOD | {"access_token": ""}), "answers without a token", True),
    "a token with control characters": (Reply(200, GOOD | {"access_token": "a\x01b"}), "answers without a token", True),
    "another type of token": (
        Reply(200, GOOD | {"token_type": "mac"}),
        "issues tokens of another type than Bearer",
        True,
    ),
    "a deep answer": (Reply(200, b'{"access_token":' + b"[" * 100_000), "answers without a token", True),
    "a deep refusal": (Reply(401, b"[" * 100_000), "answers 401: check VM_SYNC_KAFKA__OAUTH_CLIENT_ID and", True),
    "an endless answer": (Reply(200, b" " * (token_server.LONGEST + 1)), "answers with more than 262144 bytes", True),
    "a connection that is closed": (Cut(), "the connection was closed without a complete answer: check", False),
    "half an answer": (Cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), "without a complete answer", False),
    "nonsense": (Cut(b"SSH-2.0-OpenSSH\r\n\r\n"), "its answer can't be read", False),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_without_a_usable_token_is_a_sentence_that_names_the_setting_of(name: str) -> None:
    answer, expected, answered = ANSWERS[name]
    async with TokenServer() as server:
        server.answer = answer
        with pytest.raises(TokenUnavailable) as raised:
            await client(server.url).fetch()

    said = str(raised.value)
    assert said.startswith("The OAuth token server 127.0.0.1:")
    assert expected in said
    assert raised.value.answered == answered
    assert not [secret for secret in (TOKEN, SECRET, "no such", "elsewhere") if secret in said]


async def test_a_wrong_secret_is_refused_and_never_quoted() -> None:
    async with TokenServer() as server:
        with pytest.raises(TokenUnavailable, match=r"invalid_client: check .*CLIENT_SECRET") as raised:
            await client(server.url, client_secret="Wrong-Secret").fetch()

    assert "Wrong-Secret" not in str(raised.value)


async def test_a_server_that_never_finishes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_server, "LIMIT", timedelta(seconds=0.3))
    async with TokenServer() as server:
        server.answer = Drip(b"HTTP/1.1 200 OK\r\n\r\n")
        with pytest.raises(TokenUnavailable, match=r"nothing answered within 0\.3 s") as raised:
            await client(server.url).fetch()

    assert not raised.value.answered


def test_a_server_that_hangs_is_given_up_before_the_broker_that_waits_for_the_login() -> None:
    assert token_server.LIMIT <= CONNECT_LIMIT / 2


async def test_a_server_that_is_away_is_said_with_the_setting() -> None:
    with pytest.raises(TokenUnavailable, match=r"the connection was refused.*VM_SYNC_KAFKA__OAUTH_TOKEN_URL") as raised:
        await client(TokenServer().url).fetch()

    assert not raised.value.answered


async def test_a_name_that_does_not_exist_is_said() -> None:
    with pytest.raises(TokenUnavailable, match=r"nowhere\.invalid:443 .*the name can't be resolved"):
        await client("https://nowhere.invalid/token").fetch()


# ---------------------------------------------------------------- TLS


def secured(authority: trustme.CA, *, host: str = "127.0.0.1") -> TokenServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    return TokenServer(tls=context)


def trusting(authority: trustme.CA, folder: Path) -> Current:
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return Current(Certificates(prefix="VM_SYNC_KAFKA__OAUTH_", ca_file=folder / "ca.pem"))


async def test_the_servers_certificate_is_verified_with_an_authority_of_its_own(tmp_path: Path) -> None:
    authority = trustme.CA()
    async with secured(authority) as server:
        token = await client(server.url, tls=trusting(authority, tmp_path)).fetch()

    assert token.text == server.issued[0]


@pytest.mark.parametrize(
    ("known", "host", "expected"),
    [
        (False, "127.0.0.1", r"\): set VM_SYNC_KAFKA__OAUTH_CA_FILE to the certificates of its authority"),
        (
            True,
            "elsewhere.example",
            r"\): write the host in VM_SYNC_KAFKA__OAUTH_TOKEN_URL as the certificate spells it",
        ),
    ],
)
async def test_a_certificate_that_is_not_trusted_gets_no_secret_and_is_said(
    known: bool, host: str, expected: str, tmp_path: Path
) -> None:
    authority = trustme.CA()
    async with secured(authority, host=host) as server:
        with pytest.raises(TokenUnavailable, match=expected) as raised:
            await client(server.url, tls=trusting(authority if known else trustme.CA(), tmp_path)).fetch()

    assert raised.value.answered
    assert server.calls == []


async def test_https_at_a_server_without_it_is_said(tmp_path: Path) -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        source = client(f"https://127.0.0.1:{port}/token", tls=trusting(trustme.CA(), tmp_path))
        with pytest.raises(
            TokenUnavailable, match=r"can't be reached by TLS: check that VM_SYNC_KAFKA__OAUTH_TOKEN_URL"
        ):
            await source.fetch()
