"""Where a training resumes whose recipe may have changed: from which of its checkpoints, or from the beginning.

The number of steps decides the learning rate of every step. A checkpoint is on the way of another number of steps if
all learning rates up to it are the same: then the result is that of an uninterrupted training, bit for bit. With `wsd`
such a checkpoint stands where the decay begins, and is kept.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.checkpoint import checksums
from tpullm.checkpoint.checksums import CorruptSave
from tpullm.checkpoint.models import Model, described, steps
from tpullm.cluster import hosts
from tpullm.log import say, warn
from tpullm.recipe.schema import TrainConfig
from tpullm.run import manifest, stages
from tpullm.training.metrics import FILE
from tpullm.training.optimizer.chain import learning_rates


@dataclass(frozen=True)
class Start:
    """Where a training starts.

    Args:
        step: of the checkpoint that it resumes from; 0 is the beginning.
        horizons: as of `checkpoint.models.Model`, for the checkpoints to come.
    """

    step: int
    horizons: list[list[int]]


def start(stage: Path, inputs: dict, config: TrainConfig, first: int = 0) -> Start:
    """Where a training starts, on every host the same; host 0 makes room for it.

    A checkpoint that is not as it was written is moved to `RUN/replaced`, and the next older one is taken.

    Args:
        stage: its folder.
        inputs: of the stage.
        first: the step that the training begins at, with the state of another one.

    Raises:
        CorruptSave: no checkpoint is left.
    """
    anew = Start(0, [[first, config.steps]])
    while True:
        ask = lambda: asdict(_start(stage, inputs, config, anew))  # noqa: E731
        chosen = Start(**hosts.broadcast(f"where {stage.name} starts", ask))
        if not chosen.step:
            return chosen
        try:
            checksums.verify_together(stage / "checkpoints" / str(chosen.step))
            return chosen
        except CorruptSave as error:
            hosts.on_first(f"{stage.name} without a corrupt save", _set_corrupt_aside, stage, chosen.step, error)


def _start(stage: Path, inputs: dict, config: TrainConfig, anew: Start) -> Start:
    before = stages.started(stage)
    saved = steps(stage / "checkpoints") if (stage / "checkpoints").is_dir() else []
    if not saved or before is None or not manifest.differ_in_length_alone(before, inputs):
        return anew
    models = _described(stage)
    saved = [model.step for model in reversed(models)]
    if models[0].horizons[-1][1] == config.steps:  # nothing has changed since
        return Start(saved[-1], models[0].horizons)
    for model in models:
        if model.step <= config.steps and _rates(config, anew.horizons, model.step) == _rates_of(model, config):
            _keep_later(stage, [step for step in saved if step > model.step])
            say(f"{stage.name}: resumes at step {model.step:,}: so far as in a training of {config.steps:,} steps")
            return Start(model.step, anew.horizons)
    if saved[-1] > config.steps:
        stages.set_aside(stage)
        return anew
    return _on_another_schedule(stage.name, models[0], config)


def _described(stage: Path) -> list[Model]:
    """The checkpoints, the newest first; those whose description is corrupt are set aside."""
    found = []
    for step in reversed(steps(stage / "checkpoints")):
        try:
            found.append(described(stage / "checkpoints", step))
        except CorruptSave as error:
            _set_corrupt_aside(stage, step, error)
    return found


def _set_corrupt_aside(stage: Path, step: int, error: CorruptSave) -> None:
    """Move a checkpoint away, unless it is the only one: then its error ends the training."""
    if steps(stage / "checkpoints") == [step]:
        raise CorruptSave(f"{error}; no other is left, so move it away to train {stage.name} from the beginning")
    kept = stages.replaced(stage) / "corrupt" / str(step)
    storage.move_tree(stage / "checkpoints" / str(step), kept)
    warn(f"{error}: {stage.name} resumes from an older one (the corrupt one is kept in {kept})")


def _on_another_schedule(name: str, model: Model, config: TrainConfig) -> Start:
    """The last checkpoint, which another schedule has led to."""
    horizons = [*model.horizons, [model.step, config.steps]]
    of_old, of_new = _rates_of(model, config)[-1], _rates(config, [[0, config.steps]], config.steps)
    then = of_new[min(model.step, config.steps - 1)]
    warn(
        f"{name}: resumes at step {model.step:,} of {config.steps:,}, and its learning rate jumps from {of_old:.2g} to "
        f"{then:.2g}. The result is not that of {config.steps:,} steps from the beginning; with `schedule: wsd` it is"
    )
    return Start(model.step, horizons)


def _rates_of(model: Model, config: TrainConfig) -> list[float]:
    """The learning rates that have led to a checkpoint."""
    return _rates(config, model.horizons, model.step)


def _rates(config: TrainConfig, horizons: Sequence[Sequence[int]], until: int) -> list[float]:
    """The learning rate of each step before `until`."""
    firsts = [first for first, _ in horizons] + [until]
    parts = [
        learning_rates(config.optimizer, length)[first:last]
        for (first, length), last in zip(horizons, firsts[1:], strict=True)
    ]
    return np.concatenate(parts).tolist()


def _keep_later(stage: Path, later: Sequence[int]) -> None:
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
