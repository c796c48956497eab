"""kubectl, and what it tells of pods. Knows nothing of the service."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

Object: TypeAlias = Mapping[str, Any]

LINES_OF_AN_ERROR: Final = 3
"""Of what kubectl prints on stderr, the last lines say what is wrong."""


class ClusterError(Exception):
    """What can't be done on this cluster; the text is for the operator."""


class Kubectl:
    """Runs kubectl in one namespace, on the cluster that it points at.

    Raises:
        ClusterError: there is no kubectl.
    """

    def __init__(self, namespace: str | None = None) -> None:
        program = shutil.which("kubectl")
        if program is None:
            msg = "kubectl is not installed, or not on PATH: https://kubernetes.io/docs/tasks/tools/"
            raise ClusterError(msg)
        self.namespace = namespace
        self._command = [program, *(["--namespace", namespace] if namespace else [])]

    def __call__(self, *arguments: str, given: str | None = None, within: float = 60.0) -> str:
        """Run a command, with `given` on its stdin, and return what it prints.

        Raises:
            ClusterError: it failed, or took longer than `within` seconds.
        """
        try:
            done = subprocess.run(
                [*self._command, *arguments], input=given, capture_output=True, text=True, timeout=within, check=False
            )
        except subprocess.TimeoutExpired:
            msg = f"kubectl {' '.join(arguments)}: no answer within {within:.0f} s"
            raise ClusterError(msg) from None
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            msg = f"kubectl {' '.join(arguments)}: {' / '.join(lines[-LINES_OF_AN_ERROR:]) or 'no reason given'}"
            raise ClusterError(msg)
        return done.stdout

    def objects(self, *arguments: str, within: float = 60.0) -> Any:
        """Run a command that prints JSON, and return what it says."""
        return json.loads(self(*arguments, "--output=json", within=within))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command that goes on; stdin and stdout are pipes, stderr goes with stdout."""
        return subprocess.Popen(
            [*self._command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )


# ---------------------------------------------------------------- what pods say of themselves


@dataclass(frozen=True, slots=True)
class End:
    """A container's process that has ended."""

    pod: str
    container: str
    container_id: str
    code: int
    reason: str


def name_of(pod: Object) -> str:
    """Return a pod's name."""
    return str(pod["metadata"]["name"])


def is_ending(pod: Object) -> bool:
    """Return whether a pod has been deleted and still ends."""
    return "deletionTimestamp" in pod["metadata"]


def is_ready(pod: Object) -> bool:
    """Return whether a pod counts as available to a Service and to a budget."""
    if is_ending(pod):
        return False
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod.get("status", {}).get("conditions", [])
    )


def is_unschedulable(pod: Object) -> bool:
    """Return whether a pod waits for a node that would take it."""
    return any(
        condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable"
        for condition in pod.get("status", {}).get("conditions", [])
    )


def ends_of(pod: Object) -> Iterator[End]:
    """Yield how containers of a pod ended, as far as its status says."""
    status = pod.get("status", {})
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        for state in (container.get("state", {}), container.get("lastState", {})):
            if ended := state.get("terminated"):
                yield End(
                    pod=name_of(pod),
                    container=container["name"],
                    container_id=ended.get("containerID", ""),
                    code=ended["exitCode"],
                    reason=ended.get("reason", ""),
                )


def running(pod: Object, container: str) -> str | None:
    """Return the id that the container runtime has for a running container, without the runtime's name."""
    for status in pod.get("status", {}).get("containerStatuses", []):
        if status["name"] == container and "running" in status.get("state", {}):
            return str(status["containerID"]).rpartition("/")[2]
    return None


def container_restarts(pod: Object) -> int:
    """Return how often containers of a pod were started again."""
    return sum(status["restartCount"] for status in pod.get("status", {}).get("containerStatuses", []))


def documents(lines: Iterable[str]) -> Iterator[Any]:
    """Yield the documents that `kubectl get --watch --output=json` prints, in one line each, or in many."""
    text: list[str] = []
    for line in lines:
        if not text and not line.startswith("{"):
            continue  # a warning
        text.append(line)
        end = line.rstrip()
        if end == "}" or (len(text) == 1 and end.endswith("}")):
            yield json.loads("".join(text))
            text = []


@dataclass(frozen=True, slots=True)
class Seen:
    """A pod as it was reported."""

    at: float
    """Of `time.monotonic`."""
    pod: Object
    gone: bool


def fewest_ready(seen: Sequence[Seen], *, since: float, until: float) -> int:
    """Return the smallest number of pods that were ready at the same time."""
    now: dict[str, bool] = {}
    fewest: int | None = None
    for one in seen:
        if one.at > until:
            break
        if one.at > since and fewest is None:
            fewest = sum(now.values())
        now[name_of(one.pod)] = is_ready(one.pod) and not one.gone
        if one.at > since:
            fewest = min(sum(now.values()), sum(now.values()) if fewest is None else fewest)
    return sum(now.values()) if fewest is None else fewest


class PodWatch:
    """Records all that becomes of the pods with a label while its context is open."""

    def __init__(self, kubectl: Kubectl, *, label: str) -> None:
        self._kubectl, self._label = kubectl, label
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._open = True
        self._child: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._follow, name=f"watches {label}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._open = False
        if self._child is not None:
            self._child.kill()
        self._thread.join(10)

    def _follow(self) -> None:
        while self._open:
            self._child = self._kubectl.start(
                "get", "pods", f"--selector={self._label}", "--watch", "--output-watch-events", "--output=json"
            )
            with self._child as child:
                for event in documents(child.stdout or ()):
                    one = Seen(time.monotonic(), event["object"], event["type"] == "DELETED")
                    with self._lock:
                        self._seen.append(one)
            time.sleep(0.5)  # the API server ends a watch now and then

    def seen(self) -> list[Seen]:
        """Return all that was reported so far."""
        with self._lock:
            return list(self._seen)

    def pods(self) -> list[Object]:
        """Return the pods that there are, those that are ending included, by name."""
        latest = {name_of(one.pod): one for one in self.seen()}
        return [one.pod for _, one in sorted(latest.items()) if not one.gone]

    def ends(self, *, since: float) -> list[End]:
        """Return the processes whose ends were reported since a moment, each once."""
        before = {end.container_id for one in self.seen() if one.at <= since for end in ends_of(one.pod)}
        found = {end.container_id: end for one in self.seen() if one.at > since for end in ends_of(one.pod)}
        return [end for key, end in found.items() if key not in before]
