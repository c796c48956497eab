"""Translates VCDA's JSON into the values of `sync`. Pure; never raises, and leaves out invalid values.

Errors and warnings are in VCDA's words, and may repeat what VCDA was sent: `clean` takes secrets out of them.

pydantic's parser is used: whatever bytes a proxy sends, an error is a ValueError, also for too many levels. Of a task's
result only the latest instance is read, since the rest can contain passwords. Stack traces aren't read.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from pydantic_core import from_json

from service.messages.schemas import MAX_SITE
from service.sync import EPOCH, MAX_LIST, MAX_TEXT, ApiError, Instance, Task

Json: TypeAlias = object
Object: TypeAlias = dict[str, Json]
Clean: TypeAlias = Callable[[str], str]

BATCH: Final = 100
"""Tasks in one page, and so ids in one poll: VCDA's own limit."""

MOST_SITES: Final = 1_000
"""Sites that a session is authenticated at: there are a few."""

MOST_VALUES: Final = 1_000_000
"""Commas and opening brackets in an answer. Parsing holds up the event loop, and a value takes some 70 bytes as an
object: 16 MiB of `{},` took 0.8 GiB. A hundred tasks with results and stack traces have a tenth of these."""

MOST_TASKS: Final = 10 * BATCH
"""Tasks in an answer, which has `BATCH` at most."""

INT64: Final = 2**63 - 1
LAST_MILLISECOND: Final = 253_402_300_799_999
"""The end of the year 9999, and of what a datetime can hold."""

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
"""A task's id: it becomes part of paths and of comma-separated lists, so nothing that could mean something there."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of tasks. `seen` are the ids of all of them, also of those that weren't asked for."""

    tasks: tuple[Task, ...]
    seen: frozenset[str]
    count: int
    total: int


def has_too_many_values(body: bytes) -> bool:
    """Whether a body has more than `MOST_VALUES`, so that it is not parsed."""
    return len(body) > MOST_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES


def read_object(body: bytes) -> Object | None:
    """Read a JSON object; None if it isn't one, is only half of one, or has more than `MOST_VALUES`."""
    if has_too_many_values(body):
        return None
    try:
        value = from_json(body, cache_strings="keys")
    except ValueError:  # too deep is a ValueError as well
        return None
    return value if isinstance(value, dict) else None


def read_api_error(body: bytes, *, clean: Clean = str) -> ApiError | None:
    """Read VCDA's own error; None for a proxy's page, or its JSON.

    `code` and `msg` both have to be there: what is taken for VCDA's refusal ends a request for good.
    """
    value = read_object(body)
    if value is None or "msg" not in value or not isinstance(value.get("code"), str) or not value["code"]:
        return None
    return _api_error(value, clean)


def read_task(body: bytes, *, local: frozenset[str] = frozenset(), clean: Clean = str) -> Task | None:
    """Read a single task; None without an id that can be asked for."""
    return _task(read_object(body), local, clean)


def read_created(
    body: bytes, *, local: frozenset[str] = frozenset(), clean: Clean = str
) -> tuple[Task, str | None] | None:
    """Read the task that a POST has created, as `read_task`, and its type; None: it has none that a query can name."""
    value = read_object(body)
    task, kind = _task(value, local, clean), _kind(value)
    return None if task is None else (task, kind if kind is not None and ID.fullmatch(kind) else None)


def read_page(
    body: bytes, *, local: frozenset[str] = frozenset(), kind: str | None = None, clean: Clean = str
) -> Page | None:
    """Read a page of tasks; None if it can't be relied on. With `kind`, tasks of another kind are left out.

    A page with a task that can't be read isn't reliable: that one might be the one looked for.
    """
    value = read_object(body)
    if value is None:
        return None
    items, total = value.get("items"), _integer(value.get("total"))
    if not isinstance(items, list) or len(items) > MOST_TASKS or total is None or total < 0:
        return None
    tasks = [(item, _task(item, local, clean)) for item in items]
    read = [task for _, task in tasks if task is not None]
    if len(read) < len(items):
        return None
    wanted = tuple(task for item, task in tasks if task is not None and (kind is None or _kind(item) in {kind, None}))
    return Page(wanted, frozenset(task.id for task in read), len(items), total)


