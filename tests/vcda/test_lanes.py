"""Lanes in virtual time: who gets a turn, when, and what holds the others back."""

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from service.messages.site_pause import SitePause
from service.messages.wait_cause import WaitCause
from service.sync import NO_CREDENTIALS, Trouble
from service.vcda.lanes import (
    BREAKER_AFTER,
    CREDENTIALS_MISSED,
    FEW,
    GRANTED_AT_ONCE,
    PROBE_PATIENCE,
    Lane,
    LaneLimits,
    Lanes,
    Obstacle,
    SlotRequest,
)
from service.vcda.operator_pauses import LOOK_AT_CLOCK, OperatorPauses
from tests.support.virtual_time import EPOCH, Longest, VirtualClock, now, run_virtual, virtual

BAD = Trouble(label="5xx", detail="It said 500.")
NO_SESSION = Trouble(label="401", detail="The login answered with 401.", http_status=401, no_session=True)
OWN = Trouble(label="409", detail="That replication is busy.", own=True)


def asked_to_wait(seconds: float) -> Trouble:
    return Trouble(label="429", detail="It said 429.", retry_after=timedelta(seconds=seconds))


@dataclass
class Gauges:
    told: list[tuple[str | None, bool]] = field(default_factory=list)
    missing: list[str | None] = field(default_factory=list)

    def paused(self, site: str | None, value: bool) -> None:
        self.told.append((site, value))

    def without_credentials(self, site: str | None) -> None:
        self.missing.append(site)


def some_lanes(
    *,
    submits: int = 2,
    running: int = 0,
    gauges: Gauges | None = None,
    dice: Random | None = None,
    canonical_site: Callable[[str | None], str | None] = lambda site: site,
) -> Lanes:
    """Give lanes on the loop that runs."""
    return Lanes(
        limits=LaneLimits(max_concurrent_submits=submits, max_running=running),
        clock=VirtualClock(asyncio.get_running_loop()),
        metrics=gauges or Gauges(),
        random=dice or Longest(),
        canonical_site=canonical_site,
    )


class Book:
    """Who got a turn, and when."""

    def __init__(self) -> None:
        self.turns: list[tuple[str, float]] = []

    def turn(self, name: str, *, wanted: bool = True) -> Callable[[], bool]:
        def granted() -> bool:
            self.turns.append((name, now()))
            return wanted

        return granted

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.turns]


async def open_breaker(lane: Lane) -> None:
    """Let BREAKER_AFTER calls come to nothing, and wait until the pause is over."""
    for _ in range(BREAKER_AFTER):
        lane.record_result(BAD)
        await asyncio.sleep(lane.held_for())


# ---------------------------------------------------------------- turns


@virtual
async def test_a_free_slot_is_given_before_queue_returns() -> None:
    lane, book = some_lanes().lane(None), Book()
    lane.queue(book.turn("a"))
    assert (book.turns, lane.submitting, lane.occupied, lane.queued) == ([("a", 0.0)], 1, 1, 0)


@virtual
async def test_turns_come_in_the_order_they_were_asked_for_and_never_within_anothers_call() -> None:
    lane, book = some_lanes(submits=2).lane(None), Book()
    for name in "abcd":
        lane.queue(book.turn(name))
    lane.answered()
    lane.answered()
    assert book.names == ["a", "b"]
    await asyncio.sleep(0)
    assert book.names == ["a", "b", "c", "d"]


@virtual
async def test_those_who_were_first_already_come_before_the_others_and_in_their_own_order() -> None:
    lane, book = some_lanes(submits=1).lane(None), Book()
    lane.queue(book.turn("a"))
    lane.queue(book.turn("b"))
    lane.queue(book.turn("again 1"), first=True)
    lane.queue(book.turn("again 2"), first=True)
    for _ in range(3):
        lane.answered()
        await asyncio.sleep(0)
    assert book.names == ["a", "again 1", "again 2", "b"]


@virtual
async def test_a_turn_no_longer_wanted_costs_nobody_a_slot() -> None:
    lane, book = some_lanes(submits=1).lane(None), Book()
    lane.queue(book.turn("a"))
    lane.queue(book.turn("b", wanted=False))
    lane.queue(book.turn("c"))
    lane.answered()
    await asyncio.sleep(0)
    assert (book.names, lane.submitting, lane.occupied) == (["a", "b", "c"], 1, 2)


