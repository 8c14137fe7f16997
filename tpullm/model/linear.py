"""Parameters, and the matmul of an activation with one: its gradient is written out.

A parameter is declared once, with its shape, logical axes and initializer. A matmul all-gathers its parameter and
reduce-scatters the gradient (`collectives.py`). A matrix that is not differentiated gets no gradient, so a step of an
adapter costs 4 FLOPs a parameter instead of 6. The embedding is a lookup of rows in a table that is split over devices.
On a GPU a barrier makes the gradient of a weight before that of its input, since XLA would keep the inputs of two
layers.
"""

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from tpullm.model import fp8
from tpullm.model.collectives import all_gather, reduce_gradient
from tpullm.model.mesh import RULES, axis_size, mesh_axes
from tpullm.model.packed import is_packed, products
from tpullm.model.platform import barrier_on_gpu, matmul_dtype, row_major_on_cpu, target_platform
from tpullm.model.quantized import Quantized, gathered_matrix, is_quantized
from tpullm.recipe.schema import ModelConfig


def parameter(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], scale: float | None) -> nnx.Param:
    """Declare a float32 parameter once: shape, logical axes and initializer.

    Args:
        scale: standard deviation of a truncated normal; None is ones, 0 is zeros.
    """
    if not scale:
        value = jnp.full(shape, 1.0 if scale is None else 0.0, jnp.float32)
    else:
        # A normal cut at two deviations has a deviation of 0.8796 of the uncut one.
        value = scale / 0.87962566 * jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32)
    return nnx.Param(value, logical_axes=axes)


def einsum(subscripts: str, left: jax.Array, right: jax.Array, out_sharding) -> jax.Array:
    """`jnp.einsum` of two operands of one type, in that type, with the fastest accumulator: see `matmul_dtype`.

    On a CPU the letters of the subscripts are renamed to be in the order of the dimensions, since `jnp.einsum` sums
    over dimensions in the order of their letters. Where two of them stand in another order, as heads and their width do
    (`btnh,nhd->btd`), XLA for a CPU transposes both operands, the weight too: one product of 12 rows took 1.0 ms and
    takes 0.26 (12 heads of 64, bfloat16, JAX 0.12). A GPU's compiler sorts the dimensions itself.
    """
    if target_platform() == "cpu":
        letters = dict.fromkeys(filter(str.isalpha, subscripts))
        subscripts = subscripts.translate(str.maketrans("".join(letters), string.ascii_lowercase[: len(letters)]))
    dtype = matmul_dtype(left.dtype)
    out = jnp.einsum(subscripts, left, right, out_sharding=out_sharding, preferred_element_type=dtype)
    return out.astype(left.dtype)


class Linear(nnx.Module):
    """A matmul with a weight `[*inputs, *outputs]`, and a bias `[*outputs]` if there is one.

    Args:
        matmuls: the type of the operands, as in `ModelConfig`; None is that of the config.
    """

    def __init__(
        self, config: ModelConfig, rngs, inputs, outputs, axes, bias: bool, scale: float | None = None, matmuls=None
    ):
        self.weight = parameter(rngs, (*inputs, *outputs), axes, scale or math.prod(inputs) ** -0.5)
        self.axes, self.bias_axes, self.inputs = axes, vector_axes(axes[len(inputs) :]), len(inputs)
        self.bias = parameter(rngs, outputs, self.bias_axes, 0.0) if bias else None
        self.matmuls, self.reduce_dtype = matmuls or config.matmuls, config.gradients
        self.adapter = None  # see `adapter.with_adapters`

    def __call__(self, subscripts: str, x: jax.Array, out_spec) -> jax.Array:
        """`x` times the weight by `subscripts` of einsum, in the type of `x`."""
        return together([(self, subscripts, out_spec)], x)[0]

    def _completed(self, subscripts: str, x: jax.Array, out: jax.Array, out_spec) -> jax.Array:
        """With the adapter and the bias, if there are."""
        if self.adapter is not None:
            out = self.adapter(subscripts, x, out, out_spec, self.weight[...])
        out = checkpoint_name(out, "dots")
        return out if self.bias is None else out + all_gather(self.bias[...], *self.bias_axes, dtype=x.dtype)


