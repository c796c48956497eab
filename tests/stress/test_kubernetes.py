"""`make cluster-test` without a cluster: what it counts, what it prints, and what it says when it can't work."""

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import missing
from tests.stress.kubernetes import __main__ as program
from tests.stress.kubernetes import environment, report, timings
from tests.stress.kubernetes.kubectl import (
    Kubectl,
    PodWatch,
    Seen,
    documents,
    ends_of,
    fewest_ready,
    is_ready,
    running,
)
from tests.stress.kubernetes.rows import LISTENER, ROWS
from tests.stress.kubernetes.stage import INSTANCES, LABEL, Stage

ROOT = Path(__file__).resolve().parents[2]

SOUND: Mapping[str, Any] = {
    "asked": {"op-0": ["C4-a", 100.0], "op-1": ["C4-b", 101.0]},
    "told": [["op-0", "vm-sync.completed", None], ["op-1", "vm-sync.completed", None]],
    "tasks": [["C4-a", 100.5], ["C4-b", 108.0]],
}


def pod(name: str, *, ready: bool = True, deleted: bool = False, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, **({"deletionTimestamp": "2026-03-01T00:00:00Z"} if deleted else {})},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}], **status},
    }


# ---------------------------------------------------------------- what is counted


def test_a_request_with_one_outcome_and_one_task_is_sound_and_its_wait_is_that_for_the_task() -> None:
    found = report.counted(SOUND)

    assert (found.sound, found.requests, found.longest_wait, found.words()) == (True, 2, 7.0, "each")
    assert report.faults_of(found, [], expected=frozenset()) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"told": SOUND["told"][:1]}, "1 without an outcome"),
        ({"told": [*SOUND["told"], SOUND["told"][0]]}, "1 with several outcomes"),
        ({"tasks": SOUND["tasks"][:1]}, "1 without a task"),
        ({"tasks": [*SOUND["tasks"], SOUND["tasks"][0]]}, "1 with several tasks"),
        ({"told": [SOUND["told"][0], ["op-1", "vm-sync.failed", "timed-out"]]}, "1 timed-out"),
        ({"told": [*SOUND["told"], ["None", "vm-sync.dead-letter", None]]}, "1 dead letter"),
        ({"asked": {}, "told": [], "tasks": []}, "no request"),
    ],
)
def test_anything_else_is_a_fault_and_named(changed: Mapping[str, Any], words: str) -> None:
    found = report.counted({**SOUND, **changed})

    assert (found.sound, found.words()) == (False, words)
    (fault,) = report.faults_of(found, [], expected=frozenset())
    assert words in fault


def test_a_process_that_ends_with_an_exit_code_that_the_row_does_not_cause_is_a_fault() -> None:
    killed: dict[str, Any] = {
        "initContainerStatuses": [{"name": "check", "state": {"terminated": {"exitCode": 0, "containerID": "c://1"}}}],
        "containerStatuses": [
            {
                "name": "vm-sync",
                "state": {"running": {}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "Error", "containerID": "c://2"}},
            }
        ],
    }
    ends = list(ends_of(pod("a", **killed)))

    assert report.codes_of(ends) == {137: 1}
    assert report.faults_of(report.counted(SOUND), ends, expected=frozenset({137})) == []
    (fault,) = report.faults_of(report.counted(SOUND), ends, expected=frozenset({0}))
    assert fault == "a: vm-sync ended with exit code 137 (Error)"


def test_pods_that_are_being_deleted_are_not_ready() -> None:
    assert [is_ready(one) for one in (pod("a"), pod("a", ready=False), pod("a", deleted=True))] == [True, False, False]


def test_the_fewest_instances_that_were_ready_are_counted_between_two_moments() -> None:
    seen = [
        Seen(1.0, pod("a", ready=False), gone=False),
        Seen(2.0, pod("a"), gone=False),
        Seen(3.0, pod("b"), gone=False),
        Seen(6.0, pod("a", deleted=True), gone=False),
        Seen(7.0, pod("c"), gone=False),
        Seen(8.0, pod("a"), gone=True),
        Seen(20.0, pod("b"), gone=True),
    ]

    assert fewest_ready(seen, since=4.0, until=10.0) == 1
    assert fewest_ready(seen, since=4.0, until=5.0) == 2
    assert fewest_ready(seen, since=9.0, until=30.0) == 1


def test_a_containers_id_is_that_of_the_runtime_and_only_while_it_runs() -> None:
    status = {"name": "vm-sync", "containerID": "containerd://abc"}

    assert running(pod("a", containerStatuses=[{**status, "state": {"running": {}}}]), "vm-sync") == "abc"
    assert running(pod("a", containerStatuses=[{**status, "state": {"waiting": {}}}]), "vm-sync") is None


@pytest.mark.parametrize("indent", [None, 4])
def test_events_that_kubectl_prints_in_a_line_each_or_in_many_are_read_one_by_one(indent: int | None) -> None:
    text = "".join(json.dumps({"type": "ADDED", "object": {"n": n}}, indent=indent) + "\n" for n in range(2))

    lines = ["Warning: old\n", *text.splitlines(keepends=True)]

    assert [event["object"]["n"] for event in documents(lines)] == [0, 1]


