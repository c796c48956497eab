"""MkDocs' hook for the documentation site: adds pages from outside of `docs/`, and changes the links to them.

The README, the guide for contributors and others stand where people of a repository look for them; the site shows
them as pages of its own. A link to any other file of the repository leads to a page that shows the file, so the site
needs no server of the sources, and no network at all. `make site` builds it; mkdocs.yml is its configuration.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
SCRIPTS: Final = ROOT / "build" / "site-scripts"
"""Where `make site` puts the scripts that pages would otherwise load from elsewhere."""

OUTSIDE: Final = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "code-of-conduct.md": "CODE_OF_CONDUCT.md",
    "contributing.md": "CONTRIBUTING.md",
    "deploying.md": "deploy/README.md",
    "security.md": "SECURITY.md",
}
"""Pages whose text stands outside of `docs/`: the site's name, the repository's name."""

SOURCES: Final = "source"
"""Folder of the site with a page for each file of the repository that a page links to."""

LARGEST: Final = 200_000
"""Bytes of a file that is shown as a page; a larger one is not worth reading in a browser."""

LINK: Final = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(?=(?:#[^)\s]*)?\))")
"""The path of a Markdown link to a file, without its anchor."""

LANGUAGES: Final = {".py": "python", ".yaml": "yaml", ".json": "json", ".go": "go", ".java": "java", ".sh": "bash"}


def on_files(files: Files, /, *, config: MkDocsConfig) -> Files:
    """Add the pages from outside of `docs/`, a page for each file that is linked, and the scripts."""
    for name in ("mermaid.min.js", "iframe-worker.js"):
        if not (SCRIPTS / name).exists():
            msg = f"{SCRIPTS / name} is missing: build the site with `make site`"
            raise PluginError(msg)
        files.append(File.generated(config, f"javascripts/{name}", abs_src_path=str(SCRIPTS / name)))
    for name, path in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            _add_source(_target(page.src_uri, link), files, config)
    return files


def on_page_markdown(markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    del config
    here = page.file.src_uri
    if here.startswith(f"{SOURCES}/"):
        return markdown

    def on_the_site(link: re.Match[str]) -> str:
        name = _name(_target(here, link[1]))
        if name not in files.src_uris:
            return link[1]  # MkDocs then says that it leads nowhere
        return os.path.relpath(name, PurePosixPath(here).parent)

    return LINK.sub(on_the_site, markdown)


def on_post_page(output: str, /, *, page: Page, config: MkDocsConfig) -> str:
    """Give a page with a diagram the script that draws it, which the theme would load from elsewhere."""
    del config
    script = os.path.relpath("javascripts/mermaid.min.js", PurePosixPath(page.url).parent)
    return (
        output.replace("</head>", f'<script src="{script}"></script></head>') if 'class="mermaid"' in output else output
    )


def _target(page: str, link: str) -> str:
    """Return the path in the repository that a link on a page of the site leads to."""
    origin = OUTSIDE.get(page, f"docs/{page}")
    return os.path.normpath(PurePosixPath(origin).parent / link)


def _name(path: str) -> str:
    """Return the name on the site of a file of the repository."""
    for name, origin in OUTSIDE.items():
        if path == origin:
            return name
    if path.startswith("docs/") and Path(path).suffix in {".md", ".png", ".svg"}:
        return path.removeprefix("docs/")
    return f"{SOURCES}/{path.removeprefix('.')}.md"  # MkDocs leaves out what begins with a dot


def _add_source(path: str, files: Files, config: MkDocsConfig) -> None:
    """Add the page that shows a file, or lists a folder with its files, unless it is there."""
    name, origin = _name(path), ROOT / path
    if not name.startswith(f"{SOURCES}/") or name in files.src_uris or not origin.exists():
        return
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if origin.is_dir():
        inside = [f"{path}/{file.name}" for file in sorted(origin.iterdir()) if file.is_file()]
        for each in inside:
            _add_source(each, files, config)
        listed = [f"- [{Path(each).name}]({os.path.relpath(_name(each), Path(name).parent)})\n" for each in inside]
        files.append(File.generated(config, name, content=head + "".join(listed)))
        return
    if origin.stat().st_size > LARGEST:
        files.append(
            File.generated(config, name, content=f"{head}{origin.stat().st_size:,} bytes: see the repository.\n")
        )
        return
    text = origin.read_text(encoding="utf-8")
    language = LANGUAGES.get(origin.suffix, "text")
    files.append(File.generated(config, name, content=f"{head}````{language}\n{text}\n````\n"))
