"""Reads the events on the outcome topics, as any other program could: only the fields of the contract."""

from datetime import UTC, datetime
from typing import Annotated, Final, TypeAlias

import msgspec

from service.messages.outcomes import describe_error
from service.sync import ApiError

Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]


class EventError(msgspec.Struct, frozen=True, gc=False):
    """VCDA's words, or the service's."""

    code: str
    msg: str = ""


class OutcomeEvent(msgspec.Struct, rename="camel", frozen=True, kw_only=True, gc=False):
    """SyncCompleted or SyncFailed; only the latter has a reason. Fields that are not needed here are ignored."""

    request_id: str
    operation_id: str = msgspec.field(name="operationID")
    replication_id: str
    site: str | None = None
    task_id: str | None = None
    requested_at: Moment
    submitted_at: Moment | None = None
    ended_at: Moment
    attempts: int = 0
    reason: str | None = None
    error: EventError | None = None
    http_status: int | None = None

    def __post_init__(self) -> None:
        """Refuse moments that don't exist in UTC, as the first and the last hours that Python knows in another zone.

        Raises:
            OverflowError: there is one.
        """
        for moment in (self.requested_at, self.submitted_at, self.ended_at):
            if moment is not None:
                moment.astimezone(UTC)

    @property
    def outcome(self) -> str:
        """In one word, as the metrics have it."""
        return "completed" if self.reason is None else "failed"

    @property
    def described(self) -> str:
        """The error in a sentence; empty if there is none."""
        error = None if self.error is None else ApiError(self.error.code, self.error.msg)
        return describe_error(error, self.http_status)


def read_event(value: bytes | None) -> OutcomeEvent | None:
    """Read an event; None: it is no outcome, or one that this version can't read."""
    try:
        return _read(value or b"")
    except (ValueError, OverflowError, RecursionError):  # msgspec's errors; the last one is of too many levels
        return None


_read: Final = msgspec.json.Decoder(OutcomeEvent).decode
