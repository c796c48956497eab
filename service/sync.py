"""One sync: everything that can be true of a request, and every way it can change. Pure.

Rule 1: every change of a request's state is written in this module.
Rule 2: no clock, no loop, no I/O, no library. Time and observations are arguments.
Rule 3: exactly one step of a request returns its outcome.

    Waiting --begin--> Submitting --Accepted--> Running --SUCCEEDED--> Ended (Completed)
       ^                 |    |                    |
       |                 |    +--Refused-----------|-----------------> Ended (Failed: rejected)
       +--NotTaken-------+                         +--FAILED---------> Ended (Failed: task-failed)
       +--not there------+  (in doubt: look for    +--ended otherwise> Ended (Failed: task-failed)
                             its task first;       +--gone-----------> Ended (Failed: task-lost)
                             found: Running)

    The deadline passes:  Waiting -----------------> Ended (Failed: not-started)
                          Submitting, Running -----> Lingering (Failed: timed-out)

    A cancel:             Waiting -----------------> Ended (Failed: cancelled); also an intent whose POST has not left
    A release, as well:   Submitting, Running -----> Ended (Failed: cancelled)
                          Lingering ---------------> Ended (its outcome, timed-out, is written)

A POST that is repeated after a doubt, and refused, is in doubt again: the cause may be the task of an earlier POST. The
refusal takes effect once look-ups have found no such task.

A `Lingering` sync has its outcome, but its task may still run at VCDA, which has no cancel. Its replication is held
until the task has ended, or is known not to exist: otherwise two syncs of one replication would overlap.

Every state has an exit. LINGER_LIMIT after its deadline a lingering sync no longer occupies a slot of its site, and its
replication is free, unless VCDA still shows the task as unfinished (UNSEEN_LIMIT). An operator can release it at any
time.

Two kinds of time: `datetime` is wall time, and is stored in the journal; `float` is the monotonic clock of this
process, and is never stored.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, TypeAlias, assert_never

# ---------------------------------------------------------------- requests and limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An accepted request. `offset` in the requests topic is its order among the requests for one replication."""

    identity: str
    operation_id: str
    replication_id: str
    site: str | None
    offset: int
    requested_at: datetime
    accepted_at: datetime
    deadline: datetime
    traceparent: str | None = None
    tracestate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The limits that transitions use. Safety depends on `window` and `late`; the others are preferences."""

    window: timedelta
    """W: a POST is sent only within this time after the sending of a successful commit."""
    late: timedelta
    """D: how long after its sending a POST may still create a task: REQUEST_TIMEOUT + SYNC__SETTLE."""
    lost_after: timedelta
    """How long VCDA must answer without a task before the task may count as lost."""
    deduplicate_for: timedelta
    """How long an ended request's identity is remembered, at least."""

    @property
    def restored_doubt(self) -> timedelta:
        """How long after the next owner's producer start a POST of this process may still create a task."""
        return self.window + self.late


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

LOST_ANSWERS = 3
"""A task must be missing from at least so many valid answers: one empty page proves nothing."""

MISSING_TOGETHER_FACTOR = 6
"""How many times `lost_after` a task must be absent that is only ever missing together with most of the others of its
polls. An hour by default: longer than the restart of an appliance or the failover of its database, during which tasks
may be missing that come back; well before the default deadline, 6 h."""

LINGER_LIMIT = timedelta(hours=24)
"""How long after its deadline a lingering sync occupies a slot of its site, and holds its replication if VCDA does not
show the task. Longer than any session of VCDA lives (24 h)."""

UNSEEN_LIMIT = timedelta(minutes=45)
"""Past LINGER_LIMIT: how long ago VCDA must have shown the task as unfinished, at the latest, for the sync to hold its
replication further. Several times the longest pause between two polls of a task whose polls fail (10 min), and less
than the hour after which a replication without a visible task has to be free."""

CLOCK_SET: Final = timedelta(hours=1)
"""By how much VCDA's clock may be set while a task runs, for the end that it gives the task to be believed."""

CLOCKS_APART: Final = timedelta(days=1)
"""By how much VCDA's clock and ours may differ, for what VCDA says of a task's beginning and end to be believed."""


# ---------------------------------------------------------------- observations


MAX_TEXT: Final = 1_000
"""Characters of each text taken over from VCDA, which sets no limit of its own."""

MAX_LIST: Final = 20
"""How many warnings of a task, and how many arguments of an error, are taken over."""


@dataclass(frozen=True, slots=True)
class ApiError:
    """An error from VCDA, without its stack trace, with texts cut at MAX_TEXT where they are read."""

    code: str
    msg: str
    args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """The replication's latest instance, from the task's result."""

    sequence_number: int | None
    timestamp: datetime | None
    transfer_bytes: int | None
    transfer_seconds: float | None


