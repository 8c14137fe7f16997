"""What is changed in a document before it is judged: `clean` of its source, in the order of the recipe.

- `lines`: lines of a page that are no text (menus, pagers, breadcrumbs, rows of symbols) go.
- `ruby`: readings as Aozora Bunko writes them go, and its notes.
- `width`: full-width and half-width characters get their usual width (NFKC).
- `personal_data`: mail addresses, IP addresses and phone numbers become ones that belong to nobody.

The patterns for personal data are ours. datatrove's PIIFormatter finds no mail address after a Japanese letter, since
`\\b` sees none there. It draws its replacements in turns, so they depend on the order of the documents; and `a-`
repeated over 16 kB takes it 2.8 s, four times as long for twice the length. Each pattern here begins only where a run
of its characters begins and never tries a run twice (`++`), so its time is linear.

A phone number (international, of Japan and the United Kingdom with 0…, of North America) is known by its shape: how
many digits each of its groups has. So dates, prices, ISBNs and ids are none, and a number without any separator is one
only after a word such as TEL, or if it begins like a Japanese mobile phone. phonenumbers 9.0.43 knows which area codes
are given out. Its matcher (`VALID`; JP, US, GB) misses 29 of 200 made Japanese numbers and 44 of 200 others, among them
`TEL03-1234-5678`, and takes 0.123456789 for one; `POSSIBLE` takes IP addresses, ISBNs and dates for numbers. In text
with a number on each page it takes 2.2 s for a MB, the patterns 0.05 s.
"""

import functools
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tpullm.corpus.characters import code_points
from tpullm.corpus.filters.words import word_lists

WORD = re.compile(r"\w")
RUN = re.compile(r"([^\w\s]|ー|_)\1{9,}")  # of one symbol; ten and more become three
PART = re.compile(r"[^\s|｜/／>＞»›«‹<＜・,、()（）\[\]【】←→▲▼▶◀■●•*-]+")
BREADCRUMB = re.compile(r"(?i)\s*(?:home|top|ホーム|トップ|トップページ)\s*[>＞»›]")
WINDOW = 1 << 18  # characters that are looked at at once
LONGEST = 200  # characters of a line that may be a menu
# 吾輩《わがはい》, ｜其《その》, and notes of who typed it: ［＃ここから２字下げ］. Each search ends at the next mark.
READING = "《[ぁ-ゖァ-ヺーゝゞヽヾ・　 ]{1,40}》"
MARKED_RUBY = re.compile(rf"[｜|]([^《》｜|\n]{{1,40}}){READING}")
RUBY = re.compile(rf"(?<=[^\s《》]){READING}")
NOTE = re.compile(r"［＃[^［］\n]{0,200}］")

BETWEEN = r"[-ー .()/]{1,3}"
# The lookbehind stands after the first character, so that the search can skip to it: three times as fast.
INTERNATIONAL = re.compile(rf"(?s)\+(?<![0-9A-Za-z_+].)(?:[1-9][0-9]*+)(?:{BETWEEN}[0-9]++){{0,6}}")
NATIONAL = re.compile(
    rf"(?s)[(0](?<![0-9_+-].)(?<![0-9][./].)(?:(?<=0)|(?<=\()0)[1-9][0-9]*+(?:{BETWEEN}[0-9]++){{0,4}}"
)
AMERICAN = re.compile(
    r"(?s)[(12-9](?<![0-9_+-].)(?<![0-9][./].)(?:(?<=1)[-. ]\(?[2-9]|(?<=\()[2-9]|(?<=[2-9]))[0-9]{2}(\)?[-. ]{0,2})"
    r"[0-9]{3}([-. ])[0-9]{4}(?![0-9]|[-.][0-9])"
)
BARE = re.compile(r"(?s)[0-9](?<![0-9A-Za-z_.+/-].)[0-9]{9,10}(?![0-9]|[-.][0-9])")
PHONE_WORD = re.compile(r"(?i)(?:(?<![A-Z])(?:tel|fax)|phone|mobile|電話|携帯|ファックス|℡|☎)[^0-9\n]{0,12}\Z")
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

# Reserved for examples: RFC 2606 (example.com), RFC 5737 (192.0.2.0/24), RFC 3849 (2001:db8::/32).
MAIL_ADDRESS, IPV4_ADDRESS, IPV6_ADDRESS = "email@example.com", "192.0.2.1", "2001:db8::1"

