"""Step 5: fine-tune the pretrained model on conversations. It learns only from the assistant's words.

It makes RUN/finetune. The same command resumes from the last checkpoint.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.checkpoint.models import check_shape, load_params, made_by, model_of
from tpullm.data import conversations, examples
from tpullm.data.conversations import Conversations
from tpullm.data.stream import Stream, evaluation_batches
from tpullm.errors import UserError
from tpullm.log import say
from tpullm.mesh.layout import make_mesh
from tpullm.mesh.rows import own_rows
from tpullm.recipe.schema import ModelConfig, Recipe, TrainConfig
from tpullm.run.stages import finetune_inputs, need
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer import load as load_tokenizer
from tpullm.tokenizer.published import PublishedTokenizer
from tpullm.training.loop import Job
from tpullm.training.mesh_fit import check_fits
from tpullm.training.stage import is_finished, make
from tpullm.training.state import Architecture


def main(recipe: Recipe, run: Path) -> None:
    """Train `RUN/finetune` from its last checkpoint, else from the pretrained model (without text: from the base)."""
    if recipe.finetune is None:
        raise UserError("finetune: the recipe has no section `finetune`; add one with `conversations`")
    start = run / recipe.foundation
    need(run, start.name, "import FOLDER" if start.name == "base" else "pretrain")
    tokenizer, mesh = _tokenizer(start / "tokenizer", recipe.finetune.chat_template), make_mesh(recipe.mesh)
    config, model = recipe.finetune.train, model_of(recipe, run, tokenizer.vocabulary_size)
    base, architecture = made_by(start), Architecture(model)
    check_shape(base, model)
    stage, inputs = run / "finetune", finetune_inputs(recipe, run)
    if is_finished(stage, inputs):
        return say("finetune: finished, skipped")
    check_fits(architecture, config, tokenizer.needed_size, mesh, "finetune.train", sizes_given=True)
    learned, held_out = (
        conversations.tokenize(part, tokenizer, config.sequence_length, "finetune") if part else None
        for part in examples.read(
            recipe.finetune.conversations, examples.Conversation, {}, recipe.finetune.held_out_fraction, recipe.seed
        )
    )
    _embedded(learned, model, start)
    if learned is None:
        raise UserError("finetune.conversations: nothing to learn from; name a file of conversations, or tenki")
    stream = Stream(
        {"conversations": learned},
        {"conversations": 1.0},
        config.batch_size,
        config.sequence_length,
        recipe.seed,
        own_rows(mesh, config.batch_size),
        what="finetune.conversations",
    )
    load = partial(load_params, base, architecture.placed(mesh))
    changed = _changed_files(tokenizer, learned, start / "tokenizer")
    evaluations = _evaluations(held_out, config, own_rows(mesh, config.batch_size))
    job = Job(stage, model, config, recipe.seed, mesh, stream, evaluations, tokenizer.bytes_per_token(), load)
    make(job, recipe, inputs, start / "tokenizer", changed, conversations=len(learned.lengths))


def _embedded(learned: Conversations | None, model: ModelConfig, start: Path) -> None:
    """Refuse tokens without a row in the embedding: special ones that were added and never made room for."""
    if learned is not None and (token := int(learned.tokens.max())) >= model.vocabulary_size:
        raise UserError(
            f"{start}: the chat template uses token {token}, and the model's embedding has {model.vocabulary_size} "
            "rows; enlarge it where the token was added"
        )


def _tokenizer(folder: Path, chat_template: str) -> Tokenizer:
    """The tokenizer in `folder`, with another chat template if one is given."""
    if not chat_template:
        return load_tokenizer(folder)
    if not storage.path(chat_template).is_file():
        raise UserError(f"finetune.chat_template: no such file {chat_template}; give a Jinja template")
    if not (folder / "tokenizer.json").is_file():
        raise UserError("finetune.chat_template: is for published models; a model of tpullm has its own, remove it")
    try:
        template = storage.path(chat_template).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"finetune.chat_template: {chat_template} is not UTF-8; convert the file") from None
    if not template.strip():
        raise UserError(f"finetune.chat_template: {chat_template} is empty; give a Jinja template")
    return PublishedTokenizer(storage.local_copy(folder), template)


def _changed_files(tokenizer: Tokenizer, learned: Conversations, folder: Path) -> dict[str, str]:
    """What the tuned model's tokenizer has otherwise than its base's: the template, and an end that nobody knew yet.

    Raises:
        UserError: the template ends an answer with nothing that a generation could stop at.
    """
    if not isinstance(tokenizer, PublishedTokenizer):
        return {}
    changed, weights = {"chat_template.jinja": tokenizer.template}, np.append(learned.token_weights, 0)
    ends = np.unique(learned.tokens[(weights[:-1] > 0) & (weights[1:] == 0)]).tolist()
    if new := [end for end in ends if end not in tokenizer.stop_ids]:
        if text := [end for end in new if tokenizer.bytes_of(end)]:
            raise UserError(
                f"{folder}: its chat template ends an answer with {tokenizer.piece(text[0])!r}, which is no special "
                "token, so the tuned model could not end an answer; give one that does, with finetune.chat_template"
            )
        say(f"finetune: answers end in {', '.join(map(tokenizer.piece, new))}, and so will the model's")
        generation = folder / "generation_config.json"
        said = storage.read_json(generation) if generation.exists() else {}
        changed[generation.name] = json.dumps(said | {"eos_token_id": [*tokenizer.stop_ids, *new]}, indent=2) + "\n"
    return changed


def _evaluations(held_out: Conversations | None, config: TrainConfig, own: np.ndarray) -> dict[str, list]:
    if held_out is None:
        return {}
    batches = evaluation_batches(held_out, config.batch_size, config.sequence_length, config.evaluate_rows, own)
    return {"conversations": list(batches)}
