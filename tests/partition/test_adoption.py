"""Whose a task is: how VCDA spells the service's user and the replication, and which tasks are adopted."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from service.partition.in_flight_view import in_flight_views
from service.sync import ApiError, Ended, Lingering, Running
from service.vcda.lanes import LaneLimits
from tests.support.simulated_deployment import LATE, Deployment, Process, deployed, in_flight, run, sent


@deployed
async def test_a_task_whose_user_vcda_spells_in_its_own_way_is_found_after_a_crash(d: Deployment) -> None:
    d.world.spelled = lambda _: "org2@site2"
    d.world.lasts = lambda _: 1000.0
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.until(0.1)
    await p0.crash()
    p1 = d.owner("P1")
    await d.settled()
    assert p1.vcda.sent == []
    assert d.verdicts() == [("a1", "completed")]
    assert p1.meter.counts["adopted"] == 1


@deployed
async def test_an_adoption_whose_commit_is_lost_is_counted_once(d: Deployment) -> None:
    d.world.lasts = lambda _: 1000.0
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.until(0.1)
    await p0.crash()
    d.broker.script.extend(["stands", "lost"])
    p1 = d.owner("P1")
    await d.settled()
    assert p1.closings == ["no answer"]
    assert p1.meter.counts["adopted"] == 1


@deployed
async def test_a_post_that_is_to_be_repeated_is_counted_once_if_the_commit_of_its_intent_is_lost(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"]
    d.broker.ask("C4-1", "a1")
    d.broker.script.extend(["stands", "stands", "stands", "lost"])
    await d.settled()
    assert p0.closings == ["no answer"]
    assert (p0.meter.counts["repeated"], len(sent(p0, "a1"))) == (1, 2)


@deployed
async def test_how_vcda_spells_our_user_is_known_to_who_comes_next(d: Deployment) -> None:
    d.world.spelled = lambda _: "org2@site2"
    p0 = d.owner()
    p0.vcda.script["b1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    d.world.lasts = lambda _: 1000.0
    d.broker.ask("C4-2", "b1")
    await d.until(d.loop.time() + 0.1)
    await p0.crash()
    at = d.loop.time()
    p1 = d.owner("P1")
    d.world.make("C4-2", None, "by hand", user="somebody@else")
    await d.until(at + 1.0)
    assert isinstance(in_flight(p1)[0], Running), "found at once: there is nothing to wait for"
    d.world.overlaps.clear()
    await d.settled()
    assert [verdict for _, verdict in d.verdicts()] == ["completed", "completed"]
    assert p1.vcda.sent == []


@deployed
async def test_an_intent_is_committed_with_the_spelling_learnt_since_its_request_was_admitted(d: Deployment) -> None:
    d.world.spelled = lambda _: "org2@site2"
    d.world.lasts = lambda _: 1000.0
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1, max_running=0))
    p0.vcda.script["b1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-2", "b1")
    await d.until(0.1)
    assert len(sent(p0, "b1")) == 1
    await p0.crash()
    at = d.loop.time()
    p1 = d.owner("P1")
    d.world.make("C4-2", None, "by hand", user="somebody@else")
    d.world.overlaps.clear()
    await d.until(at + 1.0)
    assert [type(state) for state in in_flight(p1)] == [Running, Running], "found at once: there is nothing to wait for"
    await d.settled()
    assert sorted(d.verdicts()) == [("a1", "completed"), ("b1", "completed")]


@deployed
async def test_how_vcda_spells_our_user_is_learnt_from_polls_too(d: Deployment) -> None:
    look = d.world.look
    d.world.look = lambda made: replace(look(made), user="org2@site2")  # type: ignore[method-assign] # unlike for POSTs
    d.world.lasts = lambda _: 100.0
    p0 = d.owner()
    p0.vcda.script["b1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.until(50.0)
    d.broker.ask("C4-2", "b1")
    await d.settled()
    assert d.world.tasks_of() == {"a1": 1, "b1": 1}
    assert d.verdicts() == [("a1", "completed"), ("b1", "completed")]


@deployed
async def test_a_task_whose_user_vcda_writes_in_another_form_since_an_upgrade_is_found(d: Deployment) -> None:
    d.world.spelled = lambda _: "org2@site2"
    d.world.lasts = lambda _: 100.0
    p0 = d.owner()
    p0.vcda.script["b1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    d.world.spelled = lambda _: r"Site2\ORG2"
    d.broker.ask("C4-2", "b1")
    await d.settled()
    assert d.world.tasks_of() == {"a1": 1, "b1": 1}
    assert d.verdicts() == [("a1", "completed"), ("b1", "completed")]


@deployed
async def test_the_user_of_a_task_that_was_only_taken_for_ours_is_not_learnt(d: Deployment) -> None:
    d.world.spelled = lambda user: user.upper()
    d.world.lasts = lambda _: 100.0
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post"]
    d.broker.ask("C4-1", "a1")
    await d.until(1.0)
    made = d.world.make("C4-1", None, "by hand", user="one@else")
    d.world.made[made.id].owner = d.world.user  # an administrator sees everybody's
    await d.settled()
    assert p0.meter.counts["adopted"] == 1
    assert p0.vcda.spellings() == ()


@deployed
async def test_a_vcda_whose_answers_come_too_late_has_one_task_for_each_request_however_it_spells_us(
    d: Deployment,
) -> None:
    """Seen before: 173 POSTs for 30 requests in a minute, 143 of them beside a running sync of the same replication."""
    d.world.spelled = lambda _: "org2@site2"
    d.world.lasts = lambda _: 300.0
    p0 = d.owner(meets=lambda kind: "lost-answer" if kind == "submit" else "well")
    for n in range(30):
        d.broker.ask(f"C4-{n}", f"sync-{n}")
    await d.settled()
    assert d.world.tasks_of() == {f"sync-{n}": 1 for n in range(30)}
    assert len(p0.vcda.sent) == 30
    assert d.world.overlaps == []
    assert Counter(verdict for _, verdict in d.verdicts()) == {"completed": 30}
    assert p0.meter.counts["repeated"] == 0


FORBIDDEN = "Forbidden: Permission denied."


def error_of(d: Deployment, operation_id: str) -> str:
    """The error of an operation's only outcome."""
    (told,) = (told for told in d.log.told if told.operation_id == operation_id)
    return "{code}: {msg}".format(**told.data["error"])


