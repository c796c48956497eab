"""What a request that was accepted waits for before its POST. The words of `/syncs` and of a metric's label."""

from enum import StrEnum


class WaitCause(StrEnum):
    """Why a waiting request is not submitted now."""

    SITE_PAUSED = "site_paused"
    """Calls to its site failed, or its site asked for a pause."""
    CIRCUIT_OPEN = "circuit_open"
    """The circuit breaker of its site is open: one call at a time is tried."""
    NO_CREDENTIALS = "no_credentials"
    """There are no credentials for its site. Counted for what runs there, too, since it can't be polled."""
    ELDER = "elder"
    """An older request of the same replication has not ended."""
    LIMIT = "limit"
    """As many POSTs or syncs as allowed are under way at its site."""
    BUSY = "busy"
    """VCDA said that the replication is busy (409)."""
    OTHER = "other"
    """Anything else: a pause before a POST is repeated, a partition that is handed over, a turn that comes now."""
