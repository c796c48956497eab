"""Whether each of a million requests has one task and one outcome: compared in 30 bytes each, not in objects. Pure.

Requests are known by number: the operation of request 7 is `op-7`. Tasks come as the simulated VCDA's ledger has them,
outcomes as another team reads them, in any order. `tests/stress/oracle.py` judges more, such as the order of a
replication's syncs, and needs all of the evidence in memory for that.
"""

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

SEVERAL: Final = 255
"""The most that is counted of one request's tasks or outcomes."""

NAMED: Final = 5
"""How many requests a finding names."""


class Tally:
    """Counts tasks and outcomes of requests, numbered from 0. `asked` is how many there are so far."""

    def __init__(self) -> None:
        self.asked = 0
        self.ended = 0
        """How many requests have an outcome."""
        self.outcomes: Counter[str] = Counter()
        """How requests ended: `completed`, or the reason of the failure."""
        self.overlapping = 0
        """Tasks that began while another of the same replication was unfinished."""
        self.foreign: list[str] = []
        """What was never asked for, in words; the first ones."""
        self._tasks = bytearray()
        self._told = bytearray()
        self._differs = array("Q")
        """By request, the task's id and state, exclusive-or those that the outcome tells: 0 where they are the same."""
        self._ends = array("d")
        self._lags = array("d")

    def ask(self, count: int) -> range:
        """Return the numbers of so many more requests."""
        numbers = range(self.asked, self.asked + count)
        self.asked += count
        for growing in (self._tasks, self._told):
            growing.extend(bytes(count))
        self._differs.extend([0] * count)
        self._ends.extend([0.0] * count)
        return numbers

    def take_tasks(self, ledger: Iterable[Mapping[str, Any]]) -> None:
        """Take tasks that have ended, each once."""
        for task in ledger:
            self.overlapping += task["overlapped"]
            if (number := self._number(task["operationID"], "a task")) is None:
                continue
            self._tasks[number] = min(SEVERAL, self._tasks[number] + 1)
            self._differs[number] ^= _digest(task["id"], succeeded=task["state"] == "SUCCEEDED")
            self._lag(number, -task["end"])

    def take_outcome(self, now: float, value: bytes) -> None:
        """Take an outcome that was read at this moment."""
        event = json.loads(value)
        reason = event.get("reason", "completed")
        self.outcomes[reason] += 1
        if (number := self._number(event["operationID"], "an outcome")) is None:
            return
        self.ended += not self._told[number]
        self._told[number] = min(SEVERAL, self._told[number] + 1)
        self._differs[number] ^= _digest(event["taskId"], succeeded=reason == "completed") if event["taskId"] else 0
        self._lag(number, now)

    def _lag(self, number: int, moment: float) -> None:
        """Note the moment of an outcome, or, below 0, of a task's end; whichever is second makes it a lag."""
        earlier, self._ends[number] = self._ends[number], moment
        if earlier * moment < 0:
            self._lags.append(earlier + moment)

    def _number(self, operation_id: str | None, what: str) -> int | None:
        head, _, digits = (operation_id or "").partition("-")
        if head == "op" and digits.isdecimal() and int(digits) < self.asked:
            return int(digits)
        if len(self.foreign) < NAMED:
            self.foreign.append(f"{operation_id} has {what}, and was never asked for")
        return None

    def lags(self) -> list[float]:
        """Return the seconds from each task's end to its outcome, sorted."""
        return sorted(self._lags)

    def findings(self) -> Iterator[str]:
        """Yield what is not as it should be, in sentences; nothing, if each request has one task and one outcome."""
        yield from self.foreign
        for counts, what in ((self._tasks, "task"), (self._told, "outcome")):
            for words, wrong in (
                (f"no {what}", [number for number, count in enumerate(counts) if not count]),
                (f"several {what}s", [number for number, count in enumerate(counts) if count > 1]),
            ):
                if wrong:
                    yield f"{len(wrong):,} requests have {words}: {_named(wrong)}"
        once = (number for number, differs in enumerate(self._differs) if differs)
        if wrong := [number for number in once if self._tasks[number] == self._told[number] == 1]:
            yield f"{len(wrong):,} outcomes name another task, or another end, than the request's own: {_named(wrong)}"
        if self.overlapping:
            yield f"{self.overlapping:,} tasks began while another of the same replication was unfinished"


def _digest(task_id: str, *, succeeded: bool) -> int:
    return int(task_id.replace("-", "")[:16], 16) & ~1 | succeeded


def _named(numbers: list[int]) -> str:
    return ", ".join(f"op-{number}" for number in numbers[:NAMED]) + ", ..." * (len(numbers) > NAMED)
