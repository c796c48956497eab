"""The requests topic, compared with the cursors: what is noticed while nothing shows it, and what is no fault."""

import asyncio
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from service.intake.topic_comparison import TopicComparison
from service.kafka.journal_api import JournalLost
from service.kafka.leader_offsets import Offsets


class Supervisor(SimpleNamespace):
    """A partition's supervisor, which notes why it closed the partition, and what was asked of it."""

    def __init__(self, number: int, *, cursor: int = 20, topic_id: str | None = "id-1") -> None:
        self.place = TopicPartition("requests", number)
        self.topic_id = topic_id
        self.reading: int | None = 1
        self.distrusted: list[str] = []
        self.disowned: list[int | None] = []
        """What `reading` was when the cursor was disowned."""
        self.lost = False
        self.partition: Any = self.opened(cursor)

    def opened(self, cursor: int) -> SimpleNamespace:
        return SimpleNamespace(cursor=cursor, disown_cursor=self._disown)

    async def _disown(self) -> None:
        self.disowned.append(self.reading)
        if self.lost:
            raise JournalLost

    def distrust(self, why: str) -> None:
        self.distrusted.append(why)


class Topic:
    """A consumer of a topic that has an id, and begins and ends somewhere; None: nobody says where."""

    def __init__(self) -> None:
        self.identity: str | None = "id-1"
        self.begin: int | None = 0
        self.end: int | None = 100
        self.asked = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def topic_id(self, topic: str) -> str | None:
        assert topic == "requests"
        self.asked += 1
        self.meanwhile()
        return self.identity

    async def first_offsets(self, places: Iterable[TopicPartition]) -> Offsets:
        return self._offsets(places, self.begin)

    async def end_of_committed(self, places: Iterable[TopicPartition]) -> Offsets:
        return self._offsets(places, self.end)

    @staticmethod
    def _offsets(places: Iterable[TopicPartition], offset: int | None) -> Offsets:
        return Offsets({} if offset is None else dict.fromkeys(places, offset), {})


def comparison(topic: Topic, *supervisors: Supervisor, reached: int = 0) -> TopicComparison:
    """Compare with cursors; `reached` is how far has been read, where that is further."""
    return TopicComparison(
        "requests",
        subscriber=SimpleNamespace(consumer=topic),  # type: ignore[arg-type]
        supervisors=lambda: supervisors,  # type: ignore[arg-type,return-value]
        reached=lambda _, cursor: max(reached, cursor),
    )


async def test_a_topic_that_fits_is_left_alone_and_nobody_is_asked_where_nothing_is_read() -> None:
    topic, fits = Topic(), Supervisor(0)
    for topic.end in (20, 100, None):
        for topic.begin in (0, 20, None):
            await comparison(topic, fits).compare()
    assert (fits.distrusted, topic.asked) == ([], 9)

    closed, waits = Supervisor(1), Supervisor(2)
    closed.partition, waits.reading = None, None
    topic.identity = "id-2"
    await comparison(topic, closed, waits).compare()
    assert (topic.asked, closed.distrusted, waits.distrusted) == (9, [], [])


@pytest.mark.parametrize("lost", [False, True])
async def test_partitions_of_a_topic_that_was_replaced_stop_reading_and_disown_their_cursors(lost: bool) -> None:
    topic, one, two = Topic(), Supervisor(0), Supervisor(1)
    one.lost, topic.identity, topic.begin = lost, "id-2", 90
    await comparison(topic, one, two).compare()
    for supervisor in (one, two):
        assert supervisor.reading is None
        assert supervisor.disowned == [None]
        assert supervisor.distrusted == ["the requests topic was deleted and created again"]


async def test_no_partition_of_a_replaced_topic_reads_on_while_the_cursor_of_another_is_disowned() -> None:
    topic, one, two = Topic(), Supervisor(0), Supervisor(1)
    topic.identity = "id-2"
    read_on: list[int | None] = []

    async def disown() -> None:
        read_on.append(two.reading)
        await asyncio.sleep(0)

    one.partition.disown_cursor = disown
    await comparison(topic, one, two).compare()
    assert read_on == [None]


@pytest.mark.parametrize(("known", "now"), [(None, "id-2"), ("id-1", None), (None, None)])
async def test_a_topic_whose_id_is_or_was_unknown_is_not_taken_for_another(known: str | None, now: str | None) -> None:
    topic, supervisor = Topic(), Supervisor(0, topic_id=known)
    topic.identity = now
    await comparison(topic, supervisor).compare()
    assert (supervisor.distrusted, supervisor.reading) == ([], 1)


async def test_unread_records_that_were_deleted_are_noticed_but_not_those_that_were_read() -> None:
    topic, supervisor = Topic(), Supervisor(0)
    topic.begin = 21
    await comparison(topic, supervisor, reached=21).compare()
    assert supervisor.distrusted == []
    await comparison(topic, supervisor).compare()
    assert supervisor.distrusted == ["offset 20 was deleted: the requests topic begins at 21"]


async def test_a_cursor_beyond_the_end_is_a_fault_at_the_second_comparison_in_a_row() -> None:
    topic, supervisor = Topic(), Supervisor(0)
    compared = comparison(topic, supervisor)
    for topic.end in (19, 20, 19):  # a new leader may show less for a moment
        await compared.compare()
    assert supervisor.distrusted == []
    await compared.compare()
    assert supervisor.distrusted == ["offset 20 is beyond the end: the requests topic ends at 19"]


async def test_what_was_found_before_stands_while_the_leader_says_nothing() -> None:
    topic, supervisor = Topic(), Supervisor(0)
    compared = comparison(topic, supervisor)
    for topic.end in (19, None, None, 19):
        assert supervisor.distrusted == []
        await compared.compare()
    assert len(supervisor.distrusted) == 1


async def test_silence_alone_is_not_found_to_be_beyond_the_end() -> None:
    topic, supervisor = Topic(), Supervisor(0)
    compared = comparison(topic, supervisor)
    for topic.end in (None, 19):
        await compared.compare()
    assert supervisor.distrusted == []


async def test_a_partition_that_was_opened_again_since_has_two_comparisons_again() -> None:
    topic, supervisor = Topic(), Supervisor(0)
    compared = comparison(topic, supervisor)
    topic.end = 19
    await compared.compare()
    supervisor.partition = supervisor.opened(20)
    await compared.compare()
    assert supervisor.distrusted == []
    await compared.compare()
    assert len(supervisor.distrusted) == 1


async def test_an_end_that_was_asked_for_before_more_was_read_is_compared_with_the_cursor_of_that_moment() -> None:
    topic, supervisor = Topic(), Supervisor(0)
    topic.end = 20
    topic.meanwhile = lambda: setattr(supervisor.partition, "cursor", 30)
    compared = comparison(topic, supervisor)
    for _ in range(2):
        supervisor.partition.cursor = 20
        await compared.compare()
    assert supervisor.distrusted == []


@pytest.mark.parametrize("change", ["partition", "reading"])
async def test_a_partition_that_is_opened_or_read_from_elsewhere_meanwhile_is_not_judged(change: str) -> None:
    topic, supervisor = Topic(), Supervisor(0)
    topic.identity = "id-2"
    topic.meanwhile = lambda: setattr(supervisor, change, supervisor.opened(20) if change == "partition" else 2)
    await comparison(topic, supervisor).compare()
    assert (supervisor.distrusted, supervisor.disowned) == ([], [])
