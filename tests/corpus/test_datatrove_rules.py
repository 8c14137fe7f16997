"""FineWeb's and C4's rules, by datatrove's own code, in English and Japanese."""

import pytest

from tpullm.corpus import datatrove_rules

ENGLISH = "The cat that we have sits on the mat, and it looks at the birds of the garden.\n"
LINES = [f"Line {number} says what nobody else has said on day {number * 7}.\n" for number in range(40)]
JAPANESE = [f"第{number}章では、猫がどこで生れたかを{number * 7}日かけて調べた話をする。\n" for number in range(40)]


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("".join(LINES), "en", ""),
        ("".join(JAPANESE), "ja", ""),
        ("".join(f"「{line.strip().rstrip('。')}」\n" for line in JAPANESE), "ja", ""),  # a dialogue ends its lines so
        ("".join(line.replace(".", "") for line in LINES), "en", "too few sentence ends"),
        ("".join(line.replace("。", "") for line in JAPANESE), "ja", "too few sentence ends"),
        ("Yes.\nNo.\nWhy?\n" + LINES[0], "en", "mostly short lines"),
        ("".join(LINES[:9] * 2), "en", "repeated lines"),
        ("".join(f"It is {number}, which is one of the numbers.\n\n\n\n" for number in range(40)), "en", "a list"),
        ("\n".join("猫犬馬鳥魚虫牛羊。"[place:] for place in range(9)), "ja", "a list"),
    ],
)
def test_fineweb(text, language, reason):
    assert datatrove_rules.fineweb(text, language) == reason


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        (ENGLISH * 5, "en", ""),
        (ENGLISH * 4, "en", "too few sentences"),
        (ENGLISH * 5 + "Lorem ipsum dolor sit amet.", "en", "lorem ipsum"),
        (ENGLISH * 5 + "if (a) { b = 1; }", "en", "a curly bracket"),
        ("猫がいる。犬もいる！ 鳥は？ 魚だ。虫も。", "ja", ""),
        ("猫がいる。犬もいる！", "ja", "too few sentences"),
        ("あ" * 1500 + "。い。う。え。お。", "ja", ""),  # a line without spaces is no word of over 1,000 characters
    ],
)
def test_c4(text, language, reason):
    assert datatrove_rules.c4(text, language)[0] == reason


def test_c4_removes_lines_of_boilerplate_and_marks_of_citations():
    text = ENGLISH + "Please enable JavaScript to go on.\nWe use cookies to know you.\nMenu\n" + ENGLISH[:-1] + "[12]\n"
    reason, left = datatrove_rules.c4(text + ENGLISH * 4, "en")
    assert reason == "" and left == (ENGLISH * 6).strip()
