import numpy as np
import pytest

from tpullm.evaluation import blank as blank_module
from tpullm.evaluation.blank import fill_blank, is_one_word, propose_between
from tpullm.system.errors import UserError


class Grammar:
    """Stands in for a trained model: texts with their probabilities, as scores of whole texts and of next tokens."""

    def __init__(self, tokenizer, texts, shift=0.0):
        self.tokenizer, self.shift = tokenizer, shift
        self.texts = {(tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id): p for text, p in texts.items()}

    def next_log_probabilities(self, session, sequences):
        rows = np.full((len(sequences), self.tokenizer.vocabulary_size), 1e-12)
        for row, ids in zip(rows, sequences, strict=True):
            for text, p in self.texts.items():
                if text[: len(ids)] == tuple(ids) and len(text) > len(ids):
                    row[text[len(ids)]] += p
        return np.log(rows / rows.sum(axis=1, keepdims=True))

    def text_log_probabilities(self, session, texts):
        found = []
        for ids in ((self.tokenizer.bos_id, *self.tokenizer.encode(text)) for text in texts):
            mass = sum(p for text, p in self.texts.items() if text[: len(ids)] == ids)
            found.append(float(np.log(mass + 1e-30)) + self.shift)
        return found


@pytest.fixture
def knows(session, monkeypatch):
    def use(texts, shift=0.0):
        grammar = Grammar(session.tokenizer, texts, shift)
        monkeypatch.setattr(blank_module, "next_log_probabilities", grammar.next_log_probabilities)
        monkeypatch.setattr(blank_module, "text_log_probabilities", grammar.text_log_probabilities)
        return session

    return use


READ = {
    "私は本を読むのが好きです。": 0.1,
    "私は新聞を読むのが好きです。": 0.1,
    "私は新聞を読むのが大好きです。": 0.2,
    "私はリンゴを食べるのが好きです。": 0.6,
}
COLD = {"今日は寒い。": 0.75, "昨日は寒い。": 0.25}
SO = {"今日は寒いので、本を読む。": 0.6, "今日は曇りなので、本を読む。": 0.4}
PAST = {"昨日、本を読みました。": 0.7, "昨日、本を見ました。": 0.3}
PARROT = {"今日は鸚鵡です。": 0.6, "今日は雨です。": 0.4}
ENGLISH = {"The weather is cold today.": 0.6, "The weather is fine today.": 0.4}


@pytest.mark.parametrize(
    ("texts", "asked", "expected"),
    [
        (READ, "私は【?】を読むのが好きです。", {"本": 0.5, "新聞": 0.5}),
        (READ, "私は【？】を読むのが", {"本": 0.25, "新聞": 0.75}),
        (COLD, "【?】は寒い。", {"今日": 0.75, "昨日": 0.25}),
        (COLD, "今日は【?】", {"寒い": 1}),
        (SO, "今日は【?】ので、本を読む。", {"寒い": 1}),  # 曇りな is 曇り and な, so two words
        (PAST, "昨日、本を【?】。", {"読みました": 0.7, "見ました": 0.3}),
        (ENGLISH, "The weather is 【?】 today.", {"cold": 0.6, "fine": 0.4}),  # without their space
        (PARROT, "今日は【?】です。", {"鸚鵡": 0.6, "雨": 0.4}),  # goes by bytes
    ],
)
def test_words_are_weighed_by_both_sides(knows, texts, asked, expected):
    """Also where the probability of a text is too small for a float."""
    for shift in (0, -2000):
        words = dict(fill_blank(knows(texts, shift), asked))
        assert {word: round(p, 3) for word, p in words.items() if p > 1e-3} == expected


def test_the_sides_may_be_longer_than_sudachi_takes():
    asked = [("雨が降る。" * 9_000, word, "を読む。" + "雪が降る。" * 9_000) for word in ("本", "本の山")]
    assert [is_one_word(*parts) for parts in asked] == [True, False]


def test_what_the_right_side_continues_is_proposed_first_and_count_cuts(knows):
    session = knows({"今日は雨です。": 0.9, "今日は寒い天気です。": 0.1})
    assert propose_between(session, "今日は", "天気です。")[0] == "寒い"
    assert propose_between(session, "今日は", "です。")[0] == "雨"
    session = knows({"今日は寒い天気です。": 0.5, "今日は暑い天気です。": 0.3, "今日は悪い天気です。": 0.2})
    assert [word for word, _ in fill_blank(session, "今日は【?】天気です。", 2)] == ["寒い", "暑い"]


def test_probabilities_of_any_model_are_a_distribution_over_words(session, monkeypatch):
    """The probabilities of tokens depend on the length of the text alone, and those of texts on their bytes."""
    logits_VV = np.random.default_rng(0).normal(0, 3, (64, session.tokenizer.vocabulary_size))
    log_p_VV = logits_VV - np.logaddexp.reduce(logits_VV, axis=1, keepdims=True)
    of_tokens = lambda session, rows: log_p_VV[[len(row) for row in rows]]  # noqa: E731
    of_texts = lambda session, texts: [-float(sum(text.encode()) % 9) for text in texts]  # noqa: E731
    monkeypatch.setattr(blank_module, "next_log_probabilities", of_tokens)
    monkeypatch.setattr(blank_module, "text_log_probabilities", of_texts)
    monkeypatch.setattr(blank_module, "_TOKENS", 3)
    words = fill_blank(session, "今日は【?】天気です。")
    assert sum(p for _, p in words) == pytest.approx(1, abs=1e-6)
    assert len({word for word, _ in words}) == len(words)
    assert not any(character in " 、。\n" for word, _ in words for character in word)


@pytest.mark.parametrize("text", ["今日は寒い。", "【?】は【?】", ""])
def test_exactly_one_blank(session, text):
    with pytest.raises(UserError, match="exactly once"):
        fill_blank(session, text)


def test_a_prefix_belongs_to_its_word():
    assert is_one_word("私は", "お茶", "を飲む。")
    assert is_one_word("今日は", "曇り", "なので、")
    assert not is_one_word("今日は", "曇りな", "ので、")
    assert not is_one_word("", "女の", "子がいる。")  # Sudachi reads 女の子 as one word, but 女の is two
    assert is_one_word("The weather is ", "fine", " today.")
