"""Writes `schemas/` from `service/messages/schemas.py`: `python -m tools.schemas`; a test compares the two.

With `--release`, also set down today's shapes as what others may build on: from then on a test refuses to break them.
"""

import argparse
import json
from pathlib import Path

from service.asyncapi import examples
from service.messages import schemas

FOLDER = Path(__file__).parent.parent / "schemas"


def files() -> dict[str, str]:
    """Give what belongs into `schemas/`: text by path."""
    shapes = {f"{name}.json": schemas.file(name) for name in schemas.MESSAGES}
    samples = {
        f"examples/{example.name}.json": {
            "summary": example.summary,
            "key": example.key,
            "headers": example.headers,
            "value": example.value,
        }
        for example in examples.ALL
    }
    return {
        path: json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        for path, content in {**shapes, **samples}.items()
    }


def write(folder: Path, *, release: bool) -> None:
    """Write them, and take away examples that are no more."""
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    (folder / "released").mkdir(exist_ok=True)
    wanted = files()
    for old in (folder / "examples").glob("*.json"):
        if f"examples/{old.name}" not in wanted:
            old.unlink()
    for path, text in wanted.items():
        (folder / path).write_text(text, encoding="utf-8")
        if release and "/" not in path:
            (folder / "released" / path).write_text(text, encoding="utf-8")


def main() -> None:
    """Write into the repository."""
    parser = argparse.ArgumentParser(prog="python -m tools.schemas", description=__doc__)
    parser.add_argument("--release", action="store_true", help="also set down today's shapes as released")
    write(FOLDER, release=parser.parse_args().release)


if __name__ == "__main__":
    main()
