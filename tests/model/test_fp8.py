"""Matmuls of float8 operands: the numbers of an emulation in numpy, and no law of the program lost.

The emulation knows `ml_dtypes`, powers of two, and sums in float64.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.sharding import AbstractDevice

from tests.gpu_compiler import needs_gpu_compiler, printed_by_compiler
from tests.model.test_fit import refused
from tests.model.test_linear import MATMULS, axes_of
from tests.training.small import CONFIG, EXPERTS, SPREAD, batch, mesh, params
from tpullm.model import fp8
from tpullm.model.architecture import Architecture
from tpullm.model.linear import matmul
from tpullm.model.mesh import planned_mesh
from tpullm.model.mesh_fit import check_fits
from tpullm.recipe.schema import AdapterConfig, OptimizerConfig, TrainConfig
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import batch_loss, initial_state

KINDS = {fp8.E4M3: (ml_dtypes.float8_e4m3fn, 7), fp8.E5M2: (ml_dtypes.float8_e5m2, 14)}
F32, FP8 = Architecture(CONFIG), Architecture(dataclasses.replace(CONFIG, matmuls="fp8"))
# A sum in another order moves a float32 by some 1e-7 of it. Where that crosses the middle between two codes, one number
# of a matmul is rounded to the other one, 2^-3 away (e4m3) or 2^-2 (e5m2). Seen: losses 2e-6 apart.
LOSS = 5e-5


def rounded(x, axes, dtype):
    """The numbers that codes stand for, float64, and their scales, with the dimensions of `x`."""
    kind, power = KINDS[dtype]
    largest = np.maximum(np.abs(x).max(axis=axes, keepdims=True), 2.0**-95).astype(np.float64)
    scale = 2.0 ** (np.floor(np.log2(largest)) - power)
    return (x.astype(np.float64) / scale).astype(np.float32).astype(kind).astype(np.float64) * scale, scale


numbers = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)


@given(
    arrays.arrays(np.float32, (2, 3, 8), elements=st.one_of(st.just(0.0), st.floats(-4, 4, width=16), numbers)),
    st.sampled_from([fp8.E4M3, fp8.E5M2]),
)
@settings(max_examples=300)
def test_codes_are_those_of_ml_dtypes(x, dtype):
    """In bfloat16, as a model has them. A code is half of its last bit away at most, and never an overflow."""
    x = np.asarray(x.astype(ml_dtypes.bfloat16), np.float32)
    found = _of_tokens(x, dtype)
    wanted, scale = rounded(x, 2, dtype)
    np.testing.assert_array_equal(found.scale, scale[..., 0])
    codes = np.asarray(found.codes.astype(jnp.float32), np.float64)
    np.testing.assert_array_equal(codes * scale, wanted)
    assert (np.abs(codes) <= 2.0 ** (KINDS[dtype][1] + 1)).all()
    last, least = (2**-4, 2**-10) if dtype == fp8.E4M3 else (2**-3, 2**-17)
    assert (np.abs(wanted - x) <= np.maximum(last * np.abs(x), least * scale)).all()


@functools.partial(jax.jit, static_argnums=1)
def _of_tokens(x, dtype):
    return fp8.codes_of(jnp.asarray(x, jnp.bfloat16), dtype, each=2)


def ours(subscripts, x, weight, cotangent, gradients="compute"):
    """The output and both gradients, as float64."""
    ours = functools.partial(matmul, subscripts, axes_of(subscripts), "fp8", gradients, None)

    @jax.jit
    def all_of(x, weight, cotangent):
        out, back = jax.vjp(ours, x, weight)
        return out, *back(cotangent)

    with jax.set_mesh(mesh()):
        return [np.asarray(array, np.float64) for array in all_of(x, weight, cotangent)]


def emulated(subscripts, x, weight, cotangent):
    """The same by numpy: both gradients are of the codes that the forward pass has multiplied."""
    operands, out = subscripts.split("->")
    left, right = operands.split(",")
    x, weight, cotangent = (np.asarray(array, np.float32) for array in (x, weight, cotangent))
    tokens = lambda array: tuple(range(2, array.ndim))  # noqa: E731
    x, scale = rounded(x, tokens(x), fp8.E4M3)
    weight, _ = rounded(weight, None, fp8.E4M3)
    of_dx, _ = rounded(cotangent, tokens(cotangent), fp8.E5M2)
    token_scales = scale.reshape(*scale.shape[:2], *[1] * (cotangent.ndim - 2))
    of_dweight = rounded((cotangent * token_scales).astype(np.float32), None, fp8.E5M2)[0] / token_scales
    return (
        np.einsum(subscripts, x, weight),
        np.einsum(f"{out},{right}->{left}", of_dx, weight),
        np.einsum(f"{left},{out}->{right}", x, of_dweight),
    )


def drawn(subscripts, dtype, seed=0):
    """Tokens of very different sizes, a matrix, and a cotangent whose tokens differ too."""
    random = np.random.default_rng(seed)
    x, weight = (random.standard_normal(shape) for shape in MATMULS[subscripts])
    cotangent = np.einsum(subscripts, x, weight)
    for array, most in ((x, 20), (cotangent, 8)):
        array *= 2.0 ** random.uniform(-most, most, array.shape[:2]).reshape(*array.shape[:2], *[1] * (array.ndim - 2))
    return jnp.asarray(x, dtype), jnp.asarray(weight, jnp.float32), jnp.asarray(cotangent, dtype)


@pytest.mark.parametrize("subscripts", MATMULS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_products_and_gradients_are_those_of_the_emulation(subscripts, dtype, tolerance):
    """Sums of up to 32 exact products: a few roundings of 6e-8, or one to bfloat16. Of each token its largest counts.

    Without float8 they are a hundred times as far away.
    """
    x, weight, cotangent = drawn(subscripts, dtype)
    in_type = weight.astype(dtype)
    found, wanted = ours(subscripts, x, weight, cotangent), emulated(subscripts, x, in_type, cotangent)
    plain = np.einsum(subscripts, *(np.asarray(array, np.float64) for array in (x, in_type)))
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        largest = np.abs(other).max(axis=tuple(range(2, other.ndim)) if number < 2 else None, keepdims=True)
        assert (np.abs(one - other) <= tolerance * largest).all()
    assert np.abs(found[0] - plain).max() > 0.01 * np.abs(plain).max()


@pytest.mark.parametrize("subscripts", MATMULS)
def test_a_token_depends_on_no_other(subscripts):
    """The same bits of its output and of its gradient, whatever is beside it."""
    x, weight, cotangent = drawn(subscripts, jnp.bfloat16)
    out, dx, _ = ours(subscripts, x, weight, cotangent)
    others = [array.at[0, 3:].multiply(1e3).at[1].set(7) for array in (x, cotangent)]
    out_beside, dx_beside, _ = ours(subscripts, others[0], weight, others[1])
    for one, other in ((out, out_beside), (dx, dx_beside)):
        np.testing.assert_array_equal(one[0, :3], other[0, :3])
        assert (one[1] != other[1]).any()


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e30])
def test_numbers_of_any_size(size):
    """Zeros give zeros, and there is neither an overflow nor a NaN where float32 has none."""
    x, weight, cotangent = drawn("btd,df->btf", jnp.float32)
    x, weight = x / jnp.abs(x).max(axis=2, keepdims=True), weight / jnp.abs(weight).max()
    for arrays_ in ((x * size, weight, cotangent), (x, weight * size, cotangent), (x, weight, cotangent * size)):
        for found, wanted in zip(
            ours("btd,df->btf", *arrays_), emulated("btd,df->btf", *map(np.asarray, arrays_)), strict=True
        ):
            assert np.isfinite(found).all()
            np.testing.assert_allclose(found, wanted, atol=2e-6 * np.abs(wanted).max() + 1e-37)  # of 0: subnormals


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_is_not_hidden(bad):
    """So that a bad step is seen: a code of e4m3 would be NaN on one device and the largest number on another."""
    x, weight, cotangent = drawn("btd,df->btf", jnp.bfloat16)
    out, _, dweight = ours("btd,df->btf", x.at[1, 4, 2].set(bad), weight, cotangent)
    lost = np.zeros(out.shape[:2], bool)
    lost[1, 4] = True
    assert (np.isnan(out) == lost[..., None]).all() and np.isnan(dweight).all()
    _, dx, dweight = ours("btd,df->btf", x, weight, cotangent.at[1, 4, 2].set(bad))
    assert (np.isnan(dx) == lost[..., None]).all() and np.isnan(dweight).all()
    assert np.isnan(ours("btd,df->btf", x, weight.at[1, 2].set(bad), cotangent)[0]).all()


@functools.cache
def compiled(architecture):
    """Loss and gradients as a function of parameters and rows: those of one shape share the program."""
    loss = lambda tree, rows: batch_loss(architecture, tree, rows, dtype=jnp.float32)[0]  # noqa: E731
    return jax.jit(jax.value_and_grad(loss))


def loss_and_gradients(architecture, rows, tree=None):
    with jax.set_mesh(mesh()):
        return compiled(architecture)(params(architecture=architecture) if tree is None else tree, rows)


@pytest.mark.ci
def test_the_layers_are_rounded_and_nothing_else():
    """The loss is near that in float32 and another one: by the roundings of seven matrices. So are the gradients."""
    plain, in_float32 = (loss_and_gradients(of, batch()) for of in (FP8, F32))
    assert 1e-5 < abs(float(plain[0]) / float(in_float32[0]) - 1) < 0.01
    norm = lambda leaf: np.linalg.norm(np.asarray(leaf))  # noqa: E731
    far = jax.tree.map(lambda found, wanted: norm(found - wanted) / norm(wanted), plain[1], in_float32[1])
    assert all(0.002 < leaf < 0.3 for leaf in jax.tree.leaves(far)), far


def test_there_is_no_state_that_a_training_would_have_to_resume():
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=1), 4, FP8.axes)
    state = lambda of: jax.eval_shape(lambda: initial_state(of, optimizer, jax.random.key(0)))  # noqa: E731
    assert jax.tree.structure(state(FP8)) == jax.tree.structure(state(F32))


@pytest.mark.ci
def test_an_adapter_is_trained_beside_a_base_in_fp8():
    """Fresh, it changes nothing. It is multiplied in the type of the matmuls: its own gradient is not zero."""
    architecture = Architecture(FP8.config, AdapterConfig(rank=3))
    with jax.set_mesh(mesh()):
        fresh = architecture.trained(jax.jit(architecture.init)(jax.random.key(0)))
        base = params()
        mean = lambda fresh: batch_loss(architecture, architecture.whole(fresh, base), batch(), dtype=jnp.float32)[0]  # noqa: E731
        loss, gradients = jax.jit(jax.value_and_grad(mean))(fresh)
    np.testing.assert_allclose(loss, loss_and_gradients(FP8, batch())[0], rtol=LOSS)
    moved = [path[-1] for path, leaf in flatten_dict(gradients).items() if float(jnp.abs(leaf).max())]
    assert moved == ["b"] * 7


@pytest.mark.parametrize("architecture", [EXPERTS, SPREAD], ids=["experts", "spread"])
def test_a_router_and_its_experts_keep_their_type(architecture):
    """No float8 in them: with attention and the shared experts' MLP taken away, the program is the same."""
    config = dataclasses.replace(architecture.config, matmuls="fp8", remat="none")
    with jax.set_mesh(mesh()):
        loss = lambda tree: batch_loss(Architecture(config), tree, batch(), dtype=jnp.float32)[0]  # noqa: E731
        text = str(jax.make_jaxpr(jax.grad(loss))(architecture.placed(mesh())))
    per_matmul = 2 + 3  # codes of two operands forward; of the cotangent twice and of the matrix backward
    linear = 4 + (3 if config.shared_experts else 0)
    assert text.count("new_dtype=float8") == linear * per_matmul


