"""VCDA's answers and their effect on a request: one table, for a test and for docs/vcda-answers.md.

Each row has a site of its own, since troubles pause a site: so all rows run side by side, each as if it were alone.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

from service.sandbox.vcda.faults import Fault

REQUEST_TIMEOUT: Final = 4
SETTLE: Final = 2
"""Seconds. A POST without an answer is in doubt for both together."""

LOST_AFTER: Final = 2
"""Seconds, too."""

OUR_SITE: Final = "the local site"
STRANGE_SITE: Final = "a site without credentials"
UNKNOWN_SITE: Final = "a site that VCDA doesn't know"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a request ended: its outcome, and what of it can be seen at VCDA."""

    outcome: str
    """`completed`, or the reason."""
    code: str | None = None
    http_status: int | None = None
    attempts: int | None = 1
    """As the outcome tells. None, here and below: chance decides."""
    posts: int | None = 1
    """As VCDA counts them."""
    tasks: int = 1
    adopted: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that VCDA does; `answer` and `then` are its words on the page."""

    answer: str
    then: str
    ends: End
    faults: tuple[Fault, ...] = ()
    plan: dict[str, Any] = field(default_factory=dict)
    deadline: int | None = None
    """Seconds; enough for a busy machine to get a POST out."""
    site: str | None = None
    """Where it isn't one made for this row."""


DONE: Final = End(outcome="completed")
RENEWED: Final = End(outcome="completed", attempts=None, posts=2)
"""The second POST belongs to the first attempt, unless login and extension took longer than the submit window."""

AGAIN: Final = End(outcome="completed", attempts=2, posts=2)
ADOPTED: Final = End(outcome="completed", adopted=True)

OF_REPLICATION: Final = "VCDA itself refuses the request, and a repetition would not change that: the request ends."
LOOKED_FOR: Final = "In doubt: a look-up finds the task."
NOT_FOUND: Final = "In doubt: look-ups find no task until VCDA can no longer create it; then the POST is repeated."
PASSES: Final = "Not accepted: the POST is repeated after a pause."
WAITS: Final = "No call to the site for exactly the time asked for; then the POST is repeated."
LOGS_IN: Final = "Not accepted: a new login, then the POST is repeated."
ASKED_AGAIN: Final = "A failed poll is not a failed sync: the task is polled again after a pause."


def _submit(**fault: Any) -> tuple[Fault, ...]:
    return (Fault(operation="submit", times=1, **fault),)


def _refused(status: int, code: str) -> End:
    return End(outcome="rejected", code=code, http_status=status, tasks=0)


