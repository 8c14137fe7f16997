"""The rules that a source may name: their lists of words, the script of Japanese, and what they cost."""

import itertools
import random
import time

import pytest

from tpullm.corpus.filters import quality, words
from tpullm.recipe.schema import CorpusConfig

PROSE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で泣いていた。"
RULES = ["repetition", "gopher", "fineweb", "c4", "kana", "adult", "advertising"]


def reason(text, rule, language="ja"):
    return quality.judge(text, language, "", [rule], CorpusConfig())[0]


def some(name, count, seed=1):
    return random.Random(seed).sample(sorted(quality.listed_words(name).words), count)


def test_a_text_that_is_full_of_adult_words_falls():
    for separator in "、は":
        found = separator.join(some("adult_keywords_ja.txt", 20))
        assert reason(PROSE + found, "adult")
        assert not reason(PROSE * 300 + found, "adult")  # a word here and there
    single = [word for word in some("adult_keywords_en.txt", 100) if word.isalpha()]
    prose = "It was a bright cold day in April, and the clocks were striking thirteen. "
    for words_of_it, falls in ((single[:6], True), (map(str.upper, single[:6]), True), (single[:2], False)):
        assert bool(reason(prose + " ".join(words_of_it), "adult")) == falls
    assert not reason(prose + "".join(single[:6]), "adult")  # parts of one word


def test_a_word_of_katakana_is_found_only_as_a_whole():
    katakana = filter(quality.WHOLE_WORDS[0].fullmatch, sorted(quality.listed_words("adult_keywords_ja.txt").words))
    for word in itertools.islice(katakana, 50):
        assert word in quality.listed_word_counts(f"その{word}は", "adult_keywords_ja.txt")
        assert word not in quality.listed_word_counts(f"ア{word}ー", "adult_keywords_ja.txt")
    assert not quality.listed_word_counts("アスパラガス", "adult_keywords_ja.txt")
    # Counts are those of a loop over all words.
    text = PROSE.join(some("advertisement_keywords_ja.txt", 10)) * 3
    listed = quality.listed_words("advertisement_keywords_ja.txt").words
    expected = {word: text.lower().count(word) for word in listed if word in text.lower()}
    assert quality.listed_word_counts(text, "advertisement_keywords_ja.txt") == expected


def test_advertising_is_counted_by_the_page():
    phrases = "お問い合わせください。営業時間は九時から。送料は別です。"
    assert reason(phrases * 5, "advertising") and not reason(phrases * 4, "advertising")
    assert not reason(phrases * 5 + PROSE * 200, "advertising")


def test_literature_is_neither(real_text):
    for path in (real_text / "soseki").iterdir():
        text = path.read_text(encoding="utf-8")
        pages = [text[start : start + 4000] for start in range(0, 100_000, 4000)]
        assert not any(reason(page, rule) for page in pages for rule in ("adult", "advertising"))
    text = (real_text / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert not any(reason(text[start : start + 4000], "adult") for start in range(0, 400_000, 4000))


SCRIPTS = {
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。": "",
    "東京都千代田区千代田一番地、大阪府大阪市北区中之島。": "too little hiragana",
    "アイスクリームとコーヒーとケーキとパンのセット": "mostly katakana",
    "これはとてもとても短いがひらがなはとてもおおい this is a half": "",
    "ひらがなはおおいがはんぶんよりもすくない and this one is so very long": "too little Japanese",
}


def test_a_script_is_judged_by_its_shares():
    assert {text: reason(text, "kana") for text in SCRIPTS} == SCRIPTS


UNITS = [*"!の「{ー", "\u0301", "\n", "a!", "a ", "a\n", "! ", "の。", "猫は", "a.", ". ", "[1]", "- a\n", "...\n"]


@pytest.mark.parametrize("unit", UNITS)
def test_no_rule_takes_more_than_linear_time(unit):
    text = PROSE + unit * (100_000 // len(unit)) + "a"
    begin = time.thread_time()
    for rule in RULES:
        for language in ("en", "ja"):
            reason(text, rule, language)
    assert time.thread_time() - begin < 6  # 0.3 s at most; a quadratic search takes minutes


def test_words_of_a_huge_text_are_bounded(monkeypatch):
    monkeypatch.setattr(quality, "BEGINNING", 1000)
    lengths, of = [], words.words_of
    monkeypatch.setattr(words, "words_of", lambda text, language: (lengths.append(len(text)), of(text, language))[1])
    for rule in set(RULES) - {"repetition", "c4"}:
        reason(PROSE * 100, rule)
    assert set(lengths) == {1000}
