"""Rounds weights to the types of a GGUF file.

`gguf` rounds to the simpler types; to no K type, and not to IQ4_NL. A K type has 256 values in a superblock: 8 or 16
blocks with a scale and a minimum each (Q4_K, Q5_K; Q2_K), or 16 blocks with a scale each (Q3_K, Q6_K). Scales are whole
numbers too, with one float16 factor for the superblock. IQ4_NL has blocks of 32 values with a float16 scale each, and
16 values that are not evenly spaced. The scale of a block is found by weighted least squares, from several guesses.

Source: the layouts and the guesses of `quantize_row_q*_K_ref` and `quantize_row_iq4_nl_impl`, ggml/src/ggml-quants.c.
Q3_K has the first of Q6_K's guesses alone: with all, and in place of llama.cpp's descent in single numbers, the error
of normal values is 0.153; with one it is 0.1513, and llama.cpp's 0.1511.
Shapes: R superblocks, B blocks in each, n values in a block.
"""

import math
from collections.abc import Callable

import numpy as np

from tpullm.system.errors import UserError

_AT_ONCE = 1 << 20  # values that are rounded at once
_FLOAT16_MAX = 65504


def rounded_to_type(values: np.ndarray, kind: str, name: str) -> np.ndarray:
    """Values, float32, in a type: an array of that type, or bytes `[..., bytes of a row]`.

    Raises:
        UserError: a value is NaN or infinite, or too large for the type; `name` says in which tensor.
    """
    import gguf

    low, high = float(values.min()), float(values.max())  # NaN if one is
    if not math.isfinite(high - low):
        raise UserError(f"export: {name} has values that are NaN or infinite; export an earlier checkpoint")
    if kind == "F32":
        return values
    largest = max(-low, high)
    with np.errstate(over="ignore", invalid="ignore"):
        found = values.astype(np.float16) if kind == "F16" else _bytes_of_type(values, kind)
        if largest > _FLOAT16_MAX:  # no smaller value has a scale that is infinite, or squares that are
            held = gguf.dequantize(found, gguf.GGMLQuantizationType[kind]).reshape(values.shape)
            if not np.allclose(held, values, rtol=0, atol=largest / 2):
                larger = "f32" if kind == "BF16" else "bf16"
                raise UserError(f"--weights: {kind.lower()} is too small for the values of {name}; use {larger}")
    return found


