"""The judge of `make chaos` has to be able to say no: each kind of broken promise is seen, and nothing else is."""

import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import TopicPartition

from tests.stress.oracle import (
    Asked,
    Cancel,
    CommandRun,
    Disturbance,
    Evidence,
    FileSent,
    SitePaused,
    Spoilt,
    Told,
    judge,
)

COMPLETED = TopicPartition("completed", 0)
FAILED = TopicPartition("failed", 0)


def task(name: str, operation_id: str | None, *, start: float, state: str = "SUCCEEDED", **more: Any) -> dict[str, Any]:
    usual = {"replicationId": "R", "overlapped": False, "forgotten": False, "forgottenAt": None, "end": start + 1.0}
    usual |= {"site": "site1", "user": "u"}
    return {"id": name, "operationID": operation_id, "start": start, "state": state, **usual, **more}


def told(operation_id: str, offset: int, *, task_id: str | None, reason: str | None = None) -> Told:
    event = {"operationID": operation_id, "replicationId": "R", "taskId": task_id}
    if reason is not None:
        event["reason"] = reason
    place = COMPLETED if reason is None else FAILED
    return Told(place.topic, event, (), place, offset)


def cut(operation_id: str, offset: int, *, code: str = "Cancelled") -> Told:
    """The outcome of a request that was cancelled or released."""
    one = told(operation_id, offset, task_id=None, reason="cancelled")
    return replace(one, event={**one.event, "error": {"code": code}})


def rejected(operation_id: str, offset: int, *, site: str) -> Told:
    """The outcome of a request for whose site there are no credentials."""
    one = told(operation_id, offset, task_id=None, reason="rejected")
    return replace(one, event={**one.event, "site": site, "error": {"code": "NoCredentials"}})


def letter(offset: int, *, value: bytes | None = b"{", key: bytes | None = b"k", reason: bytes = b"not-json") -> Told:
    headers = (("x", b"1"), ("vm-sync-partition", b"3"), ("vm-sync-offset", str(offset).encode()))
    place = TopicPartition("dead-letter", 0)
    return Told("dead-letter", {}, (*headers, ("vm-sync-reason", reason)), place, offset, key, value)


GOOD = Evidence(
    asked={"a": Asked("a", "R", 3, 10), "b": Asked("b", "R", 3, 12), "c": Asked("c", "R", 3, 14)},
    told=[told("a", 0, task_id="t1"), told("b", 0, task_id="t2", reason="task-failed"), told("c", 1, task_id="t3")],
    tasks=[task("t1", "a", start=1.0), task("t2", "b", start=2.0, state="FAILED"), task("t3", "c", start=3.0)],
    spoilt=[Spoilt(3, 11, b"k", b"{", (("x", b"1"),))],
    dead=[letter(11)],
    texts={"a log": "all is well"},
    secrets=("geheim",),
)


def test_a_request_is_rejected_for_want_of_credentials_at_unknown_sites_alone() -> None:
    seen = replace(GOOD, tasks=GOOD.tasks[:2], sites=frozenset({"site1"}))
    right = replace(seen, told=[*GOOD.told[:2], rejected("c", 1, site="nowhere")])
    wrong = replace(seen, told=[*GOOD.told[:2], rejected("c", 1, site="site1")])

    assert judge(right).violations == []
    assert judge(wrong).violations == ["c is told rejected, and there are credentials for site site1"]


