"""Reads what options name: durations, in two spellings, and moments, as a date or how long ago."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from service.cli.output import Exit, NoAnswer, printable

_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_SHORT: Final = re.compile(r"(?:\d+[dhms])+")
_ISO: Final = re.compile(
    r"P(?=.)(?:(?P<days>\d+)D)?(?:T(?=.)(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+)S)?)?"
)


def read_moment(option: str, text: str, *, now: datetime) -> datetime:
    """Return the moment that an option names.

    Raises:
        NoAnswer: it names none.
    """
    try:
        if (ago := _duration(text)) is not None:
            return now - ago
        return _date(text)
    except (ValueError, OverflowError):
        msg = f"{option} needs 2h, PT2H or a date such as 2026-08-17T12:00, not {printable(text)}."
        raise NoAnswer(msg, code=Exit.USAGE) from None


def read_duration(option: str, text: str) -> timedelta:
    """Return the duration that an option names.

    Raises:
        NoAnswer: it names none.
    """
    try:
        if duration := _duration(text):
            return duration
    except (ValueError, OverflowError):
        pass
    msg = f"{option} needs a duration such as 2h or PT2H, not {printable(text)}."
    raise NoAnswer(msg, code=Exit.USAGE)


def read_date(option: str, text: str) -> datetime:
    """Return the moment that an option names as a date; UTC unless it says otherwise.

    Raises:
        NoAnswer: it names none.
    """
    try:
        return _date(text).astimezone(UTC)
    except (ValueError, OverflowError):
        msg = f"{option} needs a date such as 2026-08-17T12:00, not {printable(text)}."
        raise NoAnswer(msg, code=Exit.USAGE) from None


def _duration(text: str) -> timedelta | None:
    """Return how long; None: the text is no duration. Raises OverflowError, and ValueError for thousands of digits."""
    if _SHORT.fullmatch(text.lower()):
        parts = re.findall(r"(\d+)([dhms])", text.lower())
        return sum([timedelta(**{_UNITS[unit]: int(number)}) for number, unit in parts], timedelta())
    if found := _ISO.fullmatch(text.upper()):
        return timedelta(**{unit: int(number) for unit, number in found.groupdict().items() if number})
    return None


def _date(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or UTC)


def maybe_moment(option: str, text: str | None, *, now: datetime) -> datetime | None:
    """Return the moment that an option names, if it is given. Raises `NoAnswer` for one that names none."""
    return None if text is None else read_moment(option, text, now=now)
