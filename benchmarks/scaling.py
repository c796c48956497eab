"""docs/scaling.md: what a million syncs in flight over a hundred sites take, computed from the raw figures.

Every number on the page is either an assumption named there, or measured, or computed from those in sight.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.results import Results

SYNCS = 1_000_000
SITES = 100
SIGMA = 1.0
"""Durations are log-normal; their mean is e^(1/2) times their median."""

IN_FLIGHT_EACH = 50_000
"""What one process holds: its default MAX_IN_FLIGHT, and the most that is measured."""

PARTITIONS_EACH = 10
"""So that a dead process' work goes to many others, a partition or so to each."""

BUSY = 0.5
"""The part of a core that a process may be busy on average, so that there is room for a neighbour's share."""

TIMES_WRITTEN = 4
"""Journal records of one sync: accepted, about to POST, running, ended."""

COMMITS = 3
"""Transactions of one sync at most, if it shares none: before the POST, after it, and with the outcome."""

DAY = 86_400
SEGMENTS = 2 * 32 * 1024**2
"""Bytes of a journal partition that compaction may not have touched yet: the segment being written, and one more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures that the arithmetic starts from, as medians over the rounds."""

    bytes_each: float
    idle_mb: float
    cpu_ms: float
    kafka_cpu_ms: float
    identity_bytes: float
    record_bytes: float
    records_per_second: float
    kill_s: float
    join_s: float

    @classmethod
    def of(cls, results: Results) -> "Measured | None":
        """Pick them; None if one of them was not measured."""
        most = str(max(results.settings["flight"]))
        settings = results.settings
        full, empty = (results.middle("restore", subject, "seconds") for subject in ("service", "empty"))
        seconds = None if full is None or empty is None else max(0.001, full - empty)
        known = {
            "bytes_each": results.middle("flight", most, "bytes_each"),
            "idle_mb": results.middle("flight", most, "empty_mb"),
            "cpu_ms": results.middle("flight", most, "net_cpu_ms"),
            "kafka_cpu_ms": results.middle("flight", most, "kafka_cpu_ms"),
            "identity_bytes": results.middle("remembering", "service", "bytes"),
            "record_bytes": results.middle("restore", "bare", "bytes_each"),
            "records_per_second": seconds and (settings["restored"] + settings["remembered"]) / seconds,
            "kill_s": results.middle("hand-over", "service", "kill_max_s"),
            "join_s": results.middle("hand-over", "service", "join_max_s"),
        }
        there = {name: value for name, value in known.items() if value is not None}
        return cls(**there) if len(there) == len(known) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a million in flight take when durations have this median, in seconds."""

    median: float
    remember: float
    """DEDUPLICATE_FOR, in seconds."""
    known: Measured

    @property
    def per_second(self) -> float:
        """Syncs a second: what is in flight, by how long it is."""
        return SYNCS / (self.median * math.exp(SIGMA**2 / 2))

    @property
    def cores(self) -> float:
        """Busy cores, all processes together."""
        return self.per_second * self.known.cpu_ms / 1000

    @property
    def processes(self) -> int:
        """As many as hold it all, or as many as are busy half of the time: whichever is more."""
        return max(math.ceil(SYNCS / IN_FLIGHT_EACH), math.ceil(self.cores / BUSY))

    @property
    def partitions(self) -> int:
        """Of the requests topic, and of the journal."""
        return self.processes * PARTITIONS_EACH

    @property
    def remembered(self) -> float:
        """Ended requests that are remembered, in the whole service."""
        return self.per_second * self.remember

    @property
    def memory_gb(self) -> float:
        """Of one process: idle, its syncs, its identities."""
        known = self.known
        held = SYNCS * known.bytes_each + self.remembered * known.identity_bytes
        return known.idle_mb / 1000 + held / self.processes / 1e9

    @property
    def journal_gb(self) -> float:
        """All partitions, compacted but for their youngest segments; one replica."""
        return ((SYNCS + self.remembered) * self.known.record_bytes + self.partitions * SEGMENTS) / 1e9

    @property
    def restore_s(self) -> float:
        """One partition's restore: its records, the uncompacted ones too, at the measured rate."""
        records = (SYNCS + self.remembered) / self.partitions + SEGMENTS / self.known.record_bytes
        return records / self.known.records_per_second

    @property
    def messages(self) -> float:
        """Messages a second that Kafka takes: requests, journal records, outcomes."""
        return self.per_second * (1 + TIMES_WRITTEN + 1)

    @property
    def commits(self) -> float:
        """Transactions a second at most: a partition makes 50 or so, and several syncs share one."""
        return min(self.per_second * COMMITS, self.partitions * 50.0)


