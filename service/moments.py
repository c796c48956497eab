"""Writes moments as RFC 3339, for messages and answers, and durations: for Kafka, and for people. Pure."""

from datetime import UTC, datetime, timedelta
from typing import overload


@overload
def rfc3339(moment: datetime) -> str: ...
@overload
def rfc3339(moment: None) -> None: ...


def rfc3339(moment: datetime | None) -> str | None:
    """Write a moment in UTC, with milliseconds and a Z; None stays None."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def milliseconds(duration: timedelta) -> int:
    """Return the whole milliseconds of a duration."""
    return duration // timedelta(milliseconds=1)


def age(duration: timedelta) -> str:
    """Write how long something took or is ago, in one unit: `45s`, `3m`, `2h`, `5d`."""
    seconds = max(0, int(duration.total_seconds()))
    for unit, length, until in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{seconds // length}{unit}"
    return f"{seconds // 86_400}d"
