"""The page `/syncs`: which requests in flight are on it, and the page as JSON; `syncs_table` is for browsers."""

import asyncio
import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec

from service.moments import rfc3339
from service.observability.metrics import STATES
from service.partition.waiting import WaitsFor
from service.sync import ApiError

LIMIT: Final = 100
MOST: Final = 1_000
"""Syncs on one page: what a person scrolls through, and what is made in a few milliseconds of the event loop."""

SYNCS_AT_ONCE: Final = 1_000
"""Syncs looked at between two turns of the event loop, a millisecond: 50,000 in one go held it for 68 ms (measured)."""


SHOWN_AT_ONCE: Final = 50
"""Syncs made into JSON between two turns of the event loop, 2 ms: what each waits for has to be put into words."""

Row = TypeVar("Row")

Clean: TypeAlias = Callable[[str], str]
"""Hides secrets in a text that comes from outside."""


# ---------------------------------------------------------------- what is in flight


class InFlight(Protocol):
    """A sync that isn't over, as it is shown. Only those on the asked page are read whole."""

    @property
    def identity(self) -> str:
        """The request's identity."""

    @property
    def replication_id(self) -> str:
        """The replication."""

    @property
    def operation_id(self) -> str:
        """As in the request."""

    @property
    def site(self) -> str | None:
        """As in the request."""

    @property
    def state(self) -> str:
        """One of the states of `vm_sync_in_flight`."""

    @property
    def partition(self) -> int:
        """Of the requests topic."""

    @property
    def attempts(self) -> int:
        """POSTs made."""

    @property
    def task_id(self) -> str | None:
        """VCDA's task."""

    @property
    def progress(self) -> int | None:
        """In percent, as VCDA last reported."""

    @property
    def accepted_at(self) -> datetime:
        """When the request was accepted."""

    @property
    def submitted_at(self) -> datetime | None:
        """When VCDA accepted it."""

    @property
    def deadline(self) -> datetime:
        """When the request times out."""

    @property
    def error(self) -> ApiError | None:
        """Why the last attempt failed."""

    @property
    def http_status(self) -> int | None:
        """Of the answer that `error` is from."""

    @property
    def waits_for(self) -> WaitsFor | None:
        """The cause for which a waiting request waits, or for which VCDA is not asked for the task of another."""

    @property
    def held(self) -> bool:
        """Whether the request timed out more than 24 h ago and holds its replication, as VCDA still shows its task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query for syncs."""

    state: str | None
    site: str | None
    replication_id: str | None
    limit: int
    after: str


PARAMETERS: Final = ("state", "site", "replicationId", "limit", "after")


def read_query(given: Mapping[str, str]) -> Query | str:
    """Parse the parameters of `/syncs`, or return what is wrong with them, as a sentence.

    An empty parameter is as good as none: a form sends all of its fields.
    """
    given = {name: value for name, value in given.items() if value}
    for name in given:
        if name not in PARAMETERS:
            return f"There is no parameter {name[:50]!r}; there are {', '.join(PARAMETERS)}."
    state, limit = given.get("state"), given.get("limit", str(LIMIT))
    if state is not None and state not in STATES:
        return f"state is one of {', '.join(STATES)}."
    if not (limit.isascii() and limit.isdecimal() and len(limit) < len(str(MOST)) + 1 and 1 <= int(limit) <= MOST):
        return f"limit is a number from 1 to {MOST}."
    return Query(
        state=state,
        site=given.get("site"),
        replication_id=given.get("replicationId"),
        limit=int(limit),
        after=given.get("after", ""),
    )


async def page(syncs: Iterable[InFlight], query: Query, *, clean: Clean, more: Mapping[str, object]) -> bytes:
    """Return one page as JSON, with `more` fields; `clean` hides secrets in texts."""
    shown, following = await rows(syncs, query, lambda sync: msgspec.json.encode(_shown(sync, clean)))
    rest = msgspec.json.encode({"next": following, **more}).removeprefix(b"{")
    return b'{"syncs":[' + b",".join(shown) + b"]," + rest


async def rows(
    syncs: Iterable[InFlight], query: Query, make: Callable[[InFlight], Row], *, at_once: int = SHOWN_AT_ONCE
) -> tuple[list[Row], str | None]:
    """Make the rows of one page, in the order of identities: what comes and goes between two pages moves no other.

    Also returns the identity after which the next page begins; None: there is none. The event loop turns meanwhile,
    after `at_once` rows, so a sync may end before the page is made: such a one isn't shown.
    """
    found: list[InFlight] = []
    for number, sync in enumerate(syncs, 1):
        if _wanted(sync, query):
            found.append(sync)
        if number % SYNCS_AT_ONCE == 0:
            found = _first(query.limit + 1, found)
            await asyncio.sleep(0)
    found = _first(query.limit + 1, found)
    more = len(found) > query.limit
    asked = found[: query.limit]
    shown: list[Row] = []
    for number, sync in enumerate(asked, 1):
        if sync.state in STATES:
            shown.append(make(sync))
        if number % at_once == 0:
            await asyncio.sleep(0)
    return shown, asked[-1].identity if more else None


def _wanted(sync: InFlight, query: Query) -> bool:
    return (
        sync.identity > query.after
        and (query.state is None or sync.state == query.state)
        and (query.site is None or sync.site == query.site)
        and (query.replication_id is None or sync.replication_id == query.replication_id)
    )


def _first(count: int, syncs: Iterable[InFlight]) -> list[InFlight]:
    return heapq.nsmallest(count, syncs, key=lambda sync: sync.identity)


def _shown(sync: InFlight, clean: Clean) -> dict[str, object]:
    return {
        "requestId": sync.identity,
        "operationID": sync.operation_id,
        "replicationId": sync.replication_id,
        "site": sync.site,
        "state": sync.state,
        "partition": sync.partition,
        "attempts": sync.attempts,
        "taskId": sync.task_id,
        "progress": sync.progress,
        "acceptedAt": rfc3339(sync.accepted_at),
        "submittedAt": rfc3339(sync.submitted_at),
        "deadline": rfc3339(sync.deadline),
        "held": sync.held,
        "error": _error(sync.error, sync.http_status, clean),
        "waitsFor": _waits_for(sync.waits_for, sync.site, clean),
    }


def _waits_for(waits: WaitsFor | None, site: str | None, clean: Clean) -> dict[str, object] | None:
    if waits is None:
        return None
    return {
        "cause": waits.cause,
        "site": site,
        "until": rfc3339(waits.until),
        "behind": waits.behind,
        "detail": clean(waits.detail),
    }


def _error(error: ApiError | None, http_status: int | None, clean: Clean) -> dict[str, object] | None:
    return None if error is None else {"code": error.code, "msg": clean(error.msg), "httpStatus": http_status}