def text(results: Results) -> Iterator[str]:
    """Yield the page's parts."""
    yield "# Scaling"
    known = Measured.of(results)
    yield (
        f"What {SYNCS:,} syncs in flight over {SITES} sites take. Written by `make bench` from the figures of "
        "[performance](performance.md), which say what they are worth; don't edit it. Two medians of the durations "
        "are computed, both log-normal with a sigma of 1, so that the mean is 1.65 times the median."
    )
    if known is None:
        yield "**Some of the figures that it needs were not measured in this run.**"
        return
    if results.form != "full":
        yield f"**From the {results.form} form: far too small to say anything.**"
    yield "## Measured figures"
    yield _measured(known)
    plans = [
        Plan(median=median, remember=remember, known=known) for median in (90.0, 600.0) for remember in (DAY, 7_200.0)
    ]
    yield "## Calculation"
    yield _plans(plans)
    yield from _sites(results, plans)
    yield "## What one VCDA appliance can take"
    yield APPLIANCE.format(requirements=REQUIREMENTS)
    yield "## Settings"
    yield _settings(plans[-1])
    yield "## Limits of the calculation"
    yield UNSAID


REQUIREMENTS = (
    "https://docs.vmware.com/en/VMware-Cloud-Director-Availability/4.7/"
    "VMware-Cloud-Director-Availability-Install-Config-Upgrade-Cloud/GUID-B6FD0CF5-D95E-46CE-91EF-274F7EBF74DB.html"
)

APPLIANCE = """\
VMware publishes no limit of API calls, of concurrent operations or of tasks for VMware Cloud Director Availability,
and none of its documented errors says "too many" (429). What is documented:

| limit | value | where |
| --- | --- | --- |
| the Cloud Director Replication Management Appliance, \
which serves the API | 2 vCPUs, 4 GB RAM | [4.7, requirements]({requirements}) |
| a Replicator Appliance, which moves the data; there may be several | 8 vCPUs, 8 GB RAM | the same |
| tasks in one answer of `GET /tasks` | 100, whatever `limit` says | API reference, 4.5 |
| shortest interval of automatic syncs (RPO) | 1 minute | release 4.3 |
| a session without calls, and at most | 30 minutes, 24 hours | KB 314989 |

How many replications a site may have stands in VMware's Configuration Maximums, a web application; look up your
version there. The engine's relative gives an idea of the order: vSphere Replication is rated for 200 VMs a server,
and for 20 that are configured at once. That is an analogy, and no limit of VCDA.

The defaults follow from the two processors of the appliance, and from the fact that nobody can ask it how busy it is:

- **16 POSTs at once** (`MAX_CONCURRENT_SUBMITS`, for each site and process). A POST makes VCDA start a task and
  answer: at 50 ms each, 16 at once are 320 a second, more than syncs can be worked off. Fewer than the 20 above. More
  than a few only shortens a burst, at the cost of the appliance's other users.
- **200 running** (`MAX_RUNNING`, likewise). As many as one vSphere Replication server is rated for: of these, each
  may transfer data at the same time, and the Replicators, the storage and the line between the sites are what becomes
  slow first. VCDA itself starts syncs, too, each minute at the shortest RPO, so that ours come on top.
- **4 polls at once** for each site, of up to 100 tasks each. 200 running tasks take some 2 calls in the second in
  which all are due, and far fewer while their ends are far.
- **All processes together** count, since each has these limits for itself: three processes may have 48 POSTs on their
  way, and 600 syncs running. Divide by the number of processes where the appliance is small.

What shows that it is too much: `vm_sync_api_request_duration_seconds` grows while the number of POSTs does not,
answers with 429 or 503, and tasks that stay QUEUED (4.7). VCDA's answer counts for the whole site: a 429, a 503 or a
`Retry-After` pauses it, see [the guarantees](guarantees.md)."""

