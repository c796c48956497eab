"""The topics: what is made, what is refused, what is advised."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaError,
    NodeNotReadyError,
    NotControllerError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
)

from service.kafka import topics
from service.kafka.connection import KafkaConnection
from service.kafka.denials import Account
from service.kafka.topic_descriptions import Described, Topic, cleanup_policy, describe, partitions_of
from service.kafka.topics import Advice, Created, Finding, Refusal, TopicNames, ensure_topics, judge
from service.sandbox.kafka import Kafka
from tests.conftest import TopicNamer
from tests.support.cluster import Cluster
from tests.support.virtual_time import now, virtual

NAMES = TopicNames(requests="requests", completed="completed", failed="failed", dead_letter="dead", journal="journal")
GOOD = Topic(
    partitions=12,
    replicas=3,
    settings={"cleanup.policy": "delete", "min.insync.replicas": "2", "max.message.bytes": "1048588"},
)
ALL_GOOD = dict.fromkeys(NAMES.all(), GOOD) | {
    "journal": replace(GOOD, settings={"cleanup.policy": "compact", "min.insync.replicas": "2"})
}


def _with(topic: Topic, **settings: str) -> Topic:
    return replace(topic, settings={**(topic.settings or {}), **{k.replace("_", "."): v for k, v in settings.items()}})


def test_topics_that_fit_leave_nothing_to_say() -> None:
    assert judge(ALL_GOOD, names=NAMES) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"requests": replace(GOOD, partitions=13)}, "Raise journal to 13"),
        ({"requests": replace(GOOD, partitions=11)}, "Raise requests to 12"),
        ({"journal": GOOD}, "cleanup.policy=delete"),
        ({"journal": _with(GOOD, cleanup_policy="compact,delete")}, "cleanup.policy=compact,delete"),
        ({"dead": _with(GOOD, cleanup_policy="compact,delete")}, "dead has cleanup.policy=compact,delete, so Kafka"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Topic], says: str) -> None:
    [finding] = [found for found in judge(ALL_GOOD | change, names=NAMES) if isinstance(found, Refusal)]

    assert says in finding.text


@pytest.mark.parametrize(
    "change",
    [
        {"requests": _with(GOOD, min_insync_replicas="1")},
        {"dead": replace(GOOD, settings={"cleanup.policy": "delete", "min.insync.replicas": "2"})},
    ],
    ids=["senders, not the service, rely on it", "the largest message is unknown"],
)
def test_what_does_not_concern_the_service_or_is_unknown_is_no_advice(change: dict[str, Topic]) -> None:
    assert judge(ALL_GOOD | change, names=NAMES) == []


def test_a_journal_whose_cleanup_policy_kafka_does_not_tell_is_to_be_checked_by_people() -> None:
    [finding] = judge(ALL_GOOD | {"journal": replace(GOOD, settings={"min.insync.replicas": "2"})}, names=NAMES)
    assert isinstance(finding, Advice)
    assert "Kafka doesn't tell the cleanup.policy of the journal journal" in finding.text


@pytest.mark.parametrize(("brokers", "replicas", "in_sync"), [(1, 1, "1"), (2, 2, "1"), (3, 3, "2"), (5, 3, "2")])
async def test_a_new_topic_is_on_two_of_three_brokers_before_a_message_is_acknowledged(
    brokers: int, replicas: int, in_sync: str
) -> None:
    cluster = SimpleNamespace(brokers=lambda: range(brokers))
    admin = SimpleNamespace(_client=SimpleNamespace(cluster=cluster))
    names = replace(NAMES, control="control")
    seen = Described({"requests": _with(GOOD, max_message_bytes="2000000")}, hidden={"failed"})

    made = await topics._new_topics(admin, seen, names=names, partitions=4, journal=12)

    assert {topic.name: topic.num_partitions for topic in made} == {
        "completed": 4,
        "dead": 4,
        "journal": 12,
        "control": 1,
    }
    assert {topic.replication_factor for topic in made} == {replicas}
    settings = {topic.name: topic.topic_configs for topic in made}
    assert {some["min.insync.replicas"] for some in settings.values()} == {in_sync}
    assert {some["unclean.leader.election.enable"] for some in settings.values()} == {"false"}
    assert {name: some.get("cleanup.policy") for name, some in settings.items()} == {
        "completed": None,
        "dead": None,
        "journal": "compact",
        "control": "compact",
    }
    assert settings["dead"]["max.message.bytes"] == str(2_000_000 + topics.HEADER_ROOM)


def test_each_topic_is_read_or_written_and_named_by_its_setting() -> None:
    names = replace(NAMES, control="control")
    assert [str(names.right(name)) for name in ("requests", "control", "journal", "completed")] == [
        "Read on topic requests",
        "Read on topic control",
        "Write on topic journal",
        "Write on topic completed",
    ]
    assert names.settings() == {
        "requests": "VM_SYNC_TOPICS__REQUESTS",
        "completed": "VM_SYNC_TOPICS__COMPLETED",
        "failed": "VM_SYNC_TOPICS__FAILED",
        "dead": "VM_SYNC_TOPICS__DEAD_LETTER",
        "journal": "VM_SYNC_TOPICS__JOURNAL",
        "control": "VM_SYNC_TOPICS__CONTROL",
    }


def test_the_topic_for_progress_is_needed_where_it_is_named() -> None:
    assert "progress" not in NAMES.all()

    [finding] = judge(ALL_GOOD, names=replace(NAMES, progress="progress"))

    assert isinstance(finding, Refusal)
    assert "progress doesn't exist" in finding.text


def test_the_control_topic_is_wanted_where_it_is_named_and_the_service_works_without_it() -> None:
    names = replace(NAMES, control="control")

    [finding] = judge(ALL_GOOD, names=names)

    assert isinstance(finding, Advice)
    assert "The topic control doesn't exist" in finding.text
    assert "Until then no site can be paused; everything else works." in finding.text
    fitting = replace(ALL_GOOD["journal"], partitions=1)
    compacted = ALL_GOOD | {"control": fitting}
    assert judge(compacted, names=names) == []
    [finding] = judge(ALL_GOOD | {"control": replace(GOOD, partitions=1)}, names=names)
    assert isinstance(finding, Advice)
    assert "control has cleanup.policy=delete" in finding.text
    assert not [
        found
        for found in judge(compacted | {"control": replace(fitting, replicas=1)}, names=names)
        if isinstance(found, Refusal)
    ]


def test_a_control_topic_with_several_partitions_is_advised_against() -> None:
    two = replace(ALL_GOOD["journal"], partitions=2)

    [finding] = judge(ALL_GOOD | {"control": two}, names=replace(NAMES, control="control"))

    assert isinstance(finding, Advice)
    assert finding.text.startswith("The control topic control has 2 partitions and must have 1: ")


def test_a_missing_topic_is_refused_with_the_way_out() -> None:
    topics = {name: topic for name, topic in ALL_GOOD.items() if name != "dead"}

    [finding] = judge(topics, names=NAMES)

    assert isinstance(finding, Refusal)
    assert "dead doesn't exist" in finding.text
    assert "VM_SYNC_KAFKA__CREATE_TOPICS=true" in finding.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"completed": replace(GOOD, replicas=2)}, "Fewer than 3 replicas"),
        ({"completed": replace(GOOD, settings=None)}, "DescribeConfigs"),
        ({"completed": _with(GOOD, min_insync_replicas="1")}, "min.insync.replicas=1"),
        ({"journal": _with(ALL_GOOD["journal"], unclean_leader_election_enable="true")}, "Unclean leader election"),
        ({"requests": _with(GOOD, cleanup_policy="compact")}, "delete all but the latest"),
        ({"failed": _with(GOOD, min_insync_replicas="4")}, "or lower min.insync.replicas: failed (3)."),
        ({"dead": _with(GOOD, max_message_bytes="65536")}, "written without its value"),
        ({"failed": _with(GOOD, cleanup_policy="compact")}, "only the latest outcome of each replication"),
    ],
)
def test_what_weakens_a_promise_is_advised_against(change: dict[str, Topic], says: str) -> None:
    [finding] = judge(ALL_GOOD | change, names=NAMES)

    assert isinstance(finding, Advice)
    assert says in finding.text


@pytest.mark.parametrize(
    "names",
    [
        replace(NAMES, completed="requests"),
        replace(NAMES, failed="requests"),
        replace(NAMES, failed="journal"),
        replace(NAMES, dead_letter="requests"),
        replace(NAMES, journal="dead"),
        replace(NAMES, progress="requests"),
        replace(NAMES, progress="failed"),
        replace(NAMES, control="journal"),
    ],
)
async def test_names_that_would_mix_topics_are_refused_before_kafka_is_asked(names: TopicNames) -> None:
    nowhere = KafkaConnection(bootstrap_servers=("127.0.0.1:1",))

    [finding] = await ensure_topics(nowhere, names=names, partitions=1, create=True)

    assert isinstance(finding, Refusal)


def test_a_connection_never_shows_its_password() -> None:
    connection = KafkaConnection(bootstrap_servers=("kafka:9092",), security={"sasl_plain_password": "hunter2"})

    assert "hunter2" not in repr(connection)


# ---------------------------------------------------------------- against a real Kafka


def _here(kafka: Kafka, topic_name: TopicNamer) -> tuple[KafkaConnection, TopicNames]:
    names = TopicNames(
        **{field: topic_name(field) for field in ("requests", "completed", "dead_letter", "journal", "control")},
        failed=topic_name("completed"),
    )
    return KafkaConnection(bootstrap_servers=tuple(kafka.bootstrap.split(","))), names


async def _topics(connection: KafkaConnection, names: TopicNames) -> dict[str, Topic]:
    admin = AIOKafkaAdminClient(**connection.arguments())
    await admin.start()
    try:
        return (await describe(admin, names.all())).topics
    finally:
        await admin.close()


async def _create(connection: KafkaConnection, name: str, partitions: int, **settings: str) -> None:
    admin = AIOKafkaAdminClient(**connection.arguments())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings)])
        await topics._settled(admin, [name])
    finally:
        await admin.close()


def _refusals(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if isinstance(finding, Refusal)]


async def test_missing_topics_are_made_as_the_service_needs_them(kafka: Kafka, topic_name: TopicNamer) -> None:
    connection, names = _here(kafka, topic_name)

    findings = await ensure_topics(connection, names=names, partitions=3, create=True)

    made = await _topics(connection, names)
    assert sorted(made) == sorted(names.all())
    assert len([finding for finding in findings if isinstance(finding, Created)]) == 5
    assert {name: topic.partitions for name, topic in made.items()} == dict.fromkeys(made, 3) | {names.control: 1}
    assert made[str(names.control)].policy == "compact"
    journal = made[names.journal].settings or {}
    assert journal["cleanup.policy"] == "compact"
    assert journal["segment.bytes"] == "33554432"
    assert journal["segment.ms"] == "3600000"
    assert journal["min.cleanable.dirty.ratio"] == "0.1"
    assert journal["unclean.leader.election.enable"] == "false"
    assert made[names.dead_letter].largest > made[names.requests].largest
    assert not _refusals(findings)
    assert not [
        finding
        for finding in await ensure_topics(connection, names=names, partitions=3, create=True)
        if isinstance(finding, Created)
    ]


async def test_a_topic_that_wants_more_replicas_in_sync_than_it_has_is_written_to_and_not_refused(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    """Kafka counts the replicas that there are: the brokers' default may be meant for other topics."""
    connection, names = _here(kafka, topic_name)
    await _create(connection, names.completed, 1, **{"min.insync.replicas": "2"})

    findings = await ensure_topics(connection, names=names, partitions=1, create=True)

    assert not _refusals(findings)
    assert any(f"lower min.insync.replicas: {names.completed} (1)." in finding.text for finding in findings)
    producer = AIOKafkaProducer(**connection.arguments(), transactional_id=topic_name("writer"))
    await producer.start()
    try:
        async with asyncio.timeout(60), producer.transaction():
            await producer.send_and_wait(names.completed, b"an outcome")
    finally:
        await producer.stop()


