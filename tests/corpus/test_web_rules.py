"""FineWeb's and C4's rules in English and Japanese; of C4 the decisions and the lines are those of datatrove."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks import datatrove_words
from tpullm.corpus.domains import programming
from tpullm.corpus.filters import gopher

ENGLISH = "The cat that we have sits on the mat, and it looks at the birds of the garden.\n"
LINES = [f"Line {number} says what nobody else has said on day {number * 7}.\n" for number in range(40)]
SENTENCE = "あいうえおたちつて。"
JAPANESE = [f"第{number}章では、猫がどこで生れたかを{number * 7}日かけて調べた話をする。\n" for number in range(40)]


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("".join(LINES), "en", ""),
        ("".join(JAPANESE), "ja", ""),
        ("".join(f"「{line.strip().rstrip('。')}」\n" for line in JAPANESE), "ja", ""),  # a dialogue ends its lines so
        # A tenth of its characters is in a line that repeats, and no more.
        ("\n".join([SENTENCE, *(f"{letter}{SENTENCE[1:]}" for letter in "あかきくけこさしす")]), "ja", ""),
        ("".join(line.replace(".", "") for line in LINES), "en", "too few sentence ends"),
        ("".join(line.replace("。", "") for line in JAPANESE), "ja", "too few sentence ends"),
        ("Yes.\nNo.\nWhy?\n" + LINES[0], "en", "mostly short lines"),
        ("".join(LINES[:9] * 2), "en", "repeated lines"),
        ("".join(f"It is {number}, which is one of the numbers.\n\n\n\n" for number in range(40)), "en", "a list"),
        ("\n".join("猫犬馬鳥魚虫牛羊。"[place:] for place in range(9)), "ja", "a list"),
    ],
)
def test_fineweb(text, language, reason):
    assert gopher.fineweb(text, language) == reason


FINEWEB_REASONS = {
    "empty": "empty",
    "line_punct_ratio": "too few sentence ends",
    "short_line_ratio": "mostly short lines",
    "char_dup_ratio": "repeated lines",
    "list_ratio": "a list",
}
PIECES = [*LINES[:3], *JAPANESE[:3], "Yes.", "no", "\n", "\n", "\n\n\n", "」\n", "…", " \n", "猫", "a b c d e f g h "]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=40), st.sampled_from(["en", "ja"]))
def test_fineweb_decides_as_datatrove_does_on_made_texts(parts, language):
    from datatrove.data import Document

    text = "".join(parts)
    kept = datatrove_words.fineweb(language).filter(Document(text, ""))
    assert gopher.fineweb(text, language) == ("" if kept is True else FINEWEB_REASONS[kept[1]])


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
    assert gopher.c4(text, language)[0] == reason


def test_c4_removes_lines_of_boilerplate_and_marks_of_citations():
    text = ENGLISH + "Please enable JavaScript to go on.\nWe use cookies to know you.\nMenu\n" + ENGLISH[:-1] + "[12]\n"
    reason, left = gopher.c4(text + ENGLISH * 4, "en")
    assert reason == "" and left == (ENGLISH * 6).strip()


def of_datatrove(text, language):
    from datatrove.data import Document
    from datatrove.pipeline.filters.c4_filters import C4QualityFilter

    unspaced = {"min_words_per_line": -1, "max_word_length": -1} if language == "ja" else {}
    document = Document(text, "")
    kept = C4QualityFilter(language=datatrove_words.tokenizer(), filter_no_terminal_punct=False, **unspaced).filter(
        document
    )
    names = {"lorem_ipsum": "lorem ipsum", "curly_bracket": "a curly bracket", "too_few_sentences": "too few sentences"}
    return ("", document.text) if kept is True else (names[kept[1]], text)


PARTS = [
    "Yes.",
    "it is so",
    "No!\n",
    "\n",
    "JavaScript ",
    "Lorem ipsum",
    "{",
    "our Privacy Policy.",
    "[3]",
    " ",
    "w" * 999,
]


@example(["Yes.", "\n", "\n", "\n", "\n", "Yes."], "ja")  # an empty line is a sentence there
@given(st.lists(st.sampled_from(PARTS), max_size=30), st.sampled_from(["en", "ja"]))
def test_c4_decides_as_datatrove_does_on_made_texts(parts, language):
    text = "".join(parts)
    assert gopher.c4(text, language) == of_datatrove(text, language)


def test_c4_decides_as_datatrove_does_on_real_texts(real_text):
    texts = [(raw.text, "en") for raw in programming.documents(programming.files("documentation")[0], "documentation")]
    shakespeare = (real_text / "tinyshakespeare.txt").read_text(encoding="utf-8")
    soseki = (real_text / "soseki" / "bottyan.txt").read_text(encoding="utf-8")
    texts += [(shakespeare[start : start + 3000], "en") for start in range(0, 90_000, 3000)]
    texts += [(soseki[start : start + 1000], "ja") for start in range(0, 30_000, 1000)]
    assert [text for text, language in texts if gopher.c4(text, language) != of_datatrove(text, language)] == []
