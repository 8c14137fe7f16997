"""Rounds weights to the types of a GGUF file, also to blocks of 4 and 6 bits.

`gguf` rounds to the simpler types, and to no K type. The two here have 256 values in a superblock: 8 blocks with a
scale and a minimum each (Q4_K), or 16 blocks with a scale each (Q6_K). Scales are whole numbers too, with one float16
factor for the superblock. The scale of a block is found by weighted least squares, from several first guesses.

Source: the layout and the guesses of `quantize_row_q4_K_ref` and `quantize_row_q6_K_ref`, ggml/src/ggml-quants.c.
Shapes: R superblocks, B blocks in each, n values in a block.
"""

import numpy as np

from tpullm.system.errors import UserError

_AT_ONCE = 1 << 20  # values that are rounded at once


def rounded_to_type(values: np.ndarray, kind: str, name: str) -> np.ndarray:
    """Values, float32, in a type: an array of that type, or bytes `[..., bytes of a row]`.

    Raises:
        UserError: a value is too large for float16; `name` says in which tensor.
    """
    import gguf

    if kind == "F32":
        return values
    if kind == "F16":
        with np.errstate(over="ignore"):
            found = values.astype(np.float16)
        if np.isinf(found).any() and not np.isinf(values).any():
            raise UserError(f"--weights: f16 is too small for the values of {name}; use bf16")
        return found
    rows = values.reshape(-1, values.shape[-1])
    step = max(1, _AT_ONCE // rows.shape[1])
    type_ = gguf.GGMLQuantizationType[kind]
    by_rows = {"Q4_K": q4_k, "Q6_K": q6_k}.get(kind, lambda part: gguf.quants.quantize(part, type_))
    parts = [by_rows(rows[first : first + step]) for first in range(0, len(rows), step)]
    return np.concatenate(parts).view(np.uint8).reshape(*values.shape[:-1], -1)


def q4_k(rows: np.ndarray) -> np.ndarray:
    """Rows whose length is a multiple of 256 → their bytes as Q4_K, 144 for each 256 values."""
    x_RBn = rows.reshape(-1, 8, 32)
    scale_RB, minimum_RB = _scales_and_minima(x_RBn)
    d_R1, whole_scale_RB = _superblock_scales(scale_RB, 63)
    dmin_R1, whole_minimum_RB = _superblock_scales(minimum_RB, 63)
    step_RB1, offset_RB1 = (d_R1 * whole_scale_RB)[..., None], (dmin_R1 * whole_minimum_RB)[..., None]
    number_RBn = np.clip(np.rint(_ratio(x_RBn + offset_RB1, step_RB1)), 0, 15).astype(np.uint8)
    pairs = number_RBn.reshape(-1, 4, 2, 32)
    packed = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    scale_RB, minimum_RB = whole_scale_RB.astype(np.uint8), whole_minimum_RB.astype(np.uint8)
    # Eight scales and eight minima of 6 bits in 12 bytes.
    first = scale_RB[:, :4] | (scale_RB[:, 4:] >> 4) << 6
    second = minimum_RB[:, :4] | (minimum_RB[:, 4:] >> 4) << 6
    third = scale_RB[:, 4:] & 15 | (minimum_RB[:, 4:] & 15) << 4
    found = [_float16_bytes(d_R1), _float16_bytes(dmin_R1), first, second, third, packed]
    return np.concatenate(found, axis=1).reshape(len(rows), -1)


def _scales_and_minima(x_RBn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and negative minimum of each block, for whole numbers from 0 to 15. Large values count more."""
    weight = np.sqrt(np.mean(x_RBn**2, axis=-1, keepdims=True)) + np.abs(x_RBn)
    low, high = np.minimum(x_RBn.min(-1, keepdims=True), 0), x_RBn.max(-1, keepdims=True)
    scale, minimum = (high - low) / 15, low
    error = _error(x_RBn, weight, np.clip(np.rint(_ratio(x_RBn - low, scale)), 0, 15), scale, minimum)
    sum_w, sum_x = weight.sum(-1, keepdims=True), (weight * x_RBn).sum(-1, keepdims=True)
    for steps in 14 + 0.1 * np.arange(21, dtype=np.float32):
        number = np.clip(np.rint((x_RBn - minimum) * _ratio(steps, high - minimum)), 0, 15)
        sum_l, sum_l2 = (weight * number).sum(-1, keepdims=True), (weight * number**2).sum(-1, keepdims=True)
        sum_xl = (weight * x_RBn * number).sum(-1, keepdims=True)
        determinant = sum_w * sum_l2 - sum_l**2
        new_scale = _ratio(sum_w * sum_xl - sum_x * sum_l, determinant)
        new_minimum = _ratio(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        is_above = new_minimum > 0
        new_scale = np.where(is_above, _ratio(sum_xl, sum_l2), new_scale)
        new_minimum = np.where(is_above, 0, new_minimum)
        new_error = _error(x_RBn, weight, number, new_scale, new_minimum)
        better = (determinant > 0) & (new_error < error)
        scale, minimum = np.where(better, new_scale, scale), np.where(better, new_minimum, minimum)
        error = np.where(better, new_error, error)
    return scale[..., 0], -minimum[..., 0]


def _error(x, weight, number, scale, minimum) -> np.ndarray:
    """The weighted squared error."""
    return (weight * (scale * number + minimum - x) ** 2).sum(-1, keepdims=True)


def q6_k(rows: np.ndarray) -> np.ndarray:
    """Rows whose length is a multiple of 256 → their bytes as Q6_K, 210 for each 256 values."""
    x_RBn = rows.reshape(-1, 16, 16)
    scale_RB = _symmetric_scales(x_RBn)
    largest = np.take_along_axis(scale_RB, np.abs(scale_RB).argmax(-1, keepdims=True), -1)
    whole_RB = np.minimum(np.rint(scale_RB * _ratio(np.float32(-128), largest)), 127)
    d_R1 = (-largest / 128).astype(np.float16)
    step_RB1 = (d_R1.astype(np.float32) * whole_RB)[..., None]
    number = (np.clip(np.rint(_ratio(x_RBn, step_RB1)), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = (number[:, :, :2] & 15 | (number[:, :, 2:] & 15) << 4).reshape(-1, 128)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = np.bitwise_or.reduce(number >> 4 << shifts, axis=2).reshape(-1, 64)
    found = np.concatenate([low, high, whole_RB.astype(np.int8).view(np.uint8), _float16_bytes(d_R1)], axis=1)
    return found.reshape(len(rows), -1)


def _symmetric_scales(x_RBn: np.ndarray) -> np.ndarray:
    """The scale of each block for whole numbers from -32 to 31, with the squares of the values as weights."""
    extreme = np.take_along_axis(x_RBn, np.abs(x_RBn).argmax(-1, keepdims=True), -1)
    weight, scale, best = x_RBn**2, np.zeros_like(extreme), np.zeros_like(extreme)
    for steps in 32 + 0.1 * np.array([0, *range(-9, 0), *range(1, 10)], np.float32):
        number = np.clip(np.rint(x_RBn * _ratio(-steps, extreme)), -32, 31)
        sum_xl = (weight * x_RBn * number).sum(-1, keepdims=True)
        new_scale = _ratio(sum_xl, (weight * number**2).sum(-1, keepdims=True))
        better = new_scale * sum_xl > best
        scale, best = np.where(better, new_scale, scale), np.where(better, new_scale * sum_xl, best)
    return scale[..., 0]


def _superblock_scales(value_RB: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """A factor for each superblock, as float16 holds it, and the values as whole numbers up to `most`."""
    largest = value_RB.max(-1, keepdims=True)
    whole = np.minimum(np.rint(value_RB * _ratio(np.float32(most), largest)), most)
    return (largest / most).astype(np.float16).astype(np.float32), whole


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; 0 where the divisor is 0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.zeros(shape, np.float32), where=denominator != 0)


def _float16_bytes(value_R1: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value_R1.astype("<f2")).view(np.uint8)
