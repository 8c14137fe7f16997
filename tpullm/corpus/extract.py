"""Bytes of a file → text: encodings, HTML, Markdown, and cutting what is too long."""

import codecs
import logging
import re

DECLARED_CHARSET = re.compile(rb"""<meta[^>]+charset=["']?\s*([\w-]+)""", re.IGNORECASE)
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
# What Python calls the encodings of Japanese files, in the order in which they are tried, and what people call them.
JAPANESE_CHARSETS = {"utf-16": "UTF-16", "euc_jp": "EUC-JP", "cp932": "Shift_JIS"}
HIRAGANA, HALF_WIDTH = re.compile("[\u3041-\u309f]"), re.compile("[\uff61-\uff9f]")
LEAST_HIRAGANA, MOST_HALF_WIDTH = 0.2, 0.05  # shares of the letters; of Soseki's novels, half are hiragana
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


def decode_japanese(data: bytes) -> tuple[str, str] | None:
    """The text and the encoding of a file that is not UTF-8 but surely Japanese; None for any other.

    Old Japanese files (Aozora Bunko's are Shift_JIS) say nowhere how they are encoded. Read in the wrong encoding, a
    Japanese text either breaks its rules or has hardly any hiragana, or much half-width katakana.
    """
    for charset, name in JAPANESE_CHARSETS.items():
        text = decode(data, charset)
        if text is None:
            continue
        letters = sum(map(str.isalpha, text)) or 1
        half_width = len(HALF_WIDTH.findall(text))
        if len(HIRAGANA.findall(text)) >= LEAST_HIRAGANA * letters and half_width <= MOST_HALF_WIDTH * letters:
            return text, name
    return None


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
