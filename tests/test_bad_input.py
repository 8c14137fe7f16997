"""What a user gets wrong is answered by one clear line and exit code 2, and nothing is left half-written."""

import importlib
import shutil
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from tests.conftest import TINY
from tpullm.cli.main import main
from tpullm.model import mesh
from tpullm.system.errors import correctable


@pytest.fixture
def pretrained(tiny_run, tiny_tokens) -> Path:
    shutil.copytree(tiny_run / "pretrain", tiny_tokens / "pretrain")
    return tiny_tokens


def refused(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tpullm: ")]
    assert len(lines) == 1
    return lines[0]


def recipe(folder: Path, **changes) -> Path:
    values = yaml.safe_load(TINY.read_text())
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True))
    return path


def test_storage_that_can_not_be_used_is_told(bucket, capsys):
    missing = f"{bucket}-not/run"
    assert f"{bucket}-not: no such bucket" in refused(capsys, "collect", "--config", TINY, "--run", missing)
    said = refused(capsys, "collect", "--config", TINY, "--run", "s3://b/run")
    assert "s3://b/run: only local paths and gs://" in said
    said = refused(capsys, "pretrain", "--run", bucket / "run")
    assert f"{bucket}/run/recipe.yaml: no such recipe" in said
    assert "no such file or folder" in refused(capsys, "collect", "--config", bucket / "recipe.yaml", "--run", "r")
    assert f"{bucket}/model: no such file or folder" in refused(capsys, "blank", bucket / "model", "a【?】")
    options = ["--text", bucket / "texts", "--run", bucket / "run"]
    assert f"{bucket}/texts: no such file or folder" in refused(capsys, "collect", "--config", TINY, *options)
    assert not bucket.exists() or list(bucket.iterdir()) == [], "nothing is left"


def test_a_missing_recipe_and_an_unknown_verb(capsys, tmp_path, monkeypatch):
    assert "nothing.yaml" in refused(capsys, "collect", "--config", tmp_path / "nothing.yaml")
    assert "`tpullm recipes` lists them" in refused(capsys, "collect", "--run", tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    assert "which recipe? Name one after the verb" in refused(capsys, "collect")
    assert "did you mean pretrain?" in refused(capsys, "pretain")
    (tmp_path / "runs").mkdir()
    for first in ("runs", "--model"):
        assert refused(capsys, first, "chat").startswith(f"tpullm: {first}: a verb comes first, such as: tpullm chat")
    assert "missing: one of --passage, --url, --hash; see tpullm trace --help" in refused(capsys, "trace", "quickstart")


def source(**changes) -> dict:
    return {"corpus": {"sources": [{"name": "mine", "kind": "text", "licence": "CC0-1.0", "language": ""} | changes]}}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.txt", None, "mine"),
        ("*.txt", None, "patterns are not read; name a folder"),
        ("a.txt", b"", "no document"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2"),
    ],
)
def test_a_source_that_gives_nothing(capsys, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    kind, run = "jsonl" if name == "a.jsonl" else "text", tmp_path / "run"
    config = recipe(tmp_path, **source(kind=kind, path=str(tmp_path / name)))
    assert said in refused(capsys, "collect", "--config", config, "--run", run)
    assert not (run / "documents" / "manifest.json").exists()
    assert list(run.rglob(".*partial*")) == []
    line = refused(capsys, "collect", "--config", recipe(tmp_path, **source(licence="", path="x.txt")))
    assert "licence" in line and "mine" in line


def test_a_stage_before_the_one_that_it_needs(capsys, tmp_path):
    assert "run `tpullm collect` first" in refused(capsys, "tokenize", "--config", TINY, "--run", tmp_path / "run")
    assert "run `tpullm tokenize" in refused(capsys, "pretrain", "--config", TINY, "--run", tmp_path / "run")


def test_a_tokenizer_of_another_run_is_noticed(capsys, tiny_tokens):
    made = tiny_tokens / "tokenizer" / "manifest.json"
    made.write_text(made.read_text().replace('"vocabulary_size": 640', '"vocabulary_size": 400'))
    assert "were not made with the tokenizer in" in refused(capsys, "pretrain", "--run", tiny_tokens)
    assert not (tiny_tokens / "pretrain").exists()


def test_a_vocabulary_without_room_for_the_bytes(capsys, tiny_tokens):
    line = refused(capsys, "tokenize", "--run", tiny_tokens, "--tokenizer.vocabulary_size", "100")
    assert "tokenizer.vocabulary_size: 100 is too small: special tokens and bytes take 282" in line
    assert (tiny_tokens / "tokenizer" / "manifest.json").exists(), "the old tokenizer stays"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--pretrain.batch_size", "8000"], "corpus too small"),
        (["--model.width", "65536", "--model.layers", "2000"], "pretrain: parameters and the optimizer's state take"),
        (["--model.vocabulary_size", "100"], "100 is smaller than the tokenizer's 640"),
    ],
)
def test_a_refused_training_takes_nothing_away(capsys, pretrained, option, said):
    """The finished stage stays where it is, and the run keeps its recipe."""
    before = (pretrained / "recipe.yaml").read_text()
    assert said in refused(capsys, "pretrain", "--run", pretrained, *option)
    assert (pretrained / "pretrain" / "manifest.json").exists()
    assert not (pretrained / "replaced").exists()
    assert (pretrained / "recipe.yaml").read_text() == before


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_compiled(capsys, request, verb, monkeypatch):
    run = request.getfixturevalue("tiny_tokens" if verb == "pretrain" else "pretrained")
    command = [verb, "--run", run, "--mesh"]
    assert "does not fit 1 device" in refused(capsys, *command, "{fsdp: 3}")
    module = importlib.import_module(f"tpullm.cli.{verb}")
    monkeypatch.setattr(module, "make_mesh", lambda shape: mesh.planned_mesh(shape, 8))  # as if there were 8 devices
    monkeypatch.setattr(jax, "jit", None)
    stage = "pretrain" if verb == "pretrain" else "finetune.talk.train"
    told = refused(capsys, *command, "{fsdp: -1, tensor: 4}")
    assert "model.heads: 2 can't be shared by 4 devices along mesh.tensor; use mesh.tensor 2" in told
    assert ("or model.heads" in told) == (verb == "pretrain"), "the model that is tuned is as it is"
    told = refused(capsys, *command, "{fsdp: -1}", f"--{stage}.batch_size=12")
    assert f"{stage}.batch_size: 12 rows (batch_size / accumulation) can't be shared by 8 devices" in told
    told = refused(capsys, *command, "{fsdp: -1}", f"--{stage}.loss_chunks=5")
    assert f"{stage}.loss_chunks: 5 does not divide the 128 tokens of a row that a device has; use 4 or 8" in told
    told = refused(capsys, *command, "{sequence: 8}", f"--{stage}.sequence_length=24")
    assert f"{stage}.sequence_length: 24 tokens, in 2 chunks a device, can't be shared by 8 devices" in told
    assert not (run / verb).exists()