class TaskState(StrEnum):
    """Task states with a meaning here. Only two end a task; in any other state, known or not, the task is running.

    Unless VCDA shows a task in an unknown state together with its end, again and again: see `_unfinished`.
    """

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


KNOWN_STATES: Final = frozenset(TaskState)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as VCDA showed it. `site` is where to ask for it; moments are VCDA's clock, None where it gave none."""

    id: str
    state: str
    site: str | None = None
    user: str | None = None
    replication_id: str | None = None
    progress: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: ApiError | None = None
    warnings: tuple[ApiError, ...] = ()
    instance: Instance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A failed call that says nothing about the request itself. Expected, and therefore a value."""

    label: str
    """For metrics: `429`, `5xx`, `timeout`, `error` ..."""
    detail: str
    """A sentence for people, without secrets."""
    http_status: int | None = None
    error: ApiError | None = None
    retry_after: timedelta | None = None
    """The time of VCDA's Retry-After."""
    own: bool = False
    """True where it concerns this replication alone (409), so that the site's other requests go on."""
    no_session: bool = False
    """True where the call failed for want of a session at VCDA, or of its extension: it says nothing of the site."""


WITHHELD = "withheld"
"""The trouble's label of a POST that the service itself did not send: it says nothing about the site."""


WITHOUT_CREDENTIALS = "NoCredentials"
"""The code of the error of a request that is rejected, since there are no credentials for its site."""

CANCELLED = "Cancelled"
"""The code of the error of a request that was cancelled before it was submitted."""

UNKNOWN_END = "UnknownTaskState"
"""The code of the error of a request whose task has ended in a state that isn't known here."""

OTHER_TASK = "OtherTask"
"""The code of the error of a request whose task's id VCDA has given to a task of another replication."""

RELEASED = "Released"
"""The code of the error of a request that was released: VCDA may still work on it."""

NO_CREDENTIALS = "no_credentials"
"""The trouble's label where no call was made, since this process has no credentials for the site."""


@dataclass(frozen=True, slots=True)
class Account:
    """The account of a call to a site: VCDA shows a user only their own tasks.

    `at_site` is the user that the session was extended with for a remote site; None for the local site, and in records
    of releases that did not store it: such a record of a remote site equals no account.
    """

    user: str
    at_site: str | None = None

    @property
    def words(self) -> str:
        """Return the account's name for a sentence."""
        return self.user if self.at_site is None else f"{self.user} ({self.at_site} at the site)"


@dataclass(frozen=True, slots=True)
class Spelling:
    """A user name on tasks of a site, learnt for an account from the task in the answer to a POST."""

    account: Account
    site: str | None
    name: str
    task_type: str | None = None
    """That task's type, where it is another than the documented one."""


@dataclass(frozen=True, slots=True)
class Names:
    """The possible names of the service's user on tasks of a site. `learnt`: VCDA has shown one of them.

    Before that the names are guesses, and a task of any other user may be the service's too.
    """

    names: frozenset[str]
    learnt: bool

    def include(self, user: str) -> bool:
        r"""Whether this is one of the names, or one in another form.

        An upgrade of VCDA may write "Org1\admin1" for "admin1@Org1", or another letter case, while a POST is in doubt.
        """
        return user in self.names or _parts(user) in map(_parts, self.names)


_PART: Final = re.compile(r"[^\s@\\/:]+")
"""A part of a user's name: its user, its organisation, or its site."""

UNCLEAR = "LookUpUnclear"
"""The code of the error that a request carries while look-ups for its POST can't tell whether the task is there."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """202 and a task."""

    task: Task
    account: Account | None


@dataclass(frozen=True, slots=True)
class Refused:
    """VCDA refused the request, and a repetition would not change that."""

    error: ApiError
    http_status: int | None
    sent: bool = True
    """False where it was refused before a POST was made: there are no credentials for the site, or no such site."""
    at: float | None = None
    """When VCDA answered a POST so. None: this is no answer to a POST."""


@dataclass(frozen=True, slots=True)
class NotTaken:
    """The POST created no task for certain: it was not sent, or VCDA refused it for a reason that may pass."""

    trouble: Trouble
    sent: bool
    busy_at: float | None = None
    """When VCDA answered that the replication is busy (409). None: it did not."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """VCDA may have received the POST, and there is no complete, understood answer."""

    trouble: Trouble
    sent_at: float
    account: Account | None


SubmitAnswer: TypeAlias = Accepted | Refused | NotTaken | Unanswered


@dataclass(frozen=True, slots=True)
class Found:
    """A look-up found the task of the POST in doubt."""

    task: Task
    account: Account | None


@dataclass(frozen=True, slots=True)
class OnlyOne:
    """A look-up that began at `began` found one task that may be the POST's; whose task it is, is unknown."""

    task: Task
    began: float
    account: Account | None


