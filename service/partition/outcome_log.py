"""Counts an outcome that is committed to the journal, and logs it in one sentence."""

import logging

from service import sync
from service.partition.dependencies import Dependencies

log = logging.getLogger(__name__)


def record_outcome(outcome: sync.Outcome, *, dependencies: Dependencies, partition: int) -> None:
    """Count it and log it. The lag is VCDA's, from the task's end: measured only where it was a task that ended."""
    now = dependencies.clock.now()
    request = outcome.request
    duration = (now - request.accepted_at).total_seconds()
    lag = None
    if isinstance(outcome, sync.Completed) or outcome.reason is sync.Reason.TASK_FAILED:
        there = dependencies.api.offset(request.site)
        lag = max(0.0, (now - outcome.ended_at).total_seconds() + (there.total_seconds() if there else 0.0))
    dependencies.metrics.outcome(outcome, site=request.site, duration=duration, lag=lag)
    log.info(
        "Sync %s of %s %s after %.1f s",
        request.operation_id,
        request.replication_id,
        "completed" if isinstance(outcome, sync.Completed) else f"failed ({outcome.reason})",
        duration,
        extra={
            "operation_id": request.operation_id,
            "replication_id": request.replication_id,
            "site": request.site,
            "task_id": outcome.task_id,
            "attempts": outcome.attempts,
            "partition": partition,
        },
    )
