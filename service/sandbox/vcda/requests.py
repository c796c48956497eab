"""Parses requests to a simulated VCDA strictly: undocumented requests are refused."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, unquote

from service.sandbox.vcda.world import ApiError, bad_input

VERSIONS = frozenset({"3", "3.5", "4", "4.2", "4.3", "4.5", "4.7"})
VENDOR = "application/vnd.vmware.h4-v{}+json;charset=UTF-8"
PLAIN = "application/json;charset=UTF-8"
DEFAULT = VENDOR.format("4.7")
_VENDOR = re.compile(r"application/vnd\.vmware\.h4-v([0-9.]+)\+json")


NOTHING: frozenset[str] = frozenset()
SITE = frozenset({"site"})

TASK_FILTERS = frozenset(
    {
        "site",
        "ids",
        "user",
        "sourceOrg",
        "destinationOrg",
        "state",
        "startTimeBefore",
        "startTimeAfter",
        "endTimeBefore",
        "endTimeAfter",
        "type",
        "resourceId",
        "resourceName",
        "resourceType",
        "sort",
        "limit",
        "offset",
    }
)

Route = tuple[str, frozenset[str]]

ROUTES: Mapping[tuple[str, ...], Mapping[str, Route]] = {
    ("sessions",): {"POST": ("login", NOTHING), "GET": ("session", NOTHING), "DELETE": ("logout", NOTHING)},
    ("sessions", "extend"): {"POST": ("extend", NOTHING), "DELETE": ("shrink", NOTHING)},
    ("sessions", "*"): {"DELETE": ("shrink", NOTHING)},
    ("tasks",): {"GET": ("find", TASK_FILTERS)},
    ("tasks", "*"): {"GET": ("ask", SITE)},
    ("vm-replications", "*"): {"GET": ("replication", SITE)},
    ("vm-replications", "*", "sync"): {"POST": ("submit", SITE)},
    ("diagnostics", "about"): {"GET": ("about", NOTHING)},
    ("docs", "api-guide.html"): {"GET": ("guide", NOTHING)},
}
"""By path and method: the operation, and the query parameters it knows."""


@dataclass(slots=True)
class Call:
    """A request, understood as one of the documented operations."""

    operation: str
    target: str
    asked: dict[str, str]
    token: str | None
    operation_id: str | None
    body: bytes = b""
    no_cache: bool = False
    """It asks caches on the way to let it through."""
    usual: str = DEFAULT
    """The content type of good answers."""
    errors: str = DEFAULT


def understood(method: str, raw_path: str, headers: Mapping[str, str], *, has_body: bool) -> Call:
    """Read all of a request but its body."""
    path, _, query = raw_path.partition("?")
    if "//" in path:
        raise ApiError(400, "BadRequest", "The path contains an empty segment.")
    segments = [unquote(segment) for segment in path.split("/")[1:]]
    operation, allowed = _route(method, segments)
    asked = _parameters(query, allowed) if query else {}
    if operation == "find" and "ids" in asked:
        operation = "poll"
    usual, errors = _content_types(headers.get("Accept"))
    if operation == "submit" and usual is DEFAULT:
        usual = PLAIN  # as documented for 4.5, where logging out, say, answers with the vendor's type
    if operation in {"login", "extend"}:
        media = headers.get("Content-Type", "").partition(";")[0].strip()
        if media != "application/json" and not _VENDOR.fullmatch(media):
            raise ApiError(415, "UnsupportedMediaType", "The body is not JSON.")
    elif has_body and headers.get("Content-Length") != "0":
        raise ApiError(400, "BadRequest", "This request has no body.")
    return Call(
        operation=operation,
        target=segments[1] if len(segments) > 1 else "",
        asked=asked,
        token=headers.get("X-VCAV-Auth"),
        operation_id=headers.get("operationID"),
        no_cache="no-cache" in headers.get("Cache-Control", "").lower(),
        usual=usual,
        errors=errors,
    )


def _route(method: str, segments: Sequence[str]) -> Route:
    exactly = tuple(segments)
    routes = ROUTES.get(exactly) or ROUTES.get((exactly[0], "*", *exactly[2:]))
    if routes is None or "" in segments:
        raise ApiError(404, "NotFound", "There is nothing here.")
    if method not in routes:
        raise ApiError(405, "MethodNotAllowed", f"{method} is not allowed.", headers={"Allow": ", ".join(routes)})
    return routes[method]


def _parameters(query: str, allowed: frozenset[str]) -> dict[str, str]:
    asked: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        msg = "The query cannot be understood."
        raise bad_input(msg) from None
    for name, value in pairs:
        if name not in allowed or (name in asked and name != "resourceType") or not value:
            msg = f"Unknown, repeated or empty parameter: {name[:50]}"
            raise bad_input(msg, name)
        asked[name] = f"{asked[name]},{value}" if name in asked else value
    return asked


@lru_cache(maxsize=100)
def _content_types(accept: str | None) -> tuple[str, str]:
    """Choose the types of good answers and of errors; without a version, the vendor's newest."""
    for part in (accept or "*/*").split(","):
        media = part.partition(";")[0].strip()
        if media in {"*/*", "application/*"}:
            return DEFAULT, DEFAULT
        if media == "application/json":
            return PLAIN, PLAIN
        vendor = _VENDOR.fullmatch(media)
        if vendor is not None and vendor[1] in VERSIONS:
            return VENDOR.format(vendor[1]), VENDOR.format(vendor[1])
    raise ApiError(406, "NotAcceptable", "No acceptable representation.")