def _bytes_of_type(values: np.ndarray, kind: str) -> np.ndarray:
    """Values, float32, in a type: bytes `[..., bytes of a row]`."""
    import gguf

    rows = values.reshape(-1, values.shape[-1])
    step = max(1, _AT_ONCE // rows.shape[1])
    type_ = gguf.GGMLQuantizationType[kind]
    ours = {"Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k, "IQ4_NL": iq4_nl}
    by_rows = ours.get(kind, lambda part: gguf.quants.quantize(part, type_))
    parts = [by_rows(rows[first : first + step]) for first in range(0, len(rows), step)]
    return np.concatenate(parts).view(np.uint8).reshape(*values.shape[:-1], -1)


def q2_k(rows: np.ndarray) -> np.ndarray:
    """Rows whose length is a multiple of 256 → their bytes as Q2_K, 84 for each 256 values."""
    x_RBn = rows.reshape(-1, 16, 16)
    found = _scales_and_minima(x_RBn, np.abs(x_RBn), 3, -0.5 + 0.1 * np.arange(16, dtype=np.float32), power=1)
    number_RBn, factors, scale_RB, minimum_RB = _numbers(x_RBn, *found, most=3, most_scale=15)
    return _rows_of_bytes(rows, scale_RB | minimum_RB << 4, _two_bits(number_RBn), *factors)


def q4_k(rows: np.ndarray) -> np.ndarray:
    """Rows whose length is a multiple of 256 → their bytes as Q4_K, 144 for each 256 values."""
    number_RBn, head = _numbers_of_32(rows, 15, -1 + 0.1 * np.arange(21, dtype=np.float32))
    return _rows_of_bytes(rows, *head, _four_bits(number_RBn))


def q5_k(rows: np.ndarray) -> np.ndarray:
    """Rows whose length is a multiple of 256 → their bytes as Q5_K, 176 for each 256 values."""
    number_RBn, head = _numbers_of_32(rows, 31, -0.5 + 0.1 * np.arange(16, dtype=np.float32))
    high = np.bitwise_or.reduce(number_RBn >> 4 << np.arange(8, dtype=np.uint8)[:, None], axis=1)
    return _rows_of_bytes(rows, *head, high, _four_bits(number_RBn & 15))


def _numbers_of_32(rows: np.ndarray, most: int, guesses: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Whole numbers in blocks of 32, and what Q4_K and Q5_K begin with: scales and minima of 6 bits in 12 bytes."""
    x_RBn = rows.reshape(-1, 8, 32)
    weight = np.sqrt(np.mean(x_RBn**2, axis=-1, keepdims=True)) + np.abs(x_RBn)
    found = _scales_and_minima(x_RBn, weight, most, guesses)
    number_RBn, factors, scale_RB, minimum_RB = _numbers(x_RBn, *found, most=most, most_scale=63)
    first = scale_RB[:, :4] | (scale_RB[:, 4:] >> 4) << 6
    second = minimum_RB[:, :4] | (minimum_RB[:, 4:] >> 4) << 6
    third = scale_RB[:, 4:] & 15 | (minimum_RB[:, 4:] & 15) << 4
    return number_RBn, [*factors, first, second, third]


def _numbers(x_RBn, scale_RB, minimum_RB, most: int, most_scale: int) -> tuple[np.ndarray, ...]:
    """Whole numbers up to `most`; the bytes of both factors of each superblock; scales and minima as whole numbers."""
    d_R1, whole_scale_RB = _superblock_scales(scale_RB, most_scale)
    dmin_R1, whole_minimum_RB = _superblock_scales(minimum_RB, most_scale)
    step_RB1, offset_RB1 = (d_R1 * whole_scale_RB)[..., None], (dmin_R1 * whole_minimum_RB)[..., None]
    number_RBn = np.clip(np.rint(_ratio(x_RBn + offset_RB1, step_RB1)), 0, most).astype(np.uint8)
    factors = [_float16_bytes(d_R1), _float16_bytes(dmin_R1)]
    return number_RBn, factors, whole_scale_RB.astype(np.uint8), whole_minimum_RB.astype(np.uint8)


def _scales_and_minima(x_RBn, weight, most: int, guesses: np.ndarray, power: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Scale and negative minimum of each block, for whole numbers from 0 to `most`.

    Args:
        weight: how much each value counts.
        guesses: how many more steps than `most` there may be from the lowest value to the highest.
        power: of the error that decides between the guesses.
    """

    def error(number, scale, minimum) -> np.ndarray:
        return (weight * np.abs(scale * number + minimum - x_RBn) ** power).sum(-1, keepdims=True)

    low, high = np.minimum(x_RBn.min(-1, keepdims=True), 0), x_RBn.max(-1, keepdims=True)
    scale, minimum = (high - low) / np.float32(most), low
    least = error(np.clip(np.rint(_ratio(x_RBn - low, scale)), 0, most), scale, minimum)
    sum_w, sum_x = weight.sum(-1, keepdims=True), (weight * x_RBn).sum(-1, keepdims=True)
    for steps in most + guesses:
        number = np.clip(np.rint((x_RBn - minimum) * _ratio(steps, high - minimum)), 0, most)
        sum_l, sum_l2 = (weight * number).sum(-1, keepdims=True), (weight * number**2).sum(-1, keepdims=True)
        sum_xl = (weight * x_RBn * number).sum(-1, keepdims=True)
        determinant = sum_w * sum_l2 - sum_l**2
        new_scale = _ratio(sum_w * sum_xl - sum_x * sum_l, determinant)
        new_minimum = _ratio(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        is_above = new_minimum > 0
        new_scale = np.where(is_above, _ratio(sum_xl, sum_l2), new_scale)
        new_minimum = np.where(is_above, 0, new_minimum)
        new_error = error(number, new_scale, new_minimum)
        better = (determinant > 0) & (new_error < least)
        scale, minimum = np.where(better, new_scale, scale), np.where(better, new_minimum, minimum)
        least = np.where(better, new_error, least)
    return scale[..., 0], -minimum[..., 0]


def q3_k(rows: np.ndarray) -> np.ndarray:
    """Rows whose length is a multiple of 256 → their bytes as Q3_K, 110 for each 256 values."""
    number_RBn, whole_RB, factor = _signed_numbers(rows, 4, 32, [0])
    pieces = number_RBn.reshape(-1, 8, 32)
    high = np.bitwise_or.reduce(pieces >> 2 << np.arange(8, dtype=np.uint8)[:, None], axis=1)
    whole_RB = (whole_RB + 32).astype(np.uint8)  # 6 bits: four of them in 8 bytes, the others in 4
    low = whole_RB[:, :8] & 15 | (whole_RB[:, 8:] & 15) << 4
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    rest = np.bitwise_or.reduce((whole_RB >> 4).reshape(-1, 4, 4) << shifts, axis=1)
    return _rows_of_bytes(rows, high, _two_bits(pieces & 3), low, rest, factor)


def q6_k(rows: np.ndarray) -> np.ndarray:
    """Rows whose length is a multiple of 256 → their bytes as Q6_K, 210 for each 256 values."""
    number_RBn, whole_RB, factor = _signed_numbers(rows, 32, 128, [0, *range(-9, 0), *range(1, 10)])
    number = number_RBn.reshape(-1, 2, 4, 32)
    low = number[:, :, :2] & 15 | (number[:, :, 2:] & 15) << 4
    return _rows_of_bytes(rows, low, _two_bits(number >> 4), whole_RB.astype(np.int8).view(np.uint8), factor)


def _signed_numbers(rows: np.ndarray, half: int, most: int, guesses: list[int]) -> tuple[np.ndarray, ...]:
    """Whole numbers in blocks of 16, from -half, plus half; the scales as whole numbers from -most; their factors."""
    x_RBn = rows.reshape(-1, 16, 16)
    tenths = half + 0.1 * np.array(guesses, np.float32)
    scale_RB = _symmetric_scales(x_RBn, tenths, lambda x: np.clip(np.rint(x), -half, half - 1))
    largest = np.take_along_axis(scale_RB, np.abs(scale_RB).argmax(-1, keepdims=True), -1)
    whole_RB = np.minimum(np.rint(scale_RB * _ratio(np.float32(-most), largest)), most - 1)
    d_R1 = (-largest / most).astype(np.float16)
    step_RB1 = (d_R1.astype(np.float32) * whole_RB)[..., None]
    number = (np.clip(np.rint(_ratio(x_RBn, step_RB1)), -half, half - 1) + half).astype(np.uint8)
    return number, whole_RB, _float16_bytes(d_R1)


def iq4_nl(rows: np.ndarray) -> np.ndarray:
    """Rows whose length is a multiple of 32 → their bytes as IQ4_NL, 18 for each 32 values."""
    import gguf

    values = np.array(gguf.quants.IQ4_NL.kvalues, np.float32)
    between = (values[1:] + values[:-1]) / 2
    x_RBn = rows.reshape(-1, 1, 32)
    guesses = 127 + np.array([0, *range(-7, 0), *range(1, 8)], np.float32)
    scale_R1 = _symmetric_scales(x_RBn, guesses, lambda x: values[np.searchsorted(between, x)])
    number = np.searchsorted(between, _ratio(x_RBn, scale_R1[..., None])).astype(np.uint8)
    return _rows_of_bytes(rows, _float16_bytes(scale_R1), number[:, 0, :16] | number[:, 0, 16:] << 4)


def _symmetric_scales(x_RBn: np.ndarray, guesses: np.ndarray, rounded: Callable) -> np.ndarray:
    """The scale of each block for the values that `rounded` gives, with the squares of `x_RBn` as weights.

    Args:
        guesses: what the value of the largest magnitude is divided by, with the other sign.
    """
    extreme = np.take_along_axis(x_RBn, np.abs(x_RBn).argmax(-1, keepdims=True), -1)
    weight, scale, best = x_RBn**2, np.zeros_like(extreme), np.zeros_like(extreme)
    for steps in guesses:
        number = rounded(x_RBn * _ratio(-steps, extreme))
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


def _four_bits(number_RBn: np.ndarray) -> np.ndarray:
    """Two numbers of 4 bits in a byte, which are 32 places apart."""
    pairs = number_RBn.reshape(-1, 4, 2, 32)
    return pairs[:, :, 0] | pairs[:, :, 1] << 4


def _two_bits(number_RBn: np.ndarray) -> np.ndarray:
    """Four numbers of 2 bits in a byte, which are 32 places apart."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.bitwise_or.reduce(number_RBn.reshape(-1, 2, 4, 32) << shifts, axis=2)


def _rows_of_bytes(rows: np.ndarray, *parts: np.ndarray) -> np.ndarray:
    """The parts of each superblock one after the other."""
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).reshape(len(rows), -1)


def _float16_bytes(value_R1: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value_R1.astype("<f2")).view(np.uint8)
