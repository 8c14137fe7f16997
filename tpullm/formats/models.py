"""Trained models on disk: what a MODEL argument means, and how the parameters are read."""

import difflib
import logging
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from tpullm.formats import checkpoints, hub
from tpullm.formats.checkpoints import CorruptSave, Tree, first_line, readable, reader, restore
from tpullm.formats.huggingface import tensors
from tpullm.formats.published import published
from tpullm.model import quantized
from tpullm.model.adapter import NAME, merge_adapters
from tpullm.model.quantized import is_quantized
from tpullm.recipe.schema import ALONE, AdapterConfig, ModelConfig, Recipe
from tpullm.run import manifest
from tpullm.run.stages import base_path
from tpullm.run.stages import tuned as stages_of_tuning
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.log import warn
from tpullm.tokenizer import Tokenizer

FOUNDATIONS = ("pretrain", "base")  # the stages that tuning may start from


@dataclass(frozen=True)
class Model:
    """A trained model on disk.

    Args:
        directory: `STAGE/checkpoints`.
        step: of the checkpoint.
        run: the run directory.
        stage: the name of a stage of tuning, `pretrain`, or `base` if it was imported.
        config: of the model.
        recipe: the whole recipe, as a dict.
        horizons: pairs `[first, steps]`, of a training: from step `first` on, its learning rates were those of a
            schedule over `steps` steps.
        left_out: pairs `[step, count]`, of a training that rolled back: before step `step` it left out `count` batches.
        opened: the steps after which a training found new text, so that it skipped no outliers for a while.
        adapter: if the checkpoint holds an adapter alone, its settings.
        before: the checkpoint whose parameters it is an adapter of: a stage of the same run, a step, and the identity
            of the stage.
    """

    directory: Path
    step: int
    run: Path
    stage: str
    config: ModelConfig
    recipe: dict
    horizons: list[list[int]]
    left_out: list[list[int]]
    opened: list[int]
    adapter: AdapterConfig | None = None
    before: tuple[str, int, str] | None = None

    @property
    def base(self) -> "Model":
        """The model that this is an adapter of.

        Raises:
            UserError: it is gone, or was made again since, so the adapter would be one of other parameters.
        """
        stage, step, identity = self.before
        folder, made = self.run / stage / "checkpoints", self.run / stage / manifest.FILE
        if not folder.is_dir() or not made.exists() or manifest.finished_identity(self.run / stage) != identity:
            raise UserError(
                f"{self.directory.parent}: is an adapter of {self.run / stage} as it was, and that was made again or "
                "is gone; tune again, or move the old one back from RUN/replaced"
            )
        return described(folder, step)

    @property
    def tokenizer_path(self) -> Path:
        """The folder of the tokenizer that the model was trained with."""
        return self.directory.parent / "tokenizer"

    def talks(self, tokenizer: Tokenizer) -> bool:
        """Whether it was tuned on conversations: by this program, or by its publisher if it has a chat template."""
        stages = list(self.recipe.get("finetune") or {})
        learned = stages[: stages.index(self.stage) + 1] if self.stage in stages else []
        settings = [self.recipe["finetune"][stage] for stage in learned]
        taught = any(stage.get(kind) for stage in settings for kind in ("conversations", *ALONE))
        return taught or bool(self.recipe.get("base")) and self.stage != "pretrain" and tokenizer.has_template


