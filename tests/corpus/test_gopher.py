"""Gopher's, FineWeb's and C4's rules: the decisions are those of datatrove's filters on the same words."""

import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks import datatrove_words
from tpullm.corpus.domains import programming
from tpullm.corpus.filters import gopher, words

QUALITY = {
    "gopher_short_doc": "too few words",
    "gopher_long_doc": "too many words",
    "gopher_below_avg_threshold": "words too short",
    "gopher_above_avg_threshold": "words too long",
    "gopher_too_many_hashes": "too many # or …",
    "gopher_too_many_ellipsis": "too many # or …",
    "gopher_too_many_bullets": "mostly bullet points",
    "gopher_too_many_end_ellipsis": "lines that are cut off",
    "gopher_below_alpha_threshold": "too few words of letters",
    "gopher_enough_stop_words": "too few stop words",
}


def of_datatrove(text, limit):
    """What datatrove's two filters say, in our words. Where ours has no limit (1), theirs is off (0)."""
    from datatrove.data import Document
    from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

    language = datatrove_words.tokenizer(language_of(limit))
    quality = GopherQualityFilter(
        min_doc_words=limit.words[0], max_doc_words=limit.words[1], min_avg_word_length=limit.mean_length[0],
        max_avg_word_length=limit.mean_length[1], max_non_alpha_words_ratio=limit.letters,
        stop_words=list(limit.stop_words), language=language,
    )  # fmt: skip
    (lines, line_characters), (paragraphs, paragraph_characters) = limit.lines, limit.paragraphs
    repetition = GopherRepetitionFilter(
        dup_line_frac=lines % 1, dup_line_char_frac=line_characters % 1, dup_para_frac=paragraphs % 1,
        dup_para_char_frac=paragraph_characters % 1, top_n_grams=limit.top, dup_n_grams=limit.repeated,
        language=language,
    )  # fmt: skip
    found = quality.filter(Document(text, "")), repetition.filter(Document(text, ""))
    low, repeats = ("" if kept is True else kept[1] for kept in found)
    kinds = {"dup_para": "repeated paragraphs", "dup_line": "repeated lines"}
    return low and QUALITY[low], repeats and kinds.get(repeats[:8], "repeated phrases")


def language_of(limit):
    return "ja" if limit is gopher.JAPANESE else "en"


def ours(text, limit):
    found = words.words_of(text, language_of(limit))
    return gopher.low_quality(text, found, limit), gopher.repetitive(text, found, limit)


def pages(text, characters=4000):
    return [text[start : start + characters] for start in range(0, len(text), characters)]


def spoiled(page, chosen):
    """A page that repeats a piece of itself, or is made of lines, marks or numbers."""
    start = chosen.randrange(max(len(page) - 200, 1))
    piece = page[start : start + chosen.randrange(5, 200)]
    return chosen.choice(
        [
            page[: chosen.randrange(50, 3000)] + piece * chosen.randrange(1, 30),
            "\n".join(chosen.choices(page.split("\n"), k=30)),
            page.replace(" ", " # ", chosen.randrange(200)),
            page.replace("\n", "...\n").replace("。", "…\n"),
            "\n".join(f"- {line}" for line in page.split("\n")),
            " ".join(str(chosen.randrange(99)) for _ in range(chosen.randrange(200))) + piece,
            "\n\n".join([piece] * chosen.randrange(2, 6) + [page[:500]]),
        ]
    )


@pytest.fixture(scope="module")
def documents(real_text):
    """Real pages and spoiled ones: (text, limits of its language)."""
    soseki = pages((real_text / "soseki" / "bottyan.txt").read_text(encoding="utf-8"))[:5]
    shakespeare = pages((real_text / "tinyshakespeare.txt").read_text(encoding="utf-8"))[:6]
    lines = (real_text / "instruction_ja.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    dialogues = ["\n".join(turn["text"] for turn in json.loads(line)["utterances"]) for line in lines]
    topics = [raw.text for raw in programming.documents(programming.files("documentation")[0], "documentation")]
    chosen = random.Random(3)
    found = [(page, gopher.JAPANESE) for page in soseki + dialogues] + [(page, gopher.ENGLISH) for page in shakespeare]
    found += [(page, gopher.ENGLISH) for page in topics[:10]]
    return found + [(spoiled(page, chosen) or "x", limit) for page, limit in found]


def test_decisions_are_those_of_datatrove(documents):
    found = [(ours(text, limit), of_datatrove(text, limit)) for text, limit in documents]
    assert [pair for pair in found if pair[0] != pair[1]] == []
    reasons = {reason for pair, _ in found for reason in pair}
    assert len(documents) > 80 and len(reasons) >= 10  # the documents break ten different rules


@given(st.lists(st.sampled_from([*"the of a bb # ... - 1 word".split(), "\n", "\n\n", "\n\n\n"]), min_size=1))
def test_decisions_on_made_texts_are_those_of_datatrove(found):
    text = " ".join(found) * 7
    limit = gopher.Limits(words=(5, 300))
    if text.strip():
        assert ours(text, limit) == of_datatrove(text, limit)


def test_a_language_has_its_own_limits():
    prose = "The cat that we have sits on the mat and looks at the birds of the garden. " * 4
    finnish = "Kahvila avautuu huomenna kello kahdeksan aamulla torilla " * 10  # whose stop words are not known
    cases = (prose, "en"), (finnish, "en"), (finnish, "fi"), ("東京都千代田区千代田一番地" * 20, "ja")
    found = [
        gopher.low_quality(text, words.words_of(text, language), gopher.limits(language)) for text, language in cases
    ]
    assert found == ["", "too few stop words", "", "too few stop words"]


FINEWEB_REASONS = {
    "empty": "empty",
    "line_punct_ratio": "too few sentence ends",
    "short_line_ratio": "mostly short lines",
    "char_dup_ratio": "repeated lines",
    "list_ratio": "a list",
}
PIECES = [f"Line {number} says what nobody else has said on day {number * 7}.\n" for number in range(3)]
PIECES += [f"第{number}章では、猫がどこで生れたかを{number * 7}日かけて調べた話をする。\n" for number in range(3)]
PIECES += ["Yes.", "no", "\n", "\n", "\n\n\n", "」\n", "…", " \n", "猫", "a b c d e f g h "]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=40), st.sampled_from(["en", "ja"]))
def test_fineweb_decides_as_datatrove_does_on_made_texts(parts, language):
    from datatrove.data import Document

    text = "".join(parts)
    kept = datatrove_words.fineweb(language).filter(Document(text, ""))
    assert gopher.fineweb(text, language) == ("" if kept is True else FINEWEB_REASONS[kept[1]])


def of_c4(text, language):
    from datatrove.data import Document
    from datatrove.pipeline.filters.c4_filters import C4QualityFilter

    unspaced = {"min_words_per_line": -1, "max_word_length": -1} if language == "ja" else {}
    document = Document(text, "")
    tokenizer = datatrove_words.tokenizer(language)
    kept = C4QualityFilter(language=tokenizer, filter_no_terminal_punct=False, **unspaced).filter(document)
    names = {"lorem_ipsum": "lorem ipsum", "curly_bracket": "a curly bracket", "too_few_sentences": "too few sentences"}
    return ("", document.text) if kept is True else (names[kept[1]], text)


PARTS = ["Yes.", "it is so", "No!\n", "\n", "JavaScript ", "Lorem ipsum", "{", "our Privacy Policy.", "[3]", "w" * 999]
FIVE = ["The cat that we have sits on the mat.\n"] * 5


@example(["Yes.", "\n", "\n", "\n", "\n", "Yes."], "ja")  # an empty line is a sentence there
@example([*FIVE, "Please enable JavaScript to go on.\n", "Menu\n", "It is so, and is said [12]\n"], "en")
@example([*FIVE, "if (a) { b = 1; }"], "en")
@example(["あ" * 1500, "。い。う。え。お。"], "ja")
@given(st.lists(st.sampled_from(PARTS), max_size=30), st.sampled_from(["en", "ja"]))
def test_c4_decides_as_datatrove_does_on_made_texts(parts, language):
    text = "".join(parts)
    assert gopher.c4(text, language) == of_c4(text, language)


def test_a_page_of_fewer_words_than_a_hundred_is_not_judged_by_its_n_grams():
    for separator, count, expected in ((" ", 99, False), (" ", 100, True), (" , ", 99, False)):  # marks are no words
        assert gopher.is_repetitive(separator.join(f"word{number % 9}" for number in range(count)), "en") == expected


def test_a_page_is_judged_by_its_repeated_lines():
    """More than 60 % of the lines, with more than 40 % of the characters."""
    others = [f"another line {number}" for number in range(6)]
    long = [f"a long line that is there once, number {number}" for number in range(6)]
    for lines, expected in ((["the same line"] * 11, False), (["the same line"] * 12, True)):
        assert gopher.is_repetitive("\n".join(lines + others), "en") == expected
        assert gopher.is_repetitive("\n \n".join(lines + others), "en") == expected  # empty lines are none
    assert not gopher.is_repetitive("\n".join(["x"] * 30 + long), "en")  # of few characters


def test_what_manuals_repeat_is_no_repetition():
    """Rulers of tables, and phrases in a fifth of a page: by Gopher's limits arp(7) and raw(7) fell."""
    prose = " ".join(f"word{number}" for number in range(300))
    ruled = "\n".join([prose, *(f"{'─' * 70}\nfield{number} │ meaning{number}" for number in range(25))])
    assert not gopher.is_repetitive(ruled, "en")
    phrase = "the option is not used if the file was opened for reading alone. "
    assert not gopher.is_repetitive(prose + phrase * 11, "en")
    assert gopher.is_repetitive(prose + phrase * 20, "en")


@pytest.mark.parametrize(("bad", "good", "expected"), [(1, 1, False), (2, 1, True), (1, 2, False), (1, 0, True)])
def test_a_book_is_repetitive_if_most_of_its_pages_are(bad, good, expected):
    pages = ["the same words\n" * 1000] * bad + [" ".join(map(str, range(5000)))] * good
    text = "".join(page[:9999] + "\n" for page in pages)
    assert len(text) == 10_000 * (bad + good)
    assert gopher.is_repetitive(text, "en") == expected


def test_books_are_not_repetitive(real_text):
    """The share of repeated n-grams grows with length: a whole novel must pass as its pages do."""
    for book, language in ((real_text / "soseki" / "bottyan.txt", "ja"), (real_text / "tinyshakespeare.txt", "en")):
        assert not gopher.is_repetitive(book.read_text(encoding="utf-8"), language)
