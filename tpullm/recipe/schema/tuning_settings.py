"""Settings of step 5: the stages of tuning, each from the model of the one before."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Gt, Interval

from tpullm.recipe.fields import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Temperature
from tpullm.recipe.schema.training_settings import TrainConfig
from tpullm.system.words import nearest

ALONE = ("preferences", "judged", "prompts")  # keys of what is learned in a stage of its own
# The matrices that an adapter may stand beside.
MATRICES = ("query", "key", "value", "out", "gate", "up", "down", "router")


@dataclass(frozen=True)
class AdapterConfig:
    """A low-rank adapter: small matrices beside those of the model, which alone are trained (LoRA, Hu et al. 2021).

    Args:
        rank: width of the adapter (R). 0 is no adapter: all parameters are trained.
        alpha: its scale is alpha / rank. 0 is twice the rank.
        root_scale: scale by alpha / sqrt(rank) instead. So ranks of any size learn alike (rsLoRA, Kalajdzievski 2023).
        magnitude: learn the length of each output apart from its direction. DoRA (Liu et al. 2024). Of experts it is
            not learned.
        targets: matrices that get an adapter. Of attention: query, key, value, out; of an MLP or its experts: gate, up,
            down; and router.
        b_learning_rate: learning rate of the second matrix, as a multiple of that of the first. LoRA+ (Hayou et al.
            2024) has 16.
        quantize_base: keep the matrices of attention and MLP, which are not trained, in 8 or 4 bits. QLoRA (Dettmers et
            al. 2023). In blocks of 64 with a scale each: whole numbers (`int8`), `fp8` (e4m3), or `nf4`, which has 4
            bits.
        start: an adapter to go on with: a folder in the format of PEFT. Its rank, scale, kind and targets are used.
    """

    rank: Annotated[int, Interval(ge=0, le=65_536)] = 0
    alpha: NonNegativeFloat = 0.0
    root_scale: bool = False
    magnitude: bool = False
    targets: tuple[str, ...] = ("query", "key", "value", "out", "gate", "up", "down")
    b_learning_rate: PositiveFloat = 1.0
    quantize_base: Literal["", "int8", "fp8", "nf4"] = ""
    start: str = ""

    @property
    def scale(self) -> float:
        """The factor on what the adapter adds."""
        return (self.alpha or 2 * self.rank) / (self.rank**0.5 if self.root_scale else self.rank)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Each key that can't be as it is, beside the others, and why."""
        for target in self.targets:
            if target not in MATRICES:
                yield "targets", f"no matrix is named {target}; {nearest(target, MATRICES)}"
        if self.rank and not self.targets:
            yield "targets", f"names no matrix, so nothing would be trained; name some of {', '.join(MATRICES)}"
        if self.quantize_base and not self.rank and not self.start:
            yield "quantize_base", "parameters that are trained can't be quantized; set adapter.rank"


@dataclass(frozen=True)
class PreferenceConfig:
    """How a stage learns from preferences: two answers to a prompt, of which people like one better; or judged ones.

    Args:
        kind: the objective. `dpo` (Rafailov et al. 2023), `ipo` (Azar et al. 2023), `orpo` (Hong et al. 2024), `simpo`
            (Meng et al. 2024); of judged answers `kto` (Ethayarajh et al. 2024).
        beta: how strongly the model is held where it started. For `orpo`: the weight of the odds ratio beside the
            likelihood. For `simpo`: the scale of the rewards, 2 or more.
        label_smoothing: for `dpo`: the share of pairs whose answers may be the wrong way round.
        per_token: for `dpo`: compare means over tokens, so long answers weigh no more.
        gamma: for `simpo`: the margin by which the better answer is to win.
        reference: for `dpo`: compare with the model of the stage before. Its log-probabilities are computed once,
            before the first step.
        desirable_weight: for `kto`: how much a good answer counts.
        undesirable_weight: for `kto`: how much a bad one counts. If one sort is rarer, let it count more.
    """

    kind: Literal["dpo", "ipo", "orpo", "simpo", "kto"] = "dpo"
    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Interval(ge=0, le=0.5)] = 0.0
    per_token: bool = False
    gamma: NonNegativeFloat = 0.5
    reference: bool = True
    desirable_weight: NonNegativeFloat = 1.0
    undesirable_weight: NonNegativeFloat = 1.0

    @property
    def needs_reference(self) -> bool:
        """Whether the objective compares with the model that tuning starts from."""
        return self.kind in ("ipo", "kto") or self.kind == "dpo" and self.reference


