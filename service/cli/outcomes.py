"""`vm-sync outcomes`: what happened in a period, from the outcome topics alone; works while the service is down.

A period is that of the events' timestamps at Kafka, when they were published. Only committed ones are read, without a
consumer group, one after the other: a million take no more memory than a few.
"""

import csv
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from service.cli import interrupts, kafka
from service.cli.moments import maybe_moment, read_moment
from service.cli.options import Rows
from service.cli.outcome_events import OutcomeEvent, read_event
from service.cli.outcome_summary import PERCENTILES, Group, Published, Sum, Summary
from service.cli.output import Exit, NoAnswer, moment, printable, say, show_json
from service.cli.tables import Column, show_table
from service.clock import Clock
from service.moments import age, rfc3339
from service.sync import Reason

COLUMNS: Final = (
    Column("operationID"),
    Column("replicationId", rank=3),
    Column("site"),
    Column("outcome", rank=1, text=True),
    Column("ended"),
    Column("took", rank=5),
    Column("error", rank=2, text=True),
    Column("task", rank=4),
)
"""Of each outcome; `took` is from the request to the end."""

GROUPS: Final = (
    Column("outcome"),
    Column("reason"),
    Column("site"),
    Column("count"),
    *[Column(f"p{percent}") for percent in PERCENTILES],
    *[Column(f"VCDA p{percent}", rank=9) for percent in PERCENTILES],
)
"""Of all of them: percentiles from the request to the end, and at VCDA."""

