"""Describes the settings, for `vm-sync settings` and for the tables of the documentation.

A secret's value is never in a row.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, reduce
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from service.settings.model import BETWEEN, PREFIX, Origin, Settings
from service.settings.types import iso8601


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting, for people."""

    name: str
    """The environment variable."""
    type: str
    default: str
    """Empty: none. `required` where there has to be a value."""
    meaning: str
    why: str
    """The reason for the default."""
    value: str
    """Empty: none. A secret's is hidden."""
    origin: Origin


@dataclass(frozen=True, slots=True)
class Leaf:
    """A setting's place among the models."""

    name: str
    path: tuple[str, ...]
    field: FieldInfo

    @property
    def secret(self) -> bool:
        """Whether its value must never be shown as it is."""
        return SecretStr in _plain(self.field.annotation)

    def of(self, settings: Settings) -> Any:  # noqa: ANN401 - as many types as settings
        """Return its value."""
        return reduce(getattr, self.path, settings)


@cache
def leaves() -> tuple[Leaf, ...]:
    """Return all settings, in the order of the documentation."""
    return tuple(_below(Settings, ()))


def _below(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[Leaf]:
    for name, field in model.model_fields.items():
        here = (*path, name)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _below(kind, here)
        else:
            yield Leaf(PREFIX + BETWEEN.join(here).upper(), here, field)


def describe(settings: Settings | None = None) -> list[Row]:
    """Describe each setting, in the order of the documentation; without settings, only the defaults."""
    rows = []
    for leaf in leaves():
        meaning, _, why = (leaf.field.description or "").partition("\n\n")
        default = "required" if leaf.field.is_required() else _text(leaf.field.default)
        rows.append(
            Row(
                name=leaf.name,
                type=_type(leaf.field.annotation),
                default=default,
                meaning=" ".join(meaning.split()),
                why=" ".join(why.split()),
                value=_text(leaf.of(settings)) if settings else "",
                origin=settings.origin(leaf.name) if settings else "default",
            )
        )
    return rows


def _plain(kind: object) -> tuple[object, ...]:
    """Take `X | None` apart, and leave None out."""
    members = get_args(kind) if get_origin(kind) in {Union, UnionType} else (kind,)
    return tuple(member for member in members if member is not NoneType)


def _type(kind: object) -> str:
    (plain,) = _plain(kind)
    if get_origin(plain) is Annotated:
        plain = get_args(plain)[0]
    if get_origin(plain) is Literal:
        return "one of " + ", ".join(get_args(plain))
    words: dict[object, str] = {
        bool: "true or false",
        int: "integer",
        timedelta: "duration",
        SecretStr: "secret",
        Path: "path",
    }
    return words.get(plain, "JSON list" if get_origin(plain) is tuple else "text")


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case timedelta():
            return iso8601(value)
        case tuple():
            return json.dumps([site.model_dump(mode="json", exclude_none=True) for site in value])
        case _:
            return str(value)
