"""Small models as GGUF files: the models of tests/huggingface, a vocabulary of 320 byte-level tokens."""

import functools
import json
from pathlib import Path

import jax

from tests.formats.huggingface import published as directories
from tests.formats.huggingface.small import MODELS, YARN, as_ours, published
from tpullm.formats.gguf import writing
from tpullm.formats.huggingface import configs, tensors
from tpullm.formats.huggingface.writing import Parameters
from tpullm.tokenizer.published import PublishedTokenizer

# Models of tests/formats/huggingface that llama.cpp computes, some with another setting.
KNOWN = {
    name: {}
    for name in ("llama-2", "llama-2 linear", "llama-3 one key head", "llama-3.1", "llama-3.2 tied", "llama yarn")
    + (
        "qwen-2.5",
        "qwen-3",
        "olmo-2",
        "olmo-3",
        "smollm-3",
        "phi-3 longrope",
        "phi-4-mini",
        "gemma",
        "gemma-3",
        "mixtral",
        "qwen-3 experts",
    )
    + ("gemma-2", "gpt-oss", "gpt-2")
}
QUICK = ["llama-3.1", "phi-3 longrope", "gemma-3", "gpt-oss", "qwen-3 experts"]  # these have all that is special
KNOWN["qwen-3"] = {"rope_parameters": YARN}
KNOWN["mixtral"] = {"sliding_window": None}
KNOWN["gemma-2"] = KNOWN["gemma-3"] = {"query_pre_attn_scalar": 10}
KNOWN["gpt-oss"] = {"swiglu_limit": 7.0}


def config_of(name: str, **changes) -> dict:
    model_type, keys = MODELS[name]
    return {"model_type": model_type, **keys, **KNOWN.get(name, {}), **changes}


@functools.cache
def _model(config: str) -> tuple:
    return published(json.loads(config))


def model(config: dict) -> tuple:
    """Our architecture, its family and their tensors, made once in a process: an `Architecture` takes a second."""
    return _model(json.dumps(config))


def parameters(config: dict) -> Parameters:
    architecture, *rest = model(config)
    flat = tensors.flat(as_ours(architecture, *rest))
    targets = {key: jax.ShapeDtypeStruct(array.shape, array.dtype) for key, array in flat.items()}
    return Parameters(targets, tensors.flat(architecture.axes), flat.__getitem__)


def planned(config: dict, weights: str = "f32") -> writing.GgufModel:
    read = configs.read(config, "config.json")
    return writing.planned(read, parameters(config), weights, config["model_type"])


def tokenizer(folder: Path) -> PublishedTokenizer:
    """The tokenizer of 320 tokens, whose documents end in `<|endoftext|>`."""
    folder.mkdir(exist_ok=True)
    made = directories.tokenizer(folder / "tokenizer.json")
    directories.write(folder / "config.json", {"eos_token_id": made.token_to_id(directories.START)})
    directories.write(folder / "tokenizer_config.json", {})
    return PublishedTokenizer(folder)


def write(file: Path, config: dict, tokenizer: PublishedTokenizer, weights: str = "f32") -> None:
    writing.write(file, planned(config, weights), tokenizer, weights, ("small", ""), False, lambda size: None)
