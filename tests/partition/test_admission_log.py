"""What the log says while requests are admitted: duplicates once each, and senders that set another key."""

import json
from dataclasses import replace

import pytest

from service.messages.record_fate import Fate
from service.partition.admission import DUPLICATES
from tests.support.simulated_deployment import Deployment, deployed, run


def said(caplog: pytest.LogCaptureFixture, beginning: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(beginning)]


def test_a_duplicate_is_logged_once_however_often_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.lasts = lambda _: 50.0
            p0 = d.owner()
            for _ in range(4):
                d.broker.ask("C4-1", "a1")
            await d.until(5.0)
            assert len(said(caplog, "Duplicate of request op:C4-1:a1 at offset 1 of partition 0 was dropped")) == 1
            d.broker.ask("C4-2", "b1")
            await d.settled()
            d.broker.ask("C4-2", "b1")
            await d.until(200.0)
            assert p0.meter.fates[Fate.DUPLICATE] == 4

    caplog.set_level("INFO")
    run(play())

    first, second = said(caplog, "Duplicate of")
    assert first.endswith("the request is in flight")
    assert second == (
        "Duplicate of request op:C4-2:b1 at offset 5 of partition 0 was dropped: the request ended within "
        "VM_SYNC_SYNC__DEDUPLICATE_FOR"
    )


@deployed
async def test_what_is_remembered_of_logged_duplicates_has_a_bound(d: Deployment) -> None:
    p0 = d.owner()
    for _ in range(2):
        for number in range(DUPLICATES + 5):
            d.broker.ask("C4-1", f"a{number}")
    await d.until(10.0)
    partition = p0.partition()
    assert partition is not None
    assert p0.meter.fates[Fate.DUPLICATE] == DUPLICATES + 5
    assert len(partition._admission._duplicates) == DUPLICATES


def test_a_key_that_is_not_the_replication_id_is_a_warning_once_a_minute_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play() -> None:
        async with Deployment() as d:
            p0 = d.owner()
            requests = d.broker.log(0).requests
            for number in range(1, 6):
                if number == 5:
                    await d.until(70.0)
                d.broker.ask("C4-1", f"a{number}")
                requests[-1] = replace(requests[-1], key={1: None, 2: b"C4-1"}.get(number, b"c4-1"))
            await d.settled()
            assert p0.meter.counts["other key"] == 3
            assert p0.meter.counts["without key"] == 1
            assert json.loads(requests[-1].value or b"")["operationID"] == "a5"

    run(play())

    first, second = said(caplog, "The key of request")
    assert "op:C4-1:a3 at offset 2 of partition 0 is not its replicationId (1 such requests" in first
    assert "op:C4-1:a5 at offset 4 of partition 0 is not its replicationId (2 such requests" in second
