"""List dead letters, redrive them (send each to the requests topic again, once), and discard them.

A redrive may be interrupted at any point, and repeated by another user. So each redriven letter has a mark, written in
the transaction that redrives the letter: both are committed, or neither. A new redrive takes over the transactional id
`<dead-letter topic>-redrive`, which aborts the transaction that a predecessor left open and fences one that still runs;
only then the marks are read.

Marks stand in a compacted topic of their own, `<dead-letter topic>.redriven`, which the first redrive makes. A group's
committed offset would be simpler, but is one number for each partition, and filters leave gaps; and an unused group's
offsets expire after a week, often before the letters do, which would then all come back at once. A mark's key names
partition, offset and timestamp of the letter, so a topic that was deleted and created again is not taken for the old
one. A letter that is discarded gets a mark there, too: so nobody redrives it, and lists leave it out.

A letter that returns as a dead letter carries its redrive count (`vm-sync-redriven`); past a limit it is refused, so
that a script which redrives every letter doesn't loop for ever. A letter whose bytes were not kept is always refused.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Self

import typer
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    IllegalOperation,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFenced,
    TopicAlreadyExistsError,
    for_code,
)

from service.cli import interrupts, kafka, operators
from service.cli.moments import maybe_moment
from service.cli.output import Exit, NoAnswer, moment, printable, say, show_facts, show_json
from service.cli.tables import Column, show_table
from service.clock import Clock
from service.kafka.clients import end, wire_of
from service.kafka.denials import DENIALS, Operation
from service.kafka.topics import BROKER_MESSAGE_LIMIT, HEADER_ROOM, REPLICAS
from service.messages.dead_letters import redriven, write_redriven
from service.messages.kafka_record import Event, Record
from service.messages.requests import DeadLetterReason
from service.moments import age, milliseconds, rfc3339

LETTERS_AT_ONCE: Final = 100
"""Letters in one transaction: a few hundred a second, and a readers' wait of milliseconds."""

TRANSACTION_TIMEOUT: Final = timedelta(seconds=30)
"""An abandoned redrive blocks readers of the requests topic for so long, unless a new redrive starts earlier."""

COLUMNS: Final = (
    Column("at"),
    Column("age"),
    Column("reason"),
    Column("key", rank=2),
    Column("redriven", rank=5),
    Column("message", rank=1, text=True),
    Column("detail", rank=3, text=True),
    Column("request was at", rank=6),
)

BEGINNING: Final = 60
"""Characters of a message that a list shows."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, and when it was redriven, if it was."""

    record: Record
    put_back_at: datetime | None
    discarded_at: datetime | None = None

    @property
    def sent_to(self) -> str:
        """The topic that the message was sent to; empty: the letter doesn't say."""
        return self.said("topic")

    def said(self, name: str) -> str:
        """The value of one of the service's headers."""
        value = dict(self.record.headers).get(f"vm-sync-{name}")
        return printable(value or b"")

    @property
    def at(self) -> str:
        """Partition and offset of the letter."""
        return f"{self.record.partition}:{self.record.offset}"

    @property
    def set_aside(self) -> datetime:
        """When the letter was written."""
        return datetime.fromtimestamp(self.record.timestamp_ms / 1000, UTC)

    @property
    def marked(self) -> bool:
        """Whether it was redriven or discarded, so that it stays where it is."""
        return self.put_back_at is not None or self.discarded_at is not None

    @property
    def times(self) -> int:
        """How often the message was redriven, before and after this letter was written."""
        return redriven(self.record.headers) + (self.put_back_at is not None)

    def refusal(self, *, requests: str, at_most: int | None) -> str | None:
        """Return why the letter can't be redriven to the topic `requests`; None: it can. `at_most` None: it is forced.

        Deployments may share a dead-letter topic, and another one's message would start a sync at this one's VCDA.
        """
        if self.said("truncated") == "true" or self.said("reason") == DeadLetterReason.UNREADABLE:
            return "the dead letter does not contain the original bytes"
        if at_most is not None and self.sent_to not in {"", requests}:
            return f"sent to the topic {self.sent_to}; --force redrives it to {requests} nevertheless"
        if at_most is not None and self.times >= at_most:
            return f"redriven {self.times} times already; --force redrives it nevertheless"
        return None


