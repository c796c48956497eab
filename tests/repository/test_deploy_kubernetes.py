"""Every environment renders, is what Kubernetes understands, and keeps its restricted security standard."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]  # it brings no types
import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from service import settings
from service.cli.commands import app
from service.kafka import rights, topics
from service.kafka.topics import TopicNames
from tests.support import operator_crds as operators
from tests.support.grants import USERS, grants_of
from tests.support.manifests import DEPLOY, ENVIRONMENTS, KUBERNETES, Object, name_of, plain_name_of, rendered

README = (DEPLOY / "README.md").read_text()

SERVING = [name for name in ENVIRONMENTS if name not in {"strimzi", "operator"}]
"""Those that run the service; strimzi is Kafka's side alone, operator a pod for commands."""

VERSIONS = ("1.29", kubernetes_validate.latest_version())
"""The oldest Kubernetes that knows all fields in use without a feature gate worth naming, and the newest."""

HANDMADE_SECRETS = {"vm-sync", "vm-sync-kafka-ca", "vm-sync-vcda-ca", "vm-sync-password", "vm-sync-operator"}
"""Made by hand, as the README says."""

DEFAULTS = settings.Settings(
    vcda=settings.Vcda(
        url="https://vcda.example.com", credentials=settings.Credentials(user="u", password="p", org="o")
    )
)

OTLP_OVER_HTTP = 4318
"""The port of a collector, where traces are sent to one."""


def objects(environment: str, kind: str) -> list[Object]:
    return [thing for thing in rendered(environment) if thing["kind"] == kind]


def one(environment: str, kind: str, name: str = "vm-sync") -> Object:
    (thing,) = [thing for thing in objects(environment, kind) if plain_name_of(thing) == name]
    return thing


def containers_of(spec: Object) -> list[Object]:
    return [*spec["containers"], *spec.get("initContainers", [])]


def pod(environment: str) -> Object:
    template: Object = one(environment, "Deployment")["spec"]["template"]
    return template


@pytest.fixture(params=list(ENVIRONMENTS))
def environment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SERVING)
def serving(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---------------------------------------------------------------- what Kubernetes and the operators understand


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_that_kubernetes_understands_with_no_field_it_does_not_know(
    environment: str, version: str
) -> None:
    for thing in rendered(environment):
        if thing["apiVersion"] not in operators.VERSIONS:
            kubernetes_validate.validate(thing, version, strict=True)


def test_every_object_of_an_operator_has_the_shape_that_the_operator_reads(environment: str) -> None:
    for thing in rendered(environment):
        if thing["apiVersion"] in operators.VERSIONS:
            errors = [e.message for e in Draft202012Validator(operators.SCHEMAS[thing["kind"]]).iter_errors(thing)]
            assert errors == [], name_of(thing)


def test_a_misspelt_field_is_noticed() -> None:
    service, rule = one("base", "Service"), one("base", "PrometheusRule")

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service | {"spec": service["spec"] | {"selectr": {}}}, VERSIONS[0], strict=True)
    misspelt = rule | {"spec": rule["spec"] | {"group": []}}
    assert not Draft202012Validator(operators.SCHEMAS["PrometheusRule"]).is_valid(misspelt)


def test_everything_lives_in_the_namespace_that_the_environment_names(environment: str) -> None:
    namespace = "kafka" if environment == "strimzi" else "vm-sync"

    for thing in rendered(environment):
        if thing["kind"] not in {"Namespace", "PriorityClass"}:
            assert thing["metadata"]["namespace"] == namespace, name_of(thing)


# ---------------------------------------------------------------- safety


VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(template: Object) -> list[str]:
    """Say what the restricted pod security standard would refuse; controls by the standard's names."""
    spec = template["spec"]
    of_pod = spec.get("securityContext", {})
    containers = containers_of(spec)
    checks = {
        "Host Namespaces": not any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")),
        "Volume Types": all(set(volume) - {"name"} <= VOLUMES for volume in spec.get("volumes", [])),
        "Sysctls": not of_pod.get("sysctls"),
    }
    for container in containers:
        name, own = container["name"], container.get("securityContext", {})
        either, capabilities = of_pod | own, own.get("capabilities", {})
        checks |= {
            f"Privileged Containers: {name}": not own.get("privileged"),
            f"Privilege Escalation: {name}": own.get("allowPrivilegeEscalation") is False,
            f"Running as Non-root: {name}": either.get("runAsNonRoot") is True and either.get("runAsUser") != 0,
            f"Seccomp: {name}": either.get("seccompProfile", {}).get("type") in {"RuntimeDefault", "Localhost"},
            f"Capabilities: {name}": capabilities == {"drop": ["ALL"]},
            f"Host Ports: {name}": not any("hostPort" in port for port in container.get("ports", [])),
        }
    return [control for control, kept in checks.items() if not kept]


