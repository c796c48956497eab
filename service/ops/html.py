"""Writes HTML: every text is escaped, unless it is markup that was made here. Pure."""

from html import escape
from typing import Final, TypeAlias

VOID: Final = frozenset({"br", "input", "link", "meta"})
"""Elements without content and end."""


class Html(str):
    """Markup. What joining or formatting makes of it is text again, and is escaped: too much, never too little."""

    __slots__ = ()


Child: TypeAlias = str | int | None
"""Of an element: a text, markup, a number, or nothing."""


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """Write an element. None and False leave an attribute out; `class_` is `class`, `data_label` is `data-label`."""
    head = "".join(
        [_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False]
    )
    if name in VOID:
        return Html(f"<{name}{head}>")
    return Html(f"<{name}{head}>{fragment(*children)}</{name}>")


def fragment(*children: Child) -> Html:
    """Write several texts and elements, one after another."""
    return Html(
        "".join([child if isinstance(child, Html) else escape(str(child)) for child in children if child is not None])
    )


def _attribute(key: str, value: str | int) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