def test_what_was_kept_is_found_kept() -> None:
    verdict = judge(GOOD)

    assert verdict.violations == []
    assert verdict.figures["completed"] == 2
    assert verdict.not_promised == {}


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (replace(GOOD, told=GOOD.told[:2]), "1 requests have no outcome"),
        (replace(GOOD, told=[*GOOD.told, told("c", 2, task_id="t3")]), "1 requests have two outcomes"),
        (replace(GOOD, tasks=[*GOOD.tasks, task("t4", "c", start=4.0)]), "1 requests have two tasks"),
        (replace(GOOD, tasks=[*GOOD.tasks[:2], task("t3", "c", start=3.0, overlapped=True)]), "1 syncs overlapped"),
        (replace(GOOD, posts_while_paused=2), "2 POSTs came inside a Retry-After pause"),
        (replace(GOOD, refusals=["GET /nowhere"]), "asked what nobody should ask"),
        (replace(GOOD, told=[*GOOD.told, told("d", 2, task_id=None)]), "never asked for"),
        (replace(GOOD, told=[*GOOD.told[:2], told("c", 1, task_id="t1")]), "the task is not its own"),
        (replace(GOOD, told=[*GOOD.told[:2], told("c", 1, task_id=None)]), "its task is None"),
        (replace(GOOD, tasks=[*GOOD.tasks[:2], task("t3", "c", start=3.0, state="FAILED")]), "its task is FAILED"),
        (
            replace(GOOD, told=[*GOOD.told[:2], told("c", 1, task_id=None, reason="not-started")]),
            "c is told not-started, and VCDA has a task for it",
        ),
        (replace(GOOD, told=[*GOOD.told[:2], told("c", 1, task_id="t3", reason="task-lost")]), "still knows its task"),
        (replace(GOOD, told=[*GOOD.told[:2], cut("c", 1)], tasks=GOOD.tasks[:2]), "nobody has cancelled it"),
        (
            replace(GOOD, told=[*GOOD.told[:2], cut("c", 1)], cancelled={"c": True}),
            "c is told cancelled, and VCDA has a task for it",
        ),
        (
            replace(GOOD, told=[*GOOD.told[:2], cut("c", 1, code="Released")], cancelled={"c": False}),
            "nobody has released it",
        ),
        (
            replace(GOOD, tasks=[task("t1", "a", start=4.0), *GOOD.tasks[1:]]),
            "the syncs of R began out of order",
        ),
        (
            replace(GOOD, told=[told("a", 1, task_id="t1"), GOOD.told[1], told("c", 0, task_id="t3")]),
            "the outcomes of R were told out of order",
        ),
        (replace(GOOD, told=GOOD.told[:2], deleted=frozenset({"c"})), "1 requests were gone before"),
        (replace(GOOD, counted_lost=1), "0 requests were gone before they could be read, and 1 are counted"),
        (
            replace(GOOD, endless={"R": "a sync that never ends"}, asked={"a": GOOD.asked["a"]}, told=GOOD.told[:1]),
            "a is told completed, and it has a sync that never ends",
        ),
        (replace(GOOD, calm=(50.0, 200.0), told=[replace(GOOD.told[0], at=116.0), *GOOD.told[1:]]), "a after 66 s"),
        (replace(GOOD, read={"admitted": 5}, produced=4, accounted=True), "5 records have a fate, of 4"),
        (replace(GOOD, read={"admitted": 3, "reread": 1}, produced=4, accounted=True), "3 records have a fate, of 4"),
        (replace(GOOD, skipped=2, produced=4, read={"admitted": 2}), "2 records were read and have no fate"),
        (replace(GOOD, dead=[]), "has 0 dead letters"),
        (replace(GOOD, dead=[letter(11), letter(11)]), "has 2 dead letters"),
        (replace(GOOD, dead=[letter(11, value=b"{ ")]), "was changed on its way"),
        (replace(GOOD, dead=[letter(11, key=None)]), "was changed on its way"),
        (replace(GOOD, dead=[letter(11), letter(10)]), "nothing was wrong with it"),
        (replace(GOOD, spoilt=[replace(GOOD.spoilt[0], lost=True)]), "its dead letter doesn't say so"),
        (replace(GOOD, texts={"a log": "geheim"}), "the secret geh... stands in a log"),
    ],
)
def test_a_promise_that_was_broken_is_named(broken: Evidence, sentence: str) -> None:
    (violation,) = judge(broken).violations

    assert sentence in violation


def test_a_cancelled_request_may_be_told_before_its_elders_and_a_released_one_may_have_a_task() -> None:
    elder = task("t1", "a", start=1.0, state="FAILED")
    outcomes = [cut("b", 0), told("a", 1, task_id="t1", reason="task-failed"), GOOD.told[2]]
    cancelled = replace(GOOD, told=outcomes, tasks=[elder, GOOD.tasks[2]], cancelled={"b": False})
    released = replace(GOOD, told=[*GOOD.told[:2], cut("c", 1, code="Released")], cancelled={"c": True})

    assert judge(cancelled).violations == []
    assert judge(released).violations == []


