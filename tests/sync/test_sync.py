"""One sync's life, transition by transition, and then any life at all: whatever is seen, one outcome is told."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import sync
from service.sync import (
    LINGER_LIMIT,
    LOST_ANSWERS,
    MISSING_TOGETHER_FACTOR,
    UNCLEAR,
    UNSEEN_LIMIT,
    Absent,
    Accepted,
    Account,
    ApiError,
    Completed,
    Ended,
    Failed,
    Found,
    Gone,
    Instance,
    Lingering,
    Names,
    NotFound,
    NotTaken,
    OnlyOne,
    Policy,
    Reason,
    Refusal,
    Refused,
    Request,
    Running,
    Step,
    Submitting,
    Task,
    Trouble,
    Unanswered,
    Unclear,
    Waiting,
    remembered_until,
)

ME = Account("me")
OTHER = Account("somebody else")
NAMES = Names(frozenset({"me@org"}), learnt=True)
GUESSES = Names(frozenset({"me@org"}), learnt=False)

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=5)
ACCEPTED_AT = NOON - timedelta(minutes=1)
DEADLINE = NOON + timedelta(hours=6)
LIMIT = DEADLINE + LINGER_LIMIT
POLICY = Policy(
    window=timedelta(seconds=2),
    late=timedelta(seconds=90),
    lost_after=timedelta(minutes=10),
    deduplicate_for=timedelta(hours=24),
)
REQUEST = Request(
    identity="op:C4-1:sync-1",
    operation_id="sync-1",
    replication_id="C4-1",
    site=None,
    offset=7,
    requested_at=ACCEPTED_AT,
    accepted_at=ACCEPTED_AT,
    deadline=DEADLINE,
)
SECOND, MINUTES_10 = timedelta(seconds=1), timedelta(minutes=10)
TROUBLE = Trouble(label="5xx", detail="It said 503.")
TASK = Task(id="task-1", state="RUNNING", replication_id="C4-1", user="me@org", started_at=NOON)
INSTANCE = Instance(sequence_number=3, timestamp=LATER, transfer_bytes=1024, transfer_seconds=1.5)
WARNING = ApiError("Slow", "The network is slow.")

WAITING = Waiting(request=REQUEST)
SUBMITTING = Submitting(request=REQUEST, attempts=1, look_from=NOON - timedelta(minutes=1), account=ME)
DOUBT = replace(SUBMITTING, conclusive_from=100.0)
RUNNING = Running(request=REQUEST, attempts=1, task_id="task-1", site=None, account=ME, submitted_at=NOON)
LOST = replace(RUNNING, absent_since=0.0, absent_answers=LOST_ANSWERS)


def answered(state: Submitting | Lingering, seen: sync.SubmitAnswer) -> Step:
    return sync.answered(state, seen, now=LATER, policy=POLICY)


def looked_up(state: Submitting | Lingering, seen: sync.LookUp) -> Step:
    return sync.looked_up(state, seen, now=LATER, policy=POLICY)


def polled(state: Running | Lingering, seen: sync.PollAnswer) -> Step:
    return sync.polled(state, seen, now=LATER, policy=POLICY)


def expired(state: sync.InFlight, *, now: datetime = DEADLINE, behind: str | None = None) -> Step:
    return sync.expired(state, now=now, policy=POLICY, behind=behind)


def lingering(of: Submitting | Running, *, seen_at: datetime | None = DEADLINE) -> Lingering:
    return Lingering(of=of, told_at=DEADLINE, seen_at=seen_at)


# ---------------------------------------------------------------- begin, and being restored


def test_an_intent_counts_the_attempt_and_says_where_a_look_up_would_begin() -> None:
    waiting = replace(WAITING, attempts=2, trouble=WARNING)
    assert sync.begin(waiting, look_from=NOON, account=ME, passed_over=("task-0",), policy=POLICY) == Submitting(
        request=REQUEST,
        attempts=3,
        look_from=NOON,
        account=ME,
        passed_over=("task-0",),
        trouble=WARNING,
        doubt_for=timedelta(seconds=92),
    )


def test_an_intent_is_not_in_doubt_while_its_own_process_is_posting() -> None:
    assert not SUBMITTING.in_doubt


def test_a_restored_intent_is_in_doubt_until_the_window_and_the_latest_post_are_over() -> None:
    state = sync.restored(SUBMITTING, opened_at=50.0, now=LATER, policy=POLICY)
    assert state == replace(SUBMITTING, conclusive_from=50.0 + 92.0)


@pytest.mark.parametrize(("before", "lasts"), [(30.0, 92.0), (300.0, 300.0)])
def test_a_restored_intent_is_in_doubt_for_as_long_as_the_longer_limits_of_both_processes_require(
    before: float, lasts: float
) -> None:
    intent = replace(SUBMITTING, doubt_for=timedelta(seconds=before))
    assert sync.restored(intent, opened_at=50.0, now=LATER, policy=POLICY) == replace(
        intent, conclusive_from=50.0 + lasts
    )
    late = sync.restored(lingering(intent, seen_at=None), opened_at=50.0, now=LATER, policy=POLICY)
    assert late == lingering(replace(intent, conclusive_from=50.0 + lasts), seen_at=LATER)


def test_a_restored_lingering_intent_is_in_doubt_as_well() -> None:
    state = sync.restored(lingering(SUBMITTING, seen_at=None), opened_at=50.0, now=LATER, policy=POLICY)
    assert state == lingering(replace(SUBMITTING, conclusive_from=142.0), seen_at=LATER)


@pytest.mark.parametrize("state", [WAITING, RUNNING])
def test_whatever_is_not_an_intent_is_restored_as_it_was(state: sync.InFlight) -> None:
    assert sync.restored(state, opened_at=50.0, now=LATER, policy=POLICY) is state


def test_a_restored_lingering_task_counts_as_seen_now_since_nobody_asked_before() -> None:
    state = sync.restored(lingering(RUNNING, seen_at=None), opened_at=50.0, now=LATER, policy=POLICY)
    assert state == lingering(RUNNING, seen_at=LATER)


# ---------------------------------------------------------------- how long it is remembered


@given(
    st.timedeltas(timedelta(), timedelta(days=36_500)).map(lambda age: NOON - age),
    st.timedeltas(timedelta(), timedelta(days=30)),
)
def test_an_identity_is_remembered_for_its_time_and_at_most_a_thousandth_longer(
    ended: datetime, keep: timedelta
) -> None:
    longer = remembered_until(ended, deduplicate_for=keep) - ended - keep
    assert timedelta() <= longer <= max(keep / 1000, timedelta.resolution)


def test_identities_that_end_within_a_thousandth_of_the_time_are_remembered_until_a_few_moments() -> None:
    day = timedelta(days=1)
    moments = {remembered_until(NOON + timedelta(seconds=n), deduplicate_for=day) for n in range(86_400)}
    assert len(moments) <= 1_001


# ---------------------------------------------------------------- the answer to a POST


def test_an_accepted_post_is_running_since_vcda_says_so() -> None:
    assert answered(SUBMITTING, Accepted(TASK, ME)) == Step(RUNNING)


def test_a_running_task_is_asked_for_where_the_request_said_or_else_where_the_task_is() -> None:
    there = replace(SUBMITTING, request=replace(REQUEST, site="west"))
    assert getattr(answered(there, Accepted(replace(TASK, site="east"), ME)).state, "site", "") == "west"
    assert getattr(answered(SUBMITTING, Accepted(replace(TASK, site="east"), ME)).state, "site", "") == "east"


def test_a_refused_post_fails_the_request_in_vcdas_own_words() -> None:
    error = ApiError("NotFound", "No such replication.")
    assert answered(SUBMITTING, Refused(error, 404, at=7.0)) == Step(
        Ended(
            request=REQUEST,
            attempts=1,
            reason=Reason.REJECTED,
            ended_at=LATER,
            expires_at=remembered_until(LATER, deduplicate_for=POLICY.deduplicate_for),
            error=error,
            http_status=404,
        ),
        Failed(
            request=REQUEST,
            reason=Reason.REJECTED,
            ended_at=LATER,
            attempts=1,
            task_id=None,
            error=error,
            http_status=404,
        ),
    )


def test_a_post_that_was_turned_away_waits_again_and_its_attempt_counts() -> None:
    assert answered(SUBMITTING, NotTaken(TROUBLE, sent=True)) == Step(
        Waiting(request=REQUEST, attempts=1, trouble=ApiError("5xx", "It said 503."))
    )


def test_a_post_that_never_left_waits_again_and_was_no_attempt() -> None:
    assert answered(SUBMITTING, NotTaken(TROUBLE, sent=False)) == Step(
        Waiting(request=REQUEST, attempts=0, trouble=ApiError("5xx", "It said 503."))
    )


def test_a_request_refused_before_any_post_was_made_tells_of_no_attempt() -> None:
    step = answered(SUBMITTING, Refused(ApiError("NoCredentials", "None for this site."), None, sent=False))
    assert isinstance(step.outcome, Failed)
    assert (step.outcome.reason, step.outcome.attempts) == (Reason.REJECTED, 0)


def test_a_post_held_back_here_leaves_the_trouble_that_vcda_had_told_of() -> None:
    earlier = replace(SUBMITTING, trouble=ApiError("Busy", "A sync is running."))
    held_back = NotTaken(
        Trouble(label=sync.WITHHELD, detail="The call was not sent: the time in which it may be sent was over."),
        sent=False,
    )
    assert answered(earlier, held_back).state == Waiting(
        request=REQUEST, attempts=0, trouble=ApiError("Busy", "A sync is running.")
    )


def test_trouble_is_remembered_in_vcdas_words_where_it_had_any() -> None:
    busy = replace(TROUBLE, error=ApiError("Busy", "A sync is running."))
    step = answered(SUBMITTING, NotTaken(busy, sent=True))
    assert step.state == Waiting(request=REQUEST, attempts=1, trouble=ApiError("Busy", "A sync is running."))


def test_the_status_of_the_answer_is_kept_with_the_trouble_through_the_next_attempt() -> None:
    busy = replace(TROUBLE, http_status=409, error=ApiError("Busy", "A sync is running."))
    waiting = answered(SUBMITTING, NotTaken(busy, sent=True)).state
    assert isinstance(waiting, Waiting)
    assert waiting.http_status == 409
    intent = sync.begin(waiting, look_from=NOON, account=ME, passed_over=(), policy=POLICY)
    assert (intent.trouble, intent.http_status) == (busy.error, 409)
    held_back = NotTaken(Trouble(label=sync.WITHHELD, detail="Held back."), sent=False)
    assert answered(intent, held_back).state == replace(waiting, attempts=1)
    doubt = answered(intent, Unanswered(replace(TROUBLE, http_status=503), 10.0, ME)).state
    assert isinstance(doubt, Submitting)
    assert doubt.http_status == 503
    unclear = looked_up(doubt, Unclear("Nothing is known.", 200.0)).state
    assert isinstance(unclear, Submitting)
    assert unclear.http_status is None


def test_a_lingering_post_that_was_not_taken_keeps_the_error_that_its_outcome_told() -> None:
    step = answered(lingering(replace(SUBMITTING, trouble=WARNING)), Refused(ApiError("No", "Never."), 403, at=7.0))
    assert isinstance(step.state, Ended)
    assert (step.state.error, step.state.http_status) == (WARNING, None)


def test_a_lingering_doubt_that_is_let_go_keeps_the_error_that_its_outcome_told() -> None:
    step = expired(lingering(replace(DOUBT, trouble=WARNING)), now=LIMIT)
    assert isinstance(step.state, Ended)
    assert step.state.error == WARNING


def test_an_unanswered_post_is_in_doubt_until_vcda_cannot_take_it_any_more() -> None:
    step = answered(SUBMITTING, Unanswered(TROUBLE, 10.0, OTHER))
    trouble = ApiError("5xx", "It said 503.")
    assert step == Step(replace(SUBMITTING, conclusive_from=10.0 + 90.0, account=OTHER, trouble=trouble))


def test_an_unanswered_post_keeps_the_account_of_its_intent_where_the_session_is_gone() -> None:
    step = answered(SUBMITTING, Unanswered(TROUBLE, 10.0, None))
    assert getattr(step.state, "account", None) == ME


# ---------------------------------------------------------------- looking for a POST's task


def test_a_found_task_is_adopted_instead_of_posting_again() -> None:
    assert looked_up(DOUBT, Found(TASK, ME)) == Step(replace(RUNNING, adopted=True))


def test_a_found_task_is_adopted_before_the_doubt_is_old_enough_for_the_opposite() -> None:
    assert isinstance(looked_up(replace(DOUBT, conclusive_from=1e9), Found(TASK, ME)).state, Running)


def test_not_there_is_concluded_by_a_look_up_that_began_late_enough() -> None:
    doubt = replace(DOUBT, trouble=WARNING)
    assert looked_up(doubt, NotFound(100.0, ME)) == Step(
        Waiting(request=REQUEST, attempts=1, trouble=WARNING, repeats=1, look_from=DOUBT.look_from)
    )


def test_a_look_up_that_began_too_early_concludes_nothing() -> None:
    assert looked_up(DOUBT, NotFound(99.9, ME)) == Step(DOUBT)


AT_WEST = Account("me", "us@west")


@pytest.mark.parametrize("seen", [NotFound(100.0, OTHER), OnlyOne(replace(TASK, user="?"), 100.0, OTHER)])
def test_a_look_up_under_another_account_concludes_nothing_and_says_so(seen: sync.LookUp) -> None:
    step = looked_up(DOUBT, seen)
    assert step.outcome is None
    assert isinstance(step.state, Submitting)
    assert step.state.trouble is not None
    assert step.state.trouble.code == UNCLEAR
    assert "was sent as me; the look-up is made as somebody else" in step.state.trouble.msg
    assert replace(step.state, trouble=None) == DOUBT


def test_nor_does_one_under_another_account_of_the_site() -> None:
    doubt = replace(DOUBT, account=AT_WEST)
    step = looked_up(doubt, NotFound(100.0, Account("me", "them@west")))
    assert isinstance(step.state, Submitting)
    assert isinstance(looked_up(doubt, NotFound(100.0, AT_WEST)).state, Waiting)


def test_nor_does_one_at_a_remote_site_for_an_intent_that_an_older_release_wrote() -> None:
    assert isinstance(looked_up(DOUBT, NotFound(100.0, AT_WEST)).state, Submitting)
    assert isinstance(looked_up(replace(DOUBT, account=None), NotFound(100.0, AT_WEST)).state, Submitting)


def test_an_intent_that_never_knew_its_account_trusts_whoever_looks_at_the_appliances_own_site() -> None:
    assert isinstance(looked_up(replace(DOUBT, account=None), NotFound(100.0, ME)).state, Waiting)
    assert isinstance(looked_up(replace(DOUBT, account=None), NotFound(100.0, None)).state, Submitting)


def test_a_look_up_that_cannot_tell_leaves_the_post_in_doubt_and_says_why() -> None:
    step = looked_up(DOUBT, Unclear("Is it ours?", 100.0))
    assert step == Step(replace(DOUBT, trouble=ApiError(UNCLEAR, "Is it ours?")))
    assert looked_up(DOUBT, Unclear("Is it ours?", 99.9)) == Step(DOUBT), "its task may be seen yet"


def test_a_task_that_may_be_ours_is_not_taken_before_ours_would_have_to_be_seen() -> None:
    assert looked_up(DOUBT, OnlyOne(TASK, 99.9, ME)) == Step(DOUBT)


def test_how_often_its_posts_came_to_nothing_goes_with_a_request() -> None:
    once = looked_up(DOUBT, NotFound(100.0, ME)).state
    assert isinstance(once, Waiting)
    assert once.repeats == 1
    again = sync.begin(once, look_from=NOON, account=ME, passed_over=(), policy=POLICY)
    assert again.repeats == 1
    assert getattr(answered(again, NotTaken(TROUBLE, sent=True)).state, "repeats", None) == 1
    twice = looked_up(replace(again, conclusive_from=100.0), NotFound(100.0, ME)).state
    assert getattr(twice, "repeats", None) == 2


BUSY = NotTaken(Trouble(label="409", detail="A sync is running.", http_status=409, own=True), sent=True, busy_at=7.0)
REFUSED = Refused(ApiError("Forbidden", "Permission denied."), 403, at=7.0)

REFUSALS = pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        (BUSY, Refusal(ApiError("409", "A sync is running."), 409, busy=True)),
        (REFUSED, Refusal(ApiError("Forbidden", "Permission denied."), 403)),
    ],
)


def repeated() -> Submitting:
    """The intent of a POST that is repeated after look-ups found no task of the first."""
    once = looked_up(replace(DOUBT, passed_over=("task-0",)), NotFound(100.0, ME)).state
    assert isinstance(once, Waiting)
    return sync.begin(once, look_from=NOON, account=ME, passed_over=("task-0", "task-1"), policy=POLICY)


def refused(answer: sync.SubmitAnswer) -> Submitting:
    """The same after VCDA has refused it."""
    state = answered(repeated(), answer).state
    assert isinstance(state, Submitting)
    return state


def test_look_ups_for_a_repeated_post_begin_no_later_than_those_for_the_first() -> None:
    assert repeated().look_from == DOUBT.look_from
    earlier = replace(WAITING, repeats=1, look_from=NOON)
    again = sync.begin(earlier, look_from=NOON - timedelta(1), account=ME, passed_over=(), policy=POLICY)
    assert again.look_from == NOON - timedelta(1)
    assert repeated().passed_over == ("task-0", "task-1")


@REFUSALS
def test_a_refused_repeated_post_may_be_so_because_of_the_task_of_an_earlier_one(
    answer: sync.SubmitAnswer, refusal: Refusal
) -> None:
    doubt = refused(answer)
    assert doubt.conclusive_from == 7.0 + 90.0, "as after any POST in doubt: VCDA may list the task only later"
    assert (doubt.refusal, doubt.trouble, doubt.http_status) == (refusal, refusal.error, refusal.http_status)
    assert looked_up(doubt, NotFound(96.9, ME)) == Step(doubt)
    assert looked_up(doubt, Found(TASK, ME)).outcome is None
    assert looked_up(doubt, Found(TASK, ME)).state == replace(RUNNING, attempts=2, adopted=True)


def test_a_request_waits_again_where_its_replication_is_busy_without_a_task_of_its_own() -> None:
    assert looked_up(refused(BUSY), NotFound(97.0, ME)) == Step(
        Waiting(
            request=REQUEST,
            attempts=2,
            trouble=ApiError("409", "A sync is running."),
            http_status=409,
            repeats=1,
            look_from=DOUBT.look_from,
            passed_over=("task-0", "task-1"),
        )
    )


def test_a_refused_request_ends_in_vcdas_own_words_once_no_task_of_an_earlier_post_is_found() -> None:
    step = looked_up(refused(REFUSED), NotFound(97.0, ME))
    assert isinstance(step.outcome, Failed)
    assert (step.outcome.reason, step.outcome.attempts) == (Reason.REJECTED, 2)
    assert (step.outcome.error, step.outcome.http_status) == (REFUSED.error, 403)
    assert isinstance(step.state, Ended)
    assert (step.state.reason, step.state.error, step.state.http_status) == (Reason.REJECTED, REFUSED.error, 403)


@REFUSALS
@pytest.mark.parametrize("seen", [Unclear("Is it ours?", 97.0), NotFound(97.0, OTHER)])
def test_look_ups_that_cannot_tell_keep_the_refusal_for_the_end(
    answer: sync.SubmitAnswer, refusal: Refusal, seen: sync.LookUp
) -> None:
    unclear = looked_up(refused(answer), seen).state
    assert isinstance(unclear, Submitting)
    assert unclear.trouble is not None
    assert (unclear.trouble.code, unclear.refusal) == (UNCLEAR, refusal)
    end = looked_up(unclear, NotFound(98.0, ME))
    assert isinstance(end.state, Waiting | Ended)
    told = end.state.trouble if isinstance(end.state, Waiting) else end.state.error
    assert (told, end.state.http_status) == (refusal.error, refusal.http_status)


@REFUSALS
def test_a_refusal_is_restored_with_its_doubt(answer: sync.SubmitAnswer, refusal: Refusal) -> None:
    state = sync.restored(refused(answer), opened_at=50.0, now=LATER, policy=POLICY)
    assert state == replace(refused(answer), conclusive_from=50.0 + 92.0)
    assert isinstance(state, Submitting)
    assert state.refusal == refusal


def test_a_refused_repeated_post_whose_task_cannot_be_looked_up_times_out_with_the_refusal() -> None:
    step = expired(refused(REFUSED))
    assert isinstance(step.state, Lingering)
    assert isinstance(step.outcome, Failed)
    assert (step.outcome.reason, step.outcome.error) == (Reason.TIMED_OUT, REFUSED.error)


@REFUSALS
def test_a_lingering_repeated_post_that_is_refused_keeps_its_replication_until_its_task_is_known_not_to_be(
    answer: sync.SubmitAnswer, refusal: Refusal
) -> None:
    step = answered(lingering(repeated()), answer)
    assert step == Step(lingering(refused(answer)))
    assert refused(answer).refusal == refusal
    assert isinstance(step.state, Lingering)
    end = looked_up(step.state, NotFound(97.0, ME))
    assert isinstance(end.state, Ended)
    assert (end.outcome, end.state.reason) == (None, Reason.TIMED_OUT)


def test_a_repeated_post_that_is_refused_before_it_is_made_ends_the_request() -> None:
    step = answered(repeated(), replace(REFUSED, sent=False, at=None))
    assert isinstance(step.outcome, Failed)
    assert (step.outcome.reason, step.outcome.attempts) == (Reason.REJECTED, 1)


def test_a_replication_that_is_busy_at_the_first_post_is_so_with_somebody_elses_task() -> None:
    assert answered(replace(SUBMITTING, passed_over=("task-0",)), BUSY).state == Waiting(
        request=REQUEST, attempts=1, trouble=ApiError("409", "A sync is running."), http_status=409
    )


def test_where_look_ups_reach_back_to_is_kept_while_a_repeated_post_is_not_taken() -> None:
    once = looked_up(replace(DOUBT, passed_over=("task-0",)), NotFound(100.0, ME)).state
    assert isinstance(once, Waiting)
    again = sync.begin(once, look_from=DOUBT.look_from, account=ME, passed_over=(), policy=POLICY)
    for sent in (True, False):
        waits = answered(again, NotTaken(TROUBLE, sent=sent)).state
        assert isinstance(waits, Waiting)
        assert (waits.look_from, waits.passed_over) == (DOUBT.look_from, ("task-0",))


def test_a_post_on_its_way_is_never_concluded_to_be_nowhere() -> None:
    assert looked_up(SUBMITTING, NotFound(1e9, ME)) == Step(SUBMITTING)


# ---------------------------------------------------------------- polls


def test_a_task_that_succeeded_completes_the_request() -> None:
    seen = replace(TASK, state="SUCCEEDED", ended_at=LATER, warnings=(WARNING,), instance=INSTANCE)
    assert sync.polled(RUNNING, seen, now=LATER + timedelta(seconds=3), policy=POLICY) == Step(
        Ended(
            request=REQUEST,
            attempts=1,
            reason=None,
            ended_at=LATER,
            expires_at=remembered_until(LATER + timedelta(seconds=3), deduplicate_for=POLICY.deduplicate_for),
            task_id="task-1",
            submitted_at=NOON,
        ),
        Completed(
            request=REQUEST,
            task_id="task-1",
            submitted_at=NOON,
            ended_at=LATER,
            attempts=1,
            warnings=(WARNING,),
            instance=INSTANCE,
        ),
    )


def test_where_vcda_gives_no_end_the_moment_of_seeing_it_is_taken() -> None:
    step = polled(replace(RUNNING, submitted_at=None), replace(TASK, state="SUCCEEDED"))
    assert isinstance(step.outcome, Completed)
    assert (step.outcome.submitted_at, step.outcome.ended_at) == (NOON, LATER)


HOURS_3, DAY = timedelta(hours=3), timedelta(days=1)


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED"])
@pytest.mark.parametrize(
    ("began", "ended", "possible"),
    [
        (NOON, NOON, True),
        (NOON, NOON - SECOND, False),
        (NOON, LATER + timedelta(minutes=61), True),  # VCDA's clock was set
        (NOON, LATER + timedelta(minutes=61) + SECOND, False),
        (NOON, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), False),
        (NOON, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), False),
        (NOON + HOURS_3, LATER + HOURS_3, True),  # VCDA's clock is ahead
        (NOON - HOURS_3, LATER - HOURS_3, True),
        (None, ACCEPTED_AT - DAY, True),
        (None, ACCEPTED_AT - DAY - SECOND, False),
        (None, LATER + DAY, True),
        (None, LATER + DAY + SECOND, False),
    ],
)
def test_an_end_that_can_not_be_is_not_believed(
    state: str, began: datetime | None, ended: datetime, possible: bool
) -> None:
    seen = replace(TASK, state=state, started_at=began, ended_at=ended)
    step = polled(replace(RUNNING, submitted_at=None), seen)
    assert isinstance(step.outcome, Completed | Failed)
    assert step.outcome.ended_at == (ended if possible else LATER)


@pytest.mark.parametrize(
    ("began", "possible"),
    [
        (ACCEPTED_AT - DAY, True),
        (ACCEPTED_AT - DAY - SECOND, False),
        (LATER + DAY, True),
        (LATER + DAY + SECOND, False),
        (datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), False),
    ],
)
def test_a_beginning_that_can_not_be_is_in_no_outcome_and_stays_what_look_ups_compare(
    began: datetime, possible: bool
) -> None:
    running = replace(RUNNING, submitted_at=began)
    task = replace(TASK, started_at=began, ended_at=LATER)
    for state in ("SUCCEEDED", "FAILED"):
        step = polled(running, replace(task, state=state))
        assert step.outcome is not None
        assert step.outcome.submitted_at == (began if possible else None)
        assert isinstance(step.state, Ended)
        assert step.state.submitted_at == began
        if not possible:
            assert step.outcome.ended_at == LATER, "the end is judged by our clock then"


def test_a_beginning_that_can_not_be_is_in_no_outcome_of_a_request_that_timed_out() -> None:
    step = expired(replace(RUNNING, submitted_at=datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)))
    assert step.outcome is not None
    assert step.outcome.submitted_at is None


def test_a_task_that_failed_fails_the_request_with_its_error_and_warnings() -> None:
    error = ApiError("DiskFull", "No space.")
    step = polled(RUNNING, replace(TASK, state="FAILED", ended_at=NOON, error=error, warnings=(WARNING,)))
    assert step.outcome == Failed(
        request=REQUEST,
        reason=Reason.TASK_FAILED,
        ended_at=NOON,
        attempts=1,
        task_id="task-1",
        submitted_at=NOON,
        warnings=(WARNING,),
        error=error,
    )
    assert isinstance(step.state, Ended)
    assert step.state.reason is Reason.TASK_FAILED


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "SUSPENDED", "", "succeeded"])
def test_any_other_word_is_a_task_that_still_runs(state: str) -> None:
    assert polled(RUNNING, replace(TASK, state=state)) == Step(RUNNING)


@pytest.mark.parametrize("state", ["CANCELLED", "", "succeeded"])
def test_a_task_with_an_end_in_an_unknown_state_fails_its_request_once_it_has_stayed_so(state: str) -> None:
    over = replace(TASK, state=state, ended_at=NOON, warnings=(WARNING,))
    since = replace(RUNNING, over_since=LATER)
    assert polled(RUNNING, over) == Step(since)
    assert sync.polled(since, over, now=LATER + MINUTES_10 - SECOND, policy=POLICY) == Step(since)

    step = sync.polled(since, over, now=LATER + MINUTES_10, policy=POLICY)
    assert step.outcome == Failed(
        request=REQUEST,
        reason=Reason.TASK_FAILED,
        ended_at=NOON,
        attempts=1,
        task_id="task-1",
        submitted_at=NOON,
        warnings=(WARNING,),
        error=ApiError(
            "UnknownTaskState",
            f"The task has ended in the state {state!r}, which vm-sync does not know; it may have succeeded.",
        ),
    )
    own = ApiError("Cancelled", "By an administrator.")
    told = sync.polled(since, replace(over, error=own), now=LATER + MINUTES_10, policy=POLICY).outcome
    assert isinstance(told, Failed)
    assert told.error == own


@pytest.mark.parametrize("then", ["RUNNING", "SUSPENDED"])
def test_a_task_that_has_no_end_any_more_still_runs(then: str) -> None:
    over = polled(RUNNING, replace(TASK, state="SUSPENDED", ended_at=NOON)).state
    assert isinstance(over, Running)
    assert sync.polled(over, replace(TASK, state=then), now=LATER + MINUTES_10, policy=POLICY) == Step(RUNNING)


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING"])
def test_an_end_says_nothing_of_a_task_in_a_state_that_is_known_to_be_none(state: str) -> None:
    assert polled(RUNNING, replace(TASK, state=state, ended_at=NOON)) == Step(RUNNING)


def test_a_task_that_has_ended_in_an_unknown_state_succeeds_if_it_says_so_after_all() -> None:
    state = replace(RUNNING, over_since=NOON)
    assert isinstance(polled(state, replace(TASK, state="SUCCEEDED")).outcome, Completed)


def test_a_poll_that_shows_nothing_new_makes_no_new_state() -> None:
    assert polled(RUNNING, replace(TASK, progress=50)).state is RUNNING


def test_a_start_that_was_unknown_is_learnt_from_a_poll() -> None:
    assert polled(replace(RUNNING, submitted_at=None), TASK) == Step(RUNNING)


def test_absences_are_counted_from_the_first() -> None:
    once = polled(RUNNING, Absent(10.0)).state
    assert once == replace(RUNNING, absent_since=10.0, absent_answers=1)
    assert isinstance(once, Running)
    assert polled(once, Absent(20.0)) == Step(replace(RUNNING, absent_since=10.0, absent_answers=2))


@pytest.mark.parametrize("together", [0, 1, LOST_ANSWERS])
def test_a_task_that_is_seen_again_was_never_lost(together: int) -> None:
    assert polled(replace(LOST, absent_together=together), TASK) == Step(RUNNING)


@pytest.mark.parametrize(
    ("since", "answers", "suspected"),
    [(0.0, LOST_ANSWERS, True), (0.1, LOST_ANSWERS, False), (0.0, LOST_ANSWERS - 1, False), (None, 0, False)],
)
def test_a_task_is_suspected_lost_when_it_was_absent_often_and_long_enough(
    since: float | None, answers: int, suspected: bool
) -> None:
    state = replace(RUNNING, absent_since=since, absent_answers=answers)
    assert state.suspected_lost(600.0, POLICY) is suspected


@pytest.mark.parametrize(
    ("at", "alone", "together", "suspected"),
    [
        (600.0, 0, 1_000, False),
        (600.0, LOST_ANSWERS - 1, 1_000, False),
        (600.0, LOST_ANSWERS, 1_000, True),
        (600.0 * MISSING_TOGETHER_FACTOR - 0.1, 0, 1_000, False),
        (600.0 * MISSING_TOGETHER_FACTOR, 0, LOST_ANSWERS, True),
        (600.0 * MISSING_TOGETHER_FACTOR, 0, LOST_ANSWERS - 1, False),
    ],
)
def test_a_task_that_is_only_ever_missing_together_with_others_is_suspected_lost_much_later(
    at: float, alone: int, together: int, suspected: bool
) -> None:
    state: sync.Sync = RUNNING
    for number in range(together + alone):
        assert isinstance(state, Running)
        state = polled(state, Absent(float(number > 0), together=number < together)).state
    assert isinstance(state, Running)
    assert state.suspected_lost(at, POLICY) is suspected


def test_a_suspected_task_of_which_vcda_denies_all_knowledge_is_lost() -> None:
    step = polled(LOST, Gone(600.0, ME))
    assert step.outcome == Failed(
        request=REQUEST, reason=Reason.TASK_LOST, ended_at=LATER, attempts=1, task_id="task-1", submitted_at=NOON
    )
    assert isinstance(step.state, Ended)


def test_a_suspected_task_whose_id_is_that_of_another_replications_task_is_lost() -> None:
    step = polled(LOST, Absent(600.0, another="C4-9"))
    assert isinstance(step.state, Ended)
    assert isinstance(step.outcome, Failed)
    assert step.outcome.reason is Reason.TASK_LOST
    assert step.outcome.error is not None
    assert step.outcome.error.msg == "VCDA shows task task-1 as a task of another replication, C4-9."


def test_another_replications_task_under_the_same_id_proves_nothing_before_the_time_is_over() -> None:
    assert polled(RUNNING, Absent(5.0, another="C4-9")) == polled(RUNNING, Absent(5.0))


@pytest.mark.parametrize(
    ("shown", "another"),
    [("C4-1", False), ("c4-1", False), ("C4-9", True), ("c4-9", True), ("H4-9", False), (None, False)],
)
def test_a_task_is_of_another_replication_only_where_it_names_one_of_the_same_kind(
    shown: str | None, *, another: bool
) -> None:
    assert sync.is_of_another(replace(TASK, replication_id=shown), "C4-1") is another


def test_a_denial_before_any_suspicion_proves_nothing() -> None:
    assert polled(RUNNING, Gone(600.0, ME)) == Step(RUNNING)


def test_a_denial_to_somebody_else_proves_nothing() -> None:
    assert polled(LOST, Gone(600.0, OTHER)) == Step(LOST)


# ---------------------------------------------------------------- the deadline


@pytest.mark.parametrize("state", [WAITING, SUBMITTING, DOUBT, RUNNING])
def test_before_the_deadline_nothing_expires(state: sync.InFlight) -> None:
    assert expired(state, now=DEADLINE - timedelta(milliseconds=1)) == Step(state)


@pytest.mark.parametrize(
    ("trouble", "behind", "error"),
    [
        (WARNING, "It waited.", WARNING),
        (None, "It waited behind sync-0.", ApiError("NotStarted", "It waited behind sync-0.")),
        (None, None, ApiError("NotStarted", "The deadline passed before the request was submitted.")),
    ],
)
def test_a_waiting_request_past_its_deadline_was_not_started_and_says_why(
    trouble: ApiError | None, behind: str | None, error: ApiError
) -> None:
    step = expired(replace(WAITING, attempts=1, trouble=trouble), behind=behind)
    assert step.outcome == Failed(
        request=REQUEST, reason=Reason.NOT_STARTED, ended_at=DEADLINE, attempts=1, error=error
    )
    assert step.state == Ended(
        request=REQUEST,
        attempts=1,
        reason=Reason.NOT_STARTED,
        ended_at=DEADLINE,
        expires_at=remembered_until(DEADLINE, deduplicate_for=POLICY.deduplicate_for),
        error=error,
    )


def test_a_running_sync_past_its_deadline_is_told_and_lingers() -> None:
    assert expired(RUNNING) == Step(
        lingering(RUNNING),
        Failed(
            request=REQUEST,
            reason=Reason.TIMED_OUT,
            ended_at=DEADLINE,
            attempts=1,
            task_id="task-1",
            submitted_at=NOON,
        ),
    )


@pytest.mark.parametrize("state", [SUBMITTING, DOUBT])
def test_a_post_without_an_answer_past_its_deadline_is_told_and_lingers(state: Submitting) -> None:
    state = replace(state, trouble=WARNING)
    assert expired(state) == Step(
        lingering(state),
        Failed(request=REQUEST, reason=Reason.TIMED_OUT, ended_at=DEADLINE, attempts=1, error=WARNING),
    )


# ---------------------------------------------------------------- cancels and releases


def cancelled(state: sync.InFlight, *, release: bool = False, by: str | None = None, why: str | None = None) -> Step:
    return sync.cancelled(state, release=release, by=by, why=why, now=LATER, policy=POLICY)


def ended_as_cancelled(error: ApiError, *, attempts: int = 1, task_id: str | None = None) -> Step:
    """A request that ended as cancelled, and its outcome, which says the same."""
    submitted_at = NOON if task_id else None
    return Step(
        Ended(
            request=REQUEST,
            attempts=attempts,
            reason=Reason.CANCELLED,
            ended_at=LATER,
            expires_at=remembered_until(LATER, deduplicate_for=POLICY.deduplicate_for),
            task_id=task_id,
            submitted_at=submitted_at,
            error=error,
        ),
        Failed(
            request=REQUEST,
            reason=Reason.CANCELLED,
            ended_at=LATER,
            attempts=attempts,
            task_id=task_id,
            submitted_at=submitted_at,
            error=error,
        ),
    )


@pytest.mark.parametrize("release", [True, False])
@pytest.mark.parametrize(
    ("by", "why", "words"),
    [
        (None, None, "The request was cancelled."),
        ("alice", None, "The request was cancelled by alice."),
        (None, "Site B moves.", "The request was cancelled: Site B moves."),
        ("alice", "Site B moves", "The request was cancelled by alice: Site B moves."),
    ],
)
def test_a_cancel_ends_a_waiting_request_and_the_outcome_says_by_whom_and_why(
    by: str | None, why: str | None, words: str, *, release: bool
) -> None:
    waiting = replace(WAITING, attempts=2, trouble=WARNING, http_status=503)
    step = cancelled(waiting, release=release, by=by, why=why)
    assert step == ended_as_cancelled(ApiError("Cancelled", words), attempts=2)


@pytest.mark.parametrize("state", [SUBMITTING, DOUBT, RUNNING, lingering(DOUBT), lingering(RUNNING)])
def test_a_cancel_changes_nothing_about_what_vcda_has_or_may_have(state: sync.InFlight) -> None:
    step = cancelled(state)
    assert step == Step(state)
    assert step.state is state


@pytest.mark.parametrize("release", [True, False])
def test_an_intent_whose_post_has_not_left_is_cancelled_like_a_waiting_request(*, release: bool) -> None:
    intent = replace(SUBMITTING, attempts=2, trouble=WARNING)
    step = sync.cancelled(intent, sent=False, release=release, by=None, why=None, now=LATER, policy=POLICY)
    assert step == ended_as_cancelled(ApiError("Cancelled", "The request was cancelled."), attempts=1)


def test_a_post_in_doubt_goes_on_though_it_was_not_sent_by_this_process() -> None:
    step = sync.cancelled(DOUBT, sent=False, release=False, by=None, why=None, now=LATER, policy=POLICY)
    assert step == Step(DOUBT)


@pytest.mark.parametrize("state", [SUBMITTING, DOUBT])
def test_a_released_post_ends_as_cancelled_and_says_that_vcda_may_work_on_it(state: Submitting) -> None:
    words = "The request was released by alice: stuck. VCDA may have received its POST, and may work on it."
    step = cancelled(replace(state, trouble=WARNING, http_status=503), release=True, by="alice", why="stuck")
    assert step == ended_as_cancelled(ApiError("Released", words))


def test_a_released_task_ends_as_cancelled_and_is_named() -> None:
    words = "The request was released by alice. VCDA may still work on task task-1."
    step = cancelled(RUNNING, release=True, by="alice")
    assert step == ended_as_cancelled(ApiError("Released", words), task_id="task-1")


def test_a_released_lingering_sync_tells_no_second_outcome_and_its_record_says_who_released_it() -> None:
    step = cancelled(lingering(replace(RUNNING, adopted=True)), release=True, by="alice", why="stuck")
    error = ApiError("Released", "The request was released by alice: stuck. VCDA may still work on task task-1.")
    before = over(task_id="task-1", adopted=True).state
    assert isinstance(before, Ended)
    assert step == Step(replace(before, error=error))


def test_the_task_of_a_post_that_is_answered_after_its_release_is_noted() -> None:
    ended = cancelled(SUBMITTING, release=True).state
    assert isinstance(ended, Ended)
    assert sync.answered_late(ended, Accepted(TASK, ME)) == replace(ended, task_id="task-1", submitted_at=NOON)


# ---------------------------------------------------------------- behind an outcome that was told


def over(*, task_id: str | None = None, adopted: bool = False) -> Step:
    """What is left once a lingering sync is over: nothing more is told, and the reason stays what was told."""
    return Step(
        Ended(
            request=REQUEST,
            attempts=1,
            reason=Reason.TIMED_OUT,
            ended_at=DEADLINE,
            expires_at=remembered_until(LATER, deduplicate_for=POLICY.deduplicate_for),
            task_id=task_id,
            submitted_at=NOON if task_id else None,
            adopted=adopted,
        )
    )


def test_a_lingering_sync_is_about_the_request_that_was_told() -> None:
    assert lingering(RUNNING).request is REQUEST


def test_a_late_answer_makes_a_lingering_post_a_lingering_task() -> None:
    assert answered(lingering(SUBMITTING), Accepted(TASK, ME)) == Step(lingering(RUNNING, seen_at=LATER))


def test_a_lingering_post_without_an_answer_is_in_doubt() -> None:
    step = answered(lingering(SUBMITTING), Unanswered(TROUBLE, 10.0, ME))
    assert isinstance(step.state, Lingering)
    assert isinstance(step.state.of, Submitting)
    assert step.state.of.in_doubt


@pytest.mark.parametrize("seen", [NotTaken(TROUBLE, sent=True), NotTaken(TROUBLE, sent=False), REFUSED])
def test_a_lingering_post_that_was_not_taken_is_over(seen: sync.SubmitAnswer) -> None:
    assert answered(lingering(SUBMITTING), seen) == over()


def test_a_lingering_posts_task_is_still_looked_for_and_followed() -> None:
    step = looked_up(lingering(DOUBT), Found(TASK, ME))
    assert step == Step(lingering(replace(RUNNING, adopted=True), seen_at=LATER))


def test_a_lingering_doubt_is_over_when_its_task_is_known_not_to_be() -> None:
    assert looked_up(lingering(DOUBT), NotFound(100.0, ME)) == over()


def test_a_lingering_doubt_stays_while_nothing_is_concluded() -> None:
    assert looked_up(lingering(DOUBT), NotFound(99.0, ME)) == Step(lingering(DOUBT))


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED"])
def test_a_lingering_task_that_ends_tells_nothing_more(state: str) -> None:
    seen = replace(TASK, state=state, ended_at=LATER)
    assert polled(lingering(replace(RUNNING, adopted=True)), seen) == over(task_id="task-1", adopted=True)


def test_a_lingering_task_that_has_ended_in_an_unknown_state_is_over_once_it_has_stayed_so() -> None:
    seen = replace(TASK, state="CANCELLED", ended_at=LATER)
    first = lingering(replace(RUNNING, over_since=LATER), seen_at=LATER)
    assert polled(lingering(RUNNING), seen) == Step(first)
    later = LATER + MINUTES_10
    step = sync.polled(first, seen, now=later, policy=POLICY)
    assert isinstance(step.state, Ended)
    assert step.state.reason is Reason.TIMED_OUT
    assert step.outcome is None


def test_a_lingering_task_that_is_lost_is_over() -> None:
    assert polled(lingering(LOST), Gone(600.0, ME)) == over(task_id="task-1")


def test_a_lingering_task_that_runs_keeps_lingering() -> None:
    assert polled(lingering(RUNNING), TASK) == Step(lingering(RUNNING, seen_at=LATER))
    assert polled(lingering(RUNNING), Absent(1.0)).state == lingering(
        replace(RUNNING, absent_since=1.0, absent_answers=1)
    )


def test_a_lingering_post_has_no_task_to_be_polled() -> None:
    assert polled(lingering(DOUBT), TASK) == Step(lingering(DOUBT))


@pytest.mark.parametrize(
    ("seen_at", "over_at"),
    [
        (None, LIMIT),
        (DEADLINE, LIMIT),
        (LIMIT - UNSEEN_LIMIT, LIMIT),
        (LIMIT - timedelta(minutes=5), LIMIT - timedelta(minutes=5) + UNSEEN_LIMIT),
        (LIMIT + timedelta(days=3), LIMIT + timedelta(days=3) + UNSEEN_LIMIT),
    ],
)
def test_a_lingering_task_holds_its_replication_past_the_limit_only_while_vcda_shows_it_as_unfinished(
    seen_at: datetime | None, over_at: datetime
) -> None:
    state = lingering(RUNNING, seen_at=seen_at)
    assert sync.let_go_at(state) == over_at
    assert expired(state, now=over_at - timedelta(milliseconds=1)) == Step(state)
    step = expired(state, now=over_at)
    assert step.outcome is None, "it was told"
    assert isinstance(step.state, Ended)
    assert (step.state.reason, step.state.ended_at, step.state.task_id) == (Reason.TIMED_OUT, DEADLINE, "task-1")


@pytest.mark.parametrize(
    ("state", "occupies"),
    [(WAITING, False), (SUBMITTING, True), (DOUBT, True), (RUNNING, True), (lingering(RUNNING), True)],
)
def test_what_vcda_has_or_may_have_occupies_a_place_at_its_site(state: sync.Sync, occupies: bool) -> None:
    assert sync.occupies(state, now=LIMIT - timedelta(milliseconds=1)) is occupies


def test_past_the_limit_a_lingering_sync_occupies_no_place_though_its_task_is_still_seen() -> None:
    assert not sync.occupies(lingering(RUNNING, seen_at=LIMIT), now=LIMIT)
    assert not sync.occupies(over().state, now=LIMIT)


def test_a_doubt_that_nobody_can_resolve_lets_go_of_its_replication_in_the_end() -> None:
    state = lingering(DOUBT, seen_at=LIMIT)
    assert expired(state, now=LIMIT - timedelta(milliseconds=1)) == Step(state)
    step = expired(state, now=LIMIT)
    assert step.outcome is None
    assert isinstance(step.state, Ended)
    assert (step.state.reason, step.state.ended_at) == (Reason.TIMED_OUT, DEADLINE)


@pytest.mark.parametrize("ask", [lambda s: answered(s, Accepted(TASK, ME)), lambda s: looked_up(s, Found(TASK, ME))])
def test_an_answer_to_a_post_whose_task_is_known_already_is_a_bug(ask: Callable[[Lingering], Step]) -> None:
    with pytest.raises(TypeError, match="has a task already"):
        ask(lingering(RUNNING))


# ---------------------------------------------------------------- which task is ours


def recognised(*tasks: Task, doubt: Submitting = DOUBT, names: Names = NAMES) -> sync.LookUp:
    return sync.recognised(tasks, doubt, names=names, began=100.0, account=ME)


def test_the_earliest_of_several_own_tasks_is_adopted() -> None:
    tasks = [replace(TASK, id=f"task-{n}", started_at=NOON + timedelta(seconds=n)) for n in (3, 1, 2)]
    assert recognised(*tasks) == Found(tasks[1], ME)


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "RUNNING", "QUEUED"])
def test_a_task_is_ours_whether_it_still_runs_or_has_ended(state: str) -> None:
    task = replace(TASK, state=state)
    assert recognised(task) == Found(task, ME)


def test_a_task_just_at_the_start_of_the_look_up_is_ours() -> None:
    task = replace(TASK, started_at=DOUBT.look_from)
    assert recognised(task) == Found(task, ME)


@pytest.mark.parametrize("names", [NAMES, GUESSES])
def test_a_task_without_user_or_start_is_ours_since_passing_it_over_would_mean_posting_twice(names: Names) -> None:
    task = replace(TASK, user=None, started_at=None)
    assert recognised(task, names=names) == Found(task, ME)


def test_a_task_that_names_its_replication_in_another_letter_case_is_ours() -> None:
    task = replace(TASK, replication_id="c4-1")
    assert recognised(task) == Found(task, ME)


CANNOT_BE_OURS = {
    "another replication's": replace(TASK, replication_id="C4-2"),
    "older than our POST": replace(TASK, started_at=DOUBT.look_from - timedelta(milliseconds=1)),
    "an earlier request's": replace(TASK, id="task-0"),
}


@pytest.mark.parametrize("names", [NAMES, GUESSES])
@pytest.mark.parametrize("task", CANNOT_BE_OURS.values(), ids=CANNOT_BE_OURS)
def test_a_task_that_cannot_be_ours_is_passed_over(task: Task, names: Names) -> None:
    doubt = replace(DOUBT, passed_over=("task-0",))
    assert recognised(task, doubt=doubt, names=names) == NotFound(100.0, ME)
    assert recognised(replace(task, user="?"), doubt=doubt, names=names) == NotFound(100.0, ME)


@pytest.mark.parametrize("user", ["ME@ORG", r"org\me", "Org/Me", "org:me", "me @ org"])
def test_a_task_by_a_name_of_ours_in_another_form_is_ours(user: str) -> None:
    task = replace(TASK, user=user)
    assert recognised(task, names=Names(frozenset({"me@org"}), learnt=True)) == Found(task, ME)


@pytest.mark.parametrize("user", ["me@org2", "me", "org", "me2@org", "me.org", "?"])
def test_a_task_by_a_name_with_other_parts_than_ours_is_another_users(user: str) -> None:
    task = replace(TASK, user=user)
    assert recognised(task, names=Names(frozenset({"me@org"}), learnt=True)) == NotFound(100.0, ME)


def test_another_users_task_is_passed_over_once_vcda_has_shown_how_it_spells_ours() -> None:
    task = replace(TASK, user="org2@site2")
    assert recognised(task) == NotFound(100.0, ME)
    assert recognised(replace(task, replication_id=None)) == NotFound(100.0, ME)


def test_until_then_a_single_task_by_an_unknown_user_may_be_ours() -> None:
    task = replace(TASK, user="org2@site2")
    assert recognised(task, names=GUESSES) == OnlyOne(task, 100.0, ME)
    assert looked_up(DOUBT, OnlyOne(task, 100.0, ME)) == Step(replace(RUNNING, adopted=True))


def test_until_then_of_several_tasks_by_unknown_users_it_cannot_be_told() -> None:
    tasks = (replace(TASK, user="org2@site2"), replace(TASK, id="task-2", user="org3@site2"))
    seen = recognised(*tasks, names=GUESSES)
    assert isinstance(seen, Unclear)
    assert "2 tasks by org2@site2, org3@site2" in seen.why


def test_a_task_by_a_name_of_ours_is_taken_before_those_by_unknown_ones() -> None:
    assert recognised(replace(TASK, id="task-2", user="org2@site2"), TASK, names=GUESSES) == Found(TASK, ME)


@pytest.mark.parametrize("user", ["me@org", None])
def test_a_task_that_does_not_name_its_replication_keeps_anything_from_being_concluded(user: str | None) -> None:
    seen = recognised(replace(TASK, replication_id=None, user=user))
    assert isinstance(seen, Unclear)
    assert "task-1" in seen.why
    assert recognised(replace(TASK, id="task-2", replication_id=None), TASK) == Found(TASK, ME)


# ---------------------------------------------------------------- any life at all


moments = st.floats(0.0, 2_000.0)
accounts = st.sampled_from([ME, OTHER, None])
troubles = st.builds(
    Trouble, label=st.sampled_from(["429", "timeout"]), detail=st.just("."), error=st.sampled_from([None, WARNING])
)
tasks = st.builds(
    Task,
    id=st.sampled_from(["task-1", "task-2"]),
    state=st.sampled_from(["QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "PAUSED"]),
    site=st.sampled_from([None, "west"]),
    started_at=st.sampled_from([None, NOON]),
    ended_at=st.sampled_from([None, LATER]),
)
answers = st.one_of(
    st.builds(Accepted, tasks, accounts),
    st.builds(Refused, st.just(WARNING), st.sampled_from([400, None]), st.booleans(), st.none() | moments),
    st.builds(NotTaken, troubles, st.booleans()),
    st.builds(NotTaken, troubles, st.just(True), moments),
    st.builds(Unanswered, troubles, moments, accounts),
)
look_ups = st.one_of(
    st.builds(Found, tasks, accounts),
    st.builds(OnlyOne, tasks, moments, accounts),
    st.builds(Unclear, st.just("Is it ours?"), moments),
    st.builds(NotFound, moments, accounts),
)
poll_answers = st.one_of(
    tasks,
    st.builds(Absent, moments, st.booleans(), st.sampled_from([None, "C4-9"])),
    st.builds(Gone, moments, accounts),
)


@dataclass(frozen=True)
class Seen:
    """One thing that may happen next: an hour passes, a restart, a cancel, or the world says something."""

    what: str
    answer: sync.SubmitAnswer | None = None
    look_up: sync.LookUp | None = None
    poll: sync.PollAnswer | None = None


happenings = st.one_of(
    st.builds(Seen, st.sampled_from(["time", "time", "time", "cancel", "release"])),
    st.builds(Seen, st.just("restart")),
    st.builds(Seen, st.just("world"), answers, look_ups, poll_answers),
)


@dataclass
class Life:
    """Drives a sync as a partition would: each state is shown only what can be seen in it."""

    state: sync.Sync = WAITING
    now: datetime = ACCEPTED_AT
    told: list[sync.Outcome] = field(default_factory=list)
    taken: bool = False
    """VCDA said that it has a task for it, or may have taken the POST."""

    def step(self, seen: Seen) -> None:
        before, state = self.state, self.state
        step = Step(state)
        if isinstance(state, Ended):
            return
        if seen.what == "time":
            self.now += timedelta(hours=1)
            step = sync.expired(state, now=self.now, policy=POLICY)
        elif seen.what in {"cancel", "release"}:
            release = seen.what == "release"
            step = sync.cancelled(state, release=release, by="alice", why=None, now=self.now, policy=POLICY)
            assert isinstance(step.state, Ended) == (release or isinstance(state, Waiting))
        elif seen.what == "restart":
            step = Step(sync.restored(state, opened_at=1.0, now=self.now, policy=POLICY))
        elif isinstance(state, Waiting):
            step = Step(sync.begin(state, look_from=NOON, account=ME, passed_over=(), policy=POLICY))
        else:
            step = self._hear(state, seen)
        self.state = step.state
        self.check(before, step)

    def expire(self) -> None:
        """Let what is due by now expire."""
        if isinstance(self.state, Ended):
            return
        before, step = self.state, sync.expired(self.state, now=self.now, policy=POLICY)
        self.state = step.state
        self.check(before, step)

    def _hear(self, state: Submitting | Running | Lingering, seen: Seen) -> Step:
        assert seen.answer is not None
        assert seen.look_up is not None
        assert seen.poll is not None
        of = state.of if isinstance(state, Lingering) else state
        if isinstance(of, Running):
            assert isinstance(state, Running | Lingering)
            return sync.polled(state, seen.poll, now=self.now, policy=POLICY)
        assert isinstance(state, Submitting | Lingering)
        if of.in_doubt:
            return sync.looked_up(state, seen.look_up, now=self.now, policy=POLICY)
        return sync.answered(state, seen.answer, now=self.now, policy=POLICY)

    def check(self, before: sync.Sync, step: Step) -> None:
        """What holds at every single step."""
        if step.outcome is not None:
            assert not isinstance(before, Lingering), "its outcome was told already"
            self.told.append(step.outcome)
        assert len(self.told) <= 1
        after = step.state
        attempts = after.of.attempts if isinstance(after, Lingering) else after.attempts
        assert attempts >= 0
        assert bool(self.told) == isinstance(after, Lingering | Ended), "told when, and only when, nothing can follow"
        if isinstance(after, Waiting):
            assert isinstance(before, Waiting | Submitting), "what runs, or was told, is never begun again"
        assert after.request is REQUEST


@given(st.lists(happenings, max_size=30))
def test_whatever_happens_one_outcome_is_told_in_the_end_and_never_two(seen: list[Seen]) -> None:
    life = Life()
    for one in seen:
        life.step(one)
    for _ in range(40):  # time passes its deadline; VCDA answers, denies the POST, and ends its task
        life.step(Seen("time"))
        life.step(Seen("restart"))
        life.step(
            Seen(
                "world",
                NotTaken(TROUBLE, sent=True),
                NotFound(1e9, ME),
                replace(TASK, state="SUCCEEDED"),
            )
        )
    assert isinstance(life.state, Ended)
    assert len(life.told) == 1
    (outcome,) = life.told
    reason = outcome.reason if isinstance(outcome, Failed) else None
    assert life.state.reason == reason, "the record tells what the outcome told"
    assert outcome.request is REQUEST
    assert life.state.attempts == outcome.attempts


@given(st.lists(happenings, max_size=30))
def test_a_timed_out_sync_keeps_its_replication_until_its_task_has_ended_or_is_known_not_to_be(
    seen: list[Seen],
) -> None:
    life = Life(state=SUBMITTING)
    for one in seen:
        before, at = life.state, life.now
        life.step(one)
        if not (isinstance(before, Lingering) and isinstance(life.state, Ended)):
            continue
        if one.what == "release":
            continue
        if isinstance(before.of, Running):
            ended = isinstance(one.poll, Task) and one.poll.state in {"SUCCEEDED", "FAILED"}
            lost = isinstance(one.poll, Gone) or (isinstance(one.poll, Absent) and one.poll.another is not None)
            assert ended or lost or (one.what == "time" and life.now >= sync.let_go_at(before))
        elif one.what == "time":
            assert at + timedelta(hours=1) >= DEADLINE + LINGER_LIMIT
        elif before.of.in_doubt:
            assert isinstance(one.look_up, NotFound)
            assert before.of.conclusive_from is not None
            assert one.look_up.began >= before.of.conclusive_from
        else:
            assert isinstance(one.answer, NotTaken | Refused)


REACHABLE: tuple[sync.InFlight, ...] = (WAITING, SUBMITTING, DOUBT, RUNNING, LOST)
habits: st.SearchStrategy[list[Seen]] = st.one_of(st.just([]), st.lists(happenings, min_size=1, max_size=2))
"""What VCDA says again and again; nothing at all, as often as not."""


@given(st.sampled_from(REACHABLE), st.booleans(), st.lists(happenings, max_size=3), habits)
def test_no_state_is_without_an_exit_whatever_vcda_says_or_does_not_say(
    start: Waiting | Submitting | Running, lingers: bool, first: list[Seen], habit: list[Seen]
) -> None:
    """From any state, some things happen, and then the same things over and over, or none, until days have passed."""
    life = Life(state=start)
    if lingers:
        life.now = DEADLINE
        step = expired(start)
        life.state, life.told = step.state, [step.outcome] if step.outcome is not None else []
    hour = timedelta(hours=1)
    proof_at = life.now
    """When VCDA last showed the task as unfinished, or a process took the sync up."""
    for n in range(6 * 24 * 4):
        life.now += hour / 4
        says = first[n] if n < len(first) else habit[n % len(habit)] if habit else None
        if says is not None and not isinstance(life.state, Ended):
            before = life.state
            life.step(says)
            if says.what == "restart" or shows_it_unfinished(before, says):
                proof_at = life.now
        life.expire()
        assert life.told or life.now < DEADLINE + hour, "no outcome an hour after the deadline"
        if life.now >= LIMIT + hour:
            assert not sync.occupies(life.state, now=life.now), "its place at the site is still taken"
            assert isinstance(life.state, Ended) or life.now < proof_at + hour, "held without a proof"


def shows_it_unfinished(state: sync.Sync, says: Seen) -> bool:
    """Whether what is said in this state proves that the sync's task exists and has not ended."""
    of = state.of if isinstance(state, Lingering) else state
    if says.what != "world" or not isinstance(of, Running | Submitting):
        return False
    if isinstance(of, Running):
        return isinstance(says.poll, Task) and says.poll.state not in {"SUCCEEDED", "FAILED"}
    return isinstance(says.look_up, Found | OnlyOne) if of.in_doubt else isinstance(says.answer, Accepted)


@given(
    st.lists(tasks),
    st.sets(st.sampled_from(["task-1", "task-2"])),
    st.sampled_from(["C4-1", "c4-1", "C4-2", None]),
    st.sampled_from([NAMES, GUESSES]),
    st.sampled_from(["me@org", "org2@site2", None]),
)
def test_nothing_is_concluded_to_be_nowhere_while_a_task_may_be_ours_and_no_other_requests_task_is_adopted(
    seen: list[Task], passed_over: set[str], replication_id: str | None, names: Names, user: str | None
) -> None:
    shown = [replace(task, replication_id=replication_id, user=user) for task in seen]
    left = [task for task in shown if task.id not in passed_over]
    match recognised(*shown, doubt=replace(DOUBT, passed_over=tuple(passed_over)), names=names):
        case Found(task) | OnlyOne(task):
            assert task in left
            assert replication_id in {"C4-1", "c4-1"}
        case Unclear():
            assert replication_id is None or (user == "org2@site2" and not names.learnt)
        case NotFound():
            assert not left or replication_id == "C4-2" or (user == "org2@site2" and names.learnt)
