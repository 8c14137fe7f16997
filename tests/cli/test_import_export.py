"""A published model comes in, learns, and goes out again; a model of our own goes out as transformers reads it."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.formats.huggingface.published import CHATML, END, change, change_tensor, directory
from tpullm import LanguageModel
from tpullm.cli.main import main
from tpullm.formats import publish
from tpullm.system import storage

ANSWER = "はい、元気です。"
TUNED = [f"--finetune.talk.train.{key}" for key in ("steps=60", "batch_size=8", "optimizer.peak_lr=0.02")]


@pytest.fixture
def published(tmp_path):
    return directory(tmp_path / "published", layers=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Of one layer. Read only."""
    return directory(tmp_path_factory.mktemp("small") / "published", layers=1)


@pytest.fixture
def conversations(tmp_path):
    """Questions that are all answered alike."""
    file, answer = tmp_path / "conversations.jsonl", {"role": "assistant", "content": ANSWER}
    lines = [json.dumps({"messages": [{"role": "user", "content": f"猫{n}"}, answer]}) for n in range(60)]
    file.write_text("\n".join(lines))
    return f"--finetune.talk.conversations=[{file}]"


def call(*arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code


def assert_same_bytes(folder, other):
    given, written = (load_file(each / "model.safetensors") for each in (folder, other))
    assert {key: array.tobytes() for key, array in given.items()} == {key: a.tobytes() for key, a in written.items()}


@pytest.mark.slow
def test_published_models_come_from_gs_learn_there_and_go_out_there(published, conversations, bucket, capsys):
    storage.remote().upload_all(published, bucket / "published", [file.name for file in published.iterdir()])
    storage.copy(Path(conversations.split("[")[1].rstrip("]")), bucket / "talks.jsonl")
    storage.write_text(bucket / "chatml.jinja", CHATML)
    call("import", bucket / "published", "--run", bucket / "run")
    call("import", bucket / "published", "--run", bucket / "run")
    assert "base: finished, skipped" in capsys.readouterr().err
    call("export", bucket / "run", bucket / "out")
    assert_same_bytes(published, storage.local_copy(bucket / "out"))
    call("doctor", bucket / "out")
    call("export", bucket / "run", bucket / "out", code=2)
    assert f"{bucket}/out: is not an empty folder" in capsys.readouterr().err
    learn = [f"--finetune.talk.conversations=[{bucket}/talks.jsonl]"]
    learn += [f"--finetune.talk.chat_template={bucket}/chatml.jinja"]
    for steps, rows in ((2, 8), (3, 8), (3, 4)):
        length = (f"--finetune.talk.train.steps={steps}", f"--finetune.talk.train.batch_size={rows}")
        call("finetune", "--run", bucket / "run", *learn, *length)
        if (steps, rows) == (3, 8):
            assert "resumes at step 2 of 3" in " ".join(capsys.readouterr().err.split())
    assert f"the old one is kept in {bucket}/run/replaced/talk-" in capsys.readouterr().err
    assert [path.name for path in (bucket / "run" / "replaced").iterdir()]
    call("tokenize", bucket / "run", "--show", "The cat")
    assert capsys.readouterr().out.startswith("The")


def test_what_is_imported_goes_out_with_the_same_bytes(small, tmp_path, capsys):
    call("import", small, "--run", tmp_path / "run")
    call("import", small, "--run", tmp_path / "run")
    assert "base: finished, skipped" in capsys.readouterr().err
    call("export", tmp_path / "run", tmp_path / "out")
    assert_same_bytes(small, tmp_path / "out")
    call("doctor", tmp_path / "run")
    capsys.readouterr()
    call("tokenize", tmp_path / "run", "--show", "The cat")
    assert capsys.readouterr().out.startswith("The")


@pytest.mark.ci
def test_an_imported_model_learns_to_answer_in_its_own_form(published, conversations, tmp_path, capsys):
    run = tmp_path / "run"
    call("import", published, "--run", run)
    call("run", "--run", run, conversations, *TUNED)
    call("export", run, tmp_path / "out")
    for folder in (run, tmp_path / "out"):
        capsys.readouterr()
        call("chat", folder, "--prompt", "猫5")
        assert capsys.readouterr().out == f"{ANSWER}\n"
    assert 'finetune"' in (run / "report.html").read_text(encoding="utf-8")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "base_model: published" in card


@pytest.mark.ci
def test_a_base_without_a_template_takes_one_and_stops_where_it_says(published, conversations, tmp_path, capsys):
    """ChatML ends an answer with a token that no file of the base calls an end."""
    change(published / "tokenizer_config.json", chat_template=None, eos_token="<|endoftext|>")
    start = json.loads((published / "config.json").read_text())["bos_token_id"]
    change(published / "config.json", eos_token_id=start)
    change(published / "generation_config.json", eos_token_id=start)
    run, template = tmp_path / "run", tmp_path / "chatml.jinja"
    call("import", published, "--run", run)
    call("finetune", "--run", run, conversations, *TUNED, code=2)
    assert "has no chat template; it is not a model for conversations" in capsys.readouterr().err
    template.write_text(CHATML.replace("<|im_end|>", "。"))
    call("finetune", "--run", run, conversations, *TUNED, f"--finetune.talk.chat_template={template}", code=2)
    assert "which is no special token" in capsys.readouterr().err
    assert not (run / "talk").exists()
    template.write_text(CHATML)
    call("finetune", "--run", run, conversations, *TUNED, f"--finetune.talk.chat_template={template}")
    assert f"answers end in {END}" in capsys.readouterr().err
    call("export", run, tmp_path / "out")
    call("doctor", tmp_path / "out")
    capsys.readouterr()
    call("chat", tmp_path / "out", "--prompt", "猫5")
    assert capsys.readouterr().out == f"{ANSWER}\n"


@pytest.mark.slow
def test_an_imported_model_goes_on_with_the_users_text(small, tmp_path):
    """From its own parameters, which a step of a rate of almost 0 leaves as they are, to the bit."""
    run, text, keys = tmp_path / "run", tmp_path / "text", ("--pretrain.batch_size=4", "--pretrain.sequence_length=64")
    text.mkdir()
    for number in range(40):
        (text / f"{number}.txt").write_text(f"今日は{number}日です。猫が好きです。" * 4, encoding="utf-8")
    call("import", small, "--run", run)
    options = (f"--text={text}", "--corpus.minimum_characters=10", "--corpus.near_duplicates=false")
    for verb in ("collect", "tokenize"):
        call(verb, "--run", run, *options)
    for steps, rate in ((1, 1e-30), (30, 0.01)):
        changes = (f"--pretrain.steps={steps}", f"--pretrain.optimizer.peak_lr={rate}")
        call("pretrain", "--run", run, *options, *keys, *changes)
        call("export", run, tmp_path / str(steps))
    assert_same_bytes(small, tmp_path / "1")
    lines = [json.loads(line) for line in open(run / "pretrain" / "metrics.jsonl")]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    call("export", tiny_run, folder, "--licence", "Apache-2.0")
    return folder


def test_our_own_model_goes_out_whole(exported, tiny_run):
    assert main(["doctor", str(exported)]) == 0
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and config["eos_token_id"] == [2, 7]
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == [2, 7]
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "held-out tenki" in card and str(tiny_run.parent) not in card  # what it kept of the text before
    said = ["license: apache-2.0", "- ja\n", "PSF-2.0", "bits a byte", "| right answers |", "held-out conversations"]
    assert all(each in card for each in (*said, "name: tiny"))
    ids = np.random.default_rng(0).integers(30, 600, (2, 24))
    ours, theirs = LanguageModel(tiny_run), LanguageModel(exported)
    # The embeddings are multiplied by the root of the width before they are written, and not when they are used.
    np.testing.assert_allclose(theirs.logits(ids), ours.logits(ids), atol=1e-5 * np.abs(ours.logits(ids)).max())


def test_a_pretrained_model_goes_out_as_one_that_goes_on_with_a_text(tiny_run, tmp_path, capsys):
    call("export", tiny_run / "pretrain", tmp_path / "out", "--dtype", "bfloat16", "--shard-gigabytes", "0.0001")
    call("doctor", tmp_path / "out", code=1)
    assert "no chat template" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "held-out tenki" in card and "held-out conversations" not in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1 and {str(v.dtype) for file in shards for v in load_file(file).values()} == {"bfloat16"}
    call("export", tiny_run / "pretrain" / "checkpoints" / "25", tmp_path / "earlier")
    assert "Not evaluated." in (tmp_path / "earlier" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_base_that_moved_is_the_same_and_another_one_is_not(published, conversations, tmp_path, capsys):
    run = tmp_path / "run"
    learn = ["finetune", "--run", run, conversations]
    learn += ["--finetune.talk.train.steps=2", "--finetune.talk.train.batch_size=8"]
    call("import", published, "--run", run)
    call(*learn)
    published.rename(tmp_path / "moved")
    call("import", tmp_path / "moved", "--run", run)
    call(*learn)
    assert "talk: finished, skipped" in capsys.readouterr().err
    call(*learn, "--model.dropout=0.1")
    assert "its inputs changed" in capsys.readouterr().err
    (tmp_path / "moved").rename(tmp_path / "gone")
    call(*learn, "--model.dropout=0.1")
    assert "talk: finished, skipped" in capsys.readouterr().err
    other = directory(tmp_path / "other")
    change_tensor(other, "model.norm.weight", lambda norm: norm * 2)
    call("import", other, "--run", run, code=2)
    assert "which has another base; choose another --run" in capsys.readouterr().err


def test_a_base_that_broke_takes_nothing_away(published, tmp_path, capsys):
    run = tmp_path / "run"
    call("import", published, "--run", run)
    kept = sorted(path for path in run.rglob("*") if path.is_file())
    change_tensor(published, "model.norm.weight", lambda norm: norm[:-1])
    call("import", published, "--run", run, code=2)
    assert "model.norm.weight is [23] instead of [24]" in capsys.readouterr().err
    assert sorted(path for path in run.rglob("*") if path.is_file()) == kept


def test_every_end_of_a_file_is_kept_and_numbers_too_large_for_float16_are_told(published, tmp_path, capsys):
    change(published / "generation_config.json", eos_token_id=317)
    change(published / "config.json", eos_token_id=[319, 318])  # 318 is named here alone
    change_tensor(published, "model.norm.weight", lambda norm: norm * 1e6)
    call("import", published, "--run", tmp_path / "run")
    call("export", tmp_path / "run", tmp_path / "half", "--dtype=float16", code=2)
    assert "float16 is too small for the values of model.norm.weight" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()
    call("export", tmp_path / "run", tmp_path / "out")
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / file).read_text())["eos_token_id"] == [317, 319, 318]


