"""Syncs in flight: by identity, and for each replication in the order of acceptance."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from service import sync
from service.partition.in_flight import LONG, InFlight, TrackedSync

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def tracked(
    operation_id: str, replication_id: str = "C4-1", *, site: str | None = None, lasts: int = 60
) -> TrackedSync:
    request = sync.Request(
        identity=f"op:{replication_id}:{operation_id}",
        operation_id=operation_id,
        replication_id=replication_id,
        site=site,
        offset=0,
        requested_at=NOW,
        accepted_at=NOW,
        deadline=NOW + timedelta(seconds=lasts),
    )
    return TrackedSync(sync.Waiting(request=request))


def some(*syncs: TrackedSync) -> InFlight:
    in_flight = InFlight()
    for one in syncs:
        in_flight.add(one)
    return in_flight


def test_the_first_of_a_replication_is_the_eldest_until_it_is_removed() -> None:
    first, second, other = tracked("a1"), tracked("a2"), tracked("b1", "C4-2")
    in_flight = some(first, second, other)
    assert (list(in_flight), len(in_flight)) == ([first, second, other], 3)
    assert (in_flight.eldest("C4-1"), in_flight.eldest("C4-2")) == (first, other)
    in_flight.remove(first, now=NOW)
    assert in_flight.eldest("C4-1") is second
    in_flight.remove(second, now=NOW)
    assert (in_flight.eldest("C4-1"), in_flight.replications()) == (None, ("c4-2",))


def test_the_letter_case_of_a_replication_makes_no_difference() -> None:
    first, second = tracked("a1", "C4-x"), tracked("a2", "c4-X")
    in_flight = some(first, second)
    assert in_flight.of("C4-X", most=10) == (first, second)
    assert in_flight.of("C4-X", most=1) == (first,)


def test_an_identity_that_came_again_is_not_the_one_that_left() -> None:
    first, again = tracked("a1"), tracked("a1")
    in_flight = some(first)
    in_flight.remove(first, now=NOW)
    in_flight.add(again)
    assert first.request.identity in in_flight
    assert (in_flight.holds(first), in_flight.holds(again)) == (False, True)


def test_a_request_that_expired_behind_another_keeps_its_operation_for_the_outcome() -> None:
    first, expired, alive = tracked("a1"), tracked("a2", lasts=0), tracked("a3")
    in_flight = some(first, expired, alive)
    in_flight.remove(first, now=NOW)
    assert expired.behind == "a1"
    in_flight.remove(expired, now=NOW)
    assert alive.behind is None


@pytest.mark.parametrize("count", [2, LONG + 2])
def test_those_behind_an_older_one_are_counted_by_site(count: int) -> None:
    syncs = [tracked(f"a{n}", site="west") for n in range(count)]
    in_flight = some(*syncs, tracked("b1", "C4-2"))
    assert in_flight.behind == Counter({"west": count - 1})
    for one in syncs:
        in_flight.remove(one, now=NOW)
    assert (in_flight.behind, len(in_flight)) == (Counter(), 1)


def lingers(one: TrackedSync) -> TrackedSync:
    """Return the sync, which has had its outcome while VCDA still works on its task."""
    running = sync.Running(request=one.request, attempts=1, task_id="task-1", site=None, account=None, submitted_at=NOW)
    one.state = sync.Lingering(of=running, told_at=NOW)
    return one


def test_those_that_linger_are_not_among_those_without_an_outcome_until_their_identity_comes_again() -> None:
    restored, other, again = lingers(tracked("a1")), tracked("b1", "C4-2"), tracked("a1")
    in_flight = some(restored, other)
    assert (len(in_flight), in_flight.without_outcome) == (2, 1)
    in_flight.lingers(lingers(other))
    assert (len(in_flight), in_flight.without_outcome) == (2, 0)
    in_flight.remove(restored, now=NOW)
    assert (len(in_flight), in_flight.without_outcome) == (1, 0)
    in_flight.add(again)
    assert (len(in_flight), in_flight.without_outcome) == (2, 1)


def test_of_a_site_without_syncs_nothing_is_kept() -> None:
    first, second, other = tracked("a1", site="west"), tracked("b1", "C4-2", site="west"), tracked("c1", "C4-3")
    in_flight = some(first, second, other)
    assert in_flight.sites == {"west": 2, None: 1}
    in_flight.remove(first, now=NOW)
    assert in_flight.sites == {"west": 1, None: 1}
    for one in (second, other):
        in_flight.remove(one, now=NOW)
    assert dict(in_flight.sites) == {}


def test_a_sync_occupies_one_slot_of_its_site_and_gives_it_back_once() -> None:
    done: list[str] = []
    lane: Any = SimpleNamespace(occupy=lambda: done.append("occupied"), vacate=lambda: done.append("vacated"))
    one = tracked("a1")
    one.vacate(lane)
    for _ in range(2):
        one.occupy(lane)
    for _ in range(2):
        one.vacate(lane)
    assert done == ["occupied", "vacated"]
