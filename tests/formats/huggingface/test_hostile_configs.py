"""Settings and weights that no model can have are told before anything is counted up to them."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from tests.formats.huggingface.published import change, directory
from tests.formats.huggingface.small import LLAMA, MODELS
from tpullm.formats.huggingface import configs, reading
from tpullm.formats.huggingface.families import FAMILIES
from tpullm.model.architecture import Architecture
from tpullm.system.errors import UserError
from tpullm.tokenizer.json_files import MOST_TEXT_BYTES, read_json, read_optional, read_text

NONE, HUGE = float("nan"), float("inf")
ROPE = "rope_parameters"
REFUSED = [  # of Llama 2
    ({"num_hidden_layers": 10**9}, "layers 1000000000 is not from 1 to 4,096"),
    ({"num_hidden_layers": 0}, "layers 0 is not from 1"),
    ({"num_hidden_layers": True}, "layers True is not from 1"),
    ({"num_key_value_heads": 2.0}, "kv_heads 2.0 is not from 1"),
    ({"head_dim": "8"}, "head_width '8' is not from 1"),
    ({"intermediate_size": 1 << 21}, "mlp_width 2097152 is not from 1 to 1,048,576"),
    ({"max_position_embeddings": 1 << 31}, "a context or window of 2147483648 is not from 1"),
    ({"max_position_embeddings": 0}, "a context or window of 0 is not from 1"),
    ({"rms_norm_eps": NONE}, "norm_epsilon nan is no number from 0"),
    ({"rms_norm_eps": HUGE}, "norm_epsilon inf is no number from 0"),
    ({"rms_norm_eps": -1}, "norm_epsilon -1 is no number from 0"),
    ({"rms_norm_eps": "1e-5"}, "norm_epsilon '1e-5' is no number from 0"),
    ({"tie_word_embeddings": "no"}, "tied_embeddings 'no' is neither true nor false"),
    ({ROPE: {"rope_theta": NONE}}, "rope_theta nan is no number from 0"),
    ({ROPE: {"rope_theta": 10**400}}, "a setting has a wrong type or value"),
    ({ROPE: {"rope_type": "linear", "factor": NONE}}, "a number of the RoPE scaling is none"),
    ({ROPE: {"rope_type": "x" * 10**6}}, "RoPE of type 'xxx"),
    ({ROPE: [1]}, "a setting has a wrong type or value"),
    ({"hidden_act": ["silu"] * 10**5}, "a setting has a wrong type or value"),
    ({"model_type": "x" * 10**6}, "is not known"),
    ({"quantization_config": {"a": "x" * 10**6}}, "its weights are quantized"),
    ({ROPE: {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
    ({ROPE: {"rope_type": "spiral"}}, "'spiral' is not known"),
    ({ROPE: {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "make them agree"),
    ({"hidden_size": "64"}, "hidden_size is missing"),
    ({"model_type": ["llama"]}, "is not known"),
    ({"model_type": "rwkv"}, "'rwkv' is not known; known are dots1, gemma, gemma2"),
    ({"auto_map": {"AutoModel": "x.y"}}, "code of its own"),
    ({"hidden_act": "relu2"}, "'relu2' is not one of"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ({"decoder_sparse_step": 2}, "decoder_sparse_step 2"),
]
OF_FAMILIES = [
    ("mistral", {"sliding_window": "9"}, "a context or window of '9' is not from 1"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "are not used by this model_type"),
    ("qwen-2.5", {"hidden_size": 25}, "4 heads do not divide a width of 25"),
    ("gemma-3", {"layer_types": ["full_attention"] * 10**5}, "layer_types ['full_attention', "),
    ("gemma-3", {"layer_types": ["sliding_attention"]}, "are not 4 of"),
    ("gemma-3", {"layer_types": ["chunked_attention"] * 4}, "are not 4 of"),
    ("gemma", {"hidden_act": "silu"}, "hidden_act 'silu' can't be used: we compute 'gelu_pytorch_tanh'"),
    ("granite-3", {"logits_scaling": 0}, "logit_divisor is 0"),
    ("granite-3", {"residual_multiplier": NONE}, "residual_scale nan is no number from 0"),
    ("glm-4.5", {"routed_scaling_factor": "2"}, "router_scale '2' is no number from 0"),
    ("granite-4", {"num_local_experts": None}, "num_local_experts None can't be used: we compute 0"),
    ("granite-4", {"position_embedding_type": "nope"}, "position_embedding_type 'nope' can't be used"),
    ("granite-4", {"layer_types": ["mamba", "attention", "mamba"]}, "layer_types ['mamba', 'attention', 'mamba']"),
    ("granite-4", {"layer_types": None}, "layer_types None can't be used: we compute attention in each layer"),
    ("mixtral", {"num_experts_per_tok": 6}, "6 of 5 experts can't be chosen"),
]


@pytest.mark.parametrize(("name", "changes", "message"), [*(("llama-2", *case) for case in REFUSED), *OF_FAMILIES])
def test_a_setting_that_no_model_has_or_that_we_do_not_compute_is_told(name, changes, message):
    model_type, keys = MODELS[name]
    with pytest.raises(UserError) as error:
        configs.read({"model_type": model_type, **keys, **changes}, "config.json")
    said = str(error.value)
    assert message in said and len(said) < 600 and "\n" not in said


def test_the_largest_sizes_are_only_shapes():
    """They can be computed with, in no memory. Nothing larger passes."""
    model_type, keys = MODELS["mixtral"]
    family, most = FAMILIES[model_type], configs.MOST
    sizes = {theirs: most[ours] for ours, theirs in family.keys.items() if ours in most}
    config = configs.read({"model_type": model_type, **keys, **sizes, "layer_types": None}, "config.json")
    assert config.layers == config.heads == 4096
    assert Architecture(config).shapes["embedding"].shape == (1 << 22, 1 << 18)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("published") / "good")


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "model"))


def test_a_config_is_held_against_the_files_without_counting_to_its_end(folder):
    change(folder / "config.json", model_type="mixtral", num_local_experts=4000, num_hidden_layers=4000)
    config, family = reading.read_config(folder)
    architecture = Architecture(config)
    told = "missing .* and 10.... more and unknown"
    with reading.WeightFiles(folder) as source, pytest.raises(UserError, match=told):
        reading.check(source, family, architecture.shapes, architecture.axes)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.safetensors"], "its weight_map does not name a file for each tensor; fetch it again"),
        ({"a": ["model.safetensors"]}, "its weight_map does not name a file"),
        ({"a": "../model.safetensors"}, "model.safetensors.index.json: '../model.safetensors' does not stay in its"),
        ({"a": "/etc/hostname"}, "does not stay in its folder"),
        ({"a": "a\0b"}, "is no name of a file"),
        ({"a": "other.safetensors"}, "other.safetensors: this shard is missing; fetch it again"),
        ({"a": "config.json/x"}, "config.json/x: this shard is missing"),
        ({"a": "folder"}, "folder: is no file; put the file itself there"),
        ({"a": "pipe"}, "pipe: is no file"),
    ],
)
def test_an_index_names_files_of_its_folder_only(folder, files, message):
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / reading.INDEX).write_text(json.dumps({"weight_map": files}))
    with pytest.raises(UserError, match=message), reading.WeightFiles(folder):
        pass


@pytest.mark.parametrize("length", [0, 1, 2**24 + 1, 2**60, 10**5])
def test_a_header_that_is_longer_than_its_file_or_any_is_not_read(folder, length):
    data = (folder / "model.safetensors").read_bytes()[:50_000]
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + data[8:])
    with pytest.raises(UserError, match=f"not a whole safetensors file .a header of {length:,} bytes"):
        reading.WeightFiles(folder)


def test_a_tensor_is_read_in_parts(folder, monkeypatch):
    with reading.WeightFiles(folder) as source:
        for name, rows in (("model.embed_tokens.weight", [100, 100, 100, 20]), ("model.norm.weight", [24])):
            monkeypatch.setattr(reading, "PART_BYTES", 100 * 4 * LLAMA["hidden_size"])
            parts = list(source.parts(name))
            assert [len(part) for part in parts] == rows and sum(part.size for part in parts) == source(name).size


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[1]", "not a JSON object"),
        (b"[" * 10**5, "not JSON .maximum recursion"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": [' + b"1," * 4_000_000 + b"1]}", "has more than 4,000,000 values"),
        (b" " * ((1 << 26) + 1), "has 67,108,865 bytes, more than the 67,108,864"),
    ],
)
def test_json_is_bounded(tmp_path, data, message):
    (tmp_path / "a.json").write_bytes(data)
    for read in (read_json, read_optional):
        with pytest.raises(UserError, match=message) as error:
            read(tmp_path / "a.json")
        assert len(str(error.value)) < 400
    assert read_optional(tmp_path / "b.json") == {}


def test_a_template_file_is_bounded(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * MOST_TEXT_BYTES)
    assert len(read_text(tmp_path / "a")) == MOST_TEXT_BYTES
    (tmp_path / "a").write_bytes(b"x" * (MOST_TEXT_BYTES + 1))
    with pytest.raises(UserError, match="more than the 1,048,576"):
        read_text(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_text(tmp_path / "a")
