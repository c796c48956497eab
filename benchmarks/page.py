"""docs/performance.md, from the raw figures: tables, method, and what the numbers don't say."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import plots, scaling
from benchmarks.goals import goals
from benchmarks.results import Results, Spread

NAMES = {
    "service": "**the service**",
    "bare": "bare loop",
    "obvious": "obvious service",
    "listing": "list-all poller",
    "running": "poller of what runs",
    "ceiling": "the simulated VCDA's ceiling",
    "empty": "the service, empty journals",
    "one": "one broker",
    "three": "three brokers, side by side",
    "three-5": "three brokers, 5 ms there and back",
    "three-10": "three brokers, 10 ms there and back",
    "deadlines": "all deadlines at one moment",
    "deadlines-20": "all deadlines at one moment, 20 requests of a replication each",
    "commit": "a commit of all, with as many events",
    "read": "a backlog of 48 partitions, all of it fetched already",
    "close": "quiescing, taking back and closing all partitions",
    "restored": "a restore, from the assignment of the partitions",
    "syncs": "`/syncs` of 1,000, again and again",
    "metrics": "`/metrics`, again and again",
}

LONG = (
    ("after_the_last_end_s", "last outcome after last end, s"),
    ("beyond_the_longest_s", "all, beyond the longest task, s"),
    ("calls", "calls/task"),
    ("lag_p50_s", "lag p50, s"),
    ("lag_p99_s", "lag p99, s"),
    ("cpu_ms", "CPU ms/task"),
    ("idle_cpu_ms", "of it idle"),
    ("missing", "without outcome"),
    ("rss_mb", "memory, MB"),
    ("vcda_busy", "VCDA's core busy"),
)

COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "S1": (
        ("posts_per_second", "POSTs/s"),
        ("cpu_ms", "CPU ms/task"),
        ("seconds", "seconds in all"),
        ("calls", "calls/task"),
        ("overlapping", "overlapping"),
        ("missing", "without outcome"),
        ("rss_mb", "memory, MB"),
        ("vcda_busy", "VCDA's core busy"),
    ),
    "S2": LONG,
    "S2 wide": LONG,
    "flight": (
        ("at_once", "at once"),
        ("bytes_each", "bytes each"),
        ("held_mb", "memory, MB"),
        ("net_cpu_ms", "CPU ms/request, idle cost taken off"),
        ("idle_busy", "idle cost, cores"),
        ("loop_lag_p99_s", "loop lag p99 <= s"),
        ("lag_p50_s", "lag p50, s"),
        ("lag_p99_s", "lag p99, s"),
        ("calls", "calls/task"),
        ("ids_polled", "answers/task"),
    ),
    "trickle": (
        ("wait_p50_ms", "p50, ms"),
        ("wait_p99_ms", "p99, ms"),
        ("wait_max_ms", "longest, ms"),
        ("cpu_ms", "CPU ms/request"),
        ("missing", "without outcome"),
    ),
    "zones": (
        ("wait_p50_ms", "p50, ms"),
        ("wait_p99_ms", "p99, ms"),
        ("commit_p50_ms", "commit p50 <= ms"),
        ("cpu_ms", "CPU ms/request"),
        ("posts_per_second", "burst: POSTs/s"),
        ("burst_cpu_ms", "burst: CPU ms/task"),
        ("kafka_busy", "burst: Kafka's cores busy"),
        ("missing", "without outcome"),
    ),
    "cores": (
        ("cpu_ms", "CPU ms/task, all processes"),
        ("tasks_per_core_second", "tasks/s on full cores"),
        ("least_share", "smallest share of the CPU time"),
        ("missing", "without outcome"),
    ),
    "pythons": (
        ("cpu_ms", "CPU ms/task"),
        ("posts_per_second", "POSTs/s"),
        ("rss_mb", "memory, MB"),
        ("missing", "without outcome"),
    ),
    "partitions": (
        ("open_s", "all open after, s"),
        ("cpu_s", "CPU s, start included"),
        ("idle_busy", "idle cost, cores"),
        ("rss_mb", "memory, MB"),
    ),
    "restore": (
        ("seconds", "seconds"),
        ("cpu_s", "CPU s, start included"),
        ("rss_mb", "memory afterwards, MB"),
        ("peak_mb", "most memory, MB"),
        ("bytes_each", "bytes a record"),
    ),
    "remembering": (("bytes", "bytes each"), ("plain_bytes", "in a plain dict")),
    "hand-over": (
        *(
            (f"{event}_{what}_s", f"{event}: {word}, s")
            for event in ("quiet", "join", "stop", "kill")
            for what, word in (("p50", "median"), ("max", "longest"))
        ),
        ("missing", "without outcome"),
        ("repeated", "POSTed twice"),
    ),
    "standstill": (
        ("worst_ms", "longest, ms"),
        ("second_ms", "next, ms"),
        ("p99_ms", "p99, ms"),
        ("over_20_ms", "over 20 ms"),
        ("garbage_ms", "longest garbage collection, ms"),
    ),
}


def shown(spread: Spread | None, *, unit: str = "") -> str:
    """Write a median, and the lowest and highest beside it where there were several rounds."""
    if spread is None:
        return ""
    middle = f"{number(spread.middle)}{unit}"
    return middle if spread.rounds == 1 else f"{middle} ({number(spread.low)} – {number(spread.high)})"  # noqa: RUF001


def number(value: float) -> str:
    """Write a figure with three significant digits or so."""
    for limit, digits in ((100.0, 0), (10.0, 1), (1.0, 2)):
        if abs(value) >= limit:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}" if value else "0"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def goals_table(results: Results) -> str:
    """Write the promises, and how they fared."""
    return table(
        ("what", "wanted", "measured", "reached"),
        [(goal.what, goal.wanted, shown(goal.measured, unit=goal.unit), goal.verdict) for goal in goals(results)],
    )


def scenario_table(results: Results, scenario: str, *, first: str = "") -> str:
    """Write all figures of a scenario, a line for each subject."""
    columns = COLUMNS[scenario]
    subjects = sorted(results.subjects(scenario), key=_order)
    used = [(figure, word) for figure, word in columns if any(results.spread(scenario, s, figure) for s in subjects)]
    return table(
        (first, *(word for _, word in used)),
        [
            (
                NAMES.get(subject, f"{int(subject):,}" if subject.isdecimal() else subject),
                *(shown(results.spread(scenario, subject, figure)) for figure, _ in used),
            )
            for subject in subjects
        ],
    )


def _order(subject: str) -> tuple[int, str]:
    if subject.isdecimal():
        return int(subject), ""
    return (list(NAMES).index(subject), "") if subject in NAMES else (len(NAMES), subject)


def tables(results: Results) -> str:
    """Return all tables, for a terminal."""
    parts = [goals_table(results)]
    parts += [f"{name}\n{scenario_table(results, name)}" for name in COLUMNS if results.subjects(name)]
    return "\n\n".join(parts)


def write(results: Results, docs: Path) -> None:
    """Write both pages, and draw their pictures."""
    folder = docs / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    plots.draw(results, folder)
    notes = folder / "notes.md"
    said = notes.read_text(encoding="utf-8").strip() if notes.exists() else ""
    (docs / "performance.md").write_text("\n\n".join(_performance(results, said)) + "\n", encoding="utf-8")
    (docs / "scaling.md").write_text("\n\n".join(scaling.text(results)) + "\n", encoding="utf-8")


def _performance(results: Results, notes: str) -> Iterator[str]:
    settings, machine = results.settings, results.machine
    yield "# Performance"
    yield (
        "Written by `make bench` from [its raw figures](performance/raw.json); don't edit it. Each figure is the "
        "median of its rounds, with the lowest and the highest in brackets. Ratios are formed within a round, against "
        "a control measured minutes before or after on the same machine: they carry over to other machines, the "
        "absolute figures don't."
    )
    if results.form != "full":
        yield f"**This is the {results.form} form: far too small to say anything.**"
    yield goals_table(results)
    if notes:
        yield "## Notes"
        yield notes
    yield from _burst(results)
    yield "## Long tasks"
    yield (
        f"{settings['long']:,} requests, each for a replication of its own, all on the topic at once; durations are "
        f"log-normal with a mean of {settings['long_mean']:g} s and a sigma of 0.5. The lag is from a task's true end "
        "to the moment when a reader of committed records holds its outcome."
    )
    yield scenario_table(results, "S2")
    yield "![The lag's distribution](performance/lag.svg)"
    yield (
        f"The same with {settings['wide']:,} requests and a sigma of 0.8. Most tasks end early and the last ones run "
        "for minutes, so that much of a process' CPU time is what it uses without any work: the column *of it idle* "
        "is what the same process used while it waited for the first request, times the seconds of the run."
    )
    yield scenario_table(results, "S2 wide")
    yield "## Many in flight"
    low, high = settings["flight_between"]
    yield (
        f"So many requests at once, each for a replication of its own, with tasks that end after {low:g} to "
        f"{high:g} s; the service alone. Memory is what is resident with all of them running, less what was resident "
        "before the first. CPU is net of what the same process used while it was idle, in the same time."
    )
    yield scenario_table(results, "flight", first="in flight")
    yield "![Memory, CPU and lag by the number in flight](performance/flight.svg)"
    yield "## A steady trickle"
    yield (
        f"{settings['rate']:g} requests a second at random moments, 4 partitions, tasks of 1 s: the time from the "
        "broker's own stamp on the record to VCDA's receiving the POST. For the service it holds a transaction: the "
        "request and the intent to POST are written down. The first twentieth is left out: connections are new."
    )
    yield scenario_table(results, "trickle")
    yield "![The wait's distribution](performance/trickle.svg)"
    yield "### Three brokers in three zones"
    yield (
        "The same trickle and the burst above on three brokers, each topic with three replicas of which two must have "
        "a message (`acks=all`). A relay delays what brokers say to each other, and what the service says to two of "
        "them: the third one is in its own zone. All brokers share the cores with everything else."
    )
    yield scenario_table(results, "zones")
    yield "## Restores and rebalances"
    yield (
        f"A process starts before journals of {settings['restored']:,} syncs in flight and "
        f"{settings['remembered']:,} that have ended within a day: the time from the assignment of the partitions to "
        "the first poll of the last sync. The bare loop reads the same records and looks into none."
    )
    yield scenario_table(results, "restore")
    if results.subjects("partitions"):
        yield (
            "A process starts before so many partitions, whose journals hold a cursor alone: the time from the "
            "assignment until the last one is open, and what the process takes while it has nothing to do."
        )
        yield scenario_table(results, "partitions", first="partitions")
    yield "What an ended request costs in memory until it is forgotten:"
    yield scenario_table(results, "remembering")
    yield (
        f"{settings['hand_over_rate']:g} requests a second while a second process joins, the first is told to stop, a "
        "third joins, and the second is killed (session timeout 6 s): how long the requests around each event waited "
        "for their POSTs."
    )
    yield scenario_table(results, "hand-over")
    yield "## How long the event loop stands still"
    yield (
        f"The CPU time between two turns of the event loop, with {settings['restored']:,} in flight in 8 partitions: "
        "everything else waits for so long, a poll, a heartbeat, a probe. One kind of work in each process. The last "
        "three are the service with Kafka and VCDA, and leave out turns of less than 1 ms; the others have nothing "
        "behind a socket (`python -m benchmarks.holds`)."
    )
    yield scenario_table(results, "standstill", first="what it does")
    yield (
        "A million requests through one deployment, of which each was followed, with samples of memory and of the "
        "journal's size: [a long run](performance/long-run.md)."
    )
    yield "## Polling policy"
    yield (
        "The polling policy in simulated time, beside fixed intervals: how many answers a task costs, and how late "
        "its end is noticed (`python -m benchmarks.polling_bench`). Down and left is better."
    )
    yield "![Answers per task and lag, for many kinds of tasks](performance/policy.svg)"
    yield "## Method"
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    yield METHOD.format(taken=results.taken, versions=versions, **machine)
    yield "## Limits of these numbers"
    yield UNSAID


def _burst(results: Results) -> Iterator[str]:
    settings = results.settings
    yield "## A burst of short tasks"
    yield (
        f"{settings['burst']:,} requests for {settings['burst_replications']:,} replications, all on the topic at "
        "once; tasks of 100 ms, `POLL_MIN` 100 ms, 100 POSTs at once. A replication's syncs run one after another in "
        "the service alone: the controls let them overlap. POSTs per second count from the first to the last one, as "
        "VCDA saw them; CPU is the process' own, user and system, from when it is ready until the last outcome."
    )
    yield scenario_table(results, "S1")
    yield "![POSTs per second and CPU per task](performance/burst.svg)"
    if results.subjects("cores"):
        yield "### Processes on a core each"
        yield (
            "The same by one process with all 8 partitions, held to one core, and by two with 4 each, held to a core "
            "each. The other processes run on the same cores, so what counts is CPU time: a process whose core is full "
            "does a task in the CPU time of one, so that two do 2 / (CPU time of a task) a second together."
        )
        yield scenario_table(results, "cores", first="processes")
    if results.subjects("pythons"):
        yield "### Other versions of Python"
        yield (
            "The same with the service run by several versions of Python, in turns, all with the same packages. "
            "Everything else runs with the version named below."
        )
        yield scenario_table(results, "pythons", first="Python")


METHOD = """\
- {taken}, revision {revision}: {processor}, {cores} cores, {memory}, {system}; load before the start {load}.
- {versions}.
- Kafka (one node, no replication), the simulated VCDA, the subject and the benchmark are processes of their own on
  these cores. Each subject begins with new topics and a VCDA that has forgotten everything; each round begins with
  another subject.
