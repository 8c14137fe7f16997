"""Step 4: pretrain the Transformer. It learns to predict the next token of the collected text.

It makes RUN/pretrain. The same command resumes from the last checkpoint.
"""

import json
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from tpullm import storage
from tpullm.checkpoint.models import find, load_params, model_of
from tpullm.checkpoint.saving import description
from tpullm.cluster import hosts
from tpullm.corpus.sources import sources
from tpullm.data.stream import evaluation_batches, pretraining_stream
from tpullm.data.token_store import TokenStore
from tpullm.log import moment, say
from tpullm.mesh.layout import make_mesh
from tpullm.mesh.rows import own_rows
from tpullm.planning.this_machine import expected
from tpullm.recipe.schema import ModelConfig, Recipe, TrainConfig
from tpullm.run import manifest
from tpullm.run.stages import pretrain_inputs
from tpullm.tokenizer import load as load_tokenizer
from tpullm.training import metrics
from tpullm.training.fits import check_fits
from tpullm.training.loop import Job, train
from tpullm.training.resume import begin
from tpullm.training.state import Architecture


def main(recipe: Recipe, run: Path) -> None:
    """Train `RUN/pretrain` from `RUN/tokens`, from its last checkpoint, the parameters of a base, or the beginning."""
    stage, inputs, config = run / "pretrain", pretrain_inputs(recipe, run), recipe.pretrain
    hosts.agree("the inputs of pretrain", inputs)
    if hosts.broadcast("pretrain is finished", lambda: manifest.is_finished(stage, inputs)):
        return say("pretrain: finished, skipped")
    tokenizer, mesh = load_tokenizer(run / "tokenizer"), make_mesh(recipe.mesh)
    model = model_of(recipe, run, tokenizer.vocabulary_size)
    architecture = Architecture(model)
    vocabulary = max(tokenizer.needed_size, 1 + max(tokenizer.document("")))
    check_fits(architecture, config, vocabulary, mesh, "pretrain", sizes_given=bool(recipe.base))
    rows = own_rows(mesh, config.batch_size)
    stream = pretraining_stream(recipe, run, rows)
    evaluations = held_out(recipe, run, config.batch_size, config.sequence_length, config.evaluate_rows, rows)
    params = load_params(find(run / "base"), architecture.placed(mesh)) if recipe.base else None
    start = begin(run, "pretrain", inputs, config, run / "tokenizer")
    if hosts.is_first():
        _predict(stage, model, config, mesh)
    results = train(
        Job(
            directory=stage,
            model=model,
            config=config,
            seed=recipe.seed,
            mesh=mesh,
            batches=lambda first: stream.batches(first, config.steps, config.data_workers),
            evaluations=evaluations,
            bytes_per_token=tokenizer.bytes_per_token(),
            description=description("pretrain", model, recipe, inputs, start.horizons),
            resumed=start.step,
            params=params,
        )
    )
    hosts.on_first(
        "pretrain ends",
        lambda: manifest.write(stage, inputs, seconds=metrics.seconds(stage / "metrics.jsonl"), **results),
    )


def _predict(stage: Path, model: ModelConfig, config: TrainConfig, mesh: Mesh) -> None:
    """Say how long a step should take, and keep it for the report."""
    found = expected(model, config, mesh)
    storage.write_text(stage / "plan.json", json.dumps(found, indent=1))
    worst = sorted(found["seconds"], key=found["seconds"].get, reverse=True)[:3]
    said = ", ".join(f"{name} {found['seconds'][name] / found['step_seconds']:.0%}" for name in worst)
    say(
        f"pretrain: a step is predicted to take {moment(found['step_seconds'])} on {found['topology']}, "
        f"{found['tokens_per_second']:,.0f} tokens/s: {said}"
    )


def held_out(
    recipe: Recipe, run: Path, batch_size: int, sequence_length: int, rows: int, own: np.ndarray
) -> dict[str, list]:
    """This host's rows of the evaluation batches by source, of the sources that have held-out documents."""
    batches = {}
    for source in sources(recipe):
        path = run / "tokens" / source.name / "held_out"
        if path.exists():
            batches[source.name] = list(evaluation_batches(TokenStore(path), batch_size, sequence_length, rows, own))
    return {name: found for name, found in batches.items() if found}
