"""The page that shows an operator how to pause a site for its maintenance."""

import pytest

from service.sandbox.kafka import KafkaError
from tests.conftest import missing
from tools import site_maintenance


@pytest.mark.e2e
def test_the_page_of_a_sites_maintenance_shows_what_the_commands_answer() -> None:
    try:
        page = site_maintenance.page()
    except KafkaError as error:
        missing(str(error))

    assert site_maintenance.PAGE.read_text(encoding="utf-8") == page, "run: python -m tools.site_maintenance"
