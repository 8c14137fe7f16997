"""What the compiler of GPUs makes of a mixture of experts; needs no GPU."""

import json

import pytest

from tests.gpu_compiler import needs_gpu_compiler, printed_by_compiler
from tests.model.experts.compiled_experts import CHOSEN, EXPERTS, MLP_WIDTH, TOKENS, WIDTH
from tpullm.hardware.chips import GPUS

pytestmark = needs_gpu_compiler
ROWS, CARDS = TOKENS * CHOSEN, ("a100", "b200", "l4")


def printed(topology: str, *along_expert: int):
    return printed_by_compiler("tests.model.experts.compiled_experts", topology, json.dumps(along_expert))


def assert_no_product_over_experts(found):
    """Of the products that are no kernel of ours, each is the router's: none has the width of an expert."""
    assert found["kernels"] == ["grouped_matmul", "grouped_matmul_weights"]
    assert found["products"] and all(MLP_WIDTH not in sizes and EXPERTS in sizes for sizes in found["products"])


@pytest.mark.parametrize(
    "card",
    [pytest.param("h100", marks=pytest.mark.ci), *(pytest.param(of, marks=pytest.mark.slow) for of in CARDS)],
)
def test_no_product_is_dense_over_all_experts(card):
    """On one GPU. The memory is that of the rows of tokens, and not of so many for each expert.

    At once there are the matrices of all experts in bfloat16, their gradients, and some arrays of rows: in the backward
    pass of the activation those of gate, up and their gradients, and of tokens in and out. XLA needs 96 MB on an H100;
    with `ragged_dot` it needs 1,349, since a dense product has an array of all rows for each expert.
    """
    found = printed(f"{card}:1", 1)[0]
    assert_no_product_over_experts(found)
    matrices, rows = 2 * 3 * EXPERTS * WIDTH * MLP_WIDTH, 2 * ROWS * (WIDTH + MLP_WIDTH)
    assert found["temporary_bytes"] < 2 * matrices + 4 * rows < EXPERTS * ROWS * MLP_WIDTH


@pytest.mark.ci
def test_xla_is_told_how_long_a_kernel_takes():
    """In nanoseconds: the rows times one matrix each, forward and for both gradients, as the plan counts it."""
    chip = GPUS["h100"]
    speed = chip.peak_flops * chip.matmul_efficiency * chip.grouped_efficiency
    (found,) = printed("h100:1", 1)[0]["latencies"]
    assert float(found) == pytest.approx(1e9 * 2 * ROWS * WIDTH * MLP_WIDTH / speed, abs=1)


@pytest.mark.parametrize(
    ("card", "along_expert", "exchange"),
    [
        pytest.param("h100", 8, " ragged-all-to-all", marks=pytest.mark.ci),
        pytest.param("h100", 2, " ragged-all-to-all", marks=pytest.mark.slow),
        *(pytest.param("l4", along, " all-to-all", marks=pytest.mark.slow) for along in (2, 8)),
    ],
)
def test_over_eight_gpus_too(card, along_expert, exchange):
    """With all experts on two devices, or on eight; rows are padded where there is no NVLink."""
    for found in printed(f"{card}:8", along_expert):
        assert_no_product_over_experts(found)
        assert found["exchanges"] == [exchange]
