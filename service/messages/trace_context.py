"""The trace that a message continues: W3C's traceparent and tracestate."""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from service.sync import Request

# https://www.w3.org/TR/trace-context/: a version other than ff, ids that aren't all zero.
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_*/-]{0,240}(?:@[a-z][a-z0-9_*/-]{0,13})?=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_TRACESTATE_MEMBERS: Final = 32
_TRACESTATE_LENGTH: Final = 512


def read_trace(trace: Mapping[str, object]) -> tuple[str | None, str | None]:
    """Take the trace context where it is well-formed; drop it, not the request, where it isn't."""
    parent = trace.get("traceparent") or trace.get("ce_traceparent")
    if parent is None:
        return None, None
    if not isinstance(parent, str) or not _TRACEPARENT.fullmatch(parent):
        return None, None
    state = trace.get("tracestate") or trace.get("ce_tracestate")
    if not isinstance(state, str) or len(state) > _TRACESTATE_LENGTH:
        return parent, None
    members = [member for part in state.split(",") if (member := part.strip(" \t"))]
    if not 0 < len(members) <= _TRACESTATE_MEMBERS or not all(map(_TRACESTATE_MEMBER.fullmatch, members)):
        return parent, None
    return parent, state


class TraceContext(NamedTuple):
    """A position in a trace, as the values of W3C's headers."""

    traceparent: str
    tracestate: str | None = None


def context_of(request: Request) -> TraceContext | None:
    """Return the trace context of a request."""
    return None if request.traceparent is None else TraceContext(request.traceparent, request.tracestate)
