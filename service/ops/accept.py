"""Reads a client's `Accept` header. Pure."""

import re
from typing import Final

QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
"""A client's weight of a media type."""


def prefers_html(accept: str) -> bool:
    """Whether a client would rather have HTML than JSON: a browser says so, `curl` takes anything and gets JSON."""
    html, json = (_quality(accept, media_type) for media_type in ("text/html", "application/json"))
    return html > json


def _quality(accept: str, media_type: str) -> float:
    """Return how much a client wants a media type, by its most precise word on it: 0 to 1, as RFC 9110 has it."""
    found = {"*/*": 1.0} if not accept.strip() else {}
    for part in accept.lower().split(","):
        media_range, *parameters = (word.strip() for word in part.split(";"))
        quality = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        found[media_range] = float(quality) if QUALITY.fullmatch(quality) else 0.0
    ranges = media_type, f"{media_type.partition('/')[0]}/*", "*/*"
    return next((found[media_range] for media_range in ranges if media_range in found), 0.0)
