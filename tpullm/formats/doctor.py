"""Finds silent faults of a Hugging Face directory: it loads without an error, and the model writes wrong text.

Finds silent faults of a GGUF file: it loads without an error, and the model writes wrong text.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tpullm.formats.gguf import reading as gguf_reading
from tpullm.formats.gguf.reading import GgufFile, GgufTensor
from tpullm.formats.huggingface import reading, tensors, weight_files
from tpullm.system.errors import UserError
from tpullm.tokenizer.json_files import read_json, read_optional
from tpullm.tokenizer.published import PublishedTokenizer

Severity = Literal["error", "warning"]
_QUESTION = {"role": "user", "content": "こんにちは"}
_ANSWER = {"role": "assistant", "content": "はい、元気です。"}


@dataclass(frozen=True)
class Finding:
    """One fault.

    Args:
        severity: an `error` makes wrong text or none; a `warning` may.
        what: the fault, its place, and what to do.
    """

    severity: Severity
    what: str


def examine(
    folder: Path, shapes_of: Callable[[Any], tuple[Any, Any]], done: Callable[[int], None]
) -> Iterator[Finding]:
    """The faults of a directory, part by part.

    Args:
        shapes_of: returns the shapes and axes of the parameters of a `ModelConfig`.
        done: called with the bytes of each tensor.
    """
    config = read_json(folder / "config.json")
    yield from of_any_type(_positions(config), "config.json")
    yield from of_any_type(_ends(folder, config), "config.json or generation_config.json")
    try:
        tokenizer = PublishedTokenizer(folder)
    except UserError as error:
        yield Finding("error", str(error))
    else:
        yield from of_any_type(_tokens(tokenizer, config), "config.json")
        yield from _first_space(folder)
        yield from _conversations(tokenizer)
    yield from _weights(folder, config, shapes_of, done)


def of_any_type(findings: Iterator[Finding], where: str) -> Iterator[Finding]:
    """The findings of a part that reads settings of any type: where one is not as expected, that is a finding."""
    try:
        yield from findings
    except UserError as error:
        yield Finding("error", str(error))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        yield Finding("error", f"{where}: a setting has a wrong type ({error!s:.200}); take it from the model's source")


def _positions(config: dict) -> Iterator[Finding]:
    older, newer = config.get("rope_scaling"), config.get("rope_parameters")
    if isinstance(newer, dict) and "full_attention" in newer:
        newer = newer["full_attention"]
    kinds = [(place or {}).get("rope_type", (place or {}).get("type", "default")) for place in (older, newer)]
    if older and newer and kinds[0] != kinds[1]:
        yield Finding(
            "error", f"config.json: rope_scaling says {kinds[0]} and rope_parameters {kinds[1]}; make them agree"
        )
    original = config.get("original_max_position_embeddings")
    context = config.get("max_position_embeddings", 0)
    if original and context > original and set(kinds) == {"default"}:
        yield Finding(
            "error",
            f"config.json: the context grew from {original} to {context} tokens and no RoPE scaling is left; copy "
            "rope_scaling from the model's source",
        )
    if newer and config.get("rope_theta") and newer.get("rope_theta") not in (None, config["rope_theta"]):
        yield Finding(
            "error", f"config.json: two values of rope_theta, {config['rope_theta']} and {newer['rope_theta']}"
        )


def _ends(folder: Path, config: dict) -> Iterator[Finding]:
    """Three files name end tokens, and engines differ in which of them they read."""
    generation = read_optional(folder / "generation_config.json")
    found = {"config.json": config.get("eos_token_id"), "generation_config.json": generation.get("eos_token_id")}
    sets = {name: set(ends if isinstance(ends, list) else [ends]) for name, ends in found.items() if ends is not None}
    if not sets:
        yield Finding(
            "error", "no end token: neither config.json nor generation_config.json has eos_token_id; no engine stops"
        )
    elif len(sets) == 1:
        missing = next(name for name in found if name not in sets)
        yield Finding("warning", f"{missing}: no eos_token_id, {next(iter(sets))} has one; write it in both")
    elif not sets["config.json"] <= sets["generation_config.json"]:
        ends = [sorted(sets[name]) for name in found]
        yield Finding(
            "error", f"end tokens differ: config.json {ends[0]}, generation_config.json {ends[1]}; make them agree"
        )


def _tokens(tokenizer: PublishedTokenizer, config: dict) -> Iterator[Finding]:
    rows = config.get("vocab_size", 0)
    if tokenizer.needed_size > rows:
        yield Finding("error", f"tokenizer.json: {tokenizer.needed_size} tokens and an embedding of {rows}; resize one")
    elif tokenizer.vocabulary_size > rows:
        over = tokenizer.vocabulary_size - rows
        yield Finding(
            "warning", f"tokenizer.json: {over} special tokens beyond the embedding of {rows} rows; never use them"
        )
    outside = [token for token in tokenizer.stop_ids if token >= min(rows, tokenizer.vocabulary_size)]
    if outside:
        yield Finding("error", f"end token {outside[0]} is not a token; correct eos_token_id")
    named = tokenizer.named_end
    if named is not None and named not in tokenizer.file_ends:
        yield Finding(
            "error",
            f"tokenizer_config.json: eos_token is token {named}, the other files end at {sorted(tokenizer.file_ends)}; "
            "make them agree",
        )
    if tokenizer.silent:
        some = ", ".join(map(str, tokenizer.silent[:5]))
        yield Finding(
            "warning", f"tokenizer.json: {len(tokenizer.silent)} tokens decode to nothing ({some}) and are not special"
        )


def _first_space(folder: Path) -> Iterator[Finding]:
    """Llama 2's tokenizer puts a space before a text. The tokenizer class decides whether also after special tokens."""
    said = read_optional(folder / "tokenizer_config.json")
    normalizer = json.dumps(read_json(folder / "tokenizer.json").get("normalizer"))
    if str(said.get("tokenizer_class")).startswith("Llama") and not said.get("legacy") and '"Prepend"' in normalizer:
        yield Finding(
            "warning",
            "tokenizer_config.json: LlamaTokenizer without `legacy: true`, and tokenizer.json puts a space before each "
            "piece of text: what follows a special token is split in one way by transformers and in another by what "
            "reads tokenizer.json (tpullm too); set tokenizer_class to PreTrainedTokenizerFast",
        )


