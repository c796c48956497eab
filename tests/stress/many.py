"""Measures `vm-sync outcomes`, `top` and `request --from` at large numbers, against the embedded Kafka.

`python -m tests.stress.many [--outcomes 1000000] [--in-flight 50000] [--lines 100000]` writes the records that the
service would have written, runs each command as a process, and prints how long it took and how much memory it held at
most. Some minutes.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaProducer

from service.kafka.journal_codec import encode
from service.messages.outcomes import OutcomeTopics, write_outcome
from service.sandbox.kafka import EmbeddedKafka
from service.sync import ApiError, Completed, Failed, Outcome, Reason, Request, Running, Waiting

Rec = tuple[str, bytes, bytes, list[tuple[str, bytes]]]

TOPICS: Final = OutcomeTopics(completed="vm-sync.completed", failed="vm-sync.failed")

NOW: Final = datetime.now(UTC)

AT_ONCE: Final = 5_000


def a_request(number: int) -> Request:
    at = NOW - timedelta(seconds=number % 80_000)
    return Request(
        identity=f"op:C4-{number:08}-0000-4000-8000-000000000000:nightly-{number}",
        operation_id=f"nightly-{number}",
        replication_id=f"C4-{number:08}-0000-4000-8000-000000000000",
        site=None if number % 3 else f"site{number % 9}",
        offset=number,
        requested_at=at,
        accepted_at=at,
        deadline=at + timedelta(hours=6),
    )


def an_outcome(number: int) -> Outcome:
    request = a_request(number)
    ended = request.accepted_at + timedelta(seconds=30 + number % 3000)
    if number % 50:
        return Completed(
            request=request,
            attempts=1,
            ended_at=ended,
            task_id=f"task-{number}",
            submitted_at=request.accepted_at,
            warnings=(),
            instance=None,
        )
    return Failed(
        request=request,
        attempts=1,
        ended_at=ended,
        task_id=f"task-{number}",
        submitted_at=request.accepted_at,
        warnings=(),
        reason=Reason.TASK_FAILED,
        error=ApiError("ReplicationSyncFailed", "The replicator is out of space."),
        http_status=None,
    )


def outcomes(count: int) -> Iterator[Rec]:
    for number in range(count):
        event = write_outcome(an_outcome(number), topics=TOPICS, now=NOW)
        yield event.topic, event.key or b"", event.value or b"", list(event.headers)  # type: ignore[arg-type]


def journal(count: int) -> Iterator[Rec]:
    for number in range(count):
        request = a_request(number)
        if number % 10:
            state: Waiting | Running = Waiting(request=request, attempts=0)
        else:
            state = Running(
                request=request,
                attempts=1,
                task_id=f"task-{number}",
                site=None,
                account=None,
                submitted_at=NOW,
                adopted=False,
            )
        yield "vm-sync.journal", request.identity.encode(), encode(state), []


async def write(bootstrap: str, records: Iterable[Rec]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, max_batch_size=512 * 1024)
    await producer.start()
    waiting = []
    try:
        for topic, key, value, headers in records:
            waiting.append(await producer.send(topic, value, key=key, headers=headers))
            if len(waiting) >= AT_ONCE:
                await asyncio.gather(*waiting)
                waiting.clear()
        await asyncio.gather(*waiting)
    finally:
        await producer.stop()


def measured(env: Mapping[str, str], *command: str) -> None:
    """Run a command, and print its time and the most memory that it held."""
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", *command],
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said = process.stderr.read() if process.stderr else ""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    took, code = time.monotonic() - began, process.returncode
    print(  # noqa: T201 - a program
        f"{' '.join(command):60} {took:7.1f} s  CPU {used.ru_utime + used.ru_stime:6.1f} s  "
        f"{used.ru_maxrss / 1024:6.0f} MB  exit code {code}",
        flush=True,
    )
    if code:
        print(said[-500:], flush=True)  # noqa: T201 - a program


def main() -> None:
    """Write the records, and run the commands."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.many", description=__doc__)
    parser.add_argument("--outcomes", type=int, default=1_000_000)
    parser.add_argument("--in-flight", type=int, default=50_000)
    parser.add_argument("--lines", type=int, default=100_000)
    given = parser.parse_args()
    with EmbeddedKafka() as kafka, tempfile.TemporaryDirectory() as folder:
        env = {"VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap, "VM_SYNC_SECRETS_DIR": folder}
        measured(env, "topics", "create")
        measured(env, "outcomes")
        measured(env, "top", "--once")
        asyncio.run(write(kafka.bootstrap, outcomes(given.outcomes)))
        for form in ((), ("--csv",), ("--failed",), ("--failed", "--ids"), ("--json",)):
            measured(env, "outcomes", *form)
        asyncio.run(write(kafka.bootstrap, journal(given.in_flight)))
        measured(env, "top", "--once")
        ids = Path(folder) / "ids.txt"
        ids.write_text("".join(f"C4-{number}\n" for number in range(given.lines)), encoding="utf-8")
        measured(env, "request", "--from", str(ids), "--dry-run")
        measured(env, "request", "--from", str(ids), "--rate", "5000")
        print(json.dumps(vars(given)), flush=True)  # noqa: T201 - a program


if __name__ == "__main__":
    main()
