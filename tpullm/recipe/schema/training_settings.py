"""Settings of a training, of step 4 and of each stage of step 5: length, batch, optimizer, saves.

`MixtureConfig` says what pretraining reads when, beyond the weights of the sources.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from tpullm.recipe.fields import (
    Changes,
    Factor,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    changing,
)


@dataclass(frozen=True)
class Phase:
    """Other weights from some step of pretraining on.

    Args:
        start: where it begins, as a share of the steps of pretraining. 0.8 begins after 80 % of them. 0 replaces the
            weights of the sources from the first step on, and leaves the tokenizer as it is.
        weights: by source, its share of the training tokens in this phase. A source that is not named is not read.
            Your own text (`yours`), if it is not named, has half the weight of all others. Empty keeps the weights of
            the sources.
        languages: factors of languages in this phase, in place of those of `mixture`. Empty keeps those.
    """

    start: Annotated[float, Interval(ge=0, lt=1)]
    weights: dict[str, Factor] = field(default_factory=dict)
    languages: dict[str, Factor] = field(default_factory=dict)


@dataclass(frozen=True)
class MixtureConfig:
    """How pretraining mixes the sources, beyond their weights.

    Args:
        languages: factors of the weights of languages, such as `{ja: 2}`. Then a Japanese document is read twice as
            often, compared with the others, as without. `others` is all languages that are not named; else their factor
            is 1. 0 leaves a language out. The language is that of the source, or that of the document if the source
            names none.
        epochs: by source, how often it is read at most, such as `{books: 4}`. If its weight asks for more, it gets
            less, and the other sources get the rest by their weights.
        phases: other weights from some step on, such as for the end of a training. Each has the keys of
            mixture.phases.
    """

    languages: dict[str, Factor] = field(default_factory=dict)
    epochs: dict[str, Annotated[float, Interval(gt=0, lt=math.inf)]] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Each key that can't be as it is, beside the others, and why."""
        before = -1.0
        for phase in self.phases:
            this = f"start {phase.start:g}"
            if phase.start <= before:
                yield "phases", f"{this}: comes after the phase of start {before:g}; put them in order"
            if not phase.weights and not phase.languages:
                yield "phases", f"{this}: changes nothing; give it weights or languages"
            if phase.weights and not any(phase.weights.values()):
                yield "phases", f"{this}: all weights are 0, so nothing would be read; give a source a weight above 0"
            before = phase.start


@dataclass(frozen=True)
class SkipConfig:
    """Which steps are skipped, and what then. A skipped step changes nothing. What is not finite is always skipped.

    Args:
        deviations: a step this many standard deviations above the mean is skipped. Its loss and its gradient norm are
            held against those of the last updates. What is at most 60 % above the mean is never skipped, at 6
            deviations. 0 skips only what is not finite.
        window: number of last updates in the mean. Half of them must be there first. It begins anew where a phase of
            the mixture begins, or another learning rate.
        patience: training rolls back after this many skipped steps in a row. It resumes from the last checkpoint of
            `checkpoint.every_steps` and leaves out the batches since then. If the model is as good as before, the text
            of these steps is new, and is learned.
        rollbacks: at most this many rollbacks. Then training stops.
    """

    deviations: NonNegativeFloat = changing(Changes.SKIPPED, 6.0)
    window: Annotated[int, Interval(ge=4, le=100_000)] = 128
    patience: PositiveInt = changing(Changes.SKIPPED, 16)
    rollbacks: NonNegativeInt = changing(Changes.SKIPPED, 3)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, Adafactor or Muon. Weight decay is decoupled and applies to matrices only (Loshchilov & Hutter 2019).

    Args:
        kind: the optimizer. `adafactor` keeps almost no state (Shazeer & Stern 2018; without a first moment). `muon` is
            for the matrices of the layers, with AdamW for all else, at AdamW's learning rates (Jordan et al. 2024; Liu
            et al. 2025).
        moments: type of AdamW's moments and Muon's momentum. bfloat16 takes half the bytes and is rounded
            stochastically.
        peak_lr: learning rate after the warm-up.
        schedule: `cosine`, or `wsd` (warm-up, stable, linear decay). Both end at `final_lr_fraction`.
        warmup_steps: steps of linear warm-up.
        decay_fraction: for `wsd`: share of the steps with decay.
        final_lr_fraction: last learning rate, as a share of the peak.
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
        epsilon: added to the root of AdamW's second moment.
        momentum: decay of Muon's momentum.
        weight_decay: decay of the matrices, times the learning rate.
        clip_norm: largest global norm of a gradient. Larger gradients are scaled down.
        z_loss: weight of the squared log-normalizer. It keeps logits small (PaLM, section 5).
        skip: which steps are skipped.
    """

    kind: Literal["adamw", "adafactor", "muon"] = "adamw"
    moments: Literal["float32", "bfloat16"] = "float32"
    peak_lr: NonNegativeFloat = 3e-3
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: NonNegativeInt = 100
    decay_fraction: Fraction = 0.3
    final_lr_fraction: Fraction = 0.0
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    epsilon: float = 1e-8
    momentum: Fraction = 0.95
    weight_decay: float = 0.1
    clip_norm: PositiveFloat = 1.0
    z_loss: NonNegativeFloat = 0.0
    skip: SkipConfig = field(default_factory=SkipConfig)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Each key that can't be as it is, beside the others, and why."""
        if self.kind == "adafactor" and self.moments != "float32":
            yield "moments", "what adafactor keeps is next to nothing, and float32; leave this setting out"


