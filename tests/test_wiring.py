"""The wiring: the settings reach the parts, both doors lead to the same parts, and what doesn't fit is said."""

from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from service import wiring
from service.clock import Clock
from service.intake.group import Intake
from service.kafka.journal_api import StopReason
from service.kafka.progress_publisher import Progress, Progressing
from service.kafka.topics import TopicNames
from service.messages.requests import DeadLetterReason
from service.observability.logs import Redactor
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing
from service.settings import CredentialsReader, load
from service.sync import Policy, Trouble
from service.vcda.lanes import LaneLimits
from tests.support.fake_vcda import ScriptedVcda, World
from tests.support.scripted_http_server import NOT_AUTHENTICATED, TASK_ID, Call, Reply, appliance, script, session
from tests.support.virtual_time import HandClock

ENVIRONMENT = {
    "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": "localhost:9092",
    "VM_SYNC_VCDA__URL": "https://vcda.example",
    "VM_SYNC_VCDA__CREDENTIALS__USER": "sync@org1",
    "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": "a-password-for-tests",
}


def metrics() -> Metrics:
    return Metrics(
        CollectorRegistry(),
        clock=Clock(),
        version="0",
        dead_reasons=list(DeadLetterReason),
        stop_reasons=list(StopReason),
    )


def for_service(**changes: str) -> wiring.ServiceParts:
    return wiring.for_service(
        load(ENVIRONMENT | changes),
        clock=Clock(),
        metrics=metrics(),
        tracing=Tracing(),
        redactor=Redactor(),
        version="0",
    )


async def test_the_settings_reach_the_parts() -> None:
    parts = for_service(
        VM_SYNC_TOPICS__PROGRESS="sync.progress",
        VM_SYNC_TOPICS__JOURNAL="sync.journal",
        VM_SYNC_SYNC__MAX_CONCURRENT_SUBMITS="7",
    )

    assert (parts.topics.journal, parts.topics.progress) == ("sync.journal", "sync.progress")
    assert parts.kafka.arguments()["bootstrap_servers"] == ["localhost:9092"]
    assert isinstance(parts.syncs.progress, Progressing)
    assert isinstance(parts.syncs.make_intake(), Intake)
    await parts.vcda.close()


async def test_without_a_topic_for_it_no_progress_is_published() -> None:
    parts = for_service()

    assert type(parts.syncs.progress) is Progress
    await parts.vcda.close()


async def test_a_login_that_works_again_ends_the_pauses_that_its_failures_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def login(call: Call) -> Reply:
        return session() if call.json()["vcdPassword"] == "new" else Reply(401, NOT_AUTHENTICATED)

    password = tmp_path / "vcda__credentials__password"
    password.write_text("old")
    async with appliance(script(login=login)) as there:
        without = {name: value for name, value in ENVIRONMENT.items() if not name.endswith("PASSWORD")}
        environment = without | {"VM_SYNC_VCDA__URL": there.url, "VM_SYNC_SECRETS_DIR": str(tmp_path)}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)  # they are read again at each login
        parts = wiring.for_service(
            load(environment),
            clock=HandClock(),
            metrics=metrics(),
            tracing=Tracing(),
            redactor=Redactor(),
            version="0",
        )
        lane = parts.syncs.lanes.lane(None)
        seen = await parts.vcda.poll(site=None, ids=[TASK_ID])
        assert isinstance(seen, Trouble)
        lane.record_result(seen)
        assert lane.held_for() > 0.0
        password.write_text("new")

        assert await parts.vcda.unusable() == []
        assert lane.held_for() == 0.0
        await parts.vcda.close()
    parts.syncs.lanes.close()


async def test_a_certificate_that_cannot_be_used_is_a_misfit(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")

    with pytest.raises(wiring.Misfit, match="VM_SYNC_VCDA__CA_FILE"):
        for_service(VM_SYNC_VCDA__CA_FILE=str(broken))
    with pytest.raises(wiring.Misfit, match="VM_SYNC_KAFKA__SSL_"):
        for_service(VM_SYNC_KAFKA__SECURITY_PROTOCOL="SSL", VM_SYNC_KAFKA__SSL_CA_FILE=str(broken))


async def test_tests_get_the_same_parts_around_what_stands_for_vcda() -> None:
    parts = wiring.for_tests(
        ScriptedVcda(World(Clock()), late=timedelta(seconds=1)),
        connection={"bootstrap_servers": ["localhost:9092"]},
        topics=TopicNames(requests="r", completed="c", failed="f", dead_letter="d", journal="j"),
        tuning=wiring.Tuning(
            group_id="g",
            session_timeout=timedelta(seconds=6),
            max_in_flight=10,
            deadline=timedelta(hours=1),
            policy=Policy(
                window=timedelta(seconds=2),
                late=timedelta(seconds=1),
                lost_after=timedelta(minutes=10),
                deduplicate_for=timedelta(hours=24),
            ),
            limits=LaneLimits(max_concurrent_submits=4, max_running=0),
            poll_min=timedelta(seconds=1),
            poll_max=timedelta(minutes=1),
        ),
        clock=Clock(),
        metrics=metrics(),
        random=Random,
        opening=lambda _: None,
    )

    assert type(parts.progress) is Progress
    assert isinstance(parts.make_intake(), Intake)


def test_new_credentials_that_are_invalid_are_logged_once_for_each_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While VCDA refuses a login, they are read each second."""
    password = tmp_path / "vcda__credentials__password"
    password.write_text("first")
    given = {name: text for name, text in ENVIRONMENT.items() if not name.endswith("PASSWORD")}
    environ = given | {"VM_SYNC_SECRETS_DIR": str(tmp_path)}
    read = wiring._login(CredentialsReader(load(environ), environ=environ), Redactor())

    for text in ("first", "", "second", ""):
        password.write_text(text)
        for _ in range(3):
            read()

    said = "New credentials are invalid (VM_SYNC_VCDA__CREDENTIALS__PASSWORD: required for TYPE vcdCredentials);"
    assert [message.startswith(said) for message in caplog.messages] == [True, True]
