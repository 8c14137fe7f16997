"""Answers of the model that trains, where a teacher says at each place what it would have said (Agarwal et al. 2024).

So the model learns where its own texts lead it, and not only on texts of others. The teacher's parameters are in memory
beside those of the student.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tpullm.data import answer_rows
from tpullm.data.batch import Batch, TaughtBatch
from tpullm.inference.answering import OwnAnswers
from tpullm.mesh.rows import own_rows, put
from tpullm.training.evaluation import make_evaluation
from tpullm.training.teacher import Teacher

Tree = Any


@dataclasses.dataclass(frozen=True)
class TaughtAnswers(OwnAnswers):
    """Makes the batch of a step, and measures how far the model is from its teacher on its answers to held-out prompts.

    Args:
        teacher: who teaches.
    """

    teacher: Teacher
    _params: list[Tree] = dataclasses.field(default_factory=list)

    def batch(self, step: int, params: Tree, chosen: np.ndarray) -> tuple[TaughtBatch, dict[str, Any]]:
        """This host's rows of the batch of `step` (from 0), and the figures of its answers.

        Args:
            params: of the model before this step.
            chosen: the numbers of its prompts.
        """
        said = self.sampled(step, params, chosen)
        batch = self._taught([self.prompts.ids[number] for number in chosen], said)
        return batch, self.figures([ids for of_prompt in said for ids in of_prompt])

    def evaluate(self, params: Tree) -> dict[str, Any]:
        """`eval_divergence` a token of the likeliest answers to held-out prompts, and `eval_answers`, some of these."""
        if self.held_out is None:
            return {}
        (asked, said), each = self.to_held_out(params), self.settings.prompts
        options = (self.architecture, self.dtype, self.config.accumulation, self.config.loss_chunks)
        total = weight = 0.0
        for first in range(0, len(said), each):
            prompts = [self.held_out.ids[number] for number in asked[first : first + each]]
            batch = self._taught(prompts, [[ids] for ids in said[first : first + each]])
            sums = jax.device_get(make_evaluation(*options)(params, put(self.mesh, batch)))
            total, weight = total + float(sums.loss), weight + float(sums.weight)
        return {"eval_divergence": {"prompts": total / weight}, "eval_answers": self.shown(asked, said)}

    def watch(self, row: dict[str, Any]) -> None:
        """Nothing: the failures that are known are those of rewards."""

    def _taught(self, prompts: Sequence[list[int]], said: Sequence[Sequence[list[int]]]) -> TaughtBatch:
        """This host's rows of the batch of some answers."""
        if not self._params:
            self._params.append(self.teacher.load())
        nothing = np.zeros((len(said), len(said[0])), np.float32)
        options = (self.settings, self.config.sequence_length, self.possible_rows())
        whole, _ = answer_rows.laid_out(prompts, said, nothing, *options)
        own = own_rows(self.mesh, len(whole.inputs))
        names = [field.name for field in dataclasses.fields(Batch)]
        plain = Batch(*(getattr(whole, name)[own] for name in names))
        ids, logps = self.teacher.says(self._params[0], plain, branched=True)
        return TaughtBatch(**vars(plain), ids=ids[own], logps=logps[own], settings=self.teacher.settings, branched=True)
