"""A deployment for pages and pictures, whose simulated VCDA runs in this process, so that its syncs can be planned."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest.mock import patch

import httpx

from service.sandbox.child_processes import dying_with_us
from service.sandbox.kafka import EmbeddedKafka
from service.sandbox.vcda.world import Config, Plan, User
from tests.support.simulator_thread import Apart
from tools.page_of_commands import PATIENCE, free_port

REMOTE: Final = "site2"
"""The remote site; the local one has no name in requests."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What runs. `env` are the settings of the commands."""

    env: Mapping[str, str]
    vcda: Apart


@contextmanager
def deployment(plan: Plan, *, partitions: int = 1) -> Iterator[Deployment]:
    """Start it, and wait until the service is ready; no setting of this machine counts meanwhile."""
    names = [name for name in os.environ if not name.startswith("VM_SYNC_")]
    user: User = Config().users[0]
    vcda = Apart(Config(plan=plan))
    with (
        patch.dict(os.environ, {name: os.environ[name] for name in names}, clear=True),
        tempfile.TemporaryDirectory() as folder,
        EmbeddedKafka() as kafka,
        asyncio.Runner() as runner,
    ):
        runner.run(vcda.__aenter__())
        try:
            env = {
                "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
                "VM_SYNC_KAFKA__PARTITIONS": str(partitions),
                "VM_SYNC_VCDA__URL": vcda.url,
                "VM_SYNC_VCDA__CREDENTIALS__USER": user.name,
                "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": user.password,
                "VM_SYNC_VCDA__SITES": json.dumps([{"name": REMOTE, "user": user.name, "password": user.password}]),
                "VM_SYNC_OPS__HOST": "127.0.0.1",
                "VM_SYNC_OPS__PORT": free_port(),
                "VM_SYNC_SECRETS_DIR": folder,
            }
            command = dying_with_us([sys.executable, "-m", "service.cli", "run"])
            log = (Path(folder) / "log").open("wb")
            with log, subprocess.Popen(command, env={**os.environ, **env}, stderr=log) as service:  # noqa: S603 - ours
                try:
                    _until_ready(env["VM_SYNC_OPS__PORT"])
                    yield Deployment(env, vcda)
                finally:
                    service.terminate()
        finally:
            runner.run(vcda.__aexit__())


def _until_ready(port: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    msg = f"the service is not ready within {PATIENCE} s"
    raise TimeoutError(msg)
