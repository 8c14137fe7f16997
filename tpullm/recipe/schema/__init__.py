"""The recipe: every setting of one run, each default written once, in the files of this folder.

A recipe is one YAML file, such as those of `configs/`. `tpullm VERB RECIPE --section.key VALUE` overrides a key.
"""

from tpullm.recipe.schema.corpus_settings import (
    ClassifierConfig,
    CorpusConfig,
    LeaksConfig,
    Source,
    SourceKind,
    TokenizerConfig,
)
from tpullm.recipe.schema.model_settings import ATTENTION_BLOCKS, ModelConfig, RopeScaling
from tpullm.recipe.schema.recipe_settings import EvaluateConfig, Recipe
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
