"""`vm-sync top`: a live view over all instances, from the journal and the outcome topics; works while they are down.

The journal is read once and then followed. Who has the partitions, and the progress of running syncs, say the consumer
group and the instances' `/syncs`, where they can be reached: one page of each instance every few seconds.
"""

import asyncio
import os
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from service.cli import interrupts, kafka
from service.cli.options import State
from service.cli.output import Exit, NoAnswer, moment, printable, say, show_json
from service.cli.tables import Column, show_table, table
from service.cli.top_state import STATES, WINDOW, InFlight, Moment, TopState
from service.clock import Clock
from service.kafka.topics import TopicNames
from service.live_view import LATEST, ROWS, InFlightRow, LiveView, OutcomeLine, Picture
from service.moments import age

ASK_EVERY: Final = 5.0
"""Seconds between two questions to Kafka and to the instances."""

TURN_MS: Final = 200
"""How long a key or a resized terminal waits."""

MOST_SITES: Final = 6
"""Sites that have a line of their own."""

SITES: Final = (
    Column("site", rank=1, text=True),
    *[Column(state.value, rank=3 if state is State.SUBMITTING else 0) for state in STATES],
    Column("oldest", rank=2),
)

OLDEST: Final = (
    Column("operationID"),
    Column("replicationId"),
    Column("site"),
    Column("state"),
    Column("progress"),
    Column("age"),
)

ENDED: Final = (Column("ended"), Column("operationID"), Column("replicationId"), Column("outcome"))


@dataclass(slots=True)
class Live:
    """What is known from elsewhere than the topics' records."""

    owners: Mapping[int, str] = field(default_factory=dict)
    """The operations servers' URLs by partition, as far as they are known."""
    progress: Mapping[str, int] = field(default_factory=dict)
    """Percent, by identity."""
    silent_since: datetime | None = None
    """When Kafka stopped answering."""
    failing_since: datetime | None = None
    """When asking began to fail for a reason that is an error of this command."""
    failure: str = ""


def top(*, interval: float, once: bool, as_json: bool) -> None:
    """Show the view until q or Ctrl-C; with `once`, print it once."""
    if as_json and not once:
        msg = "--json needs --once."
        raise NoAnswer(msg, code=Exit.USAGE)
    place = kafka.settings()
    with suppress(KeyboardInterrupt):
        interrupts.run(_top(place, interval=interval, once=once, as_json=as_json))


async def _top(place: kafka.KafkaContext, *, interval: float, once: bool, as_json: bool) -> None:
    names, state, live = place.names, TopState(latest=LATEST), Live()
    async with kafka.explained(place), AsyncExitStack() as stack:
        journal = await kafka.places(place, names.journal)
        outcomes = await kafka.places(place, *dict.fromkeys([names.completed, names.failed]))
        wanted = [*journal, *outcomes]
        consumer = await stack.enter_async_context(kafka.reader(place, wanted, fetch_bytes=kafka.PERIOD_FETCH_BYTES))
        await _seek(consumer, journal, outcomes)
        async with aclosing(kafka.read_on(consumer, wanted, what=f"the journal {names.journal}")) as records:
            async for record in records:
                _take(state, record, names)
        await _ask(place, consumer, wanted, live)
        if once:
            shown = state.moment(_now(), rows=ROWS)
            if as_json:
                show_json(_json(shown, live, partitions=len(journal)))
            else:
                _print(shown, live, partitions=len(journal))
            return
        await stack.enter_async_context(_asking(place, consumer, wanted, live))
        stopped = stack.enter_context(_keys())
        view = stack.enter_context(LiveView()) if sys.stdout.isatty() else None
        while not stopped.is_set():
            shown = state.moment(_now(), rows=ROWS)
            if view is None:
                _print(shown, live, partitions=len(journal))
                sys.stdout.flush()  # it may be a pipe
            else:
                foot = f"q ends, every {interval:g} s | {_owned(live, len(journal))}"
                view.draw(_picture(shown, live, width=view.width, foot=foot))
            await _follow(consumer, state, names, view, stopped, seconds=interval)


