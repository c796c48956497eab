"""Checks and builds a release without publishing it: `make release-check`; the result is in `build/release`.

It says what still contradicts the version in pyproject.toml, builds the source archive and the wheel, installs the
wheel into an environment of its own with exactly the packages of requirements.txt, starts the command there, and writes
the bill of materials of that environment. docs/releasing.md has the steps before and after.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PLACE: Final = Path("build") / "release"
BIN: Final = Path(sys.executable).parent


def version(root: Path) -> str:
    """Return the version; it is written in pyproject.toml and nowhere else."""
    with (root / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def notes(root: Path, wanted: str) -> str | None:
    """Return what the changelog says of a version, without its heading; None: the changelog has no such section."""
    found = re.search(
        rf"^## \[{re.escape(wanted)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |^\[|\Z)",
        (root / "CHANGELOG.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    return found[1].strip() if found else None


DEPLOYED: Final = (
    ("kubernetes/overlays/production/kustomization.yaml", "newTag"),
    ("kubernetes/overlays/operator/kustomization.yaml", "newTag"),
    ("helm/vm-sync/Chart.yaml", "version"),
    ("helm/vm-sync/Chart.yaml", "appVersion"),
    ("helm/vm-sync/values-production.yaml", "tag"),
)
"""Where the version is deployed from: files of `deploy`, and the field that names it."""


def contradictions(root: Path, tag: str | None) -> Iterator[str]:
    """Yield a sentence for each place that doesn't fit a release of the version in pyproject.toml."""
    wanted = version(root)
    if tag is not None and tag != f"v{wanted}":
        yield f"The tag is {tag}, but pyproject.toml says version {wanted}: the tag must be v{wanted}"
    if not notes(root, wanted):
        yield f"CHANGELOG.md has no section `## [{wanted}] - YYYY-MM-DD`, or nothing stands in it"
    shapes = root / "schemas"
    for shape in sorted(shapes.glob("*.json")):
        released = shapes / "released" / shape.name
        if not released.exists() or released.read_bytes() != shape.read_bytes():
            yield f"schemas/released/{shape.name} is not schemas/{shape.name}: run python -m tools.schemas --release"
    for file, field in DEPLOYED:
        if f"{field}: {wanted}\n" not in (root / "deploy" / file).read_text(encoding="utf-8"):
            yield f"deploy/{file} deploys another version than {wanted}: change {field}"


def build(root: Path, place: Path) -> tuple[Path, Path]:
    """Build the source archive and, from it, the wheel; return both."""
    _run(BIN / "uv", "build", "--quiet", "--python", sys.executable, "--no-build-isolation", "--out-dir", place, root)
    (archive,) = place.glob("*.tar.gz")
    (wheel,) = place.glob("*.whl")
    return archive, wheel


def surplus(wheel: Path) -> list[str]:
    """Return what a wheel contains beyond the package and its metadata."""
    with zipfile.ZipFile(wheel) as file:
        return [name for name in file.namelist() if not re.match(r"service/|vm_sync-[^/]+\.dist-info/", name)]


def install(root: Path, wheel: Path, place: Path) -> Path:
    """Install a wheel with exactly the packages of requirements.txt; return the environment's folder of programs."""
    _run(BIN / "uv", "venv", "--quiet", "--python", sys.executable, place)
    into = ("--quiet", "--python", place / "bin" / "python")
    _run(BIN / "uv", "pip", "install", *into, "--require-hashes", "-r", root / "requirements.txt")
    _run(BIN / "uv", "pip", "install", *into, "--no-deps", wheel)
    _run(BIN / "uv", "pip", "check", *into)
    return place / "bin"


def starts(programs: Path) -> bool:
    """Say whether an installed command starts, away from the sources."""
    words = [str(programs / "vm-sync"), "--help"]
    return subprocess.run(words, cwd=programs, stdout=subprocess.DEVNULL, check=False).returncode == 0  # noqa: S603 - our own words


def bill_of_materials(root: Path, programs: Path, path: Path) -> int:
    """Write the bill of materials of an environment, as CycloneDX; return how many packages it names."""
    project = ("--pyproject", root / "pyproject.toml", "--mc-type", "application")
    form = ("--spec-version", "1.6", "--output-format", "JSON", "--output-reproducible", "--output-file", path)
    _run(BIN / "cyclonedx-py", "environment", *project, *form, programs / "python")
    return len(json.loads(path.read_bytes())["components"])


def check(root: Path, tag: str | None) -> Iterator[str]:
    """Build everything, and yield a sentence for each reason not to publish it."""
    yield from contradictions(root, tag)
    place = root / PLACE
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    archive, wheel = build(root, place / "dist")
    if more := surplus(wheel):
        yield f"{wheel.name} contains what is no part of the package: {', '.join(more)}"
    programs = install(root, wheel, root / "build" / "release-environment")
    if not starts(programs):
        yield "`vm-sync --help` of the installed wheel fails"
    packages = bill_of_materials(root, programs, place / "vm-sync.cdx.json")
    (place / "notes.md").write_text(f"{notes(root, version(root)) or ''}\n", encoding="utf-8")
    print(f"Built {archive.name}, {wheel.name} and a bill of {packages} packages in {PLACE}")  # noqa: T201 - what it is for


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own words


def main() -> None:
    """Check a release; the exit code is 1 if there is a reason not to publish it."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    parser.add_argument("--tag", help="the tag that is to be published")
    against = list(check(ROOT, parser.parse_args().tag or None))
    sys.exit("\n".join(against) or None)


if __name__ == "__main__":
    main()
