"""Site pauses: orders of operators that no POST is sent to a site until a moment. Records of the control topic. Pure.

    key     site:<name>, as metrics and commands call the site: `local` is the local site
    value   {"until": RFC 3339, "since": RFC 3339, "by": who, "reason": why}; all but `until` are optional
    resume  a record of the same key without a value; or a pause ends by itself at `until`

The latest record of a key counts. An invalid one is no pause, and is reported. Keys of other kinds are left to newer
versions, and so are unknown fields.

A pause that was read ends by a later record or at `until`, and by nothing else: a process that has read it obeys it
also after the topic or its records were deleted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError
from typing_extensions import override

from service.messages.schemas import Note, Site
from service.moments import rfc3339

LOCAL: Final = "local"
"""The name of the local site, which requests leave out."""

PREFIX: Final = b"site:"
"""How the keys of site pauses begin."""

LONGEST: Final = timedelta(days=31)
"""The longest pause that makes sense: a request's deadline is a week at most, so a longer one is a mistake in the date.
`vm-sync sites pause` refuses it; one that another program wrote is obeyed, and said to be too long."""

MOST_REPORTED: Final = 20
"""Invalid records that are described; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePause:
    """A pause of one site, by its public name."""

    site: str
    until: datetime
    since: datetime | None = None
    by: str | None = None
    reason: str | None = None
    recorded: bool = field(default=True, compare=False)
    """Whether the topic still has it, as far as is known."""

    def lasts(self, now: datetime) -> bool:
        """Whether the pause is not over."""
        return now < self.until

    def doubts(self, now: datetime) -> list[str]:
        """Say, in sentences for operators, what is odd about a pause that is not over."""
        found = []
        if not self.recorded:
            found.append(
                f"the control topic no longer has the pause of site {self.site}, since the topic was created again or "
                f"its records were deleted; who has read it holds it until {_second(self.until)}, and who starts later "
                f"doesn't know it: `vm-sync sites pause {self.site}` writes it again, `vm-sync sites resume "
                f"{self.site}` ends it"
            )
        if self.until > now + LONGEST:
            found.append(
                f"the pause of site {self.site} lasts until {_second(self.until)}, more than {LONGEST.days} days from "
                f"now: if that is a mistake, `vm-sync sites resume {self.site}` ends it"
            )
        return found

    def facts(self) -> dict[str, str | None]:
        """Return what its record has as JSON, with the field names of the record."""
        return {"until": rfc3339(self.until), "since": rfc3339(self.since), "by": self.by, "reason": self.reason}

    @override
    def __str__(self) -> str:
        """Describe it as a clause for people."""
        by = f" by {self.by}" if self.by else ""
        since = f" since {_second(self.since)}" if self.since else ""
        why = f": {self.reason}" if self.reason else ""
        return f"site {self.site} is paused{by}{since} until {_second(self.until)}{why}"


@dataclass(frozen=True, slots=True)
class InvalidPause:
    """An invalid record: the part that is wrong and what it must be; contains nothing of the record."""

    field: str
    rule: str

    @override
    def __str__(self) -> str:
        """Describe it in a few words."""
        return f"{self.field}: {self.rule}"


class _Value(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    until: AwareDatetime
    since: AwareDatetime | None = None
    by: Note | None = None
    reason: Note | None = None


_SITE: Final = TypeAdapter(Site)

_RULES: Final = {
    "key": "a name of 1 to 255 printable characters",
    "until": "a moment such as 2026-03-01T22:00:00Z",
    "since": "a moment such as 2026-03-01T22:00:00Z",
    "by": "a string of 1 to 255 printable characters",
    "reason": "a string of 1 to 255 printable characters",
}


def public_name(site: str | None) -> str:
    """Return the name by which pauses call a site; None is the local site."""
    return site or LOCAL


def write_pause(pause: SitePause) -> tuple[bytes, bytes]:
    """Return key and value of a pause's record; whether others can read it, `read_pause` says."""
    given = {name: text for name, text in pause.facts().items() if text is not None}
    return pause_key(pause.site), json.dumps(given).encode()


def pause_key(site: str) -> bytes:
    """Return the key of a site's pause; a name with bytes that are not UTF-8, from a command line, gets these bytes."""
    return PREFIX + site.encode("utf-8", "surrogateescape")


def read_pause(key: bytes | None, value: bytes | None) -> SitePause | InvalidPause | None:
    """Read a record; None: it is no pause, but a resume or of another kind. Never raises."""
    if key is None or not key.startswith(PREFIX) or value is None:
        return None
    try:
        site = _SITE.validate_python(key.removeprefix(PREFIX).decode())
    except (UnicodeDecodeError, ValidationError):
        return InvalidPause("key", _RULES["key"])
    try:
        read = _Value.model_validate_json(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        name = str(found["loc"][0]) if found["loc"] else ""
        return InvalidPause(name, _RULES[name]) if name in _RULES else InvalidPause("value", "a JSON object")
    try:
        until, since = read.until.astimezone(UTC), None if read.since is None else read.since.astimezone(UTC)
    except OverflowError:  # the first and the last hours that Python knows, in another zone
        return InvalidPause("until", _RULES["until"])
    return SitePause(site=site, until=until, since=since, by=read.by, reason=read.reason)


class SitePauses:
    """The pauses of all sites, from the control topic's records in the order of writing."""

    def __init__(self) -> None:
        self._pauses: dict[str, SitePause] = {}
        self._invalid: dict[bytes, tuple[int, str]] = {}
        self._keys: set[bytes] = set()

    def take(self, key: bytes | None, value: bytes | None, *, offset: int) -> None:
        """Take the next record; a later one of a key replaces an earlier one."""
        if key is None or not key.startswith(PREFIX):
            return
        read = read_pause(key, value)
        self._keys.add(key)
        self._invalid.pop(key, None)
        if isinstance(read, SitePause):
            self._pauses[read.site] = read
            return
        self._pauses.pop(key.removeprefix(PREFIX).decode(errors="replace"), None)
        if isinstance(read, InvalidPause):
            self._invalid[key] = offset, str(read)

    def keep(self, known: "SitePauses", *, now: datetime) -> None:
        """Keep the pauses of an earlier reading of which this whole reading of the topic has no record at all."""
        for site, pause in known.by_site().items():
            if pause.lasts(now) and pause_key(site) not in self._keys:
                self._pauses[site] = replace(pause, recorded=False)

    def by_site(self) -> Mapping[str, SitePause]:
        """Return the latest pause of each site that was not resumed, also if it is over."""
        return MappingProxyType(dict(self._pauses))

    @property
    def invalid(self) -> int:
        """How many keys have an invalid latest record."""
        return len(self._invalid)

    def is_invalid(self, key: bytes) -> bool:
        """Whether the latest record of a key is invalid."""
        return key in self._invalid

    def faults(self) -> list[str]:
        """Describe the invalid records, each by its offset."""
        some = sorted(self._invalid.values())[:MOST_REPORTED]
        return [f"the record at offset {offset} is invalid ({detail})" for offset, detail in some]


def _second(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%SZ}"
