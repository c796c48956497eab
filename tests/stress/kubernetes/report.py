"""What a run on a cluster has shown: facts become counts, counts become the table of deploy/README. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from tests.stress.kubernetes.kubectl import End

MARKS: Final = ("<!-- make cluster-test -->", "<!-- end of make cluster-test -->")

SERVICE: Final = "vm-sync"
"""The service's container."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The requests of a row, and what became of them."""

    requests: int
    without_outcome: int
    with_several_outcomes: int
    failed: Mapping[str, int]
    """Outcomes other than completed, by reason; dead letters as "dead letter"."""
    without_task: int
    with_several_tasks: int
    longest_wait: float
    """Seconds from the sending of a request to its task at VCDA; of those that have one."""

    @property
    def sound(self) -> bool:
        """Whether each request has one outcome, completed, and one task."""
        return self.requests > 0 and not (
            self.without_outcome
            or self.with_several_outcomes
            or self.failed
            or self.without_task
            or self.with_several_tasks
        )

    def words(self) -> str:
        """Say it for the table."""
        if self.sound:
            return "each"
        wrong = {
            "without an outcome": self.without_outcome,
            "with several outcomes": self.with_several_outcomes,
            "without a task": self.without_task,
            "with several tasks": self.with_several_tasks,
            **self.failed,
        }
        return ", ".join(f"{count} {what}" for what, count in wrong.items() if count) or "no request"


def counted(facts: Mapping[str, Any]) -> Counted:
    """Count what the driver saw."""
    asked: Mapping[str, tuple[str, float]] = facts["asked"]
    outcomes: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for operation, topic, reason in facts["told"]:
        if operation in asked:
            outcomes[operation] += 1
        if topic.endswith("dead-letter"):
            failed["dead letter"] += 1
        elif topic.endswith("failed"):
            failed[str(reason)] += 1
    tasks: Counter[str] = Counter(replication for replication, _ in facts["tasks"])
    sent_at = dict(asked.values())
    return Counted(
        requests=len(asked),
        without_outcome=sum(not outcomes[operation] for operation in asked),
        with_several_outcomes=sum(count > 1 for count in outcomes.values()),
        failed=dict(failed),
        without_task=sum(not tasks[replication] for replication in sent_at),
        with_several_tasks=sum(count > 1 for count in tasks.values()),
        longest_wait=max(
            (at - sent_at[replication] for replication, at in facts["tasks"] if replication in sent_at), default=0.0
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a row has shown, or why it was not run."""

    row: str
    words: str
    counted: Counted | None = None
    codes: Mapping[int, int] = field(default_factory=dict)
    """Exit codes of the service's processes, with how many ended so."""
    fewest_ready: int | None = None
    took: float = 0.0
    """Seconds of what was done, until all instances were ready again."""
    note: str = ""
    not_run: str = ""
    faults: Sequence[str] = ()

    def row_of_table(self) -> str:
        """Return the row for deploy/README."""
        if self.not_run or self.counted is None:
            return f"| {self.words} | not run: {self.not_run} | | | | | |"
        codes = ", ".join(f"{code} ({count})" for code, count in sorted(self.codes.items())) or "none ended"
        words = f"{self.words}{': ' if self.note else ''}{self.note}"
        found = self.counted
        cells = (words, found.requests, found.words(), f"{found.longest_wait:.1f} s", codes, self.fewest_ready)
        return f"| {' | '.join(map(str, cells))} | {self.took:.0f} s |"


def codes_of(ends: Sequence[End]) -> dict[int, int]:
    """Count the exit codes of the service's own containers."""
    return dict(Counter(end.code for end in ends if end.container == SERVICE))


def faults_of(found: Counted, ends: Sequence[End], *, expected: frozenset[int]) -> list[str]:
    """Say what is not as it should be."""
    faults = []
    if not found.sound:
        faults.append(f"not every request has exactly one outcome and one task: {found.words()}")
    faults += [
        f"{end.pod}: {end.container} ended with exit code {end.code} ({end.reason})"
        for end in ends
        if end.code not in (expected if end.container == SERVICE else {0})
    ]
    return faults


HEAD: Final = (
    "| done | requests | one outcome and one task | longest wait for the task | exit codes | fewest ready | time |",
    "|---|---|---|---|---|---|---|",
)


def table(rows: Sequence[str]) -> str:
    """Return the table of some rows."""
    return "\n".join([*HEAD, *rows]) + "\n"


def spread(seconds: Sequence[float]) -> str:
    """Return a median with the lowest and the highest."""
    return f"{median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"


@dataclass(frozen=True, slots=True)
class Timing:
    """Something measured several times, in parts that follow one another."""

    words: str
    parts: Mapping[str, Sequence[float]]
    """Seconds of each part, one for each time."""

    def text(self) -> str:
        """Return the line for deploy/README."""
        rounds = list(zip(*self.parts.values(), strict=True))
        whole = f"- {self.words}: {spread([sum(one) for one in rounds])}, median of {len(rounds)} times."
        if len(self.parts) == 1:
            return whole
        parts = ", ".join(f"{what} {median(took):.1f} s" for what, took in self.parts.items())
        return f"{whole} Medians of its parts: {parts}."


def kept(page: str, *beginnings: str) -> list[str]:
    """Return the line of an earlier run that begins like one of these, or none."""
    return [line for line in between(page).splitlines() if line.startswith(beginnings)]


def between(page: str) -> str:
    """Return what is between the marks.

    Raises:
        ValueError: the marks are not there, once and in order.
    """
    _, rest = page.split(f"{MARKS[0]}\n")
    text, _ = rest.split(MARKS[1])
    return text


def inserted(page: str, text: str) -> str:
    """Return the page with `text` between its marks.

    Raises:
        ValueError: the marks are not there, once and in order.
    """
    before = between(page)
    return page.replace(f"{MARKS[0]}\n{before}", f"{MARKS[0]}\n{text}")
