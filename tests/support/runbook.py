"""The runbook's entries in their parts: what is checked, asked, run and looked for in the log."""

import ast
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from tests.support.expressions import ROOT, alerts, sections

PARTS: Final = ("Meaning", "Effect", "Look", "Act", "Over when")

PART: Final = re.compile(r"^\*\*(Meaning|Effect|Look|Act|Over when)\.\*\*\s", flags=re.MULTILINE)

ELLIPSIS: Final = " ... "
"""In a quoted text: what differs from case to case."""


@dataclass(frozen=True, slots=True)
class Page:
    """One alert's page; `parts` in its own order."""

    alert: str
    parts: Mapping[str, str]


def pages() -> Mapping[str, Page]:
    """Return the alerts' pages by the alert, in the runbook's order."""
    found = {}
    for heading, text in sections().items():
        if heading in alerts():
            _, *parts = PART.split(text)
            found[heading] = Page(heading, dict(zip(parts[::2], parts[1::2], strict=True)))
    return found


def checked(text: str) -> str:
    """Return the sentences about `vm-sync check` that an entry begins its **Look** with; empty if it has none."""
    return text.partition("\n\n")[0] if text.startswith("`vm-sync check`") else ""


def queries(text: str) -> list[str]:
    """Return the queries of a text, one a line: what a person copies at three in the morning."""
    blocks = re.findall(r"^```promql\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def commands(text: str) -> list[str]:
    """Return the commands of a text, one a line, without the comments behind them."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+# .*$", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def programs(text: str, *, quoted: bool = False) -> Iterator[list[str]]:
    """Return the arguments of each `vm-sync` among the commands of a text, or quoted in its sentences."""
    for line in re.findall(r"`(vm-sync [^`]+)`", text) if quoted else commands(text):
        words = shlex.split(line.partition(" | ")[0])
        if "vm-sync" in (rest := words[words.index("--") + 1 :] if "--" in words else words)[:1]:
            yield rest[1:]


def looked_for(text: str) -> set[str]:
    """Return what is looked for in the log, or said to be there."""
    found = set(re.findall(r"log (?:says|no longer says) `([^`]+)`", text))
    for line in commands(text):
        for part in line.split(" | ")[1:] if "kubectl -n vm-sync logs" in line else ():
            words = shlex.split(part.strip())
            if words[0] == "grep" and "-o" not in words:
                found |= set(words[-1].split("|") if "-E" in words else [words[-1]])
    return found


@cache
def sayings() -> tuple[str, ...]:
    """Return every text in the code of the service; what is put into one at run time reads `{}`."""
    found = []
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values))
    return tuple(found)


def is_said(text: str) -> bool:
    """Tell whether the service's code has a text; ` ... ` in it stands for anything."""
    pattern = re.compile(".*".join(re.escape(part) for part in re.split(r"\s*\.\.\.\s*", text)), re.DOTALL)
    return any(pattern.search(saying) for saying in sayings())


def printed(text: str) -> Mapping[str, str]:
    """Return what commands print according to the comments behind them, `# prints: ...`."""
    found = re.findall(r"^(\S.*?)\s+# prints: (.+)$", text, flags=re.MULTILINE)
    return dict(found)
