"""`vm-sync list` and `show`: the journal's requests, read from Kafka alone; works while the service is down.

The journal knows what is in flight and, for SYNC__DEDUPLICATE_FOR, how each request ended; older ones are only in the
outcomes' topics.
"""

import asyncio
import sys
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from msgspec.structs import replace

from service.cli import interrupts, kafka
from service.cli.moments import maybe_moment
from service.cli.options import State
from service.cli.output import NoAnswer, moment, printable, say, show_facts, show_json
from service.cli.tables import Column, show_table
from service.clock import Clock
from service.kafka.journal_codec import is_sync, read, restore
from service.messages.outcomes import describe_error
from service.moments import age, rfc3339
from service.sync import ApiError, Ended, Lingering, Reason, Running, Submitting, Sync, Waiting

COLUMNS: Final = (
    Column("operationID"),
    Column("replicationId", rank=2),
    Column("site"),
    Column("state", rank=1, text=True),
    Column("progress"),
    Column("age"),
    Column("ended", rank=4),
    Column("POSTs", rank=5),
    Column("task", rank=3),
)
"""What a person looks for; `age` since the acceptance, `ended` so long ago."""

MOMENTS: Final = (Column("accepted"), Column("submitted"), Column("deadline"), Column("error"))
"""What `--wide` adds."""

WATCH_EVERY: Final = 2.0
"""Seconds between two lists."""

Live: TypeAlias = Mapping[str, Mapping[str, Any]]
"""What the instances say of requests in flight, by identity: `/syncs` of the contract."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A journal record, for the output."""

    sync: Sync
    partition: int
    in_doubt: bool = False
    """Of what is submitting: its POST was in doubt when it was written."""
    newer_reason: str | None = None
    """Why it failed, in a word that only a newer version knows; the sync's own reason means nothing then."""

    @property
    def names(self) -> tuple[str, str, str]:
        """The names by which the request can be selected."""
        request = self.sync.request
        return request.identity, request.operation_id, request.replication_id

    @property
    def at(self) -> Waiting | Submitting | Running | Ended:
        """The state of the sync; of a lingering sync, the state behind its outcome."""
        return self.sync.of if isinstance(self.sync, Lingering) else self.sync

    @property
    def state(self) -> State:
        """In one word."""
        match self.sync:
            case Waiting():
                return State.WAITING
            case Submitting():
                return State.IN_DOUBT if self.in_doubt else State.SUBMITTING
            case Running():
                return State.RUNNING
            case Lingering():
                return State.LINGERING
            case Ended(reason=reason):
                return State.FAILED if reason else State.COMPLETED

    @property
    def reason(self) -> str | None:
        """Why the request failed."""
        if self.newer_reason is not None:
            return self.newer_reason
        if isinstance(self.sync, Lingering):
            return Reason.TIMED_OUT
        return self.sync.reason if isinstance(self.sync, Ended) else None

    @property
    def ended_at(self) -> datetime | None:
        """When the outcome was decided."""
        if isinstance(self.sync, Lingering):
            return self.sync.told_at
        return self.sync.ended_at if isinstance(self.sync, Ended) else None

    def is_forgotten(self, now: datetime) -> bool:
        """Whether the service no longer takes a request of this identity for a duplicate."""
        return isinstance(self.sync, Ended) and self.sync.expires_at <= now

    @property
    def submitted_at(self) -> datetime | None:
        """When VCDA accepted the request."""
        return self.at.submitted_at if isinstance(self.at, Running | Ended) else None

    @property
    def task_id(self) -> str | None:
        """VCDA's task."""
        return self.at.task_id if isinstance(self.at, Running | Ended) else None

    @property
    def adopted(self) -> bool:
        """Whether a look-up found its task, for a POST in doubt."""
        return self.at.adopted if isinstance(self.at, Running | Ended) else False

    @property
    def error(self) -> ApiError | None:
        """The error of the last attempt, or of the outcome."""
        match self.at:
            case Waiting(trouble=error) | Submitting(trouble=error) | Ended(error=error):
                return error
            case Running():
                return None

    @property
    def http_status(self) -> int | None:
        """Of the answer that `error` is from."""
        return None if isinstance(self.at, Running) else self.at.http_status


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFilter:
    """Which requests are meant, and how many. A site of "" is the local one."""

    states: Collection[State] = ()
    failed: bool = False
    since: str | None = None
    site: str | None = None
    replication: str | None = None
    limit: int = 50

    def select(self, entries: Iterable[JournalEntry], *, now: datetime) -> list[JournalEntry]:
        """Return those that are meant. `since` counts from the end, or the acceptance of what has not ended.

        Raises:
            NoAnswer: `since` names no moment.
        """
        since = maybe_moment("--since", self.since, now=now)
        return [
            entry
            for entry in entries
            if (not self.states or entry.state in self.states)
            and (not self.failed or entry.reason is not None)
            and (since is None or (entry.ended_at or entry.sync.request.accepted_at) >= since)
            and (self.site is None or (entry.sync.request.site or "") == self.site)
            and self.replication in {None, entry.sync.request.replication_id}
        ]


