"""Writes a model as one GGUF file, one tensor at a time (github.com/ggml-org/ggml/blob/master/docs/gguf.md).

A matrix is `[out, in]` there, and `[E, out, in]` for experts. Ours are stacked, `[L, *inputs, *outputs]`.
Shapes: L layers, E experts, N heads, H head width.
"""

import dataclasses
import errno
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tpullm.formats.gguf import architectures, block_types, vocabulary
from tpullm.formats.gguf.architectures import NAMES, Architecture
from tpullm.formats.huggingface import tensors, writing
from tpullm.formats.huggingface.writing import Parameters
from tpullm.recipe.schema import ModelConfig, RopeScaling
from tpullm.system.errors import UserError
from tpullm.tokenizer import Tokenizer

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


def check_installed() -> None:
    """`UserError` if the package `gguf` is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("--format gguf: its package is not installed; run: pip install 'tpullm[gguf]'") from None


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

    def size(self, dtype: str) -> int:
        """Its bytes in a type."""
        import gguf

        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
        return math.prod(self.shape) // block * size


@dataclass(frozen=True)
class GgufModel:
    """A model as llama.cpp has it, and what its file will hold.

    Args:
        config, architecture: what the model computes, in our terms and in llama.cpp's.
        params: its parameters.
        tensors: each tensor of the file, and its type.
    """

    config: ModelConfig
    architecture: Architecture
    params: Parameters
    tensors: list[tuple[Tensor, str]]

    @property
    def size(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.size(dtype) for tensor, dtype in self.tensors)


def planned(config: ModelConfig, params: Parameters, weights: str, preferred: str) -> GgufModel:
    """What the file of a model will hold; tensors of the same parameters stand one after the other.

    Args:
        weights: a key of `WEIGHTS`.
        preferred: the `model_type` to try first, which is that of the model's source.

    Raises:
        UserError: llama.cpp has no such model; the error names the setting.
    """
    import gguf

    published, config, params = writing.as_published(config, params, preferred)
    architecture = architectures.of_model(config, published["model_type"])
    if architecture.output == "own" and config.tied_embeddings:
        config, params = dataclasses.replace(config, tied_embeddings=False), params.with_head("embedding")
    output = "TOKEN_EMBD" if config.tied_embeddings else "OUTPUT"
    of_experts = ("layers.mlp.gate", "layers.mlp.up", "layers.mlp.down") if config.experts else ()
    names = NAMES | {stem: f"{NAMES[stem]}_EXP" for stem in of_experts} | {"layers.mlp_norm": architecture.mlp_norm}
    names |= {} if config.gated else {"layers.mlp.gate": "FFN_UP"}
    found, fused = [], {part: (kind, parts) for kind, parts in architecture.fused.items() for part in parts}
    for key in sorted(params.targets, key=lambda key: list(NAMES).index(key.rsplit(".", 1)[0])):
        stem = key.rsplit(".", 1)[0]
        kind, parts = fused.get(stem, (names[stem], (stem,)))
        if stem == parts[0]:
            ours = tuple(key.replace(stem, part, 1) for part in parts)
            suffix = "bias" if key.endswith(".bias") else "weight"
            # llama.cpp's own files have these two tables in float32.
            is_matrix = kind not in ("POS_EMBD", "FFN_GATE_INP") and not tensors.is_vector(key)
            for layer in range(config.layers) if key.startswith("layers.") else (None,):
                shapes = [params.targets[one].shape[layer is not None :] for one in ours]
                empty = [np.broadcast_to(np.float32(0), shape) for shape in shapes]  # it takes no memory
                shapes = [_in_gguf_layout(one, part, params).shape for one, part in zip(ours, empty, strict=True)]
                shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
                name = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[kind]].format(bid=layer)
                found.append(Tensor(f"{name}.{suffix}", kind, shape, ours, layer, is_matrix))
    dtypes = [_tensor_type(tensor, weights, config.layers, output) for tensor in found]
    return GgufModel(config, architecture, params, list(zip(found, dtypes, strict=True)))


def _in_gguf_layout(key: str, part: np.ndarray, params: Parameters) -> np.ndarray:
    """A layer of one of our parameters as GGUF has it: `[out, in]`, `[E, out, in]`, or a vector (`[E, out]`)."""
    axes = params.axes[key]
    if axes[1:2] == ("experts",) and len(axes) > 2:
        return part if key.endswith(".bias") else part.swapaxes(-1, -2)
    inputs = tensors.input_dimensions(key, axes, (0,) if key.startswith("layers.") else ())
    if inputs < 0:
        return part.reshape(-1)
    return part if inputs == 0 else part.reshape(math.prod(part.shape[:inputs]), -1).T


def _tensor_type(tensor: Tensor, weights: str, layers: int, output: str) -> str:
    """The type of one tensor. Vectors and the router are always float32.

    Of Q4_K_M, the output, and values and the last matrix of an MLP in half of the layers, have more bits, as in
    llama.cpp's own mixture.
    """
    import gguf

    if not tensor.is_matrix:
        return "F32"
    found, _ = WEIGHTS[weights]
    if found == "Q4_K":
        eighth, layer = layers // 8, tensor.layer
        sensitive = layer is not None and tensor.kind in ("ATTN_V", "ATTN_QKV", "FFN_DOWN", "FFN_DOWN_EXP")
        chosen = sensitive and (layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2)
        found = "Q6_K" if chosen or tensor.kind == output else found
    while tensor.shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[found]][0]:
        found = _NEXT[found]
    return found


def write(
    file: Path,
    model: GgufModel,
    tokenizer: Tokenizer,
    weights: str,
    about: tuple[str, str],
    talks: bool,
    done: Callable[[int], None],
) -> None:
    """Write the file. Memory holds one tensor, and our parameters that it is made of.

    Args:
        about: the name of the model, and its licence or "".
        talks: whether the model was tuned on conversations.
        done: called with the bytes of each tensor.

    Raises:
        UserError: llama.cpp has no such tokenizer, or a value is too large for the type.
    """
    import gguf

    writer = gguf.GGUFWriter(file, model.architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(about[0])
    if about[1]:
        writer.add_license(about[1])
    writer.add_file_type(gguf.LlamaFileType[WEIGHTS[weights][1]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    architectures.write(writer, model.config, model.architecture)
    vocabulary.write(writer, tokenizer, model.config.vocabulary_size, talks)
    factors = dict(_frequency_factors(model.config))
    for name, factor in factors.items():
        writer.add_tensor_info(name, factor.shape, factor.dtype, factor.nbytes)
    for tensor, dtype in model.tensors:
        type_ = gguf.GGMLQuantizationType[dtype]
        writer.add_tensor_info(tensor.name, tensor.shape, None, tensor.size(dtype), raw_dtype=type_)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for factor in factors.values():
            writer.write_tensor_data(factor)
        held = {}
        for tensor, dtype in model.tensors:
            held = {key: held[key] for key in tensor.ours if key in held}  # released before others are read
            held |= {key: model.params.read(key) for key in tensor.ours if key not in held}
            exact = _gguf_tensor_values(tensor, held, model)
            writer.write_tensor_data(block_types.rounded_to_type(exact, dtype, tensor.name))
            done(tensor.size(dtype))
    finally:
        writer.close()
    if file.stat().st_size < model.size:  # numpy's `tofile`, which the writer uses, raises nothing on a full disk
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def _frequency_factors(config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors that divide the frequencies of RoPE: of Llama 3, and of LongRoPE."""
    from tpullm.model.attention.rope import scaled_frequencies

    scaling = config.rope_scaling
    if scaling.kind == "llama3":
        frequencies = partial(scaled_frequencies, config.head_width, config.rope_theta)
        plain, scaled = (np.asarray(frequencies(how, 0), np.float64) for how in (RopeScaling(), scaling))
        yield "rope_freqs.weight", (plain / scaled).astype(np.float32)
    if scaling.kind == "longrope":
        yield "rope_factors_long.weight", np.array(scaling.long, np.float32)
        yield "rope_factors_short.weight", np.array(scaling.short, np.float32)


def _gguf_tensor_values(tensor: Tensor, held: dict[str, np.ndarray], model: GgufModel) -> np.ndarray:
    """The values of a tensor, float32; `held` are our parameters that are in it."""
    config, parts = model.config, []
    for key in tensor.ours:
        part = held[key] if tensor.layer is None else held[key][tensor.layer]
        part = _in_gguf_layout(key, part, model.params).astype(np.float32)
        if model.architecture.interleaved and key.startswith(("layers.attention.query.", "layers.attention.key.")):
            heads = config.heads if "query" in key else config.kv_heads  # their halves of each head are interleaved
            part = part.reshape(heads, 2, -1, *part.shape[1:]).swapaxes(1, 2).reshape(part.shape)
        parts.append(part + np.float32(1) if config.norm_unit_offset and key.endswith(".scale") else part)
    return np.ascontiguousarray(np.concatenate(parts) if len(parts) > 1 else parts[0])