async def test_looking_does_not_make_anything(kafka: Kafka, topic_name: TopicNamer) -> None:
    connection, names = _here(kafka, topic_name)

    findings = await ensure_topics(connection, names=names, partitions=3, create=False)

    assert len(_refusals(findings)) == 4
    assert await _topics(connection, names) == {}


async def test_a_new_journal_is_as_wide_as_the_requests_topic_that_it_serves(
    kafka: Kafka, topic_name: TopicNamer
) -> None:
    connection, names = _here(kafka, topic_name)
    await _create(connection, names.requests, 5, **{"max.message.bytes": "2000000"})

    findings = await ensure_topics(connection, names=names, partitions=3, create=True)

    made = await _topics(connection, names)
    assert not _refusals(findings)
    assert made[names.journal].partitions == 5
    assert made[names.completed].partitions == 3
    assert made[names.dead_letter].largest > 2_000_000


async def test_two_processes_that_start_at_once_do_not_hinder_each_other(kafka: Kafka, topic_name: TopicNamer) -> None:
    connection, names = _here(kafka, topic_name)

    both = await asyncio.gather(*(ensure_topics(connection, names=names, partitions=3, create=True) for _ in range(2)))

    assert not [refusal for findings in both for refusal in _refusals(findings)]


async def test_what_kafka_itself_refuses_is_told_in_its_words(kafka: Kafka, topic_name: TopicNamer) -> None:
    connection, names = _here(kafka, topic_name)
    impossible = replace(names, journal=topic_name("not a name for a topic"))

    [refusal] = _refusals(await ensure_topics(connection, names=impossible, partitions=3, create=True))

    assert isinstance(refusal, Refusal)
    assert "Creating the topic" in refusal.text


