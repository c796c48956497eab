"""TLS and logins at a real Kafka: what is accepted does the whole job, what isn't is told by the setting's name."""

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka.errors import KafkaError as AiokafkaError

from service.kafka.connection import KafkaConnection
from service.kafka.diagnosis import diagnosis, overheard
from service.kafka.topics import Created, Finding, Refusal, TopicNames, ensure_topics
from service.sandbox.kafka import EmbeddedKafka, KafkaError
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from service.settings import KafkaSettings, kafka_security, load_for_kafka
from tests.conftest import TopicNamer, missing
from tests.support.brokers import PASSWORD, USER, Certificates, certificates, secured
from tests.support.process_harness import Ledger, appliance, counts, run_command

pytestmark = pytest.mark.kafka

WRONG = "Wrong-Secret-4712"
SECRETS = (PASSWORD, json.dumps(PASSWORD)[1:-1], WRONG, "PRIVATE KEY")
PREFIX = "VM_SYNC_KAFKA__"
SHORT = Plan(queued=Durations.of(0), duration=Durations.of(0.3))


@dataclass(frozen=True, slots=True)
class Place:
    """The Kafka of this module, and the certificates around it."""

    kafka: EmbeddedKafka
    files: Certificates

    def settings(self, listener: str, protocol: str, **more: str) -> dict[str, str]:
        """Say how to reach a listener; `@name` is one of the certificates."""
        given = {"BOOTSTRAP_SERVERS": self.kafka.address(listener), "SECURITY_PROTOCOL": protocol, **more}
        return {
            PREFIX + name: str(getattr(self.files, text[1:])) if text.startswith("@") else text
            for name, text in given.items()
        }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("certificates")
    files = certificates(folder)
    kafka = secured(folder)
    try:
        kafka.start()
    except KafkaError as error:
        missing(str(error))
    else:
        yield Place(kafka, files)
    finally:
        kafka.close()


def login(mechanism: str, password: str = PASSWORD) -> dict[str, str]:
    return {"SASL_MECHANISM": mechanism, "SASL_USERNAME": USER, "SASL_PASSWORD": password}


TRUSTED = {"SSL_CA_FILE": "@authority"}

ACCEPTED = {
    "tls": ("TLS", "SSL", TRUSTED),
    "mutual tls": ("MUTUAL", "SSL", TRUSTED | {"SSL_CERT_FILE": "@own"}),
    "a plain login, in the clear": ("LOGIN", "SASL_PLAINTEXT", login("PLAIN")),
    "a plain login over tls": ("LOGIN_TLS", "SASL_SSL", TRUSTED | login("PLAIN")),
    "scram-sha-256 over tls": ("LOGIN_TLS", "SASL_SSL", TRUSTED | login("SCRAM-SHA-256")),
    "scram-sha-512 over tls": ("SCRAM_ONLY", "SASL_SSL", TRUSTED | login("SCRAM-SHA-512")),
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_topics_are_made_over(name: str, place: Place, topic_name: TopicNamer) -> None:
    listener, protocol, more = ACCEPTED[name]

    made = await ensure(load_for_kafka(place.settings(listener, protocol, **more)), topic_name)

    assert len([finding for finding in made if isinstance(finding, Created)]) == 5
    assert not [finding for finding in made if isinstance(finding, Refusal)]


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["mutual tls", "a plain login over tls", "scram-sha-512 over tls"])
async def test_requests_go_all_the_way_over(name: str, place: Place, topic_name: TopicNamer) -> None:
    listener, protocol, more = ACCEPTED[name]
    async with (
        Simulator(appliance(SHORT)) as vcda,
        Ledger(bootstrap=place.kafka.bootstrap, simulator=vcda, prefix=topic_name("secure"), partitions=1) as ledger,
    ):
        process = ledger.start(command=(), **place.settings(listener, protocol, **more))
        await ledger.ready(process, within=120)
        await ledger.ask_all([(f"op-{n}", f"C4-{uuid.uuid4()}") for n in range(2)])
        told = await ledger.wait(within=60)
        code = await process.stop()
        verdict = await ledger.judge()

        assert counts(told) == {"completed": 2}
        assert verdict.violations == []
        assert code == 0
        assert not [secret for secret in SECRETS if secret in process.text()]


