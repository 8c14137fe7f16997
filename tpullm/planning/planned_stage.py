"""The trainings of a recipe: its pretraining, and its stages of tuning, with their keys in the recipe."""

import dataclasses
from dataclasses import dataclass

from tpullm.errors import UserError
from tpullm.recipe.schema import AdapterConfig, Recipe, TrainConfig

PRETRAIN = "pretrain"


@dataclass(frozen=True)
class Stage:
    """A training of a recipe.

    Args:
        name: `pretrain`, or that of a stage of tuning.
        key: of `config` in the recipe.
        config: the training.
        adapter: what it trains beside the parameters of the model; None trains them all.
    """

    name: str
    key: str
    config: TrainConfig
    adapter: AdapterConfig | None = None

    def changed(self, recipe: Recipe, config: TrainConfig) -> Recipe:
        """The recipe with another training in the place of this one."""
        if self.name == PRETRAIN:
            return dataclasses.replace(recipe, pretrain=config)
        stage = dataclasses.replace(recipe.finetune[self.name], train=config)
        return dataclasses.replace(recipe, finetune=recipe.finetune | {self.name: stage})


def stage_of(recipe: Recipe, name: str = "") -> Stage:
    """A training of a recipe.

    Args:
        name: `pretrain` or of a stage of tuning. "" is the pretraining, or the first stage of tuning if the recipe
            starts from a published model, or says nothing of pretraining.

    Raises:
        UserError: there is no such stage.
    """
    if not name:
        tunes = recipe.foundation == "base" or recipe.pretrain == TrainConfig()
        name = next(iter(recipe.finetune), PRETRAIN) if tunes else PRETRAIN
    if name == PRETRAIN:
        return Stage(name, PRETRAIN, recipe.pretrain)
    if name not in recipe.finetune:
        raise UserError(f"--stage: the recipe has no stage {name}; it has {', '.join((PRETRAIN, *recipe.finetune))}")
    settings = recipe.finetune[name]
    return Stage(name, f"finetune.{name}.train", settings.train, settings.adapter if settings.adapter.rank else None)


def stage_named(key: str) -> str:
    """The name of the training that has this key."""
    return key.split(".")[1] if "." in key else key
