"""Rights that Kafka denies: which right on what, as a sentence that names the user and the setting, and since when.

Every client reports what it was denied; this module logs a denial once a minute while it lasts, and regards it as over
when it has not been reported for some seconds. It never decides what follows from a denial.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, Self

from aiokafka.errors import (
    BrokerResponseError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    InvalidTimestampError,
    KafkaError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from typing_extensions import override

from service.clock import Clock

log = logging.getLogger(__name__)

AGAIN: Final = timedelta(minutes=1)
"""How often a denial that lasts is logged."""

LASTS: Final = timedelta(seconds=5)
"""A denial that the consumer reports each second is over when it has not been reported for so long."""

LASTS_AT_JOURNALS: Final = timedelta(seconds=20)
"""The same for a journal: while it is denied, it is opened again after at most 10 s, and that takes seconds."""


DENIALS: Final = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
"""What Kafka's client raises where a right is missing."""


class Operation(StrEnum):
    """What a right allows, as Kafka's tools call it."""

    READ = "Read"
    WRITE = "Write"
    CREATE = "Create"
    DESCRIBE = "Describe"
    DESCRIBE_CONFIGS = "DescribeConfigs"


class Resource(StrEnum):
    """What a right is about, likewise."""

    TOPIC = "topic"
    GROUP = "group"
    TRANSACTIONAL_ID = "transactional id"


@dataclass(frozen=True, slots=True)
class MissingRight:
    """A right that somebody lacks."""

    operation: Operation
    resource: Resource
    name: str

    @classmethod
    def of(
        cls,
        error: BaseException,
        *,
        operation: Operation,
        group: str = "",
        topics: Iterable[str] = (),
        transactional_id: str = "",
    ) -> Self | None:
        """Understand what Kafka's client has raised during an `operation`; None: it isn't about rights.

        `group`, `topics` and `transactional_id` are what the operation was about, where the error doesn't say.
        """
        named = error.args[0] if error.args else None
        match error:
            case GroupAuthorizationFailedError():
                return cls(Operation.READ, Resource.GROUP, group or str(named or ""))
            case TransactionalIdAuthorizationFailed():
                return cls(Operation.WRITE, Resource.TRANSACTIONAL_ID, str(named or transactional_id))
            case TopicAuthorizationFailedError():
                found = sorted(named) if isinstance(named, set | frozenset | list | tuple) else [named or ""]
                return cls(operation, Resource.TOPIC, ", ".join(map(str, found if any(found) else topics)))
            case ClusterAuthorizationFailedError():
                return cls(operation, Resource.TOPIC, ", ".join(topics))
            case _:
                return None

    @override
    def __str__(self) -> str:
        """Name the right: `Write on topic vm-sync.completed`."""
        return f"{self.operation} on {self.resource} {self.name}".rstrip()


def explain(error: BaseException) -> str:
    """Say in one line what Kafka's client has raised; of an error that it has wrapped, what it has wrapped.

    A refusal without words of its own is described in Kafka's, of which the first sentence does.
    """
    if type(error) is KafkaError and isinstance(error.__cause__, KafkaError):
        return explain(error.__cause__)
    text = str(error)
    if isinstance(error, BrokerResponseError):
        text = " ".join(map(str, error.args)) or error.description.partition(". ")[0].removesuffix(".")
    if isinstance(error, InvalidTimestampError):
        text += ": compare this machine's clock with the brokers'"
    if isinstance(error, InvalidSessionTimeoutError):
        text += (
            ": compare VM_SYNC_KAFKA__SESSION_TIMEOUT with the brokers' group.min.session.timeout.ms and "
            "group.max.session.timeout.ms"
        )
    name, text = type(error).__name__, " ".join(text.split())
    return f"{name}: {text.removeprefix(f'{name}: ')}" if text and text != name else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whom Kafka sees in us, and which settings name what we ask for."""

    principal: str = "this user"
    settings: Mapping[str, str] = field(default_factory=dict)
    """By the name of a topic or group, the setting that has it."""

    def denial(self, right: MissingRight) -> str:
        """Say that the right is missing, and what to do."""
        setting = self._setting(right)
        return (
            f"Kafka denies {self.principal} the right {right}{f' ({setting})' if setting else ''}: grant it to "
            f"{self.principal} by an ACL"
        )

    def _setting(self, right: MissingRight) -> str | None:
        if right.resource is Resource.TRANSACTIONAL_ID:  # `<journal>-<partition>` and `<dead letters>-redrive`
            return self.settings.get(right.name.rpartition("-")[0])
        return self.settings.get(right.name)


def principal(security: Mapping[str, Any]) -> str:
    """Return whom Kafka sees in a client with these of aiokafka's arguments, as its ACLs spell it, where we know."""
    if name := security.get("sasl_plain_username"):
        return f"User:{name}"
    protocol = str(security.get("security_protocol", "PLAINTEXT"))
    if protocol == "PLAINTEXT":
        return "User:ANONYMOUS"
    return "the user of the token" if protocol.startswith("SASL") else "the user of the client certificate"


@dataclass(slots=True)
class _Denial:
    """Something that is denied again and again. Moments are monotonic."""

    about: str
    since: float
    heard_at: float
    logged_at: float
    lasts: float


class Denials:
    """The denials that last, by their texts."""

    def __init__(self, account: Account, *, clock: Clock) -> None:
        self._account = account
        self._clock = clock
        self._denials: dict[str, _Denial] = {}

    def note(self, right: MissingRight, *, lasts: timedelta = LASTS) -> None:
        """Take a denial; it is over when it wasn't reported for as long as it `lasts`, or once it is allowed."""
        self.note_text(self._account.denial(right), about=right.name, lasts=lasts)

    def note_text(self, text: str, *, about: str = "", lasts: timedelta = LASTS) -> None:
        """Take something else that a broker refuses."""
        now = self._clock.monotonic()
        denial = self._denials.get(text)
        if denial is None:
            self._denials[text] = _Denial(about, now, now, now, lasts.total_seconds())
            log.warning("%s; trying again until it is allowed", text)
            return
        if now - denial.logged_at >= AGAIN.total_seconds():
            denial.logged_at = now
            log.warning("%s; still trying again", text)
        denial.heard_at = now

    def allowed(self, *names: str) -> None:
        """Take it that what was done to these topics or ids is allowed."""
        for text, denial in list(self._denials.items()):
            if denial.about in names:
                self._forget(text)

    def current(self) -> list[str]:
        """Return what is denied at present."""
        now = self._clock.monotonic()
        return [text for text, denial in self._denials.items() if now - denial.heard_at <= denial.lasts]

    def lasting(self, *names: str) -> float:
        """Return for how many seconds something has been denied of these topics and groups; 0: nothing is."""
        now = self._clock.monotonic()
        since = [
            denial.since
            for denial in self._denials.values()
            if denial.about in names and now - denial.heard_at <= denial.lasts
        ]
        return now - min(since, default=now)

    def forget_past(self) -> None:
        """Forget the denials that are over, and say so."""
        for text in self._denials.keys() - set(self.current()):
            self._forget(text)

    def _forget(self, text: str) -> None:
        del self._denials[text]
        log.info("No longer denied: %s", text)
