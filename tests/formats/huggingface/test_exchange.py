"""A directory in, the same directory out: every tensor's bytes, every setting of the config."""

import json
import re
from types import SimpleNamespace

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.formats.huggingface.published import change
from tests.formats.huggingface.small import MODELS, OF_FAMILIES, published
from tpullm.formats.huggingface import configs, reading, tensors, writing
from tpullm.formats.published import fill
from tpullm.model.architecture import Architecture
from tpullm.system.errors import UserError

SPECIAL = {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0}


def config_of(name, **changes):
    model_type, keys = MODELS[name]
    return {"model_type": model_type, **keys, **changes}


def directory(folder, name, dtype=np.float32):
    """A small model as its authors would have published it, in two shards; its tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(name)))
    found = {key: value.astype(dtype) for key, value in published(config_of(name))[2].items()}
    weight_map = {}
    for number in (0, 1):
        held, file = sorted(found)[number::2], f"model-0000{number + 1}-of-00002.safetensors"
        save_file({key: found[key] for key in held}, folder / file)
        weight_map |= dict.fromkeys(held, file)
    (folder / reading.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return found


def in_one_file(folder, found):
    """Other tensors, in one file instead of the shards."""
    for path in folder.glob("model*"):
        path.unlink()
    save_file(found, folder / reading.SINGLE)


def read(folder):
    """The model of a directory, as an import reads it: our parameters in the types of the files."""
    config, family = reading.read_config(folder)
    architecture = Architecture(config)
    with reading.FolderWeights(folder, family) as source:
        dtypes = source.types(architecture.shapes, architecture.axes)
        shapes = tensors.flat(architecture.shapes)
        targets = {key: SimpleNamespace(shape=shapes[key].shape, dtype=dtype) for key, dtype in dtypes.items()}
        return architecture, fill(source, tensors.nested(targets), architecture.axes, as_it_is, lambda size: None)


def as_it_is(array, target):
    return array


def write(folder, architecture, params, shard_bytes=10**9, **options):
    held = tensors.flat(params)
    parameters = writing.Parameters(held, tensors.flat(architecture.axes), held.__getitem__)
    folder.mkdir()
    planned = writing.planned(architecture.config, parameters, **options)
    writing.write(folder, planned, SPECIAL, lambda size: None, shard_bytes)


def tensors_in(folder):
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


@pytest.mark.parametrize(("name", "dtype"), [*((name, "bfloat16") for name in OF_FAMILIES), ("phi-3", "float32")])
def test_import_and_export_give_the_same_bytes(name, dtype, tmp_path):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    given = directory(tmp_path / "in", name, kind)
    architecture, params = read(tmp_path / "in")
    write(tmp_path / "out", architecture, params, preferred=MODELS[name][0], shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    written = tensors_in(tmp_path / "out")
    assert written.keys() == given.keys()
    for key, value in given.items():
        assert written[key].dtype == value.dtype and written[key].tobytes() == value.tobytes(), key
    assert reading.read_config(tmp_path / "out")[0] == architecture.config
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == MODELS[name][0]
    assert tensors.flat(params).keys() == tensors.flat(architecture.shapes).keys()


def test_tensors_of_several_types_keep_theirs(tmp_path):
    """Norms in float32 beside matrices in bfloat16; a parameter whose layers differ is read as float32."""
    given = directory(tmp_path / "in", "llama-2", ml_dtypes.bfloat16)
    in_one_file(tmp_path / "in", given | {key: given[key].astype(np.float32) for key in given if "norm" in key})
    (tmp_path / "in" / reading.INDEX).unlink(missing_ok=True)
    write(tmp_path / "out", *read(tmp_path / "in"))
    kinds = {key: value.dtype.name for key, value in tensors_in(tmp_path / "out").items()}
    assert {kind for key, kind in kinds.items() if "norm" in key} == {"float32"}
    assert {kind for key, kind in kinds.items() if "norm" not in key} == {"bfloat16"}
    one = "model.layers.1.mlp.up_proj.weight"
    in_one_file(tmp_path / "in", given | {one: given[one].astype(np.float32)})
    _, params = read(tmp_path / "in")
    assert params["layers"]["mlp"]["up"]["weight"].dtype == np.float32


@pytest.mark.parametrize("name", MODELS)
def test_a_config_comes_back_from_both_places_that_state_rope(name):
    config = configs.read(config_of(name), "config.json")
    written = configs.write(config)
    assert configs.read(written, "written") == config
    if config.positions == "rotary":
        older = {key: value for key, value in written.items() if key != "rope_parameters"}
        assert configs.read(older, "as older engines read it") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4}, "missing model.layers.3."),
        ({"num_hidden_layers": 2}, "unknown model.layers.2."),
        ({"vocab_size": 62}, "[61, 24] instead of [62, 24]"),
        ({"intermediate_size": 41}, "instead of [41, 24]"),
        ({"attention_bias": True}, "missing model.layers.0.self_attn.k_proj.bias"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, changes, message):
    directory(tmp_path / "in", "llama-2")
    change(tmp_path / "in" / "config.json", **changes)
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        read(tmp_path / "in")
    assert "\n" not in str(refused.value)


def test_tensors_of_no_floats_or_that_differ_from_what_they_are_tied_to_are_refused(tmp_path):
    found = directory(tmp_path / "in", "qwen-2.5")
    one, table = "model.layers.1.mlp.up_proj.weight", found["model.embed_tokens.weight"]
    in_one_file(tmp_path / "in", found | {"lm_head.weight": table})
    read(tmp_path / "in")
    for changed, message in (
        ({"lm_head.weight": table + 1}, "lm_head.weight is another table"),
        ({one: found[one].astype(np.int8)}, "up_proj.weight is I8; use the checkpoint that was not quantized"),
    ):
        in_one_file(tmp_path / "in", found | changed)
        with pytest.raises(UserError, match=message):
            read(tmp_path / "in")


def test_broken_directories_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path)
    directory(tmp_path / "a", "llama-2")
    shard = tmp_path / "a" / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read(tmp_path / "a")
    shard.unlink()
    with pytest.raises(UserError, match="00002-of-00002.safetensors: this shard is missing"):
        read(tmp_path / "a")
    (tmp_path / "a" / reading.INDEX).unlink()
    with pytest.raises(UserError, match="holds neither"):
        read(tmp_path / "a")


def test_gpt_2_as_it_was_published(tmp_path):
    """Without the prefix of the whole model, and with the masks that were saved as tensors."""
    found = directory(tmp_path / "in", "gpt-2")
    bare = {key.removeprefix("transformer."): value for key, value in found.items()}
    masks = {f"h.{layer}.attn.bias": np.tri(48, dtype=np.float32)[None, None] for layer in range(3)}
    in_one_file(tmp_path / "in", bare | masks)
    _, params = read(tmp_path / "in")
    np.testing.assert_array_equal(params["embedding"], found["transformer.wte.weight"])


def mxfp4(found, random):
    """Tensors with random numbers of MXFP4 in place of the experts', and these numbers by the package `gguf`."""
    stored, numbers = {}, {}
    for name, tensor in found.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = tensor
            continue
        E, rows, outputs = tensor.shape
        codes = random.integers(0, 16, (E, outputs, rows // 32, 32), dtype=np.uint8)
        scales = random.integers(118, 130, codes.shape[:3], dtype=np.uint8)
        stored[f"{name}_blocks"], stored[f"{name}_scales"] = codes[..., ::2] | codes[..., 1::2] << 4, scales
        halves = codes[..., :16] | codes[..., 16:] << 4  # in a GGUF file a byte has one number of each half
        blocks = np.concatenate([scales[..., None], halves], axis=-1).reshape(E, outputs, -1)
        numbers[name] = gguf.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4).swapaxes(1, 2)
    return stored, numbers


def test_gpt_oss_as_it_was_published(tmp_path):
    """Its experts in MXFP4: they are read as the numbers that they stand for, and exported as such."""
    config = config_of("gpt-oss", hidden_size=64, intermediate_size=32)
    (tmp_path / "in").mkdir()
    found = {key: value.astype(ml_dtypes.bfloat16) for key, value in published(config)[2].items()}
    stored, numbers = mxfp4(found, np.random.default_rng(0))
    told = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    (tmp_path / "in" / "config.json").write_text(json.dumps(config | told))
    save_file(stored, tmp_path / "in" / reading.SINGLE)
    architecture, params = read(tmp_path / "in")
    write(tmp_path / "out", architecture, params)
    written = tensors_in(tmp_path / "out")
    assert len(numbers) == 6 and written.keys() == found.keys()
    for name, value in written.items():
        assert value.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(value.astype(np.float32), numbers.get(name, found[name]).astype(np.float32))
    for broken in (
        {"model.layers.0.mlp.experts.down_proj_scales": np.zeros((5, 64, 2), np.uint8)},
        {"model.layers.0.mlp.experts.down_proj_blocks": np.zeros((5, 64, 1, 15), np.uint8)},
        {"model.layers.0.mlp.experts.down_proj_scales": np.zeros((5, 64, 1), np.float32)},
    ):
        save_file(stored | broken, tmp_path / "in" / reading.SINGLE)
        with pytest.raises(UserError, match="down_proj is no pair of MXFP4's blocks and scales; fetch it again"):
            read(tmp_path / "in")
    del stored["model.layers.0.mlp.experts.down_proj_scales"]
    save_file(stored, tmp_path / "in" / reading.SINGLE)
    with pytest.raises(UserError, match="down_proj is no pair"):
        read(tmp_path / "in")


def test_settings_that_are_missing_null_or_of_another_name():
    # Published files of Qwen say `num_experts`; transformers 5 writes them again with `num_local_experts`.
    keys = config_of("qwen-3 experts")
    again = {key: value for key, value in keys.items() if key != "num_experts"} | {"num_local_experts": 5}
    assert configs.read(again, "config.json") == configs.read(keys, "config.json")
    # A model without soft caps says so with null; where a key is missing, the family's default holds.
    keys = config_of("gemma-2")
    uncapped = configs.read(keys | {"attn_logit_softcapping": None, "final_logit_softcapping": None}, "config.json")
    assert uncapped.attention_softcap == uncapped.logit_softcap == 0
    assert configs.read(configs.write(uncapped), "written") == uncapped
    bare = {key: value for key, value in keys.items() if not key.endswith("softcapping") and key != "hidden_activation"}
    read_bare = configs.read(bare, "config.json")
    assert (read_bare.attention_softcap, read_bare.logit_softcap, read_bare.activation) == (50.0, 30.0, "gelu_tanh")
    # A window that is switched off is none.
    off = {"use_sliding_window": False, "sliding_window": 5, "layer_types": ["sliding_attention"] * 3}
    assert configs.read(config_of("qwen-2.5", **off), "config.json").windows == ()