@dataclass(frozen=True)
class CheckpointConfig:
    """When training saves.

    Args:
        every_steps: save after this many steps. 0 is never by steps. A roll-back (`skip.patience`) goes to one of them.
        every_minutes: save after this many minutes. 0 is never by time.
        keep: number of saves to keep, and of those of `every_steps` as many. The last one is never removed.
        keep_every: saves whose step is a multiple of this number are never removed. 0 is none.
        keep_best: keep this many more saves, those of the lowest held-out loss. It is the mean over the sources.
        local: a folder on each host's own disk, for more frequent saves. Training resumes from the newest. Empty: none.
        local_every_minutes: save in `local` after this many minutes. 0 is never by time.
        local_every_steps: save in `local` after this many steps. 0 is never by steps.
    """

    every_steps: NonNegativeInt = 500
    every_minutes: NonNegativeFloat = 10.0
    keep: PositiveInt = 2
    keep_every: NonNegativeInt = 0
    keep_best: NonNegativeInt = 0
    local: str = ""
    local_every_minutes: NonNegativeFloat = 1.0
    local_every_steps: NonNegativeInt = 0


@dataclass(frozen=True)
class MeasureConfig:
    """What a training measures of its model on the way: before the first step, every so many steps, and at the end.

    Args:
        every: steps between measurements. 0 is those of `evaluate_every`.
        early: how many more come before the first of these. At half of its steps, at a quarter, and so on.
        tasks: tasks, as after `tpullm evaluate MODEL --tasks`. They are files of questions or of problems of
            programming, `humaneval`, or names of the lm-evaluation-harness.
        shots: examples before each question.
        limit: at most this many questions of each task. 0 is all.
        chat: ask in the chat template of the model; it also answers the `prompts`.
        prompts: texts that the model continues.
        sample_tokens: length of such a continuation, in tokens.
        blanks: sentences of tenki with 【?】 for a word. Every word of the language gets its probability there, beside
            the true one.
    """

    every: NonNegativeInt = 0
    early: NonNegativeInt = 0
    tasks: list[str] = field(default_factory=list)
    shots: NonNegativeInt = 0
    limit: NonNegativeInt = 200
    chat: bool = False
    prompts: list[str] = field(default_factory=list)
    sample_tokens: PositiveInt = 40
    blanks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training. Pretraining (step 4) and tuning (step 5) have the same keys.

    Args:
        steps: number of optimizer steps.
        batch_size: rows in one global batch (B).
        sequence_length: tokens in one row (T).
        accumulation: micro-batches per step. The result is the same.
        loss_chunks: chunks of a row in which the loss is computed. The result is the same. 0 keeps the logits of a
            chunk below 1 GiB a device (64 MiB on a CPU).
        compiler: options of XLA for the step, such as `{xla_tpu_scoped_vmem_limit_kib: "98304"}`. They win over ours
            (`model/platform.py`). Another platform ignores those whose name has `xla_tpu_`, `xla_sc_`, `xla_gpu_` or
            `xla_cpu_` of this one.
        compute: type of the matmuls. `auto` is bfloat16 where the machine is fast in it, else float32.
        optimizer: the optimizer.
        evaluate_every: steps between evaluations on held-out text. 0 is only at the end.
        evaluate_rows: at most this many rows a source in an evaluation. 0 is all.
        log_every: steps between lines of `metrics.jsonl`.
        norms_every: steps between lines with norms of parameters, gradient and update by layer. 0 is never.
        data_workers: threads that read ahead. The batches do not depend on it.
        check_every: steps between checks for wrong bits. A check computes a step twice more, and compares the copies of
            each array on all devices. It costs the time of two steps. 0 is never.
        patience_minutes: after so long without progress on a host, training ends (exit code 75). The host is named. 0
            is never. A step, a batch of an evaluation and a save must each take less.
        profile: steps to record, such as `100:105`. The folder `profile` of the stage is for xprof and Perfetto.
        checkpoint: when training saves.
        measure: what is measured on the way.
    """

    steps: PositiveInt = changing(Changes.LENGTH, 1000)
    batch_size: PositiveInt = 32
    sequence_length: PositiveInt = 256
    accumulation: PositiveInt = changing(Changes.ROUNDING, 1)
    loss_chunks: NonNegativeInt = changing(Changes.ROUNDING, 0)
    compiler: dict[str, str] = changing(Changes.ROUNDING, factory=dict)
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluate_every: NonNegativeInt = changing(Changes.NOTHING, 0)
    evaluate_rows: NonNegativeInt = changing(Changes.NOTHING, 64)
    log_every: PositiveInt = changing(Changes.NOTHING, 10)
    norms_every: NonNegativeInt = changing(Changes.ROUNDING, 0)  # it makes another program
    data_workers: NonNegativeInt = changing(Changes.NOTHING, 2)
    check_every: NonNegativeInt = changing(Changes.NOTHING, 0)
    profile: str = changing(Changes.NOTHING, "")
    patience_minutes: NonNegativeFloat = changing(Changes.NOTHING, 30.0)
    checkpoint: CheckpointConfig = changing(Changes.NOTHING, factory=CheckpointConfig)
    measure: MeasureConfig = changing(Changes.NOTHING, factory=MeasureConfig)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Each key that can't be as it is, beside the others, and why."""
        steps = re.fullmatch(r"(\d+):(\d+)", self.profile)
        if self.profile and not (steps and 0 < int(steps[1]) <= int(steps[2])):
            yield "profile", f"{self.profile} is not FIRST:LAST, such as 100:105"
        if self.batch_size % self.accumulation:
            yield "accumulation", f"{self.accumulation} does not divide batch_size {self.batch_size}; choose a divisor"