def find(model: str | Path, tuned: bool = True) -> Model:
    """The model of a MODEL argument: a run directory (its last finished stage), a stage, or one checkpoint.

    Args:
        tuned: whether it may be the model of a stage of tuning, if it is a run directory.

    Of a run directory or a stage it is the newest checkpoint that is whole. With several hosts, all of them call this.

    Raises:
        UserError: it is none of these, or holds no finished checkpoint.
        CorruptSave: the one checkpoint is not as it was written, or none of several is.
    """
    path = storage.path(model)
    if not path.is_dir():
        hub.located(str(model))
        near = difflib.get_close_matches(path.name, storage.names(path.parent), 1)
        raise UserError(
            f"{path}: no such file or folder{f', did you mean {near[0]}?' if near else ''}; MODEL is a run directory, "
            "one of its stages or checkpoints, a folder in the format of Hugging Face, a GGUF file, or OWNER/NAME of "
            "the Hugging Face hub"
        )
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return _newest_intact_checkpoint(path.parent, [int(path.name)])
    if (path / "checkpoints").is_dir():
        return _newest_intact_checkpoint(path / "checkpoints", steps(path / "checkpoints"))
    stages = [*(reversed(stages_of_tuning(path)) if tuned else ()), *FOUNDATIONS]
    for stage in (*filter(partial(_is_current, path), stages), *reversed(stages)):
        if (path / stage / "checkpoints").is_dir() and (found := steps(path / stage / "checkpoints")):
            return _newest_intact_checkpoint(path / stage / "checkpoints", found)
    if (path / "recipe.yaml").is_file():
        raise UserError(f"{path}: this run has no trained model yet; train one: tpullm run {model}")
    raise UserError(f"{path}: holds no trained model; MODEL is a run directory, one of its stages, or one checkpoint")


def _newest_intact_checkpoint(directory: Path, found: list[int]) -> Model:
    """The newest of some checkpoints that is as it was written."""
    for step in reversed(found):
        try:
            model = described(directory, step)
            _verify_checkpoint(model)
            return model
        except CorruptSave as error:
            if step == found[0]:
                raise CorruptSave(f"{error}; use another one") from error
            if hosts.is_first():
                warn(f"{error}: an older one is used")
    raise UserError(f"{directory}: no finished checkpoint here")


def made_by(stage: Path) -> Model:
    """The model that a finished stage has made, for the stage that starts from it; on all hosts together.

    Raises:
        CorruptSave: it is not as it was written. An older checkpoint would be another model than the stage's.
    """
    model = described(stage / "checkpoints")
    try:
        _verify_checkpoint(model)
    except CorruptSave as error:
        again = stage if stage.name == "base" else stage / manifest.FILE
        raise CorruptSave(f"{error}; remove {again}, and `tpullm run` makes it again") from error
    return model


def _verify_checkpoint(model: Model) -> None:
    """Raise `CorruptSave` if the checkpoint, or one that it is an adapter of, is not as it was written."""
    checkpoints.verify_together(model.directory / str(model.step))
    if model.adapter:
        _verify_checkpoint(model.base)


def _is_current(run: Path, stage: str) -> bool:
    """Whether a stage is finished, and was made from the earlier stages as they are now."""
    if not (run / stage / manifest.FILE).exists():
        return False
    upstream = storage.read_json(run / stage / manifest.FILE)["inputs"]["upstream"]
    earlier = [name for name in (*stages_of_tuning(run), *FOUNDATIONS) if name in upstream]
    return all(_is_current(run, name) and upstream[name] == manifest.finished_identity(run / name) for name in earlier)


def steps(directory: Path) -> list[int]:
    """The steps of the finished checkpoints in `STAGE/checkpoints`. On `gs://` Orbax marks each with a file."""
    remote, found = storage.is_remote(directory), [path for path in directory.iterdir() if path.name.isdigit()]
    return sorted(int(path.name) for path in found if not remote or (path / checkpoints.COMMITTED).exists())


def left_out(stage: Path) -> list[list[int]]:
    """What the last checkpoint of a stage says of it (see `Model`); nothing if there is none."""
    folder = stage / "checkpoints"
    return described(folder).left_out if folder.is_dir() and steps(folder) else []


