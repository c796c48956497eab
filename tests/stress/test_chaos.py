"""A short run of chaos on one broker; `make chaos` is the long one. `test_chaos_on_a_cluster.py` has three brokers."""

import pytest

from service.sandbox.kafka import KafkaError
from tests.conftest import missing
from tests.stress.chaos import run
from tests.stress.chaos_runner import INTERRUPTED
from tests.stress.schedule import draw

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.timeout(900)]  # as long as a whole run may take

SEED = 1
REQUESTS = 300


async def test_each_request_gets_one_outcome_and_at_most_one_task_whatever_dies() -> None:
    try:
        report = await run(draw(SEED, requests=REQUESTS))
    except KafkaError as error:
        missing(str(error))

    assert report.verdict.violations == []
    assert report.verdict.figures["asked"] >= REQUESTS
    assert report.faults > 0
    assert report.happened[INTERRUPTED] > 0
