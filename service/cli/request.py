"""`vm-sync request`: publish a request, and wait for its outcome as any other program would.

The topics of the outcomes are read from where they end before the request is sent, read_committed, so that its outcome
can't be missed. `/syncs` is used only to show progress; the command works without it.
"""

import asyncio
import contextlib
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import typer
from aiokafka import AIOKafkaConsumer, TopicPartition

from service.cli import interrupts, kafka
from service.cli.output import INTERRUPTED, Exit, NoAnswer, printable, refuse_undecodable, say, show_facts, show_json
from service.kafka.denials import Operation
from service.messages.kafka_record import Record
from service.messages.requests import InvalidRequest, SyncRequested, read_request

OPTIONS: Final = {"REPLICATION_ID": "replicationId", "--operation-id": "operationID", "--site": "site"}
"""The fields of a request by the options that give them."""

ASK_EVERY: Final = 1.0
"""Seconds between two looks at `/syncs`: as fast as progress changes, and nothing for the service."""


OWNER_AGAIN: Final = 15.0
"""Seconds after which it is looked again which instance has the request's partition."""


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
    began = time.monotonic()
    try:
        sent, outcome = interrupts.run(_request(place, wanted, body, named=named, url=url, wait=wait))
    except KeyboardInterrupt:
        if wait is None:
            raise
        say(f"Stopped waiting; the request goes on. To see how it ends: vm-sync show {wanted.operation_id}")
        raise typer.Exit(INTERRUPTED) from None
    if outcome is not None:
        word = f"failed ({outcome['reason']})" if "reason" in outcome else "completed"
        say(f"Request {wanted.operation_id} {printable(word)} after {_duration(time.monotonic() - began)}.")
    if as_json:
        show_json(sent.told() | ({"outcome": outcome} if wait else {}))
    else:
        show_facts((name, _text(fact)) for name, fact in (outcome or sent.told()).items() if fact not in (None, []))
    if wait and outcome is None:
        msg = (
            f"No outcome of {wanted.operation_id} came within {wait:g} s; the request stays in flight. If its "
            "operationID was used before, its outcome is on the topic already: see `vm-sync show`."
        )
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
            sent = await _publish(place, wanted, body)
            say(f"Request {wanted.operation_id} is at offset {sent.offset} of partition {sent.place.partition}.")
            if named:  # a duplicate looks like a request that the service hasn't read yet
                name = wanted.operation_id
                say(f"If it was sent before and has ended, no outcome follows: see `vm-sync show {name}`.")
            async with _progress(place, sent, url=url):
                return sent, await _outcome(consumer, wanted.identity, limit=wait)


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

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
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
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
                page = (await client.get(f"{owner}/syncs", params=parameters)).json() if owner else {"syncs": []}
                for sync in page["syncs"]:
                    if sync["requestId"] == wanted.identity:
                        percent, waits = sync["progress"], sync.get("waitsFor")
                        said = sync["state"] + (f" ({waits['cause']})" if waits else "")
                        bars.update(bar, description=said, completed=percent or 0, total=percent and 100)
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
