"""Finds silent faults of a model on disk: it loads without an error, and the model writes wrong text.

A model is a Hugging Face directory or a GGUF file. Both are walked alike: settings, tokens, then the values of each
tensor, read piece by piece.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tpullm.formats.gguf import reading as gguf
from tpullm.formats.gguf.tokenizer_files import tokenizer_files
from tpullm.formats.huggingface import reading, tensors
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.tokenizer.json_files import read_json, read_optional
from tpullm.tokenizer.published import PublishedTokenizer

_QUESTION = {"role": "user", "content": "こんにちは"}
_ANSWER = {"role": "assistant", "content": "はい、元気です。"}
_TOKENS = "tokenizer.ggml"


@dataclass(frozen=True)
class Finding:
    """One fault.

    Args:
        severity: an `error` makes wrong text or none; a `warning` may.
        what: the fault, its place, and what to do.
    """

    severity: Literal["error", "warning"]
    what: str


error, warning = partial(Finding, "error"), partial(Finding, "warning")


def examine(path: Path, shapes_of: Callable[[Any], tuple[Any, Any]], done: Callable[[int], None]) -> Iterator[Finding]:
    """The faults of a directory, or of a GGUF file, part by part.

    Args:
        shapes_of: returns the shapes and axes of the parameters of a `ModelConfig`.
        done: called with the bytes of each piece of a tensor.
    """
    try:
        yield from _gguf_file_findings(path, done) if path.is_file() else _directory_findings(path, shapes_of, done)
    except UserError as refused:
        yield error(str(refused))


def _faults_as_findings(findings: Iterator[Finding], where: Path | str) -> Iterator[Finding]:
    """The findings of a part that reads settings of any type: where one is not as expected, that is a finding."""
    try:
        yield from findings
    except UserError as refused:
        yield error(str(refused))
    except (TypeError, ValueError, AttributeError, KeyError) as other:
        yield error(f"{where}: a setting has a wrong type ({other!s:.200}); take it from the model's source")


def _value_findings(name: str, parts: Iterator[np.ndarray], is_vector: bool, done: Callable) -> Iterator[Finding]:
    """The findings of the values of one tensor; `done` is called with the bytes of each part."""
    size, bad, is_zero = 0, 0, True
    for part in parts:
        values = part.astype(np.float32)
        size, bad = size + values.size, bad + int((~np.isfinite(values)).sum())
        is_zero = is_zero and not values.any()
        done(part.nbytes)
    if bad:
        yield error(f"{name}: {bad} of {size} values are NaN or infinite; fetch or export it again")
    elif is_zero and not is_vector:  # biases are often zero, and a scale of zero means 1 in Gemma
        yield error(f"{name}: all zero; it was never loaded where it was exported from")


def _directory_findings(folder: Path, shapes_of: Callable, done: Callable) -> Iterator[Finding]:
    config = read_json(folder / "config.json")
    yield from _faults_as_findings(_position_findings(config), "config.json")
    yield from _faults_as_findings(_end_token_findings(folder, config), "config.json or generation_config.json")
    try:
        tokenizer = PublishedTokenizer(folder)
    except UserError as refused:
        yield error(str(refused))
    else:
        yield from _faults_as_findings(_token_findings(tokenizer, config), "config.json")
        yield from _cut_findings(tokenizer)
        # Llama 2's tokenizer puts a space before a text. The tokenizer class decides whether also after special tokens.
        said = read_optional(folder / "tokenizer_config.json")
        prepends = '"Prepend"' in json.dumps(read_json(folder / "tokenizer.json").get("normalizer"))
        if str(said.get("tokenizer_class")).startswith("Llama") and not said.get("legacy") and prepends:
            yield warning(
                "tokenizer_config.json: LlamaTokenizer without `legacy: true`, and tokenizer.json puts a space before "
                "each piece of text: what follows a special token is split in one way by transformers and in another "
                "by what reads tokenizer.json (tpullm too); set tokenizer_class to PreTrainedTokenizerFast"
            )
        yield from _faults_as_findings(_chat_template_findings(tokenizer), "the chat template")
    model, family = reading.read_config(folder)
    shapes, axes = shapes_of(model)
    kinds: set[str] = set()
    with reading.WeightFiles(folder) as source:
        for name, ours, *_ in reading.check(source, family, shapes, axes):
            kinds.add(source.numpy_dtype(name).name)
            yield from _value_findings(name, source.parts(name), tensors.is_vector(ours[0]), done)
    some, said = ", ".join(sorted(kinds)), config.get("dtype") or config.get("torch_dtype")
    if len(kinds) > 1:
        yield warning(f"weights of several types: {some}")
    if said and said not in kinds:
        yield warning(f"config.json says {said} and the weights are {some}; correct dtype")


def _position_findings(config: dict) -> Iterator[Finding]:
    older, newer = config.get("rope_scaling"), config.get("rope_parameters")
    if isinstance(newer, dict) and "full_attention" in newer:
        newer = newer["full_attention"]
    kinds = [(place or {}).get("rope_type", (place or {}).get("type", "default")) for place in (older, newer)]
    if older and newer and kinds[0] != kinds[1]:
        yield error(f"config.json: rope_scaling says {kinds[0]} and rope_parameters {kinds[1]}; make them agree")
    original, context = config.get("original_max_position_embeddings"), config.get("max_position_embeddings", 0)
    if original and context > original and set(kinds) == {"default"}:
        yield error(
            f"config.json: the context grew from {original} to {context} tokens and no RoPE scaling is left; copy "
            "rope_scaling from the model's source"
        )
    if newer and config.get("rope_theta") and newer.get("rope_theta") not in (None, config["rope_theta"]):
        yield error(f"config.json: two values of rope_theta, {config['rope_theta']} and {newer['rope_theta']}")


def _end_token_findings(folder: Path, config: dict) -> Iterator[Finding]:
    """Three files name end tokens, and engines differ in which of them they read."""
    generation = read_optional(folder / "generation_config.json")
    found = {"config.json": config.get("eos_token_id"), "generation_config.json": generation.get("eos_token_id")}
    sets = {name: set(ends if isinstance(ends, list) else [ends]) for name, ends in found.items() if ends is not None}
    if not sets:
        yield error("no end token: neither config.json nor generation_config.json has eos_token_id; no engine stops")
    elif len(sets) == 1:
        missing = next(name for name in found if name not in sets)
        yield warning(f"{missing}: no eos_token_id, {next(iter(sets))} has one; write it in both")
    elif not sets["config.json"] <= sets["generation_config.json"]:
        ends = [sorted(sets[name]) for name in found]
        yield error(f"end tokens differ: config.json {ends[0]}, generation_config.json {ends[1]}; make them agree")


def _token_findings(tokenizer: PublishedTokenizer, config: dict) -> Iterator[Finding]:
    rows = config.get("vocab_size", 0)
    if tokenizer.needed_size > rows:
        yield error(f"tokenizer.json: {tokenizer.needed_size} tokens and an embedding of {rows}; resize one")
    elif tokenizer.vocabulary_size > rows:
        over = tokenizer.vocabulary_size - rows
        yield warning(f"tokenizer.json: {over} special tokens beyond the embedding of {rows} rows; never use them")
    if outside := [token for token in tokenizer.stop_ids if token >= min(rows, tokenizer.vocabulary_size)]:
        yield error(f"end token {outside[0]} is not a token; correct eos_token_id")
    named, ends = tokenizer.named_end, tokenizer.file_ends
    if named is not None and named not in ends:
        what = f"eos_token is token {named}, the other files end at {sorted(ends)}; make them agree"
        yield error(f"tokenizer_config.json: {what}")
    if silent := tokenizer.silent:
        some = ", ".join(map(str, silent[:5]))
        yield warning(f"tokenizer.json: {len(silent)} tokens decode to nothing ({some}) and are not special")


def _cut_findings(tokenizer: PublishedTokenizer) -> Iterator[Finding]:
    """Whether a text is cut as it was when the vocabulary was learned, of byte-level BPE.

    A conversion may lose a step of the pre-tokenizer, or a GGUF file may name another one. Of 13 vocabularies of
    others, 0 to 0.8 % of the tokens are cut by their own pre-tokenizer, and mostly 1 to 20 % by another family's.
    """
    texts = [text for text in tokenizer.learned_texts() if len(text) > 1]
    if len(texts) < 1_000:  # too few to tell
        return
    if not any(map(re.compile("[0-9]").search, texts)) and any(
        re.search(" [0-9]", one) for one in tokenizer.cut("a 12")
    ):
        yield error(
            "no token has a digit and more, so the vocabulary was learned of single digits, and the pre-tokenizer does "
            "not cut there: white space before a number gets other tokens; take the tokenizer from the model's source"
        )
    some = texts[:: max(1, len(texts) // 4_000)]
    apart = [text for text in some if len(tokenizer.cut(text)) > 1]
    if len(apart) > len(some) * 0.02:
        yield error(
            f"the pre-tokenizer cuts {len(apart) / len(some):.0%} of the tokens, such as {apart[0]!r:.40}: it is that "
            "of another model; take the tokenizer from the model's source"
        )


def _chat_template_findings(tokenizer: PublishedTokenizer) -> Iterator[Finding]:
    if not tokenizer.has_template:
        yield warning("no chat template: conversations are shown in no form that the model knows (a base needs none)")
        return
    ids, weights = tokenizer.chat_template([_QUESTION, _ANSWER])
    last = [token for token, weight in zip(ids, weights, strict=True) if weight][-1]
    if last not in tokenizer.stop_ids:
        yield warning(
            f"the chat template ends an answer with {tokenizer.piece(last)!r}, and no file calls that an end token: an "
            "engine continues after it; add it to eos_token_id (a base model may be meant so)"
        )
    try:
        with_system, _ = tokenizer.chat_template([{"role": "system", "content": "短く答える。"}, _QUESTION, _ANSWER])
    except UserError as refused:
        yield warning(f"{refused}: a system turn fails")
        return
    if with_system == ids:
        yield warning("the chat template leaves a system turn out without a word")


def _gguf_file_findings(path: Path, done: Callable[[int], None]) -> Iterator[Finding]:
    file = gguf.read(path)
    found = {tensor.name: tensor for tensor in file.tensors}
    yield from _faults_as_findings(_gguf_shape_findings(file.settings, found), path)
    faults = list(_faults_as_findings(_gguf_token_findings(file.settings, found), path))
    yield from faults
    if not any(fault.severity == "error" for fault in faults):
        yield from _faults_as_findings(_gguf_tokenizer_findings(file), path)
    for tensor in file.tensors:
        is_vector = len(tensor.shape) == 1 or tensor.name.endswith(".bias")
        try:
            yield from _value_findings(tensor.name, gguf.values(file, tensor), is_vector, done)
        except NotImplementedError:
            yield warning(f"{tensor.name}: its values, of type {tensor.kind}, were not read")
            done(tensor.size)


def _gguf_tokenizer_findings(file: gguf.GgufFile) -> Iterator[Finding]:
    rows = len(file.settings[f"{_TOKENS}.tokens"])
    with tempfile.TemporaryDirectory() as folder:
        for name, content in tokenizer_files(file.settings, rows, str(file.path)).items():
            storage.write_json(Path(folder) / name, content)
        tokenizer = PublishedTokenizer(Path(folder))
        yield from _cut_findings(tokenizer)
        for finding in _faults_as_findings(_chat_template_findings(tokenizer), file.path):
            yield replace(finding, what=finding.what.replace(folder, str(file.path)))


def _gguf_shape_findings(settings: dict[str, Any], found: dict[str, gguf.GgufTensor]) -> Iterator[Finding]:
    architecture = settings.get("general.architecture")
    if not isinstance(architecture, str):
        yield error("no general.architecture: no program knows what to compute; export it again")
        return
    layers, width = (settings.get(f"{architecture}.{key}") for key in ("block_count", "embedding_length"))
    there = {int(name.split(".")[1]) for name in found if name.startswith("blk.") and name.split(".")[1].isdecimal()}
    if layers is None or width is None:
        yield error(f"no {architecture}.block_count or embedding_length; export it again")
        return
    for name in ("token_embd.weight", "output_norm.weight"):
        if name not in found:
            yield error(f"{name} is missing; export it again")
    if len(there) != layers or max(there, default=-1) >= layers:
        yield error(f"{architecture}.block_count says {layers} layers, and {len(there)} are there")
    if (table := found.get("token_embd.weight")) and table.shape[-1] != width:
        yield error(f"{architecture}.embedding_length is {width}, and token_embd.weight {list(table.shape)}")


def _gguf_token_findings(settings: dict[str, Any], found: dict[str, gguf.GgufTensor]) -> Iterator[Finding]:
    texts, table = settings.get(f"{_TOKENS}.tokens"), found.get("token_embd.weight")
    if not isinstance(texts, list):
        yield error(f"no {_TOKENS}.tokens: no text can be read or written; export it again")
        return
    if table and table.shape[0] != len(texts):
        yield error(f"{len(texts)} tokens and an embedding of {table.shape[0]} rows; export it again")
    for key in ("token_type", "scores"):
        if (of_tokens := settings.get(f"{_TOKENS}.{key}")) is not None and len(of_tokens) != len(texts):
            yield error(f"{_TOKENS}.{key}: {len(of_tokens)} for {len(texts)} tokens; export it again")
    for key in ("bos", "eos", "eot", "padding", "unknown"):
        token = settings.get(f"{_TOKENS}.{key}_token_id")
        if token is not None and not 0 <= token < len(texts):
            yield error(f"{_TOKENS}.{key}_token_id: {token} is not a token; correct it")
    if f"{_TOKENS}.eos_token_id" not in settings:
        yield error(f"no end token: no {_TOKENS}.eos_token_id, so no program stops; export it again")
    if settings.get(f"{_TOKENS}.model") == "gpt2" and settings.get(f"{_TOKENS}.pre", "default") == "default":
        yield error(f"no {_TOKENS}.pre: llama.cpp splits text by a pattern of its own; export it again")
