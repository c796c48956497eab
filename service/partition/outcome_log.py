"""Counts an outcome that is committed to the journal, and logs it in one sentence: a failure with its error.

The last failures are kept for the page at `/`.
"""

import logging

from service import sync
from service.messages.outcomes import describe_error
from service.partition.dependencies import Dependencies
from service.partition.recent_outcomes import Failure

log = logging.getLogger(__name__)


def record_outcome(outcome: sync.Outcome, *, dependencies: Dependencies, partition: int) -> None:
    """Count it and log it; keep it if it is a failure.

    The lag is VCDA's, from the task's end: measured only where it was a task that ended.
    """
    now = dependencies.clock.now()
    request = outcome.request
    duration = (now - request.accepted_at).total_seconds()
    lag = None
    if isinstance(outcome, sync.Completed) or outcome.reason is sync.Reason.TASK_FAILED:
        there = dependencies.api.site_clock(request.site)
        lag = max(0.0, (now - outcome.ended_at).total_seconds() + (there.offset.total_seconds() if there else 0.0))
    dependencies.metrics.outcome(outcome, site=request.site, duration=duration, lag=lag)
    fields: dict[str, object] = {
        "operation_id": request.operation_id,
        "replication_id": request.replication_id,
        "site": request.site,
        "task_id": outcome.task_id,
        "attempts": outcome.attempts,
        "partition": partition,
    }
    sentence = "Sync %s of %s %s after %.1f s"
    if isinstance(outcome, sync.Completed):
        log.info(sentence, request.operation_id, request.replication_id, "completed", duration, extra=fields)
        dependencies.recent_outcomes.note_completed()
        return
    error = describe_error(outcome.error, outcome.http_status) or _without_error(outcome)
    dependencies.recent_outcomes.note_failure(
        Failure(
            at=now,
            operation_id=request.operation_id,
            replication_id=request.replication_id,
            site=request.site,
            reason=outcome.reason,
            error=error,
        )
    )
    fields |= {"reason": outcome.reason.value, "http_status": outcome.http_status}
    fields |= {"error_code": outcome.error.code if outcome.error else None}
    log.warning(
        f"{sentence}: %s",  # noqa: G004 - the same sentence as above
        request.operation_id,
        request.replication_id,
        f"failed ({outcome.reason})",
        duration,
        error,
        extra=fields,
    )


def _without_error(outcome: sync.Failed) -> str:
    """Return the cause of a failure without an error from VCDA."""
    match outcome.reason:
        case sync.Reason.TIMED_OUT if outcome.task_id is not None:
            return f"the deadline passed while task {outcome.task_id} was running; VCDA may still work on it"
        case sync.Reason.TIMED_OUT:
            return "the deadline passed while a POST was in doubt"
        case sync.Reason.TASK_LOST:
            return f"VCDA no longer knows task {outcome.task_id}"
        case _:
            return "VCDA gave no error"
