"""The chart is the same objects as the Kustomize environments, checks its values, and warns of what is risky."""

import json
import shutil
import tarfile
from collections.abc import Iterable
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from service.settings.describe import leaves
from tests.support import operator_crds as operators
from tests.support.manifests import CHART, Object, helm, plain_name_of, rendered

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
ABOUT = yaml.safe_load((CHART / "Chart.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

EVERYTHING = [f"--api-versions={version}/{kind}" for kind, version in operators.VERSION_OF.items()]
"""A cluster that knows all kinds of the operators."""

PRODUCTION = "--values=values-production.yaml"

CLUSTER = ("--namespace=vm-sync", "--kube-version=1.34.0")
"""Where there is no cluster that could be asked."""


def template(*arguments: str, apis: Iterable[str] = EVERYTHING) -> list[Object]:
    run = helm("template", "vm-sync", ".", *CLUSTER, *apis, *arguments)
    assert run.returncode == 0, run.stderr
    return [thing for thing in yaml.safe_load_all(run.stdout) if thing]


def refusal(*arguments: str) -> str:
    run = helm("template", "vm-sync", ".", *CLUSTER, *arguments)
    assert run.returncode != 0
    return run.stderr


NOTES = """
kind: Notes
text: |
  {{- include (print $.Template.BasePath "/NOTES.txt") . | nindent 2 }}
"""
"""What renders the notes without a cluster to install to."""


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with its notes as an object."""
    chart = tmp_path_factory.mktemp("chart") / "vm-sync"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "notes.yaml").write_text(NOTES)
    return chart


def compared(things: Iterable[Object]) -> dict[tuple[str, str], Object]:
    """Return objects by kind and name, without the ways in which Helm and Kustomize do the same thing differently."""
    found = {}
    for thing in deepcopy(list(things)):
        if thing["kind"] in {"Namespace", "PriorityClass"}:
            continue  # of the cluster, which a chart doesn't own
        thing["metadata"]["name"] = plain_name_of(thing)
        if thing["kind"] == "Deployment":
            pod = thing["spec"]["template"]
            pod["metadata"]["annotations"].pop("checksum/settings", None)  # Kustomize: the hash in the name
            pod["spec"].pop("priorityClassName", None)
            pod["spec"]["volumes"] = _by_name(v for v in pod["spec"]["volumes"] if not v["secret"].get("optional"))
            for container in [*pod["spec"]["containers"], *pod["spec"]["initContainers"]]:
                container["image"] = container["image"].rpartition("/")[2].partition(":")[0]
                container["envFrom"][0]["configMapRef"]["name"] = "vm-sync"
                mounted = {volume["name"] for volume in pod["spec"]["volumes"]}
                container["volumeMounts"] = _by_name(m for m in container["volumeMounts"] if m["name"] in mounted)
        if thing["kind"] == "NetworkPolicy":
            rules = thing["spec"]["egress"]
            ports = [
                port for rule in rules if "to" not in rule for port in rule["ports"]
            ]  # one rule is as good as many
            thing["spec"]["egress"] = [*(rule for rule in rules if "to" in rule), {"ports": ports}]
        found[thing["kind"], thing["metadata"]["name"]] = thing
    return found


def _by_name(things: Iterable[Object]) -> list[Object]:
    return sorted(things, key=lambda thing: str(thing["name"]))


@pytest.mark.parametrize(
    ("arguments", "environments"),
    [
        ((), ["base"]),
        ((PRODUCTION,), ["production"]),
        ((PRODUCTION, "--set=keda.enabled=true"), ["keda"]),
        ((PRODUCTION, "--set=strimzi.enabled=true"), ["production", "strimzi"]),
    ],
    ids=["base", "production", "keda", "strimzi"],
)
def test_it_is_object_by_object_what_kustomize_makes_of(arguments: tuple[str, ...], environments: list[str]) -> None:
    expected = compared(thing for environment in environments for thing in rendered(environment))

    made = compared(template(*arguments))

    assert made.keys() == expected.keys()
    for about, thing in expected.items():
        assert made[about] == thing, about


def test_it_starts_the_image_of_its_version_unless_told_otherwise() -> None:
    def images(*arguments: str) -> set[str]:
        (deployment,) = [thing for thing in template(*arguments) if thing["kind"] == "Deployment"]
        spec = deployment["spec"]["template"]["spec"]
        return {container["image"] for container in [*spec["containers"], *spec["initContainers"]]}

    assert images() == {f"vm-sync:{ABOUT['appVersion']}"}
    assert images(PRODUCTION) == {"registry.example.com/vm-sync:0.1.0"}
    assert ABOUT["version"] == ABOUT["appVersion"] == version("vm-sync")


def test_a_cluster_without_the_operators_is_asked_for_none_of_their_kinds() -> None:
    everything = ("--set=keda.enabled=true", "--set=strimzi.enabled=true")

    made = template(*everything, apis=())

    assert {thing["apiVersion"] for thing in made}.isdisjoint(operators.VERSIONS)
    (deployment,) = [thing for thing in made if thing["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == VALUES["replicas"]  # nobody else sets it
    assert {thing["apiVersion"] for thing in template(*everything)} >= set(operators.VERSIONS)


@pytest.mark.parametrize(
    ("arguments", "apis", "warnings"),
    [
        ((), EVERYTHING, []),
        (("--set=replicas=1",), EVERYTHING, ["replicas is 1."]),
        (("--set=replicas=1", "--set=keda.enabled=true"), EVERYTHING, []),
        (("--set=podDisruptionBudget.enabled=false",), EVERYTHING, ["podDisruptionBudget.enabled is false."]),
        ((), [], ["this cluster has no PrometheusRule", "this cluster has no PodMonitor"]),
        (
            ("--set=keda.enabled=true", "--set=strimzi.enabled=true", "--set=monitoring.rules=false"),
            [],
            ["this cluster has no PodMonitor", "keda.enabled is true, but", "strimzi.enabled is true, but"],
        ),
    ],
)
def test_it_warns_of(arguments: tuple[str, ...], apis: list[str], warnings: list[str], noted: Path) -> None:
    only = "--show-only=templates/notes.yaml"
    run = helm("template", "vm-sync", ".", *CLUSTER, *apis, *arguments, only, chart=noted)
    assert run.returncode == 0, run.stderr
    said = [line for line in yaml.safe_load(run.stdout)["text"].splitlines() if line.startswith("WARNING")]

    assert len(said) == len(warnings)
    for line, warning in zip(said, warnings, strict=True):
        assert line.startswith(f"WARNING: {warning}")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("replicas=many", "replicas"),
        ("replica=3", "replica"),
        ("image.repo=x", "repo"),
        ("settings.VM_SYNC_VCDA__URL=https://x", "VM_SYNC_VCDA__URL"),
        ("settings.kafka=x", "kafka"),
        ("settings.VCDA__CREDENTIALS__PASSWORD=secret", "VCDA__CREDENTIALS__PASSWORD"),
        ("settings.VCDA__SITES__0__TOKEN=secret", "VCDA__SITES__0__TOKEN"),
        ("settings.KAFKA__OAUTH_CLIENT_SECRET=secret", "KAFKA__OAUTH_CLIENT_SECRET"),
        ("networkPolicy.egressPorts={http}", "egressPorts"),
        ("keda.prometheus=prometheus:9090", "prometheus"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(wrong: str, named: str) -> None:
    said = refusal(f"--set={wrong}")

    assert "values don't meet the specifications of the schema" in said
    assert named in said


def test_every_value_has_its_place_in_the_schema_and_the_other_way_round() -> None:
    def names(schema: dict[str, Any]) -> set[str]:
        own = schema.get("properties", {})
        return {path for name, one in own.items() for path in ({f"{name}.{sub}" for sub in names(one)} or {name})}

    def given(values: dict[str, Any], schema: dict[str, Any]) -> set[str]:
        found = set()
        for name, value in values.items():
            own = schema["properties"][name]
            found |= {f"{name}.{sub}" for sub in given(value, own)} if "properties" in own else {name}
        return found

    Draft7Validator.check_schema(SCHEMA)
    assert given(VALUES, SCHEMA) == names(SCHEMA) - {"global"}


def test_every_setting_of_the_service_but_secrets_may_be_given() -> None:
    allowed = Draft7Validator(SCHEMA["properties"]["settings"]["propertyNames"])

    refused = {leaf.name for leaf in leaves() if not allowed.is_valid(leaf.name.removeprefix("VM_SYNC_"))}

    assert refused == {leaf.name for leaf in leaves() if leaf.secret}


def test_settings_become_variables_as_they_are() -> None:
    given = {"SYNC__MAX_IN_FLIGHT": 50000, "KAFKA__CREATE_TOPICS": False, "LOG__LEVEL": "DEBUG"}
    sets = [f"--set-json=settings.{name}={json.dumps(value)}" for name, value in given.items()]

    (made,) = [
        thing
        for thing in template(*sets, "--set=environment.OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318")
        if thing["kind"] == "ConfigMap" and thing["metadata"]["name"] == "vm-sync"
    ]

    assert made["data"]["VM_SYNC_SYNC__MAX_IN_FLIGHT"] == "50000"
    assert made["data"]["VM_SYNC_KAFKA__CREATE_TOPICS"] == "false"
    assert made["data"]["VM_SYNC_LOG__LEVEL"] == "DEBUG"
    assert made["data"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"


def test_a_changed_setting_rolls_the_pods() -> None:
    def checksum(*arguments: str) -> str:
        (deployment,) = [thing for thing in template(*arguments) if thing["kind"] == "Deployment"]
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"])

    assert checksum() == checksum("--set=replicas=5") != checksum("--set=settings.LOG__LEVEL=DEBUG")


@pytest.mark.parametrize("values", [(), (PRODUCTION,)], ids=["defaults", "production"])
def test_it_passes_helms_own_linter(values: tuple[str, ...]) -> None:
    run = helm("lint", ".", "--strict", *values)

    assert run.returncode == 0, run.stdout + run.stderr


def test_a_package_of_it_has_the_rules_and_the_dashboard_and_nothing_of_no_use(tmp_path: Path) -> None:
    run = helm("package", ".", f"--destination={tmp_path}")
    assert run.returncode == 0, run.stderr
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as packed:
        files = {name for name in packed.getnames() if "/files/" in name}

    assert files == {"vm-sync/files/prometheusrule.yaml", "vm-sync/files/dashboard.json"}
