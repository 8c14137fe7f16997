"""Adafactor against the paper's algorithm in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.small import mesh
from tpullm.training.optimizer.moments import scale_by_factored_moments

AXES = {
    "query": ("layers", "embed", "heads", "head"),
    "gate": ("layers", "experts", "embed", "mlp"),
    "out": ("layers", "heads", "head", "embed"),
    "embedding": ("vocabulary", "embed"),
    "scale": ("layers", "embed"),
}
SHAPES = {"query": (2, 6, 2, 4), "gate": (2, 3, 6, 5), "out": (2, 2, 4, 6), "embedding": (9, 6), "scale": (2, 6)}
# As matrices [stacked, inputs, outputs]; a scale is a vector of each layer.
MATRICES = {"query": (2, 6, 8), "gate": (6, 6, 5), "out": (2, 8, 6), "embedding": (1, 9, 6)}


def gradients(step):
    """Of sizes from 1e-6 to 1; step 3 jumps, so that the clip applies."""
    random, jump = np.random.default_rng(step), 30.0 if step == 3 else 1.0
    return {name: (random.normal(size=shape) * jump * 0.01**n) for n, (name, shape) in enumerate(SHAPES.items())}


def algorithm_4(grads: list[np.ndarray]) -> np.ndarray:
    """The last update of one matrix or vector, line by line as in the paper, in float64."""
    R = C = V = 0.0
    for t, G in enumerate(grads, 1):
        beta = 1 - t**-0.8
        square = G**2 + 1e-30
        if G.ndim == 2:
            n, m = G.shape
            R = beta * R + (1 - beta) * square @ np.ones(m)
            C = beta * C + (1 - beta) * np.ones(n) @ square
            V = np.outer(R, C) / (np.ones(n) @ R)
        else:
            V = beta * V + (1 - beta) * square
        U = G / np.sqrt(V)
    return U / max(1.0, np.sqrt((U**2).mean()))


@functools.cache
def updates():
    optimizer, found = scale_by_factored_moments(AXES), []
    step = jax.jit(optimizer.update)
    with jax.set_mesh(mesh()):
        state = jax.jit(optimizer.init)({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
        for number in range(1, 5):
            grads = jax.tree.map(np.float32, gradients(number))
            update, state = step(grads, state)
            found.append(jax.tree.map(np.asarray, update))
    return found, state


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_the_update_is_the_papers_for_each_layer_and_expert(steps):
    """float32 against float64 over 4 steps: 1e-5 is some hundred roundings."""
    found, history = updates()[0][steps - 1], [gradients(step) for step in range(1, steps + 1)]
    for name in SHAPES:
        shape = MATRICES.get(name, SHAPES[name])
        grads = [grad[name].reshape(shape) for grad in history]
        for number, of in enumerate(found[name].reshape(shape)):
            expected = algorithm_4([grad[number] for grad in grads])
            np.testing.assert_allclose(of, expected, rtol=1e-5, err_msg=f"{name} {number}")


def test_the_clip_holds_a_jump():
    """Without it the update of step 3, whose gradients are 30 times the earlier ones, would exceed 1."""
    found = updates()[0][2]
    for name, update in found.items():
        assert np.sqrt(np.mean(update**2)) < 1 + 1e-5, name
    assert np.sqrt(np.mean(found["scale"] ** 2)) > 0.99


def test_a_matrix_costs_a_number_a_row_and_one_a_column():
    _, state = updates()
    shapes = {name: (state.rows[name].shape, state.columns[name]) for name in SHAPES}
    assert shapes["query"][0] == (2, 6, 1, 1) and shapes["query"][1].shape == (2, 1, 2, 4)
    assert shapes["gate"][0] == (2, 3, 6, 1) and shapes["gate"][1].shape == (2, 3, 1, 5)
    assert shapes["out"][0] == (2, 2, 4, 1) and shapes["out"][1].shape == (2, 1, 1, 6)
    assert shapes["scale"] == ((2, 6), optax.MaskedNode())


def test_an_element_that_never_moves_has_no_update():
    optimizer = scale_by_factored_moments({"w": ("embed", "mlp")})
    zeros = {"w": jnp.zeros((3, 4))}
    found = jax.jit(lambda zeros: optimizer.update(zeros, optimizer.init(zeros), zeros)[0])(zeros)
    assert (np.asarray(found["w"]) == 0).all()
