"""Requests in flight as a table for people: the page `/syncs` for browsers, and rows of the page at `/`. Pure."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from service.messages.outcomes import describe_error
from service.messages.wait_cause import WaitCause
from service.moments import age
from service.observability.metrics import STATES
from service.ops.html import Html, tag
from service.ops.page_frame import cell, frame, table
from service.ops.syncs_page import LIMIT, MOST, Clean, InFlight, Query

LONGEST: Final = 300
"""Characters of a text from outside: all of it is in the JSON, and in `vm-sync show`."""

ROWS_AT_ONCE: Final = 20
"""Rows written between two turns of the event loop, some milliseconds."""

HEADS: Final = ("request", "site", "state", "age", "deadline", "POSTs", "waits for, or last error")

STATE_WORDS: Final = {state: state.replace("_", " ") for state in STATES}

CAUSES: Final = {
    WaitCause.SITE_PAUSED: "their site, which is paused",
    WaitCause.CIRCUIT_OPEN: "their site, whose circuit breaker is open",
    WaitCause.NO_CREDENTIALS: "credentials of their site",
    WaitCause.LIMIT: "a free place at their site",
    WaitCause.ELDER: "an earlier request of their replication",
    WaitCause.BUSY: "their replication, which is busy at VCDA (409)",
    WaitCause.OTHER: "something else",
}
"""What requests wait for."""


def write(rows: list[Html], following: str | None, query: Query, *, now: datetime) -> bytes:
    """Write one page of the table; `following` is the identity after which the next page begins."""
    if rows:
        content = table(HEADS, rows)
    else:
        content = tag(
            "p", "No request in flight in this instance is so." if _filters(query) else "No request is in flight here."
        )
    return _page(
        _form(query),
        content,
        tag("p", *_paging(query, following), class_="pages"),
        tag(
            "p",
            f"As of {clock_time(now, now=now)}. Only this instance's requests: ",
            tag("code", "vm-sync list"),
            " shows all.",
            class_="faint",
        ),
    )


def write_error(sentence: str) -> bytes:
    """Write the page that says what is wrong with the query."""
    return _page(tag("p", sentence, class_="bad word"), tag("p", tag("a", "All requests", href="/syncs")))


def row(sync: InFlight, *, now: datetime, clean: Clean) -> Html:
    """Write the row of one request."""
    return tag("tr", *_cells(sync, now, clean))


def cut(text: str) -> str:
    """Return a text of bearable length."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def clock_time(moment: datetime, *, now: datetime) -> str:
    """Write a moment in UTC: the time of today, or the date and the time."""
    return f"{moment:%H:%M:%SZ}" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%MZ}"


# ---------------------------------------------------------------- the parts


def _page(*content: Html) -> bytes:
    return frame(
        "Requests in flight · vm-sync",
        tag("section", tag("h1", "Requests in flight here"), *content, class_="card"),
        here="/syncs",
    )


def _cells(sync: InFlight, now: datetime, clean: Clean) -> Iterator[Html]:
    request, site, state, since, deadline, posts, why = HEADS
    yield cell(request, tag("b", sync.operation_id), tag("small", sync.replication_id), class_="request whole")
    yield cell(site, sync.site or "local", class_="site")
    yield cell(state, *_state(sync))
    yield cell(since, age(now - sync.accepted_at), class_="short")
    left = sync.deadline - now
    yield cell(deadline, f"in {age(left)}" if left.total_seconds() > 0 else "passed", class_="short")
    yield cell(posts, sync.attempts, class_="number")
    yield cell(why, *_why(sync, now, clean), class_="why whole")


def _state(sync: InFlight) -> Iterator[Html]:
    yield tag("span", tag("i", class_=sync.state), STATE_WORDS.get(sync.state, sync.state), class_="short")
    if sync.progress is not None:
        yield tag("small", tag("progress", max=100, value=sync.progress), f"{sync.progress} %", class_="short")


def _why(sync: InFlight, now: datetime, clean: Clean) -> Iterator[Html]:
    waits = sync.waits_for
    if waits is not None:
        until = ""
        if waits.until is not None and f"{waits.until:%Y-%m-%d %H:%M:%SZ}" not in waits.detail:
            until = f" (until {clock_time(waits.until, now=now)})"
        yield tag("span", cut(clean(waits.detail)), until)
    if sync.held:
        yield tag("span", "timed out a day ago, and VCDA still shows its task as unfinished: its replication is held")
    if said := describe_error(sync.error, sync.http_status):
        yield tag("small", f"last error: {cut(clean(said))}")


# ---------------------------------------------------------------- filters and pages


def _filters(query: Query) -> dict[str, str]:
    given = {"state": query.state, "site": query.site, "replicationId": query.replication_id}
    return {name: value for name, value in given.items() if value is not None}


def _form(query: Query) -> Html:
    states = [tag("option", "any", value="")]
    states += [tag("option", STATE_WORDS[state], value=state, selected=state == query.state) for state in STATES]
    return tag(
        "form",
        tag("label", "state", tag("select", *states, name="state")),
        tag("label", "site", tag("input", name="site", value=query.site or "", size=16)),
        tag("label", "replicationId", tag("input", name="replicationId", value=query.replication_id or "", size=40)),
        tag("label", "on a page", tag("input", name="limit", type="number", min=1, max=MOST, value=query.limit)),
        tag("button", "Show"),
        action="/syncs",
    )


def _paging(query: Query, following: str | None) -> Iterator[Html]:
    given = _filters(query) | ({} if query.limit == LIMIT else {"limit": str(query.limit)})
    if query.after:
        yield _link("First page", given)
    if following is not None:
        yield _link("Next page", given | {"after": following})


def _link(words: str, given: Mapping[str, str]) -> Html:
    # A text from outside may hold half a character, which has no UTF-8.
    query = urlencode(given, errors="replace")
    return tag("a", words, href=f"/syncs?{query}" if query else "/syncs")
