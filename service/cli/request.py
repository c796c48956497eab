"""`vm-sync request`: publish a request, and wait for its outcome as any other program would.

The topics of the outcomes are read from where they end before the request is sent, read_committed, so that its outcome
can't be missed. If the request was sent before and has ended, no outcome follows: the journal says so, and the outcome
is read where it was published. `/syncs` is used only to show progress; the command works without it.
"""

import asyncio
import contextlib
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import typer
from aiokafka import AIOKafkaConsumer, TopicPartition

from service.cli import interrupts, kafka, syncs
from service.cli.output import INTERRUPTED, Exit, NoAnswer, printable, refuse_undecodable, say, show_facts, show_json
from service.clock import Clock
from service.kafka.denials import Operation
from service.messages.kafka_record import Record
from service.messages.requests import InvalidRequest, SyncRequested, read_request
from service.moments import age

OPTIONS: Final = {"REPLICATION_ID": "replicationId", "--operation-id": "operationID", "--site": "site"}
"""The fields of a request by the options that give them."""

ASK_EVERY: Final = 1.0
"""Seconds between two looks at `/syncs`: as fast as progress changes, and nothing for the service."""


OWNER_AGAIN: Final = 15.0
"""Seconds after which it is looked again which instance has the request's partition."""

LATER: Final = 5.0
"""Seconds by which the end of a transaction may reach an outcome's topic after the journal: usually milliseconds."""

CLOCKS: Final = timedelta(hours=1)
"""By how much the clock that an end was read from may be ahead of that of its outcome's timestamp."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A published request."""

    request: SyncRequested
    place: TopicPartition
    offset: int

    def told(self) -> dict[str, Any]:
        """Return the request as JSON, with the field names of the contract."""
        return {
            "requestId": self.request.identity,
            "operationID": self.request.operation_id,
            "replicationId": self.request.replication_id,
            "topic": self.place.topic,
            "partition": self.place.partition,
            "offset": self.offset,
        }


def request(body: Mapping[str, object], *, wait: float | None, ops_url: str | None, as_json: bool) -> None:
    """Publish a request; with `wait`, in seconds, wait for its outcome. Without an operationID it gets a new one."""
    named = "operationID" in body
    refuse_undecodable({option: str(body[field]) for option, field in OPTIONS.items() if field in body})
    url = None if ops_url is None else _checked(ops_url)
    body = {"operationID": f"cli-{uuid.uuid4()}", **body}
    wanted = _understood(body)
    place = kafka.settings()
    try:
        sent, outcome = interrupts.run(_request(place, wanted, body, named=named, url=url, wait=wait))
    except KeyboardInterrupt:
        if wait is None:
            raise
        say(f"Stopped waiting; the request goes on. To see how it ends: vm-sync show {wanted.operation_id}")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        show_json(sent.told() | ({"outcome": outcome} if wait else {}))
    else:
        show_facts((name, _text(fact)) for name, fact in (outcome or sent.told()).items() if fact not in (None, []))
    if wait and outcome is None:
        name = wanted.operation_id
        msg = f"No outcome of {name} came within {wait:g} s; the request stays in flight: see `vm-sync show {name}`."
        raise NoAnswer(msg)
    if outcome is not None and "reason" in outcome:
        raise typer.Exit(Exit.NO)


def _checked(url: str) -> str:
    """Return the URL of --ops-url.

    Raises:
        NoAnswer: it is none.
    """
    with contextlib.suppress(ValueError):
        given = urlsplit(url)
        if given.scheme in {"http", "https"} and given.hostname and given.port != 0:
            return url.rstrip("/")
    msg = f"--ops-url must be a URL such as http://10.0.0.7:8080, not {printable(url)}."
    raise NoAnswer(msg, code=Exit.USAGE)


def _understood(body: Mapping[str, object]) -> SyncRequested:
    """Validate the request, so that it does not become a dead letter."""
    record = Record(
        topic="",
        partition=0,
        offset=0,
        timestamp_ms=0,
        key=b"",
        value=json.dumps(body).encode(),
    )
    read = read_request(record)
    if isinstance(read, SyncRequested):
        return read
    msg = f"Invalid request: {read.detail}." if isinstance(read, InvalidRequest) else "Not a request for a sync."
    raise NoAnswer(msg, code=Exit.USAGE)


async def _request(
    place: kafka.KafkaContext,
    wanted: SyncRequested,
    body: Mapping[str, object],
    *,
    named: bool,
    url: str | None,
    wait: float | None,
) -> tuple[Sent, dict[str, Any] | None]:
    names = place.names
    async with kafka.explained(place):
        await kafka.places(place, names.requests, operation=Operation.WRITE)
        if wait is None:
            return await _publish(place, wanted, body), None
        outcomes = await kafka.places(place, names.completed, names.failed)
        async with kafka.reader(place, outcomes) as consumer:
            async with asyncio.timeout(kafka.SILENCE):
                for where, end in (await consumer.end_offsets(outcomes)).items():
                    consumer.seek(where, end)
            began = time.monotonic()
            sent = await _publish(place, wanted, body)
            say(f"Request {wanted.operation_id} is at offset {sent.offset} of partition {sent.place.partition}.")
            if named and (ended := await _ended_before(place, sent)) is not None:
                return sent, await _earlier_outcome(place, consumer, ended)
            async with _progress(place, sent, url=url):
                outcome = await _outcome(consumer, wanted.identity, limit=wait)
            if outcome is not None:
                took = _duration(time.monotonic() - began)
                say(f"Request {wanted.operation_id} {_end_of(outcome)} after {took}.")
            return sent, outcome