@dataclass(frozen=True, slots=True)
class Unclear:
    """A look-up that began at `began` could not decide whether the task exists; `why` is a sentence."""

    why: str
    began: float


@dataclass(frozen=True, slots=True)
class NotFound:
    """A look-up that began at `began` was answered completely, without a task that may be the POST's."""

    began: float
    account: Account | None


LookUp: TypeAlias = Found | OnlyOne | Unclear | NotFound


@dataclass(frozen=True, slots=True)
class Absent:
    """A valid answer to a poll, without the task."""

    at: float
    together: bool = False
    """Most of the polled tasks are missing from this answer, which points to a fault of VCDA rather than a lost
    task."""
    another: str | None = None
    """The replication whose task VCDA shows under this task's id, as after its database was restored from a backup."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Polled for the task alone, VCDA answered 404 with an ApiError."""

    at: float
    account: Account | None


PollAnswer: TypeAlias = Task | Absent | Gone


# ---------------------------------------------------------------- outcomes


class Reason(StrEnum):
    """The reason of a failed request, as in the contract."""

    TASK_FAILED = "task-failed"
    REJECTED = "rejected"
    TIMED_OUT = "timed-out"
    TASK_LOST = "task-lost"
    NOT_STARTED = "not-started"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The task succeeded."""

    request: Request
    task_id: str
    submitted_at: datetime | None
    ended_at: datetime
    attempts: int
    warnings: tuple[ApiError, ...] = ()
    instance: Instance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The sync failed, or its result is unknown, and the reason."""

    request: Request
    reason: Reason
    ended_at: datetime
    attempts: int
    task_id: str | None = None
    submitted_at: datetime | None = None
    warnings: tuple[ApiError, ...] = ()
    error: ApiError | None = None
    http_status: int | None = None


Outcome: TypeAlias = Completed | Failed


# ---------------------------------------------------------------- states


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Accepted, and VCDA has no task for it. `trouble` is the cause of the last failed attempt."""

    request: Request
    attempts: int = 0
    trouble: ApiError | None = None
    http_status: int | None = None
    """Of the answer that `trouble` is from; None: there was none."""
    repeats: int = 0
    """How many POSTs of it were in doubt, and then concluded not to have been taken."""
    look_from: datetime | None = None
    """Of the first of these POSTs, since the conclusion may have been wrong; None: there was none."""
    passed_over: tuple[str, ...] = ()
    """Likewise."""

    def looks_from(self, moment: datetime) -> datetime:
        """Return where look-ups for the next POST begin, if those for a first POST would begin at `moment`."""
        return moment if self.look_from is None else min(moment, self.look_from)


@dataclass(frozen=True, slots=True)
class Refusal:
    """VCDA's refusal of a repeated POST. It takes effect once no task of an earlier POST of the request is found."""

    error: ApiError
    http_status: int | None
    busy: bool = False
    """The replication is busy (409), so that the request waits for its next POST. Otherwise the request ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitting:
    """The intent to POST, committed before the POST. If it is restored from a journal, the POST is in doubt.

    `look_from` is the start of the look-up on VCDA's clock, margin included, and of a repeated POST that of the first
    one in doubt; `passed_over` the recent tasks of this replication that belong to earlier requests; `account` the
    POST's account, since VCDA shows a user only their own tasks.
    """

    request: Request
    attempts: int
    look_from: datetime
    account: Account | None = None
    passed_over: tuple[str, ...] = ()
    conclusive_from: float | None = None
    """In doubt: a look-up that began earlier can't conclude that the task isn't there. None: not in doubt."""
    trouble: ApiError | None = None
    http_status: int | None = None
    """As in `Waiting`, here and below."""
    repeats: int = 0
    refusal: Refusal | None = None
    """VCDA refused this POST. In doubt is whether the cause is the task of an earlier POST of the request, although
    look-ups had found none."""
    doubt_for: timedelta = timedelta()
    """`Policy.restored_doubt` of the process that made the intent, since it may have had longer limits than the process
    that restores it. Zero in records of releases that did not store it."""

    @property
    def in_doubt(self) -> bool:
        """Whether the POST is in doubt and has to be looked up."""
        return self.conclusive_from is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """VCDA has a task for the request. `site` is the site to poll."""

    request: Request
    attempts: int
    task_id: str
    site: str | None
    account: Account | None
    submitted_at: datetime | None
    adopted: bool = False
    absent_since: float | None = None
    absent_answers: int = 0
    absent_together: int = 0
    """Those of them in which most other tasks were missing as well."""
    over_since: datetime | None = None
    """Since when VCDA has shown this process the task in an unknown state, and with an end. Not written down."""

    def suspected_lost(self, at: float, policy: Policy) -> bool:
        """Whether the task has been missing often and long enough to be polled alone."""
        if self.absent_since is None or self.absent_answers < LOST_ANSWERS:
            return False
        alone = self.absent_answers - self.absent_together >= LOST_ANSWERS
        patience = policy.lost_after * (1 if alone else MISSING_TOGETHER_FACTOR)
        return at - self.absent_since >= patience.total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lingering:
    """The request has its outcome (`timed-out`), but its POST or task may still be active; the replication is held."""

    of: Submitting | Running
    told_at: datetime
    seen_at: datetime | None = None
    """When VCDA last showed the task to this process as unfinished, or else when this process took the sync up, since
    silence before that proves nothing. Not written down."""

    @property
    def request(self) -> Request:
        """The request that has timed out."""
        return self.of.request


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An ended sync: enough to recognise a duplicate, to ignore its task in look-ups, and to show its history."""

    request: Request
    attempts: int
    reason: Reason | None
    ended_at: datetime
    expires_at: datetime
    task_id: str | None = None
    submitted_at: datetime | None = None
    adopted: bool = False
    error: ApiError | None = None
    """The outcome's error and HTTP status."""
    http_status: int | None = None