- The service runs with its defaults, but 8 partitions, `MAX_CONCURRENT_SUBMITS` 100, `MAX_RUNNING` 0 and
  `MAX_IN_FLIGHT` 100,000. It logs a line for each sync, to a file; the controls log nothing.
- The controls (`benchmarks/controls.py`) have the same HTTP client, uvloop and 100 connections. The obvious
  service is FastStream's: 1,000 handlers at once, each POSTs, asks once a second, publishes. The list-all poller keeps
  its state in memory and pages through all sync tasks since its oldest, each second; the poller of what runs asks for
  running tasks alone, and by their ids for those that no longer are.
- The ceiling is what the simulated VCDA takes from ready-made bytes on bare sockets; *VCDA's core busy* is how much of
  one core it used: where that is near 1, it was the bottleneck."""

UNSAID = """\
- **Nothing of a real VCDA.** The simulated one answers in half a millisecond and never tires; a real appliance has two
  processors and other work. Its own limits will come first.
- **Nothing of a real Kafka's latency.** One node without replication on loopback commits in a few milliseconds; three
  brokers in three zones take several times that, and each POST waits for a commit.
- **Little of a machine with free cores.** With all processes on the same few, each takes time from the others, and
  rates are bounded by the sum of what all of them do. CPU per task is hardly touched by that.
- **The controls do less.** After a crash, the list-all poller has forgotten what ran and the obvious service has lost
  what it had acknowledged; neither keeps a replication's syncs apart or in order.
- CPU comes in hundredths of a second from `/proc`; memory is resident memory, the allocator's slack included. No TLS:
  the simulated VCDA is on loopback."""
