"""Quantized matrices: the codes of bitsandbytes, and a base that computes what its own numbers compute.

`bitsandbytes.npz` was recorded with bitsandbytes 0.50.2 on a CPU, of `[outputs, inputs]` with one block of zeros:
`quantize_4bit(weight, blocksize=64, quant_type="nf4")` and `int8_vectorwise_quant(weight.reshape(-1, 64))`.
"""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.conftest import ROOT
from tests.model.test_adapter import mean_loss
from tests.training.small import CONFIG, SPREAD, batch, mesh
from tpullm.model import quantized
from tpullm.model.adapter import with_magnitudes
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import planned_mesh
from tpullm.recipe.parsing import load
from tpullm.recipe.schema import AdapterConfig

F32 = jnp.dtype("float32")
ONE_LAYER = dataclasses.replace(CONFIG, layers=1)
RECORDED = dict(np.load(Path(__file__).with_name("bitsandbytes.npz")))


def of_recorded(kind):
    """Codes, scales and numbers `[outputs, inputs]` of the recorded weight."""
    with jax.set_mesh(mesh()):
        weight = jax.device_put(RECORDED["weight"].T, jax.NamedSharding(mesh(), jax.P(None, None)))
        found = jax.jit(quantized.quantized, static_argnums=(1, 2))(weight, kind, -2)
        numbers = quantized.dequantized(found)
    return *(np.asarray(array).T for array in (found.codes, found.scales)), np.asarray(numbers).T


def test_nf4_is_that_of_bitsandbytes():
    codes, scales, numbers = of_recorded("nf4")
    blocks = codes.reshape(16, 2, 32)
    np.testing.assert_array_equal(np.concatenate([blocks & 15, blocks >> 4], 2).reshape(16, 128), RECORDED["nf4"])
    np.testing.assert_array_equal(scales, RECORDED["scales"])
    np.testing.assert_array_equal(numbers, RECORDED["nf4_values"])


def test_a_gpu_reads_the_same_numbers_from_a_table(monkeypatch):
    codes = jnp.arange(256, dtype=jnp.uint8).reshape(16, 16) & 15
    halved = quantized._nf4_entries(codes)
    monkeypatch.setattr(quantized, "target_platform", lambda: "gpu")
    read = quantized._nf4_entries(codes)
    assert read.dtype == halved.dtype == jnp.float32 and read.shape == (16, 16)
    np.testing.assert_array_equal(read, halved)
    np.testing.assert_array_equal(read[0], quantized.NF4)


def test_int8_is_that_of_bitsandbytes():
    codes, scales, numbers = of_recorded("int8")
    np.testing.assert_array_equal(codes, RECORDED["int8"])
    np.testing.assert_allclose(scales, RECORDED["int8_largest"] / 127, rtol=2e-7)  # rounded once or twice
    np.testing.assert_array_equal(numbers, codes * np.repeat(scales, 64, axis=1))


def test_fp8_is_that_of_ml_dtypes():
    codes, scales, numbers = of_recorded("fp8")
    weight = RECORDED["weight"].astype(np.float32).reshape(16, 2, 64)
    wanted = np.abs(weight).max(axis=2) * np.float32(1 / 448)
    np.testing.assert_array_equal(scales, wanted)
    divided = weight / np.where(wanted > 0, wanted, 1)[..., None]
    np.testing.assert_array_equal(codes, divided.astype(ml_dtypes.float8_e4m3fn).reshape(16, 128))
    # Three bits after the first: half of the last is a sixteenth of the number, or of the smallest normal one, 2^-6.
    error = np.abs(numbers - weight.reshape(16, 128)).reshape(16, 2, 64)
    assert (error <= np.maximum(np.abs(weight) / 16, wanted[..., None] * 2**-10) * (1 + 1e-6)).all()


@pytest.mark.parametrize(("kind", "codes"), [("int8", 127), ("int4", 7)])
def test_a_number_is_half_a_step_from_its_code_at_most(kind, codes):
    """A step is the largest number of a block of 64 inputs divided by 127, or by 7.49."""
    weight = np.random.default_rng(1).standard_normal((3, 128, 5)).astype(np.float32)
    weight[:, :64, 2] = 0
    with jax.set_mesh(mesh()):
        placed = jax.device_put(weight, jax.NamedSharding(mesh(), jax.P(None, None, None)))
        found = jax.jit(quantized.quantized, static_argnums=(1, 2))(placed, kind, -2)
        numbers = np.asarray(quantized.dequantized(found))
    assert found.shape == weight.shape and found.scales.shape == (3, 2, 5)
    assert found.codes.nbytes == weight.size // (2 if kind == "int4" else 1)
    step = np.abs(weight).reshape(3, 2, 64, 5).max(axis=2) / {"int8": 127, "int4": 7.49}[kind]
    np.testing.assert_allclose(found.scales, step, rtol=1e-6)
    steps = np.repeat(step, 64, axis=1)
    assert (np.abs(numbers - weight) <= steps * (0.5 + 1e-4)).all()  # and the roundings of float32
    whole = np.divide(numbers, steps, out=np.zeros_like(numbers), where=steps > 0)
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-4)
    assert whole.max() == pytest.approx(codes) and whole.min() == pytest.approx(-codes)


