"""What no run could do, found before anything is done: numbers out of range, settings that contradict each other."""

from tpullm.errors import UserError
from tpullm.hardware import slices
from tpullm.mesh.axes import check_sizes
from tpullm.recipe.schema import ATTENTION_BLOCKS, ModelConfig, Recipe, TrainConfig

# The smallest and the largest value of numbers that would otherwise fail late, or silently do nothing.
RANGES = {
    "seed": (0, 2**31 - 1),
    "corpus.held_out_fraction": (0, 1),
    "corpus.near_duplicate_similarity": (0, 1),
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
    "finetune.held_out_fraction": (0, 1),
    "evaluate.rows": (0, None),
    "evaluate.batch_size": (1, None),
    "evaluate.questions": (0, None),
    "evaluate.sample_tokens": (1, None),
}


def check(recipe: Recipe) -> Recipe:
    """Refuse what no run could do; `UserError` names the key."""
    _check_ranges(recipe)
    for name in slices.names(recipe.topology):  # several are for `plan`, which also takes `local`
        if name != "local":
            slices.parse(name)
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
    stages = {"pretrain": recipe.pretrain}
    if recipe.finetune:
        stages["finetune.train"] = recipe.finetune.train
    for name, stage in stages.items():
        _check_stage(name, stage, model, bool(recipe.base))
    names = [source.name for source in recipe.corpus.sources]
    repeated = sorted({name for name in names if names.count(name) > 1})
    _require(not repeated, f"corpus.sources: the name {', '.join(repeated)} is used twice; names must differ")
    return recipe


def _check_ranges(recipe: Recipe) -> None:
    stages = {"pretrain": recipe.pretrain} | ({"finetune.train": recipe.finetune.train} if recipe.finetune else {})
    for key, (least, most) in RANGES.items():
        section = key.split(".")[0]
        in_stages = section in ("optimizer", "checkpoint") or not hasattr(recipe, section)
        owners = {f"{name}.{key}": stage for name, stage in stages.items()} if in_stages else {key: recipe}
        for name, owner in owners.items():
            value = owner
            for part in key.split("."):
                value = getattr(value, part, None)
            if value is not None:
                _require(value >= least, f"{name}: {value} is too small; use {least} or more")
                _require(most is None or value <= most, f"{name}: {value} is too large; use {most} or less")


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
