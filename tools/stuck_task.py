"""Write `docs/stuck-task.md`: how an operator frees a replication, with the output of real commands.

`python -m tools.stuck_task` runs each of the commands against a real Kafka, the service and a simulated VCDA whose
tasks never end; a test compares. Times and the task's id differ in each run, so fixed ones stand in their place.
"""

import re
from functools import partial
from pathlib import Path
from typing import Final

from tools.page_of_commands import deployment, run, shown, until

PAGE: Final = Path(__file__).parent.parent / "docs" / "stuck-task.md"

REPLICATION: Final = "C4-5a6ccf7a-45ab-4d5b-8b5d-2a6a0b0f0c55"
TASKS: Final = ("6f5d31f2-3b0e-4c53-9a53-0f3e6f3ed1c4", "b7c1d9e0-51f6-4e0b-8f0e-2d9a4c7b6a13")
TIMES: Final = {
    "requested": "2026-03-01 22:00:00Z",
    "accepted": "2026-03-01 22:00:00Z",
    "submitted": "2026-03-01 22:00:01Z",
    "ended": "2026-03-02 04:00:00Z",
    "deadline": "2026-03-02 04:00:00Z",
    "remembered": "2026-03-03 09:30:00Z",
}
"""What stands in place of a time, by the name of the line."""

AGE: Final = "7h"
"""The same for how long ago a request was accepted."""

PARTS: Final[tuple[str | tuple[str, ...], ...]] = (
    """\
# A stuck task

Made by `python -m tools.stuck_task`, which runs these commands; not to be edited by hand.

VCDA has no cancel. If a task never ends there, its request ends as `timed-out` at its deadline, and its replication
stays held, so that no two syncs of it overlap: the next requests for the replication wait, and end as `not-started`.
Usually the task ends after all, and the replication is free then. This page is for the case that it does not.

## Find it

`vm-sync list --state lingering` lists the requests whose outcome is written while their tasks may still run. The
request of the next night waits behind such a one:

""",
    ("show", "nightly-03-02"),
    "\n",
    ("show", "nightly-03-01"),
    """
Look at the task in VCDA. If it still transfers data, wait. If it is stuck, ask VCDA's administrators to end it: the
replication is free as soon as VCDA shows the task as ended. Only if nobody can end the task, although nothing works on
it any more, release the request.

## Release it

A cancel alone does nothing to a request that VCDA has accepted, or may have:

""",
    ("cancel", "nightly-03-01"),
    """
A release ends the request for this service, whatever VCDA does. **You answer for VCDA no longer working on the task**:
the next request for the replication starts at once, and if VCDA still works on this one, two syncs of the replication
overlap. At a terminal the command asks before it sends anything; `--yes` is for scripts.

""",
    (
        "cancel",
        "nightly-03-01",
        "--release",
        "--yes",
        "--by",
        "alice",
        "--reason",
        "host lost, VCDA ticket 4711",
        "--wait",
    ),
    """
Who released it and why stands in the journal and in the log. A lingering request has had its outcome, `timed-out`, and
gets no second one; one that is running, submitting or in doubt when it is released ends as `cancelled`.

""",
    ("show", "nightly-03-01"),
    """
The request of the next night runs:

""",
    ("show", "nightly-03-02"),
    """
## Cancel what waits

A request that waits needs no release. Its outcome, `cancelled`, comes at once.

""",
    ("cancel", "nightly-03-03", "--by", "alice", "--reason", "one a night is enough", "--wait"),
    """
## What to know

- The command needs Kafka alone: the right to read the journal and the requests topic, and to write to the requests
  topic. A cancel that is sent while the service is down takes effect when the service reads it; what the service
  submits before that goes on.
- A cancel names one request, by its `operationID`, its `requestId`, or its `replicationId` if only one is in flight.
  Without `--by` your user name stands for you.
- The exit code is 1 where a cancel changed nothing: the request goes on, or has ended already.
- Other programs send [the same message](for-other-teams.md#cancel-a-request).
- Versions that don't know the message put it on the dead letters.
""",
)
"""The page's text, and the commands whose output stands between."""


def page() -> str:
    """Run all of it."""
    with deployment() as env:
        for number, deadline in ((1, "3"), (2, "3600"), (3, "3600")):
            request = ("request", REPLICATION, "--operation-id", f"nightly-03-0{number}", "--deadline", deadline)
            run(request, env)
            until(env, f"nightly-03-0{number}", "lingering" if number == 1 else "waiting")
        parts: list[str] = []
        tasks: dict[str, str] = {}
        for part in PARTS:
            parts.append(part if isinstance(part, str) else shown(part, env, partial(_usual, tasks=tasks)))
            if isinstance(part, tuple) and "--release" in part:
                until(env, "nightly-03-02", "running")
        return "".join(parts)


def _usual(line: str, *, tasks: dict[str, str]) -> str:
    """Put fixed times and fixed ids of tasks in place of this run's."""

    def fixed(found: re.Match[str]) -> str:
        if found[0] in REPLICATION:
            return found[0]
        return tasks.setdefault(found[0], TASKS[len(tasks)])

    line = re.sub(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", fixed, line).rstrip()
    line = re.sub(r"\d+:\d\d:\d\d after", "6:00:00 after", line)
    line = re.sub(r"^(age\s+)\S+", rf"\g<1>{AGE}", line)
    name = line.split(maxsplit=1)[0] if line else ""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", TIMES.get(name, ""), line)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
