"""Our parameters → the tensors of a GGUF file: names, order of dimensions, one tensor at a time.

A matrix is `[out, in]` there, and `[E, out, in]` for experts. Ours are stacked, `[L, *inputs, *outputs]`.
Shapes: L layers, E experts, N heads, H head width.

The types of weights in a GGUF file: which tensor gets which, and the rounding to blocks of 4 and 6 bits.

`gguf` rounds to the simpler types. The two K types here have 256 values in a superblock: 8 blocks with a scale and a
minimum each (Q4_K), or 16 blocks with a scale each (Q6_K). Their scales are whole numbers too, with one float16 factor
for the superblock. The scale of a block is found by weighted least squares, from several first guesses.

Source: the layout and the guesses of `quantize_row_q4_K_ref` and `quantize_row_q6_K_ref`, ggml/src/ggml-quants.c.
Shapes: R superblocks, B blocks in each, n values in a block.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tpullm.formats.gguf.architectures import Architecture
from tpullm.formats.huggingface import tensors
from tpullm.formats.huggingface.writing import Parameters
from tpullm.recipe.schema import ModelConfig
from tpullm.system.errors import UserError

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


# The option → the type of most tensors, and of the whole file (`gguf.LlamaFileType`).
WEIGHTS = {
    "f32": ("F32", "ALL_F32"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "f16": ("F16", "MOSTLY_F16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
    "q4_k_m": ("Q4_K", "MOSTLY_Q4_K_M"),
}
# Rows that are no multiple of a block get the next type.
_NEXT = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q5_0": "F16", "Q8_0": "F16"}
_AT_ONCE = 1 << 20  # values that are rounded at once


def type_of(tensor: Tensor, weights: str, layers: int, output: str) -> str:
    """The type of one tensor. Vectors and the router are always float32.

    Args:
        weights: a key of `WEIGHTS`.
        layers: the number of layers.
        output: the kind of tensor that the output layer reads, OUTPUT or TOKEN_EMBD.
    """
    import gguf

    if not tensor.is_matrix:
        return "F32"
    kind, _ = WEIGHTS[weights]
    if kind == "Q4_K" and (tensor.kind == output or _is_sensitive(tensor, layers)):
        kind = "Q6_K"
    while tensor.shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]:
        kind = _NEXT[kind]
    return kind


def _is_sensitive(tensor: Tensor, layers: int) -> bool:
    """As in llama.cpp's mixture Q4_K_M: the values and the last matrix of an MLP, in half of the layers."""
    eighth = layers // 8
    chosen = tensor.layer is not None and (
        tensor.layer < eighth or tensor.layer >= 7 * layers // 8 or (tensor.layer - eighth) % 3 == 2
    )
    return chosen and tensor.kind in ("ATTN_V", "ATTN_QKV", "FFN_DOWN", "FFN_DOWN_EXP")


def rounded(values: np.ndarray, kind: str, name: str) -> np.ndarray:
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
    scale_RB, minimum_RB = _with_minimum(x_RBn)
    d_R1, whole_scale_RB = _whole(scale_RB, 63)
    dmin_R1, whole_minimum_RB = _whole(minimum_RB, 63)
    step_RB1, offset_RB1 = (d_R1 * whole_scale_RB)[..., None], (dmin_R1 * whole_minimum_RB)[..., None]
    number_RBn = np.clip(np.rint(_ratio(x_RBn + offset_RB1, step_RB1)), 0, 15).astype(np.uint8)
    pairs = number_RBn.reshape(-1, 4, 2, 32)
    packed = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    scales = _six_bits(whole_scale_RB.astype(np.uint8), whole_minimum_RB.astype(np.uint8))
    found = np.concatenate([_float16_bytes(d_R1), _float16_bytes(dmin_R1), scales, packed], axis=1)
    return found.reshape(len(rows), -1)


def _with_minimum(x_RBn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and negative minimum of each block, for whole numbers from 0 to 15. Large values count more."""
    weight = np.sqrt(np.mean(x_RBn**2, axis=-1, keepdims=True)) + np.abs(x_RBn)
    low, high = np.minimum(x_RBn.min(-1, keepdims=True), 0), x_RBn.max(-1, keepdims=True)
    scale, minimum = (high - low) / 15, low
    error = _squared(x_RBn, weight, np.clip(np.rint(_ratio(x_RBn - low, scale)), 0, 15), scale, minimum)
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
        new_error = _squared(x_RBn, weight, number, new_scale, new_minimum)
        better = (determinant > 0) & (new_error < error)
        scale, minimum = np.where(better, new_scale, scale), np.where(better, new_minimum, minimum)
        error = np.where(better, new_error, error)
    return scale[..., 0], -minimum[..., 0]


def _squared(x, weight, number, scale, minimum) -> np.ndarray:
    return (weight * (scale * number + minimum - x) ** 2).sum(-1, keepdims=True)


def _six_bits(scale_RB: np.ndarray, minimum_RB: np.ndarray) -> np.ndarray:
    """Eight scales and eight minima of 6 bits in 12 bytes."""
    first = scale_RB[:, :4] | (scale_RB[:, 4:] >> 4) << 6
    second = minimum_RB[:, :4] | (minimum_RB[:, 4:] >> 4) << 6
    third = scale_RB[:, 4:] & 15 | (minimum_RB[:, 4:] & 15) << 4
    return np.concatenate([first, second, third], axis=1)


def q6_k(rows: np.ndarray) -> np.ndarray:
    """Rows whose length is a multiple of 256 → their bytes as Q6_K, 210 for each 256 values."""
    x_RBn = rows.reshape(-1, 16, 16)
    scale_RB = _symmetric(x_RBn)
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


def _symmetric(x_RBn: np.ndarray) -> np.ndarray:
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


def _whole(value_RB: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """A factor for each superblock, as float16 holds it, and the values as whole numbers up to `most`."""
    largest = value_RB.max(-1, keepdims=True)
    whole = np.minimum(np.rint(value_RB * _ratio(np.float32(most), largest)), most)
    return (largest / most).astype(np.float16).astype(np.float32), whole


def _ratio(above, below) -> np.ndarray:
    """The quotient; 0 where the divisor is 0."""
    shape = np.broadcast_shapes(np.shape(above), np.shape(below))
    return np.divide(above, below, out=np.zeros(shape, np.float32), where=np.broadcast_to(below != 0, shape))


def _float16_bytes(value_R1: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value_R1.astype("<f2")).view(np.uint8)
