"""Bytes of a file → text: by the encoding that they declare, else by what they hold.

A name of an encoding means what browsers mean by it (Encoding Standard, WHATWG): `shift_jis` is Microsoft's, and
`iso-8859-1` is windows-1252. `webencodings` has the names, and Python the encodings, except for two Japanese ones:
Python's `euc_jp` and `iso2022_jp` hold JIS X 0208 alone and fail at the ① and ㈱ of Windows (section 12 of the
standard). Its `cp932` has them in the same rows and columns, so each pair of bytes is looked up there.

A file that declares nothing is UTF-8, UTF-16, certainly Japanese or certainly in a language of Western Europe
(windows-1252), else it is not read: text in a wrong encoding is worse than none. `not_decoded` says which encoding it
may have. charset-normalizer 3.5.3 guesses. Of 120 pieces of Soseki (8 to 67 characters) it finds 102 in
Shift_JIS and 42 in EUC-JP, and takes most of the others for Korean; of his four books in ISO-2022-JP it finds one. The
rules here find all of these.
"""

import codecs
import functools
import re

from tpullm.corpus import language_detection as languages
from tpullm.corpus.document import Raw

BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16le", b"\xfe\xff": "utf-16be"}
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
DECLARED_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([^\s"'/>;]+)""", re.IGNORECASE)
XML_DECLARATION = re.compile(rb"""\A\s*<\?xml[^>]{1,200}?encoding\s*=\s*["']\s*([^\s"'>]+)""")
# The encodings of Japanese files, in the order in which they are tried: the name on the web, and the common name.
JAPANESE_CHARSETS = {
    "iso-2022-jp": "ISO-2022-JP",
    "utf-16le": "UTF-16",
    "utf-16be": "UTF-16",
    "euc-jp": "EUC-JP",
    "shift_jis": "Shift_JIS",
}
REFUSED = "replacement"  # the standard's name for encodings that browsers refuse to read, such as HZ
HIRAGANA, HALF_WIDTH = re.compile("[\u3041-\u309f]"), re.compile("[\uff61-\uff9f]")
ASCII_LETTER = re.compile("[A-Za-z]")
# Shares of the letters; half of Soseki's are hiragana.
LEAST_HIRAGANA, MOST_HALF_WIDTH = 0.2, 0.05
# Of UTF-16 in the wrong order hardly a character is one of these; of most text in the right one, half of them are. With
# a byte order mark less is enough: bytes that are no text may begin like one, and all text has spaces or full stops.
PLAIN, LEAST_PLAIN, LEAST_MARKED_PLAIN = re.compile("[\t\n\r -~\u3001\u3002\u3041-\u30ff]"), 0.5, 0.01
SAMPLED = 100_000
# Of a page that declares its encoding. `verdicts.unreadable` has the same bound for all text.
BROKEN, MOST_BROKEN = "\ufffd", 0.001

NOT_DECODED = "is in an unknown encoding; save it as UTF-8"
# Western text in windows-1252 has single bytes beyond ASCII, between letters; that of other encodings has runs of them,
# or becomes marks that nobody writes so often.
WESTERN = set("fr de es it pt nl da sv no nb nn fi is ca gl eu ga lb oc br fo fy af wa".split())
WESTERN_LETTERS = set("àâäáãåæçéèêëíìîïñóòôöõøœúùûüýÿßªºðþ«»’‘“”–—…€°§·¿¡£©\xa0")
MOST_TOGETHER, LEAST_WESTERN, MOST_MARKED = 1.3, 0.95, 0.25  # bytes of a run; shares of the bytes, of the letters
LEAST_GUESSED = 40  # bytes of a file whose encoding is guessed for a hint
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]+")
# The first bytes of kana, punctuation and the kanji of JIS level 1, and the least share of characters with one.
_COMMON_IN_SHIFT_JIS = bytes([*range(0x81, 0x85), *range(0x88, 0x99)])
LEAST_KANJI, LEAST_COMMON = 12, 0.9
LEAST_SCORE = 0.6  # of a hint
# What else a file may be, for a hint: the name for iconv, the languages, and the first bytes of the common characters
# of two bytes.
_OLD = {
    "WINDOWS-1252": (WESTERN, b""),
    "MACINTOSH": (WESTERN, b""),
    "CP850": (WESTERN, b""),
    "WINDOWS-1250": ({"cs", "pl", "hu", "sk", "sl", "hr", "ro", "bs"}, b""),
    "ISO-8859-2": ({"cs", "pl", "hu", "sk", "sl", "hr", "ro", "bs"}, b""),
    "WINDOWS-1251": ({"ru", "uk", "bg", "be", "sr", "mk"}, b""),
    "KOI8-R": ({"ru", "bg"}, b""),
    "WINDOWS-1253": ({"el"}, b""),
    "WINDOWS-1254": ({"tr", "az"}, b""),
    "WINDOWS-1255": ({"he"}, b""),
    "WINDOWS-1256": ({"ar", "fa", "ur"}, b""),
    "CP874": ({"th"}, b""),
    "EUC-KR": ({"ko"}, bytes(range(0xB0, 0xC9))),
    "GB18030": ({"zh", "yue", "wuu"}, bytes(range(0xB0, 0xD8))),
    "BIG5": ({"zh", "yue", "wuu"}, bytes(range(0xA4, 0xC7))),
}
_CODECS = {"MACINTOSH": "mac_roman"}