def described(directory: Path, step: int | None = None) -> Model:
    """A checkpoint by its description alone: its parameters may be corrupt.

    Args:
        directory: `STAGE/checkpoints`.
        step: of the checkpoint; None is the newest.

    Raises:
        UserError: there is no finished checkpoint, or it is of another version of tpullm.
        CorruptSave: the description can't be read.
    """
    found = steps(directory)
    if not found or (step is not None and step not in found):
        raise UserError(f"{directory}: no finished checkpoint{f' of step {step}' if step is not None else ''} here")
    step = found[-1] if step is None else step
    logging.getLogger("absl").setLevel(logging.CRITICAL + 1)
    save = directory / str(step)
    with reader(directory) as manager, readable(save, "not a checkpoint of tpullm"):
        described = manager.restore(step, args=ocp.args.Composite(description=ocp.args.JsonRestore()))["description"]
    try:
        config = ModelConfig.from_json(described["model"])
    except (TypeError, KeyError) as error:
        raise UserError(f"{save}: written by another version of tpullm ({first_line(error)}); use that one") from error
    run = directory.parent.parent
    said = described["recipe"], described["horizons"], described["left_out"], described.get("opened", [])
    adapter, before = described.get("adapter"), described.get("before")
    adapter = adapter and AdapterConfig(**adapter | {"targets": tuple(adapter["targets"])})
    return Model(directory, step, run, directory.parent.name, config, *said, adapter, before and tuple(before))


def stored_params(model: Model) -> Tree:
    """Shapes and types of the parameters of a model; of a model with an adapter, those of its base."""
    return stored(model) if model.adapter is None else stored_params(model.base)


def stored(model: Model) -> Tree:
    """Shapes and types of the parameters in the checkpoint."""
    handlers = {"state": ocp.PyTreeCheckpointHandler()}  # without a handler, Orbax has no metadata of an item
    with reader(model.directory, item_names=("state",), item_handlers=handlers) as manager:
        saved = manager.item_metadata(model.step)["state"].tree["params"]
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)


def model_of(recipe: Recipe, run: Path, vocabulary_size: int) -> ModelConfig:
    """The config of the model that a recipe trains: its own, or that of its base.

    Args:
        vocabulary_size: the tokenizer's.
    """
    if not recipe.base:
        return recipe.model.resolved(vocabulary_size)
    return described(run / "base" / "checkpoints").config.trained_as(recipe.model)


def planned_model(recipe: Recipe, run: Path) -> ModelConfig:
    """The same before there is a tokenizer, with the vocabulary size of the recipe, and before the base is imported.

    Raises:
        UserError: the recipe leaves that size to the tokenizer.
    """
    from tpullm.tokenizer import load as load_tokenizer

    if (run / "tokenizer").is_dir():
        return model_of(recipe, run, load_tokenizer(run / "tokenizer").vocabulary_size)
    if recipe.base and not (run / "base" / "checkpoints").is_dir() and not storage.is_remote(recipe.base):
        return published(base_path(recipe.base)).config.trained_as(recipe.model)
    if not recipe.base and not (recipe.model.vocabulary_size or recipe.tokenizer.vocabulary_size):
        raise UserError("model.vocabulary_size: not known before `tpullm tokenize`; set it, or tokenize first")
    return model_of(recipe, run, recipe.tokenizer.vocabulary_size)


def check_shape(base: Model, wanted: ModelConfig, but: str = "") -> None:
    """`UserError` if the checkpoint's model is not the recipe's (how it is trained may differ: `trained_as`).

    Args:
        but: a key that may differ.
    """
    has, asks = asdict(base.config.trained_as(wanted)), asdict(wanted)
    for key in has:
        if has[key] != asks[key] and key != but:
            raise UserError(
                f"model.{key}: the checkpoint {base.directory / str(base.step)} has {has[key]}, "
                f"the recipe says {asks[key]}; pretrain again, or set model.{key} to {has[key]}"
            )


def load_state(model: Model, target: Tree) -> Tree:
    """The whole state of a training, with the shapes, types and shardings of `target`."""
    with reader(model.directory) as manager:
        return restore(manager, model.step, target)


