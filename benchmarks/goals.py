"""What the service is to reach, and whether it did: one row for each promise made of its speed and thrift."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.results import Results, Spread

KB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One row. `measured` is None where this run did not measure it."""

    what: str
    wanted: str
    measured: Spread | None
    reached: Callable[[float], bool]
    unit: str = ""

    @property
    def verdict(self) -> str:
        """Say whether the median is good enough."""
        if self.measured is None:
            return "not measured"
        return "yes" if self.reached(self.measured.middle) else "**no**"


def at_least(limit: float) -> Callable[[float], bool]:
    """As much or more."""
    return lambda value: value >= limit


def at_most(limit: float) -> Callable[[float], bool]:
    """As much or less."""
    return lambda value: value <= limit


def goals(results: Results) -> Iterator[Goal]:
    """Yield all rows, in the order of the page."""
    yield from _burst(results)
    yield from _long(results)
    yield from _policy(results)
    yield from _flight(results)
    yield from _standstill(results)
    yield from _processes(results)
    yield from _rest(results)


def _burst(results: Results) -> Iterator[Goal]:
    yield Goal(
        what="a burst of 100 ms tasks: POSTs per second against the bare loop's",
        wanted=">= 0.85",
        measured=results.ratio("S1", "service", "bare", "posts_per_second"),
        reached=at_least(0.85),
    )
    yield Goal(
        what="the same: POSTs per second against the list-all poller's",
        wanted=">= 1.1",
        measured=results.ratio("S1", "service", "listing", "posts_per_second"),
        reached=at_least(1.1),
    )
    yield Goal(
        what="the same: syncs of one replication that overlapped",
        wanted="0",
        measured=results.spread("S1", "service", "overlapping"),
        reached=at_most(0),
    )
    yield Goal(
        what="the same: CPU per task against the obvious service's",
        wanted="<= 0.5",
        measured=results.ratio("S1", "service", "obvious", "cpu_ms"),
        reached=at_most(0.5),
    )
    yield Goal(
        what="the same: CPU per task against the bare loop's per POST",
        wanted="<= 1.35",
        measured=results.ratio("S1", "service", "bare", "cpu_ms"),
        reached=at_most(1.35),
    )


def _long(results: Results) -> Iterator[Goal]:
    for scenario, first in (("S2", "long tasks"), ("S2 wide", "long tasks, durations far apart")):
        for what, wanted, figure, limit, unit in (
            (f"{first}: the last outcome after the last task's end", "<= 5 s", "after_the_last_end_s", 5.0, " s"),
            ("the same: HTTP calls per task, logins included", "<= 1.1", "calls", 1.1, ""),
            ("the same: from a task's end to its outcome, p50", "<= 0.5 s", "lag_p50_s", 0.5, " s"),
            ("the same, p99", "<= 1 s", "lag_p99_s", 1.0, " s"),
        ):
            yield Goal(
                what=what,
                wanted=wanted,
                measured=results.spread(scenario, "service", figure),
                reached=at_most(limit),
                unit=unit,
            )
        for control, name in (("listing", "the list-all poller's"), ("running", "that of the poller of what runs")):
            yield Goal(
                what=f"the same: CPU per task against {name}",
                wanted="<= 0.7",
                measured=results.ratio(scenario, "service", control, "cpu_ms"),
                reached=at_most(0.7),
            )


def _policy(results: Results) -> Iterator[Goal]:
    for workload, part, p50, p99 in (("90 s", 1 / 5, 0.6, 2.0), ("10 min", 1 / 15, 1.0, 10.0)):
        rows = {
            row["poller"]: row for row in results.policy if (row["workload"], row["kind"]) == (workload, "progress")
        }
        own, fixed = rows.get("adaptive"), rows.get("every 1 s")
        fewer = None if own is None or fixed is None else own["answers_per_task"] / fixed["answers_per_task"]
        yield Goal(
            what=f"polling tasks of {workload} (median): answers per task against a poller of 1 s",
            wanted=f"<= 1/{1 / part:.0f}",
            measured=_one(fewer),
            reached=at_most(part),
        )
        for word, limit in (("p50", p50), ("p99", p99)):
            yield Goal(
                what=f"the same: lag {word}",
                wanted=f"<= {limit:g} s",
                measured=_one(None if own is None else own[f"lag_{word}"]),
                reached=at_most(limit),
                unit=" s",
            )