async def hidden_until_its_fourth_post(d: Deployment, p0: Process) -> None:
    """Have VCDA list the first task of a1 only once its fourth POST has left; the site's clock is known before.

    By then the task is older than the margin of the fourth POST's own look-ups.
    """
    d.broker.ask("C4-0", "a0")
    await d.settled()
    d.world.forgotten.add("task-2")

    def left(_: str) -> None:
        if len(sent(p0, "a1")) == 4:
            d.world.forgotten.clear()

    p0.vcda.leaves = left


@deployed
async def test_the_task_of_an_earlier_post_is_looked_for_again_when_the_repeated_post_finds_the_replication_busy(
    d: Deployment,
) -> None:
    d.world.lasts = lambda _: 600.0
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-answer", "lost-post", "lost-post", "409"]
    await hidden_until_its_fourth_post(d, p0)
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert len(sent(p0, "a1")) == 4
    assert d.world.tasks_of() == {"a0": 1, "a1": 1}
    assert d.verdicts() == [("a0", "completed"), ("a1", "completed")]
    assert (p0.meter.counts["adopted"], p0.meter.counts["repeated"]) == (1, 3)


@deployed
async def test_a_look_up_for_a_repeated_post_finds_the_task_of_an_earlier_one(d: Deployment) -> None:
    d.world.lasts = lambda _: 600.0
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-answer", *["lost-post"] * 3]
    await hidden_until_its_fourth_post(d, p0)
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert len(sent(p0, "a1")) == 4
    assert d.world.tasks_of() == {"a0": 1, "a1": 1}
    assert d.verdicts() == [("a0", "completed"), ("a1", "completed")]


@pytest.mark.parametrize("refusal", ["409", "rejected"])
@pytest.mark.parametrize("listed", [LATE + 0.5, 1.5 * LATE, 2 * LATE - 0.5])
def test_the_task_of_an_earlier_post_is_adopted_if_vcda_lists_it_only_after_refusing_the_repeated_one(
    refusal: str, listed: float
) -> None:
    @deployed
    async def play(d: Deployment) -> None:
        d.world.lasts = lambda _: 3 * LATE
        d.world.listed = lambda _: listed
        p0 = d.owner()
        p0.vcda.script["a1"] = ["lost-answer", refusal]
        d.broker.ask("C4-1", "a1")
        d.broker.ask("C4-1", "a2")
        await d.settled()
        assert len(sent(p0, "a1")) == 2
        assert d.verdicts() == [("a1", "completed"), ("a2", "completed")]
        assert d.world.tasks_of() == {"a1": 1, "a2": 1}
        assert d.world.overlaps == []
        assert p0.meter.counts["adopted"] == 1

    play()


@deployed
async def test_a_repeated_post_that_is_refused_without_a_task_ends_its_request_once_look_ups_have_found_none(
    d: Deployment,
) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post", "rejected"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    (told,) = d.log.told
    assert (told.verdict, told.data["attempts"], error_of(d, "a1")) == ("rejected", 2, FORBIDDEN)
    assert told.data["httpStatus"] == 403
    assert told.at >= sent(p0, "a1")[1] + LATE
    assert d.world.tasks_of() == {}
    assert p0.lanes.lane(None).occupied == 0