# ---------------------------------------------------------------- what is printed


def test_the_table_has_a_row_for_each_thing_that_was_done_or_the_reason_why_it_was_not() -> None:
    done = report.Result(
        row="kill", words="SIGKILL", counted=report.counted(SOUND), codes={137: 1}, fewest_ready=2, took=12.4, note="so"
    )
    skipped = report.Result(row="upgrade", words="another release", not_run="no image")

    first, second = done.row_of_table(), skipped.row_of_table()

    assert first == "| SIGKILL: so | 2 | each | 7.0 s | 137 (1) | 2 | 12 s |"
    assert second.count("|") == first.count("|")
    assert second.startswith("| another release | not run: no image |")


def test_times_are_medians_with_their_parts() -> None:
    whole = report.Timing("To the outcome", {"Kafka": [5.0, 7.0, 6.0], "the rest": [1.0, 1.0, 2.0]}).text()

    assert whole == (
        "- To the outcome: 8.0 s (6.0 to 8.0), median of 3 times. Medians of its parts: Kafka 6.0 s, the rest 1.0 s."
    )
    assert report.Timing("Start", {"": [2.0]}).text() == "- Start: 2.0 s (2.0 to 2.0), median of 1 times."


def test_the_table_goes_between_its_marks_in_the_readme_which_has_them() -> None:
    text = program.README.read_text()

    changed = report.inserted(text, "A table.\n")

    assert report.between(changed) == "A table.\n"
    assert report.inserted(changed, report.between(text)) == text


def test_what_a_run_did_not_do_or_not_well_stays_as_it_was() -> None:
    rows = {row.name: row for row in ROWS}
    before = program.page(
        [report.Result(row=name, words=rows[name].words, counted=report.counted(SOUND)) for name in ("kill", "scale")],
        [report.Timing(timings.WORDS[timings.START], {"": [2.0]})],
        before=f"{report.MARKS[0]}\n{report.MARKS[1]}",
        where="There",
        rate=5.0,
        today="yesterday",
    )
    sound = report.Result(row="drain", words=rows["drain"].words, counted=report.counted(SOUND))
    wrong = report.Result(
        row="scale", words=rows["scale"].words, counted=report.counted(SOUND), took=99.0, faults=["so"]
    )

    after = program.page(
        [wrong, sound],
        [],
        before=f"{report.MARKS[0]}\n{before}{report.MARKS[1]}",
        where="Here",
        rate=5.0,
        today="today",
    )

    assert [line.split("|")[1].strip() for line in after.splitlines() if line.startswith("| ")][1:] == [
        rows[name].words for name in ("kill", "scale", "drain")
    ]
    assert "99 s" not in after
    assert after.startswith("Here; today.")
    not_run = report.Result(row="kill", words=rows["kill"].words, not_run="no right")
    again = program.page(
        [not_run],
        [],
        before=f"{report.MARKS[0]}\n{after}{report.MARKS[1]}",
        where="Here",
        rate=5.0,
        today="today",
    )
    assert again == after
    assert before.splitlines()[-1] in after.splitlines()


def test_the_readme_has_every_row_of_the_program() -> None:
    table = report.between(program.README.read_text())

    assert [row.words for row in ROWS if f"| {row.words}" not in table] == []


# ---------------------------------------------------------------- what is applied


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("vm-sync", {"newName": "vm-sync", "newTag": "latest"}),
        ("registry:5000/a/vm-sync:1.2", {"newName": "registry:5000/a/vm-sync", "newTag": "1.2"}),
        ("r/vm-sync@sha256:12", {"newName": "r/vm-sync", "digest": "sha256:12"}),
    ],
)
def test_an_image_is_named_as_kustomize_wants_it(image: str, found: Mapping[str, str]) -> None:
    made = environment.kustomization(namespace="n", image=image, resource=environment.HERE)

    assert made["images"] == [{"name": "vm-sync", **found}]


