"""MinHash finds what is nearly the same, whatever the order, and nothing else."""

import hashlib
import random
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_at_similarity_1_only_exact_copies_are_found():
    texts = ["The cat sat on the mat", "the cat sat on the mat"]  # other letters, the same words
    assert (dedup.signature(texts[0]) == dedup.signature(texts[1])).all()
    assert _found(texts, similarity=1) == {} and _found(texts, similarity=0.99) == {1: "near duplicate"}


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


MASK = 2**64 - 1


def mix(value):
    """SplitMix64 in Python's integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def shingle(codes):
    combined = 0
    for code in codes:
        combined = (combined * 0x9E3779B97F4A7C15 + mix(code)) & MASK
    return mix(combined)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("The cat sat, on the mat the CAT sat.", "the cat sat on the mat the cat sat".split()),
        ("one two", ["one", "two"]),
        ("今日は いい天気\nですね。", "今日はいい天気ですね。"),
    ],
)
def test_a_signature_is_the_least_product_of_each_odd_number_and_a_hash_of_five_units(text, units):
    codes = [ord(unit) if "。" in text else zlib.crc32(unit.encode()) for unit in units]
    size = min(5, len(codes))
    shingles = [shingle(codes[start : start + size]) for start in range(len(codes) - size + 1)]
    expected = [min(one * (mix(number) | 1) & MASK for one in shingles) for number in range(1, 129)]
    assert dedup.signature(text).tolist() == expected


@given(st.text(st.sampled_from("ab \n\t本"), max_size=20))
def test_an_exact_key_is_the_hash_of_the_words_with_one_space_between(text):
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
    assert dedup.exact_key(text) == int.from_bytes(digest[:8], "little")


@given(
    st.lists(st.integers(0, 2**31), min_size=1, max_size=12),
    st.sampled_from([0.3, 0.5, 0.6, 0.8, 0.95]),
    st.integers(2, 12),
    st.randoms(use_true_random=False),
)
def test_near_duplicates_are_those_that_share_a_band_and_enough_of_all_with_an_earlier_one(
    seeds, similarity, change, drawn
):
    """As a loop over all pairs finds them."""
    signatures = np.stack([np.random.default_rng(seed % 3).integers(0, 9, 128) for seed in seeds]).astype(np.uint64)
    for row, seed in zip(signatures, seeds, strict=True):
        row[seed % 128 :: change] += np.uint64(seed % 5)
    order = list(range(len(seeds)))
    drawn.shuffle(order)
    rows, kept, expected = dedup.rows_per_band(similarity), [], {}
    for index in order:
        bands = [slice(start, start + rows) for start in range(0, 128, rows)]
        same = [signatures[index] == signatures[other] for other in kept]
        if any(one.mean() >= similarity and any(one[band].all() for band in bands) for one in same):
            expected[index] = "near duplicate"
        else:
            kept.append(index)
    assert dedup.duplicates(list(range(len(seeds))), signatures, similarity, order) == expected


@pytest.mark.parametrize("similarity", [0.01, 0.1, 0.5, 0.6, 0.8, 0.9, 0.95, 0.99])
def test_a_band_is_as_long_as_finds_99_of_100_pairs(similarity):
    rows = dedup.rows_per_band(similarity)

    def recall(rows):
        return 1 - (1 - similarity**rows) ** (128 / rows)

    assert (rows == 1 or recall(rows) >= 0.99) and (rows == 32 or recall(2 * rows) < 0.99)
