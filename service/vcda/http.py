"""One HTTP call to VCDA: bounded in time and size, never repeated, with certainty whether it was sent.

A failed call is a value, `NoAnswer`. Its `sent_at` is the purpose of this module: None means that nothing was sent, for
certain. Exceptions of libraries don't show that (a connection that breaks after the server has read the POST raises the
same class as a refused one). Therefore the transport calls back after the connection is open and before the first byte
is written, without an await in between: then it is checked whether the request may still be sent, and recorded that it
was.

This module knows HTTP, and nothing of sessions, replications or tasks. It follows no redirect, keeps no cookie, uses
no proxy from the environment, and verifies every certificate.

Some servers and proxies repeat in an error what they were sent. So texts of an answer go through its `clean`, which
hides the secrets that its call has sent.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias, cast

import aiohttp
import httpx

from service import certificates
from service.certificates import Certificates, Current
from service.clock import Clock
from service.endpoints import OUT_OF_DESCRIPTORS, lacks_descriptors
from service.event_loop import is_cancelled
from service.observability.logs import Redactor
from service.sync import MAX_TEXT
from service.vcda.address import checked_thumbprint, checked_url
from service.vcda.http_dates import OtherClock, http_date
from service.vcda.transport import BEFORE_THE_FIRST_BYTE, LONGEST_HEAD_LINE, ConnectionTransport

logger = logging.getLogger("service.vcda")

Operation: TypeAlias = Literal["login", "extend", "logout", "submit", "poll", "find"]

SMALL: Final = 1024 * 1024
"""The longest answer about one thing: a task with its result has a few KiB, one with a stack trace some dozen."""
LARGE: Final = 16 * SMALL
"""The longest answer about a hundred tasks."""


class Meter(Protocol):
    """The metrics of calls."""

    def api_request(  # noqa: D102
        self, operation: str, status: str, seconds: float, *, site: str | None
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The verification of VCDA's certificate: by the system's authorities, a CA file, or a SHA-256 thumbprint."""

    ca_file: Path | str | None = None
    thumbprint: str | None = None

    def verification(self) -> ssl.SSLContext | aiohttp.Fingerprint:
        """Return what aiohttp takes for it.

        Raises:
            ValueError: both are given, or the thumbprint isn't 32 bytes in hexadecimal.
            Unusable: no certificate can be read from the CA file.
        """
        if self.thumbprint is None:
            return Current(Certificates(prefix="VM_SYNC_VCDA__", ca_file=self.ca_file))
        if self.ca_file is not None:
            msg = "set either a CA file or a thumbprint, not both"
            raise ValueError(msg)
        return aiohttp.Fingerprint(bytes.fromhex(checked_thumbprint(self.thumbprint)))


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. `sent_at` is the monotonic moment at which the sending of the request began."""

    status: int
    headers: httpx.Headers
    body: bytes
    sent_at: float
    clean: Callable[[str], str] = field(repr=False)
    """Hides in a text of the answer what the call has sent in secret; of a long text, only the beginning is left."""

    @property
    def is_good(self) -> bool:
        """Whether the status is a success."""
        return self.status // 100 == 2  # noqa: PLR2004 - 2xx


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """No answer, or an incomplete one. `sent_at` None: the request was not sent, for certain."""

    label: Literal["timeout", "error", "withheld"]
    detail: str
    sent_at: float | None
    too_long: bool = False
    """There was one, longer than was to be read."""
    headers: httpx.Headers | None = field(default=None, repr=False)
    """Of an incomplete answer, if they came: those of a login have the token of a session that VCDA has opened."""


URL: Final = "VM_SYNC_VCDA__URL"

CACHED: Final = "cached"
"""The metrics' word for an answer that a cache in front has given."""


def age_of(headers: httpx.Headers) -> str | None:
    """Return the age of an answer from a cache (header `Age`); None: the answer is fresh.

    0 counts as fresh, although it may be most of a second: some proxies write it on whatever they pass on.
    """
    age = headers.get("age")
    return None if age is None or age.strip().strip("0") == "" else age.strip()[:20]


