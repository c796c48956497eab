"""Logins with OAuth tokens at a real Kafka that validates them, and a real token server."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from service.checks import Result, Status
from service.clock import Clock
from service.kafka.check import KafkaChecks
from service.kafka.connection import KafkaConnection
from service.kafka.diagnosis import diagnosis, overheard
from service.kafka.topics import TopicNames
from service.sandbox.kafka import LOGIN, EmbeddedKafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from service.settings import kafka_security, load_for_kafka
from tests.conftest import TopicNamer, started
from tests.support.brokers import PASSWORD, USER
from tests.support.process_harness import Ledger, Process, appliance, counts, run_command
from tests.support.token_server import CLIENT, LISTENER, SCOPE, SECRET, TokenServer, validating

pytestmark = pytest.mark.kafka

PREFIX = "VM_SYNC_KAFKA__"
PASSWORD_LOGIN = {
    "sasl_mechanism": "SCRAM-SHA-256",
    "sasl_plain_username": USER,
    "sasl_plain_password": PASSWORD,
    "sasl_oauth_token_provider": None,
}
SHORT = Plan(queued=Durations.of(0), duration=Durations.of(0.3))


@dataclass(frozen=True, slots=True)
class Place:
    """A Kafka, and the token server whose tokens it accepts."""

    kafka: EmbeddedKafka
    tokens: TokenServer

    def settings(self, **more: str) -> dict[str, str]:
        """Say how to log in with tokens of the server, or of a file."""
        given = {
            "BOOTSTRAP_SERVERS": self.kafka.address(LISTENER),
            "SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "SASL_MECHANISM": "OAUTHBEARER",
        }
        if "OAUTH_TOKEN_FILE" not in more:
            given |= {
                "OAUTH_TOKEN_URL": self.tokens.url,
                "OAUTH_CLIENT_ID": CLIENT,
                "OAUTH_CLIENT_SECRET": SECRET,
                "OAUTH_SCOPE": SCOPE,
            }
        return {PREFIX + name: text for name, text in (given | more).items()}

    def connection(self, **more: str) -> KafkaConnection:
        settings = load_for_kafka(self.settings(**more))
        return KafkaConnection(bootstrap_servers=tuple(settings.kafka.servers), security=kafka_security(settings))


@pytest.fixture(scope="module")
def stopped_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    keys, tokens = tmp_path_factory.mktemp("keys") / "keys.json", TokenServer()
    tokens.write_keys(keys)
    with started(validating(keys)) as kafka:
        yield Place(kafka, tokens)


@pytest.fixture
async def place(stopped_place: Place) -> AsyncIterator[Place]:
    stopped_place.tokens.reset()
    async with stopped_place.tokens:
        yield stopped_place


@asynccontextmanager
async def logged_in(arguments: dict[str, Any]) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**arguments)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def test_the_clients_of_a_process_log_in_with_one_token(place: Place) -> None:
    arguments = place.connection().arguments()
    async with logged_in(arguments) as first, logged_in(arguments) as second:
        await asyncio.gather(first.list_topics(), second.list_topics())

    assert len(place.tokens.issued) == 1


async def refusal_of(place: Place, connection: KafkaConnection) -> str:
    settings = load_for_kafka(place.settings())
    with overheard() as errors, pytest.raises(KafkaError) as raised:
        async with logged_in(connection.arguments()):
            pass
    return diagnosis(raised.value, errors, kafka=settings.kafka)


@pytest.mark.parametrize("claims", [{"aud": "another-cluster"}, {"iss": "https://elsewhere.example"}, {"exp": 1}])
async def test_a_token_that_kafka_refuses_is_said_as_such(claims: dict[str, Any], place: Place) -> None:
    place.tokens.claims = claims

    said = await refusal_of(place, place.connection())

    where = place.kafka.address(LISTENER)
    assert said.startswith(f"Kafka at {where} refuses the OAuth token (VM_SYNC_KAFKA__OAUTH_TOKEN_URL): check that its")


async def test_a_token_server_that_is_away_is_said_as_such(place: Place) -> None:
    await place.tokens.stop()

    said = await refusal_of(place, place.connection())

    assert said.startswith("The OAuth token server 127.0.0.1:")
    assert "VM_SYNC_KAFKA__OAUTH_TOKEN_URL" in said


@pytest.mark.parametrize("listener", [LISTENER, LOGIN])
async def test_a_login_is_renewed_before_it_expires_without_an_error_of_any_request(
    listener: str, place: Place, topic_name: TopicNamer, caplog: pytest.LogCaptureFixture
) -> None:
    place.tokens.lifetime = 3.0
    topic, arguments = topic_name("renewed"), place.connection().arguments()
    if listener == LOGIN:
        arguments |= {"bootstrap_servers": place.kafka.address(LOGIN), **PASSWORD_LOGIN}
    # A retry would take a minute: each request has to succeed at once.
    producer = AIOKafkaProducer(**arguments, acks="all", enable_idempotence=True, retry_backoff_ms=60_000)
    used: set[Any] = set()
    async with logged_in(arguments) as admin:
        await make(admin, topic)
        await producer.start()
        try:
            async with asyncio.timeout(60):
                while len(used) < 4:
                    await producer.send_and_wait(topic, b"x")
                    await admin.describe_cluster()
                    used |= set(producer.client._conns.values())
        finally:
            await producer.stop()

    assert [record.getMessage() for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []


async def make(admin: AIOKafkaAdminClient, topic: str) -> None:
    response = await admin.create_topics([NewTopic(topic, 1, 1)])
    assert [code for _, code, *_ in response.topic_errors] == [0]


# ---------------------------------------------------------------- whole processes


@asynccontextmanager
async def service(place: Place, prefix: str, **settings: str) -> AsyncIterator[tuple[Ledger, Process]]:
    """A process that logs in with tokens; Kafka's and VCDA's other users don't."""
    async with (
        Simulator(appliance(SHORT)) as vcda,
        Ledger(bootstrap=place.kafka.bootstrap, simulator=vcda, prefix=prefix, partitions=2) as ledger,
    ):
        yield ledger, ledger.start(command=(), **place.settings(**settings))


