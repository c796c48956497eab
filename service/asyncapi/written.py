"""The document as text: JSON, and YAML without a YAML library.

Writing YAML needs none: every JSON string is a YAML string, so only the lines and their indent are ours.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

# A name that no YAML reader takes for a number, a boolean, null or a date.
_PLAIN_NAME = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)\Z)[A-Za-z_][\w-]*", re.ASCII | re.IGNORECASE)


def to_json(document: Mapping[str, Any]) -> str:
    """Write for programs."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def to_yaml(document: Mapping[str, Any]) -> str:
    """Write for people."""
    return "\n".join(_lines(document)) + "\n"


def _lines(value: object) -> Iterator[str]:
    match value:
        case dict() if value:
            for name, inner in value.items():
                key = name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)
                yield from _entry(
                    f"{key}:", list(_lines(inner)), inline=not isinstance(inner, dict | list) or not inner
                )
        case list() if value:
            for inner in value:
                first, *rest = _lines(inner)
                yield f"- {first}"
                yield from (f"  {line}" for line in rest)
        case _:
            # U+0085 and the like are line breaks to some YAML readers: escaped.
            yield json.dumps(value, ensure_ascii=True)


def _entry(key: str, lines: list[str], *, inline: bool) -> Iterator[str]:
    if inline:
        yield f"{key} {lines[0]}"
    else:
        yield key
        yield from (f"  {line}" for line in lines)
