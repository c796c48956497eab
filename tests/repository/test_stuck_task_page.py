"""The page that shows an operator how to free a replication whose task is stuck."""

import pytest

from service.sandbox.kafka import KafkaError
from tests.conftest import missing
from tools import stuck_task


@pytest.mark.e2e
def test_the_page_of_a_stuck_task_shows_what_the_commands_answer() -> None:
    try:
        page = stuck_task.page()
    except KafkaError as error:
        missing(str(error))

    assert stuck_task.PAGE.read_text(encoding="utf-8") == page, "run: python -m tools.stuck_task"
