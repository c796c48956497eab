"""`vm-sync list` and `show`: the journal's requests, read from Kafka alone; works while the service is down.

The journal knows what is in flight and, for SYNC__DEDUPLICATE_FOR, how each request ended; older ones are only in the
outcomes' topics.
"""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from msgspec.structs import replace

from service.cli import kafka
from service.cli.options import State
from service.cli.output import NoAnswer, moment, printable, say, show_facts, show_json, show_table
from service.kafka.journal_codec import is_sync, read, restore
from service.messages.outcomes import describe_error
from service.moments import rfc3339
from service.sync import ApiError, Ended, Lingering, Reason, Running, Submitting, Sync, Waiting

COLUMNS: Final = ("operationID", "replicationId", "site", "state", "accepted", "submitted", "ended", "POSTs", "task")


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


def list_(*, states: Collection[State], site: str | None, replication: str | None, limit: int, as_json: bool) -> None:
    """List those that pass the filters; a site of "" means none."""
    found = [
        entry
        for entry in asyncio.run(_journal())
        if (not states or entry.state in states)
        and (site is None or (entry.sync.request.site or "") == site)
        and replication in {None, entry.sync.request.replication_id}
    ]
    if len(found) > limit:
        say(f"The latest {limit} of {len(found)}; --limit shows more.")
    _show(found[-limit:], as_json=as_json)


def show(name: str, *, as_json: bool) -> None:
    """Show the history of the request of that name; list the matches if there are several."""
    found = [entry for entry in asyncio.run(_journal()) if name in entry.names]
    if not found:
        msg = (
            f"The journal has no request {printable(name)}: it was never accepted, or ended longer ago than "
            "VM_SYNC_SYNC__DEDUPLICATE_FOR; for dead letters see `vm-sync dead-letters list`."
        )
        raise NoAnswer(msg)
    if len(found) == 1 and not as_json:
        show_facts(_story(found[0]))
    else:
        _show(found, as_json=as_json)


async def _journal() -> list[JournalEntry]:
    """Read all of it, in the order of acceptance."""
    place = kafka.settings()
    held: dict[tuple[int, bytes], bytes] = {}
    async with kafka.explained(place):
        topic = place.names.journal
        wanted = await kafka.places(place, topic)
        async with aclosing(kafka.read(place, wanted, what=f"the journal {topic}")) as records:
            async for record in records:
                if record.key is None or not is_sync(record.key):
                    continue
                if record.value is None:
                    held.pop((record.partition, record.key), None)
                else:
                    held[record.partition, record.key] = record.value
    entry = [one for (partition, key), value in held.items() if (one := _told(key, value, partition)) is not None]
    if unknown := len(held) - len(entry):
        msg = (
            f"{unknown} of {len(held)} records in the topic {topic} can't be read by this version: run the version "
            "that wrote them, or set VM_SYNC_TOPICS__JOURNAL to the service's journal."
        )
        if not entry:
            raise NoAnswer(msg)
        say(msg)
    return sorted(entry, key=lambda one: (one.sync.request.accepted_at, one.partition, one.sync.request.offset))


def _told(key: bytes, value: bytes, partition: int) -> JournalEntry | None:
    """Read a record; None: this version can't."""
    try:
        stored = read(value)
        newer = stored.reason if stored.reason not in {None, *Reason} else None
        if newer is not None:
            stored = replace(stored, reason=Reason.TASK_FAILED)
        return JournalEntry(restore(key.decode(), stored), partition, stored.in_doubt, newer)
    except (ValueError, KeyError, TypeError):
        return None


def _show(found: Sequence[JournalEntry], *, as_json: bool) -> None:
    if as_json:
        show_json([_json(entry) for entry in found])
    else:
        show_table(COLUMNS, [_row(entry) for entry in found])


def _json(entry: JournalEntry) -> dict[str, Any]:
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
    }


def _state(entry: JournalEntry) -> str:
    """Return the state in short, with the reason of the failure, or of the last attempt's."""
    parts = [part for part in (entry.reason, entry.error.code if entry.error else None) if part]
    return f"{entry.state}: {printable(', '.join(parts))}" if parts else entry.state


def _row(entry: JournalEntry) -> tuple[str, ...]:
    request = entry.sync.request
    return (
        request.operation_id,
        request.replication_id,
        request.site or "local",
        _state(entry),
        moment(request.accepted_at),
        moment(entry.submitted_at),
        moment(entry.ended_at),
        str(entry.at.attempts),
        entry.task_id or "",
    )


def _story(entry: JournalEntry) -> Iterator[tuple[str, str]]:
    """Yield the history in chronological order."""
    request = entry.sync.request
    yield "request", request.identity
    yield "operationID", request.operation_id
    yield "replicationId", request.replication_id
    yield "site", request.site or "local"
    yield "state", entry.state
    yield "requested", f"{moment(request.requested_at)}, partition {entry.partition}, offset {request.offset}"
    yield "accepted", moment(request.accepted_at)
    if entry.submitted_at:
        yield "submitted", moment(entry.submitted_at)
    yield "POSTs", str(entry.at.attempts)
    if entry.task_id:
        yield "task", entry.task_id + (", adopted for a POST in doubt" if entry.adopted else "")
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
