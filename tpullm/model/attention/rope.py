"""Rotary positions (Su et al. 2021), and the scaling of their frequencies to longer contexts.

Shapes: B batch, T length, N heads, H head width, R of it that is rotated, h = R / 2 frequencies.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from tpullm.model.platform import target_platform
from tpullm.recipe.schema import ModelConfig, RopeScaling


def rotary_table(
    positions_BT, segment_ids_BT, config: ModelConfig, local: bool, longest_B: jax.Array | None = None, rotates=True
):
    """Cosine and signed sine of each position's angles, `[B, T, 1, R]` float32, for `rotary`.

    Behind an optimization barrier: XLA would recompute them in every fusion that uses them, which took 100 of the 1,270
    ms of a step with 12 M parameters.

    Args:
        segment_ids_BT: 0 is padding, which does not count for the length of the longest text.
        local: for the layers with a window.
        longest_B: how long each row's text may become; None is the length of the longest text that is here.
        rotates: if not, queries and keys of these layers stay as they are: all angles are 0.
    """
    theta, scaling = config.rope_theta, config.rope_scaling
    if local and config.local_rope_theta:
        theta, scaling = config.local_rope_theta, RopeScaling()
    if longest_B is None:
        longest = jnp.max(jnp.where(segment_ids_BT > 0, positions_BT, 0)) + 1
    else:
        longest = longest_B[:, None, None, None]
    width = config.rotary_width or config.head_width
    if rotates:
        frequencies = scaled_frequencies(width, theta, scaling, longest)
    else:
        frequencies, scaling = jnp.zeros(width // 2), RopeScaling()
    angles_BT1h = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles_BT1h) * scaling.scale, jnp.sin(angles_BT1h) * scaling.scale
    table = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    return jax.lax.optimization_barrier(table)


def rotary(x_BTNH: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate each pair of the first R dimensions of a head by the angles of `rotary_table`."""
    if (width := table[0].shape[-1]) == x_BTNH.shape[-1]:
        return _turned(x_BTNH, table)
    return jnp.concatenate([_turned(x_BTNH[..., :width], table), x_BTNH[..., width:]], axis=-1)


@jax.custom_vjp
def _turned(x_BTNH: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Each pair of a head turned, paired by halves as in Llama; float32 inside."""
    cos, sin = table
    turned = x_BTNH.astype(jnp.float32) * cos + _halves_swapped(x_BTNH).astype(jnp.float32) * sin
    return turned.astype(x_BTNH.dtype)


def _rotary_backward(table, cotangent_BTNH):
    """The transpose of a rotation is the rotation by the negative angles."""
    cos, sin = table
    return _turned(cotangent_BTNH, (cos, -sin)), None


_turned.defvjp(lambda x_BTNH, table: (_turned(x_BTNH, table), table), _rotary_backward)


def scaled_frequencies(head_width: int, theta: float, scaling: RopeScaling, longest: jax.Array) -> jax.Array:
    """The angle between neighbouring positions in radians, `[h]` float32, or `[B, 1, 1, h]` where texts differ in it.

    Args:
        longest: length of the longest text in the batch, or of each one, for the kinds of scaling that depend on it.
    """
    half = head_width // 2
    exponents = np.arange(half, dtype=np.float32) / half
    plain = (1.0 / theta**exponents).astype(np.float32)
    if scaling.kind == "dynamic":
        over = jnp.maximum(longest, scaling.original_context) / scaling.original_context
        base = theta * (scaling.factor * over - (scaling.factor - 1)) ** (head_width / (head_width - 2))
        return 1.0 / base**exponents
    if scaling.kind == "llama3":
        turns = scaling.original_context * plain / (2 * math.pi)
        kept = np.clip((turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency), 0, 1)
        return jnp.asarray(plain * kept + plain / scaling.factor * (1 - kept), jnp.float32)
    if scaling.kind == "yarn":
        kept = 1 - _yarn_ramp(half, theta, scaling)
        return jnp.asarray(plain * kept + plain / scaling.factor * (1 - kept), jnp.float32)
    if scaling.kind == "longrope":
        short, long = (np.asarray(divisors, np.float32) for divisors in (scaling.short, scaling.long))
        return plain / jnp.where(longest > scaling.original_context, long, short)
    return jnp.asarray(plain / scaling.factor if scaling.kind == "linear" else plain)


def _yarn_ramp(half: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """YaRN: 0 for frequencies with many turns in the original context, which stay, to 1 for those with few."""

    def dimension(turns: float) -> float:
        return half * math.log(scaling.original_context / (turns * 2 * math.pi)) / math.log(theta)

    low, high = dimension(scaling.fast), dimension(scaling.slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    return np.clip((np.arange(half, dtype=np.float32) - low) / ((high - low) or 0.001), 0, 1)


def _halves_swapped(x_BTNH: jax.Array) -> jax.Array:
    """`x` with the two halves of its last dimension swapped, in the form that the compiler fuses with what follows.

    On a CPU that is a reversal of the two; a concatenation is not fused. On a TPU it is a matmul with a permutation,
    which gives the same numbers. A TPU has the last dimension in its 128 lanes and would transpose all of `x` for a
    reversal, there and back, in float32 (a tenth of a layer of 7 B parameters by the compiler's estimate).
    """
    *_, H = x_BTNH.shape
    spec = jax.typeof(x_BTNH).sharding.spec
    if target_platform() == "tpu":
        swap = jnp.roll(jnp.eye(H, dtype=x_BTNH.dtype), H // 2, axis=1)
        return jnp.einsum("btnh,hg->btng", x_BTNH, swap, precision="highest", out_sharding=spec)
    halves = jnp.reshape(x_BTNH, (*x_BTNH.shape[:3], 2, H // 2), out_sharding=P(*spec[:3], None, spec[3]))
    return jnp.reshape(jax.lax.rev(halves, (3,)), x_BTNH.shape, out_sharding=spec)