SUBMITS: Final = (
    Row(answer="202 and a task", then="The task is polled until it has ended.", ends=DONE),
    Row(
        answer=f"202, for {OUR_SITE} by its name",
        then="The task is polled until it has ended.",
        ends=DONE,
        site=OUR_SITE,
    ),
    Row(
        answer="400 with an ApiError",
        then=OF_REPLICATION,
        ends=_refused(400, "BadUserInput"),
        faults=_submit(answer="status", status=400),
    ),
    Row(
        answer="400 with an ApiError of 5,000 characters",
        then="The same; the outcome contains the first 1,000 characters.",
        ends=_refused(400, "BadUserInput"),
        faults=_submit(answer="status", status=400, msg="x" * 5000),
    ),
    Row(
        answer="401 `Authentication Token Required`: the session is gone",
        then=LOGS_IN,
        ends=RENEWED,
        faults=_submit(answer="status", status=401, challenge=True),
    ),
    Row(
        answer="401 `NotAuthenticated`: the session can't start operations any more",
        then=LOGS_IN,
        ends=RENEWED,
        faults=_submit(answer="status", status=401),
    ),
    Row(
        answer="401 `RemoteAuthenticationFailure`: the session isn't extended to the site any more",
        then="Not accepted: the session is extended again, then the POST is repeated.",
        ends=RENEWED,
        faults=_submit(answer="status", status=401, code="RemoteAuthenticationFailure"),
    ),
    Row(
        answer="401 after every login",
        then="Calls to the site and logins pause; the request waits until its deadline.",
        ends=End(outcome="not-started", code="NotAuthenticated", tasks=0, attempts=None, posts=None),
        faults=(Fault(operation="submit", answer="status", status=401),),
        deadline=12,
    ),
    Row(
        answer="403 with an ApiError",
        then=OF_REPLICATION,
        ends=_refused(403, "Forbidden"),
        faults=_submit(answer="status", status=403),
    ),
    Row(
        answer="403 with a proxy's page",
        then=NOT_FOUND,
        ends=AGAIN,
        faults=_submit(answer="status", status=403, html=True),
    ),
    Row(
        answer="404 with an ApiError",
        then=OF_REPLICATION,
        ends=_refused(404, "ReplicationNotFound"),
        faults=_submit(answer="status", status=404),
    ),
    Row(
        answer="404 with a proxy's page, while VCDA restarts behind it",
        then=NOT_FOUND,
        ends=AGAIN,
        faults=_submit(answer="status", status=404, html=True),
    ),
    Row(
        answer="404 `SiteNotFound`",
        then=OF_REPLICATION,
        ends=End(outcome="rejected", code="SiteNotFound", http_status=404, attempts=0, posts=0, tasks=0),
        site=UNKNOWN_SITE,
    ),
    Row(
        answer="no call: no credentials are configured for the site",
        then="The request ends.",
        ends=End(outcome="rejected", code="NoCredentials", attempts=0, posts=0, tasks=0),
        site=STRANGE_SITE,
    ),
    Row(
        answer="409 with an ApiError",
        then="Not accepted: this replication waits about 10 s; other replications of the site don't wait.",
        ends=AGAIN,
        faults=_submit(answer="status", status=409),
    ),
    Row(
        answer="409 until the deadline",
        then="The same, until the deadline.",
        ends=End(outcome="not-started", code="OperationInProgress", tasks=0, attempts=None, posts=None),
        faults=(Fault(operation="submit", answer="status", status=409),),
        deadline=25,
    ),
    Row(answer="429", then=PASSES, ends=AGAIN, faults=_submit(answer="status", status=429)),
    Row(
        answer="429 with `Retry-After: 3`",
        then=WAITS,
        ends=AGAIN,
        faults=_submit(answer="status", status=429, retry_after=3),
    ),
    Row(
        answer="429 with `Retry-After` and a date",
        then=WAITS,
        ends=AGAIN,
        faults=_submit(answer="status", status=429, retry_after=3, http_date=True),
    ),
    Row(
        answer="429 with a `Retry-After` beyond the deadline",
        then="The request waits until its deadline.",
        ends=End(outcome="not-started", code="TooManyRequests", tasks=0),
        faults=_submit(answer="status", status=429, retry_after=600),
        deadline=12,
    ),
    Row(
        answer="500 with an ApiError, and no task",
        then=NOT_FOUND,
        ends=AGAIN,
        faults=_submit(answer="status", status=500),
    ),
    Row(
        answer="500 with an ApiError, and a task",
        then=LOOKED_FOR,
        ends=ADOPTED,
        faults=_submit(answer="status", status=500, effect="first"),
    ),
    Row(answer="503 with an ApiError", then=NOT_FOUND, ends=AGAIN, faults=_submit(answer="status", status=503)),
    Row(
        answer="503 with a proxy's page",
        then=NOT_FOUND,
        ends=AGAIN,
        faults=_submit(answer="status", status=503, html=True),
    ),
    Row(
        answer="503 with `Retry-After: 3`: maintenance",
        then=(
            "In doubt, and no call to the site for the time asked for; then look-ups find no task, and the POST is "
            "repeated."
        ),
        ends=AGAIN,
        faults=_submit(answer="status", status=503, html=True, retry_after=3),
    ),
    Row(
        answer="503 until the deadline",
        then="In doubt until the deadline, if look-ups fail, too: VCDA may have created a task.",
        ends=End(outcome="timed-out", code="5xx", tasks=0),
        faults=tuple(Fault(operation=call, answer="status", status=503, html=True) for call in ("submit", "find")),
        deadline=13,
    ),
    Row(
        answer="504 from a proxy, and a task 3 s later",
        then=LOOKED_FOR,
        ends=ADOPTED,
        faults=_submit(answer="status", status=504, html=True, effect="behind", seconds=3),
    ),
    Row(answer="202 with half of its JSON", then=LOOKED_FOR, ends=ADOPTED, faults=_submit(answer="half")),
    Row(answer="202 with half of its bytes", then=LOOKED_FOR, ends=ADOPTED, faults=_submit(answer="torn")),
    Row(answer="202 with nothing in it", then=LOOKED_FOR, ends=ADOPTED, faults=_submit(answer="empty")),
    Row(
        answer="202, a byte every 50 ms",
        then="The answer is complete only after the time-out. " + LOOKED_FOR,
        ends=ADOPTED,
        faults=_submit(answer="drip", seconds=0.05),
    ),
    Row(
        answer="202 after the request time-out",
        then=LOOKED_FOR,
        ends=ADOPTED,
        faults=_submit(seconds=REQUEST_TIMEOUT + 1),
    ),
    Row(
        answer="202 after the request time-out, and only then a task",
        then=LOOKED_FOR,
        ends=ADOPTED,
        faults=_submit(effect="last", seconds=REQUEST_TIMEOUT + 1),
    ),
    Row(answer="never", then=NOT_FOUND, ends=AGAIN, faults=_submit(answer="silent")),
    Row(
        answer="connection reset before VCDA created a task",
        then=NOT_FOUND,
        ends=AGAIN,
        faults=_submit(answer="cut"),
    ),
    Row(
        answer="connection reset after VCDA created a task",
        then=LOOKED_FOR,
        ends=ADOPTED,
        faults=_submit(answer="cut", effect="first"),
    ),
    Row(
        answer="connection closed before VCDA created a task",
        then=NOT_FOUND,
        ends=AGAIN,
        faults=_submit(answer="close"),
    ),
    Row(
        answer="connection closed after VCDA created a task",
        then=LOOKED_FOR,
        ends=ADOPTED,
        faults=_submit(answer="close", effect="first"),
    ),
)


