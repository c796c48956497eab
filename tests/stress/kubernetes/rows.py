"""What is done to the deployment while requests flow: the rows of the table, in the order in which they run."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.stress.kubernetes.environment import name_and_tag
from tests.stress.kubernetes.helm import CHART, Helm, next_chart
from tests.stress.kubernetes.kubectl import ClusterError, container_restarts, is_unschedulable, name_of, running
from tests.stress.kubernetes.report import SERVICE
from tests.stress.kubernetes.stage import CONNECT, INSTANCES, LABEL, SETTLES, NotHere, Stage

CLEAN: Final = frozenset({0})
KILLED: Final = frozenset({137})
NOBODY: Final[frozenset[int]] = frozenset()

FROZEN: Final = 20.0
"""Seconds: longer than Kafka's session time-out of 10 s, so that others take over; the liveness probe allows it."""

PASSWORD: Final = "rotated-by-cluster-test"

LISTENER: Final = 9999
"""The driver's port, which the NetworkPolicy doesn't let the service reach."""


@dataclass(frozen=True, slots=True)
class Row:
    """Something that is done, and the exit codes of the service's processes that it may cause."""

    name: str
    words: str
    act: Callable[[Stage], str]
    """Returns what is worth saying about it, or nothing."""
    codes: frozenset[int] = CLEAN


def steady(_: Stage) -> str:
    time.sleep(20)
    return ""


def restart(stage: Stage) -> str:
    stage.kubectl("rollout", "restart", "deploy/vm-sync")
    stage.settled()
    return ""


def delete(stage: Stage) -> str:
    stage.kubectl("delete", "pod", name_of(stage.ready()[0]), within=120)
    return ""


def delete_by_force(stage: Stage) -> str:
    stage.kubectl("delete", "pod", name_of(stage.ready()[0]), "--grace-period=0", "--force")
    return ""


def kill(stage: Stage) -> str:
    victim = stage.ready()[0]
    restarts = container_restarts(victim)
    stage.signal(victim, signal.SIGKILL)
    stage.until(
        lambda: any(
            name_of(pod) == name_of(victim) and container_restarts(pod) > restarts for pod in stage.watch.pods()
        ),
        what="the killed process is started again",
    )
    return ""


def freeze(stage: Stage) -> str:
    victim = stage.ready()[0]
    stage.signal(victim, signal.SIGSTOP)
    time.sleep(FROZEN)
    stage.signal(victim, signal.SIGCONT)
    return ""


def freeze_for_good(stage: Stage) -> str:
    victim = stage.ready()[0]
    frozen = running(victim, SERVICE)
    began = time.monotonic()
    stage.signal(victim, signal.SIGSTOP)
    stage.until(
        lambda: any(
            running(pod, SERVICE) not in {frozen, None} for pod in stage.watch.pods() if name_of(pod) == name_of(victim)
        ),
        what="the frozen process is replaced by its liveness probe",
    )
    return f"replaced after {time.monotonic() - began:.0f} s"


def scale(stage: Stage) -> str:
    for instances in (1, INSTANCES):
        stage.kubectl("scale", "deploy/vm-sync", f"--replicas={instances}")
        stage.settled(instances)
    return ""


def upgrade(stage: Stage) -> str:
    """From the other image to this one, and back, and again."""
    if stage.other is None:
        msg = "no image of another release was given (OTHER=)"
        raise NotHere(msg)
    for image in (stage.other, stage.image, None, stage.image):
        if image is None:
            stage.kubectl("rollout", "undo", "deploy/vm-sync")
        else:
            stage.kubectl("set", "image", "deploy/vm-sync", f"{SERVICE}={image}", f"check={image}")
        stage.settled()
    return ""


def rotate(stage: Stage) -> str:
    """VCDA's password changes there and in the Secret, and all sessions end; nothing is restarted."""
    stage.vcda("POST", "user", {"name": "root", "password": PASSWORD})
    patch = {"stringData": {"vcda__credentials__password": PASSWORD}}
    stage.kubectl("patch", "secret", stage.secret(), "--patch", json.dumps(patch))
    began = time.monotonic()
    stage.vcda("POST", "expire", {"what": "sessions"})
    read = "print(open('/run/secrets/vm-sync/vcda__credentials__password').read())"
    pods = [name_of(pod) for pod in stage.ready()]
    stage.until(
        lambda: {stage.python(pod, read).strip() for pod in pods} == {PASSWORD}, what="the new password is in the pods"
    )
    return f"in all pods after {time.monotonic() - began:.0f} s"


