"""The step is causal, packed = unpacked, accumulated = whole; what it says of itself, and norms by layer."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.skipping import toy_loss
from tests.training.small import ARCHITECTURE, CONFIG, EXPERTS, batch, mesh, params
from tpullm.data.batch import Batch
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import RULES
from tpullm.recipe.schema import OptimizerConfig, SkipConfig, TrainConfig
from tpullm.system.errors import correctable
from tpullm.training import step as step_module
from tpullm.training.optimizer.chain import make_optimizer, skip_bad_steps
from tpullm.training.step import (
    accumulate_gradients,
    batch_loss,
    make_evaluation,
    make_step,
    part_names,
    part_norms,
    step_norms,
    with_params,
)


def test_causal_no_hidden_state_depends_on_a_later_token():
    """By gradients: that at t does not depend on the vectors of tokens after t or of other segments."""
    b = batch(rows=1)
    tree = params()
    one_hot = jax.nn.one_hot(b.inputs, CONFIG.vocabulary_size)

    def squares(one_hot, weights):
        model = ARCHITECTURE.model(tree)
        # A matmul with one-hot rows is the lookup, with a gradient for each token.
        spec = RULES.spec("batch", "time", "width")
        model.embed = lambda tokens, positions, dtype: jax.reshard(
            jnp.einsum("btv,vd->btd", one_hot, tree["embedding"]), spec
        )
        hidden = model(b.inputs, b.segment_ids, b.positions, dtype=jnp.float32).hidden
        return jnp.sum(hidden**2 * weights[..., None])

    with jax.set_mesh(mesh()):
        gradient_of = jax.jit(jax.grad(squares))
        for position in range(0, 32, 3):
            weights = np.zeros_like(b.weights)
            weights[0, position] = 1
            gradient = np.abs(gradient_of(one_hot, weights))[0].sum(axis=-1)
            same_segment = b.segment_ids[0] == b.segment_ids[0, position]
            may_see = same_segment & (b.positions[0] <= b.positions[0, position])
            if b.segment_ids[0, position]:  # not padding
                assert (gradient[~may_see] == 0).all()
                assert (gradient[may_see] > 0).all()


Z_LOSS = 0.1


@functools.cache
def whole():
    """`(params, batch)` to the loss, its sums and its gradients; one program for batches of one shape."""
    loss = lambda tree, b: batch_loss(ARCHITECTURE, tree, b, dtype=jnp.float32, z_loss=Z_LOSS)  # noqa: E731
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _assert_close(one, other):
    """Float32 sums in another order: 1e-5 relative is some hundred roundings of 6e-8."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(np.abs(b).max()))


def test_packed_equals_unpacked():
    """Two documents in one row give the loss and gradients of the two in rows of their own; other rows are padding."""
    packed = jax.tree.map(lambda array: array * (np.arange(4) == 0)[:, None].astype(array.dtype), batch(seed=3))
    unpacked = jax.tree.map(np.zeros_like, packed)
    for row, segment in enumerate((1, 2)):
        where = packed.segment_ids[0] == segment
        for field in dataclasses.fields(Batch):
            getattr(unpacked, field.name)[row, : where.sum()] = getattr(packed, field.name)[0, where]
    assert unpacked.weights.sum() == packed.weights.sum() > 0
    with jax.set_mesh(mesh()):
        found, expected = (whole()(params(), b) for b in (packed, unpacked))
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-5)
    _assert_close(found[1], expected[1])


def test_accumulated_equals_whole():
    """The sum over micro-batches is the sum over the batch, though the micro-batches' weights differ."""
    b = jax.tree.map(jnp.asarray, batch())

    def of_part(tree, part, key):
        return batch_loss(ARCHITECTURE, tree, part, dtype=jnp.float32, z_loss=Z_LOSS)

    with jax.set_mesh(mesh()):
        (loss, sums), _ = whole()(params(), b)
        cut_loss, cut_sums = jax.jit(lambda tree: accumulate_gradients(of_part, 4, tree, b, None))(params())
    np.testing.assert_allclose((cut_loss, cut_sums.loss, cut_sums.weight), (loss, sums.loss, sums.weight), rtol=1e-5)