UNSAID = """\
- Whether a real VCDA can run 10,000 syncs at once, or answer so many calls a second: nothing published says so.
  `MAX_RUNNING` and `MAX_CONCURRENT_SUBMITS` are what an operator holds the service back with.
- What three brokers with replication do to the commits: each POST waits for one.
- How one group of so many members fares: every join or leave stops them all for a moment, since aiokafka rebalances
  eagerly. Above some dozens of processes, several groups, each with topics of its own for some of the sites, are the
  safer way, and the arithmetic is the same for each."""


def _measured(known: Measured) -> str:
    rows = (
        ("memory of a sync in flight", f"{known.bytes_each:,.0f} bytes"),
        ("memory of an idle process", f"{known.idle_mb:,.0f} MB"),
        ("CPU of one sync, from its acceptance to its outcome", f"{known.cpu_ms:.2f} ms"),
        ("Kafka's CPU for it (one node, no replication)", f"{known.kafka_cpu_ms:.2f} ms"),
        ("memory of a remembered identity", f"{known.identity_bytes:,.0f} bytes"),
        ("a journal record, key and value", f"{known.record_bytes:,.0f} bytes"),
        ("restoring, beyond what an empty journal takes", f"{known.records_per_second:,.0f} records/s"),
        ("longest wait of a request around a kill, with a session timeout of 6 s", f"{known.kill_s:.1f} s"),
        ("the same around a join", f"{known.join_s:.1f} s"),
    )
    return "\n".join(["| figure | value |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows)])


def _plans(plans: list[Plan]) -> str:
    heads = [f"{_time(plan.median)} tasks, remembered for {plan.remember / 3600:.0f} h" for plan in plans]
    rows: list[tuple[str, list[str]]] = [
        (
            f"syncs per second = {SYNCS:,} / (median x 1.65)",
            [f"{plan.per_second:,.0f}" for plan in plans],
        ),
        ("busy cores = syncs/s x CPU of one", [f"{plan.cores:.1f}" for plan in plans]),
        (
            f"processes = more of {SYNCS:,} / {IN_FLIGHT_EACH:,} and cores / {BUSY:g}",
            [f"{plan.processes}" for plan in plans],
        ),
        (f"partitions = processes x {PARTITIONS_EACH}", [f"{plan.partitions}" for plan in plans]),
        ("POSTs per second at each VCDA = syncs/s / sites", [f"{plan.per_second / SITES:.1f}" for plan in plans]),
        ("remembered requests = syncs/s x time", [f"{plan.remembered / 1e6:.1f} million" for plan in plans]),
        (
            "memory of a process = idle + (syncs x each + remembered x each) / processes",
            [f"{plan.memory_gb:.2f} GB" for plan in plans],
        ),
        (
            "journal, one replica = (syncs + remembered) x record + partitions x 64 MiB uncompacted",
            [f"{plan.journal_gb:.0f} GB" for plan in plans],
        ),
        (
            "restore of one partition = its records, uncompacted ones included / records per second",
            [f"{plan.restore_s:.1f} s" for plan in plans],
        ),
        (
            "a clean stop's partitions elsewhere: about one to each of the others, so join + one restore",
            [f"{plan.known.join_s + plan.restore_s:.1f} s" for plan in plans],
        ),
        (
            "a killed process' partitions: with 4 s more for the default session timeout of 10 s, and one restore",
            [f"{plan.known.kill_s + 4.0 + plan.restore_s:.1f} s" for plan in plans],
        ),
        (
            f"Kafka: messages per second = syncs/s x (request + {TIMES_WRITTEN} in the journal + outcome)",
            [f"{plan.messages:,.0f}" for plan in plans],
        ),
        (
            f"Kafka: transactions per second <= syncs/s x {COMMITS}, and <= partitions x 50",
            [f"{plan.commits:,.0f}" for plan in plans],
        ),
        (
            "Kafka: busy cores for it = syncs/s x Kafka's CPU of one, times replicas",
            [f"{plan.per_second * plan.known.kafka_cpu_ms / 1000:.1f} x replicas" for plan in plans],
        ),
    ]
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(plans)]
    return "\n".join([*lines, *(f"| {what} | " + " | ".join(values) + " |" for what, values in rows)])


def _sites(results: Results, plans: list[Plan]) -> Iterator[str]:
    yield "## Load on each VCDA, simulated"
    yield (
        "The service's own polling, pacing and lanes in virtual time (`benchmarks/virtual.py`), with 10,000 "
        "syncs always running at each site and progress that a task reports in whole percents. First with requests "
        "spread over all processes, so that each of 20 has 500 of a site's syncs; then with each site's syncs in one "
        "process. *CPU* is of one core, for polling, pacing and lanes alone, the simulation included."
    )
    rows = [_virtual(row, plans) for row in results.virtual]
    yield "\n".join([VIRTUAL_HEAD, *rows])
    yield (
        "So where requests are spread over processes, a site's batches stay small, and its calls are many. Where a "
        "VCDA minds, keep its syncs together: a group of processes, with topics of their own, for each few sites. Then "
        "batches fill up, and the same tasks cost a fraction of the calls."
    )


VIRTUAL_HEAD = """\
| tasks | of a site's syncs, in a process | calls/s from it | processes | **calls/s at each VCDA** | tasks in a call \
| POSTs/s at each VCDA | computed above | lag p50, p99 | sites, and CPU |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def _virtual(row: dict[str, Any], plans: list[Plan]) -> str:
    sharing = SYNCS / SITES / row["each"]
    plan = next(plan for plan in plans if plan.median == row["median_s"])
    cells = (
        _time(row["median_s"]),
        f"{row['each']:,}",
        f"{row['calls_per_second_and_site']:.2f}",
        f"{sharing:.0f}",
        f"**{row['calls_per_second_and_site'] * sharing:.0f}**",
        f"{row['ids_per_call']:.1f}",
        f"{row['posts_per_second'] / row['sites'] * sharing:.1f}",
        f"{plan.per_second / SITES:.1f}",
        f"{row['lag_p50_s']:.2f} s, {row['lag_p99_s']:.1f} s",
        f"{row['sites']}: {row['cpu_share']:.3f}",
    )
    return "| " + " | ".join(cells) + " |"


def _settings(plan: Plan) -> str:
    return SETTINGS.format(
        processes=plan.processes,
        share=math.ceil(SYNCS / SITES / plan.processes),
        stop=f"{200 * plan.processes * SITES:,}",
        posts=16 * plan.processes,
        each=f"{IN_FLIGHT_EACH:,}",
        partitions=plan.partitions,
    )


SETTINGS = """\
- `MAX_RUNNING` counts per site and process: for 10,000 at a site, {processes} processes need {share} each and some room
  for uneven shares, or 0; its default of 200 would stop at {stop} in all.
- `MAX_CONCURRENT_SUBMITS` counts likewise: the default of 16 means up to {posts} POSTs at once at a site. For so few a
  second, 2 are plenty.
- `MAX_IN_FLIGHT` somewhat above {each}, since partitions are never quite even.
- `PARTITIONS` {partitions} from the start: adding some later moves keys.
- `DEDUPLICATE_FOR` as short as upstream's repeats allow: with this many syncs, remembering them is what makes journals
  and restores long, as the columns above show."""


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 300 else f"{seconds / 60:g} min"  # noqa: PLR2004 - five minutes
