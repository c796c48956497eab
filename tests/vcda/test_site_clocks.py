"""The clock that stamps the tasks of a site: what is known of it, and which look-ups may rely on."""

from datetime import UTC, datetime, timedelta

import pytest

from service.vcda.site_clocks import SiteClock, SiteClocks

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NONE = timedelta()
HALF = timedelta(seconds=0.5)
"""How far off one reading is at most: a moment may have whole seconds."""


def learnt(*readings: timedelta, site: str | None) -> SiteClocks:
    """Make POSTs, one a second, to a site whose clock is fast by so much at each."""
    clocks = SiteClocks()
    for second, ahead in enumerate(readings, 1 - len(readings)):
        clocks.heard(site, NOW + timedelta(seconds=second) + ahead, sent=100.0 + second, received=100.0 + second)
    return clocks


def known(clocks: SiteClocks, site: str | None, *, dated: timedelta | None = NONE) -> SiteClock | None:
    return clocks.of(site, dated=dated, now=NOW, monotonic=100.0)


def test_before_the_first_answer_nothing_is_known() -> None:
    assert known(SiteClocks(), None, dated=None) is None
    assert known(SiteClocks(), "west", dated=None) is None


def test_the_date_is_the_local_sites_and_says_nothing_certain_of_a_remote_one() -> None:
    ahead = timedelta(minutes=5)
    assert known(SiteClocks(), None, dated=ahead) == SiteClock(ahead, ahead, certain=True)
    assert known(SiteClocks(), "west", dated=ahead) == SiteClock(ahead, ahead, certain=False)


@pytest.mark.parametrize("ahead", [timedelta(hours=-7), timedelta(hours=7)])
def test_a_task_shows_the_clock_of_its_own_site_alone(ahead: timedelta) -> None:
    clocks = learnt(ahead, site="west")
    assert known(clocks, "west") == SiteClock(ahead + HALF, max(ahead + HALF, NONE), certain=True)
    assert known(clocks, "east") == SiteClock(NONE, NONE, certain=False)
    assert known(clocks, None) == SiteClock(NONE, NONE, certain=True)


def test_a_start_with_milliseconds_is_exact_to_the_millisecond() -> None:
    ahead = timedelta(minutes=3, milliseconds=1)
    found = known(learnt(ahead, site="west"), "west")
    assert found is not None
    assert found.offset == pytest.approx(ahead, abs=timedelta(milliseconds=1))


@pytest.mark.parametrize("ahead", [timedelta(hours=-7), timedelta(hours=7)])
def test_of_the_local_sites_two_clocks_look_ups_reach_from_the_slower_to_the_faster(ahead: timedelta) -> None:
    """A proxy in front writes a `Date` of its own; or the appliance's clock was set since the last POST."""
    found = known(learnt(ahead, site=None), None)
    assert found == SiteClock(min(ahead + HALF, NONE), max(ahead + HALF, NONE), certain=True)


def test_a_clock_that_was_set_back_is_followed_at_once_and_one_that_was_set_forward_with_the_second_task() -> None:
    back, forward = timedelta(hours=-1), timedelta(hours=1)
    for readings, offset in [
        ((NONE, back), back),
        ((NONE, forward), NONE),
        ((NONE, forward, forward), forward),
    ]:
        found = known(learnt(*readings, site="west"), "west")
        assert found is not None
        assert found.offset == pytest.approx(offset, abs=timedelta(seconds=1)), readings


@pytest.mark.parametrize("year", [1, 1969, 9999])
def test_a_start_that_cannot_be_counted_with_is_no_reading(year: int) -> None:
    clocks = SiteClocks()
    clocks.heard("west", NOW.replace(year=year), sent=100.0, received=100.0)
    assert known(clocks, "west") == SiteClock(NONE, NONE, certain=False)
