"""Operands of matmuls in float8: codes of 8 bits, and scales that are computed anew for each matmul.

Activations and weights are e4m3 (3 bits of mantissa), gradients e5m2 (2 bits and more range; Micikevicius et al. 2022).
Scales are chosen so that no law of the program is lost:

- An activation and its gradient have one scale for each token, so a token's numbers depend on no other token, and so
  neither on the mesh nor on what the row or the micro-batch has beside it. The maximum of a token needs no collective
  but where `tensor` splits what is multiplied and summed.
- A matrix has one scale, so the forward and the backward pass multiply with the same numbers. It is whole on its device
  when it is multiplied, but for `tensor`.
- A scale is a power of two. Multiplying by it is exact, so it changes no bit where a compiler does that; and a number
  is rounded alike under any scale, unless it is too small for it.
- There is no state: a training that resumes has the same scales.

The matmul is of the codes alone, and the scales are multiplied into its result. A GPU multiplies the codes as they are,
and so does a TPU that has matmuls of 8-bit floats. Any other device multiplies the same numbers in the wider type,
which holds each product of two codes exactly: only the order of sums differs. A code is that of its bfloat16 number on
every device: an intermediate float16 changes none.

Shapes: B batch, T length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpullm.hardware.chips import of_kind
from tpullm.model.mesh import abstract_device
from tpullm.model.platform import matmul_dtype, target_platform

E4M3, E5M2 = jnp.dtype("float8_e4m3fn"), jnp.dtype("float8_e5m2")
# The largest number of a scale becomes at least 2 to this power, and less than twice that: what rounds up from there is
# still below the largest code, 448 or 57,344, so nothing overflows.
POWER = {E4M3: 7, E5M2: 14}
# Below this, all codes become small: the product of two scales stays a normal float32.
SMALLEST = 2.0**-95
MANTISSA_BITS, BIAS = 23, 127  # of float32


class Codes(NamedTuple):
    """An array in 8 bits: `codes` times `scale`.

    `scale`: float32, powers of two: `[B, T]`, one for each token, or `[]`, one for all. It is NaN if a number that it
    is for is not finite, since e4m3 has no code for infinity.
    """

    codes: jax.Array
    scale: jax.Array


def codes_of(x: jax.Array, dtype: jnp.dtype, each: int = 0) -> Codes:
    """`x` as codes.

    Args:
        dtype: `E4M3`, or `E5M2` for a gradient.
        each: so many dimensions have a scale for each index: of tokens `[B, T, ...]` it is 2; of a matrix, whole along
            `embed`, 0, which is one scale for all.
    """
    largest = jnp.max(jnp.abs(x), axis=tuple(range(each, x.ndim))).astype(jnp.float32)
    exponent = jax.lax.bitcast_convert_type(jnp.maximum(largest, SMALLEST), jnp.int32) >> MANTISSA_BITS
    exponent -= POWER[dtype]  # with float32's bias
    inverse = _power_of_two(2 * BIAS - exponent)
    codes = (x.astype(jnp.float32) * _broadcastable_scale(inverse, x.ndim)).astype(dtype)
    return Codes(codes, jnp.where(jnp.isfinite(largest), _power_of_two(exponent), jnp.nan))


def codes_of_gradient(cotangent: jax.Array, scale_BT: jax.Array) -> Codes:
    """The gradient of a matmul's output, to be summed over tokens with the codes of its input: that is its weight's.

    Args:
        cotangent: `[B, T, ...]`.
        scale_BT: of the codes of the input. It is multiplied in here, since nothing can be taken out of a sum over
            tokens but one scale for all. In e5m2 one is enough: it is a device's own, and only numbers below 2^-30 of
            the largest are rounded otherwise beside other tokens.
    """
    return codes_of(cotangent.astype(jnp.float32) * _broadcastable_scale(scale_BT, cotangent.ndim), E5M2)


def codes_einsum(subscripts: str, left: jax.Array, right: jax.Array, scales: tuple, dtype, out_sharding=None):
    """The product of codes, times the scales of its operands, in `dtype`.

    Args:
        subscripts: of `jnp.einsum`, without a batch dimension. The dimensions that are left come in their order, those
            of `left` first.
    """
    letters, others = subscripts.split("->")[0].split(",")
    summed = [letter for letter in letters if letter in others]
    dimensions = tuple([of.index(letter) for letter in summed] for of in (letters, others))
    # `jnp.einsum` would not multiply e5m2 by e4m3. In a wider type, XLA for a GPU may choose a kernel of that type.
    gpu, device = target_platform() == "gpu", abstract_device()
    if not gpu and (device is None or not of_kind(device.device_kind).fp8):
        left, right = left.astype(dtype), right.astype(dtype)
    out = jax.lax.dot_general(
        *(left, right, (dimensions, ((), ()))),
        precision="highest" if gpu else None,  # by default cuBLASLt sums float8 in fewer bits than float32 has
        preferred_element_type=matmul_dtype(dtype),
        out_sharding=out_sharding,
    )
    scaled = out.astype(jnp.float32)
    for scale in scales:
        scaled *= _broadcastable_scale(scale, out.ndim)
    return scaled.astype(dtype)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """float32 with this biased exponent, exactly: a division or `exp2` may be an approximation."""
    return jax.lax.bitcast_convert_type(exponent << MANTISSA_BITS, jnp.float32)


def _broadcastable_scale(scale: jax.Array, dimensions: int) -> jax.Array:
    """Scales with as many dimensions as what they are multiplied with."""
    return jnp.expand_dims(scale, tuple(range(scale.ndim, dimensions)))
