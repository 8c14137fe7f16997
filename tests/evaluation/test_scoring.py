"""Scores follow the chain rule and depend on no other row; attention looks back only."""

import jax.numpy as jnp
import numpy as np
import pytest

from tpullm.evaluation import scoring
from tpullm.evaluation.scoring import log_probabilities, next_log_probabilities, text_log_probabilities
from tpullm.system.errors import UserError

# Products of another shape sum in another order: log-probabilities of about 10 agree to 1e-3.
TOLERANCE = 1e-3
SEQUENCES = [[1, 300, 40, 77], [1, 9, 400, 300, 22, 501, 17, 5, 90], [1]]


def by_steps(session, ids):
    """The reference: the next token's distribution after every beginning."""
    log_p = next_log_probabilities(session, [ids[:end] for end in range(1, len(ids))])
    return [row[token] for row, token in zip(log_p, ids[1:], strict=True)]


def test_scores_are_the_chain_rule(session):
    scores = log_probabilities(session, SEQUENCES)
    for ids, found in zip(SEQUENCES, scores, strict=True):
        np.testing.assert_allclose(found, by_steps(session, ids) if len(ids) > 1 else [], atol=TOLERANCE)
    with pytest.raises(UserError, match="text: 33 tokens.* holds 32"):
        log_probabilities(session, [[1] * 33])


def test_a_sequence_of_any_length_has_its_own_scores(session, monkeypatch):
    monkeypatch.setattr(scoring, "dispatched", lambda session, program, tokens, *more: jnp.asarray(tokens, jnp.float32))
    sequences = [list(range(1, 1 + length)) for length in (20, 3, 1, 30, 17, 4) * 20]
    for ids, found in zip(sequences, log_probabilities(session, sequences), strict=True):
        assert found.tolist() == ids[:-1]


def test_a_text_begins_a_document(session):
    text = "今日はいい天気ですね。"
    ids = [session.tokenizer.bos_id, *session.tokenizer.encode(text)]
    assert text_log_probabilities(session, [text])[0] == pytest.approx(sum(by_steps(session, ids)), abs=TOLERANCE)


TEXT = "私はリンゴを食べる。"


def test_each_token_looks_back_only_and_at_one_in_all(session):
    tokens, found = scoring.attention_weights(session, TEXT)
    assert tokens[0] == "<s>" and "".join(tokens[1:]) == TEXT
    T, config = len(tokens), session.architecture.config
    assert found.shape == (config.layers, config.heads, T, T)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    assert np.abs(np.triu(found, 1)).max() == 0
