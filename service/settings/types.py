"""The types of settings: parsing, validation and error messages. Pure."""

import re
from datetime import timedelta
from typing import Annotated, Final, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from service.vcda.address import checked_thumbprint, checked_url, is_loopback

LONGEST: Final = timedelta(days=36_525)
"""The longest duration, a hundred years: nothing needs more, and a date that many years ahead can still be written."""


def _duration(value: object) -> object:
    # Months and years have no fixed length; pydantic would take them, and "30", and "-PT5S".
    if isinstance(value, timedelta):
        return value
    iso8601 = r"P(?=.)(\d+W)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?"
    if not (isinstance(value, str) and re.fullmatch(iso8601, value)):
        msg = "write an ISO 8601 duration, such as PT30S, PT5M or PT6H"
        raise ValueError(msg)
    return value


def _bounded(value: timedelta) -> timedelta:
    if value > LONGEST:
        msg = f"write at most a hundred years, which is {iso8601(LONGEST)}"
        raise ValueError(msg)
    return value


def _topic(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value) or value in {".", ".."}:
        msg = "write a topic's name: 1-249 characters of A-Z a-z 0-9 . _ -"
        raise ValueError(msg)
    return value


def _servers(value: str) -> str:
    for server in value.split(","):
        host, _, port = server.strip().rpartition(":")
        if not host or not port.isdecimal():
            msg = "write host:port, several with commas between them"
            raise ValueError(msg)
    return value


def _url(value: str) -> str:
    return checked_url(value).geturl().rstrip("/")


def _token_url(value: str) -> str:
    form = "write https://host/path or https://host:port/path, without user or fragment"
    try:
        url = urlsplit(value)
        host, port = url.hostname, url.port
    except ValueError:
        raise ValueError(form) from None
    if url.scheme not in {"https", "http"} or not host or port == 0 or url.fragment or "@" in url.netloc:
        raise ValueError(form)
    if url.scheme == "http" and not is_loopback(host):
        msg = "write https://: plain http is allowed only for this machine, since a secret is sent to the token server"
        raise ValueError(msg)
    return value


def _extensions(value: str) -> str:
    for pair in value.split(","):
        # RFC 7628; `auth` is the token itself.
        if not re.fullmatch(r"(?!auth=)[A-Za-z]+=[\x21-\x2b\x2d-\x7e]+", pair.strip()):
            msg = "write name=value, several with commas between them; names consist of letters"
            raise ValueError(msg)
    return value


def iso8601(duration: timedelta) -> str:
    """Write a duration as the documentation does: PT24H, PT1M30S, PT0.5S."""
    minutes, seconds = divmod(duration / timedelta(seconds=1), 60)
    hours, minutes = divmod(int(minutes), 60)
    parts = f"{hours}H" * (hours > 0) + f"{minutes}M" * (minutes > 0) + f"{seconds:g}S" * (seconds > 0)
    return "PT" + (parts or "0S")


Duration: TypeAlias = Annotated[timedelta, BeforeValidator(_duration), Field(ge=timedelta()), AfterValidator(_bounded)]
Positive: TypeAlias = Annotated[Duration, Field(gt=timedelta())]
Topic: TypeAlias = Annotated[str, AfterValidator(_topic)]
Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Servers: TypeAlias = Annotated[str, AfterValidator(_servers)]
Url: TypeAlias = Annotated[str, AfterValidator(_url)]
TokenUrl: TypeAlias = Annotated[str, AfterValidator(_token_url)]
Extensions: TypeAlias = Annotated[str, AfterValidator(_extensions)]
Thumbprint: TypeAlias = Annotated[str, AfterValidator(checked_thumbprint)]
