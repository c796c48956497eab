"""The OAuth token that Kafka's clients log in with (SASL/OAUTHBEARER): one for all clients of a process.

A token is kept until most of its lifetime has passed, and then renewed once for all clients, whether or not one asks.
While it can't be renewed, the present one is used until it expires. Tokens come from a file, or from a token server
(`token_server`).

A token's text is in no log line, no exception and no `repr`.
"""

import asyncio
import base64
import binascii
import errno
import logging
import re
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn, Protocol

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError
from pydantic_core import from_json
from typing_extensions import override

from service.backoff import Backoff
from service.clock import Clock

log = logging.getLogger(__name__)

MECHANISM: Final = "OAUTHBEARER"

FILE: Final = "VM_SYNC_KAFKA__OAUTH_TOKEN_FILE"

RENEW_AT: Final = 0.8
"""The share of a token's lifetime after which it is renewed: of an hour, 12 minutes are left for a token server that is
away for the moment."""

UNKNOWN_LIFETIME: Final = timedelta(minutes=5)
"""For how long a token is taken to be valid that doesn't say it; if it is valid longer, it is renewed needlessly."""

AGAIN: Final = Backoff(first=timedelta(seconds=1), longest=timedelta(seconds=10))
"""Pauses between attempts to renew a token."""

REFUSED_AGAIN: Final = timedelta(seconds=10)
"""How old a token is at least that is renewed because Kafka refuses it."""

LOOK_AT_FILE: Final = timedelta(seconds=30)
"""How often a token file is read while nothing logs in: that it is gone is noticed before its last token expires."""

READ_LIMIT: Final = timedelta(seconds=5)
"""For reading a token file: as long as a token server may take."""

PATIENCE: Final = timedelta(seconds=2)
"""How long a login waits for a new token while the present one is valid; the renewal goes on without it."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
"""RFC 6750. What isn't of this form can't be sent: other characters end the token, or the message."""


class TokenUnavailable(KafkaConnectionError):  # type: ignore[misc] # aiokafka is untyped
    """There is no token to log in with; the text says why and names the setting.

    To Kafka's clients this is a broken connection: they try again.
    """

    def __init__(self, why: str, *, answered: bool) -> None:
        """`answered`: somebody said no; otherwise it may pass by itself."""
        super().__init__(why)
        self.answered = answered

    @override
    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Token:
    """An access token."""

    text: str = field(repr=False)
    lifetime: timedelta | None
    """For how long it is valid, from the moment it was asked for; None: unknown."""


class TokenSource(Protocol):
    """Where tokens come from."""

    @property
    def kept(self) -> bool:
        """Whether a token is kept; if not, it is read at each use."""

    @property
    def tls(self) -> ssl.SSLContext | None:
        """What verifies the server's certificate; None: there is no server."""

    @property
    def where(self) -> str:
        """Where tokens come from, with the setting's name: `the file ... (VM_SYNC_...)`."""

    @property
    def if_refused(self) -> str:
        """What to check if Kafka refuses a token."""

    async def fetch(self) -> Token:
        """Get a token, in bounded time. Raises `TokenUnavailable`."""


def checked(text: str) -> str | None:
    """Return the token in a text; None: there is none of the form that tokens have."""
    token = text.strip()
    return token if _TOKEN.fullmatch(token) else None


def jwt_end(token: str) -> datetime | None:
    """Return when a token expires, if it is a JWT that says so. Its signature is the brokers' business."""
    try:
        part = token.split(".")[1]
        # pydantic's parser: too many levels are a ValueError, where msgspec runs out of stack.
        claims = from_json(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return datetime.fromtimestamp(claims["exp"], UTC)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, OSError, binascii.Error):
        return None


