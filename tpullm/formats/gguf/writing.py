"""Writes a model as one GGUF file, one tensor at a time (github.com/ggml-org/ggml/blob/master/docs/gguf.md).

`layout.py` says what each tensor holds.
"""

import dataclasses
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tpullm.formats.gguf import architectures, block_types, tensor_types, vocabulary
from tpullm.formats.gguf.layout import Layout, Tensor
from tpullm.formats.huggingface import writing
from tpullm.formats.huggingface.writing import Parameters
from tpullm.recipe.schema import ModelConfig, RopeScaling
from tpullm.tokenizer import Tokenizer


@dataclass(frozen=True)
class GgufModel:
    """A model as llama.cpp has it, and what its file will hold.

    Args:
        layout: what the file has of the model.
        params: its parameters.
        tensors: each tensor of the file, and its type.
    """

    layout: Layout
    params: Parameters
    tensors: list[tuple[Tensor, str]]

    @property
    def size(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.size(dtype) for tensor, dtype in self.tensors)


def planned(config: ModelConfig, params: Parameters, weights: str, preferred: str) -> GgufModel:
    """What the file of a model will hold; tensors of the same parameters stand one after the other.

    Args:
        weights: one of `tensor_types.WEIGHTS`.
        preferred: the `model_type` to try first, which is that of the model's source.

    Raises:
        UserError: llama.cpp has no such model; the error names the setting.
    """
    published, config, params = writing.as_published(config, params, preferred)
    architecture = architectures.of_model(config, published["model_type"])
    if architecture.output == "own" and config.tied_embeddings:
        config, params = dataclasses.replace(config, tied_embeddings=False), params.with_head("embedding")
    layout = Layout(config, architecture, params.targets, params.axes)
    found = [(tensor, tensor_types.fitting(tensor, weights, config)) for tensor in layout.tensors()]
    return GgufModel(layout, params, found)


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

    writer = gguf.GGUFWriter(file, model.layout.architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(about[0])
    if about[1]:
        writer.add_license(about[1])
    writer.add_file_type(gguf.LlamaFileType[tensor_types.file_type(weights)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    architectures.write(writer, model.layout.config, model.layout.architecture)
    vocabulary.write(writer, tokenizer, model.layout.config.vocabulary_size, talks)
    factors = dict(_frequency_factors(model.layout.config))
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
            layer = ... if tensor.layer is None else tensor.layer
            exact = model.layout.joined(tensor, [held[key][layer] for key in tensor.ours])
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
