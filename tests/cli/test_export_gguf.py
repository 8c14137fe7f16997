"""`export --format gguf` writes one file, or refuses in one line and leaves nothing."""

import contextlib
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.formats.huggingface.published import change, directory
from tpullm import LanguageModel
from tpullm.cli import export, import_
from tpullm.cli.main import main
from tpullm.system.storage import gcs


def call(*arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code


def test_a_model_of_our_own_is_one_file_with_its_tokenizer_and_template(tiny_run, tmp_path, capsys):
    """It is Qwen 3 there, whose layers are the same; embeddings are scaled in the table and not in the program."""
    call("export", tiny_run, tmp_path / "mine", "--format", "gguf", "--weights", "f32", "--licence", "MIT")
    (file,) = (tmp_path / "mine").glob("*.gguf")
    assert (tmp_path / "mine" / "Modelfile").read_text() == "FROM ./mine-f32.gguf\n"
    assert file.name == "mine-f32.gguf" and f"({file.stat().st_size / 1e6:,.1f} MB)" in capsys.readouterr().err
    found = gguf.GGUFReader(file)
    settings = {name: field.contents() for name, field in found.fields.items()}
    assert settings["general.architecture"] == "qwen3" and settings["general.file_type"] == 0
    assert settings["general.name"] == "mine" and settings["general.license"] == "MIT"
    ours = LanguageModel(tiny_run).tokenizer
    assert settings["tokenizer.ggml.model"] == "plamo2" and settings["tokenizer.ggml.add_bos_token"] is False
    ids = [settings[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot")]
    assert ids == [ours.bos_id, ours.end_id, ours.eos_id]
    assert "<|assistant|>" in settings["tokenizer.chat_template"]
    arrays = {tensor.name: tensor.data for tensor in found.tensors}
    np.testing.assert_allclose(arrays["token_embd.weight"], arrays["output.weight"] * 32**0.5, rtol=1e-6)


def test_a_published_model_is_written_with_the_default_of_8_bits(tmp_path):
    call("import", directory(tmp_path / "published", layers=1), "--run", tmp_path / "run")
    call("export", tmp_path / "run", tmp_path / "out", "--format", "gguf")
    found = gguf.GGUFReader(tmp_path / "out" / "out-q8_0.gguf")
    settings = {name: field.contents() for name, field in found.fields.items()}
    assert settings["general.architecture"] == "llama" and settings["tokenizer.ggml.model"] == "gpt2"
    assert settings["general.file_type"] == 7 and "im_start" in settings["tokenizer.chat_template"]
    assert "tokenizer.ggml.eot_token_id" in settings


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--weights", "q8_0"], "--weights q8_0: is not for --format huggingface; use int8, int4"),
        (["--format", "gguf", "--weights", "int4"], "--weights int4: is not for --format gguf; use f32, bf16"),
        (["--format", "gguf", "--dtype", "bfloat16"], "use --weights with --format gguf"),
    ],
)
def test_options_of_the_other_format_are_refused(tmp_path, capsys, options, why):
    call("export", tmp_path / "no_run", tmp_path / "out", *options, code=2)
    assert why in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_llama_cpp_lacks_leaves_nothing(tmp_path, capsys):
    change(directory(tmp_path / "published", layers=1) / "config.json", hidden_act="gelu")
    call("import", tmp_path / "published", "--run", tmp_path / "run")
    call("export", tmp_path / "run", tmp_path / "out", "--format", "gguf", code=2)
    why = "llama.cpp's llama can't compute model.activation: gelu; use --format huggingface"
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    options = ["--export.gguf=[q8_0]", "--finetune.talk.conversations=[tenki]"]
    call("run", tmp_path / "run" / "recipe.yaml", *options, code=2)  # before it is trained
    assert why in capsys.readouterr().err and not (tmp_path / "run" / "talk").exists()


def test_a_model_of_others_is_imported_here_when_it_goes_to_gs(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    made = []
    monkeypatch.setattr(import_, "main", lambda arguments: made.append(Path(arguments.run)))
    with contextlib.ExitStack() as closing:
        assert export._imported(tmp_path, gcs.path("gs://my-bucket/models/out"), closing) == made[0]
        assert made[0].parent.is_dir()
    assert not made[0].parent.exists()
