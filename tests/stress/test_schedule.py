"""What a seed draws: the same each time, what was asked for, and never more than a cluster can bear."""

from collections import Counter
from functools import cache
from itertools import pairwise

import pytest

from tests.stress.broker_faults import KAFKAS_OWN, SETTINGS, service_grants
from tests.stress.schedule import (
    APART,
    BROKERS_AWAY,
    FILE_LINES,
    HARSH,
    PAUSED_FIRST,
    REFUSALS,
    TO_BROKERS,
    WITHOUT_KAFKA,
    Cancelling,
    Schedule,
    Sending,
    What,
    draw,
)
from tests.support.grants import Resource

SEEDS = range(40)


@cache
def _drawn(brokers: int) -> list[Schedule]:
    return [draw(seed, requests=3000, brokers=brokers) for seed in SEEDS]


@pytest.mark.parametrize("brokers", [1, 3])
def test_a_seed_always_draws_the_same(brokers: int) -> None:
    assert draw(7, requests=600, brokers=brokers) == draw(7, requests=600, brokers=brokers)


def test_nothing_is_done_to_single_brokers_where_there_is_one() -> None:
    drawn = {one.what for schedule in _drawn(1) for one in schedule.happenings}

    assert not drawn & TO_BROKERS
    assert drawn >= WITHOUT_KAFKA


def test_on_three_brokers_each_kind_is_drawn_and_all_are_never_killed_at_once() -> None:
    drawn = {one.what for schedule in _drawn(3) for one in schedule.happenings}

    assert drawn >= TO_BROKERS
    assert drawn == set(What) - {What.KAFKA_DIES}


def test_a_broker_that_was_killed_has_time_to_come_back_before_the_next_is_away() -> None:
    for schedule in _drawn(3):
        away = [one.at for one in schedule.happenings if one.what in BROKERS_AWAY - {What.KAFKA_LONG_AWAY}]

        assert all(later - earlier > APART - 0.001 for earlier, later in pairwise(away))


def test_only_what_is_asked_for_is_drawn_and_nothing_where_there_is_no_such_thing() -> None:
    some = [What.BROKER_DIES, What.RIGHT_TAKEN]

    drawn = {one.what for one in draw(3, requests=3000, brokers=3, only=some).happenings}

    assert drawn == set(some)
    assert draw(3, requests=3000, only=some).happenings == ()
    assert draw(3, requests=3000, only=[What.KAFKA_LONG_AWAY], short=True).happenings == ()


def test_a_gentle_run_has_nothing_that_may_lose_a_count() -> None:
    gentle = [schedule for schedule in _drawn(1) if schedule.gentle]

    assert gentle
    assert not [one for schedule in gentle for one in schedule.happenings if one.what in HARSH]


def test_the_service_is_granted_what_the_overlay_grants_and_to_create_topics() -> None:
    grants = service_grants("chaos-1")

    assert all(grant.name.startswith("chaos-1") for grant in grants)
    names = {grant.name for grant in grants if grant.resource is Resource.transactionalId}
    assert names == {"chaos-1.journal-", "chaos-1.journal.second-"}


def test_settings_are_changed_on_topics_of_the_service() -> None:
    assert {name for name, _ in SETTINGS} <= {"requests", "completed", "failed", "journal"}
    assert all(name.startswith("__") for name in KAFKAS_OWN)


@pytest.mark.parametrize("brokers", [1, 3])
def test_each_run_has_repeated_posts_that_vcda_refuses_beside_a_task_that_it_does_not_list(brokers: int) -> None:
    refused_with = set()
    for schedule in _drawn(brokers):
        asked = [
            one for one in schedule.sendings if isinstance(one, Sending) and one.replication_id in schedule.unlisted
        ]
        assert len(asked) == len(schedule.unlisted) == 2
        assert all(one.at < schedule.length / 2 for one in asked)
        refused_with |= set(schedule.unlisted.values())

    assert refused_with == set(REFUSALS)


@pytest.mark.parametrize("brokers", [1, 3])
def test_each_run_has_a_file_of_requests_whose_command_is_killed_and_interrupted(brokers: int) -> None:
    for schedule in _drawn(brokers):
        for file in schedule.files:
            assert len({replication for replication, _ in file.lines}) == len(file.lines) == FILE_LINES[1]
            assert {one.kill for one in file.interruptions} == {True, False}
            assert [one.share for one in file.interruptions] == sorted(one.share for one in file.interruptions)
            assert file.cancelled < {replication for replication, _ in file.lines}


def test_on_three_brokers_sites_are_paused_while_brokers_are_away_and_among_cancels_and_releases() -> None:
    together = 0
    for schedule in _drawn(3):
        away = [one.at for one in schedule.happenings if one.what in BROKERS_AWAY & TO_BROKERS]
        paused = [one.at for one in schedule.happenings if one.what is What.SITE_PAUSED]
        together += any(0.0 <= later - at <= PAUSED_FIRST for at in paused for later in away)
        releases = Counter(one.release for one in schedule.sendings if isinstance(one, Cancelling))
        ends_unseen = [one for one in schedule.happenings if one.what is What.PAUSE_ENDS_UNSEEN]

        assert releases[True] > 10
        assert releases[False] > 10
        assert len(ends_unseen) == 1

    assert together > 0.9 * len(_drawn(3))
