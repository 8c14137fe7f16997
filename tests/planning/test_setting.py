"""The numbers of a setting, on models that are small enough to count."""

import dataclasses

import pytest

from tests.planning.by_hand import DENSE, EXPERTS, setting
from tpullm.hardware.topologies import parse
from tpullm.planning.setting import MAXTEXT, Job, setting_of, with_remat
from tpullm.planning.this_machine import Machine
from tpullm.recipe.schema import OptimizerConfig, TrainConfig

LARGE = dataclasses.replace(DENSE, vocabulary_size=1 << 20)
HERE = Machine(16, 1 << 30, "cpu")


def test_tokens_of_a_device_and_of_a_step_and_the_two_pieces_of_a_shared_row():
    """`tensor` alone does not split them."""
    assert setting(fsdp=16).tokens == 256 == setting(data=2, fsdp=4, sequence=2).tokens
    assert setting(fsdp=8, tensor=2).tokens == 512 and setting(fsdp=8, tensor=2, accumulation=4).tokens == 128
    assert setting(EXPERTS, fsdp=4, expert=4).tokens == 256
    assert setting(fsdp=16).global_tokens == setting(fsdp=16, accumulation=4).global_tokens == 16 * 256
    assert setting(data=2, fsdp=4, tensor=2).along("data", "tensor") == 4 and setting(fsdp=16).along() == 1
    assert [setting(fsdp=8, sequence=size).contiguous for size in (1, 2, 4)] == [256, 64, 32]


@pytest.mark.parametrize(
    ("length", "sequence", "most", "block"),
    [
        (8192, 1, 0, 1024),
        (8192, 1, 2048, 2048),
        (8192, 1, 256, 256),
        (8192, 2, 2048, 2048),
        (4096, 2, 0, 1024),
        (4096, 4, 0, 512),
        (384, 1, 0, 128),
        (200, 1, 0, 512),  # the other kernel's
    ],
)
def test_blocks_divide_what_is_contiguous(length, sequence, most, block):
    of = setting(fsdp=4, sequence=sequence, length=length, attention_block=most)
    assert of.block == block
    assert dataclasses.replace(of, traits=MAXTEXT).block == 512


def test_the_loss_has_as_few_chunks_as_the_memory_of_a_chunk_allows():
    """A chunk of float32 logits has at most 1 GiB on a TPU and 64 MiB on a CPU."""
    assert setting(LARGE, fsdp=16).chunks == 1  # 256 tokens x 2^20 x 4 bytes
    assert setting(LARGE, fsdp=16, rows=32).chunks == 2
    assert setting(LARGE, fsdp=16, rows=48).chunks == 4  # 3 does not divide a row
    assert setting(LARGE, fsdp=8, tensor=2, rows=32).chunks == 2
    assert setting(LARGE, fsdp=8, sequence=2, rows=32).chunks == 2
    assert setting(LARGE, fsdp=16, rows=48, loss_chunks=8).chunks == 8
    assert dataclasses.replace(setting(LARGE, fsdp=16), topology=HERE).chunks == 16
    assert setting(LARGE, fsdp=16, rows=1 << 20).chunks == 256  # a token at a time is the least


def test_a_setting_is_that_of_its_training_and_offloads_by_its_policy():
    of = setting(fsdp=16)
    assert with_remat(of, "offload").offloaded == 512 + 1024 + 512 + 2048  # attention, and `dots`
    assert {with_remat(of, remat).offloaded for remat in ("none", "full", "save_attention", "save_dots")} == {0}
    assert with_remat(with_remat(of, "offload"), "full") == with_remat(of, "full")
    assert "scores" in with_remat(of, "full").recompute and with_remat(of, "none").recompute == ()
    model = dataclasses.replace(DENSE, remat="offload", attention_block=256, gradients="float32")
    optimizer = OptimizerConfig(kind="muon")
    config = TrainConfig(batch_size=32, sequence_length=256, accumulation=2, loss_chunks=4, optimizer=optimizer)
    of = setting_of(Job(model, config, {"fsdp": -1, "tensor": 2}, parse("v6e:4x4")))
    assert of.sizes == (1, 8, 1, 1, 2) and (of.rows, of.length, of.accumulation, of.chunks) == (32, 256, 2, 4)
    assert (of.remat, of.block, of.gradient, of.optimizer) == ("offload", 256, 4, optimizer)
    assert of.device is parse("v6e:4x4").chip and of.offloaded == 512 + 1024 + 512 + 2048
    plain = setting_of(Job(DENSE, config, {"fsdp": 16}, HERE), of.device)
    assert plain.gradient == 2 and plain.device is of.device and plain.topology is HERE
