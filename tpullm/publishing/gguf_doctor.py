"""Finds silent faults of a GGUF file: it loads without an error, and the model writes wrong text."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tpullm.errors import UserError
from tpullm.llamacpp import gguf_reading
from tpullm.llamacpp.gguf_reading import GgufFile, GgufTensor
from tpullm.publishing.doctor import Finding, of_any_type, of_values

TOKENS = "tokenizer.ggml"
_ALONE = ("token_embd.weight", "output_norm.weight")


def examine(path: Path, done: Callable[[int], None]) -> Iterator[Finding]:
    """The faults of a file, part by part.

    Args:
        done: called with the bytes of each piece of a tensor.
    """
    try:
        file = gguf_reading.read(path)
    except UserError as error:
        yield Finding("error", str(error))
        return
    tensors = {tensor.name: tensor for tensor in file.tensors}
    yield from of_any_type(_shapes(file, tensors), str(path))
    yield from of_any_type(_tokens(file, tensors), str(path))
    for tensor in file.tensors:
        yield from _values(file, tensor, done)


def _shapes(file: GgufFile, tensors: dict[str, GgufTensor]) -> Iterator[Finding]:
    architecture = file.settings.get("general.architecture")
    if not isinstance(architecture, str):
        yield Finding("error", "no general.architecture: no program knows what to compute; export it again")
        return
    layers, width = (file.settings.get(f"{architecture}.{key}") for key in ("block_count", "embedding_length"))
    found = {int(name.split(".")[1]) for name in tensors if name.startswith("blk.") and name.split(".")[1].isdecimal()}
    if layers is None or width is None:
        yield Finding("error", f"no {architecture}.block_count or embedding_length; export it again")
        return
    for name in _ALONE:
        if name not in tensors:
            yield Finding("error", f"{name} is missing; export it again")
    if len(found) != layers or max(found, default=-1) >= layers:
        yield Finding("error", f"{architecture}.block_count says {layers} layers, and {len(found)} are there")
    if "token_embd.weight" in tensors and tensors["token_embd.weight"].shape[-1] != width:
        shape = list(tensors["token_embd.weight"].shape)
        yield Finding("error", f"{architecture}.embedding_length is {width}, and token_embd.weight {shape}")


def _tokens(file: GgufFile, tensors: dict[str, GgufTensor]) -> Iterator[Finding]:
    texts = file.settings.get(f"{TOKENS}.tokens")
    if not isinstance(texts, list):
        yield Finding("error", f"no {TOKENS}.tokens: no text can be read or written; export it again")
        return
    table = tensors.get("token_embd.weight")
    if table and table.shape[0] != len(texts):
        yield Finding("error", f"{len(texts)} tokens and an embedding of {table.shape[0]} rows; export it again")
    for key in ("token_type", "scores"):
        if (of_tokens := file.settings.get(f"{TOKENS}.{key}")) is not None and len(of_tokens) != len(texts):
            yield Finding("error", f"{TOKENS}.{key}: {len(of_tokens)} for {len(texts)} tokens; export it again")
    for key in ("bos", "eos", "eot", "padding", "unknown"):
        token = file.settings.get(f"{TOKENS}.{key}_token_id")
        if token is not None and not 0 <= token < len(texts):
            yield Finding("error", f"{TOKENS}.{key}_token_id: {token} is not a token; correct it")
    if f"{TOKENS}.eos_token_id" not in file.settings:
        yield Finding("error", f"no end token: no {TOKENS}.eos_token_id, so no program stops; export it again")
    if file.settings.get(f"{TOKENS}.model") == "gpt2" and file.settings.get(f"{TOKENS}.pre", "default") == "default":
        yield Finding("error", f"no {TOKENS}.pre: llama.cpp splits text by a pattern of its own; export it again")
    if not file.settings.get("tokenizer.chat_template"):
        yield Finding("warning", "no chat template: llama.cpp shows conversations in ChatML (a base model needs none)")


def _values(file: GgufFile, tensor: GgufTensor, done: Callable[[int], None]) -> Iterator[Finding]:
    try:
        is_vector = len(tensor.shape) == 1 or tensor.name.endswith(".bias")
        yield from of_values(tensor.name, gguf_reading.values(file, tensor), is_vector, done)
    except NotImplementedError:
        yield Finding("warning", f"{tensor.name}: its values, of type {tensor.kind}, were not read")
        done(tensor.size)