def load_params(model: Model, shapes: Tree) -> Tree:
    """The parameters of a model, by the shapes, types and shardings of `shapes`; no optimizer state is read.

    Of a model with an adapter, those of its base with the adapter merged into them. If its base was quantized, that is
    the base that it was trained with.

    Args:
        shapes: a `Quantized` is made of the matrix when that is read, one matrix at a time.
    """
    if any(map(is_quantized, jax.tree.leaves(shapes, is_leaf=is_quantized))):
        return _quantized_params(model, shapes)
    if model.adapter is None:
        return _restored_params(model, shapes)
    adapters, kind = load_adapter(model, shapes), model.adapter.quantize_base
    # In float32 until they are merged: a sum that is rounded twice would be another model than the exported one.
    beside = {_adapted_matrix(name) for name in tensors.flat(adapters)}
    flat = tensors.flat(shapes)
    wanted = tensors.nested({name: _as_float32(leaf) if name in beside else leaf for name, leaf in flat.items()})
    wanted = quantized.change_each_matrix(wanted, lambda leaf, axis: _as_float32(leaf)) if kind else wanted
    params = load_params(model.base, wanted)
    leaves = jax.tree.leaves(shapes)
    with jax.set_mesh(leaves[0].sharding.mesh):
        return _merge_adapters(params, adapters, model.adapter.scale, kind, tuple(leaf.dtype for leaf in leaves))


@partial(jax.jit, static_argnums=(2, 3, 4), donate_argnums=0)
def _merge_adapters(params: Tree, adapters: Tree, scale: float, kind: str, dtypes: tuple) -> Tree:
    leaves, structure = jax.tree.flatten(merge_adapters(quantized.rounded_matrices(params, kind), adapters, scale))
    return structure.unflatten(leaf.astype(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True))


def _quantized_params(model: Model, shapes: Tree) -> Tree:
    """The parameters, some of them quantized. These are read first, with one whole matrix at a time in memory."""
    wanted = tensors.flat(shapes)
    matrices = {name: target for name, target in wanted.items() if is_quantized(target)}
    # Of the numbers in the checkpoint, whatever the type of the matmuls is: then the codes are always the same.
    types = {name: leaf.dtype for name, leaf in tensors.flat(stored(model)).items()} if model.adapter is None else {}
    found = {}
    for name, target in matrices.items():
        sharding = target.codes.sharding
        whole = jax.ShapeDtypeStruct(target.shape, types.get(name, jax.numpy.float32), sharding=sharding)
        array = tensors.flat(load_params(model, tensors.nested({name: whole})))[name]
        with jax.set_mesh(sharding.mesh):
            found[name] = jax.block_until_ready(quantized.quantize(array, target.kind, target.axis))
    others = {name: target for name, target in wanted.items() if name not in matrices}
    found |= tensors.flat(load_params(model, tensors.nested(others)))
    return tensors.nested({name: found[name] for name in wanted})


def _adapted_matrix(name: str) -> str:
    """The flat name of the matrix that a parameter of an adapter stands beside."""
    return name.partition(f".{NAME}.")[0] + ".weight"


def _as_float32(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jax.numpy.float32, sharding=leaf.sharding)


def load_adapter(model: Model, shapes: Tree) -> Tree:
    """The adapters of the parameters in `shapes`, whole on each device."""
    matrices, leaves = tensors.flat(shapes), tensors.flat(stored(model))
    whole = NamedSharding(jax.tree.leaves(shapes)[0].sharding.mesh, PartitionSpec())
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
        for name, leaf in leaves.items()
        if _adapted_matrix(name) in matrices
    }
    return _restored_params(model, tensors.nested(wanted))


def _restored_params(model: Model, shapes: Tree) -> Tree:
    if not shapes:
        return {}
    restore_args = jax.tree.map(lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype), shapes)
    args = ocp.args.PyTreeRestore({"params": shapes}, restore_args={"params": restore_args}, partial_restore=True)
    with reader(model.directory, item_names=("state",)) as manager, readable(model.directory / str(model.step)):
        return manager.restore(model.step, args=ocp.args.Composite(state=args))["state"]["params"]
