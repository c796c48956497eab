"""Notices that the process has no file descriptor left, and logs it: probes and scrapes can't be answered then."""

import asyncio
import logging
import os
from datetime import timedelta
from typing import Final

from service.clock import Clock
from service.endpoints import lacks_descriptors

log = logging.getLogger(__name__)

LOOK: Final = timedelta(seconds=1)
"""How often a descriptor is asked for: the log is to say it before Kubernetes restarts the process, after a minute."""

AGAIN: Final = timedelta(minutes=1)
"""How often it is logged while it lasts."""


async def watch(clock: Clock) -> None:
    """Log it when no file descriptor is left, and when there are some again. Never returns."""
    since: float | None = None
    logged_at = 0.0
    while True:
        await asyncio.sleep(LOOK.total_seconds())
        now = clock.monotonic()
        if not _lacking():
            if since is not None:
                log.warning("There are file descriptors again, after %.0f s", now - since)
                since = None
        elif since is None or now - logged_at >= AGAIN.total_seconds():
            since = now if since is None else since
            logged_at = now
            log.error(
                "No file descriptor is left: no connection to VCDA or Kafka can be opened, and no probe can be "
                "answered; raise the limit of open files (ulimit -n)"
            )


def _lacking() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return lacks_descriptors(error)
    return False
