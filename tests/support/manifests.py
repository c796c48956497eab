"""Kubernetes' objects as Kustomize and Helm render them from `deploy/`."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from tests.conftest import missing

Object: TypeAlias = dict[str, Any]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CHART = DEPLOY / "helm" / "vm-sync"

ENVIRONMENTS = {
    "base": KUBERNETES / "base",
    **{folder.name: folder for folder in sorted((KUBERNETES / "overlays").iterdir())},
}


@cache
def rendered(environment: str) -> tuple[Object, ...]:
    """Return the objects of a Kustomize environment."""
    if (kustomize := shutil.which("kustomize")) is None:
        missing("kustomize is not installed: go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1")
    run = subprocess.run(
        [kustomize, "build", str(ENVIRONMENTS[environment])], capture_output=True, text=True, check=False, timeout=240
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    return tuple(yaml.safe_load_all(run.stdout))


def helm(*arguments: str, chart: Path = CHART) -> "subprocess.CompletedProcess[str]":
    """Run Helm in the chart's folder."""
    if (program := shutil.which("helm")) is None:
        missing("helm is not installed: go install helm.sh/helm/v3/cmd/helm@v3.19.5")
    command, *others = arguments
    return subprocess.run(
        [program, command, *others], capture_output=True, text=True, check=False, timeout=240, cwd=chart
    )


def name_of(thing: Object) -> str:
    """Return an object's name, as Kubernetes knows it."""
    return str(thing["metadata"]["name"])


def plain_name_of(thing: Object) -> str:
    """Return an object's name without the hash that Kustomize adds to a generated one."""
    return re.sub(r"-[a-z0-9]{10}$", "", name_of(thing))
