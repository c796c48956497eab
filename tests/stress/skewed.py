"""`python -m tests.stress.skewed SECONDS`: the service with a wall clock that is wrong by so many seconds.

The monotonic clock stays right, as on a machine whose NTP has failed.
"""

import asyncio
import signal
import sys
from datetime import timedelta

from service.app import App
from service.clock import Clock
from service.observability import logs
from service.settings import load, secrets


async def _serve(skew: timedelta) -> int:
    settings = load()
    output = logs.configure(form=settings.log.format, level=settings.log.level, secrets=secrets(settings))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return await App(settings, output=output, clock=Clock(skew=skew)).run(stop)


if __name__ == "__main__":
    sys.exit(asyncio.run(_serve(timedelta(seconds=float(sys.argv[1])))))
