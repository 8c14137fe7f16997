"""Write a trained model as a folder in the format of Hugging Face, for transformers and the engines that read it.

Weights, config.json, generation_config.json, the tokenizer with its chat template, and a model card.
"""

import shutil
from pathlib import Path

from tpullm import manifest, storage
from tpullm.config import ModelConfig
from tpullm.errors import UserError
from tpullm.log import progress, say

DTYPES = ("stored", "float32", "bfloat16", "float16")


def add_arguments(parser) -> None:
    """The options of `tpullm export`."""
    parser.add_argument("model", help="a run directory, one of its stages, or one checkpoint")
    parser.add_argument("folder", help="the folder to write; it must be empty or not there")
    parser.add_argument(
        "--dtype",
        default="stored",
        choices=DTYPES,
        help="type of the weights: as they are stored (float32 for what was trained here), or bfloat16 for half of it",
    )
    parser.add_argument("--shard-gigabytes", type=float, default=5.0, help="the largest file of weights")
    parser.add_argument("--licence", default="", help="the licence of the model, for its card: Apache-2.0")


def main(arguments) -> None:
    """Everything is written beside the folder, which appears when it is whole."""
    folder = storage.local(arguments.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not an empty folder; choose another one, or remove what is in it")
    if arguments.shard_gigabytes <= 0:
        raise UserError(f"--shard-gigabytes: {arguments.shard_gigabytes} is not above 0; use 5, say")
    from tpullm.checkpoint import find

    model = find(arguments.model)
    with storage.atomic_directory(folder) as temporary:
        size = write(model, temporary, folder.name, arguments.dtype, arguments.shard_gigabytes, arguments.licence)
    say(f"export: {model.directory.parent}, step {model.step:,}, to {folder} ({size / 1e6:,.1f} MB)")


def write(model, folder: Path, name: str, dtype: str, shard_gigabytes: float, licence: str) -> int:
    """Write `model` into the empty `folder`; returns the bytes of its weights.

    Args:
        name: of the model, for its card.
        dtype: one of `DTYPES`.

    Raises:
        UserError: no family of transformers has such a model.
    """
    from tpullm.huggingface import card, writing
    from tpullm.tokenizer import load as load_tokenizer

    tokenizer, published = load_tokenizer(model.tokenizer_path), model.run / "base" / "published.json"
    from_base = bool(model.recipe["base"])
    params = _parameters(model, dtype)
    size = sum(writing.size(params, key) for key in params.targets)
    preferred = storage.read_json(published)["model_type"] if from_base and published.exists() else ""
    storage.room_for(size, folder.parent)
    with progress("export", size, "bytes") as advance:
        config, tokens = model.config.trained_as(ModelConfig()), _special_tokens(tokenizer)
        options = dict(preferred=preferred, shard_bytes=int(shard_gigabytes * 1e9))
        writing.write_model(folder, config, params, tokens, advance, **options)
    _tokenizer(model, tokenizer, folder)
    card.write(folder, _card(model, folder, name, licence, params))
    return size


def _parameters(model, dtype: str):
    """The checkpoint's parameters, each restored when it is written."""
    import jax
    import numpy as np

    from tpullm.checkpoint import load_params, stored
    from tpullm.huggingface import tensors, writing
    from tpullm.sharding import make_mesh
    from tpullm.training.state import Architecture

    architecture, mesh = Architecture(model.config), make_mesh({"fsdp": -1})
    saved, placed = tensors.flat(stored(model)), tensors.flat(architecture.placed(mesh))
    targets = {
        key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if dtype == "stored" else dtype) for key, leaf in saved.items()
    }

    def read(key: str) -> np.ndarray:
        target = jax.ShapeDtypeStruct(saved[key].shape, saved[key].dtype, sharding=placed[key].sharding)
        return np.asarray(tensors.flat(load_params(model, tensors.nested({key: target})))[key])

    return writing.Parameters(targets, tensors.flat(architecture.axes), read)


def _special_tokens(tokenizer) -> dict:
    found = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.stop_ids, "pad_token_id": tokenizer.pad_id}
    return {key: value for key, value in found.items() if value is not None}


def _tokenizer(model, tokenizer, folder: Path) -> None:
    """The tokenizer's files, and `generation_config.json`: where engines stop, and how they choose."""
    from tpullm.huggingface.writing import write_json
    from tpullm.inference.sampling import Sampling
    from tpullm.tokenizer import exported
    from tpullm.tokenizer.trained import TrainedTokenizer

    if isinstance(tokenizer, TrainedTokenizer):
        tuned, sampling = model.stage == "finetune", Sampling()
        exported.write(folder, tokenizer, model.config.context_length, tuned)
        chosen = {"temperature": sampling.temperature, "min_p": sampling.min_p}
        how = {"do_sample": False} if tuned else {"do_sample": True, **chosen}  # as `chat` and `generate` do
    else:
        for file in model.tokenizer_path.iterdir():
            shutil.copyfile(file, folder / file.name)
        how = storage.read_json(folder / "generation_config.json")
    write_json(folder / "generation_config.json", how | _special_tokens(tokenizer))


def _card(model, folder: Path, name: str, licence: str, params) -> dict:
    import math

    import yaml

    data, run = model.run / "documents", model.run
    languages = storage.read_json(data / "datacard.json")["by_language"] if (data / "datacard.json").exists() else {}
    return {
        "name": name,
        "parameters": sum(math.prod(target.shape) for target in params.targets.values()),
        "config": storage.read_json(folder / "config.json"),
        "tuned": model.stage == "finetune",
        "licence": licence,
        "base": Path(model.recipe["base"]).name,
        "recipe": yaml.safe_dump(model.recipe, allow_unicode=True, sort_keys=False, width=100),
        "data": (data / "datacard.md").read_text(encoding="utf-8") if (data / "datacard.md").exists() else "",
        "languages": [language for language in languages if len(language) == 2],
        "results": _results(run, model.stage),
    }


def _results(run: Path, stage: str) -> dict:
    """What `evaluate` found, if it was of the model as it is."""
    made = run / "evaluate" / manifest.FILE
    if not made.exists() or stage == "base":
        return {}
    upstream = storage.read_json(made)["inputs"]["upstream"]
    stands = upstream.get(stage) == manifest.identity(run / stage) if (run / stage / manifest.FILE).exists() else False
    return storage.read_json(run / "evaluate" / "results.json") if stands else {}
