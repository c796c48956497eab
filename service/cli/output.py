"""Output of all commands: exit codes, stdout and stderr, and one sentence for each error.

A command raises `NoAnswer`, `SettingsError` or an error of Kafka; this module prints them. Unknown exceptions are not
caught: a bug keeps its stack trace.
"""

import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import IntEnum
from typing import Annotated, Any, Final, NoReturn, TypeAlias

import typer
from typer.core import TyperGroup
from typing_extensions import Buffer, override

WIDE: Final = 240
"""Columns where there is no terminal to fit: nothing is cut that a `grep` may look for."""

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]


class Exit(IntEnum):
    """The exit codes; the package's docstring describes them."""

    DONE = 0
    NO = 1
    USAGE = 2
    NO_ANSWER = 3


INTERRUPTED: Final = 130
"""The exit code after Ctrl-C, as shells have it."""

UNREAD: Final = 141
"""The exit code where the reader of stdout has left, as shells have it for programs that SIGPIPE ends."""


class NoAnswer(Exception):
    """A command can't do what was asked; the text is one sentence that says what to do."""

    def __init__(self, text: str, *, code: Exit = Exit.NO_ANSWER) -> None:
        super().__init__(text)
        self.code = code


class Undelivered(Exception):
    """Standard output takes no more: its disk is full, its reader has left, or it was closed from the start."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.unread = error.errno == errno.EPIPE


class _Output(io.RawIOBase):
    """Standard output, with its errors as a class of their own."""

    def __init__(self, file: int | None) -> None:
        super().__init__()
        self._file = file
        self._given_up = False

    @override
    def writable(self) -> bool:
        return True

    @override
    def fileno(self) -> int:
        return super().fileno() if self._file is None else self._file

    @override
    def isatty(self) -> bool:
        return self._file is not None and os.isatty(self._file)

    @override
    def write(self, data: Buffer, /) -> int:
        if self._given_up:  # Python tries again what is left at its end
            return memoryview(data).nbytes
        try:
            if self._file is None:
                raise OSError(errno.EBADF, "standard output is closed")
            return os.write(self._file, data)
        except OSError as error:
            self._given_up = True
            raise Undelivered(error) from None


@contextmanager
def delivering() -> Iterator[None]:
    """Turn an answer that can't be written into an exit code, and a sentence unless its reader left, as `head` does.

    Raises:
        SystemExit: it could not be written.
    """
    closed, encoding = sys.stdout is None, getattr(sys.stdout, "encoding", "utf-8")
    raw = _Output(None if closed else sys.stdout.fileno())
    output = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.isatty())
    sys.stdout = output
    try:
        try:
            yield
        finally:
            output.flush()
    except Undelivered as error:
        _leave(error)
    except BaseExceptionGroup as group:  # of a task group that it has ended
        undelivered, others = group.split(Undelivered)
        if undelivered is None or others is not None:
            raise
        _leave(_leaf(undelivered))


def _leaf(group: "BaseExceptionGroup[Undelivered]") -> Undelivered:
    first = group.exceptions[0]
    return first if isinstance(first, Undelivered) else _leaf(first)


def _leave(error: Undelivered) -> NoReturn:
    if error.unread:
        raise SystemExit(UNREAD) from None
    say(f"Writing the output failed: {error}.")
    raise SystemExit(Exit.NO_ANSWER) from None


class Answering(TyperGroup):
    """The program: prints the error of a command as a sentence, and turns it into an exit code."""

    @override
    def invoke(self, ctx: Any) -> Any:
        from service.settings import SettingsError

        try:
            return super().invoke(ctx)
        except SettingsError as error:
            for line in error.lines:
                say(line)
            raise typer.Exit(Exit.USAGE) from None
        except NoAnswer as error:
            say(str(error))
            raise typer.Exit(error.code) from None


def show_json(value: object) -> None:
    """Print the answer for a program; characters that could control a terminal are written as JSON escapes them."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    print("\n".join([line if line.isprintable() else _escaped(line) for line in lines]))


def _escaped(line: str) -> str:
    return "".join([char if char.isprintable() else json.dumps(char)[1:-1] for char in line])


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print one object for a person, a fact in each line; a long one goes on in the next line, uncut.

    What could control the terminal is escaped.
    """
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, fact in facts:
        grid.add_row(Text(printable(name), style="bold"), Text(printable(fact), overflow="fold"))
    show(grid)


def show(what: object) -> None:
    """Print what rich can draw."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(what)
        return
    console = Console(width=WIDE)
    with console.capture() as drawn:
        console.print(what)
    print("\n".join([line.rstrip() for line in drawn.get().strip("\n").splitlines()]))


def printable(text: str | bytes | None) -> str:
    """Escape text or bytes from elsewhere, so that they can't control the terminal."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return "".join([char if char.isprintable() else ascii(char)[1:-1] for char in text or ""])


def refuse_undecodable(texts: Mapping[str, str | None]) -> None:
    """Refuse texts, by the names of their options, that have bytes which are not UTF-8: nobody could read them.

    Raises:
        NoAnswer: one has.
    """
    for option, text in texts.items():
        if text is not None and any("\ud800" <= char <= "\udfff" for char in text):
            msg = f"{option} has bytes that are not UTF-8: {printable(text)}."
            raise NoAnswer(msg, code=Exit.USAGE)


def moment(at: datetime | None) -> str:
    """Write a moment for a person: UTC, to the second."""
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def say(text: str) -> None:
    """Print a message to stderr that is not part of the result; what could control the terminal is escaped."""
    if sys.stderr is not None:  # else it would go among the answers
        with suppress(OSError):  # there is nowhere else to say it
            print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
