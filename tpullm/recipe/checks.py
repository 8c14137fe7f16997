"""What no run could do, found before anything is done: numbers out of range, settings that contradict each other."""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable

from tpullm.hardware import topologies
from tpullm.recipe.mesh_axes import check_sizes
from tpullm.recipe.schema import ALONE, ATTENTION_BLOCKS, ModelConfig, PolicyConfig, Recipe, TrainConfig, TuningConfig
from tpullm.system.errors import UserError

NAMED = "NAME"  # in place of `finetune.NAME`, in the table below
# What a run directory has beside the stages of tuning, which are folders there too.
TAKEN = {
    "base",
    "documents",
    "tokenizer",
    "tokens",
    "pretrain",
    "evaluate",
    "measured",
    "replaced",
    "report",
    "launch",
    "downloads",
}
# The matrices that an adapter may stand beside.
MATRICES = ("query", "key", "value", "out", "gate", "up", "down", "router")

# The smallest and the largest value of numbers that would otherwise fail late, or silently do nothing.
RANGES = {
    "seed": (0, 2**31 - 1),
    "corpus.held_out_fraction": (0, 1),
    "corpus.repeated_lines": (0, None),
    "tokenizer.sample_characters": (1, None),
    "model.kv_heads": (0, None),
    "model.mlp_width": (0, None),
    "model.experts": (0, None),
    "model.experts_per_token": (1, None),
    "model.router_scale": (1e-9, None),
    "model.shared_experts": (0, None),
    "model.balance_loss": (0, None),
    "model.balance_rate": (0, 1),
    "model.vocabulary_size": (0, None),
    "model.swiglu_limit": (0, None),
    "model.dropout": (0, 0.95),
    "loss_chunks": (0, None),
    "log_every": (1, None),
    "norms_every": (0, None),
    "evaluate_every": (0, None),
    "evaluate_rows": (0, None),
    "data_workers": (0, None),
    "check_every": (0, None),
    "patience_minutes": (0, None),
    "measure.every": (0, None),
    "measure.shots": (0, None),
    "measure.limit": (0, None),
    "measure.sample_tokens": (1, None),
    "checkpoint.every_steps": (0, None),
    "checkpoint.every_minutes": (0, None),
    "checkpoint.keep": (1, None),
    "checkpoint.keep_every": (0, None),
    "checkpoint.keep_best": (0, None),
    "checkpoint.local_every_minutes": (0, None),
    "checkpoint.local_every_steps": (0, None),
    "optimizer.peak_lr": (0, None),
    "optimizer.warmup_steps": (0, None),
    "optimizer.decay_fraction": (0, 1),
    "optimizer.final_lr_fraction": (0, 1),
    "optimizer.beta1": (0, 1),
    "optimizer.beta2": (0, 1),
    "optimizer.momentum": (0, 1),
    "optimizer.clip_norm": (1e-9, None),
    "optimizer.z_loss": (0, None),
    "optimizer.skip.deviations": (0, None),
    "optimizer.skip.window": (4, 100_000),
    "optimizer.skip.patience": (1, None),
    "optimizer.skip.rollbacks": (0, None),
    "NAME.held_out_fraction": (0, 1),
    "NAME.adapter.rank": (0, 65_536),
    "NAME.adapter.alpha": (0, None),
    "NAME.adapter.b_learning_rate": (1e-9, None),
    "NAME.preference.beta": (1e-9, None),
    "NAME.preference.label_smoothing": (0, 0.5),
    "NAME.preference.gamma": (0, None),
    "NAME.preference.desirable_weight": (0, None),
    "NAME.preference.undesirable_weight": (0, None),
    "NAME.teacher.top": (1, 4096),
    "NAME.teacher.temperature": (0.01, 100),
    "NAME.policy.prompts": (1, None),
    "NAME.policy.answers": (1, 32_767),
    "NAME.policy.tokens": (1, None),
    "NAME.policy.temperature": (0.01, 100),
    "NAME.policy.clip_low": (0, 1),
    "NAME.policy.clip_high": (0, None),
    "NAME.policy.updates": (1, None),
    "NAME.policy.kl_weight": (0, None),
    "evaluate.rows": (0, None),
    "evaluate.batch_size": (1, None),
    "evaluate.questions": (0, None),
    "evaluate.sample_tokens": (1, None),
}