def test_a_second_task_is_excused_only_if_vcda_had_forgotten_the_first_by_then() -> None:
    def tasks(forgotten_at: float) -> list[Mapping[str, Any]]:
        first = task("t3", "c", start=3.0, forgotten=True, forgottenAt=forgotten_at)
        return [*GOOD.tasks[:2], first, task("t4", "c", start=4.0)]

    told_of_the_second = [*GOOD.told[:2], told("c", 1, task_id="t4")]
    before = judge(replace(GOOD, told=told_of_the_second, tasks=tasks(3.9)))
    after = judge(replace(GOOD, told=told_of_the_second, tasks=tasks(4.1)))

    assert before.violations == []
    assert before.not_promised == {"two tasks: VCDA had forgotten the first before the second was asked for": 1}
    assert after.violations == ["1 requests have two tasks, such as ['c']"]


def test_not_started_is_excused_for_a_sync_that_ran_only_if_vcda_had_forgotten_its_task_by_then() -> None:
    def seen(forgotten_at: float) -> Evidence:
        ran = task("t3", "c", start=3.0, forgotten=True, forgottenAt=forgotten_at)
        late = replace(told("c", 1, task_id=None, reason="not-started"), at=9.0)
        return replace(GOOD, told=[*GOOD.told[:2], late], tasks=[*GOOD.tasks[:2], ran])

    before, after = judge(seen(8.9)), judge(seen(9.1))

    assert before.violations == []
    assert before.not_promised == {"VCDA has a task for it: VCDA had forgotten it before it was looked up": 1}
    assert after.violations == ["c is told not-started, and VCDA has a task for it"]


def test_what_is_not_promised_is_counted_by_case_and_only_where_it_was_provoked() -> None:
    doubled = replace(GOOD, tasks=[*GOOD.tasks, task("t4", "c", start=4.0, overlapped=True)])

    verdict = judge(replace(doubled, foreseen={"R": "too late"}))

    assert verdict.violations == []
    assert verdict.not_promised == {"two tasks: too late": 1, "overlap: too late": 1}


def test_a_rejected_request_with_a_task_is_never_excused() -> None:
    refused = [*GOOD.told[:2], told("c", 1, task_id=None, reason="rejected")]

    verdict = judge(replace(GOOD, told=refused, foreseen={"R": "listed too late"}))

    assert verdict.violations == ["c is told rejected, and VCDA has a task for it"]


def test_requests_that_were_deleted_before_they_could_be_read_are_counted_and_not_lost() -> None:
    verdict = judge(replace(GOOD, told=GOOD.told[:2], deleted=frozenset("abc"), counted_lost=1))

    assert verdict.violations == []
    assert (verdict.figures["lost"], verdict.figures["overtaken"]) == (0, 1)


def test_an_unreadable_message_that_was_sent_again_may_stand_there_twice() -> None:
    twice = replace(GOOD, dead=[*GOOD.dead, letter(13, reason=b"unreadable")], spoilt_twice={3: 1})

    assert judge(twice).violations == []
    assert judge(replace(twice, dead=[*twice.dead, letter(15, reason=b"unreadable")])).violations != []


def test_the_longest_time_without_an_outcome_of_any_partition_is_measured_and_must_keep_its_bound() -> None:
    killed = Disturbance(words="a broker is killed", began=100.0, until=130.0, bound=14.0)
    moments = [(0, 101.0), (0, 114.0), (0, 129.0), (1, 108.0), (1, 120.0), (1, 90.0), (1, 140.0)]
    some = [replace(GOOD.told[0], place=TopicPartition("completed", number), at=at) for number, at in moments]

    (longest,) = judge(replace(GOOD, told=some, disturbances=[killed])).silences
    broken = judge(replace(GOOD, told=some, disturbances=[killed])).violations
    kept = judge(replace(GOOD, told=some, disturbances=[replace(killed, bound=15.0)])).violations

    assert (longest.partition, longest.longest) == (0, 15.0)
    sentence = "partition 0 had no outcome for 15.0 s, of at most 14.0 s: a broker is killed"
    assert sentence in broken
    assert sentence not in kept
    assert not [one for one in kept if "no outcome for" in one]


