"""The table of requests: its form, its paging, and what it says of each request."""

from datetime import timedelta

from service.messages.wait_cause import WaitCause
from service.ops import syncs_table
from service.ops.syncs_page import Query
from service.ops.syncs_table import clock_time
from service.partition.waiting import WaitsFor
from tests.ops.test_html import Parsed
from tests.support.shown_overview import AT, some_syncs

ALL = Query(state=None, site=None, replication_id=None, limit=100, after="")


def test_the_table_of_requests_pages_with_its_filters_and_refreshes_nothing() -> None:
    query = Query(state="waiting", site="a & b", replication_id=None, limit=10, after="op:1")
    page = syncs_table.write([], "op:C4-1:ä?&", query, now=AT).decode()
    links = {given["href"] for name, given in Parsed(page).elements if name == "a"}

    assert "/syncs?state=waiting&site=a+%26+b&limit=10" in links
    assert "/syncs?state=waiting&site=a+%26+b&limit=10&after=op%3AC4-1%3A%C3%A4%3F%26" in links
    assert ("option", {"value": "waiting", "selected": None}) in Parsed(page).elements
    assert "No request in flight in this instance is so." in page
    assert "<script" not in page
    assert "http-equiv" not in page


def test_an_empty_table_says_that_nothing_is_in_flight() -> None:
    assert b"No request is in flight here." in syncs_table.write([], None, ALL, now=AT)


def test_a_request_is_shown_with_what_it_waits_for_and_with_its_last_error() -> None:
    waiting, running, held = [
        " ".join(" ".join(Parsed(syncs_table.row(sync, now=AT, clean=str)).texts).split()) for sync in some_syncs()
    ]

    assert waiting.startswith("site-b site-b site-b waiting 50m in 3h 1 the circuit breaker of site site-b")
    assert waiting.endswith("(until 22:14:45Z) last error: site-b: site-b is unreachable. (HTTP 503)")
    assert running == "site-b site-b local running 40 % 5m in 6h 1"
    assert "lingering" in held
    assert "passed 1" in held
    assert "its replication is held" in held


def test_a_moment_that_the_cause_names_itself_is_not_repeated() -> None:
    sync = some_syncs()[0]
    until = AT + timedelta(hours=2)
    sync.waits_for = WaitsFor(WaitCause.SITE_PAUSED, f"site b is paused until {until:%Y-%m-%d %H:%M:%SZ}: move", until)

    assert "(until" not in syncs_table.row(sync, now=AT, clean=str)


def test_a_time_of_another_day_has_its_date() -> None:
    assert clock_time(AT, now=AT) == "22:14:05Z"
    assert clock_time(AT + timedelta(days=1), now=AT) == "2026-03-02 22:14Z"
