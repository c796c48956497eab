"""Turns errors of Kafka's client into a sentence that names the setting to change.

Kafka's client reports only in its log why a broker refused it: it raises the same "Unable to bootstrap" for a wrong
password, an expired certificate and an unreachable broker. So this module reads the client's log.
"""

import logging
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Protocol

from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaConnectionError,
    KafkaTimeoutError,
    NodeNotReadyError,
    RequestTimedOutError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from typing_extensions import override

from service.certificates import distrust
from service.endpoints import OUT_OF_DESCRIPTORS, lacks_descriptors
from service.kafka.denials import Account, MissingRight, Operation, explain
from service.kafka.tokens import MECHANISM, TokenUnavailable

OUT_OF_REACH: Final = (KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError, RequestTimedOutError, OSError)
"""What Kafka's client raises where no broker has said no."""


class KafkaSettings(Protocol):
    """The connection settings that the sentences mention."""

    @property
    def bootstrap_servers(self) -> str: ...  # noqa: D102 - the names say it
    @property
    def security_protocol(self) -> str: ...  # noqa: D102
    @property
    def sasl_mechanism(self) -> str | None: ...  # noqa: D102
    @property
    def sasl_username(self) -> str | None: ...  # noqa: D102
    @property
    def ssl_cert_file(self) -> object: ...  # noqa: D102
    @property
    def oauth_token_file(self) -> object: ...  # noqa: D102


_listening: ContextVar[tuple["_Listener", ...]] = ContextVar("listening", default=())
"""Those of this task, and of the task that has made it: a client's own tasks inherit them from where it was started."""


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if self not in _listening.get():
            return  # of another client in this process
        given = record.args if isinstance(record.args, tuple) else ()
        self.errors += [part for part in given if isinstance(part, BaseException)]


@contextmanager
def overheard() -> Iterator[Sequence[BaseException]]:
    """Collect the exceptions that clients of Kafka log which are started, or called, within the context."""
    listener, log = _Listener(), logging.getLogger("aiokafka")
    log.addHandler(listener)
    outer = _listening.set((*_listening.get(), listener))
    try:
        yield listener.errors
    finally:
        _listening.reset(outer)
        log.removeHandler(listener)


def diagnosis(
    raised: BaseException,
    overheard: Sequence[BaseException],
    *,
    kafka: KafkaSettings,
    account: Account | None = None,
    group: str = "",
) -> str:
    """Choose the most specific error, the latest first. The sentence never quotes a broker."""
    account = account or Account()
    found = (_telling(error, kafka, account, group) for error in (raised, *reversed(overheard)))
    if (sentence := next(filter(None, found), None)) is not None:
        return sentence
    if not isinstance(raised, OUT_OF_REACH):
        return f"Kafka at {kafka.bootstrap_servers} refuses: {explain(raised).removesuffix('.')}."
    speaks = f"whether the brokers' listener uses VM_SYNC_KAFKA__SECURITY_PROTOCOL={kafka.security_protocol}"
    if not any(map(_hung_up, overheard)):
        where = kafka.bootstrap_servers
        if any(map(lacks_descriptors, overheard)):
            return f"Kafka can't be reached at {where}: {OUT_OF_DESCRIPTORS}."
        if any(isinstance(error, socket.gaierror) for error in overheard):
            why = "the name of a broker can't be resolved"
            return f"Kafka can't be reached at {where}, {why}: check VM_SYNC_KAFKA__BOOTSTRAP_SERVERS, and DNS."
        return f"Kafka can't be reached at {where}: check VM_SYNC_KAFKA__BOOTSTRAP_SERVERS, and {speaks}."
    if not kafka.security_protocol.endswith("SSL"):
        return f"Kafka at {kafka.bootstrap_servers} closes the connection: check {speaks}."
    certificate = (
        "accept the certificate of" if kafka.ssl_cert_file else "require a client certificate, which is set with"
    )
    return (
        f"Kafka at {kafka.bootstrap_servers} closes the connection: check {speaks}, and whether the brokers "
        f"{certificate} VM_SYNC_KAFKA__SSL_CERT_FILE."
    )


def is_answer(raised: BaseException, overheard: Sequence[BaseException], *, kafka: KafkaSettings) -> bool:
    """Whether Kafka has said no, or has hung up; if it was only out of reach, the same may work later."""
    errors = (raised, *overheard)
    if tokens := [error for error in errors if isinstance(error, TokenUnavailable)]:
        return tokens[-1].answered
    if any(_telling(error, kafka, Account(), "") is not None or _hung_up(error) for error in errors):
        return True
    return not isinstance(raised, OUT_OF_REACH)


def _telling(error: BaseException, kafka: KafkaSettings, account: Account, group: str) -> str | None:
    match error:
        case UnsupportedSaslMechanismError():
            return (
                f"Kafka at {kafka.bootstrap_servers} does not support the SASL mechanism {kafka.sasl_mechanism}: "
                "change VM_SYNC_KAFKA__SASL_MECHANISM."
            )
        case TokenUnavailable():
            return f"{error}."
        case AuthenticationFailedError() | SaslAuthenticationFailed() if kafka.sasl_mechanism == MECHANISM:
            setting = "TOKEN_FILE" if kafka.oauth_token_file else "TOKEN_URL"
            return (
                f"Kafka at {kafka.bootstrap_servers} refuses the OAuth token (VM_SYNC_KAFKA__OAUTH_{setting}): check "
                "that its issuer, audience, scope and signature are those that the brokers expect."
            )
        case AuthenticationFailedError() | SaslAuthenticationFailed():
            return (
                f"Kafka at {kafka.bootstrap_servers} refuses the login of {kafka.sasl_username}: check "
                "VM_SYNC_KAFKA__SASL_USERNAME, VM_SYNC_KAFKA__SASL_PASSWORD and VM_SYNC_KAFKA__SASL_MECHANISM."
            )
        case ssl.SSLCertVerificationError():
            doubt = distrust(
                error,
                ca_setting="VM_SYNC_KAFKA__SSL_CA_FILE",
                if_misnamed="use the host names of the brokers' certificates in VM_SYNC_KAFKA__BOOTSTRAP_SERVERS",
                there="on the brokers",
            )
            return f"The certificate of Kafka at {kafka.bootstrap_servers} can't be trusted {doubt}."
        case ssl.SSLError():
            return (
                f"The TLS handshake with Kafka at {kafka.bootstrap_servers} failed ({error.reason}): check "
                "VM_SYNC_KAFKA__SECURITY_PROTOCOL and VM_SYNC_KAFKA__SSL_CERT_FILE."
            )
        case _:
            right = MissingRight.of(error, operation=Operation.WRITE, group=group)
            return None if right is None else f"{account.denial(right)}."


def _hung_up(error: BaseException) -> bool:
    """Whether a listener accepted the connection and then closed it without an answer."""
    if isinstance(error, KafkaConnectionError):
        return "closed" in str(error)
    return isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError)
