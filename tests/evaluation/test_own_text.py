"""What is said of the user's own text: the blanks, the beginnings and the compressor are true of it."""

import random
from unittest.mock import Mock

import numpy as np
import pytest

from tpullm.data.batch import Batch
from tpullm.evaluation import own_text
from tpullm.system.errors import UserError

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬが、何でも薄暗い所で泣いていた。"
ENGLISH = "He paused. Many people were reading their books in the quiet garden behind the house. They left."


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (JAPANESE, "どこで生れたかとんと見当がつかぬが、何でも薄暗い所で泣いていた。"),
        (ENGLISH, ENGLISH[11:-11]),
        # The words of the first third are left out, and only 本 is a content word here.
        ("あああああああああああああああ本だったのですよね。",) * 2,
    ],
)
def test_a_blank_is_for_a_word_of_a_whole_sentence_neither_short_nor_long(document, sentence):
    assert list(own_text.sentences_of_passage(document)) == [sentence]
    assert list(own_text.sentences_of_passage("x" * 500 + ".")) == []
    ((text, word),) = own_text.blanked_sentences([document])
    assert text.count(own_text.BLANK) == 1 and text.replace(own_text.BLANK, word) == sentence
    assert text.index(own_text.BLANK) >= len(text) / 4, "a model needs something before the blank"


@pytest.mark.parametrize(
    ("guesses", "place"),
    [([("泣い", 0.9), ("笑っ", 0.1)], 1), ([("笑っ", 0.9), ("泣い", 0.1)], 2), ([("笑っ", 1.0)], 0), (None, 0)],
)
def test_a_blank_tells_where_the_right_word_stands(monkeypatch, guesses, place):
    """Also if the model has learned so little that it finds no word."""

    monkeypatch.setattr(own_text, "fill_blank", Mock(side_effect=[guesses or UserError("no word")]))
    (found,) = own_text.fill_own_blanks(None, ["昨日、猫は薄暗い所で静かに泣いていた。"])
    assert found["word"] == "泣い" and found["place"] == place
    assert found["words"] == [{"word": word, "model": share} for word, share in guesses or ()]


@pytest.fixture
def echoes(monkeypatch):
    monkeypatch.setattr(own_text, "sample_texts", lambda session, prompts, tokens, seed: prompts)


@pytest.mark.usefixtures("echoes")
def test_a_continuation_begins_where_the_text_goes_on():
    """A prompt ends between words, and is never short."""
    spaced = ["word " * 12, "x" * 50 + " and more words"]
    spaced = [beginning + "of a passage that is longer than a prompt. " * 5 for beginning in spaced]
    for documents in ([JAPANESE, ENGLISH, "短い", JAPANESE[::-1]], spaced):
        found = own_text.continue_passages(None, documents, tokens=4, seed=0)
        assert found and all(item["text"] and item["original"] for item in found)
        for item in found:
            assert any((item["prompt"] + item["original"]) in document for document in documents)
    for item in found:
        assert 20 <= len(item["prompt"]) <= 40 and len(item["original"]) == 120
        assert " " not in item["prompt"] or item["original"].startswith(" ")
    assert own_text.continue_passages(None, ["短い"], tokens=4, seed=0) == []


@pytest.mark.usefixtures("echoes")
def test_one_long_text_gives_as_many_examples_as_many_short_ones():
    novel = "".join(f"{n}人目の男は、静かな庭のある家で長い間ずっと古い本を読んでいた。\n" for n in range(300))
    texts = own_text.cut_into_passages([novel])
    assert "".join(texts) == novel and max(map(len, texts)) <= 600
    found = own_text.continue_passages(None, texts, tokens=2, seed=0)
    assert len({item["prompt"] for item in found}) == own_text.CONTINUATIONS
    assert len(list(own_text.blanked_sentences(texts))) >= own_text.BLANKS


def test_the_compressor_knows_what_it_has_read_which_is_no_more_than_its_bound(monkeypatch):
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghij", k=8)) for _ in range(3000)]
    known, unknown = " ".join(words), " ".join("".join(drawn.choices("klmnopqrst", k=8)) for _ in range(300))
    again = own_text.compressor_bits_per_byte([known], known[5000:8000].encode())
    new = own_text.compressor_bits_per_byte([known], unknown.encode())
    assert again < 0.1
    # Eight of ten letters are log2(10) bits each, the space between them next to nothing.
    assert 0.95 < new / (8 * np.log2(10) / 9) < 1.35
    assert own_text.compressor_bits_per_byte([], b"") == 0
    monkeypatch.setattr(own_text, "_MOST_TRAINING_BYTES", 10)
    for read in (["12345", "67890"], ["12345", "6789", "0"]):
        texts = iter([*read, "never read"])
        own_text.compressor_bits_per_byte(texts, b"x")
        assert list(texts) == ["never read"]


def test_the_bytes_that_are_compared_are_those_that_count(session):
    text = "今日は。🙂"
    ids = session.tokenizer.document(text)
    targets, weights = np.array([ids[1:] + [7, 7]]), np.array([[1.0] * (len(ids) - 1) + [0.0, 0.0]])
    batch = Batch(targets, targets, targets, targets, weights)
    assert own_text.evaluated_bytes(session, [batch]) == text.encode()
