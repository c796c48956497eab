"""`vm-sync check`: checks that Kafka and VCDA provide all that the service needs, without changing anything."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

import typer

from service import wiring
from service.checks import Result, Status
from service.cli import interrupts
from service.cli.output import Exit, NoAnswer, printable, show, show_json
from service.clock import Clock
from service.kafka.check import GROUP as KAFKA
from service.settings import Settings, load

STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILURE: "bold red", Status.SKIPPED: "dim"}


def check(*, as_json: bool, vcda_may_fail: bool = False, unreachable_may_fail: bool = False) -> None:
    """Print what was found, each line as soon as it is known; exit with what it comes to."""
    settings = load()
    with _quiet("aiokafka", "service"):
        found = interrupts.run(_results(settings, each=(lambda _: None) if as_json else Lines().print))
    if as_json:
        show_json(
            {
                "works": exit_code(found) is Exit.DONE,
                "checks": [
                    {
                        "about": result.group,
                        "check": result.check,
                        "result": result.status,
                        "text": result.text,
                        "settings": list(result.settings),
                    }
                    for result in found
                ],
            }
        )
    else:
        print(f"\n{summary(found)}")
    code = exit_code(found, vcda_may_fail=vcda_may_fail, unreachable_may_fail=unreachable_may_fail)
    if code:
        raise typer.Exit(code)


def exit_code(found: list[Result], *, vcda_may_fail: bool = False, unreachable_may_fail: bool = False) -> Exit:
    """Return what the results come to: NO where something said no, else NO_ANSWER where something didn't answer.

    DONE where only that failed which may fail.
    """
    counted = [result for result in found if result.group == KAFKA or not vcda_may_fail]
    failed = [result for result in counted if result.status is Status.FAILURE]
    if any(result.answered for result in failed):
        return Exit.NO
    return Exit.NO_ANSWER if failed and not unreachable_may_fail else Exit.DONE


def summary(found: list[Result]) -> str:
    """Say in a sentence what the results come to."""
    count = {status: sum(result.status is status for result in found) for status in Status}
    said = [
        f"{count[status]} {word if count[status] == 1 else plural}"
        for status, word, plural in (
            (Status.FAILURE, "failure", "failures"),
            (Status.WARNING, "warning", "warnings"),
            (Status.SKIPPED, "skipped check", "skipped checks"),
        )
        if count[status]
    ]
    comes_to = {
        Exit.DONE: "The service will work",
        Exit.NO: "The service won't work like this",
        Exit.NO_ANSWER: "The service can't work at present",
    }
    return f"{comes_to[exit_code(found)]}: {', '.join(said) or 'all checks are ok'}."


class Lines:
    """Prints results as lines under headings, in the order in which they come."""

    def __init__(self) -> None:
        self._group = ""

    def print(self, result: Result) -> None:
        """Print one; at a terminal, a long text goes on below itself."""
        if result.group != self._group:
            print(f"{chr(10) if self._group else ''}{printable(result.group)}")
            self._group = result.group
        text = printable(result.text)
        if not sys.stdout.isatty():
            print(f"  {result.status:<7}  {result.check:<16}  {text}", flush=True)
            return
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2, 0, 0))
        for width in (0, 7, 16):
            grid.add_column(min_width=width, no_wrap=True)
        grid.add_column()
        grid.add_row("", Text(result.status, style=STYLES[result.status]), result.check, Text(text))
        show(grid)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep logs to themselves: what they have to say stands in the results."""
    logs = [logging.getLogger(name) for name in names]
    for log in logs:
        log.propagate = False
        log.addHandler(logging.NullHandler())  # or Python would write them itself
    try:
        yield
    finally:
        for log in logs:
            log.propagate = True


async def _results(settings: Settings, *, each: Callable[[Result], None]) -> list[Result]:
    """Check Kafka and VCDA at the same time; `each` is given Kafka's results first, whichever come first."""
    try:
        kafka, vcda = wiring.for_checks(settings, clock=Clock(), version=version("vm-sync"))
    except wiring.Misfit as error:
        raise NoAnswer(str(error), code=Exit.USAGE) from None
    found: list[Result] = []
    async with asyncio.TaskGroup() as group:
        streams = [asyncio.Queue[Result | None]() for _ in range(2)]
        for made, stream in zip((kafka.results(), vcda.results()), streams, strict=True):
            group.create_task(_fill(stream, made))
        for stream in streams:
            while (result := await stream.get()) is not None:
                found.append(result)
                each(result)
    return found


async def _fill(stream: "asyncio.Queue[Result | None]", made: AsyncIterator[Result]) -> None:
    async for result in made:
        stream.put_nowait(result)
    stream.put_nowait(None)
