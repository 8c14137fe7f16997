"""Cross-entropy in chunks is the cross-entropy; a loss or biases balance the loads of experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import SPREAD, batch, mesh, params
from tpullm.model.architecture import Architecture
from tpullm.model.experts.moe import Routing
from tpullm.model.mesh import RULES
from tpullm.recipe.schema import OptimizerConfig, TrainConfig
from tpullm.training import losses
from tpullm.training.losses import balance_losses, chunk_length, cross_entropy, expert_load_metrics, rebalanced_experts
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import batch_loss, make_step, with_params

B, T, D, V = 2, 12, 8, 37


def _inputs(seed: int = 0):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(B, T, D)).astype(np.float32)
    table = random.normal(size=(V, D)).astype(np.float32)
    targets = random.integers(0, V, (B, T)).astype(np.int32)
    weights = random.random((B, T)).astype(np.float32) * (random.random((B, T)) > 0.3)
    return hidden, table, targets, weights


def _ours(hidden, table, targets, weights, z_loss=0.0, chunks=0, softcap=0.0):
    hidden = jax.reshard(hidden, RULES.spec("batch", "time", "width"))
    targets, weights = (jax.reshard(array, RULES.spec("batch", "time")) for array in (targets, weights))
    table = jax.reshard(table, RULES.spec("vocabulary", "embed"))
    return cross_entropy(hidden, table, targets, weights, z_loss, softcap, chunks=chunks)


def _plain(hidden, table, targets, weights, z_loss, softcap=0.0):
    """The definition, in float64 numpy-like steps, with all logits at once."""
    logits = jnp.einsum("btd,vd->btv", hidden, table)
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nll = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (nll + z_loss * log_z**2))


@pytest.mark.parametrize(("chunks", "z_loss", "softcap"), [(1, 0.0, 0.0), (3, 0.1, 2.0)])
def test_value_and_gradients_are_those_of_the_definition_in_as_many_chunks_as_are_asked_for(chunks, z_loss, softcap):
    """Both are float32 sums of 24 terms; 1e-5 is about 100 roundings."""
    hidden, table, targets, weights = _inputs()
    of = lambda h, t: 3 * _ours(h, t, targets, weights, z_loss, chunks, softcap)[0]  # noqa: E731
    plain = lambda h, t: 3 * _plain(h, t, targets, weights, z_loss, softcap)  # noqa: E731
    with jax.set_mesh(mesh()):
        assert str(jax.make_jaxpr(of)(hidden, table)).count(f"length={chunks}\n") == 1
        found = jax.jit(jax.value_and_grad(of, (0, 1)))(hidden, table)
    expected = jax.jit(jax.value_and_grad(plain, (0, 1)))(hidden, table)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_value_alone_is_that_of_the_definition_too():
    """Where nothing is differentiated another program runs: an evaluation's."""
    hidden, table, targets, weights = _inputs()
    with jax.set_mesh(mesh()):
        value, sums = jax.jit(lambda h, t: _ours(h, t, targets, weights, 0.1, 3, 2.0))(hidden, table)
    plain = jax.jit(_plain, static_argnums=5)
    expected = [plain(hidden, table, targets, weights, z_loss, 2.0) for z_loss in (0.1, 0.0)]
    np.testing.assert_allclose([value, sums.loss], expected, rtol=1e-5)
    np.testing.assert_allclose(sums.loss + 0.1 * sums.z, value, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 12, 27, 97, 1000])
def test_a_chunk_is_the_largest_divisor_that_fits(monkeypatch, length):
    for most in (0, 1, 2, 9, 40, 5000):
        monkeypatch.setattr(losses, "logits_bytes", lambda most=most: 4 * B * V * most)
        fitting = [size for size in range(1, length + 1) if length % size == 0 and size <= max(most, 1)]
        assert chunk_length(B, length, V) == max(fitting)


def test_a_chunk_is_larger_on_an_accelerator(monkeypatch):
    sizes = {}
    for platform in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(losses, "target_platform", lambda platform=platform: platform)
        sizes[platform] = losses.logits_bytes()
    assert sizes["cpu"] == 64 << 20 and sizes["gpu"] == sizes["tpu"] == 1 << 30


def test_sums_count_weights_and_right_answers():
    hidden, table, targets, weights = _inputs()
    best = np.argmax(np.einsum("btd,vd->btv", hidden, table), axis=-1).astype(np.int32)
    with jax.set_mesh(mesh()):
        _, right = jax.jit(_ours)(hidden, table, best, weights)
        _, wrong = jax.jit(_ours)(hidden, table, (best + 1) % V, weights)
    np.testing.assert_allclose(right.weight, weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(right.correct, weights.sum(), rtol=1e-6)
    assert float(wrong.correct) == 0


def test_no_array_of_all_logits_exists():
    B, T, D, V = 8, 1024, 16, 32_000
    of = [((B, T, D), "float32"), ((V, D), "float32"), ((B, T), "int32"), ((B, T), "float32")]
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in of]
    with jax.set_mesh(mesh()):
        program = jax.jit(jax.grad(lambda *a: _ours(*a)[0], (0, 1))).lower(*shapes).compile()
    all_logits = 4 * B * T * V
    assert program.memory_analysis().temp_size_in_bytes < all_logits / 2


# For counts of work: wide enough that all but a hundredth are matmuls. Of two chunks the compiler counts one.
TARGETS, WIDE = np.zeros((4, 32), np.int32), ((4, 32, 512), (1024, 512))
MATMUL = 4 * 32 * 512 * 1024


def test_a_table_that_is_not_trained_costs_a_matmul_less():
    ones = np.ones(TARGETS.shape, np.float32)
    assert_a_frozen_table_costs_less(lambda h, t: _ours(h, t, TARGETS, ones, chunks=2)[0], frozen=2, trained=3)


