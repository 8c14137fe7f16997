"""Nothing that a text says can become markup, and Japanese is marked as Japanese."""

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.report.html import mixed, phrase, tag
from tpullm.report.language import ENGLISH
from tpullm.report.rendering import environment


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")))
def test_any_text_comes_back_as_text(text):
    reader, found = HTMLParser(), []
    reader.handle_starttag = lambda name, attributes: found.append((name, attributes))
    reader.handle_data = found.append
    reader.feed(tag("p", tag("b", text), text, title=text))
    reader.close()
    assert [each for each in found if isinstance(each, tuple)] == [("p", [("title", text)]), ("b", [])]
    assert "".join(each for each in found if isinstance(each, str)) == text * 2


def test_a_table_escapes_its_cells_and_the_columns_behind_the_first_hold_numbers():
    table = environment().get_template("parts.html").make_module({"text": ENGLISH}).table
    cells = str(table(["<b>", "kind", "size"], [["<script>", phrase("<img>"), mixed("「<i>」 `<u>`")]], left=2))
    assert not any(f"<{name}>" in cells for name in ("b", "script", "img", "i", "u"))
    assert cells.count('<th class="number">') == cells.count('<td class="number">') == 1


def test_japanese_is_marked_so_that_it_takes_japanese_shapes():
    assert phrase("直す") == '<span class="phrase" lang="ja">直す</span>'
    assert "lang" not in phrase("weather")
    assert mixed("so 「直す」 is `x`").count('lang="ja"') == 1
