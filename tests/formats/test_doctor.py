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
    """The last piece that was merged becomes the empty text."""
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
LLAMA_2 = {"normalizer": {"type": "Prepend", "prepend": "\u2581"}}
FAILS = "{{ raise_exception('no') }}"
ERRORS = [  # what is said, what spoils the directory
    ("no engine stops", all_of(*(setting(file, eos_token_id=None) for file in (CONFIG, ENDS)))),
    ("end tokens differ", setting(ENDS, eos_token_id=5)),
    ("eos_token is token", setting(TOKENS, eos_token="<|im_start|>")),
    ("template can't show these", setting(TOKENS, chat_template=FAILS)),
    ("no RoPE scaling is left", setting(CONFIG, original_max_position_embeddings=16)),
    ("make them agree", setting(CONFIG, rope_scaling={"rope_type": "linear", "factor": 2.0})),
    ("two values of rope_theta, 7.0 and 500.0", setting(CONFIG, rope_theta=7.0)),
    ("config.json: a setting has a wrong type", setting(CONFIG, rope_scaling="yarn")),
    ("an embedding of 300", setting(CONFIG, vocab_size=300)),
    (
        "1 of 24 values are NaN",
        tensor("model.norm.weight", lambda x: np.where(np.arange(24) == 3, np.nan, x).astype(np.float32)),
    ),
    ("q_proj.weight: all zero", tensor("model.layers.1.self_attn.q_proj.weight", np.zeros_like)),
    ("tokenizer.json: no such file", lambda folder: (folder / "tokenizer.json").unlink()),
    ("missing model.layers.3", setting(CONFIG, num_hidden_layers=4)),
]
WARNINGS = [
    ("1 tokens decode to nothing (316)", empty_a_token),
    (f"{ENDS}.json: no eos_token_id", lambda folder: (folder / f"{ENDS}.json").unlink()),
    ("no chat template", setting(TOKENS, chat_template=None)),
    ("no file calls that an end token", setting(TOKENS, chat_template=CHATML.replace("<|im_end|>", ""))),
    ("a system turn fails", setting(TOKENS, chat_template=NO_SYSTEM)),
    ("leaves a system turn out", setting(TOKENS, chat_template=SILENT_SYSTEM)),
    ("config.json says bfloat16", setting(CONFIG, dtype="bfloat16")),
    ("several types", tensor("lm_head.weight", lambda x: x.astype(np.float16))),
    (
        "LlamaTokenizer without `legacy: true`",
        all_of(setting(TOKENS, tokenizer_class="LlamaTokenizer"), setting("tokenizer", **LLAMA_2)),
    ),
]
FAULTS = [*(("error", *fault) for fault in ERRORS), *(("warning", *fault) for fault in WARNINGS)]


@functools.cache
def shapes_of(model):
    architecture = Architecture(model)
    return architecture.shapes, architecture.axes


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("published") / "good")


def test_a_good_directory_passes(good, capsys):
    assert main(["doctor", str(good)]) == 0
    assert "nothing found" in "".join(capsys.readouterr())


@pytest.mark.parametrize(("severity", "message", "spoil"), FAULTS, ids=[message for _, message, _ in FAULTS])
def test_each_fault_is_named(good, severity, message, spoil, tmp_path):
    spoil(Path(shutil.copytree(good, tmp_path / "bad")))
    found = list(doctor.examine(tmp_path / "bad", shapes_of, lambda size: None))
    assert {finding.severity for finding in found if message in finding.what} == {severity}, found


@pytest.mark.parametrize(("code", "changes"), [(1, {"chat_template": None}), (3, {"eos_token": "<|im_start|>"})])
def test_a_warning_and_an_error_have_their_exit_codes(good, code, changes, tmp_path, capsys):
    change(Path(shutil.copytree(good, tmp_path / "bad")) / f"{TOKENS}.json", **changes)
    assert main(["doctor", str(tmp_path / "bad")]) == code
    assert ("error: " in capsys.readouterr().out) == (code == 3)


def test_what_is_no_model_is_refused(tmp_path, capsys):
    assert main(["doctor", str(tmp_path)]) == 2
    assert "config.json: no such file" in capsys.readouterr().err