def templates(environment: str) -> list[Object]:
    """Return all pods of an environment, those of Deployments by their templates."""
    return [one["spec"]["template"] for one in objects(environment, "Deployment")] + objects(environment, "Pod")


def test_every_pod_keeps_the_restricted_standard(environment: str) -> None:
    for template in templates(environment):
        assert violations(template) == []


def test_a_pod_without_any_security_context_is_noticed() -> None:
    bare = {"spec": {"containers": [{"name": "bare"}]}}

    assert violations(bare) == [
        "Privilege Escalation: bare",
        "Running as Non-root: bare",
        "Seccomp: bare",
        "Capabilities: bare",
    ]


def test_the_namespace_enforces_that_standard(serving: str) -> None:
    assert one(serving, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_container_for_debugging_is_one_that_the_namespace_admits() -> None:
    commands = re.findall(r"kubectl [^`\n]*\bdebug\b[^`\n]*", README)

    assert commands
    # kubectl's other profiles drop no capability, and some add one: the restricted standard refuses them.
    assert all("--profile=restricted" in command for command in commands)


def test_the_service_writes_no_file_and_holds_no_token_of_the_cluster(serving: str) -> None:
    spec = pod(serving)["spec"]

    assert spec["automountServiceAccountToken"] is False
    assert one(serving, "ServiceAccount")["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    for container in containers_of(spec):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_secrets_are_files_that_only_the_group_may_read_and_never_variables(serving: str) -> None:
    spec = pod(serving)["spec"]

    (secrets,) = [volume["secret"] for volume in spec["volumes"] if volume["name"] == "secrets"]
    for container in (spec["containers"][0], *spec["initContainers"]):
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "secrets"]
        assert mount == {"name": "secrets", "mountPath": str(DEFAULTS.secrets_dir), "readOnly": True}
    assert secrets["defaultMode"] == 0o440
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]
    for container in containers_of(spec):
        assert "env" not in container
        assert [list(source) for source in container.get("envFrom", [])] in ([["configMapRef"]], [])


def test_every_container_says_how_much_memory_it_may_take_and_none_has_its_cpu_throttled(environment: str) -> None:
    for template in templates(environment):
        for container in containers_of(template["spec"]):
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert set(container["resources"]["limits"]) == {"memory"}


# ---------------------------------------------------------------- settings


def variables(environment: str) -> dict[str, str]:
    data: dict[str, str] = one(environment, "ConfigMap")["data"]
    return data


def secret_files(environment: str) -> set[str]:
    """Return the files of the Secret: where it is made by hand, those that the README has made."""
    if objects(environment, "Secret"):
        return set(one(environment, "Secret")["data"])
    return set(re.findall(r"--from-file=(\w+__\w+)=", README))


@pytest.mark.parametrize("environment", ["local", "production", "keda"])
def test_the_service_accepts_every_setting_that_an_environment_gives_it(environment: str, tmp_path: Path) -> None:
    given = variables(environment) | {"VM_SYNC_SECRETS_DIR": str(tmp_path)}
    for file in secret_files(environment):
        (tmp_path / file).write_text("made up")
    for name in [name for name in given if name.endswith("_CA_FILE")]:
        (tmp_path / "ca.crt").write_text("made up")
        given[name] = str(tmp_path / "ca.crt")

    loaded = settings.load(given)

    assert loaded.ops.drain_limit == timedelta(seconds=25)


def test_every_variable_of_the_base_is_a_setting() -> None:
    assert set(variables("base")) <= {row.name for row in settings.describe()}


def test_a_clean_stop_ends_well_before_kubernetes_kills(serving: str) -> None:
    drain = settings.load(
        {name: value for name, value in variables(serving).items() if "__DRAIN_LIMIT" in name}
        | {
            "VM_SYNC_VCDA__URL": "https://vcda.example.com",
            "VM_SYNC_VCDA__CREDENTIALS__TYPE": "localUser",
            "VM_SYNC_VCDA__CREDENTIALS__USER": "u",
            "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": "p",
        }
    ).ops.drain_limit

    assert pod(serving)["spec"]["terminationGracePeriodSeconds"] >= drain.total_seconds() + 10


