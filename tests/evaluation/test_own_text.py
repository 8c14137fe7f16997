"""What is said of the user's own text: the blanks, the beginnings and the compressor are true of it."""

import random

import numpy as np
import pytest

from tpullm.data.batch import Batch
from tpullm.evaluation import own_text
from tpullm.system.errors import UserError

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬが、何でも薄暗い所で泣いていた。"
ENGLISH = "He paused. Many people were reading their books in the quiet garden behind the house. They left."


def test_a_sentence_is_whole_and_neither_short_nor_long():
    assert list(own_text.sentences(JAPANESE)) == ["どこで生れたかとんと見当がつかぬが、何でも薄暗い所で泣いていた。"]
    assert list(own_text.sentences(ENGLISH)) == [ENGLISH[11:-11]]
    assert list(own_text.sentences("x" * 500 + ".")) == []


@pytest.mark.parametrize("document", [JAPANESE, ENGLISH])
def test_the_word_put_back_into_the_blank_gives_the_sentence(document):
    ((text, word),) = own_text.blanked([document])
    assert text.count(own_text.BLANK) == 1
    assert text.replace(own_text.BLANK, word) in document
    assert text.index(own_text.BLANK) >= len(text) / 4, "a model needs something before the blank"


def test_a_sentence_with_one_word_to_ask_for_asks_for_it():
    """In 30 characters without spaces the words of the first third are left out, and only 本 is a content word here."""
    ((text, word),) = own_text.blanked(["あああああああああああああああ本だったのですよね。"])
    assert word == "本" and text == f"あああああああああああああああ{own_text.BLANK}だったのですよね。"


@pytest.mark.parametrize("beginning", ["word " * 12, "x" * 50 + " and more words"])
def test_a_prompt_ends_between_words_and_is_never_short(beginning):
    passage = beginning + "of a passage that is longer than a prompt. " * 5
    prompt, original = own_text._cut(passage)
    assert passage.startswith(prompt + original) and 20 <= len(prompt) <= 40 and len(original) == 120
    assert " " not in prompt or original.startswith(" ")


def test_a_blank_tells_where_the_right_word_stands(session, monkeypatch):
    for guesses, place in (
        ([("泣い", 0.9), ("笑っ", 0.1)], 1),
        ([("笑っ", 0.9), ("泣い", 0.1)], 2),
        ([("笑っ", 1.0)], 0),
    ):
        monkeypatch.setattr(own_text, "fill", lambda session, text, guesses=guesses: guesses)
        monkeypatch.setattr(own_text, "blanked", lambda documents: iter([("所で【?】ていた。", "泣い")]))
        (found,) = own_text.blanks(session, [JAPANESE])
        assert found["place"] == place
        assert found["words"] == [{"word": word, "model": share} for word, share in guesses]


def test_a_model_that_finds_no_word_has_a_blank_without_words(session, monkeypatch):
    def nothing(session, text):
        raise UserError("no word")

    monkeypatch.setattr(own_text, "fill", nothing)
    (found,) = own_text.blanks(session, ["今日はとても寒い天気ですから、私は家で本を読みます。"])
    assert found["words"] == [] and found["place"] == 0 and found["word"]


def test_a_continuation_begins_where_the_text_goes_on(session):
    documents = [JAPANESE, ENGLISH, "短い", JAPANESE[::-1]]
    found = own_text.continuations(session, documents, tokens=4, seed=0)
    assert found and all(item["text"] and item["original"] for item in found)
    for item in found:
        assert any((item["prompt"] + item["original"]) in document for document in documents)
    assert own_text.continuations(session, ["短い"], tokens=4, seed=0) == []


def test_one_long_text_gives_as_many_examples_as_many_short_ones(session):
    novel = "".join(
        f"{number}人目の男は、静かな庭のある家で長い間ずっと古い本を読んでいた。\n" for number in range(300)
    )
    texts = own_text.passages([novel])
    assert "".join(texts) == novel and max(map(len, texts)) <= 600
    found = own_text.continuations(session, texts, tokens=2, seed=0)
    assert len({item["prompt"] for item in found}) == own_text.CONTINUATIONS
    assert len(list(own_text.blanked(texts))) >= own_text.BLANKS


def test_the_compressor_knows_what_it_has_read():
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghij", k=8)) for _ in range(3000)]
    known, unknown = " ".join(words), " ".join("".join(drawn.choices("klmnopqrst", k=8)) for _ in range(300))
    again = own_text.compressor_bits_per_byte([known], known[5000:8000].encode())
    new = own_text.compressor_bits_per_byte([known], unknown.encode())
    assert again < 0.1
    # Eight of ten letters are log2(10) bits each, the space between them next to nothing.
    assert 0.95 < new / (8 * np.log2(10) / 9) < 1.35
    assert own_text.compressor_bits_per_byte([], b"") == 0


def test_the_compressor_reads_no_more_than_its_bound(monkeypatch):
    monkeypatch.setattr(own_text, "_MOST_TRAINING_BYTES", 10)
    for read in (["12345", "67890"], ["12345", "6789", "0"]):
        texts = iter([*read, "never read"])
        own_text.compressor_bits_per_byte(texts, b"x")
        assert list(texts) == ["never read"]


def test_the_bytes_that_are_compared_are_those_that_count(session):
    tokenizer = session.tokenizer
    text = "今日は。🙂"
    ids = tokenizer.document(text)
    targets = np.array([ids[1:] + [7, 7]])
    weights = np.array([[1.0] * (len(ids) - 1) + [0.0, 0.0]])
    batch = Batch(targets, targets, targets, targets, weights)
    assert own_text.evaluated_bytes(session, [batch]) == text.encode()
