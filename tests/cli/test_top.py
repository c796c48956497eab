"""`vm-sync top` against a real Kafka: printed once, and live at a terminal of its own."""

import asyncio
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fcntl import ioctl
from typing import Any, Final

import pytest

from service.cli import instances, top
from service.cli.top import Live
from service.cli.top_state import TopState
from service.kafka import journal_codec as records
from service.sandbox.kafka import EmbeddedKafka
from service.sync import Sync
from tests.cli.test_top_state import outcome, running, waiting
from tests.conftest import TopicNamer
from tests.support.cli_scene import Scene
from tests.support.virtual_time import virtual

PATIENCE: Final = 60.0


def note(scene: Scene, *syncs: Sync) -> None:
    scene.write("journal", *[{"key": one.request.identity.encode(), "value": records.encode(one)} for one in syncs])


@pytest.fixture
def busy(scene: Scene) -> Scene:
    """With two sites, and an outcome of this minute and one of yesterday."""
    note(scene, *[waiting(number, "site2" if number % 3 else None) for number in range(1, 30)], running(0))
    now = int(datetime.now(UTC).timestamp() * 1000)
    scene.write("completed", {"value": outcome(100), "timestamp_ms": now - 86_400_000})
    scene.write("completed", {"value": outcome(101), "timestamp_ms": now})
    scene.write("failed", {"value": outcome(102, "rej\x1bected"), "timestamp_ms": now + 1})
    return scene


def test_once_as_json_has_the_counts_the_oldest_and_the_latest(busy: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def owners(_: object) -> dict[int, str]:
        return {0: "http://a:1", 1: "http://b:1"}

    async def progress(urls: set[str]) -> dict[str, int]:
        assert urls == {"http://a:1", "http://b:1"}
        return {"op:C4-0:op-0": 42}

    monkeypatch.setattr(instances, "owners", owners)
    monkeypatch.setattr(instances, "progress", progress)

    answer = busy.answer("top", "--once")

    assert (answer["inFlight"], answer["states"]["waiting"], answer["states"]["running"]) == (30, 29, 1)
    assert [(one["site"], one["states"]["waiting"]) for one in answer["sites"]] == [("site2", 20), (None, 9)]
    assert (answer["oldest"][0]["operationID"], answer["oldest"][0]["progress"]) == ("op-0", 42)
    assert len(answer["oldest"]) == 12
    assert answer["lastMinute"] == {"completed": 1, "failed": 1}
    assert [one["operationID"] for one in answer["latest"]] == ["op-101", "op-102"]
    assert answer["partitions"] == {"total": 3, "owned": 2, "instances": ["http://a:1", "http://b:1"]}


def test_once_for_people_is_tables_without_anything_cut_and_says_that_nobody_reads(busy: Scene) -> None:
    result = busy.run("top", "--once")

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"20\S+ \S+Z \| in flight 30 \| last minute: 1 completed, 1 failed", lines[0])
    assert lines[1] == "3 partitions, no instance is known to read them"
    assert lines[3].split() == ["site", "waiting", "submitting", "in_doubt", "running", "lingering", "oldest"]
    assert lines[4].split()[:6] == ["site2", "20", "0", "0", "0", "0"]
    assert "failed: rej\\x1bected" in result.stdout


def test_where_nothing_is_in_flight_it_says_so(scene: Scene) -> None:
    assert "| in flight 0 | last minute: 0 completed, 0 failed" in scene.run("top", "--once").stdout


def test_records_of_a_newer_version_are_counted(busy: Scene) -> None:
    busy.write("journal", {"key": b"op:x:y", "value": b'{"v": 2}'})

    assert busy.answer("top", "--once")["unreadable"] == 1
    assert "1 records of the journal can't be read by this version." in busy.run("top", "--once").stderr


def test_json_of_a_live_view_is_refused(scene: Scene) -> None:
    result = scene.run("top", "--json")

    assert (result.exit_code, result.stderr) == (2, "--json needs --once.\n")


