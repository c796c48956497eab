"""A cancel ends a request that waits, a release any request; each is carried out once, in the order of the topic."""

import json
import logging
import math

import pytest

from service.messages.record_fate import Fate
from service.messages.wait_cause import WaitCause
from service.sync import Ended, Running, Submitting
from service.vcda.lanes import LaneLimits
from tests.support.simulated_deployment import DEAD, Deployment, Process, deployed, in_flight, sent, told_at

ONE_RUNS = LaneLimits(max_concurrent_submits=1, max_running=1)


def lane(process: Process) -> tuple[int, int, int]:
    """What the lane of the local site counts: POSTs on their way, syncs at VCDA, and waiting for a slot."""
    of = process.lanes.lane(None)
    return of.submitting, of.occupied, of.queued


def ended(d: Deployment, identity: str) -> Ended:
    """The journal's record of an ended request."""
    state = d.log.states()[identity]
    assert isinstance(state, Ended)
    return state


def outcome(d: Deployment, operation_id: str) -> dict[str, object]:
    """The data of an operation's only outcome."""
    (told,) = (told for told in d.log.told if told.topic != DEAD and told.operation_id == operation_id)
    return told.data


# ---------------------------------------------------------------- cancels


@deployed
async def test_a_request_that_waits_behind_another_ends_at_once_and_is_never_submitted(d: Deployment) -> None:
    p0 = d.owner()
    d.world.lasts = lambda _: 100.0
    for operation in ("first", "second", "third"):
        d.broker.ask("C4-1", operation)
    await d.until(5.0)
    partition = p0.partition()
    assert partition is not None
    assert list(partition.waiting()) == [(None, WaitCause.ELDER, 2)]
    d.broker.cancel("C4-1", "second", by="alice", reason="not needed")
    await d.until(6.0)
    assert list(partition.waiting()) == [(None, WaitCause.ELDER, 1)]
    assert d.verdicts() == [("second", "cancelled")]
    told = outcome(d, "second")
    assert told["error"] == {"code": "Cancelled", "msg": "The request was cancelled by alice: not needed.", "args": []}
    assert (told["attempts"], told["taskId"]) == (0, None)
    await d.settled()
    assert d.verdicts()[1:] == [("first", "completed"), ("third", "completed")]
    assert not sent(p0, "second")
    assert not d.world.overlaps
    assert p0.meter.fates[Fate.CANCEL] == 1


@deployed
async def test_a_request_that_waits_for_a_slot_gives_its_place_back(d: Deployment) -> None:
    p0 = d.owner(limits=ONE_RUNS)
    d.world.lasts = lambda _: 10.0
    for number in range(3):
        d.broker.ask(f"C4-{number}", f"op-{number}")
    await d.until(2.0)
    assert lane(p0) == (0, 1, 2)
    d.broker.cancel("C4-1", "op-1")
    await d.until(3.0)
    assert lane(p0) == (0, 1, 1)
    await d.settled()
    assert d.verdicts() == [("op-1", "cancelled"), ("op-0", "completed"), ("op-2", "completed")]
    assert not sent(p0, "op-1")
    assert lane(p0) == (0, 0, 0)


