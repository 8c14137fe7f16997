"""Parameters, and the matmul of an activation with one: its gradient is written out."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tpullm.mesh.collectives import gather, summed
from tpullm.mesh.layout import RULES, over
from tpullm.model.memory_layout import in_memory_order
from tpullm.model.platform import product_dtype
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
