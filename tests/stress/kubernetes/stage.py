"""What the rows act on: the deployment in its namespace, the driver and the simulated VCDA beside it."""

import base64
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.stress.kubernetes.kubectl import (
    ClusterError,
    Kubectl,
    Object,
    PodWatch,
    is_ending,
    is_ready,
    name_of,
    running,
)
from tests.stress.kubernetes.report import SERVICE

INSTANCES: Final = 3

LABEL: Final = "app.kubernetes.io/name=vm-sync"

LONGEST: Final = 1200.0
"""Seconds for which a row's requests flow at most."""

PATIENCE: Final = 240.0
"""Seconds for the outcomes of the last requests. A rotated secret takes a minute or two to arrive in the pods."""

SETTLES: Final = 300.0
"""Seconds for all instances to be ready again. One that doesn't answer its probes has a minute, and 40 s to end."""

SEND_SIGNAL: Final = """
import os, pathlib, sys
container, number = sys.argv[1], int(sys.argv[2])
found = [int(p.parent.name) for p in pathlib.Path("/proc").glob("[0-9]*/cgroup") if container in p.read_text()]
assert found, "no process of this container on this node"
for pid in found: os.kill(pid, number)
"""

CONNECT: Final = """
import socket, sys
try: socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3); print("open")
except OSError: print("closed")
"""


class NotHere(Exception):
    """What this cluster, or what was given, doesn't allow; the text says it."""


class Flow:
    """Requests that flow while something is done."""

    def __init__(self, kubectl: Kubectl, *, rate: float) -> None:
        self._child = kubectl.start(
            *("exec", "--stdin", "deploy/vcda", "--container=driver", "--"),
            *("python", "/driver/driver.py", "flow", str(rate), str(LONGEST), str(PATIENCE)),
        )
        self.sent = self.ended = 0
        self._facts: dict[str, Any] | None = None
        self._said: list[str] = []
        self._begun = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._child.stdout or ():
            try:
                fact = json.loads(line)
            except ValueError:
                self._said.append(line.strip())
                continue
            if "asked" in fact:
                self._facts = fact
            else:
                self.sent, self.ended = fact["sent"], fact["ended"]
                if self.ended:
                    self._begun.set()

    def begun(self) -> None:
        """Wait for the first outcome.

        Raises:
            ClusterError: there was none.
        """
        if not self._begun.wait(60):
            self.kill()
            msg = f"no outcome of the first requests: {' / '.join(self._said[-3:]) or 'nothing was said'}"
            raise ClusterError(msg)

    def stop(self) -> dict[str, Any]:
        """Send no more requests, wait for the outcomes, and return the facts.

        Raises:
            ClusterError: the driver has failed.
        """
        if self._child.stdin and self._child.poll() is None:
            self._child.stdin.write("stop\n")
            self._child.stdin.flush()
        try:
            self._child.wait(PATIENCE + 60)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(10)
        if self._facts is None:
            msg = f"the driver did not say what it saw: {' / '.join(self._said[-3:]) or 'no reason given'}"
            raise ClusterError(msg)
        return self._facts

    def kill(self) -> None:
        """End it; the driver in the pod ends when its time is up."""
        self._child.kill()
        self._child.wait(10)