def test_certificates_lie_where_the_settings_look_for_them() -> None:
    spec = pod("production")["spec"]
    mounted = {
        f"{mount['mountPath']}/{item['path']}"
        for mount in spec["containers"][0]["volumeMounts"]
        for volume in spec["volumes"]
        if volume["name"] == mount["name"]
        for item in volume["secret"].get("items", [])
    }

    given = {value for name, value in variables("production").items() if name.endswith("_CA_FILE")}
    overlay = (ENVIRONMENTS["production"] / "kustomization.yaml").read_text()
    to_be_had = set(re.findall(r"# - VM_SYNC_\w+_CA_FILE=(\S+)", overlay))

    assert mounted == given | to_be_had
    assert {volume["name"] for volume in spec["volumes"] if volume["secret"].get("optional")} == {"vcda-ca"}


def test_everything_is_checked_before_the_service_starts_with_what_the_service_has(serving: str) -> None:
    spec = pod(serving)["spec"]
    (service,) = [container for container in spec["containers"] if container["name"] == "vm-sync"]
    (check,) = spec["initContainers"]

    for field in ("image", "envFrom", "volumeMounts", "securityContext"):
        assert check[field] == service[field]


def test_neither_vcda_nor_what_does_not_answer_at_present_keeps_the_pod_from_starting() -> None:
    (check,) = pod("base")["spec"]["initContainers"]
    nobody = {
        "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "VM_SYNC_VCDA__URL": "https://127.0.0.1:1",
        "VM_SYNC_VCDA__CREDENTIALS__TYPE": "localUser",
        "VM_SYNC_VCDA__CREDENTIALS__USER": "u",
        "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": "p",
    }

    done = CliRunner().invoke(app, check["args"], env=nobody)

    assert (done.exit_code, "The service can't work at present" in done.stdout) == (0, True)


def test_no_container_needs_a_shell(serving: str) -> None:
    for container in containers_of(pod(serving)["spec"]):
        assert "command" not in container


def test_a_container_that_fails_says_why_in_its_state_and_asks_no_registry_for_an_image_that_is_there(
    serving: str,
) -> None:
    for container in containers_of(pod(serving)["spec"]):
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert container["imagePullPolicy"] == "IfNotPresent"


# ---------------------------------------------------------------- things that refer to each other


def referred(spec: Object) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", spec.get("serviceAccountName", "default")
    if "priorityClassName" in spec:
        yield "PriorityClass", spec["priorityClassName"]
    for volume in spec.get("volumes", []):
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
    for container in containers_of(spec):
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"]


def test_what_a_pod_refers_to_is_there_or_made_by_hand_as_the_readme_says(serving: str) -> None:
    there = {(thing["kind"], name_of(thing)) for thing in rendered(serving)}
    byhand = {("Secret", name) for name in HANDMADE_SECRETS} if not objects(serving, "Secret") else set()

    assert set(referred(pod(serving)["spec"])) <= there | byhand


@pytest.mark.parametrize("name", sorted(HANDMADE_SECRETS))
def test_the_readme_makes_each_secret_that_no_overlay_makes(name: str) -> None:
    assert f"create secret generic {name} " in README


