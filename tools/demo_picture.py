"""Make `docs/demo.svg` from a real run of the demo: `python -m tools.demo_picture`, a minute.

It runs `vm-sync demo` at a terminal of its own and shows one moment of the live view, the last one in which more syncs
run than it has room for, and what is printed at the end. `--from` takes what an earlier run wrote to its terminal.
"""

import argparse
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Mapping
from fcntl import ioctl
from io import StringIO
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "demo.svg"
COLUMNS, LINES = 120, 44

ERASED: Final = re.compile(r"\r(?:\x1b\[2K)?(?:\x1b\[1A\x1b\[2K)+")
"""What rich writes to take the live view away, before it draws the next one and at the end."""

FONT: Final = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)
"""Fonts from a server: the reader's own monospaced one will do."""


def recorded() -> str:
    """Run the demo and return all that it writes to its terminal."""
    return at_a_terminal("demo", columns=COLUMNS, environment=os.environ)


def at_a_terminal(
    *arguments: str, columns: int, environment: Mapping[str, str], failing: bool = False, quits: float | None = None
) -> str:
    """Run `vm-sync` and return all that it writes to its terminal; it has to succeed unless it is `failing`.

    After `quits` seconds q is pressed.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        size = {"COLUMNS": str(columns), "LINES": str(LINES), "TERM": "xterm-256color"}
        command = str(Path(sys.executable).with_name("vm-sync"))
        os.execve(command, [command, *arguments], {**environment, **size})  # noqa: S606 - our own command
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    ended = threading.Event()
    if quits is not None:
        threading.Thread(target=_press_q, args=(terminal, quits, ended), daemon=True).start()
    written = bytearray()
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that nobody has the other end any more
            break
        if not read:
            break
        written += read
    ended.set()
    _, status = os.waitpid(pid, 0)
    if bool(status) != failing:
        sys.exit(f"vm-sync {' '.join(arguments)} ended otherwise:\n{written.decode(errors='replace')[-2000:]}")
    return written.decode()


def _press_q(terminal: int, after: float, ended: threading.Event) -> None:
    """Press q again and again: what is typed before a program is ready may be lost."""
    while not ended.wait(after):
        os.write(terminal, b"q")
        after = 1.0


def scene(text: str) -> str:
    """Return what the picture shows: one moment of the live view, and the end."""
    first, *frames, end = ERASED.split(text.replace("\r\n", "\n"))
    del first
    busy = [frame for frame in frames if re.search(r"and \d+ mo", frame) and frame.count("progress") == 1]
    if not busy:
        sys.exit("the live view never had more syncs than it shows: nothing to take a picture of")
    return "\n".join(["\x1b[1m$ vm-sync demo\x1b[0m", busy[-1].rstrip(), "", *end.rstrip().splitlines()])


def svg(text: str, *, title: str = "vm-sync demo", columns: int = COLUMNS) -> str:
    """Draw it."""
    console = Console(record=True, width=columns, file=StringIO(), force_terminal=True)
    console.print(Text.from_ansi(re.sub(r"\x1b\[\?\d+[hl]", "", text)), soft_wrap=True)
    form = FONT.sub("", CONSOLE_SVG_FORMAT)
    drawn = console.export_svg(title=title, theme=MONOKAI, code_format=form, unique_id=title.rsplit(maxsplit=1)[-1])
    return "".join(f"{line.rstrip()}\n" for line in drawn.splitlines())


def main() -> None:
    """Write into the repository."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_picture", description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, help="a file with what an earlier run wrote")
    source = parser.parse_args().source
    PAGE.write_text(svg(scene(source.read_bytes().decode() if source else recorded())), encoding="utf-8")


if __name__ == "__main__":
    main()
