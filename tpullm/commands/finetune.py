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
from tpullm.sharding import make_mesh
from tpullm.stages import begin, finetune_inputs
from tpullm.tokenizer import Tokenizer
from tpullm.training import metrics
from tpullm.training.loop import Job, train
from tpullm.training.state import Architecture


def main(recipe: Recipe, run: Path) -> None:
    """Train `RUN/finetune` from the last checkpoint of `RUN/pretrain`, going on from the last save."""
    stage, inputs = run / "finetune", finetune_inputs(recipe, run)
    if manifest.is_finished(stage, inputs):
        begin(stage, inputs)
        return
    base, tokenizer = find(run / "pretrain"), Tokenizer.load(run / "tokenizer")
    config, model = recipe.finetune.train, recipe.model.resolved(tokenizer.vocabulary_size)
    check_shape(base, model)
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
    )
    begin(stage, inputs)
    mesh = make_mesh(recipe.mesh)
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
            params=load_params(base, Architecture(model).placed(mesh)),
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
