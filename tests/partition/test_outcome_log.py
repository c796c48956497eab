"""Outcomes: how they are counted, how late VCDA's end of a task is noticed, what the log says of them, what is kept."""

from datetime import timedelta

import pytest

from service.partition.recent_outcomes import KEPT
from service.sync import Reason
from tests.support.simulated_deployment import Deployment, deployed, run, told_at


def logged(caplog: pytest.LogCaptureFixture) -> dict[str, tuple[str, str]]:
    """By operation: the level and the sentence."""
    return {
        vars(record)["operation_id"]: (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "service.partition.outcome_log"
    }


def test_a_failure_is_a_warning_with_code_message_and_status_and_a_success_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.fate = lambda operation_id: "FAILED" if operation_id == "fails" else "SUCCEEDED"
            d.world.lasts = lambda operation_id: 1e6 if operation_id == "late" else 1.0
            p0 = d.owner()
            p0.vcda.script["refused"] = ["rejected"]
            d.broker.ask("C4-1", "well")
            d.broker.ask("C4-2", "fails")
            d.broker.ask("C4-3", "refused")
            d.broker.ask("C4-4", "late", deadline=60)
            await d.until(100.0)

    caplog.set_level("INFO")
    run(play())

    said = logged(caplog)
    assert said["well"][0] == "INFO"
    assert said["well"][1].startswith("Sync well of C4-1 completed after ")
    assert said["fails"][0] == said["refused"][0] == said["late"][0] == "WARNING"
    assert said["fails"][1].startswith("Sync fails of C4-2 failed (task-failed) after ")
    assert said["fails"][1].endswith(" s: Boom: It broke.")
    assert said["refused"][1].endswith(" s: Forbidden: Permission denied. (HTTP 403)")
    assert said["late"][1].endswith("while task task-2 was running; VCDA may still work on it")
    (record,) = (one for one in caplog.records if "Sync refused" in one.getMessage())
    assert (vars(record)["reason"], vars(record)["error_code"], vars(record)["http_status"]) == (
        "rejected",
        "Forbidden",
        403,
    )


@deployed
async def test_an_outcome_is_counted_once_it_stands_with_its_lag(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert p0.meter.counts["outcome"] == 1
    (lag,) = p0.meter.lags
    ended = d.world.task_of("a1").ends
    assert lag == pytest.approx(told_at(d, "a1") + 0.005 - ended, abs=0.002)


@pytest.mark.parametrize("skew", [-100.0, 100.0])
def test_the_lag_is_measured_on_one_clock(skew: float) -> None:
    async def play() -> None:
        async with Deployment(vcda_skew=timedelta(seconds=skew)) as d:
            p0 = d.owner()
            d.broker.ask("C4-1", "a1")
            await d.settled()
            (lag,) = p0.meter.lags
            assert lag == pytest.approx(0.05, abs=0.1)

    run(play())


@deployed
async def test_outcomes_decided_here_have_no_lag(d: Deployment) -> None:
    d.world.lasts = lambda _: 5.0
    p0 = d.owner()
    d.broker.ask("C4-1", "a1", deadline=2)
    await d.settled()
    assert p0.meter.lags == [None]


@deployed
async def test_the_last_failures_are_kept_the_latest_first_with_what_the_log_says(d: Deployment) -> None:
    d.world.fate = lambda operation_id: "SUCCEEDED" if operation_id == "well" else "FAILED"
    p0 = d.owner()
    d.broker.ask("C4-0", "well")
    for number in range(1, KEPT + 3):
        d.broker.ask(f"C4-{number}", f"fails-{number}")
    await d.settled()
    p0.vcda.script["refused"] = ["rejected"]
    d.broker.ask("C4-99", "refused")
    await d.settled()

    kept = list(p0.recent_outcomes)

    assert (p0.recent_outcomes.completed, p0.recent_outcomes.failed) == (1, KEPT + 3)
    assert len(kept) == KEPT
    assert (kept[0].operation_id, kept[0].replication_id, kept[0].site) == ("refused", "C4-99", None)
    assert (kept[0].reason, kept[0].error) == (Reason.REJECTED, "Forbidden: Permission denied. (HTTP 403)")
    assert {(failure.reason, failure.error) for failure in kept[1:]} == {(Reason.TASK_FAILED, "Boom: It broke.")}
    assert sorted((failure.at for failure in kept), reverse=True) == [failure.at for failure in kept]