def test_a_step_never_has_the_numbers_of_all_layers():
    """It makes those of a layer when it comes to it. Six layers, so that those of one are few beside all."""
    architecture = Architecture(dataclasses.replace(CONFIG, layers=6, width=128, mlp_width=256))
    with jax.set_mesh(mesh()):
        shapes = quantized.packed_targets(architecture.placed(mesh()), "int8")
        sizes = []
        quantized.change_each_matrix(shapes, lambda matrix, axis: sizes.append(math.prod(matrix.shape)))

        def forward(params, tokens):
            ones = jnp.ones_like(tokens)
            without_others = lambda layer, window: lambda q, k, v, softcap, sinks: q  # noqa: E731
            model, kinds = architecture.model(params), architecture.config.kinds_by_layer
            x = model.embed(tokens, ones, F32)
            return model.after_layers(x, ones, ones, ones[:, 0], None, kinds, without_others)

        tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32, sharding=jax.NamedSharding(mesh(), jax.P(None, None)))
        needed = jax.jit(forward).lower(shapes, tokens).compile().memory_analysis().temp_size_in_bytes
    assert needed < 4 * sum(sizes) / 2


@functools.cache
def made(adapter, config):
    """An architecture, the parameters of its base, quantized, the same as numbers, and adapters that are not fresh."""
    architecture, kind = Architecture(config, adapter), adapter.quantize_base
    with jax.set_mesh(mesh()):

        @jax.jit
        def begin(key):
            params = architecture.init(key)
            base, fresh = architecture.frozen(params), architecture.trained(params)
            packed = quantized.change_each_matrix(base, lambda matrix, axis: quantized.quantized(matrix, kind, axis))
            return base, packed, quantized.rounded_matrices(base, kind), with_magnitudes(packed, fresh)

        base, packed, plain, fresh = begin(jax.random.key(0))
        random = np.random.default_rng(7)
        noise = jax.tree.map(lambda leaf: 0.1 * random.normal(size=leaf.shape).astype(np.float32), fresh)
        return architecture, base, packed, plain, jax.tree.map(lambda leaf, by: leaf + by, fresh, noise)


@pytest.mark.parametrize(
    ("kind", "magnitude", "config"),
    [
        pytest.param("nf4", True, ONE_LAYER, marks=pytest.mark.ci),
        pytest.param("int8", False, ONE_LAYER, marks=pytest.mark.slow),
        pytest.param("fp8", False, ONE_LAYER, marks=pytest.mark.slow),
        pytest.param("nf4", False, SPREAD.config, marks=pytest.mark.slow, id="experts"),
    ],
)
def test_loss_and_gradients_are_those_over_the_numbers_of_the_base(kind, magnitude, config):
    """The same arithmetic in float32; only the compiler's order of sums may differ."""
    adapter = AdapterConfig(rank=3, magnitude=magnitude, quantize_base=kind)
    architecture, base, packed, plain, adapters = made(adapter, config)
    rows = batch()
    with jax.set_mesh(mesh()):
        loss = lambda adapters, base: mean_loss(architecture, architecture.whole(adapters, base), rows)  # noqa: E731
        both = jax.jit(jax.value_and_grad(loss))
        (loss, gradients), (wanted, wanted_gradients) = both(adapters, packed), both(adapters, plain)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    far = jax.tree.map(lambda number, of: float(jnp.abs(number - of).max()), plain, base)["layers"]["mlp"]
    assert all(1e-4 < far[name]["weight"] < 0.1 for name in ("gate", "up", "down")), "the numbers are rounded"
    gradients = flatten_dict(gradients)
    for path, leaf in flatten_dict(wanted_gradients).items():
        other = gradients[path]
        np.testing.assert_allclose(other, leaf, atol=1e-5 * float(jnp.abs(leaf).max()), err_msg=str(path))


@pytest.mark.ci  # 5 s
def test_the_backward_pass_keeps_no_numbers_of_the_base():
    """What it keeps of a matrix are codes: it keeps no floating-point array of a matrix's shape."""
    adapter = AdapterConfig(rank=3, magnitude=True, quantize_base="nf4")
    architecture, _, packed, plain, adapters = made(adapter, ONE_LAYER)
    shapes = {leaf.shape[1:] for leaf in jax.tree.leaves(plain["layers"]) if len(leaf.shape) > 2}

    def kept(base):
        with jax.set_mesh(mesh()):
            loss = lambda of: mean_loss(architecture, architecture.whole(of, base), batch())  # noqa: E731
            leaves = jax.tree.leaves(jax.eval_shape(lambda adapters: jax.vjp(loss, adapters)[1], adapters))
        return {leaf.shape for leaf in leaves if leaf.dtype == F32 and leaf.shape[1:] in shapes}

    assert kept(plain) and not kept(packed)


@pytest.mark.parametrize(("kind", "most"), [("nf4", 0.6), ("int4", 0.6), ("int8", 1.1), ("fp8", 1.1)])
def test_bytes_of_a_matrix(kind, most):
    recipe = load(ROOT / "configs" / "pretrain" / "8b.yaml")
    architecture = Architecture(recipe.model.resolved(128256), AdapterConfig(rank=4, quantize_base=kind))
    targets, sizes = architecture.frozen(architecture.at_rest(planned_mesh({}, 1), jnp.dtype("bfloat16"))), []
    quantized.change_each_matrix(targets, lambda of, axis: sizes.append((math.prod(of.shape), jax.tree.leaves(of))))
    matrices = sum(size for size, _ in sizes)
    held = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for _, leaves in sizes for leaf in leaves)
    assert len(sizes) == 7 and matrices > 6.9e9
    assert held / matrices <= most
    assert targets["embedding"].dtype == targets["head"].dtype == jnp.bfloat16
    assert targets["layers"]["mlp_norm"]["scale"].dtype == F32
