import numpy as np

from tpullm.evaluation.scoring import weights

TEXT = "私はリンゴを食べる。"


def test_each_token_looks_back_only_and_at_one_in_all(session):
    tokens, found = weights(session, TEXT)
    assert tokens[0] == "<s>" and "".join(tokens[1:]) == TEXT
    T, config = len(tokens), session.architecture.config
    assert found.shape == (config.layers, config.heads, T, T)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    assert np.abs(np.triu(found, 1)).max() == 0
