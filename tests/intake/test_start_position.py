"""Where a partition's reading begins, by what the journal and the requests topic say, without a Kafka."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    KafkaError,
    UnknownTopicOrPartitionError,
)

from service.intake import start_position
from service.intake.group_commits import Committed, note_of
from service.intake.start_position import TAIL_LIMIT, KafkaStartPositions, Start
from service.intake.timings import DEFAULT_TIMINGS
from service.kafka.denials import LASTS_AT_JOURNALS
from service.kafka.journal_api import JournalLost, JournalMismatch, StopReason
from service.kafka.journal_codec import CURSOR_KEY, OPENED_KEY, Cursor, encode_cursor
from tests.support.virtual_time import VirtualClock, now, virtual

PLACE, JOURNAL = TopicPartition("requests", 3), TopicPartition("journal", 3)
STAMP = 1_772_402_400_000
CURSOR = Cursor("requests", 20, STAMP, topic_id="id-1", group="ours")


class Topics:
    """A consumer of a journal with records at some offsets, and of a requests topic whose records have timestamps."""

    def __init__(
        self, records: Mapping[int, tuple[bytes, bytes]] | None = None, *, begin: int = 0, end: int = 0
    ) -> None:
        self.records = records or {}
        self.begins = {JOURNAL: begin, PLACE: 0}
        self.ends = {JOURNAL: end, PLACE: 100}
        self.stamps = {19: STAMP}
        self.partitions = {3}
        self.identity: str | None = "id-1"
        self.policy: str | None = "compact"
        self.stuck = False
        self.seen: list[tuple[int, int]] = []
        """From which offset on records were asked for, and when."""
        self.out_of_range: dict[TopicPartition, int] = {}
        self._at = 0
        self._assigned: list[TopicPartition] = []

    async def cleanup_policy(self, _: str) -> str | None:
        return self.policy

    async def partitions_of(self, _: str) -> set[int]:
        return self.partitions

    async def topic_id(self, topic: str) -> str | None:
        if topic == "requests":
            return self.identity
        if not self.partitions:
            raise UnknownTopicOrPartitionError
        return "id-9"

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: self.begins[place] for place in places}

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: self.ends[place] for place in places}

    def assign(self, places: list[TopicPartition]) -> None:
        self._assigned = places

    def seek(self, place: TopicPartition, offset: int) -> None:
        assert self._assigned == [place]
        self._at = offset
        self.seen.append((offset, int(now())))

    async def position(self, _: TopicPartition) -> int:
        return self._at

    async def getmany(self, place: TopicPartition, *, timeout_ms: int, max_records: int = 2) -> dict[Any, Any]:
        if place == PLACE:
            stamp = self.stamps.get(self._at)
            return {} if stamp is None else {place: [SimpleNamespace(offset=self._at, timestamp=stamp)]}
        await asyncio.sleep(timeout_ms / 1000)  # a slow broker
        if self.stuck:
            return {}
        some = sorted(offset for offset in self.records if offset >= self._at)[:max_records]
        self._at = some[-1] + 1 if some else self.ends[place]
        return {place: [SimpleNamespace(offset=at, key=self.records[at][0], value=self.records[at][1]) for at in some]}


def cursor_at(offset: int, cursor: Cursor = CURSOR) -> dict[int, tuple[bytes, bytes]]:
    return {offset: (CURSOR_KEY, encode_cursor(cursor))}


def start(offset: int, identity: str | None = "id-1", *, lost: int = 0) -> Start:
    return Start(offset, identity, lost, "journal id-9")


class Group:
    """What Kafka says of another group."""

    def __init__(self, *, state: str = "Stable", code: int = 0, held: list[list[int] | None] | None = None) -> None:
        members = [(0, 0, 0, 0, b"" if some is None else _assignment(some)) for some in held or []]
        self.groups = [(code, "theirs", state, "consumer", "range", members, 0)]
        self.started = self.stopped = 0

    async def start(self) -> None:
        self.started += 1

    async def describe_consumer_groups(self, groups: list[str]) -> list["Group"]:
        assert (groups, self.started) == (["theirs"], self.stopped + 1)
        return [self]


def _assignment(partitions: list[int]) -> bytes:
    return bytes(ConsumerProtocolMemberAssignment(0, [("requests", partitions)], b"").encode())


class Scene:
    """A journal and a requests topic, and whoever looks at them."""

    def __init__(self, topics: Topics, group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
        @asynccontextmanager
        async def probe(**_: object) -> AsyncIterator[Topics]:
            yield topics

        async def end(admin: Group) -> None:
            admin.stopped += 1

        monkeypatch.setattr(start_position, "probe_consumer", probe)
        monkeypatch.setattr(start_position, "AIOKafkaAdminClient", lambda **_: group)

        async def end_of_all(place: TopicPartition, _: Topics) -> int:
            return topics.ends[place]

        monkeypatch.setattr(start_position, "end", end)
        monkeypatch.setattr(start_position, "end_of_all", end_of_all)
        self.denied: list[tuple[str, object]] = []
        denials: Any = SimpleNamespace(note=lambda right, *, lasts: self.denied.append((str(right), lasts)))
        self.positions = KafkaStartPositions(
            connection={},
            requests="requests",
            journal="journal",
            group_id="ours",
            clock=VirtualClock(asyncio.get_running_loop()),
            tail=5,
            denials=denials,
        )
        self.asked = 0
        self.committed: Committed | None = None

    async def _committed(self) -> Committed | None:
        self.asked += 1
        return self.committed

    async def look(self, *, remembered: bool = False) -> start_position.Looked:
        return await self.positions.look(PLACE, committed=self._committed, remembered=remembered)

    async def of(self, cursor: Cursor | None) -> Start:
        return await self.positions.of(PLACE, cursor, committed=self._committed)

    async def stops(self, cursor: Cursor | None = None, *, reason: StopReason) -> str:
        with pytest.raises(JournalMismatch) as stopped:
            await (self.look() if cursor is None else self.of(cursor))
        assert stopped.value.reason is reason
        return str(stopped.value)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda topics, group=None: Scene(topics, group or Group(), monkeypatch)


# ---------------------------------------------------------------- the journal's last cursor


@virtual
async def test_the_last_cursor_counts_and_only_the_tail_is_read_where_one_is_there(scene: Any) -> None:
    records = cursor_at(90) | cursor_at(96, replace(CURSOR, offset=7)) | cursor_at(97) | {99: (OPENED_KEY, b"{}")}
    topics = Topics(records, end=100)
    assert await scene(topics).look() == start_position.Looked(CURSOR, start(20))
    assert [offset for offset, _ in topics.seen][:1] == [95]
    assert len(topics.seen) == 2, "the other is the record before the cursor"


@virtual
async def test_further_back_longer_parts_are_read_down_to_the_journals_beginning_and_none_twice(scene: Any) -> None:
    topics = Topics({99: (b"op:1", b"{}")}, begin=30, end=100)
    looked = await scene(topics).look()
    assert (looked.cursor, looked.start) == (None, start(0))
    assert [offset for offset, _ in topics.seen] == [95, 55, 30]


@virtual
async def test_a_cursor_at_the_first_offset_is_found_and_one_of_a_later_part_is_not_looked_at_again(scene: Any) -> None:
    topics = Topics(cursor_at(30) | dict.fromkeys(range(31, 100), (b"op:1", b"{}")), begin=30, end=100)
    assert (await scene(topics).look()).cursor == CURSOR


@virtual
async def test_a_journal_whose_tail_makes_no_progress_is_given_up_in_time(scene: Any) -> None:
    topics = Topics(cursor_at(97), end=100)
    topics.stuck = True
    with pytest.raises(JournalLost, match="journal-3 could not be read up to offset 100 in time"):
        await scene(topics).look()
    assert TAIL_LIMIT.total_seconds() < now() <= TAIL_LIMIT.total_seconds() + 1


@virtual
async def test_a_journal_that_is_read_slowly_is_read_to_its_end(scene: Any) -> None:
    topics = Topics(dict.fromkeys(range(200), (b"op:1", b"{}")) | cursor_at(0), end=200)
    assert (await scene(topics).look()).cursor == CURSOR
    assert now() > 2 * TAIL_LIMIT.total_seconds()


@virtual
async def test_a_journal_whose_records_are_deleted_while_it_is_looked_at_is_not_read_for_ever(scene: Any) -> None:
    topics = Topics(end=100)
    topics.out_of_range[JOURNAL] = 95
    assert (await scene(topics).look()).cursor is None
    assert now() == 0


@virtual
async def test_a_journal_that_is_missing_or_too_narrow_is_said_to_be(scene: Any) -> None:
    topics = Topics()
    topics.partitions = set()
    with pytest.raises(JournalLost, match="UnknownTopicOrPartition"):
        await scene(topics).look()
    topics.partitions = {0, 1}
    await scene(topics).stops(reason=StopReason.JOURNAL_TOO_NARROW)


@virtual
async def test_a_journal_that_is_not_compacted_or_has_a_cursor_of_nobody_is_not_opened(scene: Any) -> None:
    topics = Topics(cursor_at(97), end=100)
    topics.policy = "delete"
    await scene(topics).stops(reason=StopReason.JOURNAL_NOT_COMPACTED)
    await scene(Topics({97: (CURSOR_KEY, b"?")}, end=100)).stops(reason=StopReason.JOURNAL_UNREADABLE)


# ---------------------------------------------------------------- whose it is


@virtual
async def test_a_journal_of_another_requests_topic_is_not_opened(scene: Any) -> None:
    other = replace(CURSOR, topic="others")
    await scene(Topics(cursor_at(97, other), end=100)).stops(reason=StopReason.OTHER_TOPIC)
    await scene(Topics()).stops(other, reason=StopReason.OTHER_TOPIC)


THEIRS = replace(CURSOR, group="theirs")


@pytest.mark.parametrize(
    "group",
    [
        Group(held=[[0], [3, 4]]),
        Group(state="PreparingRebalance", held=[None]),
        Group(state="CompletingRebalance", held=[[0]]),
    ],
    ids=["a member has it", "a member may get it", "another may still have it"],
)
@virtual
async def test_a_journal_that_another_group_works_on_is_left_to_it(scene: Any, group: Group) -> None:
    said = await scene(Topics(cursor_at(97, THEIRS), end=100), group).stops(reason=StopReason.OTHER_GROUP)
    assert "the consumer group theirs uses the same journal" in said
    assert group.stopped == 1


@pytest.mark.parametrize(
    "group",
    [
        Group(state="Empty"),
        Group(state="Dead"),
        Group(state="Stable", held=[]),
        Group(held=[[0], None, [1, 2]]),
        Group(state="PreparingRebalance", held=[]),
    ],
    ids=["empty", "dead", "nobody", "others have others", "nobody is left"],
)
@virtual
async def test_a_journal_that_another_group_has_left_is_taken_over(
    scene: Any, group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    looked = await scene(Topics(cursor_at(97, THEIRS), end=100), group).look()
    assert looked.start == start(20)
    assert "Taking over partition 3 from the consumer group theirs" in caplog.text


@virtual
async def test_of_a_group_that_may_not_be_described_the_journals_silence_is_waited_for(scene: Any) -> None:
    topics = Topics(cursor_at(97, THEIRS), end=100)
    looking = scene(topics, Group(code=GroupAuthorizationFailedError.errno))
    await looking.stops(reason=StopReason.OTHER_GROUP)
    topics.ends[JOURNAL] = 101
    await looking.stops(reason=StopReason.OTHER_GROUP)
    assert (await looking.look()).start == start(20)


@virtual
async def test_a_group_that_cannot_be_described_now_is_not_taken_for_one_that_is_away(scene: Any) -> None:
    group = Group(code=GroupCoordinatorNotAvailableError.errno, state="Dead")
    with pytest.raises(JournalLost):
        await scene(Topics(cursor_at(97, THEIRS), end=100), group).look()


@virtual
async def test_a_cursor_of_no_group_is_anybodys(scene: Any) -> None:
    topics = Topics(cursor_at(97, replace(CURSOR, group=None)), end=100)
    assert (await scene(topics, Group(held=[[3]])).look()).start == start(20)


# ---------------------------------------------------------------- its end


@virtual
async def test_a_journal_that_ends_before_what_the_group_was_told_is_not_opened_once_its_leader_had_time_to_settle(
    scene: Any,
) -> None:
    topics = Topics(cursor_at(97), end=100)
    looking = scene(topics)
    for reached in (99, 100):
        looking.committed = Committed(0, note_of("journal id-9", reached))
        assert (await looking.look()).start == start(20)
    looking.committed, began = Committed(0, note_of("journal id-9", 101)), now()
    assert "ends at offset 100, but 101 had been" in await looking.stops(reason=StopReason.JOURNAL_TRUNCATED)
    assert now() - began >= DEFAULT_TIMINGS.leader_settles.total_seconds()
    assert (await looking.look(remembered=True)).start == start(20)

    asyncio.get_running_loop().call_later(2.5, topics.ends.update, {JOURNAL: 101})
    assert (await looking.look()).start == start(20)


@virtual
async def test_the_end_of_a_journal_that_was_made_again_is_compared_with_no_other(scene: Any) -> None:
    looking = scene(Topics(cursor_at(97), end=100))
    looking.committed = Committed(0, note_of("journal id-8", 1_000))
    assert (await looking.look()).start == start(20)


# ---------------------------------------------------------------- an empty journal


@virtual
async def test_an_empty_journal_is_opened_only_where_the_group_has_never_read_or_what_it_held_is_remembered(
    scene: Any,
) -> None:
    looking = scene(Topics())
    assert (await looking.look()).start == start(0)
    assert await looking.of(None) == start(0)
    looking.committed = Committed(0)
    assert "has committed offset 0" in await looking.stops(reason=StopReason.JOURNAL_EMPTY)
    assert looking.asked == 3
    assert (await looking.look(remembered=True)).start == start(0)
    assert looking.asked == 3


@virtual
async def test_that_something_is_remembered_does_not_hide_a_cursor(scene: Any) -> None:
    assert (await scene(Topics(cursor_at(97), end=100)).look(remembered=True)).cursor == CURSOR


# ---------------------------------------------------------------- the requests topic


@virtual
async def test_records_that_retention_has_deleted_before_they_were_read_are_counted(scene: Any) -> None:
    topics = Topics()
    topics.begins[PLACE] = 25
    assert await scene(topics).of(CURSOR) == start(25, lost=5)
    topics.begins[PLACE] = 20
    assert await scene(topics).of(CURSOR) == start(20, lost=0)


@virtual
async def test_a_cursor_beyond_the_end_is_refused_once_a_new_leader_had_time_to_settle(scene: Any) -> None:
    topics = Topics()
    topics.ends[PLACE] = 19
    said = await scene(topics).stops(CURSOR, reason=StopReason.CURSOR_BEYOND_END)
    assert "at offset 20, but requests ends at 19" in said
    assert now() == DEFAULT_TIMINGS.leader_settles.total_seconds()

    asyncio.get_running_loop().call_later(2.5, topics.ends.update, {PLACE: 20})
    assert await scene(topics).of(CURSOR) == start(20)


@virtual
async def test_a_cursor_beyond_the_end_of_another_topic_is_refused_at_once(scene: Any) -> None:
    topics = Topics()
    topics.ends[PLACE], topics.identity = 19, "id-2"
    await scene(topics).stops(CURSOR, reason=StopReason.REQUESTS_REPLACED)
    assert now() == 0


@virtual
async def test_a_topic_with_another_record_before_the_cursor_is_another_one(scene: Any) -> None:
    topics = Topics()
    topics.stamps[19] = STAMP + 1
    await scene(topics).stops(CURSOR, reason=StopReason.REQUESTS_REPLACED)
    topics.identity = None
    await scene(topics).stops(replace(CURSOR, topic_id=None), reason=StopReason.REQUESTS_REPLACED)


@pytest.mark.parametrize("begin", [0, 20], ids=["it is unreadable", "it was deleted"])
@virtual
async def test_without_the_record_before_the_cursor_the_topics_id_decides(scene: Any, begin: int) -> None:
    topics = Topics()
    topics.begins[PLACE] = begin
    if not begin:
        topics.stamps.clear()
    else:
        topics.stamps[19] = STAMP + 1  # is not asked for
    assert await scene(topics).of(CURSOR) == start(20)
    assert await scene(topics).of(replace(CURSOR, topic_id=None)) == start(20)
    topics.identity = "id-2"
    await scene(topics).stops(CURSOR, reason=StopReason.REQUESTS_REPLACED)
    topics.identity = None
    assert await scene(topics).of(CURSOR) == start(20, None)


@virtual
async def test_a_copy_of_the_topic_is_read_on_and_one_that_was_never_read_is_read_from_its_beginning(
    scene: Any, caplog: pytest.LogCaptureFixture
) -> None:
    topics = Topics()
    topics.identity = "id-2"
    with caplog.at_level(logging.WARNING):
        assert await scene(topics).of(CURSOR) == start(20, "id-2")
        assert "the same record at offset 19 of partition 3; treated as a copy" in caplog.text
        caplog.clear()
        assert await scene(topics).of(replace(CURSOR, offset=0, stamp=None)) == start(0, "id-2")
        assert caplog.text == ""


@pytest.mark.parametrize("opened", [False, True])
@virtual
async def test_a_right_that_is_missing_is_named_and_another_failure_of_kafkas_is_explained(
    scene: Any, opened: bool
) -> None:
    topics = Topics()
    looking = scene(topics)

    async def refuse(_: object) -> None:
        raise error

    topics.beginning_offsets = refuse  # type: ignore[assignment]
    error: KafkaError = GroupAuthorizationFailedError()
    with pytest.raises(JournalLost, match="Kafka denies Read on group ours"):
        await (looking.of(CURSOR) if opened else looking.look())
    assert looking.denied == [("Read on group ours", LASTS_AT_JOURNALS)]
    error = KafkaError("away")
    with pytest.raises(JournalLost, match="away"):
        await (looking.of(CURSOR) if opened else looking.look())
    assert len(looking.denied) == 1
