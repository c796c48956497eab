"""List dead letters, and redrive them: send each to the requests topic again, once.

A redrive may be interrupted at any point, and repeated by another user. So each redriven letter has a mark, written in
the transaction that redrives the letter: both are committed, or neither. A new redrive takes over the transactional id
`<dead-letter topic>-redrive`, which aborts the transaction that a predecessor left open and fences one that still runs;
only then the marks are read.

Marks stand in a compacted topic of their own, `<dead-letter topic>.redriven`, which the first redrive makes. A group's
committed offset would be simpler, but is one number for each partition, and filters leave gaps; and an unused group's
offsets expire after a week, often before the letters do, which would then all come back at once. A mark's key names
partition, offset and timestamp of the letter, so a topic that was deleted and created again is not taken for the old
one.

A letter that returns as a dead letter carries its redrive count (`vm-sync-redriven`); past a limit it is refused, so
that a script which redrives every letter doesn't loop for ever. A letter whose bytes were not kept is always refused.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import typer
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, ProducerFenced, TopicAlreadyExistsError, for_code

from service.cli import kafka
from service.cli.output import Exit, NoAnswer, moment, printable, say, show_json, show_table
from service.clock import Clock
from service.kafka.clients import end
from service.kafka.topics import BROKER_MESSAGE_LIMIT, HEADER_ROOM, REPLICAS
from service.messages.dead_letters import redriven, write_redriven
from service.messages.kafka_record import Record
from service.messages.requests import DeadLetterReason
from service.moments import milliseconds, rfc3339

LETTERS_AT_ONCE: Final = 100
"""Letters in one transaction: a few hundred a second, and a readers' wait of milliseconds."""

TRANSACTION_TIMEOUT: Final = timedelta(seconds=30)
"""An abandoned redrive blocks readers of the requests topic for so long, unless a new redrive starts earlier."""

COLUMNS: Final = ("at", "written", "reason", "detail", "key", "request was at", "redriven")


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, and when it was redriven, if it was."""

    record: Record
    put_back_at: datetime | None

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
    def times(self) -> int:
        """How often the message was redriven, before and after this letter was written."""
        return redriven(self.record.headers) + (self.put_back_at is not None)

    def refusal(self, *, at_most: int | None) -> str | None:
        """Return why the letter can't be redriven; None: it can."""
        if self.said("truncated") == "true" or self.said("reason") == DeadLetterReason.UNREADABLE:
            return "the dead letter does not contain the original bytes"
        if at_most is not None and self.times >= at_most:
            return f"redriven {self.times} times already; --force redrives it nevertheless"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Selects letters."""

    reasons: frozenset[str]
    since: datetime | None
    until: datetime | None
    key: str | None
    at: frozenset[tuple[int, int | None]]

    @classmethod
    def of(
        cls,
        *,
        reasons: Collection[str],
        since: datetime | None,
        until: datetime | None,
        key: str | None,
        at: Collection[str],
    ) -> Self:
        """Parse the options. Raises `NoAnswer` for invalid values."""
        if unknown := set(reasons) - set(DeadLetterReason):
            msg = f"There is no reason {printable(min(unknown))}; the reasons are {', '.join(DeadLetterReason)}."
            raise NoAnswer(msg, code=Exit.USAGE)
        return cls(
            reasons=frozenset(reasons),
            since=since and since.replace(tzinfo=since.tzinfo or UTC),
            until=until and until.replace(tzinfo=until.tzinfo or UTC),
            key=key,
            at=frozenset(map(_place, at)),
        )

    def holds(self, letter: Letter) -> bool:
        """Whether a letter is selected."""
        record = letter.record
        return (
            (not self.reasons or letter.said("reason") in self.reasons)
            and (self.since is None or letter.set_aside >= self.since)
            and (self.until is None or letter.set_aside < self.until)
            and (self.key is None or printable(record.key) == self.key)
            and (not self.at or not self.at.isdisjoint({(record.partition, None), (record.partition, record.offset)}))
        )


def _place(text: str) -> tuple[int, int | None]:
    partition, colon, offset = text.partition(":")
    if not partition.isdecimal() or (colon and not offset.isdecimal()):
        msg = f"--at needs PARTITION or PARTITION:OFFSET, not {printable(text)}."
        raise NoAnswer(msg, code=Exit.USAGE)
    return int(partition), int(offset) if colon else None


def list_(chosen: LetterFilter, *, as_json: bool) -> None:
    """List the chosen letters."""
    place = kafka.settings()
    letters = asyncio.run(_listed(place, chosen))
    if as_json:
        show_json([_json(letter) for letter in letters])
    else:
        show_table(COLUMNS, [_row(letter) for letter in letters])


def redrive(chosen: LetterFilter, *, dry_run: bool, at_most: int | None, as_json: bool) -> None:
    """Redrive the selected letters that were not redriven yet and are not refused."""
    place = kafka.settings()
    letters = asyncio.run(_redriven(place, chosen, dry_run=dry_run, at_most=at_most))
    before = [letter for letter in letters if letter.put_back_at]
    fresh = [(letter, letter.refusal(at_most=at_most)) for letter in letters if not letter.put_back_at]
    refused = [(letter, why) for letter, why in fresh if why]
    done = [letter for letter, why in fresh if not why]
    if as_json:
        show_json(
            {
                "dryRun": dry_run,
                "putBack": [_json(letter) for letter in done],
                "putBackBefore": [_json(letter) for letter in before],
                "refused": [_json(letter) | {"why": why} for letter, why in refused],
            }
        )
    else:
        if done:
            show_table(COLUMNS[:-1], [_row(letter)[:-1] for letter in done])
        verb = "would be redriven" if dry_run else "redriven"
        print(f"{len(done)} {verb}, {len(before)} were redriven before, {len(refused)} refused.")
        for letter, why in refused:
            say(f"{letter.at} refused: {why}.")
    if refused:
        raise typer.Exit(Exit.NO)


# ---------------------------------------------------------------- reading


async def _listed(place: kafka.KafkaContext, chosen: LetterFilter) -> list[Letter]:
    async with kafka.explained(place):
        return await _letters(place, chosen, marks=await _marks(place))


async def _letters(place: kafka.KafkaContext, chosen: LetterFilter, *, marks: Mapping[bytes, datetime]) -> list[Letter]:
    topic = place.names.dead_letter
    letters = []
    async for record in kafka.read(place, await kafka.places(place, topic), what=f"the dead letters of {topic}"):
        letter = Record(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp_ms=record.timestamp,
            key=record.key,
            value=record.value,
            headers=tuple(record.headers),
        )
        found = Letter(letter, marks.get(_mark(letter)))
        if chosen.holds(found):
            letters.append(found)
    return sorted(
        letters, key=lambda letter: (letter.record.timestamp_ms, letter.record.partition, letter.record.offset)
    )


async def _marks(place: kafka.KafkaContext) -> dict[bytes, datetime]:
    """Read when letters were redriven, by their marks' keys."""
    topic = _marks_topic(place)
    if not (await kafka.partitions(place)).get(topic):
        return {}
    marks = {}
    async for record in kafka.read(place, await kafka.places(place, topic), what=f"the marks of {topic}"):
        marks[bytes(record.key)] = datetime.fromtimestamp(record.timestamp / 1000, UTC)
    return marks


