"""Writes moments as RFC 3339, for messages and answers, and durations as milliseconds, for Kafka. Pure."""

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