@dataclass(frozen=True)
class PolicyConfig:
    """How a stage learns from rewards: the model answers each prompt several times, and learns from what scored better.

    Args:
        kind: the method. `grpo` (Shao et al. 2024), `dr_grpo` (Liu et al. 2025), `dapo` (Yu et al. 2025), `gspo` (Zheng
            et al. 2025), `rloo` (Ahmadian et al. 2024).
        prompts: number of prompts in a step.
        answers: number of answers to each prompt.
        tokens: the most tokens of an answer. A longer one is cut off.
        temperature: of sampling.
        clip_low: how far below 1 the ratio of probabilities counts. 0 is what the method's authors chose.
        clip_high: how far above 1 it counts. 0 is what the method's authors chose.
        updates: number of steps that learn from the same answers.
        kl_weight: how strongly the model is held where it started. It needs an adapter: without it the parameters are
            those of the start, so there is no second copy of them.
    """

    kind: Literal["grpo", "dr_grpo", "dapo", "gspo", "rloo"] = "grpo"
    prompts: PositiveInt = 8
    answers: Annotated[int, Interval(ge=1, le=32_767)] = 8
    tokens: PositiveInt = 64
    temperature: Temperature = 1.0
    clip_low: Fraction = 0.0
    clip_high: NonNegativeFloat = 0.0
    updates: PositiveInt = 1
    kl_weight: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class TeacherConfig:
    """A larger model that a stage learns from: how likely it finds each next token, not the token alone (distillation).

    Args:
        model: a stage of a run, a checkpoint, a folder in the format of Hugging Face, or a GGUF file. It needs the same
            tokens.
        kind: what is minimized. `forward_kl`: the student covers all that the teacher may say (Hinton et al. 2015).
            `reverse_kl`: it keeps to what the teacher finds likely (Gu et al. 2024). `jsd`: between (Agarwal et al.
            2024).
        top: number of the teacher's likeliest tokens that count at each place. All others are one more.
        temperature: divides the logits of both.
    """

    model: str = ""
    kind: Literal["forward_kl", "jsd", "reverse_kl"] = "forward_kl"
    top: Annotated[int, Interval(ge=1, le=4096)] = 64
    temperature: Temperature = 1.0