def _label(seen: Answer | NoAnswer) -> str:
    if isinstance(seen, NoAnswer):
        return seen.label
    return status_label(seen.status) if age_of(seen.headers) is None else CACHED


def session_token(headers: httpx.Headers | None) -> str | None:
    """Return the token of the session that a login has opened; None: there is none that can travel as a header."""
    token = "" if headers is None else headers.get("x-vcav-auth", "").split(",")[0].strip()
    return token if token and token.isascii() and token.isprintable() else None


def redirection(headers: httpx.Headers) -> str:
    """Name the server that an answer redirects to; its path and query may contain secrets."""
    try:
        to = httpx.URL(headers.get("location", ""))
        host = to.host
    except (httpx.InvalidURL, UnicodeError):  # UnicodeError: of `host`, for one that is no valid international name
        return ""
    return f", a redirect to {to.scheme}://{host}" if host else ""


def status_label(status: int) -> str:
    """Return the metrics' word for a status: those that mean something here by themselves, else its hundred."""
    return str(status) if status in {401, 403, 404, 409, 429} else f"{status // 100}xx"


class Wire:
    """The connections to one appliance.

    Each kind of call has its own, without a common limit: how many POSTs run at once is decided per site, before they
    come here, and a limit here would let the calls to a dead site hold back those to the others.
    """

    def __init__(
        self, url: str, *, tls: Tls, request_timeout: timedelta, user_agent: str, clock: Clock, meter: Meter
    ) -> None:
        """Prepare; nothing is connected yet.

        Raises:
            ValueError: the URL isn't `https://host[:port]`, or `http` to another machine; see also `Tls`.
            Unusable: see `Tls`.
        """
        self._base, host = _base(url)
        self._timeout = request_timeout.total_seconds()
        self._clock = clock
        self._meter = meter
        self._there = OtherClock()
        self.certificate_ends: datetime | None = None
        """Until when the appliance's certificate was valid at the last login; None: unknown, or known by thumbprint."""
        self._headers = [
            (b"host", host.encode()),
            (b"user-agent", user_agent.encode()),
            (b"accept", b"application/json"),
            # Answers are small, and what isn't compressed can be bounded while it is read.
            (b"accept-encoding", b"identity"),
        ]
        # What a cache in front remembers of tasks is as good as a lie.
        self._headers_of_get = [*self._headers, (b"cache-control", b"no-cache")]
        # Loopback by plain http has no certificate; this context has no store, so it would believe none.
        secure = self._base.scheme == "https"
        verification = tls.verification() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.certificates = [verification] if isinstance(verification, Current) else []
        # Without an `httpx.AsyncClient` around: what it adds is cookies, redirects and proxies from the environment,
        # none of which may be here.
        ways = {
            name: ConnectionTransport(self._base, verification, request_timeout)
            for name in ("session", "submit", "poll", "find")
        }
        self._ways: dict[Operation, ConnectionTransport] = {
            "login": ways["session"],
            "extend": ways["session"],
            "logout": ways["session"],
            "submit": ways["submit"],
            "poll": ways["poll"],
            "find": ways["find"],
        }

    async def call(
        self,
        operation: Operation,
        *,
        method: Literal["GET", "POST", "DELETE"],
        target: str,
        site: str | None = None,
        token: str | None = None,
        operation_id: str | None = None,
        content: bytes | None = None,
        secrets: tuple[str, ...] = (),
        may_leave: Callable[[], bool] | None = None,
        limit: int = SMALL,
    ) -> Answer | NoAnswer:
        """Make one call; `target` is path and query, percent-encoded; `limit` the longest body to accept, in bytes.

        `site` is for the metrics and the log alone; `secrets` are those in `content`. `may_leave` is asked just before
        the first byte; if it returns False, nothing is sent.
        """
        headers = (self._headers_of_get if method == "GET" else self._headers).copy()
        if token is not None:
            headers.append((b"x-vcav-auth", token.encode("ascii")))
        if operation_id is not None:
            headers.append((b"operationid", operation_id.encode("ascii")))
        if content is not None:
            headers.append((b"content-type", b"application/json"))
        if method == "POST":
            headers.append((b"content-length", b"%d" % len(content or b"")))
        departure = _Departure(self._clock, may_leave, wants_certificate=operation == "login")
        request = httpx.Request(
            method,
            self._base,
            headers=headers,
            stream=httpx.ByteStream(content or b""),
            extensions={"target": target.encode("ascii"), BEFORE_THE_FIRST_BYTE: departure.leave},
        )
        began = self._clock.monotonic()
        clean = _redactor(secrets if token is None else (*secrets, token)).clean_beginning
        name = f"{operation} call" + ("" if site is None else f" for site {site}")
        seen = await self._exchange(self._ways[operation], request, departure, name=name, limit=limit, clean=clean)
        ended = self._clock.monotonic()
        if departure.certificate_ends is not None:
            self.certificate_ends = departure.certificate_ends
        label = _label(seen)
        if isinstance(seen, Answer) and label != CACHED:
            self._heard(seen, sent=began, received=ended)
        if label != "withheld" and operation != "logout":  # the one is no call, the other tells nothing
            self._meter.api_request(operation, label, ended - began, site=site)
        return seen

    def offset(self) -> timedelta | None:
        """Return the appliance's clock minus this machine's; None before the first answer."""
        there = self._there.at(self._clock.monotonic())
        return None if there is None else there - self._clock.now()

    async def close(self) -> None:
        """Close all connections, at once."""
        for way in set(self._ways.values()):
            await way.aclose()

    async def _exchange(
        self,
        way: ConnectionTransport,
        request: httpx.Request,
        departure: "_Departure",
        *,
        name: str,
        limit: int,
        clean: Callable[[str], str],
    ) -> Answer | NoAnswer:
        headers: httpx.Headers | None = None
        try:
            # Around everything, the reading of the body too: the libraries' own timeouts start again with each byte.
            async with asyncio.timeout(self._timeout):
                response = await way.handle_async_request(request)
                headers = response.headers
                try:
                    body = await _read(response, limit)
                finally:
                    await response.aclose()
        except _Withheld:
            return NoAnswer(
                label="withheld",
                detail="The call was not sent: the time in which it may be sent was over.",
                sent_at=None,
            )
        except TimeoutError:
            what = "No complete answer" if departure.at is not None else f"No connection to {self._base} ({URL})"
            detail = f"{what} within {self._timeout:g} s."
            return NoAnswer(label="timeout", detail=detail, sent_at=departure.at, headers=headers)
        # UnicodeError: of a host's name.
        except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError, UnicodeError) as error:
            return NoAnswer(label="error", detail=_describe(error), sent_at=departure.at, headers=headers)
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            logger.exception("A library has cancelled a %s to VCDA by itself; the call has failed", name)
            return NoAnswer(label="error", detail=_describe(error), sent_at=departure.at, headers=headers)
        except Exception as error:
            if departure.at is None:
                raise
            # Whatever a library makes of an answer, the request may have been received: that must not get lost.
            logger.exception("Internal error while reading VCDA's answer to a %s; the call has failed", name)
            return NoAnswer(label="error", detail=_describe(error), sent_at=departure.at, headers=headers)
        if body is None:
            detail = f"VCDA's answer is longer than the limit of {limit // SMALL} MiB."
            return NoAnswer(label="error", detail=detail, sent_at=departure.at, too_long=True, headers=headers)
        sent_at = self._clock.monotonic() if departure.at is None else departure.at
        return Answer(response.status_code, response.headers, body, sent_at, clean)

    def _heard(self, answer: Answer, *, sent: float, received: float) -> None:
        text = answer.headers.get("date")
        if text is not None and (date := http_date(text)) is not None:
            self._there.heard(date, sent=sent, received=received)