AT = r"(?:@|\s?[\[({](?:at|AT|アット(?:マーク)?)[\])}]\s?)"
AT_WORD = re.compile(r"[\[({](?:at|AT|アット)")
DOT = r"(?:\.|\s?[\[({](?:dot|DOT|ドット)[\])}]\s?)"
MAIL = re.compile(
    rf"(?s)([A-Za-z0-9_%+.-](?<![A-Za-z0-9_%+.-].)[A-Za-z0-9_%+.-]*+){AT}"
    rf"((?:[A-Za-z0-9-]{{1,63}}{DOT}){{1,8}}[A-Za-z]{{2,24}})(?![A-Za-z0-9])"
)
EXAMPLES = re.compile(r"(?i)(?:.*\.)?(?:example(?:\.[a-z.]+)?|test|invalid|localhost|localdomain)")
IPV4 = re.compile(r"(?s)[0-9](?<![0-9A-Za-z_.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_]|\.[0-9])")
IPV6 = re.compile(r"(?s)[23](?<![0-9A-Za-z_:.].)[0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z_:])")
DIGITS = "0123456789"
NUMBER = re.compile("[0-9](?:[^0-9]{0,3}[0-9]){4}")  # what all others hold: most pages of prose end here
# A number of a version or a section has small parts. Of all IPv4 addresses 0.03 % have none but such.
SMALL_PART, SMALLEST_PART = 30, 9
VERSION = re.compile(r"(?i)(?:version|ver\.?|release|revision|rev\.?|build|firmware|バージョン|版)[\s:=]{0,3}\Z")
BEFORE = 16  # characters that are looked at for such a word

# What each character becomes, up to the last that is folded: full-width ASCII, the dashes and spaces that stand for a
# hyphen and a space. uint32 [code points]
_HALF_WIDTH = np.arange(0xFF5F, dtype=np.uint32)
_HALF_WIDTH[0xFF01:] -= 0xFEE0
_HALF_WIDTH[[*range(0x2010, 0x2016), 0x2212, 0xFE63]] = ord("-")
_HALF_WIDTH[[0xA0, 0x3000]] = ord(" ")

Piece = tuple[int, int, str]  # first character, end, replacement


def cleaned(text: str, steps: Sequence[str]) -> tuple[str, int]:
    """`text` after the steps, and how many pieces of personal data were replaced in it."""
    replaced = 0
    for step in steps:
        if step == "personal_data":
            text, replaced = without_personal_data(text)
        else:
            text = CHANGES[step](text)
    return text, replaced


def without_noise(text: str) -> str:
    """`text` without the lines that are no text, and with long runs of one symbol shortened. Time is linear."""
    left = "\n".join(line for line in text.split("\n") if not line or line.isspace() or not _is_noise(line))
    # Whether a character may be repeated ten times. The pattern alone takes 22 ms for a MB of English, this 4 ms.
    for start in range(0, len(left), WINDOW):
        points = code_points(left[start : start + WINDOW + 9])
        here = points[:-9]
        if np.any((here == points[9:]) & (here == points[1:-8]) & (here == points[5:-4])):
            return RUN.sub(r"\1\1\1", left)
    return left


def _is_noise(line: str) -> bool:
    """Whether a line that is not empty is a menu, a pager, a breadcrumb or a row of symbols."""
    first = PART.search(line)
    if first is None or WORD.search(line) is None:
        return True
    if len(line) > LONGEST or not _is_of_menu(first[0].lower()):
        return False
    parts = PART.findall(line.lower())
    if all(map(_is_of_menu, parts)):  # 1 2 3, but not 1984
        return not _menu_words()[0].isdisjoint(parts) or len(parts) > 2 and all(map(str.isdecimal, parts))
    return BREADCRUMB.match(line) is not None and len(parts) > 1


def _is_of_menu(part: str) -> bool:
    labels, beside = _menu_words()
    return part in labels or part in beside or part.isdecimal()


@functools.cache
def _menu_words() -> tuple[frozenset[str], frozenset[str]]:
    """Words of which a menu or a pager is made: labels, and words that stand beside labels."""
    menus = word_lists("menus")
    return frozenset(menus["labels"]), frozenset(menus["beside"])


def without_ruby(text: str) -> str:
    """`text` without the readings over its ideographs, and without the notes of Aozora Bunko. Time is linear."""
    if "《" in text:
        text = RUBY.sub("", MARKED_RUBY.sub(r"\1", text))
    return NOTE.sub("", text) if "［＃" in text else text


# The steps that change a text, but for personal data, which is counted too.
CHANGES = {"lines": without_noise, "ruby": without_ruby, "width": functools.partial(unicodedata.normalize, "NFKC")}


def without_personal_data(text: str) -> tuple[str, int]:
    """`text` with its personal data replaced, and how many pieces were. Time is linear in its length.

    A mail address becomes email@example.com. A public IP address becomes one that is reserved for documentation. The
    digits of a phone number after the area code become 0: no such number is given to anyone.
    """
    folded = _half_width_ascii(text)
    pieces = list(_mail_addresses(folded))
    if any(map(folded.__contains__, DIGITS)):
        if NUMBER.search(folded):
            pieces += [*_ipv4_addresses(folded), *_phone_numbers(folded, text)]
        pieces += [(*match.span(), IPV6_ADDRESS) for match in IPV6.finditer(folded) if _is_public_ip(match[0])]
    parts, end, count = [], 0, 0
    for start, stop, replacement in sorted(pieces):
        if start >= end:  # else it lies in the one before
            parts += (text[end:start], replacement)
            end, count = stop, count + 1
    return "".join(parts) + text[end:], count


