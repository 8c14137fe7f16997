"""Texts fall that are full of listed words, not those that have one."""

import importlib.util
import random

import pytest

from tpullm.corpus.filters import quality

pytestmark = pytest.mark.skipif(importlib.util.find_spec("hojichar") is None, reason="hojichar is not installed")
PROSE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で泣いていた。"


def some(name, count, seed=1):
    return random.Random(seed).sample(sorted(quality._load(name).words), count)


@pytest.mark.parametrize("separator", ["、", "は"])
def test_a_text_that_is_full_of_adult_words_falls(separator):
    found = separator.join(some("adult_keywords_ja.txt", 20))
    assert quality.is_adult(PROSE + found)
    assert not quality.is_adult(PROSE * 300 + found)  # a word here and there


def test_an_english_text_too():
    single = [word for word in some("adult_keywords_en.txt", 100) if word.isalpha()]
    prose = "It was a bright cold day in April, and the clocks were striking thirteen. "
    assert quality.is_adult(prose + " ".join(single[:6]))
    assert quality.is_adult(prose + " ".join(single[:6]).upper())
    assert not quality.is_adult(prose + " ".join(single[:2]))
    assert not quality.is_adult(prose + "".join(single[:6]))  # parts of one word


def test_a_word_of_katakana_is_found_only_as_a_whole():
    katakana = [word for word in quality._load("adult_keywords_ja.txt").words if quality.KATAKANA.fullmatch(word)]
    for word in katakana[:200]:
        assert word in quality.counts(f"その{word}は", "adult_keywords_ja.txt")
        assert word not in quality.counts(f"ア{word}ー", "adult_keywords_ja.txt")
    assert not quality.counts("アスパラガス", "adult_keywords_ja.txt")


def test_counts_are_those_of_a_loop_over_all_words():
    names = some("advertisement_keywords_ja.txt", 10)
    text = PROSE.join(names) * 3
    listed = quality._load("advertisement_keywords_ja.txt").words
    expected = {word: text.lower().count(word) for word in listed if word in text.lower()}
    found = quality.counts(text, "advertisement_keywords_ja.txt")
    assert {word: count for word, count in found.items()} == expected


def test_advertising_is_counted_by_the_page():
    phrases = "お問い合わせください。営業時間は九時から。送料は別です。"
    assert quality.is_advertising(phrases * 5) and not quality.is_advertising(phrases * 4)
    assert not quality.is_advertising(phrases * 5 + PROSE * 200)


def test_literature_is_neither(real_text):
    for path in (real_text / "soseki").iterdir():
        text = path.read_text(encoding="utf-8")
        pages = [text[start : start + 4000] for start in range(0, 100_000, 4000)]
        assert not any(map(quality.is_adult, pages)) and not any(map(quality.is_advertising, pages))
    text = (real_text / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert not any(quality.is_adult(text[start : start + 4000]) for start in range(0, 400_000, 4000))