@virtual
async def test_no_more_syncs_run_than_allowed() -> None:
    lane, book = some_lanes(submits=5, running=2).lane(None), Book()
    for name in "abc":
        lane.queue(book.turn(name))
    lane.answered()
    lane.answered()
    await asyncio.sleep(1)
    assert book.names == ["a", "b"]
    lane.vacate()
    await asyncio.sleep(0)
    assert book.turns[-1] == ("c", 1.0)


@virtual
async def test_zero_means_that_any_number_may_run() -> None:
    lane, book = some_lanes(submits=1, running=0).lane(None), Book()
    for number in range(1000):
        lane.queue(book.turn(str(number)))
        lane.answered()
        await asyncio.sleep(0)
    assert lane.occupied == 1000


@virtual
async def test_restored_syncs_may_exceed_the_limit_and_no_turn_comes_until_they_are_below_it() -> None:
    lane, book = some_lanes(running=2).lane(None), Book()
    for _ in range(4):
        lane.occupy()
    lane.queue(book.turn("a"))
    seen = []
    for _ in range(3):
        lane.vacate()
        await asyncio.sleep(0)
        seen.append((lane.occupied, book.names))
    assert seen == [(3, []), (2, []), (2, ["a"])]


@virtual
async def test_a_turn_that_asks_for_another_turn_does_not_get_it_over_the_limit() -> None:
    lane, book = some_lanes(submits=1).lane(None), Book()

    def greedy() -> bool:
        lane.queue(book.turn("second"))
        return True

    lane.queue(greedy)
    await asyncio.sleep(1)
    assert (book.names, lane.submitting, lane.queued) == ([], 1, 1)


@virtual
async def test_one_turns_bug_is_not_its_neighbours_misfortune() -> None:
    lane, book = some_lanes(submits=1).lane(None), Book()
    bugs: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))

    def broken() -> bool:
        raise ZeroDivisionError

    lane.queue(book.turn("a"))
    lane.queue(broken)
    lane.queue(book.turn("b"))
    lane.answered()
    await asyncio.sleep(1)
    assert book.names == ["a", "b"]
    assert [type(bug["exception"]) for bug in bugs] == [ZeroDivisionError]


@virtual
async def test_counting_below_zero_is_a_bug() -> None:
    lane = some_lanes().lane(None)
    with pytest.raises(RuntimeError, match="answered"):
        lane.answered()
    with pytest.raises(RuntimeError, match="vacate"):
        lane.vacate()


@virtual
async def test_fifty_thousand_waiting_turns_are_given_out_one_by_one_in_order() -> None:
    lane = some_lanes(submits=1).lane(None)
    got: list[int] = []

    def turn(number: int) -> Callable[[], bool]:
        def granted() -> bool:
            got.append(number)
            return True

        return granted

    for number in range(50_000):
        lane.queue(turn(number))
    while lane.queued:
        lane.answered()
        await asyncio.sleep(0)
    assert got == list(range(50_000))


class Callers:
    """Whoever uses a lane, counting for itself what the lane should count."""

    def __init__(self, *, submits: int, running: int) -> None:
        self.lane = some_lanes(submits=submits, running=running, dice=Random(1)).lane("far")
        self.submits = submits
        self.running = running
        self.out = self.there = 0

    def take(self) -> bool:
        self.out += 1
        self.there += 1
        assert self.out <= self.submits
        assert self.running == 0 or self.there <= self.running
        return True

    async def step(self, name: str) -> None:
        match name:
            case "turn" | "first":
                self.lane.queue(self.take, first=name == "first")
            case "unwanted":
                self.lane.queue(lambda: False)
            case "answered" if self.out:
                self.out -= 1
                self.lane.answered()
            case "vacate" if self.there > self.out:
                self.there -= 1
                self.lane.vacate()
            case "bad" | "good" | "own":
                self.lane.record_result({"bad": BAD, "good": None, "own": OWN}[name])
            case _:
                await asyncio.sleep(0.3)
        assert (self.lane.submitting, self.lane.occupied) == (self.out, self.there)


STEPS = ["turn", "first", "unwanted", "answered", "vacate", "bad", "good", "own", "wait"]


