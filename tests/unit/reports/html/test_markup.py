"""Elements of HTML: whatever text goes in comes out as that text, and as nothing else."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.text import printable
from prewarm.reports.html.markup import Markup, element, joined


class Reader(HTMLParser):
    """Notes the elements that begin, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.begun: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.begun.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (element("p", "a < b & c"), "<p>a &lt; b &amp; c</p>"),
        (element("p", element("b", "<"), ">"), "<p><b>&lt;</b>&gt;</p>"),
        (element("meta", charset="utf-8"), '<meta charset="utf-8">'),
        (element("a", "x", href="#y", class_=None), '<a href="#y">x</a>'),
        (element("i", aria_hidden="true", class_="m"), '<i aria-hidden="true" class="m"></i>'),
        (element("svg", viewBox="0 0 1 1", height=8), '<svg viewBox="0 0 1 1" height="8"></svg>'),
        (joined(["<", Markup("<br>"), ">"], " "), "&lt; <br> &gt;"),
        (element("b", title="\n\"'\x00\u202e"), '<b title="\ufffd&quot;&#x27;\ufffd\ufffd"></b>'),
    ],
)  # fmt: skip
def test_element_is_written_so(made: Markup, text: str) -> None:
    assert made == text


@given(st.text(), st.text())
def test_element_of_any_text_is_one_element_with_that_text(inside: str, attribute: str) -> None:
    read = Reader(element("p", inside, title=attribute))
    assert read.begun == [("p", {"title": printable(attribute)})]
    assert read.text == printable(inside)