InFlight: TypeAlias = Waiting | Submitting | Running | Lingering
Sync: TypeAlias = InFlight | Ended


@dataclass(frozen=True, slots=True)
class Step:
    """The next state, and the outcome, if this step decides it."""

    state: Sync
    outcome: Outcome | None = None


# ---------------------------------------------------------------- transitions


def begin(
    waiting: Waiting, *, look_from: datetime, account: Account | None, passed_over: tuple[str, ...], policy: Policy
) -> Submitting:
    """Make the intent to POST. It must be committed before a byte of the POST is sent."""
    return Submitting(
        request=waiting.request,
        attempts=waiting.attempts + 1,
        look_from=waiting.looks_from(look_from),
        account=account,
        passed_over=tuple(dict.fromkeys((*waiting.passed_over, *passed_over))),
        trouble=waiting.trouble,
        http_status=waiting.http_status,
        repeats=waiting.repeats,
        doubt_for=policy.restored_doubt,
    )


def restored(state: InFlight, *, opened_at: float, now: datetime, policy: Policy) -> InFlight:
    """Restore a sync from the journal: the POST of an intent is in doubt."""
    match state:
        case Submitting():
            return _put_in_doubt(state, opened_at=opened_at, policy=policy)
        case Lingering(of=of):
            if isinstance(of, Submitting):
                of = _put_in_doubt(of, opened_at=opened_at, policy=policy)
            return replace(state, of=of, seen_at=now)
        case Waiting() | Running():
            return state
        case _:
            assert_never(state)


def answered(state: Submitting | Lingering, seen: SubmitAnswer, *, now: datetime, policy: Policy) -> Step:
    """Apply the result of the POST."""
    if isinstance(state, Lingering):
        return _lingering(state, answered(_doubt(state), seen, now=now, policy=policy), now=now, policy=policy)
    match seen:
        case Accepted(task, account):
            return Step(_running(state, task, account, adopted=False))
        case Refused(error, http_status, at=float() as at) if state.repeats:
            return _look_again(state, Refusal(error, http_status), at, policy=policy)
        case NotTaken(trouble, busy_at=float() as at) if state.repeats:
            return _look_again(state, Refusal(_words(trouble), trouble.http_status, busy=True), at, policy=policy)
        case Refused(error, http_status, sent):
            tried = state if sent else replace(state, attempts=state.attempts - 1)
            return _failed(
                tried, Reason.REJECTED, now=now, ended_at=now, policy=policy, error=error, http_status=http_status
            )
        case NotTaken(trouble, sent):
            # A POST that the service itself did not send is no reason why the request had to wait.
            withheld = trouble.label == WITHHELD
            return Step(
                Waiting(
                    request=state.request,
                    attempts=state.attempts if sent else state.attempts - 1,
                    trouble=state.trouble if withheld else _words(trouble),
                    http_status=state.http_status if withheld else trouble.http_status,
                    repeats=state.repeats,
                    look_from=state.look_from if state.repeats else None,
                    passed_over=state.passed_over if state.repeats else (),
                )
            )
        case Unanswered(trouble, sent_at, account):
            return Step(
                replace(
                    state,
                    conclusive_from=sent_at + policy.late.total_seconds(),
                    account=account or state.account,
                    trouble=_words(trouble),
                    http_status=trouble.http_status,
                )
            )
        case _:
            assert_never(seen)


