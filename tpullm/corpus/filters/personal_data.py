"""Mail addresses, IP addresses and phone numbers → ones that belong to nobody.

datatrove's PIIFormatter finds no mail address after a Japanese letter, since `\\b` sees none there; it draws its
replacements in turns, so they depend on the order of the documents; and `a-` repeated over 16 kB takes it 2.8 s, four
times as long for twice the length. So the patterns are ours. Each begins only where a run of its characters begins and
never tries a run twice (`++`), so that its time is linear. A test compares what both find in English.
"""

import functools
import ipaddress
import re
from collections.abc import Iterator

import numpy as np

from tpullm.corpus.filters import phone_numbers
from tpullm.corpus.language_detection import code_points

# Reserved for examples: RFC 2606 (example.com), RFC 5737 (192.0.2.0/24), RFC 3849 (2001:db8::/32).
MAIL_ADDRESS, IPV4_ADDRESS, IPV6_ADDRESS = "email@example.com", "192.0.2.1", "2001:db8::1"

AT = r"(?:@|\s?[\[({](?:at|AT|アット(?:マーク)?)[\])}]\s?)"
AT_WORD = re.compile(r"[\[({](?:at|AT|アット)")
DOT = r"(?:\.|\s?[\[({](?:dot|DOT|ドット)[\])}]\s?)"
MAIL = re.compile(
    rf"([A-Za-z0-9_%+.-](?<![A-Za-z0-9_%+.-].)[A-Za-z0-9_%+.-]*+){AT}"
    rf"((?:[A-Za-z0-9-]{{1,63}}{DOT}){{1,8}}[A-Za-z]{{2,24}})(?![A-Za-z0-9])",
    re.DOTALL,
)
EXAMPLES = re.compile(r"(?:.*\.)?(?:example(?:\.[a-z.]+)?|test|invalid|localhost|localdomain)", re.IGNORECASE)
IPV4 = re.compile(r"[0-9](?<![0-9A-Za-z_.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_]|\.[0-9])", re.DOTALL)
IPV6 = re.compile(r"[23](?<![0-9A-Za-z_:.].)[0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z_:])", re.DOTALL)
DIGITS = "0123456789"
NUMBER = re.compile("[0-9](?:[^0-9]{0,3}[0-9]){4}")  # what all others hold: most pages of prose end here
# A number of a version or a section has small parts. Of all IPv4 addresses 0.03 % have none but such.
SMALL_PART, SMALLEST_PART = 30, 9
VERSION = re.compile(
    r"(?:version|ver\.?|release|revision|rev\.?|build|firmware|バージョン|版)[\s:=]{0,3}\Z", re.IGNORECASE
)
BEFORE = 16  # characters that are looked at for such a word

# The dashes and spaces that stand for a hyphen and a space.
DASHES, SPACES = (0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2015, 0x2212, 0xFE63), (0xA0, 0x3000)
WIDE, WIDE_OFFSET = (0xFF01, 0xFF5E), 0xFEE0  # full-width ASCII

Piece = tuple[int, int, str]  # first character, end, replacement


def replace(text: str) -> tuple[str, int]:
    """`text` with its personal data replaced, and how many pieces were. Time is linear in its length.

    A mail address becomes email@example.com, an IP address of the public net one of those for documentation, and of a
    phone number the digits after the area code become 0: no such number is given to anyone.
    """
    folded = _folded(text)
    pieces = sorted([*_mail(folded), *(_numbers(folded, text) if any(map(folded.__contains__, DIGITS)) else ())])
    parts, end, count = [], 0, 0
    for start, stop, replacement in pieces:
        if start >= end:  # else it lies in the one before
            parts += (text[end:start], replacement)
            end, count = stop, count + 1
    return "".join(parts) + text[end:], count


def _folded(text: str) -> str:
    """`text` with full-width ASCII, dashes and spaces as ASCII. Each is one character, so places stay."""
    if text.isascii():
        return text
    points, folds = code_points(text), _folds()  # 20 times as fast as translate
    folded = np.where(points < len(folds), folds.take(points, mode="clip"), points)
    return folded.tobytes().decode("utf-32-le", "surrogatepass")


@functools.cache
def _folds() -> np.ndarray:
    """What each character becomes, up to the last that is folded: uint32 [code points]."""
    folds = np.arange(WIDE[1] + 1, dtype=np.uint32)
    folds[WIDE[0] :] -= WIDE_OFFSET
    folds[list(DASHES)], folds[list(SPACES)] = ord("-"), ord(" ")
    return folds


def _numbers(folded: str, text: str) -> Iterator[Piece]:
    if NUMBER.search(folded):
        yield from _ipv4(folded)
        yield from phone_numbers.find(folded, text)
    yield from _ipv6(folded)


def _mail(folded: str) -> Iterator[Piece]:
    if "@" not in folded and not (any(map(folded.__contains__, "[({")) and AT_WORD.search(folded)):
        return
    for match in MAIL.finditer(folded):
        local, domain = match[1].lstrip("%+.-"), match[2]
        if local and not EXAMPLES.fullmatch(domain):
            yield match.end(1) - len(local), match.end(), MAIL_ADDRESS


def _ipv4(folded: str) -> Iterator[Piece]:
    for match in IPV4.finditer(folded):
        if _is_personal(match[0]) and not VERSION.search(folded[max(match.start() - BEFORE, 0) : match.start()]):
            yield match.start(), match.end(), IPV4_ADDRESS


def _ipv6(folded: str) -> Iterator[Piece]:
    for match in IPV6.finditer(folded):
        if _is_public(match[0]):
            yield match.start(), match.end(), IPV6_ADDRESS


def _is_personal(address: str) -> bool:
    parts = [int(part) for part in address.split(".")]
    return _is_public(address) and max(parts) > SMALL_PART and max(parts[:3]) > SMALLEST_PART


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast
