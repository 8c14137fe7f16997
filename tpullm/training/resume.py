"""Where a training starts: from one of its checkpoints, from a checkpoint of another training, or at the beginning.

A training whose recipe has changed resumes where it can. The number of steps decides the learning rate of every step,
and where the phases of the mixture begin. A checkpoint is on the way of another number of steps if all learning rates
up to it and all phases before it are the same: then the result is that of an uninterrupted training, bit for bit. With
`wsd` such a checkpoint stands where the decay begins, and is kept.

A training that branches off another one has its whole state, or its parameters alone. With the whole state the same
settings give the same bits, a `wsd` training can decay twice from one step, and a learning rate can be another one from
a step on. With the parameters alone it starts at step 0, and the vocabulary may have grown.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpullm.formats import checkpoints
from tpullm.formats.checkpoints import CorruptSave
from tpullm.formats.models import Model, check_shape, described, load_params, steps
from tpullm.model.architecture import Architecture, Tree
from tpullm.recipe.schema import ModelConfig, Recipe, TrainConfig
from tpullm.run import manifest, stages
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.log import say, warn
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer import load as load_tokenizer
from tpullm.training.job import RollBack
from tpullm.training.metrics import FILE
from tpullm.training.optimizer.chain import learning_rates


@dataclass(frozen=True)
class Start:
    """Where a training starts.

    Args:
        step: of the checkpoint that it resumes from; 0 is the beginning.
        horizons, left_out, opened: as of `formats.models.Model`, for the checkpoints to come.
    """

    step: int
    horizons: list[list[int]]
    left_out: list[list[int]] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)

    @property
    def past(self) -> dict[str, list]:
        """What the checkpoints to come say of it."""
        return {name: value for name, value in vars(self).items() if name != "step"}


def start_of_training(stage: Path, inputs: dict, config: TrainConfig, first: int = 0, differs: bool = False) -> Start:
    """Where a training starts, on every host the same; host 0 makes room for it.

    A checkpoint that is not as it was written is moved to `RUN/replaced`, and the next older one is taken.

    Args:
        stage: its folder.
        inputs: of the stage.
        first: the step that the training begins at, with the state of another one.
        differs: whether its text or its settings are not those of that other one.

    Raises:
        CorruptSave: no checkpoint is left.
    """
    anew = Start(0, [[first, config.steps]], opened=[first] * differs)
    while True:
        chosen = decide_on_host_0(f"where {stage.name} starts", lambda: _start_from_saves(stage, inputs, config, anew))
        if not chosen.step:
            return chosen
        try:
            checkpoints.verify_together(stage / "checkpoints" / str(chosen.step))
            return chosen
        except CorruptSave as error:
            hosts.on_first(f"{stage.name} without a corrupt save", _set_corrupt_aside, stage, chosen.step, error)


def decide_on_host_0(what: str, ask: Callable[[], Start]) -> Start:
    """What host 0 decides, on every host."""
    return Start(**hosts.broadcast(what, lambda: asdict(ask())))


def _start_from_saves(stage: Path, inputs: dict, config: TrainConfig, anew: Start) -> Start:
    before = stages.started(stage)
    saved = steps(stage / "checkpoints") if (stage / "checkpoints").is_dir() else []
    if not saved or before is None or not manifest.differ_in_length_alone(before, inputs):
        return anew
    models = []  # the newest first
    for step in reversed(saved):
        try:
            models.append(described(stage / "checkpoints", step))
        except CorruptSave as error:
            _set_corrupt_aside(stage, step, error)
    last, length = models[0], config.steps
    if last.horizons[-1][1] == length:  # nothing has changed since
        return Start(last.step, last.horizons, last.left_out, last.opened)
    for model in models:
        same_rates = _rates_until(config, anew.horizons, model.step) == _rates_until(config, model.horizons, model.step)
        if model.step <= length and same_rates and same_phases(inputs, model, length):
            _keep_later_checkpoints(stage, [later.step for later in reversed(models) if later.step > model.step])
            say(f"{stage.name}: resumes at step {model.step:,}: so far as in a training of {length:,} steps")
            return Start(model.step, anew.horizons, model.left_out, model.opened)
    if last.step > length:
        stages.set_aside(stage)
        return anew
    # The last checkpoint, which another schedule has led to.
    of_old = _rates_until(config, last.horizons, last.step)[-1]
    then = _rates_until(config, [[0, length]], length)[min(last.step, length - 1)]
    warn(
        f"{stage.name}: resumes at step {last.step:,} of {length:,}, and its learning rate jumps from {of_old:.2g} to "
        f"{then:.2g}. The result is not that of {length:,} steps from the beginning; with `schedule: wsd` it is"
    )
    # Another learning rate has other losses and norms.
    return Start(last.step, [*last.horizons, [last.step, length]], last.left_out, [*last.opened, last.step])


def _set_corrupt_aside(stage: Path, step: int, error: CorruptSave) -> None:
    """Move a checkpoint away, unless it is the only one: then its error ends the training."""
    if steps(stage / "checkpoints") == [step]:
        raise CorruptSave(f"{error}; no other is left, so move it away to train {stage.name} from the beginning")
    kept = stages.replaced(stage) / "corrupt" / str(step)
    storage.move_tree(stage / "checkpoints" / str(step), kept)
    warn(f"{error}: {stage.name} resumes from an older one (the corrupt one is kept in {kept})")


def rolled_back(stage: Path, before: Start, bad: RollBack, config: TrainConfig, first: int = 0) -> Start:
    """Where a training starts again whose steps up to `bad.step` were skipped; host 0 alone asks.

    It resumes from the last checkpoint of `checkpoint.every_steps` before them, or from the beginning, and leaves out
    the batches since then. Checkpoints at other times depend on the clock, and the result must not. New text is not
    left out: the training learns it from the first of those steps on.

    Args:
        before: where it started the last time.
        first: the step that the training begins at, with the state of another one.

    Raises:
        UserError: it has rolled back as often as it may.
    """
    skip, often, folder, step = config.optimizer.skip, len(before.left_out), stage / "checkpoints", bad.step
    why = f"{stage.name}: {skip.patience} steps in a row up to step {step:,} were skipped"
    if often == skip.rollbacks and not bad.new_text:
        raise UserError(
            f"{why}, and it has rolled back {often} times; `tpullm data` shows their documents; lower "
            "optimizer.peak_lr, or raise optimizer.skip.deviations if their losses are right"
        )
    every, saved = config.checkpoint.every_steps, steps(folder)
    regular = [at for at in saved if not every or at % every == 0]
    # Without one before the bad steps, the oldest: they changed nothing, so it has the state from before them.
    good = [at for at in regular if at <= step - skip.patience] or regular[:1]
    target = good[-1] if good else first
    _keep_later_checkpoints(stage, [at for at in saved if at > target])
    horizons = described(folder, target).horizons if good else [[first, config.steps]]
    if bad.new_text:
        opens = max(target, step - skip.patience)
        warn(
            f"{why}, and the model is as good as before: their text is new. It goes back to step {target:,}, to learn "
            f"the text from step {opens + 1:,} on"
        )
        return Start(target if good else 0, horizons, before.left_out, [*before.opened, opens])
    warn(
        f"{why}: rolls back to step {target:,} and leaves out the {step - target:,} batches since then "
        f"({often + 1} of at most {skip.rollbacks} times)"
    )
    left_out = [*before.left_out, [target, step - target]]
    return Start(target if good else 0, horizons, left_out, [step for step in before.opened if step <= target])


def same_phases(inputs: dict, model: Model, steps: int) -> bool:
    """Whether the batches that have led to a checkpoint are those of a training of `steps` steps."""
    starts = [phase["start"] for phase in inputs["config"].get("mixture", {}).get("phases", [])]
    read = model.step + sum(count for _, count in model.left_out)
    begun = lambda length: [first for start in starts if (first := round(start * length)) < read]  # noqa: E731
    return all(begun(length) == begun(steps) for _, length in model.horizons)


def _rates_until(config: TrainConfig, horizons: Sequence[Sequence[int]], until: int) -> list[float]:
    """The learning rate of each step before `until`, of a training with these horizons."""
    ends = [first for first, _ in horizons[1:]] + [until]
    each = zip(horizons, ends, strict=True)
    return [rate for (first, to), end in each for rate in learning_rates(config.optimizer, to)[first:end].tolist()]


def _keep_later_checkpoints(stage: Path, later: Sequence[int]) -> None:
    """Move checkpoints that are not on the way to `RUN/replaced`, as a stage that can be used."""
    if not later:
        return
    kept = stages.replaced(stage)
    with storage.atomic_directory(kept / "tokenizer") as temporary:
        for file in storage.local_copy(stage / "tokenizer").iterdir():
            storage.copy(file, temporary / file.name)
    for name in (FILE, stages.STARTED, manifest.FILE):
        if (stage / name).exists():
            storage.copy(stage / name, kept / name)
    for step in later:
        storage.move_tree(stage / "checkpoints" / str(step), kept / "checkpoints" / str(step))
    say(f"{stage.name}: its later checkpoints are kept in {kept}")


def pretraining_origin(recipe: Recipe, tokenizer: Tokenizer, model: ModelConfig) -> tuple[Model, bool]:
    """The checkpoint that pretraining starts from, and whether the recipe differs from its own in more than length.

    On all hosts together.

    Args:
        tokenizer: of the training that starts.
        model: that it trains.

    Raises:
        UserError: the checkpoint does not fit.
        CorruptSave: it is not as it was written.
    """
    path = storage.path(recipe.branch)
    found = described(path.parent, int(path.name))
    checkpoints.verify_together(path)
    if recipe.branch_state == "parameters":
        check_shape(found, model, but="vocabulary_size")
        return found, False
    check_shape(found, model)
    if found.adapter:
        raise UserError(f"branch: {path} has an adapter alone; set branch_state to parameters, to merge it")
    if found.stage == "base":
        raise UserError(f"branch: {path} has parameters alone; set branch_state to parameters")
    before = found.recipe["pretrain"] if found.stage == "pretrain" else found.recipe["finetune"][found.stage]["train"]
    for key in ("kind", "moments"):
        has, asks = before["optimizer"][key], getattr(recipe.pretrain.optimizer, key)
        if has != asks:
            what = f"{path} has the state of {has}, the recipe says {asks}"
            raise UserError(f"pretrain.optimizer.{key}: {what}; set branch_state to parameters")
    if recipe.pretrain.steps <= found.step:
        raise UserError(f"pretrain.steps: {path} has done {found.step:,}; set more, or branch_state to parameters")
    size = model.vocabulary_size
    if (embedding_row_sources(load_tokenizer(found.tokenizer_path), tokenizer, size, size) != np.arange(size)).any():
        raise UserError(f"branch: {path} was trained with another tokenizer; set branch_state to parameters")
    keys = ("seed", "text", "corpus", "tokenizer", "mixture", "model", "pretrain")
    mine, theirs = ({key: of[key] for key in keys} for of in (manifest.plain(asdict(recipe)), found.recipe))
    same = mine | {"pretrain": {**mine["pretrain"], "steps": theirs["pretrain"]["steps"]}} == theirs
    return found, found.stage != "pretrain" or not same


def parameters_for_vocabulary(found: Model, tokenizer: Tokenizer, architecture: Architecture, mesh: Mesh) -> Tree:
    """The parameters of a checkpoint for a model with another vocabulary; rows go where their tokens went.

    The row of a new token is the mean of all rows. By Jensen's inequality its probability is at most the mean one, so
    no loss rises by more than log(1 + new / old tokens) (Hewitt 2021, Initializing New Word Embeddings). A fresh row
    has a logit near 0, where a trained model gives most tokens far lower ones: it would take most of the probability.

    Args:
        tokenizer: of the training that starts.
        architecture: of its model.
    """
    before, old = Architecture(found.config), load_tokenizer(found.tokenizer_path)
    rows = embedding_row_sources(old, tokenizer, found.config.vocabulary_size, architecture.config.vocabulary_size)
    if (rows == np.arange(len(rows))).all() and len(rows) == found.config.vocabulary_size:
        return load_params(found, architecture.placed(mesh))
    say(f"branch: {(rows < 0).sum():,} of {len(rows):,} tokens are new; their embeddings are the mean of the others'")
    everywhere = NamedSharding(mesh, PartitionSpec())

    def target(axes, leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere) if "vocabulary" in axes else leaf

    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    targets = jax.tree.map(target, before.axes, before.placed(mesh), is_leaf=is_axes)
    loaded, used = load_params(found, targets), min(old.vocabulary_size, found.config.vocabulary_size)

    def grow(axes, leaf, wanted):
        if "vocabulary" not in axes:
            return leaf
        axis = axes.index("vocabulary")
        make = jax.jit(lambda leaf: reordered_rows(leaf, rows, used, axis), out_shardings=everywhere)
        return jax.device_put(make(leaf), wanted.sharding)

    with jax.set_mesh(mesh):
        return jax.tree.map(grow, architecture.axes, loaded, architecture.placed(mesh), is_leaf=is_axes)


def reordered_rows(leaf: jax.Array, rows: np.ndarray, used: int, axis: int) -> jax.Array:
    """The rows of an array in another order; -1 stands for the mean of the first `used` ones."""
    leaf = jnp.moveaxis(leaf, axis, 0)
    mean = jnp.mean(leaf[:used].astype(jnp.float32), axis=0).astype(leaf.dtype)
    known = (rows >= 0).reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.moveaxis(jnp.where(known, leaf[np.maximum(rows, 0)], mean), 0, axis)


def embedding_row_sources(old: Tokenizer, new: Tokenizer, rows_before: int, rows: int) -> np.ndarray:
    """For each row of an embedding the row that its token had before, or -1, `[rows]`.

    A row without a token, which pads the embedding, stays where it is.
    """
    identity = lambda tokenizer, token: (tokenizer.piece(token), tokenizer.bytes_of(token))  # noqa: E731
    before = [identity(old, token) for token in range(min(old.vocabulary_size, rows_before))]
    place = {known: row for row, known in reversed(list(enumerate(before)))}
    found = np.full(rows, -1)
    for row in range(rows):
        if row >= new.vocabulary_size:
            found[row] = row if len(before) <= row < rows_before else -1
        else:
            known = identity(new, row)
            found[row] = row if before[row : row + 1] == [known] else place.get(known, -1)
    return found