def looked_up(state: Submitting | Lingering, seen: LookUp, *, now: datetime, policy: Policy) -> Step:
    """Apply the result of a look-up for a POST in doubt."""
    if isinstance(state, Lingering):
        return _lingering(state, looked_up(_doubt(state), seen, now=now, policy=policy), now=now, policy=policy)
    match seen:
        case Found(task, account):
            return Step(_running(state, task, account, adopted=True))
        case _ if state.conclusive_from is None or seen.began < state.conclusive_from:
            return Step(state)
        case Unclear(why):
            return Step(replace(state, trouble=ApiError(UNCLEAR, why), http_status=None))
        case OnlyOne(account=account) | NotFound(account=account) if not _may_conclude(state, account):
            unclear = ApiError(UNCLEAR, _another(state.account, account))
            return Step(replace(state, trouble=unclear, http_status=None))
        case OnlyOne(task, _, account):
            return Step(_running(state, task, account, adopted=True))
        case NotFound() if (refusal := state.refusal) is not None:
            if refusal.busy:
                return Step(_again(state, refusal.error, refusal.http_status, repeats=state.repeats))
            error, http_status = refusal.error, refusal.http_status
            return _failed(
                state, Reason.REJECTED, now=now, ended_at=now, policy=policy, error=error, http_status=http_status
            )
        case NotFound():
            return Step(_again(state, state.trouble, state.http_status, repeats=state.repeats + 1))
        case _:
            assert_never(seen)


def polled(state: Running | Lingering, seen: PollAnswer, *, now: datetime, policy: Policy) -> Step:
    """Apply the result of a poll."""
    if isinstance(state, Lingering):
        if not isinstance(state.of, Running):
            return Step(state)
        shown = replace(state, seen_at=now) if isinstance(seen, Task) else state
        return _lingering(shown, polled(state.of, seen, now=now, policy=policy), now=now, policy=policy)
    match seen:
        case Task():
            return _shown(state, seen, now=now, policy=policy)
        case Absent(at, together, another):
            absent = replace(
                state,
                absent_since=at if state.absent_since is None else state.absent_since,
                absent_answers=state.absent_answers + 1,
                absent_together=state.absent_together + together,
            )
            if another is None or not absent.suspected_lost(at, policy):
                return Step(absent)
            # Polled alone, VCDA would never answer 404: it knows the id.
            why = f"VCDA shows task {state.task_id} as a task of another replication, {another}."
            error = ApiError(OTHER_TASK, why)
            return _failed(absent, Reason.TASK_LOST, now=now, ended_at=now, policy=policy, error=error)
        case Gone(at, account):
            if not state.suspected_lost(at, policy) or account != state.account:
                return Step(state)
            return _failed(state, Reason.TASK_LOST, now=now, ended_at=now, policy=policy)
        case _:
            assert_never(seen)


def expired(state: InFlight, *, now: datetime, policy: Policy, behind: str | None = None) -> Step:
    """Apply the passing of time: decide the outcome at the deadline, and end a lingering sync without a visible task.

    `behind` is a sentence for a waiting request that never had its turn.
    """
    match state:
        case Lingering():
            return _let_go(state, now=now, policy=policy) if now >= let_go_at(state) else Step(state)
        case _ if now < state.request.deadline:
            return Step(state)
        case Waiting():
            return _failed(
                state,
                Reason.NOT_STARTED,
                now=now,
                ended_at=now,
                policy=policy,
                error=state.trouble
                or ApiError("NotStarted", behind or "The deadline passed before the request was submitted."),
            )
        case Submitting() | Running():
            outcome = _outcome(state, Reason.TIMED_OUT, now=now, ended_at=now, error=_told_error(state))
            return Step(Lingering(of=state, told_at=now, seen_at=now), outcome)
        case _:
            assert_never(state)


def cancelled(
    state: InFlight,
    *,
    release: bool,
    by: str | None,
    why: str | None,
    now: datetime,
    policy: Policy,
    sent: bool = True,
) -> Step:
    """Apply a cancel: it ends a waiting request. Others go on unless they are released, since VCDA has no cancel.

    A release ends the request at once and frees its replication, whatever VCDA does. `by` and `why` say who cancelled
    or released it, and for what reason. `sent` is False while the POST of an intent has not left this process, and
    never will after this step: then the request counts as waiting.
    """
    match state:
        case Submitting(in_doubt=False) if not sent:
            waits = Waiting(request=state.request, attempts=state.attempts - 1)
            return cancelled(waits, release=release, by=by, why=why, now=now, policy=policy)
        case Waiting():
            error = ApiError(CANCELLED, _on_request("The request was cancelled", by=by, why=why))
            return _failed(state, Reason.CANCELLED, now=now, ended_at=now, policy=policy, error=error)
        case _ if not release:
            return Step(state)
        case Submitting() | Running():
            error = _released(state, by=by, why=why)
            return _failed(state, Reason.CANCELLED, now=now, ended_at=now, policy=policy, error=error)
        case Lingering():
            ended = _ended(state.of, Reason.TIMED_OUT, ended_at=state.told_at, now=now, policy=policy)
            return Step(replace(ended, error=_released(state.of, by=by, why=why)))
        case _:
            assert_never(state)


