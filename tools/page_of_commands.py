"""Runs the commands of a documentation page against a deployment of their own: Kafka, a simulated VCDA, the service."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from unittest.mock import patch

from typer.testing import CliRunner

from service.cli.commands import app
from service.sandbox.child_processes import dying_with_us
from service.sandbox.kafka import EmbeddedKafka

PATIENCE: Final = 120.0
"""Seconds for each thing that is waited for; all of it takes a few seconds on an idle machine."""


@contextmanager
def deployment(**settings: str) -> Iterator[dict[str, str]]:
    """Start Kafka, a simulated VCDA whose tasks take a day, and the service; yield the settings of the commands."""
    vm_sync = [sys.executable, "-m", "service.cli"]
    simulator = [*vm_sync, "simulator", "--port", "0", "--duration", "86400", "--password", "password"]
    names = [name for name in os.environ if not name.startswith("VM_SYNC_")]
    with (
        patch.dict(os.environ, {name: os.environ[name] for name in names}, clear=True),
        EmbeddedKafka() as kafka,
        subprocess.Popen(dying_with_us(simulator), stdout=subprocess.PIPE, text=True) as vcda,  # noqa: S603 - ours
    ):
        try:
            url = re.search(r"http://\S+?:\d+", vcda.stdout.readline() if vcda.stdout else "")
            if url is None:
                msg = "the simulated VCDA did not print its address"
                raise RuntimeError(msg)
            env = {
                "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
                "VM_SYNC_KAFKA__PARTITIONS": "1",
                "VM_SYNC_VCDA__URL": url[0],
                "VM_SYNC_VCDA__CREDENTIALS__USER": "administrator@System",
                "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": "password",
                "VM_SYNC_OPS__HOST": "127.0.0.1",
                "VM_SYNC_OPS__PORT": free_port(),
                **settings,
            }
            run(("topics", "create"), env)
            command = dying_with_us([*vm_sync, "run"])
            with subprocess.Popen(command, env={**os.environ, **env}, stderr=subprocess.DEVNULL) as service:  # noqa: S603 - ours
                try:
                    yield env
                finally:
                    service.terminate()
        finally:
            vcda.terminate()


def free_port() -> str:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return str(held.getsockname()[1])


def run(command: tuple[str, ...], env: Mapping[str, str]) -> tuple[int, str]:
    """Run a command; return its exit code and what it printed."""
    result = CliRunner().invoke(app, command, env=dict(env), prog_name="vm-sync")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def until(env: Mapping[str, str], operation_id: str, state: str) -> None:
    """Wait until the journal says that a request is in this state."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        code, output = run(("show", operation_id, "--json"), env)
        if code == 0 and json.loads(output)[0]["state"] == state:
            return
        time.sleep(0.2)
    msg = f"{operation_id} is not {state} within {PATIENCE} s"
    raise TimeoutError(msg)


def shown(command: tuple[str, ...], env: Mapping[str, str], usual: Callable[[str], str]) -> str:
    """Run a command, and return it with its output in Markdown; `usual` puts fixed words in place of this run's."""
    code, output = run(command, env)
    typed = " ".join([f"'{word}'" if " " in word else word for word in ("vm-sync", *command)])
    exit_code = "" if code == 0 else f"(exit code {code})\n"
    lines = "\n".join(usual(line) for line in output.splitlines() if not line.startswith("progress"))
    return f"```console\n$ {typed}\n{lines}\n{exit_code}```\n"
