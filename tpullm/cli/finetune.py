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
from tpullm.data.prompts import PromptStream
from tpullm.data.stream import EvaluationBatches, Stream, held_out_batches
from tpullm.data.tuning_data import TuningData, documents_of, prompts_of, tuning_data
from tpullm.evaluation import tasks
from tpullm.evaluation.while_training import while_training
from tpullm.formats.huggingface import adapters, tensors
from tpullm.formats.models import check_shape, load_params, made_by, model_of
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.model.mesh_fit import check_adapter, check_fits
from tpullm.model.platform import compute_dtype
from tpullm.model.rows import own_rows, row_parts
from tpullm.planning.this_machine import check_state_fits
from tpullm.recipe.schema import AdapterConfig, Recipe
from tpullm.run.stages import before_tuning, need, tuning_inputs
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.log import say
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer import load as load_tokenizer
from tpullm.tokenizer.published import PublishedTokenizer
from tpullm.training.job import Job
from tpullm.training.objectives.distillation import Teacher
from tpullm.training.objectives.preferences import fill_references
from tpullm.training.rewards.reward_set import Rewards
from tpullm.training.rollouts import Rollouts
from tpullm.training.stage import is_stage_finished, make_training
from tpullm.training.teaching import TaughtAnswers, taught_batches, teacher_of

Tree = Any


def main(recipe: Recipe, run: Path) -> None:
    """Make each stage of tuning from its last checkpoint, else from the model of the stage before it."""
    if not recipe.finetune:
        raise UserError(
            "finetune: the recipe has no stage there; add one, such as finetune: {talk: {conversations: [chats.jsonl]}}"
        )
    hosts.on_first("the tasks", tasks.check_training_tasks, recipe, run)
    tokenizer = load_tokenizer(_start_stage(recipe, run, next(iter(recipe.finetune))) / "tokenizer")
    mesh, model = make_mesh(recipe.mesh), model_of(recipe, run, tokenizer.vocabulary_size)
    for name, settings in recipe.finetune.items():  # the adapters of all stages, before the first one begins
        adapter, _ = _adapter_of_stage(settings.adapter, Architecture(model), f"finetune.{name}.adapter")
        if adapter:
            check_adapter(Architecture(model, adapter), mesh, f"finetune.{name}.adapter")
    for name in recipe.finetune:
        _make_stage(recipe, run, name)


def _start_stage(recipe: Recipe, run: Path, name: str) -> Path:
    """The stage whose model a stage of tuning starts from; `UserError` if it is not there."""
    start = run / before_tuning(recipe, name)
    need(run, start.name, {"base": "import FOLDER", "pretrain": "pretrain"}.get(start.name, "finetune"))
    return start


def _make_stage(recipe: Recipe, run: Path, name: str) -> None:
    """Make one stage: the job that all kinds of tuning share, then what its kind replaces."""
    settings, where, start = recipe.finetune[name], f"finetune.{name}", _start_stage(recipe, run, name)
    tokenizer, mesh = _with_template(start / "tokenizer", settings.chat_template, where), make_mesh(recipe.mesh)
    config, model = settings.train, model_of(recipe, run, tokenizer.vocabulary_size)
    base, architecture = made_by(start), Architecture(model)
    check_shape(base, model)
    adapter, begins = _adapter_of_stage(settings.adapter, architecture, f"{where}.adapter")
    trained, dtype = Architecture(model, adapter), compute_dtype(config.compute)
    inputs = tuning_inputs(recipe, run, name)
    if is_stage_finished(run / name, inputs):
        return say(f"{name}: finished, skipped")
    check_fits(architecture, config, tokenizer.needed_size, mesh, f"{where}.train", sizes_given=True)
    check_state_fits(model, config, mesh, where, adapter)
    rows, sizes = own_rows(mesh, config.batch_size), (config.batch_size, config.sequence_length, config.evaluate_rows)
    placed = trained.frozen(trained.at_rest(mesh, dtype)) if adapter else architecture.placed(mesh)
    job = Job(
        directory=run / name,
        model=model,
        config=config,
        seed=recipe.seed,
        mesh=mesh,
        evaluations=held_out_batches(recipe, run, *sizes, rows),
        bytes_per_token=tokenizer.bytes_per_token(),
        load=partial(load_params, base, placed),
        adapter=adapter,
        begins=begins,
        text=_old_text_stream(recipe, run, name, mesh),
        share=sum(settings.beside.values()),
        measures=while_training(name, config, tokenizer, trained, mesh, dtype, recipe.seed, where=f"{where}.train"),
        before=(base.stage, base.step, inputs["upstream"][base.stage]) if adapter else None,
    )
    teacher, notes = teacher_of(recipe, run, name, tokenizer, model.vocabulary_size, mesh)
    with contextlib.ExitStack() as closing:
        if settings.prompts:
            job, examples = _job_on_own_answers(job, recipe, name, tokenizer, teacher, closing)
            changed = {"chat_template.jinja": tokenizer.template} if settings.chat_template else {}
        else:
            data = tuning_data(recipe, run, name, tokenizer)
            if data.largest_token >= model.vocabulary_size:  # a special one that was added without a row
                raise UserError(
                    f"{start}: the chat template uses token {data.largest_token}, and the model's embedding has "
                    f"{model.vocabulary_size} rows; enlarge it where the token was added"
                )
            changed = _changed_files(tokenizer, data.ends, start / "tokenizer", where)
            examples = sum(len(read.ids) for source, read in data.read.items() if source not in settings.documents)
            if teacher:
                stream, held_out, prepare = taught_batches(recipe, run, name, data, teacher)
                evaluations = job.evaluations | held_out
                job = dataclasses.replace(job, stream=stream, evaluations=evaluations, prepare=prepare)
            else:
                job = _job_on_texts(job, data, where)
        make_training(job, recipe, inputs, start / "tokenizer", changed, notes, examples=examples)


