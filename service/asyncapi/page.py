"""The document as an HTML page, without scripts and without external files."""

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, TypeAlias

Object: TypeAlias = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; }
h1 small, h2 small { font-weight: normal; opacity: .65; }
h2 { margin-top: 3rem; border-bottom: 2px solid var(--line); padding-bottom: .25rem; }
h3 { margin-top: 2rem; }
code, pre { font: .875em/1.45 ui-monospace, monospace; }
pre { padding: .75rem 1rem; border: 1px solid var(--line); border-radius: .4rem; overflow-x: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); }
td:first-child { white-space: nowrap; }
td small { opacity: .75; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: .2rem 0; }
nav a { margin-right: 1rem; }
"""


def to_page(document: Object) -> str:
    """Write the whole page."""
    return "\n".join(_page(document)) + "\n"


def _page(document: Object) -> Iterator[str]:
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
    yield f"<p>{_prose(info['description'])}</p>"
    channels = document["channels"]
    yield "<nav>"
    yield from (f'<a href="#{escape(name)}">{escape(channel["title"])}</a>' for name, channel in channels.items())
    yield "</nav>"
    yield "<h2>Servers</h2>"
    yield from _table(
        ("host", "protocol", "security"),
        [
            (f"<code>{escape(server['host'])}</code>", escape(server["protocol"]), _security(document, server))
            for server in document["servers"].values()
        ],
    )
    for name, channel in channels.items():
        yield from _channel(document, name, channel)
    yield "</body></html>"


def _security(document: Object, server: Object) -> str:
    schemes = [_resolve(document, scheme) for scheme in server.get("security", [])]
    return "; ".join(_prose(scheme["description"]) for scheme in schemes) or "none"


def _channel(document: Object, name: str, channel: Object) -> Iterator[str]:
    yield (
        f'<section id="{escape(name)}"><h2>{escape(channel["title"])} '
        f"<small><code>{escape(channel['address'])}</code></small></h2>"
    )
    actions = {
        operation["action"]
        for operation in document["operations"].values()
        if operation["channel"]["$ref"] == f"#/channels/{name}"
    }
    who = "You write here; the service reads." if "receive" in actions else "The service writes here; you read."
    yield f"<p><strong>{who}</strong> {_prose(channel['description'])}</p>"
    kafka = channel["bindings"]["kafka"]
    if "partitions" in kafka:
        yield f"<p>Partitions: {escape(str(kafka['partitions']))}.</p>"
    for message in channel["messages"].values():
        yield from _message(document, _resolve(document, message))
    yield "</section>"


def _message(document: Object, message: Object) -> Iterator[str]:
    yield f"<h3>{escape(message['title'])}</h3><p>{_prose(message['summary'])}</p>"
    key = message["bindings"]["kafka"]["key"]
    yield f"<p>Key: {_prose(key['description'])} Content type: <code>{escape(message['contentType'])}</code>.</p>"
    yield "<h4>Headers</h4>"
    yield from _fields(document, message["headers"])
    payload = _resolve(document, message["payload"])
    yield f"<h4>Value</h4><p>{_prose(payload.get('description', ''))}</p>"
    if "properties" in payload:
        yield from _fields(document, payload)
    yield "<h4>Examples</h4>"
    for example in message["examples"]:
        lines = [f"{name}: {header}" for name, header in example["headers"].items()]
        value = example["payload"]
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        shown = escape("\n".join([*lines, "", text] if lines else [text]))
        yield f"<details><summary>{escape(example['summary'])}</summary><pre>{shown}</pre></details>"


def _fields(document: Object, schema: Object) -> Iterator[str]:
    yield from _table(("name", "type", "meaning"), list(_rows(document, schema)))


def _rows(document: Object, schema: Object, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """List a schema's fields, those within others after them: `error`, `error.code` ..."""
    for name, field in schema["properties"].items():
        variants = [_resolve(document, variant) for variant in field.get("anyOf", [field])]
        rules = [rule for variant in variants for rule in _rules(variant)]
        kind = " or ".join(str(variant.get("type", "any")) for variant in variants)
        needed = "" if name in schema.get("required", ()) else ", optional"
        meaning = _prose(field.get("description") or variants[0].get("description", ""))
        more = f"<br><small>{'; '.join(rules)}</small>" if rules else ""
        yield f"<code>{escape(prefix + name)}</code>", escape(kind + needed), meaning + more
        for variant in variants:
            items = _resolve(document, variant.get("items", {}))
            for inner, mark in ((variant, ""), (items, "[]")):
                if "properties" in inner:
                    yield from _rows(document, inner, f"{prefix}{name}{mark}.")


def _rules(schema: Object) -> Iterator[str]:
    if "const" in schema:
        yield f"always <code>{escape(str(schema['const']))}</code>"
    if "enum" in schema:
        yield "one of " + ", ".join(f"<code>{escape(str(word))}</code>" for word in schema["enum"])
    for low, high, unit in (
        ("minLength", "maxLength", " characters"),
        ("minimum", "maximum", ""),
        ("", "maxItems", " items"),
    ):
        if high in schema:
            least = schema.get(low, 0)
            yield escape(f"{least} to {schema[high]}{unit}")
        elif low in schema:
            yield escape(f"at least {schema[low]}{unit}")
    if "pattern" in schema:
        yield f"<code>{escape(schema['pattern'])}</code>"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield '<div class="wide"><table><tr>' + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    yield "</table></div>"


def _resolve(document: Object, value: Object) -> Object:
    """Follow a reference within the document."""
    if "$ref" not in value:
        return value
    found: Any = document
    for part in value["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    resolved: Object = found
    return resolved


def _prose(text: str) -> str:
    """Escape, and set what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
