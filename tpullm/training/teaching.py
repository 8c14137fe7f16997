"""A stage of tuning with a teacher: who the teacher is, and the batches with its probabilities of each next token.

The texts are documents, or answers of the model that trains (Agarwal et al. 2024). With answers, the model learns
where its own texts lead it. The teacher's parameters are in memory beside those of the student.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tpullm.data import answer_rows
from tpullm.data.batch import FIELDS, Batch, TaughtBatch
from tpullm.data.stream import EvaluationBatches
from tpullm.data.taught_rows import Kept, TaughtEvaluation, TaughtStream
from tpullm.data.token_store import TokenStore
from tpullm.data.tuning_data import TuningData
from tpullm.engine import session
from tpullm.model.architecture import Architecture, Tree
from tpullm.model.mesh_fit import check_fits
from tpullm.model.platform import compute_dtype
from tpullm.model.rows import own_rows, put_rows
from tpullm.recipe.schema import Recipe
from tpullm.run import stages
from tpullm.system.errors import UserError
from tpullm.tokenizer import Tokenizer, difference
from tpullm.training.objectives.distillation import Teacher, fill_from_teacher
from tpullm.training.rollouts import OwnAnswers
from tpullm.training.step import make_evaluation

FOLDER = "teacher"  # in a stage: what its teacher said of the text


@dataclasses.dataclass(frozen=True)
class TaughtAnswers(OwnAnswers):
    """Makes the batch of a step, and measures how far the model is from its teacher on its answers to held-out prompts.

    Args:
        teacher: who teaches.
    """

    teacher: Teacher

    @functools.cached_property
    def _params(self) -> Tree:
        """The teacher's, read when they are needed first."""
        return self.teacher.load()

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
            sums = jax.device_get(make_evaluation(*options)(params, put_rows(self.mesh, batch)))
            total, weight = total + float(sums.loss), weight + float(sums.weight)
        return {"eval_divergence": {"prompts": total / weight}, "eval_answers": self.shown(asked, said)}

    def watch(self, row: dict[str, Any]) -> None:
        """Nothing: the failures that are known are those of rewards."""

    def _taught(self, prompts: Sequence[list[int]], said: Sequence[Sequence[list[int]]]) -> TaughtBatch:
        """This host's rows of the batch of some answers."""
        nothing = np.zeros((len(said), len(said[0])), np.float32)
        options = (self.settings, self.config.sequence_length, self.possible_rows())
        whole, _ = answer_rows.answers_in_rows(prompts, said, nothing, *options)
        own = own_rows(self.mesh, len(whole.inputs))
        plain = Batch(*(getattr(whole, name)[own] for name in FIELDS))
        ids, logps = self.teacher.says(self._params, plain, branched=True)
        return TaughtBatch(**vars(plain), ids=ids[own], logps=logps[own], settings=self.teacher.settings, branched=True)


def teacher_of(
    recipe: Recipe, run: Path, name: str, tokenizer: Tokenizer, vocabulary: int, mesh: Mesh
) -> tuple[Teacher | None, dict[str, Any]]:
    """The teacher of the stage `name`, or None; and what is noted of it in the stage, by file.

    Args:
        tokenizer: the student's.
        vocabulary: rows of the student's table.

    Raises:
        UserError: it has other tokens than the student, reads less at once, or does not fit the mesh.
    """
    settings, where = recipe.finetune[name], f"finetune.{name}"
    if not settings.teacher.model:
        return None, {}
    path, identity = stages.teacher(recipe, run, name)
    notes: dict[str, Any] = {stages.TEACHER: {"model": settings.teacher.model, "identity": identity}}
    if stages.is_published(path):
        notes[stages.DIGESTS] = stages.digests(path, run / name, f"{where}.teacher.model")
    found, train = session.find_model(path), settings.train
    if other := difference(tokenizer, found.tokenizer):
        raise UserError(f"{where}.teacher.model: {path} has other tokens ({other}); a teacher needs the same ones")
    if train.sequence_length > found.config.context_length:
        raise UserError(
            f"{where}.teacher.model: {path} reads {found.config.context_length} tokens at once, and a row has "
            f"{train.sequence_length}; lower {where}.train.sequence_length"
        )
    architecture, dtype = Architecture(found.config), compute_dtype(train.compute)
    check_fits(architecture, train, tokenizer.needed_size, mesh, f"{where}.train", sizes_given=True)
    load = partial(found.params, architecture, session.parameter_targets(architecture, mesh, dtype), False)
    return Teacher(settings.teacher, architecture, load, mesh, dtype, vocabulary, train.loss_chunks), notes


def taught_batches(
    recipe: Recipe, run: Path, name: str, data: TuningData, teacher: Teacher
) -> tuple[TaughtStream, dict[str, TaughtEvaluation], Callable[[int], None]]:
    """The batches of the stage `name`, its held-out ones, and what has the teacher say all that so many batches need.

    What it says is kept in files of a micro-batch each, since it computes in these.
    """
    settings, folder = recipe.finetune[name], run / name / FOLDER
    train, length = settings.train, settings.train.sequence_length
    each = train.batch_size // train.accumulation
    rows, own = own_rows(teacher.mesh, train.batch_size), own_rows(teacher.mesh, each)
    given = data.read, data.weights, train.batch_size, length, recipe.seed, rows, f"finetune.{name}"
    stream = TaughtStream(*given, settings=settings.teacher, folder=folder / "read")
    evaluations, fixed, stores = {}, [], {source: run / "tokens" / source / "held_out" for source in settings.documents}
    kept_texts = {source: TokenStore(path) for source, path in stores.items() if path.exists()}
    for source, documents in (data.held_out | kept_texts).items():
        files = list(EvaluationBatches(documents, each, length, train.evaluate_rows, own))
        kept = Kept(folder / "held_out" / source, len(files) * each, each)
        batches = EvaluationBatches(documents, train.batch_size, length, train.evaluate_rows, rows)
        evaluations[source] = TaughtEvaluation(batches, kept, train.batch_size, rows, settings.teacher)
        fixed.append((kept, files.__getitem__))
    return stream, evaluations, lambda batches: fill_from_teacher(teacher, [stream.keep(batches, each, own), *fixed])