def answered_late(ended: Ended, seen: Accepted) -> Ended:
    """Note the task of a POST that was answered after its request was released: the task is no other request's."""
    return replace(ended, task_id=seen.task.id, submitted_at=seen.task.started_at)


def is_of_another(task: Task, replication_id: str) -> bool:
    """Whether a task is another replication's. An id of another kind ("H4-..." for "C4-...") proves nothing."""
    if task.replication_id is None or task.replication_id == replication_id:
        return False
    shown, sought = task.replication_id.casefold(), replication_id.casefold()
    return shown != sought and shown.split("-")[0] == sought.split("-")[0]


def is_over(task: Task) -> bool:
    """Whether a task that has neither succeeded nor failed shows an end nevertheless, in a state that is unknown."""
    return task.ended_at is not None and task.state not in KNOWN_STATES


def let_go_at(state: Lingering) -> datetime:
    """Return when a lingering sync ends unless VCDA shows its task as unfinished again.

    A POST in doubt has no task that could be seen.
    """
    limit = state.request.deadline + LINGER_LIMIT
    if isinstance(state.of, Submitting) or state.seen_at is None:
        return limit
    return max(limit, state.seen_at + UNSEEN_LIMIT)


def occupies(state: Sync, *, now: datetime) -> bool:
    """Whether the sync occupies a slot of its site; a lingering sync does so until LINGER_LIMIT has passed."""
    match state:
        case Submitting() | Running():
            return True
        case Lingering():
            return now < state.request.deadline + LINGER_LIMIT
        case Waiting() | Ended():
            return False
        case _:
            assert_never(state)


def recognised(
    tasks: Iterable[Task], doubt: Submitting, *, names: Names, began: float, account: Account | None
) -> LookUp:
    """Interpret a look-up for a POST in doubt; `tasks` are all sync tasks of its answer.

    The POST's task has the same replication id, began at `look_from` or later, belongs to no earlier request, and has
    the service's user; of several such tasks the earliest is taken. A task without a start counts as recent, a task
    without a user as the service's. While the spelling of the service's user is unknown, a task with any other user may
    be the service's: a single such task is adopted once the POST's task would have to be visible; several are
    undecidable. So is a task without a replication id.
    """
    replication_id = doubt.request.replication_id.casefold()
    young = [
        task
        for task in tasks
        if (task.replication_id is None or task.replication_id.casefold() == replication_id)
        and task.id not in doubt.passed_over
        and (task.started_at is None or task.started_at >= doubt.look_from)
        and (task.user is None or not names.learnt or names.include(task.user))
    ]
    named = [task for task in young if task.replication_id is not None]
    own = [task for task in named if task.user is None or names.include(task.user)]
    if own:
        return Found(min(own, key=lambda task: task.started_at or doubt.look_from), account)
    if len(young) > len(named):
        nameless = next(task for task in young if task.replication_id is None)
        return Unclear(f"Task {nameless.id} has no replication id: it may be the task of this request.", began)
    if len(named) > 1:
        users = ", ".join(sorted({str(task.user) for task in named}))
        why = (
            f"One of {len(named)} tasks by {users} may be this service's: how VCDA spells the service's user on tasks "
            "is not known yet."
        )
        return Unclear(why, began)
    return OnlyOne(named[0], began, account) if named else NotFound(began, account)


# ---------------------------------------------------------------- helpers


def _parts(user: str) -> frozenset[str]:
    """Return what a user's name consists of, whatever the order, the signs between and the letter case."""
    return frozenset(_PART.findall(user.casefold()))


def _put_in_doubt(state: Submitting, *, opened_at: float, policy: Policy) -> Submitting:
    """Put a restored POST in doubt, for as long as the limits of the process that sent it require."""
    lasts = max(state.doubt_for, policy.restored_doubt)
    return replace(state, conclusive_from=opened_at + lasts.total_seconds())


def _doubt(state: Lingering) -> Submitting:
    if not isinstance(state.of, Submitting):
        msg = f"{state.request.identity} has a task already: no POST of it can be answered"
        raise TypeError(msg)
    return state.of


