"""Step 4: pretrain the Transformer. It learns to predict the next token of the collected text.

It makes RUN/pretrain. The same command resumes from the last checkpoint.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from tpullm.data import mixture
from tpullm.data.stream import held_out_batches, pretraining_stream
from tpullm.evaluation.while_training import while_training
from tpullm.formats.models import load_params, made_by, model_of
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.model.mesh_fit import check_fits
from tpullm.model.platform import compute_dtype
from tpullm.model.rows import own_rows
from tpullm.planning.this_machine import check_state_fits, tell_expected_step
from tpullm.recipe.schema import Recipe
from tpullm.run.stages import BRANCH, pretrain_inputs
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.log import say
from tpullm.tokenizer import load as load_tokenizer
from tpullm.training import resume
from tpullm.training.job import Job
from tpullm.training.stage import is_stage_finished, make_training


def main(recipe: Recipe, run: Path) -> None:
    """Train `RUN/pretrain` from `RUN/tokens`, from its last checkpoint, the parameters of a base, or the beginning."""
    stage, inputs, config = run / "pretrain", pretrain_inputs(recipe, run), recipe.pretrain
    if is_stage_finished(stage, inputs):
        return say("pretrain: finished, skipped")
    tokenizer, mesh = load_tokenizer(run / "tokenizer"), make_mesh(recipe.mesh)
    model = model_of(recipe, run, tokenizer.vocabulary_size)
    architecture = Architecture(model)
    vocabulary = max(tokenizer.needed_size, 1 + max(tokenizer.document("")))
    check_fits(architecture, config, vocabulary, mesh, "pretrain", sizes_given=bool(recipe.base))
    check_state_fits(model, config, mesh, "pretrain")
    rows = own_rows(mesh, config.batch_size)
    stream = pretraining_stream(recipe, run, rows)
    mixture.tell_epochs(stream.part_epoch_at(config.steps))
    evaluations = held_out_batches(recipe, run, config.batch_size, config.sequence_length, config.evaluate_rows, rows)
    origin, differs = resume.pretraining_origin(recipe, tokenizer, model) if recipe.branch else (None, False)
    job = Job(
        directory=stage,
        model=model,
        config=config,
        seed=recipe.seed,
        mesh=mesh,
        stream=stream,
        evaluations=evaluations,
        bytes_per_token=tokenizer.bytes_per_token(),
    )
    if origin and recipe.branch_state == "all":
        job = replace(job, branch=origin, differs=differs)
    elif origin:
        job = replace(job, load=partial(resume.parameters_for_vocabulary, origin, tokenizer, architecture, mesh))
    elif recipe.base:
        job = replace(job, load=partial(load_params, made_by(run / "base"), architecture.placed(mesh)))
    dtype = compute_dtype(config.compute)
    on_the_way = while_training("pretrain", config, tokenizer, architecture, mesh, dtype, recipe.seed, job.first)
    job = replace(job, measures=on_the_way)
    notes = {"plan.json": tell_expected_step(model, config, mesh)} if hosts.is_first() else {}
    if origin:
        notes[BRANCH] = {"checkpoint": str(storage.path(recipe.branch)), "identity": inputs["upstream"]["branch"]}
    make_training(job, recipe, inputs, run / "tokenizer", notes=notes)
