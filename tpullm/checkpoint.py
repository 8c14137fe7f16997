"""Checkpoints: what training saves, what it goes on from, and what a MODEL argument means.

A checkpoint holds the training state (parameters, optimizer, step: the step is the whole position in the data) and a
description: the model's config, the recipe, the stage and its inputs. `latest` is never a save that did not finish:
Orbax writes beside and renames.
"""

import dataclasses
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tpullm import hosts, manifest, storage
from tpullm.config import CheckpointConfig, ModelConfig, Recipe
from tpullm.errors import UserError
from tpullm.tokenizer import Tokenizer

Tree = Any
MOST_BYTES_AT_ONCE = 1 << 28
CHUNK_BYTES = 1 << 26  # compressed at once, and held back before it is written
MARK = "commit_success.txt"
STAGES = ("finetune", "pretrain", "base")


def _alone() -> ocp.options.MultiprocessingOptions:
    """Orbax without waiting for the other hosts: what one of them may do by itself, or each in its own time."""
    host = hosts.index()
    return ocp.options.MultiprocessingOptions(
        primary_host=host, active_processes={host}, barrier_sync_key_prefix=f"host{host}"
    )


def _reader(directory: Path, **named: Any) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=_alone(), read_only=True)
    return ocp.CheckpointManager(directory, options=options, **named)


class Checkpoints:
    """The checkpoints of one stage, saved in the background; with several hosts, each writes what its devices hold.

    Args:
        directory: `STAGE/checkpoints`.
        config: how many to keep.
    """

    def __init__(self, directory: Path, config: CheckpointConfig):
        # Orbax logs the traceback of a failed save from its thread; `check` and `close` raise the same error here.
        logging.getLogger("absl").setLevel(logging.CRITICAL + 1)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(directory, options=options)

    def latest(self) -> int | None:
        """The step of the last finished save."""
        return self._manager.latest_step()

    def save(self, step: int, state: Tree, description: dict) -> None:
        """Start saving; an earlier save's failure is raised here."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), description=ocp.args.JsonSave(description))
        self._manager.save(step, args=items, force=True)

    def check(self) -> None:
        """Raise the error of a save that failed in the background."""
        self._manager.check_for_errors()

    def restore(self, step: int, target: Tree) -> Tree:
        """The state at `step`, placed as `target` (shapes, types, shardings) says, whatever mesh wrote it."""
        return _restore(self._manager, step, target)

    def close(self) -> None:
        """Wait for the last save."""
        self._manager.wait_until_finished()
        self._manager.close()


def save_params(directory: Path, params: Tree, description: dict) -> None:
    """Save parameters alone as step 0, in little memory: few at a time, in small pieces, and waiting for each.

    A save in the background first copies all of them. For 4.2 GB in bfloat16, the largest parameter of 1.1 GB, the
    process takes 0.9 to 1.1 GB more than the arrays; it was up to 1.8 where files were held back up to 2 GB.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL + 1)
    # Below the size of the largest parameter, Orbax would wait for ever.
    most = max([MOST_BYTES_AT_ONCE, *(leaf.nbytes for leaf in jax.tree.leaves(params))])
    state_handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=most / 1e9 + 0.001)
    handlers = {"state": state_handler, "description": ocp.JsonCheckpointHandler()}
    directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        create=False, enable_async_checkpointing=False, cleanup_tmp_directories=True, multiprocessing_options=_alone()
    )
    manager = ocp.CheckpointManager(directory, item_handlers=handlers, options=options)
    try:
        in_chunks = jax.tree.map(lambda leaf: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), {"params": params})
        state = ocp.args.PyTreeSave({"params": params}, save_args=in_chunks, ocdbt_target_data_file_size=CHUNK_BYTES)
        if manager.latest_step() is None:  # else killed after the save
            manager.save(0, args=ocp.args.Composite(state=state, description=ocp.args.JsonSave(description)))
    finally:
        manager.close()


