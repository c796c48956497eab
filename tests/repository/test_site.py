"""The documentation site: built strictly, complete in itself, and looked at in a real browser without internet."""

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import missing
from tests.support.browser import chromium
from tools.site import OUTSIDE, SCRIPTS

ROOT = Path(__file__).resolve().parents[2]
MAKE = shutil.which("make") or "make"
WIDTHS = (1280, 400)
"""Pixels: a desk's screen, and a phone's."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make site` does, into a folder of its own."""
    if shutil.which("npm") is None:
        missing("npm is not installed (apt-get install npm): the site's scripts come from it")
    scripts = [f"{SCRIPTS.relative_to(ROOT)}/{name}.js" for name in ("mermaid.min", "iframe-worker")]
    fetched = subprocess.run([MAKE, "--silent", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    if fetched.returncode:
        missing(f"the site's scripts can't be fetched: {fetched.stderr}")
    folder = tmp_path_factory.mktemp("site")
    done = _build("--site-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def _build(*options: str | Path) -> subprocess.CompletedProcess[str]:
    # Not --quiet: a warning that isn't shown isn't counted, and stops nothing.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.e2e
@pytest.mark.usefixtures("site")
def test_a_link_that_leads_nowhere_and_a_page_without_a_place_stop_the_build(tmp_path: Path) -> None:
    docs = shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (docs / "forgotten.md").write_text("# Forgotten\n\n[gone](gone.md)\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {docs}\nhooks: ['{ROOT / 'tools' / 'site.py'}']\n")

    done = _build("--config-file", config, "--site-dir", tmp_path / "site")

    assert "contains a link 'gone.md'" in done.stderr
    assert 'not included in the "nav" configuration:\n  - forgotten.md\n' in done.stderr
    assert done.returncode == 1


def _loaded(html: str) -> Iterator[str]:
    """Yield the addresses that a browser fetches by itself when it shows a page."""
    for tag in re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", html):
        if 'rel="canonical"' not in tag:
            yield from re.findall(r'(?:src|href)="([^"]+)"', tag)


@pytest.mark.e2e
def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loaded = {address for page in site.rglob("*.html") for address in _loaded(page.read_text())}

    assert loaded
    assert [address for address in loaded if re.match(r"(https?:)?//", address)] == []


@pytest.mark.e2e
def test_every_link_within_the_site_leads_to_something(site: Path) -> None:
    broken = [
        f"{page.relative_to(site)}: {link}"
        for page in site.rglob("*.html")
        if page.name != "404.html"  # its links begin at the server's root
        for link in re.findall(r'(?:src|href)="([^"#?]+)[^"]*"', page.read_text())
        if not re.match(r"[a-z]+:", link) and not (page.parent / unquote(unescape(link))).exists()
    ]

    assert broken == []


@pytest.mark.e2e
def test_every_document_of_the_repository_is_a_page(site: Path) -> None:
    inside = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} - {"performance/notes.md"}

    for name in inside | set(OUTSIDE):
        page = Path(name).with_name("index.md") if Path(name).name == "README.md" else Path(name)
        assert (site / page.with_suffix(".html")).exists(), name


@pytest.mark.e2e
@pytest.mark.parametrize("width", WIDTHS)
async def test_a_browser_shows_the_start_page_without_scrolling_sideways(
    site: Path, width: int, tmp_path: Path
) -> None:
    picture = tmp_path / "page.png"
    frame = site / f"frame-{width}.html"
    frame.write_text(
        f'<iframe id="page" width="{width}" height="900" frameborder="0" src="index.html" onload="'
        "document.title = `${page.contentDocument.documentElement.scrollWidth} ${page.contentDocument.title}`"
        '"></iframe>'
    )
    start = f"file://{site / 'index.html'}"
    await chromium(
        f"--user-data-dir={tmp_path / 'shot'}", f"--window-size={width},1400", f"--screenshot={picture}", start
    )
    dom = await chromium(
        f"--user-data-dir={tmp_path / 'dom'}",
        "--window-size=1400,1000",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        "--dump-dom",
        f"file://{frame}",
    )

    assert struct.unpack(">II", picture.read_bytes()[16:24]) == (width, 1400)
    assert picture.stat().st_size > 30_000  # an empty page of this size packs into a few thousand bytes
    assert re.findall(r"<title>(.*)</title>", dom.decode()) == [f"{width} vm-sync"]


@pytest.mark.e2e
@pytest.mark.parametrize("page", ["architecture", "states", "guarantees"])
async def test_a_browser_without_internet_draws_the_diagrams(site: Path, page: str, tmp_path: Path) -> None:
    dom = await chromium(f"--user-data-dir={tmp_path / 'dom'}", "--dump-dom", f"file://{site / page}.html")

    # The theme replaces the text of a diagram by an element that holds the picture.
    assert '<div class="mermaid">' in dom.decode()
    assert '<pre class="mermaid">' not in dom.decode()
