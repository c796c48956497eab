"""A login to Kafka: what a broker's answer says of the token, and when the connection is replaced."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.conn import CloseReason
from aiokafka.errors import SaslAuthenticationFailed
from aiokafka.protocol.admin import SaslAuthenticateRequest
from aiokafka.protocol.metadata import MetadataRequest
from typing_extensions import override

from service.kafka import clients
from service.kafka.clients import LOGIN_SHARE
from service.kafka.tokens import Tokens
from tests.support.virtual_time import virtual

LIFETIME = 100.0


class NotedTokens(Tokens):
    """Tokens that note what is made of one."""

    def __init__(self) -> None:
        self.fates: list[str] = []

    @override
    def accepted(self) -> None:
        self.fates.append("accepted")

    @override
    def refused(self) -> None:
        self.fates.append("refused")


def answer(code: int = 0, *, explanation: bytes = b"", lifetime: float = 0) -> SimpleNamespace:
    return SimpleNamespace(error_code=code, sasl_auth_bytes=explanation, session_lifetime_ms=int(lifetime * 1000))


class Login:
    """A connection whose broker gives this answer to each request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer = answer()
        self.sent: list[Any] = []
        self.closed: list[CloseReason] = []
        self.tokens = NotedTokens()
        self.connection = clients._Connection.__new__(clients._Connection)
        self.connection._requests = []
        self.connection._reader = SimpleNamespace(at_eof=lambda: False)
        self.connection._sasl_oauth_token_provider = self.tokens

        async def send(request: object) -> SimpleNamespace:
            self.sent.append(request)
            return self.answer

        def close(*, reason: CloseReason) -> None:
            self.closed.append(reason)
            self.connection._reader = None

        # By its place: its name in aiokafka is that of ours, once our module is imported.
        monkeypatch.setattr(clients._Connection.__base__, "send", lambda _, request: send(request))
        self.connection.close = close

    async def log_in(self) -> None:
        self.connection._loop = asyncio.get_running_loop()
        await self.connection.send(SaslAuthenticateRequest(b"token"))


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Iterator[Login]:
    login = Login(monkeypatch)
    yield login
    login.connection._reader = None  # nothing is left to be closed


@virtual
async def test_a_connection_is_replaced_before_its_login_ends_but_not_while_a_request_is_on_its_way(
    login: Login,
) -> None:
    login.answer = answer(lifetime=LIFETIME)
    await login.log_in()
    await asyncio.sleep(LIFETIME * LOGIN_SHARE - 0.1)
    assert login.connection.connected()
    login.connection._requests.append("on its way")
    await asyncio.sleep(0.1)
    assert (login.connection.connected(), login.closed) == (True, [])
    login.connection._requests.clear()
    assert (login.connection.connected(), login.closed) == (False, [CloseReason.IDLE_DROP])


@virtual
async def test_a_login_without_a_lifetime_lasts(login: Login) -> None:
    await login.log_in()
    await asyncio.sleep(1e6)
    assert login.connection.connected()


@virtual
async def test_the_lifetime_of_a_login_is_read_from_no_other_answer(login: Login) -> None:
    login.answer = answer(lifetime=LIFETIME)
    await login.log_in()
    login.answer = answer(lifetime=1)
    await login.connection.send(MetadataRequest([]))
    await asyncio.sleep(2)
    assert (login.connection.connected(), login.tokens.fates) == (True, ["accepted"])


@pytest.mark.parametrize(("code", "fates"), [(0, ["accepted"]), (58, ["refused"]), (34, [])])
@virtual
async def test_a_token_is_accepted_or_refused_by_the_brokers_answer_alone(
    login: Login, code: int, fates: list[str]
) -> None:
    login.answer = answer(code)
    await login.log_in()
    assert (login.tokens.fates, len(login.sent)) == (fates, 1)


@virtual
async def test_a_refusal_that_is_explained_is_acknowledged_and_not_taken_for_success(login: Login) -> None:
    login.answer = answer(explanation=b'{"status": "invalid_token"}')
    with pytest.raises(SaslAuthenticationFailed):
        await login.log_in()
    assert login.tokens.fates == ["refused"]
    assert [request._payload for request in login.sent] == [b"token", b"\x01"]


@virtual
async def test_a_login_by_password_has_no_token_to_judge(login: Login) -> None:
    login.connection._sasl_oauth_token_provider = None
    login.answer = answer(explanation=b"server final", lifetime=LIFETIME)
    await login.log_in()
    assert (login.tokens.fates, len(login.sent)) == ([], 1)
    await asyncio.sleep(LIFETIME)
    assert not login.connection.connected()
