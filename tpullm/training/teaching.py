"""A stage of tuning with a teacher: who the teacher is, and the batches with its probabilities of each next token.

The texts are documents, or answers of the model that trains (Agarwal et al. 2024). With answers, the model learns
where its own texts lead it. The teacher's parameters are in memory beside those of the student.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from tpullm.data import answer_rows
from tpullm.data.batch import Batch, TaughtBatch
from tpullm.data.stream import EvaluationBatches
from tpullm.data.taught_rows import Kept, TaughtEvaluation, TaughtStream
from tpullm.data.token_store import TokenStore
from tpullm.data.tuning_data import TuningData
from tpullm.engine import session
from tpullm.model.architecture import Architecture
from tpullm.model.mesh_fit import check_fits
from tpullm.model.rows import own_rows, put
from tpullm.recipe.schema import Recipe
from tpullm.run import stages
from tpullm.system.errors import UserError
from tpullm.tokenizer import Tokenizer, difference
from tpullm.training.job import Job
from tpullm.training.objectives.distillation import Teacher, fill
from tpullm.training.rollouts import OwnAnswers
from tpullm.training.step import make_evaluation

Tree = Any
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
        options = (self.job.architecture, self.job.dtype, self.job.config.accumulation, self.job.config.loss_chunks)
        total = weight = 0.0
        for first in range(0, len(said), each):
            prompts = [self.held_out.ids[number] for number in asked[first : first + each]]
            batch = self._taught(prompts, [[ids] for ids in said[first : first + each]])
            sums = jax.device_get(make_evaluation(*options)(params, put(self.job.mesh, batch)))
            total, weight = total + float(sums.loss), weight + float(sums.weight)
        return {"eval_divergence": {"prompts": total / weight}, "eval_answers": self.shown(asked, said)}

    def watch(self, row: dict[str, Any]) -> None:
        """Nothing: the failures that are known are those of rewards."""

    def _taught(self, prompts: Sequence[list[int]], said: Sequence[Sequence[list[int]]]) -> TaughtBatch:
        """This host's rows of the batch of some answers."""
        nothing = np.zeros((len(said), len(said[0])), np.float32)
        options = (self.settings, self.job.config.sequence_length, self.possible_rows())
        whole, _ = answer_rows.laid_out(prompts, said, nothing, *options)
        own = own_rows(self.job.mesh, len(whole.inputs))
        names = [field.name for field in dataclasses.fields(Batch)]
        plain = Batch(*(getattr(whole, name)[own] for name in names))
        ids, logps = self.teacher.says(self._params, plain, branched=True)
        return TaughtBatch(**vars(plain), ids=ids[own], logps=logps[own], settings=self.teacher.settings, branched=True)


def teacher_of(job: Job, recipe: Recipe, tokenizer: Tokenizer) -> tuple[Teacher | None, dict[str, Any]]:
    """The teacher of a stage, or None; and what is noted of it in the stage, by file.

    Args:
        tokenizer: the student's.

    Raises:
        UserError: it has other tokens than the student, reads less at once, or does not fit the mesh.
    """
    train, name, where = job.config, job.directory.name, f"finetune.{job.directory.name}"
    settings = recipe.finetune[name].teacher
    if not settings.model:
        return None, {}
    path, identity = stages.teacher(recipe, job.directory.parent, name)
    notes: dict[str, Any] = {stages.TEACHER: {"model": settings.model, "identity": identity}}
    if (path / "config.json").is_file():
        notes[stages.DIGESTS] = stages.digests(path, job.directory, f"{where}.teacher.model")
    found = session.find(path)
    if other := difference(tokenizer, found.tokenizer):
        raise UserError(f"{where}.teacher.model: {path} has other tokens ({other}); a teacher needs the same ones")
    if train.sequence_length > found.config.context_length:
        raise UserError(
            f"{where}.teacher.model: {path} reads {found.config.context_length} tokens at once, and a row has "
            f"{train.sequence_length}; lower {where}.train.sequence_length"
        )
    architecture = Architecture(found.config)
    check_fits(architecture, train, tokenizer.needed_size, job.mesh, f"{where}.train", sizes_given=True)
    load = partial(found.params, architecture, session.targets(architecture, job.mesh, job.dtype))
    return Teacher(job, settings, architecture, load), notes


def on_taught_texts(job: Job, data: TuningData, teacher: Teacher, sources: Iterable[str]) -> Job:
    """The job that learns conversations and documents from a teacher. Before it begins, the teacher says all it needs.

    What it says is kept in files of a micro-batch each, since it computes in these.

    Args:
        sources: of the documents, whose held-out ones the teacher reads too.
    """
    train, length, folder = job.config, job.config.sequence_length, job.directory / FOLDER
    each = train.batch_size // train.accumulation
    rows, own = own_rows(job.mesh, train.batch_size), own_rows(job.mesh, each)
    given = data.read, data.weights, train.batch_size, length, job.seed, rows, f"finetune.{job.directory.name}"
    stream = TaughtStream(*given, settings=teacher.settings, folder=folder / "read")
    held_out, evaluations, fixed = dict(data.held_out), dict(job.evaluations), []
    for source in sources:
        if (path := job.directory.parent / "tokens" / source / "held_out").exists():
            held_out[source] = TokenStore(path)
    for source, documents in held_out.items():
        files = list(EvaluationBatches(documents, each, length, train.evaluate_rows, own))
        kept = Kept(folder / "held_out" / source, len(files) * each, each)
        batches = EvaluationBatches(documents, train.batch_size, length, train.evaluate_rows, rows)
        evaluations[source] = TaughtEvaluation(batches, kept, train.batch_size, rows, teacher.settings)
        fixed.append((kept, files.__getitem__))
    prepare = lambda batches: fill(teacher, [stream.keep(batches, each, own), *fixed])  # noqa: E731
    return dataclasses.replace(job, stream=stream, evaluations=evaluations, prepare=prepare)
