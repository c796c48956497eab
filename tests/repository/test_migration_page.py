"""The page that shows how to sync many replications at once, and how to retry those that failed."""

import pytest

from service.sandbox.kafka import KafkaError
from tests.conftest import missing
from tools import migration_page


@pytest.mark.e2e
def test_the_page_of_many_requests_shows_what_the_commands_answer() -> None:
    try:
        page = migration_page.page()
    except KafkaError as error:
        missing(str(error))

    assert migration_page.PAGE.read_text(encoding="utf-8") == page, "run: python -m tools.migration_page"