async def _seek(consumer: AIOKafkaConsumer, journal: list[TopicPartition], outcomes: list[TopicPartition]) -> None:
    """Begin at the journal's beginning, and at the outcomes of the last minute."""
    since = int((_now() - WINDOW).timestamp() * 1000)
    async with asyncio.timeout(kafka.SILENCE):
        for where, offset in (await consumer.beginning_offsets(journal)).items():
            consumer.seek(where, offset)
        ends = await consumer.end_offsets(outcomes)
        for where, found in (await consumer.offsets_for_times(dict.fromkeys(outcomes, since))).items():
            consumer.seek(where, ends[where] if found is None else found.offset)


def _take(state: TopState, record: ConsumerRecord, names: TopicNames) -> None:
    if record.topic == names.journal:
        state.take_journal(record.key, record.value)
    else:
        state.take_outcome(record.value, at_ms=record.timestamp, partition=record.partition, offset=record.offset)


async def _follow(
    consumer: AIOKafkaConsumer,
    state: TopState,
    names: TopicNames,
    view: LiveView | None,
    stopped: asyncio.Event,
    *,
    seconds: float,
) -> None:
    """Take what comes, for so long or until it is stopped, or the terminal is resized."""
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    while not stopped.is_set() and not (view is not None and view.resized):
        left = until - clock()
        if left <= 0:
            return
        wait = max(1, min(TURN_MS, int(left * 1000)))
        for records in (await kafka.records_of(consumer, timeout_ms=wait, max_records=kafka.RECORDS_AT_ONCE)).values():
            for record in records:
                _take(state, record, names)


@asynccontextmanager
async def _asking(
    place: kafka.KafkaContext, consumer: AIOKafkaConsumer, wanted: list[TopicPartition], live: Live
) -> AsyncIterator[None]:
    """Ask again and again while the context is open, also after an internal error, which the view shows."""

    async def again() -> None:
        while True:
            await asyncio.sleep(ASK_EVERY)
            try:
                await _ask(place, consumer, wanted, live)
                live.failing_since = None
            except Exception as error:  # noqa: BLE001 - what the records say is right all the same
                live.failing_since = live.failing_since or _now()
                live.failure = f"{type(error).__name__}: {error}"

    asking = asyncio.create_task(again())
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.wait([asking])


async def _ask(place: kafka.KafkaContext, consumer: AIOKafkaConsumer, wanted: list[TopicPartition], live: Live) -> None:
    """Ask whether Kafka is there, who has the partitions, and how far the running syncs are."""
    from service.cli import instances

    try:
        async with asyncio.timeout(ASK_EVERY):
            await consumer.end_offsets(wanted)
        live.silent_since = None
    except (KafkaError, TimeoutError, OSError):
        live.silent_since = live.silent_since or _now()
        return
    live.owners = await instances.owners(place)
    live.progress = await instances.progress(set(live.owners.values()))


@contextmanager
def _keys() -> Iterator[asyncio.Event]:
    """Yield an event that q sets, where the input is a terminal."""
    stopped = asyncio.Event()
    if not sys.stdin.isatty():
        yield stopped
        return
    file, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(file)

    def pressed() -> None:
        if b"q" in (keys := os.read(file, 100).lower()) or not keys:
            stopped.set()

    tty.setcbreak(file, termios.TCSADRAIN)  # what was typed already counts, too
    loop.add_reader(file, pressed)
    try:
        yield stopped
    finally:
        loop.remove_reader(file)
        termios.tcsetattr(file, termios.TCSADRAIN, before)


# ---------------------------------------------------------------- output


def _now() -> datetime:
    return Clock().now()


def _head(shown: Moment) -> str:
    return (
        f"{moment(shown.at)} | in flight {shown.total} | last minute: {shown.completed} completed, "
        f"{shown.failed} failed"
    )