def assert_a_frozen_table_costs_less(loss, frozen: int, trained: int):
    """Whether it is stopped or not asked for, and under `remat`. The hidden states' gradient has the same bits.

    Args:
        frozen, trained: matmuls of hidden states and table.
    """
    programs = [
        jax.grad(loss, (0, 1)),
        lambda hidden, table: jax.grad(lambda both: loss(both[0], jax.lax.stop_gradient(both[1])))((hidden, table))[0],
        lambda hidden, table: jax.grad(jax.checkpoint(lambda hidden: loss(hidden, table)))(hidden),
    ]
    random = np.random.default_rng(0)
    arrays = [random.normal(size=shape).astype(np.float32) / 8 for shape in WIDE]
    with jax.set_mesh(mesh()):
        compiled = [jax.jit(program).lower(*arrays).compile() for program in programs]
        (expected, _), *found = [program(*arrays) for program in compiled]
    for gradient in found:
        np.testing.assert_array_equal(gradient, expected)
    of = [program.cost_analysis() for program in compiled]  # which counts the body of a loop once
    counts = [(each[0] if isinstance(each, list) else each)["flops"] / MATMUL for each in of]
    assert counts == pytest.approx([trained, frozen, frozen], rel=0.03)


def test_the_balance_loss_is_that_of_the_paper_row_by_row():
    """Equations 17 to 20 of DeepSeek-V3, a token at a time; in float64, so 1e-6 is float32."""
    config, random = SPREAD.config, np.random.default_rng(0)
    L, B, T, E, k = 2, 3, 12, config.experts, config.experts_per_token
    scores = random.random((L, B, T, E))
    scores /= scores.sum(axis=-1, keepdims=True)
    real = random.random((B, T)) < 0.8
    real[2] = False  # a row of padding costs nothing
    expected = np.zeros(B)
    loads, sums = np.zeros((L, B, 1, E), np.int32), np.zeros((L, B, 1, E), np.float32)
    for layer, row in np.ndindex(L, B):
        tokens = max(real[row].sum(), 1)
        chosen, mean = np.zeros(E), np.zeros(E)
        for token in np.flatnonzero(real[row]):
            chosen[np.argsort(-scores[layer, row, token])[:k]] += 1
            mean += scores[layer, row, token] / tokens
        expected[row] += np.sum(E / (k * tokens) * chosen * mean)
        loads[layer, row, 0], sums[layer, row, 0] = chosen, mean * tokens
    found = balance_losses(Routing(jnp.asarray(loads), jnp.asarray(sums)), jnp.asarray(real.sum(axis=1)), config)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert expected[0] > 2 * 0.9 and expected[2] == 0


@pytest.mark.ci
def test_every_real_token_is_counted_k_times():
    b, one_layer = batch(rows=4), Architecture(dataclasses.replace(SPREAD.config, layers=1, remat="none"))
    with jax.set_mesh(mesh()):
        tree = params(architecture=one_layer)
        _, sums = jax.jit(lambda p: batch_loss(one_layer, p, b, dtype=jnp.float32))(tree)
    assert sums.loads.sum() == SPREAD.config.experts_per_token * (b.segment_ids > 0).sum()


def test_the_metrics_are_multiples_of_an_even_load():
    found = expert_load_metrics(jnp.asarray([[30, 10, 10, 10], [0, 30, 20, 10]]))
    assert found["expert_load"] == {"highest": 2.0, "lowest": 0.0}
    np.testing.assert_allclose(found["expert_loads"], [1.0, 4 / 3, 1.0, 2 / 3], rtol=1e-6)


def test_a_bias_moves_by_its_rate_against_the_load_and_by_nothing_else():
    before, after = ({"layers": {"mlp": {"balance": np.full((2, 4), value), "gate": value}}} for value in (0.5, 9.0))
    found = rebalanced_experts(after, before, jnp.asarray([[30, 10, 10, 10], [5, 5, 5, 5]]), 0.01)["layers"]["mlp"]
    np.testing.assert_allclose(found["balance"], [[0.49, 0.51, 0.51, 0.51], [0.5] * 4], rtol=1e-6)
    assert found["gate"] == 9.0, "all else is as the optimizer left it"


@pytest.mark.ci
@pytest.mark.parametrize("setting", [{"balance_loss": 0.3}, {"balance_rate": 0.01}])
def test_loads_become_even(setting):
    plain = dataclasses.replace(SPREAD.config, layers=1, remat="none", shared_experts=0, sinks=False)
    architecture = Architecture(dataclasses.replace(plain, **{"balance_loss": 0.0, "balance_rate": 0.0, **setting}))
    train = TrainConfig(batch_size=4, optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=1))
    tree = params(architecture=architecture)
    router = tree["layers"]["mlp"]["router"]
    router["bias"] = router["bias"].at[:, :2].set(1.0)
    highest, biases = [], []
    with jax.set_mesh(mesh()):
        optimizer = make_optimizer(train.optimizer, 60, architecture.axes)
        state = jax.jit(lambda tree: with_params(tree, optimizer))(tree)
        step = make_step(architecture, optimizer, train, jnp.float32, seed=0)
        for _ in range(60):
            state, metrics = step(state, jax.tree.map(jnp.asarray, batch()))
            highest.append(float(metrics["expert_load"]["highest"]))
            biases.append(np.asarray(state["params"]["layers"]["mlp"].get("balance", 0.0)))
    assert highest[0] > 2.5 and highest[-1] < 0.6 * highest[0] and metrics["balance_loss"] > 0.9
    if "balance_rate" in setting:
        np.testing.assert_array_equal(np.abs(biases[0]), np.float32(0.01))
        assert (biases[0][:, :2] < 0).all(), "the router preferred these two"