def test_micro_batches_are_every_nth_row_once():
    """So that each has rows of all devices; and a micro-batch is all that is computed at once."""
    seen = []

    def gradients(params, part, key):
        seen.append(part.inputs.shape)
        return params * part.inputs.sum(), part.inputs.at[:, 0].get().sum() ** 2

    rows = jnp.arange(8, dtype=jnp.int32)[:, None] * jnp.ones((1, 4), jnp.int32)
    b = Batch(**{field.name: rows for field in dataclasses.fields(Batch)})
    with jax.set_mesh(mesh()):
        total, squares = accumulate_gradients(gradients, 4, jnp.ones(()), b, None)
        assert accumulate_gradients(gradients, 1, jnp.ones(()), b, None)[0] == total == 4 * 28
    assert seen[-1] == (8, 4) and set(seen[:-1]) == {(2, 4)}
    assert squares == sum((n + n + 4) ** 2 for n in range(4))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_follows_the_gradient_of_the_mean_and_says_what_it_was(monkeypatch, accumulation):
    """By plain descent at a rate of 1. The loss that is told is without the z-loss, which is a tenth of it here."""

    def with_z_loss(architecture, tree, part, z_loss, **options):
        total, sums = toy_loss(architecture, tree, part)
        return (1 + z_loss) * total, sums._replace(correct=sums.weight / 4)

    monkeypatch.setattr(step_module, "batch_loss", with_z_loss)
    config = TrainConfig(batch_size=4, accumulation=accumulation, optimizer=OptimizerConfig(z_loss=Z_LOSS))
    b, optimizer = jax.tree.map(jnp.asarray, batch()), skip_bad_steps(optax.sgd(1.0), SkipConfig())
    with jax.set_mesh(mesh()):
        loss = jax.jit(jax.value_and_grad(lambda tree: toy_loss(ARCHITECTURE, tree, b)[0]))
        total, grads = loss(params())
        state = with_params(params(), optimizer)
        state, metrics = make_step(ARCHITECTURE, optimizer, config, jnp.float32, seed=0)(state, b)
    before, after, grads, tokens = jax.device_get((params(), state["params"], grads, b.weights.sum()))
    moved = jax.tree.map(np.subtract, before, after)
    grads = jax.tree.map(lambda leaf: (1 + Z_LOSS) * leaf / tokens, grads)
    for one, other in zip(jax.tree.leaves(moved), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * float(np.abs(other).max()) + 1e-7)
    assert metrics["tokens"] == tokens and metrics["accuracy"] == 0.25 and int(state["step"]) == 1
    np.testing.assert_allclose(metrics["loss"], total / tokens, rtol=1e-5)
    norm = sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(grads)) ** 0.5
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_each_step_and_seed_drops_other_activations(monkeypatch):
    """The model stands still; only the key differs, which is a factor of the loss here."""

    def by_chance(architecture, tree, part, key, **options):
        total, sums = toy_loss(architecture, tree, part)
        return total, sums._replace(loss=total * jax.random.uniform(key))

    monkeypatch.setattr(step_module, "batch_loss", by_chance)
    architecture = Architecture(dataclasses.replace(CONFIG, dropout=0.3))
    still, b = skip_bad_steps(optax.set_to_zero(), SkipConfig()), jax.tree.map(jnp.asarray, batch())

    def losses(step, steps):
        state, found = with_params(params(), still), []
        for _ in range(steps):
            state, metrics = step(state, b)
            found.append(float(metrics["loss"]))
        return found

    with jax.set_mesh(mesh()):
        step, other = (make_step(architecture, still, TrainConfig(batch_size=4), jnp.float32, seed) for seed in (0, 1))
        first, second = losses(step, 2)
        assert losses(step, 1) == [first] != [second] and losses(other, 1) != [first]


def test_the_step_is_compiled_with_the_options_of_its_platform_and_of_the_recipe():
    """Those of another platform are left out; one that XLA has not is told in a line."""
    others = {"xla_tpu_such": "1", "xla_gpu_such": "1", "xla_sc_such": "1", "xla_cpu_enable_fast_min_max": "true"}

    def compiled(options):
        still, config = skip_bad_steps(optax.set_to_zero(), SkipConfig()), TrainConfig(batch_size=4, compiler=options)
        step = make_step(ARCHITECTURE, still, config, jnp.float32, seed=0)
        step.lower(with_params(params(), still), jax.tree.map(jnp.asarray, batch())).compile()

    with jax.set_mesh(mesh()):
        compiled(others)
        with pytest.raises(jax.errors.JaxRuntimeError) as failed:
            compiled(others | {"xla_cpu_that_no_compiler_has": "1"})
    assert correctable(failed.value).startswith("compiler: XLA has no option xla_cpu_that_no_compiler_has here")


