"""The page at `/`: what this process does, and what holds it back, for people. Pure; nothing on it acts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from service.messages.wait_cause import WaitCause
from service.moments import age
from service.observability.metrics import STATES
from service.ops.html import Html, tag
from service.ops.overview import Overview, Partitions, Site
from service.ops.page_frame import REFRESH, cell, frame, table
from service.ops.sites_view import Hindrance
from service.ops.syncs_page import Clean
from service.ops.syncs_table import CAUSES, HEADS, STATE_WORDS, clock_time, cut, row
from service.partition.recent_outcomes import Failure

SHOWN: Final = 20
"""Reasons, partitions: more of a kind say nothing new."""

FAILURE_HEADS: Final = ("request", "site", "age", "reason", "error")


def write(overview: Overview, *, clean: Clean) -> bytes:
    """Write the page."""
    level, word = _verdict(overview)
    return frame(
        f"{word} · {overview.instance.name} · vm-sync",
        _state(overview, level, word, clean),
        tag("div", _in_flight(overview), _partitions(overview.partitions, clean), class_="two"),
        _sites(overview, clean),
        _oldest(overview, clean),
        _failures(overview, clean),
        tag(
            "p",
            f"As of {clock_time(overview.at, now=overview.at)}; refreshed every {REFRESH} s while the page is visible. "
            "It shows one instance: ",
            tag("code", "vm-sync list"),
            " shows the requests of all, ",
            tag("code", "vm-sync show ID"),
            " the history of one. What to do about an alert is in docs/runbook.md.",
            class_="faint",
        ),
        here="/",
        level=level,
        refreshes=True,
    )


def _verdict(overview: Overview) -> tuple[str, str]:
    if overview.not_alive:
        return "bad", "Not alive"
    if overview.not_ready:
        return "bad", "Not ready"
    if overview.degraded:
        return "warn", "Ready, degraded"
    return "good", "Ready"


def _some(items: Sequence[Html]) -> Iterator[Html]:
    yield from items[:SHOWN]
    if len(items) > SHOWN:
        yield tag("li", f"and {len(items) - SHOWN:,} more")


# ---------------------------------------------------------------- health, and what this instance is


def _state(overview: Overview, level: str, word: str, clean: Clean) -> Html:
    reasons = [*overview.not_alive, *overview.not_ready, *overview.degraded]
    facts = [tag("span", f"{name} ", tag("b", fact)) for name, fact in _facts(overview).items()]
    return tag(
        "section",
        tag("h1", word),
        tag("ul", *_some([tag("li", cut(clean(reason))) for reason in reasons])) if reasons else None,
        tag("p", *facts, class_="facts"),
        class_=f"state {level}",
    )


def _facts(overview: Overview) -> dict[str, str]:
    instance = overview.instance
    return {
        "instance": instance.name,
        "up": age(overview.at - instance.started_at),
        "version": instance.version,
        "settings": instance.settings_hash,
        "VCDA": instance.vcda,
        "session": "none" if overview.session_age is None else f"for {age(overview.session_age)}",
        "Kafka": instance.kafka,
        "topic": instance.requests,
        "group": instance.group,
    }


# ---------------------------------------------------------------- in flight


def _in_flight(overview: Overview) -> Html:
    total = sum(overview.states.values())
    return tag(
        "section",
        tag("h2", "In flight"),
        tag("a", f"{total:,}", href="/syncs", class_="big"),
        _bar(overview.states, total),
        tag("ul", *[_count(state, overview.states.get(state, 0)) for state in STATES], class_="key"),
        _causes(overview.waiting),
        tag(
            "p",
            f"{overview.completed:,} completed and {overview.failed:,} failed since this instance started.",
            class_="faint",
        ),
        class_="card",
    )


def _bar(states: Mapping[str, int], total: int) -> Html:
    """Draw the states' shares, as an SVG: the policy allows no style at an element."""
    parts, at = [], 0.0
    for state in STATES:
        width = 1000 * states.get(state, 0) / total if total else 0.0
        if width:
            parts.append(tag("rect", x=f"{at:.1f}", width=f"{width:.1f}", height="10", class_=state))
        at += width
    return tag("svg", *parts, class_="bar", viewBox="0 0 1000 10", preserveAspectRatio="none", aria_hidden="true")


def _count(state: str, count: int) -> Html:
    words = tag("a", f"{count:,} {STATE_WORDS[state]}", href=f"/syncs?state={state}")
    return tag("li", tag("i", class_=state), words)


