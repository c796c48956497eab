"""Write into `.pre-commit-config.yaml` the versions that requirements-dev.txt says: `python -m tools.pre_commit`.

A revision that follows a package has that package's name behind it as a comment. A test compares the two.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / ".pre-commit-config.yaml"


def config(text: str) -> str:
    """Return the configuration's text with the locked versions."""
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements-dev.txt").read_text(), flags=re.MULTILINE))
    return re.sub(r"rev: (v?)\S+ # (\S+)", lambda found: f"rev: {found[1]}{locked[found[2]]} # {found[2]}", text)


def main() -> None:
    """Write it."""
    CONFIG.write_text(config(CONFIG.read_text()))


if __name__ == "__main__":
    main()