async def readiness(process: Process) -> tuple[int, str]:
    try:
        answer = await process.get("/readyz")
    except httpx.HTTPError:
        return 0, ""
    return answer.status_code, answer.text


async def until_readyz(process: Process, holds: Callable[[int, str], bool]) -> None:
    async with asyncio.timeout(90):
        while not holds(*await readiness(process)):
            assert process.running, process.text()[-3000:]
            await asyncio.sleep(0.1)


async def until_logged(process: Process, text: str) -> None:
    async with asyncio.timeout(90):
        while text not in process.text():
            assert process.running, process.text()[-3000:]
            await asyncio.sleep(0.1)


def lines(process: Process) -> list[str]:
    """What it has logged as more than information."""
    logged = [json.loads(line) for line in process.text().splitlines()]
    return [f"{line['level']} {line['message']}" for line in logged if line["level"] != "INFO"]


async def ask(ledger: Ledger, count: int) -> None:
    first = len(ledger.asked)
    await ledger.ask_all([(f"op-{first + number}", f"C4-{uuid.uuid4()}") for number in range(count)])
    assert counts(await ledger.wait(within=60)) == {"completed": first + count}


def secrets_of(place: Place) -> list[str]:
    return [SECRET, *place.tokens.issued]


@pytest.mark.e2e
async def test_requests_go_all_the_way_while_logins_expire_every_few_seconds(
    place: Place, topic_name: TopicNamer
) -> None:
    place.tokens.lifetime = 4.0
    async with service(place, topic_name("tokens")) as (ledger, process):
        await ledger.ready(process, within=120)
        while len(place.tokens.issued) < 6:
            await ask(ledger, 3)
        code = await process.stop()
        verdict = await ledger.judge()

        assert verdict.violations == []
        assert code == 0
        assert [line for line in lines(process) if "replicas" not in line] == []
        assert not [secret for secret in secrets_of(place) if secret in process.text()]


@pytest.mark.e2e
async def test_a_start_without_a_token_server_waits_and_says_why_until_the_server_is_there(
    place: Place, topic_name: TopicNamer
) -> None:
    await place.tokens.stop()
    async with service(place, topic_name("late")) as (ledger, process):
        await until_readyz(process, lambda status, text: status == 503 and "VM_SYNC_KAFKA__OAUTH_TOKEN_URL" in text)
        await place.tokens.start()
        await ledger.ready(process, within=120)
        await ask(ledger, 1)
        assert await failing_for(process) == 0
        said = [line for line in lines(process) if "token" in line]
        await process.stop()

    assert len(said) == 1
    assert "can't be used yet, trying again: The OAuth token server 127.0.0.1:" in said[0]