@deployed
async def test_a_refusal_of_a_repeated_post_survives_a_crash(d: Deployment) -> None:
    d.world.lasts = lambda _: 10 * LATE
    d.world.listed = lambda operation: 2 * LATE if operation == "a1" else 0.0
    p0 = d.owner()
    p0.vcda.script |= {"a1": ["lost-answer", "rejected"], "b1": ["lost-post", "rejected"]}
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-2", "b1")
    await d.until(LATE + 2.0)
    assert len(p0.vcda.sent) == 4
    await p0.crash()
    p1 = d.owner("P1")
    await d.settled()
    assert p1.vcda.sent == []
    assert dict(d.verdicts()) == {"a1": "completed", "b1": "rejected"}
    assert error_of(d, "b1") == FORBIDDEN
    assert d.world.tasks_of() == {"a1": 1}


@deployed
async def test_a_refused_repeated_post_says_what_it_waits_for_and_times_out_if_look_ups_fail(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post", "rejected"]
    d.broker.ask("C4-1", "a1", deadline=60)
    await d.until(LATE + 2.0)
    partition = p0.partition()
    assert partition is not None
    (view,) = in_flight_views([partition])
    assert (view.state, view.error, view.http_status) == ("in_doubt", ApiError("Forbidden", "Permission denied."), 403)
    assert view.waits_for is not None
    assert view.waits_for.detail.startswith("VCDA refused its repeated POST: ")
    assert view.waits_for.until is not None
    p0.vcda.finding = "down"
    await d.until(61.0)
    assert d.verdicts() == [("a1", "timed-out")]
    assert error_of(d, "a1") == FORBIDDEN
    p0.vcda.finding = "well"
    await d.settled()
    assert [type(state) for state in d.log.states().values()] == [Ended]
    assert len(sent(p0, "a1")) == 2


@deployed
async def test_a_repeated_post_that_finds_somebody_elses_sync_waits_as_any_other_after_its_look_ups(
    d: Deployment,
) -> None:
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-post", "409", "409"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    pauses = [later - earlier for earlier, later in pairwise(sent(p0, "a1"))]
    for pause, usual in zip(pauses[1:], [10, 20], strict=True):
        assert 0.5 * usual < pause - LATE < 1.5 * usual + 0.1
    assert d.world.tasks_of() == {"a1": 1}
    assert d.verdicts() == [("a1", "completed")]
    assert p0.meter.counts["repeated"] == 1
    assert p0.meter.counts["adopted"] == 0


@deployed
async def test_a_task_that_names_its_replication_in_another_letter_case_is_found(d: Deployment) -> None:
    d.world.shows = lambda task: replace(task, replication_id=str(task.replication_id).lower())
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1")
    await d.settled()
    assert len(p0.vcda.sent) == 1
    assert d.verdicts() == [("a1", "completed")]


@deployed
async def test_a_task_that_names_no_replication_keeps_its_post_in_doubt_until_the_deadline(d: Deployment) -> None:
    d.world.shows = lambda task: replace(task, replication_id=None)
    p0 = d.owner()
    p0.vcda.script["a1"] = ["lost-answer"]
    d.broker.ask("C4-1", "a1", deadline=600)
    await d.until(650.0)
    assert len(p0.vcda.sent) == 1
    (told,) = d.log.told
    assert told.verdict == "timed-out"
    assert "Task task-1 has no replication id" in told.data["error"]["msg"]
    assert isinstance(in_flight(p0)[0], Lingering)


def test_tasks_that_may_be_ours_are_told_apart_once_vcda_has_shown_how_it_spells_us(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play() -> None:
        async with Deployment() as d:
            d.world.spelled = lambda user: user.upper()
            p0 = d.owner()
            p0.vcda.script["a1"] = ["lost-post"]
            d.broker.ask("C4-1", "a1")
            await d.until(1.0)
            for user in ("one@else", "two@else"):
                d.world.make("C4-1", None, "by hand", user=user)
                d.world.made[f"task-{len(d.world.made)}"].owner = d.world.user  # an administrator sees everybody's
            d.world.overlaps.clear()
            await d.until(60.0)
            assert len(p0.vcda.sent) == 1
            said = "Look-ups for the POST in doubt of op:C4-1:a1 are inconclusive: One of 2 tasks by ONE@ELSE, TWO@ELSE"
            assert caplog.text.count(said) == 1, "not after each look-up"
            d.broker.ask("C4-2", "b1")
            await d.settled()
            assert len(sent(p0, "a1")) == 2
            assert d.verdicts() == [("b1", "completed"), ("a1", "completed")]

    run(play())