class TokenFile:
    """A file that something else keeps current, such as a projected service-account token of Kubernetes."""

    kept: Final = False
    tls: Final = None

    def __init__(self, path: Path, clock: Clock, *, limit: timedelta = READ_LIMIT) -> None:
        """`limit` is for reading the file."""
        self._path = path
        self._clock = clock
        self._limit = limit
        self._reading: asyncio.Future[str] | None = None

    @property
    def where(self) -> str:
        """See `TokenSource`."""
        return f"the file {self._path} ({FILE})"

    @property
    def if_refused(self) -> str:
        """See `TokenSource`."""
        return f"check that the token in {FILE} is current, and that its issuer and audience are those of the brokers"

    async def fetch(self) -> Token:
        """Read the file."""
        try:
            text = await self._text()
        except TimeoutError:
            self._refuse(f"can't be read (no answer within {self._limit.total_seconds():g} s)", answered=False)
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            self._refuse(f"can't be read ({why})")
        if not text.strip():
            self._refuse("is empty")
        token = checked(text)
        if token is None:
            self._refuse("contains something that is not a token")
        end = jwt_end(token)
        return Token(token, None if end is None else end - self._clock.now())

    async def _text(self) -> str:
        """Read the file in a thread of its own: on a network volume, reading may hang.

        In a thread of the event loop's pool it would take the place of look-ups of names, and keep the process from
        ending. As long as one reading hangs, no other one begins.
        """
        if self._reading is None:
            loop = asyncio.get_running_loop()
            begun: asyncio.Future[str] = loop.create_future()
            try:
                threading.Thread(target=self._read, args=(loop, begun), name="token file", daemon=True).start()
            except RuntimeError:
                raise OSError(errno.EAGAIN, "no thread can be started") from None
            self._reading = begun
        reading = self._reading
        await asyncio.wait({reading}, timeout=self._limit.total_seconds())
        if not reading.done():
            raise TimeoutError
        self._reading = None
        return reading.result()

    def _read(self, loop: asyncio.AbstractEventLoop, reading: "asyncio.Future[str]") -> None:
        text, failure = "", None
        try:
            text = self._path.read_text(encoding="utf-8")
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failure = error

        def give() -> None:
            if failure is None:
                reading.set_result(text)
            else:
                reading.set_exception(failure)
                reading.exception()  # nobody may be waiting

        with suppress(RuntimeError):  # the loop may be closed
            loop.call_soon_threadsafe(give)

    def _refuse(self, what: str, *, answered: bool = True) -> NoReturn:
        msg = f"The OAuth token file {self._path} {what}: check {FILE}"
        raise TokenUnavailable(msg, answered=answered) from None