@pytest.mark.e2e
async def test_a_start_without_a_token_ends_at_its_limit_with_the_setting(place: Place, topic_name: TopicNamer) -> None:
    async with service(place, topic_name("never"), OAUTH_CLIENT_SECRET="wrong", START_LIMIT="PT3S") as (_, process):
        assert await process.ended(within=120) == 1
        last = lines(process)[-1]

    assert last.startswith("ERROR")
    assert "invalid_client: check VM_SYNC_KAFKA__OAUTH_CLIENT_ID and VM_SYNC_KAFKA__OAUTH_CLIENT_SECRET" in last
    assert "VM_SYNC_KAFKA__START_LIMIT" in last


async def failing_for(process: Process) -> float:
    """Return the metric of a process."""
    async with httpx.AsyncClient(timeout=60) as client:
        page = (await client.get(f"http://127.0.0.1:{process.port()}/metrics")).text
    (value,) = re.findall(r"^vm_sync_kafka_token_failing_seconds (\S+)$", page, flags=re.MULTILINE)
    return float(value)


@pytest.mark.e2e
async def test_a_token_server_that_goes_away_is_said_and_work_goes_on_when_it_is_back(
    place: Place, topic_name: TopicNamer
) -> None:
    place.tokens.lifetime = 20.0
    async with service(place, topic_name("away")) as (ledger, process):
        await ledger.ready(process, within=120)
        await place.tokens.stop()
        # It goes on with the present token first, and says so.
        await until_readyz(process, lambda status, text: status == 200 and "can't be renewed" in text)
        assert await failing_for(process) > 0
        await until_readyz(process, lambda status, text: status == 503 and "VM_SYNC_KAFKA__OAUTH_TOKEN_URL" in text)
        await until_logged(process, "has expired, and can't be renewed")
        await place.tokens.start()
        await ledger.ready(process, within=120)
        await ask(ledger, 1)
        assert await failing_for(process) == 0
        said = [line for line in lines(process) if "token" in line]
        code = await process.stop()
        verdict = await ledger.judge()

        assert code == 0
        assert verdict.violations == []
        assert "Traceback" not in process.text()
    assert [
        part in line for part, line in zip(("can't be renewed; the present one", "expired"), said, strict=True)
    ] == [
        True,
        True,
    ]


@pytest.mark.e2e
async def test_a_token_that_kafka_no_longer_accepts_is_said_and_replaced_as_soon_as_another_is_accepted(
    place: Place, topic_name: TopicNamer
) -> None:
    place.tokens.lifetime = 6.0
    async with service(place, topic_name("refused")) as (ledger, process):
        await ledger.ready(process, within=120)
        place.tokens.claims = {"aud": "another-cluster"}
        await until_readyz(process, lambda status, text: status == 503 and "Kafka refuses the OAuth token" in text)
        place.tokens.claims = {}
        await ledger.ready(process, within=120)
        await ask(ledger, 1)
        said = [line for line in lines(process) if "refuses the OAuth token" in line]
        assert await process.stop() == 0
        assert "Traceback" not in process.text()

    assert len(said) == 1
    assert "check VM_SYNC_KAFKA__OAUTH_SCOPE" in said[0]


@pytest.mark.e2e
async def test_a_token_file_is_read_again_whenever_a_login_expires(
    place: Place, topic_name: TopicNamer, tmp_path: Path
) -> None:
    place.tokens.lifetime = 5.0
    file = tmp_path / "token"

    async def rotate() -> None:
        while True:
            (tmp_path / "new").write_text(place.tokens.issue())
            (tmp_path / "new").replace(file)
            await asyncio.sleep(2)

    rotating = asyncio.create_task(rotate())
    await asyncio.sleep(0)
    try:
        async with service(place, topic_name("file"), OAUTH_TOKEN_FILE=str(file)) as (ledger, process):
            await ledger.ready(process, within=120)
            while len(place.tokens.issued) < 6:
                await ask(ledger, 1)
            file_text = process.text()
            rotating.cancel()
            file.write_text("")
            await until_readyz(
                process, lambda status, text: status == 503 and "VM_SYNC_KAFKA__OAUTH_TOKEN_FILE" in text
            )
            place.tokens.lifetime = 3600.0
            file.write_text(place.tokens.issue())
            await ledger.ready(process, within=120)
            await ask(ledger, 1)
            assert await process.stop() == 0
            assert place.tokens.calls == []
            assert not [secret for secret in secrets_of(place) if secret in process.text()]
            assert "can't be renewed" not in file_text
    finally:
        rotating.cancel()


