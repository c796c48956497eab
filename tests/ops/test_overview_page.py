"""The page at `/`: what it says, and that nothing from outside is more than text on it."""

from dataclasses import replace
from datetime import timedelta

import pytest

from service.messages.wait_cause import WaitCause
from service.ops import overview_page, page_frame, syncs_table
from service.ops.overview import Overview, Partitions
from service.ops.overview_page import SHOWN
from service.ops.syncs_page import Query
from service.sync import ApiError
from tests.ops.test_html import Parsed
from tests.support.shown_overview import AT, some_overview, some_syncs

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></script><h1>x",
    "javascript:alert(1)",
    "<!--",
    "]]>",
    "&lt;b&gt;&amp;#60;",
    "\u202egnp.exe\u2066",
    "a\x00b\x1b[31m\r\n\t",
    "\ud800",
    "x" * 100_000,
    "{{7*7}}${7*7}%s{0}",
)
ALL = Query(state=None, site=None, replication_id=None, limit=100, after="")


def quiet(**changes: object) -> Overview:
    """A process that is well and has nothing to do."""
    idle = Overview(
        at=AT,
        instance=some_overview().instance,
        partitions=Partitions(total=12, joined=True, open=tuple(range(12))),
        session_age=timedelta(hours=1),
    )
    return replace(idle, **changes)  # type: ignore[arg-type]


def text_of(overview: Overview) -> str:
    return " ".join(" ".join(Parsed(overview_page.write(overview, clean=str).decode()).texts).split())


def syncs_page(text: str) -> bytes:
    rows = [syncs_table.row(sync, now=AT, clean=str) for sync in some_syncs(text)]
    query = Query(state="waiting", site=text, replication_id=text, limit=10, after=text)
    return syncs_table.write(rows, text, query, now=AT)


def shape(page: bytes) -> list[tuple[str, list[str]]]:
    """The elements, and which attributes each has."""
    return [(name, sorted(given)) for name, given in Parsed(page.decode()).elements]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_text_comes_from_outside_the_page_has_the_same_elements(text: str) -> None:
    for write in (lambda text: overview_page.write(some_overview(text), clean=str), syncs_page):
        assert shape(write(text)) == shape(write("site-b"))


@pytest.mark.parametrize("text", HOSTILE[:7], ids=range(7))
def test_a_hostile_text_is_shown_as_it_is(text: str) -> None:
    assert text in Parsed(overview_page.write(some_overview(text), clean=str).decode()).text
    assert text in Parsed(syncs_page(text).decode()).text


def test_links_lead_to_this_server_alone_whatever_comes_from_outside() -> None:
    pages = [overview_page.write(some_overview(text), clean=str) for text in HOSTILE] + list(map(syncs_page, HOSTILE))

    links = {given["href"] or "" for page in pages for name, given in Parsed(page.decode()).elements if name == "a"}

    assert {link.partition("?")[0] for link in links} == {path for path, _ in page_frame.LINKS}


def test_a_long_text_is_cut() -> None:
    usual = some_overview()
    failure, sync = usual.failures[0], some_syncs()[0]
    sync.error = ApiError("Odd", "e" * 100_000)
    long = replace(usual, degraded=("d" * 100_000,), failures=(replace(failure, error="f" * 100_000),), oldest=(sync,))
    page = overview_page.write(long, clean=str).decode()

    assert all(letter * 250 in page for letter in "def")
    assert len(page) < 20_000


def test_texts_from_outside_are_cleaned_of_secrets() -> None:
    def clean(text: str) -> str:
        return text.replace("hunter2", "[hidden]")

    pages = overview_page.write(some_overview("hunter2"), clean=clean)
    shown = " ".join(" ".join(Parsed(pages.decode()).texts).split())

    for sentence in (
        "[hidden] has made no progress",
        "the topic [hidden] does not exist",
        "the circuit breaker of site [hidden]",
        "4 opening : [hidden]",
        "9 stopped : held by [hidden]",
        "[hidden]: There is no such replication. (HTTP 404)",
        "last error: [hidden]: [hidden] is unreachable. (HTTP 503)",
    ):
        assert sentence in shown, sentence


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "Ready"),
        ({"degraded": ("no session at VCDA",)}, "Ready, degraded"),
        ({"not_ready": ("the service is draining",), "degraded": ("no session",)}, "Not ready"),
        ({"not_alive": ("polling has failed",), "not_ready": ("draining",)}, "Not alive"),
    ],
)
def test_the_title_says_the_state_and_the_reasons_stand_below(changes: dict[str, tuple[str, ...]], word: str) -> None:
    shown = text_of(quiet(**changes))

    assert shown.startswith(f"{word} · site-b · vm-sync")
    for reasons in changes.values():
        assert all(reason in shown for reason in reasons)