class _Mark(NamedTuple):
    """That a letter was redriven, or discarded, and when."""

    at: datetime
    discarded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Selects letters."""

    reasons: frozenset[str]
    topics: frozenset[str]
    since: datetime | None
    until: datetime | None
    key: str | None
    at: frozenset[tuple[int, int | None]]

    @classmethod
    def of(
        cls,
        *,
        reasons: Collection[str] = (),
        topics: Collection[str] = (),
        since: str | None = None,
        until: str | None = None,
        key: str | None = None,
        at: Collection[str] = (),
    ) -> Self:
        """Parse the options. Raises `NoAnswer` for invalid values."""
        if unknown := set(reasons) - set(DeadLetterReason):
            msg = f"There is no reason {printable(min(unknown))}; the reasons are {', '.join(DeadLetterReason)}."
            raise NoAnswer(msg, code=Exit.USAGE)
        return cls(
            reasons=frozenset(reasons),
            topics=frozenset(topics),
            since=maybe_moment("--since", since, now=Clock().now()),
            until=maybe_moment("--until", until, now=Clock().now()),
            key=key,
            at=frozenset(map(_place, at)),
        )

    def holds(self, letter: Letter) -> bool:
        """Whether a letter is selected."""
        record = letter.record
        return (
            (not self.reasons or letter.said("reason") in self.reasons)
            and (not self.topics or letter.sent_to in self.topics)
            and (self.since is None or letter.set_aside >= self.since)
            and (self.until is None or letter.set_aside < self.until)
            and (self.key is None or printable(record.key) == self.key)
            and (not self.at or not self.at.isdisjoint({(record.partition, None), (record.partition, record.offset)}))
        )

    def split(self, letters: Sequence[Letter], *, requests: str) -> tuple[list[Letter], Counter[str]]:
        """Return the selected letters to act on, and how many others of each topic are left to those who read it.

        Deployments may share a dead-letter topic: unless topics are named, only letters of this one are acted on, and
        those that are named one by one.
        """
        if self.topics:
            return list(letters), Counter()
        own, others = [], Counter[str]()
        for letter in letters:
            if letter.sent_to in {"", requests} or (letter.record.partition, letter.record.offset) in self.at:
                own.append(letter)
            elif not letter.marked:
                others[letter.sent_to] += 1
        return own, others


def _place(text: str) -> tuple[int, int | None]:
    partition, colon, offset = text.partition(":")
    if not partition.isdecimal() or (colon and not offset.isdecimal()):
        msg = f"--at needs PARTITION or PARTITION:OFFSET, not {printable(text)}."
        raise NoAnswer(msg, code=Exit.USAGE)
    return int(partition), int(offset) if colon else None


def list_(chosen: LetterFilter, *, discarded: bool, wide: bool, as_json: bool) -> None:
    """List the chosen letters; those that were discarded only on demand."""
    place = kafka.settings()
    letters = interrupts.run(_listed(place, chosen))
    shown = [letter for letter in letters if discarded or letter.discarded_at is None]
    if as_json:
        show_json([_json(letter) for letter in shown])
    else:
        show_table(COLUMNS, [_row(letter) for letter in shown], wide=wide)
    if len(shown) < len(letters):
        say(f"Discarded letters that are not shown: {len(letters) - len(shown)}; --discarded shows them.")


def show(at: str, *, as_json: bool) -> None:
    """Print one letter whole."""
    partition, offset = _place(at)
    if offset is None:
        msg = f"A letter is named by PARTITION:OFFSET, as `vm-sync dead-letters list` shows it, not {printable(at)}."
        raise NoAnswer(msg, code=Exit.USAGE)
    place = kafka.settings()
    chosen = LetterFilter.of(at=[at])
    letters = interrupts.run(_listed(place, chosen))
    if not letters:
        msg = f"There is no dead letter at {partition}:{offset} of {place.names.dead_letter}: it may have been deleted."
        raise NoAnswer(msg)
    (letter,) = letters
    if as_json:
        headers = [[name, None if value is None else printable(value)] for name, value in letter.record.headers]
        show_json(_json(letter) | {"headers": headers})
        return
    show_facts(_facts(letter))
    print()
    value = letter.record.value
    text = "" if value is None else value.decode("utf-8", "backslashreplace")
    print("\n".join([printable(line) for line in text.split("\n")]))


def discard(chosen: LetterFilter, *, dry_run: bool, confirmed: bool, as_json: bool) -> None:
    """Mark the chosen letters as dealt with, once that is confirmed; those that were redriven are left as they are."""
    place = kafka.settings()
    own, others = chosen.split(interrupts.run(_listed(place, chosen)), requests=place.names.requests)
    wanted = [letter for letter in own if not letter.marked]
    if not as_json and wanted:
        show_table(COLUMNS, [_row(letter) for letter in wanted])
    if wanted and not dry_run:
        if not confirmed:
            question = f"Discard these {len(wanted)} dead letters? They are never redriven then"
            operators.confirm(question, what="a discard", undone="discarded")
        interrupts.run(_discarded(place, wanted))
    if as_json:
        show_json({"dryRun": dry_run, "discarded": [_json(letter) for letter in wanted], "otherTopics": others})
    else:
        print(f"{len(wanted)} {'would be discarded' if dry_run else 'discarded'}.")
    _say_left(others)


def redrive(chosen: LetterFilter, *, dry_run: bool, at_most: int | None, as_json: bool) -> None:
    """Redrive the selected letters that were not redriven yet and are not refused."""
    place = kafka.settings()
    letters, others = interrupts.run(_redriven(place, chosen, dry_run=dry_run, at_most=at_most))
    before = [letter for letter in letters if letter.put_back_at]
    fresh = [
        (letter, letter.refusal(requests=place.names.requests, at_most=at_most))
        for letter in letters
        if not letter.marked
    ]
    refused = [(letter, why) for letter, why in fresh if why]
    done = [letter for letter, why in fresh if not why]
    if as_json:
        show_json(
            {
                "dryRun": dry_run,
                "putBack": [_json(letter) for letter in done],
                "putBackBefore": [_json(letter) for letter in before],
                "refused": [_json(letter) | {"why": why} for letter, why in refused],
                "otherTopics": others,
            }
        )
    else:
        if done:
            show_table(COLUMNS, [_row(letter) for letter in done])
        verb = "would be redriven" if dry_run else "redriven"
        print(f"{len(done)} {verb}, {len(before)} were redriven before, {len(refused)} refused.")
        for letter, why in refused:
            say(f"{letter.at} refused: {why}.")
    _say_left(others)
    if refused:
        raise typer.Exit(Exit.NO)


def _say_left(others: Mapping[str, int]) -> None:
    for topic, count in sorted(others.items()):
        say(f"Dead letters of messages that were sent to {topic}, left as they are: {count}; --topic selects them.")


# ---------------------------------------------------------------- reading


async def _listed(place: kafka.KafkaContext, chosen: LetterFilter) -> list[Letter]:
    async with kafka.explained(place):
        return await _letters(place, chosen, marks=await _marks(place))


async def _letters(place: kafka.KafkaContext, chosen: LetterFilter, *, marks: Mapping[bytes, _Mark]) -> list[Letter]:
    topic = place.names.dead_letter
    letters = []
    async for record in kafka.read(place, await kafka.places(place, topic), what=f"the dead letters of {topic}"):
        letter = kafka.record_of(record)
        at, discarded = marks.get(_mark(letter), (None, False))
        found = Letter(letter, None if discarded else at, at if discarded else None)
        if chosen.holds(found):
            letters.append(found)
    return sorted(
        letters, key=lambda letter: (letter.record.timestamp_ms, letter.record.partition, letter.record.offset)
    )


async def _marks(place: kafka.KafkaContext) -> dict[bytes, _Mark]:
    """Read when letters were redriven or discarded, by their marks' keys."""
    topic = _marks_topic(place)
    seen = await kafka.described(place, topic)
    if topic in seen.hidden:
        say(f"{place.denied(topic, Operation.READ)} Until then, no letter is shown as redriven.")
    if topic not in seen.topics:
        return {}
    marks = {}
    async for record in kafka.read(place, await kafka.places(place, topic), what=f"the marks of {topic}"):
        discarded = b"discardedAt" in (record.value or b"")
        marks[bytes(record.key)] = _Mark(datetime.fromtimestamp(record.timestamp / 1000, UTC), discarded)
    return marks


