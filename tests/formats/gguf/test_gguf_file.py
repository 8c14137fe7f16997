"""A GGUF file holds what the published files hold: each tensor under llama.cpp's name, and all settings."""

import re
import sys

import gguf
import numpy as np
import pytest

from tests.formats.gguf.small_gguf import KNOWN, QUICK, config_of, model, planned, tokenizer, write
from tests.formats.huggingface.small import MODELS
from tpullm.formats.gguf import architectures, reading, vocabulary
from tpullm.formats.huggingface import configs
from tpullm.system.errors import UserError

V = 320
FACTORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
# Model, another setting → what the refusal names.
REFUSED = {
    "llama-2 dynamic": ({}, "model.rope_scaling.kind: dynamic"),
    "llama longrope": ({}, "model.rope_scaling.kind: longrope"),
    "llama-2": ({"hidden_act": "gelu"}, "model.activation: gelu"),
    "mistral": ({}, "model.windows: 9 of a context of 64"),
    "qwen-2.5 windows": ({}, "model.windows: 5 of a context of 64"),
    "qwen-3 biases": ({}, "model.out_bias: true"),
    "olmo-2": ({"head_dim": 10}, "model.head_width: 4 heads of 10 are not the width of 24"),
    "gemma-2": ({"query_pre_attn_scalar": 17}, "model.attention_scale: 0.242536 is not 0.316228"),
    "gemma": ({"tie_word_embeddings": False}, "model.tied_embeddings: false"),
    "qwen-3 experts": ({"norm_topk_prob": False}, "model.normalize_router: false"),
    "gpt-oss": ({"swiglu_limit": 1.5}, "model.swiglu_limit: 1.5"),
    "smollm-3": ({"no_rope_layers": [1, 0, 1, 0, 1]}, "model.rotary_layers: [True, False, True, False, True]"),
    "gemma-3": ({"sliding_window": None}, "model.windows: every layer sees all"),
}
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in KNOWN if name not in QUICK]


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


def read(file):
    found = gguf.GGUFReader(file)
    settings = {name: field.contents() for name, field in found.fields.items()}
    return settings, {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in found.tensors}


def expected(config):
    """Their tensors under the names of gguf's own table, those of experts with all experts of a layer in one."""
    architecture, (ours, family, tensors) = planned(config).layout.architecture, model(config)
    names = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture.name), 9)
    found = {}
    for theirs, array in tensors.items():
        if "gate_up_proj" in theirs and "experts" in theirs:  # they alternate in gpt-oss
            for part, kind in enumerate(("gate", "up")):
                found |= _of_experts(theirs.replace("gate_up", kind), array[..., part::2])
        elif re.search(r"experts\.down_proj", theirs):
            found |= _of_experts(theirs, array)
        elif re.search(r"experts\.\d", theirs):
            name = names.get_name(re.sub(r"experts\.\d+", "experts", theirs), try_suffixes=(".weight",))
            found.setdefault(name, []).append(array)
        else:
            array = array.T if not family.transposed and array.ndim == 2 and ".h." in theirs else array
            array = array + 1 if ours.config.norm_unit_offset and "norm" in theirs else array
            name = names.get_name(theirs, try_suffixes=(".weight", ".bias", ".sinks"))
            found[name if "sinks" not in name else f"{name}.weight".replace(".sinks", "")] = array
    return {name: np.stack(array) if isinstance(array, list) else array for name, array in found.items()}


def _of_experts(theirs, array):
    """A tensor of gpt-oss, `[E, in, out]`, or its biases."""
    of, is_bias = theirs.removesuffix("_bias"), theirs.endswith("_bias")
    name = f"blk.{of.split('.')[2]}.ffn_{of.split('.')[-1].split('_')[0]}_exps"
    return {f"{name}.bias": array} if is_bias else {f"{name}.weight": array.swapaxes(1, 2)}


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_each_tensor_of_a_family_is_there_under_the_name_of_llama_cpp(name, small_tokenizer, tmp_path):
    config = config_of(name, vocab_size=V)
    ours = model(config)[0].config
    write(tmp_path / "small.gguf", config, small_tokenizer)
    _, arrays = read(tmp_path / "small.gguf")
    wanted = expected(config)
    if planned(config).layout.architecture.output == "own":
        wanted.setdefault("output.weight", wanted["token_embd.weight"])
    assert arrays.keys() - FACTORS == wanted.keys()
    for tensor, array in wanted.items():
        held = arrays[tensor]
        if planned(config).layout.architecture.interleaved and re.search(r"attn_[qk]\.", tensor):
            heads = ours.heads if "attn_q" in tensor else ours.kv_heads  # as they were, in two halves
            held = held.reshape(heads, -1, 2, *held.shape[1:]).swapaxes(1, 2).reshape(held.shape)
        np.testing.assert_array_equal(held, array, tensor)


