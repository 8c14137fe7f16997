"""Word, PowerPoint, OpenDocument and EPUB keep their paragraphs and tables, and no bomb costs more than its bound."""

import itertools
import time

import pytest

from tests.corpus.desktop_files import CONTAINER, docx, package, paragraph, read
from tpullm.corpus.document import NOT_READ
from tpullm.corpus.files.desktop import office


def test_word_has_paragraphs_rows_and_notes_and_no_deleted_text(tmp_path):
    row = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("名前", "年齢"))
    ruby = "<w:ruby><w:rt><w:r><w:t>かん</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>漢</w:t></w:r></w:rubyBase></w:ruby>"
    deleted = "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
    body = (
        f"{paragraph('One &amp; two')}<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t></w:r>{deleted}<w:r>{ruby}</w:r></w:p>"
        f"<w:p/><w:p/><w:p/><w:tbl><w:tr>{row}</w:tr></w:tbl>"
    )
    notes = f"<w:footnotes {office_namespace()}><w:footnote>{paragraph('A note.')}</w:footnote></w:footnotes>"
    header = f"<w:hdr {office_namespace()}>{paragraph('HEADER')}</w:hdr>"
    path = docx(tmp_path / "a.docx", body, **{"word/footnotes.xml": notes, "word/header1.xml": header})
    (raw,) = read(path)
    assert raw.text == "One & two\na\tb漢\n\n名前\t年齢\nA note.\n"


def office_namespace():
    return 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def test_opendocument_has_its_spaces_and_tables_and_no_comments(tmp_path):
    urn = "urn:oasis:names:tc:opendocument:xmlns"
    spaces = " ".join(f'xmlns:{name}="{urn}:{name}:1.0"' for name in ("text", "table", "office"))
    note = (
        "<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>Below.</text:p></text:note-body>"
    )
    cells = "".join(f"<table:table-cell><text:p>{text}</text:p></table:table-cell>" for text in "xy")
    body = (
        "<office:text><text:h>Title</text:h><text:p>One<text:s text:c='2'/>two<text:line-break/>"
        f"three{note}</text:note>."
        "<office:annotation><text:p>comment</text:p></office:annotation></text:p>"
        f"<table:table><table:table-row>{cells}</table:table-row></table:table></office:text>"
    )
    content = f"<office:document-content {spaces}><office:body>{body}</office:body></office:document-content>"
    (raw,) = read(package(tmp_path / "a.odt", {"content.xml": content}))
    assert raw.text == "Title\nOne  two\nthree.\nx\ty\nBelow.\n"


def test_slides_come_in_their_order(tmp_path):
    name = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
    slide = f"<s {name}><a:p><a:r><a:t>Slide {{}}.</a:t></a:r></a:p></s>"
    slides = {f"ppt/slides/slide{number}.xml": slide.format(number) for number in (10, 2, 1)}
    notes = {"ppt/notesSlides/notesSlide2.xml": f"<s {name}><a:p><a:r><a:t>Say this.</a:t></a:r></a:p></s>"}
    (raw,) = read(package(tmp_path / "a.pptx", slides | notes))
    assert raw.text == "Slide 1.\n\nSlide 2.\n\nSay this.\n\nSlide 10.\n"


def book(path, more=""):
    page = "<html><head><title>t</title>{}</head><body><p>{}</p></body></html>"
    opf = (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="n" href="nav.xhtml" properties="nav"/>'
        '<item id="b" href="text/b%20b.xhtml"/><item id="a" href="text/a.xhtml"/></manifest>'
        '<spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/></spine></package>'
    )
    parts = {"META-INF/container.xml": CONTAINER, "O/book.opf": opf, "O/nav.xhtml": page.format("", "Contents")}
    parts |= {
        "O/text/a.xhtml": page.format(more, "Chapter one&nbsp;begins."),
        "O/text/b b.xhtml": page.format("", "Two."),
    }
    return package(path, parts)


def test_a_book_is_its_chapters_in_the_order_of_its_spine(tmp_path):
    (raw,) = read(book(tmp_path / "a.epub"))
    assert raw.text.replace("\xa0", " ") == "Chapter one begins.\n\nTwo.\n" and raw.reserved == ""
    (raw,) = read(book(tmp_path / "b.epub", '<meta name="tdm-reservation" content="1"/>'))
    assert raw.reserved == "tdm-reservation"


LETTERS = "abcdefghijk"  # a billion laughs: each entity is ten of the one before it
ENTITIES = "<!DOCTYPE x [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {after} '{f'&{before};' * 10}'>" for before, after in itertools.pairwise(LETTERS)
)


@pytest.mark.parametrize("text", ["&k;", "&file;"])
def test_an_entity_is_not_replaced(tmp_path, text):
    (tmp_path / "secret").write_text("secret")
    head = f"{ENTITIES}<!ENTITY file SYSTEM 'file://{tmp_path}/secret'>]>"
    begin = time.thread_time()
    raws = read(docx(tmp_path / "a.docx", paragraph(f"before {text} after"), head))
    assert all("ha" not in raw.text and "secret" not in raw.text for raw in raws) and len(raws) == 1
    assert time.thread_time() - begin < 2


def test_a_part_that_expands_without_bound_is_refused(tmp_path, monkeypatch):
    path = package(tmp_path / "a.docx", {"word/document.xml": "<a>" + " " * (office.MOST_PART_BYTES + 1)})
    (raw,) = read(path)
    assert raw.dropped == NOT_READ and raw.problem == "has more than 64 MiB in one part; save its text as .txt"


BROKEN = {
    "a.docx": (b"PK\3\4 cut off", "is broken"),
    "b.docx": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "is protected by a password; save it without"),
    "c.epub": (b"no zip", "is broken"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_says_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name][0])
    (raw,) = read(tmp_path / name)
    assert raw.dropped == NOT_READ and raw.problem.startswith(BROKEN[name][1]) and ";" in raw.problem


def test_rtf_is_text(tmp_path):
    pytest.importorskip("striprtf")
    (tmp_path / "a.rtf").write_bytes(
        rb"{\rtf1\ansi\ansicpg1252 Caf\'e9 \u26412?.\par{\pict " + b"00" * 5000 + b"}End.}"
    )
    (raw,) = read(tmp_path / "a.rtf")
    assert raw.text == "Café 本.\nEnd.\n"


def test_without_the_extra_the_line_that_installs_it_is_told():
    from tpullm.corpus.files import opened
    from tpullm.corpus.files.desktop import extra

    with pytest.raises(opened.Unreadable, match=r"needs a package .*; run: pip install 'tpullm\[documents\]'"):
        extra.needed("no_such_module")
