"""Our parameters → the tensors of a GGUF file: names, order of dimensions, one tensor at a time.

A matrix is `[out, in]` there, and `[E, out, in]` for experts. Ours are stacked, `[L, *inputs, *outputs]`.
Shapes: L layers, E experts, N heads, H head width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tpullm.huggingface import tensors
from tpullm.huggingface.writing import Parameters
from tpullm.llamacpp.architectures import Architecture
from tpullm.recipe.schema import ModelConfig

# Our parameter, without its last word → its name in `gguf.MODEL_TENSOR`.
NAMES = {
    "embedding": "TOKEN_EMBD",
    "position_embedding": "POS_EMBD",
    "layers.attention_norm": "ATTN_NORM",
    "layers.attention.query": "ATTN_Q",
    "layers.attention.key": "ATTN_K",
    "layers.attention.value": "ATTN_V",
    "layers.attention.query_norm": "ATTN_Q_NORM",
    "layers.attention.key_norm": "ATTN_K_NORM",
    "layers.attention": "ATTN_SINKS",
    "layers.attention.out": "ATTN_OUT",
    "layers.attention_out_norm": "ATTN_POST_NORM",
    "layers.mlp_norm": "FFN_NORM",
    "layers.mlp.router": "FFN_GATE_INP",
    "layers.mlp.gate": "FFN_GATE",
    "layers.mlp.up": "FFN_UP",
    "layers.mlp.down": "FFN_DOWN",
    "layers.mlp_out_norm": "FFN_POST_NORM",
    "norm": "OUTPUT_NORM",
    "head": "OUTPUT",
}
EXACT = ("POS_EMBD", "FFN_GATE_INP")  # llama.cpp's own files have these tables in float32


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Args:
        name: its name.
        kind: its name in `gguf.MODEL_TENSOR`.
        shape: its shape, as numpy has it.
        ours: our parameters in it, in order.
        layer: the layer, or None.
        is_matrix: whether a type of fewer bits may hold it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]
    layer: int | None
    is_matrix: bool


def plan(config: ModelConfig, architecture: Architecture, params: Parameters) -> list[Tensor]:
    """All tensors of a model, those of the same parameters one after the other."""
    found, fused = [], {part: (kind, parts) for kind, parts in architecture.fused for part in parts}
    for key in sorted(params.targets, key=lambda key: list(NAMES).index(_stem(key))):
        stem = _stem(key)
        kind, parts = fused.get(stem, (_kind(stem, config, architecture), (stem,)))
        if stem == parts[0]:
            ours = tuple(key.replace(stem, part, 1) for part in parts)
            layers = range(config.layers) if key.startswith("layers.") else (None,)
            found += [_tensor(kind, ours, layer, params) for layer in layers]
    return found


def _stem(key: str) -> str:
    return key.rsplit(".", 1)[0] if "." in key else key


def _kind(stem: str, config: ModelConfig, architecture: Architecture) -> str:
    if stem == "layers.mlp_norm":
        return architecture.mlp_norm
    if stem == "layers.mlp.gate" and not config.gated:
        return "FFN_UP"
    is_of_experts = config.experts and stem in ("layers.mlp.gate", "layers.mlp.up", "layers.mlp.down")
    return NAMES[stem] + ("_EXP" if is_of_experts else "")


def _tensor(kind: str, ours: tuple[str, ...], layer: int | None, params: Parameters) -> Tensor:
    import gguf

    place = () if layer is None else (layer,)
    parts = [_shape(key, place, params) for key in ours]
    shape = (sum(part[0] for part in parts), *parts[0][1:]) if len(parts) > 1 else parts[0]
    name = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[kind]].format(bid=layer)
    suffix = "bias" if ours[0].endswith(".bias") else "weight"
    is_matrix = kind not in EXACT and not tensors.is_vector(ours[0])
    return Tensor(f"{name}.{suffix}", kind, shape, ours, layer, is_matrix)


def _shape(key: str, place: tuple[int, ...], params: Parameters) -> tuple[int, ...]:
    shape = params.targets[key].shape[len(place) :]
    if _is_of_experts(key, params):
        return shape if key.endswith(".bias") else (*shape[:-2], shape[-1], shape[-2])
    inputs = tensors.input_dimensions(key, params.axes[key], place)
    if inputs < 0:
        return (math.prod(shape),)
    return shape if inputs == 0 else (math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def values(tensor: Tensor, held: dict[str, np.ndarray], config: ModelConfig, architecture: Architecture, params):
    """The values of a tensor, float32.

    Args:
        held: our parameters that are in it.
        params: what our parameters are.
    """
    parts = []
    for key in tensor.ours:
        part = held[key] if tensor.layer is None else held[key][tensor.layer]
        part = _laid_out(key, part, params).astype(np.float32)
        if architecture.interleaved and _stem(key) in ("layers.attention.query", "layers.attention.key"):
            part = interleaved(part, config.heads if "query" in key else config.kv_heads)
        parts.append(part + np.float32(1) if config.norm_unit_offset and key.endswith(".scale") else part)
    return np.ascontiguousarray(np.concatenate(parts) if len(parts) > 1 else parts[0])


def _laid_out(key: str, part: np.ndarray, params: Parameters) -> np.ndarray:
    """A part of one of our parameters as GGUF has it: `[out, in]`, `[E, out, in]`, or a vector (`[E, out]`)."""
    if _is_of_experts(key, params):
        return part if key.endswith(".bias") else part.swapaxes(-1, -2)
    inputs = tensors.input_dimensions(key, params.axes[key], (0,) if key.startswith("layers.") else ())
    if inputs < 0:
        return part.reshape(-1)
    return part if inputs == 0 else part.reshape(math.prod(part.shape[:inputs]), -1).T


def _is_of_experts(key: str, params: Parameters) -> bool:
    return params.axes[key][1:2] == ("experts",) and len(params.axes[key]) > 2


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys, `[N * H, ...]`, with the two halves of each head interleaved."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def frequency_factors(config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors that divide the frequencies of RoPE: of Llama 3, and of LongRoPE."""
    from tpullm.model.attention.rope import scaled_frequencies
    from tpullm.recipe.schema import RopeScaling

    scaling = config.rope_scaling
    if scaling.kind == "llama3":
        plain, scaled = (
            np.asarray(scaled_frequencies(config.head_width, config.rope_theta, how, 0), np.float64)
            for how in (RopeScaling(), scaling)
        )
        yield "rope_freqs.weight", (plain / scaled).astype(np.float32)
    if scaling.kind == "longrope":
        yield "rope_factors_long.weight", np.array(scaling.long, np.float32)
        yield "rope_factors_short.weight", np.array(scaling.short, np.float32)
