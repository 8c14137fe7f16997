"""The reward `number`: the number of an answer is the right one."""

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from tpullm.system.errors import UserError
from tpullm.training.rewards.scorer import Each, Example

DIGITS = {
    character: value for value, row in enumerate("〇零 一壱 二弐 三参 四 五 六 七 八 九".split()) for character in row
}
SMALL = {"十": 10, "百": 100, "千": 1_000}
LARGE = {"万": 10**4, "億": 10**8, "兆": 10**12}
_UNITS = "".join([*SMALL, *LARGE])
_KANJI = "".join(DIGITS)
# 1,234.5 with separators or without; then 1万2千; a sign where nothing before it makes it a
# subtraction; a fraction, 3 1/2, or a date.
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_LARGER = rf"[{_UNITS}]+(?:{_PLAIN}[{_UNITS}]+)*(?:{_PLAIN})?"
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ANY_SCALE = "|".join(_SCALES)
_SIGN = r"(?:(?<![0-9A-Za-z)\]])-\s?|マイナス)?"
_ARABIC = rf"{_SIGN}{_PLAIN}(?:{_LARGER})?(?:(?:/\d+)+| \d+/\d+(?![\d/])| (?:{_ANY_SCALE})\b)?"
_IN_KANJI = rf"(?:マイナス)?(?!一[番緒般部方致旦切覧体応])[{_KANJI}{_UNITS}]+(?:[点・][{_KANJI}]+)?"
_EITHER = rf"[\d{_KANJI}{_UNITS}][\d,.{_KANJI}{_UNITS}]{{0,15}}"  # bounded, since each place of a long number tries it
_PART = rf"{_SIGN}(?:{_EITHER}と)?{_EITHER}分の{_EITHER}"  # 1と2分の1
# What makes a number an aside, before it and behind it.
_BEFORE = re.compile(
    r"(?:第|問|図|表|例題|\b(?:question|problem|step|exercise|case|part)\s*#?"
    r"|\d\S*\s(?:\w+\s)?(?:out )?of\s|\d\s*[-+*×÷^]\s*)$",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    r"\s*[+*×÷^〜~]|\s*-\s*\d|[^\d\s、。,.]{0,3}?(?:の?うち|中の|中[\d一-十]|番目|つ目|[問回行人]目|[割%倍]の)"
)
# What denies a number, before it and behind it; 8ではないでしょうか does not.
_NOT = re.compile(r"\bnot\s*$", re.IGNORECASE)
_DENIED = re.compile(r"[^\d\s、。,.]{0,3}?(?:では|じゃ)(?:なく|ない(?!か|でしょう)|ありません(?!か))")
_TEENS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL_WORDS = dict(zip([*_TEENS, *_TENS], [*range(20), *range(20, 100, 10)], strict=True))
_WORD = rf"(?:{'|'.join(_SMALL_WORDS)}|hundred|{_ANY_SCALE})"
_WORDS = re.compile(
    rf"(?:\b(?:minus|negative) )?(?<!no )(?<!this )(?<!that )(?<!which )\b{_WORD}\b(?! of)"
    rf"(?:(?:[ -]|,? and ){_WORD}\b)*",
    re.IGNORECASE,
)
_FRACTION = re.compile(r"(-?)(?<!\s)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_MARKER = re.compile(r"答え|答|こたえ|解答|answer|####", re.IGNORECASE)
_RESULT = re.compile("=|なので|だから|つまり|すなわち")  # the number behind it follows from those before it
# A number without a power is matched too: else each digit of a long one would be tried.
_POWER = re.compile(
    rf"({_PLAIN})(?:(?:\s?(?:[×*]|\\times)\s?10\^\{{?(-?\d{{1,2}})\}}?|[eE]([-+]?\d{{1,2}}))(?![\d.A-Za-z]))?"
)
MOST_DIGITS = 400  # a longer one is no number, and costs no time


def number(field: str = "answer", tolerance: float = 0.0) -> Each:
    """1 if the number of the answer differs from that of the field by at most `tolerance`, else 0.

    The number is in the last \\boxed{}; else behind the last "答え", "answer" or "####" (behind the last "=" or なので
    of that sentence, if there is one); else it is the last one. Kanji numerals count where the place is marked, or
    where no other digits are; English words where there is neither. A number that only helps to say another one does
    not count beside that: 第3問, 10のうち, a part of a sum, what is in brackets. One that is denied (10ではなく) never
    counts.
    """
    if not tolerance >= 0:
        raise UserError(f"tolerance: {tolerance} is below 0; give 0 or more")

    def score(example: Example) -> float:
        value = example.field(field)
        right = read_number(value)
        if right is None:
            raise UserError(f"field `{field}`: {str(value)[:40]!r} has no number; correct the data")
        found = read_number(example.answer)
        return float(found is not None and abs(found - right) <= Fraction(tolerance))

    return Each(score)


def read_number(value: Any) -> Fraction | None:
    """The number that a text (or a number) gives as its answer; None if there is none."""
    text = re.sub("(?<=[0-9０-９])(?=[¼-¾⅐-⅞])", " ", str(value))  # 3½ would become 31/2
    text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("\N{EN DASH}", "-")
    text = text.replace("\N{FRACTION SLASH}", "/").replace("ゼロ", "零")
    text = _FRACTION.sub(r" \1\2/\3 ", text.replace("{,}", ","))
    text = _POWER.sub(_without_power, text)
    if boxed := _BOXED.findall(text):
        return _number_of_answer(boxed[-1])
    end = len(text)
    for marker in reversed(list(_MARKER.finditer(text))):
        # With the next marker, behind which there is none. All of the rest took 3.4 s for 4,000 markers.
        if (found := _number_of_answer(text[marker.end() : end])) is not None:
            return found
        end = marker.end()
    numbers = _numbers(_ARABIC, text) or _numbers(_IN_KANJI, text)
    said = [number for number in numbers if not number.aside] or numbers
    return said[-1].value if said else _in_words(text)


def _without_power(said: re.Match) -> str:
    digits, power = said[1], said[2] or said[3]
    if not power or len(digits) > MOST_DIGITS:
        return digits
    return f"{Decimal(digits.replace(',', '')).scaleb(int(power)):f}"


def _number_of_answer(text: str) -> Fraction | None:
    """The first number of a text that is no aside; if its sentence has "=" or なので, the first one behind the last."""
    found = _numbers(f"{_ARABIC}|{_IN_KANJI}", text)
    if not found:
        return _in_words(text)
    end = re.compile(r"[。\n]").search(text, found[0].begin)
    stop = end.start() if end else len(text)
    result = max((match.start() for match in _RESULT.finditer(text, 0, stop)), default=-1)
    said = [number for number in found if number.begin < stop and not number.aside] or found
    return next((number.value for number in found if number.begin > result >= 0), said[0].value)


class _Number(NamedTuple):
    begin: int
    value: Fraction
    aside: bool  # whether it only helps to say the answer: 第3問, 10のうち, (10-3), a part of a sum


def _numbers(pattern: str, text: str) -> list[_Number]:
    """The numbers of a text."""
    found = []
    brackets = [match.span() for match in re.finditer(r"(?<!\\)\([^()]*\)", text)][::-1]
    for match in re.finditer(f"{_PART}|{pattern}", text):
        if len(match[0]) > MOST_DIGITS or (value := _value(match[0])) is None:
            continue
        while brackets and brackets[-1][1] <= match.start():
            brackets.pop()
        before = text[max(0, match.start() - 20) : match.start()]
        if _DENIED.match(text, match.end()) or _NOT.search(before):
            continue
        in_brackets = brackets and brackets[-1][0] <= match.start()
        aside = bool(in_brackets or _BEHIND.match(text, match.end()) or _BEFORE.search(before))
        found.append(_Number(match.start(), value, aside))
    return found


def _value(said: str) -> Fraction | None:
    """The value of one number as it is written; None if it divides by 0."""
    sign = -1 if said.startswith(("-", "マイナス")) else 1
    said = said.removeprefix("-").removeprefix("マイナス").strip()
    if "分の" in said:  # 1と2分の1
        *whole, parts = said.split("と")
        below, above = map(_magnitude, parts.split("分の"))
        return sign * (sum(map(_magnitude, whole)) + above / below) if below else None
    said, _, scale = said.partition(" ")
    if "/" in scale:  # 3 1/2
        above, below = map(int, scale.split("/"))
        return sign * (_magnitude(said) + Fraction(above, below)) if below else None
    above, *below = said.split("/")
    if len(below) > 1:  # of a date, the last number
        return Fraction(below[-1])
    if below and not int(below[0]):
        return None
    return sign * _magnitude(above) / int(below[0] if below else 1) * _SCALES.get(scale.lower(), 1)


def _in_words(text: str) -> Fraction | None:
    """The last number that a text says in English words: minus twenty-one, three hundred and five."""
    found = [match[0].lower() for match in _WORDS.finditer(text)]
    if not found:
        return None
    total = part = 0
    for word in re.findall(r"[a-z]+", found[-1]):
        if word in _SCALES:
            total, part = total + (part or 1) * _SCALES[word], 0
        elif word == "hundred":
            part = (part or 1) * 100
        else:
            part += _SMALL_WORDS.get(word, 0)
    return Fraction(-(total + part) if found[-1].startswith(("minus", "negative")) else total + part)


def _magnitude(text: str) -> Fraction:
    """三百二十一, 1万2千, 二〇二四, 三点五, 1,234.5."""
    whole, _, decimals = re.sub("[点・]", "点", text).partition("点")
    total = part = Fraction(0)
    digits: Fraction | None = None
    for token in re.findall(rf"{_PLAIN}|[{_KANJI}]+|[{_UNITS}]", whole):
        if token in SMALL:
            part += (1 if digits is None else digits) * SMALL[token]
            digits = None
        elif token in LARGE:
            part += digits or 0
            total += (part or 1) * LARGE[token]
            part, digits = Fraction(0), None
        else:
            digits = Fraction("".join(str(DIGITS.get(character, character)) for character in token.replace(",", "")))
    behind = "".join(str(DIGITS[character]) for character in decimals)
    return total + part + (digits or 0) + (Fraction(int(behind), 10 ** len(behind)) if behind else 0)
