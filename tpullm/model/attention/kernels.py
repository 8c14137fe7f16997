"""Which attention kernel training uses on a platform, and the sizes of its blocks."""

import jax.numpy as jnp

from tpullm.hardware.chips import of_kind
from tpullm.model.platform import target
from tpullm.recipe.schema import ATTENTION_BLOCKS, ModelConfig

# The longest row whose attention weights a CPU keeps: in bfloat16 they are 17 MB a head.
LONGEST_KEPT = 4096


def query_block(length: int) -> int:
    """How many queries attention on a CPU takes at a time; a row that has no such blocks is one."""
    block = max(128, length // 8)
    return block if length % block == 0 else length


def attention_kernel(config: ModelConfig, length: int, dtype: jnp.dtype, sequence: int, branched: bool = False) -> str:
    """The kernel of attention in training, for rows of `length` tokens on `sequence` devices along the row.

    `splash` on a TPU; `cudnn` on a GPU; on a CPU, up to `LONGEST_KEPT`, `blocks` (keeps the weights) or, with soft caps
    or sinks, `plain`; `flash` otherwise.

    Args:
        branched: rows hold several answers to one prompt, which the kernels of a TPU and of a GPU have no mask for.
    """
    special = bool(config.attention_softcap or config.sinks)
    if target() == "tpu" and splash_fits(length, sequence) and not branched:
        return "splash"
    if target() == "gpu" and dtype == jnp.bfloat16 and not special and sequence == 1 and not branched:
        return "cudnn"
    if target() == "cpu" and sequence == 1 and length <= LONGEST_KEPT:
        return "plain" if special else "blocks"
    return "flash"


def splash_fits(length: int, sequence: int) -> bool:
    """Whether the TPU's kernel takes rows of that many tokens: 128 at a time, in two chunks a device."""
    return length % (128 * (2 * sequence if sequence > 1 else 1)) == 0


def splash_block(length: int, most: int = 0) -> int:
    """How many of `length` queries or keys the TPU's kernel takes at a time: at most `most`, or 1,024 if that is 0.

    1,024 is best by `planning/attention_kernels.py`, except on a v6e from 8,192 tokens, where 2,048 take 6 % less.
    """
    return next(block for block in ATTENTION_BLOCKS if block <= (most or 1024) and length % block == 0)


def largest_block(device_kind: str) -> int:
    """The largest `model.attention_block`: the compiler refuses 2,048 on cores with 16 MiB of on-chip memory."""
    return max(of_kind(device_kind).attention, default=1024)