def together(asked: Sequence[tuple[Linear, str, Any]], x: jax.Array) -> list[jax.Array]:
    """What several matrices make of the same `x`; a CPU multiplies packed ones in one call.

    Args:
        asked: each with the subscripts and the spec of its result, as for `Linear`.
    """
    weights, specs = [linear.weight[...] for linear, *_ in asked], [spec for *_, spec in asked]
    if all(map(is_packed, weights)):
        found = [out.astype(x.dtype) for out in products(weights, x, specs)]
    else:
        found = [
            matmul(subscripts, linear.axes, linear.matmuls, linear.reduce_dtype, spec, x, weight)
            for (linear, subscripts, spec), weight in zip(asked, weights, strict=True)
        ]
    return [linear._completed(of, x, out, spec) for (linear, of, spec), out in zip(asked, found, strict=True)]


def vector_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
    """The logical axes of a vector along one of a matrix's dimensions; too small to be split along the width."""
    return tuple("width" if axis == "embed" else axis for axis in axes)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Layout:
    """How an array is split, for a backward pass that has not kept the array."""

    spec: P


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3, 4))
def matmul(
    subscripts: str, axes: tuple[str, ...], matmuls: str, reduce_dtype: str, out_spec, x, weight: jax.Array | Quantized
):
    """`x` times a parameter, which is all-gathered in the type of `x`; its gradient is sharded like the parameter.

    The gradients are written by hand, for two reasons. The weight's gradient is reduced by a reduce-scatter (see
    `collectives.reduce_gradient`). And a CPU's matmul library is fastest if it multiplies rows of the left operand,
    but JAX's own gradient makes it multiply columns: 4,096 x 384 by 4,096 x 1,024 in bfloat16 took 22 ms, and 8 with
    the input first transposed in memory (1 ms). With the cotangent on the left it may even become a plain loop.

    Args:
        subscripts: of `jnp.einsum`; the weight's gradient sums over `b` and `t`.
        axes: logical axes of the parameter.
        matmuls: type of the operands: `compute`, that of `x`, or `fp8` (see `fp8.py`).
        reduce_dtype: type in which the devices' gradients are summed: `float32`, or `compute`, that of `x`.
    """
    return _matmul_by_type(subscripts, axes, matmuls, out_spec, x, weight, fp8.E4M3)[0]


def _matmul_forward(subscripts, axes, matmuls, reduce_dtype, out_spec, x, weight):
    """Keeps `x` only if the gradient of the weight is wanted: that of a frozen weight is not."""
    parameter = jax.tree.map(lambda part: part.value, weight)
    out, operand = _matmul_by_type(subscripts, axes, matmuls, out_spec, x.value, parameter, fp8.E4M3)
    layout, wanted = Layout(jax.typeof(x.value).sharding.spec), any(part.perturbed for part in jax.tree.leaves(weight))
    return out, (operand if wanted else None, parameter, layout)


def _matmul_backward(subscripts, axes, matmuls, reduce_dtype, out_spec, saved, cotangent):
    x, weight, layout = saved
    operands, out = subscripts.split("->")
    left, right = operands.split(",")
    if is_quantized(weight):  # otherwise the compiler could keep what the forward pass has made of it
        weight, cotangent = jax.lax.optimization_barrier((weight, cotangent))

    def input_gradient(cotangent):
        return _matmul_by_type(f"{out},{right}->{left}", axes, matmuls, layout.spec, cotangent, weight, fp8.E5M2)[0]

    if x is None:
        return input_gradient(cotangent), None
    turned = "".join(sorted(left, key=lambda letter: letter not in right))
    order = [left.index(letter) for letter in turned]
    split = mesh_axes(jax.typeof(cotangent).sharding.spec, (out.index("b"), out.index("t")))

    def local_gradient(x, cotangent):
        gradient = f"{turned},{out}->{right}"
        dtype = jnp.float32 if reduce_dtype == "float32" else matmul_dtype(cotangent.dtype)
        if matmuls == "fp8":
            scaled = fp8.codes_of_gradient(cotangent, x.scale)
            x_turned = row_major_on_cpu(jnp.transpose(x.codes, order))
            dweight = fp8.codes_einsum(gradient, x_turned, scaled.codes, (scaled.scale,), dtype)
        else:
            x_turned = row_major_on_cpu(jnp.transpose(x, order))
            dweight = jnp.einsum(gradient, x_turned, cotangent, preferred_element_type=dtype)
        # XLA for a CPU would fuse the transpose in `reduce_gradient` with a matmul to float32, in a form that it can't
        # run ("BF16 x BF16 = F32", JAX 0.12).
        dweight = row_major_on_cpu(dweight) if reduce_dtype == "float32" else dweight.astype(cotangent.dtype)
        if any(axis_size(axis) > 1 for axis in split):  # one device alone puts nothing off
            dweight, cotangent = barrier_on_gpu((dweight, cotangent))
        return reduce_gradient(dweight, *axes, over=split).astype(weight.dtype), cotangent

    specs = (RULES.spec(*axes), jax.typeof(cotangent).sharding.spec)
    # JAX 0.10 takes the results of a barrier for different along all axes along which any of them is.
    dweight, cotangent = jax.shard_map(local_gradient, out_specs=specs, check_vma=False)(x, cotangent)
    return input_gradient(cotangent), jax.reshard(dweight, jax.typeof(weight).sharding.spec)


