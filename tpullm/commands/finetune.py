"""Step 5: fine-tune the pretrained model on conversations, learning only from what the assistant says."""

import dataclasses
from pathlib import Path

from tpullm import manifest
from tpullm.checkpoint import Model, description, find, load_params
from tpullm.config import ModelConfig, Recipe, TrainConfig
from tpullm.data import conversations
from tpullm.data.conversations import Conversations
from tpullm.data.stream import Stream, evaluation_batches
from tpullm.errors import UserError
from tpullm.log import say
from tpullm.sharding import make_mesh
from tpullm.stages import begin_training, finetune_inputs, need
from tpullm.tokenizer import load as load_tokenizer
from tpullm.training import metrics
from tpullm.training.loop import Job, train
from tpullm.training.state import Architecture, check_fits


def main(recipe: Recipe, run: Path) -> None:
    """Train `RUN/finetune` from the last checkpoint of `RUN/pretrain`, going on from the last save."""
    if recipe.finetune is None:
        raise UserError("finetune: the recipe has no section `finetune`; add one with `conversations`")
    tokenizer, mesh = load_tokenizer(run / "tokenizer"), make_mesh(recipe.mesh)
    config, model = recipe.finetune.train, recipe.model.resolved(tokenizer.vocabulary_size)
    need(run, "pretrain", "pretrain")
    base, architecture = find(run / "pretrain"), Architecture(model)
    check_shape(base, model)
    stage, inputs = run / "finetune", finetune_inputs(recipe, run)
    if manifest.is_finished(stage, inputs):
        return say("finetune: finished, skipped")
    check_fits(architecture, config, tokenizer.vocabulary_size, mesh)
    learned, held_out = (
        conversations.tokenize(part, tokenizer, config.sequence_length, "finetune") if part else None
        for part in conversations.read_all(recipe.finetune, recipe.seed)
    )
    if learned is None:
        raise UserError("finetune.conversations: nothing to learn from; name a file of conversations, or tenki")
    stream = Stream(
        {"conversations": learned},
        {"conversations": 1.0},
        config.batch_size,
        config.sequence_length,
        recipe.seed,
        what="finetune.conversations",
    )
    params = load_params(base, architecture.placed(mesh))
    begin_training(run, "finetune", inputs)
    results = train(
        Job(
            directory=stage,
            model=model,
            config=config,
            seed=recipe.seed,
            mesh=mesh,
            batches=lambda first: stream.batches(first, config.steps, config.data_workers),
            evaluations=_evaluations(held_out, config),
            bytes_per_token=tokenizer.bytes_per_token(),
            description=description("finetune", model, recipe, inputs),
            params=params,
        )
    )
    manifest.write(
        stage, inputs, conversations=len(learned.lengths), seconds=metrics.seconds(stage / "metrics.jsonl"), **results
    )


def check_shape(base: Model, wanted: ModelConfig) -> None:
    """`UserError` if the checkpoint's model is not the recipe's (dropout and remat change no parameter)."""
    has, asks = dataclasses.asdict(base.config), dataclasses.asdict(wanted)
    for key in has:
        if key not in ("dropout", "remat") and has[key] != asks[key]:
            raise UserError(
                f"model.{key}: the checkpoint {base.directory / str(base.step)} has {has[key]}, "
                f"the recipe says {asks[key]}; pretrain again, or set model.{key} to {has[key]}"
            )


def _evaluations(held_out: Conversations | None, config: TrainConfig) -> dict[str, list]:
    if held_out is None:
        return {}
    batches = evaluation_batches(held_out, config.batch_size, config.sequence_length, config.evaluate_rows)
    return {"conversations": list(batches)}