@settings(max_examples=100, deadline=None)
@given(submits=st.integers(1, 4), running=st.integers(0, 5), steps=st.lists(st.sampled_from(STEPS)))
def test_never_are_more_turns_out_than_allowed_and_none_is_forgotten(
    submits: int, running: int, steps: list[str]
) -> None:
    async def scenario() -> None:
        callers = Callers(submits=submits, running=running)
        for step in steps:
            await callers.step(step)
        for _ in steps:  # all is answered, gone and well again: one round may let no more than one turn go
            await asyncio.sleep(61)
            for step in ("good", *["answered"] * callers.out, *["vacate"] * callers.there):
                await callers.step(step)
        assert callers.lane.queued == 0

    run_virtual(scenario())


# ---------------------------------------------------------------- pauses


@virtual
async def test_turns_resume_by_themselves_the_moment_a_pause_ends() -> None:
    lane, book = some_lanes().lane(None), Book()
    lane.record_result(asked_to_wait(7.25))
    lane.queue(book.turn("a"))
    lane.queue(book.turn("b"))
    assert (lane.held_for(), lane.paused) == (7.25, True)
    await asyncio.sleep(100)
    assert book.turns == [("a", 7.25), ("b", 7.25)]


@virtual
async def test_retry_after_holds_polls_to_the_moment_as_well() -> None:
    lane = some_lanes().lane(None)
    lane.record_result(asked_to_wait(90))
    await lane.wait_until_open()
    assert (now(), lane.try_acquire()) == (90.0, True)


@virtual
async def test_a_full_lane_holds_no_poll_back() -> None:
    lane, book = some_lanes(submits=1, running=1).lane(None), Book()
    for name in "abc":
        lane.queue(book.turn(name))
    await lane.wait_until_open()
    assert (now(), lane.try_acquire()) == (0.0, True)


@virtual
async def test_one_dead_site_delays_nobody_else() -> None:
    lanes, book = some_lanes(), Book()
    await open_breaker(lanes.lane("dead"))
    lanes.lane("dead").record_result(asked_to_wait(3600))
    began = now()
    lanes.lane("dead").queue(book.turn("dead"))
    lanes.lane("alive").queue(book.turn("alive"))
    await lanes.lane(None).wait_until_open()
    assert (book.names, now()) == (["alive"], began)


@virtual
async def test_good_news_from_before_the_pause_does_not_shorten_it() -> None:
    lane = some_lanes().lane(None)
    lane.record_result(asked_to_wait(10))
    await asyncio.sleep(4)
    lane.record_result(None)
    assert lane.held_for() == 6.0


@virtual
async def test_calls_that_fail_together_count_once() -> None:
    lane = some_lanes().lane(None)
    for _ in range(16):
        lane.record_result(BAD)
    await asyncio.sleep(1)
    assert not lane.paused


@virtual
async def test_retry_after_holds_for_the_local_site_by_whatever_name() -> None:
    lanes = some_lanes(canonical_site=lambda site: None if site == "site1" else site)
    unnamed, named, remote = lanes.lane(None), lanes.lane("site1"), lanes.lane("site2")
    named.record_result(asked_to_wait(10))
    assert (unnamed.held_for(), named.held_for(), remote.held_for()) == (10.0, 10.0, 0.0)
    remote.record_result(None)
    await asyncio.sleep(4)
    unnamed.record_result(asked_to_wait(2))
    assert (unnamed.held_for(), named.held_for()) == (6.0, 6.0)
    remote.record_result(asked_to_wait(3))
    assert (unnamed.held_for(), remote.held_for()) == (6.0, 3.0)


@virtual
async def test_a_later_retry_after_prolongs_a_pause_and_an_earlier_one_does_not_shorten_it() -> None:
    lane = some_lanes().lane(None)
    lane.record_result(asked_to_wait(10))
    lane.record_result(asked_to_wait(3))
    assert lane.held_for() == 10.0
    lane.record_result(asked_to_wait(30))
    assert lane.held_for() == 30.0


@virtual
async def test_pauses_double_up_to_a_minute_and_a_good_answer_forgets_them() -> None:
    lane = some_lanes().lane(None)
    pauses = []
    for _ in range(9):
        lane.record_result(BAD)
        pauses.append(lane.held_for())
        await asyncio.sleep(pauses[-1])
    lane.record_result(None)
    lane.record_result(BAD)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert lane.held_for() == 1.0


