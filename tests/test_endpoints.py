"""Whether an address can be reached, and what its certificate says."""

import asyncio
import errno
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from service import endpoints
from service.certificates import Certificates, Current
from service.checks import Status
from service.endpoints import Certificate, Endpoint

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def server(*, tls: ssl.SSLContext | None = None, hangs_up: bool = False) -> AsyncIterator[Endpoint]:
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not hangs_up:
            received.append(await reader.read())
        writer.transport.abort()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with listening:
        yield Endpoint("127.0.0.1", listening.sockets[0].getsockname()[1])
    assert b"".join(received) == b"", "nothing may be sent"


def contexts(*, ends: datetime | None = None, host: str = "127.0.0.1") -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make a server's context, and one that trusts it."""
    authority = trustme.CA(organization_name="Ours")
    there, here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(host, not_after=ends).configure_cert(there)
    authority.configure_trust(here)
    return there, here


async def test_a_name_has_addresses() -> None:
    assert "127.0.0.1" in await endpoints.resolve(Endpoint("localhost", 1))


async def test_a_connection_is_made_and_nothing_sent() -> None:
    async with server() as there:
        await endpoints.connect(there)


async def test_the_certificate_that_is_shown_is_read() -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    tls, trust = contexts(ends=ends)
    async with server(tls=tls) as there:
        found = await endpoints.handshake(there, trust)

    assert found == Certificate("Ours", ends)


async def test_a_certificate_of_an_unknown_authority_is_not_accepted() -> None:
    tls, _ = contexts()
    async with server(tls=tls) as there:
        with pytest.raises(ssl.SSLCertVerificationError):
            await endpoints.handshake(there, ssl.create_default_context())


async def test_a_known_certificate_is_trusted_by_itself_whatever_its_name_is() -> None:
    tls, _ = contexts(host="vcda.example")
    async with server(tls=tls) as there:
        shown = await endpoints.shown_certificate(there)
        found = await endpoints.handshake(there, endpoints.trusting(shown))

    assert len(hashlib.sha256(shown).digest()) == 32
    assert found.issuer == "Ours"


async def test_a_server_that_hangs_up_is_a_closed_connection() -> None:
    async with server(hangs_up=True) as there:
        with pytest.raises(OSError) as raised:  # noqa: PT011 - which one depends on how far the handshake came
            await endpoints.handshake(there, ssl.create_default_context())

    assert endpoints.why(raised.value) == "the connection was closed"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(), "the name can't be resolved"),
        (ConnectionRefusedError(), "the connection was refused, so nothing listens there"),
        (TimeoutError(), "nothing answered"),
        (ConnectionResetError(), "the connection was closed"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "no route to host"),
    ],
)
def test_why_an_address_is_out_of_reach_is_said_in_words(error: OSError, words: str) -> None:
    assert endpoints.why(error) == words


@pytest.mark.parametrize(("days", "status"), [(15, Status.OK), (14, Status.WARNING), (-1, Status.WARNING)])
def test_a_certificate_that_ends_soon_is_a_warning(days: int, status: Status) -> None:
    found = endpoints.expiry(Certificate("Ours", NOW + timedelta(days=days)), now=NOW)

    assert found.status is status
    assert "issued by Ours" in found.text


def test_an_own_certificate_that_ends_soon_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "own.pem"
    own = trustme.CA().issue_cert("us", not_after=NOW + timedelta(days=3))
    own.private_key_and_cert_chain_pem.write_to_path(str(file))
    (found,) = endpoints.expiring(Current(Certificates(prefix="VM_SYNC_KAFKA__SSL_", cert_file=file)), now=NOW)

    assert found.status is Status.WARNING
    assert found.text.startswith("VM_SYNC_KAFKA__SSL_CERT_FILE: the certificate expires at ")
    assert endpoints.expiring(ssl.create_default_context(), now=NOW) == []


@pytest.mark.parametrize(
    ("endpoint", "text"), [(Endpoint("kafka", 9092), "kafka:9092"), (Endpoint("::1", 9092), "[::1]:9092")]
)
def test_an_endpoint_is_written_as_settings_write_it(endpoint: Endpoint, text: str) -> None:
    assert str(endpoint) == text
