"""What of a page becomes text, what its owner reserves, and what a page costs that breaks its reader."""

import ctypes
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tpullm.corpus.files import pages


def crash(page, headers):
    if "crash" in page:
        ctypes.string_at(0)
    return [page, ""]


def test_a_page_that_breaks_its_reader_is_put_aside_and_the_next_is_read(monkeypatch):
    monkeypatch.setattr(pages, "EXTRACT", "tests.corpus.test_pages:crash")
    raw = pages.read(b"crash")
    assert raw.dropped == "could not be read" and "ends by signal 11" in raw.problem and "do not use" not in raw.problem
    assert pages.read(b"fine").text == "fine"
    monkeypatch.setattr(pages, "MOST_PAGE_BYTES", 4)
    assert pages.read(b"large").dropped == "too large" and pages.read(b"fine").text == "fine"


HOSTILE = [
    "<div>" * 2_000 + "text", "<" * 100_000, "<!--" * 40_000, "<p " + "a=b " * 100_000 + ">text", "<meta " * 100_000,
    "<!DOCTYPE [" + "<!ENTITY a 'bbbb'>" * 1000 + "]>&a;", "\0" * 100_000, "", "<script>" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("page", HOSTILE)
def test_hostile_pages_are_no_more_than_a_document_without_text(page):
    assert pages.read(page.encode()).dropped in ("", "could not be read")


def test_text_that_is_nested_400_deep_is_read():
    for tag in ("div", "b", "ul><li"):
        page = f"<html><body>{f'<{tag}>' * 400}{'今日はいい天気ですね。' * 9}</body></html>"
        assert "今日はいい天気ですね。" in pages.read(page.encode()).text


PROSE = "ネットワークの設定を変えるには、次のコマンドを管理者として実行します。"
DOCBOOK = '<meta name="generator" content="DocBook XSL Stylesheets V1.79.1">'
SPHINX = '<script src="_static/documentation_options.js"></script>'


def page(body, head=""):
    return f"<html><head><title>x</title>{head}</head><body>{body}</body></html>"


def lines(body, head=""):
    return [line.strip() for line in pages.extract(page(body, head), [])[0].splitlines() if line.strip()]


CODE = "if a:\n    b()\n\n\tc = 1  # two"


@pytest.mark.parametrize("head", ["", DOCBOOK])
@pytest.mark.parametrize(
    "around", ["<article>{}</article>", "<ul><li><p>text</p>{}</li></ul>", "<dl><dd>{}</dd></dl><pre>one<br>two</pre>"]
)
def test_code_keeps_its_lines_and_its_indent(around, head):
    code = '<pre class="highlight"><span>if</span> a:\n    <b>b</b>()\n\n\tc = 1  # two</pre>'
    text = pages.extract(page(f"<p>{PROSE * 4}</p>{around.format(code)}<p>{PROSE * 4}</p>", head), [])[0]
    assert CODE in text.replace("    if a:", "if a:") and ("one\ntwo" in text) == ("one" in around)


@example("␊␠␉␍␛␞␟␝␜␀")
@settings(max_examples=30)
@given(st.text(st.sampled_from("␊␠␉␍␛␞␟␝␜␀ab\n "), min_size=1, max_size=30))
def test_marks_in_a_page_stay_what_they_are(code):
    text = pages.extract(page(f"<article><p>{PROSE * 4}</p><pre>x{code}y</pre><p>{PROSE * 4}</p></article>"), [])[0]
    marks = [letter for letter in code if letter in "␊␠␉␍␛␞␟␝␜␀"]
    assert [letter for letter in text if letter in "␊␠␉␍␛␞␟␝␜␀"] == marks


LINE_ENDS = {
    "名前は\n   まだ無い。": "名前はまだ無い。",
    "a word\n  and another": "a word and another",
    "Debian の\nDebian": "Debian の Debian",
    "<b>名前</b>は\n  まだ無い。": "名前はまだ無い。",
    "「無い」\r\n。": "「無い」。",
    "\n  begins and ends\n": "begins and ends",
}


def test_a_line_end_in_text_is_a_space_but_between_wide_characters():
    for source, text in LINE_ENDS.items():
        assert text in lines(f"<article><p>{source}</p><p>{PROSE * 9}</p></article>")


def test_a_run_of_spaces_takes_linear_time():
    begin = time.thread_time()
    assert pages.extract(f"<p>a{' ' * 60_000}b\nc</p>", [])[0].split() == ["a", "b", "c"]
    assert time.thread_time() - begin < 2  # 5 s, and at 130 kB the limit, where each space begins the search again


def test_an_anchor_that_never_ends_is_no_link():
    """`<a id="x"/>` of XHTML makes a link of the heading after it, and links are dropped."""
    body = f'<article><h1><a id="x"/>第5章 設定</h1><p>{PROSE * 4}</p>'
    body += f'<h2><a name="y"/>小節</h2><p>{PROSE * 4}</p></article>'
    assert lines(body) == ["第5章 設定", PROSE * 4, "小節", PROSE * 4]
    # What lies in code stays at its place.
    code = "<code>debian/<em><code>package</code></em>.symbols</code>"
    body = f"<article><p>ファイル {code} を作ります。{PROSE * 4}</p></article>"
    assert f"ファイル debian/package.symbols を作ります。{PROSE * 4}" in lines(body)


NOTE = """<div class="note"><table summary="Note"><tr><td rowspan="2"><img alt="[注記]" src="note.png"></td>
<th align="left">注記</th></tr><tr><td align="left" valign="top"><p>短い注記です。</p></td></tr></table></div>"""


def test_a_manual_of_docbook_keeps_headings_notes_and_sidebars_and_loses_its_navigation():
    body = f"""<div class="navheader"><a href="a.html">戻る</a> 第5章 <a href="b.html">次へ</a></div>
    <div class="section"><div class="titlepage"><div><div><h2 class="title"><a id="s"/>5.1. 設定</h2></div></div></div>
    <div class="toc"><dl><dt><a href="#t">目次の行</a></dt></dl></div>{NOTE}
    <div class="para"><acronym>APT</acronym> は道具です。{PROSE}
    <div class="list"><ul><li>項目</li></ul></div>後の文です。</div>
    <div class="sidebar"><p class="title"><strong>TIP 囲み</strong></p><div class="para">{PROSE}囲みの文。</div></div>
    <table><tr><th>道具</th><th>用途</th></tr><tr><td>ip</td><td>経路の設定</td></tr></table></div>
    <div class="navfooter"><a href="a.html">戻る</a></div>"""
    found = lines(body, DOCBOOK)
    expected = [
        "5.1. 設定", "注記", "短い注記です。", f"APT は道具です。{PROSE}", "• 項目", "後の文です。", "TIP 囲み",
        f"{PROSE}囲みの文。", "道具\t\t用途", "ip\t\t経路の設定",
    ]  # fmt: skip
    assert found == expected


def test_a_manual_of_sphinx_keeps_its_footnotes():
    body = f"""<div class="sphinxsidebar"><p>{PROSE}横の文。</p></div><div class="documentwrapper"><section><h1>5. 章
    <a class="headerlink" href="#x">¶</a></h1><p>{PROSE * 3}<a href="#n" role="doc-noteref">[1]</a></p>
    <aside class="footnote-list"><aside class="footnote" role="doc-footnote"><p>脚注の文です。</p></aside></aside>
    </section></div>"""
    assert lines(body, SPHINX) == ["5. 章", f"{PROSE * 3}[1]", "脚注の文です。"]


def test_a_manual_of_sphinx_in_one_page_keeps_its_chapters_and_another_leaves_out_links_to_them():
    """In one page the chapters stand where other pages have their links: of 200,000 characters 1,300 were kept."""
    wrapped = """<div class="documentwrapper"><section><h1>手引き</h1><p>{}</p>
    <div class="toctree-wrapper compound">{}</div></section></div>"""
    links = "<ul><li><a href='a.html'>第一の章</a></li><li><a href='b.html'>第二の章</a></li></ul>"
    links = f"<p><span>目次</span></p>{links}"
    chapter = f"<section><h{{}}>1. 章</h{{}}><p>{PROSE * 3}</p></section>"
    assert lines(wrapped.format(PROSE * 3, links), SPHINX) == ["手引き", PROSE * 3]
    for level in (1, 2):
        body = wrapped.format(PROSE * 3, chapter.format(level, level))
        assert lines(body, SPHINX) == ["手引き", PROSE * 3, "1. 章", PROSE * 3]


def test_a_list_near_the_root_is_text_unless_it_is_mostly_links():
    text = "<ul><li>一つ目の項目</li><li>二つ目<a href='x'>項目</a></li></ul>"
    menu = "<ul><li><a href='a.html'>第一の章</a></li><li><a href='b.html'>第二の章</a></li></ul>"
    for around in ("{}", "<div>{}</div>", "<div><article>{}</article></div>"):
        found = lines(around.format(f"<p>{PROSE}</p>{menu}{text}<p>{PROSE}</p>"))
        assert found == [PROSE, "• 一つ目の項目", "• 二つ目項目", PROSE]


@pytest.mark.parametrize("name", ["navheader", "docnav", "nav_table", "sphinxsidebar"])
def test_the_names_of_navigation_make_a_page_a_manual(name):
    """Not all programs name themselves. On other pages a box with the name `sidebar` is navigation."""
    box = f"<div class='sidebar'><p>{PROSE}囲みの文。</p></div>"
    found = lines(f"<div class='{name}'><a href='a.html'>戻る</a> 第5章</div><h2>設定</h2><p>{PROSE}</p>{box}")
    assert found == ["設定", PROSE, f"{PROSE}囲みの文。"]
    assert lines(f"<h2>設定</h2><p>{PROSE}</p>{box}") == ["設定", PROSE]
    assert lines(f"<h2>設定</h2><p>{PROSE}</p>{box}", DOCBOOK) == ["設定", PROSE, f"{PROSE}囲みの文。"]


def test_many_lists_take_linear_time():
    begin = time.thread_time()
    assert pages.extract(page("<ul><li>項目</li></ul>" * 3000), [])[0].count("項目") == 3000
    assert time.thread_time() - begin < 2  # 13 s if the lists are found by a query


RESERVED = {
    "noai": [
        '<meta name="robots" content="noai">', '<META CONTENT="index, NOAI,noimageai" NAME=Robots />',
        '<meta name="GPTBot" content="noai">', '<meta http-equiv="X-Robots-Tag" content="noai">',
        '<!-- old --><meta name="robots" content="noai"><!-- -->',
        '</head><p>text</p><meta name="robots" content="noai">',
    ],
    "noimageai": ['<meta name="tdm-reservation" content=" 1 "><meta name="robots" content="noimageai">'],
    "tdm-reservation": ['<meta name="tdm-reservation" content="1">'],
    "": [
        '<script>"<meta name=robots content=noai>"</script>', '<meta name="keywords" content="noai, art">',
        '<!-- <meta name="robots" content="noai"> -->', "<p>noai tdm-reservation</p>",
        '<!-- <meta name="robots" content="noai">',  # browsers read no tag in a comment that is not closed
    ],
}  # fmt: skip


def test_a_reservation_in_a_page_is_heard():
    for reason, heads in RESERVED.items():
        assert {pages.extract(page("", head), [])[1] for head in heads} == {reason}


def test_a_reservation_in_a_header_is_heard_unless_the_page_says_another():
    def heard(*headers, head=""):
        return pages.extract(page("", head), headers)[1]

    robots = ("x-robots-tag", "noarchive"), ("x-robots-tag", "otherbot: noindex, noimageai")
    assert heard(*robots) == "noimageai" and heard(("X-Robots-Tag", "GPTBot: noai")) == "noai"
    assert heard(("X-Robots-Tag", "unavailable_after: 25 Jun 2010 15:00:00 PST")) == ""
    assert heard(("Server", "noai"), ("tdm-policy", "1")) == ""
    assert heard(("TDM-Reservation", "1")) == "tdm-reservation"
    assert heard(("TDM-Reservation", "1"), head='<meta name="tdm-reservation" content="0">') == ""


@settings(max_examples=30)
@given(st.text("<>!-= \"'/metanoairobots01\n"), st.text(",: noai本"))
def test_any_page_is_read(head, value):
    _, reason = pages.extract(head, [(head, value), ("x-robots-tag", value)])
    assert reason in ("", "noai", "noimageai", "tdm-reservation")