def test_the_settings_are_those_of_the_model_and_the_tokens_those_of_the_tokenizer(small_tokenizer, tmp_path):
    write(tmp_path / "small.gguf", config_of("gemma-3", vocab_size=V), small_tokenizer)
    settings, _ = read(tmp_path / "small.gguf")
    tokens = vocabulary.of_tokenizer(small_tokenizer)
    assert settings["tokenizer.ggml.tokens"] == tokens.texts and settings["tokenizer.ggml.model"] == "gpt2"
    assert settings["tokenizer.ggml.merges"] == list(tokens.merges) and settings["tokenizer.ggml.pre"] == "gpt-2"
    assert settings["tokenizer.ggml.eos_token_id"] == small_tokenizer.eos_id
    assert not settings["tokenizer.ggml.add_bos_token"] and not settings["tokenizer.ggml.add_space_prefix"]
    found = {name.removeprefix("gemma3."): value for name, value in settings.items() if name.startswith("gemma3.")}
    assert found.pop("attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    whole = {"block_count": 4, "context_length": 64, "embedding_length": 24, "feed_forward_length": 40, "vocab_size": V}
    attention = {"head_count": 4, "head_count_kv": 2, "key_length": 10, "value_length": 10, "sliding_window": 7}
    attention["sliding_window_pattern"] = [True, True, False, True]
    rope = {"dimension_count": 10, "freq_base": 500, "freq_base_swa": 50, "scaling.type": "linear", "scaling.factor": 2}
    for part, keys in (("attention", attention), ("rope", rope)):
        whole |= {f"{part}.{key}": value for key, value in keys.items()}
    assert found == whole


def test_llama_3_has_its_divisors_of_frequencies(small_tokenizer, tmp_path):
    """In the original context of 16, frequencies with more than 3 turns stay, and those with less than 1 are / 4."""
    write(tmp_path / "small.gguf", config_of("llama-3.1", vocab_size=V), small_tokenizer)
    _, arrays = read(tmp_path / "small.gguf")
    frequencies = 500.0 ** -(np.arange(5) / 5)
    kept = np.clip((16 * frequencies / (2 * np.pi) - 1) / 2, 0, 1)
    np.testing.assert_allclose(arrays["rope_freqs.weight"], 1 / (kept + (1 - kept) / 4), rtol=1e-6)
    assert arrays["rope_freqs.weight"][-1] == 4


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_lacks_is_refused_by_its_name(name):
    changes, why = REFUSED[name]
    config = config_of(name, **changes)
    with pytest.raises(UserError, match=re.escape(f"can't compute {why}; use --format huggingface")):
        architectures.of_model(configs.read(config, "config.json"), config["model_type"])


def test_a_family_that_is_not_written_is_refused_by_its_name():
    config = config_of("dots-1")
    with pytest.raises(UserError, match="GGUF files of dots1 are not written; use --format huggingface"):
        architectures.of_model(configs.read(config, "config.json"), config["model_type"])


def test_yarn_has_the_factor_that_llama_cpp_does_not_compute(small_tokenizer, tmp_path):
    """Our factor on cosine and sine is llama.cpp's own, 0.1 log(4) + 1, times this one."""
    changed = {**MODELS["llama yarn"][1]["rope_parameters"], "attention_factor": 1.5}
    write(tmp_path / "small.gguf", config_of("llama yarn", vocab_size=V, rope_parameters=changed), small_tokenizer)
    settings, _ = read(tmp_path / "small.gguf")
    assert settings["llama.rope.scaling.attn_factor"] * (0.1 * np.log(4) + 1) == pytest.approx(1.5)
    assert settings["llama.rope.scaling.original_context_length"] == 16
    assert settings["llama.rope.scaling.yarn_beta_fast"] == 8


def test_a_file_that_is_cut_off_by_a_full_disk_is_an_error(small_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", lambda self, tensor: None)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "small.gguf", config_of("llama-2", vocab_size=V), small_tokenizer)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=re.escape("pip install 'tpullm[gguf]'")):
        reading.check_installed()
