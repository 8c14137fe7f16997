"""A tokenizer learns from passages that together are as long as asked, and from every line of them."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tests.tokenizer.test_trainer import TEXTS
from tpullm.tokenizer import passages

LINES = st.text(st.sampled_from("aé本🙂\u2585 "), max_size=60).map(lambda line: line * 90)
DOCUMENTS = st.lists(LINES, max_size=8).map("\n".join)
BYTES = 4000  # SentencePiece drops lines of more than 4,192


def test_another_seed_takes_another_sample():
    samples = [passages.sample(TEXTS, 500, seed) for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]


def test_the_sample_is_as_large_as_asked_and_keeps_the_order():
    texts = [("en", f"document {number:04} " * 20) for number in range(200)]
    sample = passages.sample(texts, 10_000, 0)
    assert 9_500 < sum(len(text) for _, text in sample) <= 10_000
    assert sample == [text for text in texts if text in sample]
    assert passages.sample(texts, 10**9, 0) == texts


def test_a_long_text_gives_passages_from_all_over():
    text = "".join(f"{number:09}\n" for number in range(20_000))
    sample = passages.sample([("en", text)], 40_000, 0)
    places = sorted(int(passage[:9]) for _, passage in sample)
    assert places[0] < 5_000 and places[-1] > 15_000 and len(places) > 8


def size(text):
    return len(text.encode())


@given(text=DOCUMENTS)
def test_the_passages_of_a_text_are_the_text_in_pieces_as_long_as_they_may_be(text):
    found = list(passages._passages(text))
    assert "".join(found) == text and all(found)
    for passage, after in zip(found, found[1:], strict=False):
        first = after.splitlines(keepends=True)[0]
        assert size(passage) + size(first) > BYTES  # the next line, or its first part, had no room
    assert all(size(passage) <= BYTES for passage in found)


@given(text=DOCUMENTS)
def test_the_lines_of_a_passage_are_all_of_it_but_what_the_trainer_keeps_for_itself(text):
    found = list(passages.lines(text))
    assert all(0 < size(line) <= BYTES and "\n" not in line for line in found)
    assert "".join(found) == text.replace("\u2585", "").replace("\n", "")
    whole = [line for line in text.replace("\u2585", "").split("\n") if 0 < size(line) <= BYTES]
    assert [line for line in found if line in whole] == whole


@given(line=LINES)
def test_a_line_is_cut_only_where_the_next_character_has_no_room(line):
    parts = list(passages._cut(line))
    assert "".join(parts) == line
    for part, after in zip(parts, parts[1:], strict=False):
        assert size(part) <= BYTES < size(part + after[0])


def test_lines_that_just_fit_fill_each_passage():
    lines = [f"{number}".ljust(999) + "\n" for number in range(10)]
    assert list(passages._passages("".join(lines))) == ["".join(lines[start : start + 4]) for start in (0, 4, 8)]


def reference(texts, characters, seed):
    """Whenever there is too much, the passage of the highest hash is given up; the last one stays."""
    kept, number = [], 0
    for language, text in texts:
        for passage in passages._passages(text):
            number += 1
            digest = hashlib.blake2b(f"{seed} {number} {passage}".encode(), digest_size=8).digest()
            kept.append((digest, language, passage))
            while len(kept) > 1 and sum(len(passage) for _, _, passage in kept) > characters:
                kept.remove(max(kept))
    return [(language, passage) for _, language, passage in kept]


@given(
    texts=st.lists(
        st.tuples(st.sampled_from(["ja", "en"]), st.text(st.sampled_from("ab本\n"), max_size=30)), max_size=12
    ),
    characters=st.integers(0, 200),
    seed=st.integers(0, 9),
)
def test_the_sample_is_that_of_the_lowest_hashes_in_their_order(texts, characters, seed):
    assert passages.sample(texts, characters, seed) == reference(texts, characters, seed)
