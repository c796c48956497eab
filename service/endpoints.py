"""Tests whether an address can be reached: DNS, a TCP connection, a TLS handshake, and the server's certificate.

Nothing is sent beyond the handshake, and each connection is closed at once. Nothing here has a time limit of its own.
"""

import asyncio
import errno
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from typing_extensions import override

from service.certificates import RENEW, Current
from service.checks import Verdict, ok, warning

NEXT_ADDRESS: Final = 0.25
"""Seconds after which the next address of a name is tried too, as the clients do: a dead IPv6 route costs no more."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a port."""

    host: str
    port: int

    @override
    def __str__(self) -> str:
        """Write it as settings do."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says of itself."""

    issuer: str
    ends: datetime


async def resolve(endpoint: Endpoint) -> list[str]:
    """Return the addresses of a name.

    Raises:
        OSError: there are none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def connect(endpoint: Endpoint) -> None:
    """Open a TCP connection.

    Raises:
        OSError: it can't be opened.
    """
    _close(await _open(endpoint))


async def handshake(endpoint: Endpoint, context: ssl.SSLContext) -> Certificate:
    """Open a TLS connection, and return the certificate that was shown. `context` has to verify it.

    Raises:
        OSError: it can't be opened; an `ssl.SSLError` or a closed connection (`ConnectionError`) included.
    """
    writer = await _open(endpoint, context)
    shown = writer.get_extra_info("ssl_object").getpeercert()
    _close(writer)
    return _certificate(shown)


async def shown_certificate(endpoint: Endpoint) -> bytes:
    """Return the certificate that is shown, DER-encoded, whatever its signer: to compare it with a known one.

    Raises:
        OSError: see `handshake`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent over this connection
    writer = await _open(endpoint, context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    _close(writer)
    return shown


def trusting(certificate: bytes) -> ssl.SSLContext:
    """Return a context that believes this one certificate, DER-encoded, whatever its name is, until it ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need be no authority
    context.load_verify_locations(cadata=certificate)
    return context


async def _open(endpoint: Endpoint, tls: ssl.SSLContext | None = None) -> asyncio.StreamWriter:
    name = None if tls is None else endpoint.host
    try:
        _, writer = await asyncio.open_connection(
            endpoint.host, endpoint.port, ssl=tls, server_hostname=name, happy_eyeballs_delay=NEXT_ADDRESS
        )
    except EOFError as error:
        raise ConnectionResetError(errno.ECONNRESET, "the connection was closed") from error
    return writer


def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()  # an orderly end of TLS waits for the other side


# ---------------------------------------------------------------- in words


OUT_OF_DESCRIPTORS: Final = "this process may open no more files and connections: raise its limit (ulimit -n)"


def lacks_descriptors(error: BaseException) -> bool:
    """Whether a connection could not be opened since the process, or the machine, has no file descriptor left."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def why(error: OSError) -> str:
    """Say why an address can't be reached, without the words of a library."""
    match error:
        case socket.gaierror():
            return "the name can't be resolved"
        case ConnectionRefusedError():
            return "the connection was refused, so nothing listens there"
        case TimeoutError():
            return "nothing answered"
        case ConnectionError():
            return "the connection was closed"
        case _:
            return (error.strerror or type(error).__name__).lower()


def resolved(endpoint: Endpoint, addresses: list[str]) -> Verdict:
    """Say which addresses a name has."""
    if addresses == [endpoint.host]:
        return ok(f"{endpoint.host} is an address; there is no name to resolve.")
    return ok(f"{endpoint.host} has the address {', '.join(addresses)}.")


def expiry(certificate: Certificate, *, now: datetime) -> Verdict:
    """Judge a certificate that was accepted, by the time it has left."""
    said = f"issued by {certificate.issuer}, valid until {certificate.ends:%Y-%m-%d}"
    if certificate.ends - now > RENEW:
        return ok(f"The certificate is trusted: {said}.")
    days = max(0, (certificate.ends - now) // timedelta(days=1))
    return warning(f"The certificate ends in {days} days: renew it where it is installed ({said}).")


def expiring(tls: ssl.SSLContext, *, now: datetime) -> list[Verdict]:
    """Warn of certificates from files that have expired, will soon, or are not valid yet."""
    files = tls.validity if isinstance(tls, Current) else {}
    found = (dates.complaint(setting, now) for setting, dates in files.items())
    return [warning(f"{said}.") for said in found if said is not None]


def _certificate(shown: dict[str, Any]) -> Certificate:
    names = {name: value for part in shown.get("issuer", ()) for name, value in part}
    known = [names[name] for name in ("commonName", "organizationName", "organizationalUnitName") if name in names]
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)
    return Certificate(known[0] if known else "an authority without a name", ends)
