"""What `evaluate` says of tenki is true of the model: laws that hold for any model, on one that is known."""

import math
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from tpullm.corpus import tenki
from tpullm.data.token_store import write_store
from tpullm.evaluation import tenki_truth
from tpullm.system.errors import UserError


@pytest.fixture
def held_out(session, tmp_path):
    """A store with three documents of tenki, and the documents: (path, texts, ids)."""
    texts = list(tenki.documents(3, seed=0))
    ids = [session.tokenizer.document(text) for text in texts]
    lengths = np.array([len(document) for document in ids])
    part = (np.concatenate(ids).astype(np.uint16), lengths, np.arange(3, dtype=np.uint64))
    write_store(tmp_path / "store", iter([part]), np.dtype(np.uint16))
    return tmp_path / "store", texts, ids


def test_the_gap_of_a_model_that_gives_each_document_half_of_its_probability(session, held_out, monkeypatch):
    """It is log(2) nats a document; the tokens that are predicted are all but the first of a document."""
    path, texts, ids = held_out
    halved = [np.array([tenki.log_probability(text) - math.log(2)]) for text in texts]
    monkeypatch.setattr(tenki_truth, "log_probabilities", lambda session, documents: halved)
    model = SimpleNamespace(tokenizer=session.tokenizer, context_length=1000)
    found, predicted = tenki_truth.loss_and_entropy(path, model), sum(map(len, ids)) - 3
    assert (found["tokens"], found["documents"]) == (predicted, 3)
    assert found["gap_nats_per_token"] == pytest.approx(3 * math.log(2) / predicted)
    assert found["entropy_nats_per_token"] == pytest.approx(-sum(map(tenki.log_probability, texts)) / predicted)
    assert found["loss_nats_per_token"] == pytest.approx(found["entropy_nats_per_token"] + found["gap_nats_per_token"])


def test_a_document_longer_than_the_context_is_left_out_and_nothing_else_is(session, held_out, monkeypatch):
    path, _, ids = held_out
    monkeypatch.setattr(tenki_truth, "log_probabilities", score := Mock(return_value=[np.zeros(1)] * 2))
    longest = max(map(len, ids))
    model = SimpleNamespace(tokenizer=session.tokenizer, context_length=longest - 1)
    found, scored = tenki_truth.loss_and_entropy(path, model), score.call_args.args[1]
    assert found["documents"] == len(scored)
    assert sorted(scored) == sorted(document for document in ids if len(document) < longest)
    with pytest.raises(UserError, match="no held-out document fits model.context_length 2"):
        tenki_truth.loss_and_entropy(path, SimpleNamespace(tokenizer=session.tokenizer, context_length=2))


def test_a_blank_lists_the_true_words_and_then_those_that_only_the_model_expects(session, monkeypatch):
    monkeypatch.setattr(tenki_truth, "fill_blank", lambda session, text: [("赤い", 0.3), ("青い", 0.7)])
    truth, words = tenki.blank(tenki.BLANKS[0]), tenki_truth.compare_blanks(session)["table"][0]["words"]
    assert [word["word"] for word in words] == [*truth, "青い", "赤い"]
    assert [word["model"] for word in words] == [0.0] * len(truth) + [0.7, 0.3]


def test_a_swap_is_right_if_both_verbs_are(session, monkeypatch):
    """Of a row's three verbs one has the score 0.8 and two 0.1; the shares are over the verbs, at any scale."""
    likely = {"私は本を読む", "私はリンゴを食べる", "私は歌を読む"}
    scored = []

    def score(session, texts):
        scored.extend(texts)
        return [math.log(0.8 if text in likely else 0.1) - 5 * text.startswith("私は本") for text in texts]

    monkeypatch.setattr(tenki_truth, "text_log_probabilities", score)
    words = [("本", "読む"), ("リンゴ", "食べる"), ("歌", "聞く")]
    pairs = [(a, b) for a in words for b in words if a != b]
    swaps = [tenki.Swap(f"私は{a[0]}を", a[0], b[0], f"私は{b[0]}を", a[1], b[1]) for a, b in pairs]
    monkeypatch.setattr(tenki, "swaps", lambda: swaps)
    found = tenki_truth.compare_swaps(session)
    assert found["accuracy"] == 2 / 6 and found["pairs"] == 6
    assert sorted(scored) == sorted({f"私は{thing}を{verb}" for thing, _ in words for _, verb in words})
    verbs = [(row["object"], row["model_verb"], row["right"]) for row in found["table"]]
    assert verbs == [("本", "読む", True), ("リンゴ", "食べる", True), ("歌", "読む", False)]
    np.testing.assert_allclose([row["probability"] for row in found["table"]], 0.8)


def test_a_model_that_knows_the_truth_has_no_distance_and_one_that_finds_no_word_has_all(session, monkeypatch):
    monkeypatch.setattr(tenki_truth, "fill_blank", lambda session, text: list(tenki.blank(text).items()))
    perfect = tenki_truth.compare_blanks(session)
    assert perfect["mean_total_variation"] == perfect["total_variation"] == 0
    assert all(word["model"] == word["truth"] for row in perfect["table"] for word in row["words"])

    monkeypatch.setattr(tenki_truth, "fill_blank", Mock(side_effect=UserError("no word")))
    assert tenki_truth.compare_blanks(session)["mean_total_variation"] == pytest.approx(1)