def check(recipe: Recipe) -> Recipe:
    """Refuse what no run could do; `UserError` names the key."""
    _check_values(recipe, "")
    _check_ranges(recipe)
    for name in topologies.names(recipe.topology):  # several are for `plan`, which also takes `local`
        if name != "local":
            topologies.parse(name)
    check_sizes(recipe.mesh)
    _require(
        not recipe.base or ModelConfig().trained_as(recipe.model) == recipe.model,
        f"model: is that of `base`; beside it only {', '.join(ModelConfig.of_training())} can be set",
    )
    model = recipe.model.resolved(vocabulary_size=1)
    _require(model.width > 0 and model.layers > 0 and model.heads > 0, "model: layers, width and heads must be > 0")
    _require(
        model.heads % model.kv_heads == 0,
        f"model.kv_heads: {model.kv_heads} does not divide model.heads {model.heads}; choose a divisor",
    )
    _require(
        model.head_width % 2 == 0,
        f"model.head_width: {model.head_width} is odd; rotary embeddings need an even head, change width or heads",
    )
    _require(
        not model.experts or model.experts_per_token <= model.experts,
        f"model.experts_per_token: {model.experts_per_token} can't be chosen of {model.experts} experts; choose fewer",
    )
    blocks = [0, *ATTENTION_BLOCKS]
    _require(
        model.attention_block in blocks,
        f"model.attention_block: {model.attention_block} is none of {', '.join(map(str, blocks))}; choose one",
    )
    for key in () if model.experts else ("shared_experts", "balance_loss", "balance_rate"):
        _require(not getattr(model, key), f"model.{key}: needs a router; set model.experts, or this to 0")
    _require(not model.swiglu_limit or model.gated, "model.swiglu_limit: there is no SwiGLU without model.gated")
    for name, settings in recipe.finetune.items():
        _check_tuning(name, settings, recipe)
    for name, stage in trainings(recipe).items():
        _check_stage(name, stage, model, bool(recipe.base))
    names = [source.name for source in recipe.corpus.sources]
    repeated = sorted({name for name in names if names.count(name) > 1})
    _require(not repeated, f"corpus.sources: the name {', '.join(repeated)} is used twice; names must differ")
    for source in recipe.corpus.sources:
        _require(
            source.kind != "tokens" or bool(recipe.base),
            f"corpus.sources: {source.name}: tokens need the tokenizer that wrote them; set `base` to its model",
        )
        _require(
            source.kind != "tokens" or not (source.documents or source.bytes),
            f"corpus.sources: {source.name}: of tokens all is read; leave out `documents` and `bytes`",
        )
    _check_mixture(recipe)
    return recipe


def _check_ranges(recipe: Recipe) -> None:
    tuned = {f"finetune.{name}": settings for name, settings in recipe.finetune.items()}
    for key, (least, most) in RANGES.items():
        section = key.split(".")[0]
        if section == NAMED:
            key = key.removeprefix(f"{NAMED}.")
            owners = {f"{name}.{key}": stage for name, stage in tuned.items()}
        elif section in ("optimizer", "checkpoint", "measure") or not hasattr(recipe, section):
            owners = {f"{name}.{key}": stage for name, stage in trainings(recipe).items()}
        else:
            owners = {key: recipe}
        for name, owner in owners.items():
            value = owner
            for part in key.split("."):
                value = getattr(value, part, None)
            if value is not None:
                _require(value >= least, f"{name}: {value} is too small; use {least} or more")
                _require(most is None or value <= most, f"{name}: {value} is too large; use {most} or less")


def trainings(recipe: Recipe) -> dict[str, TrainConfig]:
    """The settings of every training, by their keys."""
    return {"pretrain": recipe.pretrain} | {
        f"finetune.{name}.train": settings.train for name, settings in recipe.finetune.items()
    }