REFUSED = {
    "an authority that the system doesn't know": ("TLS", "SSL", {}, "SSL_CA_FILE"),
    "another authority": ("TLS", "SSL", {"SSL_CA_FILE": "@another_authority"}, "SSL_CA_FILE"),
    "a certificate that has expired": ("EXPIRED", "SSL", TRUSTED, r"has expired\): install a new certificate"),
    "a certificate of another host": (
        "ELSEWHERE",
        "SSL",
        TRUSTED,
        "for '127.0.0.1'.+certificates in VM_SYNC_KAFKA__BOOTSTRAP",
    ),
    "no certificate where one is wanted": ("MUTUAL", "SSL", TRUSTED, "require a client certificate.+SSL_CERT_FILE"),
    "a certificate of our own that they don't know": (
        "MUTUAL",
        "SSL",
        TRUSTED | {"SSL_CERT_FILE": "@own_of_another"},
        "accept the certificate of VM_SYNC_KAFKA__SSL_CERT_FILE",
    ),
    "a wrong plain password": (
        "LOGIN_TLS",
        "SASL_SSL",
        TRUSTED | login("PLAIN", WRONG),
        f"refuses the login of {USER}: .+SASL_PASSWORD",
    ),
    "a wrong password for scram": (
        "LOGIN_TLS",
        "SASL_SSL",
        TRUSTED | login("SCRAM-SHA-512", WRONG),
        f"refuses the login of {USER}: .+SASL_PASSWORD",
    ),
    "a mechanism that isn't enabled": (
        "SCRAM_ONLY",
        "SASL_SSL",
        TRUSTED | login("PLAIN"),
        "does not support the SASL mechanism PLAIN: change VM_SYNC_KAFKA__SASL_MECHANISM",
    ),
    "no tls where tls is spoken": ("TLS", "PLAINTEXT", {}, "closes the connection.+SECURITY_PROTOCOL=PLAINTEXT"),
    "tls where none is spoken": ("PLAINTEXT", "SSL", TRUSTED, "SECURITY_PROTOCOL"),
    "no login where one is wanted": ("LOGIN", "PLAINTEXT", {}, "closes the connection.+SECURITY_PROTOCOL=PLAINTEXT"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_the_setting_is_named_of(name: str, place: Place, topic_name: TopicNamer) -> None:
    listener, protocol, more, expected = REFUSED[name]
    settings = load_for_kafka(place.settings(listener, protocol, **more))
    with overheard() as errors, pytest.raises(AiokafkaError) as raised:
        await ensure(settings, topic_name)

    sentence = diagnosis(raised.value, errors, kafka=settings.kafka)

    assert re.search(expected, sentence)
    assert "VM_SYNC_KAFKA__" in sentence or "on the brokers" in sentence
    assert not [secret for secret in SECRETS if secret in sentence]


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["another authority", "a wrong password for scram"])
async def test_a_process_tries_again_and_then_ends_with_a_sentence_about(name: str, place: Place) -> None:
    listener, protocol, more, expected = REFUSED[name]
    async with (
        Simulator(appliance(SHORT)) as vcda,
        Ledger(bootstrap=place.kafka.bootstrap, simulator=vcda, prefix="refused", partitions=1) as ledger,
    ):
        process = ledger.start(command=(), **place.settings(listener, protocol, **more, START_LIMIT="PT3S"))
        code = await process.ended(within=120)
        text = process.text()
        lines = [json.loads(line) for line in text.splitlines()]
        said = [line for line in lines if line["logger"] == "service.app" and line["level"] != "INFO"]

        assert code == 1
        assert [line["level"] for line in said] == ["WARNING"] * (len(said) - 1) + ["ERROR"]
        assert all(re.search(expected, line["message"]) for line in said)
        assert "VM_SYNC_KAFKA__START_LIMIT" in said[-1]["message"]
        assert not [secret for secret in SECRETS if secret in text]
        assert "Traceback" not in text
        assert set(vcda.world.counters()["calls"]) <= {"login", "logout"}  # a login is tried from the start


async def ensure(settings: KafkaSettings, topic_name: TopicNamer) -> list[Finding]:
    """Do the first thing that the service does with a Kafka."""
    connection = KafkaConnection(bootstrap_servers=tuple(settings.kafka.servers), security=kafka_security(settings))
    return await ensure_with(connection, topic_name)


async def ensure_with(connection: KafkaConnection, topic_name: TopicNamer) -> list[Finding]:
    names = TopicNames(
        **{name: topic_name(name) for name in ("requests", "completed", "failed", "dead_letter", "journal")}
    )
    return await ensure_topics(connection, names=names, partitions=1, create=True)


# ---------------------------------------------------------------- replaced on disk

REPLACED = {
    "the authority's certificate": ("TLS", "SSL_CA_FILE", "another_authority", "authority"),
    "our own certificate": ("MUTUAL", "SSL_CERT_FILE", "own_of_another", "own"),
}


@pytest.mark.parametrize("name", REPLACED)
async def test_a_new_connection_uses_the_file_as_it_is_by_then_of(
    name: str, place: Place, topic_name: TopicNamer, tmp_path: Path
) -> None:
    listener, setting, before, afterwards = REPLACED[name]
    file = tmp_path / "replaced.pem"
    shutil.copy(getattr(place.files, before), file)
    settings = load_for_kafka(place.settings(listener, "SSL", **TRUSTED | {setting: str(file)}))
    connection = KafkaConnection(bootstrap_servers=tuple(settings.kafka.servers), security=kafka_security(settings))
    with pytest.raises(AiokafkaError):
        await ensure_with(connection, topic_name)

    shutil.copy(getattr(place.files, afterwards), file)
    made = await ensure_with(connection, topic_name)

    assert len([finding for finding in made if isinstance(finding, Created)]) == 5


# ---------------------------------------------------------------- the commands


@pytest.mark.e2e
async def test_the_commands_log_in_as_the_service_does(place: Place, topic_name: TopicNamer) -> None:
    secure = place.settings("LOGIN_TLS", "SASL_SSL", **TRUSTED, **login("SCRAM-SHA-256"))
    async with (
        Simulator(appliance(SHORT)) as vcda,
        Ledger(bootstrap=place.kafka.bootstrap, simulator=vcda, prefix=topic_name("secure"), partitions=1) as ledger,
    ):
        await ledger.ready(ledger.start(command=(), **secure), within=120)
        environment = ledger.environment(**secure)
        asked = await run_command(
            environment, "request", f"C4-{uuid.uuid4()}", "--operation-id", "op-1", "--wait", "--timeout", "30"
        )
        listed = await run_command(environment, "list", "--json")

    assert asked[0] == 0, asked
    assert listed[0] == 0, listed
    assert "op-1" in listed[1]
    assert PASSWORD not in asked[1] + listed[1]


@pytest.mark.e2e
async def test_the_commands_name_the_setting_of_a_login_that_is_refused(place: Place) -> None:
    secure = place.settings("LOGIN_TLS", "SASL_SSL", **TRUSTED, **login("SCRAM-SHA-256", WRONG))

    code, text = await run_command(secure, "list")

    assert code == 3
    assert text.count("\n") == 1
    assert "VM_SYNC_KAFKA__SASL_PASSWORD" in text
    assert WRONG not in text
