"""Write `docs/site-maintenance.md`: how an operator pauses a site, with the output of real commands.

`python -m tools.site_maintenance` runs each of the commands against a real Kafka, the service and a simulated VCDA; a
test compares. Times and tasks' ids differ in each run, so fixed ones stand in their place.
"""

import re
from pathlib import Path
from typing import Final

from tools.page_of_commands import deployment, run, shown, until

PAGE: Final = Path(__file__).parent.parent / "docs" / "site-maintenance.md"

REPLICATIONS: Final = ("C4-5a6ccf7a-45ab-4d5b-8b5d-2a6a0b0f0c55", "C4-0c0e8bc5-1a3d-4a4f-9b6e-6a2b1c5d7e9f")

SITES: Final = '[{"name": "site2", "user": "administrator@System", "password": "password"}]'

FIXED: Final = (
    (r"(since|requested|accepted)(\s+)\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", r"\1\g<2>2026-03-01 22:00:00Z"),
    (r"submitted(\s+)\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", r"submitted\g<1>2026-03-01 22:05:00Z"),
    (r"deadline(\s+)\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", r"deadline\g<1>2026-03-02 04:00:00Z"),
    (r"until \d{4}-\d\d-\d\dT[\d:.]+Z", "until 2026-03-02T00:00:00.000Z"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ(?= \(in)|(?<=until )\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "2026-03-02 00:00:00Z"),
    (r"\(in 1\d\dm\)", "(in 119m)"),
    (r"^(age\s+)\S+", r"\g<1>5m"),
    (r"^(task\s+)\S+", r"\g<1>6f5d31f2-3b0e-4c53-9a53-0f3e6f3ed1c4"),
)
"""What stands in place of this run's times and ids."""

PARTS: Final[tuple[str | tuple[str, ...], ...]] = (
    """\
# A site under maintenance

Made by `python -m tools.site_maintenance`, which runs these commands; not to be edited by hand.

The storage of `site2` is upgraded tonight, which takes two hours. Without a pause the requests of these hours would be
submitted, and fail or hang. A *site pause* holds them back instead, on all instances, until a moment.

## Pause it

""",
    ("sites", "pause", "site2", "--for", "2h", "--by", "alice", "--reason", "storage upgrade"),
    """
The command returns once every instance that answers holds back POSTs to the site; its exit code is 1 if one does not.
What was submitted before goes on: one sync runs. Wait for it before the maintenance begins, or look at it in VCDA.

```sh
vm-sync list --site site2 --state running --watch
```

## What happens meanwhile

Requests for the site are accepted, and wait:

""",
    ("show", "nightly-2"),
    """
Running syncs are polled, POSTs in doubt are looked up but not repeated, cancels work, and deadlines pass: a request
whose deadline comes first ends as `not-started`, and its `error` names the pause. Other sites are not affected.

""",
    ("sites",),
    """
The pause survives restarts, and ends by itself at its moment, also while no instance runs.

## Resume it

Not before the site works again; `vm-sync check` logs in there and lists its tasks.

""",
    ("sites", "resume", "site2"),
    """
The requests are submitted at once, in their order:

""",
    ("show", "nightly-2"),
    """
## What to know

- The commands need Kafka alone: the right to read the journal, and to read and write `vm-sync.control`. They work while
  the service is down: each instance reads the topic before it submits anything.
- A site has the name by which requests call it; `local` is the local site. A name that nobody knows has to be
  confirmed, or `--yes` given.
- A second `vm-sync sites pause` replaces the first, so a pause can be made longer or shorter. It lasts 31 days at most.
- Each instance ends a pause by its own clock.
- The requests that wait count against `VM_SYNC_SYNC__MAX_IN_FLIGHT`. When an instance has as many, it reads no further,
  also for other sites.
- The alerts about old requests and failing calls leave a paused site out; VmSyncSitePausedByOperator fires after a day.
- An instance that can't read the topic keeps the pauses that it knows until they end, and sees no new ones. One that
  starts without it, because it is missing or denied or does not answer for 10 s, knows of no pause and sends POSTs;
  `/readyz` and VmSyncSitePausesUnknown say so.
- Instances of a release that knows of no pauses ignore them, so pause a site after an upgrade, not during it. The
  commands name such instances. Remove `VM_SYNC_TOPICS__CONTROL`, if it is set, before a rollback to such a release.
""",
)
"""The page's text, and the commands whose output stands between."""


def page() -> str:
    """Run all of it."""
    with deployment(VM_SYNC_VCDA__SITES=SITES) as env:
        run(("request", REPLICATIONS[0], "--site", "site2", "--operation-id", "nightly-1"), env)
        until(env, "nightly-1", "running")
        parts: list[str] = []
        for part in PARTS:
            if part == ("show", "nightly-2"):
                until(env, "nightly-2", "running" if "resume" in "".join(parts[-2:]) else "waiting")
            parts.append(part if isinstance(part, str) else shown(part, env, _usual))
            if isinstance(part, tuple) and "pause" in part:
                run(("request", REPLICATIONS[1], "--site", "site2", "--operation-id", "nightly-2"), env)
        return "".join(parts)


def _usual(line: str) -> str:
    """Put fixed times and a fixed id of a task in place of this run's."""
    for pattern, fixed in FIXED:
        line = re.sub(pattern, fixed, line)
    return line.rstrip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
