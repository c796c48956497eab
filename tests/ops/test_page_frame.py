"""The frame of the pages: their own style and script, and nothing else; `test_pages_in_browser` looks at it."""

import base64
import hashlib
import re

import pytest

from service.ops import overview_page, page_frame
from service.ops.html import tag
from service.ops.page_frame import POLICY, SCRIPT, STYLE, cell, frame
from tests.support.shown_overview import some_overview


def test_style_and_script_are_those_that_the_policy_allows_and_no_element_has_its_own() -> None:
    page = overview_page.write(some_overview(), clean=str).decode()

    assert page.count(f"<style>{STYLE}</style>") == page.count("<style") == 1
    assert page.count(f"<script>{SCRIPT}</script>") == page.count("<script") == 1
    assert " style=" not in page
    assert page_frame.POLICY.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in page_frame.POLICY


def test_the_policy_has_the_hashes_of_style_and_script() -> None:
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (STYLE, SCRIPT)}

    assert set(re.findall(r"'sha256-([^']+)'", POLICY)) == hashes


@pytest.mark.parametrize("refreshes", [False, True])
def test_a_page_that_refreshes_itself_does_so_without_scripts_too(refreshes: bool) -> None:
    page = frame("A title", tag("p", "x"), here="/", refreshes=refreshes).decode()

    assert ('<noscript><meta http-equiv="refresh" content="10"></noscript>' in page) is refreshes
    assert ("<script" in page) is refreshes
    assert ('id="stale"' in page) is refreshes


def test_the_link_to_the_page_itself_is_marked() -> None:
    page = frame("A title", here="/syncs").decode()

    assert page.count('aria-current="page"') == 1
    assert '<a href="/syncs" aria-current="page">Requests</a>' in page


def test_an_empty_cell_is_left_out_where_it_is_narrow() -> None:
    assert cell("site") == '<td data-label="site"></td>'
    assert cell("site", "a") == '<td data-label="site"><div>a</div></td>'