async def test_three_processes_that_start_at_once_on_three_brokers_find_all_topics(
    cluster: Cluster, topic_name: TopicNamer
) -> None:
    connection = KafkaConnection(bootstrap_servers=tuple(cluster.bootstrap.split(",")))
    fields = ("requests", "completed", "failed", "dead_letter", "journal")
    for number in range(6):
        names = TopicNames(**{field: topic_name(f"{field}-{number}") for field in fields})

        found = await asyncio.gather(
            *(ensure_topics(connection, names=names, partitions=12, create=True) for _ in range(3))
        )

        assert not [refusal for findings in found for refusal in _refusals(findings)]
        made = {finding.topic for findings in found for finding in findings if isinstance(finding, Created)}
        assert made == set(names.all())


@pytest.mark.parametrize("answer", [TopicAuthorizationFailedError.errno, IncompatibleBrokerVersion("none")])
async def test_a_policy_that_kafka_does_not_tell_is_unknown_and_no_error(answer: int | Exception) -> None:
    async def send(*_: object) -> SimpleNamespace:
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(resources=[(answer, "", 2, "journal", [])])

    client = SimpleNamespace(cluster=SimpleNamespace(brokers=lambda: [SimpleNamespace(nodeId=1)]), send=send)

    assert await cleanup_policy(client, "journal") is None
    assert topics.not_compacted("journal", None) is None


