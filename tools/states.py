"""Draws docs/states.md by driving service/sync.py: every state, with everything that can be seen in it.

    python -m tools.states

Nothing here knows what a transition leads to. The transitions are the functions of `sync` that return a `Step`, the
states and observations they take are read from their types, and where an arrow ends is found out by calling them. A
new state, observation or transition that has no example below is an error, and a test compares the page with what
would be written.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from service import sync

PAGE = Path(__file__).resolve().parents[1] / "docs" / "states.md"

HEAD: Final = """\
# One sync, as states

Made by `python -m tools.states`, which drives `service/sync.py` through every pair of a state and an observation, and
records the next state. A POST in doubt is a `Submitting` that was read back from the journal, had no whole, understood
answer, or was repeated after a doubt and refused. A `Lingering` sync has its outcome, and holds its replication until
its task has ended.

"""

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
POLICY: Final = sync.Policy(
    window=timedelta(seconds=2),
    late=timedelta(seconds=90),
    lost_after=timedelta(minutes=10),
    deduplicate_for=timedelta(hours=24),
)
LONG: Final = 10_000.0
"""Seconds after which every wait of the policy is over."""

# ---------------------------------------------------------------- what can be true

REQUEST: Final = sync.Request(
    identity="op:r:o",
    operation_id="o",
    replication_id="r",
    site=None,
    offset=0,
    requested_at=EPOCH,
    accepted_at=EPOCH,
    deadline=EPOCH + timedelta(hours=6),
)
WE: Final = sync.Account("we")
ANOTHER: Final = sync.Account("another")
WAITING: Final = sync.Waiting(request=REQUEST)
SUBMITTING: Final = sync.Submitting(request=REQUEST, attempts=1, look_from=EPOCH, account=WE)
DOUBT: Final = replace(SUBMITTING, conclusive_from=100.0)
REPEATED: Final = replace(SUBMITTING, repeats=1)
ERROR: Final = sync.ApiError("Forbidden", "Permission denied.")
REFUSED: Final = replace(DOUBT, repeats=1, refusal=sync.Refusal(ERROR, 403))
BUSY: Final = replace(DOUBT, repeats=1, refusal=sync.Refusal(ERROR, 409, busy=True))
RUNNING: Final = sync.Running(request=REQUEST, attempts=1, task_id="t", site=None, account=WE, submitted_at=EPOCH)
OVER: Final = replace(RUNNING, over_since=EPOCH - POLICY.lost_after)
MISSED: Final = replace(RUNNING, absent_since=0.0, absent_answers=sync.LOST_ANSWERS)

STATES: Final[dict[str, sync.InFlight]] = {
    "Waiting": WAITING,
    "Submitting": SUBMITTING,
    "Submitting, repeated after a doubt": REPEATED,
    "InDoubt": DOUBT,
    "InDoubt, a repeated POST was refused": REFUSED,
    "InDoubt, a repeated POST found the replication busy": BUSY,
    "Running": RUNNING,
    "Running, missed for long": MISSED,
    "Running, shown with an end for long": OVER,
    "Lingering, submitting": sync.Lingering(of=SUBMITTING, told_at=EPOCH),
    "Lingering, submitting, repeated after a doubt": sync.Lingering(of=REPEATED, told_at=EPOCH),
    "Lingering, in doubt": sync.Lingering(of=DOUBT, told_at=EPOCH),
    "Lingering, running": sync.Lingering(of=RUNNING, told_at=EPOCH),
    "Lingering, running, missed for long": sync.Lingering(of=MISSED, told_at=EPOCH),
    "Lingering, running, shown with an end for long": sync.Lingering(of=OVER, told_at=EPOCH),
}
"""Examples of every state in flight. What stands before the first comma is its place in the picture."""

# ---------------------------------------------------------------- what can be seen

TROUBLE: Final = sync.Trouble(label="timeout", detail="No answer.")
TASK: Final = sync.Task(id="t", state=sync.TaskState.RUNNING)
SEEN: Final = {
    "202 and a task": sync.Accepted(TASK, WE),
    "VCDA refuses": sync.Refused(ERROR, 403, at=0.0),
    "not accepted": sync.NotTaken(TROUBLE, sent=True),
    "not accepted, the replication is busy": sync.NotTaken(TROUBLE, sent=True, busy_at=0.0),
    "no understood answer": sync.Unanswered(TROUBLE, 0.0, WE),
    "the task is found": sync.Found(TASK, WE),
    "one possible task, too early to decide": sync.OnlyOne(TASK, 0.0, WE),
    "one possible task, looked up as another user": sync.OnlyOne(TASK, LONG, ANOTHER),
    "one possible task, conclusively": sync.OnlyOne(TASK, LONG, WE),
    "look-up inconclusive": sync.Unclear("Is it ours?", LONG),
    "not found, too early to decide": sync.NotFound(0.0, WE),
    "not found, looked up as another user": sync.NotFound(LONG, ANOTHER),
    "not found, conclusively": sync.NotFound(LONG, WE),
    "task SUCCEEDED": replace(TASK, state=sync.TaskState.SUCCEEDED),
    "task FAILED": replace(TASK, state=sync.TaskState.FAILED),
    "task in any other state": replace(TASK, state="WHATEVER"),
    "task in an unknown state, with an end": replace(TASK, state="WHATEVER", ended_at=EPOCH),
    "task missing in a valid answer": sync.Absent(LONG),
    "another replication's task under its id": sync.Absent(LONG, another="C4-2"),
    "404 for the task alone": sync.Gone(LONG, WE),
    "404 for the task alone, as another user": sync.Gone(LONG, ANOTHER),
}
"""Examples of every observation; more than one where their content decides."""


@dataclass(frozen=True, slots=True)
class Arrow:
    """What was seen in a state, and what that led to."""

    state: str
    seen: str
    next: str
    tells: str
    """The outcome that is told, in the contract's words; empty where none is."""


