"""PDF → text by PDFium: its lines joined to paragraphs, without the headers and footers of its pages.

PDFium is that of Chrome: it knows the encodings of Chinese, Japanese and Korean. 10,000 pages of 12 lines take 6 s.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tpullm.corpus.document import Raw
from tpullm.corpus.files import opened
from tpullm.corpus.files.desktop.extra import needed

PIECE_CHARACTERS = 1 << 20  # of a document; a longer PDF is several
FULL_LINE = 0.8  # of the width of a page's lines, from which on a line goes on in the next
EDGE_LINES, LEAST_PAGES, EDGE_SHARE = 2, 3, 0.3  # where headers stand, and on how many pages
_WIDE = re.compile("[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")
_END = re.compile("[.!?:。！？」』]\\W?$")
_SCANNED = "has no text (it is scanned); make one with text: ocrmypdf IN.pdf OUT.pdf"


def document(path: Path) -> Iterator[Raw]:
    """The text of a PDF, in pieces of about `PIECE_CHARACTERS`.

    Raises:
        Unreadable: it is broken, protected or scanned.
    """
    pdfium = needed("pypdfium2")
    try:
        file = pdfium.PdfDocument(path)
        count = len(file)
    except pdfium.PdfiumError as error:
        is_locked = "password" in str(error).lower()
        why = "is protected by a password; save it without" if is_locked else f"is broken ({error}); get it again"
        raise opened.Unreadable(why) from None
    pages: list[list[str]] = []
    first, size, has_text = 1, 0, False
    for number in range(1, count + 1):
        lines = _lines_of_page(pdfium, file, number - 1)
        pages.append(lines)
        size += sum(map(len, lines))
        if size > PIECE_CHARACTERS or number == count:
            if text := _text_of_pages(pages):
                has_text = True
                yield Raw(text, record="" if first == 1 and number == count else f"pages {first} to {number}")
            pages, first, size = [], number + 1, 0
        yield None
    if not has_text:
        raise opened.Unreadable(_SCANNED)


def _lines_of_page(pdfium, file, number: int) -> list[str]:
    """The lines of a page; none if it is broken."""
    try:
        page = file[number]
        text = page.get_textpage().get_text_bounded()
        page.close()
    except pdfium.PdfiumError:
        return []
    text = text.replace("\ufffe", "\x02").replace("\x00", "")  # what PDFium writes for a hyphen at the end of a line
    return [line.strip() for line in text.splitlines() if line.strip()]


def _text_of_pages(pages: list[list[str]]) -> str:
    """Pages as one text. A line at the edge of many pages, whatever its number, is a header or a footer."""
    edges = Counter(key for lines in pages for key in {_without_numbers(line) for line in _edges(lines)})
    most = max(LEAST_PAGES, EDGE_SHARE * len(pages))
    repeated = {key for key, count in edges.items() if count >= most}
    kept = []
    for lines in pages:
        is_edge = {*range(EDGE_LINES), *range(len(lines) - EDGE_LINES, len(lines))}
        kept += [line for at, line in enumerate(lines) if not (at in is_edge and _without_numbers(line) in repeated)]
    return _paragraphs(kept)


def _edges(lines: list[str]) -> list[str]:
    return [*lines[:EDGE_LINES], *lines[-EDGE_LINES:]]


def _without_numbers(line: str) -> str:
    return re.sub(r"\d+|\b[ivxlc]+\b", "0", line)


def _paragraphs(lines: list[str]) -> str:
    """Lines as paragraphs: a line that fills the width of most goes on in the next one."""
    if not lines:
        return ""
    widths = sorted(map(len, lines))
    width = widths[len(widths) * 3 // 4]
    parts: list[str] = []
    goes_on = False
    for line in lines:
        if goes_on and parts:
            before = parts[-1]
            if before.endswith("\x02"):
                parts[-1] = before[:-1] + line
            else:
                is_wide = _WIDE.match(before[-1]) and _WIDE.match(line[0])
                parts[-1] = f"{before}{'' if is_wide else ' '}{line}"
        else:
            parts.append(line)
        goes_on = line.endswith("\x02") or (
            len(line) >= FULL_LINE * width and not (_END.search(line) and len(line) < 0.95 * width)
        )
    return "\n".join(parts).replace("\x02", "-") + "\n"