def _repeated(**fault: Any) -> tuple[Fault, ...]:
    """Lose the first POST, and give this answer to the second."""
    return *_submit(answer="cut", effect="none"), *_submit(answer="status", **fault)


UNLISTED: Final = {"duration": 30, "listed_after": math.inf}
"""A sync whose task VCDA lists only when its POST has been repeated, and refused."""

FIRST_ONES: Final = "In doubt again: the cause may be the task of the first POST. A look-up finds it."
REFUSED_FIRST: Final = End(outcome="completed", attempts=2, posts=2, adopted=True)

REPEATED: Final = (
    *(
        Row(
            answer=f"{status} with an ApiError, while the task of the first POST runs",
            then=FIRST_ONES,
            ends=REFUSED_FIRST,
            faults=_submit(answer="cut", effect="first"),
            plan={**UNLISTED, "refuses": status},
        )
        for status in (403, 404, 409, 410, 422)
    ),
    Row(
        answer="403 with an ApiError, and the first POST made no task",
        then="In doubt again: look-ups find no task of the first POST; then the request ends.",
        ends=End(outcome="rejected", code="Forbidden", http_status=403, attempts=2, posts=2, tasks=0),
        faults=_repeated(status=403),
    ),
    Row(
        answer="409 with an ApiError, and the first POST made no task",
        then="In doubt again: look-ups find no task of the first POST; then the POST is repeated after about 10 s.",
        ends=End(outcome="completed", attempts=3, posts=3),
        faults=_repeated(status=409),
    ),
    Row(
        answer="429",
        then="Not accepted, and no sign of a task of the first POST: the POST is repeated after a pause.",
        ends=End(outcome="completed", attempts=3, posts=3),
        faults=_repeated(status=429),
    ),
)


def _after_a_cut(*, effect: Any = "first", **fault: Any) -> tuple[Fault, ...]:
    return *_submit(answer="cut", effect=effect), Fault(operation="find", **fault)


LOOK_UPS: Final = (
    Row(
        answer="500, twice",
        then="The look-up is repeated after a pause, and finds the task.",
        ends=ADOPTED,
        faults=_after_a_cut(answer="status", status=500, times=2),
    ),
    Row(
        answer="half of its JSON",
        then="An incomplete list proves nothing: the look-up is repeated, and finds the task.",
        ends=ADOPTED,
        faults=_after_a_cut(answer="half", times=1),
    ),
    Row(
        answer="never",
        then="The look-up is repeated after a pause, and finds the task.",
        ends=ADOPTED,
        faults=_after_a_cut(answer="silent", times=1),
    ),
    Row(
        answer="503 until the deadline",
        then="Without a conclusive look-up there is no second POST: VCDA may have created a task.",
        ends=End(outcome="timed-out", code="error"),
        faults=_after_a_cut(answer="status", status=503, html=True),
        plan={"duration": 120},
        deadline=13,
    ),
)


def _poll(**fault: Any) -> tuple[Fault, ...]:
    return (Fault(operation="poll", **fault),)


RUNS: Final = {"duration": 120}

