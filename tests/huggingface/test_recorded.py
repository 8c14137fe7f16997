"""Every family against what transformers gave when it was recorded: the main suite has no transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.huggingface.record import FILE, PLACES
from tests.huggingface.small import MODELS, rows, weight
from tests.training.small import mesh
from tpullm.huggingface import configs, tensors
from tpullm.training.state import Architecture


def published(name):
    """A small model's architecture and parameters, through the tables of its family."""
    model_type, keys = MODELS[name]
    architecture = Architecture(configs.read({"model_type": model_type, **keys}, "config.json"))
    family = configs.FAMILIES[model_type]
    shapes, axes = tensors.flat(architecture.shapes), tensors.flat(architecture.axes)
    flat = {key: np.zeros(shape.shape, np.float32) for key, shape in shapes.items()}
    for their_name, ours, layer in tensors.pieces(family, shapes, architecture.config.layers):
        of = [shapes[key].shape[0 if layer is None else 1 :] for key in ours]
        inputs = tensors.input_dimensions(ours[0], axes[ours[0]])
        tensor = weight(their_name, tensors.their_shape(family, of, inputs))
        for key, part in zip(ours, tensors.split(family, tensor, of, inputs), strict=True):
            flat[key][... if layer is None else layer] = part
    return architecture, tensors.nested(flat)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_recorded(name):
    architecture, params = published(name)
    tokens = rows(1)[:, :-1]
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]

    @jax.jit
    def run(params):
        model = architecture.model(params)
        return model.logits(model(tokens, np.ones_like(tokens), positions, dtype=jnp.float32)[0])

    with jax.set_mesh(mesh()):
        found = np.asarray(run(params))[0, list(PLACES)]
    expected = np.load(FILE)[name]
    # Sums in another order in float32, as in test_parity.py.
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
