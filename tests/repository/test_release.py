"""A release: its version is the same everywhere, and what would be published is what production runs."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools import release

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a copy of what a release looks at, in which everything fits."""
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("schemas", "deploy"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for shape in (tmp_path / "schemas").glob("*.json"):
        shutil.copy(shape, tmp_path / "schemas" / "released")
    changelog = tmp_path / "CHANGELOG.md"
    heading = f"## [Unreleased]\n\n## [{release.version(ROOT)}] - 2026-11-27\n"
    changelog.write_text(changelog.read_text().replace("## [Unreleased]\n", heading))
    return tmp_path


def test_a_tree_in_which_everything_fits_may_be_released(tree: Path) -> None:
    assert list(release.contradictions(tree, f"v{release.version(tree)}")) == []
    assert str(release.notes(tree, release.version(tree))).startswith("This will be the first release")


def test_another_tag_than_the_version_is_refused(tree: Path) -> None:
    (said,) = release.contradictions(tree, "v9.9.9")

    assert said.startswith("The tag is v9.9.9")


def test_a_version_without_notes_is_refused(tree: Path) -> None:
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n## [0.0.1] - 2026-01-01\n\nSomething.\n")
    (said,) = release.contradictions(tree, None)

    assert said.startswith("CHANGELOG.md has no section")


def test_a_shape_that_was_not_set_down_as_released_is_refused(tree: Path) -> None:
    (tree / "schemas" / "released" / "sync-failed.v1.json").unlink()
    (said,) = release.contradictions(tree, None)

    assert "run python -m tools.schemas --release" in said


def test_an_image_of_another_version_in_production_is_refused(tree: Path) -> None:
    project = tree / "pyproject.toml"
    project.write_text(re.sub(r'^version = ".*"', 'version = "9.9.9"', project.read_text(), flags=re.MULTILINE))

    said = [line for line in release.contradictions(tree, None) if "deploys another version than 9.9.9" in line]
    assert [line.rpartition(": change ")[2] for line in said] == ["newTag", "newTag", "version", "appVersion", "tag"]


def test_the_image_is_labelled_with_the_version_and_the_revision() -> None:
    make = shutil.which("make") or "make"
    done = subprocess.run([make, "--dry-run", "image"], cwd=ROOT, capture_output=True, text=True, check=True)

    given = dict(re.findall(r"--build-arg (\w+)=(\S*)", done.stdout))
    assert given.keys() == {"VERSION", "REVISION"}
    assert given["VERSION"] == release.version(ROOT)
    labels = re.findall(r'org\.opencontainers\.image\.\w+="\$\{(\w+)\}"', (ROOT / "Dockerfile").read_text())
    assert set(labels) == given.keys()


@pytest.mark.e2e
def test_the_wheel_works_alone_and_its_bill_names_each_locked_package(tmp_path: Path) -> None:
    _, wheel = release.build(ROOT, tmp_path / "dist")
    programs = release.install(ROOT, wheel, tmp_path / "environment")
    release.bill_of_materials(ROOT, programs, tmp_path / "bill.json")

    assert release.surplus(wheel) == []
    assert release.starts(programs)
    bill = json.loads((tmp_path / "bill.json").read_bytes())
    named = {re.sub(r"[._]", "-", part["name"].lower()) for part in bill["components"]}
    locked = re.findall(r"^([a-z0-9-]+)==(\S+)( ;)?", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    assert {name for name, _, condition in locked if not condition} <= named
    assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["version"]) == (
        "vm-sync",
        release.version(ROOT),
    )
