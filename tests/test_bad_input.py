"""What a user gets wrong is answered by one clear line and exit code 2, and nothing is left half-written."""

import importlib
import json
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


def refused(capsys, *arguments) -> str:
    """The one line of stderr with which the command is refused."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tpullm: ")]
    assert len(lines) == 1
    return lines[0]


def recipe(folder: Path, **changes) -> Path:
    """A copy of the tiny recipe with some sections changed."""
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
    assert f"{bucket}/model: no such folder" in refused(
        capsys, "generate", "--prompt", "a", "--model", bucket / "model"
    )
    options = ["--text", bucket / "texts", "--run", bucket / "run"]
    assert f"{bucket}/texts: no such file or folder" in refused(capsys, "collect", "--config", TINY, *options)
    assert not bucket.exists() or list(bucket.iterdir()) == [], "nothing is left"


def leftovers(folder: Path) -> list[str]:
    """Half-written files and folders."""
    return [path.name for path in folder.rglob(".*partial*")]


def test_a_missing_recipe(capsys, tmp_path, monkeypatch):
    assert "nothing.yaml" in refused(capsys, "collect", "--config", tmp_path / "nothing.yaml")
    assert "`tpullm recipes` lists them" in refused(capsys, "collect", "--run", tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    assert "which recipe? Name one after the verb" in refused(capsys, "collect")


def test_an_unknown_verb_names_the_nearest(capsys):
    assert "did you mean pretrain?" in refused(capsys, "pretain")


def source(**changes) -> dict:
    return {"corpus": {"sources": [{"name": "mine", "kind": "text", "licence": "CC0-1.0", "language": ""} | changes]}}


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (None, "text", "mine"),
        (b"", "text", "no document"),
        (b'{"text": "a"}\n{"text": ', "jsonl", "line 2"),
        (b"\xff\xfe\x00broken", "text", "not UTF-8"),
    ],
)
def test_a_source_that_gives_nothing(capsys, tmp_path, content, kind, said):
    path = tmp_path / f"source.{'jsonl' if kind == 'jsonl' else 'txt'}"
    if content is not None:
        path.write_bytes(content)
    config = recipe(tmp_path, **source(kind=kind, path=str(path)))
    run = tmp_path / "run"
    assert said in refused(capsys, "collect", "--config", config, "--run", run)
    assert not (run / "documents" / "manifest.json").exists()
    assert not leftovers(run)


def test_a_source_without_a_licence_is_told_why(capsys, tmp_path):
    line = refused(capsys, "collect", "--config", recipe(tmp_path, **source(licence="", path="x.txt")))
    assert "licence" in line and "mine" in line


def test_a_document_that_is_not_utf8_is_counted_and_skipped(capsys, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "good.txt").write_text("今日はいい天気ですね。" * 30 + "\n")
    (folder / "bad.txt").write_bytes(b"\x81\xff\x00broken" * 30)
    config = recipe(tmp_path, **source(path=str(folder), filter=False))
    assert main(["collect", "--config", str(config), "--run", str(tmp_path / "run")]) == 0
    card = json.loads((tmp_path / "run" / "documents" / "datacard.json").read_text())
    assert card["dropped"]["mine"] == {"not UTF-8": 1}


def test_a_stage_before_the_one_that_it_needs(capsys, tmp_path):
    assert "run `tpullm collect` first" in refused(capsys, "tokenize", "--config", TINY, "--run", tmp_path / "run")
    assert "run `tpullm tokenize" in refused(capsys, "pretrain", "--config", TINY, "--run", tmp_path / "run")


def test_a_vocabulary_without_room_for_the_bytes(capsys, tiny_tokens):
    line = refused(capsys, "tokenize", "--run", tiny_tokens, "--tokenizer.vocabulary_size", "100")
    assert "tokenizer.vocabulary_size: 100 is too small: special tokens and bytes take 282" in line
    assert (tiny_tokens / "tokenizer" / "manifest.json").exists(), "the old tokenizer stays"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--pretrain.batch_size", "8000"], "corpus too small"),
        (["--model.vocabulary_size", "100"], "100 is smaller than the tokenizer's 640"),
    ],
)
def test_a_refused_training_takes_nothing_away(capsys, tiny_run, tiny_tokens, option, said):
    """The finished stage stays where it is, and the run keeps its recipe."""
    shutil.copytree(tiny_run / "pretrain", tiny_tokens / "pretrain")
    before = (tiny_tokens / "recipe.yaml").read_text()
    assert said in refused(capsys, "pretrain", "--run", tiny_tokens, *option)
    assert (tiny_tokens / "pretrain" / "manifest.json").exists()
    assert not (tiny_tokens / "replaced").exists()
    assert (tiny_tokens / "recipe.yaml").read_text() == before


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_compiled(
    capsys, tiny_run, tiny_tokens, verb, monkeypatch
):
    if verb == "finetune":
        shutil.copytree(tiny_run / "pretrain", tiny_tokens / "pretrain")
    command = [verb, "--run", tiny_tokens, "--mesh"]
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
    assert not (tiny_tokens / verb).exists()


def test_a_tuning_of_a_model_made_from_other_settings(capsys, tiny_run, tiny_tokens):
    shutil.copytree(tiny_run / "pretrain", tiny_tokens / "pretrain")
    line = refused(capsys, "finetune", "--run", tiny_tokens, "--pretrain.steps", "31")
    assert "was made from other settings" in line


def test_a_checkpoint_of_another_shape(capsys, tiny_run, tiny_tokens):
    shutil.copytree(tiny_run / "pretrain", tiny_tokens / "pretrain")
    line = refused(capsys, "finetune", "--run", tiny_tokens, "--model.width", "64")
    assert "model.width: the checkpoint" in line and "has 32, the recipe says 64" in line
    assert not (tiny_tokens / "talk").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"messages": [{"role": "user", "content": "a"}]}', "no turn of the assistant"),
        ('{"messages": [{"role": "assistent", "content": "a"}]}', "assistent"),
        ('{"messages": ', "line 1: is not JSON"),
    ],
)
def test_a_conversation_that_teaches_nothing(capsys, tiny_run, tiny_tokens, line, said):
    shutil.copytree(tiny_run / "pretrain", tiny_tokens / "pretrain")
    path = tiny_tokens / "conversations.jsonl"
    path.write_text(line + "\n")
    told = refused(capsys, "finetune", "--run", tiny_tokens, "--finetune.talk.conversations", f"[{path}]")
    assert said in told and "conversations.jsonl" in told
    assert not (tiny_tokens / "talk").exists()


@pytest.mark.parametrize(
    "verb", [["generate", "--prompt", "a"], ["blank", "a【?】b"], ["chat", "--prompt", "a"], ["attention", "a"]]
)
def test_a_model_that_is_none(capsys, tmp_path, verb):
    assert "no such folder" in refused(capsys, *verb, "--model", tmp_path / "nothing")
    assert "holds no trained model" in refused(capsys, *verb, "--model", tmp_path)


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
