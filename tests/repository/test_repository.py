"""What surrounds the code: workflows, tools of the editor, and what is written twice because a platform wants it so."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import missing
from tools import pre_commit

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def _program(name: str, source: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(ROOT / "build" / "bin"))
    if found is None:
        missing(f"{name} is not installed: {source}")
    return found


def test_the_workflows_pass_their_linter() -> None:
    linter = _program("actionlint", ".ci/install builds it with Go")
    done = subprocess.run([linter, *WORKFLOWS], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.renovate", [GITHUB / "renovate.json"]),
        ("vendor.github-issue-forms", [GITHUB / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "idea.yml")]),
    ],
)
def test_the_platforms_files_are_what_their_schemas_allow(schema: str, files: list[Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *files],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def _workflow(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((GITHUB / "workflows" / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def _run(name: str) -> list[str]:
    """Return what the jobs of a workflow run, one text for each step."""
    jobs = _workflow(name)["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_the_workflows_run_what_a_contributor_runs() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    run = [text for path in WORKFLOWS for text in _run(path.name)]

    made = {target for text in run for target in re.findall(r"\bmake ([a-z-]+)", text)}
    assert made == {"check", "site", "image", "release-check", "lock", "oldest"}
    assert made <= targets
    assert ".ci/run" in run
    assert not [text for text in run if re.search(r"\b(pytest|ruff|mypy|pip|uv) ", text)]


def test_the_tests_run_on_each_python_that_the_package_names() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    named = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), flags=re.MULTILINE)

    assert _workflow("ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    assert project["requires-python"] == f">={named[0]}"


def test_every_job_has_a_bound_and_no_more_rights_than_it_needs() -> None:
    for path in WORKFLOWS:
        workflow = _workflow(path.name)
        assert workflow["permissions"] == {"contents": "read"}, path.name
        for name, job in workflow["jobs"].items():
            assert job["timeout-minutes"] <= 60, f"{path.name}: {name}"
            checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout")]
            assert all(step["with"] == {"persist-credentials": False} for step in checkouts)


def test_each_commit_is_checked_with_the_versions_that_are_locked() -> None:
    text = pre_commit.CONFIG.read_text()

    assert pre_commit.config(text) == text, "run: python -m tools.pre_commit"
    remote = [repo for repo in yaml.safe_load(text)["repos"] if repo["repo"] != "local"]
    assert len(re.findall(r"rev: \S+ # \S+", text)) == len(remote), "a revision follows no locked package"


def test_each_commit_is_checked_as_make_check_does() -> None:
    hooks = [hook for repo in yaml.safe_load(pre_commit.CONFIG.read_text())["repos"] for hook in repo["hooks"]]
    steps = re.findall(
        r"^\t\$\(BIN\)/(\S+)", (ROOT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0], re.MULTILINE
    )

    assert {Path(hook.get("entry", hook["id"].partition("-")[0])).name for hook in hooks} >= set(steps)


def test_the_development_container_runs_the_images_python() -> None:
    (image,) = re.findall(r"^ARG PYTHON=(\S+)-slim-(\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())

    assert container["image"] == f"python:{image[0]}-{image[1]}"


def test_renovate_finds_the_versions_that_no_manager_of_its_own_finds() -> None:
    config = json.loads((GITHUB / "renovate.json").read_text())
    found = {
        (match["depName"], match["currentValue"])
        for manager in config["customManagers"]
        for pattern in manager["managerFilePatterns"]
        for path in (ROOT / name for name in ("Makefile", ".ci/install"))
        if re.search(pattern.strip("/"), str(path.relative_to(ROOT)))
        for text in manager["matchStrings"]
        for match in re.finditer(text.replace("(?<", "(?P<"), path.read_text())
    }

    assert {name for name, _ in found} == {
        "mermaid",
        "iframe-worker",
        "sigs.k8s.io/kustomize/kustomize/v5",
        "helm.sh/helm/v3",
        "github.com/rhysd/actionlint",
    }


def test_what_has_an_owner_exists() -> None:
    lines = [line.split() for line in (GITHUB / "CODEOWNERS").read_text().splitlines() if line.startswith("/")]

    assert lines
    assert [path for path, *_ in lines if not (ROOT / path.strip("/")).exists()] == []
