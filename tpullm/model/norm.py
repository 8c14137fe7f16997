"""Normalization: RMSNorm and LayerNorm, over the last dimension or over all heads.

Shapes: D model width, N heads, H head width.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from tpullm.mesh.collectives import all_gather
from tpullm.model.linear import parameter
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
