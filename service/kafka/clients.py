"""Common to all Kafka clients: their errors, closing of idle connections, bounded stopping, and new broker addresses.

Three cases that aiokafka leaves to its user: a client that stops waits for brokers that may not answer, and ignores a
cancellation meanwhile; a connection to a broker that does not answer can't be closed in an orderly way; and a client
that has lost all known brokers never asks the bootstrap servers again, so it does not find a Kafka that comes back at
other addresses. Here each has a bound. Also, no client of this process creates a topic by asking for its metadata, and
none takes a connection that closed at an unlucky moment for an error of the program, or leaves failures behind that
nobody has asked for. Connections whose login expires are replaced before that, and a token that a broker refuses is
noticed. And a client that tries again and again, for which its caller's time runs out, can say what it failed at.

It does not know what the clients are used for.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, Final, NoReturn, TypeAlias

import aiokafka.client
import aiokafka.conn
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import (
    BrokerResponseError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    OperationNotAttempted,
    RequestTimedOutError,
    SaslAuthenticationFailed,
    for_code,
    kafka_errors,
)
from aiokafka.producer.message_accumulator import MessageBatch
from aiokafka.producer.sender import AddPartitionsToTxnHandler, EndTxnHandler, InitPIDHandler, SendProduceReqHandler
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.protocol.admin import SaslAuthenticateRequest
from aiokafka.protocol.metadata import MetadataRequest
from typing_extensions import override

from service.event_loop import log_death
from service.kafka import decompression
from service.kafka.denials import explain
from service.kafka.tokens import Tokens
from service.moments import milliseconds

log = logging.getLogger(__name__)

MAX_IDLE: Final = timedelta(minutes=2)
"""An idle connection is closed after this time. Firewalls and load balancers drop idle connections, many without
notifying either end (Azure after 4 minutes, AWS after 350 s); the next request would run into its time-out."""

STOP_LIMIT: Final = timedelta(seconds=10)
"""How long a client may take to stop in an orderly way: as long as one request."""

CUT_LIMIT: Final = timedelta(seconds=1)
"""How long it may take once its connections are cut: nothing is left to wait for then."""

CONNECT_LIMIT: Final = timedelta(seconds=10)
"""For a connection to one broker, with TLS and login. aiokafka waits 40 s for each of the three where no answer comes,
such as from behind a firewall that drops packets."""

LOOK_UP_LIMIT: Final = timedelta(seconds=1)
"""For another look-up of a broker's name, once a connection to it has taken too long."""

BOOTSTRAP_TIMEOUT: Final = timedelta(seconds=5)
"""For a connection to a bootstrap server, and for each request to it."""

BOOTSTRAP_LIMIT: Final = timedelta(seconds=20)
"""For asking all bootstrap servers, some of which may be gone for good."""

LOGIN_SHARE: Final = 0.85
"""The share of a login's lifetime after which its connection is replaced, as Java's clients do at 0.85 to 0.95."""

_LOGIN_REFUSED: Final = 58
"""Kafka's error code SASL_AUTHENTICATION_FAILED."""

_ACKNOWLEDGED: Final = b"\x01"
"""How a client takes note of a refused token, RFC 7628, section 3.2.3."""

Client: TypeAlias = AIOKafkaProducer | AIOKafkaConsumer | AIOKafkaAdminClient | AIOKafkaClient

# A broker makes a topic that a client asks for by name, unless the client forbids it: with one partition, and
# not compacted. aiokafka never forbids it, so that a topic deleted under a running service would come back wrong.
aiokafka.client.MetadataRequest = partial(MetadataRequest, allow_auto_topic_creation=False)

decompression.bound()


class GroupMaxSizeReachedError(BrokerResponseError):  # type: ignore[misc] # aiokafka is untyped
    """The group is full."""

    errno = 81
    message = "GROUP_MAX_SIZE_REACHED"
    description = "The consumer group has as many members as the brokers' group.max.size allows."


class InvalidRecordError(BrokerResponseError):  # type: ignore[misc] # aiokafka is untyped
    """A broker does not take a record as it is."""

    errno = 87
    message = "INVALID_RECORD"
    description = "A record has no key, and its topic is compacted; or it doesn't fit the schema that brokers check."


for _error in (GroupMaxSizeReachedError, InvalidRecordError):
    kafka_errors.setdefault(_error.errno, _error)  # which aiokafka takes for unknown errors of the server


