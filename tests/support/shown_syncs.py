"""Syncs as `/syncs` shows them, and a process that is ready, for tests."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from service.messages.wait_cause import WaitCause
from service.ops.health import Health
from service.partition.waiting import WaitsFor
from service.sync import ApiError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ELDER = WaitsFor(WaitCause.ELDER, "request op-0 is running", until=NOW, behind="op-0")
BUSY = ApiError("Busy", "A sync is running.")
AWAY_FOR_LONG = timedelta(minutes=1)


@dataclass
class Shown:
    """What is shown of a sync; see `ops.syncs_page`."""

    identity: str
    replication_id: str = "C4-1"
    operation_id: str = "op"
    site: str | None = None
    state: str = "running"
    partition: int = 3
    attempts: int = 1
    task_id: str | None = "task"
    progress: int | None = 40
    accepted_at: datetime = NOW
    submitted_at: datetime | None = None
    deadline: datetime = NOW + timedelta(hours=6)
    held: bool = False
    error: ApiError | None = BUSY
    http_status: int | None = 409
    waits_for: WaitsFor | None = ELDER


def ready() -> Health:
    health = Health(away_for_long=AWAY_FOR_LONG)
    health.joined()
    health.restored()
    return health


def ids(shown: dict[str, Any]) -> list[str]:
    return [sync["requestId"] for sync in shown["syncs"]]
