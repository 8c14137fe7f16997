"""The reward `number`: the number of an answer is the right one."""

import re
import unicodedata
from fractions import Fraction
from typing import Any

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
# subtraction; a fraction, or a date.
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_LARGER = rf"[{_UNITS}]+(?:{_PLAIN}[{_UNITS}]+)*(?:{_PLAIN})?"
_ARABIC = rf"(?:(?<![0-9A-Za-z)\]])-\s?|マイナス)?{_PLAIN}(?:{_LARGER})?(?:/\d+)*"
_IN_KANJI = rf"(?:マイナス)?[{_KANJI}{_UNITS}]+(?:[点・][{_KANJI}]+)?"
_FRACTION = re.compile(r"(-?)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_MARKER = re.compile(r"答え|答|こたえ|解答|answer|####", re.IGNORECASE)
MOST_DIGITS = 400  # a longer one is no number, and costs no time


def number(field: str = "answer", tolerance: float = 0.0) -> Each:
    """1 if the number of the answer differs from that of the field by at most `tolerance`, else 0.

    The number is in the last \\boxed{}; else behind the last "答え", "answer" or "####" (behind the last "=" of that
    sentence, if there is one); else it is the last one. Kanji numerals count where the place is marked, or where no
    other digits are.
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
    text = unicodedata.normalize("NFKC", str(value)).replace("−", "-").replace("\N{EN DASH}", "-")
    text = _FRACTION.sub(r" \1\2/\3 ", text.replace("{,}", ","))
    if boxed := _BOXED.findall(text):
        return _number_of_answer(boxed[-1])
    for marker in reversed(list(_MARKER.finditer(text))):
        if (found := _number_of_answer(text[marker.end() :])) is not None:
            return found
    found = _numbers(_ARABIC, text) or _numbers(_IN_KANJI, text)
    return found[-1][1] if found else None


def _number_of_answer(text: str) -> Fraction | None:
    """The first number of a text; if its sentence has "=", the first one behind the last of them."""
    found = _numbers(f"{_ARABIC}|{_IN_KANJI}", text)
    if not found:
        return None
    end = re.compile(r"[。\n]").search(text, found[0][0])
    equals = text.rfind("=", 0, end.start() if end else len(text))
    return next((value for begin, value in found if begin > equals), found[0][1])


def _numbers(pattern: str, text: str) -> list[tuple[int, Fraction]]:
    """Where each number begins, and the number."""
    found = []
    for match in re.finditer(pattern, text):
        sign = -1 if match[0].startswith(("-", "マイナス")) else 1
        above, *below = match[0].removeprefix("-").removeprefix("マイナス").strip().split("/")
        if len(match[0]) > MOST_DIGITS or len(below) == 1 and int(below[0]) == 0:
            continue
        # Of a date, the last number.
        value = Fraction(below[-1]) if len(below) > 1 else sign * _magnitude(above) / int(below[0] if below else 1)
        found.append((match.start(), value))
    return found


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