@virtual
async def test_an_internal_error_while_instances_are_asked_is_shown_until_they_answer_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live, asked = Live(progress={"op:a": 42}), 0

    async def ask(*_: object) -> None:
        nonlocal asked
        asked += 1
        if asked < 3:
            msg = "state"
            raise KeyError(msg)

    monkeypatch.setattr(top, "_ask", ask)
    shown = TopState(latest=1).moment(datetime(2026, 3, 1, tzinfo=UTC), rows=1)
    nowhere: Any = None
    async with top._asking(nowhere, nowhere, [], live):
        await asyncio.sleep(2.5 * top.ASK_EVERY)
        (note,) = top._notes(shown, live)
        await asyncio.sleep(top.ASK_EVERY)

    assert re.fullmatch(
        r"Internal error since \d\d:\d\d:\d\dZ \(KeyError: 'state'\): what the instances say is from .*", note
    )
    assert (asked, top._notes(shown, live)) == (3, [])


# ---------------------------------------------------------------- at a terminal


class Terminal:
    """A terminal with `vm-sync top` at it; all that was written to it so far."""

    def __init__(self, file: int, process: "subprocess.Popen[bytes]") -> None:
        self.file, self.process = file, process
        self.text = ""

    def until(self, said: str) -> str:
        """Read on until something is said, and return all from the last view before it."""
        give_up = time.monotonic() + PATIENCE
        start = len(self.text)
        while not re.search(said, self.text[start:]):
            assert time.monotonic() < give_up, self.text[-2000:]
            assert self.process.poll() is None, self.text[-2000:]
            try:
                self.text += os.read(self.file, 65536).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.05)
        return self.text[start:]

    def size(self, columns: int, lines: int) -> None:
        ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, key: bytes) -> int:
        """Press a key and return the exit code."""
        os.write(self.file, key)
        give_up = time.monotonic() + PATIENCE
        while (code := self.process.poll()) is None:
            assert time.monotonic() < give_up
            try:
                self.text += os.read(self.file, 65536).decode(errors="replace")
            except (BlockingIOError, OSError):
                time.sleep(0.05)
        return code


@contextmanager
def at_a_terminal(scene: Scene, *arguments: str, columns: int = 80, lines: int = 24) -> Iterator[Terminal]:
    ours, its = pty.openpty()
    os.set_blocking(ours, False)
    ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {name: text for name, text in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "top", *arguments],
        env={**environment, **scene.env, "TERM": "xterm-256color"},
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - for Ctrl-C; nothing else runs in the child
    )
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(its)


def plain(text: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").splitlines()


def test_at_a_terminal_it_follows_the_journal_survives_a_resize_and_ends_with_q(busy: Scene) -> None:
    with at_a_terminal(busy, "--interval", "0.5") as terminal:
        first = terminal.until("q ends")
        assert "in flight 30" in first
        assert all(len(line) <= 80 for line in plain(first))
        before = termios.tcgetattr(terminal.file)[3]

        note(busy, waiting(200, "site2"), waiting(201, "site2"))
        terminal.until("in flight 32")
        terminal.size(60, 15)
        small = terminal.until(r"\x1b\[2J(?s:.)*q ends")
        drawn = plain(small.rpartition("\x1b[2J")[2])
        assert all(len(line) <= 60 for line in drawn)
        assert any(line.split()[:2] == ["site2", "22"] for line in drawn)

        assert terminal.press(b"q") == 0
        assert not before & termios.ECHO, "keys are not shown meanwhile"
        assert termios.tcgetattr(terminal.file)[3] & termios.ECHO, "but afterwards"


def test_ctrl_c_ends_it_too(busy: Scene) -> None:
    with at_a_terminal(busy) as terminal:
        terminal.until("q ends")
        assert terminal.press(b"\x03") == 0
        assert "Traceback" not in terminal.text


def test_while_kafka_is_away_it_says_since_when_and_goes_on_afterwards(
    own_kafka: EmbeddedKafka, topic_name: TopicNamer
) -> None:
    scene = Scene(own_kafka.bootstrap, topic_name)
    assert scene.run("topics", "create").exit_code == 0
    note(scene, waiting(1))
    with at_a_terminal(scene, "--interval", "0.5") as terminal:
        terminal.until("in flight 1")
        own_kafka.stop()
        terminal.until(r"Kafka has not answered since \d\d:\d\d:\d\dZ")
        own_kafka.start()
        note(scene, waiting(2))
        terminal.until("in flight 2")
        assert terminal.press(b"q") == 0
