"""The parts of a Transformer: products, RMSNorm, rotary positions, the gated MLP, dropout.

Shapes: B batch, T query length, D model width, N heads, H head width, F feed-forward width.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from tpullm.config import ModelConfig
from tpullm.model.platform import in_memory_order, product_dtype
from tpullm.sharding import RULES, gather


def parameter(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], scale: float | None) -> nnx.Param:
    """Declare a float32 parameter once: shape, logical axes and initializer.

    Args:
        scale: standard deviation of a truncated normal; None is ones.
    """
    if scale is None:
        value = jnp.ones(shape, jnp.float32)
    else:
        # A normal cut at two deviations has a deviation of 0.8796 of the uncut one.
        value = scale / 0.87962566 * jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32)
    return nnx.Param(value, logical_axes=axes)


def einsum(subscripts: str, left: jax.Array, right: jax.Array, out_sharding) -> jax.Array:
    """`jnp.einsum` of two operands in one type, to that type, in the form that is fast here: see `product_dtype`."""
    dtype = product_dtype(left.dtype)
    out = jnp.einsum(subscripts, left, right, out_sharding=out_sharding, preferred_element_type=dtype)
    return out.astype(left.dtype)


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


class RMSNorm(nnx.Module):
    """Root mean square normalization (Zhang & Sennrich 2019), computed in float32."""

    def __init__(self, size: int, epsilon: float, axis: str, rngs: nnx.Rngs):
        self.scale = parameter(rngs, (size,), (axis,), None)
        self.axis = axis
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., size]` to the same shape and type."""
        return normalized(x, gather(self.scale[...], self.axis, dtype=jnp.float32), self.epsilon)


@partial(jax.checkpoint, static_argnums=(2,))
def normalized(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """`x` over its root mean square, times `scale`; the backward pass keeps `x` alone and computes the rest anew."""
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean_square + epsilon) * scale).astype(x.dtype)


def rotary_table(positions_BT: jax.Array, head_width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and signed sine of each position's angles, `[B, T, 1, 2, H / 2]` float32, for `rotary`.

    Behind a barrier, or XLA computes them again in every fusion that uses them: 100 of the 1,270 ms of a step with
    12 M parameters.
    """
    half = head_width // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles_BT11h = positions_BT[:, :, None, None, None].astype(jnp.float32) * frequencies
    sign_21 = jnp.array([[-1.0], [1.0]], jnp.float32)
    cos, sin = jnp.cos(angles_BT11h), jnp.sin(angles_BT11h)
    return jax.lax.optimization_barrier((cos + jnp.zeros_like(sign_21), sin * sign_21))


def rotary(x_BTNH: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding (Su et al. 2021), halves of the head paired as in Llama; float32 inside."""
    B, T, N, H = x_BTNH.shape
    spec = jax.typeof(x_BTNH).sharding.spec
    x = jnp.reshape(x_BTNH.astype(jnp.float32), (B, T, N, 2, H // 2), out_sharding=P(*spec[:3], None, spec[3]))
    cos, sin = table
    # The halves change places by a reversal, which fuses with the rest; a concatenation is an operation of its own.
    rotated = x * cos + jax.lax.rev(x, (3,)) * sin
    return jnp.reshape(rotated, (B, T, N, H), out_sharding=spec).astype(x_BTNH.dtype)


@jax.checkpoint
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """`silu(gate) * up`; the backward pass keeps gate and up alone and computes the rest anew.

    In float32 inside: element-wise bfloat16 is emulated on a CPU, 4 times slower.
    """
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


class MLP(nnx.Module):
    """SwiGLU feed-forward (Shazeer 2020): `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, mlp_width = config.width, config.mlp_width
        self.gate = parameter(rngs, (width, mlp_width), ("embed", "mlp"), width**-0.5)
        self.up = parameter(rngs, (width, mlp_width), ("embed", "mlp"), width**-0.5)
        self.down = parameter(rngs, (mlp_width, width), ("mlp", "embed"), residual_scale(mlp_width, config.layers))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """`[B, T, D]` to `[B, T, D]`."""
        dtype = x_BTD.dtype
        hidden = RULES.spec("batch", "time", "mlp")
        gate = product("btd,df->btf", x_BTD, gather(self.gate[...], "embed", "mlp", dtype=dtype), hidden)
        up = product("btd,df->btf", x_BTD, gather(self.up[...], "embed", "mlp", dtype=dtype), hidden)
        h_BTF = gated(gate, up)
        down = gather(self.down[...], "mlp", "embed", dtype=dtype)
        return product("btf,fd->btd", h_BTF, down, RULES.spec("batch", "time", "width"))


def residual_scale(inputs: int, layers: int) -> float:
    """Initial deviation of a product that is added to the residual stream, 2 per layer (GPT-2, section 2.3)."""
    return inputs**-0.5 / math.sqrt(2 * layers)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Set a share `rate` of `x` to zero and scale the rest; nothing without a key (Srivastava et al. 2014)."""
    if not rate or key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=jax.typeof(x).sharding)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
