"""Who gets HTML: browsers, and nobody else."""

import pytest

from service.ops.accept import prefers_html

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (CHROME, True),
        ("text/html", True),
        ("Text/HTML; charset=utf-8", True),
        ("text/*", True),
        ("text/html, application/json;q=0.5", True),
        ("text/html;q=0.001", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/html;q=0.9", False),
        ("application/json, text/html", False),
        ("text/html;q=0", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=lots", False),
        ("text/html;q=1.5", False),
        ("text/html;q=nan", False),
        ("application/*, text/html;q=0.2", False),
        (";;,,;q=", False),
    ],
)
def test_html_is_for_those_who_would_rather_have_it(accept: str, html: bool) -> None:
    assert prefers_html(accept) is html
