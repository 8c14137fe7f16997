"""Packed matrices have the numbers of what they were made of, and multiply rows that are rounded as in llama.cpp."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import mesh
from tpullm.model import cpu_code, cpu_kernels, cpu_tiles, packed, packing, quantized

MATRICES = {  # shape, logical axes, the last input, which is what blocks of scales are along; two layers
    "query": ((2, 192, 3, 32), ("layers", "embed", "heads", "head"), -3, "btd,dnh->btnh"),
    "out": ((2, 3, 64, 40), ("layers", "heads", "head", "embed"), -2, "btnh,nhd->btd"),
    "gate": (
        (2, 96, 16),
        ("layers", "embed", "mlp"),
        -2,
        "btd,df->btf",
    ),  # 32 inputs have a scale: 64 does not divide 96
}


def placed(array):
    return jax.device_put(array, jax.NamedSharding(mesh(), jax.P(*[None] * array.ndim)))


def made(name, kind):
    """A matrix as it was, its numbers `[2, *inputs, *outputs]`, and packed."""
    shape, axes, axis, _ = MATRICES[name]
    weight = placed(np.random.default_rng(3).standard_normal(shape).astype(np.float32))
    if kind == "bfloat16":
        of = weight.astype(jnp.bfloat16)
        numbers = of.astype(jnp.float32)
    else:
        of = jax.jit(quantized.quantized, static_argnums=(1, 2))(weight, kind, axis)
        numbers = quantized.dequantized(of)
    return np.asarray(numbers), packing.packed_params({"weight": of}, {"weight": axes})["weight"]


compile_kernel = cpu_kernels.target_name.__wrapped__


@functools.cache
def plain_loops(*of):
    """The kernel of a processor that lacks instructions for short types."""
    machine, _ = cpu_code.processor()
    with mock.patch.object(cpu_code, "processor", lambda: (machine, {})):
        return compile_kernel(*of, "plain")


@functools.cache
def without_tiles(*of):
    """The kernel of a processor without AMX."""
    with mock.patch.object(cpu_tiles, "can_use", lambda bits: False):
        return compile_kernel(*of, "vectors")


# Loops that are written out take LLVM seconds; one matrix has all that they do.
WAYS = [*((name, "this processor's instructions") for name in MATRICES), ("gate", "no tiles"), ("gate", "plain loops")]


@pytest.fixture
def compiled(request, monkeypatch):
    if target := {"plain loops": plain_loops, "no tiles": without_tiles}.get(request.param):
        monkeypatch.setattr(cpu_kernels, "target_name", target)


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", MATRICES)
def test_numbers_are_those_of_the_matrix(name, kind):
    with jax.set_mesh(mesh()):
        numbers, found = made(name, kind)
        np.testing.assert_array_equal(jax.jit(packed.Packed.unpacked)(found), numbers)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(found))
    bits = {"bfloat16": 16, "int8": 8, "int4": 4}[kind] + (0 if kind == "bfloat16" else 32 / found.block)
    outputs = -(-found.outputs[-1] // 16) * 16 if name == "out" else numbers.size // 2 // numbers.shape[1]
    assert held * 8 == numbers.size / np.prod(found.outputs) * outputs * bits


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize(("name", "compiled"), WAYS, indirect=["compiled"])
def test_products_are_those_of_rounded_rows(name, kind, compiled):
    """Rows are rounded to bfloat16, or to 127 steps of the largest number of each block: the sums, of up to 192
    products of about 1, are then those of float64 but for the roundings of float32. A row alone has the same bits as
    among 43.
    """
    with jax.set_mesh(mesh()):
        numbers, found = made(name, kind)
        x = np.random.default_rng(4).standard_normal((43, 1, *found.inputs)).astype(np.float32)
        x[[0, 3, 8, 42], 0] = 0  # rows at the beginning, the middle and the end of those that are multiplied together
        layer = jax.tree.map(lambda leaf: leaf[1], found)
        multiply = jax.jit(lambda layer, x: layer.matmul(x, jax.P()))
        out, *alone = (np.asarray(multiply(layer, placed(own))) for own in (x, x[5:6], x[41:42]))
    if kind == "bfloat16":
        rounded = x.astype(jnp.bfloat16).astype(np.float64)
    else:
        blocks = x.reshape(len(x), -1, found.block).astype(np.float64)
        largest = np.abs(blocks).max(axis=2, keepdims=True)
        steps = largest / 127
        rounded = (np.round(np.divide(blocks, steps, out=np.zeros_like(blocks), where=steps > 0)) * steps).reshape(
            x.shape
        )
    wanted = np.einsum(MATRICES[name][3], rounded, numbers[1].astype(np.float64))
    assert out.dtype == np.float32 and out.shape == wanted.shape
    np.testing.assert_allclose(out, wanted, atol=2e-5)
    np.testing.assert_array_equal(out[[5, 41]], np.concatenate(alone))


@pytest.mark.skipif(not cpu_tiles.can_use(8), reason="this processor has no AMX, or may not use it")
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", MATRICES)
def test_integers_have_the_same_bits_by_tiles(name, kind, monkeypatch):
    """Sums of products are exact; so both ways round alike."""
    with jax.set_mesh(mesh()):
        layer = jax.tree.map(lambda leaf: leaf[1], made(name, kind)[1])
        x = placed(np.random.default_rng(6).standard_normal((29, 1, *layer.inputs)).astype(np.float32))
        by_tiles = jax.jit(lambda layer, x: layer.matmul(x, jax.P()))(layer, x)
        monkeypatch.setattr(cpu_kernels, "target_name", without_tiles)
        np.testing.assert_array_equal(jax.jit(lambda layer, x: layer.matmul(x, jax.P()))(layer, x), by_tiles)


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
def test_several_matrices_in_one_call_have_the_bits_of_calls_of_their_own(kind):
    """Of one piece of tiles, and of several; with one of another kind each has a call of its own."""
    random = np.random.default_rng(9)
    with jax.set_mesh(mesh()):

        def layer(kind, outputs):
            weight = placed(random.standard_normal((1, 64, outputs)).astype(np.float32))
            of = weight.astype(jnp.bfloat16) if kind == "bfloat16" else quantized.quantized(weight, kind, -2)
            found = packing.packed_params({"weight": of}, {"weight": ("layers", "embed", "mlp")})["weight"]
            return jax.tree.map(lambda leaf: leaf[0], found)

        same = [layer(kind, outputs) for outputs in (16, 200, 40, 1000)]
        x = placed(random.standard_normal((21, 1, 64)).astype(np.float32))
        multiply = lambda matrices, x: packed.products(matrices, x, [jax.P()] * len(matrices))  # noqa: E731
        for matrices, calls in ((same, 1), ([*same, layer("int4" if kind == "int8" else "int8", 24)], 5)):
            assert str(jax.make_jaxpr(multiply)(matrices, x)).count("ffi_call[") == calls
            alone = [jax.jit(lambda matrix, x: matrix.matmul(x, jax.P()))(matrix, x) for matrix in matrices]
            for found, own in zip(jax.jit(multiply)(matrices, x), alone, strict=True):
                np.testing.assert_array_equal(found, own)


def test_rows_of_zeros_are_not_multiplied():
    """But where they are among others: then they would be NaN, for the first weight is."""
    with jax.set_mesh(mesh()):
        weight = placed(np.full((1, 64, 16), np.nan, np.float32)).astype(jnp.bfloat16)
        found = packing.packed_params({"weight": weight}, {"weight": ("layers", "embed", "mlp")})["weight"]
        x = np.zeros((12, 1, 64), np.float32)
        x[[2, 3, 9]] = 1
        layer = jax.tree.map(lambda leaf: leaf[0], found)
        out = np.asarray(jax.jit(lambda layer, x: layer.matmul(x, jax.P()))(layer, placed(x)))[:, 0]
    assert np.isnan(out).all(axis=1).tolist() == [2 <= n < 10 for n in range(12)] and (out[[0, 1, 10, 11]] == 0).all()


@pytest.mark.parametrize("weights", ["", "int8"])
def test_rows_of_a_table(weights):
    with jax.set_mesh(mesh()):
        table = placed(np.random.default_rng(5).standard_normal((50, 64)).astype(np.float32)).astype(jnp.bfloat16)
        wanted = np.asarray(table.astype(jnp.float32))
        table = jax.jit(quantized.quantized, static_argnums=(1, 2))(table, weights, -1) if weights else table
        found = packing.packed_params({"head": table}, {"head": ("vocabulary", "embed")})["head"]
        ids = placed(np.array([[3, 49], [17, 0]], np.int32))
        rows = jax.jit(lambda ids, found: found.rows(ids, jnp.float32, jax.P()))(ids, found)
        whole = np.asarray(jax.jit(packed.Packed.unpacked)(found)).astype(np.float32).T
    np.testing.assert_array_equal(rows, whole[np.asarray(ids)])
    steps = np.abs(wanted).max(axis=1, keepdims=True) / 127
    assert (np.abs(whole - wanted) <= (0.501 * steps if weights else 0)).all()


@pytest.mark.parametrize(
    ("shape", "axes", "dtype"),
    [
        ((1, 48, 16), ("layers", "embed", "mlp"), jnp.bfloat16),  # inputs end within a unit
        ((1, 64, 16), ("layers", "embed", "mlp"), jnp.float32),
        ((1, 2, 64, 16), ("layers", "experts", "embed", "mlp"), jnp.bfloat16),
        ((1, 64), ("layers", "width"), jnp.bfloat16),
        ((64, 16), ("position", "embed"), jnp.bfloat16),
    ],
)
def test_what_is_not_packed(shape, axes, dtype):
    with jax.set_mesh(mesh()):
        given = placed(np.zeros(shape, dtype))
        params = {"weight": given}
        assert packing.packed_params(params, {"weight": axes})["weight"] is given and not params