def _check_values(config: object, name: str) -> None:
    """Refuse keys without a value: YAML's null."""
    for field in dataclasses.fields(config):
        value, dotted = getattr(config, field.name), f"{name}.{field.name}".lstrip(".")
        _require(value is not None, f"{dotted}: has no value; give one, or leave the key out")
        for key, inner in value.items() if isinstance(value, dict) else [("", value)]:
            if dataclasses.is_dataclass(inner):
                _check_values(inner, f"{dotted}.{key}".rstrip("."))


def _check_tuning(name: str, settings: TuningConfig, recipe: Recipe) -> None:
    where = f"finetune.{name}"
    _require(
        isinstance(name, str) and bool(re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name)) and name not in TAKEN,
        f"{where}: a stage of this name can't have a folder in the run; use small letters, digits, - and _, and none "
        f"of {', '.join(sorted(TAKEN))}",
    )
    _check_sources(f"{where}.documents", settings.documents, recipe)
    for source, share in settings.documents.items():
        _require(share > 0, f"{where}.documents: the share of {source} is {share}; give one above 0, or leave it out")
    shares, known = sum(settings.documents.values()), _sources(recipe)
    _require(
        not (settings.conversations or settings.beside) or shares < 1,
        f"{where}.documents: their shares are {shares:g}, so nothing is left for what is beside them; give less",
    )
    for kind in ("conversations", *ALONE):
        _require(
            not (getattr(settings, kind) and kind in known),
            f"{where}: a source of corpus is named {kind}; give it another name",
        )
    for kind in ALONE:
        _require(
            not getattr(settings, kind) or not settings.train.optimizer.z_loss,
            f"{where}.train.optimizer.z_loss: {kind} have none; leave it out",
        )
    alone = [kind for kind in ALONE if getattr(settings, kind)]
    _require(
        not alone or not (settings.conversations or alone[1:]),
        f"{where}: {alone and alone[0]} are learned in a stage of their own; put what else there is in another",
    )
    kto = settings.preference.kind == "kto"
    _require(
        not settings.judged or kto,
        f"{where}.preference.kind: {settings.preference.kind} compares two answers, and judged ones stand alone; "
        "set kto",
    )
    _require(
        not settings.preferences or not kto,
        f"{where}.preference.kind: kto learns from judged answers, and these are pairs; choose another kind",
    )
    _check_rewards(where, settings)
    _check_teacher(where, settings)
    for target in settings.adapter.targets:
        near = difflib.get_close_matches(target, MATRICES, 1)
        meant = f"the nearest is {near[0]}" if near else f"there are {', '.join(MATRICES)}"
        _require(target in MATRICES, f"{where}.adapter.targets: no matrix is named {target}; {meant}")
    _require(
        not settings.adapter.quantize_base or settings.adapter.rank > 0 or bool(settings.adapter.start),
        f"{where}.adapter.quantize_base: parameters that are trained can't be quantized; set {where}.adapter.rank",
    )
    _require(
        not settings.adapter.quantize_base or recipe.model.matmuls != "fp8",
        f"{where}.adapter.quantize_base: a quantized matrix would be rounded again; set model.matmuls to compute",
    )
    _require(
        not settings.adapter.rank or bool(settings.adapter.targets),
        f"{where}.adapter.targets: names no matrix, so nothing would be trained; name some of {', '.join(MATRICES)}",
    )


def _check_mixture(recipe: Recipe) -> None:
    mixture, before = recipe.mixture, -1.0
    _check_factors("mixture.languages", mixture.languages)
    _check_sources("mixture.epochs", mixture.epochs, recipe)
    for source, most in mixture.epochs.items():
        _require(0 < most < math.inf, f"mixture.epochs: {source} has {most}; give a number above 0, or leave it out")
    for phase in mixture.phases:
        where = f"mixture.phases: start {phase.start:g}"
        _require(0 <= phase.start < 1, f"{where}: is no share of the steps; give 0 or more, and less than 1")
        _require(before < phase.start, f"{where}: comes after the phase of start {before:g}; put them in order")
        before = phase.start
        _require(bool(phase.weights or phase.languages), f"{where}: changes nothing; give it weights or languages")
        _check_sources(f"{where}: weights", phase.weights, recipe)
        _check_factors(f"{where}: weights", phase.weights)
        _check_factors(f"{where}: languages", phase.languages)
        _require(
            not phase.weights or any(weight > 0 for weight in phase.weights.values()),
            f"{where}: all weights are 0, so nothing would be read; give a source a weight above 0",
        )


