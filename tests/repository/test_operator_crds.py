"""The objects of operators, against the operators' own definitions, which their Go modules contain.

`test_deploy_kubernetes` checks them fast, against the handwritten schemas of `tests/support/operator_crds.py`. Here it
shows whether those are right. Strimzi publishes no package with its definitions, but the classes from which they are
generated, with which its operators read the objects: `tests/support/strimzi`.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.conftest import missing
from tests.support import operator_crds as operators
from tests.support.manifests import ENVIRONMENTS, Object, helm, name_of, rendered

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


STRIMZI = Path(__file__).resolve().parents[1] / "support" / "strimzi"


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


@cache
def classes_of_strimzi() -> str:
    """Return the class path of Strimzi's own classes; they are downloaded once for each user."""
    maven = shutil.which("mvn")
    if maven is None or shutil.which("javac") is None:
        missing("mvn or javac is not installed: apt-get install maven default-jdk-headless")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "classpath"
        done = subprocess.run(
            [maven, "-q", "-B", "-f", STRIMZI / "pom.xml", "dependency:build-classpath", f"-Dmdep.outputFile={file}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        if done.returncode:
            missing(f"Strimzi's classes can't be downloaded: {done.stdout[-500:]}")
        return file.read_text()


def read_by_strimzi(things: Sequence[Object]) -> list[str]:
    """Return for each object "ok", or what Strimzi's operators would not understand."""
    done = subprocess.run(
        [shutil.which("java") or "java", "-cp", classes_of_strimzi(), STRIMZI / "Read.java"],
        input=json.dumps(things),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


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


@pytest.mark.e2e
def test_strimzi_reads_every_topic_and_account_with_all_that_is_in_it_and_notices_what_it_does_not_know() -> None:
    rendered_by_helm = helm(
        *("template", "vm-sync", ".", "--namespace=vm-sync", "--kube-version=1.34.0", "--set=strimzi.enabled=true"),
        *("--api-versions=kafka.strimzi.io/v1/KafkaTopic", "--show-only=templates/strimzi.yaml"),
    )
    assert rendered_by_helm.returncode == 0, rendered_by_helm.stderr
    things = [*rendered("strimzi"), *(one for one in yaml.safe_load_all(rendered_by_helm.stdout) if one)]
    topic, user = (next(one for one in things if one["kind"] == kind) for kind in ("KafkaTopic", "KafkaUser"))
    rules = user["spec"]["authorization"]
    wrong = [
        topic | {"spec": topic["spec"] | {"misspelt": 1}},
        topic | {"spec": topic["spec"] | {"partitions": "many"}},
        user | {"spec": user["spec"] | {"authentication": {"type": "scram-sha-1"}}},
        user
        | {"spec": user["spec"] | {"authorization": rules | {"acls": [rules["acls"][0] | {"operations": ["Reed"]}]}}},
    ]

    found = read_by_strimzi([*things, *wrong])

    assert {one["kind"] for one in things} == {"KafkaTopic", "KafkaUser"}
    assert [(name_of(one), word) for one, word in zip(things, found, strict=False) if word != "ok"] == []
    assert [word.partition(" ")[0] for word in found[len(things) :]] == ["Unrecognized", "Cannot", "Could", "is"]