def test_a_tuning_of_a_model_made_from_other_settings_or_of_another_shape(capsys, pretrained):
    line = refused(capsys, "finetune", "--run", pretrained, "--pretrain.steps", "31")
    assert "was made from other settings" in line
    line = refused(capsys, "finetune", "--run", pretrained, "--model.width", "64")
    assert "model.width: the checkpoint" in line and "has 32, the recipe says 64" in line
    assert not (pretrained / "talk").exists()


def test_a_conversation_that_teaches_nothing(capsys, pretrained):
    path = pretrained / "conversations.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    told = refused(capsys, "finetune", "--run", pretrained, "--finetune.talk.conversations", f"[{path}]")
    assert "no turn of the assistant" in told and "conversations.jsonl" in told
    assert not (pretrained / "talk").exists()


@pytest.mark.parametrize(
    "verb", [["generate", "--prompt", "a"], ["blank", "a【?】b"], ["chat", "--prompt", "a"], ["attention", "a"]]
)
def test_a_model_that_is_none(capsys, tmp_path, verb):
    assert "no such file or folder" in refused(capsys, verb[0], tmp_path / "nothing", *verb[1:])
    assert "holds no trained model" in refused(capsys, verb[0], tmp_path, *verb[1:])
    (tmp_path / "recipe.yaml").write_text("name: a")
    said = refused(capsys, verb[0], tmp_path, *verb[1:])
    assert f"this run has no trained model yet; train one: tpullm run {tmp_path}" in said
    assert f"did you mean {tmp_path.name}?" in refused(capsys, verb[0], f"{tmp_path}x", *verb[1:])
    if verb[0] != "blank":
        said = refused(capsys, verb[0], tmp_path / "recipe.yaml", *verb[1:])
        assert "is no GGUF file, the only file that can be a MODEL" in said


def test_a_folder_too_long_for_sockets_is_told_in_one_line(tmp_path):
    with pytest.raises(OSError) as raised:
        socket.socket(socket.AF_UNIX).bind(str(tmp_path / ("long" * 25) / "listener"))
    assert correctable(raised.value).startswith("the temporary folder's path is too long; set TMPDIR")


@pytest.mark.parametrize("allocated", [lambda: jnp.zeros(1 << 50), lambda: np.zeros(1 << 50)])
def test_more_memory_than_there_is_is_told_in_one_line(allocated):
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocated()
    assert correctable(raised.value).startswith("out of memory")
    assert correctable(RuntimeError("another")) is None