class Stage:
    """The deployment in its namespace, applied from `folder`. `image` runs; `other` is another release's, if given."""

    def __init__(
        self, kubectl: Kubectl, watch: PodWatch, *, folder: Path, image: str, other: str | None, signals: Kubectl
    ) -> None:
        self.kubectl, self.watch, self.image, self.other = kubectl, watch, image, other
        self._folder, self._signals = folder, signals

    # ------------------------------------------------------------ look

    def ready(self) -> list[Object]:
        """Return the instances that are ready, by name."""
        return [pod for pod in self.watch.pods() if is_ready(pod)]

    def until(self, condition: Callable[[], bool], *, what: str, within: float = SETTLES) -> None:
        """Wait for something.

        Raises:
            ClusterError: it did not come within that many seconds.
        """
        until = time.monotonic() + within
        while not condition():
            if time.monotonic() > until:
                msg = f"not within {within:.0f} s: {what}; pods: {', '.join(map(_words, self.watch.pods())) or 'none'}"
                raise ClusterError(msg)
            time.sleep(0.2)

    def settled(self, instances: int = INSTANCES) -> None:
        """Wait until there are as many instances as wanted, all ready, and no other."""
        self.kubectl("rollout", "status", "deploy/vm-sync", f"--timeout={SETTLES:.0f}s", within=SETTLES + 30)
        self.until(
            lambda: len(self.watch.pods()) == instances == len(self.ready()), what=f"{instances} instances, all ready"
        )

    def secret(self, volume: str = "secrets") -> str:
        """Return the name of the Secret that the instances mount as a volume; Kustomize has added a hash."""
        (found,) = [one for one in self._pod()["volumes"] if one["name"] == volume]
        return str(found["secret"]["secretName"])

    def settings(self) -> dict[str, str]:
        """Return the variables of the instances' ConfigMap."""
        (source,) = self._pod()["containers"][0]["envFrom"]
        data: dict[str, str] = self.kubectl.objects("get", "configmap", source["configMapRef"]["name"])["data"]
        return data

    def _pod(self) -> Object:
        template: Object = self.kubectl.objects("get", "deploy/vm-sync")["spec"]["template"]["spec"]
        return template

    # ------------------------------------------------------------ act

    def apply(self) -> None:
        """Apply everything again. VCDA's password is then the applied Secret's, whatever a row has made of both."""
        Kubectl()("apply", "--kustomize", str(self._folder), within=120)
        applied = self.kubectl.objects("get", "secret", self.secret())["data"]["vcda__credentials__password"]
        self.vcda("POST", "user", {"name": "root", "password": base64.b64decode(applied).decode()})

    def python(self, pod: str, code: str, *arguments: str, within: float = 60.0) -> str:
        """Run Python in an instance's container."""
        return self.kubectl(
            "exec", pod, f"--container={SERVICE}", "--", "python", "-c", code, *arguments, within=within
        )

    def vcda(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask the simulated VCDA's control API."""
        sent = [] if body is None else [json.dumps(body)]
        driver = ("exec", "deploy/vcda", "--container=driver", "--", "python", "/driver/driver.py")
        return json.loads(self.kubectl(*driver, "vcda", method, path, *sent))

    def signal(self, pod: Object, number: signal.Signals) -> None:
        """Send a signal to an instance's process, from its node.

        Raises:
            NotHere: no pod may see its node's processes here.
        """
        container = running(pod, SERVICE)
        if container is None:
            msg = f"the container of {name_of(pod)} does not run"
            raise ClusterError(msg)
        self._signals("exec", self._on_node(pod), "--", "python", "-c", SEND_SIGNAL, container, str(int(number)))

    def outside(self, host: str, port: int) -> str:
        """Return whether a pod outside of the namespace, that no NetworkPolicy concerns, can connect."""
        return self._signals("exec", "ds/signals", "--", "python", "-c", CONNECT, host, str(port)).strip()

    def _on_node(self, pod: Object) -> str:
        for other in self._signals.objects("get", "pods")["items"]:
            if other["spec"].get("nodeName") == pod["spec"]["nodeName"] and is_ready(other):
                return name_of(other)
        msg = "no pod that sees the processes of its node can run here"
        raise NotHere(msg)

    @contextmanager
    def flow(self, *, rate: float) -> Iterator[Flow]:
        """Have requests flow, at this rate a second."""
        flow = Flow(self.kubectl, rate=rate)
        try:
            flow.begun()
            yield flow
        finally:
            flow.kill()


def _words(pod: Object) -> str:
    state = "ending" if is_ending(pod) else "ready" if is_ready(pod) else "not ready"
    return f"{name_of(pod)} {state}"
