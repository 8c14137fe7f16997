"""The parts of a Transformer: parameters, products, the MLP, dropout.

Shapes: B batch, T query length, D model width, N heads, H head width, F feed-forward width.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from tpullm.config import ModelConfig
from tpullm.model.platform import in_memory_order, product_dtype
from tpullm.sharding import RULES, gather


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

    def __init__(self, rngs: nnx.Rngs, inputs, outputs, axes: tuple[str, ...], bias: bool, scale: float | None = None):
        self.weight = parameter(rngs, (*inputs, *outputs), axes, scale or math.prod(inputs) ** -0.5)
        self.bias = parameter(rngs, outputs, axes[len(inputs) :], 0.0) if bias else None
        self.axes, self.bias_axes = axes, axes[len(inputs) :]

    def __call__(self, subscripts: str, x: jax.Array, out_spec) -> jax.Array:
        """`x` times the weight, as `subscripts` says, in the type of `x`."""
        out = product(subscripts, x, gather(self.weight[...], *self.axes, dtype=x.dtype), out_spec)
        return out if self.bias is None else out + gather(self.bias[...], *self.bias_axes, dtype=x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(subscripts: str, x: jax.Array, weight: jax.Array, out_spec) -> jax.Array:
    """`jnp.einsum(subscripts, x, weight)` whose two gradients are written as products that the CPU has a fast path for.

    The CPU's library of products is at its peak when rows of the left operand are multiplied, and JAX's own gradient of
    the weight has it multiply columns: with 4,096 x 384 by 4,096 x 1,024 in bfloat16 that took 22 ms, and 8 with the
    input transposed in memory first (1 ms). With the cotangent on the left it may even become a plain loop.
    """
    return einsum(subscripts, x, weight, out_spec)


def _product_forward(subscripts, x, weight, out_spec):
    return product(subscripts, x, weight, out_spec), (x, weight)


def _product_backward(subscripts, out_spec, saved, cotangent):
    x, weight = saved
    operands, out = subscripts.split("->")
    left, right = operands.split(",")
    dx = einsum(f"{out},{right}->{left}", cotangent, weight, jax.typeof(x).sharding)
    turned = "".join(
        [letter for letter in left if letter in right] + [letter for letter in left if letter not in right]
    )
    x_turned = in_memory_order(jnp.transpose(x, [left.index(letter) for letter in turned]))
    dweight = einsum(f"{turned},{out}->{right}", x_turned, cotangent, jax.typeof(weight).sharding)
    return dx, dweight


product.defvjp(_product_forward, _product_backward)


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


@partial(jax.checkpoint, static_argnums=(0, 1))
def activated(activation: str, limit: float, gate: jax.Array, up: jax.Array | None) -> jax.Array:
    """`activation(gate)`, times `up` if given; the backward pass keeps gate and up alone and computes the rest anew.

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
    return (out if up is None else out * up32).astype(gate.dtype)


class MLP(nnx.Module):
    """Feed-forward: `down(silu(gate(x)) * up(x))` (SwiGLU, Shazeer 2020), or `down(gelu(gate(x)))` if not gated."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, mlp_width = config.width, config.mlp_width
        self.activation, self.limit = config.activation, config.swiglu_limit
        self.gate = Linear(rngs, (width,), (mlp_width,), ("embed", "mlp"), config.mlp_bias)
        self.up = Linear(rngs, (width,), (mlp_width,), ("embed", "mlp"), config.mlp_bias) if config.gated else None
        scale = residual_scale(mlp_width, config.layers)
        self.down = Linear(rngs, (mlp_width,), (width,), ("mlp", "embed"), config.mlp_bias, scale)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """`[B, T, D]` to `[B, T, D]`."""
        hidden = RULES.spec("batch", "time", "mlp")
        gate = self.gate("btd,df->btf", x_BTD, hidden)
        up = None if self.up is None else self.up("btd,df->btf", x_BTD, hidden)
        out = activated(self.activation, self.limit, gate, up)
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