def read_session(body: bytes) -> tuple[str | None, frozenset[str]] | None:
    """Read whose session it is, and which sites it is authenticated at; None: the body is no JSON object.

    Names that no request can have, and those beyond `MOST_SITES`, are left out.
    """
    value = read_object(body)
    if value is None:
        return None
    sites = value.get("authenticatedSites")
    names = [_text(site.get("site")) for site in sites if isinstance(site, dict)] if isinstance(sites, list) else []
    return _text(value.get("user")), frozenset([name for name in names if name and len(name) <= MAX_SITE][:MOST_SITES])


# ---------------------------------------------------------------- the parts


def _task(value: Json, local: frozenset[str], clean: Clean) -> Task | None:
    if not isinstance(value, dict):
        return None
    name = value.get("id")
    if not isinstance(name, str) or not ID.fullmatch(name):
        return None
    site = _text(value.get("site"))
    progress = _integer(value.get("progress"))
    return Task(
        id=name,
        state=(_text(value.get("state")) or "").upper(),
        site=None if site in local else site,
        user=_text(value.get("user")),
        replication_id=_text(_member(value, "workflowInfo").get("resourceId")),
        progress=progress if progress is not None and 0 <= progress <= 100 else None,  # noqa: PLR2004 - percent
        started_at=_moment(value.get("startTime")),
        ended_at=_moment(value.get("endTime")),
        error=_api_error(value["error"], clean) if isinstance(value.get("error"), dict) else None,
        warnings=_warnings(value.get("warnings"), clean),
        instance=_instance(value),
    )


def _kind(item: Json) -> str | None:
    return _text(_member(item, "workflowInfo").get("type"))


def _api_error(value: Json, clean: Clean) -> ApiError:
    words = value if isinstance(value, dict) else {}
    code, msg, args = words.get("code"), words.get("msg"), words.get("args")
    return ApiError(
        # A word of VCDA's own stays as it is, whatever words the secrets are.
        (_text(code) if isinstance(code, str) and code.isalnum() else _said(code, clean)) or "Unknown",
        _said(msg, clean) or "",
        tuple(clean(str(arg))[:MAX_TEXT] for arg in args[:MAX_LIST] if isinstance(arg, (str, int, float)))
        if isinstance(args, list)
        else (),
    )


def _warnings(value: Json, clean: Clean) -> tuple[ApiError, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(_api_error(item, clean) for item in value[:MAX_LIST] if isinstance(item, dict))


def _instance(task: Object) -> Instance | None:
    latest = _member(_member(task, "result"), "destinationState").get("latestInstance")
    if not isinstance(latest, dict):
        return None
    return Instance(
        sequence_number=_integer(latest.get("sequenceNumber")),
        timestamp=_moment(latest.get("timestamp")),
        transfer_bytes=_integer(latest.get("transferBytes")),
        transfer_seconds=_number(latest.get("transferSeconds")),
    )


def _member(value: Json, name: str) -> Object:
    inner = value.get(name) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _text(value: Json) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) and value else None


def _said(value: Json, clean: Clean) -> str | None:
    """Return a text without secrets; they are taken out before the text is cut, which might cut one."""
    return _text(clean(value)) if isinstance(value, str) else None


def _number(value: Json) -> float | None:
    """Read a number, also one written as text; None for what isn't finite, or doesn't fit 64 bits."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) <= INT64 else None


def _integer(value: Json) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) <= INT64 else None
    number = _number(value)
    return None if number is None else int(number)


def _moment(value: Json) -> datetime | None:
    """Read milliseconds since 1970. -1 is VCDA's "not yet"."""
    milliseconds = _integer(value)
    if milliseconds is None or not 0 < milliseconds <= LAST_MILLISECOND:
        return None
    return EPOCH + timedelta(milliseconds=milliseconds)
