"""The service with its patience shortened, and a breaking point: `python -m tests.stress.fragile NAME=SECONDS ...`.

NAME is a constant of service.app. SIGUSR1 ends the reading loop in silence, as no known defect does.
"""

import asyncio
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta

from typing_extensions import override

from service import app, wiring
from service.intake.group import Intake
from service.settings import load


class Fragile(Intake):
    """An intake whose reading can be broken from outside."""

    @override
    async def start(self) -> None:
        await super().start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._stop_reading)

    def _stop_reading(self) -> None:
        for task in self._subscriber._subscriber.tasks:
            task.cancel()


def command(**seconds: float) -> tuple[str, ...]:
    """Return what to put before the service's own command."""
    return sys.executable, "-m", "tests.stress.fragile", *(f"{name}={value}" for name, value in seconds.items())


def main(arguments: Sequence[str]) -> int:
    """Run the service; arguments that say nothing here are left alone."""
    for name, _, seconds in (argument.partition("=") for argument in arguments if "=" in argument):
        assert isinstance(getattr(app, name), timedelta)
        setattr(app, name, timedelta(seconds=float(seconds)))
    setattr(wiring, Intake.__name__, Fragile)
    return app.serve(load())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
