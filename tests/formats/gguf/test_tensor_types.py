"""Each tensor has the type that llama.cpp gives it; a type that its rows do not fit is told."""

import pytest

from tests.formats.gguf.small_gguf import config_of, planned
from tpullm.formats.gguf import tensor_types


def kinds_of(weights, **changes):
    """The types of the tensors of a small Llama of eight layers."""
    config = config_of("llama-2", **{"hidden_size": 256, "intermediate_size": 512, "head_dim": 64} | changes)
    return {tensor.name: kind for tensor, kind in planned(config | {"num_hidden_layers": 8}, weights).tensors}


# What llama.cpp's `llama_model_quantize` made of the same file, where it is not the type of most: values and the last
# matrix of the MLP of each layer, and the projection of attention.
MIXTURES = {
    "q2_k": ("Q2_K", "33333333", "33333333", "Q3_K"),
    "q3_k_m": ("Q3_K", "55444444", "44444444", "Q4_K"),
    "q4_k_m": ("Q4_K", "64464466", "64464466", "Q4_K"),
    "q5_k_m": ("Q5_K", "65565566", "65565566", "Q5_K"),
    "q6_k": ("Q6_K", "66666666", "66666666", "Q6_K"),
}


@pytest.mark.parametrize("weights", MIXTURES)
def test_the_mixture_is_that_of_llama_cpp(weights):
    most, values, downs, projection = MIXTURES[weights]
    found = kinds_of(weights)
    for name, digits in (("attn_v", values), ("ffn_down", downs)):
        assert [found[f"blk.{layer}.{name}.weight"] for layer in range(8)] == [f"Q{digit}_K" for digit in digits]
    assert {found[f"blk.{layer}.attn_output.weight"] for layer in range(8)} == {projection}
    assert found["output.weight"] == "Q6_K" and found["token_embd.weight"] == found["blk.0.attn_q.weight"] == most
    assert {kind for name, kind in found.items() if "norm" in name} == {"F32"}


def test_the_mixture_depends_on_what_heads_share():
    """With four queries for each value, values are small and get more bits."""
    few = {"num_attention_heads": 4, "num_key_value_heads": 1}
    assert kinds_of("q2_k", **few)["blk.0.attn_v.weight"] == "Q4_K"
    found = kinds_of("iq4_nl", **few)
    assert found["blk.0.attn_v.weight"] == found["blk.0.ffn_down.weight"] == "Q5_K"
    assert found["blk.1.ffn_down.weight"] == found["blk.0.attn_output.weight"] == "IQ4_NL"
    assert kinds_of("iq4_nl")["blk.0.attn_v.weight"] == "IQ4_NL"


def test_rows_that_are_no_multiple_of_a_block_get_the_next_type_and_a_line_says_so():
    """A tied table is the output. Types that all rows fit say nothing."""
    odd = {"hidden_size": 96, "intermediate_size": 40, "head_dim": 32, "tie_word_embeddings": True}
    found = kinds_of("q4_k_m", **odd)
    assert found["token_embd.weight"] == "Q8_0" and found["blk.1.attn_q.weight"] == "Q5_0"
    assert found["blk.1.ffn_down.weight"] == "F16" == kinds_of("q8_0", **odd)["blk.0.ffn_down.weight"]
    assert kinds_of("q5_k_m", **odd)["blk.1.attn_q.weight"] == "Q5_1"
    assert kinds_of("q2_k", **odd)["blk.1.attn_q.weight"] == "Q4_0"
    odd |= {"intermediate_size": 64}
    model = planned(config_of("llama-2", **odd), "q4_k_m")
    found = [tensor for tensor, _ in model.tensors]
    told = tensor_types.told_fallbacks(found, "q4_k_m", model.layout.config)
    total = sum(tensor.is_matrix for tensor in found)
    assert told.startswith(f"rows of 64, 96, 128 numbers are no multiple of the blocks of q4_k_m, so {total} of ")
    for part in ("3 Q8_0 instead of Q6_K, 19 Q5_0 instead of Q4_K", f"{model.size / 1e6:,.1f} MB; smaller are q"):
        assert part in told
    assert tensor_types.told_fallbacks(found, "f16", model.layout.config) == ""
