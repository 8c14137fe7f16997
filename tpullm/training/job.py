"""What one training is: its model, its settings, its data, and what it starts from.

The loop asks two protocols, which a verb gives to the job. `Answers` makes the batch of a step from answers of the
model that trains. `Measures` evaluates the model on tasks.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jax.sharding import Mesh

from tpullm.data.batch import Batch
from tpullm.data.prompts import PromptStream
from tpullm.data.stream import Stream
from tpullm.model.architecture import Tree
from tpullm.recipe.schema import AdapterConfig, ModelConfig, TrainConfig

if TYPE_CHECKING:  # it imports Orbax, a second that planning a step need not take
    from tpullm.formats.models import Model


class RollBack(Exception):
    """Too many steps in a row were skipped, up to `step`; `new_text` if it is their text and not the model."""

    def __init__(self, step: int, new_text: bool = False):
        super().__init__(step, new_text)
        self.step, self.new_text = step, new_text


class Answers(Protocol):
    """What answers the prompts of a step, if a stage learns from that: `rollouts.Rollouts`."""

    def batch(self, step: int, params: Tree, chosen: np.ndarray) -> tuple[Batch, dict | None]:
        """This host's rows of the batch of `step`, by the parameters before it, and figures for the log."""

    def evaluate(self, params: Tree) -> dict:
        """Held-out results, beside the losses."""

    def watch(self, row: dict) -> None:
        """Warn of what goes wrong, by a new row of the log."""


class Measures(Protocol):
    """What measures the model during training, if a recipe asks for it: `evaluation.while_training.WhileTraining`."""

    def due(self, step: int) -> bool:
        """Whether it measures after `step`."""

    def measure(self, step: int, params: Tree, between: Callable[[], None]) -> dict:
        """A row of the log, on every host the same.

        Args:
            between: called on all hosts after each batch of requests; what it raises ends the measurement.
        """


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything one training needs.

    Args:
        directory: the stage's folder.
        model: resolved config of the model.
        config: of the training.
        seed: of initialization and dropout.
        mesh: devices.
        evaluations: this host's rows of the held-out batches, by source.
        bytes_per_token: UTF-8 bytes of each token id, `[V]`, for bits per byte.
        stream: of this host's rows of the batches; of prompts, if there is `answers`. Each kind of tuning
            has its own.
        load: reads the parameters to start from if not from a checkpoint; None is fresh parameters. They become the
            state, so there is one copy.
        branch: a checkpoint of another training, whose whole state this one continues.
        differs: whether it continues it with other text or settings.
        adapter: what is trained instead of the parameters of `load`, which stay as they are.
        prepare: called before training, when the stage has its folder, with the number of batches that it reads or
            leaves out; again if it rolls back.
        begins: the parameters that the adapter begins with; None is fresh ones.
        answers: makes the batch of a step from its prompts and from the parameters before it.
        text: of this host's rows of old text beside the batches, which are then answers.
        share: of the text in the loss, of 1.
        measures: measures the model during training.
        before: the checkpoint that `load` reads: its stage, which is in the same run, its step, and
            the identity of the stage.
    """

    directory: Path
    model: ModelConfig
    config: TrainConfig
    seed: int
    mesh: Mesh
    evaluations: dict[str, Iterable[Batch]]
    bytes_per_token: np.ndarray
    stream: Stream | PromptStream | None = None
    load: Callable[[], Tree] | None = field(default=None, repr=False)
    branch: "Model | None" = None
    differs: bool = False
    adapter: AdapterConfig | None = None
    prepare: Callable[[int], None] | None = None
    begins: Tree = None
    answers: Answers | None = None
    text: Stream | None = None
    share: float = 0.0
    measures: Measures | None = None
    before: tuple[str, int, str] | None = None

    @property
    def first(self) -> int:
        """The step that the training begins at."""
        return self.branch.step if self.branch else 0

    @property
    def rows(self) -> int:
        """Rows of a step's batch, old text included."""
        return self.config.batch_size + (self.text.batch_size if self.text else 0)
