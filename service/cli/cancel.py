"""`vm-sync cancel`: publish a cancel of one request, to the request's own partition; works while the service is down.

The request is looked up in the journal, then among the requests that the service has not read yet. With `--wait` the
journal is read on until its cursor has passed the cancel: then the journal says what the cancel did.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import typer
from aiokafka import AIOKafkaConsumer, TopicPartition

from service.cli import interrupts, kafka, operators, syncs
from service.cli.options import State
from service.cli.output import Exit, NoAnswer, moment, printable, refuse_undecodable, say, show_facts, show_json
from service.kafka.journal_codec import CURSOR_KEY, decode_cursor
from service.messages.kafka_record import Record
from service.messages.requests import InvalidRequest, SyncRequested, read_request
from service.sync import Ended, Reason, Waiting

NAMES_SHOWN: Final = 5
"""So many requests are named where a name stands for several."""

UNREAD: Final = "unread"
"""The state of a request that the service has not read yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The request to cancel. `entry` is its record in the journal; None: the service has not read the request yet."""

    identity: str
    replication_id: str
    partition: int
    entry: syncs.JournalEntry | None = None

    @property
    def state(self) -> str:
        """In one word."""
        return UNREAD if self.entry is None else self.entry.state


@dataclass(frozen=True, slots=True)
class Cancel:
    """A published cancel. `after` is the request's record in the journal after the service has read the cancel."""

    target: Target
    topic: str
    offset: int
    release: bool
    after: syncs.JournalEntry | None = None

    def facts(self) -> dict[str, Any]:
        """Return the cancel as JSON, with the field names of the contract."""
        after = {} if self.after is None else {"after": syncs.entry_json(self.after)}
        return {
            "requestId": self.target.identity,
            "state": self.target.state,
            "release": self.release,
            "topic": self.topic,
            "partition": self.target.partition,
            "offset": self.offset,
            **after,
        }


def cancel(
    name: str, *, release: bool, by: str | None, why: str | None, yes: bool, wait: float | None, as_json: bool
) -> None:
    """Cancel or release the request of that name; with `wait`, in seconds, wait until the service has done so."""
    place = kafka.settings()
    fields = {"release": release, "by": operators.user() if by is None else by, "reason": why}
    given = {name: value for name, value in fields.items() if value not in {None, False}}
    refuse_undecodable({"--by": by, "--reason": why})
    _validated(given)
    target = interrupts.run(_find(place, name))
    _refuse_if_in_vain(target, release=release)
    if release:
        _confirm(target, yes=yes)
    done = interrupts.run(_cancel(place, target, {"cancel": target.identity, **given}, wait=wait))
    if as_json:
        show_json(done.facts())
    else:
        show_facts(
            [
                ("request", target.identity),
                ("was", target.state),
                ("sent", f"{'release' if release else 'cancel'}, partition {target.partition}, offset {done.offset}"),
            ]
        )
    _conclude(done, wait=wait)


def _validated(given: Mapping[str, object]) -> None:
    """Validate the options, so that the cancel does not become a dead letter."""
    value = json.dumps({"cancel": "op:r:o", **given}).encode()
    read = read_request(Record(topic="", partition=0, offset=0, timestamp_ms=0, key=b"", value=value))
    if isinstance(read, InvalidRequest):
        msg = f"Invalid cancel: {read.detail}."
        raise NoAnswer(msg, code=Exit.USAGE)


# ---------------------------------------------------------------- which request


async def _find(place: kafka.KafkaContext, name: str) -> Target:
    """Find the only request of that name that is in flight or not read yet.

    Raises:
        NoAnswer: there is none, or more than one.
    """
    async with kafka.explained(place), syncs.journal(place) as entries:
        found = [entry for entry in await entries() if name in entry.names]
        targets = [_of_journal(entry) for entry in found if not isinstance(entry.sync, Ended)]
        await kafka.places(place, place.names.requests)
        targets = targets or await _unread(place, name)
    if len(targets) == 1:
        return targets[0]
    if targets:
        shown = ", ".join(target.identity for target in targets[:NAMES_SHOWN])
        more = ", ..." if len(targets) > NAMES_SHOWN else ""
        msg = f"{printable(name)} names {len(targets)} requests; give the requestId of one of them: {shown}{more}."
        raise NoAnswer(msg, code=Exit.USAGE)
    if found:
        last = found[-1]
        ended = f"{last.state}: {last.reason}" if last.reason else str(last.state)
        msg = f"Nothing to cancel: {last.names[0]} has ended ({printable(ended)}) at {moment(last.ended_at)}."
        raise NoAnswer(msg, code=Exit.NO)
    msg = (
        f"There is no request {printable(name)}, neither in the journal nor unread in the topic "
        f"{place.names.requests}: it was never sent, is a dead letter (see `vm-sync dead-letters list`), or ended "
        "longer ago than VM_SYNC_SYNC__DEDUPLICATE_FOR."
    )
    raise NoAnswer(msg)


def _of_journal(entry: syncs.JournalEntry) -> Target:
    request = entry.sync.request
    return Target(
        identity=request.identity,
        replication_id=request.replication_id,
        partition=entry.partition,
        entry=entry,
    )