@dataclass(frozen=True)
class TuningConfig:
    """A stage of step 5: it learns from conversations, documents, both mixed, preferences, judged answers, or rewards.

    Args:
        conversations: files and folders of conversations. JSON Lines, JSON or Parquet, in the shapes of
            `docs/en/tuning.md`. `tenki` stands for the built-in questions, `tenki_casual` for the same with
            casual answers, `law` for questions about the laws of the sources of that kind, and `medicine`,
            `medicine-ja`, `programming`, `licences` and `docstrings` for those of the domains.
        columns: our key of an example, and the key in the files. Such as {messages: dialogue}, where they are others.
        documents: sources of `corpus`, and their shares of the tokens. Such as {law: 0.8, general: 0.2}. A little old
            text keeps a model from forgetting: beside conversations, which take the rest of the tokens, or beside
            preferences, judged answers or rewards, which have the rest of the loss.
        preferences: files and folders of preferences: a prompt and two answers. In the shapes of `docs/en/tuning.md`.
        judged: files and folders of judged answers: a prompt, an answer, and whether it is good. In the shapes of
            `docs/en/tuning.md`; `preference.kind` is then `kto`.
        preference: the objective of compared answers. Of preferences and judged answers.
        prompts: files and folders of prompts, which the model answers itself. Also `tenki`, `law`, `medicine`,
            `medicine-ja`, `programming`, `licences`, and `reasoning_gym:FAMILY`.
        rewards: what scores the answers, such as [{name: polite}]. See `docs/en/tuning.md`.
        policy: how it answers prompts. And how it learns from rewards.
        teacher: a larger model to learn from. On the text of the stage, or on its own answers to prompts.
        chat_template: a Jinja file that formats conversations. For a `base` that has no chat template.
        held_out_fraction: share of the examples kept for evaluation. They are chosen by hash.
        adapter: train a low-rank adapter alone. The parameters of the model stay as they are.
        train: the training.
    """

    conversations: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    documents: dict[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    preferences: list[str] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    prompts: list[str] = field(default_factory=list)
    rewards: list[dict[str, Any]] = field(default_factory=list)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    chat_template: str = ""
    held_out_fraction: Fraction = 0.2
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def examples(self) -> list[str]:
        """The names of all that it reads but `documents`: files, folders, and built-in questions."""
        return [*self.conversations, *self.preferences, *self.judged, *self.prompts]

    @property
    def beside(self) -> dict[str, float]:
        """Sources of old text, and their shares of the loss, beside preferences, judged answers or rewards."""
        return self.documents if any(getattr(self, kind) for kind in ALONE) else {}

    @property
    def reward_files(self) -> list[str]:
        """The files of the user's own rewards."""
        return [str(reward["function"]).rpartition(":")[0] for reward in self.rewards if "function" in reward]

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Each key that can't be as it is, beside the others, and why."""
        if (self.conversations or self.beside) and (shares := sum(self.documents.values())) >= 1:
            yield "documents", f"their shares are {shares:g}, so nothing is left for what is beside them; give less"
        alone = [kind for kind in ALONE if getattr(self, kind)]
        if alone and self.train.optimizer.z_loss:
            yield "train.optimizer.z_loss", f"{alone[0]} have none; leave it out"
        if alone and (self.conversations or alone[1:]):
            yield "", f"{alone[0]} are learned in a stage of their own; put what else there is in another"
        if self.judged and self.preference.kind != "kto":
            why = f"{self.preference.kind} compares two answers, and judged ones stand alone; set kto"
            yield "preference.kind", why
        if self.preferences and self.preference.kind == "kto":
            yield "preference.kind", "kto learns from judged answers, and these are pairs; choose another kind"
        policy, row = self.policy, self.train.sequence_length
        if self.prompts and not self.rewards and not self.teacher.model:
            yield "rewards", "prompts need something that scores the answers; give one, such as [{name: polite}]"
        if self.rewards and not self.prompts:
            yield "prompts", "rewards need prompts to answer; name files of them, or tenki"
        if self.rewards and policy.answers == 1:
            yield "policy.answers", "one answer is not better than others; give 2 or more"
        if policy.kl_weight and not self.adapter.rank and not self.adapter.start:
            why = "compares with the model that the stage starts from, which is in memory only beside an adapter"
            yield "policy.kl_weight", f"{why}; set adapter.rank, or kl_weight to 0"
        if self.prompts and policy.tokens >= row:
            why = f"{policy.tokens} tokens of an answer leave no room for a prompt in a row of {row}"
            yield "policy.tokens", f"{why}; give fewer, or raise train.sequence_length"
        if not self.teacher.model:
            return
        for kind in ("preferences", "judged", "rewards"):
            if getattr(self, kind):
                yield "teacher", f"teaches by text or by prompts alone; put {kind} in another stage"
        if self.beside:
            yield "documents", "a teacher of answers to prompts has no old text beside them; put it in another stage"
        if self.train.optimizer.z_loss:
            yield "train.optimizer.z_loss", "what a teacher says has none; leave it out"
        for key in ("updates", "kl_weight"):
            if (given := getattr(policy, key)) != getattr(PolicyConfig, key):
                yield f"policy.{key}", f"is {given}, and a stage with a teacher has none; leave it out"
