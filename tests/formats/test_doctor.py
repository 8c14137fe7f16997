"""A good directory passes; each fault, put into a good one, is named."""

import json

import numpy as np
import pytest

from tests.formats.huggingface.published import CHATML, change, change_tensor, directory
from tpullm.cli.main import main


def empty_a_token(folder):
    """The last piece that was merged becomes the empty text."""
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["model"]["merges"].pop()
    vocabulary = described["model"]["vocab"]
    vocabulary[""] = vocabulary.pop(max(vocabulary, key=vocabulary.get))
    path.write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")


FAULTS = {
    "a token of nothing": (1, "1 tokens decode to nothing (316)", empty_a_token),
    "no end token": (
        3,
        "no engine stops",
        lambda d: [change(d / f, eos_token_id=None) for f in ("config.json", "generation_config.json")],
    ),
    "end tokens differ": (3, "end tokens differ", lambda d: change(d / "generation_config.json", eos_token_id=5)),
    "the tokenizer's end differs": (
        3,
        "eos_token is token",
        lambda d: change(d / "tokenizer_config.json", eos_token="<|im_start|>"),
    ),
    "one file has no end": (
        1,
        "generation_config.json: no eos_token_id",
        lambda d: (d / "generation_config.json").unlink(),
    ),
    "no template": (1, "no chat template", lambda d: change(d / "tokenizer_config.json", chat_template=None)),
    "no end after an answer": (
        1,
        "no file calls that an end token",
        lambda d: change(d / "tokenizer_config.json", chat_template=CHATML.replace("<|im_end|>", "")),
    ),
    "a system turn fails": (
        1,
        "a system turn fails",
        lambda d: change(
            d / "tokenizer_config.json",
            chat_template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            + CHATML,
        ),
    ),
    "a system turn is dropped": (
        1,
        "leaves a system turn out",
        lambda d: change(
            d / "tokenizer_config.json",
            chat_template=CHATML.replace("in messages %}", "in messages if message['role'] != 'system' %}"),
        ),
    ),
    "rope scaling lost": (
        3,
        "no RoPE scaling is left",
        lambda d: change(d / "config.json", original_max_position_embeddings=16),
    ),
    "two kinds of rope": (
        3,
        "make them agree",
        lambda d: change(d / "config.json", rope_scaling={"rope_type": "linear", "factor": 2.0}),
    ),
    "vocabulary": (3, "an embedding of 300", lambda d: change(d / "config.json", vocab_size=300)),
    "nan": (
        3,
        "1 of 24 values are NaN",
        lambda d: change_tensor(
            d, "model.norm.weight", lambda x: np.where(np.arange(24) == 3, np.nan, x).astype(np.float32)
        ),
    ),
    "zero": (
        3,
        "q_proj.weight: all zero",
        lambda d: change_tensor(d, "model.layers.1.self_attn.q_proj.weight", np.zeros_like),
    ),
    "type": (1, "config.json says bfloat16", lambda d: change(d / "config.json", dtype="bfloat16")),
    "types": (1, "several types", lambda d: change_tensor(d, "lm_head.weight", lambda x: x.astype(np.float16))),
    "a space or none": (
        1,
        "LlamaTokenizer without `legacy: true`",
        lambda d: [
            change(d / "tokenizer_config.json", tokenizer_class="LlamaTokenizer"),
            change(d / "tokenizer.json", normalizer={"type": "Prepend", "prepend": "\u2581"}),
        ],
    ),
    "no tokenizer": (3, "tokenizer.json: no such file", lambda d: (d / "tokenizer.json").unlink()),
    "missing tensor": (3, "missing model.layers.3", lambda d: change(d / "config.json", num_hidden_layers=4)),
}


def test_a_good_directory_passes(tmp_path, capsys):
    assert main(["doctor", str(directory(tmp_path / "good"))]) == 0
    assert "nothing found" in "".join(capsys.readouterr())


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(fault, tmp_path, capsys):
    code, message, spoil = FAULTS[fault]
    spoil(directory(tmp_path / "bad"))
    assert main(["doctor", str(tmp_path / "bad")]) == code
    assert message in capsys.readouterr().out


def test_what_is_no_model_is_refused(tmp_path, capsys):
    assert main(["doctor", str(tmp_path)]) == 2
    assert "config.json: no such file" in capsys.readouterr().err