@virtual
async def test_jitter_is_full() -> None:
    class Middle(Longest):
        @override
        def random(self) -> float:
            return 0.5

    lane = some_lanes(dice=Middle()).lane(None)
    lane.record_result(BAD)
    assert lane.held_for() == 0.5


@virtual
async def test_a_requests_own_trouble_says_nothing_of_the_site() -> None:
    lane = some_lanes().lane(None)
    for _ in range(10):
        lane.record_result(OWN)
    assert not lane.paused


# ---------------------------------------------------------------- a session again


@virtual
async def test_a_session_that_is_there_again_ends_the_pause_at_once_and_the_next_call_is_the_probe() -> None:
    gauges, book = Gauges(), Book()
    lanes = some_lanes(submits=16, gauges=gauges)
    lane = lanes.lane("b")
    for _ in range(6):
        await asyncio.sleep(lane.held_for())
        lane.record_result(NO_SESSION)
    for name in "abc":
        lane.queue(book.turn(name))
    await asyncio.sleep(9)
    lanes.retry("b")
    await asyncio.sleep(5)
    assert (book.turns, lane.held_for(), gauges.told[-1]) == ([("a", 40.0)], 55.0, ("b", True))
    lane.record_result(None)
    await asyncio.sleep(0)
    assert book.turns == [("a", 40.0), ("b", 45.0), ("c", 45.0)]
    assert gauges.told[-1] == ("b", False)


@virtual
async def test_calls_that_wait_go_at_once_when_there_is_a_session_again() -> None:
    lanes = some_lanes()
    lane = lanes.lane(None)
    lane.record_result(NO_SESSION)
    asyncio.get_running_loop().call_later(0.25, lanes.retry, None)
    await lane.wait_until_open()
    assert (now(), lane.paused) == (0.25, False)


@virtual
async def test_a_new_session_ends_neither_a_pause_that_the_site_asked_for_nor_one_of_its_own_trouble() -> None:
    lanes = some_lanes(canonical_site=lambda site: None if site == "site1" else site)
    asked, namesake, sick, other = lanes.lane(None), lanes.lane("site1"), lanes.lane("sick"), lanes.lane("other")
    namesake.record_result(NO_SESSION)
    await asyncio.sleep(1)
    namesake.record_result(NO_SESSION)
    asked.record_result(replace(NO_SESSION, retry_after=timedelta(seconds=10)))
    sick.record_result(BAD)
    other.record_result(NO_SESSION)
    for site in (None, "sick"):
        lanes.retry(site)
    assert [lane.held_for() for lane in lanes] == [10.0, 10.0, 1.0, 1.0]


@virtual
async def test_a_retry_after_that_was_shorter_than_the_pause_still_counts_and_no_longer() -> None:
    lanes = some_lanes(canonical_site=lambda site: None if site == "site1" else site)
    lane, book = lanes.lane("site1"), Book()
    for _ in range(6):
        await asyncio.sleep(lane.held_for())
        lane.record_result(NO_SESSION)
    lanes.lane(None).record_result(asked_to_wait(4))
    lane.queue(book.turn("held"))
    lanes.retry(None)
    await asyncio.sleep(60)
    assert book.turns == [("held", 35.0)]


@virtual
async def test_a_new_session_ends_no_pause_of_an_operator_and_no_probe() -> None:
    lanes, book = some_lanes(), Book()
    ordered(lanes, "b", 3600.0)
    lane = lanes.lane("b")
    for _ in range(BREAKER_AFTER):
        lane.record_result(NO_SESSION)
        await asyncio.sleep(lane.held_for())
    assert lane.try_acquire()
    lane.queue(book.turn("held"))
    lanes.retry("b")
    await asyncio.sleep(30)
    assert (book.turns, lane.try_acquire()) == ([], False)


# ---------------------------------------------------------------- the breaker


@virtual
async def test_half_open_lets_exactly_one_turn_go_until_its_answer_is_good() -> None:
    lane, book = some_lanes(submits=16).lane(None), Book()
    await open_breaker(lane)
    for name in "abc":
        lane.queue(book.turn(name))
    await asyncio.sleep(5)
    assert book.names == ["a"]
    lane.record_result(None)
    await asyncio.sleep(0)
    assert book.turns == [("a", 7.0), ("b", 12.0), ("c", 12.0)]


