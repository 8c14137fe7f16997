"""What `evaluate` says of tenki is true of the model: laws that hold for any model, on one that is known."""

import math

import numpy as np
import pytest

from tpullm.corpus import tenki
from tpullm.errors import UserError
from tpullm.inference import tenki_truth


def swap(thing, verb, other, other_verb):
    return tenki.Swap(f"私は{thing}を", thing, other, f"私は{other}を", verb, other_verb)


def test_a_swap_is_right_if_both_verbs_are(session, monkeypatch):
    """Of a row's three verbs one has the score 0.8 and two 0.1; the shares are over the verbs, at any scale."""
    likely = {"私は本を読む", "私はリンゴを食べる", "私は歌を読む"}
    scored = []

    def score(session, texts):
        scored.extend(texts)
        return [math.log(0.8 if text in likely else 0.1) - 5 * text.startswith("私は本") for text in texts]

    monkeypatch.setattr(tenki_truth, "text_log_probabilities", score)
    words = [("本", "読む"), ("リンゴ", "食べる"), ("歌", "聞く")]
    found = tenki_truth.swaps(session, [swap(*a, *b) for a in words for b in words if a != b])
    assert found["accuracy"] == 2 / 6 and found["pairs"] == 6
    assert sorted(scored) == sorted({f"私は{thing}を{verb}" for thing, _ in words for _, verb in words})
    verbs = [(row["object"], row["model_verb"], row["right"]) for row in found["table"]]
    assert verbs == [("本", "読む", True), ("リンゴ", "食べる", True), ("歌", "読む", False)]
    np.testing.assert_allclose([row["probability"] for row in found["table"]], 0.8)


def test_a_model_that_knows_the_truth_has_no_distance_and_one_that_finds_no_word_has_all(session, monkeypatch):
    monkeypatch.setattr(tenki_truth, "fill", lambda session, text: list(tenki.blank(text).items()))
    perfect = tenki_truth.blanks(session)
    assert perfect["mean_total_variation"] == perfect["total_variation"] == 0
    assert all(word["model"] == word["truth"] for row in perfect["table"] for word in row["words"])

    def nothing(session, text):
        raise UserError("no word")

    monkeypatch.setattr(tenki_truth, "fill", nothing)
    assert tenki_truth.blanks(session)["mean_total_variation"] == pytest.approx(1)


def test_the_distance_is_the_share_of_probability_at_the_wrong_words(session, monkeypatch):
    """A quarter of each true probability moved to a word that is none."""
    truth = tenki.blank(tenki.BLANKS[0])
    model = {word: 0.75 * p for word, p in truth.items()} | {"赤い": 0.25}
    assert tenki_truth.total_variation(model, truth) == pytest.approx(0.25)


def test_answers_are_right_word_for_word(monkeypatch):
    questions = tenki.questions()[:3]
    said = {"base": ["", "?", " "], "tuned": [questions[0].answers[-1] + "\n", questions[1].answers[0], "?"]}
    monkeypatch.setattr(tenki_truth, "answer", lambda model, asked: said[model])
    found = tenki_truth.answers("base", "tuned", questions)
    assert found["base"]["accuracy"] == 0 and found["tuned"] == {"accuracy": pytest.approx(2 / 3), "questions": 3}
    assert [row["right"] for row in found["answers"]] == [True, True, False]
    assert [row["expected"] for row in found["answers"]] == [question.answers[0] for question in questions]
