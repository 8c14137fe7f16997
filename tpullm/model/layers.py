"""The parts of a Transformer: products, RMSNorm, rotary positions, the gated MLP, dropout.

Shapes: B batch, T query length, D model width, N heads, H head width, F feed-forward width.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from tpullm.config import ModelConfig
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


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(subscripts: str, x: jax.Array, weight: jax.Array, out_spec) -> jax.Array:
    """`jnp.einsum(subscripts, x, weight)` whose two gradients are written as products that the CPU has a fast path for.

    JAX's own transpose puts the cotangent on the left of the weight's gradient; XLA's CPU backend then runs a plain
    loop, up to 40 times slower (measured: 213 ms against 5 ms in bf16).
    """
    return jnp.einsum(subscripts, x, weight, out_sharding=out_spec)


def _product_forward(subscripts, x, weight, out_spec):
    return product(subscripts, x, weight, out_spec), (x, weight)


def _product_backward(subscripts, out_spec, saved, cotangent):
    x, weight = saved
    operands, out = subscripts.split("->")
    left, right = operands.split(",")
    dx = jnp.einsum(f"{out},{right}->{left}", cotangent, weight, out_sharding=jax.typeof(x).sharding)
    dweight = jnp.einsum(f"{left},{out}->{right}", x, cotangent, out_sharding=jax.typeof(weight).sharding)
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
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        scale = gather(self.scale[...], self.axis, dtype=jnp.float32)
        return (x32 * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(x.dtype)


def rotary(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (Su et al. 2021), halves of the head paired as in Llama; float32 inside."""
    half = x_BTNH.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles_BT1h = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles_BT1h), jnp.sin(angles_BT1h)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


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
        # Element-wise bf16 is emulated on a CPU (4 times slower): the gate is computed in float32.
        h_BTF = (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(dtype)
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