@virtual
async def test_in_half_open_state_only_one_of_many_callers_gets_leave() -> None:
    lane = some_lanes().lane(None)
    await open_breaker(lane)
    assert [(lane.try_acquire(), lane.held_for()) for _ in range(3)] == [(True, 60.0), (False, 60.0), (False, 60.0)]


@virtual
async def test_giving_up_a_slot_from_before_the_breaker_opened_lets_no_second_probe_go() -> None:
    lane = some_lanes().lane(None)
    before = lane.pauses
    await open_breaker(lane)
    assert lane.try_acquire()
    probe = lane.pauses

    lane.not_made(since=before)
    assert not lane.try_acquire()

    lane.hold(now() + 10.0)  # a pause that begins meanwhile changes nothing
    lane.not_made(since=probe)
    await asyncio.sleep(10.0)
    assert lane.try_acquire()


@virtual
async def test_a_poll_is_the_probe_where_there_is_one() -> None:
    lane, book = some_lanes().lane(None), Book()
    for _ in range(BREAKER_AFTER):
        await asyncio.sleep(lane.held_for())
        lane.record_result(BAD)
    lane.queue(book.turn("a"))

    async def poll() -> float:
        await lane.wait_until_open()
        assert lane.try_acquire()
        await asyncio.sleep(2)
        assert book.names == []
        lane.record_result(None)
        return now()

    assert await poll() == 9.0
    await asyncio.sleep(0)
    assert book.turns == [("a", 9.0)]


@virtual
async def test_the_breaker_stays_open_while_probes_come_to_nothing() -> None:
    lane, book = some_lanes(submits=16).lane(None), Book()
    await open_breaker(lane)
    for name in "abc":
        lane.queue(book.turn(name))
    lane.record_result(BAD)
    await asyncio.sleep(7.5)
    assert book.names == ["a"]
    await asyncio.sleep(0.5)
    assert book.names == ["a", "b"]


@virtual
async def test_a_probe_that_nobody_reports_on_holds_the_others_back_for_a_minute_only() -> None:
    lane, book = some_lanes().lane(None), Book()
    await open_breaker(lane)
    assert lane.try_acquire()
    lane.queue(book.turn("a"))
    await asyncio.sleep(1000)
    assert book.turns == [("a", 7.0 + PROBE_PATIENCE.total_seconds())]


@virtual
async def test_a_probe_whose_trouble_was_its_own_lets_the_next_one_try() -> None:
    lane, book = some_lanes().lane(None), Book()
    await open_breaker(lane)
    lane.queue(book.turn("a"))
    lane.queue(book.turn("b"))
    lane.record_result(OWN, since=lane.pauses)
    await asyncio.sleep(0)
    assert book.names == ["a", "b"]
    assert lane.paused


@virtual
async def test_own_trouble_of_calls_from_before_the_breaker_opened_lets_no_second_probe_go() -> None:
    """Each would be one more POST in doubt at a site that hangs."""
    lane, book = some_lanes(submits=16).lane(None), Book()
    before = lane.pauses
    await open_breaker(lane)
    for name in "abc":
        lane.queue(book.turn(name))
    for _ in range(10):
        lane.record_result(OWN, since=before)
        await asyncio.sleep(0)

    assert book.names == ["a"]


@virtual
async def test_a_caller_who_gave_up_waiting_keeps_nobody_from_going() -> None:
    lane, book = some_lanes().lane(None), Book()
    lane.record_result(asked_to_wait(10))
    waiting = asyncio.create_task(lane.wait_until_open())
    await asyncio.sleep(1)
    waiting.cancel()
    lane.queue(book.turn("a"))
    await asyncio.sleep(20)
    assert book.turns == [("a", 10.0)]


# ---------------------------------------------------------------- what is told


@virtual
async def test_the_gauge_follows_pause_probe_and_recovery() -> None:
    gauges = Gauges()
    lane = some_lanes(gauges=gauges).lane("far")
    lane.record_result(BAD)
    await asyncio.sleep(1.5)
    assert gauges.told == [("far", True), ("far", False)]
    gauges.told.clear()
    for _ in range(BREAKER_AFTER):
        lane.record_result(BAD)
        await asyncio.sleep(100)
    assert gauges.told[-1] == ("far", True)
    lane.record_result(None)
    assert gauges.told[-1] == ("far", False)


