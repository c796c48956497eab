"""The page that lists what the command line answers when something is wrong."""

import pytest

from service.sandbox.kafka import KafkaError
from tests.conftest import missing
from tools import cli_errors


@pytest.mark.kafka
def test_the_page_of_the_command_lines_errors_is_what_the_commands_answer() -> None:
    try:
        page = cli_errors.page()
    except KafkaError as error:
        missing(str(error))

    assert cli_errors.PAGE.read_text(encoding="utf-8") == page, "run: python -m tools.cli_errors"
