"""Word, PowerPoint, OpenDocument, EPUB and RTF → text: paragraphs as lines, rows of tables as lines with tabs.

All but RTF are zip files of XML. A part has at most `MOST_PART_BYTES`, whatever it says of itself. No entity of XML is
replaced and no other file is opened. Headers, footers, comments and deleted text are left out; notes follow the text.
"""

import posixpath
import re
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tpullm.corpus.document import Raw
from tpullm.corpus.files import encodings, opened, pages
from tpullm.corpus.files.desktop.extra import needed

MOST_PART_BYTES, MOST_BYTES = 1 << 26, 1 << 28  # of one part, and of all parts of a file
_NUMBER = re.compile(r"\d+")
_LEFT_OUT = {
    "Fallback", "instrText", "delText", "rt", "fldData", "del", "moveFrom",  # Word
    "annotation", "tracked-changes", "note-citation", "ruby-text", "notes", "settings", "forms",  # OpenDocument
}  # fmt: skip
_NOTE = {"footnote", "endnote", "note-body"}
_PARAGRAPHS, _ROWS, _CELLS = {"p", "h"}, {"tr", "table-row"}, {"tc", "table-cell"}
_BREAKS = {"tab": "\t", "br": "\n", "cr": "\n", "line-break": "\n", "noBreakHyphen": "-"}


class Package:
    """The parts of a zip file of XML, read within bounds.

    Raises:
        Unreadable: it is no zip file.
    """

    def __init__(self, path: Path):
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            is_locked = path.read_bytes()[:8] == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # OLE: Office encrypts in it
            why = "is protected by a password; save it without" if is_locked else f"is broken ({error}); save it again"
            raise opened.Unreadable(why) from None
        self._left = MOST_BYTES
        self.names = set(self._zip.namelist())

    def bytes(self, name: str) -> bytes:
        """A part; none if it is not there."""
        if name not in self.names:
            return b""
        try:
            with self._zip.open(name) as part:
                data = part.read(min(MOST_PART_BYTES, self._left) + 1)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # broken, encrypted
            raise opened.Unreadable(f"is broken or protected ({error}); save it again, without a password") from None
        self._left -= len(data)
        if len(data) > MOST_PART_BYTES or self._left < 0:
            raise opened.Unreadable(f"has more than {MOST_PART_BYTES >> 20} MiB in one part; save its text as .txt")
        return data

    def xml(self, name: str) -> Any:
        """A part as a tree of elements; None if it is not there."""
        from lxml import etree

        data = self.bytes(name)
        if not data:
            return None
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
        try:
            return etree.fromstring(data, parser)
        except etree.XMLSyntaxError as error:
            raise opened.Unreadable(f"is broken ({name}: {error}); save it again") from None


def _tag(element: Any) -> str:
    """The name of an element without its namespace; "" of an entity or an instruction."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _lines(element: Any, notes: list[str]) -> Iterator[str]:
    """The lines below an element: a paragraph is one, and a row of a table. Notes are put aside."""
    for child in element:
        tag = _tag(child)
        if tag in _LEFT_OUT:
            continue
        if tag in _PARAGRAPHS:
            yield "".join(_runs(child, notes))
        elif tag in _ROWS:
            cells = (" ".join(" ".join(_lines(cell, notes)).split()) for cell in child if _tag(cell) in _CELLS)
            yield "\t".join(cells).rstrip()
        else:
            yield from _lines(child, notes)


def _runs(element: Any, notes: list[str]) -> Iterator[str]:
    """The pieces of the text of a paragraph. Word has them in `t`, OpenDocument anywhere."""
    everywhere = "opendocument" in element.tag
    if everywhere:
        yield _on_one_line(element.text)
    for child in element:
        tag = _tag(child)
        if tag in _NOTE:
            notes += filter(str.strip, _lines(child, []))
        elif tag in _BREAKS:
            yield _BREAKS[tag]
        elif tag == "s" and everywhere:  # spaces
            count = next((value for key, value in child.attrib.items() if key.endswith("}c")), "1")
            yield " " * (min(int(count), 100) if count.isdigit() else 1)
        elif tag == "t" and not everywhere:
            yield child.text or ""
        elif tag not in _LEFT_OUT:
            yield from _runs(child, notes)
        if everywhere:
            yield _on_one_line(child.tail)


def _on_one_line(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "")


def _joined(lines: Iterable[str]) -> str:
    """Lines as a text, without more than one empty line in a row."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip("\n") + "\n"