@pytest.mark.e2e
async def test_the_commands_log_in_with_a_token_or_name_the_setting(place: Place, topic_name: TopicNamer) -> None:
    topics = ("requests", "completed", "failed", "dead_letter", "journal")
    names = {f"VM_SYNC_TOPICS__{name.upper()}": topic_name(name) for name in topics}
    made = await run_command(names | place.settings(), "topics", "create")
    refused = await run_command(names | place.settings(OAUTH_CLIENT_SECRET="wrong"), "list")
    await place.tokens.stop()
    away = await run_command(names | place.settings(), "list")

    assert made[0] == 0, made
    assert refused[0] == 3
    assert "invalid_client: check VM_SYNC_KAFKA__OAUTH_CLIENT_ID and VM_SYNC_KAFKA__OAUTH_CLIENT_SECRET." in refused[1]
    assert away[0] == 3
    assert "the connection was refused" in away[1]
    assert [text.count("\n") for _, text in (refused, away)] == [1, 1]


# ---------------------------------------------------------------- vm-sync check


async def checked(place: Place, topic_name: TopicNamer, **settings: str) -> dict[str, Result]:
    given = load_for_kafka(place.settings(**settings)).kafka
    names = TopicNames(
        **{name: topic_name(name) for name in ("requests", "completed", "failed", "dead_letter", "journal")}
    )
    checks = KafkaChecks(place.connection(**settings), settings=given, names=names, clock=Clock())
    return {result.check: result async for result in checks.results()}


async def test_the_check_says_where_the_token_is_from_and_when_it_expires(place: Place, topic_name: TopicNamer) -> None:
    found = await checked(place, topic_name)

    assert re.fullmatch(
        rf"There is a token from {re.escape(place.tokens.url)} \(VM_SYNC_KAFKA__OAUTH_TOKEN_URL\) for the client "
        rf"{CLIENT}; it expires at 20..-..-.. ..:..:..Z, in (59|60) min\.",
        found["OAuth token"].text,
    )
    assert found["login"].status is Status.OK
    assert found["login"].text == "Logged in as the token's user with OAUTHBEARER, SASL_PLAINTEXT."
    assert list(found).index("OAuth token") < list(found).index("login")
    assert not [secret for secret in secrets_of(place) for result in found.values() if secret in result.text]


async def test_the_check_tells_a_refusal_of_the_server_from_one_of_kafka_and_from_silence(
    place: Place, topic_name: TopicNamer
) -> None:
    wrong = await checked(place, topic_name, OAUTH_CLIENT_SECRET="wrong")
    place.tokens.claims = {"aud": "another-cluster"}
    refused = await checked(place, topic_name)
    await place.tokens.stop()
    away = await checked(place, topic_name)

    assert (wrong["OAuth token"].status, wrong["OAuth token"].answered) == (Status.FAILURE, True)
    assert wrong["OAuth token"].settings == ("VM_SYNC_KAFKA__OAUTH_CLIENT_ID", "VM_SYNC_KAFKA__OAUTH_CLIENT_SECRET")
    assert wrong["login"].status is Status.SKIPPED
    assert refused["OAuth token"].status is Status.OK
    assert (refused["login"].status, refused["login"].answered) == (Status.FAILURE, True)
    assert "refuses the OAuth token" in refused["login"].text
    assert (away["OAuth token"].status, away["OAuth token"].answered) == (Status.FAILURE, False)


async def test_the_check_warns_of_a_token_file_that_has_expired(
    place: Place, topic_name: TopicNamer, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(place.tokens.issue(exp=1_000_000_000))

    found = await checked(place, topic_name, OAUTH_TOKEN_FILE=str(tmp_path / "token"))

    assert found["OAuth token"].status is Status.WARNING
    assert "expired at 2001-09-09 01:46:40Z" in found["OAuth token"].text
    assert found["login"].status is Status.FAILURE
    assert "VM_SYNC_KAFKA__OAUTH_TOKEN_FILE" in found["login"].text
