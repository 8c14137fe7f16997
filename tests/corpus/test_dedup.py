"""Copies share a key, n-grams are those of the words, and lines are known by their letters."""

import hashlib
import random
import re
import unicodedata
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tpullm.corpus import characters, dedup
from tpullm.corpus.dedup import GOLDEN, splitmix64


@pytest.mark.parametrize(
    ("text", "copies", "other"),
    [
        ("To be, or not.", ["to be or not", "ＴＯ ＢＥ，\nor\tnot！", "“tobe… or not”"], "to be or nut"),
        ("ガラスの、りんご。", ["ｶﾞﾗｽのりんご", "ガラスの，りんご．", "ガラス の りんご！"], "カラスの、りんご。"),
        ("1+1=2", ["１＋１＝２", "1 + 1 = 2"], "1+1=3"),
        ("x-1.5 2", ["Ｘ － １．５，２", "x – 1.5 (2)"], "x-1 5.2"),
        ("Grüße aus Köln", ["GRÜSSE AUS KÖLN", "gru\u0308ße aus ko\u0308ln"], "Grusse aus Koln"),
        ("?! …", [" ?!\n…"], "?!"),
    ],
)
def test_an_exact_copy_may_differ_in_width_case_space_and_punctuation(text, copies, other):
    assert {dedup.exact_key(copy) for copy in copies} == {dedup.exact_key(text)} != {dedup.exact_key(other)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("12 + 3 = ?", "1 + 23 = ?"),
        ("3 - 4", "3 + 4"),
        ("if a < b: return a", "if a > b: return a"),
        ("x = 4", "x = -4"),
    ],
)
def test_texts_that_say_something_else_by_a_sign_or_a_space_are_neither_exact_nor_near_copies(one, other):
    assert dedup.exact_key(one) != dedup.exact_key(other)
    assert dedup.similarity(dedup.sketch(one), dedup.sketch(other)) < 0.7


def folded(text):
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).replace("–", "-")
    text = re.sub(r"(?<=[0-9])\.(?=[0-9])", "!", text)
    text = "".join(one if one.isalnum() or one in "+-*/<>=×÷!" else " " for one in text)
    return re.sub("(?<=[0-9]) +(?=[0-9])", "_", text).replace(" ", "").replace("_", " ").replace("!", ".")


@given(st.text(st.sampled_from("aÉ12３½ .．,+－–-<＝がｶﾞ\u3099e\u0301\n"), max_size=20))
def test_an_exact_key_is_the_hash_of_letters_digits_signs_and_what_parts_digits(text):
    told = folded(text).encode("utf-32-le") or " ".join(text.split()).encode()
    assert dedup.exact_key(text) == int.from_bytes(hashlib.sha256(told).digest()[:8], "little")


def test_a_sketch_keeps_no_other_hashes_in_memory():
    assert dedup.sketch(" ".join(map(str, range(5000)))).base is None


@settings(max_examples=10)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=112, max_size=112), max_size=3))
def test_the_key_of_a_band_is_a_hash_of_its_seven_rows_and_its_number(rows):
    found = dedup.bands([np.array(row, np.uint64) for row in rows])
    assert found.shape == (len(rows), 16) and found.dtype == np.uint64
    for row, keys in zip(rows, found.tolist(), strict=True):
        for band, key in enumerate(keys):
            expected = band
            for value in row[7 * band : 7 * band + 7]:
                expected = mix((expected * 0x9E3779B97F4A7C15 + value) & MASK)
            assert key == expected


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
        ("今日は いい天気\nですね。", "今日はいい天気ですね"),
        ("`ls l`は一覧、dirとは2語。", [*"ls l は 一 覧 dir と は 2 語".split()]),
    ],
)
def test_a_signature_is_the_least_product_of_each_odd_number_and_a_hash_of_five_units(text, units):
    codes = [ord(unit) if unit > "\u3000" else zlib.crc32(unit.encode()) for unit in units]
    size = min(5, len(codes))
    shingles = [shingle(codes[start : start + size]) for start in range(len(codes) - size + 1)]
    expected = [min(one * (mix(number) | 1) & MASK for one in shingles) for number in range(1, 113)]
    assert dedup.signature(text).tolist() == expected


def test_a_long_text_has_the_signature_of_all_its_shingles():
    """It is computed some shingles at once: the last of them count too."""
    text = " ".join(f"word{random.Random(number).randrange(5000)}" for number in range(5000))
    shingles = dedup.hashes(dedup.units(text), dedup.SHINGLE)
    assert len(shingles) > 4000
    assert dedup.signature(text).tolist() == [int((shingles * one).min()) for one in dedup.MULTIPLIERS_P]


LETTERS = "aZéİß9½_'-+–.กのアह्\u0301😀\x7f\x80\u07ff\u0800\uffff \n"  # of one to four bytes, and the last of each


