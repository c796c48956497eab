"""`vm-sync request --from`: publish many requests, at a limited rate, and wait for their outcomes.

A second run of the same file repeats nothing, however the first one ended. Its requests have the same identities (see
`request_file`). Those that the journal knows, in flight or ended, are not sent again; those that the service has not
read yet are sent again, and the service recognises them as duplicates. Both hold until SYNC__DEDUPLICATE_FOR after a
request's end: then the same request is a new one. What is piped in can't be read again, so each run of it is a batch
of its own, unless `--operation-prefix` names one.

The topics of the outcomes are read from where they end before the journal is read. Kafka shows the records of one
transaction partition by partition: so where the journal does not show the end of a request yet whose outcome is shown
already, the outcome is missed. Hence the journal is read once more later.
"""

import asyncio
import json
import math
import os
import re
import secrets
import stat
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO, TypeAlias

import typer
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from service.cli import interrupts, kafka, syncs
from service.cli.options import FileFormat
from service.cli.outcome_events import read_event
from service.cli.output import INTERRUPTED, Exit, NoAnswer, printable, refuse_undecodable, say, show_facts, show_json
from service.cli.request_file import FileRequest, RequestFile, batch_of, read_file
from service.cli.tables import Column, show_table
from service.clock import Clock
from service.kafka.denials import Operation
from service.messages.outcomes import describe_error

UNACKNOWLEDGED: Final = 500
"""Requests on their way to Kafka at once."""

BURST: Final = 0.1
"""Seconds of the rate that are made up for after a delay; more would be no limit."""

JOURNAL_AGAIN: Final = 30.0
"""Seconds after which the journal is read once more: until all partitions show a transaction takes milliseconds, and
seconds where a broker has just died."""

NOTE_EVERY: Final = 10.0
"""Seconds between two lines of progress where there is no terminal."""

STDIN: Final = 0
"""The descriptor of standard input, whatever Python has made of it."""

SHOWN: Final = 20
"""Invalid lines, and failures, that are printed."""

PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,100}")
"""A batch's name: the operationIDs are longer by eleven characters, and may have 128."""