def test_what_is_applied_lies_in_namespaces_of_its_own_and_has_three_instances_that_share_one_vcda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (kustomize := shutil.which("kustomize")) is None:
        missing("kustomize is not installed: go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1")
    monkeypatch.setattr(environment, "BUILD", ROOT / "build" / f"cluster-test-{tmp_path.name}")
    try:
        folders = environment.prepare(namespace="here", image="registry/vm-sync:1")
        rendered = [
            list(yaml.safe_load_all(subprocess.run([kustomize, "build", one], capture_output=True, check=True).stdout))
            for one in folders
        ]
    finally:
        shutil.rmtree(environment.BUILD)

    for objects, namespace in zip(rendered, ("here", "here-local"), strict=True):
        assert {thing["metadata"].get("namespace") for thing in objects} == {namespace, None}
        (of_its_own,) = [thing for thing in objects if thing["kind"] == "Namespace"]
        assert of_its_own["metadata"]["name"] == namespace
        assert environment.OURS in of_its_own["metadata"]["labels"].items()
    deployments = {thing["metadata"]["name"]: thing["spec"] for thing in rendered[0] if thing["kind"] == "Deployment"}
    service = deployments["vm-sync"]
    assert service["replicas"] == INSTANCES
    assert service["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    spec = service["template"]["spec"]
    assert {c["image"] for c in [*spec["containers"], *spec["initContainers"]]} == {"registry/vm-sync:1"}
    assert [container["name"] for container in spec["containers"]] == ["vm-sync"]
    base = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "base" / "deployment.yaml").read_text())
    (usual,) = base["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert spec["containers"][0][probe] == usual[probe]
    driver = deployments["vcda"]["template"]["spec"]["containers"][1]
    assert driver["ports"][0]["containerPort"] == LISTENER
    (policy,) = [thing["spec"] for thing in rendered[0] if thing["kind"] == "NetworkPolicy"]
    assert LISTENER not in {port["port"] for rule in policy["egress"] for port in rule["ports"]}


def test_the_pod_that_sends_signals_is_the_only_object_outside_and_in_a_namespace_that_is_known_as_ours() -> None:
    namespace, daemons = yaml.safe_load_all(environment.signals(namespace="n-node", image="i:1"))

    assert namespace["metadata"]["name"] == daemons["metadata"]["namespace"] == "n-node"
    assert environment.OURS in namespace["metadata"]["labels"].items()
    assert daemons["spec"]["template"]["spec"]["containers"][0]["image"] == "i:1"


def test_the_overlay_applied_again_brings_vcda_the_password_of_its_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row before may have rotated it: with the Secret's own password back, no instance could log in."""
    volume = {"name": "secrets", "secret": {"secretName": "vm-sync-1a2b"}}
    deployment = json.dumps({"spec": {"template": {"spec": {"volumes": [volume]}}}})
    secret = json.dumps({"data": {"vcda__credentials__password": "cGFzc3dvcmQ="}})
    script = f"""echo "$*" >> {tmp_path}/asked; case "$*" in *secret*) echo '{secret}';;
*deploy/vm-sync*) echo '{deployment}';; *driver.py*) echo null;; esac"""
    fake_kubectl(tmp_path, script, monkeypatch)
    kubectl = Kubectl("mine")
    stage = Stage(kubectl, PodWatch(kubectl, label=LABEL), folder=tmp_path, image="i", other=None, signals=kubectl)

    stage.apply()

    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].startswith("apply --kustomize")
    assert asked[-1].endswith('vcda POST user {"name": "root", "password": "password"}')


# ---------------------------------------------------------------- what it says when it can't work


def fake_kubectl(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program_file = folder / "kubectl"
    program_file.write_text(f"#!/bin/sh\n{script}\n")
    program_file.chmod(program_file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


VERSION = """case "$*" in version*) echo '{"serverVersion": {"gitVersion": "v1.34.4"}}';; """
NODES = """*nodes*) echo '{"items": [{"status": {"nodeInfo": {"containerRuntimeVersion": "containerd://1.7"}}}]}';; """


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'dial tcp: connection refused' >&2; exit 1", "no cluster answers: check `kubectl version`"),
        (f"{VERSION} *) echo no; exit 1;; esac", "may not create namespaces"),
        (
            f"{VERSION} *current-context*) echo prod;; *can-i*) echo yes;; {NODES} esac",
            "no image: without IMAGE= the image is built by Docker and loaded into a cluster of kind or minikube",
        ),
    ],
)
def test_what_is_missing_is_one_clear_error(
    script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_kubectl(tmp_path, script, monkeypatch)

    assert program.main([]) == 1

    printed = capsys.readouterr().out
    assert printed.startswith("Error: ")
    assert says in printed
    assert "Traceback" not in printed


def test_without_kubectl_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert program.main([]) == 1
    assert "kubectl is not installed, or not on PATH" in capsys.readouterr().out


@pytest.mark.parametrize("ours", [False, True])
def test_the_namespaces_of_an_earlier_run_are_removed_first_and_those_of_others_are_left_alone(
    ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = dict([environment.OURS]) if ours else {}
    there = json.dumps({"items": [{"metadata": {"name": "mine", "labels": labels}}]})
    script = f"""echo "$*" >> {tmp_path}/asked; {VERSION} *can-i*) echo yes;; {NODES}
*get\\ namespaces*) echo '{there}';; *) echo "it ends here" >&2; exit 1;; esac"""
    fake_kubectl(tmp_path, script, monkeypatch)

    assert program.main(["--image", "i", "--namespace", "mine"]) == 1

    says = "it ends here" if ours else "the namespace mine is there, and no earlier run made it"
    assert says in capsys.readouterr().out
    changes = [line for line in (tmp_path / "asked").read_text().splitlines() if line.startswith(("apply", "delete"))]
    assert changes == ["delete namespace mine"] * ours


def test_the_help_has_an_example_and_every_row() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.stress.kubernetes", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0
    assert "make cluster-test" in done.stdout
    assert [row.name for row in ROWS if row.name not in done.stdout] == []