def test_a_chip_without_fp8_is_refused_in_one_line():
    def fits(platform, kind):
        on = planned_mesh({}, 1, AbstractDevice(kind, 1, platform))
        check_fits(FP8, TrainConfig(batch_size=4, sequence_length=32), 96, on, "pretrain")

    for kind, platform in (("TPU v5 lite", "tpu"), ("NVIDIA A100-SXM4-80GB", "gpu"), ("a chip of tomorrow", "gpu")):
        line = refused(lambda kind=kind, platform=platform: fits(platform, kind))
        assert line.startswith("model.matmuls: ") and kind in line and line.endswith("use compute")
    for kind, platform in (("NVIDIA H100 80GB HBM3", "gpu"), ("NVIDIA H200", "gpu"), ("TPU7x", "tpu"), ("cpu", "cpu")):
        fits(platform, kind)


@pytest.mark.parametrize(
    ("kind", "platform", "multiplied"),
    [
        ("TPU7x", "tpu", "float8_e4m3fn"),
        ("TPU v6 lite", "tpu", "bfloat16"),
        ("NVIDIA H100 80GB HBM3", "gpu", "float8_e4m3fn"),
    ],
)
def test_codes_are_multiplied_as_they_are_where_the_device_can(kind, platform, multiplied):
    codes = [jax.ShapeDtypeStruct((8, 8), fp8.E4M3)] * 2
    with jax.sharding.use_abstract_mesh(planned_mesh({}, 1, AbstractDevice(kind, 1, platform))):
        traced = jax.make_jaxpr(lambda *x: fp8.codes_einsum("ab,bc->ac", *x, (), jnp.bfloat16))(*codes)
    (product,) = (one for one in traced.eqns if one.primitive.name == "dot_general")
    assert {str(operand.aval.dtype) for operand in product.invars} == {multiplied}


@needs_gpu_compiler
@pytest.mark.slow
def test_a_gpu_multiplies_float8():
    """A layer's seven matrices: forward, and the gradients of input and weight, in XLA's program for an H100.

    Both by the kernels that XLA makes itself, and by cuBLASLt; with a card, XLA measures which is faster.
    """
    results = printed_by_compiler("tests.model.gpu_fp8")
    assert results["fp8"] == {"cublas": 21, "summed in float32": 21, "own": 21}
    assert set(results["compute"].values()) == {0}
