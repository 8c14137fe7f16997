"""A stage knows what it was made from."""

import dataclasses
import shlex

import pytest

from tpullm.recipe.schema import ExportConfig, MixtureConfig, ModelConfig, Phase, Recipe, TrainConfig, TuningConfig
from tpullm.run import manifest, stages
from tpullm.system import storage
from tpullm.system.errors import UserError


def test_a_finished_stage_is_skipped_only_while_its_inputs_stand(tmp_path):
    stage = tmp_path / "pretrain"
    inputs = manifest.inputs({"width": 1, "betas": (0.9, 0.95)}, {"tokens": "abc"}, TrainConfig(steps=9))
    assert not manifest.is_finished(stage, inputs)
    manifest.write(stage, inputs, seconds=1.0)
    assert manifest.is_finished(stage, inputs)
    for other in (
        {"config": {"width": 2, "betas": [0.9, 0.95]}},
        {"upstream": {"tokens": "abd"}},
        {"length": {"steps": 8}},
    ):
        assert not manifest.is_finished(stage, inputs | other)
        assert manifest.differ_in_length_alone(inputs, inputs | other) == ("length" in other)


def test_a_stage_of_other_inputs_is_kept_aside_and_never_deleted(tmp_path):
    stage = tmp_path / "pretrain"
    for steps in (1, 2, 3, 3):  # the second 3 resumes the stage of the first
        stages.begin(stage, manifest.inputs({"width": steps}, {}))
        (stage / f"made {steps}").write_text("dear")
    assert [path.name for path in stage.glob("made*")] == ["made 3"]
    assert sorted(path.name for path in (tmp_path / "replaced").glob("*/made*")) == ["made 1", "made 2"]


def test_an_identity_changes_with_the_inputs_and_not_with_the_facts_or_the_version(tmp_path, monkeypatch):
    found = []
    for steps, seconds in ((1, 1.0), (1, 2.0), (2, 1.0)):
        monkeypatch.setattr(manifest, "__version__", str(seconds))
        manifest.write(tmp_path, manifest.inputs({"width": steps}, {}), seconds=seconds)
        found.append(manifest.finished_identity(tmp_path))
    assert found[0] == found[1] != found[2]
    assert storage.read_json(tmp_path / "manifest.json")["seconds"] == 1.0


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.model", "extra.json", "manifest.json"):
        (folder / name).write_text(name)
    return folder


def inputs(width=1, steps=10):
    return manifest.inputs({"width": width}, {}, TrainConfig(steps=steps))


def test_a_training_keeps_the_tokenizer_that_it_begins_with(tmp_path, tokenizer):
    stages.begin_training(tmp_path, "pretrain", inputs(), tokenizer, {"extra.json": "changed"})
    beside = tmp_path / "pretrain" / "tokenizer"
    assert {file.name: file.read_text() for file in beside.iterdir()} == {
        "tokenizer.model": "tokenizer.model",
        "extra.json": "changed",
    }
    assert stages.started(tmp_path / "pretrain") == inputs()
    (tokenizer / "tokenizer.model").write_text("another")
    stages.begin_training(tmp_path, "pretrain", inputs(), tokenizer)
    assert (beside / "tokenizer.model").read_text() == "tokenizer.model" and not (tmp_path / "replaced").exists()


def test_a_training_of_another_length_stays_and_is_no_longer_finished(tmp_path, tokenizer):
    stage = tmp_path / "pretrain"
    stages.begin_training(tmp_path, "pretrain", inputs(), tokenizer)
    manifest.write(stage, inputs())
    stages.begin_training(tmp_path, "pretrain", inputs(), tokenizer)
    assert manifest.is_finished(stage, inputs())
    for _ in range(2):  # once more after an interruption
        stages.begin_training(tmp_path, "pretrain", inputs(steps=20), tokenizer)
        assert not (stage / "manifest.json").exists() and stages.started(stage) == inputs(steps=20)
    assert not (tmp_path / "replaced").exists()


def test_a_training_of_other_inputs_is_kept_aside_whole(tmp_path, tokenizer, capsys):
    stages.begin_training(tmp_path, "pretrain", inputs(), tokenizer)
    (tmp_path / "pretrain" / "made").write_text("dear")
    stages.begin_training(tmp_path, "pretrain", inputs(width=2), tokenizer)
    (kept,) = (tmp_path / "replaced").iterdir()
    assert f"made again (the old one is kept in {kept})" in capsys.readouterr().err.replace("\n", "")
    assert sorted(path.name for path in kept.iterdir()) == ["inputs.json", "made", "tokenizer"]
    assert sorted(path.name for path in (tmp_path / "pretrain").iterdir()) == ["inputs.json", "tokenizer"]


def test_a_training_that_was_killed_before_its_inputs_were_noted_begins_again(tmp_path, tokenizer):
    stages.begin_training(tmp_path, "pretrain", inputs(), tokenizer)
    (tmp_path / "pretrain" / "inputs.json").unlink()
    (tokenizer / "tokenizer.model").write_text("another")
    stages.begin_training(tmp_path, "pretrain", inputs(), tokenizer)
    assert (tmp_path / "pretrain" / "tokenizer" / "tokenizer.model").read_text() == "another"