class Tokens(AbstractTokenProvider):  # type: ignore[misc] # aiokafka is untyped
    """Gives the token to all clients of a process."""

    def __init__(
        self, source: TokenSource, *, clock: Clock, extensions: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`extensions` are SASL extensions, which some brokers want beside a token."""
        self.source = source
        self._clock = clock
        self._extensions = dict(extensions)
        self._token: Token | None = None
        self._began_at = self._fetched_at = self._renew_at = self._not_before = clock.monotonic()
        self._ends_at: float | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._failure: TokenUnavailable | None = None
        self._failures = 0
        self._failing_since = 0.0
        self._expiry_logged = False
        self._accepted = False
        self._refused = False
        self._refused_since = 0.0

    @override
    async def token(self) -> str:
        """Return the token to log in with now.

        Raises:
            TokenUnavailable: there is none, or it has expired and can't be renewed.
        """
        now = self._clock.monotonic()
        if now >= self._renew_at and now >= self._not_before:
            self._begin_renewal()
        if (renewal := self._renewal) is not None:
            await asyncio.wait({renewal}, timeout=PATIENCE.total_seconds() if self._valid() else None)
        if self._token is None or (self._failure is not None and not self._valid()):
            raise self._unavailable()
        return self._token.text

    def renew_if_due(self) -> None:
        """Renew the token in the background if it is time. To be called regularly: logins may be far apart."""
        due = self._renew_at if self.source.kept else self._began_at + LOOK_AT_FILE.total_seconds()
        if self._clock.monotonic() >= max(due, self._not_before):
            self._begin_renewal()

    @override
    def extensions(self) -> dict[str, str]:
        """Return the SASL extensions."""
        return self._extensions

    def accepted(self) -> None:
        """A broker has accepted the token."""
        self._accepted = True
        if self._refused:
            self._refused = False
            log.info("Kafka accepts the OAuth token again")

    def refused(self) -> None:
        """A broker has refused the token: it is renewed, but not more often than every `REFUSED_AGAIN`."""
        self._renew_at = min(self._renew_at, self._fetched_at + REFUSED_AGAIN.total_seconds())
        if self._accepted and not self._refused:  # at the start the diagnosis says it
            self._refused, self._refused_since = True, self._clock.monotonic()
            log.warning("Kafka refuses %s", self._refusal())

    @property
    def expires(self) -> datetime | None:
        """When the present token expires, to the second; None: unknown."""
        if self._ends_at is None:
            return None
        left = self._ends_at - self._clock.monotonic()
        return (self._clock.now() + timedelta(seconds=left + 0.5)).replace(microsecond=0)

    @property
    def warning(self) -> str | None:
        """Why the token can't be renewed, while the present one is still valid; None: no such trouble."""
        if self._failure is None or not self._valid():
            return None
        return f"the OAuth token for Kafka can't be renewed, and the present one {self._expiry()}: {self._failure}"

    @property
    def unusable(self) -> str | None:
        """Why no connection to Kafka can be opened; None: the token is no reason."""
        if self._failure is not None and not self._valid():
            return str(self._failure)
        return f"Kafka refuses {self._refusal()}" if self._refused else None

    @property
    def failing_for(self) -> timedelta:
        """How long the token could not be renewed, or Kafka has refused it; 0 without such trouble."""
        since = [self._failing_since] * (self._failure is not None) + [self._refused_since] * self._refused
        return timedelta(seconds=self._clock.monotonic() - min(since)) if since else timedelta()

    def _refusal(self) -> str:
        return f"the OAuth token from {self.source.where}: {self.source.if_refused}"

    def _valid(self) -> bool:
        return self._token is not None and (self._ends_at is None or self._clock.monotonic() < self._ends_at)

    def _expiry(self) -> str:
        return "has no known end" if (end := self.expires) is None else f"expires at {end:%Y-%m-%d %H:%M:%SZ}"

    def _unavailable(self) -> TokenUnavailable:
        failure = self._failure
        if self._token is not None and not self._expiry_logged:
            self._expiry_logged = True
            log.warning("The OAuth token for Kafka has expired, and can't be renewed: %s", failure)
        # A new one: each raise of the same one would add to its traceback.
        return TokenUnavailable(str(failure), answered=failure is None or failure.answered)

    def _begin_renewal(self) -> None:
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        began = self._began_at = self._clock.monotonic()
        try:
            token = await self.source.fetch()
        except TokenUnavailable as error:
            self._failed(error)
        except Exception as error:
            log.exception("Internal error in the renewal of the OAuth token for Kafka")
            why = f"The renewal of the OAuth token ended with an internal error ({type(error).__name__}); see the log"
            self._failed(TokenUnavailable(why, answered=False))
            self._not_before = began + AGAIN.longest.total_seconds()
        else:
            self._take(token, began)
        finally:
            self._renewal = None

    def _take(self, token: Token, began: float) -> None:
        lifetime = (UNKNOWN_LIFETIME if token.lifetime is None else token.lifetime).total_seconds()
        if self._token is not None and self._failure is not None:
            log.info("The OAuth token for Kafka is renewed again, after %.0f s", began - self._failing_since)
        self._token, self._fetched_at = token, began
        self._ends_at = None if token.lifetime is None else began + lifetime
        self._renew_at = began + lifetime * RENEW_AT if self.source.kept else began
        self._failure, self._failures, self._expiry_logged = None, 0, False

    def _failed(self, error: TokenUnavailable) -> None:
        now = self._clock.monotonic()
        if self._failure is None:
            self._failing_since = now
            if self._valid():
                log.warning(
                    "The OAuth token for Kafka can't be renewed; the present one %s, and is used until then: %s",
                    self._expiry(),
                    error,
                )
        self._failure = error
        if self.source.kept:
            self._not_before = now + AGAIN.pause(self._failures)
        self._failures += 1