def test_nothing_told_during_a_disturbance_is_a_silence_as_long_as_it() -> None:
    (longest,) = judge(
        replace(GOOD, told=[], disturbances=[Disturbance(words="", began=100.0, until=130.0, bound=14.0)])
    ).silences

    assert longest.longest == 30.0


def test_a_dead_letter_of_what_an_earlier_release_does_not_know_is_no_wrong() -> None:
    known = replace(GOOD, dead=[*GOOD.dead, letter(13)], foreign=frozenset({(3, 13)}))

    assert judge(known).violations == []
    assert judge(replace(known, dead=[*known.dead, letter(13)])).violations != []


def test_what_has_no_fate_yet_may_have_died_with_who_read_it() -> None:
    assert judge(replace(GOOD, read={"admitted": 2}, produced=4)).violations == []


def test_what_is_odd_may_be_told_late_and_only_that_it_timed_out() -> None:
    odd = replace(
        GOOD,
        odd=frozenset("R"),
        endless={"R": "a sync that never ends"},
        calm=(0.0, 900.0),
        tasks=[task("t1", "a", start=1.0)],
    )
    told_late = [replace(told(name, at, task_id=None, reason="timed-out"), at=800.0) for at, name in enumerate("abc")]

    assert judge(replace(odd, told=told_late)).violations == []


def test_a_request_that_may_not_have_been_sent_may_have_an_outcome_or_none() -> None:
    unsure = replace(GOOD, unsure=frozenset({"d", "e"}), told=[*GOOD.told, told("d", 2, task_id=None)])

    assert judge(unsure).violations == []


def test_a_post_to_a_site_that_an_operator_has_paused_is_found() -> None:
    kept = replace(GOOD, site_pauses=[SitePaused(site="site2", seconds=3.0, posts=0)])
    broken = replace(
        GOOD,
        site_pauses=[SitePaused(site="site2", seconds=3.0, posts=0), SitePaused(site="site1", seconds=2.5, posts=2)],
    )

    assert judge(kept).violations == []
    assert judge(broken).violations == ["2 POSTs came to site site1 within 2.5 s of an operator's pause"]


# ---------------------------------------------------------------- a file of requests

INTERRUPTED = CommandRun(code=130, said="Interrupted: sent 2 of 3.", interrupted=signal.SIGINT)
LAST = CommandRun(code=1, said="", known=frozenset("a"))

SENT = FileSent(
    name="f",
    replications=frozenset({"Ra", "Rb", "Rc"}),
    records={("Ra", "a"): 1, ("Rb", "b"): 2, ("Rc", "c"): 1},
    runs=[INTERRUPTED, replace(LAST, said="The failed requests are in failed.jsonl.")],
    answer={
        "requests": 3,
        "sent": 2,
        "sentBefore": 1,
        "completed": 2,
        "failed": 1,
        "withoutOutcome": 0,
        "failures": [{"replicationId": "Rb", "reason": "task-failed"}],
    },
    failed_to='{"replicationId": "Rb", "failed": {"reason": "task-failed"}}\n',
)


def _of_a_file(file: FileSent, **more: Any) -> Evidence:
    """As GOOD, but each request is of a replication of its own."""
    own = {one: f"R{one}" for one in "abcd"}
    seen = replace(GOOD, **more)
    return replace(
        seen,
        asked={name: replace(one, replication_id=own[name]) for name, one in seen.asked.items()},
        told=[replace(one, event={**one.event, "replicationId": own[one.event["operationID"]]}) for one in seen.told],
        tasks=[{**one, "replicationId": own[one["operationID"]]} for one in seen.tasks],
        files=[file],
    )


