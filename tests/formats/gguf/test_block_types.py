"""What a type of few bits holds is what was rounded, within half a step of its block."""

import gguf
import numpy as np
import pytest

from tpullm.formats.gguf import block_types
from tpullm.system.errors import UserError


def values(rows=6, width=768, scale=1.0):
    """Rows whose superblocks differ in size, one of them of zeros, one of equal values."""
    found = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32) * scale
    found[0, :256], found[1, :256], found[2, :256] = 0, 0.5, found[2, :256] * 0.1
    found[3] = np.abs(found[3])
    return found


def held(found, kind):
    rounded = block_types.rounded_to_type(found, kind, "a tensor")
    return gguf.dequantize(rounded, gguf.GGMLQuantizationType[kind]).reshape(found.shape)


BOUNDS = [("Q8_0", 0.0045, 0.0023), ("Q6_K", 0.035, 0.01), ("Q5_K", 0.06, 0.02), ("Q4_K", 0.12, 0.04)]
BOUNDS += [("IQ4_NL", 0.15, 0.04), ("Q3_K", 0.3, 0.08), ("Q2_K", 0.45, 0.13)]


@pytest.mark.parametrize(("kind", "most", "mean"), BOUNDS)
def test_the_errors_are_those_of_the_number_of_bits(kind, most, mean):
    """As shares of the largest of 32 values, of which half a step is 1/254 to 1/3; scales are rounded too."""
    exact = values()
    found = held(exact, kind)
    largest = np.abs(exact.reshape(-1, 32)).max(-1, keepdims=True)
    error = np.abs(found - exact).reshape(-1, 32) / np.where(largest == 0, 1, largest)
    assert error.max() < most and np.sqrt((error**2).mean()) < mean
    np.testing.assert_array_equal(found[0, :256], 0)


# With the first guess alone: 0.0774, 0.0381, 0.0184, 0.325 and 0.0777. Q3_K has one guess, and all would be 0.153.
MOST_ERRORS = {"Q4_K": 0.072, "Q5_K": 0.0364, "Q6_K": 0.0178, "Q2_K": 0.3, "IQ4_NL": 0.0768, "Q3_K": 0.152}


def numbers(shape, most, seed):
    """Whole numbers up to `most`, both ends among the first of each block."""
    found = np.random.default_rng(seed).integers(0, most + 1, shape)
    found[..., 0], found[..., 1] = 0, most
    return found.astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "blocks", "most", "most_scale"), [("Q5_K", 8, 31, 63), ("Q4_K", 8, 15, 63), ("Q2_K", 16, 3, 15)]
)
def test_a_type_with_minima_holds_exactly_what_it_can_hold(kind, blocks, most, most_scale):
    """Scales and minima of 6 bits, or 4, and numbers of 5, 4 or 2."""
    scale = numbers((5, blocks), most_scale - 1, 1)[..., None] + 1
    minimum = numbers((5, blocks), most_scale, 2)[..., None]
    exact = np.float32(2**-7) * scale * numbers((5, blocks, 256 // blocks), most, 3) - np.float32(2**-6) * minimum
    np.testing.assert_array_equal(held(exact.reshape(1, -1), kind), exact.reshape(1, -1))


@pytest.mark.parametrize(("kind", "most", "most_scale"), [("Q6_K", 32, 128), ("Q3_K", 4, 32)])
def test_a_type_without_minima_holds_exactly_what_it_can_hold(kind, most, most_scale):
    """Scales of 8 bits or 6, the largest negative, and numbers of 6 or 3, from -32 or -4."""
    scale = -(numbers((5, 16), most_scale - 1, 1)[..., None] + 1)
    exact = np.float32(2**-9) * scale * (numbers((5, 16, 16), 2 * most - 1, 2) - most)
    np.testing.assert_array_equal(held(exact.reshape(1, -1), kind), exact.reshape(1, -1))


def test_each_block_of_uneven_values_holds_them_exactly():
    exact = np.array(gguf.quants.IQ4_NL.kvalues * 2, np.float32) * np.float32([[2**-5], [-(2**-3)], [0]])
    np.testing.assert_array_equal(held(np.random.default_rng(0).permuted(exact, axis=1), "IQ4_NL")[2], 0)
    np.testing.assert_array_equal(held(exact, "IQ4_NL"), exact)


@pytest.mark.parametrize(("kind", "most"), MOST_ERRORS.items())
def test_several_guesses_find_better_scales_than_the_first(kind, most):
    """Of normal values."""
    exact = np.random.default_rng(0).standard_normal((16, 1024)).astype(np.float32)
    assert np.sqrt(np.mean((held(exact, kind) - exact) ** 2)) < most


def test_rounding_in_parts_is_rounding_at_once_(monkeypatch):
    exact = values()
    whole = block_types.rounded_to_type(exact, "Q4_K", "a tensor")
    monkeypatch.setattr(block_types, "_AT_ONCE", 1_000)
    np.testing.assert_array_equal(block_types.rounded_to_type(exact, "Q4_K", "a tensor"), whole)
    held(values(scale=1e5), "BF16")


# The largest powers of ten that each type still holds.
LARGE = {"F16": 1e4, "BF16": 1e38, "Q8_0": 1e6, "Q6_K": 1e8, "Q5_K": 1e6, "Q4_K": 1e6, "IQ4_NL": 1e6, "Q3_K": 1e6}
LARGE |= {"Q2_K": 1e5, "F32": 1e38}


@pytest.mark.parametrize("kind", LARGE)
def test_values_that_are_no_numbers_or_beyond_the_scales_of_a_type_are_refused(kind):
    for wrong in (np.nan, np.inf, -np.inf):
        exact = values()
        exact[4, 300] = wrong
        with pytest.raises(UserError, match="^export: blk.0.x has values that are NaN or infinite"):
            block_types.rounded_to_type(exact, kind, "blk.0.x")
    exact = values() / np.abs(values()).max()
    largest = held(exact * np.float32(LARGE[kind]), kind)
    np.testing.assert_allclose(largest, exact * np.float32(LARGE[kind]), rtol=0, atol=0.45 * LARGE[kind])
    for beyond in () if kind == "F32" else (3.4e38,) if kind == "BF16" else (1e10, 1e19, 1e38):
        wanted = f"{kind.lower()} is too small for the values of blk.0.x; use {'f32' if kind == 'BF16' else 'bf16'}"
        with pytest.raises(UserError, match=wanted):
            block_types.rounded_to_type(exact * np.float32(beyond), kind, "blk.0.x")
