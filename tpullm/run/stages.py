"""The stages of a run: what each depends on, so that a finished one is skipped and a changed one is made again."""

import dataclasses
import datetime
import shutil
from pathlib import Path

from tpullm import storage
from tpullm.cluster import hosts
from tpullm.errors import UserError
from tpullm.log import say
from tpullm.recipe.schema import Recipe, TrainConfig
from tpullm.run import manifest

STARTED = "inputs.json"  # in a training it comes after the tokenizer: what has one has a whole tokenizer
# Settings of training that change when things are written, and not one number of the result.
WITHOUT_EFFECT = ("checkpoint", "log_every", "evaluate_every", "evaluate_rows", "data_workers")


def need(run: Path, stage: str, verb: str) -> str:
    """The identity of an earlier stage; `UserError` if it is not finished."""
    if not (run / stage / manifest.FILE).exists():
        raise UserError(f"{run / stage}: not made yet; run `tpullm {verb} --run {run}` first (or `tpullm run`)")
    return manifest.identity(run / stage)


def _standing(recipe: Recipe, run: Path, stage: str, inputs) -> str:
    """The identity of an earlier training that was made by this very recipe; `UserError` if it is another's."""
    identity = need(run, stage, f"import {recipe.base}" if stage == "base" else stage)
    if not manifest.is_finished(run / stage, inputs(recipe, run)):
        raise UserError(f"{run / stage}: was made from other settings or other text; `tpullm run` makes it again")
    return identity


def base_inputs(recipe: Recipe, run: Path) -> dict:
    """What an import depends on: the content of the published model's files.

    The folder may be gone once it was imported.
    """
    folder, made = storage.path(recipe.base), run / "base" / manifest.FILE
    if not folder.is_dir() and made.exists() and storage.read_json(made)["folder"] == str(folder):
        return storage.read_json(made)["inputs"]
    return manifest.inputs_hash({}, {name: entry[2] for name, entry in digests(recipe, run).items()})


def digests(recipe: Recipe, run: Path) -> dict[str, list]:
    """Of each file of the published model that is read: size, time of change, SHA-256.

    Hashes are computed again only where the size or the time is not as noted in `RUN/base/digests.json`.
    """
    folder, noted = storage.path(recipe.base), run / "base" / "digests.json"
    known = storage.read_json(noted) if noted.exists() else {}
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix in (".json", ".safetensors", ".jinja"):
            state = [path.stat().st_size, path.stat().st_mtime_ns]
            same = known.get(path.name, [])[:2] == state
            here = None if same else storage.local_copy(folder) / path.name  # which an import reads anyway
            found[path.name] = [*state, known[path.name][2] if same else storage.hash_file(here)]
    if "config.json" not in found:
        raise UserError(f"base: {folder} is no folder in the format of Hugging Face: it has no config.json")
    return found


def pretrain_inputs(recipe: Recipe, run: Path) -> dict:
    """What pretraining depends on."""
    weights = {source.name: source.weight for source in recipe.corpus.sources}
    config = {"model": dataclasses.asdict(recipe.model), "train": _numbers(recipe.pretrain), "seed": recipe.seed}
    upstream = {"tokens": need(run, "tokens", "tokenize")}
    if recipe.base:
        upstream["base"] = _standing(recipe, run, "base", base_inputs)
    return manifest.inputs_hash({**config, "weights": weights}, upstream)


def finetune_inputs(recipe: Recipe, run: Path) -> dict:
    """What fine-tuning depends on."""
    finetune = recipe.finetune
    if finetune is None:
        raise UserError("finetune: the recipe has no section `finetune`; add one with `conversations`")
    named = {name: storage.path(name) for name in (*finetune.conversations, finetune.chat_template) if name}
    files = {name: storage.hash_file(path) for name, path in named.items() if path.is_file()}
    config = dataclasses.asdict(finetune) | {"train": _numbers(finetune.train), "seed": recipe.seed}
    if recipe.foundation == "base":  # else it is among the inputs of pretraining
        config["dropout"] = recipe.model.dropout
    return manifest.inputs_hash(config, _foundation(recipe, run) | files)


def evaluate_inputs(recipe: Recipe, run: Path) -> dict:
    """What the evaluation depends on."""
    upstream = _foundation(recipe, run)
    if recipe.finetune:
        upstream["finetune"] = _standing(recipe, run, "finetune", finetune_inputs)
    return manifest.inputs_hash(recipe.evaluate, upstream)


def _foundation(recipe: Recipe, run: Path) -> dict[str, str]:
    stage = recipe.foundation
    return {stage: _standing(recipe, run, stage, base_inputs if stage == "base" else pretrain_inputs)}


def _numbers(config: TrainConfig) -> dict:
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in WITHOUT_EFFECT}


def begin(stage: Path, inputs: dict) -> None:
    """Make room for a stage; one that was made from other inputs is moved to `RUN/replaced`.

    What was trained is never deleted: only the user knows what it cost.
    """
    _make_room(stage, inputs)
    _note(stage, inputs)


def _make_room(stage: Path, inputs: dict) -> None:
    started = stage / STARTED
    if stage.exists() and (not started.exists() or storage.read_json(started) != manifest.plain(inputs)):
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S.%f")
        kept = stage.parent / "replaced" / f"{stage.name}-{now}"
        storage.move_tree(stage, kept)
        say(f"{stage.name}: its inputs changed, so it is made again (the old one is kept in {kept})")


def _note(stage: Path, inputs: dict) -> None:
    if not (stage / STARTED).exists():
        storage.write_json(stage / STARTED, manifest.plain(inputs))


def begin_training(run: Path, stage: str, inputs: dict, tokenizer: Path, changed: dict[str, str] | None = None) -> None:
    """`begin`, for a stage that makes a model: the tokenizer that it was trained with stays beside it.

    Args:
        tokenizer: the folder that it is in.
        changed: texts of its files that are other ones from now on.

    Raises:
        UserError: a host does not see what host 0 writes.
    """
    hosts.on_first(f"{stage} begins", _begin_training, run, stage, inputs, tokenizer, changed or {})
    if not (run / stage / "tokenizer").exists():
        raise UserError(f"{run}: is another folder here than on host 0; give a folder that all hosts share")


def _begin_training(run: Path, stage: str, inputs: dict, tokenizer: Path, changed: dict[str, str]) -> None:
    _make_room(run / stage, inputs)
    if not all((run / stage / name).exists() for name in ("tokenizer", STARTED)):
        with storage.atomic_directory(run / stage / "tokenizer") as temporary:
            for file in storage.local_copy(tokenizer).iterdir():
                if file.name != manifest.FILE:
                    shutil.copyfile(file, temporary / file.name)
            for name, text in changed.items():
                (temporary / name).write_text(text, encoding="utf-8")
    _note(run / stage, inputs)
