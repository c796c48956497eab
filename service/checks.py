"""Runs checks: each bounded in time, and skipped if a check that it depends on has failed.

A check ends as ok, as a warning (the service will work, but guarantees less than it could) or as a failure. The text
says what to change, with the setting's name. Checks have no side effects.

It knows neither Kafka nor VCDA: their checks are in `service.kafka.check` and `service.vcda.check`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

SETTING: Final = re.compile(r"VM_SYNC_[A-Z0-9]+(?:_+[A-Z0-9]+)*")

CLOCKS_APART: Final = timedelta(seconds=10)
"""From this difference between two clocks on, a person comparing their logs is misled: a warning. Where the service
itself depends on another clock, it measures the difference, and corrects for it."""


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that a check has found. The text says what to change, unless all is well."""

    status: Status
    text: str
    answered: bool = True
    """False for a failure that may pass by itself, since nothing has answered; one that says no doesn't."""


def ok(text: str) -> Verdict:
    """Return that something is as it should be."""
    return Verdict(Status.OK, text)


def warning(text: str) -> Verdict:
    """Return that it will work, but not as well as it could."""
    return Verdict(Status.WARNING, text)


def failure(text: str, *, answered: bool = True) -> Verdict:
    """Return that it won't work; not `answered`: at present, since nothing answers."""
    return Verdict(Status.FAILURE, text, answered)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check. `run` has no side effects; it is cancelled after `limit`, and `overdue` then says what to look at."""

    group: str
    """What it is about, for a person: `Kafka`, `VCDA`, `site site2`."""
    name: str
    run: Callable[[], Awaitable[Sequence[Verdict]]]
    limit: timedelta
    overdue: str
    needs: "tuple[Check, ...]" = ()
    """The checks that it depends on; they come before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of the answer."""

    group: str
    check: str
    status: Status
    text: str
    answered: bool = True
    """See `Verdict`."""

    @property
    def settings(self) -> tuple[str, ...]:
        """Return the settings to change, as the text names them; none where all is well."""
        if self.status in {Status.OK, Status.SKIPPED}:
            return ()
        return tuple(dict.fromkeys(SETTING.findall(self.text)))


async def results(checks: Iterable[Check], *, within: timedelta) -> AsyncIterator[Result]:
    """Make checks one after another, and give what each has found as soon as it is known.

    `within` bounds all of them together: those that are left by then are skipped.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + within.total_seconds()
    failed: dict[Check, str] = {}
    """The checks that have no good answer, and why those that need them are skipped."""
    for check in checks:
        cause = next((failed[base] for base in check.needs if base in failed), None)
        left = deadline - clock()
        if cause is None and left <= 0:
            cause = f"the checks took longer than {within.total_seconds():g} s together"
        if cause is not None:
            failed[check] = cause
            yield Result(group=check.group, check=check.name, status=Status.SKIPPED, text=f"Skipped because {cause}.")
            continue
        for verdict in await _made(check, min(check.limit.total_seconds(), left)):
            if verdict.status is Status.FAILURE:
                failed[check] = f"the check of {check.group}'s {check.name} failed"
            yield Result(
                group=check.group,
                check=check.name,
                status=verdict.status,
                text=verdict.text,
                answered=verdict.answered,
            )


async def _made(check: Check, seconds: float) -> Sequence[Verdict]:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await check.run()
    except TimeoutError:
        if not limit.expired():
            raise
        return [failure(f"No answer within {seconds:.3g} s: {check.overdue}.", answered=False)]


def unless_another_works(verdicts: Sequence[Verdict]) -> Sequence[Verdict]:
    """Return what alternatives come to: one that works is enough, and makes the failures of the others warnings."""
    if all(verdict.status is Status.FAILURE for verdict in verdicts):
        return verdicts
    return [warning(each.text) if each.status is Status.FAILURE else each for each in verdicts]


def clocks(whose: str, ahead: timedelta) -> Verdict:
    """Judge another clock's difference from this machine's; below 0, the other is behind."""
    seconds = abs(ahead.total_seconds())
    if abs(ahead) < CLOCKS_APART:
        return ok(f"{whose} clock differs from this machine's by less than {CLOCKS_APART.total_seconds():g} s.")
    return warning(
        f"{whose} clock is {seconds:,.0f} s {'ahead of' if ahead > timedelta() else 'behind'} this machine's: "
        "synchronize both with NTP, or times in logs and outcomes can't be compared."
    )