def docx(path: Path) -> Iterator[Raw]:
    """The text of a document of Word, then its notes."""
    package = Package(path)
    tree, notes = package.xml("word/document.xml"), []
    if tree is None:
        raise opened.Unreadable("holds no document of Word; save it again as .docx")
    lines = list(_lines(tree, notes))
    for name in ("word/footnotes.xml", "word/endnotes.xml"):
        if (more := package.xml(name)) is not None:
            lines += filter(str.strip, _lines(more, notes))
    yield Raw(_joined([*lines, *notes]))


def pptx(path: Path) -> Iterator[Raw]:
    """The text of all slides, and of the notes of the speaker below each."""
    package, parts = Package(path), []
    slides = [name for name in package.names if re.fullmatch(r"ppt/slides/slide\d+\.xml", name)]
    for name in sorted(slides, key=lambda name: int(_NUMBER.search(name)[0])):
        notes = name.replace("slides/slide", "notesSlides/notesSlide")
        for part in (name, notes):
            if (tree := package.xml(part)) is not None:
                lines = [line for line in _lines(tree, []) if line.strip() and not line.strip().isdigit()]
                parts.append("\n".join(lines))
        yield None
    yield Raw(_joined("\n\n".join(filter(None, parts)).split("\n")))


def open_document(path: Path) -> Iterator[Raw]:
    """The text of a document or of slides of OpenDocument, then its notes."""
    tree, notes = Package(path).xml("content.xml"), []
    if tree is None:
        raise opened.Unreadable("holds no document of OpenDocument; save it again as .odt")
    lines = list(_lines(tree, notes))
    yield Raw(_joined([*lines, *notes]))


def epub(path: Path) -> Iterator[Raw]:
    """The text of a book, its chapters in their order."""
    package = Package(path)
    container = package.xml("META-INF/container.xml")
    roots = [] if container is None else [one for one in container.iter() if _tag(one) == "rootfile"]
    name = roots[0].get("full-path", "") if roots else ""
    book = package.xml(name) if name else None
    if book is None:
        raise opened.Unreadable("is no EPUB (it names no book); get it again")
    if b"EncryptedData" in package.bytes("META-INF/encryption.xml") and _is_locked(package, name):
        raise opened.Unreadable("is protected (DRM); get it from its shop without")
    items = {one.get("id"): one for one in book.iter() if _tag(one) == "item"}
    chapters, reserved = [], ""
    for one in book.iter():
        item = items.get(one.get("idref")) if _tag(one) == "itemref" else None
        if item is None or "nav" in (item.get("properties") or "").split():
            continue
        where = urllib.parse.unquote(item.get("href", "").partition("#")[0])
        page = encodings.decode_html(package.bytes(posixpath.normpath(posixpath.join(posixpath.dirname(name), where))))
        if page:
            text, says = pages.extract(page, (), whole=True)
            chapters.append(encodings.unix_lines(text))
            reserved = reserved or says
        yield None
    yield Raw(_joined("\n\n".join(filter(str.strip, chapters)).split("\n")), reserved=reserved)


def _is_locked(package: Package, name: str) -> bool:
    """Whether more than the fonts of a book are encrypted."""
    where = (one.get("URI", "") for one in package.xml("META-INF/encryption.xml").iter())
    return any(re.search(r"\.(x?html?|xml)$", text) for text in where)


def rtf(path: Path) -> Iterator[Raw]:
    """The text of RTF, by striprtf."""
    convert = needed("striprtf.striprtf").rtf_to_text
    with opened.open_bytes(path) as stream:
        data = stream.read(MOST_PART_BYTES + 1)
    if len(data) > MOST_PART_BYTES:
        raise opened.Unreadable(f"is larger than {MOST_PART_BYTES >> 20} MiB; save its text as .txt")
    pictures = re.compile(rb"\{\\\*?\\?(?:pict|objdata|shppict)[^{}]{1000,}")  # hexadecimal digits
    yield Raw(_joined(convert(pictures.sub(b"{", data).decode("latin-1"), errors="ignore").split("\n")))