def _marks_topic(place: kafka.KafkaContext) -> str:
    return f"{place.names.dead_letter}.redriven"


def _mark(record: Record) -> bytes:
    return f"{record.partition}:{record.offset}:{record.timestamp_ms}".encode()


# ---------------------------------------------------------------- redriving


async def _redriven(
    place: kafka.KafkaContext, chosen: LetterFilter, *, dry_run: bool, at_most: int | None
) -> tuple[list[Letter], Counter[str]]:
    """Redrive; return the selected letters as they were before, and how many are left to others."""
    requests = place.names.requests
    if dry_run:
        return chosen.split(await _listed(place, chosen), requests=requests)
    async with kafka.explained(place):
        await kafka.places(place, place.names.dead_letter)
        await kafka.places(place, requests, operation=Operation.WRITE)
        await _make_marks_topic(place)
        async with _producer(place) as producer:
            letters = await _letters(place, chosen, marks=await _marks(place))
            own, others = chosen.split(letters, requests=requests)
            wanted = [
                letter for letter in own if not letter.marked and not letter.refusal(requests=requests, at_most=at_most)
            ]
            mark = _marking(place, "putBackAt")
            await _write(
                place,
                producer,
                wanted,
                "redriven",
                lambda letter: (write_redriven(letter.record, topic=requests), mark(letter)),
            )
    return own, others


