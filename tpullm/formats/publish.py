"""Writes a checkpoint as a published model: its weights, its tokenizer, and a model card."""

import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from tpullm.formats import card
from tpullm.formats.gguf import writing as gguf_writing
from tpullm.formats.huggingface import adapters, tensors, writing
from tpullm.formats.models import FOUNDATIONS, Model, load_adapter, load_params, steps, stored_params
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.recipe.sampling import Sampling
from tpullm.recipe.schema import ModelConfig
from tpullm.run import manifest
from tpullm.system import storage
from tpullm.system.log import progress
from tpullm.tokenizer import Tokenizer, exported
from tpullm.tokenizer import load as load_tokenizer
from tpullm.tokenizer.trained import TrainedTokenizer


def write(
    model: Model,
    folder: Path,
    name: str,
    dtype: str = "stored",
    shard_bytes: int = 5_000_000_000,
    licence: str = "",
    weights: str = "",
) -> int:
    """Write `model` into the empty `folder`; returns the bytes of its weights.

    Args:
        name: the name of the model, for its card.
        dtype: the type of the weights, `float32`, `bfloat16` or `float16`; `stored` keeps the type of each parameter.
        shard_bytes: the largest size of a file of weights.
        licence: the licence of the model, for its card.
        weights: a key of `packed_integers.BITS`, in which the matrices of layers are written; "" is `dtype`.

    Raises:
        UserError: no family of transformers has such a model, it can't be written in `weights`, or the disk is full.
    """
    tokenizer = load_tokenizer(model.tokenizer_path)
    params, config = _parameters(model, dtype), model.config.trained_as(ModelConfig())
    how = _preferred(model), weights
    size = writing.size(config, params, *how)
    storage.room_for(size, folder.parent)
    with progress("export", size, "bytes") as advance:
        writing.write_model(folder, config, params, _special_tokens(tokenizer), advance, shard_bytes, *how)
    talks = model.talks(tokenizer)
    _write_tokenizer(model, tokenizer, folder, talks)
    card.write(folder, _card(model, folder, name, licence, params, talks))
    return size


def write_gguf(model: Model, folder: Path, name: str, weights: str, licence: str = "") -> int:
    """Write `model` as one file for llama.cpp, `NAME-WEIGHTS.gguf`, into the empty `folder`; returns its bytes.

    Args:
        name, licence: as of `write`.
        weights: the type of most weights, a key of `block_types.WEIGHTS`.

    Raises:
        UserError: llama.cpp has no such model or tokenizer, the disk is full, or the package `gguf` is missing.
    """
    gguf_writing.check_installed()
    tokenizer, file = load_tokenizer(model.tokenizer_path), folder / f"{name}-{weights}.gguf"
    config = model.config.trained_as(ModelConfig())
    planned = gguf_writing.planned(config, _parameters(model, "stored"), weights, _preferred(model))
    storage.room_for(planned.size, folder.parent)
    with progress("export", planned.size, "bytes") as advance:
        about = {"name": name, "license": licence}
        gguf_writing.write(file, planned, tokenizer, weights, about, model.talks(tokenizer), advance)
    return file.stat().st_size


def write_adapter(model: Model, folder: Path, name: str, licence: str = "") -> int:
    """Write the adapter of `model`, without its base, into the empty `folder`, as PEFT does; returns its bytes.

    Args:
        name, licence: as of `write`.

    Raises:
        UserError: no family of transformers has such a model, or PEFT has no form for the adapter.
    """
    architecture, mesh = Architecture(model.config), make_mesh({"fsdp": -1})
    family = writing.published_family(model.config.trained_as(ModelConfig()), _preferred(model))
    with jax.set_mesh(mesh):
        found = tensors.flat(load_adapter(model, architecture.placed(mesh)))
    stage = model.base.directory.parent.name
    base = Path(model.recipe["base"]).name if stage == "base" else stage
    arrays = {key: np.asarray(array) for key, array in found.items()}
    size = adapters.write(folder, family, arrays, model.adapter, tensors.flat(architecture.shapes), base)
    of_base = _parameters(model.base, "stored")
    adapters.write_base(
        folder, {name: adapters.sampled(of_base.read(name)) for name in adapters.matrices(of_base.targets)}
    )
    tokenizer = load_tokenizer(model.tokenizer_path)
    _write_tokenizer(model, tokenizer, folder, model.talks(tokenizer))
    (folder / "README.md").write_text(card.of_adapter(name, base, model.adapter, licence), encoding="utf-8")
    return size


