"""The recipe as a whole, and what `evaluate` measures."""

from dataclasses import dataclass, field
from typing import Literal

from tpullm.recipe.changes import Changes, changing
from tpullm.recipe.schema.corpus_settings import CorpusConfig, TokenizerConfig
from tpullm.recipe.schema.model_settings import ModelConfig
from tpullm.recipe.schema.training_settings import MixtureConfig, TrainConfig
from tpullm.recipe.schema.tuning_settings import TuningConfig


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

    rows: int = 0
    batch_size: int = changing(Changes.ROUNDING, 32)
    questions: int = 0
    prompts: list[str] = field(default_factory=lambda: ["今日は", "The ", "def "])
    sample_tokens: int = 60
    attention: str = "昨日、リンゴを食べました。そのリンゴはとても"


@dataclass(frozen=True)
class Recipe:
    """One run.

    Args:
        name: the name of the recipe. A run directory belongs to one recipe.
        run: the run directory. It holds all that a run makes.
        seed: the seed of everything random.
        language: language of the report, `en` or `ja`. Empty is that of the environment (`LANG`).
        text: a file or folder of your own text. It is added to the sources.
        text_bytes: at most this many bytes of `text`. 0 is all.
        base: a published model to start from. A folder in the format of Hugging Face; its shapes, its tokenizer and its
            parameters are used.
        branch: a checkpoint of any run, for pretraining to start from. Such as `runs/a/pretrain/checkpoints/700`. The
            model has to be the same; with `branch_state: parameters` the vocabulary may have grown.
        branch_state: what is taken of `branch`. `all`: the optimizer and the step too, so training continues from that
            step. `parameters`: training starts at step 0.
        topology: the TPU slice of the recipe, such as `v5e:4x4` or `2 x v5p:4x4x8` (two). It runs on others too.
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
    """

    name: str = "unnamed"
    run: str = changing(Changes.NOTHING, "runs/unnamed")
    seed: int = 0
    language: Literal["", "en", "ja"] = changing(Changes.NOTHING, "")
    text: str = ""
    text_bytes: int = 0
    base: str = ""
    branch: str = ""
    branch_state: Literal["all", "parameters"] = "all"
    topology: str = changing(Changes.NOTHING, "")
    trackers: list[Literal["wandb", "mlflow"]] = changing(Changes.NOTHING, factory=list)
    mesh: dict[str, int] = changing(Changes.ROUNDING, factory=lambda: {"fsdp": -1})
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    finetune: dict[str, TuningConfig] = field(default_factory=dict)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def foundation(self) -> str:
        """The stage that tuning starts from: `pretrain`, or `base` if there is a base and no text to go on with."""
        learns = (
            self.text
            or any(source.weight > 0 for source in self.corpus.sources)
            or any(weight > 0 for phase in self.mixture.phases for weight in phase.weights.values())
        )
        return "base" if self.base and not learns else "pretrain"

    @property
    def trained(self) -> list[str]:
        """The stages that make a model, in order: each starts from the one before."""
        return [self.foundation, *self.finetune]