@asynccontextmanager
async def _producer(place: kafka.KafkaContext) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        **place.arguments,
        transactional_id=f"{place.names.dead_letter}-redrive",
        transaction_timeout_ms=milliseconds(TRANSACTION_TIMEOUT),
        max_request_size=2 * (BROKER_MESSAGE_LIMIT + HEADER_ROOM),
        acks="all",
    )
    try:
        async with asyncio.timeout(kafka.SILENCE):
            await producer.start()
        yield producer
    finally:
        await end(producer)


def _marking(place: kafka.KafkaContext, word: str) -> Callable[[Letter], Event]:
    """Return what makes the mark of a letter, with the moment of now under this word."""
    topic, value = _marks_topic(place), json.dumps({word: rfc3339(Clock().now())}).encode()
    return lambda letter: Event(topic=topic, key=_mark(letter.record), value=value)


async def _write(
    place: kafka.KafkaContext,
    producer: AIOKafkaProducer,
    letters: Sequence[Letter],
    done: str,
    events_of: Callable[[Letter], Iterable[Event]],
) -> None:
    """Write events of each letter, those of some letters in one transaction; `done` is what they are then."""
    for start in range(0, len(letters), LETTERS_AT_ONCE):
        some = letters[start : start + LETTERS_AT_ONCE]
        try:
            async with asyncio.timeout(TRANSACTION_TIMEOUT.total_seconds()), producer.transaction():
                await _send(producer, [event for letter in some for event in events_of(letter)])
        except ProducerFenced:
            msg = "Another redrive or discard was started and has fenced this one; no letter is redriven twice."
            raise NoAnswer(msg) from None
        except MessageSizeTooLargeError:
            msg = (
                f"One of the letters {some[0].at} to {some[-1].at} is larger than {place.names.requests} accepts: "
                "select others with --at, or raise the topic's max.message.bytes."
            )
            raise NoAnswer(msg) from None
        except DENIALS:
            raise  # a sentence that names the right is made of it
        except (KafkaError, IllegalOperation, TimeoutError, AssertionError) as error:  # aiokafka asserts its states
            msg = f"Kafka failed ({type(error).__name__}): start again; no letter is redriven twice."
            raise NoAnswer(msg) from None
        if start:
            say(f"{start + len(some)} of {len(letters)} {done} ...")


async def _send(producer: AIOKafkaProducer, events: Iterable[Event]) -> None:
    """Send events, and wait for all: aiokafka commits a transaction of which the broker refused a part."""
    sent: list[asyncio.Future[Any]] = []
    errors: list[BaseException] = []
    try:
        for event in events:
            headers = list(event.headers)
            sent.append(await producer.send(event.topic, event.value, key=event.key, headers=headers))
    except (KafkaError, IllegalOperation) as error:  # what was sent before says why nothing more may be sent
        errors.append(error)
    results = await asyncio.gather(*sent, return_exceptions=True)
    for result in (*results, *errors):
        if isinstance(result, BaseException):
            raise result


