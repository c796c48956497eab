"""Alerts fire for real, their pages' commands run while they do, and the queries under "Over" fall silent after it.

Here the short scenes of `tests/support/alert_scenes.py` are played, each command of the runbook once. `make alerts`
plays all of them and writes docs/alerts.md; so does this test with VM_SYNC_ALL_ALERTS=1, without writing.
"""

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.sandbox.kafka import KafkaError
from tests.conftest import missing
from tests.support.alert_scenes import SCENES, SHORT, Finding, faults, play, stage
from tests.support.expressions import alerts

pytestmark = [pytest.mark.kafka, pytest.mark.e2e, pytest.mark.timeout(900)]

PLAYED = tuple(SCENES) if os.environ.get("VM_SYNC_ALL_ALERTS") else SHORT
PROVOKED = [alert for scene in PLAYED for alert in SCENES[scene]]


@dataclass(frozen=True, slots=True)
class Played:
    """What was seen, and which scenes did not come to their end."""

    findings: Mapping[str, Finding]
    broken: Mapping[str, str]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    if (program := shutil.which("prometheus")) is None:
        missing("prometheus is not installed: apt-get install prometheus")
    return asyncio.run(_provoke(program, folder=tmp_path_factory.mktemp("alerts")))


async def _provoke(program: str, *, folder: Path) -> Played:
    try:
        async with stage(program, folder=folder, thrifty=True) as there:
            await play(there, *PLAYED)
            return Played(there.findings, there.broken)
    except KafkaError as error:
        missing(str(error))


def test_each_alert_has_its_scene() -> None:
    assert Counter(alert for provoked in SCENES.values() for alert in provoked) == Counter(list(alerts()))


@pytest.mark.parametrize("alert", PROVOKED)
def test_an_alert_fires_its_page_has_answers_and_knows_when_it_is_over(alert: str, played: Played) -> None:
    assert faults(played.findings[alert]) == []


def test_each_scene_comes_to_its_end(played: Played) -> None:
    assert played.broken == {}