def _sources(recipe: Recipe) -> list[str]:
    """The names of the sources, and that of the user's own text."""
    return [source.name for source in recipe.corpus.sources] + ["yours"] * bool(recipe.text)


def _check_factors(where: str, factors: dict[str, float]) -> None:
    for name, factor in factors.items():
        _require(0 <= factor < math.inf, f"{where}: {name} has {factor}; give 0 or more")


def _check_sources(where: str, named: Iterable[str], recipe: Recipe) -> None:
    """Refuse names of sources that the recipe does not have."""
    known = _sources(recipe)
    for source in named:
        near = difflib.get_close_matches(source, known, 1)
        meant = f"the nearest is {near[0]}" if near else f"there are {', '.join(known)}" if known else "there are none"
        _require(source in known, f"{where}: corpus.sources has no {source}; {meant}")


def _check_rewards(where: str, settings: TuningConfig) -> None:
    policy, train = settings.policy, settings.train
    _require(
        not settings.prompts or bool(settings.rewards or settings.teacher.model),
        f"{where}.rewards: prompts need something that scores the answers; give one, such as [{{name: polite}}]",
    )
    _require(
        bool(settings.prompts) or not settings.rewards,
        f"{where}.prompts: rewards need prompts to answer; name files of them, or tenki",
    )
    _require(
        not settings.rewards or policy.answers > 1,
        f"{where}.policy.answers: one answer is not better than others; give 2 or more",
    )
    _require(
        not policy.kl_weight or bool(settings.adapter.rank or settings.adapter.start),
        f"{where}.policy.kl_weight: compares with the model that the stage starts from, which is in memory only beside "
        "an adapter; set adapter.rank, or kl_weight to 0",
    )
    _require(
        not settings.prompts or policy.tokens < train.sequence_length,
        f"{where}.policy.tokens: {policy.tokens} tokens of an answer leave no room for a prompt in a row of "
        f"{train.sequence_length}; give fewer, or raise train.sequence_length",
    )


def _check_teacher(where: str, settings: TuningConfig) -> None:
    if not settings.teacher.model:
        return
    compared = next((kind for kind in ("preferences", "judged", "rewards") if getattr(settings, kind)), None)
    _require(
        compared is None,
        f"{where}.teacher: teaches by text or by prompts alone; put {compared} in another stage",
    )
    _require(
        not settings.beside,
        f"{where}.documents: a teacher of answers to prompts has no old text beside them; put it in another stage",
    )
    _require(
        not settings.train.optimizer.z_loss,
        f"{where}.train.optimizer.z_loss: what a teacher says has none; leave it out",
    )
    for key in ("updates", "kl_weight"):
        given = getattr(settings.policy, key)
        _require(
            given == getattr(PolicyConfig(), key),
            f"{where}.policy.{key}: is {given}, and a stage with a teacher has none; leave it out",
        )


def _check_stage(name: str, stage: TrainConfig, model: ModelConfig, from_base: bool) -> None:
    _require(stage.steps > 0, f"{name}.steps: {stage.steps} must be > 0")
    _require(stage.batch_size > 0, f"{name}.batch_size: {stage.batch_size} must be > 0")
    steps = stage.profile.split(":")
    right = len(steps) == 2 and all(number.isdecimal() for number in steps) and 0 < int(steps[0]) <= int(steps[1])
    _require(not stage.profile or right, f"{name}.profile: {stage.profile} is not FIRST:LAST, such as 100:105")
    _require(
        stage.accumulation > 0 and stage.batch_size % stage.accumulation == 0,
        f"{name}.accumulation: {stage.accumulation} does not divide batch_size {stage.batch_size}; choose a divisor",
    )
    _require(
        stage.sequence_length > 0 and (from_base or stage.sequence_length <= model.context_length),
        f"{name}.sequence_length: {stage.sequence_length} is not within model.context_length {model.context_length}",
    )

    _require(
        stage.optimizer.kind != "adafactor" or stage.optimizer.moments == "float32",
        f"{name}.optimizer.moments: what adafactor keeps is next to nothing, and float32; leave this setting out",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
