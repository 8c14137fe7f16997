"""Personal data in a text, and what replaces it, which belongs to nobody.

- A mail address, also one that is hidden from programs (`taro [at] gmail [dot] com`), becomes email@example.com.
- A public IP address becomes one that is reserved for documentation.
- The subscriber's digits of a phone number become 0. So do all digits of the number of a card, a bank account (IBAN),
  a person (マイナンバー, 居民身份证), and all characters of a key behind its prefix.

Full-width letters are read as ASCII, and so is 〇三―一二三四. The patterns are ours: datatrove's PIIFormatter finds no
mail address after a Japanese letter, since `\\b` sees none there, and `a-` repeated over 16 kB takes it 2.8 s, four
times as long for twice the length. Each pattern here begins only where a run of its characters begins and never tries a
run twice (`++`), so its time is linear.

What a number is, the libraries say. phonenumbers has the numbering plans: which digits a number may have, and which of
them are the area code; a number has to be written so. Its matcher is not used: it takes 2.2 s for a MB of text with a
number on each page, and misses `TEL03-1234-5678`. python-stdnum has the check digits. A number without separators is
one of a phone or a card only after a word for it, or if it begins like a Japanese mobile phone.
"""

import functools
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tld
from phonenumbers import (
    COUNTRY_CODE_TO_REGION_CODE,
    NumberParseException,
    PhoneMetadata,
    is_possible_number,
    is_valid_number,
    parse,
)
from stdnum import iban, luhn
from stdnum.cn import ric
from stdnum.jp import in_

from tpullm.corpus.characters import code_points

# Reserved for examples: RFC 2606 (example.com), RFC 5737 (192.0.2.0/24), RFC 3849 (2001:db8::/32).
MAIL_ADDRESS, IPV4_ADDRESS, IPV6_ADDRESS = "email@example.com", "192.0.2.1", "2001:db8::1"

DIGITS = "0123456789"
KANJI_DIGITS = "〇一二三四五六七八九"
NUMBER = re.compile("[0-9](?:[^0-9]{0,3}[0-9]){4}")  # what all others hold: most pages of prose end here
BESIDE = 40  # characters before a piece that are looked at

# The lookbehind stands after the first character, so that the search can skip to it: three times as fast.
BETWEEN = r"[-ー .()/・の]{1,3}"
INTERNATIONAL = re.compile(
    rf"(?s)[+0](?<![0-9A-Za-z_+.,\\-].)(?<![0-9]:.)(?:(?<=\+)|0)[1-9][0-9]*+(?:{BETWEEN}[0-9]++){{0,6}}"
)
NATIONAL = re.compile(
    rf"(?s)[(0](?<![0-9_+-].)(?<![0-9][./:].)(?:(?<=0)|(?<=\()0)[1-9][0-9]*+(?:{BETWEEN}[0-9]++){{0,4}}"
)
KANJI_PHONE = re.compile(
    rf"(?s)〇(?<![{KANJI_DIGITS}].)[{KANJI_DIGITS[1:]}][{KANJI_DIGITS}]*+(?:{BETWEEN}[{KANJI_DIGITS}]++){{1,4}}"
)
AMERICAN = re.compile(
    r"(?s)[(12-9](?<![0-9_+-].)(?<![0-9][./].)(?:(?<=1)[-. ]\(?[2-9]|(?<=\()[2-9]|(?<=[2-9]))[0-9]{2}"
    r"(\)[-. ]{0,2}|[-. ]{1,2})[0-9]{3}([-. ])[0-9]{4}(?![0-9]|[-.][0-9])"
)
CHINESE_MOBILE = re.compile(r"(?s)1(?<![0-9A-Za-z_.+/-].)[3-9][0-9]([- ])[0-9]{4}\1[0-9]{4}(?![0-9]|[-. ][0-9])")
BARE = re.compile(r"(?s)[0-9](?<![0-9A-Za-z_.+/-].)[0-9]{8,10}(?![0-9]|[-.][0-9])")
PHONE_WORD = re.compile(
    r"(?i)(?:(?<![A-Z])(?:tel|fax|tél)|phone|mobile|telefon|handy|portable|電話|携帯|ファックス|連絡先|℡|☎|电话|手机|联系|号码|微信|致电|拨打|传真)"
    r"[^0-9\n]{0,12}\Z"
)
DECIMAL = re.compile(r"\+[0-9]+\.[0-9]+")
PHONE_DIGITS = re.compile("[0-9]+")
# A row of numbers of as many digits each, which may be hexadecimal: what stands before and behind a part of it.
ROW_BEFORE = re.compile(r"(?i)(?:[0-9][0-9a-f]|[a-f][0-9])[\s./-]{1,3}\Z")
ROW_BEHIND = re.compile(r"[\s./-]{1,3}[0-9A-Fa-f]{2,}(?![A-Za-z])")
PLANS = ("JP", "GB", "FR", "DE", "CN")  # regions whose numbers are known without a country code; they begin with 0
BARE_MOBILE = re.compile("0[789]0[0-9]{8}")
# How many digits, counted from the last one, belong to the subscriber.
SUBSCRIBER, AMERICAN_SUBSCRIBER = 8, 7