matmul.defvjp(_matmul_forward, _matmul_backward, symbolic_zeros=True)


def _matmul_by_type(subscripts, axes, matmuls, out_spec, tokens, weight, fp8_dtype):
    """Activations, or their gradients, times the whole parameter; and the activations as they are multiplied."""
    whole = gathered_matrix(weight, *axes, dtype=tokens.dtype)
    if matmuls != "fp8":
        return einsum(subscripts, tokens, whole, out_spec), tokens
    left, right = fp8.codes_of(tokens, fp8_dtype, each=2), fp8.codes_of(whole, fp8.E4M3)
    scales = left.scale, right.scale
    return fp8.codes_einsum(subscripts, left.codes, right.codes, scales, tokens.dtype, out_spec), left


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def lookup(axes: tuple[str, str], reduce_dtype: str, dtype, table: jax.Array, indices_BT: jax.Array) -> jax.Array:
    """Rows of a parameter `[V, D]`, in `dtype`: `[B, T, D]`. Each device sums its gradient in float32.

    Args:
        axes, reduce_dtype: as for `matmul`.
    """
    spec = RULES.spec("batch", "time", "width")
    split = mesh_axes(RULES.spec(axes[0]), (0,))

    def local(table_VD, indices_BT):
        rows, within = _local_rows(table_VD.shape[0], indices_BT, split)
        found_BTD = jnp.where(within[..., None], table_VD.at[rows].get(mode="clip"), 0)
        return jax.lax.psum(found_BTD, split) if split else found_BTD

    return jax.shard_map(local, out_specs=spec)(all_gather(table, *axes, dtype=dtype), indices_BT)


def _local_rows(size: int, indices, split: tuple[str, ...]):
    """The rows of `indices` among this device's `size` rows of the table, and whether they are among them."""
    first = jax.lax.axis_index(split) * size if split else 0
    return indices - first, (indices >= first) & (indices < first + size)


def _lookup_backward(axes, reduce_dtype, dtype, saved, cotangent_BTD):
    table, indices_BT = saved
    split, vocabulary = mesh_axes(jax.typeof(cotangent_BTD).sharding.spec, (0, 1)), mesh_axes(RULES.spec(axes[0]), (0,))
    mesh = jax.typeof(cotangent_BTD).sharding.mesh  # a table that nobody placed has none
    V = table.shape[0] // math.prod(mesh.shape[axis] for axis in vocabulary)

    def local_gradient(indices_BT, cotangent_BTD):
        rows, within = _local_rows(V, indices_BT, vocabulary)
        # Rows of other devices get an index beyond the last, which is dropped. A negative one would count from the end.
        flat_M = jnp.where(within, rows, V).reshape(-1)
        values_MD = cotangent_BTD.reshape(-1, table.shape[1]).astype(jnp.float32)
        dtable = jnp.zeros((V, table.shape[1]), jnp.float32).at[flat_M].add(values_MD, mode="drop")
        dtype = jnp.float32 if reduce_dtype == "float32" else cotangent_BTD.dtype
        dtable = dtable.astype(dtype) if math.prod(jax.lax.axis_size(axis) for axis in split) > 1 else dtable
        return reduce_gradient(dtable, *axes, over=split).astype(table.dtype)

    dtable = jax.shard_map(local_gradient, out_specs=RULES.spec(*axes))(indices_BT, cotangent_BTD)
    return jax.reshard(dtable, jax.typeof(table).sharding.spec), None


lookup.defvjp(lambda *given: (lookup(*given), given[3:]), _lookup_backward)
