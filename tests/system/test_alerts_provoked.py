"""Each alert has a scene that provokes it for real. `make alerts` plays the scenes: they take some minutes."""

from collections import Counter

from tests.support.alert_scenes import SCENES
from tests.support.expressions import alerts


def test_each_alert_has_its_scene() -> None:
    assert Counter(alert for provoked in SCENES.values() for alert in provoked) == Counter(list(alerts()))