def _half_width_ascii(text: str) -> str:
    """`text` with full-width ASCII, dashes and spaces as ASCII. Each is one character, so places stay."""
    if text.isascii():
        return text
    points = code_points(text)  # 20 times as fast as translate
    folded = np.where(points < len(_HALF_WIDTH), _HALF_WIDTH.take(points, mode="clip"), points)
    return folded.tobytes().decode("utf-32-le", "surrogatepass")


def _mail_addresses(folded: str) -> Iterator[Piece]:
    if "@" not in folded and not (any(map(folded.__contains__, "[({")) and AT_WORD.search(folded)):
        return
    for match in MAIL.finditer(folded):
        local, domain = match[1].lstrip("%+.-"), match[2]
        if local and not EXAMPLES.fullmatch(domain):
            yield match.end(1) - len(local), match.end(), MAIL_ADDRESS


def _ipv4_addresses(folded: str) -> Iterator[Piece]:
    for match in IPV4.finditer(folded):
        before = folded[max(match.start() - BEFORE, 0) : match.start()]
        if _is_public_ip(match[0]) and not VERSION.search(before):
            parts = [int(part) for part in match[0].split(".")]
            if max(parts) > SMALL_PART and max(parts[:3]) > SMALLEST_PART:
                yield match.start(), match.end(), IPV4_ADDRESS


def _is_public_ip(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast


def _phone_numbers(folded: str, text: str) -> Iterator[Piece]:
    """Each phone number in a text: its first character, its end, and the number with the subscriber's digits 0.

    Args:
        folded: the text with full-width digits and dashes as ASCII.
        text: the same text as it is, of the same length; its widths are kept.
    """
    for match in INTERNATIONAL.finditer(folded):
        yield from _longest_phone_number(match, text, _is_international_phone, kept=3)
    for match in filter(_is_phone_number_start, NATIONAL.finditer(folded)):
        yield from _longest_phone_number(match, text, _is_national_phone, kept=2)
    for match in filter(_is_phone_number_start, AMERICAN.finditer(folded)):
        is_written_apart = match[1] == " " and match[2] == " " and not match[0].startswith("1")
        if not is_written_apart or _is_named_as_phone(match):  # 256 512 1024
            yield *match.span(), _last_digits_zeroed(text[slice(*match.span())], AMERICAN_SUBSCRIBER)
    for match in filter(_is_named_as_phone, BARE.finditer(folded)):
        if match[0][0] != "1" or len(match[0]) == 11:
            count = SUBSCRIBER if match[0].startswith("0") else AMERICAN_SUBSCRIBER
            yield *match.span(), _last_digits_zeroed(text[slice(*match.span())], count)


def _is_phone_number_start(match: re.Match) -> bool:
    """Whether a number is not a part of a word; `a03-1234-5678` is none, `TEL03-1234-5678` is one."""
    before = match.string[max(match.start() - 1, 0) : match.start()]
    return not (before.isascii() and before.isalpha()) or _is_named_as_phone(match)


def _is_named_as_phone(match: re.Match) -> bool:
    """Whether a word for a phone stands among the 24 characters before a number."""
    return PHONE_WORD.search(match.string[max(match.start() - 24, 0) : match.start()]) is not None


def _longest_phone_number(
    match: re.Match, text: str, is_number: Callable[[list[str]], bool], kept: int
) -> Iterator[Piece]:
    """The longest beginning of a row of groups that is a number: a date may follow it. Its first `kept` digits stay."""
    groups = list(PHONE_DIGITS.finditer(match.string, *match.span()))
    for count in range(len(groups), 0, -1):
        digits, end = [group[0] for group in groups[:count]], groups[count - 1].end()
        if is_number(digits) and not DECIMAL.fullmatch(match.string, match.start(), end):
            most = min(AMERICAN_SUBSCRIBER if digits[0] == "1" else SUBSCRIBER, sum(map(len, digits)) - kept)
            yield match.start(), end, _last_digits_zeroed(text[match.start() : end], most)
            return


def _is_international_phone(digits: list[str]) -> bool:
    """E.164: at most 15 digits; the shortest numbers with their country code have 9."""
    total = sum(map(len, digits))
    return total == 11 if digits[0].startswith("1") else 9 <= total <= 15


def _is_national_phone(digits: list[str]) -> bool:
    shape = tuple(map(len, digits))
    if sum(shape) == 11:
        first = BARE_MOBILE if shape == (11,) else LONG_BEGINNINGS
        return shape in LONG_SHAPES and first.match("".join(digits)) is not None
    return shape in SHAPES


def _last_digits_zeroed(number: str, count: int) -> str:
    """`number` with its last `count` digits 0, full-width ones as full-width 0."""
    characters = list(number)
    for place in [place for place, letter in enumerate(number) if letter.isdecimal()][-count:]:
        characters[place] = "0" if number[place].isascii() else "０"
    return "".join(characters)
