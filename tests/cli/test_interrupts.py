"""Ctrl-C in commands: the first one lets them close what they have opened, the second ends them at once."""

import ast
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service import cli
from service.cli import interrupts

PROGRAM = """
import asyncio
from service.cli import interrupts

async def main():
    print("runs", flush=True)
    try:
        await asyncio.sleep(600)
    finally:
        print("closes", flush=True)
        await asyncio.sleep({closing})

try:
    interrupts.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@contextmanager
def program(*, closing: float) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", PROGRAM.format(closing=closing)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_first_ctrl_c_lets_a_command_close_what_it_has_opened() -> None:
    with program(closing=0.1) as process:
        assert said(process) == "runs"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=240)

    assert (output.split(), errors, process.returncode) == (["closes", "interrupted"], "", 0)


def test_the_second_ctrl_c_ends_it_at_once_without_a_traceback() -> None:
    with program(closing=600.0) as process:
        assert said(process) == "runs"
        process.send_signal(signal.SIGINT)
        assert said(process) == "closes"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=240)

    assert (output, errors, process.returncode) == ("", "", 130)


async def test_a_command_that_another_thread_runs_leaves_ctrl_c_alone() -> None:
    handler = signal.getsignal(signal.SIGINT)
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGINT, lambda number, frame: None)  # as an event loop of the main thread sets one
    try:
        assert await loop.run_in_executor(None, lambda: interrupts.run(asyncio.sleep(0, "done"))) == "done"
    finally:
        signal.signal(signal.SIGINT, handler)


def test_every_command_that_a_person_may_interrupt_is_run_like_this() -> None:
    found = {
        path.name
        for path in Path(cli.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"asyncio.run", "asyncio.Runner"}
    }

    assert found == {"interrupts.py"}


LOOK_UP_HANGS = """
import socket, sys, time
from service import cli

socket.getaddrinfo = lambda *_, **__: time.sleep(600)
sys.argv = ["vm-sync", "list"]
cli.main()
"""


def test_a_command_gives_its_result_and_ends_although_a_name_look_up_hangs() -> None:
    servers = {"VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": "kafka.example:9092"}
    command = [sys.executable, "-c", LOOK_UP_HANGS]
    done = subprocess.run(command, env=os.environ | servers, capture_output=True, text=True, check=False, timeout=240)

    assert done.stderr.startswith("Kafka can't be reached at kafka.example:9092")
    assert done.returncode == 3


IN_AN_IMPORT = """
import sys
from service import cli

class Interrupting:
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
sys.argv = ["vm-sync", "list"]
cli.main()
"""


@pytest.mark.parametrize("module", ["service.cli.process", "service.cli.commands"])
def test_ctrl_c_while_a_command_is_still_being_imported_shows_no_traceback(module: str) -> None:
    command = [sys.executable, "-c", IN_AN_IMPORT.format(module=module)]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)

    assert (done.stdout, done.stderr, done.returncode) == ("", "", 130)
