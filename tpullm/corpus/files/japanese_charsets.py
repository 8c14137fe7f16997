"""The Japanese encodings as the web writes them (Encoding Standard, WHATWG, section 12).

Python's `euc_jp` and `iso2022_jp` hold JIS X 0208 alone and fail at the ① and ㈱ of Windows. Its `cp932` has them in
the same rows and columns, so each pair of bytes is looked up there.
"""

import functools
import re

ESCAPES = re.compile(rb"\x1b(\([BJI]|\$[@B])")
DOUBLE = (b"$@", b"$B")  # what follows an escape to pairs of bytes
_EUC_JP = re.compile(
    rb"(?P<ascii>[\x00-\x7f]+)|(?P<pairs>(?:[\xa1-\xfe]{2})+)|\x8e(?P<kana>[\xa1-\xdf])|(?P<supplement>\x8f[\xa1-\xfe]{2})"
    rb"|(?P<broken>[\x80-\xff])"
)
_LONE = re.compile("[\uf8f0-\uf8f3]")
BROKEN = "\ufffd"


def shift_jis(data: bytes) -> str:
    """The text of Shift_JIS; U+FFFD for what is none. Python's `cp932` reads four lone bytes as private characters."""
    text = data.decode("cp932", "replace")
    return _LONE.sub(BROKEN, text)


def euc_jp(data: bytes) -> str:
    """The text of EUC-JP; U+FFFD for each byte or pair that is none."""
    try:  # the codec in C, for text without characters of Windows
        return data.decode("euc_jp").translate(_as_on_the_web())
    except UnicodeDecodeError:
        return "".join(map(_euc_jp_part, _EUC_JP.finditer(data)))


def _euc_jp_part(match: re.Match) -> str:
    kind, part = match.lastgroup, match[0]
    if kind == "ascii":
        return part.decode("ascii")
    if kind == "pairs":
        return _pairs(part)
    if kind == "kana":
        return match["kana"].decode("cp932")
    return part.decode("euc_jp", "replace") if kind == "supplement" else BROKEN


def iso_2022_jp(data: bytes) -> str:
    """The text of ISO-2022-JP; U+FFFD for what is none."""
    plain, *parts = ESCAPES.split(data)
    text = [_ascii(plain)]
    for escape, part in zip(parts[::2], parts[1::2], strict=True):
        if escape in DOUBLE:
            text += [_double(line) for line in part.splitlines(keepends=True)]
        elif escape == b"(I":
            text.append(_half_width(part))
        else:
            text.append(_ascii(part) if escape == b"(B" else _ascii(part).translate({0x5C: "¥", 0x7E: "‾"}))
    return "".join(text)


def _ascii(part: bytes) -> str:
    return part.decode("ascii", "replace")


def _double(line: bytes) -> str:
    """A line of pairs; it may end in the line end, which stands for itself."""
    pairs = line.rstrip(b"\r\n")
    return _pairs(bytes(byte | 0x80 for byte in pairs)) + _ascii(line[len(pairs) :])


def _half_width(part: bytes) -> str:
    return bytes(byte | 0x80 if 0x21 <= byte <= 0x5F else byte for byte in part).decode("cp932", "replace")


def _pairs(data: bytes) -> str:
    table = _table()
    return "".join([table.get(data[place : place + 2], BROKEN) for place in range(0, len(data), 2)])


@functools.cache
def _table() -> dict[bytes, str]:
    """Each pair of bytes of EUC-JP, and its character: that of Shift_JIS in the same row and column."""
    table = {}
    for row in range(94):
        lead = row // 2 + (0x81 if row < 62 else 0xC1)
        for column in range(94):
            odd = row % 2
            trail = column + (0x9F if odd else 0x40 if column < 63 else 0x41)
            try:
                table[bytes((row + 0xA1, column + 0xA1))] = bytes((lead, trail)).decode("cp932")
            except UnicodeDecodeError:
                continue
    return table


@functools.cache
def _as_on_the_web() -> dict[int, str]:
    """The characters that Python's `euc_jp` reads otherwise, such as the wave dash."""
    table = {}
    for pair, character in _table().items():
        other = pair.decode("euc_jp", "replace")
        if other != character and BROKEN not in other:
            table[ord(other)] = character
    return table
