"""Bytes of a file → text: encodings, HTML, Markdown, and cutting what is too long."""

import codecs
import logging
import re

DECLARED_CHARSET = re.compile(rb"""<meta[^>]+charset=["']?\s*([\w-]+)""", re.IGNORECASE)
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
HTML_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# Places where a text may be cut, best first: a line's end, a sentence's end.
BOUNDARIES = (re.compile(r"\n"), re.compile(r"[。．！？]|[.!?] "))


def decode(data: bytes, charset: str = "utf-8") -> str | None:
    """The text of `data` with `\\n` as the only line end and no byte order mark; None if it is not in `charset`."""
    try:
        text = data.decode(charset)
    except (UnicodeDecodeError, LookupError):
        return None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def decode_html(data: bytes, charset: str = "") -> str | None:
    """The source of a page: in UTF-8, else in the charset of its HTTP header (`charset`) or its `<meta>`, else None."""
    declared = DECLARED_CHARSET.search(data[:4096])
    for name in ("utf-8", charset, declared.group(1).decode("ascii", "replace") if declared else ""):
        text = decode(data, name) if name and _is_charset(name) else None
        if text is not None:
            return text
    return None


def _is_charset(name: str) -> bool:
    """Whether `name` is a text encoding that Python knows; a page may declare anything."""
    try:
        return codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):
        return False


def html_to_text(page: str) -> str:
    """The main text of an HTML page, without menus and footers (trafilatura, Barbaresi 2021), or else all its text."""
    # datatrove's extractor is called in this process: its sandbox starts one more process per worker.
    from datatrove.pipeline.extractors import Trafilatura
    from trafilatura import html2txt

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it logs an error for each page without a main text
    if "<body" not in page.lower():  # a fragment: trafilatura reads whole pages only
        page = f"<html><body>{page}</body></html>"
    text = Trafilatura(favour_precision=False, deduplicate=False).extract(page)
    return text or html2txt(page) or ""


def markdown_to_text(source: str) -> str:
    """Markdown without front matter and comments; the rest is left, since it is how people write."""
    return HTML_COMMENT.sub("", FRONT_MATTER.sub("", source))


def cut(text: str, length: int) -> list[str]:
    """`text` in consecutive pieces of at most `length` characters, cut at a line's end where there is one.

    Without one it is cut after a sentence, without that anywhere. The pieces joined are `text`.
    """
    pieces, start = [], 0
    while len(text) - start > length:
        end = _boundary(text, start, start + length)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _boundary(text: str, start: int, limit: int) -> int:
    """The best place to cut in the second half of `text[start:limit]`, or else before that, or else `limit`."""
    middle = (start + limit) // 2
    for low, high in ((middle, limit), (start, middle)):
        for boundary in BOUNDARIES:
            ends = [match.end() for match in boundary.finditer(text, low, high)]
            if ends:
                return ends[-1]
    return limit