async def _ended_before(place: kafka.KafkaContext, sent: Sent) -> syncs.JournalEntry | None:
    """Return the ended request of the same identity, whose outcome is also this one's; None: there is none.

    Of one that is in flight the outcome will come; a message says so.
    """
    try:
        async with syncs.journal(place, partition=sent.place.partition) as entries:
            found = [one for one in await entries() if one.sync.request.identity == sent.request.identity]
    except NoAnswer as error:  # a sender needs no right to read the journal
        say(f"Whether {sent.request.operation_id} was sent before is unknown: {error}")
        return None
    for entry in found:
        if entry.sync.request.offset == sent.offset:  # the service has read it by now
            return None
        if entry.ended_at is None:
            say(f"Request {sent.request.operation_id} was sent before, and is in flight; no second sync is started.")
        elif not entry.is_forgotten(Clock().now()):
            return entry
    return None


async def _earlier_outcome(
    place: kafka.KafkaContext, consumer: AIOKafkaConsumer, ended: syncs.JournalEntry
) -> dict[str, Any]:
    """Return the outcome of an ended request, from its topic; or what the journal knows, if it is gone there."""
    names, request = place.names, ended.sync.request
    at = ended.ended_at or request.accepted_at
    outcome = None
    outcomes = await kafka.places(place, names.completed, names.failed)
    what = f"the outcomes on {names.completed} and {names.failed}"
    async with aclosing(kafka.read_period(place, outcomes, since=at - CLOCKS, until=None, what=what)) as records:
        async for record in records:
            event = _event(record.value)
            if event.get("requestId") == request.identity:
                outcome = event
    outcome = outcome or await _outcome(consumer, request.identity, limit=LATER)
    if outcome is None:
        say(f"The outcome of {request.operation_id} is no longer on its topic; this is what the journal knows of it.")
        left_out = {"state", "partition", "offset", "acceptedAt", "deadline", "adopted", "progress", "waitsFor"}
        known = syncs.entry_json(ended)
        outcome = {name: fact for name, fact in known.items() if name not in left_out and fact is not None}
    ago = age(Clock().now() - at)
    say(f"Request {request.operation_id} was sent before: it {_end_of(outcome)} {ago} ago. No second sync is started.")
    return outcome


def _end_of(outcome: Mapping[str, Any]) -> str:
    return printable(f"failed ({outcome['reason']})" if "reason" in outcome else "completed")


async def _publish(place: kafka.KafkaContext, wanted: SyncRequested, body: Mapping[str, object]) -> Sent:
    stored = await kafka.publish(place, body, key=wanted.replication_id)
    return Sent(wanted, TopicPartition(stored.topic, stored.partition), stored.offset)


async def _outcome(consumer: AIOKafkaConsumer, identity: str, *, limit: float) -> dict[str, Any] | None:
    """Wait for it; None if it doesn't come in time. A Kafka that is away meanwhile may come back."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit):
            while True:
                for records in (await kafka.records_of(consumer)).values():
                    for record in records:
                        outcome = _event(record.value)
                        if outcome.get("requestId") == identity:
                            return outcome
    return None


def _event(value: bytes | None) -> dict[str, Any]:
    """Return the fields of a record; none if it holds something else: others may write there, too."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(event := json.loads(value or b""), dict):
            return event
    return {}


@contextlib.asynccontextmanager
async def _progress(place: kafka.KafkaContext, sent: Sent, *, url: str | None) -> AsyncIterator[None]:
    """Show the live state and progress from `/syncs`, on stderr and only at a terminal."""
    if not sys.stderr.isatty():
        say(f"Waiting for the outcome of {sent.request.operation_id} ...")
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        watching = asyncio.create_task(_watch(place, sent, bars, url=url))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            if not watching.cancelled() and (error := watching.exception()) is not None:
                say(f"Internal error, so the progress was not shown to the end: {type(error).__name__}: {error}")


async def _watch(place: kafka.KafkaContext, sent: Sent, bars: Any, *, url: str | None) -> None:  # noqa: ANN401 - rich is imported where it is used
    """Follow the request at `url`, or at whichever instance has its partition, which may change."""
    import httpx

    from service.cli import instances

    wanted = sent.request
    bar = bars.add_task("sent", total=None)
    parameters = {"replicationId": wanted.replication_id, "limit": "1000"}
    owner, look_again = url, 0.0
    async with httpx.AsyncClient(timeout=kafka.SILENCE, trust_env=False) as client:
        while True:
            shown = False
            if url is None and time.monotonic() >= look_again:
                owner = (await instances.owners(place)).get(sent.place.partition, owner)
                look_again = time.monotonic() + OWNER_AGAIN
            with contextlib.suppress(httpx.HTTPError, TimeoutError, ValueError):
                page = await instances.read_page(client, owner, parameters) if owner else {"syncs": []}
                for sync in page["syncs"]:
                    if sync["requestId"] == wanted.identity:
                        percent, waits = sync["progress"], sync.get("waitsFor")
                        said = sync["state"] + (f" ({waits['cause']})" if waits else "")
                        bars.update(bar, description=printable(said), completed=percent or 0, total=percent and 100)
                        shown = True
            if not shown:  # it may be with another instance by now
                look_again = min(look_again, time.monotonic() + ASK_EVERY)
            await asyncio.sleep(ASK_EVERY)


def _duration(seconds: float) -> str:
    """Write how long it took: `48 s`, `3 min 05 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02} s"  # noqa: PLR2004 - two minutes


def _text(fact: object) -> str:
    return printable(fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False))
