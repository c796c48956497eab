"""The person who runs a command: the name, and the confirmation of what has consequences."""

import getpass
import sys
from contextlib import suppress

import typer

from service.cli.output import Exit, NoAnswer


def user() -> str | None:
    """Return the name of the operating system's user, who is meant by default."""
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return None


def confirm(question: str, *, what: str, undone: str = "sent") -> None:
    """Let a person at the terminal confirm; `what` is the thing that needs it, `undone` what else was not done.

    Raises:
        NoAnswer: it isn't confirmed, or nobody can be asked.
    """
    if not _at_a_terminal():
        msg = f"Nothing was {undone}: {what} needs --yes where nobody can confirm it at a terminal."
        raise NoAnswer(msg, code=Exit.USAGE)
    try:
        confirmed = typer.confirm(question, err=True)
    except typer.Abort:
        confirmed = False
    if not confirmed:
        msg = f"Nothing was {undone}."
        raise NoAnswer(msg, code=Exit.NO)


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()
