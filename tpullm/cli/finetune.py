"""Step 5: tune the pretrained model, stage by stage: on conversations, of which it learns only the assistant's words,
on documents, on answers that people compared or judged, and on answers of its own that rewards score. A teacher may say
how likely each token is.

Each stage makes RUN/NAME. The same command resumes from the last checkpoint.
"""

import contextlib
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from tpullm.data.answer_rows import rows_needed
from tpullm.data.prompts import Prompts, PromptStream
from tpullm.data.stream import EvaluationBatches, Stream, held_out_batches
from tpullm.data.tuning_data import TuningData, documents_of, prompts_of, tuning_data
from tpullm.evaluation import task_words
from tpullm.evaluation.while_training import while_training
from tpullm.formats.huggingface import adapters, tensors
from tpullm.formats.models import check_shape, load_params, made_by, model_of
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.model.mesh_fit import check_adapter, check_fits
from tpullm.model.platform import compute_dtype
from tpullm.model.rows import own_rows, row_parts
from tpullm.recipe.schema import AdapterConfig, ModelConfig, Recipe, TuningConfig
from tpullm.run.stages import before_tuning, need, tuning_inputs
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.log import say
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer import load as load_tokenizer
from tpullm.tokenizer.published import PublishedTokenizer
from tpullm.training.loop import Job
from tpullm.training.preference import fill_references
from tpullm.training.rewards.reward_set import Rewards
from tpullm.training.rollouts import Rollouts
from tpullm.training.stage import is_finished, make
from tpullm.training.teaching import TaughtAnswers, taught_batches, teacher_of

Tree = Any


def main(recipe: Recipe, run: Path) -> None:
    """Make each stage of tuning from its last checkpoint, else from the model of the stage before it."""
    if not recipe.finetune:
        raise UserError(
            "finetune: the recipe has no stage there; add one, such as finetune: {talk: {conversations: [chats.jsonl]}}"
        )
    hosts.on_first("the tasks", task_words.check, recipe, run)
    _check_adapters(recipe, run)
    for name in recipe.finetune:
        _make(recipe, run, name)


def _check_adapters(recipe: Recipe, run: Path) -> None:
    """Those of all stages, before the first one begins."""
    tokenizer = load_tokenizer(_start(recipe, run, next(iter(recipe.finetune))) / "tokenizer")
    mesh, model = make_mesh(recipe.mesh), model_of(recipe, run, tokenizer.vocabulary_size)
    for name, settings in recipe.finetune.items():
        adapter, _ = _adapter(settings.adapter, Architecture(model), f"finetune.{name}.adapter")
        if adapter:
            check_adapter(Architecture(model, adapter), mesh, f"finetune.{name}.adapter")


def _start(recipe: Recipe, run: Path, name: str) -> Path:
    """The stage whose model a stage of tuning starts from; `UserError` if it is not there."""
    start = run / before_tuning(recipe, name)
    need(run, start.name, {"base": "import FOLDER", "pretrain": "pretrain"}.get(start.name, "finetune"))
    return start


