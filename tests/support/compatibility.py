"""Whether a schema may take the place of another without a new version of its message. Pure.

The direction decides. What others write and we read must still be accepted: the old shape has to fit within the new.
What we write and others read must not surprise them: the new shape has to fit within the old. A field that was there
stays there, in both. Anything that this can't judge counts as a break: a person then decides, and teaches it.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

Schema: TypeAlias = Mapping[str, Any]

_WORDS: Final = frozenset({"$schema", "$id", "$defs", "title", "description", "examples"})
_BOUNDS: Final = {"minLength": 1, "minimum": 1, "minItems": 1, "maxLength": -1, "maximum": -1, "maxItems": -1}
"""Rules that set a bound: 1 where more is tighter, -1 where less is."""
_SAME: Final = ("pattern", "format")
_JUDGED: Final = frozenset({*_BOUNDS, *_SAME, "type", "enum", "anyOf", "$ref", "properties", "required", "items"})
_KINDS: Final = ("object", "array", "string", "number", "integer", "boolean", "null")


def breaks(old: Schema, new: Schema, *, read: bool) -> list[str]:
    """Say what breaks those who build on `old`, a sentence each; `read` for a message that others write and we read."""
    gone = [f"{path} is gone" for path in _paths(old, old, "") if path not in set(_paths(new, new, ""))]
    inner, outer = (old, new) if read else (new, old)
    return gone + list(_misfits(inner, outer, "", _Roots(inner, outer)))


class _Roots:
    """The documents that references of the two sides lead into."""

    def __init__(self, inner: Schema, outer: Schema) -> None:
        self.inner, self.outer = inner, outer


def _resolve(schema: Schema, root: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    named: Schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return {**named, **{word: rule for word, rule in schema.items() if word != "$ref"}}


def _paths(schema: Schema, root: Schema, path: str) -> Iterator[str]:
    schema = _resolve(schema, root)
    for variant in schema.get("anyOf", ()):
        yield from _paths(variant, root, path)
    if "items" in schema:
        yield from _paths(schema["items"], root, f"{path}[]")
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _paths(field, root, f"{path}.{name}")


def _misfits(inner: Schema, outer: Schema, path: str, roots: _Roots) -> Iterator[str]:
    """Say where something that fits `inner` may not fit `outer`."""
    inner, outer = _resolve(inner, roots.inner), _resolve(outer, roots.outer)
    place = path or "the message"
    if "anyOf" in inner or "anyOf" in outer:
        choices = outer.get("anyOf", [outer])
        for variant in inner.get("anyOf", [inner]):
            if not any(not list(_misfits(variant, choice, path, roots)) for choice in choices):
                yield f"{place}: not every kind of value fits"
        return
    yield from (f"{place}: {rule}" for rule in _tighter(inner, outer))
    needed = set(outer.get("required", ())) - set(inner.get("required", ()))
    yield from (f"{path}.{name} is required on one side only" for name in sorted(needed))
    fields: Schema = outer.get("properties", {})
    for name in fields.keys() & inner.get("properties", {}).keys():
        yield from _misfits(inner["properties"][name], fields[name], f"{path}.{name}", roots)
    if "items" in outer:
        yield from _misfits(inner.get("items", {}), outer["items"], f"{path}[]", roots)


def _tighter(inner: Schema, outer: Schema) -> Iterator[str]:
    """Name the rules of `outer` that `inner` doesn't imply."""
    for word in (inner.keys() | outer.keys()) - _WORDS - _JUDGED:
        if inner.get(word) != outer.get(word):
            yield f"whether {word} fits can't be judged"
    if not _types(inner) <= _types(outer):
        yield "type"
    if "enum" in outer and not set(inner.get("enum", [object])) <= set(outer["enum"]):
        yield "enum"
    for word, sign in _BOUNDS.items():
        if word in outer and sign * inner.get(word, -sign * math.inf) < sign * outer[word]:
            yield word
    for word in _SAME:
        if word in outer and inner.get(word) != outer[word]:
            yield word


def _types(schema: Schema) -> set[str]:
    kinds = schema.get("type", _KINDS)
    named = {kinds} if isinstance(kinds, str) else set(kinds)
    return named | {"integer"} if "number" in named else named