def _look_again(state: Submitting, refusal: Refusal, at: float, *, policy: Policy) -> Step:
    """Put a repeated POST in doubt that VCDA refused at `at`: the cause may be the task of an earlier one.

    VCDA may list that task only some time after it has refused the POST. So look-ups conclude no earlier than those for
    a POST without an answer.
    """
    return Step(
        replace(
            state,
            conclusive_from=at + policy.late.total_seconds(),
            trouble=refusal.error,
            http_status=refusal.http_status,
            refusal=refusal,
        )
    )


def _again(state: Submitting, trouble: ApiError | None, http_status: int | None, *, repeats: int) -> Waiting:
    """Let a request wait for its next POST after look-ups that found no task of the earlier ones."""
    return Waiting(
        request=state.request,
        attempts=state.attempts,
        trouble=trouble,
        http_status=http_status,
        repeats=repeats,
        look_from=state.look_from,
        passed_over=state.passed_over,
    )


def _may_conclude(doubt: Submitting, account: Account | None) -> bool:
    """Whether this account would see the POST's task. Earlier releases wrote intents without an account."""
    if doubt.account is None:
        return account is not None and account.at_site is None
    return account == doubt.account


def _lingering(state: Lingering, step: Step, *, now: datetime, policy: Policy) -> Step:
    """Apply a step to a lingering sync: it decides no further outcome and starts no POST."""
    match step.state:
        case Submitting() | Running() as of:
            found = isinstance(state.of, Submitting) and isinstance(of, Running)
            return Step(replace(state, of=of, seen_at=now if found else state.seen_at))
        case Waiting() | Lingering():  # the latter is impossible: a lingering sync doesn't linger again
            return _let_go(state, now=now, policy=policy)
        case Ended() as ended:
            told = _told_error(state.of)
            return Step(replace(ended, reason=Reason.TIMED_OUT, ended_at=state.told_at, error=told, http_status=None))
        case _:
            assert_never(step.state)


def _let_go(state: Lingering, *, now: datetime, policy: Policy) -> Step:
    """End a lingering sync without another outcome, which frees its replication."""
    ended = _ended(state.of, Reason.TIMED_OUT, ended_at=state.told_at, now=now, policy=policy)
    return Step(replace(ended, error=_told_error(state.of)))


def _released(of: Submitting | Running, *, by: str | None, why: str | None) -> ApiError:
    done = _on_request("The request was released", by=by, why=why)
    if isinstance(of, Submitting):
        return ApiError(RELEASED, f"{done} VCDA may have received its POST, and may work on it.")
    return ApiError(RELEASED, f"{done} VCDA may still work on task {of.task_id}.")


def _on_request(what: str, *, by: str | None, why: str | None) -> str:
    """Say in a sentence what was done, by whom and why."""
    by_whom = "" if by is None else f" by {by}"
    return f"{what}{by_whom}." if why is None else f"{what}{by_whom}: {why.removesuffix('.')}."


def _told_error(of: Submitting | Running) -> ApiError | None:
    """Return the error of the outcome `timed-out`."""
    return of.trouble if isinstance(of, Submitting) else None


def _unknown_end(task: Task) -> ApiError:
    shown = f"{task.state!r:.40}"
    return ApiError(
        UNKNOWN_END, f"The task has ended in the state {shown}, which vm-sync does not know; it may have succeeded."
    )


def _another(made_as: Account | None, asked_as: Account | None) -> str:
    made, asked = (account.words if account else "an unknown account" for account in (made_as, asked_as))
    return f"The POST was sent as {made}; the look-up is made as {asked}, which may have no right to see the task."


def _running(state: Submitting, task: Task, account: Account | None, *, adopted: bool) -> Running:
    return Running(
        request=state.request,
        attempts=state.attempts,
        task_id=task.id,
        site=state.request.site or task.site,
        account=account,
        submitted_at=task.started_at,
        adopted=adopted,
    )


def _words(trouble: Trouble) -> ApiError:
    return trouble.error or ApiError(trouble.label, trouble.detail)


def _possible(moment: datetime | None, request: Request, *, now: datetime) -> datetime | None:
    """Return what VCDA says of when a request's task began or ended; None where VCDA doesn't, or says what can't be."""
    if moment is None or not request.accepted_at - CLOCKS_APART <= moment <= now + CLOCKS_APART:
        return None
    return moment


def _end_of(state: Running, task: Task, *, now: datetime) -> datetime:
    """Return when a task ended, as VCDA says; `now` where VCDA doesn't, or says what can't be.

    No task ends before it began, nor runs for longer than its request is known. The beginning is by the same clock as
    the end, which may be hours from ours.
    """
    ended = _possible(task.ended_at, state.request, now=now)
    began = _possible(state.submitted_at, state.request, now=now)
    if ended is None or began is None:
        return ended or now
    return ended if timedelta() <= ended - began <= now - state.request.accepted_at + CLOCK_SET else now