def test_a_file_whose_runs_were_interrupted_is_found_sent_once_and_told_right() -> None:
    assert judge(_of_a_file(SENT)).violations == []


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (replace(SENT, replications=SENT.replications | {"Rd"}), "1 of its requests were never sent, such as Rd"),
        (replace(SENT, records={**SENT.records, ("Ra", "a2"): 1}), "1 of its lines became several requests"),
        (replace(SENT, records={**SENT.records, ("Ra", "a"): 2}), "run 2 sent 1 requests again that had ended"),
        (replace(SENT, runs=[replace(INTERRUPTED, code=2), LAST]), "run 1 ended with 2, and said"),
        (replace(SENT, runs=[replace(INTERRUPTED, said="Traceback ..."), SENT.runs[1]]), "and said 'Traceback"),
        (replace(SENT, runs=[replace(INTERRUPTED, code=3, said=" ")]), "run 1 ended with 3, and said ' '"),
        (replace(SENT, runs=[replace(SENT.runs[1], code=0)]), "the last run ended with 0, and 1 requests have failed"),
        (replace(SENT, answer={**SENT.answer, "withoutOutcome": 1}), "the last run printed {'requests': 3"),
        (replace(SENT, answer={**SENT.answer, "sentBefore": 0}), "the last run sent 2 and found 0, of 3"),
        (replace(SENT, answer={**SENT.answer, "failures": []}), "printed other failures than there are"),
        (replace(SENT, failed_to=""), "--failed-to has 0 requests, and not those 1 that have failed"),
        (replace(SENT, failed_to=2 * SENT.failed_to), "--failed-to has 2 requests, and not those 1"),
    ],
)
def test_what_a_command_did_wrong_with_a_file_is_named(broken: FileSent, sentence: str) -> None:
    violations = judge(_of_a_file(broken)).violations

    assert any(violation.startswith("file f: ") and sentence in violation for violation in violations), violations


def test_a_request_of_a_file_whose_record_was_deleted_before_it_was_seen_was_asked_for_all_the_same() -> None:
    unseen = replace(SENT, records={("Ra", "a"): 1, ("Rb", "b"): 2})

    assert judge(_of_a_file(unseen, asked={name: GOOD.asked[name] for name in "ab"})).violations == []


# ---------------------------------------------------------------- cancels that were read


def _cancelled(offset: int, *, release: bool, **more: Any) -> Evidence:
    """Requests of two replications in one partition; `a` has a cancel at this offset."""
    cancel = Cancel(operation_id="a", partition=3, offset=offset, release=release)
    seen = replace(GOOD, cancels=[cancel], cancelled={"a": release}, **more)
    return replace(seen, asked={**seen.asked, "b": replace(seen.asked["b"], replication_id="Other")})


def test_a_released_request_that_ends_after_one_that_was_sent_after_its_release_was_not_released() -> None:
    some = [replace(GOOD.told[2], offset=0), replace(GOOD.told[0], offset=1), GOOD.told[1]]
    other = {**GOOD.asked, "a": replace(GOOD.asked["a"], replication_id="Another")}

    broken = judge(_cancelled(13, release=True, told=some, asked=other)).violations

    assert broken == ["the release of a was ignored: requests behind it ended earlier"]
    assert judge(_cancelled(15, release=True, told=some, asked=other)).violations == []
    assert judge(_cancelled(9, release=True, told=some, asked=other)).violations == []


def test_a_cancelled_request_whose_post_leaves_after_those_behind_the_cancel_was_not_cancelled() -> None:
    some = [replace(one, event={**one.event, "attempts": 1}) for one in GOOD.told]
    other = {**GOOD.asked, "a": replace(GOOD.asked["a"], replication_id="Another")}
    tasks = [task("t1", "a", start=19.0, replicationId="Another"), *GOOD.tasks[1:]]

    broken = judge(_cancelled(13, release=False, told=some, asked=other, tasks=tasks)).violations
    twice = [replace(some[0], event={**some[0].event, "attempts": 2}), *some[1:]]

    assert broken == ["the cancel of a was ignored: POSTs of requests behind it left earlier"]
    assert judge(_cancelled(13, release=False, told=twice, asked=other, tasks=tasks)).violations == []
    assert judge(_cancelled(13, release=False, told=some, asked=other, tasks=GOOD.tasks)).violations == []
