"""Byte pairs: any text comes back, no text is a special token, and what is learned depends on the texts alone."""

import dataclasses
import json
import os
import subprocess
import sys
from operator import mul

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.tokenizer.test_trainer import JAPANESE, STRINGS, TEXTS
from tpullm.recipe.schema import TokenizerConfig
from tpullm.system.errors import UserError
from tpullm.tokenizer import byte_pairs, load, trainer
from tpullm.tokenizer.trained import SPECIAL, TrainedTokenizer

PAIRS = TokenizerConfig(model_type="bpe", vocabulary_size=480, words="none")
MARKUP = "<s>a</s><pad><|user|>b<|end|><|reserved_3|>"


def train(folder, words="none", texts=TEXTS, **changes):
    return trainer.train(texts, dataclasses.replace(PAIRS, words=words, **changes), folder / "tokenizer.model")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Of texts that are full of the names of special tokens."""
    return train(tmp_path_factory.mktemp("pairs"), texts=[*TEXTS, ("en", MARKUP * 50)])


@pytest.fixture(scope="module")
def exported(made):
    """The same model in the library that others use it with."""
    return Tokenizer.from_str(made.serialized().decode())


def learned(made):
    """The pieces of more than one byte."""
    return {
        piece for piece, held in zip(made.names, map(made.bytes_of, range(len(made.names))), strict=True) if held[1:]
    }


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(STRINGS, st.lists(st.sampled_from(SPECIAL)).map("".join)))
def test_any_text_comes_back_and_none_is_a_special_token(made, text):
    ids = made.encode(text)
    assert made.decode(ids) == text and b"".join(map(made.bytes_of, ids)) == text.encode()
    assert all(map(made.bytes_of, ids))


def by_hand(text, described):
    """The pieces by the definition: in each part, the pair that was learned first is joined, until none is left."""
    letters = {byte: letter for letter, byte in byte_pairs.byte_letters().items()}
    ranks = {tuple(pair): rank for rank, pair in enumerate(described["model"]["merges"])}
    for part in regex.findall(byte_pairs.PATTERN, text):
        pieces = [letters[byte] for byte in part.encode()]
        while pairs := [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in ranks]:
            first, second = min(pairs, key=ranks.get)
            joined, at = [], 0
            while at < len(pieces):
                is_pair = pieces[at : at + 2] == [first, second]
                joined.append(first + second if is_pair else pieces[at])
                at += 1 + is_pair
            pieces = joined
        yield from pieces


@settings(max_examples=60, deadline=None)
@given(
    text=st.lists(
        st.one_of(
            st.sampled_from([line for _, line in TEXTS]),
            st.text("天気ab 1.\n\t'ｓé"),
            st.builds(mul, st.sampled_from([" ", "\u3000", "\t ", " \n", "=", "ab"]), st.integers(90, 310)),
        )
    ).map("".join)
)
def test_the_split_is_that_of_the_definition(made, exported, text):
    described, ids = json.loads(made.serialized()), made.encode(text)
    assert ids == [described["model"]["vocab"][piece] for piece in by_hand(text, described)]
    assert ids == exported.encode(text).ids


def test_digits_stand_alone_and_words_have_the_space_before_them(made):
    assert [piece for piece, _ in made.pieces("Many people\n1999")] == ["Many", " people", "\n", "1", "9", "9", "9"]
    assert len(made.encode("\n    for")) <= 3
    assert [piece for piece, _ in made.pieces("花")] == ["<0xE8>", "<0x8A>", "<0xB1>"]


def test_pieces_are_within_words_or_go_on_to_endings_or_anywhere(tmp_path):
    strict, soft, none = (learned(train(tmp_path, words, vocabulary_size=999)) for words in ("strict", "soft", "none"))
    assert {"天気", "です"} <= strict and not {"はいい", "ですね", "天気です", "いい天気", "天気が"} & strict
    assert {"天気です", "のが"} <= soft and not {"はいい", "いい天気"} & soft
    assert [any("いい" in piece and "天気" in piece for piece in found) for found in (strict, soft, none)] == [0, 0, 1]
    assert {" people", " weather", "。\n"} <= strict & soft & none, "what is not Japanese is learned alike"


def test_special_tokens_come_first_as_those_of_the_other_model(made):
    assert made.names[:9] == [*SPECIAL, "<|reserved_0|>"] and made.pad_id == 0 and made.stop_ids == [2, 7]
    assert trainer.fixed_tokens(PAIRS) == 8 + 16 + 256
    assert sorted(map(made.bytes_of, range(24, 280))) == [bytes([byte]) for byte in range(256)]
    assert made.encode_marked("a<|end|>") == [*made.encode("a"), made.end_id] != made.encode("a<|end|>")


def test_the_size_is_what_is_asked_or_what_the_text_gives(tmp_path, made, capsys):
    assert train(tmp_path, vocabulary_size=440).vocabulary_size == 440
    small = train(tmp_path, vocabulary_size=60_000)
    assert f"too few different pieces for tokenizer.vocabulary_size 60,000; {small.vocabulary_size}" in (
        capsys.readouterr().err
    )
    with pytest.raises(UserError, match="280 is too small: special tokens and bytes take 280; set it to 281 or more"):
        train(tmp_path, vocabulary_size=280)
    assert train(tmp_path, vocabulary_size=281).vocabulary_size == 281
    long = train(tmp_path, texts=[("en", "=" * 4000)] * 2, vocabulary_size=999)
    assert max(map(len, map(long.bytes_of, range(long.vocabulary_size)))) in range(32, 49)


WRITE = (
    "import sys; from tests.tokenizer.test_byte_pairs import *; from pathlib import Path;"
    "trainer.train(TEXTS[:: int(sys.argv[2])], PAIRS, Path(sys.argv[1]))"
)


@pytest.mark.slow
def test_the_model_is_the_same_for_any_threads_and_order(tmp_path):
    models = []
    for number, (threads, step) in enumerate(((1, 1), (4, 1), (2, -1))):
        file = tmp_path / f"{number}.model"
        environment = os.environ | {"RAYON_NUM_THREADS": f"{threads}", "TOKENIZERS_PARALLELISM": "true"}
        subprocess.run([sys.executable, "-c", WRITE, file, f"{step}"], check=True, env=environment)
        models.append(file.read_bytes())
    assert models[0] == models[1] == models[2]


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"model": {"vocab": {}}}'])
def test_a_broken_model_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match="tokenizer.model: not a"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"character 2 is U\+D800"):
        train(tmp_path).encode("ab\ud800")


def test_a_model_without_a_special_token_is_refused(made):
    with pytest.raises(UserError, match=r"it has no <\|user\|>\)"):
        TrainedTokenizer(made.serialized().replace(b"<|user|>", b"<|abuser|>"), "file")


def test_both_libraries_split_alike(made, exported):
    """Every character of the first plane, and some of the others, beside letters, spaces, digits and itself."""
    everything = [chr(point) for point in [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 97)]]
    for first in range(0, len(everything), 10_000):
        text = "".join(f"a{one}b {one}{one}1'{one}" for one in everything[first : first + 10_000])
        assert made.encode(text) == exported.encode(text).ids


@pytest.mark.parametrize("run, end", [(" ", ""), ("\t ", "b"), ("\u3000", "9"), (" \n", " b"), ("a", ""), ("猫", "")])
def test_a_run_of_a_million_characters_comes_back(made, run, end):
    """A million of white space are more than tiktoken's regular expressions can return to."""
    text = run * (1_100_000 // len(run)) + end
    assert made.decode(made.encode(text)) == text


def test_japanese_in_a_text_of_another_language_is_cut_too(tmp_path):
    both = [("en", f"{line.strip()} the weather\n") for line in JAPANESE * 20]
    assert "いい天気" not in learned(train(tmp_path, "strict", both)) and " weather" in learned(
        train(tmp_path, "strict", both)
    )