class Brokers:
    """A client of some brokers. Each answers or fails after some seconds, in the order in which they are asked.

    There are as many as `answers`, or as `count`: then they are asked for more than one thing.
    """

    def __init__(self, *answers: tuple[float, KafkaError | None], count: int | None = None) -> None:
        self._answers = iter(answers)
        nodes = [SimpleNamespace(nodeId=node) for node in range(count or len(answers))]
        self.asked: list[float] = []
        self.given_up = 0
        self.cluster = SimpleNamespace(brokers=lambda: nodes)

    async def send(self, *_: object) -> SimpleNamespace:
        self.asked.append(now())
        seconds, error = next(self._answers)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if error is not None:
            raise error
        partitions = [{"partition": number, "leader": 1, "replicas": [1]} for number in (0, 1)]
        topics = [{"topic": "requests", "error_code": 0, "partitions": partitions}]
        settings = [(0, "", 2, "requests", [("cleanup.policy", "delete")])]
        return SimpleNamespace(to_object=lambda: {"topics": topics}, resources=settings)


ANSWERS = (0.1, None)
HANGS = (20.0, RequestTimedOutError())
FAILS = (0.0, NodeNotReadyError())


@virtual
async def test_a_broker_that_answers_is_the_only_one_asked_for_partitions() -> None:
    brokers = Brokers((0.9, None), HANGS)

    assert await partitions_of(brokers, "requests") == {0, 1}
    assert brokers.asked == [0.0]


@virtual
async def test_brokers_that_hang_cost_a_second_each() -> None:
    brokers = Brokers(HANGS, HANGS, HANGS, (0.1, None))

    assert await partitions_of(brokers, "requests") == {0, 1}
    assert (brokers.asked, now()) == ([0.0, 1.0, 2.0, 3.0], 3.1)
    await asyncio.sleep(0)
    assert brokers.given_up == 3, "nothing is left waiting for them"


@virtual
async def test_brokers_that_fail_cost_nothing_and_a_slow_answer_is_still_one() -> None:
    brokers = Brokers((2.5, None), FAILS, FAILS)

    assert await partitions_of(brokers, "requests") == {0, 1}
    assert (brokers.asked, now()) == ([0.0, 1.0, 1.0], 2.5)


@virtual
async def test_a_topic_is_described_with_its_settings_while_a_broker_is_away() -> None:
    all_of_them = [ANSWERS, ANSWERS, FAILS]
    brokers = Brokers(*all_of_them, FAILS, ANSWERS, count=3)  # the one that is away is asked first for the settings

    seen = await describe(SimpleNamespace(_client=brokers), ["requests"])

    assert seen.topics["requests"].policy == "delete"


@virtual
async def test_where_no_broker_answers_that_is_known_within_one_time_out_and_a_second_a_broker() -> None:
    brokers = Brokers(HANGS, HANGS, HANGS)

    with pytest.raises(RequestTimedOutError):
        await partitions_of(brokers, "requests")
    assert now() == 22.0
    with pytest.raises(NodeNotReadyError):
        await partitions_of(Brokers(), "requests")


@pytest.mark.parametrize("left", [False, True])
async def test_a_topic_that_cannot_be_created_for_want_of_a_controller_is_a_failure_of_kafka(left: bool) -> None:
    """Metadata name none while one is being elected, and Kafka's client takes it for granted."""
    admin = AIOKafkaAdminClient(bootstrap_servers="127.0.0.1:1")

    async def update() -> bool:
        admin._client.cluster.controller = None
        return True

    async def refuse(*_: object) -> None:
        raise NotControllerError

    admin._client.force_metadata_update, admin._send_request_to_node = update, refuse
    admin._client.cluster.controller = SimpleNamespace(nodeId=0) if left else None

    with pytest.raises(KafkaError, match="no controller"):
        await topics._create(admin, [NewTopic("requests", 1, 1)], names=NAMES, account=Account())