def list_(wanted: ListFilter, *, watch: bool, wide: bool, as_json: bool) -> None:
    """List those that are meant; with `watch`, again and again until Ctrl-C."""
    wanted.select((), now=_now())  # before Kafka is asked
    with suppress(KeyboardInterrupt) if watch else nullcontext():
        interrupts.run(_list(wanted, watch=watch, wide=wide, as_json=as_json))


async def _list(wanted: ListFilter, *, watch: bool, wide: bool, as_json: bool) -> None:
    place = kafka.settings()
    async with kafka.explained(place), journal(place) as entries:
        while True:
            found = wanted.select(await entries(), now=_now())
            shown = found[-wanted.limit :]
            live = await _live(place, shown, replication=wanted.replication)
            if watch and sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")
            if watch and not as_json:
                print(f"{_now():%Y-%m-%d %H:%M:%SZ}, every {WATCH_EVERY:g} s; Ctrl-C ends it.")
            _show(shown, live, wide=wide, as_json=as_json)
            if len(found) > len(shown):
                say(f"The latest {len(shown)} of {len(found)}; --limit shows more.")
            if not watch:
                return
            sys.stdout.flush()  # it may be a pipe
            await asyncio.sleep(WATCH_EVERY)


def show(name: str, *, wide: bool, as_json: bool) -> None:
    """Show the history of the request of that name; list the matches if there are several."""
    interrupts.run(_show_one(name, wide=wide, as_json=as_json))


async def _show_one(name: str, *, wide: bool, as_json: bool) -> None:
    place = kafka.settings()
    async with kafka.explained(place), journal(place) as entries:
        found = [entry for entry in await entries() if name in entry.names]
    if not found:
        msg = (
            f"The journal has no request {printable(name)}: it was never accepted, or ended longer ago than "
            "VM_SYNC_SYNC__DEDUPLICATE_FOR; for dead letters see `vm-sync dead-letters list`."
        )
        raise NoAnswer(msg)
    replications = {entry.sync.request.replication_id for entry in found}
    live = await _live(place, found, replication=replications.pop() if len(replications) == 1 else None)
    if len(found) == 1 and not as_json:
        show_facts(_story(found[0], live.get(found[0].sync.request.identity)))
    else:
        _show(found, live, wide=wide, as_json=as_json)


async def _live(place: kafka.KafkaContext, found: Iterable[JournalEntry], *, replication: str | None) -> Live:
    """Ask the instances of the service for what is in flight; what is unknown is missing."""
    wanted = [(entry.partition, entry.sync.request.identity) for entry in found if not isinstance(entry.sync, Ended)]
    if not wanted:
        return {}
    from service.cli import instances

    return await instances.in_flight(place, wanted, replication=replication)


def _now() -> datetime:
    return Clock().now()


@asynccontextmanager
async def journal(
    place: kafka.KafkaContext, *, partition: int | None = None
) -> AsyncIterator[Callable[[], Awaitable[list[JournalEntry]]]]:
    """Open the journal, or one partition of it.

    Each call of what is yielded reads it to its present end, and returns all of its requests.
    """
    topic = place.names.journal
    wanted = [one for one in await kafka.places(place, topic) if partition in {None, one.partition}]
    held: dict[tuple[int, bytes], bytes] = {}
    async with kafka.reader(place, wanted) as consumer:
        async with asyncio.timeout(kafka.SILENCE):
            for where, offset in (await consumer.beginning_offsets(wanted)).items():
                consumer.seek(where, offset)

        async def entries() -> list[JournalEntry]:
            async with aclosing(kafka.read_on(consumer, wanted, what=f"the journal {topic}")) as records:
                async for record in records:
                    if record.key is None or not is_sync(record.key):
                        continue
                    if record.value is None:
                        held.pop((record.partition, record.key), None)
                    else:
                        held[record.partition, record.key] = record.value
            return _understood(held, topic=topic)

        yield entries


def _understood(held: Mapping[tuple[int, bytes], bytes], *, topic: str) -> list[JournalEntry]:
    """Return the requests that this version can read, in the order of acceptance."""
    entries = [
        one for (partition, key), value in held.items() if (one := read_entry(key, value, partition)) is not None
    ]
    if unknown := len(held) - len(entries):
        msg = (
            f"{unknown} of {len(held)} records in the topic {topic} can't be read by this version: run the version "
            "that wrote them, or set VM_SYNC_TOPICS__JOURNAL to the service's journal."
        )
        if not entries:
            raise NoAnswer(msg)
        say(msg)
    return sorted(entries, key=lambda one: (one.sync.request.accepted_at, one.partition, one.sync.request.offset))


def read_entry(key: bytes, value: bytes, partition: int) -> JournalEntry | None:
    """Read a record; None: this version can't."""
    try:
        stored = read(value)
        newer = stored.reason if stored.reason not in {None, *Reason} else None
        if newer is not None:
            stored = replace(stored, reason=Reason.TASK_FAILED)
        return JournalEntry(restore(key.decode(), stored), partition, stored.in_doubt, newer)
    except (ValueError, KeyError, TypeError):
        return None