def drain(stage: Stage) -> str:
    """Evict all instances of a node; where it is the only one, it takes pods again as soon as the first one is out."""
    node = stage.ready()[0]["spec"]["nodeName"]
    victims = [name_of(pod) for pod in stage.ready() if pod["spec"]["nodeName"] == node]
    draining = stage.kubectl.start(
        *("drain", node, "--pod-selector=app.kubernetes.io/name=vm-sync", "--ignore-daemonsets"),
        *("--delete-emptydir-data", f"--timeout={SETTLES:.0f}s"),
    )
    said: list[str] = []
    try:
        stage.until(
            lambda: draining.poll() is not None or any(is_unschedulable(pod) for pod in stage.watch.pods()),
            what="the node is drained, or the first instance is evicted",
        )
        if draining.poll() is None:
            time.sleep(8)  # kubectl tries the next eviction every 5 s: it must be refused while an instance is missing
            stage.kubectl("uncordon", node)
        output, _ = draining.communicate(timeout=SETTLES)
        said = output.splitlines()
    except subprocess.TimeoutExpired:
        msg = "the node was not drained in time"
        raise ClusterError(msg) from None
    finally:
        draining.kill()
        stage.kubectl("uncordon", node)
    if draining.returncode:
        msg = f"kubectl drain: {' / '.join(said[-3:])}"
        raise ClusterError(msg)
    refused = sum("disruption budget" in line for line in said)
    if len(victims) > 1 and not refused:
        msg = f"{len(victims)} instances were evicted from {node}, and the budget refused none"
        raise ClusterError(msg)
    return f"{len(victims)} instances evicted one after another, {refused} evictions refused by the budget meanwhile"


def network(stage: Stage) -> str:
    """What the NetworkPolicy allows is open, and what it doesn't is closed."""
    first, second, *_ = stage.ready()
    driver = stage.kubectl.objects("get", "pods", "--selector=app.kubernetes.io/name=vcda")["items"][0]["status"][
        "podIP"
    ]
    inside = [("kafka", 9092), ("vcda", 8443), (second["status"]["podIP"], 8080)]
    shut = [
        f"{host}:{port}"
        for host, port in inside
        if stage.python(name_of(first), CONNECT, host, str(port)).strip() != "open"
    ]
    if shut:
        msg = f"the service can't reach {', '.join(shut)}"
        raise ClusterError(msg)
    if stage.outside(driver, LISTENER) != "open":
        msg = "the driver's port can't be reached from anywhere: this shows nothing"
        raise ClusterError(msg)
    leaks = [
        words
        for words, found in (
            (
                "from the service to a port that the policy does not name",
                stage.python(name_of(first), CONNECT, driver, str(LISTENER)),
            ),
            ("from another namespace to the service", stage.outside(first["status"]["podIP"], 8080)),
        )
        if found.strip() == "open"
    ]
    if len(leaks) == 2:
        msg = "this cluster enforces no NetworkPolicy"
        raise NotHere(msg)
    if leaks:
        msg = f"open: {leaks[0]}"
        raise ClusterError(msg)
    return f"{len(inside)} connections that it allows are open, 2 that it does not are closed"


def chart(stage: Stage) -> str:
    """The chart in place of the overlay: install, upgrade to a next chart, roll back, uninstall; then the overlay."""
    helm = Helm(stage.kubectl.namespace)
    values: dict[str, Any] = {
        "image": dict(zip(("repository", "tag"), name_and_tag(stage.image), strict=True)),
        "replicas": INSTANCES,
        "settings": {
            name.removeprefix("VM_SYNC_"): value
            for name, value in stage.settings().items()
            if name != "VM_SYNC_VCDA__CA_FILE"  # the chart sets it
        },
        "secret": stage.secret(),
        "vcdaCa": stage.secret("vcda-ca"),
    }
    stage.kubectl(
        "delete", "deployment,service,serviceaccount,poddisruptionbudget,networkpolicy,configmap", f"-l={LABEL}"
    )
    done = []
    try:
        helm("install", CHART, values=values)
        stage.settled()
        done.append("installed")
        values["settings"]["SYNC__MAX_RUNNING"] = 5000
        helm("upgrade", next_chart(), values=values)
        stage.settled()
        done.append("upgraded to a next chart")
        helm("rollback")
        stage.settled()
        done.append("rolled back")
    finally:
        helm("uninstall")
        left = stage.kubectl(
            "get", "deployment,service,poddisruptionbudget,networkpolicy", f"-l={LABEL}", "--output=name"
        )
        stage.apply()
    stage.settled()
    if left.strip():
        msg = f"left by `helm uninstall`: {left.split()}"
        raise ClusterError(msg)
    return f"{', '.join(done)}, uninstalled; the overlay applied again"


ROWS: Final[Sequence[Row]] = (
    Row("steady", "nothing", steady, NOBODY),
    Row("restart", "`kubectl rollout restart`", restart),
    Row("delete", "a pod deleted", delete),
    Row("force", "a pod deleted with `--force --grace-period=0`", delete_by_force, CLEAN | KILLED),
    Row("kill", "SIGKILL to a process", kill, KILLED),
    Row("freeze", f"a process stopped for {FROZEN:.0f} s by SIGSTOP", freeze, NOBODY),
    Row("hang", "a process stopped for good by SIGSTOP", freeze_for_good, KILLED),
    Row("scale", f"scaled from {INSTANCES} to 1, and to {INSTANCES}", scale),
    Row("upgrade", "another release; upgrade, `rollout undo`, upgrade", upgrade),
    Row("rotate", "VCDA's password changed", rotate, NOBODY),
    Row("drain", "`kubectl drain`", drain),
    Row("network", "NetworkPolicy", network, NOBODY),
    Row("chart", "the Helm chart in place of the overlay", chart),
)