Call: TypeAlias = tuple[str, Callable[[], sync.Sync | sync.Step]]


def arrows() -> list[Arrow]:
    """Drive every transition, and return what came of it.

    Raises:
        LookupError: a state, observation or transition of `sync` has no example here.
    """
    found = []
    for name, state in STATES.items():
        for seen, call in _calls(state):
            result = call()
            step = result if isinstance(result, sync.Step) else sync.Step(result)
            found.append(Arrow(name, seen, place(step.state), _told(step.outcome)))
    _check_states()
    return found


def _calls(state: sync.InFlight) -> Iterator[Call]:
    """Yield whatever can happen to this state: each function that takes it, with each observation that it takes."""
    for name, function in transitions().items():
        takes = typing.get_type_hints(function)
        first = next(iter(inspect.signature(function).parameters))
        if type(state) not in _members(takes[first]):
            continue
        match name:
            case "begin":
                yield (
                    "a slot is free",
                    lambda: sync.begin(WAITING, look_from=EPOCH, account=WE, passed_over=(), policy=POLICY),
                )
            case "restored":
                yield (
                    "read back from the journal",
                    lambda: sync.restored(state, opened_at=0.0, now=EPOCH, policy=POLICY),
                )
            case "cancelled":
                yield from _cancels(state)
            case "expired":
                for when, now in _moments(state):
                    yield when, lambda now=now: sync.expired(state, now=now, policy=POLICY)  # type: ignore[misc]
            case "answered" | "looked_up" | "polled":
                for label, seen in _examples(takes["seen"]) if _can_be(name, state) else ():
                    yield (
                        label,
                        lambda function=function, seen=seen: function(state, seen, now=EPOCH, policy=POLICY),  # type: ignore[misc]
                    )
            case _:
                msg = f"the transition sync.{name} isn't drawn: give it a case in tools/states.py"
                raise LookupError(msg)