def _show(found: Sequence[JournalEntry], live: Live, *, wide: bool, as_json: bool) -> None:
    if as_json:
        show_json([entry_json(entry, live.get(entry.sync.request.identity)) for entry in found])
        return
    now = _now()
    columns = (*COLUMNS, *MOMENTS) if wide else COLUMNS
    rows = [_row(entry, live.get(entry.sync.request.identity, {}), now) for entry in found]
    show_table(columns, [row[: len(columns)] for row in rows], wide=wide)


def entry_json(entry: JournalEntry, live: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the entry as JSON, with the field names of the contract."""
    request, error = entry.sync.request, entry.error
    return {
        "requestId": request.identity,
        "operationID": request.operation_id,
        "replicationId": request.replication_id,
        "site": request.site,
        "state": entry.state.value,
        "reason": entry.reason,
        "partition": entry.partition,
        "offset": request.offset,
        "requestedAt": rfc3339(request.requested_at),
        "acceptedAt": rfc3339(request.accepted_at),
        "submittedAt": rfc3339(entry.submitted_at),
        "endedAt": rfc3339(entry.ended_at),
        "deadline": rfc3339(request.deadline),
        "attempts": entry.at.attempts,
        "taskId": entry.task_id,
        "adopted": entry.adopted,
        "error": {"code": error.code, "msg": error.msg, "httpStatus": entry.http_status} if error else None,
        "progress": live["progress"] if live else None,
        "waitsFor": live.get("waitsFor") if live else None,
    }


def _state(entry: JournalEntry, live: Mapping[str, Any]) -> str:
    """Say the state in short: with why it failed, what it waits for, or why the last attempt failed."""
    state = entry.state if not live or entry.state is State.LINGERING else live["state"]
    waits = live.get("waitsFor")
    why = (entry.reason, waits["cause"] if waits else None, entry.error.code if entry.error else None)
    parts = [part for part in why if part]
    return f"{state}: {printable(', '.join(parts))}" if parts else str(state)


def _row(entry: JournalEntry, live: Mapping[str, Any], now: datetime) -> tuple[str, ...]:
    request = entry.sync.request
    percent = live.get("progress")
    return (
        request.operation_id,
        request.replication_id,
        request.site or "local",
        _state(entry, live),
        "" if percent is None else f"{percent} %",
        age(now - request.accepted_at),
        f"{age(now - entry.ended_at)} ago" if entry.ended_at else "",
        str(entry.at.attempts),
        entry.task_id or "",
        moment(request.accepted_at),
        moment(entry.submitted_at),
        moment(request.deadline),
        printable(describe_error(entry.error, entry.http_status)),
    )


def _story(entry: JournalEntry, live: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yield the history in chronological order."""
    request = entry.sync.request
    yield "request", request.identity
    yield "operationID", request.operation_id
    yield "replicationId", request.replication_id
    yield "site", request.site or "local"
    yield "state", live["state"] if live and entry.state is not State.LINGERING else entry.state
    yield "requested", f"{moment(request.requested_at)}, partition {entry.partition}, offset {request.offset}"
    yield "accepted", moment(request.accepted_at)
    if entry.submitted_at:
        yield "submitted", moment(entry.submitted_at)
    yield "POSTs", str(entry.at.attempts)
    if entry.task_id:
        yield "task", entry.task_id + (", adopted for a POST in doubt" if entry.adopted else "")
    yield from _present(entry, live)
    yield from _end(entry)


def _present(entry: JournalEntry, live: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yield what is true of it now, if it has not ended."""
    if isinstance(entry.sync, Ended):
        return
    yield "age", age(_now() - entry.sync.request.accepted_at)
    if live is None:
        yield "waits for", f"unknown: no instance of the service answers for partition {entry.partition}"
        return
    if live["progress"] is not None:
        yield "progress", f"{live['progress']} %"
    if waits := live.get("waitsFor"):
        yield "waits for", _waits_for(waits)


def _end(entry: JournalEntry) -> Iterator[tuple[str, str]]:
    """Yield how it ended, or when it ends at the latest."""
    request = entry.sync.request
    if entry.ended_at:
        lasted = entry.ended_at - request.accepted_at
        lasted -= timedelta(microseconds=lasted.microseconds)
        yield "ended", f"{moment(entry.ended_at)}, {lasted} after it was accepted"
    if entry.reason:
        yield "reason", printable(entry.reason)
    if described := printable(describe_error(entry.error, entry.http_status)):
        yield "error" if entry.reason else "last error", described
    if isinstance(entry.sync, Lingering):
        yield "lingering", "the task may still run at VCDA, so the replication's next request waits"
    if isinstance(entry.sync, Ended):
        yield "remembered", f"until {moment(entry.sync.expires_at)}"
    else:
        yield "deadline", moment(request.deadline)


def _waits_for(waits: Mapping[str, Any]) -> str:
    until = waits.get("until")
    return printable(f"{waits['cause']}: {waits['detail']}" + (f"; until {until} at the earliest" if until else ""))
