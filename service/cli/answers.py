"""How every command ends: exit codes, where text goes, and one sentence for each thing that can go wrong.

A command raises `NoAnswer` or lets `SettingsError` and Kafka's errors through; they are told here, in one place. It
never swallows what it doesn't know: a bug keeps its stack trace.
"""

import sys
from enum import IntEnum
from typing import Any

import typer
from typer.core import TyperGroup
from typing_extensions import override


class Exit(IntEnum):
    """The exit codes; the package's docstring tells them to people."""

    DONE = 0
    NO = 1
    USAGE = 2
    NO_ANSWER = 3


class NoAnswer(Exception):
    """A command can't do what was asked; the text is one sentence that says what to do."""

    def __init__(self, text: str, *, code: Exit = Exit.NO_ANSWER) -> None:
        super().__init__(text)
        self.code = code


class Answering(TyperGroup):
    """The program: tells what goes wrong in any command in a sentence, and turns it into an exit code."""

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


def say(text: str) -> None:
    """Tell a person something that isn't the answer."""
    print(text, file=sys.stderr, flush=True)