def test_a_quiet_instance_is_said_to_be_so() -> None:
    shown = text_of(quiet())

    assert "In flight 0" in shown
    assert "12 of 12 open Open here: 0-11" in shown
    assert "Last failures written by this instance, the latest first None since this instance started." in shown
    assert "Oldest requests" not in shown
    assert "wait for" not in shown


def test_before_the_group_is_joined_nothing_is_known_of_partitions() -> None:
    before, idle = Partitions(total=0), Partitions(total=3, joined=True)

    assert "Partitions 0 open The consumer group has not been joined yet." in text_of(quiet(partitions=before))
    assert "Partitions 0 of 3 open None is open here." in text_of(quiet(partitions=idle))


def test_what_is_in_flight_is_shown_by_state_and_by_what_it_waits_for() -> None:
    shown = text_of(some_overview())

    assert "In flight 1,477" in shown
    assert "1,220 waiting 3 submitting 3 in doubt 250 running 1 lingering" in shown
    assert "1,100 wait for their site, whose circuit breaker is open" in shown
    assert "100 wait for an earlier request of their replication" in shown
    assert "12,345 completed and 2 failed since this instance started." in shown


def test_every_cause_has_its_words() -> None:
    shown = text_of(quiet(waiting=dict.fromkeys(WaitCause, 7)))

    assert shown.count(" wait for ") == len(WaitCause)


def test_a_site_is_shown_with_what_holds_it_back_and_until_when() -> None:
    shown = text_of(some_overview())

    assert "site-b circuit breaker open until 22:14:45Z the circuit breaker of site site-b has been open" in shown
    assert "local go 20 3 200 1 20: a free place at their site" in shown
    assert "site-c no session" in shown
    assert "2 more are not shown." in shown


def test_partitions_that_are_not_open_say_why() -> None:
    shown = text_of(some_overview())

    assert "6 of 12 open Open here: 0-2, 5, 7-8 9 stopped : held by site-b 4 opening : site-b" in shown


def test_the_last_failures_and_the_oldest_requests_say_why() -> None:
    shown = text_of(some_overview())

    assert "site-b site-b site-b 3m rejected site-b: There is no such replication. (HTTP 404)" in shown
    assert "site-b site-b site-b 90m timed-out" in shown
    assert "waiting 50m in 3h 1 the circuit breaker of site site-b" in shown
    assert "(until 22:14:45Z) last error: site-b: site-b is unreachable. (HTTP 503)" in shown
    assert "running 40 % 5m in 6h 1" in shown
    assert "passed 1" in shown
    assert "its replication is held" in shown


def test_of_many_reasons_some_are_shown_and_the_rest_is_counted() -> None:
    shown = text_of(quiet(not_ready=tuple(f"reason {number}." for number in range(1_000))))

    assert "reason 19." in shown
    assert "reason 20." not in shown
    assert f"and {1_000 - SHOWN} more" in shown


def test_a_request_that_has_ended_meanwhile_is_not_among_the_oldest() -> None:
    first, second, _ = some_syncs()
    first.state = "ended"

    assert "circuit breaker" not in text_of(quiet(oldest=(first, second)))
    assert "Oldest requests" in text_of(quiet(oldest=(first, second)))


def test_nothing_on_the_pages_acts() -> None:
    for page in (overview_page.write(some_overview(), clean=str), syncs_page("a")):
        elements = Parsed(page.decode()).elements
        assert [given.get("method") for name, given in elements if name == "form"] in ([], [None])
        assert not [given for _, given in elements if any(name.startswith("on") for name in given)]