def _owned(live: Live, partitions: int) -> str:
    """Say who reads the requests."""
    if not live.owners:
        return f"{partitions} partitions, no instance is known to read them"
    urls = len(set(live.owners.values()))
    return f"{partitions} partitions, {len(live.owners)} read by {urls} {'instance' if urls == 1 else 'instances'}"


def _notes(shown: Moment, live: Live) -> list[str]:
    """Say what makes the view incomplete."""
    notes = []
    if live.silent_since is not None:
        notes.append(f"Kafka has not answered since {live.silent_since:%H:%M:%S}Z; this is from before.")
    if live.failing_since is not None:
        notes.append(
            f"Internal error since {live.failing_since:%H:%M:%S}Z ({printable(live.failure)}): what the instances say "
            "is from before."
        )
    if shown.unreadable:
        notes.append(f"{shown.unreadable} records of the journal can't be read by this version.")
    return notes


def _sites(shown: Moment) -> list[tuple[str, ...]]:
    rows = []
    first, rest = shown.sites[:MOST_SITES], shown.sites[MOST_SITES:]
    for one in first:
        counts = [str(one.states.get(state, 0)) for state in STATES]
        rows.append((printable(one.site or "local"), *counts, age(shown.at - one.oldest)))
    if rest:
        counts = [str(sum(one.states.get(state, 0) for one in rest)) for state in STATES]
        rows.append((f"{len(rest)} other sites", *counts, age(shown.at - min(one.oldest for one in rest))))
    return rows


def _row(one: InFlight, shown: Moment, live: Live) -> InFlightRow:
    return InFlightRow(
        operation_id=printable(one.operation_id),
        replication_id=printable(one.replication_id),
        site=printable(one.site or "local"),
        state=one.state,
        progress=live.progress.get(one.identity),
        age=age(shown.at - datetime.fromtimestamp(one.accepted_ms / 1000, shown.at.tzinfo)),
    )


def _outcomes(shown: Moment) -> list[OutcomeLine]:
    return [
        OutcomeLine(
            at=f"{one.ended_at.astimezone(shown.at.tzinfo):%H:%M:%S}Z",
            operation_id=printable(one.operation_id),
            replication_id=printable(one.replication_id),
            said=printable(f"failed: {one.reason}" if one.reason is not None else "completed")
            + (f" ({printable(one.error.code)})" if one.error else ""),
            failed=one.reason is not None,
        )
        for one in shown.latest
    ]


def _picture(shown: Moment, live: Live, *, width: int, foot: str) -> Picture:
    return Picture(
        head=_head(shown),
        summary=[*_notes(shown, live), *(table(SITES, _sites(shown), width=width) if shown.sites else [])],
        in_flight=[_row(one, shown, live) for one in shown.oldest],
        total=shown.total,
        latest=_outcomes(shown),
        foot=foot,
    )


def _print(shown: Moment, live: Live, *, partitions: int) -> None:
    """Print it as tables, for a script or a pipe."""
    print(_head(shown))
    print(_owned(live, partitions))
    for note in _notes(shown, live):
        say(note)
    print()
    show_table(SITES, _sites(shown), wide=True)
    print()
    rows = [_row(one, shown, live) for one in shown.oldest]
    show_table(
        OLDEST,
        [
            (
                row.operation_id,
                row.replication_id,
                row.site,
                row.state,
                "" if row.progress is None else f"{row.progress} %",
                row.age,
            )
            for row in rows
        ],
    )
    print()
    show_table(ENDED, [(line.at, line.operation_id, line.replication_id, line.said) for line in _outcomes(shown)])


def _json(shown: Moment, live: Live, *, partitions: int) -> dict[str, Any]:
    found = shown.json()
    for one in found["oldest"]:
        one["progress"] = live.progress.get(one["requestId"])
    owned = {"total": partitions, "owned": len(live.owners), "instances": sorted(set(live.owners.values()))}
    return found | {"partitions": owned}