@virtual
async def test_closed_lanes_give_no_turn_and_leave_no_timer() -> None:
    lanes, book = some_lanes(), Book()
    lane = lanes.lane(None)
    lane.record_result(asked_to_wait(10))
    lane.queue(book.turn("a"))
    assert list(lanes) == [lane]
    lanes.close()
    await asyncio.sleep(100)
    assert book.names == []
    assert not any(timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled())  # type: ignore[attr-defined]


# ---------------------------------------------------------------- what is forgotten


@virtual
async def test_a_turn_that_is_withdrawn_is_never_taken_and_nothing_of_who_asked_is_held() -> None:
    lane, book = some_lanes(submits=1).lane(None), Book()
    lane.record_result(asked_to_wait(10))

    def asked_for(name: str) -> tuple[SlotRequest, "weakref.ref[Callable[[], bool]]"]:
        take = book.turn(name)
        return lane.queue(take), weakref.ref(take)

    turns = [asked_for(name) for name in "abc"]
    lane.withdraw(turns[1][0])
    assert [held() is not None for _, held in turns] == [True, False, True]
    assert lane.queued == 2
    lane.withdraw(turns[1][0])
    assert lane.queued == 2, "once is enough"
    await asyncio.sleep(11)
    lane.answered()
    await asyncio.sleep(1)
    assert (book.names, lane.queued) == (["a", "c"], 0)


@pytest.mark.parametrize("first", [False, True])
@virtual
async def test_turns_asked_for_and_withdrawn_during_a_long_pause_do_not_gather(*, first: bool) -> None:
    lane, book = some_lanes().lane(None), Book()
    lane.record_result(asked_to_wait(10))
    lane.queue(book.turn("first"), first=True)
    lane.queue(book.turn("stays"))
    for _ in range(1_000):
        lane.withdraw(lane.queue(book.turn("gone"), first=first))
    assert lane.queued == 2
    assert len(lane._first) + len(lane._rest) < 6
    await asyncio.sleep(11)
    assert book.names == ["first", "stays"]


@virtual
async def test_lanes_of_sites_that_nobody_uses_are_forgotten_and_the_others_stay() -> None:
    lanes, book = some_lanes(submits=1), Book()
    paused, running, waiting = lanes.lane("paused"), lanes.lane("running"), lanes.lane("waiting")
    paused.hold(1e6)
    running.occupy()
    waiting.queue(book.turn("a"))
    waiting.queue(book.turn("b"))
    failing = lanes.lane("failing")
    failing.record_result(BAD)
    await asyncio.sleep(5)
    for n in range(10_000):
        lanes.lane(f"bogus{n}")
    assert len(list(lanes)) < 4 * FEW
    for lane in (paused, running, waiting, failing):
        assert lanes.lane(lane.site) is lane


# ---------------------------------------------------------------- what holds the slots back, in words


@virtual
async def test_a_lane_says_what_holds_its_slots_back() -> None:
    lane = some_lanes(submits=1, running=2).lane("site2")
    assert lane.obstacle() is None

    lane.occupy()
    lane.queue(Book().turn("a"))
    running = "site site2 has 2 running (VM_SYNC_SYNC__MAX_RUNNING is 2)"
    assert lane.obstacle() == Obstacle(WaitCause.LIMIT, None, running)
    lane.vacate()
    posting = "site site2 has 1 being submitted (VM_SYNC_SYNC__MAX_CONCURRENT_SUBMITS is 1)"
    assert lane.obstacle() == Obstacle(WaitCause.LIMIT, None, posting)

    lane.record_result(asked_to_wait(30))
    assert lane.obstacle() == Obstacle(WaitCause.SITE_PAUSED, 30.0, "calls to site site2 are paused: It said 429.")
    await asyncio.sleep(30)
    lane.record_result(None)
    lane.answered()
    assert lane.obstacle() is None