CSV: Final = (
    "publishedAt",
    "outcome",
    "reason",
    "operationID",
    "replicationId",
    "site",
    "taskId",
    "requestedAt",
    "submittedAt",
    "endedAt",
    "seconds",
    "attempts",
    "error",
    "httpStatus",
    "requestId",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeFilter:
    """Which outcomes are meant. A site of "" is the local one."""

    since: datetime
    until: datetime | None = None
    failed: bool = False
    completed: bool = False
    reasons: frozenset[str] = frozenset()
    site: str | None = None
    replication: str | None = None

    @classmethod
    def of(
        cls,
        *,
        since: str,
        until: str | None,
        failed: bool,
        completed: bool,
        reasons: Sequence[str],
        site: str | None,
        replication: str | None,
    ) -> "OutcomeFilter":
        """Parse the options.

        Raises:
            NoAnswer: one of them names no moment or reason, or they exclude each other.
        """
        now = Clock().now()
        found = cls(
            since=read_moment("--since", since, now=now),
            until=maybe_moment("--until", until, now=now),
            failed=failed or bool(reasons),
            completed=completed,
            reasons=frozenset(reasons),
            site=site,
            replication=replication,
        )
        msg = ""
        if unknown := found.reasons - set(Reason):
            msg = f"There is no reason {printable(min(unknown))}; the reasons are {', '.join(Reason)}."
        elif found.failed and completed:
            msg = "--completed excludes --failed and --reason; without any of them all outcomes are meant."
        elif found.since > (found.until or now):
            msg = f"The period ends before it begins: {found.period(now)}."
        if msg:
            raise NoAnswer(msg, code=Exit.USAGE)
        return found

    def holds(self, event: OutcomeEvent) -> bool:
        """Whether an outcome is meant."""
        failed = event.reason is not None
        return (
            not (self.failed and not failed)
            and not (self.completed and failed)
            and (not self.reasons or event.reason in self.reasons)
            and (self.site is None or (event.site or "") == self.site)
            and self.replication in {None, event.replication_id}
        )

    def topics(self, *, completed: str, failed: str) -> list[str]:
        """Return the topics of the outcomes that are meant."""
        wanted = [*([] if self.completed else [failed]), *([] if self.failed else [completed])]
        return list(dict.fromkeys(wanted))

    def period(self, now: datetime) -> str:
        """Write it for a person."""
        return f"{moment(self.since)} to {moment(self.until or now)}"


@dataclass(slots=True)
class Seen:
    """What else was found while reading."""

    foreign: int = 0
    """Records that are no outcomes, or that this version can't read."""
    found: int = 0


def outcomes(chosen: OutcomeFilter, *, limit: int, rows: Rows | None, wide: bool, as_json: bool) -> None:
    """Print the outcomes that are meant, in one of the forms."""
    if as_json and rows is not None:
        msg = f"--json and --{rows} exclude each other."
        raise NoAnswer(msg, code=Exit.USAGE)
    place = kafka.settings()
    seen = Seen()
    match rows:
        case Rows.CSV:
            interrupts.run(_csv(place, chosen, seen))
        case Rows.IDS:
            interrupts.run(_ids(place, chosen, seen))
        case None:
            summary = interrupts.run(_summary(place, chosen, seen, latest=limit))
            if as_json:
                show_json(_json(chosen, summary, seen))
            else:
                _show(summary, wide=wide)
    if not seen.found:
        say(f"No such outcomes from {chosen.period(Clock().now())}.")
    if seen.foreign:
        say(f"{seen.foreign} records of the topics are no outcomes, or can't be read by this version; not counted.")


async def _read(
    place: kafka.KafkaContext, chosen: OutcomeFilter, topics: Sequence[str], seen: Seen
) -> AsyncGenerator[Published, None]:
    """Yield each outcome on the topics in the period, also those that are not meant."""
    wanted = await kafka.places(place, *topics)
    what = f"the outcomes on {' and '.join(topics)}"
    async with aclosing(kafka.read_period(place, wanted, since=chosen.since, until=chosen.until, what=what)) as records:
        async for record in records:
            if (event := read_event(record.value)) is None:
                seen.foreign += 1
            else:
                yield Published(record.timestamp, record.partition, record.offset, event)


async def _meant(place: kafka.KafkaContext, chosen: OutcomeFilter, seen: Seen) -> AsyncGenerator[Published, None]:
    topics = chosen.topics(completed=place.names.completed, failed=place.names.failed)
    async with kafka.explained(place), aclosing(_read(place, chosen, topics, seen)) as all_of_them:
        async for one in all_of_them:
            if chosen.holds(one.event):
                seen.found += 1
                yield one


async def _summary(place: kafka.KafkaContext, chosen: OutcomeFilter, seen: Seen, *, latest: int) -> Summary:
    summary = Summary(latest=latest)
    async with aclosing(_meant(place, chosen, seen)) as found:
        async for one in found:
            summary.add(one)
    return summary


async def _csv(place: kafka.KafkaContext, chosen: OutcomeFilter, seen: Seen) -> None:
    write = csv.writer(sys.stdout, lineterminator="\n").writerow
    async with aclosing(_meant(place, chosen, seen)) as found:
        async for one in found:
            if seen.found == 1:
                write(CSV)
            event = one.event
            write(
                (
                    rfc3339(kafka.written_at(one.at_ms)),
                    event.outcome,
                    printable(event.reason),
                    printable(event.operation_id),
                    printable(event.replication_id),
                    printable(event.site),
                    printable(event.task_id),
                    rfc3339(event.requested_at),
                    rfc3339(event.submitted_at),
                    rfc3339(event.ended_at),
                    round((event.ended_at - event.requested_at).total_seconds(), 3),
                    event.attempts,
                    printable(event.described),
                    event.http_status,
                    printable(event.request_id),
                )
            )
    if not seen.found:
        write(CSV)


# ---------------------------------------------------------------- ids


@dataclass(slots=True)
class LastOutcomes:
    """The replications whose last outcome is meant: what ended otherwise later is left out.

    The outcomes of one topic have to be added in order; those of the topic where meant ones are have to come first.
    """

    meant: dict[tuple[str, str | None], int] = field(default_factory=dict)
    """When, by replication and site."""

    def add(self, one: Published, *, meant: bool) -> None:
        """Take note of an outcome."""
        name = (one.event.replication_id, one.event.site)
        before = self.meant.get(name)
        if meant and (before is None or before <= one.at_ms):
            self.meant[name] = one.at_ms
        elif not meant and before is not None and before <= one.at_ms:
            del self.meant[name]

    def lines(self) -> Iterator[str]:
        """Yield the replications, the site behind a tab if there is one: `vm-sync request --from -` reads that."""
        for replication_id, site in sorted(self.meant, key=lambda name: (name[0], name[1] or "")):
            yield printable(replication_id) + (f"\t{printable(site)}" if site else "")


async def _ids(place: kafka.KafkaContext, chosen: OutcomeFilter, seen: Seen) -> None:
    names, last = place.names, LastOutcomes()
    first = chosen.topics(completed=names.completed, failed=names.failed)
    async with kafka.explained(place):
        for topic in dict.fromkeys([*first, names.failed, names.completed]):
            async with aclosing(_read(place, chosen, [topic], seen)) as found:
                async for one in found:
                    last.add(one, meant=chosen.holds(one.event))
    seen.found = len(last.meant)
    for line in last.lines():
        print(line)


# ---------------------------------------------------------------- the summary


def _json(chosen: OutcomeFilter, summary: Summary, seen: Seen) -> dict[str, Any]:
    return {
        "since": rfc3339(chosen.since),
        "until": rfc3339(chosen.until),
        "count": summary.count,
        "foreign": seen.foreign,
        "summary": summary.json(),
        "latest": [
            {
                "requestId": event.request_id,
                "operationID": event.operation_id,
                "replicationId": event.replication_id,
                "site": event.site,
                "outcome": event.outcome,
                "reason": event.reason,
                "taskId": event.task_id,
                "requestedAt": rfc3339(event.requested_at),
                "submittedAt": rfc3339(event.submitted_at),
                "endedAt": rfc3339(event.ended_at),
                "attempts": event.attempts,
                "error": None if event.error is None else {"code": event.error.code, "msg": event.error.msg},
                "httpStatus": event.http_status,
            }
            for event in summary.latest()
        ],
    }


def _show(summary: Summary, *, wide: bool) -> None:
    now = Clock().now()
    latest = summary.latest()
    if latest:
        show_table(COLUMNS, [_row(event, now) for event in latest], wide=wide)
        print()
    show_table(GROUPS, [_counts(*one) for one in summary.groups()], wide=wide)
    if summary.count > len(latest):
        say(f"The latest {len(latest)} of {summary.count}; --limit shows more, --csv all of them.")


def _row(event: OutcomeEvent, now: datetime) -> tuple[str, ...]:
    return (
        printable(event.operation_id),
        printable(event.replication_id),
        printable(event.site or "local"),
        printable(f"failed: {event.reason}" if event.reason is not None else "completed"),
        f"{age(now - event.ended_at)} ago",
        lasted((event.ended_at - event.requested_at).total_seconds()),
        printable(event.described),
        printable(event.task_id),
    )


def _counts(group: Group, found: Sum) -> tuple[str, ...]:
    percentiles = [lasted(of.percentile(percent)) for of in (found.total, found.at_vcda) for percent in PERCENTILES]
    return (
        group.outcome,
        printable(group.reason),
        printable(group.site or "local"),
        str(found.total.count),
        *percentiles,
    )


def lasted(seconds: float | None) -> str:
    """Write a duration for a person: `0.4s`, `48s`, `3m05s`, `2h10m`; empty if there is none."""
    if seconds is None:
        return ""
    if round(seconds, 1) < 10:  # noqa: PLR2004 - below, a tenth is worth its place
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    if whole < 120:  # noqa: PLR2004 - two minutes
        return f"{whole}s"
    if whole < 7200:  # noqa: PLR2004 - two hours
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"
