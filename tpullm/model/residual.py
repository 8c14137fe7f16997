"""The residual stream: the initial scale of what is added to it, and dropout."""

import math

import jax
import jax.numpy as jnp


def residual_scale(inputs: int, layers: int) -> float:
    """Initial deviation of a weight whose output is added to the residual stream, 2 per layer (GPT-2, section 2.3)."""
    return inputs**-0.5 / math.sqrt(2 * layers)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Set a share `rate` of `x` to zero and scale the rest (Srivastava et al. 2014); without a key, `x` itself."""
    if not rate or key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=jax.typeof(x).sharding)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
