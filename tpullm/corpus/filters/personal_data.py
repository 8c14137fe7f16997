"""Mail addresses, IP addresses and phone numbers → ones that belong to nobody.

datatrove's PIIFormatter finds no mail address after a Japanese letter, since `\b` sees none there; it draws its
replacements in turns, so they depend on the order of the documents; and `a-` repeated over 16 kB takes it 2.8 s, four
times as long for twice the length. So the patterns are ours. Each begins only where a run of its characters begins and
never tries a run twice (`++`), so that its time is linear. A test compares what both find in English.

Phone numbers in a text: international ones, those of Japan and the United Kingdom (0…), those of North America.

A number is known by its shape: how many digits each of its groups has. So dates, prices, ISBNs and ids are none, and a
number without any separator is one only after a word such as TEL, or if it begins like a Japanese mobile phone.
"""

import functools
import ipaddress
import re
from collections.abc import Callable, Iterator

import numpy as np

from tpullm.corpus.language_detection import code_points

BETWEEN = r"[-ー .()/]{1,3}"
# The lookbehind stands after the first character, so that the search can skip to it: three times as fast.
INTERNATIONAL = re.compile(rf"\+(?<![0-9A-Za-z_+].)(?:[1-9][0-9]*+)(?:{BETWEEN}[0-9]++){{0,6}}", re.DOTALL)
NATIONAL = re.compile(
    rf"[(0](?<![0-9_+-].)(?<![0-9][./].)(?:(?<=0)|(?<=\()0)[1-9][0-9]*+(?:{BETWEEN}[0-9]++){{0,4}}", re.DOTALL
)
AMERICAN = re.compile(
    r"[(12-9](?<![0-9_+-].)(?<![0-9][./].)(?:(?<=1)[-. ]\(?[2-9]|(?<=\()[2-9]|(?<=[2-9]))[0-9]{2}(\)?[-. ]{0,2})"
    r"[0-9]{3}([-. ])[0-9]{4}(?![0-9]|[-.][0-9])",
    re.DOTALL,
)
BARE = re.compile(r"[0-9](?<![0-9A-Za-z_.+/-].)[0-9]{9,10}(?![0-9]|[-.][0-9])", re.DOTALL)
WORD = re.compile(
    r"(?:(?<![A-Za-z])tel|phone|(?<![A-Za-z])fax|mobile|電話|携帯|ファックス|℡|☎)[^0-9\n]{0,12}\Z", re.IGNORECASE
)
BEFORE_PHONE = 24  # characters that are looked at for such a word
DECIMAL = re.compile(r"\+[0-9]+\.[0-9]+")
PHONE_DIGITS = re.compile("[0-9]+")

# Digits of the groups of a national number. Japan: area code (2 to 5), exchange, 4 digits; 0120-…; mobile 3-4-4.
# United Kingdom: 020 7946 0018, 0161 496 0018, 01632 960001, 07700 900123 (Ofcom's numbers for drama).
SHAPES = {(2, 4, 4), (3, 3, 4), (4, 2, 4), (5, 1, 4), (4, 3, 3), (2, 8), (3, 7), (4, 6)}  # 10 digits
LONG_SHAPES = {(3, 4, 4), (3, 8), (11,), (7, 4), (4, 3, 4), (5, 6), (5, 3, 3)}  # 11 digits
LONG_BEGINNINGS = re.compile("0[5-9]0|0800|01|02|07")  # mobiles in Japan; the United Kingdom
BARE_MOBILE = re.compile("0[789]0")
# How many digits, counted from the last one, belong to the subscriber.
SUBSCRIBER, AMERICAN_SUBSCRIBER = 8, 7


def find(folded: str, text: str) -> Iterator[tuple[int, int, str]]:
    """Each phone number in a text: its first character, its end, and the number with the subscriber's digits 0.

    Args:
        folded: the text with full-width digits and dashes as ASCII.
        text: the same text as it is, of the same length; its widths are kept.
    """
    for match in INTERNATIONAL.finditer(folded):
        yield from _cut(match, folded, text, _is_international, kept=3)
    for match in filter(_begins, NATIONAL.finditer(folded)):
        yield from _cut(match, folded, text, _is_national, kept=2)
    for match in filter(_begins, AMERICAN.finditer(folded)):
        is_written_apart = match[1] == " " and match[2] == " " and not match[0].startswith("1")
        if not is_written_apart or _is_named(match):  # 256 512 1024
            yield match.start(), match.end(), _zeroed(text[match.start() : match.end()], AMERICAN_SUBSCRIBER)
    for match in BARE.finditer(folded):
        if match[0][0] != "1" or len(match[0]) == 11:
            count = SUBSCRIBER if match[0].startswith("0") else AMERICAN_SUBSCRIBER
            if _is_named(match):
                yield match.start(), match.end(), _zeroed(text[match.start() : match.end()], count)


def _begins(match: re.Match) -> bool:
    """Whether a number is not a part of a word; TEL03-1234-5678 is none."""
    before = match.string[max(match.start() - 1, 0) : match.start()]
    return not (before.isascii() and before.isalpha()) or _is_named(match)


def _is_named(match: re.Match) -> bool:
    """Whether a word for a phone stands before a number."""
    return WORD.search(match.string[max(match.start() - BEFORE_PHONE, 0) : match.start()]) is not None


def _cut(match: re.Match, folded: str, text: str, is_number: Callable, kept: int) -> Iterator[tuple[int, int, str]]:
    """The longest beginning of a row of groups that is a number: a date may follow it. Its first `kept` digits stay."""
    groups = list(PHONE_DIGITS.finditer(folded, match.start(), match.end()))
    for count in range(len(groups), 0, -1):
        digits, end = [group[0] for group in groups[:count]], groups[count - 1].end()
        if is_number(digits) and not DECIMAL.fullmatch(folded, match.start(), end):
            most = AMERICAN_SUBSCRIBER if digits[0] == "1" else SUBSCRIBER
            written = text[match.start() : end]
            yield match.start(), end, _zeroed(written, min(most, sum(map(len, digits)) - kept))
            return


def _is_international(digits: list[str]) -> bool:
    """E.164: at most 15 digits; the shortest numbers with their country code have 9."""
    total = sum(map(len, digits))
    return total == 11 if digits[0].startswith("1") else 9 <= total <= 15


def _is_national(digits: list[str]) -> bool:
    shape = tuple(map(len, digits))
    if sum(shape) == 11:
        first = BARE_MOBILE if shape == (11,) else LONG_BEGINNINGS
        return shape in LONG_SHAPES and first.match("".join(digits)) is not None
    return sum(shape) == 10 and shape in SHAPES


def _zeroed(number: str, count: int) -> str:
    """`number` with its last `count` digits 0, full-width ones as full-width 0."""
    characters = list(number)
    for place in range(len(characters) - 1, -1, -1):
        if count and characters[place].isdecimal():
            characters[place] = "0" if characters[place].isascii() else "０"
            count -= 1
    return "".join(characters)


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
        yield from find(folded, text)
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