@virtual
async def test_an_open_circuit_breaker_says_since_when_and_why() -> None:
    lane = some_lanes().lane(None)
    await open_breaker(lane)
    said = "the circuit breaker of site local has been open since 2030-01-01 00:00:03Z: It said 500."
    assert lane.obstacle() == Obstacle(WaitCause.CIRCUIT_OPEN, None, said)
    lane.record_result(BAD)
    assert lane.obstacle() == Obstacle(WaitCause.CIRCUIT_OPEN, 8.0, said)
    await asyncio.sleep(8)
    lane.record_result(None)
    assert lane.obstacle() is None


@virtual
async def test_missing_credentials_are_counted_logged_once_and_hold_no_request_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gauges = Gauges()
    lane, book = some_lanes(running=1, gauges=gauges).lane("site9"), Book()
    lane.occupy()
    lane.queue(book.turn("a"))
    assert book.names == []

    for _ in range(BREAKER_AFTER + 1):
        lane.record_result(Trouble(label=NO_CREDENTIALS, detail="None are configured.", own=True))
    await asyncio.sleep(0)

    assert book.names == ["a"], "it would wait for ever for a sync that nobody polls"
    assert (lane.paused, lane.without_credentials, gauges.missing) == (False, True, ["site9"] * 4)
    assert caplog.text.count("no credentials for site site9") == 1
    assert "VM_SYNC_VCDA__SITES" in caplog.text
    lane.record_result(None)
    assert not lane.without_credentials


@virtual
async def test_what_waits_for_room_is_let_go_once_credentials_are_missing_also_after_a_pause() -> None:
    lane, book = some_lanes(running=1).lane("site9"), Book()
    lane.record_result(BAD)
    await asyncio.sleep(8)
    lane.occupy()
    lane.queue(book.turn("a"))
    await asyncio.sleep(1)
    assert (lane.paused, book.names) == (False, [])

    lane.record_result(Trouble(label=NO_CREDENTIALS, detail="None are configured.", own=True), since=lane.pauses)
    await asyncio.sleep(1)
    assert book.names == ["a"], "it would wait for ever for a sync that nobody polls"


@virtual
async def test_missing_credentials_are_no_longer_shown_a_while_after_the_last_call_unless_syncs_run_there() -> None:
    lane = some_lanes(running=1).lane("site9")
    await asyncio.sleep(2 * CREDENTIALS_MISSED.total_seconds())
    lane.record_result(Trouble(label=NO_CREDENTIALS, detail="None are configured.", own=True))
    shown = [lane.lacks_credentials]
    await asyncio.sleep(CREDENTIALS_MISSED.total_seconds() - 1)
    shown.append(lane.lacks_credentials)
    await asyncio.sleep(1)
    shown.append(lane.lacks_credentials)
    lane.occupy()
    shown.append(lane.lacks_credentials)
    lane.record_result(None)
    shown.append(lane.lacks_credentials)
    assert shown == [True, True, False, True, False]


# ---------------------------------------------------------------- operators' pauses


def ordered(lanes: Lanes, site: str, seconds: float) -> SitePause:
    """Pause a site for so long, and no other."""
    pause = SitePause(site=site, until=EPOCH + timedelta(seconds=now() + seconds), by="alice")
    lanes.operator_pauses.replace({site: pause})
    return pause


@virtual
async def test_once_they_are_closed_operators_pauses_leave_no_timer_behind() -> None:
    changes: list[float] = []
    pauses = OperatorPauses(
        clock=VirtualClock(asyncio.get_running_loop()),
        canonical_site=lambda site: site,
        changed=lambda: changes.append(now()),
    )
    pauses.replace({"b": SitePause(site="b", until=EPOCH + timedelta(seconds=10), by="alice")})
    pauses.close()
    await asyncio.sleep(100.0)
    assert changes == [0.0]


@virtual
async def test_an_operators_pause_holds_slots_back_until_its_end_and_no_calls() -> None:
    lanes, book = some_lanes(), Book()
    lane = lanes.lane("b")
    pause = ordered(lanes, "b", 3600.0)
    lane.queue(book.turn("held"))
    lanes.lane("c").queue(book.turn("free"))
    await asyncio.sleep(10.0)

    assert book.names == ["free"]
    assert lane.try_acquire()
    assert not lane.paused
    assert lane.obstacle() == Obstacle(WaitCause.SITE_PAUSED, 3590.0, str(pause))
    await asyncio.sleep(3600.0)
    assert book.turns[1] == ("held", 3600.0)
    assert (lane.obstacle(), lanes.operator_pauses.current()) == (None, [])


