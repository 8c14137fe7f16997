"""The parts of a Transformer: parameters, products, the MLP, dropout.

Shapes: B batch, T query length, D model width, N heads, H head width, F feed-forward width.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tpullm.config import ModelConfig
from tpullm.model.platform import in_memory_order, product_dtype, settled
from tpullm.sharding import RULES, gather, over, summed


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
    """`jnp.einsum` of two operands in one type, to that type, in the form that is fast here: see `product_dtype`."""
    dtype = product_dtype(left.dtype)
    out = jnp.einsum(subscripts, left, right, out_sharding=out_sharding, preferred_element_type=dtype)
    return out.astype(left.dtype)


class Linear(nnx.Module):
    """A product with a weight `[*inputs, *outputs]`, and a bias `[*outputs]` if there is one."""

    def __init__(self, config: ModelConfig, rngs, inputs, outputs, axes, bias: bool, scale: float | None = None):
        self.weight = parameter(rngs, (*inputs, *outputs), axes, scale or math.prod(inputs) ** -0.5)
        self.axes, self.bias_axes = axes, small(axes[len(inputs) :])
        self.bias = parameter(rngs, outputs, self.bias_axes, 0.0) if bias else None
        self.summed_in = config.gradients

    def __call__(self, subscripts: str, x: jax.Array, out_spec) -> jax.Array:
        """`x` times the weight, as `subscripts` says, in the type of `x`."""
        out = product(subscripts, self.axes, self.summed_in, out_spec, x, self.weight[...])
        out = checkpoint_name(out, "dots")
        return out if self.bias is None else out + gather(self.bias[...], *self.bias_axes, dtype=x.dtype)


def small(axes: tuple[str, ...]) -> tuple[str, ...]:
    """The logical axes of a vector that has one of a matrix's dimensions: as small as it is, the width is not split."""
    return tuple("width" if axis == "embed" else axis for axis in axes)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def product(subscripts: str, axes: tuple[str, ...], summed_in: str, out_spec, x: jax.Array, weight: jax.Array):
    """`x` times a parameter: gathered for it in the type of `x`, and its gradient left where the parameter rests.

    The gradients are written out, for two reasons. Each device's part of the weight's gradient is summed to where the
    parameter rests by a reduce-scatter (see `sharding.summed`). And a CPU's library of products is at its peak when
    rows of the left operand are multiplied, where JAX's own gradient has it multiply columns: with 4,096 x 384 by 4,096
    x 1,024 in bfloat16 that took 22 ms, and 8 with the input transposed in memory first (1 ms). With the cotangent on
    the left it may even become a plain loop.

    Args:
        subscripts: of `jnp.einsum`; what is summed for the gradient is `b` and `t`.
        axes: logical axes of the parameter.
        summed_in: type in which devices' gradients are summed: `float32`, or `compute`, that of `x`.
    """
    return einsum(subscripts, x, gather(weight, *axes, dtype=x.dtype), out_spec)


def _product_forward(subscripts, axes, summed_in, out_spec, x, weight):
    return product(subscripts, axes, summed_in, out_spec, x, weight), (x, weight)


def _product_backward(subscripts, axes, summed_in, out_spec, saved, cotangent):
    x, weight = saved
    operands, out = subscripts.split("->")
    left, right = operands.split(",")
    gathered = gather(weight, *axes, dtype=x.dtype)
    dx = einsum(f"{out},{right}->{left}", cotangent, gathered, jax.typeof(x).sharding)
    turned = "".join(
        [letter for letter in left if letter in right] + [letter for letter in left if letter not in right]
    )
    order = [left.index(letter) for letter in turned]
    split = over(jax.typeof(cotangent).sharding.spec, (out.index("b"), out.index("t")))

    def summed_gradient(x, cotangent):
        x_turned = in_memory_order(jnp.transpose(x, order))
        dtype = jnp.float32 if summed_in == "float32" else product_dtype(cotangent.dtype)
        dweight = jnp.einsum(f"{turned},{out}->{right}", x_turned, cotangent, preferred_element_type=dtype)
        if summed_in == "float32":
            # XLA for a CPU would fold the transpose in `summed` into the product, in a form that it then can't run
            # ("BF16 x BF16 = F32", JAX 0.12).
            dweight = in_memory_order(dweight)
        dtype = dtype if summed_in == "float32" else cotangent.dtype
        return summed(dweight.astype(dtype), *axes, over=split).astype(weight.dtype)

    dweight = jax.shard_map(summed_gradient, out_specs=RULES.spec(*axes))(x, cotangent)
    return dx, jax.reshard(dweight, jax.typeof(weight).sharding.spec)


