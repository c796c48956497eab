"""The objects of operators, against the operators' own definitions, which their Go modules contain.

`test_deploy_kubernetes` checks them fast, against the handwritten schemas of `tests/support/operator_crds.py`. Here it
shows whether those are right. Strimzi publishes no module with its definitions.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.conftest import missing
from tests.support import operator_crds as operators
from tests.support.manifests import ENVIRONMENTS, Object, name_of, rendered

DEFINITIONS = {
    "PodMonitor": (
        "github.com/prometheus-operator/prometheus-operator@v0.90.1",
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
    ),
    "PrometheusRule": (
        "github.com/prometheus-operator/prometheus-operator@v0.90.1",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
    "ScaledObject": ("github.com/kedacore/keda/v2@v2.18.0", "config/crd/bases/keda.sh_scaledobjects.yaml"),
}


@cache
def module(name: str) -> Path:
    """Return the folder of a Go module; it is downloaded once for each user."""
    if (go := shutil.which("go")) is None:
        missing("go is not installed")
    done = subprocess.run(
        [go, "mod", "download", "-json", name],
        env={**os.environ, "GOFLAGS": "-mod=mod"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if done.returncode:
        missing(f"{name} can't be downloaded: {json.loads(done.stdout or '{}').get('Error', done.stderr)}")
    return Path(json.loads(done.stdout)["Dir"])


@cache
def schema(kind: str) -> operators.Schema:
    """Return an operator's schema of a kind, in the version in use."""
    definition = yaml.safe_load((module(DEFINITIONS[kind][0]) / DEFINITIONS[kind][1]).read_text())
    version = operators.VERSION_OF[kind].rpartition("/")[2]
    (found,) = [one for one in definition["spec"]["versions"] if one["name"] == version]
    assert found["served"]
    whole: operators.Schema = strict(found["schema"]["openAPIV3Schema"])
    return whole


def strict(part: Any) -> Any:
    """Let a schema refuse what Kubernetes would drop without a word: fields that it doesn't have."""
    if isinstance(part, list):
        return [strict(one) for one in part]
    if not isinstance(part, dict):
        return part
    found = {name: strict(one) for name, one in part.items()}
    if isinstance(part.get("properties"), dict) and not part.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def objects() -> Iterator[tuple[str, Object]]:
    """Yield the objects of all environments that are of such a kind."""
    for environment in ENVIRONMENTS:
        for thing in rendered(environment):
            if thing["kind"] in DEFINITIONS:
                yield environment, thing


@pytest.mark.e2e
@pytest.mark.parametrize("kind", DEFINITIONS)
def test_the_operator_knows_every_field_of_each(kind: str) -> None:
    checked = [(environment, thing) for environment, thing in objects() if thing["kind"] == kind]

    assert checked
    for environment, thing in checked:
        errors = [error.message for error in Draft202012Validator(schema(kind)).iter_errors(thing)]
        assert errors == [], (environment, name_of(thing))


@pytest.mark.e2e
@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_field_that_the_operator_does_not_know_would_be_noticed(kind: str) -> None:
    _, thing = next(found for found in objects() if found[1]["kind"] == kind)

    assert not Draft202012Validator(schema(kind)).is_valid(thing | {"spec": {**thing["spec"], "misspelt": 1}})
