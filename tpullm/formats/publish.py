"""Writes a checkpoint as a published model: its weights, its tokenizer, and a model card (`templates/`)."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from tpullm import __version__
from tpullm.formats.gguf import tensor_types, vocabulary
from tpullm.formats.gguf import writing as gguf_writing
from tpullm.formats.gguf.modelfile import modelfile
from tpullm.formats.gguf.reading import check_installed
from tpullm.formats.huggingface import adapters, tensors, writing
from tpullm.formats.models import FOUNDATIONS, Model, load_adapter, load_params, steps, stored_params
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.recipe.sampling import Sampling
from tpullm.recipe.schema import ModelConfig
from tpullm.run import manifest
from tpullm.system import storage
from tpullm.system.log import progress, say
from tpullm.tokenizer import Tokenizer, exported
from tpullm.tokenizer import load as load_tokenizer
from tpullm.tokenizer.trained import TrainedTokenizer

# Of Markdown: nothing is escaped.
_TEMPLATES = Environment(
    loader=PackageLoader("tpullm.formats"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


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
        weights: a key of `huggingface.writing.BITS`, in which the matrices of layers are written; "" is `dtype`.

    Raises:
        UserError: no family of transformers has such a model, it can't be written in `weights`, or the disk is full.
    """
    tokenizer = load_tokenizer(model.tokenizer_path)
    params, config = _checkpoint_parameters(model, dtype), model.config.trained_as(ModelConfig())
    planned = writing.planned(config, params, source_type(model.recipe["base"], model.run), weights)
    storage.room_for(planned.size, folder.parent)
    with progress("export", planned.size, "bytes") as advance:
        writing.write(folder, planned, _special_tokens(tokenizer), advance, shard_bytes)
    talks = model.talks(tokenizer)
    _write_tokenizer(model, tokenizer, folder, talks)
    data, published = model.run / "documents", storage.read_json(folder / "config.json")
    languages = storage.read_json(data / "datacard.json")["by_language"] if (data / "datacard.json").exists() else {}
    recipe = {key: value for key, value in _without_folders(model.recipe).items() if key != "run"}
    facts = {
        "name": name,
        "licence": licence,
        "talks": talks,
        "parameters": sum(math.prod(target.shape) for target in params.targets.values()),
        "layers": published.get("num_hidden_layers") or published.get("n_layer"),
        "width": published.get("hidden_size") or published.get("n_embd"),
        "architecture": published["architectures"][0],
        "base": Path(model.recipe["base"]).name,
        "recipe": yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False, width=100),
        "data": (data / "datacard.md").read_text(encoding="utf-8") if (data / "datacard.md").exists() else "",
        "languages": [language for language in languages if len(language) == 2],
        "evaluation": _measures_of_checkpoint(model),
    }
    card = model_card(facts, manifest.tasks(model.run, model.stage, model.step))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return planned.size


def write_gguf(model: Model, folder: Path, name: str, weights: str, licence: str = "") -> int:
    """Write `model` as one file for llama.cpp, `NAME-WEIGHTS.gguf`, into `folder`; returns its bytes.

    A `Modelfile` beside it is for Ollama.

    Args:
        name, licence: as of `write`.
        weights: the type of most weights, one of `gguf.tensor_types.WEIGHTS`.

    Raises:
        UserError: llama.cpp has no such model or tokenizer, the disk is full, or the package `gguf` is missing.
    """
    check_installed()
    tokenizer, file = load_tokenizer(model.tokenizer_path), folder / f"{name}-{weights}.gguf"
    config, params = model.config.trained_as(ModelConfig()), _checkpoint_parameters(model, "stored")
    planned = gguf_writing.planned(config, params, weights, source_type(model.recipe["base"], model.run))
    storage.room_for(planned.size, folder.parent)
    if told := tensor_types.told_fallbacks([tensor for tensor, _ in planned.tensors], weights, planned.layout.config):
        say(f"export: {told}")
    with progress("export", planned.size, "bytes") as advance:
        gguf_writing.write(file, planned, tokenizer, weights, (name, licence), model.talks(tokenizer), advance)
    if not (folder / "Modelfile").exists():
        (folder / "Modelfile").write_text(modelfile(file.name, tokenizer), encoding="utf-8")
    return file.stat().st_size


def check_gguf(config: ModelConfig, tokenizer: Tokenizer, weights: tuple[str, ...], preferred: str) -> None:
    """Refuse a model that `write_gguf` would refuse, before it is trained.

    Args:
        weights: some of `gguf.tensor_types.WEIGHTS`.
        preferred: as of `source_type`.
    """
    architecture = Architecture(config)
    shapes, axes = tensors.flat(architecture.shapes), tensors.flat(architecture.axes)
    for kind in weights:
        gguf_writing.planned(config.trained_as(ModelConfig()), writing.Parameters(shapes, axes, None), kind, preferred)
    vocabulary.of_tokenizer(tokenizer).of_size(config.vocabulary_size)