def _marks_topic(place: kafka.KafkaContext) -> str:
    return f"{place.names.dead_letter}.redriven"


def _mark(record: Record) -> bytes:
    return f"{record.partition}:{record.offset}:{record.timestamp_ms}".encode()


# ---------------------------------------------------------------- redriving


async def _redriven(
    place: kafka.KafkaContext, chosen: LetterFilter, *, dry_run: bool, at_most: int | None
) -> list[Letter]:
    """Redrive; return the selected letters as they were before."""
    if dry_run:
        return await _listed(place, chosen)
    async with kafka.explained(place):
        await kafka.places(place, place.names.dead_letter, place.names.requests)
        await _make_marks_topic(place)
        async with _producer(place) as producer:
            letters = await _letters(place, chosen, marks=await _marks(place))
            wanted = [letter for letter in letters if not letter.put_back_at and not letter.refusal(at_most=at_most)]
            for start in range(0, len(wanted), LETTERS_AT_ONCE):
                await _put_back(place, producer, wanted[start : start + LETTERS_AT_ONCE])
                if start:
                    say(f"{start + LETTERS_AT_ONCE} of {len(wanted)} redriven ...")
    return letters


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


async def _put_back(place: kafka.KafkaContext, producer: AIOKafkaProducer, letters: Sequence[Letter]) -> None:
    """Redrive some letters, and mark them, in one transaction.

    All sends are awaited before the commit: aiokafka commits a transaction of which the broker refused a part.
    """
    now = json.dumps({"putBackAt": rfc3339(Clock().now())}).encode()
    try:
        async with asyncio.timeout(TRANSACTION_TIMEOUT.total_seconds()), producer.transaction():
            sent = []
            for letter in letters:
                event = write_redriven(letter.record, topic=place.names.requests)
                headers = list(event.headers)
                sent.append(await producer.send(event.topic, event.value, key=event.key, headers=headers))
                sent.append(await producer.send(_marks_topic(place), now, key=_mark(letter.record)))
            await asyncio.gather(*sent)
    except ProducerFenced:
        msg = "Another redrive was started and has fenced this one; nothing was redriven twice."
        raise NoAnswer(msg) from None
    except MessageSizeTooLargeError:
        msg = (
            f"One of the letters {letters[0].at} to {letters[-1].at} is larger than {place.names.requests} accepts: "
            "select others with --at, or raise the topic's max.message.bytes."
        )
        raise NoAnswer(msg) from None
    except (KafkaError, TimeoutError, AssertionError) as error:  # aiokafka asserts what a failed producer may do
        msg = f"Kafka failed during the redrive ({type(error).__name__}): start again; no letter is redriven twice."
        raise NoAnswer(msg) from None


async def _make_marks_topic(place: kafka.KafkaContext) -> None:
    topic = _marks_topic(place)
    if (await kafka.partitions(place)).get(topic):
        return
    admin = AIOKafkaAdminClient(**place.arguments)
    try:
        await admin.start()
        replicas = min(REPLICAS, len((await admin.describe_cluster())["brokers"]))
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
            while not (await kafka.partitions(place)).get(topic):  # noqa: ASYNC110 - Kafka has no event for it
                await asyncio.sleep(0.1)
    finally:
        await end(admin)


# ---------------------------------------------------------------- output


def _row(letter: Letter) -> tuple[str, ...]:
    record = letter.record
    return (
        letter.at,
        moment(letter.set_aside),
        letter.said("reason"),
        letter.said("detail"),
        printable(record.key),
        f"{letter.said('topic')} {letter.said('partition')}:{letter.said('offset')}",
        f"{letter.times} x" + (f", last {moment(letter.put_back_at)}" if letter.put_back_at else ""),
    )


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
    }