async def _discarded(place: kafka.KafkaContext, letters: Sequence[Letter]) -> None:
    """Mark letters as discarded, but for those that a redrive has marked meanwhile."""
    async with kafka.explained(place):
        await _make_marks_topic(place)
        # The same producer as a redrive's: one that still runs is fenced, so no letter is redriven behind our back.
        async with _producer(place) as producer:
            marks, mark = await _marks(place), _marking(place, "discardedAt")
            wanted = [letter for letter in letters if _mark(letter.record) not in marks]
            await _write(place, producer, wanted, "discarded", lambda letter: (mark(letter),))


async def _make_marks_topic(place: kafka.KafkaContext) -> None:
    topic = _marks_topic(place)
    seen = await kafka.described(place, topic)
    if topic in seen.hidden:
        raise place.denied(topic, Operation.WRITE)
    if topic in seen.topics:
        return
    admin = AIOKafkaAdminClient(**place.arguments)
    try:
        await admin.start()
        replicas = min(REPLICAS, len(wire_of(admin).cluster.brokers()))
        settings = {"cleanup.policy": "compact", "min.insync.replicas": str(max(1, replicas - 1))}
        response = await admin.create_topics([NewTopic(topic, 1, replicas, topic_configs=settings)])
        for _, code, message in response.topic_errors:
            if code not in {0, TopicAlreadyExistsError.errno}:
                msg = (
                    f"Creating the topic {topic}, which records the redriven letters, failed "
                    f"({message or for_code(code).__name__}): create it yourself, with one partition and "
                    "cleanup.policy=compact, or grant Create to your user."
                )
                raise NoAnswer(msg)
        async with asyncio.timeout(kafka.SILENCE):
            while (await kafka.described(place, topic)).unsettled:  # noqa: ASYNC110 - Kafka has no event for it
                await asyncio.sleep(0.1)
    finally:
        await end(admin)


# ---------------------------------------------------------------- output


def _row(letter: Letter) -> tuple[str, ...]:
    record, now = letter.record, Clock().now()
    message = printable((record.value or b"")[: 4 * BEGINNING])
    return (
        letter.at,
        age(now - letter.set_aside),
        letter.said("reason"),
        _shown(record.key),
        _redriven_words(letter, now),
        message[:BEGINNING] + "..." if len(message) > BEGINNING else message or _shown(record.value),
        letter.said("detail"),
        f"{letter.said('topic')} {letter.said('partition')}:{letter.said('offset')}",
    )


def _shown(data: bytes | None) -> str:
    """Write a key or a value in a cell, which is never blank: programs count columns."""
    return "(none)" if data is None else printable(data) or "(empty)"


def _redriven_words(letter: Letter, now: datetime) -> str:
    if letter.discarded_at:
        return f"discarded {age(now - letter.discarded_at)} ago"
    return f"{letter.times} x" + (f", last {age(now - letter.put_back_at)} ago" if letter.put_back_at else "")


def _facts(letter: Letter) -> Iterator[tuple[str, str]]:
    """Yield all that is known of it but the message itself."""
    record = letter.record
    yield "at", letter.at
    yield "written", moment(letter.set_aside)
    yield "reason", letter.said("reason")
    yield "detail", letter.said("detail")
    yield "request was at", f"{letter.said('topic')} {letter.said('partition')}:{letter.said('offset')}"
    yield "key", "none" if record.key is None else printable(record.key)
    yield "redriven", _redriven_words(letter, Clock().now())
    for name, value in record.headers:
        if not name.startswith("vm-sync-"):
            yield f"header {printable(name)}", "null" if value is None else printable(value)
    yield "message", f"{len(record.value)} bytes, below" if record.value else _shown(record.value)


def _json(letter: Letter) -> dict[str, Any]:
    record = letter.record
    return {
        "partition": record.partition,
        "offset": record.offset,
        "setAsideAt": rfc3339(letter.set_aside),
        "reason": letter.said("reason"),
        "detail": letter.said("detail"),
        "key": None if record.key is None else printable(record.key),
        "value": None if record.value is None else printable(record.value),
        "request": {name: letter.said(name) for name in ("topic", "partition", "offset", "timestamp")},
        "timesPutBack": letter.times,
        "putBackAt": rfc3339(letter.put_back_at),
        "discardedAt": rfc3339(letter.discarded_at),
    }