# ---------------------------------------------------------------- leaving


class _Withheld(Exception):
    """Raised before the first byte, so that nothing is sent."""


class _Departure:
    """Whether one request may be sent, and when it was."""

    __slots__ = ("_clock", "_may_leave", "at", "certificate_ends", "wants_certificate")

    def __init__(self, clock: Clock, may_leave: Callable[[], bool] | None, *, wants_certificate: bool = False) -> None:
        self.wants_certificate = wants_certificate
        self.certificate_ends: datetime | None = None
        self._clock = clock
        self._may_leave = may_leave
        self.at: float | None = None

    def _note_certificate(self, connection: "aiohttp.connector.Connection") -> None:
        """Note until when the certificate of this connection is valid, if that is wanted and TLS has verified it."""
        if not self.wants_certificate or connection.transport is None:
            return
        tls = connection.transport.get_extra_info("ssl_object")
        if tls is not None and (shown := tls.getpeercert()):
            self.certificate_ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)

    def leave(self, connection: "aiohttp.connector.Connection") -> None:
        """Record the sending, or raise `_Withheld`."""
        if self._may_leave is not None and not self._may_leave():
            raise _Withheld
        self.at = self._clock.monotonic()
        self._note_certificate(connection)


# ---------------------------------------------------------------- addresses and answers