@virtual
async def test_a_lifted_pause_lets_slots_go_at_once() -> None:
    lanes, book = some_lanes(), Book()
    ordered(lanes, "b", 3600.0)
    lanes.lane("b").queue(book.turn("held"))
    await asyncio.sleep(10.0)
    lanes.operator_pauses.replace({})
    await asyncio.sleep(0)

    assert book.turns == [("held", 10.0)]


@virtual
async def test_a_clock_that_is_set_ends_a_pause_within_half_a_minute() -> None:
    lanes, book = some_lanes(), Book()
    clock = lanes._clock
    ordered(lanes, "b", 3600.0)
    lanes.lane("b").queue(book.turn("held"))
    await asyncio.sleep(10.0)
    clock._skew = timedelta(hours=1)
    await asyncio.sleep(LOOK_AT_CLOCK.total_seconds())

    assert book.names == ["held"]


@virtual
async def test_an_error_while_a_pause_is_logged_keeps_nobody_from_seeing_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lanes, book, said = some_lanes(), Book(), [0]

    def fail_once(*_: object, **__: object) -> None:
        said[0] += 1
        if said[0] == 1:
            raise ZeroDivisionError

    monkeypatch.setattr("service.vcda.operator_pauses.log.warning", fail_once)
    with pytest.raises(ZeroDivisionError):
        ordered(lanes, "b", 60.0)
    lanes.lane("b").queue(book.turn("held"))
    await asyncio.sleep(61.0)
    assert book.turns == [("held", 60.0)]


@virtual
async def test_both_names_of_the_local_site_are_paused_together() -> None:
    for name in ("local", "site1"):
        lanes, book = some_lanes(canonical_site=lambda site: None if site == "site1" else site), Book()
        ordered(lanes, name, 60.0)
        lanes.lane(None).queue(book.turn("unnamed"))
        lanes.lane("site1").queue(book.turn("named"))
        lanes.lane("b").queue(book.turn("another"))
        await asyncio.sleep(30.0)

        assert book.names == ["another"]
        lanes.close()


@virtual
async def test_the_open_breaker_is_told_in_a_pause_as_well() -> None:
    lanes = some_lanes()
    lane = lanes.lane("b")
    await open_breaker(lane)
    pause = ordered(lanes, "b", 3600.0)

    obstacle, breaker = lane.obstacle(), lane.open_breaker()
    assert obstacle is not None
    assert breaker is not None
    assert (obstacle.detail, breaker.cause) == (str(pause), WaitCause.CIRCUIT_OPEN)
    lanes.close()


@virtual
async def test_the_log_has_the_beginning_and_the_end_of_a_pause_once(caplog: pytest.LogCaptureFixture) -> None:
    lanes = some_lanes()
    pause = ordered(lanes, "b", 3600.0)
    lanes.operator_pauses.replace({"b": pause})  # read once more
    await asyncio.sleep(4000.0)
    lanes.operator_pauses.replace({"b": pause})
    ordered(lanes, "c", 60.0)
    lanes.operator_pauses.replace({})

    other = "site c is paused by alice until 2030-01-01 01:07:40Z"
    assert [record.getMessage() for record in caplog.records] == [
        f"Site pause in effect: {pause}; no POST is sent to the site, polls go on",
        "Site pause over: site b has reached its pause's end; POSTs are sent again",
        f"Site pause in effect: {other}; no POST is sent to the site, polls go on",
        "Site pause over: site c has no pause in the control topic any more; POSTs are sent again",
    ]
    lanes.close()


@virtual
async def test_tens_of_thousands_of_slots_that_are_declined_hold_the_event_loop_for_moments_only() -> None:
    lane, asked, in_turns = some_lanes().lane(None), [], [0]

    def decline(n: int) -> bool:
        if not in_turns[-1]:
            asyncio.get_running_loop().call_soon(in_turns.append, 0)  # in the next turn
        in_turns[-1] += 1
        asked.append((n, now()))
        return False

    lane.hold(10.0)
    many = 20 * GRANTED_AT_ONCE
    for n in range(many):
        lane.queue(partial(decline, n))
    await asyncio.sleep(11.0)
    assert asked == [(n, 10.0) for n in range(many)]
    assert max(in_turns) == GRANTED_AT_ONCE