def test_everything_that_selects_the_pods_selects_them_and_by_a_port_they_have(serving: str) -> None:
    labels = pod(serving)["metadata"]["labels"]
    ports = {port["name"] for container in pod(serving)["spec"]["containers"] for port in container.get("ports", [])}

    assert one(serving, "Deployment")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert one(serving, "Service")["spec"]["selector"].items() <= labels.items()
    assert one(serving, "Service")["spec"]["ports"][0]["targetPort"] in ports
    assert one(serving, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    policy = one(serving, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["ingress"][0]["ports"] == [{"port": "http"}]
    for monitor in objects(serving, "PodMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports
        assert labels[monitor["spec"]["jobLabel"]] == "vm-sync"


def test_the_network_policy_lets_the_service_reach_the_kafka_and_the_vcda_of_its_settings(serving: str) -> None:
    given = variables(serving)
    rules = one(serving, "NetworkPolicy")["spec"]["egress"]
    open_ports = {port["port"] for rule in rules if "to" not in rule for port in rule["ports"]}
    kafka = {int(server.rsplit(":", 1)[1]) for server in given["VM_SYNC_KAFKA__BOOTSTRAP_SERVERS"].split(",")}
    vcda = settings.Vcda(url=given["VM_SYNC_VCDA__URL"], credentials=DEFAULTS.vcda.credentials).url

    assert kafka <= open_ports
    if "127.0.0.1" not in vcda:
        assert int((re.findall(r":(\d+)$", vcda) or ["443"])[0]) in open_ports
    assert OTLP_OVER_HTTP in open_ports


def test_the_network_policy_lets_names_be_looked_up_wherever_the_cluster_answers(serving: str) -> None:
    """NodeLocal DNSCache answers on the node's network, which no selector of pods selects; OpenShift's pods at 5353."""
    rules = one(serving, "NetworkPolicy")["spec"]["egress"]
    anywhere = [port for rule in rules if "to" not in rule for port in rule["ports"]]

    for port in (53, 5353):
        assert {"port": port, "protocol": "UDP"} in anywhere
        assert {"port": port, "protocol": "TCP"} in anywhere


def test_the_probes_ask_the_operations_server_for_what_it_answers(serving: str) -> None:
    (container,) = [c for c in pod(serving)["spec"]["containers"] if c["name"] == "vm-sync"]

    assert {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "startupProbe": {"path": "/livez", "port": "http"},
        "livenessProbe": {"path": "/livez", "port": "http"},
        "readinessProbe": {"path": "/readyz", "port": "http"},
    }
    (port,) = container["ports"]
    assert port["containerPort"] == DEFAULTS.ops.port


# ---------------------------------------------------------------- what makes the overlays different


def test_production_spreads_at_least_three_instances_over_nodes_and_zones() -> None:
    deployment = one("production", "Deployment")
    spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]

    assert deployment["spec"]["replicas"] >= 3
    assert {rule["topologyKey"] for rule in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for rule in spread:
        assert rule["labelSelector"]["matchLabels"].items() <= pod("production")["metadata"]["labels"].items()


def test_production_talks_to_kafka_in_cipher_and_by_name() -> None:
    given = variables("production")

    assert given["VM_SYNC_KAFKA__SECURITY_PROTOCOL"] == "SASL_SSL"
    assert given["VM_SYNC_KAFKA__SASL_MECHANISM"] == "SCRAM-SHA-512"
    assert given["VM_SYNC_VCDA__URL"].startswith("https://")


def test_a_fresh_cluster_is_asked_for_no_kind_that_it_does_not_know() -> None:
    assert {thing["apiVersion"] for thing in rendered("local")} & set(operators.VERSIONS) == set()


def test_autoscaling_takes_over_the_number_of_instances_between_productions_and_that_of_the_partitions() -> None:
    spec = one("keda", "ScaledObject")["spec"]

    assert "replicas" not in one("keda", "Deployment")["spec"]
    assert spec["scaleTargetRef"]["name"] == name_of(one("keda", "Deployment"))
    assert spec["minReplicaCount"] == one("production", "Deployment")["spec"]["replicas"]
    assert spec["maxReplicaCount"] == DEFAULTS.kafka.partitions
    in_flight = next(trigger for trigger in spec["triggers"] if trigger["name"] == "in-flight")
    assert int(in_flight["metadata"]["threshold"]) == DEFAULTS.sync.max_in_flight / 5
    assert all("lag" not in trigger["metadata"]["query"] for trigger in spec["triggers"])


# ---------------------------------------------------------------- Kafka's side


def test_the_topics_are_the_ones_that_the_service_would_make() -> None:
    names = DEFAULTS.topics
    special: Mapping[str, Mapping[str, str]] = {
        names.journal: topics.JOURNAL_SETTINGS,
        names.dead_letter: {"max.message.bytes": str(topics.BROKER_MESSAGE_LIMIT + topics.HEADER_ROOM)},
        names.control: {"cleanup.policy": "compact"},
    }
    everywhere = {"min.insync.replicas": str(topics.REPLICAS - 1), "unclean.leader.election.enable": "False"}

    made = {name_of(topic): topic["spec"] for topic in objects("strimzi", "KafkaTopic")}

    redriven = made.pop(f"{names.dead_letter}.redriven")  # which `vm-sync dead-letters redrive` would make
    assert (redriven["partitions"], redriven["replicas"]) == (1, topics.REPLICAS)
    assert {key: str(value) for key, value in redriven["config"].items()} == everywhere | {"cleanup.policy": "compact"}
    assert made.keys() == {
        names.requests,
        names.completed,
        names.failed,
        names.dead_letter,
        names.journal,
        names.control,
    }
    for name, spec in made.items():
        partitions = 1 if name == names.control else DEFAULTS.kafka.partitions
        assert (spec["partitions"], spec["replicas"]) == (partitions, topics.REPLICAS)
        assert {key: str(value) for key, value in spec["config"].items()} == everywhere | dict(special.get(name, {}))


def test_the_services_account_may_do_what_the_service_does_and_nothing_else() -> None:
    names, group = DEFAULTS.topics, DEFAULTS.kafka.group_id
    needed = rights.of_topics(
        TopicNames(
            requests=names.requests,
            completed=names.completed,
            failed=names.failed,
            dead_letter=names.dead_letter,
            journal=names.journal,
            control=names.control,
        )
    )

    granted = {
        (acl["resource"]["type"], acl["resource"]["name"], acl["resource"].get("patternType", "literal")): sorted(
            acl["operations"]
        )
        for acl in one("strimzi", "KafkaUser")["spec"]["authorization"]["acls"]
    }

    assert granted == {
        **{("topic", name, "literal"): sorted(["DescribeConfigs", *map(str, some)]) for name, some in needed.items()},
        ("group", group, "literal"): ["Read"],
        ("transactionalId", f"{names.journal}-", "prefix"): ["Write"],
    }


def test_the_account_is_the_one_that_production_uses() -> None:
    user = one("strimzi", "KafkaUser")

    assert name_of(user) == variables("production")["VM_SYNC_KAFKA__SASL_USERNAME"]
    assert user["spec"]["authentication"]["type"] == variables("production")["VM_SYNC_KAFKA__SASL_MECHANISM"].lower()
    assert user["spec"]["authentication"]["password"]["valueFrom"]["secretKeyRef"]["name"] in HANDMADE_SECRETS


def test_the_operators_pod_has_productions_kafka_but_an_account_of_its_own() -> None:
    own, production = dict(one("operator", "ConfigMap", "vm-sync-operator")["data"]), variables("production")

    assert own.pop("VM_SYNC_KAFKA__SASL_USERNAME") == name_of(one("strimzi", "KafkaUser", "vm-sync-operator"))
    assert own.items() <= production.items()
    assert {name for name in production if "__SSL_" in name or "__SASL_M" in name or "__SECURITY" in name} <= set(own)


def test_the_operators_pod_is_not_one_of_the_services_and_may_ask_them() -> None:
    (pod_,) = objects("operator", "Pod")
    labels = pod_["metadata"]["labels"]
    asking = one("base", "NetworkPolicy")["spec"]["ingress"][1]["from"][0]["podSelector"]["matchExpressions"]

    assert not one("base", "Service")["spec"]["selector"].items() <= labels.items()
    assert labels["app.kubernetes.io/name"] in asking[0]["values"]


def test_the_operators_pod_ends_when_it_is_told_to() -> None:
    (container,) = objects("operator", "Pod")[0]["spec"]["containers"]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # inherited: it waits until it is asked for
    try:
        process = subprocess.Popen([sys.executable, *container["command"][1:]])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        process.terminate()
        assert process.wait(240) == 0
    finally:
        process.kill()
        process.wait()


def test_what_the_services_account_may_not_do_is_run_in_the_operators_pod_wherever_a_page_shows_it() -> None:
    pages = [README, (KUBERNETES.parents[1] / "docs" / "runbook.md").read_text(encoding="utf-8")]
    in_a_pod = [line for page in pages for line in page.splitlines() if re.search(r"exec \S+ -- vm-sync", line)]

    assert in_a_pod
    for line in in_a_pod:
        needs_more = (
            re.search(r"vm-sync (dead-letters|cancel|request|sites (pause|resume))\b", line.split(" -- ")[1])
            is not None
        )
        assert ("exec vm-sync-operator" in line) is needs_more, line


def test_everything_for_strimzi_says_which_kafka_it_belongs_to() -> None:
    for thing in rendered("strimzi"):
        assert "strimzi.io/cluster" in thing["metadata"]["labels"]


def test_the_page_of_rights_has_a_row_for_each_that_is_granted() -> None:
    page = (USERS.parents[4] / "docs" / "rights.md").read_text(encoding="utf-8")
    start, running, operator = page.split("\n## ")[1:]

    for grant in grants_of("vm-sync"):
        assert f"| {grant} |" in start
        assert f"| {grant} |" in running
    for grant in grants_of("vm-sync-operator"):
        assert f"| {grant} |" in operator


# ---------------------------------------------------------------- the README


def test_the_readme_has_one_command_for_each_environment() -> None:
    commands = re.findall(r"`kubectl apply -k deploy/kubernetes/overlays/(\w+)`", README)

    assert sorted(commands) == sorted(set(ENVIRONMENTS) - {"base"})
