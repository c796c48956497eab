"""HTML: whatever comes from outside is text."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from service.ops.html import Html, fragment, tag


class Parsed(HTMLParser):
    """What a browser would make of it: elements with their attributes, and the text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(markup)
        self.close()

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    @override
    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def test_texts_are_escaped_and_elements_are_not() -> None:
    assert tag("p", "a < b & ", tag("b", '"c"'), 3, None) == "<p>a &lt; b &amp; <b>&quot;c&quot;</b>3</p>"


def test_attributes_are_escaped_and_none_and_false_leave_them_out() -> None:
    written = tag("input", class_="a", data_label='"><script>', value="", max=0, id=None, hidden=False, selected=True)

    assert written == '<input class="a" data-label="&quot;&gt;&lt;script&gt;" value="" max="0" selected>'


def test_markup_that_was_joined_or_formatted_is_text_again() -> None:
    b, escaped = tag("b", "x"), "&lt;b&gt;x&lt;/b&gt;"

    assert [fragment(f"{b}"), fragment(b + ""), fragment(b.strip()), fragment(*b)] == [escaped] * 4
    assert fragment(str.join("", [b, b])) == 2 * escaped
    assert isinstance(fragment(b), Html)


@given(st.text())
def test_a_text_stays_what_it_is_wherever_it_stands(text: str) -> None:
    parsed = Parsed(tag("p", text, tag("i", title=text)))

    assert [name for name, _ in parsed.elements] == ["p", "i"]
    assert parsed.elements[1][1] == {"title": text}
    assert parsed.text == text
