"""A good directory passes; each fault, put into a good one, is named."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.formats.huggingface.published import CHATML, change, change_tensor, directory
from tpullm.cli.main import main
from tpullm.formats import doctor
from tpullm.model.architecture import Architecture


def empty_a_token(folder):
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["model"]["merges"].pop()
    vocabulary = described["model"]["vocab"]
    vocabulary[""] = vocabulary.pop(max(vocabulary, key=vocabulary.get))
    path.write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")


def setting(file, **changes):
    """Other values in a JSON file, named without its `.json`."""
    return lambda folder: change(folder / f"{file}.json", **changes)


def tensor(name, value):
    return lambda folder: change_tensor(folder, name, value)


def all_of(*spoils):
    return lambda folder: [spoil(folder) for spoil in spoils]


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
SILENT_SYSTEM = CHATML.replace("in messages %}", "in messages if message['role'] != 'system' %}")
CONFIG, TOKENS, ENDS = "config", "tokenizer_config", "generation_config"
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
FAILS = "{{ raise_exception('no') }}"
NO_END = CHATML.replace("<|im_end|>", "")
# What spoils a directory, and what is said: faults that do not hide each other stand in one, since each is a child.
SPOILED = {
    "values": (
        all_of(
            tensor("model.norm.weight", lambda x: x * np.float32("nan")),
            tensor("model.layers.1.self_attn.q_proj.weight", np.zeros_like),
            tensor("lm_head.weight", lambda x: x.astype(np.float16)),
            setting(CONFIG, dtype="bfloat16"),
        ),
        ["24 of 24 values are NaN", "q_proj.weight: all zero"],
        ["several types", "config.json says bfloat16"],
    ),
    "settings": (
        all_of(
            setting(CONFIG, original_max_position_embeddings=16, rope_theta=7.0),
            setting(ENDS, eos_token_id=5),
            setting(TOKENS, chat_template=NO_END),
        ),
        ["end tokens differ", "no RoPE scaling is left", "two values of rope_theta, 7.0 and 500.0"],
        ["no file calls that an end token"],
    ),
    "other settings": (
        all_of(
            setting(CONFIG, rope_scaling={"rope_type": "linear", "factor": 2.0}, vocab_size=300),
            setting(TOKENS, eos_token="<|im_start|>", chat_template=NO_SYSTEM),
        ),
        ["make them agree", "an embedding of 300", "eos_token is token"],
        ["a system turn fails"],
    ),
    "no ends": (
        all_of(*(setting(file, eos_token_id=None) for file in (CONFIG, ENDS)), setting(TOKENS, chat_template=FAILS)),
        ["no engine stops", "template can't show these"],
        [],
    ),
    "a wrong type, and a file less": (
        all_of(
            setting(CONFIG, rope_scaling="yarn"),
            setting(TOKENS, chat_template=SILENT_SYSTEM),
            lambda folder: (folder / f"{ENDS}.json").unlink(),
        ),
        ["config.json: a setting has a wrong type"],
        [f"{ENDS}.json: no eos_token_id", "leaves a system turn out"],
    ),
    "tokens": (
        all_of(
            empty_a_token, setting(TOKENS, tokenizer_class="LlamaTokenizer"), setting("tokenizer", normalizer=PREPEND)
        ),
        [],
        ["1 tokens decode to nothing (316)", "LlamaTokenizer without `legacy: true`"],
    ),
    "another model": (
        all_of(setting(CONFIG, num_hidden_layers=4), setting(TOKENS, chat_template=None)),
        ["missing model.layers.3"],
        ["no chat template"],
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json: no such file"], []),
}


@functools.cache
def shapes_of(model):
    architecture = Architecture(model)
    return architecture.shapes, architecture.axes


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("published") / "good")


def test_a_good_directory_passes_and_what_is_no_model_is_refused(good, tmp_path, capsys):
    assert main(["doctor", str(good)]) == 0
    assert "nothing found" in "".join(capsys.readouterr())
    assert main(["doctor", str(tmp_path)]) == 2
    assert "config.json: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", SPOILED)
def test_each_fault_is_named(good, kind, tmp_path):
    spoil, errors, warnings = SPOILED[kind]
    spoil(Path(shutil.copytree(good, tmp_path / "bad")))
    found = list(doctor.examine(tmp_path / "bad", shapes_of, lambda size: None))
    for severity, messages in (("error", errors), ("warning", warnings)):
        for message in messages:
            assert {finding.severity for finding in found if message in finding.what} == {severity}, (message, found)
    assert errors or not [finding for finding in found if finding.severity == "error"]


@pytest.mark.parametrize(("code", "changes"), [(1, {"chat_template": None}), (3, {"eos_token": "<|im_start|>"})])
def test_a_warning_and_an_error_have_their_exit_codes(good, code, changes, tmp_path, capsys):
    change(Path(shutil.copytree(good, tmp_path / "bad")) / f"{TOKENS}.json", **changes)
    assert main(["doctor", str(tmp_path / "bad")]) == code
    assert ("error: " in capsys.readouterr().out) == (code == 3)
