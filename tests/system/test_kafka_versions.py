"""The oldest supported version of Kafka; all other tests run on the default one, and `make chaos` on each."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.sandbox.kafka import EmbeddedKafka, KafkaError
from tests.conftest import missing
from tests.stress.versions import OLDEST, VERSIONS, with_a_kill

PAGE = Path(__file__).parents[2] / "docs" / "kafka-versions.md"


@pytest.fixture(scope="module")
def oldest_kafka() -> Iterator[EmbeddedKafka]:
    kafka = EmbeddedKafka(version=OLDEST)
    try:
        kafka.start()
    except KafkaError as error:
        missing(str(error))
    else:
        yield kafka
    finally:
        kafka.close()


@pytest.mark.kafka
@pytest.mark.e2e
async def test_the_oldest_kafka_loses_and_repeats_nothing_when_a_process_is_killed(oldest_kafka: EmbeddedKafka) -> None:
    assert await with_a_kill(oldest_kafka, prefix="killed") == []


def test_the_page_lists_the_versions_that_are_tested() -> None:
    rows = re.findall(r"^\| Apache Kafka (\d+\.\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert rows == [version.rpartition(".")[0] for version in VERSIONS]
