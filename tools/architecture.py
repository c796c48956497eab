"""Draws docs/architecture.md from the import contracts in pyproject.toml and the imports themselves.

    python -m tools.architecture

The layers and the contracts' sentences are those that `make check` enforces; the arrows are what the modules really
import. A test compares the page with what would be written.
"""

import ast
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import grimp

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE: Final = "service"

Edge: TypeAlias = tuple[str, str]

HEAD: Final = """\
# Architecture

Made by `python -m tools.architecture` from the contracts in `pyproject.toml`, which `make check` enforces, and from the
imports themselves. How one sync goes is drawn in [states.md](states.md); why it is built so stands in the
[decisions](decisions/README.md).

"""


def page() -> str:
    """Return the whole page."""
    layers, sentences = _contracts()
    return "".join(
        [HEAD, _picture(layers), "\n## The modules, from the top down\n\n", _modules(layers), _rules(sentences)]
    )


def _contracts() -> tuple[list[list[str]], list[str]]:
    """Return the layers, each with its modules, and all contracts' sentences."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    contracts: list[Mapping[str, Any]] = tool["importlinter"]["contracts"]
    (layered,) = [contract for contract in contracts if contract["type"] == "layers"]
    layers = [re.findall(r"\w+", layer) for layer in layered["layers"]]
    return layers, [contract["name"] for contract in contracts]


def _picture(layers: list[list[str]]) -> str:
    order = [module for modules in layers for module in modules]
    lines = ["```mermaid", "flowchart TB", *(f"    {module}" for module in order)]
    lines += [f"    {a} --> {b}" for a, b in sorted(_arrows(), key=lambda edge: [order.index(end) for end in edge])]
    lines += [
        "```",
        "",
        "An arrow is an import; one that follows from others is left out.",
        "",
    ]
    return "\n".join(lines)


def _arrows() -> set[Edge]:
    """Return the imports between the package's direct members, without those that others imply."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    edges = {
        (a, b)
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if (a := _member(importer)) and (b := _member(imported)) and a != b
    }
    return {(a, b) for a, b in edges if not _reaches(a, b, edges - {(a, b)})}


def _member(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def _reaches(start: str, goal: str, edges: Iterable[Edge]) -> bool:
    edges = set(edges)
    seen, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        found = {b for a, b in edges if a == here} - seen
        seen |= found
        waiting += found
    return goal in seen


def _modules(layers: list[list[str]]) -> str:
    lines = ["| module | what it is for |", "| --- | --- |"]
    for module in (module for modules in layers for module in modules):
        lines.append(f"| [`{module}`](../{_path(module)}) | {_purpose(_path(module))} |")
        lines += [
            f"| [`{module}/{file.relative_to(ROOT / PACKAGE / module)}`](../{file.relative_to(ROOT)}) "
            f"| {_purpose(str(file.relative_to(ROOT)))} |"
            for file in sorted((ROOT / PACKAGE / module).rglob("*.py"))
            if file.name not in {"__init__.py", "__main__.py"}
        ]
    return "\n".join(lines) + "\n"


def _path(module: str) -> str:
    folder = ROOT / PACKAGE / module
    return f"{PACKAGE}/{module}/__init__.py" if folder.is_dir() else f"{PACKAGE}/{module}.py"


def _purpose(path: str) -> str:
    """Return the first sentence of a file's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def _rules(sentences: list[str]) -> str:
    return "\n## The rules\n\n" + "".join(f"- {sentence}.\n" for sentence in sentences)


def main() -> None:
    """Write into the repository."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
