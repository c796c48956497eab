"""The document as text: JSON, and YAML without a YAML library.

No YAML library is needed: every JSON string is a YAML string, so only lines and indentation have to be written here.
PyYAML is installed for development only; in production it would be one more package, with C code, for the output of
one command. Tests read the output with PyYAML.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

# A name that no YAML reader takes for a number, a boolean, null or a date.
_PLAIN_NAME = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)\Z)[A-Za-z_][\w-]*", re.ASCII | re.IGNORECASE)

# What JSON lets stand and YAML doesn't, or takes for a line break.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


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
                key = name if _PLAIN_NAME.fullmatch(name) else _scalar(name)
                yield from _entry(
                    f"{key}:", list(_lines(inner)), inline=not isinstance(inner, dict | list) or not inner
                )
        case list() if value:
            for inner in value:
                first, *rest = _lines(inner)
                yield f"- {first}"
                yield from (f"  {line}" for line in rest)
        case _:
            yield _scalar(value)


def _entry(key: str, lines: list[str], *, inline: bool) -> Iterator[str]:
    if inline:
        yield f"{key} {lines[0]}"
    else:
        yield key
        yield from (f"  {line}" for line in lines)


def _scalar(value: object) -> str:
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
