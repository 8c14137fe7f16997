"""The trainings of a recipe: its pretraining, and its stages of tuning, with their keys in the recipe."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from tpullm.errors import UserError
from tpullm.recipe.schema import AdapterConfig, Recipe, TrainConfig, TuningConfig

PRETRAIN = "pretrain"


@dataclass(frozen=True)
class Stage:
    """A training of a recipe.

    Args:
        name: `pretrain`, or that of a stage of tuning.
        key: of `config` in the recipe.
        config: the training.
        adapter: what it trains beside the parameters of the model; None trains them all.
        uncounted: what else it does that a plan leaves out, as told to the user.
    """

    name: str
    key: str
    config: TrainConfig
    adapter: AdapterConfig | None = None
    uncounted: tuple[str, ...] = ()

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
    first = next(iter(recipe.finetune), PRETRAIN)
    if not name:
        name = first if recipe.base or recipe.pretrain == TrainConfig() else PRETRAIN
    if name == PRETRAIN:
        return Stage(name, PRETRAIN, recipe.pretrain)
    if name not in recipe.finetune:
        raise UserError(f"--stage: the recipe has no stage {name}; it has {', '.join((PRETRAIN, *recipe.finetune))}")
    settings = recipe.finetune[name]
    adapter = settings.adapter if settings.adapter.rank else None
    return Stage(name, f"finetune.{name}.train", settings.train, adapter, tuple(_uncounted(settings)))


def _uncounted(settings: TuningConfig) -> Iterator[str]:
    """What a stage does beside the step on its rows, which alone is planned."""
    if settings.prompts:
        answers = settings.policy.prompts * settings.policy.answers
        what = f"sampling {answers:,} answers of {settings.policy.tokens:,} tokens in a step"
        yield f"{what}: its cache, and its time (fsdp gathers the parameters for each token, tensor does not)"
    if settings.teacher.model:
        when = "in each step" if settings.prompts else "before the first step"
        yield f"the teacher {settings.teacher.model}, its parameters and its pass over the rows {when}"
    if settings.prompts and settings.policy.kl_weight:
        yield "the pass of the model without its adapter over the answers (policy.kl_weight)"
    if (settings.preferences or settings.judged) and settings.preference.needs_reference:
        yield "the pass of the model of the stage before over all rows, once, before the first step"
    if settings.beside:
        yield f"old text beside the answers ({', '.join(settings.beside)}), its rows in each step"


def stage_named(key: str) -> str:
    """The name of the training that has this key."""
    return key.split(".")[1] if "." in key else key