LOCAL = "A-Za-z0-9_+.-"
AT = r"(?:@|&#64;|%40|\s?[\[({<]\s?(?:@|(?i:at|ät)|アット(?:マーク)?|arobase)\s?[\])}>]\s?|[★☆●■#](?=[^\n]{0,40}@))"
DOT = r"(?:\.|\s?[\[({<]\s?(?:\.|(?i:dot|punkt|point)|ドット|点)\s?[\])}>]\s?)"
SPELLED_DOT = re.compile(rf"{DOT}|(?i:\sdot\s)")
MAIL = re.compile(
    rf"(?s)([{LOCAL}](?<![{LOCAL}].)[{LOCAL}]*+)(?:{AT}((?:[A-Za-z0-9-]{{1,63}}{DOT}){{1,8}}[A-Za-z]{{2,24}})"
    rf"|(?i:\sat\s((?:[a-z0-9-]{{1,63}}\sdot\s){{1,8}}[a-z]{{2,24}})))(?![A-Za-z0-9])"
)
AT_WORD = re.compile(r"[\[({<] ?(?:[aAä][tT]|アット|arobase)")
A_VERSION = re.compile(r"v?[0-9]+\.[0-9]")
EXAMPLES = re.compile(r"(?i)(?:.*\.)?(?:example(?:\.[a-z.]+)?|test|invalid|localhost|localdomain)")
# user@host:path of scp and Git; https://user:password@host and https://host/message-id@host; name@v1.2.3-go.windows.
PATH_BEHIND, IN_ADDRESS = re.compile(r":(?:[/~]|[\w.-]+/)"), re.compile(r"://[^\s?#]*\Z")

IPV4 = re.compile(
    r"(?s)[0-9](?<![0-9A-Za-z_.].)(?<![A-Za-z][/-].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_]|\.[0-9])"
)
IPV6 = re.compile(r"(?s)[23](?<![0-9A-Za-z_:.].)[0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?<!::)(?![0-9A-Za-z_:])")
# A number of a version or a section has small parts. Of all IPv4 addresses 0.04 % have no part over 30, or one over 9.
LARGE_PART, SMALL_PART = 30, 9
VERSION = re.compile(
    r"(?i)(?:version|ver\.?|release|revision|rev\.?|build|firmware|バージョン|版|,v"
    r"|section|sec\.|clause|chapter|annex|table|figure|part|§|節|章|表|図|第|android|ios|windows|chrome)[\s:=]{0,3}\Z"
)
STANDARD = re.compile(r"\b(?:IEEE|RFC|ISO|IEC|ITU|ETSI|3GPP|JIS)\b[^\n]*\Z")  # the number of a section may follow
HEADING = re.compile(r"[ \t　]+[A-Z\u3041-\u9fff]")  # behind a number at the beginning of a line

