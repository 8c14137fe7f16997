"""Texts in windows: against the log-probability of each token, scored alone after what stands before it."""

import numpy as np
import pytest

from tpullm.evaluation.compared_texts import STRETCHES, nats, sizes
from tpullm.evaluation.measured_model import MeasuredModel
from tpullm.evaluation.scoring import log_probabilities

DOCUMENTS = ["本を読みます。", "今日はとてもいい天気ですね。\n" * 9, "リンゴ🍎を食べます。 " * 14]


def by_hand(wide, text, context):
    """The nats of each stretch, token by token. A window ends after the context, then each half a context further.

    Args:
        wide: the model with a context that holds any window.
    """
    ids, found, byte = [*wide.tokenizer.begin, *wide.tokenizer.encode(text)], np.zeros(len(STRETCHES)), 0
    for place in range(1, len(ids)):
        end = context + 1
        while end <= place:
            end += context // 2
        left = max(0, min(end, len(ids)) - context - 1)
        (scores,) = log_probabilities(wide, [ids[left : place + 1]])
        found[np.searchsorted(STRETCHES, byte, side="right") - 1] -= scores[-1]
        byte += len(wide.tokenizer.bytes_of(ids[place]))
    return found


def test_each_stretch_is_the_sum_of_its_tokens(wide):
    model = MeasuredModel(wide)
    found = nats(model, DOCUMENTS)
    assert model.counts.cut == 0
    one, two = [True, False, False, False, False], [True, True, False, False, False]
    assert (found > 0).tolist() == (sizes(DOCUMENTS) > 0).tolist() == [one, two, two]
    for own, text in zip(found, DOCUMENTS, strict=True):
        ids = wide.tokenizer.encode(text)
        (scores,) = log_probabilities(wide, [[*wide.tokenizer.begin, *ids]])
        begins = np.cumsum([0, *(len(wide.tokenizer.bytes_of(token)) for token in ids[:-1])])
        stretches = np.searchsorted(STRETCHES, begins, side="right") - 1
        nats_of = np.bincount(stretches, -np.array(scores), len(STRETCHES))
        assert own == pytest.approx(nats_of, rel=1e-5)  # sums of 200 numbers in float32


def test_a_text_that_is_longer_than_the_context(session, wide):
    model = MeasuredModel(session)
    found = nats(model, DOCUMENTS[1:2])
    assert model.counts.cut == 0 and len(wide.tokenizer.encode(DOCUMENTS[1])) > 2 * session.context_length
    assert found[0] == pytest.approx(by_hand(wide, DOCUMENTS[1], session.context_length), rel=1e-5)


def test_bytes_of_the_stretches():
    assert sizes(["a" * 5000, "あ" * 100]).tolist() == [[256, 768, 3072, 904, 0], [256, 44, 0, 0, 0]]


def test_a_tokenizer_without_a_begin_token(wide, monkeypatch):
    """The token that ends a document stands before it."""
    (scores,) = log_probabilities(wide, [[wide.tokenizer.eos_id, *wide.tokenizer.encode(DOCUMENTS[0])]])
    monkeypatch.setattr(wide.tokenizer, "begin", [])
    assert nats(MeasuredModel(wide), DOCUMENTS[:1]).sum() == pytest.approx(-scores.sum(), rel=1e-5)