def test_a_bfloat16_step_is_near_a_float32_step():
    b = jax.tree.map(jnp.asarray, batch())
    with jax.set_mesh(mesh()):
        found = jax.jit(lambda tree: batch_loss(ARCHITECTURE, tree, b, dtype=jnp.bfloat16)[1].loss)(params())
        losses = [found, whole()(params(), b)[0][1].loss]
    # 8 bits of mantissa: 0.4 % for each matmul; the mean over about 60 tokens is closer.
    np.testing.assert_allclose(*losses, rtol=5e-3)
    assert losses[0] != losses[1]


def test_dropout_depends_on_the_step_only_and_is_off_in_evaluation():
    architecture = Architecture(dataclasses.replace(CONFIG, dropout=0.3))
    tree, b = params(), jax.tree.map(jnp.asarray, batch())
    with jax.set_mesh(mesh()):
        loss = jax.jit(lambda key: batch_loss(architecture, tree, b, dtype=jnp.float32, key=key)[0])
        first, again, other = (float(loss(jax.random.key(seed))) for seed in (1, 1, 2))
        evaluate, plain = (make_evaluation(of, jnp.float32).lower(tree, b) for of in (architecture, ARCHITECTURE))
        assert evaluate.as_text() == plain.as_text()
    assert first == again != other


ADAMW = OptimizerConfig(warmup_steps=1)


@pytest.mark.parametrize("dense", [0, 1], ids=["alike", "first dense"])
def test_each_layer_has_a_norm_of_each_of_its_parts(dense):
    config = dataclasses.replace(EXPERTS.config, dense_layers=dense, dense_width=24 * dense)
    parts = ("attention", "attention_norm", "mlp", "mlp_norm")
    tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), Architecture(config).shapes)
    names = part_names(tree, config)
    assert names == ["embedding", "norm", *(f"layer_{layer}.{part}" for layer in (0, 1) for part in parts)]
    tree["layers"]["mlp"] = {"one": np.ones((2 - dense, 3, 4), np.float32) * [[[0.0]], [[2.0]]][dense:]}
    with jax.set_mesh(mesh()):
        found = dict(zip(names, jax.jit(functools.partial(part_norms, config=config))(tree).tolist(), strict=True))
    assert found == dict.fromkeys(names, 0.0) | {"layer_1.mlp": pytest.approx(2 * math.sqrt(12))}


def test_without_the_key_the_program_is_the_same(monkeypatch):
    """As one in which there is no such thing; and another number of steps makes no other program.

    With it the bits are the same: `test_keys_that_change_nothing_may_change_in_the_middle`.
    """
    monkeypatch.setattr(step_module, "batch_loss", toy_loss)
    config, b = TrainConfig(batch_size=4, optimizer=ADAMW), jax.tree.map(jnp.asarray, batch())
    with jax.set_mesh(mesh()):
        optimizer = make_optimizer(config.optimizer, 20, ARCHITECTURE.axes)
        state = with_params(params(), optimizer)

        def lowered(every):
            asks = TrainConfig(batch_size=4, norms_every=every, optimizer=ADAMW)
            return make_step(ARCHITECTURE, optimizer, asks, jnp.float32, seed=0).lower(state, b).as_text()

        assert lowered(1) == lowered(100) != lowered(0)
        monkeypatch.setattr(step_module, "step_norms", None)
        assert "norms" not in jax.eval_shape(make_step(ARCHITECTURE, optimizer, config, jnp.float32, 0), state, b)[1]


@pytest.mark.parametrize("skipped", [0, 1])
def test_a_skipped_step_has_no_update_and_tells_the_gradient_that_it_had(skipped):
    params, grads, updates = (
        {"norm": np.float32([value, 0]), "layers": {"mlp": {"up": np.float32([[value]])}}}
        for value in (3.0, np.nan, 2.0)
    )
    with jax.set_mesh(mesh()):
        found = jax.jit(functools.partial(step_norms, config=CONFIG))(params, grads, updates, jnp.int32(skipped))
    np.testing.assert_array_equal(found, [[3, 3], [np.nan, np.nan], [0, 0] if skipped else [2, 2]])