# What follows the mark of each key.
KEYS = {
    "AKIA": r"(?![A-Z0-9]{9}EXAMPLE)[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS; its documentation has keys that end so
    "ASIA": r"(?![A-Z0-9]{9}EXAMPLE)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "AIza": "[A-Za-z0-9_-]{35}",  # Google
    **dict.fromkeys(("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), "[A-Za-z0-9]{36,255}"),  # GitHub
    "github_pat_": "[A-Za-z0-9_]{22,255}",
    "glpat-": "[A-Za-z0-9_-]{20,255}",  # GitLab
    "sk-": "[A-Za-z0-9_-]{20,255}",  # OpenAI, Anthropic
    "sk_live_": "[A-Za-z0-9]{16,255}",  # Stripe
    "xox": "[abeoprs]-[A-Za-z0-9-]{10,255}",  # Slack
    "hf_": "[A-Za-z]{30,40}",  # Hugging Face
    "npm_": "[A-Za-z0-9]{36}",
    **dict.fromkeys(("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY"), r"[\"'\s:=]{1,8}[A-Za-z0-9/+]{40}"),
    "eyJ": r"[A-Za-z0-9_-]{9,4096}+\.[A-Za-z0-9_-]{9,4096}+\.[A-Za-z0-9_-]{9,4096}",  # JSON Web Token (RFC 7519)
    "PRIVATE KEY-----": r"(?:[^-]++|-(?!----)){1,99}(?=-----END )",
}

KEY_PATTERNS = {mark: re.compile(f"{mark}(?<![A-Za-z0-9_]{mark}){rest}") for mark, rest in KEYS.items()}
NOT_ZERO = re.compile("[1-9A-Za-z]")
HYPHENATED = re.compile("[^0-9]*|[^A-Z]*")  # behind sk-: names in CSS, such as sk-fading-circle

# How a number with check digits is written, what knows them, and the word that has to stand before it.
ALONE, END = r"(?<![0-9A-Za-z_.-].)(?<![0-9] .)", r"(?![0-9A-Za-z_]|[-. ][0-9])"
CARD = r"(?<=4.|5[1-5]|2[2-7]|35|6[05])"  # behind two digits: Visa, Mastercard, JCB, Discover
CARD_WORD = re.compile(r"(?i)(?:card|カード|karte|carte|visa|master|jcb|卡)[^0-9\n]{0,24}\Z")
PERSON_WORD = re.compile(r"(?i)(?:マイナンバー|個人番号|my ?number)[^0-9\n]{0,24}\Z")
NUMBERS = (
    (rf"[2-6]{ALONE}[0-9]{CARD}[0-9]{{2}}([ -])[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}{END}", luhn.is_valid, None),
    (rf"3{ALONE}[47][0-9]{{2}}([ -])[0-9]{{6}}\1[0-9]{{5}}{END}", luhn.is_valid, None),  # American Express
    (rf"[2-6]{ALONE}[0-9]{{14,15}}{END}", luhn.is_valid, CARD_WORD),
    (rf"[0-9]{ALONE}[0-9]{{3}}([ -]?)[0-9]{{4}}\1[0-9]{{4}}{END}", in_.is_valid, PERSON_WORD),
    (rf"[1-9]{ALONE}[0-9]{{16}}[0-9Xx]{END}", ric.is_valid, None),
)
LONG_NUMBER = re.compile("[0-9](?:[ -]?[0-9]){11}")  # what all of them hold
NUMBER_PATTERNS = [(re.compile(f"(?s){pattern}"), check, word) for pattern, check, word in NUMBERS]
IBAN = re.compile(r"(?s)[A-Z](?<![A-Z0-9].)[A-Z][0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
WORDS = re.compile(r"\S+")

# What each character becomes, up to the last that is folded: full-width ASCII, the dashes and spaces that stand for a
# hyphen and a space. uint32 [code points]
_HALF_WIDTH = np.arange(0xFF5F, dtype=np.uint32)
_HALF_WIDTH[0xFF01:] -= 0xFEE0
_HALF_WIDTH[[*range(0x2010, 0x2016), 0x2212, 0xFE63]] = ord("-")
_HALF_WIDTH[[0xA0, 0x3000]] = ord(" ")
_KANJI_DIGITS = str.maketrans(KANJI_DIGITS, DIGITS)

Piece = tuple[int, int, str]  # first character, end, replacement


def without_personal_data(text: str) -> tuple[str, int]:
    """`text` with its personal data replaced, and how many pieces were. Time is linear in its length."""
    folded = _folded(text)
    pieces = list(_mail_addresses(folded))
    if any(map(folded.__contains__, DIGITS)):
        pieces += _keys(folded)
        if NUMBER.search(folded):
            pieces += [*_ipv4_addresses(folded), *_checked_numbers(folded, text), *_phone_numbers(folded, text)]
        pieces += [(*match.span(), IPV6_ADDRESS) for match in IPV6.finditer(folded) if _is_public_ip(match[0])]
    parts, end, count = [], 0, 0
    for start, stop, replacement in sorted(pieces, key=lambda piece: (piece[0], -piece[1])):
        if start >= end:  # else it begins in the one before
            parts += (text[end:start], replacement)
            end, count = stop, count + 1
    return "".join(parts) + text[end:], count


def _folded(text: str) -> str:
    """`text` with full-width ASCII, dashes and spaces as ASCII, and with 〇三―一二三四 as digits where it may be
    a phone number. Each is one character, so places stay."""
    if text.isascii():
        return text
    points = code_points(text)  # 20 times as fast as translate
    folded = np.where(points < len(_HALF_WIDTH), _HALF_WIDTH.take(points, mode="clip"), points)
    found = folded.tobytes().decode("utf-32-le", "surrogatepass")
    return KANJI_PHONE.sub(lambda match: match[0].translate(_KANJI_DIGITS), found) if "〇" in found else found


def _before(match: re.Match) -> str:
    return match.string[max(match.start() - BESIDE, 0) : match.start()]


def _mail_addresses(folded: str) -> Iterator[Piece]:
    has_sign = any(map(folded.__contains__, ("@", "&#64;", "%40", " dot ", " DOT ")))
    if not has_sign and not (any(map(folded.__contains__, "[({<")) and AT_WORD.search(folded)):
        return
    for match in MAIL.finditer(folded):
        local, domain = match[1].lstrip("+.-"), SPELLED_DOT.sub(".", match[2] or match[3])
        is_other = (
            PATH_BEHIND.match(folded, match.end()) or IN_ADDRESS.search(_before(match)) or A_VERSION.match(domain)
        )
        if local and local != "git" and not is_other and not EXAMPLES.fullmatch(domain):
            if tld.is_tld(domain.rpartition(".")[2].lower()):
                yield match.end(1) - len(local), match.end(), MAIL_ADDRESS


def _keys(folded: str) -> Iterator[Piece]:
    for mark, pattern in KEY_PATTERNS.items():
        for match in pattern.finditer(folded) if mark in folded else ():
            if mark != "sk-" or not HYPHENATED.fullmatch(match[0], len(mark)):
                yield *match.span(), mark + NOT_ZERO.sub("0", match[0][len(mark) :])


def _ipv4_addresses(folded: str) -> Iterator[Piece]:
    for match in IPV4.finditer(folded):
        before = _before(match)
        if _is_public_ip(match[0]) and not VERSION.search(before) and not STANDARD.search(before):
            *_, second, largest = sorted(parts := [int(part) for part in match[0].split(".")])
            is_line = (not before or before.endswith("\n")) and HEADING.match(folded, match.end())
            is_heading = is_line and max(parts[1:3]) <= LARGE_PART
            if largest > LARGE_PART and second > SMALL_PART and not is_heading:
                yield match.start(), match.end(), IPV4_ADDRESS


def _is_public_ip(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast


def _checked_numbers(folded: str, text: str) -> Iterator[Piece]:
    """Numbers of cards, persons and accounts, with all their digits 0."""
    if not LONG_NUMBER.search(folded):
        return
    for pattern, is_valid, word in NUMBER_PATTERNS:
        for match in pattern.finditer(folded):
            if (word is None or word.search(_before(match))) and is_valid(re.sub("[ -]", "", match[0])):
                yield *match.span(), _last_digits_zeroed(match, text, match.end(), len(match[0]))
    for match in IBAN.finditer(folded):
        for word in reversed([*WORDS.finditer(folded, *match.span())]):  # the last ones may be of the sentence
            if iban.is_valid(folded[match.start() : word.end()], check_country=False):
                yield match.start() + 2, word.end(), NOT_ZERO.sub("0", folded[match.start() + 2 : word.end()])
                break


def _phone_numbers(folded: str, text: str) -> Iterator[Piece]:
    """Each phone number in a text: its first character, its end, and the number with the subscriber's digits 0.

    Args:
        folded: the text with full-width digits and dashes as ASCII.
        text: the same text as it is, of the same length; its widths are kept.
    """
    for match in INTERNATIONAL.finditer(folded):
        yield from _longest_phone_number(match, text, (_is_international_phone,), kept=3)
    for match in filter(_is_phone_number_start, NATIONAL.finditer(folded)):
        checks = (_is_national_phone, _may_be_phone)[: 1 + _is_named_as_phone(match)]
        yield from _longest_phone_number(match, text, checks, kept=2)
    for match in filter(_is_phone_number_start, AMERICAN.finditer(folded)):
        is_written_apart = match[1].isspace() and match[2] == " " and not match[0].startswith("1")
        if not is_written_apart or _is_named_as_phone(match):  # 256 512 1024
            yield *match.span(), _last_digits_zeroed(match, text, match.end(), AMERICAN_SUBSCRIBER)
    for match in CHINESE_MOBILE.finditer(folded):
        yield *match.span(), _last_digits_zeroed(match, text, match.end(), SUBSCRIBER)
    for match in filter(_is_named_as_phone, BARE.finditer(folded)):
        count = SUBSCRIBER if len(match[0]) == 11 else AMERICAN_SUBSCRIBER
        yield *match.span(), _last_digits_zeroed(match, text, match.end(), count)


def _is_phone_number_start(match: re.Match) -> bool:
    """Whether a number is not a part of a word; `a03-1234-5678` is none, `TEL03-1234-5678` is one."""
    before = _before(match)[-1:]
    return not (before.isascii() and before.isalpha()) or _is_named_as_phone(match)


def _is_named_as_phone(match: re.Match) -> bool:
    """Whether a word for a phone stands before a number."""
    return PHONE_WORD.search(_before(match)) is not None


def _longest_phone_number(
    match: re.Match, text: str, checks: Sequence[Callable[[list[str]], bool]], kept: int
) -> Iterator[Piece]:
    """The longest beginning of a row of groups that is a number: a date may follow it. Its first `kept` digits stay."""
    groups = list(PHONE_DIGITS.finditer(match.string, *match.span()))
    for is_number, count in itertools.product(checks, range(len(groups), 0, -1)):
        digits, end = [group[0] for group in groups[:count]], groups[count - 1].end()
        if is_number(digits) and not DECIMAL.fullmatch(match.string, match.start(), end):
            if len(set(map(len, digits))) == 1 < count and _is_in_row(match, end):  # 01 02 03 04 05 06
                return
            most = min(AMERICAN_SUBSCRIBER if digits[0] == "1" else SUBSCRIBER, sum(map(len, digits)) - kept)
            yield match.start(), end, _last_digits_zeroed(match, text, end, most)
            return


def _is_in_row(match: re.Match, end: int) -> bool:
    """Whether another number stands before a number or behind it."""
    return ROW_BEHIND.match(match.string, end) is not None or ROW_BEFORE.search(_before(match)) is not None


def _is_international_phone(digits: list[str]) -> bool:
    """Whether a region has numbers of that length. 00 stands for + where a country code stands alone and the number is
    given out: tables of code points have rows such as 0041 0300 0301."""
    written = "".join(digits)
    number = written.removeprefix("00")
    if not 9 <= len(number) <= 15:  # the shortest with their country code; E.164
        return False
    if number != written and (len(digits) == 1 or int(digits[0]) not in COUNTRY_CODE_TO_REGION_CODE):
        return False
    try:
        parsed = parse(f"+{number}")
        return is_possible_number(parsed) if number == written else is_valid_number(parsed)
    except NumberParseException:
        return False


def _is_national_phone(digits: list[str]) -> bool:
    """Whether the first group is the area code that a numbering plan sees in these digits."""
    area, *rest = digits
    number = "".join(digits)
    if not rest:
        return BARE_MOBILE.fullmatch(number) is not None
    are_groups = len(rest[-1]) > 2 or set(map(len, rest)) == {2}
    return are_groups and 10 <= len(number) <= 12 and any(_area_code(number, region) == area for region in PLANS)


def _may_be_phone(digits: list[str]) -> bool:
    return 9 <= sum(map(len, digits)) <= 12


def _area_code(number: str, region: str) -> str:
    """The area code of a number in a region, "" if it is not one of its numbers. 5 us; phonenumbers.parse takes 30."""
    possible, forms = _numbering_plan(region)
    if not possible.fullmatch(number, 1):
        return ""
    groups = (form.fullmatch(number, 1) for beginning, form in forms if beginning.match(number, 1))
    return next((f"0{found[1]}" for found in groups if found), "")


@functools.cache
def _numbering_plan(region: str) -> tuple[re.Pattern, list[tuple[re.Pattern, re.Pattern]]]:
    """The numbers of a region without their 0, and their groups by how they begin, as phonenumbers has them."""
    plan = PhoneMetadata.metadata_for_region(region)
    forms = []
    for form in plan.number_format:
        *_, beginning = form.leading_digits_pattern or [""]  # each is narrower than the one before it
        forms.append((re.compile(beginning), re.compile(form.pattern)))
    return re.compile(plan.general_desc.national_number_pattern), forms


def _last_digits_zeroed(match: re.Match, text: str, end: int, count: int) -> str:
    """The piece of `text` from a match to `end` with its last `count` digits 0, each 0 as wide as what it replaces."""
    characters = list(text[match.start() : end])
    for place in [place for place in range(len(characters)) if match.string[match.start() + place].isdecimal()][
        -count:
    ]:
        own = characters[place]
        characters[place] = "0" if own.isascii() else "〇" if own in KANJI_DIGITS else "０"
    return "".join(characters)
