"""The compilers of GPUs take the kernel; needs no GPU."""

import json

import pytest

from tests.gpu_compiler import needs_gpu_compiler, printed_by_compiler
from tpullm.hardware.chips import GPUS

pytestmark = needs_gpu_compiler
KERNELS = ["triton_attention", "triton_attention_dkv", "triton_attention_dq"]


LAYERS = [(64, "bfloat16"), (80, "bfloat16"), (128, "bfloat16"), (256, "bfloat16"), (128, "float32")]


@pytest.mark.parametrize(
    "card", [pytest.param(name, marks=pytest.mark.ci if name == "l4" else pytest.mark.slow) for name in GPUS]
)
def test_blocks_fit_the_shared_memory_of_each_card(card):
    """Otherwise the compiler refuses. With and without soft caps and sinks, in groups of 3 heads."""
    layers = [(1024, 6, 2, *layer, everything) for layer in LAYERS for everything in (False, True)]
    for found in printed_by_compiler("tests.model.attention.compiled_triton", card, json.dumps(layers)):
        assert found["kernels"] == KERNELS and not found["square"]


@pytest.mark.ci
def test_memory_grows_with_the_row_and_not_with_its_square():
    """Beside arguments and results: two numbers in float32 of each query and head, and a few for each token."""
    lengths = (8192, 32_768)
    layers = [(length, 32, 8, 128, "bfloat16", False) for length in lengths]
    found = printed_by_compiler("tests.model.attention.compiled_triton", "h100", json.dumps(layers))
    for length, layer in zip(lengths, found, strict=True):
        numbers = 2 * 4 * 32 * length
        assert numbers <= layer["temporary_bytes"] < 1.1 * numbers and not layer["square"]