ESCAPES = re.compile(rb"\x1b(\([BJI]|\$[@B])")
PAIRS = (b"$@", b"$B")  # what follows an escape to pairs of bytes
_EUC_JP = re.compile(rb"(?P<pairs>(?:[\xa1-\xfe]{2})+)|[\x00-\x7f]+|\x8e[\xa1-\xdf]|\x8f[\xa1-\xfe]{2}|[\x80-\xff]")
_CAPITAL = re.compile("(?<=[a-zа-яё\u00df-\u00ff])[A-ZА-ЯЁ\u00c0-\u00de]")
_LONE = re.compile("[\uf8f0-\uf8f3]")  # the private characters for which Python's `cp932` reads four lone bytes


def decode_text(data: bytes) -> Raw | None:
    """The text of a file that declares no encoding; None if it is neither UTF-8, nor UTF-16, nor certainly Japanese."""
    if charset := _byte_order_mark(data):
        text = decode(data, charset)
        if text is None or charset != "utf-8" and not _has_ascii_and_kana(text, LEAST_MARKED_PLAIN):
            return None
        return Raw(text, encoding="" if charset == "utf-8" else "UTF-16")
    text = decode(data)
    if text is not None and "\0" not in text and not _has_encoding_escapes(data):
        return Raw(text)
    if found := decode_japanese(data):
        return found
    if b"\0" in data:  # UTF-16 without a byte order mark
        for charset in ("utf-16le", "utf-16be"):
            utf_16 = decode(data, charset)
            if utf_16 and "\0" not in utf_16 and _has_ascii_and_kana(utf_16, LEAST_PLAIN):
                return Raw(utf_16, encoding="UTF-16")
    return _decode_kanji(data) or _decode_western(data) if text is None else Raw(text)


def _decode_kanji(data: bytes) -> Raw | None:
    """A text of Shift_JIS without hiragana, such as a table of names and places; None for any other file.

    All its characters of two bytes are common ones, and half-width katakana are few: other encodings give many.
    """
    text = decode(data, "shift_jis")
    wide = [letter.encode("cp932", "replace") for letter in (text or "")[:SAMPLED] if letter > "\x7f"]
    common = sum(len(letter) == 2 and letter[0] in _COMMON_IN_SHIFT_JIS for letter in wide)
    is_known = len(wide) >= LEAST_KANJI and common >= LEAST_COMMON * len(wide)
    return Raw(text, "ja", encoding=JAPANESE_CHARSETS["shift_jis"]) if is_known else None


def _decode_western(data: bytes) -> Raw | None:
    """The text of a file that is certainly windows-1252, in a language of Western Europe; None for any other file."""
    text = decode(data, "windows-1252")
    if text is None or b"\0" in data:
        return None
    runs = _BEYOND_ASCII.findall(data[:SAMPLED])
    size, letters = sum(map(len, runs)), sum(map(str.isalpha, text[:SAMPLED])) or 1
    known = sum(letter.lower() in WESTERN_LETTERS for run in runs for letter in run.decode("cp1252", "replace"))
    is_western = (
        size <= MOST_TOGETHER * len(runs)
        and known >= LEAST_WESTERN * size
        and size <= MOST_MARKED * letters
        and languages.guess(text) in WESTERN
    )
    return Raw(text, encoding="windows-1252") if is_western else None


