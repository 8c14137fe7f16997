"""The type of each tensor in a GGUF file: the option's, more bits where llama.cpp gives more, and one that fits."""

from collections import Counter
from collections.abc import Sequence

from tpullm.formats.gguf.layout import Tensor
from tpullm.recipe.schema import ModelConfig

# The options; each is a type of a file in llama.cpp, and names that of most tensors.
WEIGHTS = (
    *("f32", "bf16", "f16", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0", "iq4_nl"),
    *("q3_k_m", "q2_k"),
)
# Rows that are no multiple of a superblock of 256 get the next type, and those of no block of 32 get F16.
_NEXT = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def _of_most(weights: str) -> str:
    return weights.upper().removesuffix("_M")


def file_type(weights: str) -> str:
    """The type of the whole file, of `gguf.LlamaFileType`."""
    return f"{'ALL' if weights == 'f32' else 'MOSTLY'}_{weights.upper()}"


def fitting(tensor: Tensor, weights: str, config: ModelConfig) -> str:
    """The type of a tensor, one that has blocks of which the rows are a multiple.

    Args:
        weights: one of `WEIGHTS`.
    """
    import gguf

    wanted, sizes = _wanted(tensor, weights, config), gguf.GGML_QUANT_SIZES
    found = [wanted, _NEXT.get(wanted, wanted)]
    fits = (kind for kind in found if tensor.shape[-1] % sizes[gguf.GGMLQuantizationType[kind]][0] == 0)
    return next(fits, "F16")


def _wanted(tensor: Tensor, weights: str, config: ModelConfig) -> str:
    """The type of one tensor, before its width is looked at. Vectors and the router are always float32.

    The output, and values, the last matrices of attention and of an MLP in some layers, have more bits, as in
    llama.cpp's own mixtures (`llama_tensor_get_type_impl`, src/llama-quant.cpp).
    """
    found = _of_most(weights) if tensor.is_matrix else "F32"
    if found in ("F32", "BF16", "F16", "Q8_0"):
        return found
    if tensor.kind == ("TOKEN_EMBD" if config.tied_embeddings else "OUTPUT"):
        return "Q6_K"
    layers, layer, is_shared = config.layers, tensor.layer or 0, config.heads >= 4 * config.kv_heads
    eighth = layers // 8
    more = "Q6_K" if layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2 else found
    mixtures = {
        "q5_k_m": {"ATTN_V": more, "ATTN_QKV": "Q6_K", "FFN_DOWN": more},
        "q4_k_m": {"ATTN_V": more, "ATTN_QKV": "Q5_K", "FFN_DOWN": more},
        "iq4_nl": {"ATTN_V": "Q5_K" if is_shared else found, "FFN_DOWN": "Q5_K" if layer < eighth else found},
        "q3_k_m": {"ATTN_V": "Q5_K" if layer < 2 else "Q4_K", "ATTN_QKV": "Q4_K", "ATTN_OUT": "Q4_K"}
        | {"FFN_DOWN": "Q5_K" if layer < layers // 16 else "Q4_K"},
        "q2_k": {"ATTN_V": "Q4_K" if is_shared else "Q3_K", "ATTN_OUT": "Q3_K", "FFN_DOWN": "Q3_K"},
    }
    return mixtures.get(weights, {}).get(tensor.kind.removesuffix("_EXP"), found)


def told_fallbacks(tensors: Sequence[Tensor], weights: str, config: ModelConfig) -> str:
    """How many matrices have another type than `weights` means, and which options are smaller; "" if none has."""
    matrices, changed, widths = [tensor for tensor in tensors if tensor.is_matrix], Counter(), set()
    for tensor in matrices:
        if (kind := fitting(tensor, weights, config)) != (wanted := _wanted(tensor, weights, config)):
            changed[kind, wanted] += 1
            widths.add(tensor.shape[-1])
    if all(wanted != _of_most(weights) for _, wanted in changed):  # none, or the output layer alone
        return ""
    sizes = {other: sum(one.size(fitting(one, other, config)) for one in tensors) / 1e6 for other in WEIGHTS}
    by_size = sorted(((size, other) for other, size in sizes.items() if size < sizes[weights]), reverse=True)
    smaller = [f"{other} {size:,.1f}" for size, other in by_size]
    kinds = ", ".join(f"{count} {kind} instead of {wanted}" for (kind, wanted), count in changed.items())
    return (
        f"rows of {', '.join(map(str, sorted(widths)))} numbers are no multiple of the blocks of {weights}, so "
        f"{changed.total()} of {len(matrices)} matrices have more bits ({kinds}): {sizes[weights]:,.1f} MB"
        + (f"; smaller are {', '.join(smaller[:3])} MB" if smaller else "")
    )
