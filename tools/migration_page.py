"""Write `docs/many-requests.md`: 500 replications before a migration, with the output of real commands.

`python -m tools.migration_page` runs each of the commands against a real Kafka, the service and a simulated VCDA where
three syncs fail once; a test compares. What differs in each run (names of batches, times) has fixed names in its place.
"""

import re
import tempfile
import uuid
from contextlib import chdir
from pathlib import Path
from typing import Final

from service.sandbox.vcda.world import Durations, Plan
from tools.page_of_commands import run
from tools.planned_deployment import REMOTE, Deployment, deployment

PAGE: Final = Path(__file__).parent.parent / "docs" / "many-requests.md"

REPLICATIONS: Final = [f"C4-{uuid.uuid5(uuid.NAMESPACE_DNS, f'vm-{number}.example')}" for number in range(500)]

FAILING: Final = (17, 230, 411)
"""The numbers of the replications whose first sync fails."""

PLAN: Final = Plan(queued=Durations.of("uniform:0.05:0.2"), duration=Durations.of("uniform:0.5:1.5"))

BATCHES: Final = ("from-4f0c1b7a9d2e", "from-b81e6c05f3a7", "from-0d92e7c4a618")

PROGRESS: Final = re.compile(r"(Sent|Reading) .*\.\.\.")
"""Lines that a slow run prints, and a fast one does not."""

MANY: Final = ("request", "--from", "replications.csv")

PARTS: Final[tuple[str | tuple[str, ...], ...]] = (
    """\
# 500 replications before a migration

Made by `python -m tools.migration_page`, which runs these commands; not to be edited by hand.

Before a migration each replication has to be synced once more. The list of them is a file; here it is an export of an
inventory, as CSV. Of its columns those count that a request has (`replicationId`, `site`, `deadlineSeconds`,
`operationID`); others are ignored. A file of ids, one in each line, does as well, and so do JSON lines.

```console
$ head -3 replications.csv
vm,replicationId,site
vm-0,HEAD0,
vm-1,HEAD1,site2
```

## Try it

`--dry-run` checks the file, Kafka and the rights, and sends nothing. A line that is invalid is named, and then nothing
is sent of the others either.

""",
    (*MANY, "--dry-run"),
    """
## Send them, and wait

The requests are sent at `--rate`, 100 a second by default: the service takes them in at once, and starts as many at
VCDA as `VM_SYNC_SYNC__MAX_RUNNING` allows. At a terminal two bars show how far it is. The exit code is 1 if one of them
failed.

""",
    (*MANY, "--rate", "250", "--wait", "--failed-to", "failed.jsonl"),
    """
![A terminal with vm-sync request --from: bars while it runs, and the summary at the end](request-many.svg)

## After an interruption

The same command with the same file goes on where it was: after Ctrl-C, a closed laptop, or a Kafka that was away. The
requests of the same file are the same requests. Those that the service has read are not sent again; what it had not
read yet is sent again, and recognised as a duplicate. Run once more now, the command sends nothing, and reports what
became of each:

""",
    (*MANY, "--wait"),
    """
That holds for `VM_SYNC_SYNC__DEDUPLICATE_FOR` after the end of a request; then the same file makes new requests. A name
for the round, such as `--operation-prefix before-migration`, takes the place of the file's content: with the same name
the requests are the same although lines were added, removed or sorted, and with another name all of them are new ones.
What comes through a pipe (`--from -`) is a round of its own each time, unless it has a name.

## Retry what failed

`failed.jsonl` has the failed requests with their sites and deadlines, and `--from` reads it.

""",
    ("request", "--from", "failed.jsonl", "--wait"),
    """
Without the file, the outcome topics know it. `--ids` prints the replications whose *last* outcome in the period is a
failure, so those that were retried with success are not among them:

```sh
vm-sync outcomes --failed --since 2h --ids | vm-sync request --from - --wait
```

""",
    ("outcomes", "--failed", "--since", "2h", "--ids"),
    """
## Watch it

`vm-sync top` shows all instances together, live; `vm-sync outcomes` sums up a period afterwards. Both read Kafka alone,
so they work while the service is down.

![A terminal with vm-sync top: requests in flight by site and state, and the latest outcomes](top.svg)

![A terminal with vm-sync outcomes: the latest outcomes, and counts and durations by reason and site](outcomes.svg)

## What to know

- The commands need the right to write to the requests topic, and to read the journal and the outcome topics.
- A line that is listed twice is one request. The same replication with another site or deadline is an error.
- An interrupted `--wait` leaves the failures so far in the file of `--failed-to`. What an earlier run has written
  there is replaced once Kafka has answered.
- With the service down, the requests wait on the topic; `--wait` waits with them, for `--timeout` seconds.
- Durations are from the request to the end of the sync; those under `VCDA` from VCDA's acceptance. Percentiles are
  within 1 %.
""",
)
"""The page's text, and the commands whose output stands between."""


def table() -> str:
    """Return the file of the page: every fourth replication is at the remote site."""
    rows = [f"vm-{number},{name},{REMOTE if number % 4 == 1 else ''}\n" for number, name in enumerate(REPLICATIONS)]
    return "".join(["vm,replicationId,site\n", *rows])


def page() -> str:
    """Run all of it."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder), deployment(PLAN, partitions=4) as place:
        Path("replications.csv").write_text(table(), encoding="utf-8")
        for number in FAILING:
            place.vcda.world.plan(replication=REPLICATIONS[number], times=1, failing=1.0)
        names: dict[str, str] = {}
        parts = [part if isinstance(part, str) else _shown(part, place, names) for part in PARTS]
    return "".join(parts).replace("HEAD0", REPLICATIONS[0]).replace("HEAD1", REPLICATIONS[1])


def _shown(command: tuple[str, ...], place: Deployment, names: dict[str, str]) -> str:
    code, output = run(command, place.env)
    exit_code = "" if code == 0 else f"(exit code {code})\n"
    lines = [_usual(line, names) for line in output.splitlines() if not PROGRESS.fullmatch(line)]
    return f"```console\n$ {' '.join(('vm-sync', *command))}\n" + "\n".join([*lines, ""]) + f"{exit_code}```\n"


def _usual(line: str, names: dict[str, str]) -> str:
    """Put fixed names and times in place of this run's."""

    def fixed(found: re.Match[str]) -> str:
        if found[0] not in names:
            names[found[0]] = BATCHES[len(names)]
        return names[found[0]]

    line = re.sub(r"from-[0-9a-f]{12}", fixed, line.rstrip())
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "2026-03-01 22:00:00Z", line)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