def _causes(waiting: Mapping[WaitCause, int]) -> Html | None:
    lines = [tag("li", tag("b", f"{count:,}"), f" wait for {CAUSES[cause]}") for cause, count in _most(waiting)]
    return tag("ul", *lines, class_="causes") if lines else None


def _most(waiting: Mapping[WaitCause, int]) -> list[tuple[WaitCause, int]]:
    """Return the causes for which something waits, that of the most first."""
    return sorted([(cause, count) for cause, count in waiting.items() if count], key=lambda one: -one[1])


# ---------------------------------------------------------------- partitions


def _partitions(partitions: Partitions, clean: Clean) -> Html:
    if not partitions.joined:
        says = "The consumer group has not been joined yet."
    elif partitions.open:
        says = f"Open here: {_ranges(partitions.open)}"
    else:
        says = "None is open here."
    lines = [
        *[_partition(number, "stopped", "bad", why, clean) for number, why in partitions.stopped.items()],
        *[_partition(number, "opening", "warn", why, clean) for number, why in partitions.opening.items()],
    ]
    of = f" of {partitions.total:,} open" if partitions.total else " open"
    return tag(
        "section",
        tag("h2", "Partitions"),
        tag("span", f"{len(partitions.open):,}", class_="big"),
        tag("span", of, class_="faint"),
        tag("p", says),
        tag("ul", *_some(lines)) if lines else None,
        class_="card",
    )


def _partition(number: int, word: str, level: str, why: str, clean: Clean) -> Html:
    return tag("li", f"{number} ", tag("span", word, class_="word"), f": {cut(clean(why))}", class_=level)


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers in short: `0-3, 5, 7-8`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ", ".join(["-".join(map(str, ends)) for ends in ranges])


# ---------------------------------------------------------------- sites


def _sites(overview: Overview, clean: Clean) -> Html:
    heads = ("site", "calls", *STATE_WORDS.values(), "waiting for")
    rows = [tag("tr", *_site(site, overview, clean)) for site in overview.sites]
    return tag(
        "section",
        tag("h2", "Sites"),
        table(heads, rows),
        tag("p", f"{overview.further_sites:,} more are not shown.", class_="faint") if overview.further_sites else None,
        class_="card",
    )


def _site(site: Site, overview: Overview, clean: Clean) -> Iterator[Html]:
    yield cell("site", tag("b", site.name or "local"), class_="site whole")
    held = [_hindrance(one, overview, clean) for one in site.hindrances]
    yield cell("calls", *held, _session(site), class_="whole")
    for state, words in STATE_WORDS.items():
        count = site.states.get(state, 0)
        yield cell(words, f"{count:,}" if count else None, class_="number")
    lines = [tag("small", f"{count:,}: {CAUSES[cause]}") for cause, count in _most(site.waiting)]
    yield cell("waiting for", *lines, class_="why whole")


def _hindrance(hindrance: Hindrance, overview: Overview, clean: Clean) -> Html:
    until = f" until {clock_time(hindrance.until, now=overview.at)}" if hindrance.until else ""
    return tag(
        "div",
        tag("span", hindrance.hold.value, class_="word"),
        until,
        tag("small", cut(clean(hindrance.detail))) if hindrance.detail else None,
        class_="bad" if hindrance.is_fault else "warn",
    )


def _session(site: Site) -> Html | None:
    if not site.session:
        return tag("div", tag("span", "no session", class_="word"), class_="warn")
    return None if site.hindrances else tag("div", tag("span", "go", class_="word"), class_="good")


# ---------------------------------------------------------------- requests


def _oldest(overview: Overview, clean: Clean) -> Html | None:
    rows = [row(sync, now=overview.at, clean=clean) for sync in overview.oldest if sync.state in STATES]
    return tag("section", tag("h2", "Oldest requests"), table(HEADS, rows), class_="card") if rows else None


def _failures(overview: Overview, clean: Clean) -> Html:
    rows = [tag("tr", *_failure(failure, overview, clean)) for failure in overview.failures]
    return tag(
        "section",
        tag("h2", "Last failures ", tag("small", "written by this instance, the latest first")),
        table(FAILURE_HEADS, rows) if rows else tag("p", "None since this instance started."),
        class_="card",
    )


def _failure(failure: Failure, overview: Overview, clean: Clean) -> Iterator[Html]:
    yield cell("request", tag("b", failure.operation_id), tag("small", failure.replication_id), class_="request whole")
    yield cell("site", failure.site or "local", class_="site")
    yield cell("age", age(overview.at - failure.at), class_="short")
    yield cell("reason", tag("span", failure.reason.value, class_="word"), class_="short bad")
    yield cell("error", cut(clean(failure.error)), class_="whole")
