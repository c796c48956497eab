"""The rights of the Strimzi overlay at a real Kafka: they are enough, and what is said where one of them is missing."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.conftest import TopicNamer
from tests.support.cluster import OPERATOR, SERVICE, Cluster
from tests.support.grants import Grant, Operation, Resource
from tests.support.process_harness import Process
from tests.support.rights_scene import COMMANDS, RightsScene, warnings, without

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]

BACK_WITHIN = 15.0
"""Seconds from a right's return to an outcome that has waited for it; what a busy machine adds comes on top."""

BUSY = 30.0


@pytest.fixture
async def scene(cluster: Cluster, topic_name: TopicNamer) -> AsyncIterator[RightsScene]:
    prefix = topic_name("").rstrip(".")
    async with RightsScene(bootstrap=cluster.bootstrap, login=cluster.login, prefix=prefix) as scene:
        yield scene


async def test_the_service_needs_no_right_that_the_overlay_does_not_grant(scene: RightsScene) -> None:
    await scene.service_acls.only(scene.service)
    process = scene.start()
    await scene.ledger.ready(process, within=90)
    await scene.ledger.spoil(partition=0, key=b"C4-9", value=b"?")
    await scene.ledger.ask_all([(f"op-{number}", f"C4-{number}") for number in range(3)])

    await scene.ledger.wait(within=60)
    verdict = await scene.ledger.judge()

    assert verdict.violations == []
    assert not [line for line in warnings(process) if "denies" in line or "DescribeConfigs" in line]
    assert await process.stop() == 0


async def test_an_operator_can_run_each_command_with_the_rights_of_the_overlay(scene: RightsScene) -> None:
    await scene.service_acls.only(scene.service)
    await scene.operator_acls.only(scene.operator)
    process = scene.start()
    await scene.ledger.ready(process, within=90)
    await scene.ledger.ask("op-1", "C4-1")
    await scene.ledger.wait(within=60)
    await scene.spoil()

    said = {name: await scene.run(*command) for name, command in COMMANDS.items() if name != "request"}

    assert {name: (result.exit_code, result.stderr) for name, result in said.items() if result.exit_code} == {}
    assert "1 would be redriven" in said["dead-letters redrive --dry-run"].stdout
    assert "1 redriven" in said["dead-letters redrive"].stdout
    assert not [result.stderr for result in said.values() if "denies" in result.stderr + result.stdout]


async def test_an_operator_can_cancel_a_request_while_the_service_is_down(scene: RightsScene) -> None:
    await scene.operator_acls.only(scene.operator)
    name = await scene.ask()

    sent = await scene.run("cancel", name)

    assert sent.exit_code == 0, sent.output
    assert "takes effect when the service reads it" in sent.stderr
    write = (f"{scene.prefix}.requests", Operation.Write)
    (grant,) = [one for one in scene.operator if (one.name, one.operation) == write]
    await scene.operator_acls.only(without(scene.operator, grant))
    denied = await scene.run("cancel", name)
    assert denied.exit_code == 3
    assert f"Kafka denies User:{OPERATOR} the right Write on topic {scene.prefix}.requests" in denied.stderr
    await scene.service_acls.only(scene.service)
    process = scene.start()
    await scene.ledger.ready(process, within=90)
    (told,) = await scene.ledger.wait(within=60)
    assert told.event["reason"] == "cancelled"


