"""Nothing that a text says can become markup, and Japanese is marked as Japanese."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from tpullm.report.html import mixed, phrase, tag
from tpullm.report.language import ENGLISH
from tpullm.report.rendering import environment

table = environment().get_template("parts.html").make_module({"text": ENGLISH}).table


class Reader(HTMLParser):
    """Collects the text and the tags of a page, as a browser would see them."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.text, self.tags, self.attributes = "", [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")))
def test_any_text_comes_back_as_text(text):
    read = Reader(tag("p", tag("b", text), text, title=text))
    assert read.tags == ["p", "b"]
    assert read.text == text * 2
    assert read.attributes == [("title", text)]


def test_markup_in_a_text_is_no_markup():
    page = table(["<b>"], [["<script>alert(1)</script>", phrase("<img src=x>「リンゴ」"), mixed("「<i>」 `<u>`")]])
    assert {"script", "img", "i", "u", "b"}.isdisjoint(Reader(page).tags)


def test_the_columns_behind_the_first_hold_numbers():
    cells = str(table(["name", "kind", "size", "share"], [["a", "b", 1, 2]], left=2))
    assert cells.count('<th class="number">') == 2 and '<td class="number">1</td><td class="number">2</td>' in cells


def test_japanese_is_marked_so_that_it_takes_japanese_shapes():
    assert phrase("直す") == '<span class="phrase" lang="ja">直す</span>'
    assert "lang" not in phrase("weather")
    assert mixed("so 「直す」 is `x`").count('lang="ja"') == 1
