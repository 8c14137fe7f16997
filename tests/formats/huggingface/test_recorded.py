"""Every family against what transformers gave when it was recorded: the main suite has no transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.formats.huggingface.record import FILE, PLACES
from tests.formats.huggingface.small import MODELS, as_ours, published, rows
from tests.training.small import mesh


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_recorded(name):
    model_type, keys = MODELS[name]
    architecture, family, found = published({"model_type": model_type, **keys})
    params = as_ours(architecture, family, found)
    tokens = rows(1)[:, :-1]
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]

    @jax.jit
    def run(params):
        model = architecture.model(params)
        return model.logits(model(tokens, np.ones_like(tokens), positions, dtype=jnp.float32).hidden)

    with jax.set_mesh(mesh()):
        logits = np.asarray(run(params))[0, list(PLACES)]
    expected = np.load(FILE)[name]
    # Sums in another order in float32, as in test_parity.py.
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