@lru_cache(maxsize=16)  # a session's token and the credentials of a few sites: most calls send the same
def _redactor(secrets: tuple[str, ...]) -> Redactor:
    return Redactor(secrets)


def _base(url: str) -> tuple[httpx.URL, str]:
    """Return what every URL begins with, and the `Host`. The documentation's `//` is an artefact: one slash it is."""
    parts = checked_url(url)
    try:
        return httpx.URL(f"{parts.scheme}://{parts.netloc}"), parts.netloc
    except httpx.InvalidURL as error:
        msg = f"the host of the URL of VCDA is invalid: {error}"
        raise ValueError(msg) from error


async def _read(response: httpx.Response, limit: int) -> bytes | None:
    """Read a body; None if it is longer than `limit`."""
    body = bytearray()
    async for chunk in cast("httpx.AsyncByteStream", response.stream):  # httpx's own ways to read cost 15 us more
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


SENTENCES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (aiohttp.ServerDisconnectedError, "VCDA closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "VCDA's answer is incomplete: the connection was closed"),
    (
        aiohttp.http_exceptions.LineTooLong,
        f"The headers of VCDA's answer have a line longer than {LONGEST_HEAD_LINE} bytes",
    ),
    (aiohttp.http_exceptions.HttpProcessingError, "The headers of VCDA's answer can't be parsed"),
    (aiohttp.ClientResponseError, "The headers of VCDA's answer can't be parsed"),
    (UnicodeError, "The headers of VCDA's answer, or its host name, contain invalid characters"),
)
"""What aiohttp says by the class of its errors alone, or in words of the other side."""


def _describe(error: BaseException) -> str:
    """Describe a failure without text of the other side: an undecodable answer to a login would contain its token."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return distrust(error.certificate_error)
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        seen = error.got.hex(":").upper()
        return f"VCDA's certificate does not match VM_SYNC_VCDA__THUMBPRINT; its SHA-256 is {seen}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return _unreachable(error)
    name = type(error).__name__
    if isinstance(error, OSError):
        return f"{name}: {error}"[:MAX_TEXT]
    said = next((sentence for kind, sentence in SENTENCES if isinstance(error, kind)), None)
    return name if said is None else f"{said} ({name})."


def _unreachable(error: aiohttp.ClientConnectorError) -> str:
    where, why = f"{error.host}:{error.port}", error.os_error
    said = why.strerror or type(why).__name__
    if lacks_descriptors(why):
        return f"No connection to {where} ({said}): {OUT_OF_DESCRIPTORS}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"The host name {error.host} can't be resolved ({said}): check {URL} and DNS"
    if isinstance(why, ConnectionRefusedError):
        return f"{where} refuses connections: check {URL}, and that VCDA runs there"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return f"No TLS connection with {where} ({said}): check that {URL} is the address of an https server"
    return f"No connection to {where} ({said}): check {URL} and the network"


def distrust(error: Exception) -> str:
    """Say why VCDA's certificate isn't trusted, and what to change."""
    doubt = certificates.distrust(
        error,
        ca_setting="VM_SYNC_VCDA__CA_FILE",
        if_misnamed="write the host in VM_SYNC_VCDA__URL as the certificate spells it",
        there="on the appliance",
    )
    return f"VCDA's certificate can't be trusted {doubt}, or set VM_SYNC_VCDA__THUMBPRINT to its SHA-256"