def test_tokens_without_an_embedding_are_not_tuned(published, conversations, tmp_path, capsys):
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        change_tensor(published, name, lambda table: table[:318])
    change(published / "config.json", vocab_size=318, eos_token_id=317)
    change(published / "generation_config.json", eos_token_id=317)
    call("import", published, "--run", tmp_path / "run")
    call("finetune", "--run", tmp_path / "run", conversations, *TUNED, code=2)
    assert "uses token 319, and the model's embedding has 318 rows" in capsys.readouterr().err


FILES = {
    "an empty vocabulary": ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": []}}),
    "a list": ("tokenizer_config.json", None),
    "an end that is no number": ("generation_config.json", {"eos_token_id": "x"}),
    "an end that is no token": ("generation_config.json", {"eos_token_id": [999]}),
}


@pytest.mark.parametrize("fault", FILES)
def test_broken_files_of_a_tokenizer_are_told_in_one_line(fault, published, tmp_path, capsys):
    name, changes = FILES[fault]
    (published / name).write_text("[]") if changes is None else change(published / name, **changes)
    call("import", published, "--run", tmp_path / "run", code=2)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(published) in err
    assert not (tmp_path / "run").exists()


def test_transformers_gives_the_same_text_and_stops(exported, tiny_run, capsys):
    pytest.importorskip("torch", reason="the extra `hf` is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    ids = np.random.default_rng(0).integers(30, 600, (2, 24))
    logits = model(input_ids=torch.from_numpy(ids)).logits.detach().numpy()
    # Sums in another order in float32.
    np.testing.assert_allclose(logits, LanguageModel(tiny_run).logits(ids), atol=1e-5 * np.abs(logits).max())
    generate = transformers.pipeline("text-generation", str(exported), dtype=torch.float32)
    for prompt in ("今日は", "私は", "The "):
        theirs = generate(prompt, max_new_tokens=12, do_sample=False, return_full_text=False)[0]["generated_text"]
        assert theirs == LanguageModel(tiny_run).generate(prompt, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "nothing", "out"), "nothing: no such file or folder"),
        (("export", "{run}", "{full}"), "full: is not an empty folder; choose another one"),
        (("export", "{run}", "out", "--dtype=int4"), "int4"),
        (("export", "{run}", "out", "--shard-gigabytes=0"), "--shard-gigabytes: 0.0 is not above 0"),
        (("import", "nothing", "--run={new}"), "nothing/config.json: no such file; give a folder in the format of"),
        (("import", "{run}", "--run={new}"), "is a run and no published model; make one of it: tpullm export"),
        (("import", "{run}/pretrain", "--run={new}"), "is a run and no published model"),
        (("import", "{published}", "--run={run}"), "belongs to the recipe 'tiny'"),
        (("import", "{published}", "--run={published}/run"), "is inside the published model"),
        (("export", "{published}", "{published}/out"), "/out: is inside the published model"),
        (("import", "{published}", "--run={full}/file"), "file exists; choose another place"),
        (("import", "{published}", "--run={new}", "--pretrain.steps=3"), "unknown key --pretrain.steps; see tpullm"),
        (("doctor", "{full}"), "config.json: no such file"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, tiny_run, small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    names = {"run": tiny_run, "full": tmp_path / "full", "new": tmp_path / "new", "published": small}
    call(*(argument.format(**names) for argument in arguments), code=2)
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "new").exists()
    assert (tmp_path / "full" / "file").read_text() == "kept"


def test_a_full_device_is_one_line_and_nothing_is_half_written(small, tmp_path, capsys, monkeypatch):
    """Known before anything is written; and after the weights."""
    call("import", small, "--run", tmp_path / "run")
    with monkeypatch.context() as late:

        def full(model, tokenizer, folder, talks):
            assert (folder / "model.safetensors").exists()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

        late.setattr(publish, "_write_tokenizer", full)
        call("export", tmp_path / "run", tmp_path / "out", code=2)
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    call("export", tmp_path / "run", tmp_path / "out", code=2)
    call("import", small, "--run", tmp_path / "other", code=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if "tpullm: " in line]
    assert len(lines) == 3 and all("no space left on the device" in line and "; free some" in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_an_export_does_not_replace_what_came_meanwhile(small, tmp_path, capsys, monkeypatch):
    call("import", small, "--run", tmp_path / "run")

    def meanwhile(*arguments):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").write_text("kept")
        return 0

    monkeypatch.setattr(publish, "write", meanwhile)
    call("export", tmp_path / "run", tmp_path / "out", code=2)
    assert "is not an empty folder any more" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert (tmp_path / "out" / "file").read_text() == "kept"
