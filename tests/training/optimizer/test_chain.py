"""The optimizer: the schedule's shape, decay on matrices only, the paper's update, and the sharding of its state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.skipping import toy_loss
from tests.training.small import ARCHITECTURE, EXPERTS, batch, begun, mesh
from tpullm.formats.checkpoints import Checkpoints
from tpullm.formats.huggingface.tensors import flat
from tpullm.model.architecture import is_hidden_matrix, is_matrix, matrix_sides
from tpullm.model.mesh import planned_mesh
from tpullm.model.rows import put_rows
from tpullm.recipe.schema import CheckpointConfig, OptimizerConfig, TrainConfig
from tpullm.training import step as step_module
from tpullm.training.optimizer.chain import decay_begin, learning_rate, learning_rates, make_optimizer
from tpullm.training.step import abstract_state

LOSS = jnp.ones(())  # of a step that is not skipped
KINDS = [("adamw", "float32"), ("adamw", "bfloat16"), ("adafactor", "float32")]
KINDS += [("muon", "float32"), ("muon", "bfloat16")]


def test_cosine_rises_to_the_peak_and_falls_to_the_last():
    config = OptimizerConfig(peak_lr=1.0, warmup_steps=10, final_lr_fraction=0.1)
    values = learning_rates(config, 110)
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(values[60], 0.55, rtol=1e-3)
    assert (np.diff(values[10:]) < 0).all()
    np.testing.assert_allclose(values[-1], 0.1, rtol=5e-3)
    for step in (0, 9, 10, 60, 109):  # one fused program rounds differently
        np.testing.assert_allclose(values[step], float(learning_rate(config, 110)(step)), rtol=1e-6)


def test_wsd_is_constant_until_the_decay():
    config = OptimizerConfig(peak_lr=1.0, schedule="wsd", warmup_steps=10, decay_fraction=0.2)
    values = learning_rates(config, 100)
    np.testing.assert_allclose(values[10:81], 1.0)
    np.testing.assert_allclose(values[[90, 99]], [0.5, 0.05], rtol=1e-5)
    assert decay_begin(config, 100) == 80


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_run_shorter_than_its_warmup_still_has_finite_rates(schedule, steps):
    rates = learning_rates(OptimizerConfig(schedule=schedule, warmup_steps=100), steps)
    assert np.isfinite(rates).all() and (rates > 0).all() and rates.max() == pytest.approx(3e-3)


def first_updates(config, axes, params, *grads):
    optimizer = make_optimizer(config, 1000, axes)
    update = jax.jit(lambda params, grads: optimizer.update(grads, optimizer.init(params), params, loss=LOSS)[0])
    with jax.set_mesh(mesh()):
        return [update(params, each) for each in grads]


def test_the_update_is_adamw_with_decay_on_matrices_only():
    config = OptimizerConfig(peak_lr=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=1e9)
    axes = {"matrix": ("layers", "embed", "mlp"), "scale": ("layers", "embed")}
    params = {"matrix": jnp.full((2, 3, 4), 2.0), "scale": jnp.full((2, 3), 2.0)}
    (updates,) = first_updates(config, axes, params, jax.tree.map(lambda leaf: leaf * -0.15, params))
    # The first update of Adam is the sign of the gradient; the decay adds rate * decay * parameter.
    np.testing.assert_allclose(updates["scale"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["matrix"], 0.1 - 0.1 * 0.5 * 2.0, atol=1e-6)


def test_a_long_gradient_is_scaled_to_the_clip_norm():
    config = OptimizerConfig(peak_lr=0.1, warmup_steps=0, weight_decay=0.0, clip_norm=1.0, epsilon=1.0)
    grads = ({"w": jnp.array(value)} for value in ([30.0, 40.0], [0.6, 0.8]))
    long, unit = first_updates(config, {"w": ("embed",)}, {"w": jnp.zeros(2)}, *grads)
    np.testing.assert_allclose(long["w"], unit["w"], rtol=1e-5)


def test_which_parameters_are_what():
    """By axes alone; the bias that balances a router is neither decayed nor orthogonalized."""
    axes = flat(EXPERTS.axes) | {"layers.mlp.balance": ("layers", "routes")}
    of = {name: (is_matrix(names), is_hidden_matrix(names)) for name, names in axes.items()}
    weights = {f"layers.{part}.weight" for part in ("mlp.gate", "mlp.up", "mlp.down")}
    weights |= {f"layers.attention.{part}.weight" for part in ("query", "key", "value", "out")}
    assert {name for name, found in of.items() if found == (True, True)} == weights
    assert {name for name, found in of.items() if found == (True, False)} == {"embedding", "layers.mlp.router.weight"}
    for name in ("layers.mlp.balance", "layers.mlp.down.bias", "layers.mlp_norm.scale", "layers.attention.sinks"):
        assert of[name] == (False, False)

    assert matrix_sides(axes["layers.attention.query.weight"]) == ((1,), (2, 3))
    assert matrix_sides(axes["layers.attention.out.weight"]) == ((1, 2), (3,))
    assert matrix_sides(axes["layers.mlp.down.weight"]) == ((2,), (3,))
    assert matrix_sides(axes["layers.mlp.router.weight"]) == ((1,), (2,))
    assert matrix_sides(axes["embedding"]) == ((0,), (1,))


@pytest.mark.parametrize(
    ("kind", "moments"),
    [KINDS[0], *(pytest.param(*of, marks=pytest.mark.slow) for of in (KINDS[2], KINDS[-1]))],
)
def test_only_matrices_decay_whatever_the_kind(kind, moments):
    """With a gradient of 0 only the decay is left: rate * decay * parameter, of matrices."""
    config = OptimizerConfig(kind=kind, moments=moments, peak_lr=0.1, warmup_steps=0, weight_decay=0.5)
    axes = {**EXPERTS.axes, "balance": ("layers", "experts")}
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 2.0), {**EXPERTS.shapes, "balance": np.zeros((2, 5))})
    (updates,) = first_updates(config, axes, params, jax.tree.map(np.zeros_like, params))
    for name, update in flat(updates).items():
        decay = 0.1 * 0.5 * 2.0 if is_matrix(flat(axes)[name]) else 0.0
        np.testing.assert_allclose(update, -decay, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("architecture", [ARCHITECTURE, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize(("kind", "moments"), KINDS)
def test_the_state_is_sharded_as_its_parameter(kind, moments, architecture):
    """Each dimension of a moment is split as that of its parameter; only a reduced dimension is not split."""
    on = planned_mesh({"fsdp": 4, "tensor": 2}, 8)
    target = abstract_state(architecture, make_optimizer(OptimizerConfig(kind, moments), 10, architecture.axes), on)
    placed = flat(architecture.placed(on))
    seen = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(target["optimizer"].inner):
        name = ".".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        if not leaf.shape:
            continue
        of = placed[name]
        for size, whole, axis, wanted in zip(leaf.shape, of.shape, leaf.sharding.spec, of.sharding.spec, strict=True):
            assert (size, axis) in ((whole, wanted), (1, None)), name
        seen[name] = seen.get(name, 0) + leaf.size * leaf.dtype.itemsize / of.size
    assert seen.keys() == placed.keys()
    each = {"float32": 4, "bfloat16": 2}[moments]
    for name, bytes_each in seen.items():
        hidden, matrix = is_hidden_matrix(flat(architecture.axes)[name]), is_matrix(flat(architecture.axes)[name])
        if kind == "adafactor":
            assert bytes_each < 1.1 if matrix else bytes_each == 4, name
        else:
            assert bytes_each == (each if kind == "muon" and hidden else 2 * each), name


@pytest.mark.parametrize(
    ("kind", "moments"),
    [
        KINDS[0],
        pytest.param(*KINDS[1], marks=pytest.mark.ci),  # 4 to 7 s, most of it to compile how moments are rounded
        *(pytest.param(*of, marks=pytest.mark.slow) for of in (KINDS[2], KINDS[-1])),
    ],
)
def test_saved_and_resumed_is_the_same_bits(kind, moments, tmp_path, monkeypatch):
    monkeypatch.setattr(step_module, "batch_loss", toy_loss)
    config = TrainConfig(batch_size=4, optimizer=OptimizerConfig(kind, moments, peak_lr=1e-2, warmup_steps=1))
    with jax.set_mesh(on := mesh()):
        optimizer = make_optimizer(config.optimizer, 4, ARCHITECTURE.axes)
        target = abstract_state(ARCHITECTURE, optimizer, on)
        step, state, _ = begun(ARCHITECTURE, on, optimizer, config)
        checkpoints = Checkpoints(tmp_path, CheckpointConfig())
        for number in range(4):
            state, _ = step(state, put_rows(on, batch(seed=number)))
            if number == 1:
                checkpoints.save(2, state, {})
        checkpoints.close()
        again = Checkpoints(tmp_path, CheckpointConfig()).restore(2, target)
        for number in (2, 3):
            again, _ = step(again, put_rows(on, batch(seed=number)))
    assert step._cache_size() == 1
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