def not_decoded(data: bytes) -> str:
    """What is wrong with a text in another encoding, and the command that converts it if that can be guessed."""
    best, found = 0.0, ""
    sample = data[:SAMPLED] if len(data) >= LEAST_GUESSED else b""
    for name, (spoken, common) in _OLD.items():
        try:
            decoder = codecs.getincrementaldecoder(_CODECS.get(name, name))()
            text = decoder.decode(sample)
        except UnicodeDecodeError:
            continue
        runs = b"".join(_BEYOND_ASCII.findall(sample))
        # Of two bytes, the share of common first ones; of one byte, that of small letters: a wrong encoding of Cyrillic
        # has capital ones, also in the middle of a word.
        beyond = [letter for letter in text if letter > "\x7f"]
        wrong = len(_CAPITAL.findall(text))
        small = sum(letter.isalpha() and not letter.isupper() for letter in beyond)
        score = (small - wrong) / max(1, len(beyond))
        if common:
            score = sum(byte in common for byte in runs[::2]) / max(1, len(runs[::2]))
        if score > max(best + 0.02, LEAST_SCORE) and languages.guess(text) in spoken:
            best, found = score, name
    if not found:
        return NOT_DECODED
    return f"is not UTF-8; it looks like {found}: iconv -f {found} -t UTF-8 OLD.txt > NEW.txt"


def decode_japanese(data: bytes, foreign: bool = False) -> Raw | None:
    """The text of a file that is not UTF-8 but certainly Japanese; None for any other file.

    Old Japanese files (Aozora Bunko's are Shift_JIS) do not declare their encoding. A Japanese text that is decoded in
    the wrong encoding either breaks the rules of that encoding, or has hardly any hiragana or much half-width katakana.

    Args:
        data: its bytes.
        foreign: count the letters beyond ASCII alone, as the others of a page are mostly markup.
    """
    for charset, name in JAPANESE_CHARSETS.items():
        if charset == "iso-2022-jp" and not _has_encoding_escapes(data):
            continue
        text = decode(data, charset)
        if text is None:
            continue
        sample = _every_nth_character(text)
        letters = sum(map(str.isalpha, sample)) - (len(ASCII_LETTER.findall(sample)) if foreign else 0) or 1
        has_hiragana = len(HIRAGANA.findall(sample)) >= LEAST_HIRAGANA * letters
        if has_hiragana and len(HALF_WIDTH.findall(sample)) <= MOST_HALF_WIDTH * letters:
            return Raw(text, "ja", encoding=name)
    return None


def decode_html(data: bytes, charset: str = "") -> str | None:
    """The text of a page; None if no encoding can be found for it.

    A byte order mark decides. A page that is valid UTF-8 is UTF-8, whatever it says, unless it may be in one of the
    encodings that look like ASCII. Else it is what its server says or what it says itself: first without an error, then
    with a few. A page that says nothing is read if it is certainly Japanese.

    Args:
        data: its bytes.
        charset: the encoding in its HTTP header.
    """
    if marked := _byte_order_mark(data):
        return decode(data, marked)
    declared = [name for name in (charset, declared_charset(data)) if _encoding_of_label(name)]
    if data.isascii() and any(_encoding_of_label(name) == REFUSED for name in declared):
        return None
    like_ascii = b"\0" in data or _has_encoding_escapes(data)
    if like_ascii and not declared and (found := decode_japanese(data, foreign=True)):
        return found.text
    for name in [*declared, "utf-8"] if like_ascii else ["utf-8", *declared]:
        text = decode(data, name)
        if text is not None:
            return text
    for name in declared:
        text = _decoded_with_errors(data, name, "replace")
        if text is not None and text.count(BROKEN) <= MOST_BROKEN * len(text):
            return unix_lines(text)
    found = None if declared else decode_japanese(data, foreign=True)
    return found.text if found else None


def declared_charset(data: bytes) -> str:
    """The encoding that a page names in `<meta>` or in its XML declaration; "" if it names none."""
    head = _COMMENT.sub(b"", data[:4096])  # a declaration stands at the beginning of a page; browsers look at 1024
    found = XML_DECLARATION.search(head) or DECLARED_CHARSET.search(head)
    name = found[1].decode("ascii", "replace").lower() if found else ""
    # As the standard has it: whoever can read the declaration does not read UTF-16.
    return "utf-8" if name.startswith("utf-16") else "windows-1252" if name == "x-user-defined" else name


def decode(data: bytes, charset: str = "utf-8") -> str | None:
    """The text of `data` with `\\n` as the only line end and no byte order mark; None if it is not in `charset`."""
    text = _decoded_with_errors(data, charset, "strict")
    return None if text is None else unix_lines(text.removeprefix("\ufeff"))