def _job_on_own_answers(
    job: Job, recipe: Recipe, name: str, tokenizer: Tokenizer, teacher: Teacher | None, closing: contextlib.ExitStack
) -> tuple[Job, int]:
    """The job that learns from the model's own answers, which a teacher corrects or rewards score; how many prompts.

    Args:
        closing: ends the rewards' processes.
    """
    settings, config, where = recipe.finetune[name], job.config, f"finetune.{name}"
    prompts, held_out = prompts_of(recipe, name, tokenizer, job.model.context_length)
    policy, length = settings.policy, config.sequence_length
    # A batch has to hold the answers of a step, should all be as long as they may.
    needed = rows_needed(policy.prompts, policy.answers, prompts.longest, policy.tokens, length)
    if needed > config.batch_size:
        raise UserError(
            f"{where}.train.batch_size: {policy.prompts} prompts with {policy.answers} answers of {policy.tokens} "
            f"tokens can take {needed} rows of {length} tokens, and a batch has {config.batch_size}; "
            f"raise it to {needed}, or lower {where}.policy.prompts, answers or tokens"
        )
    parts = {
        "prompts": prompts,
        "held_out": held_out,
        "settings": policy,
        "config": config,
        "tokenizer": tokenizer,
        "architecture": Architecture(job.model, job.adapter),
        "mesh": job.mesh,
        "dtype": compute_dtype(config.compute),
        "seed": recipe.seed,
    }
    stream = PromptStream(prompts, policy.prompts, recipe.seed, policy.updates)
    if teacher:
        return dataclasses.replace(job, stream=stream, answers=TaughtAnswers(**parts, teacher=teacher)), len(prompts)
    rewards = closing.enter_context(Rewards(settings.rewards, lambda text: len(tokenizer.encode(text))))
    answers = Rollouts(**parts, directory=job.directory, rewards=rewards)
    # The policy loss hovers near 0 and gradients vanish on ties, so outlier detection is off: only steps that are not
    # finite are skipped.
    skip = dataclasses.replace(config.optimizer.skip, deviations=0)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, skip=skip))
    return dataclasses.replace(job, config=config, stream=stream, answers=answers), len(prompts)


def _job_on_texts(job: Job, data: TuningData, where: str) -> Job:
    """The job that learns conversations, documents, and preferences, whose references it computes before."""
    config, own = job.config, own_rows(job.mesh, job.config.batch_size)
    # Batches of preferences are built when the references are there.
    held_out = {
        source: EvaluationBatches(documents, config.batch_size, config.sequence_length, config.evaluate_rows, own)
        for source, documents in data.held_out.items()
    }
    return dataclasses.replace(
        job,
        stream=Stream(data.read, data.weights, config.batch_size, config.sequence_length, job.seed, own, what=where),
        evaluations=held_out | job.evaluations,
        prepare=lambda batches: fill_references(job, data.pairs),
    )


def _old_text_stream(recipe: Recipe, run: Path, name: str, mesh: Mesh) -> Stream | None:
    """Old text beside answers, as many rows as are its share of a batch; None if there is none."""
    settings, where = recipe.finetune[name], f"finetune.{name}"
    train, share = settings.train, sum(settings.beside.values())
    if not share:
        return None
    least = train.accumulation * row_parts(mesh)
    rows = max(1, round(share * train.batch_size / least)) * least
    documents, own = documents_of(settings.beside, run, where), own_rows(mesh, rows)
    return Stream(documents, settings.beside, rows, train.sequence_length, recipe.seed, own, f"{where}.documents")


def _adapter_of_stage(
    settings: AdapterConfig, architecture: Architecture, where: str
) -> tuple[AdapterConfig | None, Tree]:
    """The adapter of a stage, or None; and the parameters that it begins with, if they come from a file."""
    if not settings.start:
        return (settings if settings.rank else None), None
    folder = storage.path(settings.start)
    if not folder.is_dir():
        raise UserError(f"{where}.start: no such folder {folder}; give an adapter in the format of PEFT")
    shapes = tensors.flat(architecture.shapes)
    found, arrays = adapters.read(storage.local_copy(folder), shapes)
    if settings.rank not in (0, found.rank):
        raise UserError(f"{where}.rank: is {settings.rank}, and that of {folder} is {found.rank}; leave it out")
    kept = {key: getattr(settings, key) for key in ("b_learning_rate", "quantize_base", "start")}
    return dataclasses.replace(found, **kept), tensors.nested(arrays)


def _with_template(folder: Path, chat_template: str, where: str) -> Tokenizer:
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
    """Tokenizer files that differ from the base's: the chat template and new stop tokens.

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
