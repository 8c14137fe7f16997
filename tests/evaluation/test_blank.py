import numpy as np
import pytest

from tpullm.evaluation import blank as blank_module
from tpullm.evaluation.blank import fill, is_one_word, propose
from tpullm.system.errors import UserError


class Grammar:
    """Stands in for a trained model: texts with their probabilities, as scores of whole texts and of next tokens."""

    def __init__(self, tokenizer, texts):
        self.tokenizer = tokenizer
        self.texts = {(tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id): p for text, p in texts.items()}

    def mass(self, ids):
        return sum(p for text, p in self.texts.items() if text[: len(ids)] == tuple(ids))

    def next_log_probabilities(self, session, sequences):
        rows = np.full((len(sequences), self.tokenizer.vocabulary_size), 1e-12)
        for row, ids in zip(rows, sequences, strict=True):
            for text, p in self.texts.items():
                if text[: len(ids)] == tuple(ids) and len(text) > len(ids):
                    row[text[len(ids)]] += p
        return np.log(rows / rows.sum(axis=1, keepdims=True))

    def text_log_probabilities(self, session, texts):
        ids = [[self.tokenizer.bos_id, *self.tokenizer.encode(text)] for text in texts]
        return [float(np.log(self.mass(text) + 1e-30)) for text in ids]


@pytest.fixture
def knows(session, monkeypatch):
    """A function that makes the session's model know exactly some texts."""

    def use(texts):
        grammar = Grammar(session.tokenizer, texts)
        monkeypatch.setattr(blank_module, "next_log_probabilities", grammar.next_log_probabilities)
        monkeypatch.setattr(blank_module, "text_log_probabilities", grammar.text_log_probabilities)
        return session

    return use


def test_words_are_weighed_by_both_sides(knows):
    session = knows(
        {
            "私は本を読むのが好きです。": 0.1,
            "私は新聞を読むのが好きです。": 0.1,
            "私は新聞を読むのが大好きです。": 0.2,
            "私はリンゴを食べるのが好きです。": 0.6,
        }
    )
    words = dict(fill(session, "私は【?】を読むのが好きです。"))
    assert {word: round(p, 4) for word, p in words.items() if p > 1e-4} == {"本": 0.5, "新聞": 0.5}
    words = dict(fill(session, "私は【？】を読むのが"))
    assert words["新聞"] == pytest.approx(0.75, abs=1e-4)


def test_what_the_right_side_continues_is_proposed_first(knows):
    session = knows({"今日は雨です。": 0.9, "今日は寒い天気です。": 0.1})
    assert propose(session, "今日は", "天気です。")[0] == "寒い"
    assert propose(session, "今日は", "です。")[0] == "雨"


def test_the_likeliest_come_first_and_count_cuts(knows):
    session = knows({"今日は寒い天気です。": 0.5, "今日は暑い天気です。": 0.3, "今日は悪い天気です。": 0.2})
    assert [word for word, _ in fill(session, "今日は【?】天気です。", 2)] == ["寒い", "暑い"]


def test_long_texts_whose_probability_is_too_small_for_a_float_are_compared(knows, monkeypatch):
    session = knows({"今日は寒い天気です。": 0.75, "今日は暑い天気です。": 0.25})
    of_texts = blank_module.text_log_probabilities
    monkeypatch.setattr(blank_module, "text_log_probabilities", lambda *given: np.subtract(of_texts(*given), 2000))
    assert dict(fill(session, "今日は【?】天気です。"))["寒い"] == pytest.approx(0.75, abs=1e-4)


def test_nothing_on_one_side(knows):
    session = knows({"今日は寒い。": 0.75, "昨日は寒い。": 0.25})
    assert dict(fill(session, "【?】は寒い。"))["今日"] == pytest.approx(0.75, abs=1e-3)
    assert dict(fill(session, "今日は【?】"))["寒い"] > 0.9


def test_two_words_are_not_one(knows):
    """曇りな is 曇り and な; only 寒い is one word before ので."""
    session = knows({"今日は寒いので、本を読む。": 0.6, "今日は曇りなので、本を読む。": 0.4})
    words = dict(fill(session, "今日は【?】ので、本を読む。"))
    assert words["寒い"] == pytest.approx(1, abs=1e-3) and "曇りな" not in words


def test_a_phrase_where_no_single_word_fits(knows):
    session = knows({"昨日、本を読みました。": 0.7, "昨日、本を見ました。": 0.3})
    words = dict(fill(session, "昨日、本を【?】。"))
    assert words["読みました"] == pytest.approx(0.7, abs=1e-3)


def test_english_words_come_without_their_space(knows):
    session = knows({"The weather is cold today.": 0.6, "The weather is fine today.": 0.4})
    words = dict(fill(session, "The weather is 【?】 today."))
    assert words["cold"] == pytest.approx(0.6, abs=1e-3) and words["fine"] == pytest.approx(0.4, abs=1e-3)


def test_characters_that_go_by_their_bytes(knows):
    session = knows({"今日は鸚鵡です。": 0.6, "今日は雨です。": 0.4})
    assert dict(fill(session, "今日は【?】です。"))["鸚鵡"] == pytest.approx(0.6, abs=1e-3)


def test_candidates_are_words_only(session, monkeypatch):
    monkeypatch.setattr(blank_module, "_TOKENS", 3)
    for candidate in propose(session, "今日は", "です。"):
        assert not any(character in " 、。\n" for character in candidate)


def test_probabilities_of_any_model_are_a_distribution(session, monkeypatch):
    monkeypatch.setattr(blank_module, "_TOKENS", 3)
    words = fill(session, "今日は【?】天気です。")
    assert sum(p for _, p in words) == pytest.approx(1, abs=1e-6)
    assert len({word for word, _ in words}) == len(words)


@pytest.mark.parametrize("text", ["今日は寒い。", "【?】は【?】", ""])
def test_exactly_one_blank(session, text):
    with pytest.raises(UserError, match="exactly once"):
        fill(session, text)


def test_a_prefix_belongs_to_its_word():
    assert is_one_word("私は", "お茶", "を飲む。")
    assert is_one_word("今日は", "曇り", "なので、")
    assert not is_one_word("今日は", "曇りな", "ので、")
    assert not is_one_word("", "女の", "子がいる。")  # Sudachi reads 女の子 as one word, but 女の is two
    assert is_one_word("The weather is ", "fine", " today.")