def _restore(manager: ocp.CheckpointManager, step: int, target: Tree) -> Tree:
    try:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return manager.restore(step, args=items)["state"]
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(
            f"{manager.directory / str(step)}: the checkpoint can't be read ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


@dataclass(frozen=True)
class Model:
    """A trained model on disk.

    Args:
        directory: `STAGE/checkpoints`.
        step: which of them.
        run: the run directory.
        stage: `finetune`, `pretrain`, or `base` if it was imported.
        config: of the model.
        recipe: the whole recipe, as a dict.
    """

    directory: Path
    step: int
    run: Path
    stage: str
    config: ModelConfig
    recipe: dict

    @property
    def tokenizer_path(self) -> Path:
        """The folder of the tokenizer that it was trained with."""
        return self.directory.parent / "tokenizer"

    def talks(self, tokenizer: Tokenizer) -> bool:
        """It was tuned on conversations, here or (there is a chat template) by those who published it."""
        return self.stage == "finetune" or self.stage == "base" and tokenizer.has_template


def find(model: str | Path, stages: tuple[str, ...] = STAGES) -> Model:
    """What a MODEL argument names: a run directory (its last finished stage), a stage, or one checkpoint.

    Args:
        stages: which stage of a run is meant, the preferred one first.

    Raises:
        UserError: it is none of them, or holds no finished save.
    """
    path = storage.path(model)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; MODEL is a run directory, one of its stages, or one checkpoint")
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return _describe(path.parent, int(path.name))
    if (path / "checkpoints").is_dir():
        return _describe(path / "checkpoints", None)
    for stage in (*filter(partial(_stands, path), stages), *reversed(stages)):
        if (path / stage / "checkpoints").is_dir() and steps(path / stage / "checkpoints"):
            return _describe(path / stage / "checkpoints", None)
    raise UserError(f"{path}: holds no trained model; MODEL is a run directory, one of its stages, or one checkpoint")


def _stands(run: Path, stage: str) -> bool:
    """Whether a stage is finished, and made from the pretraining that is there today."""
    if not (run / stage / manifest.FILE).exists():
        return False
    upstream = storage.read_json(run / stage / manifest.FILE)["inputs"]["upstream"]
    earlier = [name for name in STAGES if name in upstream]
    return all(_stands(run, name) and upstream[name] == manifest.identity(run / name) for name in earlier)


def steps(directory: Path) -> list[int]:
    """The steps of the finished saves in `STAGE/checkpoints`. On `gs://` Orbax marks what is finished by a file."""
    found = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    return [step for step in found if not storage.is_remote(directory) or (directory / str(step) / MARK).exists()]


def _describe(directory: Path, step: int | None) -> Model:
    found = steps(directory)
    if not found or (step is not None and step not in found):
        raise UserError(f"{directory}: no finished save{f' of step {step}' if step is not None else ''} here")
    step = found[-1] if step is None else step
    logging.getLogger("absl").setLevel(logging.CRITICAL + 1)
    manager = _reader(directory)
    try:
        args = ocp.args.Composite(description=ocp.args.JsonRestore())
        described = manager.restore(step, args=args)["description"]
    except (FileNotFoundError, KeyError) as error:
        raise UserError(f"{directory / str(step)}: not a checkpoint of tpullm ({_first_line(error)})") from error
    finally:
        manager.close()
    config = _config(described, directory / str(step))
    run = directory.parent.parent
    return Model(directory, step, run, directory.parent.name, config, described["recipe"])


def _config(described: dict, where: Path) -> ModelConfig:
    try:
        return ModelConfig.from_json(described["model"])
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{where}: written by another version of tpullm ({_first_line(error)}); use that one"
        ) from error


def stored(model: Model) -> Tree:
    """Shapes and types of the parameters as they were saved."""
    handlers = {"state": ocp.PyTreeCheckpointHandler()}  # without one, Orbax knows no item's metadata
    manager = _reader(model.directory, item_names=("state",), item_handlers=handlers)
    try:
        saved = manager.item_metadata(model.step)["state"].tree["params"]
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)
    finally:
        manager.close()


def model_of(recipe: Recipe, run: Path, vocabulary_size: int) -> ModelConfig:
    """The model that a recipe trains: its own, or that of its base.

    Args:
        vocabulary_size: the tokenizer's.
    """
    if not recipe.base:
        return recipe.model.resolved(vocabulary_size)
    return find(run / "base").config.trained_as(recipe.model)


def planned_model(recipe: Recipe, run: Path) -> ModelConfig:
    """The same before there is a tokenizer: with the size of vocabulary that the recipe asks for.

    Raises:
        UserError: the recipe leaves that size to its text.
    """
    from tpullm.tokenizer import load as load_tokenizer

    if (run / "tokenizer").is_dir():
        return model_of(recipe, run, load_tokenizer(run / "tokenizer").vocabulary_size)
    if not recipe.base and not (recipe.model.vocabulary_size or recipe.tokenizer.vocabulary_size):
        raise UserError("model.vocabulary_size: not known before `tpullm tokenize`; set it, or tokenize first")
    return model_of(recipe, run, recipe.tokenizer.vocabulary_size)


def load_params(model: Model, shapes: Tree) -> Tree:
    """The parameters of a model, into `shapes` (with shardings); the optimizer's state is not read."""
    manager = _reader(model.directory, item_names=("state",))
    try:
        restore_args = jax.tree.map(lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype), shapes)
        args = ocp.args.PyTreeRestore({"params": shapes}, restore_args={"params": restore_args}, partial_restore=True)
        return manager.restore(model.step, args=ocp.args.Composite(state=args))["state"]["params"]
    except (ValueError, KeyError, FileNotFoundError) as error:
        where = model.directory / str(model.step)
        raise UserError(f"{where}: the checkpoint can't be read ({_first_line(error)})") from error
    finally:
        manager.close()


def description(stage: str, config: ModelConfig, recipe: Any, inputs: dict) -> dict:
    """What a checkpoint says of itself."""
    return {
        "stage": stage,
        "model": dataclasses.asdict(config),
        "recipe": dataclasses.asdict(recipe),
        "inputs": inputs,
    }
