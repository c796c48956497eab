"""A small OAuth token server that signs JWTs, and a Kafka that validates them with its key."""

import base64
import json
import math
import ssl
import time
import uuid
from asyncio import Server, start_server
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qs, unquote_plus

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from service.sandbox.kafka import LOGIN, EmbeddedKafka, free_ports
from tests.support.brokers import PASSWORD, USER
from tests.support.scripted_http_server import Answer, Appliance, Call, Reply

CLIENT: Final = "vm-sync/ä"
SECRET: Final = "Client+Secret:4711/ä %"
"""With signs that a form or Basic authentication could stumble over."""
SCOPE: Final = "kafka"
ISSUER: Final = "https://tokens.example"
AUDIENCE: Final = "kafka-cluster"
LISTENER: Final = "TOKENS"
KEY_ID: Final = "1"


class TokenServer:
    """Answers POST /token. An async context; `stop` and `start` keep its address."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.reset()
        self._tls = tls
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (self._port,) = free_ports(1)
        self._served = Appliance(script=self._answer)
        self._server: Server | None = None

    def reset(self) -> None:
        """Forget what was asked and what a test has set."""
        self.lifetime = 3600.0
        """Seconds for which a token is valid."""
        self.claims: dict[str, Any] = {}
        """Of the tokens issued from now on, beside or instead of the usual ones."""
        self.answer: Answer | None = None
        """What is answered instead of a token."""
        self.issued: list[str] = []
        self.calls: list[Call] = []

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}/token"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await start_server(self._served.serve, "127.0.0.1", self._port, ssl=self._tls)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._served.writers):
                writer.transport.abort()
            self._server = None

    def issue(self, **claims: Any) -> str:
        """Sign a token."""
        now = time.time()
        standard = {"iss": ISSUER, "aud": AUDIENCE, "sub": "vm-sync", "scope": SCOPE, "iat": int(now)}
        payload = standard | {"exp": math.ceil(now + self.lifetime), "jti": uuid.uuid4().hex} | self.claims | claims
        signed = f"{_encoded({'alg': 'RS256', 'typ': 'JWT', 'kid': KEY_ID})}.{_encoded(payload)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        token = f"{signed}.{_base64(signature)}"
        self.issued.append(token)
        return token

    def write_keys(self, file: Path) -> None:
        """Write the public key as Kafka reads it."""
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": KEY_ID,
            "n": _number(numbers.n),
            "e": _number(numbers.e),
        }
        file.write_text(json.dumps({"keys": [key]}))

    def _answer(self, call: Call) -> Answer:
        self.calls.append(call)
        if self.answer is not None:
            return self.answer
        if call.name != "POST /token":
            return Reply(404)
        scheme, _, login = call.headers.get("authorization", "").partition(" ")
        client, _, secret = base64.b64decode(login).decode().partition(":")
        if (scheme, unquote_plus(client), unquote_plus(secret)) != ("Basic", CLIENT, SECRET):
            return Reply(401, {"error": "invalid_client", "error_description": f"not {secret}"})
        form = {name: values[0] for name, values in parse_qs(call.body.decode()).items()}
        if form.get("grant_type") != "client_credentials":
            return Reply(400, {"error": "unsupported_grant_type"})
        if form.get("scope", SCOPE) != SCOPE:
            return Reply(400, {"error": "invalid_scope"})
        return Reply(200, {"access_token": self.issue(), "token_type": "Bearer", "expires_in": self.lifetime})


@dataclass(frozen=True, slots=True)
class TokenListener:
    """How a Kafka gets a listener, `LISTENER`, that accepts tokens which were signed with a key in a file."""

    keys: Path

    @property
    def listeners(self) -> dict[str, str]:
        return {LISTENER: "SASL_PLAINTEXT"}

    @property
    def properties(self) -> dict[str, str]:
        security = "org.apache.kafka.common.security.oauthbearer"
        prefix = f"listener.name.{LISTENER.lower()}"
        validator = f"{security}.OAuthBearerValidatorCallbackHandler"
        return {
            f"{prefix}.sasl.enabled.mechanisms": "OAUTHBEARER",
            f"{prefix}.oauthbearer.sasl.jaas.config": f"{security}.OAuthBearerLoginModule required;",
            f"{prefix}.oauthbearer.sasl.server.callback.handler.class": validator,
            "sasl.oauthbearer.jwks.endpoint.url": self.keys.as_uri(),
            "sasl.oauthbearer.expected.audience": AUDIENCE,
            "sasl.oauthbearer.expected.issuer": ISSUER,
            "sasl.oauthbearer.clock.skew.seconds": "0",
        }

    @property
    def java_properties(self) -> dict[str, str]:
        """From 3.9.1 on, a broker reads keys only from where this allows it."""
        return {"org.apache.kafka.sasl.oauthbearer.allowed.urls": self.keys.as_uri()}


def validating(keys: Path) -> EmbeddedKafka:
    """Return a Kafka, not started, with a `TokenListener`. At its listener LOGIN, a login with SCRAM lasts for 3 s."""
    tokens = TokenListener(keys)
    brief = {f"listener.name.{LOGIN.lower()}.scram-sha-256.connections.max.reauth.ms": "3000"}
    return EmbeddedKafka(
        users={USER: PASSWORD},
        listeners=tokens.listeners,
        properties=tokens.properties | brief,
        java_properties=tokens.java_properties,
    )


def _encoded(part: dict[str, Any]) -> str:
    return _base64(json.dumps(part).encode())


def _number(number: int) -> str:
    return _base64(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
