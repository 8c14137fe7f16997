"""MinHash finds what is nearly the same, whatever the order, and nothing else."""

import random

import numpy as np
import pytest

from tpullm.corpus import dedup

WORDS = [f"word{number}" for number in range(5000)]


def _text(seed, words=300):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def _edited(text, every):
    words = text.split()
    words[::every] = ["changed"] * len(words[::every])
    return " ".join(words)


def _jaccard(one, two):
    def grams(text):
        words = text.lower().split()
        return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}

    return len(grams(one) & grams(two)) / len(grams(one) | grams(two))


def _found(texts, similarity=0.8, order=None):
    signatures = np.stack([dedup.signature(text) for text in texts])
    return dedup.duplicates(
        [dedup.exact_key(text) for text in texts], signatures, similarity, order or range(len(texts))
    )


@pytest.mark.parametrize("every", [400, 100, 50, 20, 10])
def test_signatures_estimate_jaccard_similarity(every):
    one = _text(1, 3000)
    two = _edited(one, every)
    estimate = (dedup.signature(one) == dedup.signature(two)).mean()
    # 128 hashes estimate a share s with a standard deviation of at most sqrt(1/4/128) = 0.044; 4 of them.
    assert abs(estimate - _jaccard(one, two)) < 0.18


def test_exact_near_and_different():
    base = _text(1)
    texts = [base, _text(2), base.replace(" ", "\n"), _edited(base, 250), _edited(base, 10), _text(3)]
    assert _found(texts) == {2: "exact duplicate", 3: "near duplicate"}
    assert _found(texts, similarity=1) == {2: "exact duplicate"}


def test_the_first_in_order_is_kept():
    base = _text(1)
    assert _found([base, _edited(base, 250)], order=[1, 0]) == {0: "near duplicate"}


def test_japanese_is_compared_by_characters():
    day = "今日はいい天気ですね。私はリンゴを食べるのが好きです。毎日学校で本を読みます。"
    night = "昨日は雨が降って寒かったので、ずっと家にいて手紙を書いていました。明日はまた晴れるでしょう。"
    other = "明日の会議の資料を作らなければなりませんが、まだ何も決まっていません。"
    assert _found([day + night, day + night.replace("雨が", "雪が"), other]) == {1: "near duplicate"}


def test_short_texts_are_compared_as_a_whole():
    assert _found(["one", "two words", "one", "?!", "!?"]) == {2: "exact duplicate"}


def test_many_pairs_at_the_threshold_are_found():
    """Banding is chosen so that 99 % of pairs above the threshold become candidates: 50 pairs at 0.9 are all found."""
    pairs = [(_text(seed), _edited(_text(seed), 100)) for seed in range(50)]
    assert min(_jaccard(one, two) for one, two in pairs) > 0.85
    texts = [text for pair in pairs for text in pair]
    assert sorted(_found(texts)) == list(range(1, 100, 2))


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.95])
def test_rows_per_band_divide_the_signature(similarity):
    assert dedup.PERMUTATIONS % dedup.rows_per_band(similarity) == 0
