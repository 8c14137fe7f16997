"""Which attention kernel training uses on a platform, and the sizes of its blocks.

`blocks` is for a CPU, `flash` for long texts and for rows whose mask no other kernel has, `splash` for a TPU, `triton`
for an NVIDIA GPU.
"""

from typing import NamedTuple

import jax.numpy as jnp

from tpullm.hardware.chips import of_kind
from tpullm.model.platform import target_platform
from tpullm.recipe.schema import ATTENTION_BLOCKS, ModelConfig

# The longest row whose attention weights a CPU keeps: in bfloat16 they are 17 MB a head.
LONGEST_KEPT = 4096


def query_block(length: int) -> int:
    """How many queries attention on a CPU takes at a time; a row that has no such blocks is one."""
    block = max(128, length // 8)
    return block if length % block == 0 else length


def attention_kernel(config: ModelConfig, length: int, sequence: int, branched: bool = False) -> str:
    """The kernel of attention in training, for rows of `length` tokens on `sequence` devices along the row.

    `splash` on a TPU; `triton` on a GPU; on a CPU, up to `LONGEST_KEPT`, `blocks` (keeps the weights) or, with soft
    caps or sinks, `plain`; `flash` otherwise.

    Args:
        branched: rows hold several answers to one prompt, which the kernels of a TPU and of a GPU have no mask for
            (`plain.same_segment`).
    """
    if target_platform() == "cpu" and sequence == 1 and length <= LONGEST_KEPT:
        return "plain" if config.attention_softcap or config.sinks else "blocks"
    if target_platform() == "tpu" and splash_fits(length, sequence) and not branched:
        return "splash"
    takes_row = splash_fits(length, sequence, at_a_time=16) and config.head_width <= 256
    return "triton" if target_platform() == "gpu" and takes_row and not branched else "flash"


def splash_fits(length: int, sequence: int, at_a_time: int = 128) -> bool:
    """Whether the TPU's kernel takes rows of that many tokens: `at_a_time`, in two chunks a device."""
    return length % (at_a_time * (2 * sequence if sequence > 1 else 1)) == 0


class Block(NamedTuple):
    """How many queries and keys one program of a GPU's kernel takes at a time."""

    queries: int
    keys: int


class TritonBlocks(NamedTuple):
    """Of the GPU's kernels: for the mixed values, the gradients of queries, and those of keys and values."""

    forward: Block
    dq: Block
    dkv: Block


def triton_blocks(device_kind: str, dtype: jnp.dtype, head_width: int) -> TritonBlocks:
    """The largest blocks of the GPU's kernels; shorter rows have smaller ones.

    Those of bfloat16 fit the memory that the threads of a multiprocessor share: 164 KiB of an A100, more of its
    successors, 100 KiB of an L4. By the compiler, with 8 warps and 2 stages, they spill at most 36 bytes of registers.
    No card has run them: that the largest such blocks are the fastest is a guess.
    """
    if dtype == jnp.float32:  # there are no tensor cores: larger blocks take the compiler a minute and spill registers
        return TritonBlocks(Block(16, 32), Block(16, 32), Block(16, 16))
    if head_width <= 128:
        return TritonBlocks(Block(128, 64), Block(128, 64), Block(64, 64))
    if (gpu := of_kind(device_kind).gpu) and gpu.shared_bytes >= 164 << 10:
        return TritonBlocks(Block(64, 64), Block(64, 64), Block(32, 64))
    return TritonBlocks(Block(64, 32), Block(32, 32), Block(32, 32))


def splash_block(length: int, most: int = 0) -> int:
    """How many of `length` queries or keys the TPU's kernel takes at a time: at most `most`, or 1,024 if that is 0.

    1,024 is best by `planning/step_work.py`, except on a v6e from 8,192 tokens, where 2,048 take 6 % less.
    """
    return next(block for block in ATTENTION_BLOCKS if block <= (most or 1024) and length % block == 0)


def largest_block(device_kind: str) -> int:
    """The largest `model.attention_block`: the compiler refuses 2,048 on cores with 16 MiB of on-chip memory."""
    return max(of_kind(device_kind).attention, default=1024)
