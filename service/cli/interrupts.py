"""Ctrl-C in commands: the first one cancels what runs, which closes its connections; a second one ends it at once."""

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

from service.cli.output import INTERRUPTED

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does; but a second Ctrl-C ends the process, whatever is still being closed.

    Raises:
        KeyboardInterrupt: on the first Ctrl-C, once all is closed; a Kafka that is away may take its time.
    """
    return asyncio.run(_until_interrupted(main))


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
