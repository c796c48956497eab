"""Helm, with the project's chart as the release `vm-sync`."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.stress.kubernetes.environment import BUILD, ROOT
from tests.stress.kubernetes.kubectl import ClusterError
from tests.stress.kubernetes.stage import NotHere

CHART: Final = ROOT / "deploy" / "helm" / "vm-sync"

RELEASE: Final = "vm-sync"

TIMEOUT: Final = 300
"""Seconds for Helm to see everything ready, or gone."""


def next_chart() -> Path:
    """Return a copy of the chart with the next version."""
    copy = BUILD / "chart"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(CHART, copy)
    about = yaml.safe_load((copy / "Chart.yaml").read_text(encoding="utf-8"))
    major, minor, patch = about["version"].split(".")
    about["version"] = f"{major}.{minor}.{int(patch) + 1}"
    (copy / "Chart.yaml").write_text(yaml.safe_dump(about), encoding="utf-8")
    return copy


class Helm:
    """Runs Helm on the cluster that kubectl points at.

    Raises:
        NotHere: there is no Helm.
    """

    def __init__(self, namespace: str | None) -> None:
        program = shutil.which("helm", path=f"{os.environ.get('PATH', '')}{os.pathsep}{ROOT / 'build' / 'bin'}")
        if program is None:
            msg = "helm is not installed"
            raise NotHere(msg)
        self._program = program
        self._bounds = (f"--namespace={namespace or 'default'}", "--wait", f"--timeout={TIMEOUT}s")

    def __call__(self, command: str, *charts: Path, values: Mapping[str, Any] | None = None) -> str:
        """Run a command on the release, and wait until it has taken effect.

        Raises:
            ClusterError: it failed.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(dict(values or {}), file)
            file.flush()
            given = [f"--values={file.name}"] if values else []
            done = subprocess.run(
                [self._program, command, RELEASE, *charts, *given, *self._bounds],
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT + 60,
            )
        if done.returncode:
            msg = f"helm {command}: {' / '.join(done.stderr.splitlines()[-3:])}"
            raise ClusterError(msg)
        return done.stdout