def _preferred(model: Model) -> str:
    """The `model_type` of the published model that a run began with."""
    published = model.run / "base" / "published.json"
    return storage.read_json(published)["model_type"] if model.recipe["base"] and published.exists() else ""


def _parameters(model: Model, dtype: str) -> writing.Parameters:
    """The parameters of the checkpoint, each restored when it is written."""
    architecture, mesh = Architecture(model.config), make_mesh({"fsdp": -1})
    saved, placed = tensors.flat(stored_params(model)), tensors.flat(architecture.placed(mesh))
    targets = {
        key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if dtype == "stored" else dtype) for key, leaf in saved.items()
    }

    def read(key: str) -> np.ndarray:
        target = jax.ShapeDtypeStruct(saved[key].shape, saved[key].dtype, sharding=placed[key].sharding)
        return np.asarray(tensors.flat(load_params(model, tensors.nested({key: target})))[key])

    return writing.Parameters(targets, tensors.flat(architecture.axes), read)


def _special_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    found = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.stop_ids, "pad_token_id": tokenizer.pad_id}
    return {key: value for key, value in found.items() if value is not None}


def _write_tokenizer(model: Model, tokenizer: Tokenizer, folder: Path, talks: bool) -> None:
    """Write the tokenizer's files, and `generation_config.json`: end tokens, and the settings of sampling."""
    if isinstance(tokenizer, TrainedTokenizer):
        exported.write(folder, tokenizer, model.config.context_length, talks)
        sampling = {"temperature": Sampling().temperature, "min_p": Sampling().min_p}
        how = {"do_sample": False} if talks else {"do_sample": True, **sampling}  # as `chat` and `generate` do
    else:
        for file in storage.local_copy(model.tokenizer_path).iterdir():
            shutil.copyfile(file, folder / file.name)
        how = storage.read_json(folder / "generation_config.json")
    storage.write_json(folder / "generation_config.json", how | _special_tokens(tokenizer))


def _card(model: Model, folder: Path, name: str, licence: str, params: writing.Parameters, talks: bool) -> dict:
    data = model.run / "documents"
    languages = storage.read_json(data / "datacard.json")["by_language"] if (data / "datacard.json").exists() else {}
    recipe = {key: value for key, value in _without_folders(model.recipe).items() if key != "run"}
    return {
        "name": name,
        "parameters": sum(math.prod(target.shape) for target in params.targets.values()),
        "config": storage.read_json(folder / "config.json"),
        "talks": talks,
        "licence": licence,
        "base": Path(model.recipe["base"]).name,
        "recipe": yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False, width=100),
        "data": (data / "datacard.md").read_text(encoding="utf-8") if (data / "datacard.md").exists() else "",
        "languages": [language for language in languages if len(language) == 2],
        "evaluation": _evaluation(model),
        "tasks": manifest.tasks(model.run, model.stage, model.step),
    }


def _without_folders(value: Any) -> Any:
    """The recipe without folders of this machine: only the last name of a path stays."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "gs://")) else value


def _evaluation(model: Model) -> list[tuple[str, str]]:
    """The measures of exactly this checkpoint: on held-out text at the end of its training, and by `evaluate`."""
    made = model.run / model.stage / manifest.FILE
    if model.stage == "base" or not made.exists() or model.step != max(steps(model.directory)):
        return []
    facts = storage.read_json(made)
    rows = [
        (f"held-out {source}", f"{facts['eval_loss'][source]:.4f} nats a token, {bits:.3f} bits a byte")
        for source, bits in facts.get("eval_bits_per_byte", {}).items()
    ]
    rows += [
        (f"held-out {source}", f"the better answer wins in {share:.1%}")
        for source, share in facts.get("eval_accuracy", {}).items()
    ]
    results, key = _results(model), "base" if model.stage in FOUNDATIONS else "tuned"
    if key in results:
        rows.append(
            ("right answers", f"{results[key]['accuracy']:.1%} of {results[key]['questions']} held-out questions")
        )
    return rows


def _results(model: Model) -> dict:
    """The results of `evaluate`, if it ran on the stage as it is now."""
    made = model.run / "evaluate" / manifest.FILE
    if not made.exists():
        return {}
    upstream = storage.read_json(made)["inputs"]["upstream"]
    stands = upstream.get(model.stage) == manifest.finished_identity(model.run / model.stage)
    return storage.read_json(model.run / "evaluate" / "results.json") if stands else {}