@deployed
async def test_a_busy_request_that_is_cancelled_waits_for_nothing_any_more(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["busy"] = ["409"] * 9
    d.broker.ask("C4-1", "busy")
    await d.until(3.0)
    partition = p0.partition()
    assert partition is not None
    assert list(partition.waiting())
    d.broker.cancel("C4-1", "busy")
    await d.until(4.0)
    assert not list(partition.waiting())
    await d.until(1000.0)
    assert d.verdicts() == [("busy", "cancelled")]
    assert (len(sent(p0, "busy")), outcome(d, "busy")["attempts"]) == (1, 1)


def test_a_running_request_goes_on_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner()
        d.world.lasts = lambda _: 30.0
        d.broker.ask("C4-1", "running")
        await d.until(5.0)
        d.broker.cancel("C4-1", "running")
        await d.settled()
        assert d.verdicts() == [("running", "completed")]
        assert p0.meter.fates[Fate.CANCEL] == 1
        assert "Cancel of op:C4-1:running has no effect: the request is running and goes on" in caplog.text

    play()


@deployed
async def test_a_request_that_is_read_together_with_its_cancel_is_never_submitted(d: Deployment) -> None:
    p0 = d.process("P0")
    d.broker.ask("C4-1", "a")
    d.broker.ask("C4-1", "b")
    d.broker.cancel("C4-1", "a")
    d.broker.cancel("C4-1", "b")
    d.group.hand(0, p0)
    await d.settled()
    assert d.verdicts() == [("a", "cancelled"), ("b", "cancelled")]
    assert outcome(d, "a")["attempts"] == 0
    assert not p0.vcda.sent
    assert lane(p0) == (0, 0, 0)


def test_a_cancel_of_nothing_in_flight_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner()
        d.broker.cancel("C4-1", "never-sent")
        d.broker.ask("C4-1", "op")
        await d.settled()
        d.broker.cancel("C4-1", "op", release=True)
        d.broker.cancel("C4-1", "op")
        await d.settled()
        assert d.verdicts() == [("op", "completed")]
        assert p0.meter.fates[Fate.CANCEL] == 3
        assert (
            "Cancel at offset 0 of partition 0 has no effect: the request op:C4-1:never-sent is not in" in caplog.text
        )

    play()


@deployed
async def test_a_cancel_by_ids_ends_every_waiting_request_of_that_name_cloudevents_included(d: Deployment) -> None:
    d.owner()
    d.world.lasts = lambda _: 60.0
    d.broker.ask("C4-1", "first")
    for number in range(2):
        headers = (("ce_specversion", b"1.0"), ("ce_source", b"/a"), ("ce_id", str(number).encode()))
        d.broker.ask("C4-1", "same", headers=headers)
    d.broker.ask("C4-1", "same")
    d.broker.ask("C4-1", "other")
    d.broker.ask("C4-2", "same")
    await d.until(5.0)
    name = {"replicationId": "C4-1", "operationID": "same"}
    d.broker.ask("C4-1", "", value=json.dumps({"cancel": name}).encode())
    await d.until(6.0)
    assert [told.data["requestId"] for told in d.log.told] == ["ce:%2Fa:0", "ce:%2Fa:1", "op:C4-1:same"]
    await d.settled()
    assert sorted(d.verdicts()[3:]) == [("first", "completed"), ("other", "completed"), ("same", "completed")]


@deployed
async def test_a_request_that_expires_when_the_one_before_it_is_cancelled_has_no_second_end(d: Deployment) -> None:
    p0 = d.owner(limits=ONE_RUNS)
    d.world.lasts = lambda _: 100.0
    d.broker.ask("C4-2", "running")
    headers = (("ce_specversion", b"1.0"), ("ce_source", b"/a"), ("ce_id", b"1"))
    d.broker.ask("C4-1", "same", headers=headers)
    d.broker.ask("C4-1", "same", deadline=5)
    await d.until(10.0)
    assert d.verdicts() == [], "no outcome comes before that of an earlier request"
    name = {"replicationId": "C4-1", "operationID": "same"}
    d.broker.ask("C4-1", "", value=json.dumps({"cancel": name}).encode())
    await d.settled()
    assert d.verdicts() == [("same", "cancelled"), ("same", "not-started"), ("running", "completed")]
    assert p0.closings == []


@pytest.mark.parametrize("fate", ["lost", "unanswered", "later"])
def test_a_cancel_is_carried_out_once_whatever_becomes_of_its_commit(fate: str) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        d.owner()
        d.world.lasts = lambda _: 60.0
        d.broker.ask("C4-1", "first")
        d.broker.ask("C4-1", "second")
        await d.until(5.0)
        d.broker.script.append(fate)
        d.broker.cancel("C4-1", "second")
        await d.settled()
        assert d.verdicts() == [("second", "cancelled"), ("first", "completed")]

    play()


@deployed
async def test_a_cancel_while_the_partition_is_handed_over_begins_nothing(d: Deployment) -> None:
    p0 = d.owner()
    d.world.lasts = lambda _: 60.0
    d.broker.ask("C4-1", "first")
    d.broker.ask("C4-1", "second")
    d.broker.ask("C4-1", "third")
    await d.until(5.0)
    partition = p0.partition()
    assert partition is not None
    _ = p0.spawn(partition.quiesce(30.0))
    d.broker.cancel("C4-1", "first", release=True)
    d.broker.cancel("C4-1", "second")
    await d.until(6.0)
    assert d.verdicts() == [("first", "cancelled"), ("second", "cancelled")]
    assert [state.request.operation_id for state in in_flight(p0)] == ["third"]
    assert not sent(p0, "third")
    d.group.hand(0, d.process("P1"))
    await d.settled()
    assert d.verdicts()[2:] == [("third", "completed")]


# ---------------------------------------------------------------- releases


def test_a_released_task_ends_as_cancelled_and_its_replication_is_free_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner(limits=ONE_RUNS)
        d.world.lasts = lambda operation: math.inf if operation == "stuck" else 1.0
        d.broker.ask("C4-1", "stuck")
        d.broker.ask("C4-1", "next")
        await d.until(5.0)
        assert lane(p0) == (0, 1, 0)
        d.broker.cancel("C4-1", "stuck", release=True, by="alice", reason="stuck")
        await d.until(6.0)
        task = d.world.task_of("stuck").task.id
        told = outcome(d, "stuck")
        assert (told["reason"], told["taskId"], told["attempts"]) == ("cancelled", task, 1)
        assert str(told["error"]) == str(
            {
                "code": "Released",
                "msg": f"The request was released by alice: stuck. VCDA may still work on task {task}.",
                "args": [],
            }
        )
        assert sent(p0, "next"), "its elder no longer holds the replication"
        await d.settled()
        assert d.verdicts() == [("stuck", "cancelled"), ("next", "completed")]
        assert lane(p0) == (0, 0, 0)
        polls = p0.meter.counts["poll"]
        await d.until(d.loop.time() + 1000.0)
        assert p0.meter.counts["poll"] == polls, "the released task is not polled"
        assert ended(d, "op:C4-1:stuck").task_id == task
        assert "Released op:C4-1:stuck, which was running: The request was released by alice: stuck." in caplog.text

    play()


@deployed
async def test_a_released_task_is_not_taken_for_that_of_the_next_request(d: Deployment) -> None:
    p0 = d.owner()
    d.world.lasts = lambda operation: math.inf if operation == "stuck" else 1.0
    d.broker.ask("C4-1", "stuck")
    await d.until(2.0)
    p0.vcda.script["next"] = ["lost-answer"]
    d.broker.cancel("C4-1", "stuck", release=True)
    d.broker.ask("C4-1", "next")
    await d.settled()
    assert outcome(d, "next")["taskId"] == d.world.task_of("next").task.id


@deployed
async def test_a_released_post_in_doubt_is_looked_up_no_more(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["doubtful"] = ["lost-post"]
    p0.vcda.finding = "down"
    d.broker.ask("C4-1", "doubtful")
    d.broker.ask("C4-1", "next")
    await d.until(5.0)
    d.broker.cancel("C4-1", "doubtful", release=True)
    await d.until(6.0)
    assert d.verdicts()[0] == ("doubtful", "cancelled")
    assert "VCDA may have received its POST" in str(outcome(d, "doubtful")["error"])
    finds = p0.vcda.finds
    await d.settled()
    assert d.verdicts()[1:] == [("next", "completed")]
    assert p0.vcda.finds == finds
    assert lane(p0) == (0, 0, 0)


def test_the_late_answer_of_a_released_post_changes_no_outcome_and_its_task_is_noted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner(limits=ONE_RUNS)
        p0.vcda.latency = 3.0
        d.world.lasts = lambda _: 5.0
        d.broker.ask("C4-1", "posting")
        await d.until(2.5)
        assert sent(p0, "posting")
        assert lane(p0) == (1, 1, 0)
        d.broker.cancel("C4-1", "posting", release=True)
        await d.until(3.0)
        assert lane(p0) == (0, 0, 0)
        assert ended(d, "op:C4-1:posting").task_id is None
        await d.until(60.0)
        assert d.verdicts() == [("posting", "cancelled")]
        task = d.world.task_of("posting").task.id
        assert ended(d, "op:C4-1:posting").task_id == task
        assert f"was released: VCDA works on task {task}" in caplog.text
        p0.vcda.latency = 0.01
        p0.vcda.script["next"] = ["lost-answer"]
        d.broker.ask("C4-1", "next")
        await d.settled()
        assert outcome(d, "next")["taskId"] == d.world.task_of("next").task.id
        assert lane(p0) == (0, 0, 0)

    play()


@deployed
async def test_a_post_whose_intent_is_being_committed_does_not_leave_once_it_is_cancelled(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(1.0)
    d.broker.latency = lambda: 1.0
    d.broker.ask("C4-1", "op")
    await d.until(1.5)
    (state,) = in_flight(p0)
    assert isinstance(state, Submitting)
    d.broker.cancel("C4-1", "op")
    await d.settled()
    assert d.verdicts() == [("op", "cancelled")]
    assert outcome(d, "op")["attempts"] == 0
    assert not sent(p0, "op")
    assert lane(p0) == (0, 0, 0)


@deployed
async def test_a_post_on_its_way_goes_on(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.latency = 3.0
    d.broker.ask("C4-1", "posting")
    await d.until(2.5)
    assert sent(p0, "posting")
    d.broker.cancel("C4-1", "posting")
    await d.settled()
    assert d.verdicts() == [("posting", "completed")]


@deployed
async def test_a_post_that_an_earlier_owner_may_have_sent_goes_on(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["doubtful"] = ["lost-answer"]
    d.broker.ask("C4-1", "doubtful")
    await d.until(1.0)
    await p0.crash()
    d.broker.cancel("C4-1", "doubtful")
    d.owner("P1")
    await d.settled()
    assert d.verdicts() == [("doubtful", "completed")]


@deployed
async def test_a_released_lingering_task_frees_its_replication_without_a_second_outcome(d: Deployment) -> None:
    p0 = d.owner()
    d.world.lasts = lambda operation: math.inf if operation == "stuck" else 1.0
    d.broker.ask("C4-1", "stuck", deadline=10)
    d.broker.ask("C4-1", "next")
    await d.until(20.0)
    assert d.verdicts() == [("stuck", "timed-out")]
    d.broker.cancel("C4-1", "stuck")
    await d.until(25.0)
    assert len(in_flight(p0)) == 2, "a cancel alone frees nothing"
    d.broker.cancel("C4-1", "stuck", release=True, by="alice")
    await d.settled()
    assert d.verdicts() == [("stuck", "timed-out"), ("next", "completed")]
    assert told_at(d, "next") < 30.0
    record = ended(d, "op:C4-1:stuck")
    assert (record.reason, record.error and record.error.code) == ("timed-out", "Released")
    assert lane(p0) == (0, 0, 0)


@deployed
async def test_a_release_is_carried_out_once_by_the_next_owner_where_its_commit_was_lost(d: Deployment) -> None:
    p0 = d.owner()
    d.world.lasts = lambda operation: math.inf if operation == "stuck" else 1.0
    d.broker.ask("C4-1", "stuck")
    await d.until(5.0)
    d.broker.script.append("lost")
    d.broker.cancel("C4-1", "stuck", release=True)
    await d.until(5.1)
    await p0.crash()
    p1 = d.owner("P1")
    await d.settled()
    assert d.verdicts() == [("stuck", "cancelled")]
    assert lane(p1) == (0, 0, 0)


@deployed
async def test_a_partition_that_closes_while_a_released_post_is_on_its_way_gives_its_slot_back(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["posting"] = ["hang"]
    d.broker.ask("C4-1", "posting")
    await d.until(2.0)
    assert sent(p0, "posting")
    d.broker.cancel("C4-1", "posting", release=True)
    await d.until(3.0)
    d.group.hand(0, d.process("P1"))
    await d.until(8.0)
    assert p0.partition() is None
    assert lane(p0) == (0, 0, 0)


@deployed
async def test_many_cancels_that_are_read_at_once_end_many_requests(d: Deployment) -> None:
    p0 = d.process("P0")
    d.world.lasts = lambda _: 30.0
    for number in range(500):
        d.broker.ask("C4-1", f"op-{number}")
    for number in range(1, 500):
        d.broker.cancel("C4-1", f"op-{number}")
    d.group.hand(0, p0)
    await d.settled()
    verdicts = d.verdicts()
    assert verdicts[-1] == ("op-0", "completed")
    assert verdicts[:-1] == [(f"op-{number}", "cancelled") for number in range(1, 500)]
    assert p0.meter.fates[Fate.CANCEL] == 499


def test_a_log_line_names_the_task_of_a_released_request(caplog: pytest.LogCaptureFixture) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        p0 = d.owner()
        d.world.lasts = lambda _: 1000.0
        d.broker.ask("C4-1", "running")
        d.broker.ask("C4-1", "waiting")
        await d.until(5.0)
        state, _ = in_flight(p0)
        assert isinstance(state, Running)
        with caplog.at_level(logging.WARNING):
            d.broker.cancel("C4-1", "waiting")  # which is no release
            d.broker.cancel("C4-1", "running", release=True)
            await d.settled()
        (line,) = (line for line in caplog.records if line.getMessage().startswith("Released"))
        assert (line.task_id, line.operation_id) == (state.task_id, "running")  # type: ignore[attr-defined]

    play()