def _shown(state: Running, task: Task, *, now: datetime, policy: Policy) -> Step:
    """Apply what VCDA shows of the task. A beginning that was unknown is learnt from any answer."""
    if state.submitted_at is None:
        state = replace(state, submitted_at=task.started_at)
    match task.state:
        case TaskState.SUCCEEDED:
            return _completed(state, task, now=now, policy=policy)
        case TaskState.FAILED:
            return _task_failed(state, task, task.error, now=now, policy=policy)
        case _:
            return _unfinished(state, task, now=now, policy=policy)


def _completed(state: Running, task: Task, *, now: datetime, policy: Policy) -> Step:
    ended_at = _end_of(state, task, now=now)
    return Step(
        _ended(state, None, ended_at=ended_at, now=now, policy=policy),
        Completed(
            request=state.request,
            task_id=state.task_id,
            submitted_at=_possible(state.submitted_at, state.request, now=now),
            ended_at=ended_at,
            attempts=state.attempts,
            warnings=task.warnings,
            instance=task.instance,
        ),
    )


def _unfinished(state: Running, task: Task, *, now: datetime, policy: Policy) -> Step:
    """Apply a poll's answer with the task in another state than the two that end it.

    A task that has an end, in an unknown state ("CANCELLED", say), is over: that is what VCDA's documentation says of
    the end. Its request fails, since it isn't known whether it succeeded; not at once, since VCDA may write the end
    before the state.
    """
    over_since = (state.over_since or now) if is_over(task) else None
    if over_since is not None and now - over_since >= policy.lost_after:
        return _task_failed(state, task, task.error or _unknown_end(task), now=now, policy=policy)
    if state.absent_since is None and state.over_since == over_since:
        return Step(state)  # the usual case
    return Step(
        replace(
            state,
            absent_since=None,
            absent_answers=0,
            absent_together=0,
            over_since=over_since,
        )
    )


def _task_failed(state: Running, task: Task, error: ApiError | None, *, now: datetime, policy: Policy) -> Step:
    ended_at = _end_of(state, task, now=now)
    return _failed(
        state, Reason.TASK_FAILED, now=now, ended_at=ended_at, policy=policy, error=error, warnings=task.warnings
    )


def _failed(
    state: Waiting | Submitting | Running,
    reason: Reason,
    *,
    now: datetime,
    ended_at: datetime,
    policy: Policy,
    error: ApiError | None = None,
    http_status: int | None = None,
    warnings: tuple[ApiError, ...] = (),
) -> Step:
    outcome = _outcome(
        state, reason, now=now, ended_at=ended_at, error=error, http_status=http_status, warnings=warnings
    )
    ended = _ended(state, reason, ended_at=ended_at, now=now, policy=policy)
    return Step(replace(ended, error=error, http_status=http_status), outcome)


def _outcome(
    state: Waiting | Submitting | Running,
    reason: Reason,
    *,
    now: datetime,
    ended_at: datetime,
    error: ApiError | None = None,
    http_status: int | None = None,
    warnings: tuple[ApiError, ...] = (),
) -> Failed:
    running = state if isinstance(state, Running) else None
    return Failed(
        request=state.request,
        reason=reason,
        ended_at=ended_at,
        attempts=state.attempts,
        task_id=running.task_id if running else None,
        submitted_at=_possible(running.submitted_at, state.request, now=now) if running else None,
        warnings=warnings,
        error=error,
        http_status=http_status,
    )


def remembered_until(ended: datetime, *, deduplicate_for: timedelta) -> datetime:
    """Return until when the identity of what ended then is remembered: up to a thousandth of the time longer.

    Syncs that end one after another thus share a moment, and one object in memory.
    """
    expires = ended + deduplicate_for
    grain = max(deduplicate_for / 1000, timedelta.resolution)
    return expires + (EPOCH - expires) % grain


def _ended(
    state: Waiting | Submitting | Running,
    reason: Reason | None,
    *,
    ended_at: datetime,
    now: datetime,
    policy: Policy,
) -> Ended:
    running = state if isinstance(state, Running) else None
    return Ended(
        request=state.request,
        attempts=state.attempts,
        reason=reason,
        ended_at=ended_at,
        expires_at=remembered_until(now, deduplicate_for=policy.deduplicate_for),
        task_id=running.task_id if running else None,
        submitted_at=running.submitted_at if running else None,
        adopted=running.adopted if running else False,
    )