class _Connection(AIOKafkaConnection):  # type: ignore[misc] # aiokafka is untyped
    """A connection that is made within a time limit, and refuses writes with a KafkaConnectionError once it is closed.

    uvloop raises a RuntimeError where asyncio would a ConnectionResetError. aiokafka takes that for an error of the
    program: it ends the task that fetches, or a producer's sender, for good (seen with a Kafka that moved).

    A login may have a lifetime (KIP-368): of a token, or by `connections.max.reauth.ms`. At its end the broker closes
    the connection at the next request, whose fate is then unknown. aiokafka doesn't log in again, so the connection is
    replaced earlier, in a moment in which no request is on its way.
    """

    _login_ends: float | None = None  # on the loop's clock

    @override
    def __del__(self) -> None:
        """Close a connection that nobody has any more: a bootstrap that is cancelled forgets its own.

        aiokafka closes it likewise, but has the event loop log an error.
        """
        if self._reader is not None and not self._loop.is_closed():
            self._on_close_cb = None
            self.close()

    @override
    async def connect(self) -> Any:
        try:
            async with asyncio.timeout(CONNECT_LIMIT.total_seconds()):
                return await super().connect()
        except TimeoutError as error:
            await self._look_up()
            msg = f"{self.host}:{self.port} gave no answer within {CONNECT_LIMIT.total_seconds():.0f} s"
            raise TimeoutError(msg) from error

    async def _look_up(self) -> None:
        """Look up the host's name, to tell a broker that doesn't answer from a DNS that doesn't.

        Raises:
            gaierror: it can't be resolved, or not in time.
        """
        try:
            async with asyncio.timeout(LOOK_UP_LIMIT.total_seconds()):
                await self._loop.getaddrinfo(self.host, self.port)
        except TimeoutError:
            msg = f"DNS doesn't answer where the address of {self.host} is looked up"
            raise socket.gaierror(socket.EAI_AGAIN, msg) from None

    @override
    def connected(self) -> bool:
        """Whether the connection may be used; a client asks before each request, and opens another one if not."""
        if self._login_ends is not None and self._loop.time() >= self._login_ends and not self._requests:
            self.close(reason=CloseReason.IDLE_DROP)
        return bool(super().connected())

    @override
    def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
        sent = self._written(super().send, request, *arguments, **options)
        return self._logged_in(sent) if isinstance(request, SaslAuthenticateRequest) else sent

    async def _logged_in(self, sent: Awaitable[Any]) -> Any:  # noqa: ANN401 - aiokafka's
        """Wait for a broker's answer to a login, and take note of it."""
        answer, tokens = await sent, self._sasl_oauth_token_provider
        if isinstance(tokens, Tokens):
            # Kafka itself says why it refuses a token before it refuses the login; aiokafka takes that for success.
            explained = not answer.error_code and answer.sasl_auth_bytes
            if explained or answer.error_code == _LOGIN_REFUSED:
                tokens.refused()
            elif not answer.error_code:
                tokens.accepted()
            if explained:
                await self._written(super().send, SaslAuthenticateRequest(_ACKNOWLEDGED))
                raise SaslAuthenticationFailed
        if (lifetime := getattr(answer, "session_lifetime_ms", 0)) > 0:
            self._login_ends = self._loop.time() + lifetime / 1000 * LOGIN_SHARE
        return answer

    @override
    def _send_sasl_token(self, *arguments: Any, **options: Any) -> Any:
        return self._written(super()._send_sasl_token, *arguments, **options)

    def _written(self, write: Callable[..., Any], *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - aiokafka's
        try:
            return write(*arguments, **options)
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # aiokafka's errors are kinds of it, and so is NotImplementedError
                raise
            self.close(reason=CloseReason.CONNECTION_BROKEN)
            msg = f"Connection at {self.host}:{self.port} broken: {error}"
            raise KafkaConnectionError(msg) from error


_send = AIOKafkaClient.send


async def _send_or_time_out(self: AIOKafkaClient, node: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - aiokafka's
    """Send a request to a broker, and return the answer.

    Where a request times out after its connection was given up, aiokafka looks for the connection to close it. The
    KeyError that it raises then would end the task that fetches, for good (seen with a broker that froze).
    """
    try:
        return await _send(self, node, *arguments, **options)
    except KeyError as error:
        self.last_trouble = f"{broker(self, node)} gave no answer in time"
        raise RequestTimedOutError from error
    except NodeNotReadyError:
        raise  # `ready` has said it
    except KafkaError as error:
        self.last_trouble = f"{broker(self, node)}: {explain(error)}"
        raise


_ready = AIOKafkaClient.ready


async def _ready_or_trouble(self: AIOKafkaClient, node: Any, **options: Any) -> bool:  # noqa: ANN401 - aiokafka's
    """Whether there is a connection to a broker, or one could be made."""
    if await _ready(self, node, **options):
        return True
    self.last_trouble = f"{broker(self, node)} can't be reached"
    return False


_look_up = AIOKafkaClient.coordinator_lookup


async def _look_up_or_try_again(self: AIOKafkaClient, *arguments: Any) -> Any:  # noqa: ANN401 - aiokafka's
    """Ask any broker who coordinates a group or a transactional id.

    A connection that closes meanwhile is one of a broker that restarts. aiokafka's producer would end its sender for
    good, and its partition would be opened again; a node that isn't ready it passes over, and asks another one.
    """
    try:
        return await _look_up(self, *arguments)
    except KafkaConnectionError as error:
        raise NodeNotReadyError from error
    except BrokerResponseError as error:
        self.last_trouble = f"no coordinator: {explain(error)}"
        raise


_to_controller = AIOKafkaAdminClient._send_to_controller


async def _to_controller_if_there_is_one(self: AIOKafkaAdminClient, request: Any) -> Any:  # noqa: ANN401 - aiokafka's
    """Send a request, such as to create topics, to the controller. While one is being elected, brokers name none."""
    try:
        return await _to_controller(self, request)
    except AttributeError as error:  # aiokafka takes it for granted
        if self._client.cluster.controller is not None:
            raise
        msg = "Kafka has no controller at the moment"
        raise KafkaError(msg) from error


def _heard(fail: Callable[..., None], waiter: str) -> Callable[..., None]:
    """Return a method that fails what is on its way, and takes note itself of the failure of one of its futures.

    aiokafka makes these futures for whoever may wait, and nobody does when a producer is fenced, or ended in the middle
    of its work. The event loop would log each as an error that was never retrieved. Those who wait hear it as before.
    """

    def failed(self: Any, exception: Exception) -> None:  # noqa: ANN401 - aiokafka's
        fail(self, exception)
        if (future := getattr(self, waiter)).done() and not future.cancelled():
            future.exception()

    return failed


_may_be_sent_again = SendProduceReqHandler._can_retry


def _sent_again(self: SendProduceReqHandler, error: BrokerResponseError, batch: MessageBatch) -> bool:
    """Whether a batch that was refused is sent again, as it is without end while there are too few replicas."""
    if error.__traceback__ is None:  # it was never raised: it is a broker's answer, and not what `send` has noted
        self._client.last_trouble = f"{batch.tp.topic}-{batch.tp.partition}: {explain(error)}"
    return bool(_may_be_sent_again(self, error, batch))


def _asked_again(handle: Callable[..., float | None]) -> Callable[..., float | None]:
    """Return a method that takes a transaction coordinator's answer, and notes what it is that is asked again."""

    def handle_response(self: Any, response: Any) -> float | None:  # noqa: ANN401 - aiokafka's
        pause = handle(self, response)
        if pause is not None:
            refused: dict[int, list[str]] = {}
            for topic, some in getattr(response, "errors", None) or [("", [(0, response.error_code)])]:
                for code in {code for _, code in some if code}:
                    refused.setdefault(code, []).append(topic)
            # Where one topic is refused, the answer for the others is only that they were not tried.
            others = refused.pop(OperationNotAttempted.errno, None)
            named = others is not None or len(refused) > 1
            said = [
                explain(for_code(code)()) + (f" ({'topics' if topics[1:] else 'topic'} {', '.join(topics)})" * named)
                for code, topics in refused.items()
            ]
            self._sender.client.last_trouble = f"transaction coordinator: {'; '.join(said)}"
        return pause

    return handle_response


def broker(client: AIOKafkaClient, node: Any) -> str:  # noqa: ANN401 - aiokafka's: a number, or "bootstrap"
    """Return a broker's name and address, for people."""
    found = client.cluster.broker_metadata(node)
    return f"broker {node}" if found is None else f"broker {node} ({found.host}:{found.port})"


AIOKafkaClient.last_trouble = ""  # what a client tries again; see `journal`
AIOKafkaClient.ready = _ready_or_trouble
SendProduceReqHandler._can_retry = _sent_again
for _handler in (InitPIDHandler, AddPartitionsToTxnHandler, EndTxnHandler):
    _handler.handle_response = _asked_again(_handler.handle_response)
MessageBatch.failure = _heard(MessageBatch.failure, "_drain_waiter")
TransactionManager.error_transaction = _heard(TransactionManager.error_transaction, "_transaction_waiter")
TransactionManager.fatal_error = _heard(TransactionManager.fatal_error, "_transaction_waiter")
aiokafka.conn.AIOKafkaConnection = _Connection
AIOKafkaClient.send = _send_or_time_out
AIOKafkaClient.coordinator_lookup = _look_up_or_try_again
AIOKafkaAdminClient._send_to_controller = _to_controller_if_there_is_one

_stopping: set["asyncio.Task[None]"] = set()
"""Kept from the garbage collector until they end, also where nobody waits for them any more."""


async def end(
    client: Client, *, stop: Callable[[], Awaitable[None]] | None = None, within: timedelta = STOP_LIMIT
) -> None:
    """Stop a client in bounded time, in any state; exceptions are logged, not raised.

    After `within` its connections are cut, and what is on its way there is given up; with 0 they are cut at once, for
    a client that is known to be broken. `stop` is its own way to stop, where that isn't this very call. A cancellation
    arrives here, and the stopping goes on without its caller.
    """
    stopping = _end(client, stop or getattr(client, "stop", None) or client.close, within)
    task = log_death(asyncio.create_task(stopping), "the stopping of a Kafka client")
    _stopping.add(task)
    task.add_done_callback(_stopping.discard)
    await asyncio.shield(task)


async def _end(client: Client, stop: Callable[[], Awaitable[None]], within: timedelta) -> None:
    if not within:
        _cut(client)
    stopping = asyncio.ensure_future(stop())
    await asyncio.wait([stopping], timeout=(within or CUT_LIMIT).total_seconds())
    if not stopping.done():
        _cut(client)
        await asyncio.wait([stopping], timeout=CUT_LIMIT.total_seconds())
    if not stopping.done():
        stopping.cancel()
        await asyncio.wait([stopping], timeout=CUT_LIMIT.total_seconds())
    _cut(client)  # stopping leaves connections open where it fails
    if not stopping.done():
        log.warning(
            "A Kafka client (%s) did not stop within %.0f s; its connections are closed; no longer waiting for it",
            type(client).__name__,
            within.total_seconds(),
        )
    elif not stopping.cancelled() and (error := stopping.exception()) is not None:
        log.debug("Stopping a Kafka client failed: %r", error)


def wire_of(client: Client) -> AIOKafkaClient:
    """Return the client inside a client: it has the connections, and sends any request."""
    return client if isinstance(client, AIOKafkaClient) else getattr(client, "_client", None) or client.client


class _OnTheirWay(set[Any]):
    """A cut producer's batches on their way, from which each may be removed that isn't there.

    aiokafka removes what failed, also where it waits to be sent again, and so isn't among them; and what it is about to
    send again, also where it has failed meanwhile. Each was a KeyError, which the event loop logs (seen with a Kafka
    that was away, and with two of three brokers dead).
    """

    @override
    def remove(self, element: Any) -> None:
        self.discard(element)


def _cut(client: Client) -> None:
    """Close the connections and open no more, so that all pending requests fail now."""
    wire = wire_of(client)
    wire.send = wire.ready = _stopped
    wire.force_metadata_update = _refused
    waiting, wire._md_update_fut = wire._md_update_fut, None
    if waiting is not None and not waiting.done():
        waiting.set_result(False)  # a caller that goes on fails at its next request; not all callers wait for this
    if wire._sync_task is not None:
        wire._sync_task.cancel()
    if isinstance(client, AIOKafkaProducer):
        if (sender := client._sender.sender_task) is not None:
            sender.cancel()
        accumulator = client._message_accumulator
        accumulator._pending_batches = _OnTheirWay(accumulator._pending_batches)
        accumulator.fail_all(KafkaConnectionError(_STOPPED))
    for connection in list(wire._conns.values()):
        writer = connection._writer
        connection.close()
        if writer is not None:
            writer.transport.abort()  # an orderly end would wait until what was written is taken


_STOPPED: Final = "the client was stopped"


async def _stopped(*_: object, **__: object) -> NoReturn:
    raise KafkaConnectionError(_STOPPED)


def _refused() -> "asyncio.Future[Any]":
    waiting = asyncio.get_running_loop().create_future()
    waiting.set_exception(KafkaConnectionError(_STOPPED))
    waiting.exception()  # nobody may be waiting
    return waiting


async def rebootstrap(client: AIOKafkaClient, *, connection: Mapping[str, Any]) -> bool:
    """Ask the bootstrap servers for the brokers, and let `client` know them; whether none has a known address any more.

    Where one is left of the brokers that were known, all clients hear from it of the others. The brokers are asked
    themselves, too, so that returning means that Kafka is there.

    Raises:
        KafkaError: neither a bootstrap server nor a broker that it names can be reached.
        TimeoutError: likewise.
    """
    fresh = AIOKafkaClient(**{**connection, "request_timeout_ms": milliseconds(BOOTSTRAP_TIMEOUT)})
    try:
        async with asyncio.timeout(BOOTSTRAP_LIMIT.total_seconds()):
            await fresh.bootstrap()
            before = _addresses(client)
            if not await fresh._metadata_update(client.cluster, client._topics):
                msg = "the bootstrap servers answer, but none of the brokers that they advertise does"
                raise KafkaConnectionError(msg)
    finally:
        await end(fresh, within=CUT_LIMIT)
    return before.isdisjoint(_addresses(client))


def _addresses(client: AIOKafkaClient) -> set[tuple[str, int]]:
    return {(broker.host, broker.port) for broker in client.cluster.brokers()}
