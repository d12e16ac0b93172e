"""Strings become text; only markup made here stays markup."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from vlm4vla.reports.markup import Html, element, join

text = st.text(st.characters(blacklist_categories=("Cs", "Cc")))


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(text, text)
def test_whatever_text_says_it_stays_text(child: str, attribute: str) -> None:
    reader = Reader()
    reader.feed(element("p", child, title=attribute))
    reader.close()
    assert reader.tags == [("p", {"title": attribute})]
    assert reader.text == child


def test_markup_nests_without_being_escaped_again() -> None:
    inner = element("b", "1 < 2")
    assert element("p", inner, [" & ", inner], None) == "<p><b>1 &lt; 2</b> &amp; <b>1 &lt; 2</b></p>"
    assert isinstance(join([inner]), Html)


def test_attributes() -> None:
    assert (
        element("meta", http_equiv="x", class_="y", hidden=True, id=None)
        == '<meta http-equiv="x" class="y" hidden>'
    )
    assert element("rect", x=1.50, y=2) == '<rect x="1.5" y="2"></rect>'
