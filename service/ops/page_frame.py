"""The frame of the pages for people: style, script, links. One file each; a browser loads nothing else.

The policy allows this style and this script by their hashes, and nothing from elsewhere: markup that got past the
escaping could neither run nor load anything.
"""

import base64
import hashlib
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from service.ops.html import Child, Html, fragment, tag

REFRESH: Final = 5
"""Seconds between two refreshes of a page that somebody looks at."""

LINKS: Final = (
    ("/", "Overview"),
    ("/syncs", "Requests"),
    ("/metrics", "Metrics"),
    ("/asyncapi", "Messages"),
    ("/livez", "Alive?"),
    ("/readyz", "Ready?"),
)

STYLE: Final = """
:root { color-scheme: light dark; --page: #f4f6f9; --card: #fff; --text: #1b2430; --faint: #5a6676; --line: #dde3ea;
  --link: #1f55c4; --good: #137a46; --warn: #8a5a00; --bad: #b3261e; --good-bg: #e4f5eb; --warn-bg: #fdf1d7;
  --bad-bg: #fce8e6; --waiting: #8795a8; --submitting: #4f9ddb; --in_doubt: #e0a030; --running: #2f9e6b;
  --lingering: #8f6fc7; }
@media (prefers-color-scheme: dark) {
  :root { --page: #10151c; --card: #19202a; --text: #e5eaf1; --faint: #9aa7b8; --line: #2b3645; --link: #8db4ff;
    --good: #5fd39a; --warn: #f2bd5c; --bad: #ff8d85; --good-bg: #12301f; --warn-bg: #33270d; --bad-bg: #3a1816;
    --waiting: #77869b; --submitting: #4f9ddb; --in_doubt: #dba23c; --running: #35a873; --lingering: #9a7dd6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif;
  overflow-wrap: anywhere; }
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 0 1rem; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem 1.5rem; padding-top: 1rem; }
header b { font-size: 1.25rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
a { color: var(--link); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
nav a[aria-current] { color: inherit; font-weight: 600; }
footer { color: var(--faint); padding-bottom: 2rem; font-size: .875rem; }
h1 { font-size: 1.35rem; margin: 0; }
h2 { font-size: 1rem; margin: 0 0 .6rem; }
h2 small, h1 small, .faint { color: var(--faint); font-weight: 400; font-size: .875rem; }
code { font: .9em ui-monospace, monospace; }
.card, .state { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1rem;
  margin: .9rem 0; }
.state { border-left-width: .5rem; }
.good { border-left-color: var(--good); } .good h1, .good .word { color: var(--good); }
.warn { border-left-color: var(--warn); } .warn h1, .warn .word { color: var(--warn); }
.bad { border-left-color: var(--bad); } .bad h1, .bad .word { color: var(--bad); }
.good.state { background: var(--good-bg); } .warn.state { background: var(--warn-bg); }
.bad.state { background: var(--bad-bg); }
.state ul { margin: .4rem 0 0; padding-left: 1.2rem; }
.facts { display: flex; flex-wrap: wrap; gap: .1rem 1.25rem; margin: .5rem 0 0; color: var(--faint);
  font-size: .875rem; }
.facts b { color: var(--text); font-weight: 500; }
.two { display: grid; grid-template-columns: 3fr 2fr; gap: .9rem; margin: .9rem 0; }
.two .card { margin: 0; }
.card > :last-child { margin-bottom: 0; }
.card ul { padding-left: 1.2rem; }
.big { font-size: 1.9rem; font-weight: 600; line-height: 1.1; }
.bar { display: block; width: 100%; height: .8rem; margin: .6rem 0; border-radius: .4rem; background: var(--line); }
.card .key { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; list-style: none; margin: 0; padding: 0; }
.key i, td i { display: inline-block; width: .7rem; height: .7rem; border-radius: .2rem; margin-right: .4rem; }
.waiting { fill: var(--waiting); background: var(--waiting); }
.submitting { fill: var(--submitting); background: var(--submitting); }
.in_doubt { fill: var(--in_doubt); background: var(--in_doubt); }
.running { fill: var(--running); background: var(--running); }
.lingering { fill: var(--lingering); background: var(--lingering); }
.card .causes { margin: .7rem 0 0; padding: .7rem 0 0; border-top: 1px solid var(--line); list-style: none; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 500; color: var(--faint); font-size: .8rem; white-space: nowrap; }
th, td { padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
td, li, dd { unicode-bidi: isolate; }
td small { display: block; color: var(--faint); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.short { white-space: nowrap; }
.request { min-width: 20.5rem; }
.why { min-width: 15rem; }
.site { min-width: 5.5rem; max-width: 16rem; }
.word { font-weight: 600; }
progress { appearance: none; width: 4.5rem; height: .45rem; margin-right: .4rem; border: 0; border-radius: .3rem;
  overflow: hidden; background: var(--line); }
progress::-webkit-progress-bar { background: var(--line); }
progress::-webkit-progress-value { background: var(--running); }
progress::-moz-progress-bar { background: var(--running); }
form { display: flex; flex-wrap: wrap; gap: .6rem; align-items: end; margin: .7rem 0 1rem; }
label { display: grid; gap: .15rem; color: var(--faint); font-size: .8rem; }
input, select, button { font: inherit; font-size: .9rem; height: 2.1rem; color: var(--text); background: var(--page);
  border: 1px solid var(--line); border-radius: .35rem; padding: 0 .5rem; max-width: 100%; }
button { cursor: pointer; }
.pages { display: flex; gap: 1.5rem; margin: .7rem 0 0; }
#stale { position: sticky; top: 0; background: var(--bad-bg); color: var(--bad); padding: .6rem 1rem; margin: 0;
  text-align: center; }
@media (max-width: 56rem) {
  .two { grid-template-columns: 1fr; }
  table, tbody { display: block; }
  thead { display: none; }
  tr { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; border-bottom: 1px solid var(--line); padding: .5rem 0; }
  tbody tr:last-child { border-bottom: 0; }
  td { display: flex; gap: .35rem; border: 0; padding: 0; min-width: 0; max-width: 100%; }
  td:empty { display: none; }
  td::before { content: attr(data-label); color: var(--faint); font-size: .85rem; }
  .whole { flex-basis: 100%; }
  .whole::before { content: none; }
  .number { text-align: left; }
}
"""

