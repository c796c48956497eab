"""The embedded Kafka of several brokers, and of other versions: what tests rely on."""

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAuthorizationFailedError

from service.sandbox.kafka import EmbeddedKafka, KafkaError
from tests.conftest import TopicNamer, missing
from tests.support.cluster import PASSWORDS, SERVICE, Cluster


async def _create(cluster: Cluster, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 3)])
    finally:
        await admin.close()


async def test_another_broker_leads_once_the_leader_was_killed_and_what_was_committed_stays(
    cluster: Cluster, topic_name: TopicNamer
) -> None:
    topic, group = topic_name("memory"), topic_name("group")
    await _create(cluster, topic)
    producer = AIOKafkaProducer(bootstrap_servers=cluster.bootstrap, transactional_id=topic)
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=cluster.bootstrap,
        group_id=group,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"kept", partition=0)
    finally:
        await producer.stop()

    leader = await cluster.leader(topic)
    pid = leader.pid
    await cluster.run(leader.kill)
    assert leader.pid is None
    await consumer.start()
    try:
        record = await consumer.getone()
    finally:
        await consumer.stop()

    assert record.value == b"kept"
    assert (await cluster.leader(topic)).id != leader.id
    assert (await cluster.coordinator(group)).id != leader.id
    assert (await cluster.transaction_coordinator(topic)).id != leader.id
    await cluster.heal()
    assert leader.pid not in {None, pid}


async def test_partitions_move_settings_change_and_quotas_hold_as_an_operator_wants(
    cluster: Cluster, topic_name: TopicNamer
) -> None:
    topic = topic_name("managed")
    await _create(cluster, topic)
    (replicas,) = (await cluster.replicas(topic)).values()
    turned = [*replicas[1:], replicas[0]]

    await cluster.reassign(topic, {0: turned[:2]})
    async with asyncio.timeout(60):
        while await cluster.replicas(topic) != {0: turned[:2]}:
            await asyncio.sleep(0.1)
    await cluster.reassign(topic, {0: turned})
    await cluster.heal()
    await cluster.elect_leaders(topic)
    await cluster.alter_topic(topic, max_message_bytes="20000", retention_ms="3600000")
    changed = await cluster.topic_settings(topic, "max_message_bytes", "compression_type")
    await cluster.alter_topic(topic, max_message_bytes=None, retention_ms=None)
    await cluster.throttle(SERVICE, producer_byte_rate=50_000.0)
    await cluster.throttle(SERVICE, producer_byte_rate=None)

    assert await cluster.replicas(topic) == {0: turned}
    assert (await cluster.leader(topic)).id == turned[0]
    assert changed == {"max_message_bytes": "20000", "compression_type": None}
    assert await cluster.topic_settings(topic, "max_message_bytes") == {"max_message_bytes": None}


def _environment(pid: int | None) -> bytes:
    file = Path(f"/proc/{pid}/environ")
    if not file.exists():
        missing("environments of processes are read from /proc")
    return file.read_bytes()


async def test_a_broker_can_be_run_within_another_command(cluster: Cluster) -> None:
    broker = cluster.broker(1)
    broker.run_within("/usr/bin/env", "SEEN=from-outside")
    try:
        await cluster.run(broker.restart)
        assert b"SEEN=from-outside" in _environment(broker.pid)
    finally:
        broker.run_within()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_who_logs_in_may_do_only_what_is_granted(
    mechanism: str, cluster: Cluster, topic_name: TopicNamer
) -> None:
    topic = topic_name("guarded")
    await _create(cluster, topic)
    producer = AIOKafkaProducer(
        bootstrap_servers=cluster.login,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism=mechanism,
        sasl_plain_username=SERVICE,
        sasl_plain_password=PASSWORDS[SERVICE],
    )
    await producer.start()
    try:
        with pytest.raises(TopicAuthorizationFailedError):
            await producer.send_and_wait(topic, b"not allowed")
    finally:
        await producer.stop()


@pytest.mark.parametrize("version", ["2.8.0", "3.6.2", "5.0.0", "latest", "4.0", "../4.3.1"])
def test_a_version_that_cannot_be_had_is_refused_before_anything_is_downloaded(version: str) -> None:
    with pytest.raises(KafkaError, match="name one from 3") as caught:
        EmbeddedKafka(version=version)

    assert "\n" not in str(caught.value)
