"""A Kafka that lacks what the service needs: refused by name; where it doesn't say, a warning."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from service.kafka.connection import KafkaConnection
from service.kafka.topics import Advice, Created, Refusal, TopicNames, Unsupported, ensure_topics
from service.sandbox.kafka import EmbeddedKafka, KafkaError
from tests.conftest import TopicNamer, missing
from tests.support.lacking_kafka import DESCRIBE_CONFIGS, LackingKafka

pytestmark = pytest.mark.kafka

INIT_PRODUCER_ID = 22


@pytest.fixture(scope="module")
def door() -> LackingKafka:
    return LackingKafka()


@pytest.fixture(scope="module")
def behind(door: LackingKafka) -> Iterator[EmbeddedKafka]:
    kafka = EmbeddedKafka(listeners={"RELAYED": "PLAINTEXT"})
    kafka.advertise("RELAYED", door.address)
    try:
        kafka.start()
    except KafkaError as error:
        missing(str(error))
    else:
        yield kafka
    finally:
        kafka.close()


@pytest.fixture
async def lacking(door: LackingKafka, behind: EmbeddedKafka) -> AsyncIterator[LackingKafka]:
    door.without, door.settings = set(), None
    async with door.before(behind.address("RELAYED")):
        yield door


def names_of(topic_name: TopicNamer) -> TopicNames:
    fields = ("requests", "completed", "failed", "dead_letter", "journal")
    return TopicNames(**{field: topic_name(field) for field in fields})


async def ensured(lacking: LackingKafka, names: TopicNames) -> list[Any]:
    connection = KafkaConnection(bootstrap_servers=(lacking.address,))
    return await ensure_topics(connection, names=names, partitions=1, create=True)


async def test_a_kafka_without_transactions_is_refused_by_name(lacking: LackingKafka, topic_name: TopicNamer) -> None:
    lacking.without = {INIT_PRODUCER_ID}

    [finding] = await ensured(lacking, names_of(topic_name))

    assert isinstance(finding, Unsupported)
    assert "no transactions" in finding.text
    assert "InitProducerId" in finding.text


@pytest.mark.e2e
@pytest.mark.parametrize("command", [("run",), ("topics", "check")], ids=" ".join)
async def test_the_exit_code_is_2_and_there_is_no_traceback_where_transactions_are_missing(
    command: tuple[str, ...], lacking: LackingKafka, topic_name: TopicNamer
) -> None:
    lacking.without = {INIT_PRODUCER_ID}
    settings = {
        "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": lacking.address,
        "VM_SYNC_TOPICS__REQUESTS": topic_name("requests"),
        "VM_SYNC_VCDA__URL": "http://127.0.0.1:1",
        "VM_SYNC_VCDA__CREDENTIALS__USER": "administrator@System",
        "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": "nobody's",
        "VM_SYNC_OPS__HOST": "127.0.0.1",
        "VM_SYNC_OPS__PORT": "0",
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service.cli",
        *command,
        env=os.environ | settings,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(child.communicate(), 120)
    finally:
        if child.returncode is None:
            child.kill()
    said = output.decode()

    assert child.returncode == 2, said
    assert "no transactions" in said
    assert "Traceback" not in said


NULL = {"min.insync.replicas", "cleanup.policy", "max.message.bytes", "unclean.leader.election.enable"}


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda entries: [(one[0], None if one[0] in NULL else one[1], *one[2:]) for one in entries], "cleanup.policy"),
        (lambda entries: [(one[0], "" if one[0] in NULL else one[1], *one[2:]) for one in entries], "cleanup.policy"),
        (lambda entries: [one for one in entries if one[0] not in NULL], "cleanup.policy"),
        (lambda _: [], "cleanup.policy"),
    ],
    ids=["null", "empty", "incomplete", "none at all"],
)
async def test_settings_that_kafka_does_not_tell_are_a_warning(
    edit: Any, says: str, lacking: LackingKafka, topic_name: TopicNamer
) -> None:
    names = names_of(topic_name)
    lacking.settings = edit

    found = await ensured(lacking, names)

    assert len([finding for finding in found if isinstance(finding, Created)]) == 5
    assert not [finding for finding in found if isinstance(finding, Refusal)]
    assert any(
        isinstance(finding, Advice) and says in finding.text and names.journal in finding.text for finding in found
    )


async def test_a_kafka_that_has_no_request_for_settings_is_a_warning(
    lacking: LackingKafka, topic_name: TopicNamer
) -> None:
    names = names_of(topic_name)
    lacking.without = {DESCRIBE_CONFIGS}

    found = await ensured(lacking, names)

    assert not [finding for finding in found if isinstance(finding, Refusal)]
    assert [finding for finding in found if isinstance(finding, Advice) and "DescribeConfigs" in finding.text]


async def test_a_kafka_that_does_not_compact_is_refused(lacking: LackingKafka, topic_name: TopicNamer) -> None:
    """It takes the setting when the topic is created, and keeps to its own."""
    lacking.settings = lambda entries: [
        (one[0], "delete" if one[0] == "cleanup.policy" else one[1], *one[2:]) for one in entries
    ]

    found = await ensured(lacking, names_of(topic_name))

    [refusal] = [finding for finding in found if isinstance(finding, Refusal)]
    assert "cleanup.policy=delete" in refusal.text
