"""A stage of tuning with a teacher: who that is, and the batches with what it says."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from tpullm.data.stream import EvaluationBatches
from tpullm.data.taught_rows import Kept, TaughtEvaluation, TaughtStream
from tpullm.data.token_store import TokenStore
from tpullm.data.tuning_data import TuningData
from tpullm.errors import UserError
from tpullm.inference import session
from tpullm.mesh.rows import own_rows
from tpullm.model.platform import compute_dtype
from tpullm.recipe.schema import Recipe
from tpullm.run import stages
from tpullm.tokenizer import Tokenizer, difference
from tpullm.training.mesh_fit import check_fits
from tpullm.training.state import Architecture
from tpullm.training.teacher import Teacher, fill

FOLDER = "teacher"  # in a stage: what its teacher said of the text


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
    if (path / "config.json").is_file():
        notes[stages.DIGESTS] = stages.digests(path, run / name, f"{where}.teacher.model")
    found, train = session.find(path), settings.train
    if other := difference(tokenizer, found.tokenizer):
        raise UserError(f"{where}.teacher.model: {path} has other tokens ({other}); a teacher needs the same ones")
    if train.sequence_length > found.config.context_length:
        raise UserError(
            f"{where}.teacher.model: {path} reads {found.config.context_length} tokens at once, and a row has "
            f"{train.sequence_length}; lower {where}.train.sequence_length"
        )
    architecture, dtype = Architecture(found.config), compute_dtype(train.compute)
    check_fits(architecture, train, tokenizer.needed_size, mesh, f"{where}.train", sizes_given=True)
    load = partial(found.params, architecture, session.targets(architecture, mesh, dtype))
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
    held_out, evaluations, fixed = dict(data.held_out), {}, []
    for source in settings.documents:
        if (path := run / "tokens" / source / "held_out").exists():
            held_out[source] = TokenStore(path)
    for source, documents in held_out.items():
        files = list(EvaluationBatches(documents, each, length, train.evaluate_rows, own))
        kept = Kept(folder / "held_out" / source, len(files) * each, each)
        batches = EvaluationBatches(documents, train.batch_size, length, train.evaluate_rows, rows)
        evaluations[source] = TaughtEvaluation(batches, kept, train.batch_size, rows, settings.teacher)
        fixed.append((kept, files.__getitem__))
    return stream, evaluations, lambda batches: fill(teacher, [stream.keep(batches, each, own), *fixed])
