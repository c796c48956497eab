"""What the scenes of alerts ask Prometheus."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.alert_scenes import Finding, look_up
from tests.support.prometheus import Prometheus, hurried

FIRED = 1_000.5


@pytest.fixture
async def prometheus(tmp_path: Path) -> AsyncIterator[Prometheus]:
    """One that has recorded an alert at `FIRED`, and by now nothing any more."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked = request.url.params
        there = asked["query"].startswith("timestamp(ALERTS") or asked.get("time") == str(FIRED)
        result = [{"metric": {}, "value": [0, str(FIRED)]}] if there else []
        data = {"status": "success", "data": {"resultType": "vector", "result": result}}
        return httpx.Response(200, json=data)

    async with httpx.AsyncClient(base_url="http://localhost", transport=httpx.MockTransport(answer)) as client:
        yield Prometheus(client, tmp_path)


async def test_a_page_is_asked_of_the_moment_at_which_its_alert_fired(prometheus: Prometheus) -> None:
    moment = await prometheus.moment_of("ALERTS", seconds=30.0)
    assert moment == FIRED
    finding = Finding("VmSyncDeadLetters", "a test")
    await look_up(finding, prometheus, namespace="a", moment=moment)
    assert set(finding.asked.values()) == {1}
    assert finding.not_over == []


async def test_a_query_under_over_that_yields_nothing_while_its_alert_fires_is_found(prometheus: Prometheus) -> None:
    finding = Finding("VmSyncDeadLetters", "a test")
    await look_up(finding, prometheus, namespace="a", moment=FIRED - 1)
    assert finding.not_over == ['none of the queries under "Over when" yields anything while the alert fires']


def test_a_hurried_subquery_looks_as_often_within_its_window() -> None:
    query = "max_over_time((a == 0)[10m:30s]) unless namespace:a:ratio_rate5m offset 1h"
    assert (
        hurried(query, by=30)
        == "max_over_time((a == 0)[20000ms:1000ms]) unless namespace:a:ratio_rate5m offset 120000ms"
    )
