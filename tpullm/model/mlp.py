"""The feed-forward layer and its activations, normalization, and the residual stream.

Normalization is RMSNorm or LayerNorm, over the last dimension or over all heads. Of the residual stream: the initial
scale of what is added to it, and dropout.

Shapes: B batch, T query length, D model width, F feed-forward width, N heads, H head width.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from tpullm.model.collectives import all_gather
from tpullm.model.linear import Linear, parameter, together
from tpullm.model.mesh import RULES
from tpullm.model.platform import barrier_on_tpu
from tpullm.recipe.schema import ModelConfig


class Norm(nnx.Module):
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) over the dimensions `axes`, in float32."""

    def __init__(self, config: ModelConfig, shape: tuple[int, ...], axes: tuple[str, ...], rngs: nnx.Rngs):
        self.scale = parameter(rngs, shape, axes, 0.0 if config.norm_unit_offset else None)
        self.bias = parameter(rngs, shape, axes, 0.0) if config.norm == "layer" else None
        self.axes, self.epsilon, self.offset = axes, config.norm_epsilon, float(config.norm_unit_offset)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., *shape]` to the same shape and type."""
        scale = all_gather(self.scale[...], *self.axes, dtype=jnp.float32) + self.offset
        bias = None if self.bias is None else all_gather(self.bias[...], *self.axes, dtype=jnp.float32)
        return normalized(x, scale, bias, self.epsilon)


@partial(jax.checkpoint, static_argnums=(3,))
def normalized(x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float) -> jax.Array:
    """`x` over its root mean square, times `scale`; with a `bias`, the mean is subtracted first.

    The backward pass keeps `x` alone and recomputes the rest.
    """
    axes = tuple(range(-scale.ndim, 0))
    x32 = x.astype(jnp.float32)
    if bias is not None:
        x32 -= jnp.mean(x32, axis=axes, keepdims=True)
    mean_square = jnp.mean(jnp.square(x32), axis=axes, keepdims=True)
    out = x32 * jax.lax.rsqrt(mean_square + epsilon) * scale
    return (out if bias is None else out + bias).astype(x.dtype)


def residual_scale(inputs: int, layers: int) -> float:
    """Initial deviation of a weight whose output is added to the residual stream, 2 per layer (GPT-2, section 2.3)."""
    return inputs**-0.5 / math.sqrt(2 * layers)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Set a share `rate` of `x` to zero and scale the rest (Srivastava et al. 2014); without a key, `x` itself."""
    if not rate or key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=jax.typeof(x).sharding)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


@partial(jax.checkpoint, static_argnums=(0, 1))
def activated(
    activation: str, limit: float, gate: jax.Array, up: jax.Array | None, scale: jax.Array | None = None
) -> jax.Array:
    """`activation(gate)`, times `up` and `scale` if given; the backward pass recomputes all but these inputs.

    In float32 inside: element-wise bfloat16 is emulated on a CPU, 4 times slower.

    Args:
        limit: if not 0, `g * sigmoid(1.702 g) * (u + 1)` instead, with `g` clipped to at most `limit` and `u` to
            `[-limit, limit]` (gpt-oss's model card, OpenAI 2025).
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
        first = partial(Linear, config, rngs, (width,), (mlp_width,), ("embed", "mlp"), config.mlp_bias)
        self.gate, self.up = first(), first() if config.gated else None
        scale = residual_scale(mlp_width, config.layers)
        self.down = Linear(config, rngs, (mlp_width,), (width,), ("mlp", "embed"), config.mlp_bias, scale)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """`[B, T, D]` to `[B, T, D]`."""
        hidden = RULES.spec("batch", "time", "mlp")
        asked = [(of, "btd,df->btf", hidden) for of in (self.gate, self.up) if of is not None]
        gate, up = [*together(asked, x_BTD), None][:2]
        out = barrier_on_tpu(activated(self.activation, self.limit, *barrier_on_tpu((gate, up))))
        return self.down("btf,fd->btd", out, RULES.spec("batch", "time", "width"))