product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def lookup(axes: tuple[str, str], summed_in: str, dtype, table: jax.Array, indices_BT: jax.Array) -> jax.Array:
    """Rows of a parameter `[V, D]`, in `dtype`: `[B, T, D]`. Its gradient is added up in float32.

    Args:
        axes, summed_in: as for `product`.
    """
    spec = RULES.spec("batch", "time", "width")
    split = over(RULES.spec(axes[0]), (0,))

    def rows(table_VD, indices_BT):
        here, within = _here(table_VD.shape[0], indices_BT, split)
        found_BTD = jnp.where(within[..., None], table_VD.at[here].get(mode="clip"), 0)
        return jax.lax.psum(found_BTD, split) if split else found_BTD

    return jax.shard_map(rows, out_specs=spec)(gather(table, *axes, dtype=dtype), indices_BT)


def _here(size: int, indices, split: tuple[str, ...]):
    """Where the rows of `indices` lie in this device's `size` rows, and whether they do."""
    first = jax.lax.axis_index(split) * size if split else 0
    return indices - first, (indices >= first) & (indices < first + size)


def _lookup_forward(axes, summed_in, dtype, table, indices_BT):
    return lookup(axes, summed_in, dtype, table, indices_BT), (table, indices_BT)


def _lookup_backward(axes, summed_in, dtype, saved, cotangent_BTD):
    table, indices_BT = saved
    split, vocabulary = over(jax.typeof(cotangent_BTD).sharding.spec, (0, 1)), over(RULES.spec(axes[0]), (0,))
    V = table.shape[0] // math.prod(jax.typeof(table).sharding.mesh.shape[axis] for axis in vocabulary)

    def summed_gradient(indices_BT, cotangent_BTD):
        here, within = _here(V, indices_BT, vocabulary)
        # What lies elsewhere goes to the row behind the last, where it is dropped (a negative index would count back).
        flat_M = jnp.where(within, here, V).reshape(-1)
        values_MD = cotangent_BTD.reshape(-1, table.shape[1]).astype(jnp.float32)
        dtable = jnp.zeros((V, table.shape[1]), jnp.float32).at[flat_M].add(values_MD, mode="drop")
        dtype = jnp.float32 if summed_in == "float32" else cotangent_BTD.dtype
        dtable = dtable.astype(dtype) if math.prod(jax.lax.axis_size(axis) for axis in split) > 1 else dtable
        return summed(dtable, *axes, over=split).astype(table.dtype)

    dtable = jax.shard_map(summed_gradient, out_specs=RULES.spec(*axes))(indices_BT, cotangent_BTD)
    return jax.reshard(dtable, jax.typeof(table).sharding.spec), None


lookup.defvjp(_lookup_forward, _lookup_backward)


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


@partial(jax.checkpoint, static_argnums=(0, 1))
def activated(
    activation: str, limit: float, gate: jax.Array, up: jax.Array | None, scale: jax.Array | None = None
) -> jax.Array:
    """`activation(gate)`, times `up` and `scale` if given; the backward pass keeps these and computes the rest anew.

    In float32 inside: element-wise bfloat16 is emulated on a CPU, 4 times slower.

    Args:
        limit: not 0 is `g * sigmoid(1.702 g) * (u + 1)` instead, with `g` at most `limit` and `u` within it on both
            sides (gpt-oss's model card, OpenAI 2025).
    """
    gate32, up32 = gate.astype(jnp.float32), None if up is None else up.astype(jnp.float32)
    if limit:
        gate32, up32 = jnp.minimum(gate32, limit), jnp.clip(up32, -limit, limit) + 1
        out = gate32 * jax.nn.sigmoid(1.702 * gate32)
    else:
        out = ACTIVATIONS[activation](gate32)
    out = out if up is None else out * up32
    return (out if scale is None else out * scale).astype(gate.dtype)


class MLP(nnx.Module):
    """Feed-forward: `down(silu(gate(x)) * up(x))` (SwiGLU, Shazeer 2020), or `down(gelu(gate(x)))` if not gated."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, mlp_width = config.width, config.mlp_width
        self.activation, self.limit = config.activation, config.swiglu_limit
        self.gate = Linear(config, rngs, (width,), (mlp_width,), ("embed", "mlp"), config.mlp_bias)
        up = Linear(config, rngs, (width,), (mlp_width,), ("embed", "mlp"), config.mlp_bias) if config.gated else None
        self.up = up
        scale = residual_scale(mlp_width, config.layers)
        self.down = Linear(config, rngs, (mlp_width,), (width,), ("mlp", "embed"), config.mlp_bias, scale)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """`[B, T, D]` to `[B, T, D]`."""
        hidden = RULES.spec("batch", "time", "mlp")
        gate = self.gate("btd,df->btf", x_BTD, hidden)
        up = None if self.up is None else self.up("btd,df->btf", x_BTD, hidden)
        out = settled(activated(self.activation, self.limit, *settled((gate, up))))
        return self.down("btf,fd->btd", out, RULES.spec("batch", "time", "width"))


def residual_scale(inputs: int, layers: int) -> float:
    """Initial deviation of a product that is added to the residual stream, 2 per layer (GPT-2, section 2.3)."""
    return inputs**-0.5 / math.sqrt(2 * layers)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Set a share `rate` of `x` to zero and scale the rest; nothing without a key (Srivastava et al. 2014)."""
    if not rate or key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=jax.typeof(x).sharding)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
