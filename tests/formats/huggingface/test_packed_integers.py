"""Matrices in 8 and 4 bits, as compressed-tensors has them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.formats.huggingface.small import LLAMA, MODELS, as_ours, published
from tests.formats.huggingface.test_exchange import write
from tests.training.small import mesh
from tpullm.formats.huggingface import writing
from tpullm.formats.huggingface.writing import BITS, PackedIntegers
from tpullm.model import quantized
from tpullm.system.errors import UserError

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}


def written(folder, kind):
    """A model whose tensors hold several matrices of ours: its tensors before an export, and those in the files."""
    architecture, family, before = published({"model_type": "phi3", **LLAMA, **SIZES})
    write(folder, architecture, as_ours(architecture, family, before), preferred="phi3", weights=kind)
    return before, load_file(folder / "model.safetensors")


def numbers(found, name, kind):
    """The matrix that three tensors stand for, by the format's own words: one number of the file at a time."""
    packed, scales, shape = (found[f"{name}_{part}"] for part in ("packed", "scale", "shape"))
    bits, (outputs, inputs) = BITS[kind], shape.tolist()
    places = np.arange(inputs) * bits
    words = packed.view(np.uint32)[:, places // 32]
    values = ((words >> (places % 32).astype(np.uint32)) & (2**bits - 1)).astype(np.int64) - 2 ** (bits - 1)
    assert values.shape == (outputs, inputs)
    return values * np.repeat(scales.astype(np.float32), inputs // scales.shape[1], axis=1)


@pytest.mark.parametrize("kind", BITS)
def test_the_tensors_and_the_settings_of_a_folder(kind, tmp_path):
    before, found = written(tmp_path / "out", kind)
    for name, tensor in before.items():
        if not name.startswith("model.layers.") or not name.endswith("proj.weight"):
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)  # tables, the head, norms, biases
            continue
        outputs, inputs = tensor.shape
        assert name not in found and found[f"{name}_shape"].tolist() == [outputs, inputs]
        packed, scales = found[f"{name}_packed"], found[f"{name}_scale"]
        assert (packed.dtype, packed.shape) == (np.int32, (outputs, inputs * BITS[kind] // 32))
        assert (scales.dtype, scales.shape) == (np.float32, (outputs, inputs // 32))
        error = np.abs(numbers(found, name, kind) - tensor)
        assert (error <= np.repeat(scales, 32, axis=1) * (0.5 + 1e-4)).all(), name  # half a step, and float32
        assert error.max() > scales.min() / 4
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (group,) = said["config_groups"].values()
    wanted = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
    assert said.items() >= wanted.items()
    assert group["targets"] == ["Linear"] and group["input_activations"] is None
    asked = {"num_bits": BITS[kind], "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    assert group["weights"].items() >= asked.items()


@pytest.mark.parametrize("kind", BITS)
def test_the_numbers_are_those_of_a_model_in_use(kind):
    """In float32; in the type of a folder a scale is rounded before the numbers are, so these fit it."""
    matrix = np.random.default_rng(0).standard_normal((24, 192)).astype(np.float32)
    matrix[3, 64:128] = 0
    with jax.set_mesh(mesh()):
        weight = jax.device_put(matrix.T, jax.NamedSharding(mesh(), jax.P(None, None)))
        wanted = quantized.dequantized(jax.jit(quantized.quantized, static_argnums=(1, 2))(weight, kind, -2))
    values, scales = PackedIntegers(kind, 64).rounded(matrix, np.dtype("float32"))
    np.testing.assert_array_equal(values * np.repeat(scales, 64, axis=1), np.asarray(wanted).T)
    values, scales = PackedIntegers(kind, 64).rounded(matrix, np.dtype(jnp.bfloat16))
    scales = np.repeat(scales.astype(np.float32), 64, axis=1)
    inside = np.abs(matrix) <= scales * (2 ** (BITS[kind] - 1) - 1)  # the end of a group may be cut off
    assert scales.any() and (np.abs(values * scales - matrix)[inside] <= (scales / 2)[inside] * 1.001).all()
    assert inside.mean() > 0.9
    assert tuple(BITS) == quantized.IN_USE
    assert all(writing.MOST[kind] == quantized.KINDS[kind][1] for kind in BITS)


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("mixtral", {}, "transformers reads experts as they are only"),
        ("gpt-2", {}, "GPT2LMHeadModel has no linear layers"),
        ("qwen-3", {}, "model.width is 24, no multiple of 32"),
        ("qwen-3", SIZES | {"intermediate_size": 80}, "model.mlp_width is 80, no multiple of 32"),
        ("qwen-3", SIZES | {"head_dim": 6}, "model.heads x model.head_width is 24, no multiple of 32"),
    ],
)
def test_what_no_other_program_would_read_is_refused(name, changes, why, tmp_path):
    model_type, keys = MODELS[name]
    architecture, family, before = published({"model_type": model_type, **keys, **changes})
    with pytest.raises(UserError, match=why):
        write(tmp_path / "out", architecture, as_ours(architecture, family, before), weights="int4")
    assert not any((tmp_path / "out").iterdir())
