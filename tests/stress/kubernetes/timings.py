"""How long it takes until the service works: after `kubectl apply`, and after a container's start."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final

from tests.stress.kubernetes.kubectl import Kubectl, name_of, running
from tests.stress.kubernetes.report import SERVICE, Timing
from tests.stress.kubernetes.stage import INSTANCES, LABEL, Stage

FIRST_OUTCOME, START = "first-outcome", "start"

WORDS: Final = {
    FIRST_OUTCOME: "From `kubectl apply` of the overlay `local`, with the images on the node, to the first outcome",
    START: "From the start of the container's process to `/readyz`, with Kafka running",
}

TIMES: Final = 5

REPLICATION: Final = "C4-00000000-0000-0000-0000-000000000001"

READY_AFTER: Final = """
import http.client, os, time
start = int(open("/proc/1/stat").read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
while True:
    try:
        asked = http.client.HTTPConnection("127.0.0.1", 8080, timeout=5)
        asked.request("GET", "/readyz")
        if asked.getresponse().status == 200: break
    except OSError: pass
    time.sleep(0.05)
print(float(open("/proc/uptime").read().split()[0]) - start)
"""
"""Run in a container: waits for /readyz, and prints the seconds since the container's first process started."""


def first_outcome(kubectl: Kubectl, *, folder: str, say: Callable[[str], None]) -> Timing:
    """Apply the overlay `local`, of which nothing was there, and request a sync; each time."""
    parts: Mapping[str, list[float]] = defaultdict(list)
    namespace = str(kubectl.namespace)
    for number in range(TIMES):
        Kubectl()("delete", "namespace", namespace, "--ignore-not-found", within=240)
        began = time.monotonic()
        Kubectl()("apply", "--kustomize", folder, within=120)
        applied = time.monotonic()
        kubectl("rollout", "status", "deploy/kafka", "--timeout=240s", within=260)
        kafka = time.monotonic()
        kubectl("wait", "--for=condition=Ready", "pod", f"--selector={LABEL}", "--timeout=240s", within=260)
        service = time.monotonic()
        kubectl(
            *("exec", "deploy/vm-sync", f"--container={SERVICE}", "--"),
            *("vm-sync", "request", REPLICATION, "--wait", "--timeout", "120"),
            within=180,
        )
        ended = time.monotonic()
        moments = [began, applied, kafka, service, ended]
        names = ("`kubectl apply`", "until Kafka is ready", "until the service is ready", "`vm-sync request --wait`")
        for name, since, until in zip(names, moments, moments[1:], strict=False):
            parts[name].append(until - since)
        say(f"{number + 1} of {TIMES}: {ended - began:.1f} s")
    Kubectl()("delete", "namespace", namespace, "--ignore-not-found", within=240)
    return Timing(WORDS[FIRST_OUTCOME], dict(parts))


def start(stage: Stage, *, say: Callable[[str], None]) -> Timing:
    """Delete an instance, and measure in the container of the next one; each time."""
    took: list[float] = []
    for number in range(TIMES):
        before = {name_of(pod) for pod in stage.watch.pods()}
        stage.kubectl("delete", "pod", name_of(stage.ready()[0]), "--wait=false")
        stage.until(lambda before=before: bool(_started(stage, before)), what="the next instance runs")  # type: ignore[misc]
        (pod, *_) = _started(stage, before)
        took.append(float(stage.python(pod, READY_AFTER, within=120)))
        say(f"{number + 1} of {TIMES}: {took[-1]:.2f} s")
        stage.settled(INSTANCES)
    return Timing(WORDS[START], {"": took})


def _started(stage: Stage, before: set[str]) -> list[str]:
    return [name for pod in stage.watch.pods() if (name := name_of(pod)) not in before and running(pod, SERVICE)]