def unix_lines(text: str) -> str:
    """`text` with `\\n` as its only line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def has_surrogate(text: str) -> bool:
    """Whether `text` holds half of a surrogate pair, which no UTF-8 file can hold. 30 times as fast as a loop."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _decoded_with_errors(data: bytes, charset: str, errors: str) -> str | None:
    if charset == "utf-8" and errors == "strict":  # nearly all
        try:
            return data.decode()
        except UnicodeDecodeError:
            return None
    import webencodings

    name = _encoding_of_label(charset)
    if not name or name == REFUSED:
        return None
    if own := {"euc-jp": _euc_jp, "iso-2022-jp": _iso_2022_jp, "shift_jis": _shift_jis}.get(name):
        if errors == "strict" and BROKEN in own(data[:SAMPLED])[:-2]:  # another encoding, which takes seconds to read
            return None
        text = own(data)
        return None if errors == "strict" and BROKEN in text else text
    codec = webencodings.lookup("gb18030" if name == "gbk" else name).codec_info  # as browsers decode GBK
    try:
        return codec.decode(data, errors)[0]
    except UnicodeDecodeError:
        return None


def _encoding_of_label(label: str) -> str:
    """The encoding that a label means on the web; "" for any other word."""
    import webencodings

    return getattr(webencodings.lookup(label), "name", "")


def _byte_order_mark(data: bytes) -> str:
    """The encoding that a byte order mark names; "" without one."""
    return next((charset for mark, charset in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "")


def _has_encoding_escapes(data: bytes) -> bool:
    return b"\x1b" in data and ESCAPES.search(data) is not None


def _has_ascii_and_kana(text: str, share: float) -> bool:
    """Whether at least this share of the characters is ASCII, kana or a full stop."""
    sample = _every_nth_character(text)
    return len(PLAIN.findall(sample)) >= int(share * len(sample))


def _every_nth_character(text: str) -> str:
    """Characters from all of a text, at most twice `SAMPLED`: counting all of a large one takes seconds."""
    return text[:: max(1, len(text) // SAMPLED)]


def _shift_jis(data: bytes) -> str:
    """The text of Shift_JIS; U+FFFD for bytes that are not Shift_JIS."""
    return _LONE.sub(BROKEN, data.decode("cp932", "replace"))


def _euc_jp(data: bytes) -> str:
    """The text of EUC-JP; U+FFFD for each byte or pair that is not EUC-JP."""
    parts = ((match["pairs"], match[0]) for match in _EUC_JP.finditer(data))
    return "".join(_euc_jp_pairs(pairs) if pairs else part.decode("euc_jp", "replace") for pairs, part in parts)


def _euc_jp_pairs(data: bytes) -> str:
    """The text of pairs of bytes of EUC-JP; U+FFFD for each that is none."""
    characters = windows_characters()
    return "".join([characters.get(data[place : place + 2], BROKEN) for place in range(0, len(data), 2)])


def _iso_2022_jp(data: bytes) -> str:
    """The text of ISO-2022-JP; U+FFFD for other bytes. A line end stands for itself, also among pairs."""
    plain, *parts = ESCAPES.split(data)
    text = [plain.decode("ascii", "replace")]
    for escape, part in zip(parts[::2], parts[1::2], strict=True):
        if escape in PAIRS:
            for line in part.splitlines(keepends=True):
                pairs = bytes(byte | 0x80 for byte in line.rstrip(b"\r\n"))
                text += [_euc_jp_pairs(pairs), line[len(pairs) :].decode("ascii")]
        elif escape == b"(I":  # half-width katakana
            half_width = bytes(byte | 0x80 if 0x21 <= byte <= 0x5F else byte for byte in part)
            text.append(half_width.decode("cp932", "replace"))
        else:
            ascii_text = part.decode("ascii", "replace")
            text.append(ascii_text if escape == b"(B" else ascii_text.translate({0x5C: "¥", 0x7E: "‾"}))
    return "".join(text)


@functools.cache
def windows_characters() -> dict[bytes, str]:
    """Each pair of bytes of EUC-JP, and its character: that of Shift_JIS in the same row and column."""
    table = {}
    for row in range(94):
        lead = row // 2 + (0x81 if row < 62 else 0xC1)
        for column in range(94):
            trail = column + (0x9F if row % 2 else 0x40 if column < 63 else 0x41)
            character = bytes((lead, trail)).decode("cp932", "replace")
            if BROKEN not in character:
                table[bytes((row + 0xA1, column + 0xA1))] = character
    return table