def _cancels(state: sync.InFlight) -> Iterator[Call]:
    cancel = partial(sync.cancelled, state, by=None, why=None, now=EPOCH, policy=POLICY)
    yield "a cancel", partial(cancel, release=False)
    yield "a release", partial(cancel, release=True)
    if state is SUBMITTING:
        yield "a cancel before the POST leaves", partial(cancel, release=False, sent=False)


def _can_be(name: str, state: sync.InFlight) -> bool:
    """Whether this can be seen now: a POST is answered until it is in doubt, then looked up; a task is asked after."""
    match state.of if isinstance(state, sync.Lingering) else state:
        case sync.Submitting(in_doubt=in_doubt):
            return name == ("looked_up" if in_doubt else "answered")
        case sync.Running():
            return name == "polled"
        case _:
            return False


def _moments(state: sync.InFlight) -> Iterator[tuple[str, datetime]]:
    yield "time passes, before the deadline", EPOCH
    if isinstance(state, sync.Lingering):
        yield "a day after the deadline", REQUEST.deadline + sync.LINGER_LIMIT
    else:
        yield "the deadline passes", REQUEST.deadline


def transitions() -> dict[str, Callable[..., Any]]:
    """Return the public functions of `sync` that lead from a state to a state."""
    found: dict[str, Callable[..., Any]] = {}
    for name, function in inspect.getmembers(sync, inspect.isfunction):
        if name.startswith("_") or function.__module__ != sync.__name__:
            continue
        gives = _members(typing.get_type_hints(function)["return"])
        if gives & {sync.Step, *_members(sync.Sync)}:
            found[name] = function
    return found


def _examples(kind: object) -> list[tuple[str, Any]]:
    chosen = [(label, seen) for label, seen in SEEN.items() if type(seen) in _members(kind)]
    if missing := _members(kind) - {type(seen) for _, seen in chosen}:
        msg = f"{missing} can be seen and has no example in tools/states.py"
        raise LookupError(msg)
    return chosen


def _check_states() -> None:
    if missing := _members(sync.InFlight) - {type(state) for state in STATES.values()}:
        msg = f"{missing} can be true and has no example in tools/states.py"
        raise LookupError(msg)


def _members(kind: object) -> set[Any]:
    return set(typing.get_args(kind)) if isinstance(kind, types.UnionType) else {kind}


def place(state: sync.Sync) -> str:
    """Return a state's place in the picture."""
    if isinstance(state, sync.Submitting) and state.in_doubt:
        return "InDoubt"
    return type(state).__name__


def _told(outcome: sync.Outcome | None) -> str:
    match outcome:
        case None:
            return ""
        case sync.Completed():
            return "completed"
        case sync.Failed(reason=reason):
            return str(reason)


# ---------------------------------------------------------------- the page


def page() -> str:
    """Return the whole page."""
    found = arrows()
    return "".join([HEAD, _picture(found), "\n## Every pair that can come\n\n", _table(found)])


def _picture(found: list[Arrow]) -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    direction TB", "    InDoubt: Submitting, in doubt"]
    lines += ["    [*] --> Waiting: accepted"]
    labels: dict[tuple[str, str], list[str]] = {}
    for arrow in found:
        here = arrow.state.split(",")[0]
        if here != arrow.next:
            text = f"{arrow.seen} / {arrow.tells}" if arrow.tells else arrow.seen
            some = labels.setdefault((here, arrow.next), [])
            if text not in some:
                some.append(text)
    lines += [f"    {a} --> {b}: {'<br>'.join(some)}" for (a, b), some in labels.items()]
    lines += ["    Ended --> [*]: forgotten after SYNC__DEDUPLICATE_FOR", "```", ""]
    lines += ["The word after a slash is the outcome that this step decides. Each request has one such step.", ""]
    return "\n".join(lines)


def _table(found: list[Arrow]) -> str:
    lines = ["| state | seen | next | outcome |", "| --- | --- | --- | --- |"]
    for arrow in found:
        tells = f" `{arrow.tells}` |" if arrow.tells else " |"
        lines.append(f"| {arrow.state} | {arrow.seen} | {arrow.next} |{tells}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write into the repository."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
