"""The causes for which an accepted request waits before its POST, or VCDA is not asked for its task.

They are values in `/syncs` and of a metric's label; the metric counts what waits before its POST, and what can't be
polled for want of credentials.
"""

from enum import StrEnum


class WaitCause(StrEnum):
    """The reason why a waiting request is not submitted now, or a task is neither polled nor looked up."""

    SITE_PAUSED = "site_paused"
    """An operator has paused its site, calls to the site failed, or the site asked for a pause."""
    CIRCUIT_OPEN = "circuit_open"
    """The circuit breaker of its site is open: one call at a time is tried."""
    NO_CREDENTIALS = "no_credentials"
    """There are no credentials for its site. Running syncs of the site are counted too, since they can't be polled."""
    ELDER = "elder"
    """An earlier request for the same replication has not ended."""
    LIMIT = "limit"
    """The site has as many POSTs or syncs as allowed."""
    BUSY = "busy"
    """VCDA answered that the replication is busy (409)."""
    OTHER = "other"
    """Anything else: a pause before a POST is repeated, look-ups after one that was refused, a partition that is handed
    over, a slot that is free now."""


def without_credentials(site: str) -> str:
    """Say in a sentence that a process has no credentials for a site, given by its public name."""
    return f"there are no credentials for site {site} (VM_SYNC_VCDA__SITES)"
