"""A short run of chaos on three brokers, in a file of its own, so that another worker runs that on one broker."""

import pytest

from service.sandbox.kafka import KafkaError
from tests.conftest import missing
from tests.stress.chaos import run
from tests.stress.chaos_runner import INTERRUPTED
from tests.stress.schedule import What, draw
from tests.support.cluster import BROKERS

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.timeout(900)]  # as long as a whole run may take

SEED = 1
REQUESTS = 200
SOME = (What.BROKER_DIES, What.BROKER_RESTARTS, What.RIGHT_TAKEN, What.SITE_PAUSED, What.KILL)


async def test_each_request_gets_one_outcome_while_brokers_restart_and_die_and_outcomes_are_not_away_for_long() -> None:
    schedule = draw(
        SEED, requests=REQUESTS, brokers=BROKERS, only=SOME, odd=(), measured=[What.BROKER_RESTARTS], short=True
    )
    try:
        report = await run(schedule)
    except KafkaError as error:
        missing(str(error))

    assert report.verdict.violations == []
    assert report.verdict.figures["asked"] >= REQUESTS
    assert set(report.happened) >= {What.BROKER_DIES, What.RIGHT_TAKEN, What.SITE_PAUSED, What.KILL}
    assert report.happened[INTERRUPTED] > 0
    assert len(report.verdict.silences) == 1