COUNTS: Final = (Column("outcome"), Column("reason"), Column("site"), Column("requests"))
FAILURES: Final = (
    Column("replicationId"),
    Column("site"),
    Column("reason"),
    Column("error", rank=1, text=True),
    Column("operationID", rank=2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOptions:
    """What was asked for. `wait` is in seconds, `rate` in requests per second."""

    source: str
    form: FileFormat | None = None
    prefix: str | None = None
    site: str | None = None
    deadline: int | None = None
    rate: float = 100
    wait: float | None = None
    failed_to: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed, and why."""

    request: FileRequest
    reason: str
    error: str

    def json(self) -> dict[str, Any]:
        """Return it with the field names of the contract."""
        return {
            "requestId": self.request.identity,
            "operationID": self.request.operation_id,
            "replicationId": self.request.replication_id,
            "site": self.request.site,
            "reason": self.reason,
            "error": self.error or None,
        }

    def again(self) -> str:
        """Return a line of JSON that requests the same again, as a new request."""
        body = json.loads(self.request.value)
        earlier = {"operationID": body.pop("operationID"), "reason": self.reason, "error": self.error}
        return json.dumps({**body, "failed": earlier}, ensure_ascii=True) + "\n"


@dataclass(slots=True, kw_only=True)
class Batch:
    """The requests of a file, and what has become of each."""

    name: str
    by_chance: bool = False
    """Whether the name is this run's alone, since the input can't be read again."""
    file: RequestFile
    to_send: deque[FileRequest] = field(default_factory=deque)
    in_flight: dict[str, FileRequest] = field(default_factory=dict)
    """Without an outcome yet, by identity; sent or to be sent."""
    sent: int = 0
    before: int = 0
    """Requests that an earlier run sent, and the service has read."""
    ended_before: int = 0
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Outcomes by outcome, reason and site."""
    failures: list[Failure] = field(default_factory=list)
    """In the order in which they came."""
    planned: int = 0
    """Requests that this run sends."""

    def __post_init__(self) -> None:
        self.planned = len(self.file.requests)
        self.to_send.extend(self.file.requests.values())
        self.in_flight |= self.file.requests

    @property
    def size(self) -> int:
        """Requests in all."""
        return len(self.file.requests)

    @property
    def ended(self) -> int:
        """Requests that have their outcome."""
        return self.counts.total()

    def known(self, entries: Mapping[str, syncs.JournalEntry | None]) -> None:
        """Take note of what the journal knows of these requests; None: in words of a newer version."""
        self.to_send = deque(one for one in self.to_send if one.identity not in entries)
        self.planned = len(self.to_send)
        self.before = len(entries)
        for identity, entry in entries.items():
            if entry is not None and entry.ended_at is not None:
                self.end(identity, reason=entry.reason, error=describe_error(entry.error, entry.http_status))
        self.ended_before = self.ended

    def end(self, identity: str, *, reason: str | None, error: str) -> Failure | None:
        """Take note of an outcome, once; return it if it is a failure. Those of other requests are ignored."""
        request = self.in_flight.pop(identity, None)
        if request is None:
            return None
        site = request.site or "local"
        if reason is None:
            self.counts["completed", "", site] += 1
            return None
        self.counts["failed", reason, site] += 1
        failure = Failure(request, printable(reason), printable(error))
        self.failures.append(failure)
        return failure

    def failures_by_line(self) -> list[Failure]:
        """Return the failures in the order of the file."""
        return sorted(self.failures, key=lambda failure: failure.request.line)

    @property
    def begun(self) -> bool:
        """Whether requests may be at Kafka, acknowledged or not."""
        return len(self.to_send) < self.planned

    def progress(self) -> str:
        """Say how far it is."""
        failed = len(self.failures)
        waiting = f", ended {self.ended}: {self.ended - failed} completed, {failed} failed" if self.ended else ""
        return f"sent {self.sent} of {self.planned}{waiting}"


Report: TypeAlias = Callable[[Failure | None], None]
"""Is called with each outcome's failure, if it is one."""


def request_many(options: BulkOptions, *, as_json: bool) -> None:
    """Publish the requests of a file; with `wait`, wait for their outcomes, and print how they ended."""
    place = kafka.settings()
    if options.failed_to is not None and options.wait is None:
        msg = "--failed-to needs --wait: without it nothing is known of failures."
        raise NoAnswer(msg, code=Exit.USAGE)
    if options.prefix is not None and not PREFIX.fullmatch(options.prefix):
        msg = "--operation-prefix must be 1 to 100 characters of A-Z a-z 0-9 . _ : -"
        raise NoAnswer(msg, code=Exit.USAGE)
    refuse_undecodable({"--site": options.site})
    batch = _read(options)
    with _failed(options) as failed:
        try:
            if batch.size:
                interrupts.run(_run(place, batch, options, failed))
            else:
                say("The input has no requests; nothing was sent.")
        except KeyboardInterrupt:
            say(f"Interrupted: {batch.progress()}. {_go_on(batch)}")
            raise typer.Exit(INTERRUPTED) from None
        except NoAnswer as error:
            if batch.begun:
                say(f"Stopped: {batch.progress()}. {_go_on(batch)}")
            raise error from None
    if as_json:
        show_json(_json(batch, options))
    else:
        _show(batch, options)
    _conclude(batch, options)


# ---------------------------------------------------------------- the file


def _read(options: BulkOptions) -> Batch:
    """Read the file.

    Raises:
        NoAnswer: it can't be read, or a line is invalid.
    """
    defaults = {"site": options.site, "deadlineSeconds": options.deadline}
    defaults = {name: value for name, value in defaults.items() if value is not None}
    with _opened(options.source) as file:
        try:
            again = options.source != "-" and file.seekable()
            name = options.prefix or (batch_of(file, defaults) if again else f"from-{secrets.token_hex(6)}")
            found = read_file(file, form=options.form, batch=name, defaults=defaults)
        except OSError as error:
            msg = f"Reading {printable(options.source)} failed: {error.strerror}."
            raise NoAnswer(msg, code=Exit.USAGE) from None
    if found.invalid:
        shown = "" if options.source == "-" else f"{printable(options.source)}:"
        for bad in found.invalid[:SHOWN]:
            say(f"{shown}{bad.line}: {bad.detail}")
        lines = len(found.invalid)
        more = f", of which {SHOWN} are shown" if lines > SHOWN else ""
        msg = f"Nothing was sent: {lines} {'line is' if lines == 1 else 'lines are'} invalid{more}."
        raise NoAnswer(msg, code=Exit.USAGE)
    if found.repeated:
        say(f"{found.repeated} lines repeat an earlier one; each request is sent once.")
    if unused := sorted(found.unused - {"failed"}):
        names = ", ".join(printable(name) for name in unused[:SHOWN])
        say(f"Not part of a request, and ignored: {names}.")
    return Batch(name=name, by_chance=options.prefix is None and not again, file=found)


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        if sys.stdin.isatty():
            say("Reading requests from the terminal; Ctrl-D ends them.")
        yield sys.stdin.buffer
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115 - only opening it is tried
    except OSError as error:
        msg = f"{printable(source)} can't be read: {error.strerror}."
        raise NoAnswer(msg, code=Exit.USAGE) from None
    with file:
        yield file


@contextmanager
def _failed(options: BulkOptions) -> Iterator[TextIO | None]:
    """Open the file of the failed requests, before Kafka is asked; `_emptied` empties it once Kafka has answered.

    Raises:
        NoAnswer: it can't be written, or is the file of the requests.
    """
    path = options.failed_to
    if path is None:
        yield None
        return
    try:
        source = os.fstat(STDIN) if options.source == "-" else Path(options.source).stat()
        if path.is_file() and os.path.samestat(path.stat(), source):
            msg = f"--failed-to would overwrite {printable(str(path))}, from which the requests are read."
            raise NoAnswer(msg, code=Exit.USAGE)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise _unwritable(str(path), error) from None
    with file:
        yield file


def _emptied(file: TextIO | None) -> None:
    """Empty the file of the failed requests of an earlier run: from here on there are this run's."""
    if file is not None and stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # else it is a pipe or a device
        file.truncate(0)


def _unwritable(path: str, error: OSError) -> NoAnswer:
    return NoAnswer(f"--failed-to: {printable(path)} can't be written: {error.strerror}.", code=Exit.USAGE)


# ---------------------------------------------------------------- sending and waiting


async def _run(place: kafka.KafkaContext, batch: Batch, options: BulkOptions, failed: TextIO | None) -> None:
    def report(failure: Failure | None) -> None:
        if failure is None or failed is None:
            return
        try:
            failed.write(failure.again())
            failed.flush()  # so that an interrupted run leaves them
        except OSError as error:
            raise _unwritable(failed.name, error) from None

    names = place.names
    async with kafka.explained(place):
        await kafka.places(place, names.requests, operation=Operation.WRITE)
        if options.wait is None or options.dry_run:
            await _compare(place, batch, report, failed)
            if not options.dry_run:
                await _send_all(place, batch, options, None, report)
            return
        outcomes = await kafka.places(place, names.completed, names.failed)
        async with kafka.reader(place, outcomes) as consumer:
            async with asyncio.timeout(kafka.SILENCE):
                for where, end in (await consumer.end_offsets(outcomes)).items():
                    consumer.seek(where, end)
            await _compare(place, batch, report, failed)
            await _send_all(place, batch, options, consumer, report)


async def _compare(place: kafka.KafkaContext, batch: Batch, report: Report, failed: TextIO | None) -> None:
    """Find out which of the requests the journal knows."""
    batch.known(await _journal(place, batch.file.requests.keys()))
    _emptied(failed)
    for failure in batch.failures:
        report(failure)


async def _catch_up(place: kafka.KafkaContext, batch: Batch, report: Report) -> None:
    """Take the ends of requests from the journal whose outcomes were missed; nothing where Kafka is away."""
    with suppress(KafkaError, TimeoutError, OSError):
        found = await _journal(place, batch.in_flight.keys(), note_after=math.inf)  # a progress bar is there already
        for identity, entry in found.items():
            if entry is not None and entry.ended_at is not None:
                report(batch.end(identity, reason=entry.reason, error=describe_error(entry.error, entry.http_status)))


async def _journal(
    place: kafka.KafkaContext, wanted: Collection[str], *, note_after: float = kafka.NOTE_AFTER
) -> dict[str, syncs.JournalEntry | None]:
    """Return what the journal knows of these identities; what it is about to forget is left out.

    None: it is in words of a newer version.
    """
    topic, now = place.names.journal, Clock().now()
    held: dict[str, tuple[bytes, int]] = {}
    where = await kafka.places(place, topic)
    async with aclosing(kafka.read(place, where, what=f"the journal {topic}", note_after=note_after)) as records:
        async for record in records:
            identity = (record.key or b"").decode("utf-8", "replace")
            if identity not in wanted:
                continue
            if record.value is None:
                held.pop(identity, None)
            else:
                held[identity] = (record.value, record.partition)
    known = {identity: syncs.read_entry(identity.encode(), *found) for identity, found in held.items()}
    return {name: one for name, one in known.items() if one is None or not one.is_forgotten(now)}


async def _send_all(
    place: kafka.KafkaContext, batch: Batch, options: BulkOptions, consumer: AIOKafkaConsumer | None, report: Report
) -> None:
    """Publish what is to be sent; with a `consumer`, take the outcomes too, and wait for those that are missing."""
    clock = asyncio.get_running_loop().time
    give_up, catch_up = math.inf, clock() + JOURNAL_AGAIN
    async with _sending(place, batch, rate=options.rate) as sending:
        with _display(batch) as show:
            while not sending.done() or (consumer is not None and batch.in_flight):
                if consumer is None:
                    await asyncio.wait([sending], timeout=0.2)
                else:
                    await _take(consumer, batch, report)
                show()
                if sending.done():
                    sending.result()
                    give_up = min(give_up, clock() + (options.wait or 0))
                if consumer is not None and clock() >= min(catch_up, give_up):
                    await _catch_up(place, batch, report)
                    catch_up = math.inf
                if clock() >= give_up:
                    return
        sending.result()


@asynccontextmanager
async def _sending(place: kafka.KafkaContext, batch: Batch, *, rate: float) -> AsyncIterator[asyncio.Task[None]]:
    """Publish in a task while the context is open."""
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(kafka.writer(place)) if batch.to_send else None
        sending = asyncio.create_task(_send(place, producer, batch, rate=rate))
        try:
            yield sending
        finally:
            sending.cancel()
            await asyncio.wait([sending])


async def _send(place: kafka.KafkaContext, producer: AIOKafkaProducer, batch: Batch, *, rate: float) -> None:
    clock = asyncio.get_running_loop().time
    under_way: deque[asyncio.Future[Any]] = deque()
    due = clock()
    while batch.to_send or under_way:
        while under_way and (len(under_way) >= UNACKNOWLEDGED or not batch.to_send or under_way[0].done()):
            async with asyncio.timeout(kafka.SILENCE):
                await under_way.popleft()
            batch.sent += 1
        if not batch.to_send:
            continue
        if (early := due - clock()) > 0:
            await asyncio.sleep(early)
        due = max(due, clock() - BURST) + 1 / rate
        request = batch.to_send[0]
        async with asyncio.timeout(kafka.SILENCE):
            sent = await producer.send(
                place.names.requests, request.value, key=request.replication_id.encode(), headers=kafka.HEADERS
            )
        batch.to_send.popleft()
        under_way.append(sent)


async def _take(consumer: AIOKafkaConsumer, batch: Batch, report: Report) -> None:
    """Take the outcomes that have come, or wait for some for a moment."""
    for records in (await kafka.records_of(consumer, timeout_ms=200, max_records=kafka.RECORDS_AT_ONCE)).values():
        for record in records:
            if (event := read_event(record.value)) is not None:  # others may write there, too
                report(batch.end(event.request_id, reason=event.reason, error=event.described))


# ---------------------------------------------------------------- output


@contextmanager
def _display(batch: Batch) -> Iterator[Callable[[], None]]:
    """Show how far it is, on stderr: bars at a terminal, else a line now and then. What is yielded draws it."""
    if not sys.stderr.isatty():
        said, due = batch.progress(), time.monotonic() + NOTE_EVERY

        def note() -> None:
            nonlocal said, due
            if time.monotonic() >= due:
                due = time.monotonic() + NOTE_EVERY
                if said != batch.progress():
                    said = batch.progress()
                    say(f"{said[0].upper()}{said[1:]} ...")

        yield note
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        sent, ended = bars.add_task("sent", total=batch.planned), bars.add_task("ended", total=batch.size)

        def draw() -> None:
            failed = len(batch.failures)
            bars.update(sent, completed=batch.sent)
            bars.update(ended, completed=batch.ended, description=f"{batch.ended - failed} completed, {failed} failed")

        draw()
        yield draw


def _rows(batch: Batch, options: BulkOptions) -> list[tuple[str, str, str, str]]:
    """Return how many requests have which outcome, or none, by reason and site."""
    counts = [(outcome, printable(reason), site, count) for (outcome, reason, site), count in batch.counts.items()]
    left = Counter(request.site or "local" for request in batch.in_flight.values())
    if options.dry_run:
        left = Counter(request.site or "local" for request in batch.to_send)
    name = "to send" if options.dry_run else "none yet"
    rows = sorted(counts, key=lambda row: (row[0], row[1], row[2])) + [(name, "", *one) for one in sorted(left.items())]
    return [(outcome, reason, printable(site), str(count)) for outcome, reason, site, count in rows]


def _show(batch: Batch, options: BulkOptions) -> None:
    facts = [("requests", str(batch.size)), ("sent", str(batch.sent))]
    if batch.before:
        facts.append(("sent before", str(batch.before)))
    if any(one.operation_id.startswith(batch.name) for one in batch.file.requests.values()):
        facts.insert(0, ("operationIDs", f"{batch.name}-..."))
    show_facts(facts)
    if options.wait is not None or options.dry_run:
        print()
        show_table(COUNTS, _rows(batch, options))
    if batch.failures:
        print()
        rows = [
            (
                one.request.replication_id,
                printable(one.request.site or "local"),
                one.reason,
                one.error,
                one.request.operation_id,
            )
            for one in batch.failures_by_line()[:SHOWN]
        ]
        show_table(FAILURES, rows)


def _json(batch: Batch, options: BulkOptions) -> dict[str, Any]:
    return {
        "operationPrefix": batch.name,
        "dryRun": options.dry_run,
        "requests": batch.size,
        "sent": batch.sent,
        "sentBefore": batch.before,
        "completed": batch.ended - len(batch.failures),
        "failed": len(batch.failures),
        "withoutOutcome": len(batch.in_flight),
        "failures": [failure.json() for failure in batch.failures_by_line()],
    }


def _conclude(batch: Batch, options: BulkOptions) -> None:
    """Say what there is to do, and turn it into an exit code."""
    failed, left = len(batch.failures), len(batch.in_flight)
    if failed > SHOWN:
        say(f"{SHOWN} of {failed} failures are shown.")
    if failed and options.failed_to is not None:
        path = printable(str(options.failed_to))
        say(f"The failed requests are in {path}: `vm-sync request --from {path}` sends them again.")
    if options.dry_run:
        say(f"Nothing was sent (--dry-run); {len(batch.to_send)} would be.")
        return
    if batch.before:
        say(
            f"{batch.before} of the requests were sent by an earlier run, and were not sent again; --operation-prefix "
            "NAME makes new ones of them."
        )
    if options.wait is None:
        if batch.size and batch.ended_before == batch.size:
            msg = "Nothing was sent: all of the requests have ended."
            raise NoAnswer(msg, code=Exit.NO)
        if batch.size:
            say(f"{_again(batch).capitalize()} with --wait waits for the outcomes.")
        return
    if failed:
        raise typer.Exit(Exit.NO)
    if left:
        msg = f"{left} of {batch.size} requests have no outcome within {options.wait:g} s; they stay in flight."
        raise NoAnswer(msg)


def _go_on(batch: Batch) -> str:
    return f"{_again(batch).capitalize()} goes on; what was sent is not sent again."


def _again(batch: Batch) -> str:
    """Name the command that means the same requests."""
    return "the same command" if not batch.by_chance else f"the same command with --operation-prefix {batch.name}"