POLLS: Final = (
    Row(
        answer="`FAILED`, with an error and its stack trace",
        then="The outcome contains code and text, never the stack trace.",
        ends=End(outcome="task-failed", code="ReplicationSyncFailed"),
        plan={"failing": 1.0},
    ),
    Row(
        answer="`FAILED`, with a warning too",
        then="The outcome contains both.",
        ends=End(outcome="task-failed", code="ReplicationSyncFailed", warnings=("QuiesceFailed",)),
        plan={"failing": 1.0, "warned": 1.0},
    ),
    Row(
        answer="`SUCCEEDED`, with a warning, and passwords in the result",
        then="The outcome contains the warning, and of the result only the latest instance.",
        ends=End(outcome="completed", warnings=("QuiesceFailed",)),
        plan={"warned": 1.0},
    ),
    Row(
        answer="an unknown state",
        then="Treated as running as long as the task has no `endTime`; logged and counted.",
        ends=DONE,
        plan={"word": "PAUSED_BY_AN_ADMINISTRATOR", "duration": 4},  # longer than two polls are apart
    ),
    Row(
        answer="an unknown state with an `endTime`, for `LOST_AFTER`",
        then="The task has ended, perhaps with success: the outcome contains VCDA's error, if there is one.",
        ends=End(outcome="task-failed", code="ReplicationSyncFailed"),
        plan={"failing": 1.0, "failed": "CANCELLED"},
    ),
    Row(
        answer="progress that falls and rises",
        then="Only the state counts.",
        ends=DONE,
        plan={"noise": 40, "duration": 3},
    ),
    Row(
        answer="still running at the deadline",
        then="VCDA has no cancel: the replication is held until the task has ended.",
        ends=End(outcome="timed-out"),
        plan=RUNS,
        deadline=12,
    ),
    Row(answer="500, three times", then=ASKED_AGAIN, ends=DONE, faults=_poll(answer="status", status=500, times=3)),
    Row(
        answer="503 with a proxy's page",
        then=ASKED_AGAIN,
        ends=DONE,
        faults=_poll(answer="status", status=503, html=True, times=2),
    ),
    Row(
        answer="404 with a proxy's page",
        then=ASKED_AGAIN,
        ends=DONE,
        faults=_poll(answer="status", status=404, html=True, times=2),
    ),
    Row(
        answer="429 with `Retry-After: 2`",
        then="No call to the site for exactly the time asked for.",
        ends=DONE,
        faults=_poll(answer="status", status=429, retry_after=2, times=1),
    ),
    Row(
        answer="401 `Authentication Token Required`",
        then="A new login, then the poll is repeated.",
        ends=DONE,
        faults=_poll(answer="status", status=401, challenge=True, times=1),
    ),
    Row(answer="half of its JSON", then=ASKED_AGAIN, ends=DONE, faults=_poll(answer="half", times=2)),
    Row(answer="nothing", then=ASKED_AGAIN, ends=DONE, faults=_poll(answer="empty", times=2)),
    Row(answer="connection reset", then=ASKED_AGAIN, ends=DONE, faults=_poll(answer="cut", times=2)),
    Row(answer="never", then=ASKED_AGAIN, ends=DONE, faults=_poll(answer="silent", times=1)),
    Row(
        answer="a list without the task, twice",
        then="Two answers prove nothing: the task is polled again.",
        ends=DONE,
        faults=_poll(answer="empty page", times=2),
    ),
    Row(
        answer="a list without the task for `LOST_AFTER`, and 404 `TaskNotFound` for the task alone",
        then="The task is lost: VCDA no longer knows a task that it had created.",
        ends=End(outcome="task-lost"),
        faults=(
            *_poll(answer="empty page"),
            Fault(operation="ask", answer="status", status=404, code="TaskNotFound"),
        ),
        plan=RUNS,
    ),
    Row(
        answer="a list without the task for `LOST_AFTER`, and 404 with a proxy's page for the task alone",
        then="The 404 is not VCDA's: the task is polled until the deadline.",
        ends=End(outcome="timed-out"),
        faults=(*_poll(answer="empty page"), Fault(operation="ask", answer="status", status=404, html=True)),
        plan=RUNS,
        deadline=14,
    ),
)

TABLES: Final = {
    "The POST that starts a sync": SUBMITS,
    "The repeated POST, after a POST in doubt": REPEATED,
    "The look-up of a POST in doubt": LOOK_UPS,
    "The polls of a task": POLLS,
}