def test_an_earlier_stage_that_is_missing_is_named_with_its_verb(tmp_path):
    with pytest.raises(UserError, match=r"tokens: not made yet; run `tpullm tokenize --run .*` first"):
        stages.need(tmp_path, "tokens", "tokenize")
    manifest.write(tmp_path / "tokens", inputs())
    assert stages.need(tmp_path, "tokens", "tokenize") == manifest.identity_of(inputs())


def test_a_base_is_known_by_the_content_of_its_files(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    recipe = Recipe(base=str(folder))
    with pytest.raises(UserError, match="no config.json"):
        stages.digests(storage.path(recipe.base), tmp_path / "base", "base")
    for name in ("config.json", "model.safetensors", "chat_template.jinja", "README.md"):
        (folder / name).write_text(name)
    before = stages.base_inputs(recipe, tmp_path)
    assert set(before["upstream"]) == {"config.json", "model.safetensors", "chat_template.jinja"}
    assert before["upstream"]["config.json"] == storage.hash_file(folder / "config.json")
    (folder / "README.md").write_text("changed")
    assert stages.base_inputs(recipe, tmp_path) == before
    (folder / "config.json").write_text("changed")
    assert stages.base_inputs(recipe, tmp_path) != before


def test_the_hash_of_a_file_that_has_not_changed_is_not_computed_again(tmp_path, monkeypatch):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    recipe = Recipe(base=str(folder))
    arguments = (storage.path(recipe.base), tmp_path / "base", "base")
    noted = stages.digests(*arguments)
    (tmp_path / "base").mkdir()
    storage.write_json(tmp_path / "base" / "digests.json", noted)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "hash_file", None)  # would fail if it were called
        assert stages.digests(*arguments) == noted
    (folder / "config.json").write_text("{ }")
    assert stages.digests(*arguments)["config.json"][2] != noted["config.json"][2]


def test_a_file_under_another_name_is_the_same_base(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    before = stages.base_inputs(Recipe(base=str(tmp_path / "a.gguf")), tmp_path)
    (tmp_path / "a.gguf").rename(tmp_path / "b.gguf")
    assert stages.base_inputs(Recipe(base=str(tmp_path / "b.gguf")), tmp_path) == before


def test_commands_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    recipe, run = Recipe(name="my model", export=ExportConfig(gguf=("q8_0",))), tmp_path / "$HOME; it's"
    found = stages.chat_commands(recipe, run)
    assert shlex.split(found["here"]) == ["tpullm", "chat", str(run)]
    assert shlex.split(found["LM Studio"])[2:] == [str(run / "export" / "my model-q8_0.gguf")]
    assert shlex.split(found["Ollama"])[:5] == ["ollama", "create", "my model", "-f", str(run / "export" / "Modelfile")]


def test_an_imported_base_stands_without_its_folder(tmp_path):
    folder = tmp_path / "published"
    manifest.write(tmp_path / "base", inputs(), folder=str(folder))
    assert stages.base_inputs(Recipe(base=str(folder)), tmp_path) == inputs()
    with pytest.raises(UserError, match="no folder in the format of Hugging Face"):
        stages.base_inputs(Recipe(base=str(tmp_path / "other")), tmp_path)


def test_tuning_of_a_base_depends_on_how_the_model_is_trained(tmp_path):
    """Tuning of a pretrained model does so through the pretraining."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    plain = Recipe(base=str(folder), finetune={"talk": TuningConfig()})
    manifest.write(tmp_path / "base", stages.base_inputs(plain, tmp_path))
    found = {
        key: stages.tuning_inputs(dataclasses.replace(plain, model=ModelConfig(**{key: value})), tmp_path, "talk")
        for key, value in {"layers": 4, "dropout": 0.1, "remat": "full"}.items()
    }
    assert found["dropout"] != found["layers"] == found["remat"] == stages.tuning_inputs(plain, tmp_path, "talk")


@pytest.mark.parametrize(
    ("mixture", "by_steps"),
    [
        (MixtureConfig(languages={"ja": 2.0}), False),
        (MixtureConfig(epochs={"a": 4.0}), True),
        (MixtureConfig(phases=[Phase(0.8, {"a": 1.0})]), False),
    ],
)
def test_a_mixture_is_an_input_of_pretraining_alone(tmp_path, mixture, by_steps):
    """Bounds of epochs depend on the number of steps from the first step on, so another number is another training."""
    manifest.write(tmp_path / "tokens", manifest.inputs({}, {}))
    plain = Recipe(pretrain=TrainConfig(steps=10))
    mixed = dataclasses.replace(plain, mixture=mixture)
    longer = dataclasses.replace(mixed, pretrain=TrainConfig(steps=20))
    before, after, long = (stages.pretrain_inputs(recipe, tmp_path) for recipe in (plain, mixed, longer))
    assert set(after["config"]) - set(before["config"]) == {"mixture"} | {"steps"} & ({"steps"} if by_steps else set())
    assert before["config"].items() <= after["config"].items() and before["upstream"] == after["upstream"]
    assert manifest.differ_in_length_alone(after, long) != by_steps
    assert manifest.identity_of(after) == manifest.identity_of(manifest.plain(after))
