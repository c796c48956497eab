"""Ctrl-C in commands: the first one cancels what runs, which closes its connections; a second one ends it at once.

Also, a command's event loop does not wait for name look-ups at its end.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

from typing_extensions import override

from service.cli.output import INTERRUPTED

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does; but a second Ctrl-C ends the process, whatever is still being closed.

    Threads are not waited for: where DNS doesn't answer, a look-up would hold back the result for up to a minute.

    Raises:
        KeyboardInterrupt: on the first Ctrl-C, once all is closed; a Kafka that is away may take its time.
    """
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(_until_interrupted(main))


class _Loop(asyncio.SelectorEventLoop):
    @override
    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Leave the threads to themselves: closing the loop lets them end without it, and `main` ends the process."""


async def _until_interrupted(main: Coroutine[Any, Any, T]) -> T:
    cancel = signal.getsignal(signal.SIGINT)
    here = threading.current_thread() is threading.main_thread()  # no other one may handle it
    if not here or not callable(cancel) or cancel is signal.default_int_handler:
        return await main

    def interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _leave)
        cancel(number, frame)

    signal.signal(signal.SIGINT, interrupted)
    try:
        return await main
    finally:
        if signal.getsignal(signal.SIGINT) is interrupted:
            signal.signal(signal.SIGINT, cancel)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
