"""Writes a model as one GGUF file, one tensor at a time (github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

import dataclasses
import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

from tpullm.formats.gguf import architectures, vocabulary
from tpullm.formats.gguf import tensors as block_types
from tpullm.formats.gguf import tensors as gguf_tensors
from tpullm.formats.gguf.architectures import Architecture
from tpullm.formats.gguf.tensors import Tensor
from tpullm.formats.huggingface import writing
from tpullm.formats.huggingface.writing import Parameters
from tpullm.recipe.schema import ModelConfig
from tpullm.system.errors import UserError
from tpullm.tokenizer import Tokenizer


def check_installed() -> None:
    """`UserError` if the package `gguf` is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("--format gguf: its package is not installed; run: pip install 'tpullm[gguf]'") from None


@dataclasses.dataclass(frozen=True)
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
        return sum(_bytes(tensor, kind) for tensor, kind in self.tensors)


def planned(config: ModelConfig, params: Parameters, weights: str, preferred: str) -> GgufModel:
    """What the file of a model will hold.

    Args:
        weights: a key of `block_types.WEIGHTS`.
        preferred: the `model_type` to try first, which is that of the model's source.

    Raises:
        UserError: llama.cpp has no such model; the error names the setting.
    """
    published, config, params = writing.as_published(config, params, preferred)
    architecture = architectures.of_model(config, published["model_type"])
    if architecture.output == "own" and config.tied_embeddings:
        config, params = dataclasses.replace(config, tied_embeddings=False), _with_head(params)
    output = "TOKEN_EMBD" if config.tied_embeddings else "OUTPUT"
    found = [
        (tensor, block_types.type_of(tensor, weights, config.layers, output))
        for tensor in gguf_tensors.plan(config, architecture, params)
    ]
    return GgufModel(config, architecture, params, found)


def _with_head(params: Parameters) -> Parameters:
    targets, axes = ({**of, "head": of["embedding"]} for of in (params.targets, params.axes))
    return Parameters(targets, axes, lambda key: params.read("embedding" if key == "head" else key))


def write(
    file: Path,
    model: GgufModel,
    tokenizer: Tokenizer,
    weights: str,
    about: dict[str, str],
    talks: bool,
    done: Callable[[int], None],
) -> None:
    """Write the file. Memory holds one tensor, and our parameters that it is made of.

    Args:
        about: the `name` of the model and its `license`.
        talks: whether the model was tuned on conversations.
        done: called with the bytes of each tensor.

    Raises:
        UserError: llama.cpp has no such tokenizer, or a value is too large for the type.
    """
    import gguf

    writer = gguf.GGUFWriter(file, model.architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(about["name"])
    if about["license"]:
        writer.add_license(about["license"])
    writer.add_file_type(gguf.LlamaFileType[block_types.WEIGHTS[weights][1]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    architectures.write(writer, model.config, model.architecture)
    vocabulary.write(writer, tokenizer, model.config.vocabulary_size, talks)
    factors = dict(gguf_tensors.frequency_factors(model.config))
    for name, factor in factors.items():
        writer.add_tensor_info(name, factor.shape, factor.dtype, factor.nbytes)
    for tensor, kind in model.tensors:
        type_ = gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(tensor.name, tensor.shape, None, _bytes(tensor, kind), raw_dtype=type_)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for factor in factors.values():
            writer.write_tensor_data(factor)
        _write_tensors(writer, model, done)
    finally:
        writer.close()
    if file.stat().st_size < model.size:  # numpy's `tofile`, which the writer uses, raises nothing on a full disk
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def _write_tensors(writer, model: GgufModel, done: Callable[[int], None]) -> None:
    held = {}
    for tensor, kind in model.tensors:
        held = {key: held[key] for key in tensor.ours if key in held}  # released before others are read
        held |= {key: model.params.read(key) for key in tensor.ours if key not in held}
        values = gguf_tensors.values(tensor, held, model.config, model.architecture, model.params)
        writer.write_tensor_data(block_types.rounded(values, kind, tensor.name))
        done(_bytes(tensor, kind))


def _bytes(tensor: Tensor, kind: str) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return math.prod(tensor.shape) // block * size
