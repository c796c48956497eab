"""Short runs of chaos; `make chaos` is the long one."""

import pytest

from service.sandbox.kafka import KafkaError
from tests.conftest import missing
from tests.stress.chaos import run
from tests.stress.chaos_runner import INTERRUPTED, Report
from tests.stress.schedule import Schedule, What, draw
from tests.support.cluster import BROKERS

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.timeout(900)]  # as long as a whole run may take

SEED = 1
REQUESTS = 300

ON_A_CLUSTER = 200
SOME = (What.BROKER_DIES, What.BROKER_RESTARTS, What.RIGHT_TAKEN, What.SITE_PAUSED, What.KILL)


async def test_each_request_gets_one_outcome_and_at_most_one_task_whatever_dies() -> None:
    report = await _run(draw(SEED, requests=REQUESTS))

    assert report.verdict.violations == []
    assert report.verdict.figures["asked"] >= REQUESTS
    assert report.faults > 0
    assert report.happened[INTERRUPTED] > 0


async def test_so_it_is_on_three_brokers_that_restart_and_die_and_outcomes_are_not_away_for_long() -> None:
    schedule = draw(
        SEED, requests=ON_A_CLUSTER, brokers=BROKERS, only=SOME, odd=(), measured=[What.BROKER_RESTARTS], short=True
    )

    report = await _run(schedule)

    assert report.verdict.violations == []
    assert report.verdict.figures["asked"] >= ON_A_CLUSTER
    assert set(report.happened) >= {What.BROKER_DIES, What.RIGHT_TAKEN, What.SITE_PAUSED, What.KILL}
    assert report.happened[INTERRUPTED] > 0
    assert len(report.verdict.silences) == 1


async def _run(schedule: Schedule) -> Report:
    try:
        return await run(schedule)
    except KafkaError as error:
        missing(str(error))
