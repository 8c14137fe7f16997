"""What a type of few bits holds is what was rounded, within half a step of its block."""

import gguf
import numpy as np
import pytest

from tests.formats.gguf.small_gguf import config_of, planned
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


BOUNDS = [("Q8_0", 0.0045, 0.0023), ("Q6_K", 0.035, 0.01), ("Q4_K", 0.12, 0.04)]


@pytest.mark.parametrize(("kind", "most", "mean"), BOUNDS)
def test_the_errors_are_those_of_the_number_of_bits(kind, most, mean):
    """As shares of the largest of 32 values. Half a step is 1/254 of it, 1/64, or 1/15, and scales are rounded too."""
    exact = values()
    found = held(exact, kind)
    largest = np.abs(exact.reshape(-1, 32)).max(-1, keepdims=True)
    error = np.abs(found - exact).reshape(-1, 32) / np.where(largest == 0, 1, largest)
    assert error.max() < most and np.sqrt((error**2).mean()) < mean
    np.testing.assert_array_equal(found[0, :256], 0)


def numbers(shape, most, seed):
    """Whole numbers up to `most`, both ends among the first of each block."""
    found = np.random.default_rng(seed).integers(0, most + 1, shape)
    found[..., 0], found[..., 1] = 0, most
    return found.astype(np.float32)


def test_each_type_holds_exactly_what_it_can_hold():
    """Scales and minima of 6 bits, numbers of 4; scales of 8 bits, the largest -128, numbers from -32 to 31."""
    scale, minimum = numbers((5, 8), 62, 1)[..., None] + 1, numbers((5, 8), 63, 2)[..., None]
    exact = np.float32(2**-7) * scale * numbers((5, 8, 32), 15, 3) - np.float32(2**-6) * minimum
    np.testing.assert_array_equal(held(exact.reshape(1, -1), "Q4_K"), exact.reshape(1, -1))

    scale = -(numbers((5, 16), 127, 1)[..., None] + 1)
    exact = np.float32(2**-9) * scale * (numbers((5, 16, 16), 63, 2) - 32)
    np.testing.assert_array_equal(held(exact.reshape(1, -1), "Q6_K"), exact.reshape(1, -1))


@pytest.mark.parametrize(("kind", "most"), [("Q4_K", 0.072), ("Q6_K", 0.0178)])
def test_several_guesses_find_better_scales_than_the_first(kind, most):
    """Of normal values the mean error was 0.0707 and 0.0176; with the first guess alone 0.0774 and 0.0184."""
    exact = np.random.default_rng(0).standard_normal((16, 1024)).astype(np.float32)
    assert np.sqrt(np.mean((held(exact, kind) - exact) ** 2)) < most


def test_rounding_in_parts_is_rounding_at_once_and_values_beyond_float16_are_refused(monkeypatch):
    exact = values()
    whole = block_types.rounded_to_type(exact, "Q4_K", "a tensor")
    monkeypatch.setattr(block_types, "_AT_ONCE", 1_000)
    np.testing.assert_array_equal(block_types.rounded_to_type(exact, "Q4_K", "a tensor"), whole)
    with pytest.raises(UserError, match="f16 is too small for the values of blk.0.x; use bf16"):
        block_types.rounded_to_type(values(scale=1e5), "F16", "blk.0.x")
    held(values(scale=1e5), "BF16")


def test_the_mixture_is_that_of_llama_cpp():
    """Q6_K for the output, and for values and the last matrix in the first and last eighth and each third layer.

    A tied table is the output, and odd rows get the next type.
    """
    config = config_of("llama-2", hidden_size=256, intermediate_size=512, head_dim=64, num_hidden_layers=8)
    found = {tensor.name: kind for tensor, kind in planned(config, "q4_k_m").tensors}
    more = {f"blk.{layer}.{name}.weight" for layer in (0, 3, 6, 7) for name in ("attn_v", "ffn_down")}
    assert {name for name, kind in found.items() if kind == "Q6_K"} == {*more, "output.weight"}
    assert {kind for name, kind in found.items() if "norm" in name} == {"F32"}
    assert found["token_embd.weight"] == found["blk.0.attn_q.weight"] == "Q4_K"
    config = config_of("llama-2", hidden_size=96, intermediate_size=40, tie_word_embeddings=True)
    found = {tensor.name: kind for tensor, kind in planned(config, "q4_k_m").tensors}
    assert found["token_embd.weight"] == "Q8_0" and found["blk.0.attn_q.weight"] == "Q5_0"
    assert found["blk.1.ffn_down.weight"] == "F16"
    found = {tensor.name: kind for tensor, kind in planned(config, "q8_0").tensors}
    assert found["token_embd.weight"] == "Q8_0" and found["blk.0.ffn_down.weight"] == "F16"