def _make(recipe: Recipe, run: Path, name: str) -> None:
    settings, where, start = recipe.finetune[name], f"finetune.{name}", _start(recipe, run, name)
    tokenizer, mesh = _tokenizer(start / "tokenizer", settings.chat_template, where), make_mesh(recipe.mesh)
    config, model = settings.train, model_of(recipe, run, tokenizer.vocabulary_size)
    base, architecture = made_by(start), Architecture(model)
    check_shape(base, model)
    adapter, begins = _adapter(settings.adapter, architecture, f"{where}.adapter")
    trained = Architecture(model, adapter)
    stage, inputs = run / name, tuning_inputs(recipe, run, name)
    if is_finished(stage, inputs):
        return say(f"{name}: finished, skipped")
    check_fits(architecture, config, tokenizer.needed_size, mesh, f"{where}.train", sizes_given=True)
    rows, size = own_rows(mesh, config.batch_size), (config.batch_size, config.sequence_length)
    evaluations = held_out_batches(recipe, run, *size, config.evaluate_rows, rows)
    dtype = compute_dtype(config.compute)
    placed = trained.frozen(trained.at_rest(mesh, dtype)) if adapter else architecture.placed(mesh)
    load, before = partial(load_params, base, placed), (base.stage, base.step, inputs["upstream"][base.stage])
    more = {"load": load, "adapter": adapter, "begins": begins, "before": before if adapter else None}
    more |= _old_text(recipe, run, name, mesh)
    on_the_way = while_training(name, config, tokenizer, trained, mesh, dtype, recipe.seed, where=f"{where}.train")
    more["measures"] = on_the_way
    job = partial(Job, stage, model, seed=recipe.seed, mesh=mesh, bytes_per_token=tokenizer.bytes_per_token(), **more)
    teacher, notes = teacher_of(recipe, run, name, tokenizer, model.vocabulary_size, mesh)
    if settings.prompts:
        prompts, held_out = prompts_of(recipe, name, tokenizer, model.context_length)
        _check_room(prompts, settings, where)
        options = (settings.policy, config, tokenizer, trained, mesh, dtype, recipe.seed)
        stream = PromptStream(prompts, settings.policy.prompts, recipe.seed, settings.policy.updates)
        changed = {"chat_template.jinja": tokenizer.template} if settings.chat_template else {}
        with contextlib.ExitStack() as closing:
            if teacher:
                answers = TaughtAnswers(prompts, held_out, *options, teacher)
            else:
                rewards = Rewards(settings.rewards, lambda text: len(tokenizer.encode(text)))
                answers = Rollouts(prompts, held_out, *options, stage, closing.enter_context(rewards))
                # Its loss is near 0, and its gradient 0 where no answer is better than another, so means say nothing.
                skip = dataclasses.replace(config.optimizer.skip, deviations=0)
                config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, skip=skip))
            asks = job(config=config, stream=stream, evaluations=evaluations, answers=answers)
            return make(asks, recipe, inputs, start / "tokenizer", changed, notes, examples=len(prompts))
    data = tuning_data(recipe, run, name, tokenizer)
    _embedded(data, model, start)
    changed = _changed_files(tokenizer, data.ends, start / "tokenizer", where)
    micro = (config.batch_size // config.accumulation, config.sequence_length)
    if teacher:
        stream, taught, prepare = taught_batches(recipe, run, name, data, teacher)
        evaluations |= taught
    else:
        stream = Stream(data.read, data.weights, *size, recipe.seed, rows, what=where)
        # Of preferences they are built when the references are there.
        evaluations = {
            source: EvaluationBatches(documents, *size, config.evaluate_rows, rows)
            for source, documents in data.held_out.items()
        } | evaluations
        references = (stage, architecture, load, data.pairs, micro, mesh, dtype, config.loss_chunks)
        prepare = lambda batches: fill_references(*references)  # noqa: E731
    reads = job(config=config, stream=stream, evaluations=evaluations, prepare=prepare)
    examples = sum(len(documents.ids) for source, documents in data.read.items() if source not in settings.documents)
    make(reads, recipe, inputs, start / "tokenizer", changed, notes, examples=examples)


def _old_text(recipe: Recipe, run: Path, name: str, mesh: Mesh) -> dict[str, Any]:
    """What a job has of old text beside answers: as many rows as are its share of a batch, and that share."""
    settings, where = recipe.finetune[name], f"finetune.{name}"
    train, share = settings.train, sum(settings.beside.values())
    if not share:
        return {}
    least = train.accumulation * row_parts(mesh)
    rows = max(1, round(share * train.batch_size / least)) * least
    documents, own = documents_of(settings.beside, run, where), own_rows(mesh, rows)
    size = (rows, train.sequence_length)
    return {"text": Stream(documents, settings.beside, *size, recipe.seed, own, f"{where}.documents"), "share": share}


def _check_room(prompts: Prompts, settings: TuningConfig, where: str) -> None:
    """Refuse a batch that can't hold the answers of a step, should all be as long as they may."""
    policy, train = settings.policy, settings.train
    needed = rows_needed(policy.prompts, policy.answers, prompts.longest, policy.tokens, train.sequence_length)
    if needed > train.batch_size:
        raise UserError(
            f"{where}.train.batch_size: {policy.prompts} prompts with {policy.answers} answers of {policy.tokens} "
            f"tokens can take {needed} rows of {train.sequence_length} tokens, and a batch has {train.batch_size}; "
            f"raise it to {needed}, or lower {where}.policy.prompts, answers or tokens"
        )


def _adapter(settings: AdapterConfig, architecture: Architecture, where: str) -> tuple[AdapterConfig | None, Tree]:
    """The adapter of a stage, or None; and the parameters that it begins with, if they come from a file."""
    if not settings.start:
        return (settings if settings.rank else None), None
    folder = storage.path(settings.start)
    if not folder.is_dir():
        raise UserError(f"{where}.start: no such folder {folder}; give an adapter in the format of PEFT")
    shapes, layers = tensors.flat(architecture.shapes), architecture.config.layers
    found, arrays = adapters.read(storage.local_copy(folder), shapes, layers)
    if settings.rank not in (0, found.rank):
        raise UserError(f"{where}.rank: is {settings.rank}, and that of {folder} is {found.rank}; leave it out")
    kept = {key: getattr(settings, key) for key in ("b_learning_rate", "quantize_base", "start")}
    return dataclasses.replace(found, **kept), tensors.nested(arrays)


def _embedded(data: TuningData, model: ModelConfig, start: Path) -> None:
    """Refuse tokens without a row in the embedding: special ones that were added and never made room for."""
    if data.largest_token >= model.vocabulary_size:
        raise UserError(
            f"{start}: the chat template uses token {data.largest_token}, and the model's embedding has "
            f"{model.vocabulary_size} rows; enlarge it where the token was added"
        )


def _tokenizer(folder: Path, chat_template: str, where: str) -> Tokenizer:
    """The tokenizer in `folder`, with another chat template if one is given."""
    if not chat_template:
        return load_tokenizer(folder)
    if not storage.path(chat_template).is_file():
        raise UserError(f"{where}.chat_template: no such file {chat_template}; give a Jinja template")
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{where}.chat_template: is for published models; a model of tpullm has its own, remove it")
    try:
        template = storage.path(chat_template).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{where}.chat_template: {chat_template} is not UTF-8; convert the file") from None
    if not template.strip():
        raise UserError(f"{where}.chat_template: {chat_template} is empty; give a Jinja template")
    return PublishedTokenizer(storage.local_copy(folder), template)


def _changed_files(tokenizer: Tokenizer, ends: list[int], folder: Path, where: str) -> dict[str, str]:
    """What the tuned model's tokenizer has otherwise than its base's: the template, and an end that nobody knew yet.

    Raises:
        UserError: the template ends an answer with nothing that a generation could stop at.
    """
    if not isinstance(tokenizer, PublishedTokenizer) or not ends:
        return {}
    changed = {"chat_template.jinja": tokenizer.template}
    if new := [end for end in ends if end not in tokenizer.stop_ids]:
        if text := [end for end in new if tokenizer.bytes_of(end)]:
            raise UserError(
                f"{folder}: its chat template ends an answer with {tokenizer.piece(text[0])!r}, which is no special "
                f"token, so the tuned model could not end an answer; give one that does, with {where}.chat_template"
            )
        say(f"{where}: answers end in {', '.join(map(tokenizer.piece, new))}, and so will the model's")
        generation = folder / "generation_config.json"
        said = storage.read_json(generation) if generation.exists() else {}
        changed[generation.name] = json.dumps(said | {"eos_token_id": [*tokenizer.stop_ids, *new]}, indent=2) + "\n"
    return changed
