"""What a key changes is declared at its field, once, and all that depends on it asks there."""

import dataclasses
import typing

import pytest

from tpullm.recipe.fields import Changes, declared_change, part, result
from tpullm.recipe.schema import CheckpointConfig, CorpusConfig, ModelConfig, Recipe, Source, TrainConfig


def changed(config, name):
    value = getattr(config, name)
    choices = typing.get_args(typing.get_type_hints(type(config))[name]) or ("1:2",)  # of a text, any other one
    if isinstance(value, bool):
        return dataclasses.replace(config, **{name: not value})
    if isinstance(value, int | float):
        return dataclasses.replace(config, **{name: value + 1})
    if isinstance(value, str):
        return dataclasses.replace(config, **{name: next(other for other in choices if other != value)})
    return None


@pytest.mark.parametrize("config", [TrainConfig(), ModelConfig(), CorpusConfig()])
def test_another_value_shows_in_the_result_if_the_key_changes_it(config):
    for field in dataclasses.fields(config):
        if other := changed(config, field.name):
            shows = declared_change(field) in (Changes.RESULT, Changes.TRAINING)
            assert (result(config) != result(other)) == shows, field.name


def test_a_key_that_came_later_shows_when_it_is_used():
    """So stages that were made before it are still known."""
    names = {field.name for field in dataclasses.fields(ModelConfig) if field.metadata.get("later")}
    assert names == {
        *("rotary_width", "rotary_layers", "dense_layers", "dense_width"),
        *("embedding_scale", "residual_scale", "logit_divisor"),
    }
    assert not names & result(ModelConfig()).keys()
    assert result(ModelConfig(rotary_width=2))["rotary_width"] == 2


def test_every_key_of_a_training_that_resumes_is_declared():
    resumes = {field.name for field in dataclasses.fields(TrainConfig) if declared_change(field).resumes}
    saving = {"checkpoint", "log_every", "evaluate_every", "evaluate_rows", "data_workers"}
    watching = {"patience_minutes", "check_every", "profile", "norms_every", "measure"}
    assert resumes == saving | watching | {"steps", "accumulation", "loss_chunks", "compiler"}
    of_model = {field.name for field in dataclasses.fields(ModelConfig) if declared_change(field).resumes}
    assert of_model == {"remat", "attention_block"}


def test_the_keys_of_settings_in_settings_stand_in_their_section():
    recipe = Recipe(pretrain=TrainConfig(steps=7, accumulation=2))
    assert part(recipe.pretrain, Changes.LENGTH) == {"steps": 7}
    assert part(recipe, Changes.LENGTH) == {"pretrain": {"steps": 7}}
    nothing = part(TrainConfig(checkpoint=CheckpointConfig(keep=5)), Changes.NOTHING)
    assert nothing["checkpoint"] == dataclasses.asdict(CheckpointConfig(keep=5))
    assert "checkpoint" not in result(recipe.pretrain) and "optimizer" in result(recipe.pretrain)
    sources = CorpusConfig(sources=[Source("mine", "text")])
    assert result(sources)["sources"][0].name == "mine"


def test_a_model_is_trained_as_another_one_by_the_keys_of_training():
    one, other = ModelConfig(width=64, dropout=0.1), ModelConfig(width=128, dropout=0.2, remat="full")
    assert one.trained_as(other) == ModelConfig(width=64, dropout=0.2, remat="full")
    concern = {"dropout", "remat", "attention_block", "gradients", "balance_loss", "matmuls"}
    assert set(ModelConfig.of_training()) == concern


@pytest.mark.parametrize(("width", "mlp_width"), [(24, 64), (48, 128), (49, 192), (768, 2048)])
def test_the_width_of_an_mlp_is_8_thirds_of_the_models_in_whole_64s(width, mlp_width):
    assert ModelConfig(width=width).resolved(64).mlp_width == mlp_width
    assert ModelConfig(width=width, mlp_width=7).resolved(64).mlp_width == 7
