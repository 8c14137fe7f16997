"""Bytes of a file → text: detects the encoding."""

import codecs
import re

DECLARED_CHARSET = re.compile(rb"""<meta[^>]+charset=["']?\s*([\w-]+)""", re.IGNORECASE)
# The encodings of Japanese files, in the order in which they are tried: the name in Python, and the common name.
JAPANESE_CHARSETS = {"utf-16": "UTF-16", "euc_jp": "EUC-JP", "cp932": "Shift_JIS"}
HIRAGANA, HALF_WIDTH = re.compile("[\u3041-\u309f]"), re.compile("[\uff61-\uff9f]")
LEAST_HIRAGANA, MOST_HALF_WIDTH = (
    0.2,
    0.05,
)  # shares of the letters; half of Soseki's are hiragana


def decode(data: bytes, charset: str = "utf-8") -> str | None:
    """The text of `data` with `\\n` as the only line end and no byte order mark; None if it is not in `charset`."""
    try:
        text = data.decode(charset)
    except (UnicodeDecodeError, LookupError):
        return None
    return unix_lines(text.removeprefix("\ufeff"))


def has_surrogate(text: str) -> bool:
    """Whether `text` holds half of a surrogate pair, which no UTF-8 file can hold."""
    return any("\ud800" <= character <= "\udfff" for character in set(text))


def unix_lines(text: str) -> str:
    """`text` with `\\n` as its only line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_japanese(data: bytes) -> tuple[str, str] | None:
    """The text and the encoding of a file that is not UTF-8 but certainly Japanese; None for any other file.

    Old Japanese files (Aozora Bunko's are Shift_JIS) do not declare their encoding. A Japanese text that is decoded in
    the wrong encoding either breaks the rules of that encoding, or has hardly any hiragana or much half-width katakana.
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
    """The text of a page: in UTF-8, else as its HTTP header says (`charset`), else as its `<meta>` says, else None."""
    declared = DECLARED_CHARSET.search(data[:4096])
    for name in ("utf-8", charset, declared.group(1).decode("ascii", "replace") if declared else ""):
        text = decode(data, name) if name and _is_charset(name) else None
        if text is not None:
            return text
    return None


def _is_charset(name: str) -> bool:
    """Whether `name` is a text encoding that Python knows. A page may declare anything."""
    try:
        return codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):
        return False