async def _unread(place: kafka.KafkaContext, name: str) -> list[Target]:
    """Find the requests of that name among those that the service has not read yet."""
    names, cursors = place.names, {}
    journal = await kafka.places(place, names.journal)
    async with aclosing(kafka.read(place, journal, what=f"the journal {names.journal}")) as records:
        async for record in records:
            if record.key == CURSOR_KEY and (offset := _offset(record.value)) is not None:
                cursors[TopicPartition(names.requests, record.partition)] = offset
    requests = await kafka.places(place, names.requests)
    found: dict[str, Target] = {}
    async with aclosing(kafka.read(place, requests, what=f"the topic {names.requests}", start=cursors)) as records:
        async for record in records:
            read = read_request(kafka.record_of(record))
            if isinstance(read, SyncRequested) and name in {read.identity, read.operation_id, read.replication_id}:
                found[read.identity] = Target(
                    identity=read.identity, replication_id=read.replication_id, partition=record.partition
                )
    return list(found.values())


def _offset(cursor: bytes | None) -> int | None:
    """Return where a cursor's record says that reading goes on; None: this version can't read it."""
    with suppress(ValueError):
        return None if cursor is None else decode_cursor(cursor).offset
    return None


def _refuse_if_in_vain(target: Target, *, release: bool) -> None:
    """Say so where a cancel would change nothing, instead of sending it."""
    if release or target.entry is None or isinstance(target.entry.sync, Waiting):
        return
    task = f" (task {target.entry.task_id})" if target.entry.task_id else ""
    msg = (
        f"{target.identity} is {target.state}{task} and goes on, since VCDA has no cancel: nothing was sent. "
        "--release ends it for this service and frees its replication."
    )
    raise NoAnswer(msg, code=Exit.NO)


def _confirm(target: Target, *, yes: bool) -> None:
    """Warn, and let a person confirm.

    Raises:
        NoAnswer: it isn't confirmed.
    """
    task = target.entry.task_id if target.entry else None
    works = f"VCDA may still work on task {task}" if task else "VCDA may have received its POST, and may work on it"
    say(
        f"{target.identity} is {target.state}. {works}. After a release the next request for replication "
        f"{target.replication_id} starts at once: if VCDA still works on this one, two syncs of the replication "
        "overlap. A release cannot be undone."
    )
    if not yes:
        operators.confirm("Release it?", what="a release")


# ---------------------------------------------------------------- sending and waiting


async def _cancel(
    place: kafka.KafkaContext, target: Target, message: Mapping[str, object], *, wait: float | None
) -> Cancel:
    async with kafka.explained(place):
        if wait is None:
            return await _publish(place, target, message)
        journal = TopicPartition(place.names.journal, target.partition)
        async with kafka.reader(place, [journal]) as consumer:
            async with asyncio.timeout(kafka.SILENCE):
                for where, offset in (await consumer.end_offsets([journal])).items():
                    consumer.seek(where, offset)
            sent = await _publish(place, target, message)
            say(f"Waiting until the service has read the cancel of {target.identity} ...")
            if not await _passed(consumer, sent, limit=wait):
                return sent
        async with syncs.journal(place) as entries:
            after = (entry for entry in await entries() if entry.sync.request.identity == target.identity)
            return replace(sent, after=next(after, None))


async def _publish(place: kafka.KafkaContext, target: Target, message: Mapping[str, object]) -> Cancel:
    stored = await kafka.publish(place, message, key=target.replication_id, partition=target.partition)
    return Cancel(target, stored.topic, stored.offset, bool(message.get("release")))


async def _passed(consumer: AIOKafkaConsumer, sent: Cancel, *, limit: float) -> bool:
    """Wait until the journal's cursor has passed the cancel; False if it does not in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(limit):
            while True:
                for records in (await kafka.records_of(consumer)).values():
                    for record in records:
                        if record.key == CURSOR_KEY and (_offset(record.value) or 0) > sent.offset:
                            return True
    return False


def _conclude(done: Cancel, *, wait: float | None) -> None:
    """Say what the cancel did, or will do, and turn it into an exit code."""
    target, after = done.target, done.after
    if wait is None:
        say("Sent. The cancel takes effect when the service reads it; `vm-sync show` has the result.")
        return
    if after is None:
        msg = (
            f"The service has not read the cancel of {target.identity} within {wait:g} s: it takes effect when the "
            "service reads it. Is the service running? Has the partition room (VM_SYNC_SYNC__MAX_IN_FLIGHT)?"
        )
        raise NoAnswer(msg)
    ended = f"{after.state}: {after.reason}" if after.reason else str(after.state)
    if not isinstance(after.sync, Ended):
        say(f"{target.identity} is {after.state} and goes on: VCDA has no cancel; --release frees its replication.")
        raise typer.Exit(Exit.NO)
    if after.sync.reason is not Reason.CANCELLED and not (done.release and target.state == State.LINGERING):
        say(f"{target.identity} ended before the cancel was read ({printable(ended)}).")
        raise typer.Exit(Exit.NO)
    free = "; its replication is free for the next request" if done.release else ""
    say(f"{target.identity} has ended ({printable(ended)}){free}.")
