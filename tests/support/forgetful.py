"""The service with a defect: `python -m tests.support.forgetful`. After SIGUSR1 the next records read are dropped."""

import asyncio
import signal
import sys
from typing import Any

from typing_extensions import override

from service import app
from service.kafka.consumer import SteadyConsumer
from service.settings import load

_armed = False


def main() -> int:
    """Run the service; arguments say nothing here."""
    getmany = SteadyConsumer.getmany

    async def forgetting(self: SteadyConsumer, *places: Any, **options: Any) -> Any:
        global _armed  # noqa: PLW0603 - a process of its own
        got = await getmany(self, *places, **options)
        if got and _armed:
            _armed = False
            return {}
        return got

    SteadyConsumer.getmany = forgetting  # type: ignore[method-assign]

    class Armed(app.App):
        @override
        async def run(self, stop: asyncio.Event) -> int:
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _arm)
            return await super().run(stop)

    app.App = Armed  # type: ignore[misc]
    return app.serve(load())


def _arm() -> None:
    global _armed  # noqa: PLW0603 - a process of its own
    _armed = True


if __name__ == "__main__":
    sys.exit(main())