async def test_a_command_names_the_right_that_is_missing(scene: RightsScene) -> None:
    await scene.operator_acls.only(scene.operator)
    await scene.spoil()
    assert (await scene.run("dead-letters", "redrive")).exit_code == 0  # there is a mark to read now
    await scene.spoil()
    redriven, redrive = f"{scene.prefix}.dead-letter.redriven", f"{scene.prefix}.dead-letter-redrive"
    cases = [
        ("request", Resource.topic, f"{scene.prefix}.requests", Operation.Write, "(VM_SYNC_TOPICS__REQUESTS)"),
        ("request --wait", Resource.topic, f"{scene.prefix}.failed", Operation.Read, "(VM_SYNC_TOPICS__FAILED)"),
        ("list", Resource.topic, f"{scene.prefix}.journal", Operation.Read, "(VM_SYNC_TOPICS__JOURNAL)"),
        ("dead-letters list", Resource.topic, redriven, Operation.Read, ""),
        (
            "dead-letters redrive",
            Resource.topic,
            f"{scene.prefix}.requests",
            Operation.Write,
            "VM_SYNC_TOPICS__REQUESTS",
        ),
        ("dead-letters redrive", Resource.topic, redriven, Operation.Write, ""),
        ("dead-letters redrive", Resource.transactionalId, redrive, Operation.Write, "(VM_SYNC_TOPICS__DEAD_LETTER)"),
    ]
    for name, resource, resource_name, operation, setting in cases:
        (grant,) = [
            one
            for one in scene.operator
            if (one.resource, one.name, one.operation) == (resource, resource_name, operation)
        ]
        await scene.operator_acls.only(without(scene.operator, grant))

        result = await scene.run(*COMMANDS[name])

        what = {Resource.topic: "topic", Resource.transactionalId: "transactional id"}[resource]
        assert f"Kafka denies User:{OPERATOR} the right {operation.name} on {what} {resource_name}" in result.stderr, (
            name,
            grant,
            result.stderr,
            result.stdout,
        )
        assert setting in result.stderr
        assert "Future exception" not in result.stderr
        assert result.exit_code == 3


@pytest.mark.parametrize(
    ("resource", "name", "operation", "setting"),
    [
        (Resource.topic, "completed", Operation.Write, "VM_SYNC_TOPICS__COMPLETED"),
        (Resource.group, "", Operation.Read, "VM_SYNC_KAFKA__GROUP_ID"),
    ],
    ids=["a topic that may not be seen", "the group"],
)
async def test_a_service_started_without_a_right_names_it_and_goes_on_once_it_is_granted(
    resource: Resource, name: str, operation: Operation, setting: str, scene: RightsScene
) -> None:
    missing = f"{scene.prefix}.{name}".rstrip(".")
    (grant,) = [
        one for one in scene.service if (one.resource, one.name, one.operation) == (resource, missing, operation)
    ]
    await scene.service_acls.only(without(scene.service, grant))
    waiting = await scene.ask()
    process = scene.start()

    said = await _until_said(scene, process, setting)
    await scene.service_acls.grant(grant)
    back = time.monotonic()
    while not await scene.told(waiting):
        assert process.running, process.text()[-2000:]
        assert time.monotonic() - back < BACK_WITHIN + BUSY, process.text()[-2000:]
        await asyncio.sleep(0.2)

    assert f"Kafka denies User:{SERVICE} the right {operation.name} on " in said
    assert missing in said
    assert [line for line in warnings(process) if setting in line]
    await scene.ledger.ready(process)


async def test_outcomes_that_may_not_be_written_make_the_service_unready(scene: RightsScene) -> None:
    grant = Grant(Resource.topic, f"{scene.prefix}.completed", scene.service[0].pattern, Operation.Write)
    assert grant in scene.service
    await scene.service_acls.only(scene.service)
    process = scene.start()
    await scene.ledger.ready(process, within=90)

    await scene.service_acls.take(grant)
    waiting = await scene.ask()
    said = await _until_said(scene, process, "VM_SYNC_TOPICS__COMPLETED")
    await scene.service_acls.grant(grant)

    assert f"Kafka denies User:{SERVICE} the right Write on topic {scene.prefix}.completed" in said
    await scene.ledger.wait(within=BACK_WITHIN + BUSY)
    assert await scene.told(waiting)
    await scene.ledger.ready(process)


async def _until_said(scene: RightsScene, process: Process, word: str) -> str:
    """Wait until `/readyz` says why the process isn't ready, with this word."""
    until = time.monotonic() + 60
    while True:
        reasons = await scene.not_ready(process)
        if reasons and any(word in reason for reason in reasons):
            return "\n".join(reasons)
        assert time.monotonic() < until, (reasons, process.text()[-3000:])
        await asyncio.sleep(0.2)