def write_adapter(model: Model, folder: Path, name: str, licence: str = "") -> int:
    """Write the adapter of `model`, without its base, into the empty `folder`, as PEFT does; returns its bytes.

    Args:
        name, licence: as of `write`.

    Raises:
        UserError: no family of transformers has such a model, or PEFT has no form for the adapter.
    """
    architecture, mesh = Architecture(model.config), make_mesh({"fsdp": -1})
    of_base, preferred = _checkpoint_parameters(model.base, "stored"), source_type(model.recipe["base"], model.run)
    family = writing.planned(model.config.trained_as(ModelConfig()), of_base, preferred).family
    with jax.set_mesh(mesh):
        found = tensors.flat(load_adapter(model, architecture.placed(mesh)))
    stage = model.base.directory.parent.name
    base = Path(model.recipe["base"]).name if stage == "base" else stage
    arrays = {key: np.asarray(array) for key, array in found.items()}
    size = adapters.write(folder, family, arrays, model.adapter, tensors.flat(architecture.shapes), base)
    numbers = {name: adapters.sampled_numbers(of_base.read(name)) for name in adapters.matrix_names(of_base.targets)}
    storage.write_json(folder / adapters.FILE, {"numbers": numbers})
    tokenizer = load_tokenizer(model.tokenizer_path)
    _write_tokenizer(model, tokenizer, folder, model.talks(tokenizer))
    kind = "DoRA" if model.adapter.magnitude else "rsLoRA" if model.adapter.root_scale else "LoRA"
    facts = {"name": name, "base": base, "licence": licence, "version": __version__, "kind": kind}
    facts |= {"rank": model.adapter.rank, "targets": ", ".join(model.adapter.targets)}
    (folder / "README.md").write_text(_TEMPLATES.get_template("adapter_card.md.jinja").render(facts), encoding="utf-8")
    return size


def source_type(base: str, run: Path) -> str:
    """The `model_type` of the published model that a run began with; "" if it has none."""
    published = run / "base" / "published.json"
    return storage.read_json(published)["model_type"] if base and published.exists() else ""


def _checkpoint_parameters(model: Model, dtype: str) -> writing.Parameters:
    """The parameters of the checkpoint, each restored when it is written."""
    architecture, mesh = Architecture(model.config), make_mesh({"fsdp": -1})
    saved, placed = tensors.flat(stored_params(model)), tensors.flat(architecture.placed(mesh))
    kind = None if dtype == "stored" else dtype
    targets = {key: jax.ShapeDtypeStruct(leaf.shape, kind or leaf.dtype) for key, leaf in saved.items()}

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


def model_card(facts: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> str:
    """The model card: what a model is, its data, and how good it is.

    Args:
        facts: `name`, `parameters`, `layers`, `width`, `architecture`, `talks`, `licence` (or ""), `base` (or ""),
            `recipe`, `data` (the text of the data card, or ""), `languages`, `evaluation` (pairs of a measure and its
            result).
        tasks: the figures of each task, as `evaluate --tasks` has them.
    """
    licence = facts["licence"].lower()
    has_name = licence and all(character.isalnum() or character in "-." for character in licence)  # on the Hub
    found = facts | {"license": licence if has_name else "other", "version": __version__}
    commands = {task: manifest.command(task, figures, facts["name"]) for task, figures in tasks.items()}
    return _TEMPLATES.get_template("card.md.jinja").render(found, tasks=tasks, commands=commands)


# A name in a table or a heading of Markdown. As a string of JSON in one line, a prompt can end no block of the card.
_TEMPLATES.filters["cell"] = lambda text: " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
_TEMPLATES.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)


def _without_folders(value: Any) -> Any:
    """The recipe without folders of this machine: only the last name of a path stays."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "gs://")) else value


def _measures_of_checkpoint(model: Model) -> list[tuple[str, str]]:
    """The measures of exactly this checkpoint: on held-out text at the end of its training, and by `evaluate`."""
    made, evaluated = (model.run / stage / manifest.FILE for stage in (model.stage, "evaluate"))
    if model.stage == "base" or not made.exists() or model.step != max(steps(model.directory)):
        return []
    facts, rows = storage.read_json(made), []
    for source, bits in facts.get("eval_bits_per_byte", {}).items():
        rows.append((f"held-out {source}", f"{facts['eval_loss'][source]:.4f} nats a token, {bits:.3f} bits a byte"))
    for source, share in facts.get("eval_accuracy", {}).items():
        rows.append((f"held-out {source}", f"the better answer wins in {share:.1%}"))
    upstream = storage.read_json(evaluated)["inputs"]["upstream"] if evaluated.exists() else {}
    if upstream.get(model.stage) == manifest.finished_identity(model.run / model.stage):  # it ran on the stage as it is
        results = storage.read_json(evaluated.parent / "results.json")
        if found := results.get("base" if model.stage in FOUNDATIONS else "tuned"):
            rows.append(("right answers", f"{found['accuracy']:.1%} of {found['questions']} held-out questions"))
    return rows