def _flight(results: Results) -> Iterator[Goal]:
    levels = [str(level) for level in results.settings["flight"]]
    few, most = levels[0], levels[-1]
    base = levels[1] if len(levels) > 2 else few  # noqa: PLR2004 - the small forms have two levels alone
    yield Goal(
        what=f"{int(most):,} in flight in one process: memory each, over an idle process",
        wanted="<= 5 KB",
        measured=_scaled(results.spread("flight", most, "bytes_each"), 1 / KB),
        reached=at_most(5.0),
        unit=" KB",
    )
    yield Goal(
        what="the same: event loop lag p99 (upper bound of its bucket)",
        wanted="<= 100 ms",
        measured=_scaled(results.spread("flight", most, "loop_lag_p99_s"), 1000),
        reached=at_most(100.0),
        unit=" ms",
    )
    yield Goal(
        what=f"the same: p99 of the lag against that with {int(few):,} in flight",
        wanted="<= 2",
        measured=results.ratio("flight", most, few, "lag_p99_s"),
        reached=at_most(2.0),
    )
    yield Goal(
        what=f"CPU per request with {int(most):,} in flight against {int(base):,}, idle cost taken off",
        wanted="0.8 to 1.2; less is better",
        measured=results.ratio("flight", most, base, "net_cpu_ms"),
        reached=at_most(1.2),
    )


def _standstill(results: Results) -> Iterator[Goal]:
    for number, (subject, work) in enumerate(
        (
            ("deadlines", "all deadlines at one moment"),
            ("deadlines-20", "the same, 20 requests of a replication each"),
            ("commit", "a commit of all, with as many events"),
            ("read", "reading a backlog of as many"),
            ("close", "quiescing and closing all partitions"),
            ("restored", "a restore"),
            ("syncs", "`/syncs`"),
            ("metrics", "a scrape of `/metrics`"),
        )
    ):
        first = f"worst single hold of the event loop with {results.settings['restored']:,} in flight"
        yield Goal(
            what=f"{'the same' if number else first}: {work}",
            wanted="<= 20 ms",
            measured=results.spread("standstill", subject, "worst_ms"),
            reached=at_most(20.0),
            unit=" ms",
        )
    yield Goal(
        what="p99 of the turns of the event loop of 1 ms and more, during a restore",
        wanted="<= 20 ms",
        measured=results.spread("standstill", "restored", "p99_ms"),
        reached=at_most(20.0),
        unit=" ms",
    )


def _processes(results: Results) -> Iterator[Goal]:
    few, many = (str(count) for count in results.settings.get("partitions", (8, 100)))
    yield Goal(
        what="two processes on a core each against one: throughput bound by CPU time",
        wanted=">= 1.9",
        measured=results.ratio("cores", "2", "1", "tasks_per_core_second"),
        reached=at_least(1.9),
    )
    yield Goal(
        what=f"{many} partitions in one process: from the assignment until all are open",
        wanted="<= 5 s",
        measured=results.spread("partitions", many, "open_s"),
        reached=at_most(5.0),
        unit=" s",
    )
    yield Goal(
        what="the same: CPU while idle",
        wanted="<= 5 % of a core",
        measured=_scaled(results.spread("partitions", many, "idle_busy"), 100),
        reached=at_most(5.0),
        unit=" %",
    )
    yield Goal(
        what=f"the same: memory beyond that with {few} partitions",
        wanted="<= 30 MB",
        measured=results.excess("partitions", many, few, "rss_mb"),
        reached=at_most(30.0),
        unit=" MB",
    )


def _rest(results: Results) -> Iterator[Goal]:
    settings: Any = results.settings
    yield Goal(
        what=f"restore of {settings['restored']:,} in flight and {settings['remembered']:,} remembered: from the "
        "assignment to the first poll of the last one",
        wanted="<= 5 s",
        measured=results.spread("restore", "service", "seconds"),
        reached=at_most(5.0),
        unit=" s",
    )
    yield Goal(
        what="the same with empty journals: until all partitions are open",
        wanted="<= 1 s",
        measured=results.spread("restore", "empty", "seconds"),
        reached=at_most(1.0),
        unit=" s",
    )
    for word, limit in (("p50", 30.0), ("p99", 150.0)):
        yield Goal(
            what=f"{settings['rate']:.0f} requests/s: from a record's appending to its POST, {word}",
            wanted=f"<= {limit:.0f} ms",
            measured=results.spread("trickle", "service", f"wait_{word}_ms"),
            reached=at_most(limit),
            unit=" ms",
        )
    for word, limit in (("p50", 60.0), ("p99", 200.0)):
        yield Goal(
            what=f"three brokers, 5 ms apart, {settings['rate']:.0f} requests/s: from a record's appending to its "
            f"POST, {word}",
            wanted=f"<= {limit:.0f} ms",
            measured=results.spread("zones", "three-5", f"wait_{word}_ms"),
            reached=at_most(limit),
            unit=" ms",
        )
    yield Goal(
        what="the same: POSTs per second of the burst against those on one broker",
        wanted=">= 0.9",
        measured=results.ratio("zones", "three-5", "one", "posts_per_second"),
        reached=at_least(0.9),
    )
    yield Goal(
        what="a remembered identity's memory",
        wanted="<= 100 bytes",
        measured=results.spread("remembering", "service", "bytes"),
        reached=at_most(100.0),
        unit=" bytes",
    )


def _one(value: float | None) -> Spread | None:
    return None if value is None else Spread.of([value])


def _scaled(spread: Spread | None, factor: float) -> Spread | None:
    if spread is None:
        return None
    return Spread(spread.low * factor, spread.middle * factor, spread.high * factor, spread.rounds)
