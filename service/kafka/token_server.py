"""Gets access tokens from an OAuth token server: the client-credentials flow (RFC 6749, section 4.4).

One POST, bounded in time and size. It follows no redirect, keeps no cookie and uses no proxy from the environment,
since it carries a secret. Errors name the setting to change, and quote nothing of the server but its error code.
"""

import asyncio
import re
import ssl
from base64 import b64encode
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final, NoReturn
from urllib.parse import quote_plus, urlsplit

import aiohttp
from pydantic_core import from_json

from service.certificates import distrust
from service.clock import Clock
from service.endpoints import Endpoint, why
from service.kafka.tokens import Token, TokenUnavailable, checked, jwt_end

PREFIX: Final = "VM_SYNC_KAFKA__OAUTH_"
URL: Final = f"{PREFIX}TOKEN_URL"

LIMIT: Final = timedelta(seconds=5)
"""For the whole call: a token server that is alive answers within it. Much shorter than the limit of a connection to
a broker, during which it is called: a token server that hangs must not be reported as a broker that doesn't answer."""

LONGEST: Final = 256 * 1024
"""Bytes of an answer. A token with hundreds of groups has some 10 KiB."""

CURES: Final = {
    "invalid_client": f"check {PREFIX}CLIENT_ID and {PREFIX}CLIENT_SECRET",
    "invalid_scope": f"check {PREFIX}SCOPE",
    "unauthorized_client": "allow the client-credentials grant for this client at the token server",
    "unsupported_grant_type": "allow the client-credentials grant at the token server",
}
"""By the error codes of RFC 6749, section 5.2."""


class ClientCredentials:
    """The token server, and the client that the service is there."""

    kept: Final = True

    def __init__(
        self, url: str, *, client_id: str, client_secret: str, scope: str | None, tls: ssl.SSLContext, clock: Clock
    ) -> None:
        """Prepare; nothing is connected yet. `tls` verifies the server's certificate."""
        parts = urlsplit(url)
        default = 443 if parts.scheme == "https" else 80
        self._url = url
        self._server = Endpoint(parts.hostname or "", parts.port or default)
        self._client_id = client_id
        # Each is encoded as in a form, before both are encoded together (section 2.3.1).
        login = f"{quote_plus(client_id)}:{quote_plus(client_secret)}".encode()
        self._headers = {"Authorization": f"Basic {b64encode(login).decode()}", "Accept": "application/json"}
        self._form = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})
        self.tls = tls
        self._clock = clock

    @property
    def where(self) -> str:
        """See `TokenSource`."""
        return f"{self._url} ({URL}) for the client {self._client_id}"

    @property
    def if_refused(self) -> str:
        """See `TokenSource`."""
        return (
            f"check {PREFIX}SCOPE, and that issuer, audience and keys of its tokens are those that the brokers expect"
        )

    async def fetch(self) -> Token:
        """Ask for a token.

        Raises:
            TokenUnavailable: there is none; the text says why.
        """
        try:
            async with asyncio.timeout(LIMIT.total_seconds()):
                status, body = await self._post()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self._unreachable(error)
        if body is None:
            self._refuse(f"answers with more than {LONGEST} bytes: check {URL}")
        if status != HTTPStatus.OK:
            self._deny(status, body)
        return self._token(body)

    async def _post(self) -> tuple[int, bytes | None]:
        """Return status and body; None: the body is longer than `LONGEST`."""
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self.tls, force_close=True), cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            session.post(self._url, data=self._form, headers=self._headers, allow_redirects=False) as response,
        ):
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > LONGEST:
                    return response.status, None
            return response.status, bytes(body)

    def _token(self, body: bytes) -> Token:
        answer = _object(body)
        given, kind, seconds = answer.get("access_token"), answer.get("token_type"), answer.get("expires_in")
        token = checked(given) if isinstance(given, str) else None
        if token is None:
            self._refuse(f"answers without a token: check {URL}")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            self._refuse(f"issues tokens of another type than Bearer: check {URL}")
        if isinstance(seconds, str) and seconds.isdecimal():  # some servers write it as text
            seconds = float(seconds)
        if isinstance(seconds, int | float) and seconds > 0:
            return Token(token, timedelta(seconds=min(seconds, timedelta(days=365).total_seconds())))
        end = jwt_end(token)
        return Token(token, None if end is None else end - self._clock.now())

    def _deny(self, status: int, body: bytes) -> NoReturn:
        code = _object(body).get("error")
        if isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code):
            settings = f"check {URL}, {PREFIX}CLIENT_ID, {PREFIX}CLIENT_SECRET and {PREFIX}SCOPE"
            self._refuse(f"answers {status} with the error {code}: {CURES.get(code, settings)}")
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            self._refuse(f"answers {status}: {CURES['invalid_client']}")
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._refuse(f"answers {status}: look at the token server", answered=False)
        self._refuse(f"answers {status}: check {URL}")

    def _unreachable(self, error: Exception) -> NoReturn:
        match error:
            case aiohttp.ClientConnectorCertificateError():
                doubt = distrust(
                    error.certificate_error,
                    ca_setting=f"{PREFIX}CA_FILE",
                    if_misnamed=f"write the host in {URL} as the certificate spells it",
                    there="on the token server",
                )
                msg = f"The certificate of the OAuth token server {self._server} can't be trusted {doubt}"
                raise TokenUnavailable(msg, answered=True) from None
            case aiohttp.ClientConnectorSSLError():
                self._refuse(f"can't be reached by TLS: check that {URL} is the address of an https server")
            case TimeoutError():
                said = f"nothing answered within {LIMIT.total_seconds():g} s"
            case aiohttp.ClientConnectorError():
                said = why(error.os_error)
            case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
                said = "the connection was closed without a complete answer"
            case OSError():
                said = why(error)
            case _:
                said = f"its answer can't be read: {type(error).__name__}"
        self._refuse(f"can't be used, {said}: check {URL}, and the network", answered=False)

    def _refuse(self, what: str, *, answered: bool = True) -> NoReturn:
        msg = f"The OAuth token server {self._server} {what}"
        raise TokenUnavailable(msg, answered=answered) from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = from_json(body)
    except ValueError:  # too deep is a ValueError as well
        return {}
    return found if isinstance(found, dict) else {}
