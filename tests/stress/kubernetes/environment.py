"""The cluster that kubectl points at, the image, and what is applied: the rows' deployment and the overlay `local`."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trustme
import yaml

from tests.stress.kubernetes.kubectl import ClusterError, Kubectl

ROOT: Final = Path(__file__).resolve().parents[3]
HERE: Final = Path(__file__).resolve().parent
BUILD: Final = ROOT / "build" / "cluster-test"

RIGHTS: Final = (
    ("create", "namespaces"),
    ("delete", "namespaces"),
    ("create", "deployments.apps"),
    ("create", "pods/exec"),
)
"""What is asked of the cluster first; without one of these nothing works."""

OURS: Final = ("app.kubernetes.io/managed-by", "cluster-test")
"""A label of all objects, by which a namespace of an earlier run is known."""


# ---------------------------------------------------------------- what there is


def cluster() -> str:
    """Return what cluster this is, for the page.

    Raises:
        ClusterError: there is none, or its account may not do what is needed.
    """
    kubectl = Kubectl()
    try:
        versions = kubectl.objects("version", within=30)
        server = versions["serverVersion"]["gitVersion"]
    except (ClusterError, KeyError) as error:
        msg = f"no cluster answers: check `kubectl version` and `kubectl config current-context` ({error})"
        raise ClusterError(msg) from None
    for verb, kind in RIGHTS:
        try:
            kubectl("auth", "can-i", verb, kind, "--all-namespaces")
        except ClusterError:
            msg = f"the account of kubectl's context may not {verb} {kind}; use an administrator's"
            raise ClusterError(msg) from None
    nodes = [node["status"]["nodeInfo"] for node in kubectl.objects("get", "nodes")["items"]]
    runtimes = ", ".join(sorted({node["containerRuntimeVersion"].replace("://", " ") for node in nodes}))
    return f"Kubernetes {server.removeprefix('v')}, {len(nodes)} node{'s' * (len(nodes) != 1)}, {runtimes}"


def built(say: Callable[[str], None]) -> str:
    """Build the image with Docker, load it into a cluster of kind or minikube, and return its name.

    Raises:
        ClusterError: that can't be done here.
    """
    context = Kubectl()("config", "current-context").strip()
    loads = {
        "kind": ("kind", "load", "docker-image", "--name", context.removeprefix("kind-")),
        "minikube": ("minikube", "image", "load"),
    }
    load = next((command for name, command in loads.items() if context.startswith(name)), None)
    if load is None or shutil.which("docker") is None or shutil.which(load[0]) is None:
        msg = (
            "no image: without IMAGE= the image is built by Docker and loaded into a cluster of kind or minikube. The "
            f"context {context} is neither, or docker, kind or minikube is missing. Push the image to where the "
            "cluster finds it, and name it: IMAGE=..."
        )
        raise ClusterError(msg)
    image = "vm-sync:cluster-test"
    say("Building and loading the image ...")
    for command in (("docker", "build", "--quiet", "--tag", image, str(ROOT)), (*load, image)):
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
            msg = f"failed: {' '.join(command)}"
            raise ClusterError(msg)
    return image


# ---------------------------------------------------------------- what is applied


def name_and_tag(image: str) -> tuple[str, str]:
    """Return an image's name and its tag, which is `latest` where none is given."""
    name = image.partition("@")[0]
    if ":" in name.rpartition("/")[2]:
        name, _, tag = name.rpartition(":")
        return name, tag
    return name, "latest"


def kustomization(*, namespace: str, image: str, resource: Path, **more: Any) -> dict[str, Any]:
    """Return a kustomization in `BUILD` that puts a folder into a namespace, with an image."""
    name, tag = name_and_tag(image)
    digest = image.partition("@")[2]
    chosen = {"digest": digest} if digest else {"newTag": tag}
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [str(Path("../../..") / resource.relative_to(ROOT))],
        "labels": [{"pairs": dict([OURS])}],
        "images": [{"name": "vm-sync", "newName": name, **chosen}],
        **more,
    }


def write_folder(name: str, content: dict[str, Any]) -> Path:
    """Write a kustomization into a folder of its own."""
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def prepare(*, namespace: str, image: str) -> tuple[Path, Path]:
    """Write what is applied: the deployment of the rows, and the overlay `local`."""
    shutil.rmtree(BUILD, ignore_errors=True)
    generator = {"name": "vcda-tls", "files": ["ca.crt", "tls.crt", "tls.key"]}
    shared = write_folder(
        "shared", kustomization(namespace=namespace, image=image, resource=HERE, secretGenerator=[generator])
    )
    authority = trustme.CA()
    certificate = authority.issue_cert("vcda")
    authority.cert_pem.write_to_path(shared / "ca.crt")
    certificate.private_key_pem.write_to_path(shared / "tls.key")
    for part in certificate.cert_chain_pems:
        part.write_to_path(shared / "tls.crt", append=True)
    overlay = ROOT / "deploy" / "kubernetes" / "overlays" / "local"
    local = write_folder("local", kustomization(namespace=f"{namespace}-local", image=image, resource=overlay))
    return shared, local


def signals(*, namespace: str, image: str) -> str:
    """Return the objects that send signals, as YAML."""
    text = (HERE / "signals.yaml").read_text(encoding="utf-8")
    return text.replace("NAMESPACE", namespace).replace("IMAGE", image)


def remove(namespaces: Sequence[str]) -> None:
    """Remove the namespaces of an earlier run: a Kafka that restarts there has lost its topics, and stops the service.

    Raises:
        ClusterError: somebody else made one of them.
    """
    there = {one["metadata"]["name"]: one["metadata"] for one in Kubectl().objects("get", "namespaces")["items"]}
    found = [name for name in namespaces if name in there]
    for name in found:
        if OURS not in there[name].get("labels", {}).items():
            msg = f"the namespace {name} is there, and no earlier run made it: name another one (--namespace)"
            raise ClusterError(msg)
    if found:
        Kubectl()("delete", "namespace", *found, within=300)