def _conversations(tokenizer: PublishedTokenizer) -> Iterator[Finding]:
    if not tokenizer.has_template:
        yield Finding(
            "warning", "no chat template: conversations are shown to the model in no form that it was tuned on"
        )
        return
    try:
        ids, weights = tokenizer.chat_template([_QUESTION, _ANSWER])
    except UserError as error:
        yield Finding("error", str(error))
        return
    last = [token for token, weight in zip(ids, weights, strict=True) if weight][-1]
    if last not in tokenizer.stop_ids:
        yield Finding(
            "warning",
            f"the chat template ends an answer with {tokenizer.piece(last)!r}, and no file calls that an end token: an "
            "engine continues after it; add it to eos_token_id (a base model may be meant so)",
        )
    try:
        with_system, _ = tokenizer.chat_template([{"role": "system", "content": "短く答える。"}, _QUESTION, _ANSWER])
    except UserError as error:
        yield Finding("warning", f"{error}: a system turn fails")
        return
    if with_system == tokenizer.chat_template([_QUESTION, _ANSWER])[0]:
        yield Finding("warning", "the chat template leaves a system turn out without a word")


def _weights(folder: Path, config: dict, shapes_of, done) -> Iterator[Finding]:
    try:
        model, family = reading.read_config(folder)
        shapes, axes = shapes_of(model)
        with weight_files.opened(folder) as source:
            kinds: set[str] = set()
            for name, ours, *_ in reading.check(source, family, shapes, axes, model.layers):
                kinds.add(source.numpy_dtype(name).name)
                yield from of_values(name, source.parts(name), tensors.is_vector(ours[0]), done)
    except UserError as error:
        yield Finding("error", str(error))
        return
    if len(kinds) > 1:
        yield Finding("warning", f"weights of several types: {', '.join(sorted(kinds))}")
    said = config.get("dtype") or config.get("torch_dtype")
    if said and said not in kinds:
        yield Finding(
            "warning", f"config.json says {said} and the weights are {', '.join(sorted(kinds))}; correct dtype"
        )


def of_values(name: str, parts: Iterator[np.ndarray], is_vector: bool, done: Callable) -> Iterator[Finding]:
    """The findings of the values of one tensor; `done` is called with the bytes of each part."""
    size, bad, is_zero = 0, 0, True
    for part in parts:
        values = part.astype(np.float32)
        size, bad = size + values.size, bad + int((~np.isfinite(values)).sum())
        is_zero = is_zero and not values.any()
        done(part.nbytes)
    if bad:
        yield Finding("error", f"{name}: {bad} of {size} values are NaN or infinite; fetch or export it again")
    elif is_zero and not is_vector:  # biases are often zero, and a scale of zero means 1 in Gemma
        yield Finding("error", f"{name}: all zero; it was never loaded where it was exported from")


TOKENS = "tokenizer.ggml"
_ALONE = ("token_embd.weight", "output_norm.weight")


def examine_gguf(path: Path, done: Callable[[int], None]) -> Iterator[Finding]:
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
    yield from of_any_type(_gguf_tokens(file, tensors), str(path))
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


def _gguf_tokens(file: GgufFile, tensors: dict[str, GgufTensor]) -> Iterator[Finding]:
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
