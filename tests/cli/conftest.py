"""Fixtures of the tests of commands at a real Kafka."""

import os

import pytest

from service.sandbox.kafka import Kafka
from tests.conftest import TopicNamer
from tests.support.cli_scene import Scene


@pytest.fixture
def empty(kafka: Kafka, topic_name: TopicNamer, monkeypatch: pytest.MonkeyPatch) -> Scene:
    for name in os.environ:
        if name.startswith("VM_SYNC_") and not name.startswith("VM_SYNC_TEST_"):
            monkeypatch.delenv(name)
    return Scene(kafka.bootstrap, topic_name)


@pytest.fixture
def scene(empty: Scene) -> Scene:
    assert empty.run("topics", "create").exit_code == 0
    return empty