SCRIPT: Final = f"""
(() => {{
  const usual = {REFRESH}000, longest = 60000, patience = 10000;
  let pause = usual, seen = new Date();
  // Nobody looks, or somebody is about to copy something: the page stays as it is.
  const stays = () => document.hidden || !getSelection().isCollapsed;
  async function refresh() {{
    if (stays()) return;
    try {{
      const answer = await fetch(location.href, {{signal: AbortSignal.timeout(patience)}});
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!answer.ok || page.title.indexOf("vm-sync") < 0) throw new Error("another page");
      if (stays()) return;  // since the question was asked
      for (const part of ["main", "title", "[rel=icon]"])
        document.querySelector(part).replaceWith(page.querySelector(part));
      document.getElementById("stale").hidden = true;
      pause = usual;
      seen = new Date();
    }} catch {{
      const stale = document.getElementById("stale");
      stale.textContent = `No answer from this instance since ${{seen.toLocaleTimeString()}}; its last state is shown.`;
      stale.hidden = false;
      pause = Math.min(2 * pause, longest);
    }}
  }}
  const again = () => setTimeout(() => refresh().finally(again), pause);
  again();
}})();
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY: Final = (
    f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; img-src data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What a browser may load for these pages: nothing but what is in them."""

COLOURS: Final = {"good": "#1f9d5c", "warn": "#e0a030", "bad": "#d93025"}


def frame(title: str, *body: Html | None, here: str, level: str | None = None, refreshes: bool = False) -> bytes:
    """Write a whole page. `here` is its path, `level` the colour of its icon: good, warn or bad."""
    dot = f"<circle cx='8' cy='8' r='7' fill='{COLOURS.get(level or '', '#6b7787')}'/>"
    icon = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>{dot}</svg>"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href=f"data:image/svg+xml,{quote(icon)}"),
        tag("style", Html(STYLE)),
    ]
    if refreshes:
        again = tag("meta", http_equiv="refresh", content=2 * REFRESH)
        head.append(tag("noscript", again))
    page = tag(
        "html",
        tag("head", *head),
        tag(
            "body",
            tag("p", id="stale", role="status", hidden=True) if refreshes else None,
            tag("header", tag("b", "vm-sync"), tag("nav", *_links(here))),
            tag("main", *body),
            tag("script", Html(SCRIPT)) if refreshes else None,
        ),
        lang="en",
    )
    # A text from outside may hold half a character, which has no UTF-8.
    return f"<!doctype html>{page}\n".encode("utf-8", "replace")


def _links(here: str) -> Iterable[Html]:
    for path, name in LINKS:
        yield tag("a", name, href=path, aria_current="page" if path == here else None)


def table(heads: Iterable[str], rows: Iterable[Html]) -> Html:
    """Write a table; `cell` makes the cells of its rows."""
    head = tag("thead", tag("tr", *[tag("th", name, scope="col") for name in heads]))
    return tag("table", head, tag("tbody", *rows))


def cell(head: str, *children: Child, class_: str | None = None) -> Html:
    """Write a cell; on a narrow screen the column's head stands before it."""
    content = fragment(*children)
    return tag("td", tag("div", content) if content else None, data_label=head, class_=class_)