def one_by_one(text):
    found = re.findall(r"[-+]|[\u0e01\u3041-\u30ff]|[^\W\u0e01\u3041-\u30ff]+", text.lower().replace("–", "-"))
    codes, signs = [], 0
    for unit in found:
        if unit in "-+":
            signs += mix(ord(unit))
        else:
            codes.append((ord(unit) if unit in "กのア" else zlib.crc32(unit.encode())) + signs & MASK)
            signs = 0
    return codes or [zlib.crc32(text.lower().encode())]


@given(st.text(st.sampled_from("abcé İ.\n_9"), max_size=60) | st.text(st.sampled_from(LETTERS), max_size=20))
@example("")
@example("?!")
@example("a" * 31 + " " + "b" * 32 + " " + "c" * 33 + " é" + "d" * 500 + ".")
def test_words_have_the_crc_of_their_bytes_and_what_signs_stand_before_them_and_single_characters_are_alone(text):
    found = dedup.units(text)
    assert found.dtype == np.uint64 and found.tolist() == one_by_one(text)


def test_the_table_knows_each_character():
    """Those beyond its end, too, which have the last entry."""
    letters = "".join(map(chr, range(0x110000)))
    expected = np.zeros(len(letters), bool)
    for match in re.finditer(r"\w+", letters):
        expected[match.start() : match.end()] = True
    assert np.array_equal(characters.of_words().take(np.arange(len(letters)), mode="clip"), expected)
    beyond = letters[characters.END :]
    assert not any(map(str.isspace, beyond)) and not any(map(str.isalpha, beyond))


LINES = ["All rights reserved by Example Inc.", "all RIGHTS reserved 2019, by example inc", "short", "", "１２３" * 9]
LINES += ["これは多くの文書にある行です。", "七文字の行です", "六文字の行だ", "| 12,345 | 67,890 | 11.5 % | 12,345 |"]
LINES += ["exactly twenty letters", "only nineteen lette"]


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_each_line_is_there_once_with_its_characters(texts):
    counts = Counter()
    for text in texts:
        letters = "".join(letter for letter in text.lower() if ord(letter) > 127 or letter.isalpha())
        if letters:  # a document may be mostly short lines
            counts[letters] += len(text) if len(letters.encode()) >= 20 else 0
    expected = {dedup.lines_of(letters)["key"].item(): count for letters, count in counts.items()}
    found = dedup.lines_of("\n".join(texts))
    assert dict(zip(found["key"].tolist(), found["characters"].tolist(), strict=True)) == expected
    assert np.all(found["key"][1:] > found["key"][:-1])


# The first outputs of the published generator (Vigna, prng.di.unimi.it/splitmix64.c) from seed 1234567.
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_splitmix64_gives_the_published_numbers():
    states = (np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * GOLDEN).astype(np.uint64)
    assert splitmix64(states).tolist() == PUBLISHED


WORDS = st.lists(st.sampled_from("a b c d e f g h".split()), min_size=1, max_size=60)


def shingles_of(words):
    return {tuple(words[start : start + 5]) for start in range(max(len(words) - 4, 1))}


@given(WORDS, WORDS, st.integers(0, 60))
def test_the_similarity_of_sketches_is_that_of_jaccard(first, second, common):
    """Of texts of few shingles exactly."""
    second = first[:common] + second
    one, other = shingles_of(first), shingles_of(second)
    found = dedup.similarity(*(dedup.sketch(" ".join(words)) for words in (first, second)))
    assert found == len(one & other) / len(one | other)


@pytest.mark.parametrize("kept", [0.5, 0.8, 0.9, 1.0])
def test_the_similarity_of_long_texts_is_estimated(kept):
    """Within four standard deviations of the lowest 1,024 hashes."""
    random_ = random.Random(0)
    first = [str(random_.randrange(10**6)) for _ in range(20_000)]
    second = first[: int(kept * len(first))] + [str(random_.randrange(10**6)) for _ in range(3_000)]
    one, other = shingles_of(first), shingles_of(second)
    jaccard = len(one & other) / len(one | other)
    sketches = [dedup.sketch(" ".join(words)) for words in (first, second)]
    assert [len(own) for own in sketches] == [dedup.SKETCH] * 2
    assert abs(dedup.similarity(*sketches) - jaccard) < 4 * 0.0157 and dedup.similarity(*sketches) not in (0, 1)


def test_texts_are_compared_without_known_lines_but_for_those_that_have_no_others():
    footer = "All rights reserved by Example Inc., 2024"
    text = f"One line.\n{footer}\n\nAnd another one.\n"
    known = dedup.lines_of(footer.upper())["key"]
    assert dedup.without_lines(text, known) == "One line.\n\nAnd another one.\n"
    for whole in ("no such line", f"{footer}\n\n{footer}"):
        assert dedup.without_lines(whole, known) == whole
    assert dedup.without_lines(text, known[:0]) == text
